// SPDX-License-Identifier: GPL-2.0-or-later

//! Bugs on demand, for the simulator: to prove that its checkers find them.
//!
//! Without the cargo feature `defects` (so in the kernel and in all tools) `defect!` is the constant `false`, and nothing
//! else of this file exists. With it, one defect at a time is switched on for the whole process.

/// Whether a bug is switched on.
macro_rules! defect {
    ($name:literal) => {
        cfg!(feature = "defects") && $crate::defect::is_on($name)
    };
}
pub(crate) use defect;

#[cfg(not(feature = "defects"))]
pub(crate) const fn is_on(_: &str) -> bool {
    false
}

#[cfg(feature = "defects")]
pub use on::{
    is_on,
    switch_on, //
};

#[cfg(feature = "defects")]
mod on {
    use core::sync::atomic::{
        AtomicU64,
        Ordering, //
    };

    static ON: AtomicU64 = AtomicU64::new(0);

    fn hash(name: &str) -> u64 {
        let mut h = 0xcbf2_9ce4_8422_2325u64;
        let mut rest = name.as_bytes();
        while let Some((b, tail)) = rest.split_first() {
            h ^= u64::from(*b);
            h = h.wrapping_mul(0x100_0000_01b3);
            rest = tail;
        }
        h
    }

    /// Switches one on, and the one that was on off. The name of none switches all off.
    pub fn switch_on(name: &str) {
        ON.store(hash(name), Ordering::Relaxed);
    }

    /// Whether a bug is switched on.
    #[inline]
    pub fn is_on(name: &str) -> bool {
        ON.load(Ordering::Relaxed) == hash(name)
    }
}
