// SPDX-License-Identifier: GPL-2.0-or-later

//! Headers, limits and checksums.

use mars_core::digest::Digest;
use mars_core::wire::frame::*;
use mars_core::wire::WireError;

use crate::util::*;

fn parse(bytes: &[u8], max: u32) -> Result<Header, WireError> {
    Header::parse::<HostDigest>(bytes, max)
}

fn receive(bytes: &[u8]) -> Result<Vec<u8>, WireError> {
    let header = parse(bytes, MAX_PAYLOAD)?;
    let (payload, _) = header.split_body::<HostDigest>(&bytes[HEADER_LEN..])?;
    Ok(payload.to_vec())
}

#[test]
fn given_a_frame_then_its_bytes_are_as_documented() {
    let bytes = frame(0x16, b"123456789");
    assert_eq!(bytes[..4], *b"MRS2");
    assert_eq!(bytes[4..6], [0x16, 0]);
    assert_eq!(bytes[6..8], [0, 0]);
    assert_eq!(bytes[8..12], [1, 0, 0, 0]);
    assert_eq!(bytes[12..16], [9, 0, 0, 0]);
    assert_eq!(bytes[16..20], 0xe306_9283u32.to_le_bytes());
    assert_eq!(
        bytes[20..24],
        (!HostDigest::crc32c(!0, &bytes[..20])).to_le_bytes()
    );
    assert_eq!(receive(&bytes).unwrap(), b"123456789");
}

#[test]
fn given_any_flipped_bit_when_received_then_it_is_noticed() {
    let good = frame(0x16, b"some payload");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(receive(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn given_a_cut_or_extended_frame_when_received_then_it_is_noticed() {
    let good = frame(0x16, b"some payload");
    for len in 0..good.len() {
        assert_eq!(receive(&good[..len]), Err(WireError::Truncated));
    }
    assert_eq!(
        receive(&[&good[..], b"x"].concat()),
        Err(WireError::Truncated)
    );
}

#[test]
fn given_a_length_above_the_limit_when_parsed_then_it_is_refused_whatever_the_caller_allows() {
    let at_limit = Header {
        kind: 1,
        flags: 0,
        id: 0,
        len: 4096,
        payload_crc: 0,
    };
    let bytes = at_limit.encode::<HostDigest>();
    assert_eq!(parse(&bytes, 4096), Ok(at_limit));
    assert_eq!(
        parse(&bytes, 4095),
        Err(WireError::TooLong {
            len: 4096,
            max: 4095
        })
    );
    let huge = Header {
        len: u32::MAX,
        ..at_limit
    };
    let error = WireError::TooLong {
        len: u32::MAX,
        max: MAX_PAYLOAD,
    };
    assert_eq!(parse(&huge.encode::<HostDigest>(), u32::MAX), Err(error));
}

#[test]
fn given_unknown_flags_when_parsed_then_only_those_that_must_be_understood_are_refused() {
    let with = |flags| {
        let header = Header {
            kind: 1,
            flags,
            id: 0,
            len: 0,
            payload_crc: 0,
        };
        parse(&header.encode::<HostDigest>(), 0).map(|header| header.body_len())
    };
    assert_eq!(with(0x00ff), Ok(0));
    assert_eq!(with(FLAG_MAC), Ok(MAC_LEN));
    for bit in 9..16 {
        assert_eq!(with(1 << bit), Err(WireError::BadFlags));
    }
}

#[test]
fn given_another_protocol_when_parsed_then_the_text_says_so() {
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0; 24],
        &[0xff; 24],
    ] {
        let error = parse(garbage, MAX_UNAUTHENTICATED).unwrap_err();
        assert_eq!(error, WireError::BadMagic);
        assert!(error.to_string().contains("check that address and port"));
    }
}

#[test]
fn given_too_much_payload_when_a_header_is_made_then_it_fails() {
    let big = vec![0; usize::try_from(MAX_PAYLOAD).unwrap()];
    assert!(Header::new::<HostDigest>(1, 1, &[&big]).is_ok());
    assert!(Header::new::<HostDigest>(1, 1, &[&big, &[0]]).is_err());
}
