// SPDX-License-Identifier: GPL-2.0-or-later

//! Plan of fetching one transaction log over a bundle of connections.
//!
//! A log grows at its source while it is read. Several workers, each with a connection of its own, ask this plan what to
//! request next: a range that the source is known to have, or (one worker only) the open end, where the source is to
//! answer as soon as there is more. Replies arrive in any order and may be shorter than asked; what failed is handed out
//! again. [`FetchPlan::contiguous`] is the position up to which everything has arrived: only that may be replayed.
//!
//! Pure: no clock, no socket; the caller holds the lock. Positions are bytes of the log file.

use crate::{
    defect::defect,
    log::LogName, //
};
use kernel::alloc::{
    flags::GFP_KERNEL,
    AllocError,
    KVec, //
};

/// A range of bytes of a log file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u32,
}

impl Span {
    /// First byte behind the range.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.len))
    }
}

/// What a worker is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Read this range; the source has it.
    Read(Span),
    /// Wait at the source for bytes from this position on.
    Poll(u64),
    /// Nothing for this worker at the moment.
    Idle,
}

/// Why a reply was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchError {
    /// The reply does not belong to what was asked.
    Unexpected,
    /// Out of memory.
    NoMemory,
}

impl From<AllocError> for FetchError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

/// A part of a log where the local copy is not to be relied on. There is one at a time: replay goes through one log after
/// the other, and does not pass a place of which there is doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doubt {
    log: LogName,
    from: u64,
    /// What is written behind this is not in doubt.
    to: u64,
}

impl Doubt {
    /// Everything of `log` before `from` is known to be good, and `to` is where the file ends. What was in doubt before stays
    /// so.
    pub fn new(log: LogName, from: u64, to: u64, before: Option<Self>) -> Self {
        let old = before.filter(|d| d.log == log);
        Self {
            log,
            from: old.map_or(from, |d| d.from.min(from)),
            to: old.map_or(to, |d| d.to.max(to)),
        }
    }

    /// What is still in doubt when all of `log` before `end` has been made good. (Of a log that is being fetched, pieces behind
    /// what has arrived without a gap may be in doubt, too.)
    pub fn settle(self, log: &LogName, end: u64) -> Option<Self> {
        if self.log != *log {
            return Some(self);
        }
        (end < self.to && !defect!("doubt-forgets-pieces")).then_some(Self {
            from: self.from.max(end),
            ..self
        })
    }

    /// From where on `log` is in doubt.
    pub fn of(doubt: Option<Self>, log: &LogName) -> Option<u64> {
        doubt.filter(|d| d.log == *log).map(|d| d.from)
    }
}

/// State of fetching one log.
///
/// # Invariants
///
/// `contiguous <= cursor`; every byte in `contiguous..cursor` is in flight, in `again` or in `done`.
#[derive(Debug)]
pub struct FetchPlan {
    contiguous: u64,
    cursor: u64,
    known_end: u64,
    closed_at: Option<u64>,
    /// Nothing behind this counts, whoever has it.
    ends_at: Option<u64>,
    done: KVec<Span>,
    again: KVec<Span>,
    polling: bool,
}

impl FetchPlan {
    /// Starts at `start`, up to which the local copy is already complete.
    pub fn new(start: u64) -> Self {
        Self {
            contiguous: start,
            cursor: start,
            known_end: start,
            closed_at: None,
            ends_at: None,
            done: KVec::new(),
            again: KVec::new(),
            polling: false,
        }
    }

    /// Everything before this position has arrived.
    pub fn contiguous(&self) -> u64 {
        self.clip(self.contiguous)
    }

    /// The log ends here, whatever its sources have: a forced failover has cut it off.
    pub fn end_at(&mut self, end: u64) {
        self.ends_at = Some(end);
        self.known_end = self.clip(self.known_end);
        self.closed_at = Some(end);
    }

    /// Whether the source says that the log ends before `end`, of which another host knows: then the source has another log of that
    /// name, or none.
    pub fn is_short_of(&self, end: u64) -> bool {
        self.closed_at.is_some_and(|closed| closed < end)
    }

    /// Where it was said to end.
    pub fn ends_at(&self) -> Option<u64> {
        self.ends_at
    }

    fn clip(&self, pos: u64) -> u64 {
        pos.min(self.ends_at.unwrap_or(u64::MAX))
    }

    /// Durable end of the log at the source, as far as it is known.
    pub fn known_end(&self) -> u64 {
        self.known_end
    }

    /// Whether the log is closed at the source and has arrived whole.
    pub fn is_complete(&self) -> bool {
        self.closed_at == Some(self.contiguous())
    }

    /// What a worker is to do next; at most `max` bytes at a time.
    pub fn next(&mut self, max: u32) -> Task {
        while let Some(span) = self.again.pop() {
            let rest = self.clip(span.end()).saturating_sub(span.start);
            let len = u32::try_from(rest).unwrap_or(u32::MAX);
            if len > 0 {
                return Task::Read(Span { len, ..span });
            }
        }
        let rest = self.known_end.saturating_sub(self.cursor);
        if rest > 0 {
            let len = u32::try_from(rest).unwrap_or(u32::MAX).min(max);
            let span = Span {
                start: self.cursor,
                len,
            };
            self.cursor = span.end();
            return Task::Read(span);
        }
        if self.polling || self.closed_at.is_some_and(|end| self.cursor >= end) {
            return Task::Idle;
        }
        self.polling = true;
        Task::Poll(self.cursor)
    }

    /// Notes what the source said about the end of its log; ends never go back.
    pub fn source_end(&mut self, end: u64, closed: bool) {
        self.known_end = self.clip(self.known_end.max(end));
        if closed && self.ends_at.is_none() {
            self.closed_at = Some(self.known_end);
        }
    }

    /// The reply to [`Task::Read`] of `asked` brought its first `len` bytes, which are now in the local file.
    ///
    /// # Errors
    ///
    /// [`FetchError::Unexpected`] for more bytes than asked. On [`FetchError::NoMemory`] the range is to be given to
    /// [`FetchPlan::failed`].
    pub fn arrived(&mut self, asked: Span, len: u32) -> Result<(), FetchError> {
        if len > asked.len {
            return Err(FetchError::Unexpected);
        }
        self.done.reserve(1, GFP_KERNEL)?;
        if len < asked.len {
            let rest = Span {
                start: asked.start.saturating_add(u64::from(len)),
                len: asked.len.saturating_sub(len),
            };
            self.again.push(rest, GFP_KERNEL)?;
        }
        self.complete(Span {
            start: asked.start,
            len,
        })
    }

    /// The reply to [`Task::Poll`] at `start` brought `len` bytes (perhaps none).
    ///
    /// # Errors
    ///
    /// [`FetchError::Unexpected`] if no poll was out at this position.
    pub fn polled(&mut self, start: u64, len: u32) -> Result<(), FetchError> {
        if !self.polling || start != self.cursor {
            return Err(FetchError::Unexpected);
        }
        self.done.reserve(1, GFP_KERNEL)?;
        self.polling = false;
        let span = Span { start, len };
        self.cursor = span.end();
        self.known_end = self.clip(self.known_end.max(self.cursor));
        self.complete(span)
    }

    /// A task did not succeed; it will be handed out again.
    ///
    /// # Errors
    ///
    /// [`FetchError::NoMemory`]: the plan is no longer complete and has to be made anew from [`Self::contiguous`].
    pub fn failed(&mut self, task: Task) -> Result<(), FetchError> {
        match task {
            Task::Read(span) => self.again.push(span, GFP_KERNEL)?,
            Task::Poll(_) => self.polling = false,
            Task::Idle => (),
        }
        Ok(())
    }

    fn complete(&mut self, span: Span) -> Result<(), FetchError> {
        if span.len > 0 {
            self.done.push(span, GFP_KERNEL)?;
        }
        // The list is as short as the bundle is wide, so a search through it is cheap.
        while let Some(i) = self.done.iter().position(|s| s.start == self.contiguous) {
            let Some(s) = self.done.get(i).copied() else {
                break;
            };
            self.contiguous = s.end();
            let last = self.done.pop();
            if let (Some(slot), Some(last)) = (self.done.get_mut(i), last) {
                *slot = last;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_known_end_when_two_workers_ask_then_they_get_neighbouring_ranges_and_one_polls() {
        let mut p = FetchPlan::new(0);
        assert_eq!(p.next(100), Task::Poll(0));
        assert_eq!(p.next(100), Task::Idle);
        p.polled(0, 10).unwrap();
        p.source_end(250, false);
        let a = Span {
            start: 10,
            len: 100,
        };
        let b = Span {
            start: 110,
            len: 100,
        };
        let c = Span {
            start: 210,
            len: 40,
        };
        assert_eq!(p.next(100), Task::Read(a));
        assert_eq!(p.next(100), Task::Read(b));
        assert_eq!(p.next(100), Task::Read(c));
        p.arrived(b, 100).unwrap();
        p.arrived(c, 40).unwrap();
        assert_eq!(p.contiguous(), 10);
        p.arrived(a, 100).unwrap();
        assert_eq!(p.contiguous(), 250);
        assert_eq!(p.next(100), Task::Poll(250));
    }

    #[test]
    fn given_short_and_failed_replies_when_asked_again_then_nothing_is_left_out() {
        let mut p = FetchPlan::new(0);
        p.source_end(300, true);
        let mut got = [0u8; 300];
        let mut n = 0u32;
        loop {
            match p.next(70) {
                Task::Read(s) => {
                    n += 1;
                    if n % 3 == 0 {
                        p.failed(Task::Read(s)).unwrap();
                    } else {
                        let len = s.len.min(1 + n * 7 % 50);
                        for i in s.start..s.start + u64::from(len) {
                            got[usize::try_from(i).unwrap()] += 1;
                        }
                        p.arrived(s, len).unwrap();
                    }
                }
                Task::Poll(_) => panic!("a closed log is not polled"),
                Task::Idle => break,
            }
        }
        assert!(p.is_complete());
        assert!(got.iter().all(|n| *n == 1));
    }

    #[test]
    fn p1_given_a_failed_sync_when_others_follow_then_the_first_doubtful_place_counts() {
        let log = |number| LogName {
            number,
            creator: crate::name::Name::new(b"a").unwrap(),
        };
        let first = Some(Doubt::new(log(1), 500, 700, None));
        assert_eq!(Doubt::of(first, &log(1)), Some(500));
        assert_eq!(Doubt::of(first, &log(2)), None);
        let later = Some(Doubt::new(log(1), 900, 1000, first));
        assert_eq!(Doubt::of(later, &log(1)), Some(500));
        let earlier = Some(Doubt::new(log(1), 0, 800, later));
        assert_eq!(Doubt::of(earlier, &log(1)), Some(0));
        assert_eq!(
            Doubt::of(Some(Doubt::new(log(2), 7, 9, later)), &log(2)),
            Some(7)
        );
        assert_eq!(Doubt::of(None, &log(1)), None);
        // A piece behind what has arrived without a gap was in the same sync.
        let settled =
            |doubt: Option<Doubt>, number, end| doubt.and_then(|d| d.settle(&log(number), end));
        let rest = settled(earlier, 1, 600);
        assert_eq!(Doubt::of(rest, &log(1)), Some(600));
        assert_eq!(settled(rest, 2, 5000), rest);
        assert_eq!(settled(rest, 1, 300), rest);
        assert_eq!(settled(rest, 1, 1000), None);
    }

    #[test]
    fn p10_given_a_log_that_was_cut_off_when_its_source_has_less_then_it_is_complete_there() {
        let mut p = FetchPlan::new(0);
        p.source_end(300, true);
        let Task::Read(a) = p.next(200) else { panic!() };
        let Task::Read(b) = p.next(200) else { panic!() };
        p.arrived(a, 100).unwrap();
        p.end_at(250);
        p.source_end(400, true);
        // What another source does not have is not asked for again.
        p.failed(Task::Read(b)).unwrap();
        assert!(!p.is_complete());
        let mut left = 150u32;
        while let Task::Read(s) = p.next(200) {
            assert!(s.end() <= 250);
            left -= s.len;
            p.arrived(s, s.len).unwrap();
        }
        assert_eq!((left, p.contiguous(), p.known_end()), (0, 250, 250));
        assert!(p.is_complete());
        assert_eq!(p.next(9), Task::Idle);
    }

    #[test]
    fn given_more_of_a_log_than_counts_when_it_is_cut_off_then_it_is_complete_at_once() {
        let mut p = FetchPlan::new(900);
        assert_eq!(p.next(9), Task::Poll(900));
        p.end_at(800);
        assert!(p.is_complete());
        assert_eq!(p.contiguous(), 800);
        p.polled(900, 20).unwrap();
        assert_eq!((p.contiguous(), p.known_end()), (800, 800));
        assert_eq!(p.next(9), Task::Idle);
        assert_eq!(p.ends_at(), Some(800));
    }

    #[test]
    fn given_a_reply_that_was_not_asked_when_it_arrives_then_it_is_refused() {
        let mut p = FetchPlan::new(5);
        assert_eq!(p.polled(5, 1), Err(FetchError::Unexpected));
        assert_eq!(
            p.arrived(Span { start: 5, len: 1 }, 2),
            Err(FetchError::Unexpected)
        );
        assert_eq!(p.next(9), Task::Poll(5));
        assert_eq!(p.polled(6, 1), Err(FetchError::Unexpected));
        p.failed(Task::Poll(5)).unwrap();
        assert_eq!(p.next(9), Task::Poll(5));
    }
}
