// SPDX-License-Identifier: GPL-2.0-or-later

//! After the handshake: sealed frames, and which messages are allowed.

use kernel::alloc::KVec;
use kernel::inject;
use mars_core::wire::frame::*;
use mars_core::wire::message::bulk::*;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::meta::*;
use mars_core::wire::message::*;
use mars_core::wire::session::*;
use mars_core::wire::WireError;

use crate::util::*;

fn ping(session: &mut Session, id: u32) -> Vec<u8> {
    let mut out = KVec::new();
    session
        .tx
        .message::<HostDigest, _>(
            id,
            &Ping {
                now: time(id.into()),
            },
            &mut out,
        )
        .unwrap();
    out.to_vec()
}

#[test]
fn given_a_session_when_frames_flow_then_both_directions_are_understood() {
    for features in [0, features::FRAME_MAC] {
        let (mut client, mut server) = sessions(Purpose::Meta, features);
        for id in 0..5 {
            let bytes = ping(&mut client, id);
            assert_eq!(open(&mut server.rx, &bytes).unwrap().0, Kind::Ping);
            let mut out = KVec::new();
            let pong = Pong {
                now: time(1),
                real: time(2),
            };
            server
                .tx
                .message::<HostDigest, _>(id, &pong, &mut out)
                .unwrap();
            let (kind, payload) = open(&mut client.rx, &out).unwrap();
            assert_eq!((kind, Pong::decode(&payload)), (Kind::Pong, Ok(pong)));
        }
    }
}

#[test]
fn given_sealed_frames_when_replayed_reordered_dropped_or_reflected_then_it_is_noticed() {
    let fresh = || sessions(Purpose::Meta, features::FRAME_MAC);
    let (mut client, mut server) = fresh();
    let (first, second) = (ping(&mut client, 1), ping(&mut client, 2));
    open(&mut server.rx, &first).unwrap();
    assert_eq!(open(&mut server.rx, &first), Err(WireError::BadMac));

    let (mut client, mut server) = fresh();
    let frames = (ping(&mut client, 1), ping(&mut client, 2));
    assert_eq!((&frames.0, &frames.1), (&first, &second));
    assert_eq!(open(&mut server.rx, &frames.1), Err(WireError::BadMac));

    // Frames of one direction mean nothing in the other.
    let (mut client, mut server) = fresh();
    let mut out = KVec::new();
    let error = ErrorReply {
        code: ErrorCode::Busy,
        text: "",
    };
    server
        .tx
        .message::<HostDigest, _>(0, &error, &mut out)
        .unwrap();
    let mirrored = open(&mut server.rx, &out);
    assert_eq!(mirrored, Err(WireError::BadMac));
    assert!(open(&mut client.rx, &out).is_ok());
}

#[test]
fn given_a_sealed_frame_when_anything_is_changed_with_good_checksums_then_it_is_noticed() {
    let (mut client, _) = sessions(Purpose::Meta, features::FRAME_MAC);
    let good = ping(&mut client, 1);
    let header = Header::parse::<HostDigest>(&good, MAX_REQUEST).unwrap();
    let body = &good[HEADER_LEN..];
    let receive = |header: Header, body: &[u8]| {
        let (_, mut server) = sessions(Purpose::Meta, features::FRAME_MAC);
        open(
            &mut server.rx,
            &[&header.encode::<HostDigest>(), body].concat(),
        )
    };
    assert!(receive(header, body).is_ok());
    for at in 0..body.len() {
        let mut bad = body.to_vec();
        bad[at] ^= 1;
        let payload = &bad[..bad.len() - MAC_LEN];
        let forged = Header::new::<HostDigest>(header.kind, header.id, &[payload]).unwrap();
        let forged = Header {
            flags: header.flags,
            ..forged
        };
        assert_eq!(receive(forged, &bad), Err(WireError::BadMac), "{at}");
    }
    assert_eq!(
        receive(Header { id: 2, ..header }, body),
        Err(WireError::BadMac)
    );
    assert_eq!(
        receive(
            Header {
                kind: Kind::Notify.number(),
                ..header
            },
            body
        ),
        Err(WireError::BadMac)
    );
    let stripped = Header { flags: 0, ..header };
    assert_eq!(
        receive(stripped, &body[..body.len() - MAC_LEN]),
        Err(WireError::BadFlags)
    );
}

#[test]
fn given_a_session_without_codes_when_one_comes_then_it_is_refused() {
    let (mut with, _) = sessions(Purpose::Meta, features::FRAME_MAC);
    let (_, mut without) = sessions(Purpose::Meta, 0);
    assert_eq!(
        open(&mut without.rx, &ping(&mut with, 1)),
        Err(WireError::BadFlags)
    );
}

#[test]
fn given_each_kind_when_sent_or_received_then_only_that_of_the_purpose_passes() {
    let replies = |purpose: Purpose| {
        let requests = Kind::ALL
            .iter()
            .filter(move |k| is_request_of(purpose, **k));
        requests.filter_map(|k| reply_to(*k)).collect::<Vec<_>>()
    };
    for purpose in Purpose::ALL {
        for (kind, payload) in samples() {
            let (mut client, mut server) = sessions(*purpose, 0);
            let bytes = frame(kind.number(), &payload);
            let at_server = open(&mut server.rx, &bytes);
            let at_client = open(&mut client.rx, &bytes);
            let unexpected = Err(WireError::UnexpectedKind(kind.number()));
            let payload = Ok((kind, payload));
            let request = is_request_of(*purpose, kind);
            let reply = kind == Kind::Error || replies(*purpose).contains(&kind);
            assert_eq!(
                &at_server,
                if request { &payload } else { &unexpected },
                "{purpose:?}"
            );
            assert_eq!(
                &at_client,
                if reply { &payload } else { &unexpected },
                "{purpose:?}"
            );
            assert!(!(request && reply));
        }
    }
    let (mut client, mut server) = sessions(Purpose::Log, 0);
    let mut out = KVec::new();
    let error = client
        .tx
        .message::<HostDigest, _>(1, &Ping { now: time(1) }, &mut out);
    assert_eq!(error, Err(WireError::UnexpectedKind(Kind::Ping.number())));
    assert!(server
        .tx
        .message::<HostDigest, _>(1, &Ping { now: time(1) }, &mut out)
        .is_err());
    assert!(out.is_empty());
}

#[test]
fn given_a_kind_of_the_future_when_received_then_the_stream_goes_on() {
    let (mut client, mut server) = sessions(Purpose::Meta, 0);
    let error = open(&mut server.rx, &frame(0x7777, b"?")).unwrap_err();
    assert_eq!(error, WireError::UnknownKind(0x7777));
    assert!(error.stream_is_intact());
    assert!(open(&mut server.rx, &ping(&mut client, 1)).is_ok());
    assert!(!WireError::BadMac.stream_is_intact());
}

#[test]
fn given_a_long_request_when_its_header_comes_then_the_server_does_not_wait_for_it() {
    let (client, server) = sessions(Purpose::Sync, 0);
    let long = Header {
        kind: 0x30,
        flags: 0,
        id: 1,
        len: MAX_REQUEST + 1,
        payload_crc: 0,
    };
    let bytes = long.encode::<HostDigest>();
    assert!(matches!(
        server.rx.header::<HostDigest>(&bytes),
        Err(WireError::TooLong { .. })
    ));
    assert!(client.rx.header::<HostDigest>(&bytes).is_ok());
}

#[test]
fn given_bulk_data_when_sent_from_where_it_lies_then_the_frame_is_whole() {
    let data: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let message = LogData {
        status: LogStatus::Data,
        end: 8192,
        closed: false,
        log_id: 3,
        offset: 4096,
        data: &data,
    };
    for features in [0, features::FRAME_MAC] {
        let (mut client, mut server) = sessions(Purpose::Log, features);
        let mut whole = KVec::new();
        server
            .tx
            .message::<HostDigest, _>(7, &message, &mut whole)
            .unwrap();
        let (_, mut server) = sessions(Purpose::Log, features);
        let mut head = kvec(b"before");
        let empty = LogData {
            data: &[],
            ..message
        };
        let tail = server
            .tx
            .bulk::<HostDigest, _>(7, &empty, &data, &mut head)
            .unwrap();
        let sent = [&head[6..], &data, tail.as_bytes()].concat();
        assert_eq!(sent, whole.to_vec());
        let (kind, payload) = open(&mut client.rx, &sent).unwrap();
        assert_eq!(
            (kind, LogData::decode(&payload)),
            (Kind::LogData, Ok(message))
        );
        assert_eq!(
            tail.as_bytes().len(),
            if features == 0 { 0 } else { MAC_LEN }
        );
    }
}

#[test]
fn given_a_failing_allocation_when_sealed_then_the_next_frame_is_still_in_order() {
    // The handshakes are not part of what may fail.
    let mut fresh: Vec<_> = (0..20)
        .map(|_| sessions(Purpose::Meta, features::ALL))
        .collect();
    let tries = inject::for_each_failure(|| {
        let (mut client, mut server) = fresh.pop().unwrap();
        let mut out = KVec::new();
        let ping = Ping { now: time(1) };
        if client
            .tx
            .message::<HostDigest, _>(1, &ping, &mut out)
            .is_err()
        {
            assert!(out.is_empty());
            client
                .tx
                .message::<HostDigest, _>(1, &ping, &mut out)
                .unwrap();
        }
        assert_eq!(open(&mut server.rx, &out).unwrap().0, Kind::Ping);
    });
    assert!(tries > 1);
}
