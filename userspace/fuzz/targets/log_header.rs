// SPDX-License-Identifier: GPL-2.0-or-later

//! The header block of a log file, as it is and with a true checksum.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::digest::crc;
use mars_core::log::{LogHeader, HEADER_SIZE};
use mars_host_digest::HostDigest;

fuzz_target!(|data: &[u8]| {
    let _ = LogHeader::parse::<HostDigest>(data);
    let mut block = data.to_vec();
    block.resize(HEADER_SIZE, 0);
    block[..10].copy_from_slice(b"MARSLOG2\x02\0");
    let sum = crc::<HostDigest>(&[&block[..HEADER_SIZE - 4]]);
    block[HEADER_SIZE - 4..].copy_from_slice(&sum.to_le_bytes());
    if let Ok((header, _)) = LogHeader::parse::<HostDigest>(&block) {
        let mut again = vec![0xff; HEADER_SIZE];
        header
            .encode::<HostDigest>(&mut again)
            .expect("what was read can be written");
        let (same, _) = LogHeader::parse::<HostDigest>(&again).expect("what was written is read");
        assert_eq!(header, same);
    }
});
