// SPDX-License-Identifier: GPL-2.0-or-later

//! Messages that carry logs (port +1) and device contents (port +2).
//!
//! Requests name resources, log numbers and ranges, never paths. A client may have several requests on their way; each
//! reply has the id of its request. Replies come in the order of the requests.

use kernel::alloc::KVec;

use super::{
    bulk_head,
    data,
    messages,
    numbers,
    position,
    range,
    rule,
    structs,
    BulkMessage,
    MAX_POSITION, //
};
use crate::dirty::{
    Geometry,
    MAX_PIECES,
    PIECE, //
};
use crate::name::Name;
use crate::num::{
    is_aligned,
    to_u64, //
};
use crate::wire::frame::MAX_DATA;
use crate::wire::{
    WireError,
    SECTOR, //
};

pub use super::meta::MAX_WAIT_MS;

/// Highest log number: nine digits.
pub const MAX_LOG_NUMBER: u32 = 999_999_999;
/// Longest range of one [`SyncDigest`].
pub const MAX_DIGEST_RANGE: u32 = 4 << 20;
/// Smallest and largest grain.
pub const MIN_GRAIN: u32 = 4 << 10;
/// See [`MIN_GRAIN`].
pub const MAX_GRAIN: u32 = 1 << 20;
/// Length of one digest.
pub const DIGEST_LEN: u32 = 32;

/// Tag of `data` in bulk messages.
const TAG_DATA: u16 = 15;

numbers! {
    /// How a log was read.
    LogStatus: u8, other = Unavailable {
        /// Here is data.
        Data = 0,
        /// Nothing new came within the wait.
        Nothing = 1,
        /// There is no such log here (any more).
        NoLog = 2,
        /// The resource or its disk is not ready for this.
        Unavailable = 3,
        /// There is a log of this number and creator, but with another identity: it was made anew.
        OtherLog = 4,
    }

    /// How the device was read.
    SyncStatus: u8, other = Unavailable {
        /// Here it is.
        Data = 0,
        /// Not the primary, or its disk is not ready.
        Unavailable = 1,
        /// The disk could not be read there.
        DiskError = 2,
        /// The range lies outside of the device.
        OutOfRange = 3,
        /// The primary lost its log (emergency): a sync must begin anew.
        Restart = 4,
    }
}

structs! {
    /// Give me bytes of a log.
    struct LogRead {
        /// Of which resource.
        1 resource: Name,
        /// Number of the log.
        2 number: u32,
        /// Who wrote it.
        3 creator: Name,
        /// From which byte on.
        4 offset: u64,
        /// Not more than this.
        5 max: u32,
        /// How long to wait if there is nothing yet.
        6 wait_ms: u32,
        /// Identity of the log (first 8 bytes of its log id) that the client has the beginning of; 0: any.
        7 log_id: u64,
    } where (|m: &LogRead| {
        log_number(m.number)?;
        rule(m.wait_ms <= MAX_WAIT_MS, "wait_ms")?;
        range(m.offset, m.max, MAX_DATA).map_err(|error| match error {
            WireError::BadValue("length") => WireError::BadValue("max"),
            other => other,
        })
    })

    /// Answer to [`LogRead`].
    struct LogData<'a> {
        /// How it went.
        1 status: LogStatus,
        /// Durable end of the log, as far as the server knows now.
        2 end: u64,
        /// The log will never be longer than `end`.
        3 closed: bool,
        /// Identity of the log; 0 if unknown.
        4 log_id: u64,
        /// Where `data` begins.
        5 offset: u64,
        /// The bytes.
        15 data: &'a [u8],
    } where (|m: &LogData<'_>| {
        position(m.end, "end")?;
        rule(m.status == LogStatus::Data || m.data.is_empty(), "data")?;
        data(m.offset, m.data)?;
        // NO-OVERFLOW: `data` checked the sum.
        rule(m.data.is_empty() || m.offset.saturating_add(to_u64(m.data.len())) <= m.end, "end")
    })

    /// Give me the digests of a range of the device.
    struct SyncDigest {
        /// Of which resource.
        1 resource: Name,
        /// First byte.
        2 offset: u64,
        /// Number of bytes, up to [`MAX_DIGEST_RANGE`].
        3 length: u32,
        /// Bytes per digest, a power of two.
        4 grain: u32,
    } where (|m: &SyncDigest| {
        grain(m.grain)?;
        range(m.offset, m.length, MAX_DIGEST_RANGE)
    })

    /// Answer to [`SyncDigest`].
    struct SyncDigests<'a> {
        /// How it went.
        1 status: SyncStatus,
        /// As asked.
        2 offset: u64,
        /// As asked.
        3 length: u32,
        /// As asked.
        4 grain: u32,
        /// 32 bytes for each begun grain; see `sync`.
        15 data: &'a [u8],
    } where (|m: &SyncDigests<'_>| {
        grain(m.grain)?;
        range(m.offset, m.length, MAX_DIGEST_RANGE)?;
        let want = if m.status == SyncStatus::Data { digests_len(m.length, m.grain) } else { Some(0) };
        rule(m.data.is_empty() || want.is_some_and(|want| u64::from(want) == to_u64(m.data.len())), "data")
    })

    /// Give me a range of the device.
    struct SyncRead {
        /// Of which resource.
        1 resource: Name,
        /// First byte.
        2 offset: u64,
        /// Number of bytes, up to [`MAX_DATA`].
        3 length: u32,
    } where (|m: &SyncRead| range(m.offset, m.length, MAX_DATA))

    /// Answer to [`SyncRead`].
    struct SyncData<'a> {
        /// How it went.
        1 status: SyncStatus,
        /// As asked.
        2 offset: u64,
        /// The bytes: all that was asked for.
        15 data: &'a [u8],
    } where (|m: &SyncData<'_>| {
        rule(m.status == SyncStatus::Data || m.data.is_empty(), "data")?;
        data(m.offset, m.data)
    })

    /// Which position has the primary now? What was read before is contained in the log up to there.
    struct SyncEnd {
        /// Of which resource.
        1 resource: Name,
    }

    /// Answer to [`SyncEnd`]. Asked before the first read it says where replay has to begin; asked after the last one it
    /// says which position replay must reach before the replica is consistent.
    struct SyncPos {
        /// How it went; the rest only counts for [`SyncStatus::Data`].
        1 status: SyncStatus,
        /// Log that is written now.
        2 number: u32,
        /// Who writes it.
        3 creator: Option<Name>,
        /// Its durable end.
        4 pos: u64,
        /// Size of the device in bytes.
        5 size: u64,
    } where (|m: &SyncPos| {
        rule(m.status != SyncStatus::Data || m.creator.is_some(), "creator")?;
        log_number(m.number)?;
        position(m.size, "size")?;
        position(m.pos, "pos")?;
        rule(m.pos <= MAX_POSITION, "pos")
    })

    /// Which parts of the device were written without a log, or with logs that are gone, before this log began?
    struct DirtyRead {
        /// Of which resource.
        1 resource: Name,
        /// Number of the log that the replica can't get to.
        2 number: u32,
        /// Who writes it.
        3 creator: Name,
        /// Which piece of the map.
        4 piece: u32,
        /// Number of the log in which the replica stands; 0: it stands right before the log, and nothing was logged there.
        5 since: u32,
    } where (|m: &DirtyRead| {
        log_number(m.number)?;
        rule(m.piece < MAX_PIECES, "piece")
    })

    /// Answer to [`DirtyRead`]. [`SyncStatus::Restart`]: there is no such map, compare everything.
    struct DirtyPiece<'a> {
        /// How it went; the rest only counts for [`SyncStatus::Data`].
        1 status: SyncStatus,
        /// As asked.
        2 piece: u32,
        /// Bytes of the device that the map is for.
        3 size: u64,
        /// Bytes of the device for each bit.
        4 grain: u32,
        /// Changes when the map is made anew: pieces of different ones don't belong together.
        5 generation: u64,
        /// A bit for each grain, the lowest bit of a byte first: set where something was written.
        15 data: &'a [u8],
    } where (|m: &DirtyPiece<'_>| {
        rule(m.piece < MAX_PIECES, "piece")?;
        if m.status != SyncStatus::Data {
            return rule(m.data.is_empty(), "data");
        }
        let geometry = Geometry::checked(m.size, m.grain).ok_or(WireError::BadValue("grain"))?;
        rule(m.piece < geometry.pieces(), "piece")?;
        rule(m.data.is_empty() || m.data.len() == PIECE, "data")
    })
}

messages! { LogRead LogData<'a> SyncDigest SyncDigests<'a> SyncRead SyncData<'a> SyncEnd SyncPos DirtyRead DirtyPiece<'a> }

macro_rules! bulk {
    ($($name:ident)*) => {$(
        impl<'a> BulkMessage<'a> for $name<'a> {
            fn encode_head(&self, len: u32, out: &mut KVec<u8>) -> Result<(), WireError> {
                rule(self.data.is_empty() && len <= MAX_DATA, "data")?;
                bulk_head(self, TAG_DATA, len, out)
            }
        }
    )*};
}

bulk!(LogData SyncDigests SyncData DirtyPiece);

fn log_number(number: u32) -> Result<(), WireError> {
    rule(number <= MAX_LOG_NUMBER, "number")
}

fn grain(grain: u32) -> Result<(), WireError> {
    rule(
        grain.is_power_of_two() && (MIN_GRAIN..=MAX_GRAIN).contains(&grain),
        "grain",
    )
}

/// Length of all digests of a range; [`None`] if the grain is 0.
pub fn digests_len(length: u32, grain: u32) -> Option<u32> {
    let grains = length
        .checked_add(grain.checked_sub(1)?)?
        .checked_div(grain)?;
    grains.checked_mul(DIGEST_LEN)
}

// What is read is made of whole sectors.
const _: () = assert!(is_aligned(4 << 10, SECTOR));
