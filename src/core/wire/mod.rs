// SPDX-License-Identifier: GPL-2.0-or-later

//! The network protocol, version 2: bytes in, checked values out, and back. Documentation/protocol.md has it to the byte.
//!
//! * [`frame`]: the header of each message, checksums, limits.
//! * [`schema`]: self-describing fields. A new field is skipped by an old peer, a missing one takes its default.
//! * [`message`]: what can be said.
//! * [`auth`]: who may speak: mutual proof of the cluster key.
//! * [`session`]: after the handshake: which message is allowed, sealing and opening of frames.
//!
//! Nothing here knows a socket, a clock or a random generator. Everything that comes from the network is checked here
//! before anyone else sees it (P6), except what needs knowledge of the tree: paths are checked by `tree::path`.

use core::fmt;

use kernel::alloc::AllocError;

pub mod auth;
pub mod frame;
pub mod message;
pub mod schema;
pub mod session;

/// Lowest and highest version of the protocol that this code speaks.
pub const PROTO_MIN: u16 = 2;
/// See [`PROTO_MIN`].
pub const PROTO_MAX: u16 = 2;

/// Port of the metadata service unless configured; the purposes of a connection use this, +1 and +2.
pub const DEFAULT_PORT: u16 = 7777;

/// All positions and lengths on devices and in logs are multiples of this.
pub const SECTOR: u64 = 512;

/// What is wrong with bytes from the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// Fewer bytes than announced.
    Truncated,
    /// Not a frame of this protocol.
    BadMagic,
    /// The header was damaged.
    BadHeaderCrc,
    /// The payload was damaged.
    BadPayloadCrc,
    /// The payload was not made by the peer that proved its key, or not at this place of the stream.
    BadMac,
    /// The frame has flags that this version does not understand, or lacks one that was agreed.
    BadFlags,
    /// More bytes than allowed here.
    TooLong {
        /// Announced length.
        len: u32,
        /// Allowed length.
        max: u32,
    },
    /// A known field has another type.
    BadType(&'static str),
    /// A field has a value outside of its range.
    BadValue(&'static str),
    /// A field without a default is missing.
    Missing(&'static str),
    /// This kind of message is unknown.
    UnknownKind(u16),
    /// This kind of message is not allowed here.
    UnexpectedKind(u16),
    /// Out of memory.
    NoMemory,
}

impl WireError {
    /// Whether the stream can go on after the error was answered: the frame as such was good, and no memory is short.
    pub fn stream_is_intact(&self) -> bool {
        matches!(
            self,
            Self::BadType(_)
                | Self::BadValue(_)
                | Self::Missing(_)
                | Self::UnknownKind(_)
                | Self::UnexpectedKind(_)
        )
    }
}

impl From<AllocError> for WireError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("message is shorter than it says"),
            Self::BadMagic => f.write_str(
                "not a MARS protocol 2 message: check that address and port belong to a MARS of version 2 or later",
            ),
            Self::BadHeaderCrc => f.write_str("damaged message header (checksum)"),
            Self::BadPayloadCrc => f.write_str("damaged message (checksum)"),
            Self::BadMac => f.write_str(
                "message was changed, repeated or inserted on its way (authentication code): check the network path",
            ),
            Self::BadFlags => f.write_str("message has flags unknown here: update MARS on this host"),
            Self::TooLong { len, max } => write!(f, "message of {len} bytes is longer than the allowed {max}"),
            Self::BadType(name) => write!(f, "field '{name}' has an unexpected type"),
            Self::BadValue(name) => write!(f, "field '{name}' has an invalid value"),
            Self::Missing(name) => write!(f, "field '{name}' is missing"),
            Self::UnknownKind(kind) => {
                write!(f, "message kind {kind:#x} is unknown here: the sender is newer; update MARS on this host")
            }
            Self::UnexpectedKind(kind) => write!(f, "message kind {kind:#x} is not allowed on this connection"),
            Self::NoMemory => f.write_str("out of memory"),
        }
    }
}

/// Whether both are equal, in a time that does not depend on where they differ.
pub(crate) fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a
        .iter()
        .zip(b)
        .fold(0u8, |sum, (x, y)| core::hint::black_box(sum | (x ^ y)));
    core::hint::black_box(difference) == 0
}
