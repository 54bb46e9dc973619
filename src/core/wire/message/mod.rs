// SPDX-License-Identifier: GPL-2.0-or-later

//! All messages. Each is a struct whose fields borrow from the received payload; what a value may be is checked when it
//! is read, and by the same rule when it is written.
//!
//! * here: kinds, errors, how messages are described
//! * [`handshake`]: who are you?
//! * [`meta`]: the tree and the clocks, port +0
//! * [`bulk`]: logs, port +1, and device contents, port +2

use core::fmt;

use kernel::alloc::KVec;

use super::schema::{
    put_field_head,
    types,
    Struct, //
};
use super::{
    frame,
    WireError,
    SECTOR, //
};
use crate::num::is_aligned;

pub mod bulk;
pub mod handshake;
pub mod meta;

/// Describes structs: tag, name and type of each field, and an optional rule for the whole.
macro_rules! structs {
    ($(
        $(#[$doc:meta])*
        struct $name:ident $(<$life:lifetime>)? {
            $( $(#[$field_doc:meta])* $tag:literal $field:ident : $ty:ty, )*
        } $(where ($rule:expr))?
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name $(<$life>)? {
            $( $(#[$field_doc])* pub $field: $ty, )*
        }

        impl $(<$life>)? $name $(<$life>)? {
            /// The rule of the whole; apart, so that it does not see the variables of `decode_fields`.
            fn check(&self) -> Result<(), $crate::wire::WireError> {
                $( $rule(self)?; )?
                Ok(())
            }

            fn put_all(&self, _out: &mut kernel::alloc::KVec<u8>) -> Result<(), $crate::wire::WireError> {
                $( $crate::wire::schema::put_field(_out, $tag, &self.$field)?; )*
                Ok(())
            }
        }

        impl<'a> $crate::wire::schema::Struct<'a> for $name $(<$life>)? {
            fn encode_fields(
                &self,
                out: &mut kernel::alloc::KVec<u8>,
            ) -> Result<(), $crate::wire::WireError> {
                let start = out.len();
                let result = self.check().and_then(|()| self.put_all(out));
                if result.is_err() {
                    out.truncate(start);
                }
                result
            }

            fn decode_fields(bytes: &'a [u8]) -> Result<Self, $crate::wire::WireError> {
                $( let mut $field: Option<$ty> = None; )*
                for field in $crate::wire::schema::Fields::new(bytes) {
                    let field = field?;
                    match field.tag {
                        $( $tag if $field.is_none() => {
                            $field = Some(field.get(stringify!($field))?);
                        } )*
                        _ => {}
                    }
                }
                let this = Self {
                    $( $field: $field
                        .or_else($crate::wire::schema::Value::missing)
                        .ok_or($crate::wire::WireError::Missing(stringify!($field)))?, )*
                };
                this.check()?;
                Ok(this)
            }
        }
    )*};
}
use structs;

/// Says which structs are whole messages: those whose kind has the same name.
macro_rules! messages {
    ($($name:ident $(<$life:lifetime>)?)*) => {$(
        impl<'a> $crate::wire::message::Message<'a> for $name $(<$life>)? {
            const KIND: $crate::wire::message::Kind = $crate::wire::message::Kind::$name;
        }
    )*};
}
use messages;

/// Describes an enumeration that is sent as a number. `other` stands for missing ones and for those of a newer sender.
macro_rules! numbers {
    ($(
        $(#[$doc:meta])*
        $name:ident: $repr:ident $(, other = $other:ident)? {
            $( $(#[$item_doc:meta])* $item:ident = $value:literal, )*
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name {
            $( $(#[$item_doc])* $item, )*
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$( Self::$item, )*];

            /// The number on the wire.
            pub const fn number(self) -> $repr {
                match self {
                    $( Self::$item => $value, )*
                }
            }

            /// What has this number.
            pub const fn from_number(number: $repr) -> Option<Self> {
                match number {
                    $( $value => Some(Self::$item), )*
                    _ => None,
                }
            }
        }

        impl $crate::wire::schema::Value<'_> for $name {
            const TYPE: u16 = $crate::wire::schema::types::UINT;

            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                let number = <$repr as $crate::wire::schema::Value<'_>>::from_bytes(bytes)?;
                Self::from_number(number) $( .or(Some(Self::$other)) )?
            }

            fn put(
                &self,
                out: &mut kernel::alloc::KVec<u8>,
            ) -> Result<(), $crate::wire::WireError> {
                self.number().put(out)
            }

            fn missing() -> Option<Self> {
                None $( .or(Some(Self::$other)) )?
            }
        }
    )*};
}
use numbers;

numbers! {
    /// What a message is. The names of requests say what is wanted; each has one kind of reply, or [`Kind::Error`].
    Kind: u16 {
        /// [`handshake::Hello`].
        Hello = 0x01,
        /// [`handshake::Challenge`].
        Challenge = 0x02,
        /// [`handshake::Response`].
        Response = 0x03,
        /// [`handshake::Welcome`].
        Welcome = 0x04,
        /// [`ErrorReply`].
        Error = 0x05,
        /// [`meta::GetTree`].
        GetTree = 0x10,
        /// [`meta::Tree`].
        Tree = 0x11,
        /// [`meta::Notify`].
        Notify = 0x12,
        /// [`meta::Join`].
        Join = 0x13,
        /// [`meta::PutLink`].
        PutLink = 0x14,
        /// [`meta::Done`].
        Done = 0x15,
        /// [`meta::Ping`].
        Ping = 0x16,
        /// [`meta::Pong`].
        Pong = 0x17,
        /// [`meta::Reach`].
        Reach = 0x18,
        /// [`meta::Reached`].
        Reached = 0x19,
        /// [`bulk::LogRead`].
        LogRead = 0x20,
        /// [`bulk::LogData`].
        LogData = 0x21,
        /// [`bulk::SyncDigest`].
        SyncDigest = 0x30,
        /// [`bulk::SyncDigests`].
        SyncDigests = 0x31,
        /// [`bulk::SyncRead`].
        SyncRead = 0x32,
        /// [`bulk::SyncData`].
        SyncData = 0x33,
        /// [`bulk::SyncEnd`].
        SyncEnd = 0x34,
        /// [`bulk::SyncPos`].
        SyncPos = 0x35,
        /// [`bulk::DirtyRead`].
        DirtyRead = 0x36,
        /// [`bulk::DirtyPiece`].
        DirtyPiece = 0x37,
    }

    /// Why a request or a connection was refused. The text that comes with it says what to do.
    ErrorCode: u16, other = Internal {
        /// Not a message of this protocol, or a damaged one.
        BadMessage = 1,
        /// No common version of the protocol, or a feature is lacking.
        Version = 2,
        /// The peer belongs to another cluster.
        WrongCluster = 3,
        /// The peer has another cluster key.
        WrongKey = 4,
        /// The peer is no member of the cluster.
        UnknownPeer = 5,
        /// Another host answers than expected, or two hosts have the same name.
        WrongHost = 6,
        /// This port does not serve that purpose.
        WrongPort = 7,
        /// This host is no member of a cluster, or has no key.
        NoCluster = 8,
        /// Not allowed on this connection or in this state.
        NotAllowed = 9,
        /// Unknown kind of message.
        Unsupported = 10,
        /// The clocks differ too much.
        Clock = 11,
        /// Too many connections or requests: try later.
        Busy = 12,
        /// Something went wrong here: memory, disk.
        Internal = 13,
        /// The peer takes too long.
        TimedOut = 14,
        /// The module is being unloaded.
        Stopping = 15,
        /// A host of this name is a member already, with another address.
        Exists = 16,
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadMessage => "bad message",
            Self::Version => "versions do not match",
            Self::WrongCluster => "other cluster",
            Self::WrongKey => "wrong cluster key",
            Self::UnknownPeer => "unknown host",
            Self::WrongHost => "wrong host",
            Self::WrongPort => "wrong port",
            Self::NoCluster => "not in a cluster",
            Self::NotAllowed => "not allowed",
            Self::Unsupported => "unknown message",
            Self::Clock => "clocks differ",
            Self::Busy => "busy",
            Self::Internal => "internal error",
            Self::TimedOut => "timed out",
            Self::Stopping => "stopping",
            Self::Exists => "exists already",
        })
    }
}

/// A payload of a known kind.
pub trait Message<'a>: Struct<'a> {
    /// What it is.
    const KIND: Kind;

    /// Appends the payload to `out`. After an error `out` is as before.
    fn encode(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        self.encode_fields(out)
    }

    /// Reads and checks a payload.
    fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        Self::decode_fields(payload)
    }
}

/// A message whose last field `data` can be sent from where it lies.
pub trait BulkMessage<'a>: Message<'a> {
    /// Appends all of the payload but the `len` bytes of data, which have to follow. `data` itself must be empty.
    fn encode_head(&self, len: u32, out: &mut KVec<u8>) -> Result<(), WireError>;
}

/// Shortest and longest error text, and other free texts.
pub const MAX_TEXT: usize = 480;

structs! {
    /// A request or a connection was refused.
    struct ErrorReply<'a> {
        /// Why.
        1 code: ErrorCode,
        /// For the administrator: what is wrong and what to do.
        2 text: &'a str,
    } where (|m: &ErrorReply<'_>| rule(m.text.len() <= MAX_TEXT, "text"))
}

impl<'a> Message<'a> for ErrorReply<'a> {
    const KIND: Kind = Kind::Error;
}

/// `name` names the field that breaks the rule.
fn rule(holds: bool, name: &'static str) -> Result<(), WireError> {
    holds.then_some(()).ok_or(WireError::BadValue(name))
}

/// Position: a multiple of the sector size.
fn position(value: u64, name: &'static str) -> Result<(), WireError> {
    rule(is_aligned(value, SECTOR), name)
}

/// Range: whole sectors, 1…`max` bytes, and its end is a number.
fn range(offset: u64, len: u32, max: u32) -> Result<(), WireError> {
    position(offset, "offset")?;
    rule(
        len > 0 && len <= max && is_aligned(len.into(), SECTOR),
        "length",
    )?;
    rule(
        offset
            .checked_add(len.into())
            .is_some_and(|end| end <= MAX_POSITION),
        "offset",
    )
}

/// Data that was read: whole sectors, not more than one message may carry, and its end is a number.
fn data(offset: u64, data: &[u8]) -> Result<(), WireError> {
    let len = u32::try_from(data.len()).map_err(|_| WireError::BadValue("data"))?;
    if len == 0 {
        return position(offset, "offset");
    }
    range(offset, len, frame::MAX_DATA).map_err(|error| match error {
        WireError::BadValue("length") => WireError::BadValue("data"),
        other => other,
    })
}

/// Positions are file offsets: the kernel's are signed.
const MAX_POSITION: u64 = u64::MAX >> 1;

/// Appends `head` (with empty data) and the head of a data field of `len` bytes.
fn bulk_head<'a, M: Message<'a>>(
    head: &M,
    data_tag: u16,
    len: u32,
    out: &mut KVec<u8>,
) -> Result<(), WireError> {
    let start = out.len();
    head.encode(out)?;
    // The last field is the empty data: put its head again, with the true length.
    let keep = out
        .len()
        .saturating_sub(super::schema::FIELD_HEAD)
        .max(start);
    out.truncate(keep);
    let result = put_field_head(out, data_tag, types::BYTES, len);
    if result.is_err() {
        out.truncate(start);
    }
    result
}
