// SPDX-License-Identifier: GPL-2.0-or-later

//! The bytes that Documentation/protocol.md shows: two implementations that both reproduce them understand each other.

use mars_core::wire::auth::ClusterKey;
use mars_core::wire::message::handshake::*;
use mars_core::wire::message::meta::*;

use crate::util::*;

const DOCUMENT: &str = include_str!("../../../../Documentation/protocol.md");

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The hexadecimal digits that follow `title` in the document.
fn documented(title: &str) -> String {
    let at = DOCUMENT
        .find(title)
        .unwrap_or_else(|| panic!("'{title}' is not documented"));
    let block = DOCUMENT[at..].split("```").nth(1).unwrap();
    let digits = block.strip_prefix("text").unwrap();
    digits.split_whitespace().collect()
}

#[test]
fn given_the_documented_example_when_both_sides_shake_hands_then_the_bytes_are_the_same() {
    let key = ClusterKey::new(std::array::from_fn(|i| u8::try_from(i).unwrap())).unwrap();
    let mut frames = Vec::new();
    let (mut client, _) = shake(
        identity("alpha", "alpha_1.2", &key),
        None,
        Purpose::Meta,
        identity("beta", "alpha_1.2", &key),
        0,
        ([0xcc; 32], [0x55; 32]),
        &mut |_, bytes| {
            frames.push(hex(&bytes));
            bytes
        },
    )
    .sessions();
    let mut ping = kernel::alloc::KVec::new();
    let now = time(1_700_000_000);
    client
        .tx
        .message::<HostDigest, _>(1, &Ping { now }, &mut ping)
        .unwrap();
    frames.push(hex(&ping));
    let titles = [
        "Example: Hello",
        "Example: Challenge",
        "Example: Response",
        "Example: Welcome",
        "Example: Ping",
    ];
    for (title, frame) in titles.iter().zip(&frames) {
        assert_eq!(&documented(title), frame, "{title}");
    }
}

#[test]
fn given_the_tables_of_kinds_and_codes_when_compared_then_they_are_complete() {
    use mars_core::wire::message::*;
    for kind in Kind::ALL {
        let row = format!("| 0x{:02x} | {kind:?} |", kind.number());
        assert!(DOCUMENT.contains(&row), "{row}");
    }
    for code in ErrorCode::ALL {
        let row = format!("| {} | {code:?} |", code.number());
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}
