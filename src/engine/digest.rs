// SPDX-License-Identifier: GPL-2.0-or-later

//! The core's digests, computed by the kernel's library.

use mars_core::digest::{
    crc32c_by_tables,
    Digest, //
};

use crate::sys::checksum;

/// Implementation of [`Digest`]; has no state.
pub(crate) struct KernelDigest;

impl Digest for KernelDigest {
    fn crc32c(seed: u32, data: &[u8]) -> u32 {
        if checksum::has_crc32c_instruction() {
            checksum::crc32c(seed, data)
        } else {
            crc32c_by_tables(seed, data)
        }
    }

    fn md5(parts: &[&[u8]]) -> [u8; 16] {
        checksum::md5(parts)
    }

    fn sha256(parts: &[&[u8]]) -> [u8; 32] {
        checksum::sha256(parts)
    }

    fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        checksum::hmac_sha256(key, parts)
    }
}
