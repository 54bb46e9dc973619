// SPDX-License-Identifier: GPL-2.0-or-later

//! What people see: progress on stdout; warnings, errors and hints on stderr.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::error::Failure;

static VERBOSE: AtomicU8 = AtomicU8::new(0);
static DRY_RUN: AtomicBool = AtomicBool::new(false);
static PROGRESS_SHOWN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static PREFIX: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Sets how much is said.
pub fn set_verbose(level: u8) {
    VERBOSE.store(level, Ordering::Relaxed);
}

/// Marks everything that is said as not done.
pub fn set_dry_run(on: bool) {
    DRY_RUN.store(on, Ordering::Relaxed);
}

/// Sets the name in front of messages, normally the resource being treated.
pub fn set_subject(subject: &str) {
    PREFIX.with_borrow_mut(|p| {
        p.clear();
        if !subject.is_empty() {
            p.push_str(subject);
            p.push_str(": ");
        }
    });
}

fn prefix() -> String {
    PREFIX.with_borrow(Clone::clone)
}

/// A message of normal progress.
pub fn info(text: fmt::Arguments<'_>) {
    clear_progress();
    // A closed pipe is no reason to stop in the middle of a change.
    let dry = if DRY_RUN.load(Ordering::Relaxed) {
        "DRY-RUN: "
    } else {
        ""
    };
    let _ = writeln!(io::stdout(), "{dry}{}{text}", prefix());
}

/// A message for those who asked for more.
pub fn verbose(level: u8, text: fmt::Arguments<'_>) {
    if VERBOSE.load(Ordering::Relaxed) >= level {
        info(text);
    }
}

/// Something an administrator should know.
pub fn warn(text: fmt::Arguments<'_>) {
    clear_progress();
    let _ = writeln!(io::stderr(), "WARNING: {}{text}", prefix());
}

/// What to do about a warning.
pub fn hint(text: &str) {
    clear_progress();
    let _ = writeln!(io::stderr(), "   HINT: {text}");
}

/// A failure with its hints.
pub fn failure(f: &Failure) {
    clear_progress();
    let mut lines = f.text.lines();
    let mut err = io::stderr();
    let _ = writeln!(err, "ERROR: {}{}", prefix(), lines.next().unwrap_or(""));
    for line in lines {
        let _ = writeln!(err, "       {line}");
    }
    for h in &f.hints {
        hint(h);
    }
}

/// A line that is overwritten by the next message; only on a terminal.
pub fn progress(text: &str) {
    let mut err = io::stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{}{text}", prefix());
        let _ = err.flush();
        PROGRESS_SHOWN.store(true, Ordering::Relaxed);
    }
}

fn clear_progress() {
    if PROGRESS_SHOWN.swap(false, Ordering::Relaxed) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
