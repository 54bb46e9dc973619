// SPDX-License-Identifier: GPL-2.0-or-later

//! log-rotate, log-delete-all and cron.
//!
//! Each is one file or independent tombstones: interrupted, some are done; run again (or by the next cron), the rest is.

use super::drop_logs::delete_needed;
use super::report_split;
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::tree::model::{LogFile, Member, Resource};
use crate::tree::store::{Entry, Trigger, TOMBSTONE};
use crate::tree::values::{log_name, parse_version_name, LOG_HEADER};
use mars_core::lamport::LamportTime;
use std::time::{Duration, Instant};

/// The module says where a log ends once a second: a log that looks empty may not be.
const TOLD_WITHIN: Duration = Duration::from_millis(1500);

/// Limits of `cron`.
#[derive(Debug)]
pub struct Limits {
    pub thresh_logsize: u64,
    pub thresh_logfiles: usize,
    pub keep_backup_hours: u64,
}

/// `log-rotate`. With `all`, resources of which this host is not primary are passed over.
pub fn rotate(ctx: &Ctx, name: &str, all: bool) -> Result<()> {
    let res = ctx.joined(name)?;
    report_split(&res);
    if !ctx.own(&res)?.actual.primary && !ctx.opt.force {
        if all {
            return Ok(());
        }
        return Err(
            Failure::refused(format!("'{}' is not primary of '{name}'", ctx.me)).hint(format!(
                "logs are rotated where they are written: on '{}'",
                res.designated().unwrap_or("the primary")
            )),
        );
    }
    let began = Instant::now();
    let mut started = start_log(ctx, &res, None)?;
    while !started && ctx.can_wait() && began.elapsed() < TOLD_WITHIN {
        std::thread::sleep(Duration::from_millis(100));
        started = start_log(ctx, &ctx.joined(name)?, None)?;
    }
    if started {
        ctx.store.trigger(Trigger::Remote)?;
    }
    Ok(())
}

/// Bytes that a log really holds: its durable end if that is published, else its size.
fn used(member: &Member, log: &LogFile) -> u64 {
    match &member.log_end {
        Some(end) if end.log == log.name => end.pos,
        _ => log.size,
    }
}

/// Creates the empty file that makes the primary start a new log. False if there is nothing to do.
fn start_log(ctx: &Ctx, res: &Resource, limits: Option<&Limits>) -> Result<bool> {
    let own = ctx.own(res)?;
    let Some(newest) = res.newest_own_log(&ctx.me) else {
        return Err(Failure::refused(format!("there is no log of '{}' in '{}'", ctx.me, res.name))
            .hint("the module creates it when this host becomes primary: is it loaded, and the resource up?"));
    };
    let used = used(own, newest);
    if used <= LOG_HEADER {
        out::verbose(
            1,
            format_args!("{} is still empty: nothing to rotate", newest.name),
        );
        return Ok(false);
    }
    if let Some(limits) = limits {
        let count = res
            .logs
            .iter()
            .filter(|l| l.name.creator == newest.name.creator)
            .count();
        let big = limits.thresh_logsize.saturating_mul(1_000_000_000);
        if count >= limits.thresh_logfiles && used < big {
            out::verbose(
                1,
                format_args!("{count} logs are there and the newest is small: not rotated"),
            );
            return Ok(false);
        }
    }
    let number = newest.name.number.max(res.highest_number());
    if number != newest.name.number {
        return Err(Failure::refused(format!(
            "the newest log of '{}' is {}, but number {number} exists already elsewhere",
            ctx.me, newest.name
        ))
        .hint(format!(
            "`marsadm view {}`: is this a split brain?",
            res.name
        )));
    }
    let next = number
        .checked_add(1)
        .ok_or_else(|| Failure::refused("the log numbers are used up"))?;
    let log = log_name(next, &ctx.me)?;
    ctx.store.create_empty(&res.path(&log.to_string()))?;
    ctx.store.ensure(
        &res.path("maxnr"),
        &next
            .max(u32::try_from(res.maxnr.unwrap_or(0)).unwrap_or(0))
            .to_string(),
    )?;
    out::verbose(1, format_args!("{log} created"));
    Ok(true)
}

/// `log-delete-all`: at once; only `cron` leaves young logs alone.
pub fn delete_all(ctx: &Ctx, name: &str, also_needed: bool) -> Result<()> {
    let res = ctx.joined(name)?;
    let deleted = if also_needed {
        delete_needed(ctx, &res)?
    } else {
        delete_old(ctx, &res, None, false)?
    };
    if deleted > 0 {
        ctx.store.trigger(Trigger::Remote)?;
        out::info(format_args!("{deleted} logs of '{name}' deleted"));
    }
    Ok(())
}

/// Tombstones all logs below the lowest number that any member still needs, or below `dropped`; and version links below the
/// former by one more, because they tell where a member stands.
pub fn delete_old(ctx: &Ctx, res: &Resource, dropped: Option<u32>, careful: bool) -> Result<usize> {
    // A member without a position is just joining or being invalidated: nobody knows yet what it needs.
    let mut lowest = u32::MAX;
    for member in res.real_members() {
        let Some(replay) = &member.replay else {
            if dropped.is_some() {
                continue;
            }
            out::verbose(
                1,
                format_args!(
                    "the position of '{}' is not known: nothing is deleted",
                    member.host
                ),
            );
            return Ok(0);
        };
        lowest = lowest.min(replay.log.number);
    }
    // The newest log stays in any case, also when all members are past it.
    let last = res.logs.iter().map(|l| l.name.number).max().unwrap_or(0);
    let limit = lowest.min(last);
    let now = ctx.store.now();
    let young = |t: LamportTime| careful && t.plus_secs(ctx.opt.window.saturating_mul(2)) > now;
    let mut count = 0;
    let unneeded = |number| number < dropped.unwrap_or(limit).max(limit);
    if res.logs.iter().any(|l| unneeded(l.name.number)) {
        // A crash must not bring back an older replay link of this host, which needs one of them.
        ctx.store.barrier_of(&format!("resource-{}", res.name))?;
    }
    for log in res.logs.iter().filter(|l| unneeded(l.name.number)) {
        if young(log.changed) {
            out::verbose(1, format_args!("{} is too young to be deleted", log.name));
            continue;
        }
        ctx.store.delete(&res.path(&log.name.to_string()))?;
        count += 1;
    }
    // One number later, because a link names its predecessor.
    for file in ctx.store.list(&format!("resource-{}", res.name)) {
        let Some((number, _)) = parse_version_name(&file) else {
            continue;
        };
        let path = res.path(&file);
        let Some((_, stamp)) = ctx.store.link(&path) else {
            continue;
        };
        if number.saturating_add(1) < limit && !young(stamp) {
            ctx.store.delete(&path)?;
        }
    }
    Ok(count)
}

/// The part of `cron` for one resource.
pub fn cron(ctx: &Ctx, name: &str, limits: &Limits) -> Result<()> {
    let res = ctx.resource(name)?;
    if res.member(&ctx.me).is_some() {
        report_split(&res);
        if ctx.own(&res)?.actual.primary {
            start_log(ctx, &res, Some(limits))?;
        }
        delete_old(ctx, &res, None, true)?;
    }
    purge_resource(ctx, name, limits)
}

/// The tombstones of a resource, also of what is left of a deleted one.
fn purge_resource(ctx: &Ctx, name: &str, limits: &Limits) -> Result<()> {
    let dir = format!("resource-{name}");
    purge(ctx, &dir, limits)?;
    for sub in ctx.store.list(&dir) {
        let sub = format!("{dir}/{sub}");
        if ctx.store.entry(&sub) == Some(Entry::Dir) {
            purge(ctx, &sub, limits)?;
        }
    }
    ctx.store.trigger(Trigger::Remote)
}

/// The part of `cron` for the whole tree.
pub fn purge_global(ctx: &Ctx, limits: &Limits) -> Result<()> {
    for dir in ctx.store.list("") {
        if ["ips", "userspace", "todo-global"].contains(&dir.as_str())
            || ["actual-", "defaults", "todo-"]
                .iter()
                .any(|p| dir.starts_with(p))
        {
            purge(ctx, &dir, limits)?;
        }
    }
    // Resources that nobody here belongs to any more are visited for their tombstones, too.
    let mine = ctx.store.resources_of(&ctx.me);
    for name in ctx.store.resources().iter().filter(|n| !mine.contains(n)) {
        purge_resource(ctx, name, limits)?;
    }
    Ok(())
}

/// Removes tombstones that every peer must have seen, and forgotten temporary names.
fn purge(ctx: &Ctx, dir: &str, limits: &Limits) -> Result<()> {
    let now = ctx.store.now();
    let keep = limits.keep_backup_hours.saturating_mul(3600);
    let old = |t: LamportTime, secs: u64| t.plus_secs(secs) < now;
    // What is older than the last word of every peer has arrived everywhere; peers that are silent, or say that they don't
    // hear this host, count for `keep` at most.
    let deaf = format!("peer-{}", ctx.here);
    let told = |h: &String| {
        let host = ctx.store.host(h);
        let hears = !host.messages.iter().any(|(key, _)| *key == deaf);
        host.time.filter(|_| hears).unwrap_or(LamportTime::ZERO)
    };
    let others = super::peers::others(ctx);
    let seen = others.iter().map(told).min().unwrap_or(now);
    for name in ctx.store.list(dir) {
        let path = format!("{dir}/{name}");
        let Some(Entry::Link(value, stamp)) = ctx.store.entry(&path) else {
            continue;
        };
        if value != TOMBSTONE {
            continue;
        }
        let arrived = dir != "ips" && stamp.plus_secs(ctx.opt.window.saturating_mul(2)) < seen;
        if arrived || old(stamp, keep) {
            ctx.store.purge(&path)?;
        }
    }
    purge_temporary(ctx, dir, now)
}

/// Temporary names of tools that were killed more than an hour ago.
fn purge_temporary(ctx: &Ctx, dir: &str, now: LamportTime) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(ctx.store.path(dir)) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = format!("{dir}/{name}");
        let stamp = match ctx.store.entry(&path) {
            Some(Entry::Link(_, t) | Entry::File(_, t)) => t,
            _ => continue,
        };
        if name.starts_with(".tmp.") && stamp.plus_secs(3600) < now {
            ctx.store.purge(&path)?;
        }
    }
    Ok(())
}
