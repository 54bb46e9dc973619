// SPDX-License-Identifier: GPL-2.0-or-later

//! What a primary may say of its logs, in which order.
//!
//! Other members take the version link of a log for the truth about the end of the log *before*, and go on with the next
//! log where it says so. Hence the rule: nothing is said of a log before the final end of its predecessor was said
//! (written to the tree, durably enough for its readers). [`LogEnds`] keeps the ends of closed logs until they were.

use crate::defect::defect;
use crate::log::LogName;
use kernel::alloc::{
    flags::{
        GFP_KERNEL,
        GFP_NOWAIT, //
    },
    AllocError,
    KVec, //
};

/// What is to be said next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum News {
    /// This log ends here for ever.
    Closed(LogName, u64),
    /// This log is durable up to here, and grows.
    Current(LogName, u64),
}

/// The log that is written, and those that were closed and not yet reported; the oldest first.
#[derive(Debug)]
pub struct LogEnds {
    current: Option<LogName>,
    end: u64,
    closed: KVec<(LogName, u64)>,
    rotating: bool,
}

impl LogEnds {
    /// No log.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub fn new() -> Result<Self, AllocError> {
        Ok(Self {
            current: None,
            end: 0,
            closed: KVec::with_capacity(2, GFP_KERNEL)?,
            rotating: false,
        })
    }

    /// The next log was made: a rotation begins. Makes room for the end of the present log, and for that of the next one,
    /// should the logger end behind it.
    ///
    /// # Errors
    ///
    /// Out of memory: the log must not be closed now.
    pub fn rotate(&mut self) -> Result<(), AllocError> {
        self.closed.reserve(2, GFP_NOWAIT)?;
        self.rotating = true;
        Ok(())
    }

    /// Makes room for the end of the present log.
    ///
    /// # Errors
    ///
    /// Out of memory: the log must not be closed now.
    pub fn reserve(&mut self) -> Result<(), AllocError> {
        self.closed.reserve(2, GFP_NOWAIT)
    }

    /// The log that was made for a rotation will not be used.
    pub fn cancel_rotation(&mut self) {
        self.rotating = false;
    }

    /// A rotation is under way, from [`Self::rotate`] until the next log is written. Meanwhile nobody may make that log once
    /// more, also not while the present one is being closed, which takes its time.
    pub fn is_rotating(&self) -> bool {
        self.rotating && !defect!("rotate-twice")
    }

    /// Log `name` is written from now on, and is durable up to `end`.
    pub fn start(&mut self, name: LogName, end: u64) {
        self.current = Some(name);
        self.end = end;
        self.rotating = false;
    }

    /// The log that is written is durable up to `end`.
    pub fn durable(&mut self, end: u64) {
        self.end = end;
    }

    /// Log `name` ends at `end` for ever. `false`: nobody has reserved room, and the end can't be reported.
    pub fn close(&mut self, name: LogName, end: u64) -> bool {
        self.current = None;
        self.closed.push_within_capacity((name, end)).is_ok()
    }

    /// The log that is written.
    pub fn log(&self) -> Option<LogName> {
        self.current
    }

    /// Durable end of the log that is written.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What is to be said next: the oldest closed log whose end was not said, else the log that is written.
    pub fn news(&self) -> Option<News> {
        match self.closed.first() {
            _ if defect!("successor-before-end") && self.current.is_some() => {
                self.current.map(|log| News::Current(log, self.end))
            }
            Some((log, end)) => Some(News::Closed(*log, *end)),
            None => self.current.map(|log| News::Current(log, self.end)),
        }
    }

    /// The end of `log` was said.
    pub fn told(&mut self, log: &LogName) {
        self.closed.retain(|(l, _)| l != log);
    }

    /// Whether the end of a log before `number` was not said yet: a position in that log must not be said either. Recovery
    /// begins there, and would never see the end again.
    pub fn is_untold(&self, number: u32) -> bool {
        self.closed.iter().any(|(l, _)| l.number < number)
    }

    /// The log that was closed last and whose end was not said.
    pub fn last_closed(&self) -> Option<(LogName, u64)> {
        self.closed.last().copied()
    }

    /// The logger has ended: recovery will find the ends that were not said, and a rotation that it did not carry out never
    /// will be.
    pub fn forget(&mut self) {
        self.closed.clear();
        self.rotating = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use kernel::inject::for_each_failure;

    fn log(number: u32) -> LogName {
        LogName {
            number,
            creator: Name::new(b"a").unwrap(),
        }
    }

    #[test]
    fn p5_given_a_rotation_when_asked_what_to_say_then_the_final_end_comes_before_the_successor() {
        let mut e = LogEnds::new().unwrap();
        assert_eq!(e.news(), None);
        e.start(log(1), 4096);
        assert_eq!(e.news(), Some(News::Current(log(1), 4096)));
        e.durable(5000);
        e.rotate().unwrap();
        assert!(e.close(log(1), 5120));
        assert_eq!(e.news(), Some(News::Closed(log(1), 5120)));
        e.start(log(2), 4096);
        assert_eq!(e.news(), Some(News::Closed(log(1), 5120)));
        assert!(e.close(log(2), 9000));
        assert_eq!(e.news(), Some(News::Closed(log(1), 5120)));
        assert_eq!(e.last_closed(), Some((log(2), 9000)));
        e.told(&log(1));
        assert_eq!(e.news(), Some(News::Closed(log(2), 9000)));
        e.told(&log(2));
        assert_eq!(e.news(), None);
    }

    #[test]
    fn given_a_rotation_when_the_present_log_is_being_closed_then_it_goes_on_until_the_next_is_written(
    ) {
        let mut e = LogEnds::new().unwrap();
        e.start(log(1), 4096);
        assert!(!e.is_rotating());
        e.rotate().unwrap();
        assert!(e.is_rotating());
        assert!(e.close(log(1), 5120) && e.is_rotating());
        e.start(log(2), 4096);
        assert!(!e.is_rotating());
        e.rotate().unwrap();
        e.forget();
        assert!(!e.is_rotating() && e.last_closed().is_none());
    }

    #[test]
    fn given_no_memory_when_made_or_reserved_then_it_says_so_and_nothing_is_lost() {
        for_each_failure(|| {
            let Ok(mut e) = LogEnds::new() else { return };
            for n in 1..9 {
                e.start(log(n), 1);
                if e.rotate().is_err() {
                    return;
                }
                assert!(e.close(log(n), 2));
            }
            assert_eq!(e.news(), Some(News::Closed(log(1), 2)));
        });
    }
}
