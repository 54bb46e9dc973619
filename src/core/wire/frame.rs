// SPDX-License-Identifier: GPL-2.0-or-later

//! Frames: header of 24 bytes, payload, and (where agreed in the handshake) an authentication code of 16 bytes.
//!
//! A receiver reads [`HEADER_LEN`] bytes, parses them with the longest payload that it is willing to take at this moment,
//! then reads [`Header::body_len`] bytes. So a peer can never make it wait for, or allocate, more than that.

use kernel::alloc::{
    flags::GFP_KERNEL,
    KVec, //
};
use zerocopy::{
    little_endian::{
        U16,
        U32, //
    },
    FromBytes,
    IntoBytes, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use super::WireError;
use crate::digest::{
    crc,
    Digest, //
};
use crate::num::to_usize;

/// First four bytes of each frame: "MRS2".
pub const MAGIC: u32 = u32::from_le_bytes(*b"MRS2");
/// Length of a header.
pub const HEADER_LEN: usize = 24;
/// Bytes of the header that its checksum covers.
const HEADER_CHECKED: usize = 20;
/// Longest bulk data (log bytes, device bytes) in one message.
pub const MAX_DATA: u32 = 1 << 20;
/// Longest payload: the longest data plus room for all other fields.
pub const MAX_PAYLOAD: u32 = MAX_DATA + (64 << 10);
/// Longest payload before the peer has proved that it knows the key.
pub const MAX_UNAUTHENTICATED: u32 = 4 << 10;
/// Longest payload of a request; only replies are longer.
pub const MAX_REQUEST: u32 = 8 << 10;
/// Length of the authentication code behind a payload.
pub const MAC_LEN: usize = 16;

/// Flag: an authentication code follows the payload.
pub const FLAG_MAC: u16 = 0x0100;
/// Flags that a receiver must understand; it ignores the others.
const MUST_UNDERSTAND: u16 = 0xff00;

/// The header as it is sent.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    kind: U16,
    flags: U16,
    id: U32,
    len: U32,
    payload_crc: U32,
    header_crc: U32,
}

/// A checked header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the payload is; see [`super::message::Kind`].
    pub kind: u16,
    /// See [`FLAG_MAC`].
    pub flags: u16,
    /// Chosen by who asks; a reply has the id of its request.
    pub id: u32,
    /// Length of the payload in bytes, without the authentication code.
    pub len: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

impl Header {
    /// Header of a payload that consists of `parts`.
    pub fn new<D: Digest>(kind: u16, id: u32, parts: &[&[u8]]) -> Result<Self, WireError> {
        let total = parts
            .iter()
            .try_fold(0usize, |sum, part| sum.checked_add(part.len()));
        let len = total
            .and_then(|len| u32::try_from(len).ok())
            .unwrap_or(u32::MAX);
        if len > MAX_PAYLOAD {
            return Err(WireError::TooLong {
                len,
                max: MAX_PAYLOAD,
            });
        }
        Ok(Self {
            kind,
            flags: 0,
            id,
            len,
            payload_crc: crc::<D>(parts),
        })
    }

    /// The header as bytes.
    pub fn encode<D: Digest>(&self) -> [u8; HEADER_LEN] {
        let mut raw = RawHeader {
            magic: MAGIC.into(),
            kind: self.kind.into(),
            flags: self.flags.into(),
            id: self.id.into(),
            len: self.len.into(),
            payload_crc: self.payload_crc.into(),
            header_crc: 0.into(),
        };
        raw.header_crc = header_crc::<D>(raw.as_bytes()).into();
        zerocopy::transmute!(raw)
    }

    /// Checks the first [`HEADER_LEN`] bytes of a frame. The payload may have up to `max` bytes.
    pub fn parse<D: Digest>(bytes: &[u8], max: u32) -> Result<Self, WireError> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| WireError::Truncated)?;
        if raw.magic.get() != MAGIC {
            return Err(WireError::BadMagic);
        }
        if raw.header_crc.get() != header_crc::<D>(raw.as_bytes()) {
            return Err(WireError::BadHeaderCrc);
        }
        let flags = raw.flags.get();
        if flags & MUST_UNDERSTAND & !FLAG_MAC != 0 {
            return Err(WireError::BadFlags);
        }
        let len = raw.len.get();
        let max = max.min(MAX_PAYLOAD);
        if len > max {
            return Err(WireError::TooLong { len, max });
        }
        Ok(Self {
            kind: raw.kind.get(),
            flags,
            id: raw.id.get(),
            len,
            payload_crc: raw.payload_crc.get(),
        })
    }

    /// Bytes that follow the header: payload and authentication code.
    pub fn body_len(&self) -> usize {
        // NO-OVERFLOW: `len` is at most MAX_PAYLOAD in each parsed or made header.
        to_usize(self.len).saturating_add(self.mac_len())
    }

    /// Length of the authentication code: [`MAC_LEN`] or 0.
    pub fn mac_len(&self) -> usize {
        if self.flags & FLAG_MAC != 0 {
            MAC_LEN
        } else {
            0
        }
    }

    /// Splits what follows the header in payload and authentication code and checks the checksum, not yet the code.
    pub fn split_body<'a, D: Digest>(
        &self,
        body: &'a [u8],
    ) -> Result<(&'a [u8], &'a [u8]), WireError> {
        if body.len() != self.body_len() {
            return Err(WireError::Truncated);
        }
        let (payload, mac) = body
            .split_at_checked(to_usize(self.len))
            .ok_or(WireError::Truncated)?;
        if crc::<D>(&[payload]) != self.payload_crc {
            return Err(WireError::BadPayloadCrc);
        }
        Ok((payload, mac))
    }
}

/// Reserves room for a header at the end of `out`; [`finish`] fills it. Returns where the frame begins.
pub fn begin(out: &mut KVec<u8>) -> Result<usize, WireError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN], GFP_KERNEL)?;
    Ok(start)
}

/// Writes the header of the frame that begins at `start` of `out`; the payload is all that follows it.
pub fn finish<D: Digest>(
    out: &mut [u8],
    start: usize,
    kind: u16,
    id: u32,
) -> Result<(), WireError> {
    let whole = out.get_mut(start..).ok_or(WireError::Truncated)?;
    let (room, payload) = whole.split_first_chunk_mut().ok_or(WireError::Truncated)?;
    *room = Header::new::<D>(kind, id, &[payload])?.encode::<D>();
    Ok(())
}

fn header_crc<D: Digest>(header: &[u8]) -> u32 {
    crc::<D>(&[header.get(..HEADER_CHECKED).unwrap_or_default()])
}
