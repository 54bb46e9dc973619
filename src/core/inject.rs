// SPDX-License-Identifier: GPL-2.0-or-later

//! Rules of the fault injector: what shall happen when the engine passes one of its named points, and when.
//!
//! A rule is one line,
//!
//! ```text
//! POINT ACTION[=ARG] [after=N] [times=N] [probability=1/N] [range=A-B] [for=MS]
//! ```
//!
//! and `Documentation/fault-injection.md` says what each word means. Time and randomness are arguments here as everywhere in
//! the core: the same rules, seed and passes give the same faults.
//!
//! Only in builds with the injector (`make module INJECT=1`), and in userspace for the tests. The product has none of it.

use core::fmt;

use kernel::alloc::{
    AllocError,
    Flags,
    KVec, //
};

/// What happens when a rule fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The machine stops at once, without any further I/O.
    Die,
    /// The step fails with this (positive) error number.
    Error(u16),
    /// The step fails as if there were no memory for it.
    NoMemory,
    /// The step waits for so many milliseconds.
    Delay(u32),
    /// The step waits until the rule is gone, or its time is over.
    Stall,
    /// Only the first so many bytes are there.
    Truncate(u64),
    /// This bit of the data is turned over; without a number, any.
    Flip(Option<u64>),
    /// The clock of the host shows so many seconds more.
    Jump(i64),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Die => f.write_str("die"),
            Self::Error(n) => write!(f, "error={n}"),
            Self::NoMemory => f.write_str("nomem"),
            Self::Delay(ms) => write!(f, "delay={ms}"),
            Self::Stall => f.write_str("stall"),
            Self::Truncate(n) => write!(f, "truncate={n}"),
            Self::Flip(None) => f.write_str("flip"),
            Self::Flip(Some(bit)) => write!(f, "flip={bit}"),
            Self::Jump(s) => write!(f, "jump={s}"),
        }
    }
}

/// What a point can do. A rule that its point can't obey is refused, so none is silently without effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A step that can fail.
    Step,
    /// Memory is needed, and nothing else can fail.
    Memory,
    /// A place that is only passed.
    Pass,
    /// A step that can fail, and has data in its hands.
    Data,
    /// Somebody looks at the clock.
    Clock,
}

impl Kind {
    /// Whether a point of this kind can do that.
    pub fn can(self, action: Action) -> bool {
        match action {
            Action::Die | Action::Delay(_) | Action::Stall => self != Self::Clock,
            Action::NoMemory => matches!(self, Self::Step | Self::Memory | Self::Data),
            Action::Error(_) => matches!(self, Self::Step | Self::Data),
            Action::Truncate(_) | Action::Flip(_) => self == Self::Data,
            Action::Jump(_) => self == Self::Clock,
        }
    }

    /// A word for the listing.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Memory => "memory",
            Self::Pass => "pass",
            Self::Data => "data",
            Self::Clock => "clock",
        }
    }
}

/// When something happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Index of the point.
    pub point: usize,
    /// What happens.
    pub action: Action,
    /// So many passes go by first.
    pub after: u64,
    /// It happens so often at most.
    pub times: Option<u64>,
    /// It happens once in so many passes, at random.
    pub one_in: u64,
    /// Only passes that touch one of these bytes count (first, last).
    pub range: Option<(u64, u64)>,
    /// It holds for so many milliseconds.
    pub for_ms: Option<u64>,
}

/// Why a line is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleError {
    /// There is no such point.
    Point,
    /// There is no such action, or its argument is missing, superfluous, or no number.
    Action,
    /// The point can't do that.
    Cannot,
    /// A condition is unknown, twice there, or has an impossible value.
    Condition,
}

fn number<T: core::str::FromStr>(text: &str) -> Option<T> {
    // What `parse` takes besides, a leading `+`, would only be another way to write the same.
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

fn action(word: &str) -> Option<Action> {
    let (name, arg) = match word.split_once('=') {
        Some((name, arg)) => (name, Some(arg)),
        None => (word, None),
    };
    Some(match (name, arg) {
        ("die", None) => Action::Die,
        // EIO
        ("error", None) => Action::Error(5),
        ("error", Some(n)) => Action::Error(number(n).filter(|n| (1..=4095).contains(n))?),
        ("nomem", None) => Action::NoMemory,
        ("delay", Some(n)) => Action::Delay(number(n)?),
        ("stall", None) => Action::Stall,
        ("truncate", Some(n)) => Action::Truncate(number(n)?),
        ("flip", None) => Action::Flip(None),
        ("flip", Some(n)) => Action::Flip(Some(number(n)?)),
        ("jump", Some(n)) => Action::Jump(number(n)?),
        _ => return None,
    })
}

impl Rule {
    /// Reads a line; `find` knows the points.
    ///
    /// # Errors
    ///
    /// What is wrong with it. Nothing of it counts then.
    pub fn parse(
        line: &str,
        find: impl FnOnce(&str) -> Option<(usize, Kind)>,
    ) -> Result<Self, RuleError> {
        let mut words = line.split_ascii_whitespace();
        let (point, kind) = words.next().and_then(find).ok_or(RuleError::Point)?;
        let action = words.next().and_then(action).ok_or(RuleError::Action)?;
        if !kind.can(action) {
            return Err(RuleError::Cannot);
        }
        let mut rule = Self {
            point,
            action,
            after: 0,
            times: None,
            one_in: 1,
            range: None,
            for_ms: None,
        };
        let mut seen = [false; 5];
        for word in words {
            let (name, value) = word.split_once('=').ok_or(RuleError::Condition)?;
            let which = rule.condition(name, value).ok_or(RuleError::Condition)?;
            let first = seen
                .get_mut(which)
                .is_some_and(|s| !core::mem::replace(s, true));
            if !first {
                return Err(RuleError::Condition);
            }
        }
        Ok(rule)
    }

    /// Takes one condition; gives which it is.
    fn condition(&mut self, name: &str, value: &str) -> Option<usize> {
        match name {
            "after" => {
                self.after = number(value)?;
                Some(0)
            }
            "times" => {
                self.times = Some(number(value).filter(|n| *n > 0)?);
                Some(1)
            }
            "probability" => {
                self.one_in = number(value.strip_prefix("1/")?).filter(|n| *n > 0)?;
                Some(2)
            }
            "range" => {
                let (first, last) = value.split_once('-')?;
                let range: (u64, u64) = (number(first)?, number(last)?);
                self.range = Some(range).filter(|(first, last)| first <= last);
                self.range.map(|_| 3)
            }
            "for" => {
                self.for_ms = Some(number(value).filter(|n| *n > 0)?);
                Some(4)
            }
            _ => None,
        }
    }

    fn touches(&self, pos: u64, len: u64) -> bool {
        self.range.is_none_or(|(first, last)| {
            // What has no length is at its position.
            let end = pos.saturating_add(len.max(1));
            pos <= last && first < end
        })
    }

    /// The conditions as in a line, each with a space before it.
    pub fn write_conditions(&self, f: &mut impl fmt::Write) -> fmt::Result {
        if self.after > 0 {
            write!(f, " after={}", self.after)?;
        }
        if let Some(n) = self.times {
            write!(f, " times={n}")?;
        }
        if self.one_in > 1 {
            write!(f, " probability=1/{}", self.one_in)?;
        }
        if let Some((first, last)) = self.range {
            write!(f, " range={first}-{last}")?;
        }
        if let Some(ms) = self.for_ms {
            write!(f, " for={ms}")?;
        }
        Ok(())
    }
}

/// A rule in force.
#[derive(Clone, Copy, Debug)]
pub struct Armed {
    /// The rule.
    pub rule: Rule,
    /// Passes that it has counted.
    pub seen: u64,
    /// How often it has fired.
    pub fired: u64,
    since_ms: u64,
    id: u64,
}

impl Armed {
    fn is_over(&self, now_ms: u64) -> bool {
        let rule = &self.rule;
        rule.times.is_some_and(|n| self.fired >= n)
            || rule
                .for_ms
                .is_some_and(|ms| now_ms.saturating_sub(self.since_ms) >= ms)
    }
}

/// What a pass has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// What happens.
    pub action: Action,
    /// A random number for it.
    pub random: u64,
    /// The rule, for [`Rules::holds`].
    pub id: u64,
}

/// All rules in force, in the order in which they were given.
#[derive(Debug, Default)]
pub struct Rules {
    list: KVec<Armed>,
    seed: u64,
    next_id: u64,
}

/// The same for the same numbers, and otherwise without any pattern (splitmix64).
fn random(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rules {
    /// None.
    pub const fn new() -> Self {
        Self {
            list: KVec::new(),
            seed: 0,
            next_id: 0,
        }
    }

    /// From where random numbers come, for all rules that are given from now on.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
        self.next_id = 0;
    }

    /// None, and room for `count`.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub fn with_capacity(count: usize, flags: Flags) -> Result<Self, AllocError> {
        Ok(Self {
            list: KVec::with_capacity(count, flags)?,
            ..Self::new()
        })
    }

    /// Puts a rule into force, behind those for the same point; `false`: there is no room.
    pub fn add(&mut self, rule: Rule, now_ms: u64) -> bool {
        let armed = Armed {
            rule,
            seen: 0,
            fired: 0,
            since_ms: now_ms,
            id: self.next_id,
        };
        self.next_id = self.next_id.wrapping_add(1);
        self.list.push_within_capacity(armed).is_ok()
    }

    /// Takes back all rules of a point.
    pub fn remove(&mut self, point: usize) {
        self.list.retain(|a| a.rule.point != point);
    }

    /// Takes back all rules.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// All rules.
    pub fn iter(&self) -> impl Iterator<Item = &Armed> {
        self.list.iter()
    }

    /// Whether a rule is still there and not over: who waits because of it goes on waiting.
    pub fn holds(&self, id: u64, now_ms: u64) -> bool {
        self.list.iter().any(|a| {
            a.id == id
                && a.rule
                    .for_ms
                    .is_none_or(|ms| now_ms.saturating_sub(a.since_ms) < ms)
        })
    }

    /// A point is passed with `len` bytes at `pos` in its hands. Gives what has to happen: what the first rule says that
    /// fires. Each rule that applies counts the pass, up to the one that fires.
    pub fn pass(&mut self, point: usize, pos: u64, len: u64, now_ms: u64) -> Option<Hit> {
        let seed = self.seed;
        for a in self.list.iter_mut() {
            let rule = a.rule;
            if rule.point != point || a.is_over(now_ms) || !rule.touches(pos, len) {
                continue;
            }
            let number = a.seen;
            a.seen = a.seen.saturating_add(1);
            let r = random(seed ^ random(a.id, 0), number);
            if number < rule.after || r.checked_rem(rule.one_in) != Some(0) {
                continue;
            }
            a.fired = a.fired.saturating_add(1);
            return Some(Hit {
                action: rule.action,
                // Not the number that was looked at for the decision: that is a multiple of `one_in`.
                random: random(r, 1),
                id: a.id,
            });
        }
        None
    }
}

/// Turns one bit of `data` over: `bit`, or any.
pub fn flip(data: &mut [u8], bit: Option<u64>, random: u64) {
    let Ok(len) = u64::try_from(data.len()) else {
        return;
    };
    let bits = len.saturating_mul(8);
    let Some(bit) = bit.unwrap_or(random).checked_rem(bits) else {
        return;
    };
    let at = usize::try_from(bit >> 3).unwrap_or(0);
    if let Some(byte) = data.get_mut(at) {
        *byte ^= 1 << (bit & 7);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::alloc::flags::GFP_KERNEL;
    use std::{
        format,
        string::String,
        vec::Vec, //
    };

    fn find(name: &str) -> Option<(usize, Kind)> {
        match name {
            "append" => Some((0, Kind::Data)),
            "flush" => Some((1, Kind::Step)),
            "round" => Some((2, Kind::Pass)),
            "clock" => Some((3, Kind::Clock)),
            "memory" => Some((4, Kind::Memory)),
            _ => None,
        }
    }

    fn rule(line: &str) -> Rule {
        Rule::parse(line, find).unwrap()
    }

    fn armed(lines: &[&str]) -> Rules {
        let mut rules = Rules::with_capacity(lines.len(), GFP_KERNEL).unwrap();
        for line in lines {
            assert!(rules.add(rule(line), 1000));
        }
        rules
    }

    /// Numbers of the passes (from 1) of point 0 that fire.
    fn fires(rules: &mut Rules, passes: u64) -> Vec<u64> {
        (1..=passes)
            .filter(|_| rules.pass(0, 0, 0, 1000).is_some())
            .collect()
    }

    #[test]
    fn given_each_action_when_it_is_read_then_it_is_written_the_same() {
        for word in [
            "append die",
            "append error=28",
            "append nomem",
            "append delay=50",
            "append stall",
            "append truncate=512",
            "append flip",
            "append flip=77",
            "clock jump=-3600",
        ] {
            let rule = rule(word);
            let name = if rule.point == 3 { "clock" } else { "append" };
            assert_eq!(format!("{name} {}", rule.action), word);
        }
        assert_eq!(rule("flush error").action, Action::Error(5));
    }

    #[test]
    fn given_all_conditions_in_any_order_when_they_are_read_then_all_of_them_count() {
        let line = "append error=5 for=250 range=4096-8191 probability=1/10 times=2 after=3";
        let rule = rule(line);
        assert_eq!(
            rule,
            Rule {
                point: 0,
                action: Action::Error(5),
                after: 3,
                times: Some(2),
                one_in: 10,
                range: Some((4096, 8191)),
                for_ms: Some(250),
            }
        );
        let mut text = String::new();
        rule.write_conditions(&mut text).unwrap();
        assert_eq!(
            text,
            " after=3 times=2 probability=1/10 range=4096-8191 for=250"
        );
    }

    #[test]
    fn given_a_line_with_a_mistake_when_it_is_read_then_it_is_refused_as_a_whole() {
        use RuleError::{
            Action,
            Cannot,
            Condition,
            Point, //
        };
        for (line, error) in [
            ("", Point),
            ("nowhere die", Point),
            ("append", Action),
            ("append explode", Action),
            ("append die=1", Action),
            ("append error=0", Action),
            ("append error=4096", Action),
            ("append error=-5", Action),
            ("append delay", Action),
            ("append delay=+5", Action),
            ("append truncate", Action),
            ("append stall=1", Action),
            ("append die die", Condition),
            ("append die after", Condition),
            ("append die after=x", Condition),
            ("append die after=1 after=2", Condition),
            ("append die times=0", Condition),
            ("append die probability=0.5", Condition),
            ("append die probability=1/0", Condition),
            ("append die range=5", Condition),
            ("append die range=6-5", Condition),
            ("append die for=0", Condition),
            ("flush flip", Cannot),
            ("flush truncate=1", Cannot),
            ("flush jump=1", Cannot),
            ("round error", Cannot),
            ("round nomem", Cannot),
            ("memory error", Cannot),
            ("memory flip", Cannot),
            ("clock die", Cannot),
            ("clock stall", Cannot),
        ] {
            assert_eq!(Rule::parse(line, find), Err(error), "{line}");
        }
    }

    #[test]
    fn given_no_condition_when_a_point_is_passed_then_its_rule_fires_each_time_and_no_other() {
        let mut rules = armed(&["append error"]);
        assert_eq!(fires(&mut rules, 4), [1, 2, 3, 4]);
        assert_eq!(rules.pass(1, 0, 0, 1000), None);
    }

    #[test]
    fn given_after_and_times_when_a_point_is_passed_then_it_fires_so_often_and_not_before() {
        let mut rules = armed(&["append error after=3 times=2"]);
        assert_eq!(fires(&mut rules, 10), [4, 5]);
    }

    #[test]
    fn given_a_range_when_a_pass_touches_it_then_it_fires_and_others_do_not_count() {
        let mut rules = armed(&["append error range=100-199 after=1"]);
        let mut hit = |pos, len| rules.pass(0, pos, len, 1000).is_some();
        assert!(!hit(0, 100));
        assert!(!hit(200, 50));
        assert!(!hit(0, 101), "the first that touches it goes by");
        assert!(hit(199, 1));
        assert!(hit(150, 0), "without a length it is a place");
        assert!(!hit(200, 0));
        assert!(hit(0, u64::MAX));
        assert!(hit(100, 100));
    }

    #[test]
    fn given_a_time_when_it_is_over_then_the_rule_no_longer_fires_nor_holds() {
        let mut rules = armed(&["append stall for=100"]);
        let hit = rules.pass(0, 0, 0, 1099).unwrap();
        assert!(rules.holds(hit.id, 1099));
        assert!(!rules.holds(hit.id, 1100));
        assert_eq!(rules.pass(0, 0, 0, 1100), None);
    }

    #[test]
    fn given_a_rule_that_has_fired_as_often_as_it_may_when_somebody_still_waits_then_it_holds_until_removed(
    ) {
        let mut rules = armed(&["append stall times=1"]);
        let hit = rules.pass(0, 0, 0, 1000).unwrap();
        assert_eq!(rules.pass(0, 0, 0, 1000), None);
        assert!(rules.holds(hit.id, u64::MAX));
        rules.remove(0);
        assert!(!rules.holds(hit.id, 1000));
    }

    #[test]
    fn given_two_rules_for_a_point_when_it_is_passed_then_the_first_that_fires_counts() {
        let mut rules = armed(&["append error=1 times=1", "append error=2 times=1"]);
        let mut error = || rules.pass(0, 0, 0, 1000).map(|h| h.action);
        assert_eq!(error(), Some(Action::Error(1)));
        assert_eq!(error(), Some(Action::Error(2)));
        assert_eq!(error(), None);
    }

    #[test]
    fn given_rules_for_two_points_when_those_of_one_are_removed_then_the_other_stays() {
        let mut rules = armed(&["append error", "flush error"]);
        rules.remove(0);
        assert_eq!(fires(&mut rules, 2), []);
        assert!(rules.pass(1, 0, 0, 1000).is_some());
        assert_eq!(rules.iter().count(), 1);
        rules.clear();
        assert_eq!(rules.iter().count(), 0);
    }

    #[test]
    fn given_a_bit_when_data_is_flipped_then_exactly_that_bit_is_another() {
        let mut data = [0u8; 4];
        flip(&mut data, Some(9), 0);
        assert_eq!(data, [0, 2, 0, 0]);
        flip(&mut data, Some(32 + 9), 0);
        assert_eq!(data, [0; 4]);
        flip(&mut data, None, 31);
        assert_eq!(data, [0, 0, 0, 0x80]);
        flip(&mut [], None, 7);
    }

    #[test]
    fn given_no_room_when_a_rule_is_added_then_that_is_said_and_nothing_has_changed() {
        let mut rules = Rules::with_capacity(1, GFP_KERNEL).unwrap();
        let mut count = 0;
        while rules.add(rule("append die"), 0) {
            count += 1;
        }
        assert!(count >= 1);
        assert_eq!(rules.iter().count(), count);
        assert!(!Rules::new().add(rule("append die"), 0));
    }
}
