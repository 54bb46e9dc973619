// SPDX-License-Identifier: GPL-2.0-or-later

//! A connection after its handshake: which messages are allowed in which direction, sealing and opening of frames.
//!
//! The two directions are independent values, so that two threads may use one connection. Frames must be sent in the
//! order in which they were sealed, and opened in the order in which they came: the authentication code counts them.

use core::fmt;

use kernel::alloc::KVec;

use super::auth::Peer;
use super::frame::{
    self,
    Header,
    FLAG_MAC,
    HEADER_LEN,
    MAC_LEN,
    MAX_PAYLOAD,
    MAX_REQUEST, //
};
use super::message::handshake::{
    Purpose,
    Welcome, //
};
use super::message::{
    BulkMessage,
    Kind,
    Message, //
};
use super::{
    equal_in_constant_time,
    WireError, //
};
use crate::digest::Digest;

/// Which side we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Connected, and sends requests.
    Client,
    /// Was connected to, and sends replies.
    Server,
}

/// The requests that a client may send.
pub fn is_request_of(purpose: Purpose, kind: Kind) -> bool {
    match purpose {
        Purpose::Meta => matches!(
            kind,
            Kind::GetTree | Kind::Notify | Kind::PutLink | Kind::Ping | Kind::Reach
        ),
        Purpose::Join => matches!(kind, Kind::GetTree | Kind::Join | Kind::Ping | Kind::Reach),
        Purpose::Log => matches!(kind, Kind::LogRead),
        Purpose::Sync => matches!(
            kind,
            Kind::SyncDigest | Kind::SyncRead | Kind::SyncEnd | Kind::DirtyRead
        ),
    }
}

/// What answers a request, if it was not refused; [`None`] if it is no request, or has no reply.
pub fn reply_to(request: Kind) -> Option<Kind> {
    Some(match request {
        Kind::GetTree | Kind::Join => Kind::Tree,
        Kind::PutLink => Kind::Done,
        Kind::Ping => Kind::Pong,
        Kind::Reach => Kind::Reached,
        Kind::LogRead => Kind::LogData,
        Kind::SyncDigest => Kind::SyncDigests,
        Kind::SyncRead => Kind::SyncData,
        Kind::SyncEnd => Kind::SyncPos,
        Kind::DirtyRead => Kind::DirtyPiece,
        _ => return None,
    })
}

/// What a server may send. It answers each request by its reply or by [`Kind::Error`].
fn is_reply_of(purpose: Purpose, kind: Kind) -> bool {
    kind == Kind::Error
        || Kind::ALL
            .iter()
            .any(|request| is_request_of(purpose, *request) && reply_to(*request) == Some(kind))
}

fn is_allowed(sender: Role, purpose: Purpose, kind: Kind) -> bool {
    match sender {
        Role::Client => is_request_of(purpose, kind),
        Role::Server => is_reply_of(purpose, kind),
    }
}

/// A connection that is ready for requests.
#[derive(Debug)]
pub struct Session {
    /// Who is at the other end: proved.
    pub peer: Peer,
    /// What the connection is for.
    pub purpose: Purpose,
    /// Version of the protocol.
    pub proto: u16,
    /// Features in use.
    pub features: u64,
    /// Seals what is sent.
    pub tx: Sender,
    /// Opens what is received.
    pub rx: Receiver,
}

impl Session {
    /// `keys`: of frames to the server, of frames to the client.
    pub(super) fn new(
        role: Role,
        purpose: Purpose,
        peer: Peer,
        proto: u16,
        features: u64,
        keys: Option<([u8; 32], [u8; 32])>,
    ) -> Self {
        let (to_server, to_client) = keys.map_or((None, None), |(s, c)| {
            (Some(FrameMac::new(s)), Some(FrameMac::new(c)))
        });
        let (tx, rx, sender, max) = match role {
            Role::Client => (to_server, to_client, Role::Server, MAX_PAYLOAD),
            Role::Server => (to_client, to_server, Role::Client, MAX_REQUEST),
        };
        Self {
            peer,
            purpose,
            proto,
            features,
            tx: Sender {
                role,
                purpose,
                mac: tx,
            },
            rx: Receiver {
                sender,
                purpose,
                mac: rx,
                max,
            },
        }
    }
}

/// Makes the authentication codes of one direction.
struct FrameMac {
    key: [u8; 32],
    /// Number of frames so far.
    count: u64,
}

impl FrameMac {
    fn new(key: [u8; 32]) -> Self {
        Self { key, count: 0 }
    }

    /// The code of the next frame; `payload` comes in two parts.
    fn next<D: Digest>(
        &mut self,
        header: &[u8; HEADER_LEN],
        payload: [&[u8]; 2],
    ) -> Result<[u8; MAC_LEN], WireError> {
        let [head, data] = payload;
        let full = D::hmac_sha256(&self.key, &[&self.count.to_le_bytes(), header, head, data]);
        self.count = self.count.checked_add(1).ok_or(WireError::BadMac)?;
        full.first_chunk().copied().ok_or(WireError::BadMac)
    }
}

impl Drop for FrameMac {
    fn drop(&mut self) {
        self.key.fill(0);
        core::hint::black_box(&self.key);
    }
}

impl fmt::Debug for FrameMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameMac")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// What follows the data of a bulk message: an authentication code, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tail(Option<[u8; MAC_LEN]>);

impl Tail {
    /// The bytes to be sent.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |mac| mac)
    }
}

/// Seals frames.
#[derive(Debug)]
pub struct Sender {
    role: Role,
    purpose: Purpose,
    mac: Option<FrameMac>,
}

impl Sender {
    /// Appends a whole frame to `out`. After an error `out` is as before.
    pub fn message<'a, D: Digest, M: Message<'a>>(
        &mut self,
        id: u32,
        message: &M,
        out: &mut KVec<u8>,
    ) -> Result<(), WireError> {
        self.payload::<D>(M::KIND, id, out, |out| message.encode(out))
    }

    /// Appends a whole frame, whose payload `write` appends (for [`super::message::meta::TreeWriter`]).
    pub fn payload<D: Digest>(
        &mut self,
        kind: Kind,
        id: u32,
        out: &mut KVec<u8>,
        write: impl FnOnce(&mut KVec<u8>) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        self.check(kind)?;
        self.seal::<D>(kind, id, out, write, &[]).map(|_| ())
    }

    /// Appends the beginning of a frame whose `data` the caller sends from where it lies, after `out`, followed by the
    /// returned tail.
    pub fn bulk<'a, D: Digest, M: BulkMessage<'a>>(
        &mut self,
        id: u32,
        message: &M,
        data: &[u8],
        out: &mut KVec<u8>,
    ) -> Result<Tail, WireError> {
        self.check(M::KIND)?;
        let len = u32::try_from(data.len()).map_err(|_| WireError::BadValue("data"))?;
        let start = out.len();
        let sealed = self.seal::<D>(M::KIND, id, out, |out| message.encode_head(len, out), data)?;
        if sealed.0.is_some() {
            // The code belongs behind the data.
            out.truncate(out.len().saturating_sub(MAC_LEN).max(start));
        }
        Ok(sealed)
    }

    /// The last frame of the handshake.
    pub(super) fn welcome<D: Digest>(
        &mut self,
        welcome: &Welcome,
        out: &mut KVec<u8>,
    ) -> Result<(), WireError> {
        self.seal::<D>(Kind::Welcome, 0, out, |out| welcome.encode(out), &[])
            .map(|_| ())
    }

    fn check(&self, kind: Kind) -> Result<(), WireError> {
        if is_allowed(self.role, self.purpose, kind) {
            Ok(())
        } else {
            Err(WireError::UnexpectedKind(kind.number()))
        }
    }

    /// Appends header, what `write` appends, and the authentication code, which also covers `data`.
    fn seal<D: Digest>(
        &mut self,
        kind: Kind,
        id: u32,
        out: &mut KVec<u8>,
        write: impl FnOnce(&mut KVec<u8>) -> Result<(), WireError>,
        data: &[u8],
    ) -> Result<Tail, WireError> {
        let start = frame::begin(out)?;
        let result = write(out).and_then(|()| self.seal_written::<D>(kind, id, out, start, data));
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn seal_written<D: Digest>(
        &mut self,
        kind: Kind,
        id: u32,
        out: &mut KVec<u8>,
        start: usize,
        data: &[u8],
    ) -> Result<Tail, WireError> {
        // Room for the code first: nothing may fail after it was counted.
        let end = out.len();
        if self.mac.is_some() {
            out.extend_from_slice(&[0; MAC_LEN], kernel::alloc::flags::GFP_KERNEL)?;
        }
        let whole = out.get_mut(start..).ok_or(WireError::Truncated)?;
        let (header_room, rest) = whole
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(WireError::Truncated)?;
        let payload_len = end.saturating_sub(start).saturating_sub(HEADER_LEN);
        let (payload, mac_room) = rest
            .split_at_mut_checked(payload_len)
            .ok_or(WireError::Truncated)?;
        let mut header = Header::new::<D>(kind.number(), id, &[payload, data])?;
        let Some(mac) = &mut self.mac else {
            *header_room = header.encode::<D>();
            return Ok(Tail(None));
        };
        header.flags |= FLAG_MAC;
        *header_room = header.encode::<D>();
        let code = mac.next::<D>(header_room, [payload, data])?;
        mac_room.copy_from_slice(&code);
        Ok(Tail(Some(code)))
    }
}

/// Opens frames.
#[derive(Debug)]
pub struct Receiver {
    sender: Role,
    purpose: Purpose,
    mac: Option<FrameMac>,
    max: u32,
}

impl Receiver {
    /// Checks the [`HEADER_LEN`] bytes of a header. Read [`Header::body_len`] bytes then.
    ///
    /// After any error where comes what can't be known: close.
    pub fn header<D: Digest>(&self, bytes: &[u8]) -> Result<Header, WireError> {
        let header = Header::parse::<D>(bytes, self.max)?;
        if (header.flags & FLAG_MAC != 0) != self.mac.is_some() {
            return Err(WireError::BadFlags);
        }
        Ok(header)
    }

    /// Checks what followed the header, and that this kind of message is allowed here. Returns kind and payload.
    ///
    /// After an error of which [`WireError::stream_is_intact`], answer it and go on, else answer and close.
    pub fn open<'b, D: Digest>(
        &mut self,
        header: &Header,
        body: &'b [u8],
    ) -> Result<(Kind, &'b [u8]), WireError> {
        let payload = self.authentic::<D>(header, body)?;
        let kind = Kind::from_number(header.kind).ok_or(WireError::UnknownKind(header.kind))?;
        if !is_allowed(self.sender, self.purpose, kind) {
            return Err(WireError::UnexpectedKind(header.kind));
        }
        Ok((kind, payload))
    }

    /// The last frame of the handshake.
    pub(super) fn open_welcome<'b, D: Digest>(
        &mut self,
        header: &Header,
        body: &'b [u8],
    ) -> Result<&'b [u8], WireError> {
        if (header.flags & FLAG_MAC != 0) != self.mac.is_some() {
            return Err(WireError::BadFlags);
        }
        let payload = self.authentic::<D>(header, body)?;
        if header.kind != Kind::Welcome.number() {
            return Err(WireError::UnexpectedKind(header.kind));
        }
        Ok(payload)
    }

    fn authentic<'b, D: Digest>(
        &mut self,
        header: &Header,
        body: &'b [u8],
    ) -> Result<&'b [u8], WireError> {
        let (payload, code) = header.split_body::<D>(body)?;
        if let Some(mac) = &mut self.mac {
            let want = mac.next::<D>(&header.encode::<D>(), [payload, &[]])?;
            if !equal_in_constant_time(&want, code) {
                return Err(WireError::BadMac);
            }
        }
        Ok(payload)
    }
}
