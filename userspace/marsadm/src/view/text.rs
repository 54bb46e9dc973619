// SPDX-License-Identifier: GPL-2.0-or-later

//! `view` for people: the original's line per resource, then what else there is to know.

use super::state::{end_of_log, remedy, State};
use super::Found;
use crate::ctx::Ctx;
use crate::ops;
use crate::out;
use crate::sys::disk;
use crate::tree::model::{Member, NOBODY};
use crate::tree::split::{human, Split};
use crate::tree::store::real_time;

const BAR: u64 = 20;

/// Prints everything.
pub fn print(ctx: &Ctx, found: &[Found], all: bool) {
    warnings(ctx, all);
    let several = found.len() > 1 || all;
    for f in found {
        if several {
            line(format_args!(
                "--------- resource {} {} [{}/{}]",
                f.res.name,
                f.res.size.map_or_else(|| "(size not known)".into(), human),
                f.res.real_members().count(),
                ctx.store.hosts().len()
            ));
        }
        resource(ctx, f);
    }
    if all {
        if found.is_empty() {
            line(format_args!("host '{}' takes part in no resource", ctx.me));
        }
        cluster(ctx);
    }
}

fn line(text: std::fmt::Arguments<'_>) {
    out::info(text);
}

/// What is wrong with this host altogether.
fn warnings(ctx: &Ctx, all: bool) {
    if ctx.store.get("uuid").is_none() {
        out::warn(format_args!(
            "this host does not belong to a cluster ({}/uuid is missing)",
            ctx.store.root().display()
        ));
        out::hint("`marsadm create-cluster` or `marsadm join-cluster HOST`");
    }
    if !ctx.store.module_loaded() {
        out::warn(format_args!("the kernel module is not loaded: nothing is replicated, and states are those of its end"));
        out::hint("`modprobe mars`");
    }
    let own = ctx.store.host(&ctx.here);
    if own.emergency > 0 {
        out::warn(format_args!(
            "{} is nearly full (level {} of 4)",
            ctx.store.root().display(),
            own.emergency
        ));
        out::hint("more space, or `marsadm cron`; are peers down for long, so that their logs cannot be deleted?");
    }
    if all {
        for r in ops::interrupted(ctx) {
            let age = real_time().sec().saturating_sub(r.since);
            out::warn(format_args!(
                "`{}` was interrupted {age} s ago at the step '{}'",
                r.command, r.step
            ));
            out::hint(&format!(
                "run it again to complete it, or `marsadm ops --forget {}`",
                r.subject
            ));
        }
    }
}

fn resource(ctx: &Ctx, f: &Found) {
    let res = &f.res;
    let hosts = ctx.store.hosts().len();
    let Some((own, own_state)) = f.members.first().filter(|(m, _)| m.host == ctx.me) else {
        line(format_args!(
            "  {} [{}/{hosts}] NotJoined {}",
            res.name,
            res.real_members().count(),
            res.primary.as_deref().unwrap_or(NOBODY)
        ));
        for (m, s) in &f.members {
            peer(f, m, s, ctx);
        }
        return split(f);
    };
    device(ctx, own);
    line(format_args!(
        "  {} [{}/{hosts}] {} {} {} {} {}{}",
        res.name,
        res.real_members().count(),
        own_state.disk,
        own_state.replication,
        own_state.flags,
        own_state.role,
        res.primary.as_deref().unwrap_or(NOBODY),
        comm(own_state, ctx)
    ));
    details(f, own, own_state);
    for (m, s) in f.members.iter().skip(1) {
        peer(f, m, s, ctx);
    }
    split(f);
}

/// Silence of a host, if it is longer than the window.
fn comm(s: &State, ctx: &Ctx) -> String {
    match s.silence {
        Some(n) if n >= ctx.opt.window => format!(" silent for {}", duration(n)),
        _ => String::new(),
    }
}

fn device(ctx: &Ctx, own: &Member) {
    let Some(device) = own.device.as_deref().filter(|_| own.actual.if_on) else {
        return;
    };
    let mut state = if own.actual.open_count == 0 {
        "Closed".to_owned()
    } else {
        let mut text = "Opened".to_owned();
        if let Some(m) = disk::mount_of_mars(device).filter(|_| own.host == ctx.here) {
            text.push_str(&format!(", {} on {}", m.fstype, m.point.display()));
        }
        if let Some(holder) = &own.actual.holder {
            text.push_str(&format!(", {holder}"));
        }
        text
    };
    if own.actual.flying > 0 {
        state.push_str(&format!(", {} Flying", own.actual.flying));
    }
    line(format_args!("  LocalDevice /dev/mars/{device} [{state}]"));
}

/// A line for a member elsewhere.
fn peer(f: &Found, m: &Member, s: &State, ctx: &Ctx) {
    let behind = match (s.lag.sync_bytes, s.lag.replay_bytes) {
        (Some(n), _) if n > 0 => format!(" {} to sync", human(n)),
        (_, Some(n)) if n > 0 && !m.actual.primary => format!(" {} behind", human(n)),
        _ => String::new(),
    };
    line(format_args!(
        "    {:<12} {} {} {} {}{behind}{}",
        format!("{}:", m.host),
        s.disk,
        s.replication,
        s.flags,
        s.role,
        comm(s, ctx)
    ));
    if let Some(reason) = m.state_reason() {
        line(format_args!("      {}: {reason}", m.state_word()));
    } else if let Some(remedy) = remedy(&f.res, m).filter(|_| f.splits.is_empty()) {
        line(format_args!("      {} -> {remedy}", m.state_word()));
    }
}

/// Progress and reasons of the own member.
fn details(f: &Found, own: &Member, s: &State) {
    let res = &f.res;
    if let (Some(size), Some(rest)) = (res.size, s.lag.sync_bytes) {
        if rest > 0 {
            progress("syncing", size.saturating_sub(rest), size);
        }
    }
    if let (Some(end), Some(replay)) = (
        end_of_log(res),
        own.replay.as_ref().filter(|_| !own.actual.primary),
    ) {
        let total = |rest: u64| rest.saturating_add(replay.pos);
        if let Some(rest) = s.lag.fetch_bytes.filter(|n| *n > 0) {
            let total = total(s.lag.replay_bytes.unwrap_or(rest));
            progress("fetching", total.saturating_sub(rest), total);
        }
        if let Some(rest) = s.lag.replay_bytes.filter(|n| *n > 0) {
            progress("replaying", total(rest).saturating_sub(rest), total(rest));
            line(format_args!(
                "      logs: [{}..{}]",
                replay.log.number, end.log.number
            ));
        }
    }
    if let Some(rest) = s.lag.writeback_bytes.filter(|n| *n > 0) {
        line(format_args!(
            "    write-back: {} in the log, not yet on the disk",
            human(rest)
        ));
    }
    if let Some(actsize) = own
        .actsize
        .zip(res.size)
        .and_then(|(a, size)| a.checked_sub(size))
        .filter(|n| *n >= 1 << 20)
    {
        let possible = res.real_members().filter_map(|m| m.actsize).min() > res.size;
        let hint = if possible {
            "; `marsadm resize` can use it"
        } else {
            ""
        };
        line(format_args!(
            "    {} of the disk are not used{hint}",
            human(actsize)
        ));
    }
    if let Some(reason) = own.state_reason() {
        line(format_args!("    {}: {reason}", own.state_word()));
    }
    if let Some(remedy) = remedy(res, own).filter(|_| f.splits.is_empty()) {
        if own.state_reason().is_none() {
            line(format_args!("    {}", own.state_word()));
        }
        line(format_args!("    -> {remedy}"));
    }
    if own.actual.late {
        line(format_args!(
            "    the clock of another member is more than 30 days ahead of this host's: what is new there is not taken, nor a role"
        ));
        line(format_args!(
            "    -> set the clocks right; the kernel log names the host"
        ));
    }
    for (key, text) in &own.actual.errors {
        line(format_args!("    {key}: {text}"));
    }
}

fn split(f: &Found) {
    for s in &f.splits {
        line(format_args!("    {}", s.describe(&f.res.name)));
    }
    if !f.splits.is_empty() {
        line(format_args!("    -> {}", Split::remedy(&f.res)));
    }
}

/// A bar of 20 characters.
pub fn bar(done: u64, total: u64) -> String {
    let cells = if total == 0 {
        BAR
    } else {
        let cells = u128::from(done) * u128::from(BAR) / u128::from(total);
        u64::try_from(cells).unwrap_or(BAR).min(BAR)
    };
    let full = usize::try_from(cells).unwrap_or(0);
    let width = usize::try_from(BAR).unwrap_or(0);
    if full >= width {
        return format!("[{}]", "=".repeat(width));
    }
    format!("[{}>{}]", "=".repeat(full), ".".repeat(width - full))
}

fn progress(what: &str, done: u64, total: u64) {
    let hundredths = if total == 0 {
        10_000
    } else {
        u128::from(done) * 10_000 / u128::from(total)
    };
    line(format_args!(
        "    {:<10} {} {:>3}.{:02}% ({} of {})",
        format!("{what}:"),
        bar(done, total),
        hundredths / 100,
        hundredths % 100,
        human(done),
        human(total)
    ));
}

fn duration(secs: u64) -> String {
    match secs {
        0..=119 => format!("{secs} s"),
        120..=7199 => format!("{} min", secs / 60),
        7200..=172_799 => format!("{} h", secs / 3600),
        _ => format!("{} days", secs / 86_400),
    }
}

/// The hosts, and the space for logs.
fn cluster(ctx: &Ctx) {
    let now = ctx.store.now();
    for name in ctx.store.hosts() {
        let host = ctx.store.host(&name);
        let state = if name == ctx.here {
            if ctx.store.module_loaded() {
                "this host".to_owned()
            } else {
                "this host, module not loaded".into()
            }
        } else if host.alive == Some(false) {
            "module not loaded".into()
        } else {
            match ctx.silence(&host, now) {
                None => "never heard".into(),
                Some(s) if s.as_secs() >= ctx.opt.window => {
                    format!("silent for {}", duration(s.as_secs()))
                }
                Some(_) => "alive".into(),
            }
        };
        let space = host
            .space_gib
            .map(|(rest, total)| format!(", /mars {rest} of {total} GiB free"))
            .unwrap_or_default();
        line(format_args!(
            "host {:<12} {:<15} {state}{space}",
            name,
            host.ip.as_deref().unwrap_or("?")
        ));
        for (key, text) in &host.messages {
            line(format_args!("    {key}: {text}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_they_should() {
        assert_eq!(bar(0, 10), format!("[>{}]", ".".repeat(20)));
        assert_eq!(
            bar(5, 10),
            format!("[{}>{}]", "=".repeat(10), ".".repeat(10))
        );
        assert_eq!(bar(10, 10), format!("[{}]", "=".repeat(20)));
        assert_eq!(bar(0, 0), format!("[{}]", "=".repeat(20)));
        assert_eq!(bar(u64::MAX, u64::MAX), bar(1, 1));
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(5), "5 s");
        assert_eq!(duration(600), "10 min");
        assert_eq!(duration(86_400), "24 h");
    }
}
