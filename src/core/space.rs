// SPDX-License-Identifier: GPL-2.0-or-later

//! Room in `/mars`: levels of shortage, and whether a resource may log.
//!
//! Four thresholds on the free space make the levels 0 to 4 ([`Limits`], [`next_level`]), as in the original. A level
//! rises at once and falls one step at a time. What follows from it is decided for each resource: [`decide`] says whether
//! its primary logs or stops logging (emergency mode), [`may_unlink`] which log files go by themselves, and
//! [`rotate_at`] how large a log gets. Pure; the caller observes and acts.

/// Highest level: logs are no longer written.
pub const JAMMED: u8 = 4;

/// A log is not rotated by itself before it has this size.
const LEAST_LOG: u64 = 64 << 20;
/// The same while space is short: smaller logs can be deleted sooner.
const LEAST_LOG_SHORT: u64 = 16 << 20;
/// Logs get no larger than this part of `/mars`.
const LOG_SHARE: u64 = 32;
/// A threshold is never a larger part of `/mars` than this, so that a small `/mars` is usable, too.
const STEP_SHARE: u64 = 32;
/// A resource that has stopped does so for at least so long: an append may fail for want of room that the free space does not
/// show (a quota, or what was seen is old).
const LEAST_STOP_MS: u64 = 3_000;
/// So much further than its limit the free space has to be before a resource logs again, in percent of `/mars`.
const HYSTERESIS: u64 = 5;

/// The file system of `/mars`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Space {
    /// All bytes.
    pub total: u64,
    /// Bytes that are free for everybody.
    pub free: u64,
}

impl Space {
    /// Free space in percent, rounded down; 100 where nothing is known.
    pub fn percent(&self) -> u64 {
        // No wider numbers: the kernel has no division for them.
        self.free
            .checked_div(self.total / 100)
            .map_or(100, |p| p.min(100))
    }
}

/// Below how many free bytes a level begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Of the levels 1, 2, 3, 4; falling.
    below: [u64; 4],
}

impl Limits {
    /// From the tunables `required_free_space_{1,2,3,4}_gb`, each of which is added to those of the higher levels. None counts
    /// for more than a 32nd of `/mars`.
    pub fn new(gb: [u32; 4], total: u64) -> Self {
        let most = total.checked_div(STEP_SHARE).unwrap_or(0);
        let mut below = [0; 4];
        let mut sum = 0u64;
        for (slot, gb) in below.iter_mut().zip(gb).rev() {
            sum = sum.saturating_add(u64::from(gb).saturating_mul(1 << 30).min(most));
            *slot = sum;
        }
        Self { below }
    }

    /// Level of this much free space.
    pub fn level(&self, free: u64) -> u8 {
        let reached = self.below.iter().filter(|limit| free < **limit).count();
        u8::try_from(reached).unwrap_or(JAMMED)
    }

    /// Below this much free space `level` (1 to 4) begins.
    pub fn threshold(&self, level: u8) -> u64 {
        let index = usize::from(level).saturating_sub(1);
        self.below.get(index).copied().unwrap_or(0)
    }
}

/// The level of the next round: up at once, down one step, or not at all if `may_fall` is off.
pub fn next_level(old: u8, space: &Space, limits: &Limits, may_fall: bool) -> u8 {
    let now = limits.level(space.free);
    if now >= old {
        now
    } else if may_fall {
        old.saturating_sub(1)
    } else {
        old
    }
}

/// What the decision for one resource depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// It logs at the moment.
    pub logging: bool,
    /// Level of `/mars`.
    pub level: u8,
    /// The file system.
    pub space: Space,
    /// `todo-<me>/emergency-limit`: it stops logging when less than this is free, in percent; 0: no limit of its own.
    pub limit_percent: u64,
    /// `todo-<me>/space-limit` in bytes: so much its logs may occupy; 0: no limit of its own.
    pub budget: u64,
    /// Bytes that its logs occupy.
    pub used: u64,
    /// For how long it has not logged, in milliseconds.
    pub stopped_ms: u64,
    /// It may go back to logging by itself (tunable `logger_resume`).
    pub resume: bool,
}

/// Why a resource must not log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// `/mars` is as good as full.
    Jammed,
    /// Less is free than the resource's own limit.
    Limit,
    /// The resource's logs occupy more than its budget.
    Budget,
    /// There was a shortage, and not enough has become free since.
    NotYet,
    /// There is room, but an administrator has to say so.
    Held,
}

/// Whether to log; `Err` says why not.
///
/// A resource that has stopped goes on only when the level is 0 and its own limits are kept with a margin, so that it does
/// not stop again at once: each stop costs the replicas a comparison.
///
/// # Errors
///
/// The reason not to log.
pub fn decide(v: &View) -> Result<(), Shortage> {
    let free = v.space.percent();
    // A limit of 100 could never be exceeded by a margin.
    let margin = HYSTERESIS.min(100u64.saturating_sub(v.limit_percent) / 2);
    let budget = if v.logging {
        v.budget
    } else {
        (v.budget / 10).saturating_mul(9)
    };
    if v.level >= JAMMED {
        return Err(Shortage::Jammed);
    }
    if v.limit_percent > 0 && free < v.limit_percent {
        return Err(Shortage::Limit);
    }
    if v.budget > 0 && v.used > budget {
        return Err(Shortage::Budget);
    }
    if v.logging {
        return Ok(());
    }
    let early = v.stopped_ms < LEAST_STOP_MS;
    if early
        || v.level > 0
        || (v.limit_percent > 0 && free < v.limit_percent.saturating_add(margin))
    {
        return Err(Shortage::NotYet);
    }
    if v.resume {
        Ok(())
    } else {
        Err(Shortage::Held)
    }
}

/// Whether an administrator should be warned of the resource's own limits: four fifths of the way are gone.
pub fn is_near_limit(v: &View) -> bool {
    let budget = v.budget > 0 && v.used > (v.budget / 5).saturating_mul(4);
    let limit =
        v.limit_percent > 0 && v.space.percent() < v.limit_percent.saturating_add(HYSTERESIS);
    budget || limit
}

/// Whether the file of log `number` is removed by itself. `own` is the number in this host's replay link, `lowest` the
/// lowest one of all members, if all are known.
///
/// From level 1 on goes what no member needs; from level 2 on a secondary removes also what only others may still want,
/// who can get it from the primary.
pub fn may_unlink(level: u8, primary: bool, number: u32, own: u32, lowest: Option<u32>) -> bool {
    if number >= own {
        return false;
    }
    (level >= 1 && lowest.is_some_and(|lowest| number < lowest)) || (level >= 2 && !primary)
}

/// Size at which a log is rotated by itself; `gb` is the tunable `logrot_auto_gb`.
pub fn rotate_at(gb: u32, total: u64, level: u8) -> u64 {
    let normal = u64::from(gb)
        .saturating_mul(1 << 30)
        .min(total / LOG_SHARE)
        .max(LEAST_LOG);
    if level == 0 {
        normal
    } else {
        (normal / 4).max(LEAST_LOG_SHORT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn space(total: u64, free: u64) -> Space {
        Space { total, free }
    }

    fn view() -> View {
        View {
            logging: true,
            level: 0,
            space: space(100 * GIB, 50 * GIB),
            limit_percent: 0,
            budget: 0,
            used: 0,
            stopped_ms: LEAST_STOP_MS,
            resume: true,
        }
    }

    #[test]
    fn given_the_defaults_when_space_shrinks_then_levels_begin_at_8_6_4_and_2_gib() {
        let l = Limits::new([2; 4], 1000 * GIB);
        let levels = [8, 7, 6, 5, 4, 3, 2, 1, 0].map(|gib| l.level(gib * GIB));
        assert_eq!(levels, [0, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert_eq!(l.level(2 * GIB - 1), 4);
        assert_eq!(
            (1..=4)
                .map(|n| l.threshold(n) / GIB)
                .collect::<std::vec::Vec<_>>(),
            [8, 6, 4, 2]
        );
    }

    #[test]
    fn given_a_small_file_system_when_limits_are_made_then_an_eighth_of_it_is_the_most() {
        let l = Limits::new([2; 4], GIB);
        assert_eq!(l.threshold(1), GIB / 8);
        assert_eq!(l.level(GIB / 8), 0);
        assert_eq!(Limits::new([2; 4], 0).level(0), 0);
        let none = Limits::new([0; 4], GIB);
        assert_eq!(none.level(0), 0);
    }

    #[test]
    fn given_a_level_when_space_changes_then_it_rises_at_once_and_falls_step_by_step() {
        let l = Limits::new([2; 4], 1000 * GIB);
        let full = space(1000 * GIB, 0);
        let empty = space(1000 * GIB, 900 * GIB);
        assert_eq!(next_level(0, &full, &l, true), 4);
        let mut level = 4;
        for want in [3, 2, 1, 0, 0] {
            level = next_level(level, &empty, &l, true);
            assert_eq!(level, want);
        }
        assert_eq!(next_level(4, &empty, &l, false), 4);
        assert_eq!(next_level(4, &space(1000 * GIB, 5 * GIB), &l, true), 3);
    }

    #[test]
    fn given_a_jam_when_space_returns_then_logging_goes_on_only_at_level_0() {
        let mut v = View {
            level: JAMMED,
            ..view()
        };
        assert_eq!(decide(&v), Err(Shortage::Jammed));
        v.logging = false;
        for level in [3, 2, 1] {
            v.level = level;
            assert_eq!(decide(&v), Err(Shortage::NotYet));
            // Who never stopped goes on.
            assert_eq!(decide(&View { logging: true, ..v }), Ok(()));
        }
        v.level = 0;
        assert_eq!(decide(&v), Ok(()));
        assert_eq!(
            decide(&View {
                stopped_ms: LEAST_STOP_MS - 1,
                ..v
            }),
            Err(Shortage::NotYet)
        );
        assert_eq!(decide(&View { resume: false, ..v }), Err(Shortage::Held));
    }

    #[test]
    fn given_own_limits_when_space_shrinks_then_resources_stop_in_the_order_of_their_limits() {
        for free in 0..=100u64 {
            for limit in [80, 60, 40] {
                let v = View {
                    limit_percent: limit,
                    space: space(100, free),
                    ..view()
                };
                assert_eq!(decide(&v).is_ok(), free >= limit);
                let stopped = View {
                    logging: false,
                    ..v
                };
                assert_eq!(decide(&stopped).is_ok(), free >= limit + HYSTERESIS);
            }
        }
        let most = View {
            limit_percent: 100,
            logging: false,
            space: space(100, 100),
            ..view()
        };
        assert_eq!(decide(&most), Ok(()));
    }

    #[test]
    fn given_a_budget_when_the_logs_exceed_it_then_the_resource_stops_and_warns_before() {
        let v = |used, logging| View {
            budget: 100,
            used,
            logging,
            ..view()
        };
        assert_eq!(decide(&v(100, true)), Ok(()));
        assert_eq!(decide(&v(101, true)), Err(Shortage::Budget));
        assert_eq!(decide(&v(91, false)), Err(Shortage::Budget));
        assert_eq!(decide(&v(90, false)), Ok(()));
        assert!(!is_near_limit(&v(80, true)) && is_near_limit(&v(81, true)));
        assert!(!is_near_limit(&view()));
    }

    #[test]
    fn p1_given_any_level_when_files_are_removed_then_never_one_that_this_host_needs() {
        for level in 0..=4 {
            for primary in [false, true] {
                for number in 0..6 {
                    for lowest in [None, Some(0), Some(2), Some(9)] {
                        let gone = may_unlink(level, primary, number, 3, lowest);
                        assert!(!gone || number < 3);
                        // A primary keeps what any member needs: it may be the only one who has it.
                        assert!(!gone || !primary || lowest.is_some_and(|l| number < l));
                        assert!(!gone || level > 0);
                    }
                }
            }
        }
        assert!(may_unlink(2, false, 2, 3, None) && may_unlink(1, true, 1, 3, Some(2)));
    }

    #[test]
    fn given_sizes_when_rotated_then_by_share_of_mars_and_earlier_when_space_is_short() {
        assert_eq!(rotate_at(32, 10_000 * GIB, 0), 32 * GIB);
        assert_eq!(rotate_at(32, 64 * GIB, 0), 2 * GIB);
        assert_eq!(rotate_at(32, GIB, 0), LEAST_LOG);
        assert_eq!(rotate_at(32, GIB, 1), LEAST_LOG_SHORT);
        assert_eq!(rotate_at(32, 64 * GIB, 3), GIB / 2);
    }

    #[test]
    fn given_odd_sizes_when_asked_for_percent_then_nothing_overflows() {
        assert_eq!(space(0, 0).percent(), 100);
        assert_eq!(space(u64::MAX, u64::MAX).percent(), 100);
        assert_eq!(space(1000, 5).percent(), 0);
    }
}
