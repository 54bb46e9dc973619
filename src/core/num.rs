// SPDX-License-Identifier: GPL-2.0-or-later

//! Conversions of numbers that can not fail on the machines MARS runs on.

const _: () = assert!(
    usize::BITS >= 32 && usize::BITS <= 64,
    "sizes are 32 or 64 bits wide"
);

/// A 32 bit number as a size.
#[inline]
pub const fn to_usize(x: u32) -> usize {
    // CAST: a size has at least 32 bits, see above.
    #[expect(clippy::as_conversions, reason = "lossless, see above")]
    {
        x as usize
    }
}

/// A size as a 64 bit number.
#[inline]
pub const fn to_u64(x: usize) -> u64 {
    // CAST: a size has at most 64 bits, see above.
    #[expect(clippy::as_conversions, reason = "lossless, see above")]
    {
        x as u64
    }
}

/// Rounds up to a multiple of `align`, a power of two; `None` if that has more than 32 bits.
#[inline]
pub const fn align_up(x: u32, align: u32) -> Option<u32> {
    let Some(mask) = align.checked_sub(1) else {
        return None;
    };
    match x.checked_add(mask) {
        Some(y) => Some(y & !mask),
        None => None,
    }
}

/// Whether `x` is a multiple of `align`, a power of two.
#[inline]
pub const fn is_aligned(x: u64, align: u64) -> bool {
    match align.checked_sub(1) {
        Some(mask) => x & mask == 0,
        None => false,
    }
}
