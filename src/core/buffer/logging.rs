// SPDX-License-Identifier: GPL-2.0-or-later

//! The logger's side of the write buffer.

use super::{
    BufferError,
    LogItem,
    LogPos,
    Seq,
    WriteBuffer, //
};
use kernel::alloc::{
    flags::GFP_NOWAIT,
    KVec, //
};

impl<B> WriteBuffer<B> {
    /// Gives the next records for the log, in their order: at most `max_records`, and as many as have at most `max_bytes`
    /// of payload, but at least one if there is any; fewer if there is no memory for so many. Returns how many were
    /// appended to `out`.
    ///
    /// # Errors
    ///
    /// [`BufferError::NoMemory`]; nothing was taken.
    pub fn take_for_log(
        &mut self,
        max_records: usize,
        max_bytes: usize,
        out: &mut KVec<LogItem<B>>,
    ) -> Result<usize, BufferError>
    where
        B: Clone,
    {
        let mut want = self.untaken().min(max_records);
        if want == 0 {
            return Ok(0);
        }
        while let Err(e) = out.reserve(want, GFP_NOWAIT) {
            let room = out.capacity().saturating_sub(out.len());
            if room == 0 && want == 1 {
                return Err(e.into());
            }
            want = (want / 2).max(room.min(want)).max(1);
        }
        let mut bytes = 0usize;
        let mut count = 0usize;
        while count < want {
            let seq = self.taken.saturating_add(1);
            let Some(r) = self.records.get(seq) else {
                break;
            };
            let payload = Self::payload(r.kind, r.length);
            let sum = bytes.saturating_add(payload);
            if count > 0 && sum > max_bytes {
                break;
            }
            let item = LogItem {
                seq: Seq(seq),
                kind: r.kind,
                offset: r.offset,
                length: r.length,
                stamp: r.stamp,
                crc: r.crc,
                data: r.data.clone(),
            };
            if out.push_within_capacity(item).is_err() {
                break;
            }
            bytes = sum;
            count = count.saturating_add(1);
            self.taken = seq;
        }
        self.totals.untaken = self.totals.untaken.saturating_sub(bytes);
        Ok(count)
    }

    /// A batch whose last record is `last` was written to the log, which stands at `end` behind it.
    pub fn logged(&mut self, last: Seq, end: LogPos) {
        let last = last.0.min(self.taken);
        let mut seq = self.logged;
        while seq < last {
            seq = seq.saturating_add(1);
            if let Some(r) = self.records.get(seq) {
                let payload = Self::payload(r.kind, r.length);
                self.totals.unlogged = self.totals.unlogged.saturating_sub(payload);
            }
        }
        if last > self.logged {
            self.logged = last;
            if let Some(r) = self.records.get_mut(last) {
                r.end = Some(end);
            }
        }
    }

    /// The log is durable up to record `last`: it and all before may be written back now.
    pub fn durable(&mut self, last: Seq) {
        self.advance_durable(last.0.min(self.logged));
    }

    pub(super) fn advance_durable(&mut self, last: u64) {
        while self.durable < last {
            self.durable = self.durable.saturating_add(1);
            if let Some(r) = self.records.get_mut(self.durable) {
                let payload = Self::payload(r.kind, r.length);
                self.totals.undurable = self.totals.undurable.saturating_sub(payload);
                self.totals.ready = self.totals.ready.saturating_add(u64::from(r.live));
                r.release(true, &mut self.totals);
            }
        }
        self.retire();
    }

    /// The log stands at `end` behind all records that are logged so far, although no record came in between: after the
    /// last record of a replayed batch, after a batch without records, or at the start of the next log.
    pub fn passed(&mut self, end: LogPos) {
        self.open_batch = None;
        match self.records.get_mut(self.logged) {
            Some(r) => r.end = r.end.max(Some(end)),
            None => {
                // They are finished already.
                self.held_mark = self.held_mark.max(Some(end));
                self.retire();
            }
        }
    }

    /// Takes back what was taken or logged from record `from` on and is not durable, because it could not be written: it
    /// will be given out again. `from` is the first record of a batch.
    pub fn untake(&mut self, from: Seq) {
        let from = from.0.max(self.durable.saturating_add(1));
        let mut seq = from;
        while seq <= self.taken {
            if let Some(r) = self.records.get_mut(seq) {
                let payload = Self::payload(r.kind, r.length);
                self.totals.untaken = self.totals.untaken.saturating_add(payload);
                if seq <= self.logged {
                    self.totals.unlogged = self.totals.unlogged.saturating_add(payload);
                    r.end = None;
                }
            }
            seq = seq.saturating_add(1);
        }
        let before = from.saturating_sub(1);
        self.taken = self.taken.min(before);
        self.logged = self.logged.min(before);
    }

    /// Lets all records up to `last` be written back although no log has them: the last resort when `/mars` is full, so
    /// that applications go on (P4). Replicas need a new sync after that.
    ///
    /// From here until a moment when all waived records are finished the mark does not move, because what they overwrote
    /// in the log could not be replayed in their favour. While it stands, the disk is like any disk with a volatile cache,
    /// without an order; a flush of the application is complete when this buffer was empty once and the mark was published.
    pub fn waive(&mut self, last: Seq) {
        let last = last.0.min(self.last_seq().0);
        if last <= self.durable {
            return;
        }
        let mut seq = self.durable;
        while seq < last {
            seq = seq.saturating_add(1);
            if let Some(r) = self.records.get_mut(seq) {
                let payload = Self::payload(r.kind, r.length);
                r.end = None;
                if seq > self.taken {
                    self.totals.untaken = self.totals.untaken.saturating_sub(payload);
                }
                if seq > self.logged {
                    self.totals.unlogged = self.totals.unlogged.saturating_sub(payload);
                }
            }
        }
        self.taken = self.taken.max(last);
        self.logged = self.logged.max(last);
        self.waived = last;
        self.advance_durable(last);
    }

    /// Records that the logger has not taken.
    pub fn untaken(&self) -> usize {
        self.behind(self.taken)
    }

    /// Records that are not in the log.
    pub fn unlogged(&self) -> usize {
        self.behind(self.logged)
    }

    /// Records that are not durable in the log.
    pub fn undurable(&self) -> usize {
        self.behind(self.durable)
    }

    /// Payload bytes of [`WriteBuffer::untaken`].
    pub fn untaken_bytes(&self) -> usize {
        self.totals.untaken
    }

    /// Payload bytes of [`WriteBuffer::unlogged`].
    pub fn unlogged_bytes(&self) -> usize {
        self.totals.unlogged
    }

    /// Payload bytes of [`WriteBuffer::undurable`].
    pub fn undurable_bytes(&self) -> usize {
        self.totals.undurable
    }

    /// The last record that is durable in the log.
    pub fn durable_seq(&self) -> Seq {
        Seq(self.durable)
    }

    /// Records up to this one are finished.
    pub fn finished_seq(&self) -> Seq {
        Seq(self.records.finished())
    }

    fn behind(&self, seq: u64) -> usize {
        usize::try_from(self.last_seq().0.saturating_sub(seq)).unwrap_or(usize::MAX)
    }
}
