// SPDX-License-Identifier: GPL-2.0-or-later

//! Connections to and from other members: the protocol is the core's, the socket is the kernel's.
//!
//! A connection belongs to one thread. Every wait has an end: a peer that is silent for longer than
//! [`tunables::NET_TIMEOUT_MS`] (plus what it was allowed to wait) counts as gone.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use mars_core::{
    name::Name,
    wire::{
        auth::{
            ClientHandshake,
            ClientStep,
            ClusterKey,
            Identity,
            Refusal,
            ServerHandshake,
            ServerStep, //
        },
        frame::{
            Header,
            HEADER_LEN,
            MAX_UNAUTHENTICATED, //
        },
        message::{
            bulk::{
                LogData,
                LogRead, //
            },
            handshake::features,
            BulkMessage,
            ErrorReply,
            Kind,
            Message, //
        },
        session::{
            reply_to,
            Session, //
        },
        WireError, //
    }, //
};

pub(crate) use mars_core::wire::message::handshake::Purpose;

use crate::{
    engine::{
        digest::KernelDigest,
        env::Env,
        inject,
        text,
        tunables, //
    },
    sys::{
        checksum,
        socket::Socket, //
    },
    VERSION, //
};

/// Features of metadata connections: whoever sits on the line must not be able to change the tree.
const META_FEATURES: u64 = features::FRAME_MAC;
/// The two messages of each side must come within this time.
const HANDSHAKE_MS: u32 = 5_000;

/// An authenticated connection.
pub(crate) struct Conn {
    socket: Arc<Socket>,
    /// Boxed, because it is big and connections are moved.
    session: KBox<Session>,
    /// The member at the other end.
    pub(crate) peer: Name,
    next_id: u32,
    out: KVec<u8>,
    body: KVVec<u8>,
    broken: bool,
}

fn identity<'a>(me: Name, uuid: &'a str, key: &'a ClusterKey, purpose_port: u16) -> Identity<'a> {
    let meta = if purpose_port == 0 { META_FEATURES } else { 0 };
    Identity {
        host: me,
        uuid,
        key,
        version: VERSION,
        features: meta,
        required: meta,
    }
}

fn wire_error(e: WireError) -> Error {
    match e {
        WireError::NoMemory => ENOMEM,
        _ => EPROTO,
    }
}

/// Reads one frame of the handshake.
fn read_plain(socket: &Socket, body: &mut KVVec<u8>) -> Result<Result<Header, WireError>> {
    let mut head = [0; HEADER_LEN];
    socket.recv_exact(&mut head, HANDSHAKE_MS)?;
    let header = match Header::parse::<KernelDigest>(&head, MAX_UNAUTHENTICATED) {
        Ok(h) => h,
        Err(e) => return Ok(Err(e)),
    };
    body.clear();
    body.resize(header.body_len(), 0, GFP_KERNEL)?;
    socket.recv_exact(body, HANDSHAKE_MS)?;
    Ok(Ok(header))
}

/// Reads `len` bytes to the start of `body`, which keeps its greatest length: to fill it with zeroes anew for each big frame
/// costs more than to receive it.
fn receive_body<'a>(socket: &Socket, body: &'a mut KVVec<u8>, len: usize) -> Result<&'a mut [u8]> {
    if body.len() < len {
        body.resize(len, 0, GFP_KERNEL)?;
    }
    let part = body.get_mut(..len).ok_or(EPROTO)?;
    socket.recv_exact(part, tunables::NET_TIMEOUT_MS)?;
    Ok(part)
}

impl Conn {
    /// Connects to `host` and proves the cluster key.
    ///
    /// # Errors
    ///
    /// Reported once per host and reason through [`Env::report_peer`], so callers may just try again later.
    pub(crate) fn dial(env: &Env, host: &Name, purpose: Purpose) -> Result<Self> {
        let r = Self::try_dial(env, host, purpose);
        match &r {
            // What is wrong with its clock is cleared by who follows it.
            Ok(_) if env.is_ahead(host) => (),
            Ok(_) => env.report_peer(host, None),
            Err(Dial::Refused(refusal)) => env.report_peer(host, Some(refusal.text())),
            Err(Dial::Failed(_)) => (),
        }
        r.map_err(|e| match e {
            Dial::Failed(e) => e,
            Dial::Refused(_) => EACCES,
        })
    }

    // A frame of its own: handshakes and sessions are big, and the stack is small.
    #[inline(never)]
    fn try_dial(env: &Env, host: &Name, purpose: Purpose) -> Result<Self, Dial> {
        inject::at!(Dial)?;
        let addr = env.peer_addr(host, purpose.port_offset()).ok_or(ENOENT)?;
        let key = env.key().ok_or(ENOKEY)?;
        let uuid = env.uuid()?;
        let socket = Socket::connect(&addr, tunables::CONNECT_TIMEOUT_MS)?;
        prepare(&socket)?;
        let mut nonce = [0; 32];
        checksum::random(&mut nonce);
        let mut out = KVec::new();
        let mut body = KVVec::new();
        let me = identity(env.me, text::of(&uuid), &key, purpose.port_offset());
        let mut hs =
            ClientHandshake::start::<KernelDigest>(me, purpose, Some(*host), nonce, &mut out)?;
        loop {
            socket.send_all(&out, HANDSHAKE_MS)?;
            out.clear();
            let header = read_plain(&socket, &mut body)?.map_err(wire_error)?;
            match hs.on_frame::<KernelDigest>(&header, &body, &mut out) {
                Ok(ClientStep::Send) => (),
                Ok(ClientStep::Ready(session, now)) => {
                    // Elsewhere the frames have no authentication code, by which alone a time is believed.
                    if purpose.port_offset() == 0 {
                        env.clock.saw(now);
                    }
                    let peer = session.peer.host;
                    return Ok(Self {
                        socket: Arc::new(socket, GFP_KERNEL).map_err(Error::from)?,
                        session: KBox::new(session, GFP_KERNEL).map_err(Error::from)?,
                        peer,
                        next_id: 1,
                        out,
                        body,
                        broken: false,
                    });
                }
                Err(refusal) => {
                    let _ = socket.send_all(&out, HANDSHAKE_MS);
                    return Err(Dial::Refused(refusal));
                }
            }
        }
    }

    /// The server's half of the handshake, for a client that has just connected.
    #[inline(never)]
    pub(crate) fn accept(
        env: &Env,
        socket: Arc<Socket>,
        port_offset: u16,
    ) -> Result<(Self, Purpose)> {
        prepare(&socket)?;
        let mut out = KVec::new();
        let mut body = KVVec::new();
        let Some(key) = env.key() else {
            let refusal = Refusal::new(
                mars_core::wire::message::ErrorCode::NotAllowed,
                format_args!("host {} has no /mars/cluster-key yet: run 'marsadm create-cluster' or 'join-cluster' there", env.me),
            );
            let _ = refusal.encode::<KernelDigest>(&mut out);
            let _ = socket.send_all(&out, HANDSHAKE_MS);
            return Err(ENOKEY);
        };
        let uuid = env.uuid()?;
        let mut nonce = [0; 32];
        checksum::random(&mut nonce);
        let me = identity(env.me, text::of(&uuid), &key, port_offset);
        let mut hs = ServerHandshake::new(me, port_offset, nonce).map_err(|_| EPROTO)?;
        loop {
            let header = match read_plain(&socket, &mut body)? {
                Ok(h) => h,
                Err(e) => {
                    let refusal = hs.on_garbage::<KernelDigest>(e, &mut out);
                    let _ = socket.send_all(&out, HANDSHAKE_MS);
                    env.report_client(&socket, refusal.text());
                    return Err(EPROTO);
                }
            };
            match hs.on_frame::<KernelDigest>(&header, &body, &mut out) {
                Ok(ServerStep::Send) => {
                    socket.send_all(&out, HANDSHAKE_MS)?;
                    out.clear();
                }
                Ok(ServerStep::Proved(peer, purpose)) => {
                    let session = hs
                        .welcome::<KernelDigest>(env.clock.now(), &mut out)
                        .map_err(|_| EPROTO)?;
                    socket.send_all(&out, HANDSHAKE_MS)?;
                    out.clear();
                    let conn = Self {
                        socket,
                        session: KBox::new(session, GFP_KERNEL)?,
                        peer: peer.host,
                        next_id: 1,
                        out,
                        body,
                        broken: false,
                    };
                    return Ok((conn, purpose));
                }
                Err(refusal) => {
                    let _ = socket.send_all(&out, HANDSHAKE_MS);
                    env.report_client(&socket, refusal.text());
                    return Err(EACCES);
                }
            }
        }
    }

    /// Whether requests may still be sent.
    pub(crate) fn is_usable(&self) -> bool {
        !self.broken
    }

    /// Sends a request and reads the reply, of which the payload is returned. `patience_ms`: how long the peer may think,
    /// besides the usual time.
    ///
    /// # Errors
    ///
    /// `EREMOTEIO` if the peer answered with an error (reported); anything else breaks the connection.
    pub(crate) fn call<'a, M: Message<'a>>(
        &mut self,
        request: &M,
        patience_ms: u32,
    ) -> Result<&[u8]> {
        let r = self.try_call(request, patience_ms);
        match r {
            Ok(n) => self.body.get(..n).ok_or(EPROTO),
            Err(e) => {
                if e != EREMOTEIO {
                    self.broken = true;
                }
                Err(e)
            }
        }
    }

    fn try_call<'a, M: Message<'a>>(&mut self, request: &M, patience_ms: u32) -> Result<usize> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.out.clear();
        self.session
            .tx
            .message::<KernelDigest, M>(id, request, &mut self.out)
            .map_err(wire_error)?;
        inject::at!(NetSend)?;
        self.socket.send_all(&self.out, tunables::NET_TIMEOUT_MS)?;
        let timeout = tunables::NET_TIMEOUT_MS.saturating_add(patience_ms);
        let (kind, got, len) = self.receive(timeout)?;
        if got != id {
            return Err(EPROTO);
        }
        if kind == Kind::Error {
            let text = self
                .body
                .get(..len)
                .and_then(|b| ErrorReply::decode(b).ok());
            if let Some(e) = text {
                crate::engine::text::warn_limited(format_args!(
                    "host {} refused a request: {}",
                    self.peer, e.text
                ));
            }
            return Err(EREMOTEIO);
        }
        if Some(kind) != reply_to(M::KIND) {
            return Err(EPROTO);
        }
        Ok(len)
    }

    /// Reads one frame: its kind, id, and length of the payload at the start of `self.body`.
    fn receive(&mut self, timeout_ms: u32) -> Result<(Kind, u32, usize)> {
        let mut head = [0; HEADER_LEN];
        self.socket.recv_exact(&mut head, timeout_ms)?;
        let header = self
            .session
            .rx
            .header::<KernelDigest>(&head)
            .map_err(wire_error)?;
        let mut body = receive_body(&self.socket, &mut self.body, header.body_len())?;
        if let Some(n) = inject::data!(NetReceived, 0, body)? {
            body = body.get_mut(..n).ok_or(EPROTO)?;
        }
        let (kind, payload) = self
            .session
            .rx
            .open::<KernelDigest>(&header, body)
            .map_err(wire_error)?;
        Ok((kind, header.id, payload.len()))
    }

    /// The next part of a reply in several parts.
    pub(crate) fn next_part(&mut self) -> Result<&[u8]> {
        let id = self.next_id.wrapping_sub(1);
        match self.receive(tunables::NET_TIMEOUT_MS) {
            Ok((Kind::Tree, got, n)) if got == id => self.body.get(..n).ok_or(EPROTO),
            r => {
                self.broken = true;
                Err(r.err().unwrap_or(EPROTO))
            }
        }
    }

    /// Reads bytes of a log.
    pub(crate) fn log_read(&mut self, request: &LogRead) -> Result<LogData<'_>> {
        let patience = request.wait_ms;
        let payload = self.call(request, patience)?;
        LogData::decode(payload).map_err(wire_error)
    }

    /// Waits for the next request of a client: kind, id and length of the [`Self::payload`]. `None`: the client has
    /// nothing to say within `timeout_ms`. An answerable error is answered here.
    pub(crate) fn next_request(&mut self, timeout_ms: u32) -> Result<Option<(Kind, u32, usize)>> {
        if !self.socket.poll_readable(timeout_ms)? {
            return Ok(None);
        }
        let mut head = [0; HEADER_LEN];
        self.socket
            .recv_exact(&mut head, tunables::NET_TIMEOUT_MS)?;
        let header = match self.session.rx.header::<KernelDigest>(&head) {
            Ok(h) => h,
            Err(e) => {
                self.refuse(0, &Refusal::from(e))?;
                return Err(EPROTO);
            }
        };
        let body = receive_body(&self.socket, &mut self.body, header.body_len())?;
        let opened = self
            .session
            .rx
            .open::<KernelDigest>(&header, body)
            .map(|(k, p)| (k, p.len()));
        match opened {
            Ok((kind, len)) => Ok(Some((kind, header.id, len))),
            Err(e) => {
                let intact = e.stream_is_intact();
                self.refuse(header.id, &Refusal::from(e))?;
                if intact {
                    Ok(None)
                } else {
                    Err(EPROTO)
                }
            }
        }
    }

    /// Payload of the last request.
    pub(crate) fn payload(&self, len: usize) -> &[u8] {
        self.body.get(..len).unwrap_or(&[])
    }

    /// Answers with an error that says what to do.
    pub(crate) fn refuse(&mut self, id: u32, refusal: &Refusal) -> Result {
        self.reply(id, &refusal.reply())
    }

    /// Answers a request.
    pub(crate) fn reply<'a, M: Message<'a>>(&mut self, id: u32, message: &M) -> Result {
        self.out.clear();
        self.session
            .tx
            .message::<KernelDigest, M>(id, message, &mut self.out)
            .map_err(wire_error)?;
        self.socket.send_all(&self.out, tunables::NET_TIMEOUT_MS)
    }

    /// Answers with a payload that `write` makes.
    pub(crate) fn reply_with(
        &mut self,
        kind: Kind,
        id: u32,
        write: impl FnOnce(&mut KVec<u8>) -> Result<(), WireError>,
    ) -> Result {
        self.out.clear();
        self.session
            .tx
            .payload::<KernelDigest>(kind, id, &mut self.out, write)
            .map_err(wire_error)?;
        self.socket.send_all(&self.out, tunables::NET_TIMEOUT_MS)
    }

    /// Answers with bytes that are sent from where they lie.
    pub(crate) fn reply_bulk<'a, M: BulkMessage<'a>>(
        &mut self,
        id: u32,
        message: &M,
        data: &[u8],
    ) -> Result {
        self.out.clear();
        let tail = self
            .session
            .tx
            .bulk::<KernelDigest, M>(id, message, data, &mut self.out)
            .map_err(wire_error)?;
        self.socket
            .send_all2(&self.out, data, tunables::NET_TIMEOUT_MS)?;
        if !tail.as_bytes().is_empty() {
            self.socket
                .send_all(tail.as_bytes(), tunables::NET_TIMEOUT_MS)?;
        }
        Ok(())
    }
}

enum Dial {
    Failed(Error),
    Refused(Refusal),
}

impl From<Error> for Dial {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

impl From<Refusal> for Dial {
    fn from(r: Refusal) -> Self {
        Self::Refused(r)
    }
}

fn prepare(socket: &Socket) -> Result {
    // Requests and replies are small and wait for each other: Nagle's algorithm would cost 40 ms each.
    socket.set_nodelay();
    socket.set_keepalive(4, 3, 3)?;
    socket.set_user_timeout(tunables::NET_TIMEOUT_MS)
}
