// SPDX-License-Identifier: GPL-2.0-or-later

//! Messages to the kernel's log that cannot flood it: at most ten in five seconds from each place
//! in the source. How many were left out, the next one says.

use super::time::mono_ns;
use kernel::sync::atomic::{Atomic, Relaxed};

/// The length of a window in nanoseconds.
const INTERVAL: u64 = 5_000_000_000;
/// How many messages a window has.
const BURST: u32 = 10;

/// The limit of one place. Races between processors may let a message more or less through.
pub(crate) struct RateLimit {
    begin: Atomic<u64>,
    printed: Atomic<u32>,
    missed: Atomic<u32>,
}

impl RateLimit {
    /// A limit that was not used yet.
    pub(crate) const fn new() -> Self {
        Self {
            begin: Atomic::new(0),
            printed: Atomic::new(0),
            missed: Atomic::new(0),
        }
    }

    /// Whether a message may be printed now, and if so, how many before it were not. Any context.
    pub(crate) fn allow(&self) -> Option<u32> {
        let now = mono_ns();
        let begin = self.begin.load(Relaxed);
        if begin == 0 || now.saturating_sub(begin) >= INTERVAL {
            self.begin.store(now.max(1), Relaxed);
            self.printed.store(1, Relaxed);
            return Some(self.missed.xchg(0, Relaxed));
        }
        if self.printed.fetch_add(1, Relaxed) < BURST {
            return Some(self.missed.xchg(0, Relaxed));
        }
        self.missed.fetch_add(1, Relaxed);
        None
    }
}

/// Prints with a `pr_*` macro if the limit of this place allows.
#[allow(unused_macros, reason = "not every kind has a user")]
macro_rules! limited {
    ($print:ident, $($arg:tt)*) => {{
        static LIMIT: $crate::sys::log::RateLimit = $crate::sys::log::RateLimit::new();
        if let Some(missed) = LIMIT.allow() {
            if missed > 0 {
                ::kernel::$print!("{} messages like the next one were left out\n", missed);
            }
            ::kernel::$print!($($arg)*);
        }
    }};
}

/// An error that an administrator has to know about, rate-limited. Ends with `\n`.
#[allow(unused_macros, reason = "not every kind has a user")]
macro_rules! log_err {
    ($($arg:tt)*) => { $crate::sys::log::limited!(pr_err, $($arg)*) };
}

/// A warning, rate-limited. Ends with `\n`.
#[allow(unused_macros, reason = "not every kind has a user")]
macro_rules! log_warn {
    ($($arg:tt)*) => { $crate::sys::log::limited!(pr_warn, $($arg)*) };
}

/// A message, rate-limited. Ends with `\n`.
#[allow(unused_macros, reason = "not every kind has a user")]
macro_rules! log_info {
    ($($arg:tt)*) => { $crate::sys::log::limited!(pr_info, $($arg)*) };
}

#[allow(unused_imports, reason = "not every kind has a user")]
pub(crate) use {limited, log_err, log_info, log_warn};
