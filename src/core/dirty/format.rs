// SPDX-License-Identifier: GPL-2.0-or-later

//! The bytes of the map file: two copies of the header, then one block for each piece of the bits.
//!
//! Everything is written in place, in blocks of 4096 bytes, so it needs no room in a file system that is full. A write that
//! a crash has torn is found by its checksum: of the header the other copy counts, of a piece every bit counts as set.

use super::bits::{
    Geometry,
    PIECE, //
};
use crate::{
    digest::{
        crc,
        Digest, //
    },
    lamport::LamportTime,
    log::LogName,
    name::Name, //
};
use zerocopy::{
    little_endian::{
        U16,
        U32,
        U64, //
    },
    FromBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

/// Bytes of each block of the file.
pub const BLOCK: usize = 4096;
/// The first bytes of a header.
pub(super) const MAGIC: [u8; 8] = *b"MARSDRT1";
const VERSION: u16 = 1;
const PIECE_MAGIC: [u8; 4] = *b"MDP1";
/// Bytes of a block without its checksum at the end.
const CRC_AT: usize = BLOCK - 4;
/// Copies of the header.
const COPIES: u64 = 2;

/// What the log says of the disk, and what it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    /// Everything on the disk came through the log.
    None,
    /// Since the end of [`Header::base`] nothing is logged.
    Open {
        /// Everything of the log is on the disk; it must not be replayed any more.
        settled: bool,
    },
    /// The gap behind [`Header::base`] ended where the log [`Header::next`] begins.
    Closed,
}

/// Logs that were deleted although members had not replayed them: the map has what they wrote. All of number `from` and
/// above, below `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// First number.
    pub from: u32,
    /// First number behind; 0: no log was dropped.
    pub to: u32,
}

impl Dropped {
    /// None.
    pub const NONE: Self = Self { from: 0, to: 0 };

    /// Whether there are any.
    pub fn is_some(&self) -> bool {
        self.to > 0
    }
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// Counts what was written; the copy with the higher one counts.
    pub sequence: u64,
    /// Identity of the membership that the file belongs to.
    pub id: u64,
    /// Of the bits: pieces of an older generation are clean.
    pub generation: u64,
    /// Device and grain.
    pub geometry: Geometry,
    /// Everything counts as dirty.
    pub all: bool,
    /// The last gap.
    pub gap: Gap,
    /// The log before the last gap.
    pub base: LogName,
    /// Where it ends.
    pub base_end: u64,
    /// Number of the log that begins behind the last gap.
    pub next: u32,
    /// The same for the oldest gap whose bits are in this map; 0: none.
    pub first: u32,
    /// Number of the log behind the gap before the last one, if that was closed: what is older is on the disk, under newer data
    /// that no log has. 0: none.
    pub floor: u32,
    /// Of which deleted logs the bits say what they wrote.
    pub dropped: Dropped,
    /// When the last gap began.
    pub opened: LamportTime,
    /// The resource.
    pub resource: Name,
    /// The host whose disk it is.
    pub host: Name,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    gap: u8,
    flags: u8,
    grain: U32,
    sequence: U64,
    id: U64,
    generation: U64,
    size: U64,
    base_end: U64,
    opened: U64,
    base_number: U32,
    next: U32,
    first: U32,
    dropped_from: U32,
    resource: [u8; 64],
    host: [u8; 64],
    base_creator: [u8; 64],
    dropped_to: U32,
    floor: U32,
    spare: [u8; CRC_AT - 280],
    crc: U32,
}

const _: () = assert!(core::mem::size_of::<RawHeader>() == BLOCK);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPiece {
    magic: [u8; 4],
    index: U32,
    id: U64,
    generation: U64,
    spare: [u8; 36],
    bits: [u8; PIECE],
    crc: U32,
}

const _: () = assert!(core::mem::size_of::<RawPiece>() == BLOCK);

const FLAG_ALL: u8 = 1;

/// Where the copy of the header with this sequence number lies.
pub(super) fn header_at(sequence: u64) -> u64 {
    sequence
        .checked_rem(COPIES)
        .unwrap_or(0)
        .saturating_mul(BLOCK_64)
}

/// [`BLOCK`] as a position.
pub(super) const BLOCK_64: u64 = 4096;

/// Where piece `index` lies.
pub(super) fn piece_at(index: u32) -> u64 {
    COPIES.saturating_add(index.into()).saturating_mul(BLOCK_64)
}

/// Length of the whole file.
pub fn file_len(geometry: &Geometry) -> u64 {
    piece_at(geometry.pieces())
}

fn name(field: &[u8; 64]) -> Option<Name> {
    let end = field.iter().position(|&b| b == 0)?;
    Name::new(field.get(..end)?)
}

fn put(field: &mut [u8; 64], name: &Name) {
    field.fill(0);
    for (to, from) in field.iter_mut().zip(name.as_bytes()) {
        *to = *from;
    }
}

impl Header {
    /// Writes the block. `false` if `out` is too short.
    pub(super) fn encode<D: Digest>(&self, out: &mut [u8]) -> bool {
        let Ok((raw, _)) = RawHeader::mut_from_prefix(out) else {
            return false;
        };
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.gap = match self.gap {
            Gap::None => 0,
            Gap::Open { settled: false } => 1,
            Gap::Open { settled: true } => 2,
            Gap::Closed => 3,
        };
        raw.flags = if self.all { FLAG_ALL } else { 0 };
        raw.grain = self.geometry.grain.into();
        raw.sequence = self.sequence.into();
        raw.id = self.id.into();
        raw.generation = self.generation.into();
        raw.size = self.geometry.size.into();
        raw.base_end = self.base_end.into();
        raw.opened = self.opened.as_nanos().into();
        raw.base_number = self.base.number.into();
        raw.next = self.next.into();
        raw.first = self.first.into();
        raw.dropped_from = self.dropped.from.into();
        raw.dropped_to = self.dropped.to.into();
        raw.floor = self.floor.into();
        put(&mut raw.resource, &self.resource);
        put(&mut raw.host, &self.host);
        put(&mut raw.base_creator, &self.base.creator);
        raw.spare.fill(0);
        seal::<D>(out)
    }

    /// Reads and checks a block.
    pub(super) fn parse<D: Digest>(block: &[u8]) -> Option<Self> {
        let (raw, _) = RawHeader::ref_from_prefix(block).ok()?;
        if raw.magic != MAGIC || raw.version.get() != VERSION || !is_sealed::<D>(block) {
            return None;
        }
        let gap = match raw.gap {
            0 => Gap::None,
            1 => Gap::Open { settled: false },
            2 => Gap::Open { settled: true },
            3 => Gap::Closed,
            _ => return None,
        };
        Some(Self {
            sequence: raw.sequence.get(),
            id: raw.id.get(),
            generation: raw.generation.get(),
            geometry: Geometry::checked(raw.size.get(), raw.grain.get())?,
            all: raw.flags & FLAG_ALL != 0,
            gap,
            base: LogName {
                number: raw.base_number.get(),
                creator: name(&raw.base_creator)?,
            },
            base_end: raw.base_end.get(),
            next: raw.next.get(),
            first: raw.first.get(),
            floor: raw.floor.get(),
            dropped: Dropped {
                from: raw.dropped_from.get(),
                to: raw.dropped_to.get(),
            },
            opened: LamportTime::from_nanos(raw.opened.get()),
            resource: name(&raw.resource)?,
            host: name(&raw.host)?,
        })
    }
}

/// Writes the block of a piece whose bits are `bits`. `false` if a length is wrong.
pub(super) fn encode_piece<D: Digest>(
    id: u64,
    generation: u64,
    index: u32,
    bits: impl FnOnce(&mut [u8]) -> bool,
    out: &mut [u8],
) -> bool {
    let Ok((raw, _)) = RawPiece::mut_from_prefix(out) else {
        return false;
    };
    raw.magic = PIECE_MAGIC;
    raw.index = index.into();
    raw.id = id.into();
    raw.generation = generation.into();
    raw.spare.fill(0);
    bits(&mut raw.bits) && seal::<D>(out)
}

/// What the block of a piece is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece<'a> {
    /// These are its bits.
    Bits(&'a [u8]),
    /// It was last written before the map was cleared.
    Clean,
    /// Damaged, torn, or not of this file: nobody knows what was in it.
    Unknown,
}

/// Reads the block of piece `index` of the file that `header` belongs to.
pub(super) fn parse_piece<'a, D: Digest>(
    header: &Header,
    index: u32,
    block: &'a [u8],
) -> Piece<'a> {
    let Ok((raw, _)) = RawPiece::ref_from_prefix(block) else {
        return Piece::Unknown;
    };
    let good = raw.magic == PIECE_MAGIC
        && raw.index.get() == index
        && raw.id.get() == header.id
        && raw.generation.get() <= header.generation
        && is_sealed::<D>(block);
    match good {
        false => Piece::Unknown,
        true if raw.generation.get() < header.generation => Piece::Clean,
        true => Piece::Bits(&raw.bits),
    }
}

/// Puts the checksum at the end.
fn seal<D: Digest>(block: &mut [u8]) -> bool {
    let Some(sum) = block.get(..CRC_AT).map(|b| crc::<D>(&[b])) else {
        return false;
    };
    match block.get_mut(CRC_AT..BLOCK) {
        Some(at) => {
            at.copy_from_slice(&sum.to_le_bytes());
            true
        }
        None => false,
    }
}

fn is_sealed<D: Digest>(block: &[u8]) -> bool {
    let sum = block.get(..CRC_AT).map(|b| crc::<D>(&[b]).to_le_bytes());
    sum.as_ref().map(|s| &s[..]) == block.get(CRC_AT..BLOCK) && sum.is_some()
}
