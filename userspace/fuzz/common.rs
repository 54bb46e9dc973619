// SPDX-License-Identifier: GPL-2.0-or-later

//! What several fuzzers need.

#![allow(dead_code, reason = "not each fuzzer needs everything")]

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
use mars_host_digest::HostDigest;

pub fn key() -> ClusterKey {
    ClusterKey::new(std::array::from_fn(|i| i as u8)).expect("not all bytes are the same")
}

pub fn time(sec: u64) -> LamportTime {
    LamportTime::new(sec, 0).expect("no nanoseconds")
}

pub fn identity<'a>(host: &str, key: &'a ClusterKey) -> Identity<'a> {
    Identity {
        host: Name::new(host.as_bytes()).expect("a name"),
        uuid: "alpha_1.2",
        key,
        version: "1.0",
        features: 0,
        required: 0,
    }
}

/// A client and a server that know each other.
pub fn sessions() -> (Session, Session) {
    let key = key();
    let mut out = KVec::new();
    let (alpha, beta) = (identity("alpha", &key), identity("beta", &key));
    let mut client =
        ClientHandshake::start::<HostDigest>(alpha, Purpose::Meta, None, [1; 32], &mut out)
            .expect("starts");
    let mut server = ServerHandshake::new(beta, 0, [2; 32]).expect("starts");
    let take = |out: &mut KVec<u8>| {
        let bytes = out.to_vec();
        out.clear();
        let header = Header::parse::<HostDigest>(&bytes, MAX_UNAUTHENTICATED).expect("a frame");
        (header, bytes[HEADER_LEN..].to_vec())
    };
    let (header, body) = take(&mut out);
    server
        .on_frame::<HostDigest>(&header, &body, &mut out)
        .expect("hello");
    let (header, body) = take(&mut out);
    client
        .on_frame::<HostDigest>(&header, &body, &mut out)
        .expect("challenge");
    let (header, body) = take(&mut out);
    server
        .on_frame::<HostDigest>(&header, &body, &mut out)
        .expect("response");
    let server = server
        .welcome::<HostDigest>(time(1), &mut out)
        .expect("welcome");
    let (header, body) = take(&mut out);
    match client.on_frame::<HostDigest>(&header, &body, &mut out) {
        Ok(ClientStep::Ready(client, _)) => (client, server),
        other => panic!("{other:?}"),
    }
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

fn encode<'a, M: Message<'a>>(message: &M) -> Vec<u8> {
    let mut out = KVec::new();
    message
        .encode(&mut out)
        .expect("what was read can be written");
    out.to_vec()
}
