// SPDX-License-Identifier: GPL-2.0-or-later

//! The handshake as the side sees it that was connected to.

use kernel::alloc::KVec;

use super::{
    check_cluster,
    check_own_nonce,
    lacking_features,
    open_plain,
    plain_frame,
    proofs_are_equal,
    split_proof,
    wrong_key,
    Identity,
    Nonce,
    Peer,
    Refusal,
    Transcript, //
};
use crate::digest::Digest;
use crate::lamport::LamportTime;
use crate::wire::frame::Header;
use crate::wire::message::handshake::{
    features,
    Challenge,
    Hello,
    Purpose,
    Response,
    Welcome,
    ANY_UUID,
    TAG_PROOF, //
};
use crate::wire::message::{
    ErrorCode,
    Kind,
    Message, //
};
use crate::wire::schema::put_field;
use crate::wire::session::{
    Role,
    Session, //
};
use crate::wire::{
    PROTO_MAX,
    PROTO_MIN, //
};

/// What the server has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServerStep {
    /// Send what was appended, then read the next frame.
    Send,
    /// The peer has proved that it knows the key: decide whether it is welcome, see [`ServerHandshake::welcome`] and
    /// [`ServerHandshake::refuse`].
    Proved(Peer, Purpose),
}

enum State {
    Hello,
    Response {
        peer: Peer,
        purpose: Purpose,
        features: u64,
        proto: u16,
        challenge: [u8; 32],
    },
    Proved(Session),
    Closed,
}

/// The handshake of a server.
///
/// Frames are read with [`Header::parse`] and at most [`super::frame::MAX_UNAUTHENTICATED`] bytes of payload. Give the
/// client a few seconds for all of it, and limit how many do it at the same time.
pub struct ServerHandshake<'a> {
    me: Identity<'a>,
    port_offset: u16,
    transcript: Transcript,
    state: State,
}

impl<'a> ServerHandshake<'a> {
    /// For a client that has just connected to the base port + `port_offset`.
    pub fn new(me: Identity<'a>, port_offset: u16, nonce: Nonce) -> Result<Self, Refusal> {
        check_own_nonce(&nonce)?;
        let transcript = Transcript {
            nonce_c: [0; 32],
            nonce_s: nonce,
            hello: [0; 32],
        };
        Ok(Self {
            me,
            port_offset,
            transcript,
            state: State::Hello,
        })
    }

    /// Takes a frame from the client: its header, and [`Header::body_len`] bytes. Appends to `out` what is to be sent.
    ///
    /// After an error the connection must be closed, after what was appended (for the administrator of the peer) was sent.
    #[inline(never)]
    pub fn on_frame<D: Digest>(
        &mut self,
        header: &Header,
        body: &[u8],
        out: &mut KVec<u8>,
    ) -> Result<ServerStep, Refusal> {
        let start = out.len();
        let result = match core::mem::replace(&mut self.state, State::Closed) {
            State::Hello => self.on_hello::<D>(header, body, out),
            State::Response {
                peer,
                purpose,
                features,
                proto,
                challenge,
            } => self.on_response::<D>(header, body, &challenge).map(|keys| {
                let keys = (features & features::FRAME_MAC != 0).then_some(keys);
                self.state = State::Proved(Session::new(
                    Role::Server,
                    purpose,
                    peer,
                    proto,
                    features,
                    keys,
                ));
                ServerStep::Proved(peer, purpose)
            }),
            State::Proved(_) | State::Closed => Err(Refusal::new(
                ErrorCode::NotAllowed,
                format_args!("the handshake is over: connect anew"),
            )),
        };
        result.inspect_err(|refusal| {
            out.truncate(start);
            if !refusal.by_peer {
                let _ = refusal.encode::<D>(out);
            }
        })
    }

    /// Answers bytes that are not even a frame: appends an error for the peer. Then close.
    #[inline(never)]
    pub fn on_garbage<D: Digest>(
        &mut self,
        error: super::WireError,
        out: &mut KVec<u8>,
    ) -> Refusal {
        self.state = State::Closed;
        let refusal = Refusal::from(error);
        let _ = refusal.encode::<D>(out);
        refusal
    }

    /// Lets the proved client in: appends the last frame of the handshake. `now` is our Lamport time.
    #[inline(never)]
    pub fn welcome<D: Digest>(
        self,
        now: LamportTime,
        out: &mut KVec<u8>,
    ) -> Result<Session, Refusal> {
        let State::Proved(mut session) = self.state else {
            return Err(Refusal::new(
                ErrorCode::NotAllowed,
                format_args!("the client has not proved its key"),
            ));
        };
        session.tx.welcome::<D>(&Welcome { now }, out)?;
        Ok(session)
    }

    /// Turns the client away, proved or not: appends the reason. Then close.
    pub fn refuse<D: Digest>(self, refusal: &Refusal, out: &mut KVec<u8>) {
        let _ = refusal.encode::<D>(out);
    }

    #[inline(never)]
    fn on_hello<D: Digest>(
        &mut self,
        header: &Header,
        body: &[u8],
        out: &mut KVec<u8>,
    ) -> Result<ServerStep, Refusal> {
        let me = &self.me;
        let payload = open_plain::<D>(header, body, Kind::Hello)?;
        let hello = Hello::decode(payload)?;
        let proto = hello.proto_max.min(PROTO_MAX);
        if proto < hello.proto_min.max(PROTO_MIN) {
            return Err(Refusal::new(
                ErrorCode::Version,
                format_args!(
                    "host {} speaks protocol {}…{} (MARS {}), host {} {PROTO_MIN}…{PROTO_MAX} (MARS {}): update the older one",
                    hello.host,
                    hello.proto_min,
                    hello.proto_max,
                    hello.version,
                    me.host,
                    me.version
                ),
            ));
        }
        if hello.purpose.port_offset() != self.port_offset {
            return Err(Refusal::new(
                ErrorCode::WrongPort,
                format_args!(
                    "this port is not the one for that purpose: all members must use the same base port (module parameter mars_port)"
                ),
            ));
        }
        if hello.host == me.host && hello.purpose != Purpose::Join {
            return Err(Refusal::new(
                ErrorCode::WrongHost,
                format_args!(
                    "host {} called itself: two hosts have this name, or the address of another host leads here \
                     (see 'marsadm lowlevel-ls-host-ips')",
                    me.host
                ),
            ));
        }
        let may_join = matches!(hello.purpose, Purpose::Join | Purpose::Meta);
        check_cluster(me, hello.host, hello.uuid, may_join)?;
        let agreed = me.features & hello.features;
        let lacking = (me.required | hello.required) & !agreed;
        if lacking != 0 {
            return Err(lacking_features(me.host, hello.host, lacking));
        }
        if hello.nonce == self.transcript.nonce_s {
            return Err(wrong_key(me.host, hello.host));
        }

        self.transcript.nonce_c = hello.nonce;
        self.transcript.hello = D::sha256(&[payload]);
        let answer = Challenge {
            proto,
            features: agreed,
            host: me.host,
            uuid: me.uuid,
            nonce: self.transcript.nonce_s,
            version: me.version,
        };
        let mut challenge = [0; 32];
        let transcript = &self.transcript;
        plain_frame::<D>(out, Kind::Challenge, |out| {
            let start = out.len();
            answer.encode(out)?;
            let before = out.get(start..).unwrap_or_default();
            let proof = transcript.server_proof::<D>(me.key, before);
            put_field(out, TAG_PROOF, &proof)?;
            challenge = D::sha256(&[out.get(start..).unwrap_or_default()]);
            Ok(())
        })?;
        let peer = Peer {
            host: hello.host,
            joins: hello.uuid == ANY_UUID,
        };
        self.state = State::Response {
            peer,
            purpose: hello.purpose,
            features: agreed,
            proto,
            challenge,
        };
        Ok(ServerStep::Send)
    }

    #[inline(never)]
    fn on_response<D: Digest>(
        &self,
        header: &Header,
        body: &[u8],
        challenge: &[u8; 32],
    ) -> Result<([u8; 32], [u8; 32]), Refusal> {
        let payload = open_plain::<D>(header, body, Kind::Response)?;
        let (before, proof) = split_proof(payload)?;
        Response::decode(before)?;
        if !proofs_are_equal(
            proof,
            &self
                .transcript
                .client_proof::<D>(self.me.key, challenge, before),
        ) {
            return Err(Refusal::new(
                ErrorCode::WrongKey,
                format_args!(
                    "the client does not know the cluster key of host {}: compare 'sha256sum /mars/cluster-key' on both hosts",
                    self.me.host
                ),
            ));
        }
        Ok(self.transcript.session_keys::<D>(self.me.key, challenge))
    }
}
