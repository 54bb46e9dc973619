// SPDX-License-Identifier: GPL-2.0-or-later

//! When figures that change all the time are told to the other hosts.
//!
//! Each figure is a link, made anew on the disk of every host: told with each change, they would cost more than the writes
//! which they count. So what moves is told once in a second, as in the original; and soon when it has come to rest, so that
//! whoever waits for the last step does not wait for the figure.

/// While it moves: the smallest time between two tellings.
const MOVING_NS: u64 = 1_000_000_000;
/// What has not changed for so long is at rest.
const REST_NS: u64 = 200_000_000;

/// What was seen and told of some figures. Times are monotonic, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace<T> {
    seen: Option<T>,
    moved_ns: u64,
    told_ns: Option<u64>,
    untold: bool,
}

impl<T: PartialEq> Pace<T> {
    /// Nothing was seen yet.
    pub const fn new() -> Self {
        Self {
            seen: None,
            moved_ns: 0,
            told_ns: None,
            untold: true,
        }
    }

    /// Takes note of the present figures; says whether they are to be told now. `at_once`: they are told in any case.
    pub fn look(&mut self, now_ns: u64, figures: T, at_once: bool) -> bool {
        if self.seen.as_ref() != Some(&figures) {
            self.seen = Some(figures);
            self.moved_ns = now_ns;
            self.untold = true;
        }
        let long = self
            .told_ns
            .is_none_or(|t| now_ns.saturating_sub(t) >= MOVING_NS);
        let rests = self.untold && now_ns.saturating_sub(self.moved_ns) >= REST_NS;
        let tell = at_once || long || rests;
        if tell {
            self.told_ns = Some(now_ns);
            self.untold = false;
        }
        tell
    }

    /// How long to wait for the next look, if nothing happens before: `usual_ms`, or less when something is still untold.
    pub fn next_look_ms(&self, usual_ms: u32) -> u32 {
        if self.untold {
            usual_ms.min(u32::try_from(REST_NS / 1_000_000).unwrap_or(usual_ms))
        } else {
            usual_ms
        }
    }
}

impl<T: PartialEq> Default for Pace<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn given_figures_that_move_all_the_time_when_looked_at_often_then_they_are_told_once_a_second()
    {
        let mut pace = Pace::new();
        let told = (0..400u64)
            .filter(|i| pace.look(i * 25 * MS, *i, false))
            .count();
        assert_eq!(told, 10);
    }

    #[test]
    fn given_a_movement_that_ends_when_looked_at_then_the_last_figures_are_told_soon_and_once() {
        let mut pace = Pace::new();
        assert!(pace.look(0, 0, false));
        assert_eq!(pace.next_look_ms(500), 500);
        assert!(!pace.look(25 * MS, 1, false));
        assert_eq!(pace.next_look_ms(500), 200);
        assert!(!pace.look(200 * MS, 1, false));
        assert!(pace.look(225 * MS, 1, false));
        assert_eq!(pace.next_look_ms(500), 500);
        assert!(!pace.look(425 * MS, 1, false));
    }

    #[test]
    fn given_figures_after_a_long_rest_when_they_move_then_they_are_told_at_once() {
        let mut pace = Pace::new();
        assert!(pace.look(0, 0, false));
        assert!(pace.look(5000 * MS, 1, false));
    }

    #[test]
    fn given_something_that_can_not_wait_when_looked_at_then_it_is_told_at_once() {
        let mut pace = Pace::new();
        assert!(pace.look(0, 0, false));
        assert!(pace.look(1, 0, true));
    }

    #[test]
    fn given_a_clock_that_does_not_move_when_looked_at_then_nothing_is_told_twice() {
        let mut pace = Pace::new();
        assert!(pace.look(7, 0, false));
        assert!((1..50).all(|i| !pace.look(7, i, false)));
    }
}
