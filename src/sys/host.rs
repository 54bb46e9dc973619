// SPDX-License-Identifier: GPL-2.0-or-later

//! Facts about this machine.

use super::{file::to_len, generated};
use kernel::prelude::*;

/// The longest name of a machine and its end.
const NODENAME_MAX: usize = 65;

/// The name of this machine (`uname -n`), of the initial namespace. May sleep.
pub(crate) fn nodename() -> Result<KVec<u8>> {
    let mut name = KVec::from_elem(0u8, NODENAME_MAX, GFP_KERNEL)?;
    // SAFETY: `name` is valid for writing its length.
    let len = unsafe { generated::mars_c_nodename(name.as_mut_ptr(), name.len()) };
    let len = to_len(isize::try_from(len)?)?;
    name.truncate(len);
    Ok(name)
}

/// Stops this machine at once, by a panic: nothing is written, flushed or told to anybody before. May sleep.
#[cfg(MARS_INJECT)]
pub(crate) fn die() {
    // SAFETY: May be called wherever one may sleep. What is lost is what a loss of power would take.
    unsafe { generated::mars_c_die() };
}

/// Bytes of main memory that the kernel manages.
pub(crate) fn memory_bytes() -> u64 {
    // SAFETY: No more than reading a counter.
    unsafe { generated::mars_c_memory_bytes() }
}
