// SPDX-License-Identifier: GPL-2.0-or-later

//! One of each message, and a cable between a client and a server.

use kernel::alloc::flags::GFP_KERNEL;
use kernel::alloc::KVec;
use mars_core::lamport::LamportTime;
use mars_core::name::Name;
use mars_core::wire::auth::*;
use mars_core::wire::frame::*;
use mars_core::wire::message::bulk::*;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::meta::*;
use mars_core::wire::message::*;
use mars_core::wire::session::*;
use mars_core::wire::WireError;
pub use mars_host_digest::HostDigest;

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

pub fn time(sec: u64) -> LamportTime {
    LamportTime::new(sec, 7).unwrap()
}

pub fn encode<'a, M: Message<'a>>(message: &M) -> Vec<u8> {
    let mut out = KVec::new();
    message.encode(&mut out).unwrap();
    out.to_vec()
}

/// Decodes a payload of any kind, and encodes what was understood.
pub fn recode(kind: Kind, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    macro_rules! recode {
        ($($name:ident)*) => {
            match kind {
                $(Kind::$name => $name::decode(payload).map(|m| encode(&m)),)*
                Kind::Error => ErrorReply::decode(payload).map(|m| encode(&m)),
            }
        };
    }
    recode!(Hello Challenge Response Welcome GetTree Tree Notify Join PutLink Done Ping Pong Reach
        Reached LogRead LogData SyncDigest SyncDigests SyncRead SyncData SyncEnd SyncPos
        DirtyRead DirtyPiece)
}

/// One payload of each kind, no field of which has its default.
pub fn samples() -> Vec<(Kind, Vec<u8>)> {
    let mut all = Vec::new();
    macro_rules! sample {
        ($($name:ident { $($field:ident: $value:expr),* $(,)? })*) => {
            $(all.push(($name::KIND, encode(&$name { $($field: $value),* })));)*
        };
    }
    let (resource, creator, host) = (name("res-1"), name("alpha"), name("beta"));
    let (now, stamp) = (time(1_700_000_000), time(1_600_000_000));
    sample! {
        Hello { proto_min: 2, proto_max: 3, features: 5, required: 1, host: host, uuid: "alpha_1.2",
            purpose: Purpose::Log, nonce: [3; 32], version: "1.0" }
        Challenge { proto: 2, features: 1, host: host, uuid: "alpha_1.2", nonce: [4; 32], version: "1.1" }
        Response {}
        Welcome { now: now }
        ErrorReply { code: ErrorCode::WrongKey, text: "do this: ä" }
        GetTree { since: 5, instance: 6, wait_ms: 7, now: now }
        Notify { now: now }
        Join { host: host, ip: "10.0.0.1", now: now }
        PutLink { path: "ips/ip-beta", value: b"10.0.0.2", stamp: stamp, now: now }
        Done { now: now, changed: true }
        Ping { now: now }
        Pong { now: now, real: stamp }
        Reach { host: host }
        Reached { contact: Contact::Seen, age_ms: 12, text: "connected" }
        LogRead { resource: resource, number: 17, creator: creator, offset: 4096, max: 65536, wait_ms: 100, log_id: 9 }
        LogData { status: LogStatus::Data, end: 8192, closed: true, log_id: 9, offset: 512, data: &[1; 1024] }
        SyncDigest { resource: resource, offset: 8192, length: 65536, grain: 16384 }
        SyncDigests { status: SyncStatus::Data, offset: 8192, length: 65536, grain: 16384, data: &[2; 128] }
        SyncRead { resource: resource, offset: 8192, length: 512 }
        SyncData { status: SyncStatus::Data, offset: 8192, data: &[3; 512] }
        SyncEnd { resource: resource }
        SyncPos { status: SyncStatus::Data, number: 17, creator: Some(creator), pos: 8192, size: 1 << 30 }
        DirtyRead { resource: resource, number: 17, creator: creator, piece: 3, since: 9 }
        DirtyPiece { status: SyncStatus::Data, piece: 1, size: 1 << 40, grain: 1 << 16, generation: 4, data: &[] }
    }
    all.push((
        Kind::Tree,
        tree(&[("uuid", "alpha_1.2"), ("ips/ip-alpha", "10.0.0.1")], 4096),
    ));
    assert!(Kind::ALL
        .iter()
        .all(|kind| all.iter().any(|(k, _)| k == kind)));
    all
}

pub fn tree(entries: &[(&str, &str)], limit: usize) -> Vec<u8> {
    let mut out = KVec::new();
    let head = TreeHead {
        instance: 1,
        generation: 2,
        full: true,
        now: time(3),
    };
    let mut writer = TreeWriter::new(&mut out, limit, &head).unwrap();
    for (path, value) in entries {
        let value = value.as_bytes();
        let stamp = time(4);
        assert!(writer.push(&Entry { path, value, stamp }).unwrap());
    }
    writer.finish(true).unwrap();
    out.to_vec()
}

/// A whole frame around a payload.
pub fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header::new::<HostDigest>(kind, 1, &[payload]).unwrap();
    [&header.encode::<HostDigest>(), payload].concat()
}

pub fn payload_of(frame: &[u8]) -> &[u8] {
    &frame[HEADER_LEN..]
}

pub fn key(seed: u8) -> ClusterKey {
    ClusterKey::new(std::array::from_fn(|i| {
        seed.wrapping_add(u8::try_from(i).unwrap())
    }))
    .unwrap()
}

pub fn identity<'a>(host: &str, uuid: &'a str, key: &'a ClusterKey) -> Identity<'a> {
    Identity {
        host: name(host),
        uuid,
        key,
        version: "1.0",
        features: features::ALL,
        required: features::FRAME_MAC,
    }
}

pub const UUID: &str = "alpha_1700000000.000000001";

/// Nonces of the client and of the server.
pub const NONCES: (Nonce, Nonce) = ([0xc1; 32], [0x5e; 32]);

/// What flows over the cable, in order: Hello, Challenge, Response, Welcome; or an error.
pub type Tap<'t> = &'t mut dyn FnMut(usize, Vec<u8>) -> Vec<u8>;

#[derive(Debug)]
pub struct Outcome {
    pub client: Result<Session, Refusal>,
    pub server: Result<Session, Refusal>,
}

impl Outcome {
    pub fn sessions(self) -> (Session, Session) {
        (self.client.unwrap(), self.server.unwrap())
    }

    pub fn is_established(&self) -> bool {
        self.client.is_ok() && self.server.is_ok()
    }
}

/// A client and a server shake hands; `tap` may change each frame.
pub fn shake(
    client: Identity<'_>,
    expect: Option<Name>,
    purpose: Purpose,
    server: Identity<'_>,
    port_offset: u16,
    (nonce_c, nonce_s): (Nonce, Nonce),
    tap: Tap<'_>,
) -> Outcome {
    let mut out = KVec::new();
    let mut step = 0;
    let mut send = |out: &mut KVec<u8>| {
        let bytes = tap(step, out.to_vec());
        step += 1;
        out.clear();
        bytes
    };
    let gone = || Refusal::new(ErrorCode::Internal, format_args!("the other side is gone"));
    let handshake =
        ClientHandshake::start::<HostDigest>(client, purpose, expect, nonce_c, &mut out);
    let mut c = match handshake {
        Ok(c) => c,
        Err(refusal) => {
            let (client, server) = (Err(refusal), Err(gone()));
            return Outcome { client, server };
        }
    };
    let mut s = ServerHandshake::new(server, port_offset, nonce_s).unwrap();
    let mut on_server = |bytes: &[u8], out: &mut KVec<u8>| {
        let header = Header::parse::<HostDigest>(bytes, MAX_UNAUTHENTICATED)
            .map_err(|e| s.on_garbage::<HostDigest>(e, out))?;
        s.on_frame::<HostDigest>(&header, &bytes[HEADER_LEN..], out)
    };
    let mut on_client = |bytes: &[u8], out: &mut KVec<u8>| {
        let header = Header::parse::<HostDigest>(bytes, MAX_UNAUTHENTICATED)?;
        c.on_frame::<HostDigest>(&header, &bytes[HEADER_LEN..], out)
    };

    let hello = send(&mut out);
    if let Err(server) = on_server(&hello, &mut out) {
        let refused = on_client(&send(&mut out), &mut out).map(|_| ());
        let client = Err(refused.expect_err("an error is no challenge"));
        let server = Err(server);
        return Outcome { client, server };
    }
    let challenge = send(&mut out);
    if let Err(client) = on_client(&challenge, &mut out) {
        let (client, server) = (Err(client), Err(gone()));
        return Outcome { client, server };
    }
    let response = send(&mut out);
    if let Err(server) = on_server(&response, &mut out) {
        let refused = on_client(&send(&mut out), &mut out).map(|_| ());
        let client = Err(refused.expect_err("an error is no welcome"));
        let server = Err(server);
        return Outcome { client, server };
    }
    let server = s.welcome::<HostDigest>(time(5), &mut out);
    let welcome = send(&mut out);
    let client = match on_client(&welcome, &mut out) {
        Ok(ClientStep::Ready(session, _)) => Ok(session),
        Ok(ClientStep::Send) => panic!("nothing to send after the welcome"),
        Err(refusal) => Err(refusal),
    };
    Outcome { client, server }
}

/// A good handshake between two members.
pub fn sessions(purpose: Purpose, features: u64) -> (Session, Session) {
    let key = key(1);
    let with = |host| Identity {
        features,
        required: 0,
        ..identity(host, UUID, &key)
    };
    shake(
        with("alpha"),
        Some(name("beta")),
        purpose,
        with("beta"),
        purpose.port_offset(),
        NONCES,
        &mut |_, bytes| bytes,
    )
    .sessions()
}

/// Receives one frame.
pub fn open(rx: &mut Receiver, bytes: &[u8]) -> Result<(Kind, Vec<u8>), WireError> {
    let header = rx.header::<HostDigest>(bytes.get(..HEADER_LEN).ok_or(WireError::Truncated)?)?;
    assert!(header.body_len() <= usize::try_from(MAX_PAYLOAD).unwrap() + MAC_LEN);
    let (kind, payload) = rx.open::<HostDigest>(&header, &bytes[HEADER_LEN..])?;
    Ok((kind, payload.to_vec()))
}

pub fn kvec(bytes: &[u8]) -> KVec<u8> {
    let mut out = KVec::new();
    out.extend_from_slice(bytes, GFP_KERNEL).unwrap();
    out
}
