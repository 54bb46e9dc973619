// SPDX-License-Identifier: GPL-2.0-or-later

//! A handshake with someone who does not know the key: the payloads are what the fuzzer says. Nobody gets in.

#![no_main]

use kernel::alloc::KVec;
use libfuzzer_sys::fuzz_target;
use mars_core::wire::auth::*;
use mars_core::wire::frame::*;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::*;
use mars_host_digest::HostDigest;

#[path = "../common.rs"]
mod common;

fuzz_target!(|data: &[u8]| {
    let key = common::key();
    let me = common::identity("alpha", &key);
    let mut out = KVec::new();

    let mut client =
        ClientHandshake::start::<HostDigest>(me, Purpose::Meta, None, [1; 32], &mut out)
            .expect("memory is there");
    let Some((frames, kinds)) = data
        .split_last_chunk::<3>()
        .map(|(rest, kinds)| (rest.chunks(1 + rest.len() / 3), kinds))
    else {
        return;
    };
    for (payload, kind) in frames.clone().zip(kinds) {
        let kind = if *kind == 0 {
            Kind::Challenge
        } else {
            Kind::ALL[usize::from(*kind) % Kind::ALL.len()]
        };
        match client.on_frame::<HostDigest>(&header(kind, payload), payload, &mut out) {
            Ok(_) => panic!("the client believes a server without key"),
            Err(refusal) => assert!(refusal.text().len() <= MAX_TEXT),
        }
    }

    let mut server = ServerHandshake::new(me, 0, [2; 32]).expect("a random number");
    for (at, (payload, kind)) in frames.zip(kinds).enumerate() {
        let usual = [Kind::Hello, Kind::Response, Kind::Response][at];
        let kind = if *kind == 0 {
            usual
        } else {
            Kind::ALL[usize::from(*kind) % Kind::ALL.len()]
        };
        match server.on_frame::<HostDigest>(&header(kind, payload), payload, &mut out) {
            Ok(ServerStep::Send) => assert_eq!((at, kind), (0, Kind::Hello)),
            Ok(ServerStep::Proved(..)) => panic!("the server believes a client without key"),
            Err(_) => break,
        }
    }
    assert!(server
        .welcome::<HostDigest>(common::time(1), &mut out)
        .is_err());
});

fn header(kind: Kind, payload: &[u8]) -> Header {
    Header::new::<HostDigest>(kind.number(), 0, &[payload]).expect("short enough")
}
