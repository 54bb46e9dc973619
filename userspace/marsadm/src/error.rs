// SPDX-License-Identifier: GPL-2.0-or-later

//! What can go wrong, and which exit code it becomes.
//!
//! Every failure is a sentence that names who, what and why, and where there
//! is something to do, a hint that says it.

use std::fmt;
use std::io;

/// The class of a failure; its number is the exit code of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line makes no sense (also clap's own errors).
    Usage = 1,
    /// A precondition does not hold, or the work failed: nothing more was done.
    Refused = 2,
    /// What was asked for is written, but did not come true within `--timeout`.
    Timeout = 3,
    /// The machine is not ready: no `/mars`, not root, no cluster, module not loaded.
    Environment = 4,
}

impl Kind {
    /// The exit code.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// A failure with the remedy.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The class.
    pub kind: Kind,
    /// Who, what and why, in one sentence or a few lines.
    pub text: String,
    /// What to do about it, one line each.
    pub hints: Vec<String>,
}

/// The result of nearly everything here.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure of the given class.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            hints: Vec::new(),
        }
    }

    /// A precondition that does not hold, or work that failed.
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(Kind::Refused, text)
    }

    /// A command line that makes no sense.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Kind::Usage, text)
    }

    /// A machine that is not ready.
    pub fn environment(text: impl Into<String>) -> Self {
        Self::new(Kind::Environment, text)
    }

    /// A deadline that has passed.
    pub fn timeout(text: impl Into<String>) -> Self {
        Self::new(Kind::Timeout, text)
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// A failed system call: what was tried, and the system's reason.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::refused(format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// Adds what was tried to an I/O error.
pub trait Trying<T> {
    /// Turns the error into a [`Failure`] that starts with `what`.
    fn trying(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Trying<T> for io::Result<T> {
    fn trying(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Failure::io(what(), &e))
    }
}
