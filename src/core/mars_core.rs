// SPDX-License-Identifier: GPL-2.0-or-later

//! What MARS is: formats, clocks, rules, plans, state machines.
//!
//! No threads, locks, files, sockets or clocks: events go in, commands come out; time and
//! randomness are arguments. Kbuild compiles this crate into the module against the real `kernel`
//! crate, cargo against `userspace/kernel-shim`; there is one implementation of each format.
//!
//! A panic here is an outage of somebody's server, so everything that could panic is forbidden.

#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
    )
)]

#[cfg(test)]
extern crate std;

pub mod ahead;
pub mod buffer;
pub mod completion;
pub mod defect;
pub mod digest;
pub mod dirty;
pub mod ends;
pub mod fetch;
// Only with the fault injector, and in userspace for its tests: nothing of it is in the product.
#[cfg(any(MARS_INJECT, not(MODULE)))]
pub mod inject;
pub mod lamport;
pub mod log;
pub mod name;
pub mod num;
pub mod pace;
pub mod replay;
pub mod resource;
pub mod space;
pub mod split_brain;
pub mod succession;
pub mod sync;
pub mod text;
pub mod tree;
pub mod wire;
pub mod writeback;
pub mod zeroes;
