// SPDX-License-Identifier: GPL-2.0-or-later

//! The write buffer: everything between the admission of a write and its arrival on the backing disk.
//!
//! A primary admits a write, its logger takes it and appends it to the log; once the log is durable the record may be
//! written back, in the order of the disk, merged with its neighbours. Replay on a secondary and recovery after a crash
//! admit records that are in the log already ([`WriteBuffer::admit_durable`]); everything after that is the same code.
//!
//! Two structures hold the state: a queue of all records that are not finished, in their order ([`fifo`]), and an index
//! of the newest data of each byte ([`index`]). An admission cuts older extents out of the index, so a block that is
//! rewritten often goes to the disk once, while the log gets each version.
//!
//! Owner: the caller, who holds one lock around it; no call sleeps, not even for memory (who holds the lock would keep up
//! those who make memory free), none is longer than its output (and [`plan`] has a limit of its own). An allocation that
//! fails leaves everything as it was; the caller gives the lock away, waits, and tries again.
//!
//! # Why a crash loses nothing (P1, P2)
//!
//! Let *L* be the durable log, and for a byte *x* let *v(x)* be the newest version of *x* in *L*. The mark
//! ([`WriteBuffer::written_position`]) stands behind a record *r* only when *r* and all before it are *finished*: durable
//! in the log, and each byte of it either written to the disk by an I/O that succeeded and was flushed ([`landed`]), or
//! superseded by a later record that is durable in the log. Claim: at each instant, what a crash leaves of the disk (each
//! write since the last successful flush done, undone, or torn) plus a replay of *L* from the mark gives *v(x)* for each
//! *x*. Look at one byte:
//!
//! * If *v(x)* is behind the mark, replay writes it last, whatever the disk has now.
//! * Else *v(x)* is before the mark, thus finished. It is not superseded by a durable record, being the newest of those, so
//!   an I/O wrote it, successfully, and a flush that began after that succeeded. Nothing wrote to *x* after that I/O:
//!   versions that are not durable are never given out (neither to write back nor as a reason to finish anything), and an
//!   older version was not in flight any more, because two I/Os never overlap ([`plan`]). So the disk has *v(x)* for good,
//!   and replay does not touch it.
//!
//! So the mark may be published as the replay link at any time. The caller's part is to tell the truth: about I/Os
//! ([`WriteBuffer::io_done`]) and flushes ([`WriteBuffer::flush_begin`], [`WriteBuffer::flush_end`]).
//! The mark is the end of a batch, since a log can only be read from there, and never goes back (P9).
//!
//! # Without a log
//!
//! [`WriteBuffer::waive`] lets records be written back which no log has (`/mars` is full, P4). Their versions can't be
//! replayed, so the mark stays where it is until all of them are on the disk; see there.

mod fifo;
mod flights;
mod index;
mod landed;
mod logging;
mod plan;
mod record;
#[cfg(test)]
mod tests;
mod types;

pub use self::types::{
    gaps,
    BufferError,
    Coverage,
    Failure,
    Fragment,
    Kind,
    LogItem,
    LogPos,
    Overlap,
    Seq,
    WritebackIo, //
};

use self::{
    fifo::Fifo,
    flights::Flights,
    index::{
        span,
        Extent,
        Index, //
    },
    landed::Landed,
    record::{
        Records,
        Totals, //
    }, //
};
use crate::num::to_usize;
use kernel::alloc::{
    flags::GFP_NOWAIT,
    KVec, //
};

/// The records between admission and disk, see the module. `B` is a handle of payload bytes; its clones are cheap and
/// share the bytes.
///
/// # Invariants
///
/// * `durable <= logged <= taken <= last_seq`; records up to `durable` are in the log for good, up to `logged` were written
///   to it, up to `taken` were given to the logger.
/// * The extents of a record in the index have together `live` bytes of it.
/// * An extent has `io != 0` exactly if that I/O is in flight, or has ended well and waits for a flush (then it is `landed`),
///   and the extent lies in its range; such an extent is durable in the log.
pub struct WriteBuffer<B> {
    records: Records<B>,
    index: Index,
    flights: Flights,
    landed: Landed,
    taken: u64,
    logged: u64,
    durable: u64,
    /// Up to here records may be written back which are not in the log.
    waived: u64,
    /// Where the elevator stands.
    elevator: u64,
    /// Its sweep is for records up to this one.
    sweep: u64,
    next_io: u64,
    /// Records before this one have nothing left to be written.
    oldest: u64,
    /// End of the batch that is being replayed.
    open_batch: Option<LogPos>,
    mark: Option<LogPos>,
    /// What will be the mark as soon as no waived record is open.
    held_mark: Option<LogPos>,
    totals: Totals,
    failure: Option<Failure>,
}

impl<B> Default for WriteBuffer<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> WriteBuffer<B> {
    /// An empty buffer. The first record will be `Seq(1)`.
    pub fn new() -> Self {
        Self {
            records: Records::new(),
            index: Index::new(),
            flights: Flights::new(),
            landed: Landed::new(),
            taken: 0,
            logged: 0,
            durable: 0,
            waived: 0,
            elevator: 0,
            sweep: 0,
            next_io: 1,
            oldest: 0,
            open_batch: None,
            mark: None,
            held_mark: None,
            totals: Totals::default(),
            failure: None,
        }
    }

    /// Admits a record of a primary; it will be given to the logger.
    ///
    /// # Errors
    ///
    /// [`BufferError::BadRange`] for a range that is empty or wraps, [`BufferError::BadPayload`] if there is data without a
    /// write or a write without data, [`BufferError::NoMemory`]. In each case nothing has changed.
    pub fn admit(
        &mut self,
        kind: Kind,
        offset: u64,
        length: u32,
        stamp: u64,
        crc: u32,
        data: Option<B>,
    ) -> Result<Seq, BufferError> {
        self.insert(kind, offset, length, stamp, crc, data)
    }

    /// Admits a record that was read from the log (replay, recovery), from a batch that ends at `end`. The mark reaches
    /// `end` only after [`WriteBuffer::passed`], or after a record of a later batch, has shown that no record is missing.
    ///
    /// # Errors
    ///
    /// As [`WriteBuffer::admit`], and [`BufferError::NotDurable`] while there are records that the log does not have yet.
    #[expect(clippy::too_many_arguments, reason = "the parts of a record, once")]
    pub fn admit_durable(
        &mut self,
        kind: Kind,
        offset: u64,
        length: u32,
        stamp: u64,
        crc: u32,
        data: Option<B>,
        end: LogPos,
    ) -> Result<Seq, BufferError> {
        if self.durable != self.last_seq().0 {
            return Err(BufferError::NotDurable);
        }
        if let Some(open) = self.open_batch.filter(|open| *open != end) {
            self.passed(open);
        }
        let seq = self.insert(kind, offset, length, stamp, crc, data)?;
        self.open_batch = Some(end);
        self.taken = seq.0;
        self.logged = seq.0;
        self.totals.untaken = 0;
        self.totals.unlogged = 0;
        self.advance_durable(seq.0);
        Ok(seq)
    }

    fn insert(
        &mut self,
        kind: Kind,
        offset: u64,
        length: u32,
        stamp: u64,
        crc: u32,
        data: Option<B>,
    ) -> Result<Seq, BufferError> {
        let end = offset.checked_add(u64::from(length));
        let end = end.filter(|_| length > 0).ok_or(BufferError::BadRange)?;
        if data.is_some() != (kind == Kind::Write) {
            return Err(BufferError::BadPayload);
        }
        let seq = self.last_seq().0.saturating_add(1);
        self.records.queue.reserve()?;
        let extent = Extent {
            start: offset,
            seq,
            io: 0,
            landed: false,
            kind,
        };
        let Self {
            records,
            index,
            flights,
            totals,
            durable,
            ..
        } = self;
        // Last step that can fail.
        index.insert(extent, end, |cut| {
            let bytes = u64::from(cut.bytes);
            if cut.old.landed {
                totals.landed = totals.landed.saturating_sub(bytes);
                if let Some(r) = records.get_mut(cut.old.seq) {
                    r.landed = r.landed.saturating_sub(cut.bytes);
                }
            } else if cut.old.io != 0 {
                flights.orphan(cut.old.io, cut.bytes);
            } else if cut.old.seq <= *durable {
                totals.ready = totals.ready.saturating_sub(bytes);
            }
            records.shrink(cut.old.seq, cut.bytes, Some(seq), *durable, totals);
        })?;
        records.append(kind, offset, length, stamp, crc, data, totals);
        Ok(Seq(seq))
    }

    /// Finds buffered data of `offset..offset + length`: appends the newest pieces, in the order of the device, to `out`.
    /// What the disk has already, flushed or not, is left to the disk.
    /// The handles stay valid, so a reader may take its time to read the disk and lay the pieces over it.
    ///
    /// # Errors
    ///
    /// [`BufferError::NoMemory`]; `out` may have got some pieces.
    pub fn lookup(
        &mut self,
        offset: u64,
        length: u32,
        out: &mut KVec<Overlap<B>>,
    ) -> Result<Coverage, BufferError>
    where
        B: Clone,
    {
        let end = offset.saturating_add(u64::from(length));
        let mut found = 0u64;
        let mut cursor = self
            .index
            .tree
            .cursor_lower_bound_mut(&offset.saturating_add(1));
        while let Some(here) = cursor {
            let (&extent_end, extent) = here.current();
            if extent.start >= end {
                break;
            }
            if extent.landed {
                cursor = here.move_next();
                continue;
            }
            let from = extent.start.max(offset);
            let piece = span(from, extent_end.min(end));
            let record = self.records.get(extent.seq);
            out.push(
                Overlap {
                    offset: from,
                    length: piece,
                    kind: extent.kind,
                    data_offset: record.map_or(0, |r| span(r.offset, from)),
                    data: record.and_then(|r| r.data.clone()),
                },
                GFP_NOWAIT,
            )?;
            found = found.saturating_add(u64::from(piece));
            cursor = here.move_next();
        }
        Ok(match found {
            0 => Coverage::None,
            n if n == u64::from(length) => Coverage::Full,
            _ => Coverage::Partial,
        })
    }

    /// Whether anything in `offset..offset + length` is buffered, also what only waits for a flush.
    pub fn overlaps(&self, offset: u64, length: u32) -> bool {
        let end = offset.saturating_add(u64::from(length));
        self.index.overlaps(offset, end)
    }

    /// Whether all records are finished, so also durable on the disk, and no I/O is in flight.
    pub fn is_empty(&self) -> bool {
        self.records.queue.is_empty() && self.flights.is_empty()
    }

    /// The record that was admitted last.
    pub fn last_seq(&self) -> Seq {
        Seq(self.records.last())
    }

    /// Records that are not finished.
    pub fn records(&self) -> usize {
        usize::try_from(self.records.queue.len()).unwrap_or(usize::MAX)
    }

    /// Memory held: payloads that log, index or an I/O in flight need, and the bookkeeping of each record. Zero if and
    /// only if the buffer is empty.
    pub fn bytes(&self) -> usize {
        self.totals
            .held
            .saturating_add(self.flights.orphaned())
            .saturating_add(self.records().saturating_mul(record::COST))
    }

    /// Device bytes whose newest data is not durable on the disk.
    pub fn dirty_bytes(&self) -> u64 {
        self.totals.live
    }

    /// The part of [`WriteBuffer::dirty_bytes`] that becomes zero: it costs no memory, but time.
    pub fn plain_bytes(&self) -> u64 {
        self.totals.plain
    }

    /// Device bytes that could be written back now: in the log, and not in flight.
    pub fn ready_bytes(&self) -> u64 {
        self.totals.ready
    }

    /// I/Os given out and not reported done.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Stamp of the oldest record that is not durable in the log.
    pub fn oldest_undurable_stamp(&self) -> Option<u64> {
        self.records
            .get(self.durable.saturating_add(1))
            .map(|r| r.stamp)
    }

    /// How far the disk is, for good: replay has to start here (see the module). `None` until the first batch is finished.
    pub fn written_position(&self) -> Option<LogPos> {
        self.mark
    }

    /// Write-back errors since the buffer was made.
    pub fn io_errors(&self) -> u64 {
        self.totals.io_errors
    }

    /// How many records have failed to be written back and are not finished.
    pub fn failing(&self) -> usize {
        self.totals.failing
    }

    /// The write-back error that came last, while there are records that failed.
    pub fn last_failure(&self) -> Option<Failure> {
        self.failure.filter(|_| self.totals.failing > 0)
    }

    /// Drops finished records at the front of the queue and moves the mark over them.
    fn retire(&mut self) {
        while let Some(end) = self.records.pop_finished(self.durable) {
            if let Some(end) = end {
                self.held_mark = self.held_mark.max(Some(end));
            }
        }
        if self.held_mark.is_some() && self.records.finished() >= self.waived {
            self.mark = self.mark.max(self.held_mark.take());
        }
    }

    fn payload(kind: Kind, length: u32) -> usize {
        match kind {
            Kind::Write => to_usize(length),
            Kind::Zeroes | Kind::Discard => 0,
        }
    }
}
