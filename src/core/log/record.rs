// SPDX-License-Identifier: GPL-2.0-or-later

//! Records: what one entry of a batch says.

use super::{
    MAX_MARKER,
    MAX_PAYLOAD,
    SECTOR, //
};
use crate::num;
use zerocopy::little_endian::{
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// A reader that does not know the kind of the record may skip it.
pub const FLAG_OPTIONAL: u8 = 0x01;
/// Flags that a reader must know. None so far.
pub const FLAGS_INCOMPAT: u8 = 0xf0;

/// What a record does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// Writes its payload to the range.
    Write,
    /// The range becomes zero, and the disk may give up its blocks: what is read there afterwards is the same everywhere.
    Discard,
    /// The range becomes zero, and its blocks stay allocated.
    WriteZeroes,
    /// Changes nothing: a named point in the log. The payload is the name.
    Marker,
}

impl RecordKind {
    /// The number in the log.
    pub const fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Discard => 2,
            Self::WriteZeroes => 3,
            Self::Marker => 4,
        }
    }

    /// From the number in the log.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Write),
            2 => Some(Self::Discard),
            3 => Some(Self::WriteZeroes),
            4 => Some(Self::Marker),
            _ => None,
        }
    }
}

/// An entry as it is on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawRecord {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) volume: U16,
    pub(crate) length: U32,
    pub(crate) offset: U64,
    pub(crate) stamp: U64,
    pub(crate) payload_len: U32,
    pub(crate) payload_crc: U32,
    pub(crate) reserved: U64,
}

const _: () = assert!(core::mem::size_of::<RawRecord>() == super::RECORD_SIZE);

/// What the logger says about a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead {
    /// What it does.
    pub kind: RecordKind,
    /// First byte of the range on the device.
    pub offset: u64,
    /// Bytes of the range.
    pub length: u32,
    /// Lamport time of its admission in nanoseconds.
    pub stamp: u64,
    /// CRC32C of the payload (standard value), 0 without payload. Computed when the data was admitted,
    /// so that it also finds what happens to the data in memory.
    pub payload_crc: u32,
}

/// Whether a record of this kind may have this range and this payload.
pub(crate) fn is_valid(kind: RecordKind, offset: u64, length: u32, payload_len: u32) -> bool {
    let range = num::is_aligned(offset, SECTOR)
        && num::is_aligned(u64::from(length), SECTOR)
        && length > 0
        && offset
            .checked_add(u64::from(length))
            .is_some_and(|end| i64::try_from(end).is_ok());
    match kind {
        RecordKind::Write => range && length <= MAX_PAYLOAD && payload_len == length,
        RecordKind::Discard | RecordKind::WriteZeroes => range && payload_len == 0,
        RecordKind::Marker => offset == 0 && length == 0 && payload_len <= MAX_MARKER,
    }
}

/// A record in a batch that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordView<'a> {
    /// What it does.
    pub kind: RecordKind,
    /// First byte of the range on the device.
    pub offset: u64,
    /// Bytes of the range.
    pub length: u32,
    /// Lamport time of its admission in nanoseconds.
    pub stamp: u64,
    /// Its payload, empty if it has none.
    pub payload: &'a [u8],
    /// CRC32C of the payload as the log says it.
    pub payload_crc: u32,
    /// Where the payload starts, in bytes from the start of the batch.
    pub payload_at: usize,
}

impl RecordView<'_> {
    /// The head from which the same record could be written again.
    pub fn head(&self) -> RecordHead {
        RecordHead {
            kind: self.kind,
            offset: self.offset,
            length: self.length,
            stamp: self.stamp,
            payload_crc: self.payload_crc,
        }
    }
}
