// SPDX-License-Identifier: GPL-2.0-or-later

//! Names of hosts, resources and devices.
//!
//! Grammar as in the original (mars-original §2.1): `[A-Za-z0-9_][-A-Za-z0-9_]*`, at most 63 characters. A [`Name`] can
//! therefore stand in a path, a link value or a message without any escape, and no peer can smuggle a path in it (P6).

use core::fmt;

/// Longest name in bytes.
pub const MAX_NAME: usize = 63;

/// A valid name; small and `Copy`.
///
/// # Invariants
///
/// `bytes[..len]` follows the grammar; the rest is zero, so that comparison may be derived.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    len: u8,
}

impl Name {
    /// Checks the grammar.
    pub fn new(text: &[u8]) -> Option<Self> {
        let len = u8::try_from(text.len()).ok()?;
        let mut bytes = [0; MAX_NAME];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        let first = *text.first()?;
        let word = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
        if !word(&first) || !text.iter().all(|c| word(c) || *c == b'-') {
            return None;
        }
        // INVARIANT: The grammar was checked, and `bytes` was made of zeros.
        Some(Self { bytes, len })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        self.bytes
            .get(..usize::from(self.len))
            .and_then(|b| core::str::from_utf8(b).ok())
            .unwrap_or("")
    }

    /// The name as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.as_str().as_bytes()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_good_and_bad_names_when_checked_then_only_the_grammar_passes() {
        for good in ["a", "host-1", "_x", "0", &"a".repeat(63)] {
            assert_eq!(Name::new(good.as_bytes()).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a/b", "..", "a.b", "ä", "a b", &"a".repeat(64)] {
            assert!(Name::new(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
