// SPDX-License-Identifier: GPL-2.0-or-later

//! Values of the tree as owned types; the formats themselves are the core's.

use super::store::{real_time, Entry};
use crate::cmd::PeerLink;
use crate::ctx::{check_name, Ctx};
use crate::error::Result;
use mars_core::name::Name;
use mars_core::tree::merge::{merge, MergeDecision, Version};
use mars_core::tree::path::TreePath;
use mars_core::tree::value::{self, LogPosLink, MsgValue, ReplayLink, VersionLink};
use std::cmp::Ordering;
use std::fmt;

pub use mars_core::log::LogName;

/// Whether a text can be the name of a host, resource or device.
pub fn is_name(text: &str) -> bool {
    Name::new(text.as_bytes()).is_some()
}

/// The log of this number and host.
pub fn log_name(number: u32, creator: &str) -> Result<LogName> {
    check_name("host", creator, true)?;
    let name = Name::new(creator.as_bytes());
    name.map(|creator| LogName { number, creator })
        .ok_or_else(|| crate::error::Failure::usage(format!("'{creator}' is no host name")))
}

/// Parses `version-%09d-<host>`.
pub fn parse_version_name(text: &str) -> Option<(u32, Name)> {
    // The two kinds of names differ only in their first word.
    let log = LogName::parse(format!("log-{}", text.strip_prefix("version-")?).as_bytes())?;
    Some((log.number, log.creator))
}

/// A position in the sequence of logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The log.
    pub log: LogName,
    /// Bytes of that log.
    pub pos: u64,
    /// Length of the region behind that may be dirty (replay links).
    pub rest: u64,
}

/// A log up to here holds nothing but its header.
pub const LOG_HEADER: u64 = 4096;

impl Position {
    /// A position in a log.
    pub fn new(log: LogName, pos: u64) -> Self {
        Self { log, pos, rest: 0 }
    }

    /// Parses `<log>,<pos>`.
    pub fn parse(text: &str) -> Option<Self> {
        let link = LogPosLink::parse(text.as_bytes())?;
        Some(Self::new(link.log, link.pos))
    }

    /// Parses a replay link `<log>,<pos>,<rest>`.
    pub fn parse_replay(text: &str) -> Option<Self> {
        let ReplayLink { log, pos, rest } = ReplayLink::parse(text.as_bytes())?;
        Some(Self { log, pos, rest })
    }

    /// Whether everything up to `end` has been passed: also the header of an empty log, which may say that there is a gap before.
    pub fn reaches(&self, end: &Self) -> bool {
        if self.log == end.log {
            self.pos >= end.pos
        } else {
            self.log.number > end.log.number
        }
    }

    /// The value of a replay link.
    pub fn replay_value(&self) -> String {
        let Self { log, pos, rest } = *self;
        ReplayLink { log, pos, rest }.to_string()
    }
}

impl PartialOrd for Position {
    /// By number and position. The creator is left out: histories that differ are found elsewhere.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some((self.log.number, self.pos).cmp(&(other.log.number, other.pos)))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.log, self.pos)
    }
}

/// A version link.
#[derive(Clone, Debug)]
pub struct VersionValue {
    /// The value as it stands.
    pub text: String,
    /// Its parts.
    pub link: VersionLink,
}

impl VersionValue {
    /// Parses the value of the link of this number; one that speaks of another number is not taken.
    pub fn parse(number: u32, text: &str) -> Option<Self> {
        let link = VersionLink::parse(text.as_bytes())?;
        (link.this.log.number == number).then(|| Self {
            text: text.to_owned(),
            link,
        })
    }

    /// An artificial link of create-resource: a digest of zeros, which says nothing about a history.
    pub fn artificial(log: LogName, previous: Option<LogName>) -> String {
        let half = |log: LogName| format!("{:032},{log},0", 0);
        format!("{}:{}", half(log), previous.map(half).unwrap_or_default())
    }
}

/// The engine's `<word>[ <text>]`.
pub fn split_state(value: &str) -> (String, String) {
    let (word, text) = value.split_once(' ').unwrap_or((value, ""));
    (word.to_owned(), text.trim().to_owned())
}

/// The text of a message link; `None` when there is nothing to say.
pub fn message_text(text: &str) -> Option<String> {
    match MsgValue::parse(text.as_bytes()) {
        Some(MsgValue::Ok) => None,
        Some(MsgValue::Message { text, .. }) => Some(String::from_utf8_lossy(text).into_owned()),
        None => Some(text.to_owned()),
    }
}

/// A switch or indicator.
pub fn is_on(text: &str) -> bool {
    value::parse_switch(text.as_bytes())
}

/// Whether a link of a peer is to be taken over.
pub fn merge_accepts(ctx: &Ctx, link: &PeerLink) -> bool {
    let (Ok(path), Some(me)) = (
        TreePath::parse(link.path.as_bytes()),
        Name::new(ctx.me.as_bytes()),
    ) else {
        return false;
    };
    let value = link.value.as_bytes();
    if !path.accept_from_peer(&me, value) || !value::is_valid(value) {
        return false;
    }
    let local = match ctx.store.entry(&link.path) {
        Some(Entry::Link(value, stamp)) => Some((value, stamp)),
        _ => None,
    };
    let local = local.as_ref().map(|(value, stamp)| Version {
        value: value.as_bytes(),
        stamp: *stamp,
    });
    let remote = Version {
        value: link.value.as_bytes(),
        stamp: link.stamp,
    };
    // Where one has a stamp of a clock that was far ahead, the module knows more about it.
    let far = local.is_some_and(|l| l.stamp > remote.stamp);
    merge(local, remote, real_time()) == MergeDecision::Take && !(far && path.is_of_role())
}
