// SPDX-License-Identifier: GPL-2.0-or-later

//! The handshake as the side sees it that connects.

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
use crate::name::Name;
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
    frame,
    PROTO_MAX,
    PROTO_MIN, //
};

/// What the client has to do next.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "made once per connection and taken apart at once"
)]
pub enum ClientStep {
    /// Send what was appended, then read the next frame.
    Send,
    /// The connection is ready for requests. The time is the server's.
    Ready(Session, LamportTime),
}

/// The handshake of a client.
///
/// Frames are read with [`Header::parse`] and at most [`frame::MAX_UNAUTHENTICATED`] bytes of payload.
pub struct ClientHandshake<'a> {
    me: Identity<'a>,
    purpose: Purpose,
    expect: Option<Name>,
    transcript: Transcript,
    session: Option<Session>,
}

impl<'a> ClientHandshake<'a> {
    /// Begins: appends the first frame to `out`. `expect` is the host that should answer, if known.
    #[inline(never)]
    pub fn start<D: Digest>(
        me: Identity<'a>,
        purpose: Purpose,
        expect: Option<Name>,
        nonce: Nonce,
        out: &mut KVec<u8>,
    ) -> Result<Self, Refusal> {
        check_own_nonce(&nonce)?;
        let hello = Hello {
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            features: me.features,
            required: me.required,
            host: me.host,
            uuid: me.uuid,
            purpose,
            nonce,
            version: me.version,
        };
        let mut digest = [0; 32];
        plain_frame::<D>(out, Kind::Hello, |out| {
            let start = out.len();
            hello.encode(out)?;
            digest = D::sha256(&[out.get(start..).unwrap_or_default()]);
            Ok(())
        })?;
        let transcript = Transcript {
            nonce_c: nonce,
            nonce_s: [0; 32],
            hello: digest,
        };
        Ok(Self {
            me,
            purpose,
            expect,
            transcript,
            session: None,
        })
    }

    /// Takes a frame from the server: its header, and [`Header::body_len`] bytes. Appends to `out` what is to be sent.
    ///
    /// After an error the connection must be closed, after what was appended (for the administrator of the peer) was sent.
    #[inline(never)]
    pub fn on_frame<D: Digest>(
        &mut self,
        header: &Header,
        body: &[u8],
        out: &mut KVec<u8>,
    ) -> Result<ClientStep, Refusal> {
        let start = out.len();
        let result = match self.session.take() {
            None => self.on_challenge::<D>(header, body, out).map(|session| {
                self.session = Some(session);
                ClientStep::Send
            }),
            Some(session) => self.on_welcome::<D>(session, header, body),
        };
        result.inspect_err(|refusal| {
            out.truncate(start);
            if !refusal.by_peer {
                let _ = refusal.encode::<D>(out);
            }
        })
    }

    #[inline(never)]
    fn on_challenge<D: Digest>(
        &mut self,
        header: &Header,
        body: &[u8],
        out: &mut KVec<u8>,
    ) -> Result<Session, Refusal> {
        let me = &self.me;
        let payload = open_plain::<D>(header, body, Kind::Challenge)?;
        let (before, proof) = split_proof(payload)?;
        let challenge = Challenge::decode(before)?;
        self.transcript.nonce_s = challenge.nonce;
        if challenge.nonce == self.transcript.nonce_c {
            return Err(wrong_key(me.host, challenge.host));
        }
        // First the proof: what is not proved is not worth a more precise message.
        if !proofs_are_equal(proof, &self.transcript.server_proof::<D>(me.key, before)) {
            return Err(wrong_key(me.host, challenge.host));
        }
        let tool = self.purpose == Purpose::Join;
        match self.expect {
            Some(expect) if expect != challenge.host => {
                return Err(Refusal::new(
                    ErrorCode::WrongHost,
                    format_args!(
                        "host {} answers at the address of host {expect}: correct it by 'marsadm lowlevel-set-host-ip'",
                        challenge.host
                    ),
                ));
            }
            None if !tool && challenge.host == me.host => {
                return Err(Refusal::new(
                    ErrorCode::WrongHost,
                    format_args!("the peer has the same name as this host: {}", me.host),
                ));
            }
            _ => {}
        }
        let may_join = matches!(self.purpose, Purpose::Join | Purpose::Meta);
        check_cluster(me, challenge.host, challenge.uuid, may_join)?;
        if !(PROTO_MIN..=PROTO_MAX).contains(&challenge.proto) {
            return Err(Refusal::new(
                ErrorCode::Version,
                format_args!(
                    "host {} chose protocol {}, which was not offered",
                    challenge.host, challenge.proto
                ),
            ));
        }
        let unwanted = challenge.features & !me.features;
        let lacking = me.required & !challenge.features;
        if unwanted | lacking != 0 {
            return Err(lacking_features(
                me.host,
                challenge.host,
                unwanted | lacking,
            ));
        }

        let digest = D::sha256(&[payload]);
        let transcript = &self.transcript;
        plain_frame::<D>(out, Kind::Response, |out| {
            let start = out.len();
            Response {}.encode(out)?;
            let before = out.get(start..).unwrap_or_default();
            let proof = transcript.client_proof::<D>(me.key, &digest, before);
            put_field(out, TAG_PROOF, &proof)
        })?;
        let (to_server, to_client) = self.transcript.session_keys::<D>(me.key, &digest);
        let mac = challenge.features & features::FRAME_MAC != 0;
        let peer = Peer {
            host: challenge.host,
            joins: challenge.uuid == ANY_UUID,
        };
        Ok(Session::new(
            Role::Client,
            self.purpose,
            peer,
            challenge.proto,
            challenge.features,
            mac.then_some((to_server, to_client)),
        ))
    }

    #[inline(never)]
    fn on_welcome<D: Digest>(
        &self,
        mut session: Session,
        header: &Header,
        body: &[u8],
    ) -> Result<ClientStep, Refusal> {
        // An error comes without authentication code: the server does not talk to us after all.
        if header.kind == Kind::Error.number() && header.flags & frame::FLAG_MAC == 0 {
            open_plain::<D>(header, body, Kind::Welcome)?;
        }
        let payload = session.rx.open_welcome::<D>(header, body)?;
        let welcome = Welcome::decode(payload)?;
        Ok(ClientStep::Ready(session, welcome.now))
    }
}
