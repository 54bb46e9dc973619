// SPDX-License-Identifier: GPL-2.0-or-later

//! Who may speak: both sides prove that they know the cluster key, without showing it.
//!
//! ```text
//! client                                     server
//!   Hello {nonce_c, who, what for}  ───────▶
//!          ◀───────  Challenge {nonce_s, who, proof_s}
//!   Response {proof_c}              ───────▶
//!          ◀───────  Welcome {}              (the first frame with an authentication code, if agreed)
//! ```
//!
//! A proof is an HMAC-SHA-256 with the cluster key over a label of the role, both random numbers and the digests of all
//! that was said before. Hence a proof is worth nothing in another session (random numbers), in the other direction
//! (labels), or after versions, features, names or the purpose were changed on the way (digests).
//!
//! Sans-I/O: [`client::ClientHandshake`] and [`server::ServerHandshake`] take frames and append what is to be sent to a
//! buffer. The random numbers are arguments; they must come from a cryptographic generator.

use core::fmt;
use core::fmt::Write;

use kernel::alloc::{
    flags::GFP_KERNEL,
    KVec, //
};

use super::frame::{
    self,
    Header, //
};
use super::message::handshake::{
    ANY_UUID,
    NONCE_LEN,
    PROOF_LEN,
    TAG_PROOF, //
};
use super::message::{
    ErrorCode,
    ErrorReply,
    Kind,
    Message,
    MAX_TEXT, //
};
use super::schema::{
    types,
    Field,
    Fields,
    FIELD_HEAD, //
};
use super::{
    equal_in_constant_time,
    WireError, //
};
use crate::digest::Digest;
use crate::name::Name;

pub mod client;
pub mod key;
pub mod server;

pub use client::{
    ClientHandshake,
    ClientStep, //
};
pub use key::{
    ClusterKey,
    KeyError, //
};
pub use server::{
    ServerHandshake,
    ServerStep, //
};

/// A random number of one side.
pub type Nonce = [u8; NONCE_LEN];
/// Proof that the key is known.
type Proof = [u8; PROOF_LEN];

/// Who this side is.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Name of this host.
    pub host: Name,
    /// Its cluster, or [`ANY_UUID`] while it joins one.
    pub uuid: &'a str,
    /// Key of the cluster.
    pub key: &'a ClusterKey,
    /// Version of the software, for the administrator of the peer.
    pub version: &'a str,
    /// Features that may be used on this connection.
    pub features: u64,
    /// Features without which this side does not talk.
    pub required: u64,
}

impl Identity<'_> {
    fn knows_cluster(&self) -> bool {
        self.uuid != ANY_UUID
    }
}

/// The other side, after it has proved that it knows the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its name.
    pub host: Name,
    /// It belongs to no cluster yet.
    pub joins: bool,
}

/// Why a connection, or a request, came to nothing; with a text that says what to do.
#[derive(Debug)]
pub struct Refusal {
    /// The kind of reason.
    pub code: ErrorCode,
    /// It was the peer that refused.
    pub by_peer: bool,
    text: KVec<u8>,
}

impl Refusal {
    /// Refuses. If there is no memory for the text, the code has to do.
    pub fn new(code: ErrorCode, text: fmt::Arguments<'_>) -> Self {
        let mut buffer = Text(KVec::new());
        let _ = buffer.write_fmt(text);
        Self {
            code,
            by_peer: false,
            text: buffer.0,
        }
    }

    /// The peer refused by an [`ErrorReply`].
    pub fn from_peer(reply: &ErrorReply<'_>) -> Self {
        Self {
            by_peer: true,
            ..Self::new(reply.code, format_args!("{}", reply.text))
        }
    }

    /// The text, without the code.
    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.text).unwrap_or("")
    }

    /// As a message for the peer.
    pub fn reply(&self) -> ErrorReply<'_> {
        ErrorReply {
            code: self.code,
            text: self.text(),
        }
    }

    /// Appends the frame for the peer. Only where no authentication codes are agreed yet; later: `Sender::message`.
    pub fn encode<D: Digest>(&self, out: &mut KVec<u8>) -> Result<(), WireError> {
        plain_frame::<D>(out, Kind::Error, |out| self.reply().encode(out))
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        let code = match error {
            WireError::UnknownKind(_) => ErrorCode::Unsupported,
            WireError::UnexpectedKind(_) => ErrorCode::NotAllowed,
            WireError::NoMemory => ErrorCode::Internal,
            _ => ErrorCode::BadMessage,
        };
        Self::new(code, format_args!("{error}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.by_peer {
            "refused by the peer: "
        } else {
            ""
        };
        match self.text() {
            "" => write!(f, "{by}{}", self.code),
            text => write!(f, "{by}{text}"),
        }
    }
}

/// Collects a text up to the limit of a message.
struct Text(KVec<u8>);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        // Texts of messages have no control characters.
        let c = if c.is_control() { '?' } else { c };
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).as_bytes();
        if self.0.len().saturating_add(bytes.len()) > MAX_TEXT {
            return Err(fmt::Error);
        }
        self.0
            .extend_from_slice(bytes, GFP_KERNEL)
            .map_err(|_| fmt::Error)
    }
}

/// Labels keep the uses of the key apart. All have the same length, so none begins another.
mod label {
    pub(super) const SERVER: &[u8; 16] = b"mars2 server    ";
    pub(super) const CLIENT: &[u8; 16] = b"mars2 client    ";
    pub(super) const TO_SERVER: &[u8; 16] = b"mars2 key c to s";
    pub(super) const TO_CLIENT: &[u8; 16] = b"mars2 key s to c";
}

/// What both sides have said; everything has a fixed length, so nothing can be shifted from one part to another.
struct Transcript {
    nonce_c: Nonce,
    nonce_s: Nonce,
    /// SHA-256 of the payload of Hello.
    hello: [u8; 32],
}

impl Transcript {
    fn server_proof<D: Digest>(&self, key: &ClusterKey, challenge_before: &[u8]) -> Proof {
        let challenge = D::sha256(&[challenge_before]);
        D::hmac_sha256(
            key.bytes(),
            &[
                label::SERVER,
                &self.nonce_c,
                &self.nonce_s,
                &self.hello,
                &challenge,
            ],
        )
    }

    fn client_proof<D: Digest>(
        &self,
        key: &ClusterKey,
        challenge: &[u8; 32],
        response_before: &[u8],
    ) -> Proof {
        let response = D::sha256(&[response_before]);
        D::hmac_sha256(
            key.bytes(),
            &[
                label::CLIENT,
                &self.nonce_s,
                &self.nonce_c,
                &self.hello,
                challenge,
                &response,
            ],
        )
    }

    /// The keys of the session: of frames to the server, of frames to the client.
    fn session_keys<D: Digest>(
        &self,
        key: &ClusterKey,
        challenge: &[u8; 32],
    ) -> ([u8; 32], [u8; 32]) {
        let derive = |label: &[u8; 16]| {
            D::hmac_sha256(
                key.bytes(),
                &[label, &self.nonce_s, &self.nonce_c, &self.hello, challenge],
            )
        };
        (derive(label::TO_SERVER), derive(label::TO_CLIENT))
    }
}

/// Length of a proof with its field head: what a payload with a proof ends with.
const PROOF_FIELD: usize = FIELD_HEAD + PROOF_LEN;

/// Splits a payload in what the proof covers and the proof, which must be the very end.
fn split_proof(payload: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    const MISSING: WireError = WireError::Missing("proof");
    let at = payload.len().checked_sub(PROOF_FIELD).ok_or(MISSING)?;
    let (before, end) = payload.split_at_checked(at).ok_or(MISSING)?;
    match Fields::new(end).next() {
        Some(Ok(Field {
            tag: TAG_PROOF,
            ty: types::BYTES,
            bytes,
        })) if bytes.len() == PROOF_LEN => Ok((before, bytes)),
        _ => Err(MISSING),
    }
}

/// Appends a frame without authentication code.
fn plain_frame<D: Digest>(
    out: &mut KVec<u8>,
    kind: Kind,
    write: impl FnOnce(&mut KVec<u8>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = frame::begin(out)?;
    let result = write(out).and_then(|()| frame::finish::<D>(out, start, kind.number(), 0));
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// A frame of the handshake: without authentication code, and of the kind that is due now.
fn open_plain<'a, D: Digest>(
    header: &Header,
    body: &'a [u8],
    due: Kind,
) -> Result<&'a [u8], Refusal> {
    if header.flags & frame::FLAG_MAC != 0 {
        return Err(WireError::BadFlags.into());
    }
    let (payload, _) = header.split_body::<D>(body)?;
    if header.kind == due.number() {
        return Ok(payload);
    }
    if header.kind == Kind::Error.number() {
        return Err(Refusal::from_peer(&ErrorReply::decode(payload)?));
    }
    Err(Kind::from_number(header.kind)
        .map_or(WireError::UnknownKind(header.kind), |kind| {
            WireError::UnexpectedKind(kind.number())
        })
        .into())
}

/// A random number that is all zero comes from a generator that does not work.
fn check_own_nonce(nonce: &Nonce) -> Result<(), Refusal> {
    if nonce.iter().all(|byte| *byte == 0) {
        return Err(Refusal::new(
            ErrorCode::Internal,
            format_args!("no random numbers on this host: check its kernel log"),
        ));
    }
    Ok(())
}

/// Both sides belong to the same cluster, or one may join.
fn check_cluster(me: &Identity<'_>, host: Name, uuid: &str, may_join: bool) -> Result<(), Refusal> {
    if uuid == me.uuid && me.knows_cluster() {
        return Ok(());
    }
    if uuid == ANY_UUID || !me.knows_cluster() {
        if may_join {
            return Ok(());
        }
        let who = if uuid == ANY_UUID { host } else { me.host };
        return Err(Refusal::new(
            ErrorCode::NoCluster,
            format_args!("host {who} has not joined the cluster yet: finish 'marsadm join-cluster' there first"),
        ));
    }
    Err(Refusal::new(
        ErrorCode::WrongCluster,
        format_args!(
            "host {host} belongs to cluster {uuid}, host {} to cluster {}: check the addresses by 'marsadm lowlevel-ls-host-ips'; \
             to unite two clusters use 'marsadm merge-cluster'",
            me.host, me.uuid
        ),
    ))
}

fn wrong_key(me: Name, peer: Name) -> Refusal {
    Refusal::new(
        ErrorCode::WrongKey,
        format_args!(
            "hosts {me} and {peer} have different cluster keys: compare 'sha256sum /mars/cluster-key' on both and copy the \
             file from a good member (mode 0600), or someone else answers at this address"
        ),
    )
}

fn lacking_features(me: Name, peer: Name, bits: u64) -> Refusal {
    Refusal::new(
        ErrorCode::Version,
        format_args!("hosts {me} and {peer} do not agree on required protocol features (bits {bits:#x}): update MARS on the older one"),
    )
}

fn proofs_are_equal(a: &[u8], b: &Proof) -> bool {
    equal_in_constant_time(a, b)
}
