// SPDX-License-Identifier: GPL-2.0-or-later

//! Userspace stand-in for the part of the in-tree `kernel` crate that `mars_core` uses.
//!
//! Names, signatures and meanings are those of `rust/kernel` in Linux 7.3; what is missing here
//! must not be used in the core, and what is added here must exist there. Kbuild, which compiles
//! the same core against the real crate, finds out.
//!
//! Every allocation asks [`inject`] first, so that a test can make each of them fail.

#![forbid(unsafe_code)]

pub mod alloc;
pub mod error;
pub mod inject;
pub mod rbtree;

/// See `kernel::prelude`: only what the core uses.
pub mod prelude {
    pub use crate::alloc::{
        flags::*,
        KBox,
        KVVec,
        KVec,
        VVec, //
    };
    pub use crate::error::{
        code::*,
        Error,
        Result, //
    };
}
