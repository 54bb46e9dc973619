// SPDX-License-Identifier: GPL-2.0-or-later

//! Reading batches. Bytes from a disk or from the network are not believed before they were checked.

use super::{
    batch::{
        self,
        meta_crc,
        RawBatch, //
    },
    entries_end,
    padded_meta,
    record::{
        self,
        RawRecord,
        RecordKind,
        RecordView, //
    },
    LogContext,
    LogHeader,
    BATCH_HEADER_SIZE,
    HEADER_SIZE,
    MAX_BATCH,
    MAX_RECORDS, //
};
use crate::{
    defect::defect,
    digest::{
        crc,
        Digest, //
    },
    num,
};
use core::fmt;
use zerocopy::FromBytes;

/// Longest header of a batch that a later minor version may have.
const MAX_BATCH_HEADER: usize = 512;

/// A position in a log from which scanning can go on.
///
/// Of a position that was noted elsewhere, number and predecessor may be unknown; then the first
/// batch is believed in this respect, and from there on they are checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanPos {
    /// Where the next batch starts.
    pub pos: u64,
    /// Its number.
    pub seq: Option<u64>,
    /// The checksum of the batch before it (or of the log's header).
    pub chain: Option<u32>,
}

impl ScanPos {
    /// The first batch of a log.
    pub fn first(header_crc: u32) -> Self {
        Self {
            pos: num::to_u64(HEADER_SIZE),
            seq: Some(1),
            chain: Some(header_crc),
        }
    }
}

/// Why there is no batch at a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// The file ends here, after a whole batch.
    Eof,
    /// Zeros: the log was not written further.
    Zeroes,
    /// The file ends within a batch.
    Truncated,
    /// No batch starts here.
    BadMagic,
    /// A batch of another log: stale bytes of a reused block.
    OtherLog,
    /// A batch that needs a newer version of MARS. It is no end of the log!
    Unsupported,
    /// A length that can't be.
    BadLength,
    /// The checksum of the batch's header and entries is wrong.
    BadCrc,
    /// A batch that belongs elsewhere in this log.
    BadPos,
    /// A batch that is not the next one by its number.
    BadSeq,
    /// A batch that follows another one than the batch before.
    BadChain,
    /// The entry of this record is invalid, though its checksum is right.
    BadRecord(u32),
    /// The payload of this record is damaged.
    BadPayload(u32),
    /// The padding is not zero.
    BadPadding,
}

impl EndReason {
    /// Whether a log may end like this without anything having gone wrong.
    pub fn is_clean(self) -> bool {
        matches!(self, Self::Eof | Self::Zeroes)
    }

    /// A word for it, for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Eof => "eof",
            Self::Zeroes => "zeroes",
            Self::Truncated => "truncated",
            Self::BadMagic => "bad-magic",
            Self::OtherLog => "other-log",
            Self::Unsupported => "unsupported",
            Self::BadLength => "bad-length",
            Self::BadCrc => "bad-crc",
            Self::BadPos => "bad-pos",
            Self::BadSeq => "bad-seq",
            Self::BadChain => "bad-chain",
            Self::BadRecord(_) => "bad-record",
            Self::BadPayload(_) => "bad-payload",
            Self::BadPadding => "bad-padding",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eof => f.write_str("end of the file"),
            Self::Zeroes => f.write_str("zeros: not written further"),
            Self::Truncated => f.write_str("the file ends within a batch"),
            Self::BadMagic => f.write_str("no batch starts here"),
            Self::OtherLog => f.write_str("bytes of another log"),
            Self::Unsupported => {
                f.write_str("a batch that needs a newer version of MARS: use that version")
            }
            Self::BadLength => f.write_str("impossible length in the batch header"),
            Self::BadCrc => f.write_str("wrong checksum of the batch header"),
            Self::BadPos => f.write_str("a batch that belongs elsewhere in this log"),
            Self::BadSeq => f.write_str("a batch out of sequence"),
            Self::BadChain => f.write_str("a batch with another predecessor"),
            Self::BadRecord(n) => write!(f, "invalid record {n} in the batch"),
            Self::BadPayload(n) => write!(f, "wrong checksum of the data of record {n}"),
            Self::BadPadding => f.write_str("padding that is not zero"),
        }
    }
}

/// What was found at a position.
#[derive(Clone, Copy, Debug)]
pub enum Scan<'a> {
    /// A whole batch; the scanner stands behind it now.
    Batch(BatchView<'a>),
    /// At least so many bytes from the scanner's position on are needed to tell.
    NeedMore(usize),
    /// No batch starts here.
    End(EndReason),
}

/// Reads batch after batch.
#[derive(Clone, Copy, Debug)]
pub struct Scanner {
    ctx: LogContext,
    at: ScanPos,
}

impl Scanner {
    /// Starts at `pos`, see [`ScanPos`] for the rest.
    pub fn new(
        ctx: LogContext,
        pos: u64,
        seq_expect: Option<u64>,
        chain_expect: Option<u32>,
    ) -> Self {
        Self::resume(
            ctx,
            ScanPos {
                pos,
                seq: seq_expect,
                chain: chain_expect,
            },
        )
    }

    /// Starts at the first batch of a log.
    pub fn first(header: &LogHeader, header_crc: u32) -> Self {
        Self::resume(header.context(), ScanPos::first(header_crc))
    }

    /// Goes on where a scanner stood.
    pub fn resume(ctx: LogContext, at: ScanPos) -> Self {
        Self { ctx, at }
    }

    /// Where the next batch is expected.
    pub fn at(&self) -> ScanPos {
        self.at
    }

    /// Position of the next batch.
    pub fn pos(&self) -> u64 {
        self.at.pos
    }

    /// Looks at `buf`, the bytes from the scanner's position on.
    ///
    /// Payloads are checked if `verify_payload`; whoever applies them without that checks
    /// [`RecordView::payload_crc`] himself.
    pub fn next<'a, D: Digest>(&mut self, buf: &'a [u8], verify_payload: bool) -> Scan<'a> {
        match self.look::<D>(buf, verify_payload) {
            Ok(view) => {
                self.at = ScanPos {
                    pos: self.at.pos.saturating_add(u64::from(view.total_len)),
                    seq: Some(view.seq.saturating_add(1)),
                    chain: Some(view.meta_crc),
                };
                Scan::Batch(view)
            }
            Err(Stop::NeedMore(min)) => Scan::NeedMore(min),
            Err(Stop::End(reason)) => Scan::End(reason),
        }
    }

    /// As [`Self::next`] when `buf` goes to the end of the file: there is nothing more to need.
    pub fn next_at_eof<'a, D: Digest>(&mut self, buf: &'a [u8], verify_payload: bool) -> Scan<'a> {
        match self.next::<D>(buf, verify_payload) {
            Scan::NeedMore(_) if buf.is_empty() => Scan::End(EndReason::Eof),
            Scan::NeedMore(_) if is_zero(buf) => Scan::End(EndReason::Zeroes),
            Scan::NeedMore(_) => Scan::End(EndReason::Truncated),
            other => other,
        }
    }

    fn look<'a, D: Digest>(
        &self,
        buf: &'a [u8],
        verify_payload: bool,
    ) -> Result<BatchView<'a>, Stop> {
        let Ok((raw, _)) = RawBatch::ref_from_prefix(buf) else {
            return Err(Stop::NeedMore(BATCH_HEADER_SIZE));
        };
        let lens = self.check_header(raw)?;
        let Some(meta) = buf.get(..lens.meta) else {
            return Err(Stop::NeedMore(lens.meta));
        };
        if meta_crc::<D>(meta) != Some(raw.meta_crc.get()) {
            return Err(EndReason::BadCrc.into());
        }
        // From here on the header is what its writer wrote, and lengths are only limited by the format.
        self.check_place(raw)?;
        if !meta.get(lens.entries..).is_some_and(is_zero) {
            return Err(EndReason::BadPadding.into());
        }
        let entries =
            <[RawRecord]>::ref_from_bytes(meta.get(lens.header..lens.entries).unwrap_or(&[]))
                .map_err(|_| EndReason::BadLength)?;
        check_entries(entries, lens)?;
        let Some(whole) = buf.get(..lens.total) else {
            return Err(Stop::NeedMore(lens.total));
        };
        let (used, padding) = whole
            .split_at_checked(lens.used)
            .ok_or(EndReason::BadLength)?;
        if !is_zero(padding) {
            return Err(EndReason::BadPadding.into());
        }
        let view = BatchView {
            pos: self.at.pos,
            seq: raw.seq.get(),
            stamp: raw.stamp.get(),
            total_len: raw.total_len.get(),
            used_len: raw.used_len.get(),
            chain: raw.chain.get(),
            meta_crc: raw.meta_crc.get(),
            bytes: used,
            entries,
            payload_at: lens.meta,
        };
        if verify_payload && !defect!("skip-payload-crc") {
            view.verify_payloads::<D>()?;
        }
        Ok(view)
    }

    /// What can be said before the checksum is known: bounds of all lengths.
    fn check_header(&self, raw: &RawBatch) -> Result<Lengths, EndReason> {
        if raw.magic != batch::MAGIC {
            let zero = is_zero(zerocopy::IntoBytes::as_bytes(raw));
            return Err(if zero {
                EndReason::Zeroes
            } else {
                EndReason::BadMagic
            });
        }
        if raw.log_id != self.ctx.short_id() {
            return Err(EndReason::OtherLog);
        }
        if raw.version != batch::VERSION {
            return Err(EndReason::Unsupported);
        }
        let header = usize::from(raw.header_len.get());
        let count = raw.record_count.get();
        let total = raw.total_len.get();
        let used = raw.used_len.get();
        let good = (BATCH_HEADER_SIZE..=MAX_BATCH_HEADER).contains(&header)
            && header.checked_rem(8) == Some(0)
            && (1..=MAX_RECORDS).contains(&count)
            && total <= MAX_BATCH
            && num::align_up(used, self.ctx.align) == Some(total);
        if !good {
            return Err(EndReason::BadLength);
        }
        let entries = entries_end(header, count).ok_or(EndReason::BadLength)?;
        let meta = padded_meta(entries)
            .filter(|&meta| meta <= num::to_usize(used))
            .ok_or(EndReason::BadLength)?;
        Ok(Lengths {
            header,
            entries,
            meta,
            used: num::to_usize(used),
            total: num::to_usize(total),
        })
    }

    /// Whether an intact header is the one that belongs here.
    fn check_place(&self, raw: &RawBatch) -> Result<(), EndReason> {
        if raw.pos.get() != self.at.pos {
            return Err(EndReason::BadPos);
        }
        if self.at.seq.is_some_and(|seq| seq != raw.seq.get()) {
            return Err(EndReason::BadSeq);
        }
        if self.at.chain.is_some_and(|chain| chain != raw.chain.get()) {
            return Err(EndReason::BadChain);
        }
        if raw.flags & batch::FLAGS_INCOMPAT != 0 {
            return Err(EndReason::Unsupported);
        }
        Ok(())
    }
}

/// Lengths of a batch within the limits of the format: `header <= entries <= meta <= used <= total`.
#[derive(Clone, Copy)]
struct Lengths {
    header: usize,
    /// End of the entries.
    entries: usize,
    /// Start of the payloads.
    meta: usize,
    used: usize,
    total: usize,
}

enum Stop {
    NeedMore(usize),
    End(EndReason),
}

impl From<EndReason> for Stop {
    fn from(reason: EndReason) -> Self {
        Self::End(reason)
    }
}

/// Each entry for itself, and that the payloads fill exactly what is used.
fn check_entries(entries: &[RawRecord], lens: Lengths) -> Result<(), EndReason> {
    let mut end = lens.meta;
    for (i, entry) in (0u32..).zip(entries) {
        let payload = entry.payload_len.get();
        match RecordKind::from_code(entry.kind) {
            _ if entry.flags & record::FLAGS_INCOMPAT != 0 => return Err(EndReason::Unsupported),
            // There is one volume in this version.
            _ if entry.volume.get() != 0 => return Err(EndReason::Unsupported),
            None if entry.flags & record::FLAG_OPTIONAL != 0 => (),
            None => return Err(EndReason::Unsupported),
            Some(kind) => {
                if !record::is_valid(kind, entry.offset.get(), entry.length.get(), payload) {
                    return Err(EndReason::BadRecord(i));
                }
            }
        }
        end = end
            .checked_add(num::to_usize(payload))
            .filter(|&end| end <= lens.used)
            .ok_or(EndReason::BadRecord(i))?;
    }
    if end == lens.used {
        Ok(())
    } else {
        Err(EndReason::BadLength)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

/// A batch that was checked.
#[derive(Clone, Copy)]
pub struct BatchView<'a> {
    /// Its position in the log.
    pub pos: u64,
    /// Its number.
    pub seq: u64,
    /// Lamport time of its writing in nanoseconds.
    pub stamp: u64,
    /// Its bytes in the log, with padding.
    pub total_len: u32,
    /// Its bytes without padding.
    pub used_len: u32,
    /// Checksum of the batch before.
    pub chain: u32,
    /// Checksum of its header and entries.
    pub meta_crc: u32,
    bytes: &'a [u8],
    entries: &'a [RawRecord],
    payload_at: usize,
}

impl<'a> BatchView<'a> {
    /// Number of entries, those that are skipped included.
    pub fn record_count(&self) -> usize {
        self.entries.len()
    }

    /// Position of the batch after this one.
    pub fn end(&self) -> u64 {
        self.pos.saturating_add(u64::from(self.total_len))
    }

    /// The records in their order. Those of kinds that are unknown here and may be ignored are skipped.
    pub fn records(&self) -> Records<'a> {
        Records {
            bytes: self.bytes,
            entries: self.entries.iter(),
            at: self.payload_at,
        }
    }

    /// Checks the payloads, of skipped records too.
    pub fn verify_payloads<D: Digest>(&self) -> Result<(), EndReason> {
        let mut at = self.payload_at;
        for (i, entry) in (0u32..).zip(self.entries) {
            let end = at
                .checked_add(num::to_usize(entry.payload_len.get()))
                .ok_or(EndReason::BadRecord(i))?;
            let payload = self.bytes.get(at..end).ok_or(EndReason::BadRecord(i))?;
            at = end;
            // The entry of a record without payload says 0, which is the checksum of nothing.
            if crc::<D>(&[payload]) != entry.payload_crc.get() {
                return Err(EndReason::BadPayload(i));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for BatchView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchView")
            .field("pos", &self.pos)
            .field("seq", &self.seq)
            .field("total_len", &self.total_len)
            .field("record_count", &self.record_count())
            .finish_non_exhaustive()
    }
}

/// The records of a batch.
#[derive(Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    entries: core::slice::Iter<'a, RawRecord>,
    at: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordView<'a>;

    fn next(&mut self) -> Option<RecordView<'a>> {
        loop {
            let entry = self.entries.next()?;
            let payload_at = self.at;
            self.at = payload_at.checked_add(num::to_usize(entry.payload_len.get()))?;
            let payload = self.bytes.get(payload_at..self.at)?;
            if let Some(kind) = RecordKind::from_code(entry.kind) {
                return Some(RecordView {
                    kind,
                    offset: entry.offset.get(),
                    length: entry.length.get(),
                    stamp: entry.stamp.get(),
                    payload,
                    payload_crc: entry.payload_crc.get(),
                    payload_at,
                });
            }
        }
    }
}
