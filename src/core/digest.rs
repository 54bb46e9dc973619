// SPDX-License-Identifier: GPL-2.0-or-later

//! Checksums and digests, as the code that needs them sees them.
//!
//! Who computes them is somebody else's matter: in the module the kernel's library, in userspace
//! `host-digest`. There is no state, so an implementation is only a type.

/// The digest functions.
pub trait Digest {
    /// CRC32C as the kernel's `crc32c()`: nothing is inverted inside.
    ///
    /// Parts can be chained: `crc32c(crc32c(seed, a), b)` is the value of `a` followed by `b`.
    /// The standard value is `!crc32c(!0, data)`, see [`crc`].
    fn crc32c(seed: u32, data: &[u8]) -> u32;

    /// MD5 of the parts, one after the other. Only for the version chain of the original.
    fn md5(parts: &[&[u8]]) -> [u8; 16];

    /// SHA-256 of the parts, one after the other.
    fn sha256(parts: &[&[u8]]) -> [u8; 32];

    /// HMAC-SHA-256 of the parts, one after the other.
    fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32];
}

/// The standard CRC32C value of the parts, one after the other: of `123456789` it is `e3069283`.
pub fn crc<D: Digest>(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |seed, part| D::crc32c(seed, part))
}
