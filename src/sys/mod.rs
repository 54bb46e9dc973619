// SPDX-License-Identifier: GPL-2.0-or-later

//! The system layer: one small safe type for each thing of the kernel that MARS needs and for
//! which the `kernel` crate has no abstraction.
//!
//! All `unsafe` code of the module is below this folder, and nothing in it knows what MARS is.
//! `helpers.c` holds the C functions that have no callable form; [`generated`] their prototypes.

#[allow(
    clippy::all,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
mod generated {
    use kernel::bindings::*;
    include!(concat!(env!("MARS_OBJ"), "/src/sys/generated.rs"));
}

pub(crate) mod bdev;
pub(crate) mod bio;
pub(crate) mod buf;
pub(crate) mod checksum;
pub(crate) mod dir;
pub(crate) mod disk;
pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod host;
pub(crate) mod log;
pub(crate) mod notifier;
pub(crate) mod socket;
#[cfg(MARS_INJECT)]
pub(crate) mod static_lock;
pub(crate) mod sysctl;
pub(crate) mod thread;
pub(crate) mod time;
