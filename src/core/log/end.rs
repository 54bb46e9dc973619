// SPDX-License-Identifier: GPL-2.0-or-later

//! Finds the true end of a log: after a crash the file goes on with zeros, with a torn batch or with
//! old bytes.

use super::{
    EndReason,
    LogContext,
    Scan,
    ScanPos,
    Scanner,
    BATCH_HEADER_SIZE, //
};
use crate::digest::Digest;

/// Where a log ends, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEnd {
    /// The position at which a next batch would be written.
    pub at: ScanPos,
    /// Why there is no further batch.
    pub reason: EndReason,
    /// Batches that were passed.
    pub batches: u64,
    /// Stamp of the last batch in nanoseconds, 0 if there was none.
    pub stamp: u64,
}

/// What [`EndFinder`] wants next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndStep {
    /// Call [`EndFinder::feed`] with at least `min` bytes of the file from `pos` on, or with all that there are.
    Read {
        /// Where to read.
        pos: u64,
        /// How much is needed. Never more than [`super::MAX_BATCH`].
        min: usize,
    },
    /// The end.
    Done(LogEnd),
}

/// Goes through a log from a given position to its end.
#[derive(Clone, Copy, Debug)]
pub struct EndFinder {
    scanner: Scanner,
    verify_payload: bool,
    batches: u64,
    stamp: u64,
}

impl EndFinder {
    /// Starts at `from`. Without `verify_payload` damaged payloads are not seen; what was not known
    /// to be durable must be looked at with it.
    pub fn new(ctx: LogContext, from: ScanPos, verify_payload: bool) -> Self {
        Self {
            scanner: Scanner::resume(ctx, from),
            verify_payload,
            batches: 0,
            stamp: 0,
        }
    }

    /// The first step.
    pub fn start(&self) -> EndStep {
        EndStep::Read {
            pos: self.scanner.pos(),
            min: BATCH_HEADER_SIZE,
        }
    }

    /// Takes bytes of the file from the wanted position on. `eof`: there are no more after them.
    pub fn feed<D: Digest>(&mut self, buf: &[u8], eof: bool) -> EndStep {
        let start = self.scanner.pos();
        loop {
            let skip = self.scanner.pos().saturating_sub(start);
            let rest = usize::try_from(skip)
                .ok()
                .and_then(|skip| buf.get(skip..))
                .unwrap_or(&[]);
            let scan = if eof {
                self.scanner.next_at_eof::<D>(rest, self.verify_payload)
            } else {
                self.scanner.next::<D>(rest, self.verify_payload)
            };
            match scan {
                Scan::Batch(batch) => {
                    self.batches = self.batches.saturating_add(1);
                    self.stamp = batch.stamp;
                }
                Scan::NeedMore(min) => {
                    return EndStep::Read {
                        pos: self.scanner.pos(),
                        min,
                    }
                }
                Scan::End(reason) => {
                    return EndStep::Done(LogEnd {
                        at: self.scanner.at(),
                        reason,
                        batches: self.batches,
                        stamp: self.stamp,
                    })
                }
            }
        }
    }
}
