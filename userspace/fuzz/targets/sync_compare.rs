// SPDX-License-Identifier: GPL-2.0-or-later

//! Digests from a peer: whatever they are, the differences lie inside of the chunk and in order.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::sync::*;
use mars_host_digest::HostDigest;

fuzz_target!(|data: &[u8]| {
    let Some((grain, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let grain = u32::from(u16::from_le_bytes(*grain));
    let (local, digests) = rest.split_at(rest.len() / 2);
    for digests in [digests, &digests[..digests.len() & !31]] {
        let Ok(found) = differing::<HostDigest>(local, grain, digests) else {
            continue;
        };
        let mut end = 0;
        for difference in found {
            assert!(difference.start >= end && difference.len > 0);
            end = difference.start + difference.len;
        }
        assert!(usize::try_from(end).unwrap() <= local.len());
    }
});
