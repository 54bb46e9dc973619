// SPDX-License-Identifier: GPL-2.0-or-later

//! Replay: from the bytes of a log to records for the write buffer.
//!
//! One [`Replayer`] goes through one log, from the replay position on. The caller gives it bytes of the file and gets
//! checked batches, whose records it admits as durable; write-back does the rest. Nothing is read, written or waited for
//! here. The caller's loop is
//!
//! 1. [`Replayer::next`] with the bytes it has from [`Replayer::pos`] on;
//! 2. a [`Next::Batch`]: admit each of [`Batch::records`] with [`Batch::end`], waiting whenever [`may_admit`] says so, then
//!    [`WriteBuffer::passed`](crate::buffer::WriteBuffer::passed);
//! 3. [`Next::Read`]: read more of the file; [`Next::CaughtUp`]: wait until the limit moves; [`Next::End`] and
//!    [`Next::Defective`]: see there.
//!
//! A batch is handed out only when it is whole, intact, below the limit, and all its records lie on the device: what was
//! admitted is a prefix of the log in whole batches (P1), and a limit, be it the fetched end, a position to stop at or the
//! end of the primary's log at a handover, is never passed.

use crate::{
    buffer::{
        Kind,
        LogPos, //
    },
    digest::Digest,
    log::{
        self,
        BatchView,
        EndReason,
        LogContext,
        RecordKind,
        Scan,
        ScanPos,
        Scanner, //
    },
};
use core::fmt;

pub use crate::writeback::may_admit;

/// What is known about the end of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All bytes below this position have arrived here, or are durable at their source: they must be good batches.
    Known(u64),
    /// The log was cut off by a crash somewhere: where the good batches end is its end.
    Unknown,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub enum Next<'a> {
    /// Admit this batch; the replayer stands behind it already.
    Batch(Batch<'a>),
    /// Call again with at least `min` bytes of the file from `pos` on.
    Read {
        /// [`Replayer::pos`].
        pos: u64,
        /// Never more than [`log::MAX_BATCH`].
        min: usize,
    },
    /// Everything up to the limit was handed out; of a batch that reaches beyond it there is nothing.
    CaughtUp,
    /// The end of a log of [`Extent::Unknown`], and why. Only what is behind it may be cut off.
    End(EndReason),
    /// What stands here can't be replayed: see [`Defect`].
    Defective(Defect),
}

/// Why a log can't be replayed at a place where it has to be good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Defect {
    /// The batch.
    pub at: LogPos,
    /// What is wrong with it.
    pub what: Flaw,
}

/// What is wrong with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// No good batch.
    Scan(EndReason),
    /// This record reaches behind the end of the device, whose size this is.
    OutOfDevice {
        /// Index of the record.
        record: u32,
        /// Its first byte behind.
        end: u64,
        /// Bytes of the device.
        device: u64,
    },
}

impl Defect {
    /// Whether fetching the log again from [`Self::at`] may help. If not, this log does not belong to this device.
    pub fn may_be_repaired(&self) -> bool {
        match self.what {
            Flaw::Scan(EndReason::Unsupported) => false,
            Flaw::Scan(_) => true,
            Flaw::OutOfDevice { .. } => false,
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            Flaw::Scan(reason) => write!(f, "{}: {reason}", self.at),
            Flaw::OutOfDevice {
                record,
                end,
                device,
            } => write!(
                f,
                "{}: record {record} ends at byte {end}, but the device has only {device} bytes: make the disk as large as the primary's",
                self.at
            ),
        }
    }
}

/// A record to be admitted with [`WriteBuffer::admit_durable`](crate::buffer::WriteBuffer::admit_durable).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission {
    /// What it does.
    pub kind: Kind,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes on the device.
    pub length: u32,
    /// Lamport time in nanoseconds.
    pub stamp: u64,
    /// CRC32C of the payload.
    pub crc: u32,
    /// Where the payload of a write starts, in the bytes that were given to [`Replayer::next`].
    pub payload_at: usize,
}

/// A batch to be admitted.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    view: BatchView<'a>,
    number: u32,
}

impl<'a> Batch<'a> {
    /// Where the log stands behind it.
    pub fn end(&self) -> LogPos {
        LogPos {
            number: self.number,
            pos: self.view.end(),
        }
    }

    /// How many bytes of those given it took.
    pub fn bytes(&self) -> u32 {
        self.view.total_len
    }

    /// Lamport time of its writing in nanoseconds.
    pub fn stamp(&self) -> u64 {
        self.view.stamp
    }

    /// What it holds, markers included.
    pub fn view(&self) -> BatchView<'a> {
        self.view
    }

    /// What is to be admitted, in this order. Markers change nothing on the device, so they are left out.
    pub fn records(&self) -> impl Iterator<Item = Admission> + 'a {
        self.view.records().filter_map(|r| {
            let kind = match r.kind {
                RecordKind::Write => Kind::Write,
                RecordKind::WriteZeroes => Kind::Zeroes,
                RecordKind::Discard => Kind::Discard,
                RecordKind::Marker => return None,
            };
            Some(Admission {
                kind,
                offset: r.offset,
                length: r.length,
                stamp: r.stamp,
                crc: r.payload_crc,
                payload_at: r.payload_at,
            })
        })
    }
}

/// Goes through one log.
#[derive(Clone, Copy, Debug)]
pub struct Replayer {
    scanner: Scanner,
    /// Where the last batch was handed out.
    before: Scanner,
    number: u32,
    extent: Extent,
    stop: Option<u64>,
    device: u64,
}

impl Replayer {
    /// Starts in log `number` at `from`; `device` is the size of the backing disk in bytes.
    pub fn new(number: u32, ctx: LogContext, from: ScanPos, extent: Extent, device: u64) -> Self {
        let scanner = Scanner::resume(ctx, from);
        Self {
            scanner,
            before: scanner,
            number,
            extent,
            stop: None,
            device,
        }
    }

    /// The log is known to be good up to `end`; a smaller value than before changes nothing.
    pub fn known(&mut self, end: u64) {
        if let Extent::Known(old) = &mut self.extent {
            *old = end.max(*old);
        }
    }

    /// Not to go beyond this position, or (`None`) as far as the log goes.
    pub fn stop_at(&mut self, stop: Option<u64>) {
        self.stop = stop;
    }

    /// The disk was resized.
    pub fn resized(&mut self, device: u64) {
        self.device = device;
    }

    /// Everything before was handed out.
    pub fn pos(&self) -> LogPos {
        LogPos {
            number: self.number,
            pos: self.scanner.pos(),
        }
    }

    /// The last batch could not be admitted, or not all of it (memory, a signal): it will be handed out again. What was
    /// admitted of it may be admitted again, in order; the mark has not moved into it.
    pub fn put_back(&mut self) {
        self.scanner = self.before;
    }

    /// From where a later replayer can go on.
    pub fn at(&self) -> ScanPos {
        self.scanner.at()
    }

    /// Whether the position at which to stop was reached exactly.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| self.scanner.pos() >= stop)
    }

    fn limit(&self) -> u64 {
        let stop = self.stop.unwrap_or(u64::MAX);
        match self.extent {
            Extent::Known(end) => end.min(stop),
            Extent::Unknown => stop,
        }
    }

    /// Looks at `bytes`, the contents of the file from [`Self::pos`] on; `eof`: the file ends behind them. Payloads are
    /// checked here, so this is the expensive part; it needs no lock.
    pub fn next<'a, D: Digest>(&mut self, bytes: &'a [u8], eof: bool) -> Next<'a> {
        let room = self.limit().saturating_sub(self.scanner.pos());
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        if room == 0 {
            return Next::CaughtUp;
        }
        let mut ahead = self.scanner;
        let scan = match bytes.split_at_checked(room) {
            // The rest is not looked at, not even whether it is there.
            Some((below, _)) => ahead.next::<D>(below, true),
            None if eof && self.extent == Extent::Unknown => ahead.next_at_eof::<D>(bytes, true),
            None => ahead.next::<D>(bytes, true),
        };
        match scan {
            Scan::Batch(view) => {
                if let Some(what) = self.outside(&view) {
                    return self.defective(what);
                }
                self.before = self.scanner;
                self.scanner = ahead;
                let number = self.number;
                Next::Batch(Batch { view, number })
            }
            Scan::NeedMore(min) if min > room => Next::CaughtUp,
            // The bytes are known to have been here once.
            Scan::NeedMore(_) if eof => self.defective(Flaw::Scan(EndReason::Truncated)),
            Scan::NeedMore(min) => Next::Read {
                pos: self.scanner.pos(),
                min,
            },
            Scan::End(EndReason::Unsupported) => self.defective(Flaw::Scan(EndReason::Unsupported)),
            Scan::End(reason) => match self.extent {
                Extent::Unknown => Next::End(reason),
                Extent::Known(_) => self.defective(Flaw::Scan(reason)),
            },
        }
    }

    fn defective<'a>(&self, what: Flaw) -> Next<'a> {
        Next::Defective(Defect {
            at: self.pos(),
            what,
        })
    }

    /// The first record that does not lie on the device.
    fn outside(&self, view: &BatchView<'_>) -> Option<Flaw> {
        (0u32..).zip(view.records()).find_map(|(record, r)| {
            let end = r.offset.saturating_add(u64::from(r.length));
            (r.kind != RecordKind::Marker && end > self.device).then_some(Flaw::OutOfDevice {
                record,
                end,
                device: self.device,
            })
        })
    }
}

const _: () = assert!(log::MAX_BATCH < 1 << 30, "a batch is read at once");
