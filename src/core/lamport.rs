// SPDX-License-Identifier: GPL-2.0-or-later

//! Lamport time: real time that never runs behind what was seen.
//!
//! Every value of the tree and every record of a log has a stamp of this time. A stamp that is
//! received advances the own clock, so that what is written afterwards is newer: cause before
//! effect, also when the real clocks of the members differ.

use core::fmt;

/// Nanoseconds per second.
const NANOS: u64 = 1_000_000_000;

/// How far in the future of the real clock a stamp may be: 30 days, as in the original. A clock
/// that is more wrong than this must not drag the whole cluster with it.
pub const MAX_FUTURE_SECS: u64 = 30 * 24 * 3600;

/// A point in Lamport time.
///
/// # Invariants
///
/// `nsec < 1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LamportTime {
    sec: u64,
    nsec: u32,
}

impl LamportTime {
    /// The beginning of time: older than everything.
    pub const ZERO: Self = Self { sec: 0, nsec: 0 };

    /// `None` if `nsec` is a second or more.
    pub const fn new(sec: u64, nsec: u32) -> Option<Self> {
        // INVARIANT: checked here.
        if nsec < 1_000_000_000 {
            Some(Self { sec, nsec })
        } else {
            None
        }
    }

    /// Whole seconds.
    pub const fn sec(self) -> u64 {
        self.sec
    }

    /// Nanoseconds within the second.
    pub const fn nsec(self) -> u32 {
        self.nsec
    }

    /// Nanoseconds since 1970, the largest number for times after the year 2554.
    pub fn as_nanos(self) -> u64 {
        self.sec
            .saturating_mul(NANOS)
            .saturating_add(u64::from(self.nsec))
    }

    /// From nanoseconds since 1970.
    pub fn from_nanos(nanos: u64) -> Self {
        let sec = nanos.checked_div(NANOS).unwrap_or(0);
        let rest = nanos.checked_rem(NANOS).unwrap_or(0);
        // INVARIANT: a remainder by a second.
        Self {
            sec,
            nsec: u32::try_from(rest).unwrap_or(0),
        }
    }

    /// The next nanosecond.
    #[must_use]
    pub fn next(self) -> Self {
        match self
            .nsec
            .checked_add(1)
            .and_then(|n| Self::new(self.sec, n))
        {
            Some(t) => t,
            None => Self {
                sec: self.sec.saturating_add(1),
                nsec: 0,
            },
        }
    }

    /// So many seconds later.
    #[must_use]
    pub fn plus_secs(self, secs: u64) -> Self {
        Self {
            sec: self.sec.saturating_add(secs),
            nsec: self.nsec,
        }
    }

    /// One second after `old`, at most `now`: the time of a value of `host` that is to lose against anybody who writes with the
    /// time of now. What two hosts write like this about the same old value has two times.
    #[must_use]
    pub fn weak(old: Self, now: Self, host: &[u8]) -> Self {
        let apart = host.iter().fold(0u64, |sum, b| {
            sum.wrapping_mul(257).wrapping_add(u64::from(*b)) % 1_000_003
        });
        let later = Self::from_nanos(old.plus_secs(1).as_nanos().saturating_add(apart));
        now.min(later).max(old.next())
    }

    /// Nanoseconds from `earlier` to here, 0 if it is not earlier.
    pub fn nanos_since(self, earlier: Self) -> u64 {
        self.as_nanos().saturating_sub(earlier.as_nanos())
    }

    /// Parses `<sec>.<nanoseconds>`; the fraction may have 1 to 9 digits or be missing.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.splitn(2, |&b| b == b'.');
        let sec = parse_digits(parts.next()?, 20)?;
        let nsec = match parts.next() {
            None => 0,
            Some(digits) => {
                let mut n = parse_digits(digits, 9)?;
                for _ in digits.len()..9 {
                    n = n.checked_mul(10)?;
                }
                u32::try_from(n).ok()?
            }
        };
        Self::new(sec, nsec)
    }
}

/// A decimal number of 1 to `max` digits and nothing else.
fn parse_digits(text: &[u8], max: usize) -> Option<u64> {
    if text.is_empty() || text.len() > max {
        return None;
    }
    text.iter().try_fold(0u64, |n, &b| {
        let digit = b.is_ascii_digit().then(|| b.wrapping_sub(b'0'))?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

impl fmt::Display for LamportTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.sec, self.nsec)
    }
}

/// A stamp was refused: it is more than [`MAX_FUTURE_SECS`] ahead of the real clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFarAhead {
    /// The stamp.
    pub stamp: LamportTime,
    /// The real time it was compared with.
    pub now_real: LamportTime,
}

impl fmt::Display for TooFarAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stamp {} is more than 30 days ahead of the clock ({}): set the clocks right",
            self.stamp, self.now_real
        )
    }
}

/// The Lamport clock of this host. The real time is always an argument.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    stamp: LamportTime,
}

impl Clock {
    /// A clock that has seen nothing.
    pub const fn new() -> Self {
        Self {
            stamp: LamportTime::ZERO,
        }
    }

    /// The time now. It may be the same as that of the call before.
    pub fn get(&self, now_real: LamportTime) -> LamportTime {
        self.stamp.max(now_real)
    }

    /// A stamp for something new: later than everything this clock has given out or has seen.
    pub fn tick(&mut self, now_real: LamportTime) -> LamportTime {
        self.stamp = if now_real > self.stamp {
            now_real
        } else {
            self.stamp.next()
        };
        self.stamp
    }

    /// The real clock is known to be right: if this one is too far ahead of it, that is an error of the past, and everybody else
    /// refuses what has such stamps.
    pub fn correct(&mut self, now_real: LamportTime) {
        if check_future(self.stamp, now_real).is_err() {
            self.stamp = now_real;
        }
    }

    /// Something happened elsewhere at `seen`, and here after it: the time now is later.
    pub fn advance(&mut self, seen: LamportTime, now_real: LamportTime) -> Result<(), TooFarAhead> {
        check_future(seen, now_real)?;
        self.stamp = if seen > self.stamp {
            seen
        } else {
            self.stamp.next()
        };
        Ok(())
    }

    /// As [`Self::advance`], for things that were only looked at: the clock does not move by
    /// looking again.
    pub fn advance_nonstrict(
        &mut self,
        seen: LamportTime,
        now_real: LamportTime,
    ) -> Result<(), TooFarAhead> {
        check_future(seen, now_real)?;
        self.stamp = self.stamp.max(seen);
        Ok(())
    }
}

/// Refuses stamps that are more than [`MAX_FUTURE_SECS`] ahead of the real clock.
pub fn check_future(stamp: LamportTime, now_real: LamportTime) -> Result<(), TooFarAhead> {
    if stamp > now_real.plus_secs(MAX_FUTURE_SECS) {
        Err(TooFarAhead { stamp, now_real })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn t(sec: u64, nsec: u32) -> LamportTime {
        LamportTime::new(sec, nsec).unwrap()
    }

    #[test]
    fn text_and_nanoseconds_go_both_ways() {
        let x = t(1_700_000_000, 42);
        assert_eq!(x.to_string(), "1700000000.000000042");
        assert_eq!(LamportTime::parse(x.to_string().as_bytes()), Some(x));
        assert_eq!(LamportTime::from_nanos(x.as_nanos()), x);
        assert_eq!(LamportTime::parse(b"5"), Some(t(5, 0)));
        assert_eq!(LamportTime::parse(b"5.5"), Some(t(5, 500_000_000)));
        for bad in [
            "",
            ".",
            "5.",
            ".5",
            "5.1234567890",
            "-1.0",
            "1.2.3",
            "99999999999999999999",
        ] {
            assert_eq!(LamportTime::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(LamportTime::new(1, 1_000_000_000), None);
        assert_eq!(t(1, 999_999_999).next(), t(2, 0));
        assert_eq!(t(u64::MAX, 5).as_nanos(), u64::MAX);
    }

    #[test]
    fn stamps_given_out_always_rise() {
        let mut c = Clock::new();
        let a = c.tick(t(10, 0));
        let b = c.tick(t(10, 0));
        let real_clock_goes_back = c.tick(t(9, 0));
        assert!(a < b && b < real_clock_goes_back);
        assert_eq!(c.get(t(11, 0)), t(11, 0));
        assert_eq!(c.get(t(1, 0)), real_clock_goes_back);
    }

    #[test]
    fn what_was_seen_lies_in_the_past() {
        let mut c = Clock::new();
        c.advance(t(50, 0), t(10, 0)).unwrap();
        assert!(c.tick(t(10, 0)) > t(50, 0));
        let before = c.get(t(10, 0));
        c.advance(t(20, 0), t(10, 0)).unwrap();
        assert_eq!(c.get(t(10, 0)), before.next());
        c.advance_nonstrict(t(20, 0), t(10, 0)).unwrap();
        assert_eq!(c.get(t(10, 0)), before.next());
    }

    #[test]
    fn given_a_clock_that_was_far_ahead_when_set_right_then_it_is_corrected_and_no_other_one() {
        let mut c = Clock::new();
        let (right, wrong) = (
            t(1_000_000, 0),
            t(1_000_000, 0).plus_secs(2 * MAX_FUTURE_SECS),
        );
        c.tick(wrong);
        assert!(c.tick(right) > wrong);
        c.correct(right);
        assert_eq!(c.tick(right.next()), right.next());
        let some = right.plus_secs(1000);
        c.tick(some);
        c.correct(right);
        assert!(c.tick(right) > some);
    }

    #[test]
    fn a_weak_stamp_is_new_but_not_newer_than_need_be() {
        let (old, now) = (t(100, 999_999_999), t(200, 0));
        let (a, b) = (
            LamportTime::weak(old, now, b"a"),
            LamportTime::weak(old, now, b"b"),
        );
        assert!(a > old && b > old && a < now && b < now && a != b);
        assert_eq!(LamportTime::weak(old, old.next(), b"a"), old.next());
        assert_eq!(LamportTime::weak(old, t(5, 0), b"a"), old.next());
    }

    #[test]
    fn a_wrong_clock_elsewhere_is_refused() {
        let mut c = Clock::new();
        let now = t(1_000_000, 0);
        let limit = now.plus_secs(MAX_FUTURE_SECS);
        assert!(c.advance(limit.next(), now).is_err());
        assert!(c.advance_nonstrict(limit.next(), now).is_err());
        assert_eq!(c.get(now), now);
        assert!(c.advance(limit, now).is_ok());
    }
}
