// SPDX-License-Identifier: GPL-2.0-or-later

//! The cluster key: 32 random bytes that all members share, in the file `cluster-key` as 64 hexadecimal digits and a
//! newline. It is never replicated, sent or printed.

use core::fmt;

/// Length of the key in bytes.
pub const KEY_LEN: usize = 32;
/// Length of its text: digits and newline.
pub const KEY_TEXT_LEN: usize = 2 * KEY_LEN + 1;

/// The key. Overwritten when dropped, as far as the compiler can be told without `unsafe`.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; KEY_LEN]);

/// Why a key file is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyError {
    /// Not 64 hexadecimal digits and at most one newline.
    Format,
    /// All bytes are the same: nobody drew this key.
    Weak,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => {
                "the cluster key must be one line of 64 hexadecimal digits: copy /mars/cluster-key from another member"
            }
            Self::Weak => {
                "the cluster key was not drawn at random: copy /mars/cluster-key from another member, or make a new one on all"
            }
        })
    }
}

impl ClusterKey {
    /// A key of drawn bytes.
    pub fn new(bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        let [first, ..] = bytes;
        if bytes.iter().all(|byte| *byte == first) {
            return Err(KeyError::Weak);
        }
        Ok(Self(bytes))
    }

    /// Reads the contents of the key file.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let digits = text.strip_suffix(b"\n").unwrap_or(text);
        let mut bytes = [0u8; KEY_LEN];
        if digits.len() != 2 * KEY_LEN {
            return Err(KeyError::Format);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit)
                    .to_digit(16)
                    .and_then(|value| u8::try_from(value).ok());
                *byte = byte.wrapping_shl(4) | value.ok_or(KeyError::Format)?;
            }
        }
        Self::new(bytes)
    }

    /// The contents of the key file.
    pub fn to_text(&self) -> [u8; KEY_TEXT_LEN] {
        let mut text = [b'\n'; KEY_TEXT_LEN];
        for (pair, byte) in text.chunks_exact_mut(2).zip(&self.0) {
            for (digit, value) in pair.iter_mut().zip([byte >> 4, byte & 0xf]) {
                let char = char::from_digit(value.into(), 16).unwrap_or('0');
                *digit = u8::try_from(char).unwrap_or(b'0');
            }
        }
        text
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl Drop for ClusterKey {
    fn drop(&mut self) {
        self.0.fill(0);
        core::hint::black_box(&self.0);
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}
