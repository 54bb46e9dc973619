// SPDX-License-Identifier: GPL-2.0-or-later

//! Text that was made by formatting.

use core::fmt::Arguments;

use kernel::str::CString;

/// The characters. Everything that the engine formats is ASCII, so this can't fail.
pub(crate) fn of(text: &CString) -> &str {
    text.to_str().unwrap_or("")
}

/// A warning for the administrator, at most ten in five seconds.
pub(crate) fn warn_limited(text: Arguments<'_>) {
    crate::sys::log::log_warn!("{}\n", text);
}
