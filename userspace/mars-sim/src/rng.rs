// SPDX-License-Identifier: GPL-2.0-or-later

//! Chance, from a seed.

use std::cell::Cell;

/// A generator (splitmix64); small, and good enough to choose by.
pub struct Rng(Cell<u64>);

/// Mixes the bits of a number.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Rng {
    /// From a seed and the name of what it is for, so that what one part takes does not change what others get.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(Cell::new(mix(
            seed ^ mix(stream.wrapping_add(0x9e37_79b9_7f4a_7c15))
        )))
    }

    /// Any number.
    pub fn next(&self) -> u64 {
        let x = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(x);
        mix(x)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number from `a` to `b`.
    pub fn range(&self, a: u64, b: u64) -> u64 {
        a + self.below(b - a + 1)
    }

    /// True `n` times in `of`.
    pub fn chance(&self, n: u64, of: u64) -> bool {
        self.below(of) < n
    }

    /// One of them.
    pub fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)]
    }
}
