// SPDX-License-Identifier: GPL-2.0-or-later

//! The version chain equals that of the original.

mod common;

use common::name;
use mars_core::log::{
    LogName,
    VersionLink, //
};
use mars_host_digest::HostDigest;

/// Values of two hosts that ran the original.
const GOLDEN: [(u32, &str, u64, &str); 3] = [
    (
        1,
        "alpha",
        29260,
        "186b81c1eba131fa4f893fa8b842d6cd,log-000000001-alpha,29260:",
    ),
    (
        2,
        "alpha",
        0,
        "5188e42ebdf23380bd2e8716ead21f6f,log-000000002-alpha,0:186b81c1eba131fa4f893fa8b842d6cd,log-000000001-alpha,29260",
    ),
    (
        3,
        "beta",
        4180,
        "2ceecfacbf5166fa59707ecacd9eff49,log-000000003-beta,4180:5188e42ebdf23380bd2e8716ead21f6f,log-000000002-alpha,0",
    ),
];

fn log(number: u32, creator: &str) -> LogName {
    LogName {
        number,
        creator: name(creator),
    }
}

#[test]
fn p5_the_chain_is_the_originals() {
    let mut before = String::new();
    for (number, creator, pos, value) in GOLDEN {
        let link = VersionLink::compute::<HostDigest>(log(number, creator), pos, before.as_bytes())
            .unwrap();
        assert_eq!(link.value().as_str(), value);
        assert_eq!(VersionLink::parse(value.as_bytes()), Some(link));
        before = value.to_string();
    }
    // With the artificial link of create-resource before it.
    let artificial = b"00000000000000000000000000000000,log-000000000-hosta,0:";
    assert!(VersionLink::parse(artificial).unwrap().this.is_artificial());
    let link = VersionLink::compute::<HostDigest>(log(1, "hosta"), 0, artificial).unwrap();
    assert_eq!(
        link.value().as_str(),
        "0231d6c7dfe4610c290693bacd59ec3f,log-000000001-hosta,0:00000000000000000000000000000000,log-000000000-hosta,0"
    );
}

#[test]
fn the_longest_link_fits() {
    let long = "x".repeat(63);
    let first = VersionLink::compute::<HostDigest>(log(u32::MAX, &long), u64::MAX, b"").unwrap();
    let value = first.value();
    let second =
        VersionLink::compute::<HostDigest>(log(u32::MAX, &long), u64::MAX, value.as_bytes())
            .unwrap();
    assert_eq!(VersionLink::parse(second.value().as_bytes()), Some(second));
}

#[test]
fn what_is_no_link_is_refused() {
    let good = GOLDEN[1].3;
    for bad in [
        "",
        ":",
        &good[1..],
        &good[..good.len() - 1].replace(",0:", ",-1:"),
        &format!("{good}:"),
        &format!("{good},1"),
        &good.replace("alpha", "al/pha"),
    ] {
        assert_eq!(VersionLink::parse(bad.as_bytes()), None, "{bad}");
        if !bad.is_empty() {
            assert!(VersionLink::compute::<HostDigest>(log(1, "a"), 0, bad.as_bytes()).is_none());
        }
    }
}
