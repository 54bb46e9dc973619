// SPDX-License-Identifier: GPL-2.0-or-later

//! The digests of the core ([`mars_core::digest::Digest`]) for programs in userspace.

#![forbid(unsafe_code)]

use hmac::{
    Hmac,
    Mac, //
};
use mars_core::digest::Digest;
use md5::Md5;
use sha2::{
    Digest as _,
    Sha256, //
};

/// Digests computed by the processor this program runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDigest;

impl Digest for HostDigest {
    fn crc32c(seed: u32, data: &[u8]) -> u32 {
        // The crate inverts before and after, the kernel's function doesn't.
        !crc32c::crc32c_append(!seed, data)
    }

    fn md5(parts: &[&[u8]]) -> [u8; 16] {
        let mut d = Md5::new();
        for p in parts {
            d.update(p);
        }
        d.finalize().into()
    }

    fn sha256(parts: &[&[u8]]) -> [u8; 32] {
        let mut d = Sha256::new();
        for p in parts {
            d.update(p);
        }
        d.finalize().into()
    }

    fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let Ok(mut d) = Hmac::<Sha256>::new_from_slice(key) else {
            unreachable!("HMAC takes keys of any length");
        };
        for p in parts {
            d.update(p);
        }
        d.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mars_core::digest::crc;

    fn hex(bytes: &[u8]) -> String {
        let mut text = String::new();
        for b in bytes {
            text += &format!("{b:02x}");
        }
        text
    }

    #[test]
    fn the_values_are_the_published_ones() {
        assert_eq!(crc::<HostDigest>(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc::<HostDigest>(&[b"1234", b"", b"56789"]), 0xe306_9283);
        assert_eq!(
            hex(&HostDigest::md5(&[b"ab", b"c"])),
            "900150983cd24fb0d6963f7d28e17f72"
        );
        assert_eq!(
            hex(&HostDigest::sha256(&[b"ab", b"c"])),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // RFC 4231, test case 2.
        assert_eq!(
            hex(&HostDigest::hmac_sha256(
                b"Jefe",
                &[b"what do ya want ", b"for nothing?"]
            )),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
