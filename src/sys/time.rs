// SPDX-License-Identifier: GPL-2.0-or-later

//! Clocks and delays.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use kernel::bindings;

/// Wall-clock time as seconds and nanoseconds since 1970. Any context but NMI.
pub(crate) fn real_now() -> (u64, u32) {
    let mut now = bindings::timespec64 {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writing.
    unsafe { bindings::ktime_get_real_ts64(&mut now) };
    stamp(now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A time stamp of C; what is before 1970 becomes 1970.
pub(super) fn stamp(sec: i64, nsec: u32) -> (u64, u32) {
    match u64::try_from(sec) {
        Ok(sec) => (sec, nsec.min(999_999_999)),
        Err(_) => (0, 0),
    }
}

/// Nanoseconds since boot, never going back. Any context but NMI.
pub(crate) fn mono_ns() -> u64 {
    // SAFETY: Can always be called.
    let now = unsafe { bindings::ktime_get() };
    u64::try_from(now).unwrap_or(0)
}

/// Sleeps, also when the thread shall stop; [`ThreadCtx::sleep_ms`] is the better one.
///
/// [`ThreadCtx::sleep_ms`]: super::thread::ThreadCtx::sleep_ms
pub(crate) fn sleep_ms(ms: u32) {
    // SAFETY: A call that sleeps; like all of them it is the caller's duty to be allowed to.
    unsafe { bindings::msleep(ms) };
}
