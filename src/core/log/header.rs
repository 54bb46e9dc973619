// SPDX-License-Identifier: GPL-2.0-or-later

//! The header block of a log file.

use super::{
    LogContext,
    LogError,
    LogName,
    HEADER_SIZE, //
};
use crate::{
    digest::{
        crc,
        Digest, //
    },
    lamport::LamportTime,
    name::Name,
    text::Text, //
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

/// The first bytes of a log file.
pub const MAGIC: [u8; 8] = *b"MARSLOG2";
/// Format version: other major versions can't be read, other minor ones can.
pub const MAJOR: u16 = 2;
/// See [`MAJOR`].
pub const MINOR: u16 = 0;
/// The log does not go on where the one before ends: in between the device was written without a log. Who does not know
/// this must not replay it.
pub const INCOMPAT_GAP: u32 = 1;
/// Features that a reader must know.
pub const KNOWN_INCOMPAT: u32 = INCOMPAT_GAP;

/// Identity of a cluster, `<host>_<sec>.<nsec>`.
pub type Uuid = Text<96>;

/// Bytes of the header without its checksum.
const CRC_AT: usize = HEADER_SIZE - 4;

/// The header block as it is on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    major: U16,
    minor: U16,
    incompat: U32,
    compat: U32,
    align: U32,
    number: U32,
    reserved: U32,
    log_id: [u8; 16],
    uuid: [u8; 96],
    resource: [u8; 64],
    creator: [u8; 64],
    created: U64,
    spare: [u8; CRC_AT - 280],
    crc: U32,
}

const _: () = assert!(core::mem::size_of::<RawHeader>() == HEADER_SIZE);

/// What the header of a log says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogHeader {
    /// Minor version of the writer.
    pub minor: u16,
    /// Features that a reader may ignore.
    pub compat: u32,
    /// There is a gap between the log before and this one ([`INCOMPAT_GAP`]).
    pub gap: bool,
    /// Alignment of batches.
    pub align: u32,
    /// Number of the log.
    pub number: u32,
    /// Random identity of this very file.
    pub log_id: [u8; 16],
    /// The cluster.
    pub uuid: Uuid,
    /// The resource.
    pub resource: Name,
    /// The host that writes it.
    pub creator: Name,
    /// When it was started.
    pub created: LamportTime,
}

impl LogHeader {
    /// [`Self::log_id`] as the protocol has it.
    pub fn short_id(&self) -> u64 {
        self.log_id
            .first_chunk()
            .map_or(0, |b| u64::from_le_bytes(*b))
    }

    /// Whether it is that of log `name` of `resource`.
    pub fn is_of(&self, resource: &Name, name: &LogName) -> bool {
        self.resource == *resource && self.name() == *name
    }

    /// The header of a new log. A cluster name that is too long is cut.
    pub fn new(
        number: u32,
        log_id: [u8; 16],
        align: u32,
        uuid: &[u8],
        resource: &Name,
        creator: &Name,
        created: LamportTime,
    ) -> Self {
        let uuid = uuid.get(..95).unwrap_or(uuid);
        Self {
            minor: MINOR,
            compat: 0,
            gap: false,
            align,
            number,
            log_id,
            uuid: Uuid::from_bytes(uuid).unwrap_or_default(),
            resource: *resource,
            creator: *creator,
            created,
        }
    }

    /// What batches must know.
    pub fn context(&self) -> LogContext {
        LogContext {
            log_id: self.log_id,
            align: self.align,
        }
    }

    /// The name that the file should have.
    pub fn name(&self) -> LogName {
        LogName {
            number: self.number,
            creator: self.creator,
        }
    }

    /// Writes the header into the first [`HEADER_SIZE`] bytes of `buf`. Returns its checksum, which the
    /// first batch names as its predecessor.
    pub fn encode<D: Digest>(&self, buf: &mut [u8]) -> Result<u32, LogError> {
        if !self.context().is_valid() {
            return Err(LogError::BadAlign);
        }
        let (raw, _) = RawHeader::mut_from_prefix(buf).map_err(|_| LogError::TooShort)?;
        raw.magic = MAGIC;
        raw.major = MAJOR.into();
        raw.minor = self.minor.into();
        raw.incompat = if self.gap { INCOMPAT_GAP } else { 0 }.into();
        raw.compat = self.compat.into();
        raw.align = self.align.into();
        raw.number = self.number.into();
        raw.reserved = 0.into();
        raw.log_id = self.log_id;
        put_text(&mut raw.uuid, self.uuid.as_bytes());
        put_text(&mut raw.resource, self.resource.as_bytes());
        put_text(&mut raw.creator, self.creator.as_bytes());
        raw.created = self.created.as_nanos().into();
        raw.spare.fill(0);
        let sum = crc::<D>(&[buf.get(..CRC_AT).ok_or(LogError::TooShort)?]);
        buf.get_mut(CRC_AT..HEADER_SIZE)
            .ok_or(LogError::TooShort)?
            .copy_from_slice(&sum.to_le_bytes());
        Ok(sum)
    }

    /// Reads a header and returns it with its checksum, which the first batch names as its predecessor.
    pub fn parse<D: Digest>(buf: &[u8]) -> Result<(Self, u32), LogError> {
        // A file that is no log is called so, even if it is short.
        if buf.iter().zip(&MAGIC).any(|(a, b)| a != b) {
            return Err(LogError::BadMagic);
        }
        let (raw, _) = RawHeader::ref_from_prefix(buf).map_err(|_| LogError::TooShort)?;
        let sum = crc::<D>(&[buf.get(..CRC_AT).ok_or(LogError::TooShort)?]);
        if raw.major.get() != MAJOR {
            return Err(LogError::Version(raw.major.get()));
        }
        if raw.crc.get() != sum {
            return Err(LogError::BadCrc);
        }
        let unknown = raw.incompat.get() & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(LogError::Unsupported(unknown));
        }
        let name = |field| get_text(field).and_then(Name::new).ok_or(LogError::BadName);
        let header = Self {
            minor: raw.minor.get(),
            compat: raw.compat.get(),
            gap: raw.incompat.get() & INCOMPAT_GAP != 0,
            align: raw.align.get(),
            number: raw.number.get(),
            log_id: raw.log_id,
            uuid: get_text(&raw.uuid)
                .filter(|text| text.iter().all(u8::is_ascii_graphic))
                .and_then(Uuid::from_bytes)
                .ok_or(LogError::BadName)?,
            resource: name(&raw.resource)?,
            creator: name(&raw.creator)?,
            created: LamportTime::from_nanos(raw.created.get()),
        };
        if !header.context().is_valid() {
            return Err(LogError::BadAlign);
        }
        Ok((header, sum))
    }
}

/// Fills a field with a text and zeros; at least one zero remains.
fn put_text(field: &mut [u8], text: &[u8]) {
    let room = field.len().saturating_sub(1);
    for (i, byte) in field.iter_mut().enumerate() {
        *byte = match text.get(i) {
            Some(&b) if i < room => b,
            _ => 0,
        };
    }
}

/// The text of a field that ends with at least one zero and has only zeros after it.
fn get_text(field: &[u8]) -> Option<&[u8]> {
    let end = field.iter().position(|&b| b == 0)?;
    let (text, rest) = field.split_at_checked(end)?;
    rest.iter().all(|&b| b == 0).then_some(text)
}
