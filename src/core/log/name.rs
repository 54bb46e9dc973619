// SPDX-License-Identifier: GPL-2.0-or-later

//! Names of log files: `log-%09d-<creator>`.

use crate::{
    name::Name,
    text::parse_u64, //
};
use core::fmt;

/// Number and creator of a log; which resource it belongs to is known from elsewhere.
///
/// Ordered by number, then by creator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogName {
    /// Counts 1, 2, 3… for all members of a resource together.
    pub number: u32,
    /// The host that wrote it.
    pub creator: Name,
}

impl LogName {
    /// Parses a file name, exactly as it is written.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (number, creator) = parse_numbered(text.strip_prefix(b"log-")?)?;
        Some(Self { number, creator })
    }
}

/// Parses `%09d-<host>`: nine digits, or more if the first is no zero.
pub(crate) fn parse_numbered(text: &[u8]) -> Option<(u32, Name)> {
    let end = text.iter().position(|&b| b == b'-')?;
    let digits = text.get(..end)?;
    if digits.len() < 9 || (digits.len() > 9 && digits.first() == Some(&b'0')) {
        return None;
    }
    let number = u32::try_from(parse_u64(digits)?).ok()?;
    let host = Name::new(text.get(end.checked_add(1)?..)?)?;
    Some((number, host))
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log-{:09}-{}", self.number, self.creator)
    }
}

impl fmt::Debug for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn names_are_read_exactly_as_written() {
        for good in [
            "log-000000001-alpha",
            "log-000000000-a-b",
            "log-4294967295-x",
        ] {
            assert_eq!(LogName::parse(good.as_bytes()).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "log-1-alpha",
            "log-000000001-",
            "log-000000001",
            "log-0000000001-alpha",
            "log-4294967296-x",
            "log-+00000001-x",
            "log-000000001-../x",
            "log-000000001-x.gz",
            "xlog-000000001-x",
        ] {
            assert_eq!(LogName::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
