// SPDX-License-Identifier: GPL-2.0-or-later

//! The core's own CRC32C gives what that of a library gives.

use mars_core::digest::{
    crc,
    crc32c_by_tables,
    Digest, //
};
use mars_host_digest::HostDigest;
use proptest::prelude::*;

#[test]
fn given_the_standard_example_when_computed_then_it_is_the_standard_value() {
    assert_eq!(!crc32c_by_tables(!0, b"123456789"), 0xe306_9283);
    assert_eq!(crc::<HostDigest>(&[b"123456789"]), 0xe306_9283);
    assert_eq!(crc32c_by_tables(7, b""), 7);
}

proptest! {
    #[test]
    fn given_any_bytes_when_computed_by_tables_then_it_is_what_the_library_says(
        seed: u32,
        data in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0usize..200,
    ) {
        prop_assert_eq!(crc32c_by_tables(seed, &data), HostDigest::crc32c(seed, &data));
        let (a, b) = data.split_at(cut.min(data.len()));
        prop_assert_eq!(
            crc32c_by_tables(crc32c_by_tables(seed, a), b),
            crc32c_by_tables(seed, &data)
        );
    }
}
