// SPDX-License-Identifier: GPL-2.0-or-later

//! What join-resource, invalidate and leave-resource share: where a replica starts, and which logs nobody needs.

use super::peers;
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::tree::model::{Member, Resource};
use crate::tree::split::splits;
use crate::tree::store::Trigger;
use crate::tree::values::{LogName, Position, VersionValue};
use std::collections::BTreeSet;

/// How often the start is chosen again when the primary deletes logs meanwhile.
const ROUNDS: u32 = 5;

/// The designated primary as the source of a replica here; refused if there is none that could be.
pub fn source<'a>(ctx: &Ctx, res: &'a Resource) -> Result<&'a Member> {
    let Some(primary) = res.designated() else {
        return Err(Failure::refused(format!(
            "resource '{}' has no designated primary at the moment, so there is nothing to sync from",
            res.name
        ))
        .hint(format!("`marsadm primary {}` on the host with the data", res.name)));
    };
    if primary == ctx.me {
        return Err(Failure::refused(format!(
            "host '{}' is itself the designated primary of '{}'",
            ctx.me, res.name
        ))
        .hint(format!(
            "`marsadm primary {}` on another member first",
            res.name
        )));
    }
    let member = res.member(primary).ok_or_else(|| {
        Failure::refused(format!(
            "the designated primary '{primary}' is no member of '{}'",
            res.name
        ))
        .hint("let another member become primary")
    })?;
    if member.replay.is_none() {
        return Err(Failure::refused(format!(
            "nothing is known yet about the position of the primary '{primary}' of '{}'",
            res.name
        ))
        .hint("`marsadm wait-cluster`, then try again"));
    }
    if member.actual.emergency {
        return Err(Failure::refused(format!(
            "the primary '{primary}' of '{}' is in emergency mode: its /mars is full and it does not log",
            res.name
        ))
        .hint(format!("free space in /mars on '{primary}' first")));
    }
    Ok(member)
}

/// Refused while the designated primary is not primary: its position may still be in a log that is not the one that it goes on
/// with. And if it can't become primary, what is here may be the only good copy.
pub fn need_primary(ctx: &Ctx, name: &str, primary: &str) -> Result<()> {
    if !ctx.store.module_loaded() {
        return Ok(());
    }
    let is_primary = || -> Result<bool> {
        let res = ctx.resource(name)?;
        Ok(res.member(primary).is_some_and(|m| m.actual.primary))
    };
    if is_primary()? {
        return Ok(());
    }
    // Perhaps the news have not arrived yet.
    peers::ping(ctx, &[primary.to_owned()], false)?;
    if is_primary()? {
        return Ok(());
    }
    let res = ctx.resource(name)?;
    let word = res.member(primary).map_or("", Member::state_word);
    Err(Failure::refused(format!(
        "'{primary}' is the designated primary of '{name}', but not primary yet (state '{word}'): nothing can be copied from it"
    ))
    .hint(format!(
        "wait until `marsadm view {name}` shows it as Primary; if it can't become that: `marsadm pause-fetch {name}`, then \
         `marsadm primary --force {name}` on the host whose version is to be kept"
    )))
}

/// Writes the position from which this host shall follow: the start of the log that the primary is in, with the
/// primary's own history in place of any older one.
pub fn position(ctx: &Ctx, name: &str, primary: &str) -> Result<()> {
    let res = ctx.resource(name)?;
    let member = res.member(primary).ok_or_else(|| {
        Failure::refused(format!(
            "'{primary}' is no member of '{}' any more",
            res.name
        ))
    })?;
    let log = member
        .replay
        .as_ref()
        .map(|p| p.log)
        .ok_or_else(|| Failure::refused(format!("the position of '{primary}' is not known")))?;
    // Without its predecessor the next version link would be another one than the primary's: a split brain that is none.
    let known = |n: u32| n == 0 || member.versions.contains_key(&n);
    let first = log.number.saturating_sub(1);
    if !(first..=log.number).all(known) {
        return Err(Failure::refused(format!(
            "the history of '{}' on '{primary}' is not known here",
            res.name
        ))
        .hint(
            "is /mars full here? Make room, `marsadm wait-cluster`, then run the command again",
        ));
    }
    // Somebody may have attached the disk meanwhile, and a sync may have begun, or even ended: at the new place it is worth
    // nothing. Said before, so that the disk never counts as complete there; and after, because until then a running
    // sync may have told of its progress (from then on it ends: `need_same_link` in the module).
    let complete = res.path(&format!("syncstatus-{}", ctx.me));
    ctx.store.set(&complete, "0")?;
    // Else a sync that an earlier life of this disk asked for would compare only a part of it.
    ctx.store.delete(&res.path(&format!("gap-{}", ctx.me)))?;
    // Until the history is complete there is no position in it.
    ctx.store.delete(&res.path(&format!("replay-{}", ctx.me)))?;
    let path = |number: u32| res.path(&format!("version-{number:09}-{}", ctx.me));
    // What an earlier attempt has copied of a log that was still written then would contradict what comes after it.
    for (number, version) in &member.versions {
        if ctx.store.get(&path(*number)).is_some() {
            ctx.store.ensure(&path(*number), &version.text)?;
        }
    }
    ctx.store.barrier()?;
    for number in first..=log.number {
        if let Some(version) = member.versions.get(&number) {
            ctx.store.ensure(&path(number), &version.text)?;
        }
    }
    ctx.store.ensure(
        &res.path(&format!("skip-check-{}", ctx.me)),
        &log.number.to_string(),
    )?;
    // The history first: without it, what follows would seem to be another one.
    ctx.store.barrier()?;
    let start = Position::new(log, 0).replay_value();
    ctx.store
        .set(&res.path(&format!("replay-{}", ctx.me)), &start)?;
    ctx.store.set(&complete, "0")?;
    drop_versions(ctx, &res, &BTreeSet::from([first, log.number]))
}

/// Between looking at the primary's position and becoming visible as a member, the primary may have moved on, and the log
/// that was chosen as the start may be deleted. It cannot be as long as the primary itself is still in it; else the start
/// is chosen again.
pub fn settle(ctx: &Ctx, name: &str, primary: &str) -> Result<()> {
    ctx.store.trigger(Trigger::Remote)?;
    for _ in 0..ROUNDS {
        peers::ping(ctx, &[primary.to_owned()], false)?;
        let res = ctx.resource(name)?;
        let number = |host| res.member(host)?.replay.as_ref().map(|p| p.log.number);
        let Some(start) = number(&ctx.me) else {
            return Err(Failure::refused(format!(
                "the replay link of '{}' has vanished",
                ctx.me
            )));
        };
        if number(primary).is_none_or(|n| n <= start) {
            return Ok(());
        }
        out::verbose(1, format_args!("'{primary}' has gone on: starting later"));
        position(ctx, name, primary)?;
        ctx.store.trigger(Trigger::Remote)?;
    }
    Err(
        Failure::refused("logs of the primary are rotated faster than this host can join")
            .hint("stop `marsadm cron` on the primary for a moment, then run the command again"),
    )
}

/// Tombstones own version links whose number is not in `keep`.
pub fn drop_versions(ctx: &Ctx, res: &Resource, keep: &BTreeSet<u32>) -> Result<()> {
    let suffix = format!("-{}", ctx.me);
    for name in ctx.store.list(&format!("resource-{}", res.name)) {
        let Some((number, host)) = crate::tree::values::parse_version_name(&name) else {
            continue;
        };
        if host.as_str() == ctx.me && name.ends_with(&suffix) && !keep.contains(&number) {
            ctx.store.delete(&res.path(&name))?;
        }
    }
    Ok(())
}

/// Refused where a living member that is behind has yet to fetch a log that no other one ever had: without this host's copy, and
/// its history, which says where that log ends, it can't go on.
pub fn need_not_last_log(ctx: &Ctx, res: &Resource, what: &str) -> Result<()> {
    let Some(own) = res.member(&ctx.me) else {
        return Ok(());
    };
    let others = || res.real_members().filter(|m| m.host != ctx.me);
    // What comes after a split brain was cut off: nobody is to go on with it.
    let parted = splits(res)
        .iter()
        .filter(|s| s.a == ctx.me || s.b == ctx.me)
        .map(|s| s.number)
        .min();
    let common = |number: u32| parted.is_none_or(|n| number < n);
    let here = |log: &LogName| ctx.is_remote() || res.logs.iter().any(|l| l.name == *log);
    let has = |m: &Member, log: &LogName| {
        let passed = m.replay.as_ref().is_some_and(|p| p.log.number > log.number);
        let named = |v: &VersionValue| v.link.this.log == *log;
        passed
            && m.began.is_none_or(|n| n <= log.number)
            && m.versions.get(&log.number).is_some_and(named)
    };
    // A primary has what it needs, and nothing behind what it writes is wanted by anybody.
    let newest = res
        .real_members()
        .filter(|m| m.actual.primary && Some(m.host.as_str()) == res.designated())
        .filter_map(|m| m.versions.keys().last().copied())
        .max();
    let common = |number: u32| common(number) && newest.is_none_or(|n| number <= n);
    for m in others().filter(|m| ctx.is_alive(&m.host) && !m.actual.primary) {
        let at = [&m.replay, &m.fetch_pos].into_iter().flatten();
        let Some(next) = at.map(|p| p.log.number).max() else {
            continue;
        };
        let logs = own.versions.values().map(|v| v.link.this.log);
        let missing = logs
            .filter(|log| log.number >= next && common(log.number) && has(own, log) && here(log))
            .find(|log| !others().any(|x| has(x, log)));
        let Some(log) = missing else { continue };
        let text = format!(
            "'{}' still needs {log} of '{}', which no other member has but '{}'",
            m.host, res.name, ctx.me
        );
        if ctx.opt.force {
            out::warn(format_args!(
                "{text}; forced: it will have to be invalidated"
            ));
            continue;
        }
        return Err(Failure::refused(format!("{text}: {what} would take it away")).hint(format!(
            "wait until `marsadm view {0}` shows that it has caught up (`marsadm up {0}` there, if it is paused); or --force, and \
             then `marsadm invalidate {0}` there",
            res.name
        )));
    }
    Ok(())
}

/// Whether a member's history or position names a log.
pub fn names_log(member: &Member, log: &LogName) -> bool {
    let in_link = |v: &VersionValue| {
        v.link.this.log == *log || v.link.previous.is_some_and(|p| p.log == *log)
    };
    member.replay.as_ref().is_some_and(|p| p.log == *log) || member.versions.values().any(in_link)
}

/// The logs written by this host that no other member's history or position names.
pub fn unnamed_own_logs(ctx: &Ctx, res: &Resource) -> Vec<LogName> {
    let named = |log: &LogName| {
        let mut others = res.real_members().filter(|m| m.host != ctx.me);
        others.any(|m| names_log(m, log))
    };
    let mine = res.logs.iter().map(|l| l.name);
    mine.filter(|log| log.creator.as_str() == ctx.me && !named(log))
        .collect()
}

/// Tombstones these logs.
pub fn purge_own_logs(ctx: &Ctx, res: &Resource) -> Result<()> {
    for log in unnamed_own_logs(ctx, res) {
        out::verbose(
            1,
            format_args!("{log} is in nobody's history any more: deleted"),
        );
        ctx.store.delete(&res.path(&log.to_string()))?;
    }
    Ok(())
}
