// SPDX-License-Identifier: GPL-2.0-or-later

//! Fields and values of each message.

use kernel::alloc::KVec;
use kernel::inject;
use mars_core::wire::auth::Refusal;
use mars_core::wire::message::bulk::*;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::meta::*;
use mars_core::wire::message::*;
use mars_core::wire::schema::{
    Field,
    Fields,
    FIELD_HEAD, //
};
use mars_core::wire::WireError;

use crate::util::*;

/// A field as bytes.
fn field(tag: u16, ty: u16, bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap();
    [
        &tag.to_le_bytes()[..],
        &ty.to_le_bytes(),
        &len.to_le_bytes(),
        bytes,
    ]
    .concat()
}

/// The fields of a payload, each as bytes.
fn split(payload: &[u8]) -> Vec<Vec<u8>> {
    let fields = Fields::new(payload).map(Result::unwrap);
    fields
        .map(|Field { tag, ty, bytes }| field(tag, ty, bytes))
        .collect()
}

#[test]
fn given_each_message_when_sent_then_the_same_is_received() {
    for (kind, payload) in samples() {
        assert_eq!(recode(kind, &payload).as_ref(), Ok(&payload), "{kind:?}");
    }
}

#[test]
fn given_fields_of_a_newer_sender_when_received_then_they_are_skipped() {
    for (kind, payload) in samples() {
        let fields = split(&payload);
        for at in 0..=fields.len() {
            let mut more = fields.clone();
            more.insert(at, field(0x7001, 0x77, b"whatever"));
            more.insert(at, field(0x7002, 1, b""));
            assert_eq!(
                recode(kind, &more.concat()).as_ref(),
                Ok(&payload),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn given_an_older_sender_when_fields_are_missing_then_defaults_are_taken_or_the_field_is_named() {
    for (kind, payload) in samples() {
        let fields = split(&payload);
        for at in 0..fields.len() {
            let mut less = fields.clone();
            less.remove(at);
            match recode(kind, &less.concat()) {
                Ok(_) | Err(WireError::BadValue(_)) => {}
                Err(WireError::Missing(name)) => {
                    let without_default = ["host", "purpose", "nonce", "resource", "creator"];
                    assert!(without_default.contains(&name), "{kind:?} {name}");
                }
                Err(other) => panic!("{kind:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn given_the_same_field_twice_when_received_then_the_first_counts() {
    for (kind, payload) in samples() {
        let fields = split(&payload);
        for copy in &fields {
            let second = field(u16::from_le_bytes([copy[0], copy[1]]), 0x55, b"nonsense");
            let twice = [&payload[..], &second].concat();
            assert_eq!(recode(kind, &twice).as_ref(), Ok(&payload), "{kind:?}");
        }
    }
}

#[test]
fn given_a_known_field_of_another_type_when_received_then_it_is_refused() {
    for (kind, payload) in samples() {
        let fields = split(&payload);
        for at in 0..fields.len() {
            let mut other = fields.clone();
            other[at][2] ^= 0x40;
            assert!(
                matches!(recode(kind, &other.concat()), Err(WireError::BadType(_))),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn given_a_payload_cut_anywhere_when_received_then_it_is_an_error_or_ends_at_a_field() {
    for (kind, payload) in samples() {
        let mut ends = vec![0];
        for field in split(&payload) {
            ends.push(ends.last().unwrap() + field.len());
        }
        for len in 0..payload.len() {
            let result = recode(kind, &payload[..len]);
            assert!(
                ends.contains(&len) || result == Err(WireError::Truncated),
                "{kind:?} {len}"
            );
        }
    }
}

#[test]
fn given_any_flipped_bit_when_received_then_nothing_panics_and_nothing_is_allocated() {
    for (kind, payload) in samples() {
        for bit in 0..payload.len() * 8 {
            let mut bad = payload.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let before = inject::allocations();
            for field in Fields::new(&bad) {
                let _ = field;
            }
            let _ = Tree::decode(&bad).map(|tree| tree.entries().count());
            let _ = LogData::decode(&bad);
            assert_eq!(inject::allocations(), before);
            let _ = recode(kind, &bad);
        }
    }
}

#[test]
fn given_a_failing_allocation_when_encoded_then_the_buffer_is_as_before() {
    let log_data = LogData {
        status: LogStatus::Data,
        end: 4096,
        closed: false,
        log_id: 1,
        offset: 0,
        data: &[5; 4096],
    };
    let head = TreeHead {
        instance: 1,
        generation: 2,
        full: true,
        now: time(3),
    };
    let entry = Entry {
        path: "uuid",
        value: &[b'x'; 1000],
        stamp: time(4),
    };
    let tries = inject::for_each_failure(|| {
        let mut out = KVec::new();
        if log_data.encode(&mut out).is_err() {
            assert!(out.is_empty());
        }
        let len = out.len();
        if (LogData {
            data: &[],
            ..log_data
        })
        .encode_head(4096, &mut out)
        .is_err()
        {
            assert_eq!(out.len(), len);
        }
        let len = out.len();
        if let Ok(mut writer) = TreeWriter::new(&mut out, 8192, &head) {
            let mut count = 0;
            while let Ok(true) = writer.push(&entry) {
                count += 1;
            }
            if writer.finish(false).is_ok() {
                let tree = Tree::decode(&out[len..]).unwrap();
                assert_eq!(tree.entries().filter(|e| *e == Ok(entry)).count(), count);
            } else {
                assert_eq!(out.len(), len);
            }
        } else {
            assert_eq!(out.len(), len);
        }
    });
    assert!(tries > 5);
}

#[test]
fn given_bulk_data_when_only_the_head_is_encoded_then_head_and_data_are_the_message() {
    let data = [9; 1024];
    let message = LogData {
        status: LogStatus::Data,
        end: 2048,
        closed: false,
        log_id: 3,
        offset: 1024,
        data: &data,
    };
    let mut head = kvec(b"before");
    LogData {
        data: &[],
        ..message
    }
    .encode_head(1024, &mut head)
    .unwrap();
    assert_eq!([&head[6..], &data].concat(), encode(&message));
    assert_eq!(
        message.encode_head(1024, &mut head),
        Err(WireError::BadValue("data"))
    );
}

#[test]
fn given_values_out_of_range_when_received_or_sent_then_the_field_is_named() {
    let (resource, creator) = (name("r"), name("h"));
    let read = LogRead {
        resource,
        number: 1,
        creator,
        offset: 0,
        max: 512,
        wait_ms: 0,
        log_id: 0,
    };
    let refused = |read: LogRead| read.encode(&mut KVec::new()).unwrap_err();
    assert_eq!(
        refused(LogRead { offset: 1, ..read }),
        WireError::BadValue("offset")
    );
    assert_eq!(
        refused(LogRead {
            offset: u64::MAX - 511,
            ..read
        }),
        WireError::BadValue("offset")
    );
    assert_eq!(
        refused(LogRead {
            offset: 1 << 63,
            ..read
        }),
        WireError::BadValue("offset")
    );
    assert_eq!(
        refused(LogRead { max: 0, ..read }),
        WireError::BadValue("max")
    );
    assert_eq!(
        refused(LogRead { max: 513, ..read }),
        WireError::BadValue("max")
    );
    assert_eq!(
        refused(LogRead {
            max: (1 << 20) + 512,
            ..read
        }),
        WireError::BadValue("max")
    );
    assert_eq!(
        refused(LogRead {
            number: 1_000_000_000,
            ..read
        }),
        WireError::BadValue("number")
    );
    assert_eq!(
        refused(LogRead {
            wait_ms: 60_001,
            ..read
        }),
        WireError::BadValue("wait_ms")
    );

    let digest = SyncDigest {
        resource,
        offset: 0,
        length: 4096,
        grain: 4096,
    };
    for grain in [0, 1, 512, 4097, 12288, 2 << 20] {
        let bad = SyncDigest { grain, ..digest };
        assert_eq!(
            bad.encode(&mut KVec::new()),
            Err(WireError::BadValue("grain"))
        );
    }
    let many = SyncDigests {
        status: SyncStatus::Data,
        offset: 0,
        length: 4096,
        grain: 4096,
        data: &[0; 64],
    };
    assert_eq!(
        many.encode(&mut KVec::new()),
        Err(WireError::BadValue("data"))
    );
    let beyond = LogData {
        status: LogStatus::Data,
        end: 512,
        closed: false,
        log_id: 0,
        offset: 0,
        data: &[0; 1024],
    };
    assert_eq!(
        beyond.encode(&mut KVec::new()),
        Err(WireError::BadValue("end"))
    );
    let error = SyncData {
        status: SyncStatus::DiskError,
        offset: 0,
        data: &[0; 512],
    };
    assert_eq!(
        error.encode(&mut KVec::new()),
        Err(WireError::BadValue("data"))
    );
}

#[test]
fn given_names_that_are_paths_when_received_then_they_are_refused() {
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "-x",
        "a\0",
        "ä",
        &"x".repeat(64),
    ] {
        let payload = field(1, 2, bad.as_bytes());
        assert_eq!(
            SyncEnd::decode(&payload),
            Err(WireError::BadValue("resource")),
            "{bad:?}"
        );
    }
}

#[test]
fn given_addresses_when_a_host_joins_then_only_those_one_can_connect_to_pass() {
    let join = |ip| {
        Join {
            host: name("h"),
            ip,
            now: time(1),
        }
        .encode(&mut KVec::new())
    };
    for good in ["10.0.0.1", "::1", "fd00::12"] {
        assert_eq!(join(good), Ok(()));
    }
    for bad in [
        "",
        "0.0.0.0",
        "::",
        "example.org",
        "10.0.0.1:7777",
        "10.0.0.1\n",
        "/etc",
    ] {
        assert_eq!(join(bad), Err(WireError::BadValue("ip")), "{bad:?}");
    }
}

#[test]
fn given_a_tree_with_bad_entries_when_read_then_the_good_ones_count() {
    let mut list = Vec::new();
    let good = |path: &str| {
        [
            field(1, 2, path.as_bytes()),
            field(2, 3, b"value"),
            field(3, 6, &[0; 12]),
        ]
        .concat()
    };
    list.extend(field(1, 4, &good("first")));
    list.extend(field(1, 4, &good("")));
    list.extend(field(1, 4, &good(&"x".repeat(MAX_PATH + 1))));
    list.extend(field(1, 4, &[good("cut"), vec![1, 2, 3]].concat()));
    list.extend(field(
        1,
        4,
        &[field(1, 2, b"p"), field(2, 3, b"two\nlines")].concat(),
    ));
    list.extend(field(
        1,
        4,
        &[field(1, 2, b"p"), field(2, 3, &[b'x'; MAX_VALUE + 1])].concat(),
    ));
    list.extend(field(
        1,
        4,
        &[field(1, 2, b"p"), field(3, 6, &[0xff; 12])].concat(),
    ));
    list.extend(field(2, 4, b"not an element"));
    list.extend(field(1, 1, b"not a struct"));
    list.extend(field(1, 4, &good("last")));
    let payload = field(5, 5, &list);
    let tree = Tree::decode(&payload).unwrap();
    let paths: Vec<_> = tree
        .entries()
        .filter_map(Result::ok)
        .map(|e| e.path)
        .collect();
    assert_eq!(paths, ["first", "last"]);
    assert_eq!(tree.entries().count(), 9);
    list.truncate(list.len() - 1);
    let cut = field(5, 5, &list);
    assert_eq!(Tree::decode(&cut), Err(WireError::BadValue("list")));
}

#[test]
fn given_more_entries_than_fit_when_a_tree_is_written_then_the_part_keeps_its_limit() {
    let mut out = kvec(b"before");
    let head = TreeHead {
        instance: 1,
        generation: 2,
        full: false,
        now: time(3),
    };
    let entry = Entry {
        path: "userspace/x",
        value: &[b'v'; 300],
        stamp: time(4),
    };
    let mut writer = TreeWriter::new(&mut out, 2000, &head).unwrap();
    let mut count = 0;
    while writer.push(&entry).unwrap() {
        count += 1;
    }
    writer.finish(true).unwrap();
    assert_eq!(count, 5);
    assert!(out.len() <= 2006);
    let tree = Tree::decode(&out[6..]).unwrap();
    assert!(tree.more && !tree.full);
    assert_eq!(tree.entries().filter(|e| *e == Ok(entry)).count(), 5);
}

#[test]
fn given_control_characters_in_a_text_when_received_or_sent_then_they_are_refused() {
    for bad in ["a\x1b[31m", "two\nlines", "nul\0", "\u{9b}x"] {
        let payload = field(2, 2, bad.as_bytes());
        assert_eq!(
            ErrorReply::decode(&payload),
            Err(WireError::BadValue("text"))
        );
        let reply = ErrorReply {
            code: ErrorCode::Busy,
            text: bad,
        };
        let mut out = kvec(b"before");
        assert_eq!(reply.encode(&mut out), Err(WireError::BadValue("text")));
        assert_eq!(out.len(), 6);
    }
    let refusal = Refusal::new(ErrorCode::Busy, format_args!("a\x1b[31m\nb\r"));
    assert_eq!(refusal.text(), "a?[31m?b?");
    let long = Refusal::new(ErrorCode::Busy, format_args!("{}", "ä".repeat(1000)));
    assert_eq!(long.text().len(), MAX_TEXT);
    assert!(refusal.reply().encode(&mut KVec::new()).is_ok());
    assert!(long.reply().encode(&mut KVec::new()).is_ok());
}

#[test]
fn given_numbers_of_kinds_and_codes_then_they_are_unique_and_known() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_number(kind.number()), Some(*kind));
    }
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_number(code.number()), Some(*code));
        assert!(!code.to_string().is_empty());
    }
    assert_eq!(Purpose::ALL.len(), 4);
    assert_eq!(FIELD_HEAD, 8);
}
