// SPDX-License-Identifier: GPL-2.0-or-later

//! Paths, values and names of the tree. What is understood is printed as it was written, or means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::lamport::LamportTime;
use mars_core::log::{LogName, VersionLink};
use mars_core::name::Name;
use mars_core::tree::value::*;
use mars_core::tree::TreePath;
use mars_host_digest::HostDigest;

fuzz_target!(|data: &[u8]| {
    if let Ok(path) = TreePath::parse(data) {
        assert_eq!(path.to_string().as_bytes(), data);
        assert!(data
            .split(|&b| b == b'/')
            .all(|c| !c.is_empty() && c[0] != b'.'));
        assert!(data.split(|&b| b == b'/').count() <= 3);
        assert!(path.as_bytes().ends_with(path.leaf()));
        for host in [path.resource(), path.actual_of()].into_iter().flatten() {
            assert!(path.as_str().contains(host.as_str()));
            path.accept_from_peer(&host, data);
        }
    }
    if let Some(name) = Name::new(data) {
        assert_eq!(name.as_bytes(), data);
    }
    if let Some(log) = LogName::parse(data) {
        assert_eq!(log.to_string().as_bytes(), data);
    }
    if let Some(link) = VersionLink::parse(data) {
        assert_eq!(VersionLink::parse(link.value().as_bytes()), Some(link));
        let next = VersionLink::compute::<HostDigest>(link.this.log, link.this.pos, data)
            .expect("it is a link");
        assert_eq!(next.previous, Some(link.this));
    }
    if let Some(link) = ReplayLink::parse(data) {
        assert_eq!(ReplayLink::parse(link.value().as_bytes()), Some(link));
    }
    if let Some(link) = LogPosLink::parse(data) {
        assert_eq!(LogPosLink::parse(link.value().as_bytes()), Some(link));
    }
    if let Some(time) = LamportTime::parse(data) {
        assert_eq!(LamportTime::parse(time.to_string().as_bytes()), Some(time));
    }
    if let Some(message) = MsgValue::parse(data) {
        let _ = message.to_string();
    }
    if let Some((word, _)) = parse_state(data) {
        assert!(data.starts_with(word.as_str().as_bytes()));
    }
    parse_ip(data);
    parse_switch(data);
    is_valid(data);
});
