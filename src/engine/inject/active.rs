// SPDX-License-Identifier: GPL-2.0-or-later

//! The injector itself: the rules in force, the counters of the points, and the file of debugfs.

use core::fmt;

use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    uaccess::UserSliceReader, //
};

use mars_core::inject::{
    flip,
    Action,
    Hit,
    Kind,
    Rule,
    RuleError,
    Rules, //
};

use super::{
    Point,
    POINTS, //
};
use crate::sys::{
    host,
    static_lock::{
        SetUp,
        StaticLock, //
    },
    time, //
};

/// So many rules can be in force.
const MAX_RULES: usize = 64;
/// The longest input.
const MAX_INPUT: usize = 4096;

/// How often a point was passed, and how often something happened there.
struct Counter {
    passed: Atomic<u64>,
    fired: Atomic<u64>,
}

static RULES: StaticLock<Rules> = StaticLock::new();
static COUNTERS: [Counter; POINTS.len()] = [const {
    Counter {
        passed: Atomic::new(0),
        fired: Atomic::new(0),
    }
}; POINTS.len()];

/// The injector, while it exists. Fields drop in this order: no more commands, then no more rules.
pub(crate) struct Injector {
    _file: Pin<KBox<File<()>>>,
    _dir: Dir,
    _rules: SetUp<Rules>,
}

impl Injector {
    /// Makes the file of debugfs. Without any rule nothing happens.
    pub(crate) fn new() -> Result<Self> {
        for c in &COUNTERS {
            c.passed.store(0, Relaxed);
            c.fired.store(0, Relaxed);
        }
        let rules = RULES.set_up(Rules::with_capacity(MAX_RULES, GFP_KERNEL)?)?;
        let dir = Dir::new(c"mars");
        let file = KBox::pin_init(
            dir.read_write_callback_file(c"inject", (), &|(), f| show(f), &|(), r| command(r)),
            GFP_KERNEL,
        )?;
        pr_warn!("this module has a fault injector: it is for tests only\n");
        Ok(Self {
            _file: file,
            _dir: dir,
            _rules: rules,
        })
    }
}

/// Takes back all rules when it is dropped: nobody is stalled who has to end.
pub(crate) struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        RULES.with(Rules::clear);
    }
}

fn now_ms() -> u64 {
    time::mono_ns() / 1_000_000
}

/// One line for each point, then one for each rule.
fn show(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "# point kind passed fired")?;
    for ((name, kind), c) in POINTS.iter().zip(&COUNTERS) {
        writeln!(
            f,
            "{} {} {} {}",
            name,
            kind.name(),
            c.passed.load(Relaxed),
            c.fired.load(Relaxed)
        )?;
    }
    writeln!(f, "# rules: seen fired")?;
    let mut i = 0;
    // One at a time: nothing is formatted under the lock.
    while let Some(a) = RULES.with(|r| r.iter().nth(i).copied()).flatten() {
        let name = POINTS.get(a.rule.point).map_or("", |(name, _)| *name);
        write!(f, "{} {}", name, a.rule.action)?;
        a.rule.write_conditions(f)?;
        writeln!(f, ": {} {}", a.seen, a.fired)?;
        i += 1;
    }
    Ok(())
}

/// Lines: `reset`, `seed N`, `POINT off`, or a rule. Those before a line with a mistake count.
fn command(reader: &mut UserSliceReader) -> Result {
    if reader.len() > MAX_INPUT {
        return Err(E2BIG);
    }
    let mut text = KVec::from_elem(0u8, reader.len(), GFP_KERNEL)?;
    reader.read_slice(&mut text)?;
    let text = core::str::from_utf8(&text).map_err(|_| EINVAL)?;
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        one_command(line)?;
    }
    Ok(())
}

fn find(name: &str) -> Option<(usize, Kind)> {
    POINTS
        .iter()
        .position(|(n, _)| *n == name)
        .and_then(|i| POINTS.get(i).map(|(_, kind)| (i, *kind)))
}

fn one_command(line: &str) -> Result {
    if line == "reset" {
        RULES.with(Rules::clear);
        for c in &COUNTERS {
            c.passed.store(0, Relaxed);
            c.fired.store(0, Relaxed);
        }
        return Ok(());
    }
    if let Some(n) = line.strip_prefix("seed ") {
        let seed = n.parse().map_err(|_| EINVAL)?;
        RULES.with(|r| r.set_seed(seed));
        return Ok(());
    }
    if let Some((name, "off")) = line.split_once(' ') {
        let (point, _) = find(name).ok_or(ENOENT)?;
        RULES.with(|r| r.remove(point));
        return Ok(());
    }
    let rule = Rule::parse(line, find).map_err(|e| {
        pr_err!("the injector can't obey {:?}: {:?}\n", line, e);
        match e {
            RuleError::Point => ENOENT,
            RuleError::Cannot => EOPNOTSUPP,
            RuleError::Action | RuleError::Condition => EINVAL,
        }
    })?;
    let now = now_ms();
    match RULES.with(|r| r.add(rule, now)) {
        Some(true) => Ok(()),
        Some(false) => Err(ENOSPC),
        None => Err(ENODEV),
    }
}

/// Counts the pass and asks the rules.
fn ask(point: Point, pos: u64, len: u64) -> Option<Hit> {
    // CAST: The discriminants count from 0.
    let i = point as usize;
    let c = COUNTERS.get(i)?;
    c.passed.add(1, Relaxed);
    let now = now_ms();
    let hit = RULES.with(|r| r.pass(i, pos, len, now)).flatten()?;
    c.fired.add(1, Relaxed);
    Some(hit)
}

/// Does what needs no data.
#[cold]
fn act(hit: Hit) -> Result {
    match hit.action {
        Action::Die => host::die(),
        Action::Error(n) => return Err(Error::from_errno(-i32::from(n))),
        Action::NoMemory => return Err(ENOMEM),
        Action::Delay(ms) => time::sleep_ms(ms),
        Action::Stall => {
            while RULES.with(|r| r.holds(hit.id, now_ms())) == Some(true) {
                time::sleep_ms(20);
            }
        }
        // Only where there are data, or a clock.
        Action::Truncate(_) | Action::Flip(_) | Action::Jump(_) => (),
    }
    Ok(())
}

/// A step is reached that touches `len` bytes from `pos` on.
pub(crate) fn at(point: Point, pos: u64, len: usize) -> Result {
    let len = u64::try_from(len).unwrap_or(u64::MAX);
    ask(point, pos, len).map_or(Ok(()), act)
}

/// A place is passed.
pub(crate) fn pass(point: Point) {
    // A point of this kind has no rule that fails.
    let _ = at(point, 0, 0);
}

/// A step is reached with `data` from `pos` on, which it may spoil. A number: only so many bytes of them are there.
pub(crate) fn data(point: Point, pos: u64, data: &mut [u8]) -> Result<Option<usize>> {
    let len = data.len();
    let Some(hit) = ask(point, pos, u64::try_from(len).unwrap_or(u64::MAX)) else {
        return Ok(None);
    };
    match hit.action {
        Action::Truncate(n) => {
            return Ok(usize::try_from(n).ok().filter(|n| *n < len));
        }
        Action::Flip(bit) => flip(data, bit, hit.random),
        _ => act(hit)?,
    }
    Ok(None)
}

/// Seconds that the wall clock shows too much.
pub(crate) fn skew() -> i64 {
    match ask(Point::ClockRead, 0, 0).map(|h| h.action) {
        Some(Action::Jump(s)) => s,
        _ => 0,
    }
}
