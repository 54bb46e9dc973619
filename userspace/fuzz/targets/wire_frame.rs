// SPDX-License-Identifier: GPL-2.0-or-later

//! A stream of bytes from a peer that has proved its key, as a server and as a client read it. Checksums are repaired,
//! so that the fuzzer gets behind them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::wire::frame::*;
use mars_core::wire::session::*;
use mars_host_digest::HostDigest;

#[path = "../common.rs"]
mod common;

fuzz_target!(|data: &[u8]| {
    let (mut client, mut server) = common::sessions();
    read(data, &mut client.rx);
    read(data, &mut server.rx);
    let mut repaired = data.to_vec();
    repair(&mut repaired);
    read(&repaired, &mut client.rx);
    read(&repaired, &mut server.rx);
});

fn read(mut data: &[u8], rx: &mut Receiver) {
    while let Some((header, rest)) = data.split_at_checked(HEADER_LEN) {
        let Ok(header) = rx.header::<HostDigest>(header) else {
            return;
        };
        let Some((body, rest)) = rest.split_at_checked(header.body_len()) else {
            return;
        };
        match rx.open::<HostDigest>(&header, body) {
            Ok((kind, payload)) => drop(common::recode(kind, payload)),
            Err(error) if error.stream_is_intact() => {}
            Err(_) => return,
        }
        data = rest;
    }
}

/// Writes good magics and checksums over whatever is there.
fn repair(data: &mut [u8]) {
    let mut at = 0;
    while let Some(frame) = data.get_mut(at..).filter(|rest| rest.len() >= HEADER_LEN) {
        let (header, rest) = frame.split_at_mut(HEADER_LEN);
        let len = usize::from(u16::from_le_bytes([header[12], header[13]])).min(rest.len());
        let kind = u16::from_le_bytes([header[4] & 0x3f, 0]);
        let Ok(good) = Header::new::<HostDigest>(kind, 1, &[&rest[..len]]) else {
            return;
        };
        header.copy_from_slice(&good.encode::<HostDigest>());
        at += HEADER_LEN + len;
    }
}
