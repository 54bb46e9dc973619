// SPDX-License-Identifier: GPL-2.0-or-later

//! The transaction log, format v2: a header block, then batches of records.
//!
//! `Documentation/formats.md` has it to the byte, with the reasons. In short: a batch is what the
//! logger writes at once (group commit). It names its log, its position and its predecessor, so that
//! stale bytes of a block that was used before can never be taken for a record; its header and the
//! heads of its records are under one checksum, each payload under its own.
//!
//! Nothing here reads or writes: [`BatchWriter`] fills a buffer, [`Scanner`] looks at one. Neither
//! allocates memory.

pub mod batch;
pub mod chain;
pub mod end;
pub mod header;
pub mod name;
pub mod record;
pub mod room;
pub mod scan;

use crate::num;
use core::fmt;
use kernel::error::{
    code,
    Error, //
};

pub use self::{
    batch::{
        batch_size,
        BatchWriter,
        Finished, //
    },
    chain::VersionLink,
    end::{
        EndFinder,
        EndStep, //
    },
    header::{
        LogHeader,
        Uuid, //
    },
    name::LogName,
    record::{
        RecordHead,
        RecordKind,
        RecordView, //
    },
    scan::{
        BatchView,
        EndReason,
        Scan,
        ScanPos,
        Scanner, //
    },
};

/// Bytes of the header block of a log file; the first batch starts here.
pub const HEADER_SIZE: usize = 4096;
/// Bytes of a batch's header.
pub const BATCH_HEADER_SIZE: usize = 64;
/// Bytes of a record's entry in its batch.
pub const RECORD_SIZE: usize = 40;
/// Most bytes of payload of one record.
pub const MAX_PAYLOAD: u32 = 1 << 20;
/// Most bytes of a batch.
pub const MAX_BATCH: u32 = 4 << 20;
/// Most records of a batch.
pub const MAX_RECORDS: u32 = 2048;
/// Most bytes of the text of a marker.
pub const MAX_MARKER: u32 = 4096;
/// Offsets and lengths of device ranges are multiples of this.
pub const SECTOR: u64 = 512;
/// Smallest and largest alignment of batches.
pub const MIN_ALIGN: u32 = 512;
/// See [`MIN_ALIGN`].
pub const MAX_ALIGN: u32 = 4096;

/// What a batch must know of its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogContext {
    /// The random identity from the header.
    pub log_id: [u8; 16],
    /// Positions and lengths of batches are multiples of this power of two.
    pub align: u32,
}

impl LogContext {
    /// Whether `align` is one that the format allows.
    pub fn is_valid(&self) -> bool {
        self.align.is_power_of_two() && (MIN_ALIGN..=MAX_ALIGN).contains(&self.align)
    }

    /// The part of the identity that stands in every batch.
    pub(crate) fn short_id(&self) -> [u8; 8] {
        let mut short = [0; 8];
        for (to, from) in short.iter_mut().zip(self.log_id) {
            *to = from;
        }
        short
    }
}

/// Bytes in front of the payloads of a batch with `count` records: header, entries, and zeros up to a
/// multiple of [`SECTOR`]. So a payload has the alignment in the file (and in a buffer that was read from
/// there) that disks ask of memory, and replay writes it without copying it first.
pub(crate) fn meta_size(count: u32) -> Option<usize> {
    if count == 0 || count > MAX_RECORDS {
        return None;
    }
    padded_meta(entries_end(BATCH_HEADER_SIZE, count)?)
}

/// Where the entries of a batch end whose header has `header` bytes.
pub(crate) fn entries_end(header: usize, count: u32) -> Option<usize> {
    num::to_usize(count)
        .checked_mul(RECORD_SIZE)?
        .checked_add(header)
}

/// Where the payloads start behind entries that end at `end`.
pub(crate) fn padded_meta(end: usize) -> Option<usize> {
    let sectors = num::align_up(u32::try_from(end).ok()?, MIN_ALIGN)?;
    Some(num::to_usize(sectors))
}

/// Why a log can't be written or its header not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogError {
    /// The buffer is too small (writing), or the file is shorter than a header (reading).
    TooShort,
    /// It is no log of format v2.
    BadMagic,
    /// A log of another major version.
    Version(u16),
    /// The log uses features (bits) that this version does not know.
    Unsupported(u32),
    /// The header's checksum is wrong.
    BadCrc,
    /// The alignment is no power of two between 512 and 4096.
    BadAlign,
    /// Resource, creator, cluster or number in the header is not valid.
    BadName,
    /// A batch must have 1 to [`MAX_RECORDS`] records, and as many as were announced.
    BadCount,
    /// A record whose range, length or payload the format does not allow.
    BadRecord,
    /// The batch would be longer than [`MAX_BATCH`] or lie at a position that is not aligned.
    BadPos,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => f.write_str("too short for a log header"),
            Self::BadMagic => f.write_str("not a log of format 2 (wrong magic number)"),
            Self::Version(v) => write!(
                f,
                "log format {v} is not known here: use a version of MARS that knows it"
            ),
            Self::Unsupported(bits) => write!(
                f,
                "the log uses features {bits:#x} that are not known here: use a newer version of MARS"
            ),
            Self::BadCrc => f.write_str("wrong checksum of the log header"),
            Self::BadAlign => f.write_str("alignment is no power of two from 512 to 4096"),
            Self::BadName => f.write_str("invalid name or number in the log header"),
            Self::BadCount => f.write_str("wrong number of records in a batch"),
            Self::BadRecord => f.write_str("invalid record"),
            Self::BadPos => f.write_str("batch too long or not aligned"),
        }
    }
}

impl From<LogError> for Error {
    fn from(e: LogError) -> Self {
        match e {
            LogError::TooShort | LogError::BadMagic | LogError::BadName => code::EBADMSG,
            LogError::Version(_) | LogError::Unsupported(_) => code::EOPNOTSUPP,
            LogError::BadCrc => code::EBADMSG,
            LogError::BadAlign | LogError::BadCount | LogError::BadRecord | LogError::BadPos => {
                code::EINVAL
            }
        }
    }
}
