// SPDX-License-Identifier: GPL-2.0-or-later

//! When to write back, how much at once, and when to flush the disk and publish the replay position.
//!
//! A pure function of what the write-back thread sees; the thread asks before each round. The idea:
//!
//! * *Nothing comes in:* write back at once, at a modest depth, so that the buffer is empty soon and reads are not slowed
//!   down much.
//! * *A little comes in:* let it gather for [`Policy::fresh_ns`]; a replica is then not far behind, at little cost.
//! * *Much comes in:* let it gather for [`Policy::gather_ns`]. What is rewritten meanwhile goes to the disk once, and the
//!   rest in longer sorted stretches. The log has it all, so waiting risks nothing but the time of a recovery.
//! * *The buffer fills up:* the deeper, the fuller; above [`Policy::pressure`] at full depth, before admissions have to wait.
//! * *Draining* (detach, handover, log deletion): full depth, and the position is published as soon as all is done.
//! * *The disk fails:* one I/O at a time, with a pause after each failure, which gets longer.
//!
//! I/Os go out in flocks: new ones are started only when half of the depth is free. One after the other, each would cost a
//! wake-up of the thread, a doorbell of the disk and an interrupt of its own; together they share them, in sector order.
//!
//! What was written stays in the buffer until a flush of the disk has succeeded. That costs, so it happens at most every
//! [`Policy::publish_ns`] while records come in, and otherwise as soon as everything is written, or when what only waits
//! for it fills [`Policy::landed`] of the buffer.

/// Times and sizes, for any disk from a single spindle to flash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// I/Os in flight while nothing else is going on.
    pub idle_depth: usize,
    /// I/Os in flight at most.
    pub max_depth: usize,
    /// Nothing comes in once nothing was admitted for so long. One write after the other, each with a flush, is a load:
    /// a write-back between two of them would only slow the next one down.
    pub quiet_ns: u64,
    /// Under a small load, records get this old before they are written back.
    pub fresh_ns: u64,
    /// The load is small as long as no more bytes than this are to be written.
    pub little: usize,
    /// Under load, records get this old before they are written back.
    pub gather_ns: u64,
    /// From this share of the budget on (in percent) age does not matter.
    pub relaxed: u8,
    /// From this share of the budget on (in percent) everything is done at full depth.
    pub pressure: u8,
    /// From this share of the budget on (in percent) what was written is flushed at once.
    pub landed: u8,
    /// Smallest time between two flushes for the sake of the replay position.
    pub publish_ns: u64,
    /// Pause after a failed I/O; twice as long after the next one, and so on.
    pub retry_ns: u64,
    /// Longest pause.
    pub max_retry_ns: u64,
}

impl Policy {
    /// For a primary: nobody waits for its disk while the buffer has room, and what is written back during a burst takes
    /// disk and processor from the application. Some seconds of writes are also what a recovery replays fast.
    pub const fn primary() -> Self {
        Self {
            idle_depth: 8,
            max_depth: 64,
            quiet_ns: 30_000_000,
            fresh_ns: 4_000_000_000,
            little: 0,
            gather_ns: 4_000_000_000,
            relaxed: 50,
            pressure: 80,
            landed: 25,
            publish_ns: 1_000_000_000,
            retry_ns: 500_000_000,
            max_retry_ns: 8_000_000_000,
        }
    }

    /// For a replica: what is replayed shall be on its disk soon, because it counts as replicated only then. But not at any
    /// price: under load its own log has it, durably, and a takeover writes it back first. Records come in batches, each some
    /// 50 ms or more after the other, so that a shorter silence means nothing.
    pub const fn replica() -> Self {
        Self {
            quiet_ns: 100_000_000,
            fresh_ns: 150_000_000,
            little: 512 << 10,
            relaxed: 25,
            pressure: 60,
            ..Self::primary()
        }
    }

    /// For recovery: somebody waits for its end, and nobody else uses the disk. Reading the log and writing to the disk shall
    /// go on side by side from the start, whatever the size of the buffer; a little gathers, for longer stretches. What was
    /// written is flushed when the buffer needs the room: a crash meanwhile only costs the time of doing it again.
    pub const fn recovery() -> Self {
        Self {
            idle_depth: 32,
            quiet_ns: 20_000_000,
            fresh_ns: 50_000_000,
            gather_ns: 50_000_000,
            relaxed: 5,
            pressure: 25,
            landed: 40,
            publish_ns: 5_000_000_000,
            ..Self::primary()
        }
    }
}

/// What the write-back thread sees. Times are monotonic, in nanoseconds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct View {
    /// [`WriteBuffer::bytes`](crate::buffer::WriteBuffer::bytes).
    pub dirty_bytes: usize,
    /// How much the buffer may hold.
    pub budget: usize,
    /// The part of it that is written and waits for a flush.
    pub landed_bytes: usize,
    /// All of it is written.
    pub all_landed: bool,
    /// Writes in flight.
    pub in_flight: usize,
    /// A flush is in flight.
    pub flushing: bool,
    /// Everything is to be written back as fast as possible.
    pub draining: bool,
    /// So many I/Os failed since the last one that did not.
    pub failures: u32,
    /// Now.
    pub now_ns: u64,
    /// When the last failed I/O ended.
    pub last_error_ns: u64,
    /// When the disk was flushed last, or that was tried.
    pub last_flush_ns: u64,
    /// All that was admitted is durable in the log.
    pub idle: bool,
    /// When the last record was admitted.
    pub last_admitted_ns: u64,
    /// When the oldest record that is not finished came in; `None` if that is not known (it counts as old).
    pub oldest_dirty_ns: Option<u64>,
    /// Bytes that come in each second, as far as known: a buffer that will be full soon is under pressure now.
    pub incoming_per_s: u64,
}

/// What to do now.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Decision {
    /// How many I/Os to start.
    pub start: usize,
    /// If none are to be started although some are in flight: look again when no more than so many are left.
    pub left: usize,
    /// Flush the disk.
    pub flush: bool,
    /// If there was nothing to do: look again after so long, unless something happens before.
    pub sleep_ms: u32,
}

/// Longest pause: a signal that got lost costs no more than this.
const MAX_SLEEP_MS: u64 = 1000;
/// Shortest pause.
const MIN_SLEEP_MS: u64 = 1;

/// What to do now.
pub fn decide(view: &View, policy: &Policy) -> Decision {
    let flush_in = flush_in_ns(view, policy);
    let (depth, wait_ns) = depth(view, policy);
    let mut sleep_ns = wait_ns;
    if let Some(ns) = flush_in {
        sleep_ns = sleep_ns.min(ns);
    }
    let left = depth / 2;
    Decision {
        start: if view.in_flight <= left {
            depth.saturating_sub(view.in_flight)
        } else {
            0
        },
        left,
        flush: flush_in == Some(0),
        sleep_ms: to_ms(sleep_ns),
    }
}

/// Whether a record of `length` bytes may be admitted now, or has to wait until write-back has made room. An empty buffer
/// takes anything, so that a record larger than the budget does not wait for ever.
pub fn may_admit(held_bytes: usize, length: usize, budget: usize) -> bool {
    held_bytes == 0 || held_bytes.saturating_add(length) <= budget
}

/// Whether more of a log may be read, when `read_bytes` of it are in memory and `held_bytes` of them are payload that waits for
/// the disk: the last record that waits keeps all that was read together with it.
pub fn may_read(read_bytes: usize, held_bytes: usize, budget: usize) -> bool {
    held_bytes == 0 || read_bytes < budget.saturating_add(budget / 2)
}

/// Least size of a buffer that nobody has chosen, in bytes.
const LEAST_BUFFER: u64 = 16 << 20;
/// Largest one.
const MOST_BUFFER: u64 = 4 << 30;

/// Bytes for the buffer of one more resource of a host that has `memory` bytes, and has promised `given` of them to other
/// buffers: an eighth, as long as all have half of the memory together. Each leaves as much of that as it takes, so that the
/// last ones get little, but something.
pub fn buffer_share(memory: u64, given: u64) -> u64 {
    let left = (memory / 2).saturating_sub(given);
    (memory / 8).min(left / 2).clamp(LEAST_BUFFER, MOST_BUFFER)
}

/// Whether `length` more bytes may wait to become zero; like [`may_admit`], but for what takes time instead of memory.
pub fn may_admit_zeroes(waiting: u64, length: u32, limit: u64) -> bool {
    waiting == 0 || waiting.saturating_add(u64::from(length)) <= limit
}

/// [`View::dirty_bytes`], when `waiting` bytes of at most `limit` are to become zero besides: they fill the buffer, too.
pub fn fill(held_bytes: usize, budget: usize, waiting: u64, limit: u64) -> usize {
    let budget = crate::num::to_u64(budget);
    // Shifted, so that the product fits.
    let share = (waiting >> 20)
        .saturating_mul(budget)
        .checked_div((limit >> 20).max(1))
        .unwrap_or(0);
    held_bytes.max(usize::try_from(share.min(budget)).unwrap_or(usize::MAX))
}

fn to_ms(ns: u64) -> u32 {
    let ms = ns.div_ceil(1_000_000).clamp(MIN_SLEEP_MS, MAX_SLEEP_MS);
    u32::try_from(ms).unwrap_or(u32::MAX)
}

/// Time until nothing comes in any more, if nothing comes in, 0 for now; `None` while the log has not all of it.
fn quiet_in_ns(view: &View, policy: &Policy) -> Option<u64> {
    let silence = view.now_ns.saturating_sub(view.last_admitted_ns);
    view.idle.then(|| policy.quiet_ns.saturating_sub(silence))
}

/// Time until the next flush, 0 for now; `None` without need.
fn flush_in_ns(view: &View, policy: &Policy) -> Option<u64> {
    if view.landed_bytes == 0 || view.flushing {
        return None;
    }
    let since = view.now_ns.saturating_sub(view.last_flush_ns);
    if view.failures > 0 {
        // A disk that does not write will hardly flush; still, what it did write may be finished now and then.
        return Some(
            policy
                .publish_ns
                .max(pause(view, policy))
                .saturating_sub(since),
        );
    }
    if percent(view.landed_bytes, view.budget) >= policy.landed {
        return Some(0);
    }
    if view.all_landed && (view.draining || quiet_in_ns(view, policy) == Some(0)) {
        // Not more often than ten times in a second, for an application that writes a little and often.
        let least = if view.draining {
            0
        } else {
            policy.publish_ns / 10
        };
        return Some(least.saturating_sub(since));
    }
    Some(policy.publish_ns.saturating_sub(since))
}

/// Pause after the failure that was the last one.
fn pause(view: &View, policy: &Policy) -> u64 {
    let twice = view.failures.saturating_sub(1).min(20);
    policy
        .retry_ns
        .saturating_mul(1 << twice)
        .min(policy.max_retry_ns)
}

/// How many I/Os should be in flight; if none, for how long.
fn depth(view: &View, policy: &Policy) -> (usize, u64) {
    const FOREVER: u64 = u64::MAX;
    if view.dirty_bytes == 0 || view.all_landed {
        return (0, FOREVER);
    }
    if view.failures > 0 {
        let since = view.now_ns.saturating_sub(view.last_error_ns);
        let rest = pause(view, policy).saturating_sub(since);
        return (usize::from(rest == 0), rest);
    }
    let soon = view
        .incoming_per_s
        .saturating_mul(policy.gather_ns / 1_000_000)
        / 1000;
    let expected = view
        .dirty_bytes
        .saturating_add(usize::try_from(soon).unwrap_or(usize::MAX));
    let percent = percent(expected, view.budget);
    if view.draining || percent >= policy.pressure {
        return (policy.max_depth, FOREVER);
    }
    let quiet_in = quiet_in_ns(view, policy).unwrap_or(FOREVER);
    if quiet_in == 0 {
        return (policy.idle_depth.min(policy.max_depth), FOREVER);
    }
    let age = view
        .oldest_dirty_ns
        .map_or(u64::MAX, |t| view.now_ns.saturating_sub(t));
    let gather_ns = if view.dirty_bytes.saturating_sub(view.landed_bytes) <= policy.little {
        policy.fresh_ns
    } else {
        policy.gather_ns
    };
    if percent < policy.relaxed && age < gather_ns {
        return (0, gather_ns.saturating_sub(age).min(quiet_in));
    }
    // From the modest depth at `relaxed` to the full one at `pressure`.
    let range = usize::from(policy.pressure.saturating_sub(policy.relaxed));
    let above = usize::from(percent.saturating_sub(policy.relaxed));
    let more = policy
        .max_depth
        .saturating_sub(policy.idle_depth)
        .saturating_mul(above)
        .checked_div(range)
        .unwrap_or(0);
    let depth = policy.idle_depth.saturating_add(more);
    (depth.min(policy.max_depth), FOREVER)
}

fn percent(part: usize, whole: usize) -> u8 {
    let p = part.saturating_mul(100).checked_div(whole).unwrap_or(100);
    u8::try_from(p).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const MIB: usize = 1 << 20;

    fn busy() -> View {
        View {
            dirty_bytes: 10 * MIB,
            budget: 100 * MIB,
            now_ns: 100 * S,
            last_flush_ns: 100 * S,
            oldest_dirty_ns: Some(100 * S),
            ..View::default()
        }
    }

    fn now(view: View) -> Decision {
        decide(&view, &Policy::replica())
    }

    #[test]
    fn given_an_empty_buffer_when_asked_then_nothing_is_to_be_done_for_long() {
        let d = now(View::default());
        assert_eq!((d.start, d.flush, d.sleep_ms), (0, false, 1000));
    }

    #[test]
    fn given_fresh_records_under_load_when_asked_then_they_gather_until_they_are_old_enough() {
        let fresh = now(busy());
        assert_eq!((fresh.start, fresh.sleep_ms), (0, 1000));
        let old = View {
            oldest_dirty_ns: Some(96 * S),
            ..busy()
        };
        assert_eq!(now(old).start, 8);
        let unknown = View {
            oldest_dirty_ns: None,
            ..busy()
        };
        assert_eq!(now(unknown).start, 8);
    }

    #[test]
    fn given_a_small_load_when_a_replica_asks_then_it_does_not_stay_far_behind() {
        let v = View {
            dirty_bytes: 20 * MIB,
            landed_bytes: 20 * MIB - 100_000,
            idle: true,
            last_admitted_ns: 100 * S - 50_000_000,
            oldest_dirty_ns: Some(100 * S - 130_000_000),
            ..busy()
        };
        assert_eq!((now(v).start, now(v).sleep_ms), (0, 20));
        let old = View {
            oldest_dirty_ns: Some(100 * S - 150_000_000),
            ..v
        };
        assert_eq!(now(old).start, 8);
        let much = View {
            landed_bytes: 10 * MIB,
            ..old
        };
        assert_eq!(now(much).start, 0);
        assert_eq!(decide(&old, &Policy::primary()).start, 8, "quiet for it");
        let primary = View {
            last_admitted_ns: 100 * S,
            ..old
        };
        assert_eq!(decide(&primary, &Policy::primary()).start, 0);
    }

    #[test]
    fn given_a_burst_when_a_primary_asks_then_records_gather_for_longer_than_on_a_replica_but_never_into_a_full_buffer(
    ) {
        let v = View {
            dirty_bytes: 49 * MIB,
            oldest_dirty_ns: Some(97 * S),
            ..busy()
        };
        assert_eq!(decide(&v, &Policy::primary()).start, 0);
        assert!(decide(&v, &Policy::replica()).start > 8);
        let old = View {
            oldest_dirty_ns: Some(96 * S),
            ..v
        };
        assert_eq!(decide(&old, &Policy::primary()).start, 8);
        let full = View {
            dirty_bytes: 80 * MIB,
            ..v
        };
        assert_eq!(decide(&full, &Policy::primary()).start, 64);
        let quiet = View { idle: true, ..v };
        assert_eq!(decide(&quiet, &Policy::primary()).start, 8);
    }

    #[test]
    fn given_nothing_comes_in_when_asked_then_write_back_starts_at_once_but_modestly() {
        let d = now(View {
            idle: true,
            in_flight: 3,
            ..busy()
        });
        assert_eq!(d.start, 5);
    }

    #[test]
    fn given_one_flushed_write_after_the_other_when_asked_then_they_gather_until_it_is_quiet() {
        let v = View {
            idle: true,
            last_admitted_ns: 100 * S - 10_000_000,
            ..busy()
        };
        let ask = |v: &View| decide(v, &Policy::primary());
        assert_eq!((ask(&v).start, ask(&v).sleep_ms), (0, 20));
        let old = View {
            oldest_dirty_ns: Some(96 * S),
            ..v
        };
        assert_eq!(ask(&old).start, 8);
    }

    #[test]
    fn given_a_fuller_buffer_when_asked_then_the_depth_never_sinks_and_ends_at_full() {
        let mut last = 0;
        for mib in 0..=100 {
            let d = now(View {
                dirty_bytes: mib * MIB,
                ..busy()
            });
            assert!(d.start >= last, "{mib}");
            last = d.start;
        }
        assert_eq!(last, 64);
        let soon = View {
            incoming_per_s: 200 << 20,
            ..busy()
        };
        assert_eq!(now(soon).start, 64);
    }

    #[test]
    fn given_a_recovery_with_a_huge_buffer_when_asked_then_nothing_waits_for_more_than_a_moment() {
        let recovery = Policy::recovery();
        let v = View {
            budget: 4096 * MIB,
            dirty_bytes: MIB,
            oldest_dirty_ns: Some(100 * S - 10_000_000),
            ..busy()
        };
        let d = decide(&v, &recovery);
        assert!(d.start == 0 && d.sleep_ms <= 50);
        let later = View {
            oldest_dirty_ns: Some(100 * S - 60_000_000),
            ..v
        };
        assert!(decide(&later, &recovery).start >= 32);
        assert_eq!(decide(&later, &Policy::replica()).start, 0);
        let full = View {
            dirty_bytes: 1100 * MIB,
            ..v
        };
        assert_eq!(decide(&full, &recovery).start, 64);
    }

    #[test]
    fn given_a_recovery_when_asked_then_it_is_flushed_for_room_and_at_the_end_and_seldom_besides() {
        let recovery = Policy::recovery();
        let v = View {
            landed_bytes: 30 * MIB,
            dirty_bytes: 90 * MIB,
            last_flush_ns: 98 * S,
            ..busy()
        };
        assert!(!decide(&v, &recovery).flush);
        let room = View {
            landed_bytes: 40 * MIB,
            ..v
        };
        assert!(decide(&room, &recovery).flush);
        let old = View {
            last_flush_ns: 95 * S,
            ..v
        };
        assert!(decide(&old, &recovery).flush);
        let end = View {
            all_landed: true,
            draining: true,
            ..v
        };
        assert!(decide(&end, &recovery).flush);
    }

    #[test]
    fn given_draining_when_asked_then_all_goes_out_and_the_end_is_published_at_once() {
        let draining = View {
            draining: true,
            landed_bytes: 5 * MIB,
            ..busy()
        };
        let d = now(draining);
        assert_eq!((d.start, d.flush), (64, false));
        let done = View {
            all_landed: true,
            ..draining
        };
        assert!(now(done).flush);
        assert_eq!(now(done).start, 0);
        let under_way = View {
            flushing: true,
            ..done
        };
        assert!(!now(under_way).flush);
    }

    #[test]
    fn given_much_that_waits_for_a_flush_when_asked_then_it_is_flushed_before_the_buffer_is_full() {
        let v = View {
            landed_bytes: 20 * MIB,
            ..busy()
        };
        assert!(!now(v).flush);
        let v = View {
            landed_bytes: 25 * MIB,
            ..v
        };
        assert!(now(v).flush);
    }

    #[test]
    fn given_ios_in_flight_when_asked_then_new_ones_are_started_once_half_of_the_depth_is_free() {
        let v = View {
            oldest_dirty_ns: Some(96 * S),
            ..busy()
        };
        for in_flight in 0..=20 {
            let d = now(View { in_flight, ..v });
            assert_eq!(d.left, 4);
            assert_eq!(
                d.start,
                if in_flight <= 4 { 8 - in_flight } else { 0 },
                "{in_flight}"
            );
        }
    }

    #[test]
    fn given_something_written_when_asked_then_it_is_flushed_once_in_a_second() {
        let v = View {
            landed_bytes: MIB,
            last_flush_ns: 100 * S - 900_000_000,
            ..busy()
        };
        let d = now(v);
        assert!(!d.flush && d.sleep_ms <= 100);
        assert!(
            now(View {
                last_flush_ns: 99 * S,
                ..v
            })
            .flush
        );
        assert!(
            !now(View {
                last_flush_ns: 0,
                landed_bytes: 0,
                ..v
            })
            .flush
        );
    }

    #[test]
    fn given_a_failing_disk_when_asked_then_one_io_is_tried_after_a_pause_even_if_draining() {
        let v = View {
            failures: 2,
            draining: true,
            last_error_ns: 100 * S - S / 4,
            ..busy()
        };
        let d = now(v);
        assert_eq!((d.start, d.sleep_ms), (0, 750));
        let often = View {
            failures: u32::MAX,
            last_error_ns: 92 * S,
            ..v
        };
        assert_eq!(now(often).start, 1, "no pause is longer than eight seconds");
        assert_eq!(
            now(View {
                last_error_ns: 99 * S,
                ..v
            })
            .start,
            1
        );
        assert_eq!(
            now(View {
                last_error_ns: 99 * S,
                in_flight: 1,
                ..v
            })
            .start,
            0
        );
    }

    #[test]
    fn given_any_view_when_asked_then_a_dirty_buffer_never_sleeps_without_an_end() {
        for bits in 0..64u32 {
            let flag = |n: u32| (bits >> n) & 1 == 1;
            let v = View {
                draining: flag(0),
                failures: u32::from(flag(1)),
                idle: flag(2),
                landed_bytes: if flag(3) { MIB } else { 0 },
                oldest_dirty_ns: flag(4).then_some(0),
                budget: if flag(5) { 0 } else { 100 * MIB },
                ..busy()
            };
            let d = now(v);
            assert!((1..=1000).contains(&d.sleep_ms));
            assert!(d.start <= 64);
        }
    }

    #[test]
    fn given_much_to_become_zero_when_asked_then_it_counts_like_a_buffer_as_full() {
        assert!(may_admit_zeroes(0, 200, 100));
        assert!(!may_admit_zeroes(1, 100, 100));
        assert!(may_admit_zeroes(50, 50, 100));
        assert_eq!(fill(5 * MIB, 100 * MIB, 0, 64 << 30), 5 * MIB);
        assert_eq!(fill(5 * MIB, 100 * MIB, 32 << 30, 64 << 30), 50 * MIB);
        assert_eq!(fill(5 * MIB, 100 * MIB, u64::MAX, 64 << 30), 100 * MIB);
        assert_eq!(fill(7, 0, 1 << 40, 0), 7);
    }

    #[test]
    fn given_a_record_larger_than_the_budget_when_the_buffer_is_empty_then_it_is_admitted() {
        assert!(may_admit(0, 200, 100));
        assert!(!may_admit(1, 100, 100));
        assert!(may_admit(50, 50, 100));
        // A little that waits keeps much in memory: no more until the disk has it.
        assert!(may_read(149, 4, 100));
        assert!(!may_read(150, 4, 100));
        assert!(may_read(10_000, 0, 100));
    }

    #[test]
    fn given_many_resources_when_memory_is_shared_then_half_of_it_is_not_passed_but_by_the_least() {
        const GIB: u64 = 1 << 30;
        assert_eq!(buffer_share(8 * GIB, 0), GIB);
        assert_eq!(buffer_share(256 * GIB, 0), 4 * GIB);
        assert_eq!(buffer_share(64 << 20, 0), 16 << 20);
        let mut given = 0;
        for n in 0..20 {
            let share = buffer_share(8 * GIB, given);
            assert!(share >= LEAST_BUFFER);
            assert!(n > 2 || share == GIB);
            given += share;
        }
        assert!(given <= 4 * GIB + 20 * LEAST_BUFFER);
        assert_eq!(buffer_share(8 * GIB, u64::MAX), LEAST_BUFFER);
    }
}
