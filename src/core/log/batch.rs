// SPDX-License-Identifier: GPL-2.0-or-later

//! Writing a batch into a buffer of the caller.

use super::{
    entries_end,
    meta_size,
    record::{
        self,
        RawRecord, //
    },
    LogContext,
    LogError,
    RecordHead,
    BATCH_HEADER_SIZE,
    MAX_BATCH,
    RECORD_SIZE, //
};
use crate::{
    digest::{
        crc,
        Digest, //
    },
    num,
};
use zerocopy::{
    little_endian::{
        U16,
        U32,
        U64, //
    },
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// The first bytes of a batch.
pub const MAGIC: [u8; 4] = *b"MBT2";
/// Version of the layout of batches.
pub const VERSION: u8 = 1;
/// Flags that a reader must know. None so far; bits 0 to 3 may be ignored.
pub const FLAGS_INCOMPAT: u8 = 0xf0;
/// Where the checksum of header and entries stands.
pub(crate) const META_CRC_AT: usize = 56;

/// The header of a batch as it is on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawBatch {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u8,
    pub(crate) flags: u8,
    pub(crate) header_len: U16,
    pub(crate) log_id: [u8; 8],
    pub(crate) seq: U64,
    pub(crate) pos: U64,
    pub(crate) total_len: U32,
    pub(crate) used_len: U32,
    pub(crate) record_count: U32,
    pub(crate) chain: U32,
    pub(crate) stamp: U64,
    pub(crate) meta_crc: U32,
    pub(crate) reserved: U32,
}

const _: () = assert!(core::mem::size_of::<RawBatch>() == BATCH_HEADER_SIZE);
const _: () = assert!(core::mem::offset_of!(RawBatch, meta_crc) == META_CRC_AT);

/// The checksum of a batch's header and entries; the field itself counts as zero.
pub(crate) fn meta_crc<D: Digest>(meta: &[u8]) -> Option<u32> {
    let before = meta.get(..META_CRC_AT)?;
    let after = meta.get(META_CRC_AT.checked_add(4)?..)?;
    Some(crc::<D>(&[before, &[0; 4], after]))
}

/// Bytes that a batch with `count` records and `payload` bytes of payload takes in the log;
/// `None` if such a batch is not allowed.
pub fn batch_size(count: u32, payload: u64, align: u32) -> Option<u32> {
    let used = num::to_u64(meta_size(count)?).checked_add(payload)?;
    let total = num::align_up(u32::try_from(used).ok()?, align)?;
    (total <= MAX_BATCH).then_some(total)
}

/// What a finished batch takes in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finished {
    /// Bytes, with padding.
    pub total_len: u32,
    /// Its checksum; the next batch names it as `chain`.
    pub meta_crc: u32,
}

/// Fills a buffer with one batch: announce the number of records, push them, finish.
#[derive(Debug)]
pub struct BatchWriter<'a> {
    buf: &'a mut [u8],
    ctx: LogContext,
    seq: u64,
    pos: u64,
    chain: u32,
    stamp: u64,
    count: u32,
    pushed: u32,
    /// Where the next payload goes.
    at: usize,
}

impl<'a> BatchWriter<'a> {
    /// Starts batch number `seq` at position `pos`, which follows the batch with the checksum `chain`.
    pub fn new(
        buf: &'a mut [u8],
        ctx: &LogContext,
        seq: u64,
        pos: u64,
        chain: u32,
        stamp: u64,
        count: u32,
    ) -> Result<Self, LogError> {
        if !ctx.is_valid() {
            return Err(LogError::BadAlign);
        }
        if !num::is_aligned(pos, u64::from(ctx.align)) {
            return Err(LogError::BadPos);
        }
        let at = meta_size(count).ok_or(LogError::BadCount)?;
        if buf.len() < at {
            return Err(LogError::TooShort);
        }
        Ok(Self {
            buf,
            ctx: *ctx,
            seq,
            pos,
            chain,
            stamp,
            count,
            pushed: 0,
            at,
        })
    }

    /// Adds a record. `payload` is exactly what `head.payload_crc` was computed from.
    pub fn push(&mut self, head: &RecordHead, payload: &[u8]) -> Result<(), LogError> {
        if self.pushed >= self.count {
            return Err(LogError::BadCount);
        }
        let payload_len = u32::try_from(payload.len()).map_err(|_| LogError::BadRecord)?;
        if !record::is_valid(head.kind, head.offset, head.length, payload_len) {
            return Err(LogError::BadRecord);
        }
        let end = self
            .at
            .checked_add(payload.len())
            .filter(|&end| end <= num::to_usize(MAX_BATCH))
            .ok_or(LogError::BadPos)?;
        let raw = RawRecord {
            kind: head.kind.code(),
            flags: 0,
            volume: 0.into(),
            length: head.length.into(),
            offset: head.offset.into(),
            stamp: head.stamp.into(),
            payload_len: payload_len.into(),
            payload_crc: head.payload_crc.into(),
            reserved: 0.into(),
        };
        // NO-OVERFLOW: `meta_size()` computed more than this.
        let start = num::to_usize(self.pushed)
            .saturating_mul(RECORD_SIZE)
            .saturating_add(BATCH_HEADER_SIZE);
        self.buf
            .get_mut(self.at..end)
            .ok_or(LogError::TooShort)?
            .copy_from_slice(payload);
        raw.write_to_prefix(self.buf.get_mut(start..).ok_or(LogError::TooShort)?)
            .map_err(|_| LogError::TooShort)?;
        self.at = end;
        self.pushed = self.pushed.saturating_add(1);
        Ok(())
    }

    /// Writes padding and header. Only now the buffer holds a batch.
    pub fn finish<D: Digest>(self) -> Result<Finished, LogError> {
        if self.pushed != self.count {
            return Err(LogError::BadCount);
        }
        let used = u32::try_from(self.at).map_err(|_| LogError::BadPos)?;
        let total = num::align_up(used, self.ctx.align)
            .filter(|&total| total <= MAX_BATCH)
            .ok_or(LogError::BadPos)?;
        self.buf
            .get_mut(self.at..num::to_usize(total))
            .ok_or(LogError::TooShort)?
            .fill(0);
        let mut raw = RawBatch {
            magic: MAGIC,
            version: VERSION,
            flags: 0,
            header_len: 0.into(),
            log_id: self.ctx.short_id(),
            seq: self.seq.into(),
            pos: self.pos.into(),
            total_len: total.into(),
            used_len: used.into(),
            record_count: self.count.into(),
            chain: self.chain.into(),
            stamp: self.stamp.into(),
            meta_crc: 0.into(),
            reserved: 0.into(),
        };
        raw.header_len = u16::try_from(BATCH_HEADER_SIZE)
            .map_err(|_| LogError::BadPos)?
            .into();
        raw.write_to_prefix(self.buf)
            .map_err(|_| LogError::TooShort)?;
        let meta = meta_size(self.count).ok_or(LogError::BadCount)?;
        let entries = entries_end(BATCH_HEADER_SIZE, self.count).ok_or(LogError::BadCount)?;
        self.buf
            .get_mut(entries..meta)
            .ok_or(LogError::TooShort)?
            .fill(0);
        let sum = meta_crc::<D>(self.buf.get(..meta).ok_or(LogError::TooShort)?)
            .ok_or(LogError::TooShort)?;
        raw.meta_crc = sum.into();
        raw.write_to_prefix(self.buf)
            .map_err(|_| LogError::TooShort)?;
        Ok(Finished {
            total_len: total,
            meta_crc: sum,
        })
    }
}
