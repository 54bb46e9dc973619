// SPDX-License-Identifier: GPL-2.0-or-later

//! The file of the dirty map. Whatever it holds, a piece is what was written or all dirty, and what is loaded can be saved
//! and is the same then.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::dirty::*;
use mars_core::name::Name;
use mars_host_digest::HostDigest;

/// A map of a few pieces at most: a fuzzer has no use for large ones.
const MOST: u32 = 4;

fuzz_target!(|data: &[u8]| {
    let (resource, host) = (Name::new(b"r").unwrap(), Name::new(b"a").unwrap());
    let Some((&fix, data)) = data.split_first() else {
        return;
    };
    let mut file = data.to_vec();
    // Checksums would be guessed too rarely.
    if fix & 1 != 0 {
        for block in file.chunks_exact_mut(BLOCK) {
            let sum = crc(&block[..BLOCK - 4]);
            block[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let Ok(Some(mut map)) = DirtyMap::load::<HostDigest>(&resource, &host, 7, &file) else {
        return;
    };
    if map.bits().geometry().pieces() > MOST {
        return;
    }
    for index in 0..map.bits().geometry().pieces() {
        let at = (2 + index as usize) * BLOCK;
        map.load_piece::<HostDigest>(index, file.get(at..).unwrap_or(&[]));
    }
    let _ = map.recovery();
    let _ = map.covers(
        &map.last_gap().map_or_else(
            || mars_core::log::LogName {
                number: 9,
                creator: host,
            },
            |g| g.2,
        ),
        u32::from(fix),
    );
    assert!(map.bits().dirty_bytes() <= map.bits().geometry().size);
    // Saved, it is the same.
    map.set_dropped(map.dropped());
    let mut out = vec![
        0;
        usize::try_from(file_len(&map.bits().geometry()))
            .unwrap()
            .max(file.len())
    ];
    out[..file.len()].copy_from_slice(&file);
    let mut block = vec![0; BLOCK];
    while let Some(at) = map.next_write::<HostDigest>(&mut block) {
        let at = usize::try_from(at).unwrap();
        out[at..at + BLOCK].copy_from_slice(&block);
    }
    map.saved();
    let again = DirtyMap::load::<HostDigest>(&resource, &host, 7, &out)
        .unwrap()
        .expect("it was just written");
    assert_eq!((again.gap(), again.dropped()), (map.gap(), map.dropped()));
    assert_eq!(again.recovery(), map.recovery());
});

fn crc(bytes: &[u8]) -> u32 {
    mars_core::digest::crc::<HostDigest>(&[bytes])
}
