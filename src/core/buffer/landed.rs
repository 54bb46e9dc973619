// SPDX-License-Identifier: GPL-2.0-or-later

//! What was written to the backing disk and may still be lost: until a flush has succeeded, a drive may keep it in a volatile
//! cache, and after one that failed nobody knows what it kept.
//!
//! So a record is finished only when a flush that *began* after its I/O had ended has succeeded. If a flush fails, everything
//! that was written since the last good one is given out again, from memory: the kernel forgets after one report that it
//! lost something, and a second flush would succeed and mean nothing.

use super::{
    fifo::Fifo,
    index::Settled,
    WriteBuffer, //
};

/// An I/O that has ended well.
pub(super) struct Landing {
    pub(super) id: u64,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// All I/Os that have ended well and are not known to be durable, in the order of their ends.
pub(super) struct Landed {
    pub(super) queue: Fifo<Landing>,
    /// A flush is under way, for all before this number.
    pub(super) flushing: Option<u64>,
}

impl Landed {
    pub(super) const fn new() -> Self {
        Self {
            queue: Fifo::new(),
            flushing: None,
        }
    }
}

impl<B: Clone> WriteBuffer<B> {
    /// The caller is about to flush the disk; `false` if there is nothing that needs it, or a flush is under way.
    /// [`WriteBuffer::flush_end`] says how it ended.
    pub fn flush_begin(&mut self) -> bool {
        if self.landed.flushing.is_some() {
            return false;
        }
        if self.totals.landed == 0 {
            // Superseded meanwhile, all of it.
            while !self.landed.queue.is_empty() {
                self.landed.queue.pop();
            }
            return false;
        }
        self.landed.flushing = Some(self.landed.queue.next());
        true
    }

    /// The flush has ended. What was written before it began is finished now; or, if it failed, everything that was
    /// written up to now, or is in flight, will be given out by [`WriteBuffer::plan`] once more.
    pub fn flush_end(&mut self, ok: bool) {
        let Some(mut until) = self.landed.flushing.take() else {
            return;
        };
        if !ok {
            until = self.landed.queue.next();
            self.oldest = 0;
            self.flights.doubt();
        }
        let Self {
            index,
            records,
            totals,
            durable,
            landed,
            ..
        } = self;
        let how = if ok { Settled::Gone } else { Settled::Again };
        while landed.queue.first() < until {
            let Some(l) = landed.queue.front() else { break };
            index.settle(l.start, l.end, l.id, how, |seq, bytes| {
                totals.landed = totals.landed.saturating_sub(u64::from(bytes));
                if let Some(r) = records.get_mut(seq) {
                    r.landed = r.landed.saturating_sub(bytes);
                }
                if ok {
                    records.shrink(seq, bytes, None, *durable, totals);
                } else {
                    totals.ready = totals.ready.saturating_add(u64::from(bytes));
                }
            });
            landed.queue.pop();
        }
        self.retire();
    }

    /// Device bytes that are on the disk, but may be in a volatile cache there.
    pub fn landed_bytes(&self) -> u64 {
        self.totals.landed
    }

    /// Whether everything that was admitted has been written, so that only a flush is missing.
    pub fn is_landed(&self) -> bool {
        self.totals.live == self.totals.landed && self.flights.is_empty()
    }

    /// Stamp of the oldest record of which something is still to be written.
    pub fn oldest_dirty_stamp(&mut self) -> Option<u64> {
        let mut seq = self.oldest.max(self.finished_seq().0.saturating_add(1));
        let found = loop {
            match self.records.get(seq) {
                Some(r) if r.live == r.landed => seq = seq.saturating_add(1),
                other => break other.map(|r| r.stamp),
            }
        };
        // Only a failed flush makes an older one dirty again.
        self.oldest = seq;
        found
    }
}
