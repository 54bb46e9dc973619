// SPDX-License-Identifier: GPL-2.0-or-later

//! What a member is in, in the original's words: disk state, replication state, flags, role; and how far behind.

use crate::ctx::Ctx;
use crate::tree::model::{Host, Member, Resource};
use crate::tree::split::{human, Split};
use crate::tree::values::{Position, LOG_HEADER};
use std::path::Path;

/// How far a member is behind, in bytes; `None` where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Lag {
    /// Log not yet here.
    pub fetch_bytes: Option<u64>,
    /// Log not yet replayed (secondary).
    pub replay_bytes: Option<u64>,
    /// Log not yet written back to the disk (primary).
    pub writeback_bytes: Option<u64>,
    /// Disk not yet synced.
    pub sync_bytes: Option<u64>,
}

/// What is shown of a member.
#[derive(Clone, Debug)]
pub struct State {
    pub disk: String,
    pub replication: &'static str,
    pub flags: String,
    pub role: &'static str,
    pub lag: Lag,
    /// Seconds since the host was heard, if it is not this one.
    pub silence: Option<u64>,
    /// Whether it was heard within the window.
    pub reachable: bool,
}

/// Works out the state of a member.
pub fn state(ctx: &Ctx, res: &Resource, member: &Member, splits: &[Split]) -> State {
    let host = ctx.store.host(&member.host);
    let lag = lag(res, member);
    State {
        disk: disk_state(ctx, res, member, &lag),
        replication: replication(ctx, res, member, splits),
        flags: flags(res, member, &lag),
        role: role(res, member),
        lag,
        silence: silence(ctx, &host),
        reachable: ctx.is_alive(&member.host),
    }
}

/// Seconds since a host was heard.
pub fn silence(ctx: &Ctx, host: &Host) -> Option<u64> {
    if host.name == ctx.here {
        return None;
    }
    ctx.silence(host, ctx.store.now()).map(|s| s.as_secs())
}

/// The member whose log the others follow: the actual primary, else the designated one, else the last one.
pub fn leader(res: &Resource) -> Option<&Member> {
    let designated = res.designated().and_then(|h| res.member(h));
    let actual = || res.real_members().find(|m| m.actual.primary);
    let last = || res.last_primary.as_deref().and_then(|h| res.member(h));
    designated
        .filter(|m| m.actual.primary)
        .or_else(actual)
        .or(designated)
        .or_else(last)
}

/// The end of what the leader has logged.
pub fn end_of_log(res: &Resource) -> Option<Position> {
    let leader = leader(res)?;
    let replay = leader.replay.clone()?;
    let newest = leader
        .versions
        .values()
        .last()
        .map(|v| Position::new(v.link.this.log, v.link.this.pos));
    [newest, leader.log_end.clone()]
        .into_iter()
        .flatten()
        .filter(|p| p.log.number != replay.log.number || p.log == replay.log)
        .chain(std::iter::once(replay.clone()))
        .reduce(|a, b| if b > a { b } else { a })
}

/// Bytes of log from one position to another, if the logs between are known.
pub fn distance(res: &Resource, from: &Position, to: &Position) -> Option<u64> {
    if from.log.number > to.log.number {
        return Some(0);
    }
    if from.log.number == to.log.number {
        let bytes = to.pos.saturating_sub(from.pos);
        // Nobody is behind because of a header.
        return Some(if to.pos <= LOG_HEADER { 0 } else { bytes });
    }
    let mut sum = to.pos;
    for number in from.log.number..to.log.number {
        let size = length(res, number)?;
        sum += if number == from.log.number {
            size.saturating_sub(from.pos)
        } else {
            size
        };
    }
    Some(sum)
}

/// Length of a log that is not the newest: as the histories say, else the size of the file here.
fn length(res: &Resource, number: u32) -> Option<u64> {
    let links = || res.members.values().flat_map(|m| m.versions.values());
    let closed = links()
        .filter_map(|v| v.link.previous)
        .find(|p| p.log.number == number)
        .map(|p| p.pos);
    let open = || {
        links()
            .map(|v| v.link.this)
            .filter(|p| p.log.number == number)
            .map(|p| p.pos)
            .max()
    };
    let file = || {
        res.logs
            .iter()
            .find(|l| l.name.number == number)
            .map(|l| l.size)
    };
    closed.or_else(open).or_else(file)
}

fn lag(res: &Resource, m: &Member) -> Lag {
    let end = end_of_log(res);
    let to_end = |from: Option<&Position>| distance(res, from?, end.as_ref()?);
    let sync_bytes = res.size.zip(m.syncstatus).map(|(size, done)| {
        let done = done.max(m.sync_pos_bytes.filter(|_| m.actual.syncing).unwrap_or(0));
        size.saturating_sub(done)
    });
    if m.actual.primary {
        let own_end = m.log_end.clone().or(end);
        return Lag {
            fetch_bytes: Some(0),
            replay_bytes: Some(0),
            writeback_bytes: m
                .replay
                .as_ref()
                .zip(own_end.as_ref())
                .and_then(|(a, b)| distance(res, a, b)),
            sync_bytes,
        };
    }
    // Everything replayed was fetched before.
    let fetched = [m.fetch_pos.as_ref(), m.replay.as_ref()]
        .into_iter()
        .flatten()
        .reduce(|a, b| if b > a { b } else { a });
    Lag {
        fetch_bytes: to_end(fetched),
        replay_bytes: to_end(m.replay.as_ref()),
        writeback_bytes: None,
        sync_bytes,
    }
}

/// The original's words, in its order of importance.
fn disk_state(ctx: &Ctx, res: &Resource, m: &Member, lag: &Lag) -> String {
    let Some(disk) = &m.disk else {
        return "NotJoined".into();
    };
    let a = &m.actual;
    let word = m.state_word();
    if a.disk_error < 0 || word == "disk-error" {
        return format!("DISK_ERROR={}", a.disk_error);
    }
    if m.host == ctx.here && !Path::new(disk).exists() {
        return "NotPresent".into();
    }
    match (a.attached, m.todo.attach) {
        (true, false) => return "Detaching".into(),
        (false, false) => return "Detached".into(),
        _ => {}
    }
    match a.replay_code {
        -85 => return "IncompleteLog".into(),
        -56 => return "UnInitializedLogRecord".into(),
        code if code < 0 => return format!("DefectiveLog[{code}]"),
        _ if word == "defective-log" => return "DefectiveLog".into(),
        _ => {}
    }
    if is_orphan(res, m) {
        return "Orphan".into();
    }
    if !a.attached {
        return "NoAttach".into();
    }
    if !m.is_consistent(res.size) {
        return "InConsistent".into();
    }
    if a.primary && res.designated() != Some(&m.host) {
        if let Some(rest) = lag.writeback_bytes.filter(|n| *n > 0) {
            return format!("WriteBack[{}]", human(rest));
        }
    }
    if word == "recovering" {
        return format!("Recovery[{}]", human(lag.replay_bytes.unwrap_or(0)));
    }
    let behind = |n: Option<u64>| n.is_some_and(|n| n > 0);
    if !a.primary && (behind(lag.fetch_bytes) || behind(lag.replay_bytes)) {
        let fetch = if behind(lag.fetch_bytes) { "F" } else { "" };
        let replay = if behind(lag.replay_bytes) { "R" } else { "" };
        return format!("OutDated[{fetch}{replay}]");
    }
    if a.emergency {
        return "EmergencyMode".into();
    }
    "UpToDate".into()
}

/// Its next log was deleted everywhere: it can never catch up.
fn is_orphan(res: &Resource, m: &Member) -> bool {
    let (Some(replay), Some(leader)) = (&m.replay, leader(res)) else {
        return false;
    };
    if leader.host == m.host || m.actual.primary {
        return false;
    }
    // Version links go one number later than their logs. If the leader's history begins behind the member's position,
    // what comes next for the member is gone.
    let first = leader.versions.keys().next().copied().unwrap_or(0);
    first > replay.log.number.saturating_add(1)
}

fn replication(ctx: &Ctx, res: &Resource, m: &Member, splits: &[Split]) -> &'static str {
    let a = &m.actual;
    let designated = res.designated() == Some(&m.host);
    let local = m.host == ctx.here;
    if local && !ctx.store.module_loaded() {
        "ModuleNotLoaded"
    } else if !local && !ctx.is_alive(&m.host) {
        "UnResponsive"
    } else if m.disk.is_none() {
        "NotJoined"
    } else if !a.present {
        "NotStarted"
    } else if a.emergency {
        "EmergencyMode"
    } else if a.primary {
        "Replicating"
    } else if designated {
        "NotYetPrimary"
    } else if m.state_word() == "split-brain"
        || splits.iter().any(|s| s.a == m.host || s.b == m.host)
    {
        "SplitBrain"
    } else if !m.is_synced(res.size) {
        if m.todo.sync && (m.todo.attach || a.attached) {
            "Syncing"
        } else {
            "PausedSync"
        }
    } else if !m.todo.fetch {
        "PausedFetch"
    } else if !m.todo.replay || !(m.todo.attach || a.attached) {
        "PausedReplay"
    } else if is_orphan(res, m) {
        "Orphan"
    } else {
        match res.designated() {
            None => "NoPrimaryDesignated",
            Some(p) if p != ctx.here && !ctx.is_alive(p) => "PrimaryUnreachable",
            Some(_) => "Replaying",
        }
    }
}

/// Six letters: a capital is good, a small one is on its way, `-` is off.
fn flags(res: &Resource, m: &Member, lag: &Lag) -> String {
    let done = |n: Option<u64>| n == Some(0);
    let three = |good: bool, wanted: bool, letters: [char; 2]| {
        if good {
            letters[0]
        } else if wanted {
            letters[1]
        } else {
            '-'
        }
    };
    let disk = m.disk.is_some();
    [
        three(m.actual.if_on, disk, ['D', 'd']),
        three(m.is_consistent(res.size), disk, ['C', 'c']),
        three(
            m.actual.attached && m.todo.attach,
            m.actual.attached || m.todo.attach,
            ['A', 'a'],
        ),
        three(m.is_synced(res.size), m.todo.sync, ['S', 's']),
        three(done(lag.fetch_bytes), m.todo.fetch, ['F', 'f']),
        three(done(lag.replay_bytes), m.todo.replay, ['R', 'r']),
    ]
    .iter()
    .collect()
}

fn role(res: &Resource, m: &Member) -> &'static str {
    let designated = res.designated() == Some(&m.host);
    match (designated, m.actual.primary) {
        (true, true) if res.actual_primaries().len() > 1 => "ForcedPrimary",
        (true, true) => "Primary",
        (true, false) => "NotYetPrimary",
        (false, true) => "RemainsPrimary",
        (false, false) if res.designated().is_none() => "None",
        (false, false) => "Secondary",
    }
}

/// What an administrator should do about the engine's word, if anything.
pub fn remedy(res: &Resource, m: &Member) -> Option<String> {
    let name = &res.name;
    Some(match m.state_word() {
        "disk-error" => format!(
            "repair or reconnect the disk {} (or that of /mars: the kernel log says which); the module tries again by itself",
            m.disk.as_deref().unwrap_or_default()
        ),
        // It can't be invalidated: it may be the one with the data.
        "defective-log" if res.designated() == Some(&m.host) => format!(
            "while fetching is on (`marsadm resume-fetch {name}` on '{0}'), the log is fetched again from whoever has it. If nobody \
             has: on a good member `marsadm pause-fetch {name}` and `marsadm primary --force {name}`, then \
             `marsadm invalidate {name}` on '{0}'",
            m.host
        ),
        "defective-log" | "no-history" => format!(
            "`marsadm invalidate {name}` on '{}' makes a fresh replica",
            m.host
        ),
        "split-brain" => Split::remedy(res),
        "no-space" | "emergency" => format!(
            "free space in /mars on '{}', e.g. `marsadm log-delete-all all`",
            m.host
        ),
        "stopping" if m.state_reason().is_none() => {
            format!("close the device on '{}': its role ends then", m.host)
        }
        _ if is_orphan(res, m) => {
            format!(
                "the logs that '{0}' needs are gone: `marsadm invalidate {name}` on '{0}'",
                m.host
            )
        }
        "waiting" if m.state_reason().is_none() => format!(
            "{}the kernel log of '{1}' says what it waits for (`dmesg | grep mars`). Where /mars is full, there is no room for the \
             reason: `marsadm log-delete-all all` there, or a larger /mars",
            waits_for(res, m).map(|t| t + "; else ").unwrap_or_default(),
            m.host
        ),
        _ => return None,
    })
}

/// What a member probably waits for, that does not say it.
fn waits_for(res: &Resource, m: &Member) -> Option<String> {
    let name = &res.name;
    if m.actual.late {
        return Some("set the clocks of the members right".into());
    }
    let Some(primary) = res.designated() else {
        return Some(format!(
            "nobody is designated: `marsadm primary {name}` on the host with the data"
        ));
    };
    if primary == m.host {
        let whole = m.is_consistent(res.size);
        return (!whole).then(|| {
            format!("its disk is not consistent: let another member become primary (`marsadm primary {name}` there)")
        });
    }
    let theirs = res.member(primary)?;
    if theirs.actual.emergency {
        return Some(format!("free space in /mars on the primary '{primary}'"));
    }
    if !theirs.actual.primary {
        return Some(format!("'{primary}' has to become primary first"));
    }
    (!m.todo.sync).then(|| format!("`marsadm resume-sync {name}` on '{}'", m.host))
}
