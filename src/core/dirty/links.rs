// SPDX-License-Identifier: GPL-2.0-or-later

//! What the tree says about gaps and about logs that were deleted although members needed them.

use core::fmt;

use crate::{
    log::LogName,
    text::parse_u64,
    tree::value::ReplayLink, //
};

/// What the sync of a replica that lacks log is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lack {
    /// What was written without a log, right before [`GapLink::log`].
    Gap,
    /// The logs from this number on were deleted. The disk has everything before.
    Since(u32),
    /// There is no map: everything is compared.
    All,
    /// Nothing any more: replay may begin at the start of the log.
    Done,
}

/// `gap-<host>`: `log-%09d-<creator>`, then nothing, `,since=<number>`, `,all` or `,done`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GapLink {
    /// The log before which something is missing.
    pub log: LogName,
    /// What.
    pub lack: Lack,
}

impl GapLink {
    /// Parses the value.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = value.split(|&b| b == b',');
        let log = LogName::parse(parts.next()?)?;
        let lack = match parts.next() {
            None => Lack::Gap,
            Some(b"all") => Lack::All,
            Some(b"done") => Lack::Done,
            Some(since) => {
                let number = parse_u64(since.strip_prefix(b"since=")?)?;
                Lack::Since(u32::try_from(number).ok().filter(|n| *n > 0)?)
            }
        };
        parts.next().is_none().then_some(Self { log, lack })
    }
}

impl fmt::Display for GapLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lack {
            Lack::Gap => write!(f, "{}", self.log),
            Lack::Since(number) => write!(f, "{},since={number}", self.log),
            Lack::All => write!(f, "{},all", self.log),
            Lack::Done => write!(f, "{},done", self.log),
        }
    }
}

/// `actual-<host>/dropped-logs`: `log-%09d-<creator>,<from>`. The logs from number `from` on, below `to`, were deleted on purpose; the map
/// of the host says what they wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DroppedLink {
    /// The first log that there still is.
    pub to: LogName,
    /// The first one that is gone.
    pub from: u32,
}

impl DroppedLink {
    /// Parses the value.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let at = value.iter().position(|&b| b == b',')?;
        let (log, rest) = value.split_at_checked(at)?;
        let from = u32::try_from(parse_u64(rest.get(1..)?)?).ok()?;
        Some(Self {
            to: LogName::parse(log)?,
            from,
        })
    }

    /// Whether a replica with this replay link, for which the log of number `gone` is nowhere to be had, can be helped by
    /// the map.
    pub fn helps(&self, replay: &ReplayLink, gone: u32) -> bool {
        self.from <= replay.log.number && replay.log.number <= gone && gone < self.to.number
    }
}

impl fmt::Display for DroppedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.to, self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use std::string::ToString;

    fn log(number: u32) -> LogName {
        LogName {
            number,
            creator: Name::new(b"a").unwrap(),
        }
    }

    #[test]
    fn given_links_when_printed_and_parsed_then_they_are_the_same() {
        for lack in [Lack::Gap, Lack::Since(7), Lack::All, Lack::Done] {
            let link = GapLink { log: log(9), lack };
            assert_eq!(GapLink::parse(link.to_string().as_bytes()), Some(link));
        }
        let link = DroppedLink {
            to: log(9),
            from: 3,
        };
        assert_eq!(link.to_string(), "log-000000009-a,3");
        assert_eq!(DroppedLink::parse(link.to_string().as_bytes()), Some(link));
    }

    #[test]
    fn given_nonsense_when_parsed_then_it_is_nothing() {
        for bad in [
            "",
            "log-000000009-a,",
            "log-000000009-a,since=",
            "log-000000009-a,since=0",
            "log-000000009-a,since=4294967296",
            "log-000000009-a,done,done",
            "log-9-a",
        ] {
            assert_eq!(GapLink::parse(bad.as_bytes()), None, "{bad}");
        }
        for bad in [
            "",
            "log-000000009-a",
            "log-000000009-a,",
            "log-000000009-a,x",
            "log-9-a,1",
        ] {
            assert_eq!(DroppedLink::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn p1_given_dropped_logs_when_a_replica_is_elsewhere_then_the_map_does_not_help_it() {
        let link = DroppedLink {
            to: log(9),
            from: 3,
        };
        let at = |number, pos| ReplayLink {
            log: log(number),
            pos,
            rest: 0,
        };
        assert!(link.helps(&at(3, 0), 3) && link.helps(&at(8, 99), 8) && link.helps(&at(3, 5), 8));
        // It may lack what was in log 2.
        assert!(!link.helps(&at(2, 99), 3));
        // What it needs next is still there, or was lost otherwise.
        assert!(
            !link.helps(&at(8, 99), 9) && !link.helps(&at(9, 0), 9) && !link.helps(&at(5, 0), 4)
        );
    }
}
