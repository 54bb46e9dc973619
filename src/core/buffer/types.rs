// SPDX-License-Identifier: GPL-2.0-or-later

//! What goes into the write buffer and what comes out.

use super::index::span;
use core::fmt;
use kernel::{
    alloc::{
        AllocError,
        KVec, //
    },
    error::{
        code::{
            EINVAL,
            ENOMEM, //
        },
        Error, //
    }, //
};

/// Number of a record in its buffer: 1, 2, 3 …; 0 stands for none.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seq(pub u64);

/// A place in the history of a resource: a log and a position in its file.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LogPos {
    /// Number of the log.
    pub number: u32,
    /// Byte position in the log file.
    pub pos: u64,
}

impl fmt::Display for LogPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log {} position {}", self.number, self.pos)
    }
}

/// What a record does to its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Puts data there.
    Write,
    /// Puts zeroes there; the disk keeps the blocks.
    Zeroes,
    /// Puts zeroes there; the disk may give up the blocks.
    Discard,
}

/// A record for the logger.
#[derive(Clone, Debug)]
pub struct LogItem<B> {
    /// Its number.
    pub seq: Seq,
    /// What it does.
    pub kind: Kind,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes on the device.
    pub length: u32,
    /// Lamport time in nanoseconds.
    pub stamp: u64,
    /// CRC32C of the payload, as given at admission.
    pub crc: u32,
    /// The payload, of a write only.
    pub data: Option<B>,
}

/// A part of a payload.
#[derive(Clone, Debug)]
pub struct Fragment<B> {
    /// Payload of a record.
    pub data: B,
    /// First byte of the part in it.
    pub offset: u32,
    /// Bytes of the part.
    pub length: u32,
}

/// One I/O to the backing disk.
#[derive(Debug)]
pub struct WritebackIo<B> {
    /// For [`WriteBuffer::io_done`](super::WriteBuffer::io_done).
    pub id: u64,
    /// What to do.
    pub kind: Kind,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes on the device.
    pub length: u32,
    /// The bytes in order, for a write; together `length`.
    pub fragments: KVec<Fragment<B>>,
}

/// Buffered data in a range that somebody wants to read.
#[derive(Clone, Debug)]
pub struct Overlap<B> {
    /// First byte on the device.
    pub offset: u64,
    /// Bytes on the device.
    pub length: u32,
    /// Kind of the newest record there; without data the bytes read as zeroes.
    pub kind: Kind,
    /// Payload of the record, for a write.
    pub data: Option<B>,
    /// Where the piece starts in the payload.
    pub data_offset: u32,
}

/// What of `offset..offset + length` is not in `pieces`, which are in the order of the device: offsets and lengths.
pub fn gaps<B>(
    offset: u64,
    length: u32,
    pieces: &[Overlap<B>],
) -> impl Iterator<Item = (u64, u32)> + '_ {
    let end = offset.saturating_add(u64::from(length));
    let mut at = offset;
    let last = [(end, 0u32)];
    pieces
        .iter()
        .map(|p| (p.offset, p.length))
        .chain(last)
        .filter_map(move |(start, len)| {
            let gap = (at, span(at, start));
            at = at.max(start.saturating_add(u64::from(len)));
            (gap.1 > 0).then_some(gap)
        })
}

/// How much of a range is buffered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// Nothing: the disk has it all.
    None,
    /// Some: read the disk, then lay the pieces over it.
    Partial,
    /// All: the disk is not needed.
    Full,
}

/// A write-back error of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The record.
    pub seq: Seq,
    /// First byte of the failed I/O on the device.
    pub offset: u64,
    /// Bytes of the failed I/O.
    pub length: u32,
    /// How often the record has failed; ends at 255.
    pub times: u8,
}

/// Why something could not be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BufferError {
    /// Out of memory; nothing has changed.
    NoMemory,
    /// The range is empty or reaches beyond what an offset can say.
    BadRange,
    /// A write without data, or data without a write.
    BadPayload,
    /// Records that are not in the log yet stand before this one.
    NotDurable,
}

impl From<AllocError> for BufferError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

impl From<BufferError> for Error {
    fn from(e: BufferError) -> Self {
        match e {
            BufferError::NoMemory => ENOMEM,
            BufferError::BadRange | BufferError::BadPayload | BufferError::NotDurable => EINVAL,
        }
    }
}

impl fmt::Display for BufferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "out of memory; it is tried again",
            Self::BadRange => "the range of a record is empty or too large",
            Self::BadPayload => "a record has data without being a write, or the reverse",
            Self::NotDurable => "a record of the log came after records that are in no log",
        })
    }
}
