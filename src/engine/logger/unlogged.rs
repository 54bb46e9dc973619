// SPDX-License-Identifier: GPL-2.0-or-later

//! The logger without a log: emergency mode, when `/mars` is full.
//!
//! Records go to the backing disk without being logged. What they touch is marked in the dirty map *before* they are let
//! go to write-back, durably, so that replicas can be brought up to date later. The disk is then like any disk with a
//! volatile cache: a flush of the application is complete when all that was admitted before it is on the disk, durably.
//!
//! For that the buffer has to be empty once ([`Logger::quiesce`]), so nothing is admitted while a flush is under way: a
//! newer version of a block in the buffer would otherwise stand for an older one that was never written. To keep this
//! short, the buffer is kept small ([`BUFFER`]).
//!
//! The first flush also *settles* the gap: from then on the log before it must not be replayed any more by this host (see
//! `mars_core::dirty`). The gap ends when the control thread has made a new log: everything is written and flushed, the map
//! says so, and the new log begins with a disk that is exactly what its readers must start from.

use super::*;

/// Bytes in the buffer, once it was so low: as much as a slow disk writes in about a second.
const BUFFER: usize = 32 << 20;

impl Logger<'_> {
    /// Whether this log can't or shall not be written any more.
    pub(super) fn is_out_of_room(&self) -> bool {
        self.full || self.gap_begun || self.progress.inner.lock().must_stop
    }

    /// Ends `log` at its durable end and begins a gap. `false`: not now; nothing has changed.
    #[inline(never)]
    pub(super) fn open_gap(&mut self, log: &mut LogFile) -> bool {
        let fresh = self.progress.inner.lock().ends.reserve().is_ok();
        // Once a gap was begun its beginning stays where it is.
        let flush = self.unflushed_since != 0 && !self.gap_begun;
        if !fresh || (flush && !self.flush(log) && !self.full) {
            return false;
        }
        // Behind this nobody has ever seen anything.
        let end = self.progress.inner.lock().ends.end();
        let next = log.name.number.saturating_add(1);
        let r = inject::at!(GapOpen)
            .and_then(|()| self.dirty.open_gap(self.clock.now(), log.name, end, next));
        if let Err(e) = r {
            crate::sys::log::log_err!(
                "{}: the dirty map can't be written: {:?}; writes wait until there is room in /mars\n",
                self.resource(),
                e
            );
            self.gap_begun = self.dirty.is_open();
            if self.gap_begun {
                self.failed(e);
            }
            return false;
        }
        inject::pass!(GapOpened);
        log.pos = end;
        // A log that was made for a rotation goes on where this one ends, and must not begin behind a gap.
        self.progress.drop_next();
        self.logged = self.pipe.with(|s| {
            let durable = s.buffer.durable_seq();
            s.buffer.untake(Seq(durable.0.saturating_add(1)));
            s.unlogged = true;
            s.set_log_error(None);
            durable
        });
        self.unflushed.clear();
        self.spare_used = None;
        self.unflushed_bytes = 0;
        self.unflushed_since = 0;
        self.suspect = false;
        self.full = false;
        self.gap_begun = false;
        self.failures = 0;
        self.progress.fail(None);
        pr_err!("{}: EMERGENCY MODE: no room for {:?}, which ends at {}; from here on nothing is logged, replicas stay where they are. Make room in /mars\n", self.resource(), log.name, end);
        true
    }

    /// Runs without a log until there is one, or the thread is to stop.
    pub(super) fn unlogged(&mut self, ctx: &ThreadCtx) -> After {
        let mut items: KVec<LogItem<Slice>> = KVec::new();
        // Monotonic time since when nothing gets to the disk, or into the map.
        let mut stuck: Option<u64> = None;
        loop {
            let stopping = ctx.should_stop();
            let released = self.release(&mut items);
            if released == Some(true) && self.waiting.is_empty() && !self.progress.is_rotating() {
                continue;
            }
            let quiet = released.is_some() && {
                let wanted = !self.waiting.is_empty() || self.progress.is_rotating() || stopping;
                !wanted || self.quiesce(&mut items)
            };
            if !quiet {
                self.failures = self.failures.saturating_add(1);
                if stopping && self.failures > LAST_TRIES {
                    pr_err!("{}: without a log and with a disk or map that fails, what was not flushed is given up\n", self.resource());
                    return After::End;
                }
                let now = time::mono_ns();
                let since = *stuck.get_or_insert(now);
                if now.saturating_sub(since) >= pipeline::STUCK_MS * 1_000_000 {
                    self.fail_flushes();
                }
                time::sleep_ms(200);
                continue;
            }
            self.failures = 0;
            stuck = None;
            let next = self.progress.inner.lock().next.take();
            if let Some(next) = next {
                if !next.gap {
                    self.progress.drop_next();
                    continue;
                }
                match self.close_gap(next, &mut items) {
                    Ok(log) => return After::Log(log),
                    Err(log) => {
                        self.progress.inner.lock().next = Some(log);
                        time::sleep_ms(200);
                    }
                }
                continue;
            }
            if stopping {
                return After::End;
            }
            self.pipe.log_work.wait_timeout(1000);
        }
    }

    /// Lets the next records be written back, as soon as the map has them. Gives whether there were any; `None`: failed.
    fn release(&mut self, items: &mut KVec<LogItem<Slice>>) -> Option<bool> {
        items.clear();
        let rest = self.take(items);
        let (Some(first), Some(last)) = (items.first(), items.last()) else {
            // There was no memory to take them.
            return (rest == 0).then_some(false);
        };
        let (first, last) = (first.seq, last.seq);
        if let Err(e) = inject::at!(GapMark).and_then(|()| self.dirty.mark(items)) {
            crate::sys::log::log_err!(
                "{}: the dirty map can't be written: {:?}; writes wait\n",
                self.resource(),
                e
            );
            self.progress.fail(Some(e));
            self.pipe.with(|s| s.buffer.untake(first));
            return None;
        }
        inject::pass!(GapMarked);
        self.logged = last;
        self.progress.fail(None);
        self.pipe.with(|s| {
            s.buffer.waive(last);
            s.cap = s.cap.min(s.buffer.bytes()).max(BUFFER);
        });
        self.pipe.work.signal();
        Some(true)
    }

    /// Brings everything that was admitted to the disk, durably, and completes the flushes that waited for it. `false`: the
    /// disk or the map fails; nothing has been completed.
    #[inline(never)]
    fn quiesce(&mut self, items: &mut KVec<LogItem<Slice>>) -> bool {
        self.pipe.hold();
        let r = self.write_out(items);
        self.pipe.let_go();
        match r {
            Ok(()) => {
                while let Some(bio) = self.waiting.pop() {
                    bio.complete(Ok(()));
                }
                true
            }
            Err(e) => {
                crate::sys::log::log_err!(
                    "{}: flushing without a log failed: {:?}; it is tried again\n",
                    self.resource(),
                    e
                );
                false
            }
        }
    }

    /// The disk or the map has failed for so long that applications should know.
    fn fail_flushes(&mut self) {
        let waiting = &mut self.waiting;
        self.pipe.with(|s| waiting.append(&mut s.waiting));
        while let Some(bio) = self.waiting.pop() {
            bio.complete(Err(EIO));
        }
    }

    /// With nothing admitted meanwhile: after this the disk has everything, durably, and the map knows that.
    fn write_out(&mut self, items: &mut KVec<LogItem<Slice>>) -> Result {
        loop {
            match self.release(items) {
                Some(true) => (),
                Some(false) => break,
                None => return Err(EIO),
            }
        }
        self.pipe.write_all()?;
        inject::at!(GapWritten)?;
        self.dirty.settle()
    }

    /// The gap ends; gives the log back if that failed.
    fn close_gap(
        &mut self,
        next: KBox<LogFile>,
        items: &mut KVec<LogItem<Slice>>,
    ) -> core::result::Result<KBox<LogFile>, KBox<LogFile>> {
        self.pipe.hold();
        let r = self
            .write_out(items)
            .and_then(|()| inject::at!(GapClose))
            .and_then(|()| self.dirty.close_gap(next.name.number));
        if r.is_ok() {
            inject::pass!(GapClosed);
            self.progress.start(next.name, next.pos);
            self.pipe.with(|s| {
                s.unlogged = false;
                s.cap = usize::MAX;
            });
        }
        self.pipe.let_go();
        match r {
            Ok(()) => {
                while let Some(bio) = self.waiting.pop() {
                    bio.complete(Ok(()));
                }
                pr_info!(
                    "{}: emergency mode is over: logging to {:?}\n",
                    self.resource(),
                    next.name
                );
                Ok(next)
            }
            Err(_) => Err(next),
        }
    }
}
