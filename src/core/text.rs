// SPDX-License-Identifier: GPL-2.0-or-later

//! Short texts without allocation, and numbers in texts.

use core::fmt;

/// A text of at most `N` bytes on the stack; what does not fit makes `write!` fail.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// An empty text.
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// The text of something printable, or `None` if it does not fit.
    pub fn from_display(what: &impl fmt::Display) -> Option<Self> {
        let mut text = Self::new();
        fmt::write(&mut text, format_args!("{what}")).ok()?;
        Some(text)
    }

    /// A text with these bytes, or `None` if they do not fit.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut text = Self::new();
        text.push_bytes(bytes)?;
        Some(text)
    }

    /// Appends bytes, all of them or (`None`) nothing.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.bytes.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// The text; bytes that are no UTF-8 end it.
    pub fn as_str(&self) -> &str {
        match core::str::from_utf8(self.as_bytes()) {
            Ok(s) => s,
            Err(e) => {
                let good = self.as_bytes().get(..e.valid_up_to()).unwrap_or(&[]);
                core::str::from_utf8(good).unwrap_or("")
            }
        }
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.push_bytes(s.as_bytes()).ok_or(fmt::Error)
    }
}

impl<const N: usize> PartialEq for Text<N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> Eq for Text<N> {}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A decimal number: digits and nothing else.
pub fn parse_u64(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, &b| {
        let digit = b.is_ascii_digit().then(|| b.wrapping_sub(b'0'))?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// A decimal number that may have a minus sign.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(rest) => 0i64.checked_sub_unsigned(parse_u64(rest)?),
        None => i64::try_from(parse_u64(text)?).ok(),
    }
}

/// Bytes as two hexadecimal digits each, no separators, small letters.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Reads exactly `N` bytes written as [`Hex`] writes them (capitals are taken too).
pub fn parse_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != N.checked_mul(2)? {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let mut value = 0u8;
        for &c in pair {
            let digit = u8::try_from(char::from(c).to_digit(16)?).ok()?;
            value = value.checked_shl(4)? | digit;
        }
        *byte = value;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_text_takes_what_fits() {
        let mut t = Text::<4>::new();
        assert!(t.push_bytes(b"abc").is_some());
        assert!(t.push_bytes(b"de").is_none());
        assert_eq!(t.as_str(), "abc");
        assert!(Text::<4>::from_display(&12345).is_none());
        assert_eq!(Text::<4>::from_bytes(b"a\xffb").unwrap().as_str(), "a");
    }

    #[test]
    fn numbers_are_read_strictly() {
        assert_eq!(parse_u64(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "18446744073709551616", "+1", "1 ", "-1", "0x1"] {
            assert_eq!(parse_u64(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_i64(b"-28"), Some(-28));
        assert_eq!(parse_i64(b"--1"), None);
    }

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(Hex(&[0, 0xab, 9]).to_string(), "00ab09");
        assert_eq!(parse_hex(b"00aB09"), Some([0, 0xab, 9]));
        assert_eq!(parse_hex::<3>(b"00ab0"), None);
        assert_eq!(parse_hex::<1>(b"g0"), None);
    }
}
