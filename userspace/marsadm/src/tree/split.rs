// SPDX-License-Identifier: GPL-2.0-or-later

//! Split brain in a resource: which members exclude each other, where they parted, and what to do. The rule is the core's.

use super::model::Resource;
use super::values::LOG_HEADER;
use mars_core::log::{LogName, VersionLink};
use mars_core::split_brain::{compare, double_number, Relation};
use std::collections::BTreeSet;

/// Two members whose histories exclude each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// One member.
    pub a: String,
    /// The other one.
    pub b: String,
    /// Log number in which, or at the start of which, they part.
    pub number: u32,
    /// Last common position, if known: log and bytes.
    pub common: Option<(String, u64)>,
    /// Bytes of log that only `a` has; `None` if it is not known.
    pub only_a: Option<u64>,
    /// Bytes of log that only `b` has.
    pub only_b: Option<u64>,
}

/// All pairs of members in split brain.
pub fn splits(res: &Resource) -> Vec<Split> {
    let chains: Vec<(&str, Vec<VersionLink>)> = res
        .real_members()
        .filter(|m| m.replay.is_some())
        .map(|m| {
            (
                m.host.as_str(),
                m.versions.values().map(|v| v.link).collect(),
            )
        })
        .collect();
    let mut out = Vec::new();
    for (i, (a, chain_a)) in chains.iter().enumerate() {
        for (b, chain_b) in chains.iter().skip(i + 1) {
            if let Relation::Diverged(d) = compare(chain_a, chain_b) {
                out.push(Split {
                    a: (*a).to_owned(),
                    b: (*b).to_owned(),
                    number: d.number,
                    common: d.common.map(|p| (p.log.to_string(), p.pos)),
                    only_a: Some(d.only_a),
                    only_b: Some(d.only_b),
                });
            }
        }
    }
    if out.is_empty() {
        out.extend(double_log(res));
    }
    out
}

/// Two hosts have written a log of the same number, although their version links do not (yet) tell.
fn double_log(res: &Resource) -> Option<Split> {
    let named: BTreeSet<LogName> = res
        .members
        .values()
        .flat_map(|m| m.versions.values().map(|v| v.link.this.log))
        .collect();
    let real = |size, name| size > LOG_HEADER || size > 0 && named.contains(name);
    let logs = res.logs.iter().filter(|l| real(l.size, &l.name));
    let mut logs: Vec<LogName> = logs.map(|l| l.name).collect();
    logs.sort();
    logs.dedup();
    let (number, a, b) = double_number(&logs)?;
    Some(Split {
        a: a.to_string(),
        b: b.to_string(),
        number,
        common: None,
        only_a: None,
        only_b: None,
    })
}

impl Split {
    /// What diverged, in a few lines.
    pub fn describe(&self, res: &str) -> String {
        let place = match &self.common {
            Some((log, pos)) => format!("after {log} position {pos}"),
            None => format!("at log number {}", self.number),
        };
        let amount = |host: &str, bytes: Option<u64>| match bytes {
            Some(n) => format!("'{host}' has {} of log that the other has not", human(n)),
            None => format!("'{host}' has written a log of this number of its own"),
        };
        format!(
            "SPLIT BRAIN of resource '{res}' {place}: {}; {}",
            amount(&self.a, self.only_a),
            amount(&self.b, self.only_b)
        )
    }

    /// How it ends.
    pub fn remedy(res: &Resource) -> String {
        match res.designated() {
            Some(primary) => format!(
                "if '{primary}' has the version to keep: on each other side `marsadm secondary {0}` if needed, then \
                 `marsadm invalidate {0}`; otherwise first `marsadm primary --force {0}` on the host to keep",
                res.name
            ),
            None => format!(
                "`marsadm primary --force {0}` on the host whose version is to be kept, then `marsadm invalidate {0}` on \
                 each other side",
                res.name
            ),
        }
    }
}

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scale: u64 = 1;
    while bytes / scale >= 1024 && unit + 1 < UNITS.len() {
        unit += 1;
        scale *= 1024;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let thousandths = u128::from(bytes) * 1000 / u128::from(scale);
    format!(
        "{}.{:03} {}",
        thousandths / 1000,
        thousandths % 1000,
        UNITS[unit]
    )
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn bytes_are_shown_for_people() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(10_485_760), "10.000 MiB");
        assert_eq!(human(1536), "1.500 KiB");
        assert_eq!(human(u64::MAX), "16383.999 PiB");
    }
}
