// SPDX-License-Identifier: GPL-2.0-or-later

//! Write-back: which extents go to the disk next, and what became of them.
//!
//! An elevator goes through the index from low to high offsets and starts again at the bottom. It takes what is durable in
//! the log, merges neighbours into one I/O, and leaves alone what overlaps an I/O in flight: an older version of the same
//! bytes could arrive at the disk after the newer one.
//!
//! Each sweep starts I/Os only for records that were durable when it began; newer ones may come along as neighbours. So a
//! sweep has an end even if somebody writes in front of the elevator all the time (any long sequential write does), every
//! record is on the disk after at most two sweeps, and the mark moves.

use super::{
    index::{
        span,
        Extent,
        Settled, //
    },
    landed::Landing,
    BufferError,
    Failure,
    Flights,
    Fragment,
    Kind,
    Seq,
    WriteBuffer,
    WritebackIo, //
};
use crate::defect::defect;
use kernel::alloc::{
    flags::GFP_NOWAIT,
    KVec, //
};

/// Extents that one call looks at, so that the lock is not held for long. A search that was cut short goes on at the
/// next call; those extents that it skipped wait for the log or for an I/O, and so does the caller.
const VISITS: usize = 4096;
/// Fragments of one I/O, so that it fits into one request of the usual disk.
const FRAGMENTS: usize = 128;
/// Bytes of one I/O that has no payload.
const MAX_PLAIN: u32 = 1 << 30;

/// Neighbouring extents that become one I/O.
struct Run<B> {
    kind: Kind,
    start: u64,
    end: u64,
    fragments: KVec<Fragment<B>>,
}

/// What [`WriteBuffer::next_run`] found.
enum Found<B> {
    Run(Run<B>),
    /// Nothing more up to the end of the device, or up to the limit of visits.
    Nothing,
}

impl<B: Clone> WriteBuffer<B> {
    /// Appends up to `max_ios` I/Os to `out`, each of at most `max_bytes_per_io` (a larger record is not split), and
    /// notes them as in flight. Each has to be reported to [`WriteBuffer::io_done`]. Returns how many were added. Zero
    /// means that nothing can be started before the log gets further or an I/O is done.
    ///
    /// # Errors
    ///
    /// [`BufferError::NoMemory`] if that kept even the first I/O from being made; nothing has changed.
    pub fn plan(
        &mut self,
        max_bytes_per_io: u32,
        max_ios: usize,
        out: &mut KVec<WritebackIo<B>>,
    ) -> Result<usize, BufferError> {
        let mut count = 0usize;
        let mut visits = VISITS;
        let mut wrapped = false;
        while count < max_ios && self.totals.ready > 0 && visits > 0 {
            match self.next_io(max_bytes_per_io, &mut visits, out) {
                Ok(true) => count = count.saturating_add(1),
                Ok(false) if visits > 0 && !wrapped => {
                    wrapped = true;
                    self.elevator = 0;
                    self.sweep = self.durable;
                }
                Ok(false) => break,
                Err(_) if count > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(count)
    }

    fn next_io(
        &mut self,
        max_bytes: u32,
        visits: &mut usize,
        out: &mut KVec<WritebackIo<B>>,
    ) -> Result<bool, BufferError> {
        out.reserve(1, GFP_NOWAIT)?;
        self.flights.reserve()?;
        let id = self.next_io;
        let Found::Run(run) = self.next_run(id, max_bytes, visits)? else {
            return Ok(false);
        };
        self.next_io = id.saturating_add(1);
        self.elevator = run.end;
        let length = span(run.start, run.end);
        self.totals.ready = self.totals.ready.saturating_sub(u64::from(length));
        self.flights.add(id, run.start, run.end);
        let io = WritebackIo {
            id,
            kind: run.kind,
            offset: run.start,
            length,
            fragments: run.fragments,
        };
        // There is room, see above.
        Ok(out.push_within_capacity(io).is_ok())
    }

    /// Looks for the next run behind the elevator and marks its extents with `id`.
    fn next_run(
        &mut self,
        id: u64,
        max_bytes: u32,
        visits: &mut usize,
    ) -> Result<Found<B>, BufferError> {
        let Self {
            index,
            records,
            flights,
            durable,
            elevator,
            sweep,
            ..
        } = self;
        let mut run: Option<Run<B>> = None;
        let mut cursor = index
            .tree
            .cursor_lower_bound_mut(&elevator.saturating_add(1));
        while let Some(mut here) = cursor {
            if *visits == 0 {
                break;
            }
            *visits = visits.saturating_sub(1);
            let (&end, extent) = here.current_mut();
            let logged = extent.seq <= *durable || defect!("write-back-early");
            let free = logged && extent.io == 0;
            let takes = match &run {
                None => {
                    let apart = !flights.overlaps(extent.start, end) || defect!("overlapping-io");
                    free && apart && (extent.seq <= *sweep || defect!("write-back-early"))
                }
                Some(r) => free && r.takes(extent, end, max_bytes, flights),
            };
            if takes {
                let r = run.get_or_insert_with(|| Run::new(extent));
                // A run that can't get longer for want of memory is good as it is.
                if !r.add(records.get(extent.seq), extent, end)? {
                    break;
                }
                extent.io = id;
            } else if run.is_some() {
                break;
            } else {
                // So that a search which is cut short goes on from here.
                *elevator = end;
            }
            cursor = here.move_next();
        }
        Ok(run.map_or(Found::Nothing, Found::Run))
    }

    /// I/O `id` has ended. What it wrote is finished after the next flush; what it could not write, or what a flush that failed
    /// meanwhile may have lost, will be planned again.
    pub fn io_done(&mut self, id: u64, ok: bool) {
        let Some(flight) = self.flights.remove(id) else {
            return;
        };
        let Self {
            index,
            records,
            totals,
            failure,
            landed,
            ..
        } = self;
        // Without the memory to note that a flush is needed it counts as not written.
        let how = if ok && !flight.doubtful && landed.queue.reserve().is_ok() {
            landed.queue.push(Landing {
                id,
                start: flight.start,
                end: flight.end,
            });
            Settled::Landed
        } else {
            Settled::Again
        };
        if !ok {
            totals.io_errors = totals.io_errors.saturating_add(1);
        }
        index.settle(flight.start, flight.end, id, how, |seq, bytes| {
            if how == Settled::Landed {
                totals.landed = totals.landed.saturating_add(u64::from(bytes));
                if let Some(r) = records.get_mut(seq) {
                    r.landed = r.landed.saturating_add(bytes);
                }
                return;
            }
            totals.ready = totals.ready.saturating_add(u64::from(bytes));
            if let Some(r) = records.get_mut(seq).filter(|_| !ok) {
                if r.errors == 0 {
                    totals.failing = totals.failing.saturating_add(1);
                }
                r.errors = r.errors.saturating_add(1);
                *failure = Some(Failure {
                    seq: Seq(seq),
                    offset: flight.start,
                    length: span(flight.start, flight.end),
                    times: r.errors,
                });
            }
        });
    }
}

impl<B: Clone> Run<B> {
    fn new(first: &Extent) -> Self {
        Self {
            kind: first.kind,
            start: first.start,
            end: first.start,
            fragments: KVec::new(),
        }
    }

    /// Whether a free extent can be the next one of the run.
    fn takes(&self, extent: &Extent, end: u64, max_bytes: u32, flights: &Flights) -> bool {
        let limit = match self.kind {
            Kind::Write => max_bytes,
            Kind::Zeroes | Kind::Discard => MAX_PLAIN,
        };
        extent.start == self.end
            && extent.kind == self.kind
            && end.saturating_sub(self.start) <= u64::from(limit)
            && self.fragments.len() < FRAGMENTS
            && (!flights.overlaps(extent.start, end) || defect!("overlapping-io"))
    }

    /// Appends an extent; `false` if only its beginning could be kept.
    fn add(
        &mut self,
        record: Option<&super::record::Record<B>>,
        extent: &Extent,
        end: u64,
    ) -> Result<bool, BufferError> {
        if let Some((record, data)) = record.and_then(|r| Some((r, r.data.as_ref()?))) {
            if let Err(e) = self.fragments.reserve(1, GFP_NOWAIT) {
                return if self.fragments.is_empty() {
                    Err(e.into())
                } else {
                    Ok(false)
                };
            }
            let fragment = Fragment {
                data: data.clone(),
                offset: span(record.offset, extent.start),
                length: span(extent.start, end),
            };
            let _ = self.fragments.push_within_capacity(fragment);
        }
        self.end = end;
        Ok(true)
    }
}
