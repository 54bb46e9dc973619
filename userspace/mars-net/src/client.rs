// SPDX-License-Identifier: GPL-2.0-or-later

//! A client of one member.

use std::net::IpAddr;
use std::time::{
    Duration,
    Instant, //
};

use kernel::alloc::KVec;
use mars_core::lamport::LamportTime;
use mars_core::name::Name;
use mars_core::wire::auth::{
    ClientHandshake,
    ClientStep,
    ClusterKey,
    Identity,
    Peer,
    Refusal, //
};
use mars_core::wire::frame::{
    Header,
    MAX_UNAUTHENTICATED, //
};
use mars_core::wire::message::handshake::{
    features,
    Purpose, //
};
use mars_core::wire::message::meta::*;
use mars_core::wire::message::{
    ErrorReply,
    Kind,
    Message, //
};
use mars_core::wire::session::{
    reply_to,
    Session, //
};
use mars_core::wire::WireError;
use mars_host_digest::HostDigest;

use crate::stream::{
    nonce,
    resolve,
    FrameStream, //
};
use crate::NetError;

/// More than any tree has; a server that sends more is not one of ours.
const MAX_TREE_BYTES: usize = 256 << 20;

/// Who we are.
#[derive(Clone, Debug)]
pub struct Local {
    /// Name of this host.
    pub host: Name,
    /// Its cluster, or `mars_core::wire::message::handshake::ANY_UUID`.
    pub uuid: String,
    /// Key of the cluster.
    pub key: ClusterKey,
    /// Version of this program.
    pub version: String,
}

/// An entry of a tree. The path was not checked: see `mars_core::tree`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeEntry {
    /// Relative to /mars.
    pub path: String,
    /// What the link says.
    pub value: Vec<u8>,
    /// When it was written.
    pub stamp: LamportTime,
}

/// The tree of a member, or what is new in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeCopy {
    /// Run of the server.
    pub instance: u64,
    /// State of its tree.
    pub generation: u64,
    /// Everything, not only what is new.
    pub full: bool,
    /// Lamport time of the server.
    pub now: LamportTime,
    /// The entries.
    pub entries: Vec<TreeEntry>,
    /// Entries that were not valid.
    pub skipped: usize,
}

/// An authenticated connection to a member.
#[derive(Debug)]
pub struct Client {
    stream: FrameStream,
    session: Session,
    last_id: u32,
    timeout: Duration,
    /// Lamport time of the server when the connection was made.
    pub connected_at: LamportTime,
}

impl Client {
    /// Connects to `address` (see [`resolve`]; the default port is `base_port` + that of the purpose) and shakes hands.
    /// `expect` is the host that should answer, if known. Each later operation has the same `timeout`.
    pub fn connect(
        address: &str,
        base_port: u16,
        purpose: Purpose,
        expect: Option<Name>,
        me: &Local,
        timeout: Duration,
    ) -> Result<Self, NetError> {
        let deadline = Instant::now() + timeout;
        let addresses = resolve(address, base_port.saturating_add(purpose.port_offset()))?;
        let mut stream = FrameStream::connect(&addresses, timeout)?;
        stream.set_deadline(deadline);
        let (session, connected_at) = shake_hands(&mut stream, purpose, expect, me)?;
        Ok(Self {
            stream,
            session,
            last_id: 0,
            timeout,
            connected_at,
        })
    }

    /// Who answers: proved.
    pub fn peer(&self) -> Peer {
        self.session.peer
    }

    /// Asks for a sign of life.
    pub fn ping(&mut self, now: LamportTime) -> Result<Pong, NetError> {
        let payload = self.ask(&Ping { now }, Duration::ZERO)?;
        Ok(Pong::decode(&payload)?)
    }

    /// Asks whether the peer has contact to `host`; the text is what it would tell its own administrator.
    pub fn reach(&mut self, host: Name) -> Result<(Contact, Duration, String), NetError> {
        let payload = self.ask(&Reach { host }, Duration::ZERO)?;
        let Reached {
            contact,
            age_ms,
            text,
        } = Reached::decode(&payload)?;
        Ok((contact, Duration::from_millis(age_ms), text.into()))
    }

    /// Makes a host known to the cluster under an address, and gets the whole tree.
    pub fn join(&mut self, host: Name, ip: IpAddr, now: LamportTime) -> Result<TreeCopy, NetError> {
        let ip = ip.to_string();
        let payload = self.ask(&Join { host, ip: &ip, now }, Duration::ZERO)?;
        self.collect(payload)
    }

    /// Gets the tree; or only what is newer than `known` (instance and generation), waiting up to `wait` for it.
    pub fn get_tree(
        &mut self,
        known: Option<(u64, u64)>,
        wait: Duration,
        now: LamportTime,
    ) -> Result<TreeCopy, NetError> {
        let (instance, since) = known.unwrap_or_default();
        let wait = wait.min(Duration::from_millis(MAX_WAIT_MS.into()));
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(MAX_WAIT_MS);
        let request = GetTree {
            since,
            instance,
            wait_ms,
            now,
        };
        let payload = self.ask(&request, wait)?;
        self.collect(payload)
    }

    /// Sends a request and receives the (first) reply. The server may take `wait` longer than the timeout.
    fn ask<'a, M: Message<'a>>(
        &mut self,
        request: &M,
        wait: Duration,
    ) -> Result<Vec<u8>, NetError> {
        self.stream
            .set_deadline(Instant::now() + self.timeout + wait);
        self.last_id = self.last_id.wrapping_add(1);
        let mut out = KVec::new();
        self.session
            .tx
            .message::<HostDigest, _>(self.last_id, request, &mut out)?;
        self.stream.send(&out)?;
        let kind = reply_to(M::KIND).ok_or(WireError::UnexpectedKind(M::KIND.number()))?;
        self.reply(kind)
    }

    fn reply(&mut self, expected: Kind) -> Result<Vec<u8>, NetError> {
        let rx = &self.session.rx;
        let (header, mut body) = self
            .stream
            .receive(|bytes| rx.header::<HostDigest>(bytes))?;
        let (kind, payload) = self.session.rx.open::<HostDigest>(&header, &body)?;
        if header.id != self.last_id && kind != Kind::Error {
            return Err(WireError::BadValue("id").into());
        }
        if kind == Kind::Error {
            return Err(Refusal::from_peer(&ErrorReply::decode(payload)?).into());
        }
        if kind != expected {
            return Err(WireError::UnexpectedKind(kind.number()).into());
        }
        let len = payload.len();
        body.truncate(len);
        Ok(body)
    }

    /// Collects all parts of a tree.
    fn collect(&mut self, mut payload: Vec<u8>) -> Result<TreeCopy, NetError> {
        let mut entries = Vec::new();
        let mut skipped = 0;
        let mut bytes = 0usize;
        loop {
            let tree = Tree::decode(&payload)?;
            for entry in tree.entries() {
                match entry {
                    Ok(Entry { path, value, stamp }) => entries.push(TreeEntry {
                        path: path.into(),
                        value: value.into(),
                        stamp,
                    }),
                    Err(_) => skipped += 1,
                }
            }
            bytes = bytes.saturating_add(payload.len());
            if !tree.more {
                return Ok(TreeCopy {
                    instance: tree.instance,
                    generation: tree.generation,
                    full: tree.full,
                    now: tree.now,
                    entries,
                    skipped,
                });
            }
            if bytes > MAX_TREE_BYTES {
                let (len, max) = (u32::MAX, u32::try_from(MAX_TREE_BYTES).unwrap_or(u32::MAX));
                return Err(WireError::TooLong { len, max }.into());
            }
            payload = self.reply(Kind::Tree)?;
        }
    }
}

fn shake_hands(
    stream: &mut FrameStream,
    purpose: Purpose,
    expect: Option<Name>,
    me: &Local,
) -> Result<(Session, LamportTime), NetError> {
    let identity = Identity {
        host: me.host,
        uuid: &me.uuid,
        key: &me.key,
        version: &me.version,
        features: features::ALL,
        required: features::FRAME_MAC,
    };
    let mut out = KVec::new();
    let mut handshake =
        ClientHandshake::start::<HostDigest>(identity, purpose, expect, nonce()?, &mut out)?;
    stream.send(&out)?;
    loop {
        out.clear();
        let (header, body) =
            stream.receive(|bytes| Header::parse::<HostDigest>(bytes, MAX_UNAUTHENTICATED))?;
        let step = handshake.on_frame::<HostDigest>(&header, &body, &mut out);
        if !out.is_empty() {
            // What the peer's administrator should read may get lost: ours has it.
            let sent = stream.send(&out);
            if step.is_ok() {
                sent?;
            }
        }
        if let ClientStep::Ready(session, now) = step? {
            return Ok((session, now));
        }
    }
}
