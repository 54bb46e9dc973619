// SPDX-License-Identifier: GPL-2.0-or-later

//! Version links: the history of a member as a chain of digests, exactly as in the original.
//!
//! `version-%09d-<host>` has the value
//! `<md5>,log-%09d-<creator>,<pos>:<the same of the number before>`, where the digest is over
//! `<number>,<creator>,<pos>:<whole value of the link of the number before>`. So two members have equal
//! links for a number if and only if they have seen the same logs to the same lengths. The first log has
//! no predecessor: nothing follows the colon.

use super::LogName;
use crate::{
    digest::Digest,
    text::{
        parse_hex,
        parse_u64,
        Hex,
        Text, //
    }, //
};
use core::fmt;

/// Longest value of a version link.
pub const MAX_VERSION: usize = 320;

/// One half of a version link: how far a log had been seen, and the digest of all before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionPoint {
    /// The digest; all zeros in artificial links of `create-resource`.
    pub digest: [u8; 16],
    /// The log.
    pub log: LogName,
    /// Bytes of the log.
    pub pos: u64,
}

impl VersionPoint {
    /// Parses `<md5>,log-%09d-<creator>,<pos>`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.split(|&b| b == b',');
        let point = Self {
            digest: parse_hex(parts.next()?)?,
            log: LogName::parse(parts.next()?)?,
            pos: parse_u64(parts.next()?)?,
        };
        parts.next().is_none().then_some(point)
    }

    /// Whether this is an artificial link, which says nothing about the history.
    pub fn is_artificial(&self) -> bool {
        self.digest == [0; 16]
    }
}

impl fmt::Display for VersionPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", Hex(&self.digest), self.log, self.pos)
    }
}

/// The value of a version link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionLink {
    /// Of its own number.
    pub this: VersionPoint,
    /// Of the number before.
    pub previous: Option<VersionPoint>,
}

impl VersionLink {
    /// Parses the value of a link.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut halves = value.split(|&b| b == b':');
        let this = VersionPoint::parse(halves.next()?)?;
        let previous = match halves.next()? {
            b"" => None,
            text => Some(VersionPoint::parse(text)?),
        };
        halves.next().is_none().then_some(Self { this, previous })
    }

    /// Computes the link that says: of `log`, `pos` bytes were seen, and `before` is the value of the
    /// link of the number before (empty for the first log, or if there is none).
    ///
    /// `None` if `before` is not empty and no version link.
    pub fn compute<D: Digest>(log: LogName, pos: u64, before: &[u8]) -> Option<Self> {
        let previous = match before {
            b"" => None,
            value => Some(Self::parse(value)?.this),
        };
        let head =
            Text::<128>::from_display(&format_args!("{},{},{pos}:", log.number, log.creator))?;
        Some(Self {
            this: VersionPoint {
                digest: D::md5(&[head.as_bytes(), before]),
                log,
                pos,
            },
            previous,
        })
    }

    /// The value of the link.
    pub fn value(&self) -> Text<MAX_VERSION> {
        // It always fits: 2 × (32 + 1 + 78 + 1 + 20) + 1.
        Text::from_display(self).unwrap_or_default()
    }
}

impl fmt::Display for VersionLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.this)?;
        match &self.previous {
            Some(previous) => fmt::Display::fmt(previous, f),
            None => Ok(()),
        }
    }
}
