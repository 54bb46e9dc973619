// SPDX-License-Identifier: GPL-2.0-or-later

//! Checksums, digests and random bytes. Everything here works in any context.
//!
//! C headers: [`include/linux/crc32.h`](srctree/include/linux/crc32.h),
//! [`include/crypto/sha2.h`](srctree/include/crypto/sha2.h),
//! [`include/crypto/md5.h`](srctree/include/crypto/md5.h)

use super::generated;
use core::mem::MaybeUninit;
use kernel::{bindings, prelude::*};

/// CRC32C as the kernel computes it, without inversions: the standard value of `data` is
/// `!crc32c(!0, data)`.
pub(crate) fn crc32c(seed: u32, data: &[u8]) -> u32 {
    // SAFETY: `data` is valid for reading its length.
    unsafe { generated::crc32c(seed, data.as_ptr().cast(), data.len()) }
}

/// Whether [`crc32c`] has an instruction of the processor at its disposal; else it goes byte by byte.
pub(crate) fn has_crc32c_instruction() -> bool {
    // SAFETY: It only looks at what was found out at boot.
    unsafe { generated::crc32_optimizations() & generated::MARS_C_CRC32C_OPTIMIZATION != 0 }
}

/// Room for the state of a digest of C.
#[repr(C, align(16))]
struct State<const N: usize>(MaybeUninit<[u8; N]>);

impl<const N: usize> State<N> {
    fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    fn get(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }
}

/// MD5 of the parts, one after the other. For names of histories, not for security.
pub(crate) fn md5(parts: &[&[u8]]) -> [u8; 16] {
    let mut out = [0; 16];
    let mut state = State::<{ generated::MARS_C_MD5_CTX_SIZE }>::new();
    // SAFETY: `state` is as large and as aligned as C wants it and is initialised first; the parts
    // are valid for reading their lengths, `out` for writing 16 bytes.
    unsafe {
        generated::mars_c_md5_init(state.get());
        for part in parts {
            generated::mars_c_md5_update(state.get(), part.as_ptr(), part.len());
        }
        generated::mars_c_md5_final(state.get(), out.as_mut_ptr());
    }
    out
}

/// SHA-256 of the parts, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    let mut state = State::<{ generated::MARS_C_SHA256_CTX_SIZE }>::new();
    // SAFETY: `state` is as large and as aligned as C wants it and is initialised first; the parts
    // are valid for reading their lengths, `out` for writing 32 bytes.
    unsafe {
        generated::mars_c_sha256_init(state.get());
        for part in parts {
            generated::mars_c_sha256_update(state.get(), part.as_ptr(), part.len());
        }
        generated::mars_c_sha256_final(state.get(), out.as_mut_ptr());
    }
    out
}

/// HMAC-SHA256 of the parts, one after the other.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    let mut state = State::<{ generated::MARS_C_HMAC_CTX_SIZE }>::new();
    // SAFETY: `state` is as large and as aligned as C wants it and is initialised first; the key
    // and the parts are valid for reading their lengths, `out` for writing 32 bytes. The last call
    // wipes the state.
    unsafe {
        generated::mars_c_hmac_init(state.get(), key.as_ptr(), key.len());
        for part in parts {
            generated::mars_c_hmac_update(state.get(), part.as_ptr(), part.len());
        }
        generated::mars_c_hmac_final(state.get(), out.as_mut_ptr());
    }
    out
}

/// Fills `out` with random bytes, good enough for keys.
pub(crate) fn random(out: &mut [u8]) {
    // SAFETY: `out` is valid for writing its length.
    unsafe { bindings::get_random_bytes(out.as_mut_ptr().cast(), out.len()) };
}
