// SPDX-License-Identifier: GPL-2.0-or-later

//! Mutual authentication: who gets in, who doesn't, and what the administrator reads.

use kernel::alloc::KVec;
use kernel::inject;
use mars_core::wire::auth::*;
use mars_core::wire::frame::*;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::*;

use crate::util::*;

fn shake_as(client: Identity<'_>, purpose: Purpose, server: Identity<'_>) -> Outcome {
    let port = purpose.port_offset();
    shake(
        client,
        None,
        purpose,
        server,
        port,
        NONCES,
        &mut |_, bytes| bytes,
    )
}

/// Both sides read the same reason; one found it, the other was told.
fn reason(outcome: Outcome) -> (ErrorCode, String) {
    let (client, server) = (outcome.client.unwrap_err(), outcome.server.unwrap_err());
    let (finder, told) = if client.by_peer {
        (server, client)
    } else {
        (client, server)
    };
    assert!(!finder.by_peer);
    if told.by_peer {
        assert_eq!((told.code, told.text()), (finder.code, finder.text()));
        assert!(told.to_string().starts_with("refused by the peer: "));
    }
    (finder.code, finder.text().into())
}

#[test]
fn given_two_members_when_they_shake_hands_then_each_knows_the_other() {
    let key = key(1);
    for purpose in Purpose::ALL {
        let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
        let (client, server) = shake_as(alpha, *purpose, beta).sessions();
        assert_eq!(
            client.peer,
            Peer {
                host: name("beta"),
                joins: false
            }
        );
        assert_eq!(
            server.peer,
            Peer {
                host: name("alpha"),
                joins: false
            }
        );
        assert_eq!((client.purpose, server.purpose), (*purpose, *purpose));
        assert_eq!((client.proto, client.features), (2, features::ALL));
        assert_eq!((server.proto, server.features), (2, features::ALL));
    }
}

#[test]
fn given_different_keys_when_they_shake_hands_then_both_hosts_and_the_remedy_are_named() {
    let (good, bad) = (key(1), key(2));
    let outcome = shake_as(
        identity("alpha", UUID, &good),
        Purpose::Meta,
        identity("beta", UUID, &bad),
    );
    let (code, text) = reason(outcome);
    assert_eq!(code, ErrorCode::WrongKey);
    for part in ["alpha", "beta", "/mars/cluster-key", "sha256sum"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn given_another_cluster_when_they_shake_hands_then_both_uuids_are_named() {
    let key = key(1);
    let outcome = shake_as(
        identity("alpha", UUID, &key),
        Purpose::Meta,
        identity("beta", "other_2.0", &key),
    );
    let (code, text) = reason(outcome);
    assert_eq!(code, ErrorCode::WrongCluster);
    for part in ["alpha", "beta", UUID, "other_2.0", "merge-cluster"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn given_a_joining_host_when_it_shakes_hands_then_metadata_is_open_and_data_is_not() {
    let key = key(1);
    for purpose in Purpose::ALL {
        for (client, server) in [(ANY_UUID, UUID), (UUID, ANY_UUID)] {
            let outcome = shake_as(
                identity("alpha", client, &key),
                *purpose,
                identity("beta", server, &key),
            );
            if matches!(purpose, Purpose::Meta | Purpose::Join) {
                let (c, s) = outcome.sessions();
                assert_eq!(
                    (c.peer.joins, s.peer.joins),
                    (server == ANY_UUID, client == ANY_UUID)
                );
            } else {
                let (code, text) = reason(outcome);
                assert_eq!(code, ErrorCode::NoCluster);
                assert!(text.contains("join-cluster"), "{text}");
            }
        }
    }
}

#[test]
fn given_a_server_of_a_later_protocol_only_when_connected_then_both_versions_are_named() {
    let key = key(1);
    let mut out = KVec::new();
    let hello = Hello {
        proto_min: 3,
        proto_max: 4,
        features: 0,
        required: 0,
        host: name("newer"),
        uuid: UUID,
        purpose: Purpose::Meta,
        nonce: [1; 32],
        version: "9.9",
    };
    let bytes = frame(Kind::Hello.number(), &encode(&hello));
    let header = Header::parse::<HostDigest>(&bytes, MAX_UNAUTHENTICATED).unwrap();
    let mut server = ServerHandshake::new(identity("beta", UUID, &key), 0, [2; 32]).unwrap();
    let refusal = server
        .on_frame::<HostDigest>(&header, payload_of(&bytes), &mut out)
        .unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Version);
    assert!(refusal.text().contains("3…4 (MARS 9.9)"), "{refusal}");
    let reply = ErrorReply::decode(payload_of(&out)).unwrap();
    assert_eq!(reply.text, refusal.text());
}

#[test]
fn given_features_that_one_side_requires_when_the_other_lacks_them_then_neither_talks() {
    let key = key(1);
    let (all, none) = (
        identity("alpha", UUID, &key),
        Identity {
            features: 0,
            required: 0,
            ..identity("beta", UUID, &key)
        },
    );
    assert_eq!(
        reason(shake_as(all, Purpose::Meta, none)).0,
        ErrorCode::Version
    );
    assert_eq!(
        reason(shake_as(none, Purpose::Meta, all)).0,
        ErrorCode::Version
    );
    let relaxed = Identity { required: 0, ..all };
    let (client, server) = shake_as(relaxed, Purpose::Meta, none).sessions();
    assert_eq!((client.features, server.features), (0, 0));
}

#[test]
fn given_an_address_that_leads_elsewhere_when_connected_then_the_names_say_so() {
    let key = key(1);
    let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
    let outcome = shake(
        alpha,
        Some(name("gamma")),
        Purpose::Log,
        beta,
        1,
        NONCES,
        &mut |_, bytes| bytes,
    );
    let (code, text) = reason(outcome);
    assert_eq!(code, ErrorCode::WrongHost);
    assert!(text.contains("beta") && text.contains("gamma"), "{text}");

    let (code, text) = reason(shake_as(
        alpha,
        Purpose::Meta,
        identity("alpha", UUID, &key),
    ));
    assert_eq!(code, ErrorCode::WrongHost);
    assert!(text.contains("called itself"), "{text}");
    assert!(shake_as(alpha, Purpose::Join, alpha).is_established());

    let outcome = shake(
        alpha,
        None,
        Purpose::Log,
        beta,
        2,
        NONCES,
        &mut |_, bytes| bytes,
    );
    assert_eq!(reason(outcome).0, ErrorCode::WrongPort);
}

#[test]
fn given_a_recorded_session_when_replayed_to_a_server_then_the_proof_is_worth_nothing() {
    let key = key(1);
    let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
    let mut record = Vec::new();
    let recorded = shake(
        alpha,
        None,
        Purpose::Meta,
        beta,
        0,
        NONCES,
        &mut |_, bytes| {
            record.push(bytes.clone());
            bytes
        },
    );
    assert!(recorded.is_established());

    let mut server = ServerHandshake::new(beta, 0, [0x77; 32]).unwrap();
    let mut out = KVec::new();
    let mut feed = |bytes: &[u8]| {
        let header = Header::parse::<HostDigest>(bytes, MAX_UNAUTHENTICATED).unwrap();
        server.on_frame::<HostDigest>(&header, payload_of(bytes), &mut out)
    };
    assert_eq!(feed(&record[0]).unwrap(), ServerStep::Send);
    assert_eq!(feed(&record[2]).unwrap_err().code, ErrorCode::WrongKey);
    assert_eq!(feed(&record[2]).unwrap_err().code, ErrorCode::NotAllowed);
}

#[test]
fn given_a_recorded_session_when_replayed_to_a_client_then_it_does_not_believe() {
    let key = key(1);
    let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
    let mut record = Vec::new();
    shake(
        alpha,
        None,
        Purpose::Meta,
        beta,
        0,
        NONCES,
        &mut |_, bytes| {
            record.push(bytes.clone());
            bytes
        },
    );
    let outcome = shake(
        alpha,
        None,
        Purpose::Meta,
        beta,
        0,
        ([0x99; 32], NONCES.1),
        &mut |step, bytes| {
            if step == 1 {
                record[1].clone()
            } else {
                bytes
            }
        },
    );
    assert_eq!(outcome.client.unwrap_err().code, ErrorCode::WrongKey);
}

#[test]
fn given_a_reflected_proof_when_sent_back_then_it_is_refused() {
    // The attacker has no key; it answers with what the other side itself has just made.
    let key = key(1);
    let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
    let mut challenge = Vec::new();
    let outcome = shake(
        alpha,
        None,
        Purpose::Meta,
        beta,
        0,
        NONCES,
        &mut |step, bytes| match step {
            1 => {
                challenge = payload_of(&bytes).to_vec();
                bytes
            }
            2 => {
                let proof = challenge[challenge.len() - 40..].to_vec();
                frame(Kind::Response.number(), &proof)
            }
            _ => bytes,
        },
    );
    assert_eq!(outcome.server.unwrap_err().code, ErrorCode::WrongKey);

    // The same random number on both sides can only be a mirror.
    let outcome = shake(
        alpha,
        None,
        Purpose::Meta,
        beta,
        0,
        ([7; 32], [7; 32]),
        &mut |_, bytes| bytes,
    );
    assert_eq!(reason(outcome).0, ErrorCode::WrongKey);
}

#[test]
fn given_frames_in_a_wrong_order_when_received_then_the_handshake_ends() {
    let key = key(1);
    let me = identity("beta", UUID, &key);
    for (kind, payload) in samples() {
        if kind == Kind::Hello {
            continue;
        }
        let bytes = frame(kind.number(), &payload);
        let header = Header::parse::<HostDigest>(&bytes, MAX_UNAUTHENTICATED).unwrap();
        let mut server = ServerHandshake::new(me, 0, NONCES.1).unwrap();
        let mut out = KVec::new();
        let refusal = server
            .on_frame::<HostDigest>(&header, payload_of(&bytes), &mut out)
            .unwrap_err();
        assert_eq!(refusal.by_peer, kind == Kind::Error);
        assert_eq!(out.is_empty(), kind == Kind::Error);
        assert!(server.welcome::<HostDigest>(time(1), &mut out).is_err());
    }
}

#[test]
fn given_an_oversized_or_foreign_first_frame_when_received_then_it_is_answered_by_an_error() {
    let key = key(1);
    let mut out = KVec::new();
    let mut server = ServerHandshake::new(identity("beta", UUID, &key), 0, NONCES.1).unwrap();
    let big = Header {
        kind: 1,
        flags: 0,
        id: 0,
        len: MAX_UNAUTHENTICATED + 1,
        payload_crc: 0,
    };
    let error =
        Header::parse::<HostDigest>(&big.encode::<HostDigest>(), MAX_UNAUTHENTICATED).unwrap_err();
    let refusal = server.on_garbage::<HostDigest>(error, &mut out);
    assert_eq!(refusal.code, ErrorCode::BadMessage);
    let header = Header::parse::<HostDigest>(&out, MAX_UNAUTHENTICATED).unwrap();
    assert_eq!(header.kind, Kind::Error.number());
    assert_eq!(
        ErrorReply::decode(payload_of(&out)).unwrap().code,
        ErrorCode::BadMessage
    );
}

#[test]
fn given_a_broken_random_generator_when_started_then_nothing_is_sent() {
    let key = key(1);
    let me = identity("alpha", UUID, &key);
    let mut out = KVec::new();
    assert!(
        ClientHandshake::start::<HostDigest>(me, Purpose::Meta, None, [0; 32], &mut out).is_err()
    );
    assert!(out.is_empty());
    assert!(ServerHandshake::new(me, 0, [0; 32]).is_err());
}

#[test]
fn given_a_peer_without_membership_when_refused_then_it_reads_why() {
    let key = key(1);
    let mut out = KVec::new();
    let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
    let mut client =
        ClientHandshake::start::<HostDigest>(alpha, Purpose::Meta, None, NONCES.0, &mut out)
            .unwrap();
    let mut server = ServerHandshake::new(beta, 0, NONCES.1).unwrap();
    let take = |out: &mut KVec<u8>| {
        let bytes = out.to_vec();
        out.clear();
        (
            Header::parse::<HostDigest>(&bytes, MAX_UNAUTHENTICATED).unwrap(),
            payload_of(&bytes).to_vec(),
        )
    };
    let (header, body) = take(&mut out);
    server
        .on_frame::<HostDigest>(&header, &body, &mut out)
        .unwrap();
    let (header, body) = take(&mut out);
    client
        .on_frame::<HostDigest>(&header, &body, &mut out)
        .unwrap();
    let (header, body) = take(&mut out);
    let step = server
        .on_frame::<HostDigest>(&header, &body, &mut out)
        .unwrap();
    assert_eq!(
        step,
        ServerStep::Proved(
            Peer {
                host: name("alpha"),
                joins: false
            },
            Purpose::Meta
        )
    );
    let refusal = Refusal::new(
        ErrorCode::UnknownPeer,
        format_args!("alpha is no member: join first"),
    );
    server.refuse::<HostDigest>(&refusal, &mut out);
    let (header, body) = take(&mut out);
    let told = client
        .on_frame::<HostDigest>(&header, &body, &mut out)
        .unwrap_err();
    assert_eq!(
        (told.code, told.text()),
        (ErrorCode::UnknownPeer, "alpha is no member: join first")
    );
    assert!(told.by_peer && out.is_empty());
}

#[test]
fn given_a_failing_allocation_when_shaking_hands_then_one_side_refuses_or_all_is_well() {
    let key = key(1);
    let (alpha, beta) = (identity("alpha", UUID, &key), identity("beta", UUID, &key));
    let other = identity("beta", "other_1.0", &key);
    for server in [beta, other] {
        let tries = inject::for_each_failure(|| {
            let mut out = KVec::new();
            let client = ClientHandshake::start::<HostDigest>(
                alpha,
                Purpose::Meta,
                None,
                NONCES.0,
                &mut out,
            );
            let Ok(mut client) = client else {
                assert!(out.is_empty());
                return;
            };
            let mut server = ServerHandshake::new(server, 0, NONCES.1).unwrap();
            for _ in 0..4 {
                let bytes = out.to_vec();
                out.clear();
                let Ok(header) = Header::parse::<HostDigest>(&bytes, MAX_UNAUTHENTICATED) else {
                    return;
                };
                let to_server = matches!(
                    Kind::from_number(header.kind),
                    Some(Kind::Hello | Kind::Response)
                );
                let ok = if to_server {
                    server
                        .on_frame::<HostDigest>(&header, payload_of(&bytes), &mut out)
                        .is_ok()
                } else {
                    client
                        .on_frame::<HostDigest>(&header, payload_of(&bytes), &mut out)
                        .is_ok()
                };
                if !ok {
                    // Either a whole error frame, or nothing.
                    assert!(out.is_empty() || out.len() > HEADER_LEN);
                    return;
                }
            }
        });
        assert!(tries > 3);
    }
}

#[test]
fn given_texts_when_parsed_as_key_then_only_64_digits_pass() {
    let good = key(9);
    let text = good.to_text();
    assert_eq!(text.len(), 65);
    assert_eq!(ClusterKey::parse(&text), Ok(good.clone()));
    assert_eq!(ClusterKey::parse(&text[..64]), Ok(good.clone()));
    assert_eq!(
        ClusterKey::parse(&text.to_ascii_uppercase()),
        Ok(good.clone())
    );
    for bad in [
        &text[..63],
        b"",
        b"\n",
        &[&text[..], b"\n"].concat(),
        &[b'g'; 64],
        &[b' '; 64],
    ] {
        assert_eq!(ClusterKey::parse(bad), Err(KeyError::Format));
    }
    assert_eq!(ClusterKey::parse(&[b'0'; 64]), Err(KeyError::Weak));
    assert_eq!(format!("{good:?}"), "ClusterKey(…)");
}
