// SPDX-License-Identifier: GPL-2.0-or-later

//! Values of the tree and what they mean.

use crate::{
    lamport::LamportTime,
    log::LogName,
    name::Name,
    text::{
        parse_u64,
        Text, //
    },
};
use core::{
    fmt,
    net::IpAddr, //
};

pub use crate::log::chain::{
    VersionLink,
    VersionPoint, //
};

/// Longest value in bytes.
pub const MAX_VALUE: usize = 1023;

/// The value where nothing is meant (a symlink can't be empty).
pub const NONE: &[u8] = b"(none)";

/// The cluster identity of a host that is about to join.
pub const UUID_ANY: &[u8] = b"(any)";

/// Whether a value may stand in the tree: 1 to 1023 bytes, no NUL, no newline.
pub fn is_valid(value: &[u8]) -> bool {
    (1..=MAX_VALUE).contains(&value.len()) && !value.iter().any(|&b| b == 0 || b == b'\n')
}

/// A switch or indicator: any number but 0 is on, what is no number is off.
pub fn parse_switch(value: &[u8]) -> bool {
    parse_u64(value).is_some_and(|n| n != 0)
}

/// The value of a switch or indicator.
pub fn switch(on: bool) -> &'static [u8] {
    if on {
        b"1"
    } else {
        b"0"
    }
}

/// A host, or `None` for `(none)` and what is no valid name.
pub fn parse_host(value: &[u8]) -> Option<Name> {
    Name::new(value)
}

/// An address as in `ips/ip-<host>`: IPv4 or IPv6, without port.
pub fn parse_ip(value: &[u8]) -> Option<IpAddr> {
    core::str::from_utf8(value).ok()?.parse().ok()
}

/// `log-%09d-<host>,<pos>`: a position in a log, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogPosLink {
    /// The log.
    pub log: LogName,
    /// Bytes of it.
    pub pos: u64,
}

impl LogPosLink {
    /// Parses the value of `log-end` or `fetch-pos`.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = value.split(|&b| b == b',');
        let link = Self {
            log: LogName::parse(parts.next()?)?,
            pos: parse_u64(parts.next()?)?,
        };
        parts.next().is_none().then_some(link)
    }

    /// The value of the link.
    pub fn value(&self) -> Text<128> {
        Text::from_display(self).unwrap_or_default()
    }
}

impl fmt::Display for LogPosLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.log, self.pos)
    }
}

/// `log-%09d-<host>,<pos>,<rest>` of `replay-<host>` and `syncpos-<host>`: everything before `pos` is on the
/// disk; `rest` bytes of log after it may be there in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplayLink {
    /// The log.
    pub log: LogName,
    /// Bytes of it that are applied.
    pub pos: u64,
    /// Length of the possibly inconsistent region after it.
    pub rest: u64,
}

impl ReplayLink {
    /// Parses the value. As the original does, `rest` may be missing.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = value.split(|&b| b == b',');
        let link = Self {
            log: LogName::parse(parts.next()?)?,
            pos: parse_u64(parts.next()?)?,
            rest: parts.next().map_or(Some(0), parse_u64)?,
        };
        parts.next().is_none().then_some(link)
    }

    /// The value of the link.
    pub fn value(&self) -> Text<128> {
        Text::from_display(self).unwrap_or_default()
    }
}

impl fmt::Display for ReplayLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.log, self.pos, self.rest)
    }
}

/// `actual-<host>/msg-<key>`: `OK`, or when and what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsgValue<'a> {
    /// Nothing to say.
    Ok,
    /// `<real time> <Lamport time> <text>`.
    Message {
        /// Real time of its beginning.
        real: LamportTime,
        /// Lamport time of its beginning.
        lamport: LamportTime,
        /// What.
        text: &'a [u8],
    },
}

impl<'a> MsgValue<'a> {
    /// Parses the value.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        if value == b"OK" {
            return Some(Self::Ok);
        }
        let mut parts = value.splitn(3, |&b| b == b' ');
        Some(Self::Message {
            real: LamportTime::parse(parts.next()?)?,
            lamport: LamportTime::parse(parts.next()?)?,
            text: parts.next()?,
        })
    }
}

impl fmt::Display for MsgValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("OK"),
            Self::Message {
                real,
                lamport,
                text,
            } => {
                let text = core::str::from_utf8(text).unwrap_or("?");
                write!(f, "{real} {lamport} {text}")
            }
        }
    }
}

/// What the engine does with a resource: the word of `actual-<host>/state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateWord {
    /// The disk is not in use.
    Detached,
    /// After a crash: the own log is applied to the disk.
    Recovering,
    /// The device exists.
    Primary,
    /// Nothing to do at the moment.
    Secondary,
    /// Blocks are copied from the primary.
    Syncing,
    /// Logs are applied.
    Replaying,
    /// Something must come first; the text says what.
    Waiting,
    /// The histories exclude each other.
    SplitBrain,
    /// A log is damaged.
    DefectiveLog,
    /// The disk can't be used.
    DiskError,
    /// `/mars` is full.
    NoSpace,
    /// The device works, but nothing is logged for want of room.
    Emergency,
    /// Being stopped.
    Stopping,
}

const STATES: [(StateWord, &str); 13] = [
    (StateWord::Detached, "detached"),
    (StateWord::Recovering, "recovering"),
    (StateWord::Primary, "primary"),
    (StateWord::Secondary, "secondary"),
    (StateWord::Syncing, "syncing"),
    (StateWord::Replaying, "replaying"),
    (StateWord::Waiting, "waiting"),
    (StateWord::SplitBrain, "split-brain"),
    (StateWord::DefectiveLog, "defective-log"),
    (StateWord::DiskError, "disk-error"),
    (StateWord::NoSpace, "no-space"),
    (StateWord::Emergency, "emergency"),
    (StateWord::Stopping, "stopping"),
];

impl StateWord {
    /// The word.
    pub fn as_str(self) -> &'static str {
        STATES
            .iter()
            .find(|(state, _)| *state == self)
            .map_or("", |(_, word)| word)
    }

    /// From the word.
    pub fn parse(word: &[u8]) -> Option<Self> {
        STATES
            .iter()
            .find(|(_, w)| w.as_bytes() == word)
            .map(|(state, _)| *state)
    }
}

impl fmt::Display for StateWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `<word>[ <text>]` of `actual-<host>/state`. The text is there when an administrator has to act.
pub fn parse_state(value: &[u8]) -> Option<(StateWord, &[u8])> {
    let mut parts = value.splitn(2, |&b| b == b' ');
    let word = StateWord::parse(parts.next()?)?;
    Some((word, parts.next().unwrap_or(b"")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn links_with_positions_go_both_ways() {
        let text = b"log-000000003-beta,4180,12";
        let link = ReplayLink::parse(text).unwrap();
        assert_eq!((link.log.number, link.pos, link.rest), (3, 4180, 12));
        assert_eq!(link.value().as_bytes(), text);
        assert_eq!(
            ReplayLink::parse(b"log-000000003-beta,4180").unwrap().rest,
            0
        );
        let text = b"log-000000003-beta,4180";
        assert_eq!(LogPosLink::parse(text).unwrap().value().as_bytes(), text);
        for bad in [
            "log-000000003-beta",
            "log-000000003-beta,",
            "log-000000003-beta,-1,0",
            "log-000000003-beta,1,0,0",
            "log-3-beta,1,0",
            ".deleted",
        ] {
            assert_eq!(ReplayLink::parse(bad.as_bytes()), None, "{bad}");
            assert_eq!(LogPosLink::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn messages_and_states_go_both_ways() {
        assert_eq!(MsgValue::parse(b"OK"), Some(MsgValue::Ok));
        let text = "1795323661.000000001 1795323662.000000002 disk is too small";
        let msg = MsgValue::parse(text.as_bytes()).unwrap();
        assert_eq!(msg.to_string(), text);
        assert_eq!(MsgValue::parse(b"hello"), None);
        for (state, word) in STATES {
            assert_eq!(StateWord::parse(word.as_bytes()), Some(state));
            assert_eq!(state.to_string(), word);
        }
        assert_eq!(
            parse_state(b"waiting for beta"),
            Some((StateWord::Waiting, &b"for beta"[..]))
        );
        assert_eq!(
            parse_state(b"primary"),
            Some((StateWord::Primary, &b""[..]))
        );
        assert_eq!(parse_state(b"dancing"), None);
    }

    #[test]
    fn values_are_checked() {
        assert!(is_valid(b"x") && is_valid(&[b'x'; 1023]));
        assert!(!is_valid(b"") && !is_valid(&[b'x'; 1024]) && !is_valid(b"a\nb"));
        assert!(!is_valid(b"a\0"));
        assert!(parse_switch(b"1") && parse_switch(b"2"));
        assert!(!parse_switch(b"0") && !parse_switch(b"x") && !parse_switch(b".deleted"));
        assert!(parse_host(NONE).is_none());
        assert!(parse_ip(b"10.77.0.1").is_some() && parse_ip(b"fd00::1").is_some());
        assert!(parse_ip(b"10.77.0.1:7777").is_none());
    }
}
