// SPDX-License-Identifier: GPL-2.0-or-later

//! Self-describing fields: the payload of each message is a sequence of `tag u16, type u16, length u32, bytes`.
//!
//! * A reader skips tags that it does not know, whatever their type: new senders may add fields.
//! * A missing field takes its default: old senders may lack fields. Few fields have none and must be there.
//! * Of fields with the same tag the first one counts.
//! * All integers are sent with 64 bits, so that a field may become wider without a new message.
//! * Lists are one field that contains elements, again fields.
//!
//! Reading borrows from the payload and allocates nothing.

use core::str;

use kernel::alloc::{
    flags::GFP_KERNEL,
    KVec, //
};

use super::WireError;
use crate::lamport::LamportTime;
use crate::name::Name;
use crate::num::to_usize;

/// Length of what stands before the bytes of a field.
pub const FIELD_HEAD: usize = 8;

/// Types of fields.
pub mod types {
    /// Unsigned integer, 8 bytes. A truth value is 0 or 1.
    pub const UINT: u16 = 1;
    /// Text in UTF-8 without control characters: it may be printed to a terminal or a kernel log.
    pub const TEXT: u16 = 2;
    /// Bytes.
    pub const BYTES: u16 = 3;
    /// Fields.
    pub const STRUCT: u16 = 4;
    /// Elements: fields whose tag is [`super::ELEMENT`].
    pub const LIST: u16 = 5;
    /// Lamport time: seconds (8 bytes) and nanoseconds (4 bytes, less than a second).
    pub const TIME: u16 = 6;
}

/// Tag of the elements of a list.
pub const ELEMENT: u16 = 1;

/// A field as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field<'a> {
    /// Which field.
    pub tag: u16,
    /// One of [`types`], or an unknown one.
    pub ty: u16,
    /// Its value.
    pub bytes: &'a [u8],
}

impl<'a> Field<'a> {
    /// The value; `name` is for the error.
    pub fn get<T: Value<'a>>(&self, name: &'static str) -> Result<T, WireError> {
        if self.ty != T::TYPE {
            return Err(WireError::BadType(name));
        }
        T::from_bytes(self.bytes).ok_or(WireError::BadValue(name))
    }
}

/// Iterates over the fields of a payload.
///
/// # Invariants
///
/// `rest` begins at a field, or is empty.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of `payload`.
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    fn split(&self) -> Option<(Field<'a>, &'a [u8])> {
        let (tag, rest) = self.rest.split_first_chunk()?;
        let (ty, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let len = to_usize(u32::from_le_bytes(*len));
        let (bytes, rest) = rest.split_at_checked(len)?;
        Some((
            Field {
                tag: u16::from_le_bytes(*tag),
                ty: u16::from_le_bytes(*ty),
                bytes,
            },
            rest,
        ))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        // INVARIANT: What follows a whole field begins at a field; after an error the rest is empty.
        match self.split() {
            Some((field, rest)) => {
                self.rest = rest;
                Some(Ok(field))
            }
            None => {
                self.rest = &[];
                Some(Err(WireError::Truncated))
            }
        }
    }
}

/// A value that can stand in a field.
pub trait Value<'a>: Sized {
    /// Its type.
    const TYPE: u16;

    /// The value; [`None`] if it is out of range.
    fn from_bytes(bytes: &'a [u8]) -> Option<Self>;

    /// Appends the bytes of the value.
    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError>;

    /// The value of a missing field; [`None`] if it must not be missing.
    fn missing() -> Option<Self>;

    /// Whether there is anything to be sent.
    fn is_present(&self) -> bool {
        true
    }
}

macro_rules! unsigned {
    ($($ty:ty)*) => {$(
        impl Value<'_> for $ty {
            const TYPE: u16 = types::UINT;

            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                Self::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
            }

            fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
                append(out, &u64::from(*self).to_le_bytes())
            }

            fn missing() -> Option<Self> {
                Some(0)
            }
        }
    )*};
}

unsigned!(u8 u16 u32 u64);

impl Value<'_> for bool {
    const TYPE: u16 = types::UINT;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match u64::from_bytes(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        u64::from(*self).put(out)
    }

    fn missing() -> Option<Self> {
        Some(false)
    }
}

impl<'a> Value<'a> for &'a str {
    const TYPE: u16 = types::TEXT;

    fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        str::from_utf8(bytes).ok().filter(|text| is_printable(text))
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        if !is_printable(self) {
            return Err(WireError::BadValue("text"));
        }
        append(out, self.as_bytes())
    }

    fn missing() -> Option<Self> {
        Some("")
    }
}

fn is_printable(text: &str) -> bool {
    !text.contains(char::is_control)
}

impl<'a> Value<'a> for &'a [u8] {
    const TYPE: u16 = types::BYTES;

    fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        Some(bytes)
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        append(out, self)
    }

    fn missing() -> Option<Self> {
        Some(&[])
    }
}

impl<const N: usize> Value<'_> for [u8; N] {
    const TYPE: u16 = types::BYTES;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        append(out, self)
    }

    fn missing() -> Option<Self> {
        None
    }
}

impl Value<'_> for Name {
    const TYPE: u16 = types::TEXT;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::new(bytes)
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        append(out, self.as_bytes())
    }

    fn missing() -> Option<Self> {
        None
    }
}

impl Value<'_> for LamportTime {
    const TYPE: u16 = types::TIME;

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (sec, rest) = bytes.split_first_chunk()?;
        let nsec = u32::from_le_bytes(rest.try_into().ok()?);
        Self::new(u64::from_le_bytes(*sec), nsec)
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        append(out, &self.sec().to_le_bytes())?;
        append(out, &self.nsec().to_le_bytes())
    }

    fn missing() -> Option<Self> {
        Some(Self::ZERO)
    }
}

impl<'a, T: Value<'a>> Value<'a> for Option<T> {
    const TYPE: u16 = T::TYPE;

    fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        T::from_bytes(bytes).map(Some)
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        self.as_ref().map_or(Ok(()), |value| value.put(out))
    }

    fn missing() -> Option<Self> {
        Some(None)
    }

    fn is_present(&self) -> bool {
        self.is_some()
    }
}

/// A list as it was received; see [`List::iter`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct List<'a>(&'a [u8]);

impl<'a> List<'a> {
    /// The elements. A damaged element is an error of its own: the others can still be read.
    pub fn iter<T: Struct<'a>>(&self) -> impl Iterator<Item = Result<T, WireError>> + 'a {
        Fields::new(self.0).filter_map(|field| match field {
            Ok(field) if field.tag != ELEMENT => None,
            Ok(field) if field.ty != types::STRUCT => Some(Err(WireError::BadType("element"))),
            Ok(field) => Some(T::decode_fields(field.bytes)),
            Err(error) => Some(Err(error)),
        })
    }
}

impl<'a> Value<'a> for List<'a> {
    const TYPE: u16 = types::LIST;

    fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        Fields::new(bytes)
            .all(|field| field.is_ok())
            .then_some(Self(bytes))
    }

    fn put(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        append(out, self.0)
    }

    fn missing() -> Option<Self> {
        Some(Self(&[]))
    }
}

/// A group of fields; made by `message::structs!`.
pub trait Struct<'a>: Sized {
    /// Appends the fields. After an error `out` is as before.
    fn encode_fields(&self, out: &mut KVec<u8>) -> Result<(), WireError>;

    /// Reads and checks the fields.
    fn decode_fields(bytes: &'a [u8]) -> Result<Self, WireError>;
}

/// Appends one field.
pub fn put_field<'a, T: Value<'a>>(
    out: &mut KVec<u8>,
    tag: u16,
    value: &T,
) -> Result<(), WireError> {
    if !value.is_present() {
        return Ok(());
    }
    let open = begin_field(out, tag, T::TYPE)?;
    value.put(out)?;
    end_field(out, open)
}

/// A field that was begun; see [`begin_field`].
#[must_use]
#[derive(Debug)]
pub struct OpenField {
    /// Where its bytes begin.
    start: usize,
}

/// Begins a field whose bytes the caller appends before [`end_field`].
pub fn begin_field(out: &mut KVec<u8>, tag: u16, ty: u16) -> Result<OpenField, WireError> {
    put_field_head(out, tag, ty, 0)?;
    Ok(OpenField { start: out.len() })
}

/// Ends a field: its length is what was appended since it was begun.
pub fn end_field(out: &mut KVec<u8>, open: OpenField) -> Result<(), WireError> {
    let len = out
        .len()
        .checked_sub(open.start)
        .and_then(|len| u32::try_from(len).ok());
    let len = len.ok_or(WireError::TooLong {
        len: u32::MAX,
        max: super::frame::MAX_PAYLOAD,
    })?;
    // NO-OVERFLOW: the head stands before `start`.
    let at = open.start.saturating_sub(size_of::<u32>());
    let room = out.get_mut(at..open.start).ok_or(WireError::Truncated)?;
    room.copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// Appends the head of a field whose `len` bytes are sent from elsewhere.
pub fn put_field_head(out: &mut KVec<u8>, tag: u16, ty: u16, len: u32) -> Result<(), WireError> {
    append(out, &tag.to_le_bytes())?;
    append(out, &ty.to_le_bytes())?;
    append(out, &len.to_le_bytes())
}

fn append(out: &mut KVec<u8>, bytes: &[u8]) -> Result<(), WireError> {
    Ok(out.extend_from_slice(bytes, GFP_KERNEL)?)
}
