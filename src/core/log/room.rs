// SPDX-License-Identifier: GPL-2.0-or-later

//! How far ahead of its end a log file has blocks.
//!
//! A log is filled with zeros ahead of its end, so that appends need no new blocks. Making a file longer is a transaction of
//! the file system's journal, and that may have to wait: for a commit, which waits for those who have begun a change and now
//! need memory. While memory becomes free by writes to the device whose log this is (swap), they wait for the log. So the
//! logger then takes no part in the journal, but lives on what there is, and asks in time for the next log, which somebody
//! else fills ahead. What is left until that has come is as much as can be written while the journal stands still.

/// There is always so much more than the next append needs: bytes.
pub const LEAST: u64 = 64 << 10;
/// So much is filled early, while there is time.
pub const EARLY: u64 = 16 << 20;
/// A log that begins while memory is short has so much at once: until its end comes near nothing is filled.
pub const SHORT: u64 = 64 << 20;
/// While memory is short, the next log is asked for when so much is left.
pub const ROTATE: u64 = 8 << 20;
/// Memory counts as short for so long after a write by which some was to become free: nanoseconds.
pub const SHORT_NS: u64 = 10_000_000_000;

/// What to do before an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// There is enough.
    Enough,
    /// Nothing can be written before the file is longer.
    Must,
    /// The file should be made longer, if there is room.
    Early,
    /// The next log should begin soon.
    Rotate,
}

/// Decides about a file that has `ahead` bytes more than the next append needs. `durable`: the journal has all of them.
pub fn action(ahead: u64, memory_short: bool, durable: bool) -> Action {
    if ahead < LEAST {
        return Action::Must;
    }
    match (memory_short, durable) {
        (true, _) if ahead < ROTATE => Action::Rotate,
        (true, _) => Action::Enough,
        // Whoever makes it durable waits for the journal; then the logger would, too.
        (false, true) if ahead < EARLY => Action::Early,
        (false, _) => Action::Enough,
    }
}

/// How much a new log has at first, where `/mars` has `free` bytes: it must remain a small part of them. 0: just what is
/// always there.
pub fn at_first(free: u64, memory_short: bool) -> u64 {
    if memory_short && free / 16 >= SHORT {
        SHORT
    } else if has_room(free) {
        EARLY
    } else {
        0
    }
}

/// Whether a log may be filled early.
pub fn has_room(free: u64) -> bool {
    free / 64 >= EARLY
}

/// Whether memory is short now, if some was last to become free by a write at `last` (0: never).
pub fn is_short(now_ns: u64, last_ns: u64) -> bool {
    last_ns != 0 && now_ns.saturating_sub(last_ns) < SHORT_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_left_alone_while_memory_is_short_and_something_is_left() {
        for ahead in [LEAST, ROTATE, EARLY, SHORT] {
            let a = action(ahead, true, true);
            assert!(
                matches!(a, Action::Enough | Action::Rotate),
                "{ahead}: {a:?}"
            );
        }
        assert_eq!(action(ROTATE - 1, true, true), Action::Rotate);
        assert_eq!(action(ROTATE, true, false), Action::Enough);
        for short in [true, false] {
            assert_eq!(action(LEAST - 1, short, true), Action::Must);
        }
    }

    #[test]
    fn otherwise_it_is_filled_early_but_not_while_somebody_waits_for_the_journal() {
        assert_eq!(action(EARLY - 1, false, true), Action::Early);
        assert_eq!(action(EARLY - 1, false, false), Action::Enough);
        assert_eq!(action(EARLY, false, true), Action::Enough);
    }

    #[test]
    fn a_new_log_that_was_asked_for_is_not_near_its_end() {
        for free in [1 << 30, 4 << 30, u64::MAX] {
            for short in [true, false] {
                let first = at_first(free, short);
                assert!(first >= 2 * ROTATE && first <= free / 16);
                assert_eq!(action(first - LEAST, true, true), Action::Enough);
            }
        }
        assert_eq!(at_first((1 << 30) - 1, true), 0);
    }

    #[test]
    fn memory_is_short_for_a_while() {
        assert!(!is_short(5, 0));
        assert!(is_short(SHORT_NS, 1));
        assert!(!is_short(SHORT_NS + 1, 1));
    }
}
