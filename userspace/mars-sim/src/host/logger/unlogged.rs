// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/logger/unlogged.rs`: emergency mode.

use super::*;

/// Bytes in the buffer, once it was so low.
const BUFFER: usize = 8 << 10;

impl Logger {
    /// Whether this log can't or shall not be written any more.
    pub(super) fn is_out_of_room(&self) -> bool {
        self.full || self.gap_begun || self.h.progress.inner.borrow().must_stop
    }

    /// Ends `log` at its durable end and begins a gap. `false`: not now; nothing has changed.
    pub(super) async fn open_gap(&mut self, log: &mut LogFile) -> bool {
        let h = self.h.clone();
        let fresh = h.progress.inner.borrow_mut().ends.reserve().is_ok();
        // Once a gap was begun its beginning stays where it is.
        let flush = self.unflushed_since != 0 && !self.gap_begun;
        if !fresh || (flush && !self.flush(log).await && !self.full) {
            return false;
        }
        // Behind this nobody has ever seen anything.
        let end = h.progress.inner.borrow().ends.end();
        let next = log.name.number + 1;
        let now = h.now();
        if let Err(e) = h.dirty.open_gap(&h, now, log.name, end, next).await {
            self.gap_begun = h.dirty.is_open(&h).await;
            if self.gap_begun {
                self.failed(e);
            }
            return false;
        }
        log.pos = end;
        let base = (log.id, end);
        let next = LogName {
            number: next,
            creator: h.me,
        };
        let begun = |t: &mut crate::truth::Truth| t.gap_begins(next, base, self.device, None);
        begun(&mut h.sim.truth.borrow_mut());
        self.gap = Some(base);
        // A log that was made for a rotation goes on where this one ends, and must not begin behind a gap.
        h.progress.drop_next();
        self.logged = self.pipe.with(|s| {
            let durable = s.buffer.durable_seq();
            s.buffer.untake(Seq(durable.0 + 1));
            s.unlogged = true;
            durable
        });
        self.unflushed.clear();
        self.unflushed_bytes = 0;
        self.unflushed_since = 0;
        self.suspect = false;
        self.full = false;
        self.gap_begun = false;
        self.failures = 0;
        h.progress.fail(None);
        h.say(|| format!("EMERGENCY MODE: {} ends at {end}", log.name));
        let c = &h.sim.counts.gaps;
        c.set(c.get() + 1);
        true
    }

    /// Runs without a log until there is one, or the thread is to stop.
    pub(super) async fn unlogged(&mut self, t: &Thread) -> After {
        let h = self.h.clone();
        let mut items: KVec<LogItem<Slice>> = KVec::new();
        loop {
            let stopping = t.should_stop();
            let released = self.release(&mut items).await;
            let rotating = h.progress.is_rotating();
            if released == Some(true) && self.waiting.is_empty() && !rotating {
                continue;
            }
            let quiet = released.is_some() && {
                let wanted = !self.waiting.is_empty() || h.progress.is_rotating() || stopping;
                !wanted || self.quiesce(&mut items).await
            };
            if !quiet {
                self.failures += 1;
                if stopping && self.failures > LAST_TRIES {
                    return After::End;
                }
                h.sleep(200 * MS).await;
                continue;
            }
            self.failures = 0;
            let next = h.progress.inner.borrow_mut().next.take();
            if let Some(next) = next {
                if !next.gap {
                    h.progress.drop_next();
                    continue;
                }
                match self.close_gap(next, &mut items).await {
                    Ok(log) => return After::Log(log),
                    Err(log) => {
                        h.progress.inner.borrow_mut().next = Some(log);
                        h.sleep(200 * MS).await;
                    }
                }
                continue;
            }
            if stopping {
                return After::End;
            }
            self.pipe.log_work.wait(&h.ex, 1000 * MS).await;
        }
    }

    /// Lets the next records be written back, as soon as the map has them. Gives whether there were any; `None`: failed.
    async fn release(&mut self, items: &mut KVec<LogItem<Slice>>) -> Option<bool> {
        let h = self.h.clone();
        items.clear();
        self.take(items);
        let (Some(first), Some(last)) = (items.first(), items.last()) else {
            return Some(false);
        };
        let (first, last) = (first.seq, last.seq);
        if on("gap-mark-late") {
            self.let_write(items, last);
        }
        if let Err(e) = h.dirty.mark(&h, items).await {
            h.progress.fail(Some(e));
            self.pipe.with(|s| s.buffer.untake(first));
            return None;
        }
        self.let_write(items, last);
        h.progress.fail(None);
        Some(true)
    }

    fn let_write(&mut self, items: &KVec<LogItem<Slice>>, last: Seq) {
        let rec = |i: &LogItem<Slice>| Rec {
            at: usize::try_from(i.offset).expect("small") / SECTOR,
            n: i.length as usize / SECTOR,
            id: i.data.as_ref().map_or(0, |s| id_of(s.bytes(0, i.length))),
            nth: i.seq.0,
        };
        let recs: Vec<Rec> = items.iter().map(rec).collect();
        if let Some(base) = self.gap {
            let h = &self.h;
            h.say(|| format!("{} records without a log, until {}", recs.len(), last.0));
            h.sim.truth.borrow_mut().gap_writes(&h.me, base, &recs);
        }
        self.logged = last;
        self.pipe.with(|s| {
            s.buffer.waive(last);
            s.cap = s.cap.min(s.buffer.bytes()).max(BUFFER);
        });
        self.pipe.work.signal(&self.h.ex);
    }

    /// Brings everything that was admitted to the disk, durably, and completes the flushes that waited for it.
    async fn quiesce(&mut self, items: &mut KVec<LogItem<Slice>>) -> bool {
        self.pipe.hold();
        let r = self.write_out(items).await;
        self.pipe.let_go().await;
        if r.is_ok() {
            for w in self.waiting.drain(..) {
                w(true);
            }
        }
        r.is_ok()
    }

    /// With nothing admitted meanwhile: after this the disk has everything, durably, and the map knows that.
    async fn write_out(&mut self, items: &mut KVec<LogItem<Slice>>) -> Res<()> {
        let h = self.h.clone();
        loop {
            match self.release(items).await {
                Some(true) => (),
                Some(false) => break,
                None => return Err(Errno::Io),
            }
        }
        if !on("gap-flush-early") {
            self.pipe.write_all().await?;
        }
        if !on("gap-unsettled") {
            h.dirty.settle(&h).await?;
        }
        self.told_durable();
        Ok(())
    }

    fn told_durable(&self) {
        let h = &self.h;
        if let Some(base) = self.gap {
            let disk = h.machine().disk.borrow();
            let r = h.sim.truth.borrow_mut().gap_flushed(&h.me, base, &disk);
            h.sim.check(h.i, r);
        }
    }

    /// The gap ends; gives the log back if that failed.
    async fn close_gap(
        &mut self,
        next: LogFile,
        items: &mut KVec<LogItem<Slice>>,
    ) -> Result<LogFile, LogFile> {
        let h = self.h.clone();
        self.pipe.hold();
        let mut r = self.write_out(items).await;
        if r.is_ok() {
            if let Some(base) = self.gap {
                // The map may be on the disk earlier than it is said to be.
                h.sim.truth.borrow_mut().gap_ends(&h.me, base, next.id);
            }
            r = h.dirty.close_gap(&h, next.name.number).await;
        }
        if r.is_ok() {
            if let Some(base) = self.gap.take() {
                h.sim.truth.borrow_mut().gap_closed(&h.me, base);
            }
            h.progress.start(&h, next.name, next.pos);
            self.pipe.with(|s| {
                s.unlogged = false;
                s.cap = usize::MAX;
            });
        }
        self.pipe.let_go().await;
        if r.is_err() {
            return Err(next);
        }
        for w in self.waiting.drain(..) {
            w(true);
        }
        h.say(|| format!("emergency mode is over: logging to {}", next.name));
        Ok(next)
    }
}
