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

/// The polynomial of CRC32C, lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[n][b]`: what byte `b` contributes when `n` bytes follow it.
static TABLES: [[u32; 256]; 8] = tables();

#[expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "computed by the compiler, which checks it"
)]
const fn tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut b = 0;
    while b < 256 {
        let mut crc = b as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
            bit += 1;
        }
        t[0][b] = crc;
        b += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut b = 0;
        while b < 256 {
            let before = t[n - 1][b];
            t[n][b] = (before >> 8) ^ t[0][(before & 0xff) as usize];
            b += 1;
        }
        n += 1;
    }
    t
}

/// What [`Digest::crc32c`] has to give, eight bytes at a time with tables.
///
/// For processors without an instruction for it (virtual ones whose hypervisor hides it): there the kernel goes byte by
/// byte, and everything that a replica gets is checked several times on its way.
pub fn crc32c_by_tables(seed: u32, data: &[u8]) -> u32 {
    let at = |n: usize, byte: u8| {
        let table = TABLES.get(n).and_then(|t| t.get(usize::from(byte)));
        table.copied().unwrap_or(0)
    };
    let mut words = data.chunks_exact(8);
    let crc = words.by_ref().fold(seed, |crc, w| {
        // One load, then bytes of registers: each load costs where this is needed.
        let w: [u8; 8] = w.try_into().unwrap_or_default();
        let [a, b, c, d, e, f, g, h] = (u64::from_le_bytes(w) ^ u64::from(crc)).to_le_bytes();
        at(7, a) ^ at(6, b) ^ at(5, c) ^ at(4, d) ^ at(3, e) ^ at(2, f) ^ at(1, g) ^ at(0, h)
    });
    words.remainder().iter().fold(crc, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ at(0, low ^ byte)
    })
}
