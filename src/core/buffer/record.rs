// SPDX-License-Identifier: GPL-2.0-or-later

//! The records of the write buffer, in their order, and the sums over them.

use crate::defect::defect;

use super::{
    Fifo,
    Kind,
    LogPos,
    WriteBuffer, //
};

/// Memory that a record takes besides its payload: itself, its extents, the handle's object.
pub(super) const COST: usize = 256;

/// A record that is not finished.
pub(super) struct Record<B> {
    pub(super) offset: u64,
    pub(super) stamp: u64,
    /// Dropped as soon as neither the log nor the disk needs it from here.
    pub(super) data: Option<B>,
    /// Where the log stands behind it, if it is the last of its batch.
    pub(super) end: Option<LogPos>,
    /// The newest record that took bytes from it; 0 if none did.
    pub(super) superseder: u64,
    pub(super) length: u32,
    /// Bytes that are neither durable on the disk nor superseded.
    pub(super) live: u32,
    /// The part of `live` that is on the disk and was not flushed.
    pub(super) landed: u32,
    pub(super) crc: u32,
    pub(super) kind: Kind,
    /// Failed write-backs.
    pub(super) errors: u8,
}

/// Sums over the records. Payload bytes for `held` and the three of the log, device bytes for the others.
#[derive(Default)]
pub(super) struct Totals {
    /// Payload that has not been dropped.
    pub(super) held: usize,
    pub(super) untaken: usize,
    pub(super) unlogged: usize,
    pub(super) undurable: usize,
    pub(super) live: u64,
    /// The part of `live` that has no payload.
    pub(super) plain: u64,
    /// The part of `live` that is on the disk and was not flushed.
    pub(super) landed: u64,
    /// Durable and not in flight.
    pub(super) ready: u64,
    pub(super) failing: usize,
    pub(super) io_errors: u64,
}

/// All records that are not finished; the one with number `seq` has the number `seq - 1` in the queue.
pub(super) struct Records<B> {
    pub(super) queue: Fifo<Record<B>>,
}

impl<B> Records<B> {
    pub(super) const fn new() -> Self {
        Self { queue: Fifo::new() }
    }

    /// Number of the record that was appended last; 0 if none was.
    pub(super) fn last(&self) -> u64 {
        self.queue.next()
    }

    /// All records up to this one are finished and gone.
    pub(super) fn finished(&self) -> u64 {
        self.queue.first()
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Record<B>> {
        self.queue.get(seq.checked_sub(1)?)
    }

    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut Record<B>> {
        self.queue.get_mut(seq.checked_sub(1)?)
    }

    /// Appends a record, for which the queue has reserved room.
    #[expect(clippy::too_many_arguments, reason = "the parts of a record, once")]
    pub(super) fn append(
        &mut self,
        kind: Kind,
        offset: u64,
        length: u32,
        stamp: u64,
        crc: u32,
        data: Option<B>,
        totals: &mut Totals,
    ) {
        let payload = WriteBuffer::<B>::payload(kind, length);
        totals.held = totals.held.saturating_add(payload);
        totals.untaken = totals.untaken.saturating_add(payload);
        totals.unlogged = totals.unlogged.saturating_add(payload);
        totals.undurable = totals.undurable.saturating_add(payload);
        totals.live = totals.live.saturating_add(u64::from(length));
        if kind != Kind::Write {
            totals.plain = totals.plain.saturating_add(u64::from(length));
        }
        self.queue.push(Record {
            offset,
            stamp,
            data,
            end: None,
            superseder: 0,
            length,
            live: length,
            landed: 0,
            crc,
            kind,
            errors: 0,
        });
    }

    /// Takes `bytes` off what a record still has to write: written, or superseded by record `by`.
    pub(super) fn shrink(
        &mut self,
        seq: u64,
        bytes: u32,
        by: Option<u64>,
        durable: u64,
        totals: &mut Totals,
    ) {
        let Some(record) = self.get_mut(seq) else {
            return;
        };
        record.live = record.live.saturating_sub(bytes);
        totals.live = totals.live.saturating_sub(u64::from(bytes));
        if record.kind != Kind::Write {
            totals.plain = totals.plain.saturating_sub(u64::from(bytes));
        }
        record.superseder = record.superseder.max(by.unwrap_or(0));
        record.release(seq <= durable, totals);
    }

    /// Removes the oldest record if it is finished; gives the end of its batch if it is the last of one.
    pub(super) fn pop_finished(&mut self, durable: u64) -> Option<Option<LogPos>> {
        let seq = self.finished().saturating_add(1);
        let record = self.queue.front()?;
        let live = record.live > 0 && !defect!("mark-unfinished");
        let superseded = record.superseder > durable && !defect!("mark-superseded");
        if seq > durable || live || superseded {
            return None;
        }
        let end = record.end;
        self.queue.pop();
        Some(end)
    }
}

impl<B> Record<B> {
    /// Drops the payload if nobody needs it: nothing is left to write, and the log has it.
    pub(super) fn release(&mut self, durable: bool, totals: &mut Totals) {
        if self.live > 0 || !durable {
            return;
        }
        if self.data.take().is_some() {
            let payload = WriteBuffer::<B>::payload(self.kind, self.length);
            totals.held = totals.held.saturating_sub(payload);
        }
        if self.errors > 0 {
            self.errors = 0;
            totals.failing = totals.failing.saturating_sub(1);
        }
    }
}
