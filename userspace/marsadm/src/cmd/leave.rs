// SPDX-License-Identifier: GPL-2.0-or-later

//! leave-resource and delete-resource.
//!
//! leave-resource, interrupted: `data-<host>` goes first (no member any more), `device-<host>` last; as long as any own
//! link is left, running the command again removes the rest. delete-resource, interrupted: `size` goes first; run again,
//! it removes what is left.

use super::switch::running;
use super::{invalidate, operation, peers, primary, replica};
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::tree::model::{Member, Resource};
use crate::tree::store::{Entry, Trigger};
use std::collections::BTreeSet;
use std::time::Duration;

/// Own links of a member, in the order in which they go.
const OWN: &[&str] = &[
    "data",
    "syncstatus",
    "syncpos",
    "verifystatus",
    "replay",
    "skip-check",
    "actsize",
    "syncfrom",
    "gap",
    "unflushed",
    "connect",
];

/// `leave-resource`.
pub fn leave_resource(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.resource(name)?;
    let me = &ctx.me;
    let own = res.members.get(me);
    if own.is_none() && !has_remains(ctx, &res) {
        if res.real_members().next().is_none() {
            return Err(Failure::refused(format!(
                "host '{me}' is not a member of resource '{name}'"
            )));
        }
        out::info(format_args!(
            "host '{me}' is not a member of '{name}': nothing to do"
        ));
        return Ok(());
    }
    let answers = ask_members(ctx, &res)?;
    let res = ctx.resource(name)?;
    let own = res.members.get(me);
    let led = res
        .real_members()
        .any(|m| m.host != *me && m.actual.primary && answers(&m.host));
    let was_primary = res.designated() == Some(me)
        || res.last_primary.as_deref() == Some(me)
        || own.is_some_and(|m| m.actual.primary);
    if ctx.is_remote() && was_primary && !led && res.real_members().any(|m| m.host != *me) {
        // What it has written, and was fetched, would be deleted before anybody has replayed it.
        return Err(Failure::refused(format!(
            "'{me}' was primary of '{name}', and nobody else who answers is primary yet"
        ))
        .hint(format!("first `marsadm pause-fetch {name}` and `marsadm primary --force {name}` on the host to keep")));
    }
    if !ctx.opt.force {
        invalidate::need_not_primary(ctx, &res, "leaving").map_err(|f| {
            // The last member may give up its role by itself.
            f.hint(format!(
                "or, to give up the resource: `marsadm secondary {name}`, `marsadm down {name}`"
            ))
        })?;
        if ctx.is_remote() && !answers(me) {
            return Err(Failure::refused(format!(
                "'{me}' does not answer: it may be primary of '{name}' by now, or have what no other member has"
            ))
            .hint("if that host is lost: --force; else run it there"));
        }
        need_not_last_copy(&res, me, &answers)?;
        if let Some(own) = own {
            let mut on: Vec<&str> = running(own);
            let t = own.todo;
            for (switch, word) in [
                (t.attach, "todo attach"),
                (t.fetch, "todo connect"),
                (t.sync, "todo sync"),
                (t.replay, "todo allow-replay"),
            ] {
                if switch {
                    on.push(word);
                }
            }
            if !on.is_empty() {
                return Err(Failure::refused(format!(
                    "'{name}' is not down on '{me}': {}",
                    on.join(", ")
                ))
                .hint(format!("`marsadm down {name}` first")));
            }
        }
    }
    replica::need_not_last_log(ctx, &res, "leaving")?;
    operation(ctx, name, |op| {
        op.step(ctx, "member")?;
        if !ctx.opt.force {
            // Another command may just have ended.
            invalidate::need_not_primary(ctx, &ctx.resource(name)?, "leaving")?;
        }
        let own = |key: &str| res.path(&format!("{key}-{me}"));
        ctx.store.delete(&own("data"))?;
        ctx.store.barrier()?;
        op.step(ctx, "links")?;
        for key in OWN {
            ctx.store.delete(&own(key))?;
        }
        for dir in ["todo", "defaults", "local"] {
            delete_in(ctx, &own(dir))?;
        }
        forget_actual(ctx, &own("actual"))?;
        op.step(ctx, "logs")?;
        replica::drop_versions(ctx, &res, &BTreeSet::new())?;
        replica::purge_own_logs(ctx, &ctx.resource(name)?)?;
        if !ctx.is_remote() {
            // What was written without a log to a disk that does not belong to the resource any more.
            ctx.store.purge(&res.path(DIRTY_MAP))?;
        }
        op.step(ctx, "device")?;
        ctx.store.delete(&own("device"))?;
        let now = ctx.resource(name)?;
        if now.designated() == Some(me) {
            primary::vacate(ctx, &now)?;
        }
        ctx.store.trigger(Trigger::Full)?;
        out::info(format_args!(
            "host '{me}' has left resource '{name}'; the contents of its disk stay as they are"
        ));
        let rest: Vec<String> = ctx
            .store
            .resource(name)
            .map(|r| r.real_members().map(|m| m.host.clone()).collect())
            .unwrap_or_default();
        if rest.is_empty() {
            out::info(format_args!(
                "'{name}' has no members any more; `marsadm delete-resource {name}` removes it"
            ));
        }
        Ok(())
    })
}

/// Asks the members for news, and says who answers: what a silent one said last may not be true any more.
fn ask_members<'a>(ctx: &'a Ctx, res: &Resource) -> Result<impl Fn(&str) -> bool + 'a> {
    let mut asked: Vec<String> = res.real_members().map(|m| m.host.clone()).collect();
    // One that is left behind by force is not asked; and on its own host, nobody.
    asked.retain(|h| *h != ctx.here && !(ctx.opt.force && (*h == ctx.me || !ctx.is_remote())));
    let silent = peers::ping(ctx, &asked, false)?;
    Ok(move |host: &str| ctx.is_alive(host) && !silent.iter().any(|h| h == host))
}

/// Refused where nobody else has what is here, while others are left who would need it: a sync that is not complete could never
/// be completed, a log that is missing or damaged elsewhere never be fetched.
fn need_not_last_copy(res: &Resource, me: &str, answers: &impl Fn(&str) -> bool) -> Result<()> {
    let Some(own) = res.member(me).filter(|m| m.is_consistent(res.size)) else {
        return Ok(());
    };
    let others = || res.real_members().filter(|m| m.host != me);
    let has_it = |m: &Member| {
        let stuck = matches!(
            m.state_word(),
            "defective-log" | "split-brain" | "disk-error"
        );
        answers(&m.host) && m.is_consistent(res.size) && !stuck && primary::has_all_of(m, own)
    };
    // Who is to become primary may yet need something for that, unless it was and is in a log of its own; once it is, its word is
    // all that counts.
    let own_log = |m: &Member| {
        let replay = m.replay.as_ref();
        replay.is_some_and(|p| p.log.creator.as_str() == m.host)
    };
    let designated = others().find(|m| res.designated() == Some(m.host.as_str()));
    let good = match designated {
        Some(p) => answers(&p.host) && p.actual.primary || own_log(p) && has_it(p),
        None => others().next().is_none() || others().any(has_it),
    };
    if good {
        return Ok(());
    }
    let rest: Vec<String> = others()
        .map(|m| match answers(&m.host) {
            true => m.host.clone(),
            false => format!("{} does not answer", m.host),
        })
        .collect();
    Err(Failure::refused(format!(
        "'{me}' may have data of '{}' that no other member has whole ({}): no running primary answers, and leaving could \
         make theirs useless",
        res.name,
        rest.join(", ")
    ))
    .hint(format!(
        "let one become primary (`marsadm primary {0}`), here if it can't elsewhere, and the others catch up (`marsadm view \
         {0}`); if their data is not wanted, they leave first; or --force",
        res.name
    )))
}

/// The module's file of what was written while `/mars` was full; it is never replicated.
const DIRTY_MAP: &str = "local-dirty-map";

/// Tombstones all links in a directory; says whether there were any.
fn delete_in(ctx: &Ctx, dir: &str) -> Result<bool> {
    let mut any = false;
    for link in ctx.store.list(dir) {
        let path = format!("{dir}/{link}");
        any |= ctx.store.get(&path).is_some();
        ctx.store.delete(&path)?;
    }
    Ok(any)
}

/// Tombstones what the module published. It may say it once more until it has seen that the host is no member.
fn forget_actual(ctx: &Ctx, dir: &str) -> Result<()> {
    delete_in(ctx, dir)?;
    if !ctx.can_wait() || ctx.is_remote() {
        return Ok(());
    }
    ctx.store.trigger(Trigger::Local)?;
    let mut quiet = 0;
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(200));
        quiet = if delete_in(ctx, dir)? { 0 } else { quiet + 1 };
        if quiet == 4 {
            break;
        }
    }
    Ok(())
}

/// Whether links of the host are left, after an interrupted run, or logs that nobody wants.
fn has_remains(ctx: &Ctx, res: &Resource) -> bool {
    let logs = || !replica::unnamed_own_logs(ctx, res).is_empty();
    OWN.iter().chain(&["device"]).any(|key| {
        ctx.store
            .get(&res.path(&format!("{key}-{}", ctx.me)))
            .is_some()
    }) || logs()
}

/// `delete-resource`.
pub fn delete_resource(ctx: &Ctx, name: &str) -> Result<()> {
    ctx.resource(name)?;
    let why = format!("'{name}' may have a member, or be in use");
    let asked = peers::need_all(ctx, "delete-resource", &why);
    let res = ctx.resource(name)?;
    need_unused(ctx, &res)?;
    // Only now: what is known says more.
    asked?;
    operation(ctx, name, |op| {
        op.step(ctx, "tombstones")?;
        ctx.store.delete(&res.path("size"))?;
        ctx.store.barrier()?;
        let dir = format!("resource-{name}");
        // Directories first: as long as a link of the resource itself is left, the command can be run again.
        let (dirs, files): (Vec<String>, Vec<String>) = ctx
            .store
            .list(&dir)
            .into_iter()
            .map(|name| format!("{dir}/{name}"))
            .partition(|path| ctx.store.entry(path) == Some(Entry::Dir));
        for sub in dirs {
            delete_in(ctx, &sub)?;
        }
        for file in files.iter().filter(|f| !f.ends_with("/maxnr")) {
            if file.ends_with(DIRTY_MAP) {
                ctx.store.purge(file)?;
            } else {
                ctx.store.delete(file)?;
            }
        }
        ctx.store.trigger(Trigger::Full)?;
        out::info(format_args!("resource '{name}' is deleted"));
        Ok(())
    })
}

/// Refuses while a resource has members, or is in use.
fn need_unused(ctx: &Ctx, res: &Resource) -> Result<()> {
    let name = &res.name;
    let members: Vec<&str> = res.real_members().map(|m| m.host.as_str()).collect();
    if !members.is_empty() && !ctx.opt.force {
        return Err(Failure::refused(format!("resource '{name}' still has members: {}", members.join(", "))).hint(
            format!("on each: `marsadm down {name}` and `marsadm leave-resource {name}`; for a host that is lost, here: \
                     `marsadm leave-resource {name} --host=HOST --force`"),
        ));
    }
    let alive: Vec<&str> = res
        .actual_primaries()
        .iter()
        .map(|m| m.host.as_str())
        .collect();
    if !alive.is_empty() {
        return Err(
            Failure::refused(format!("'{name}' is in use on {}", alive.join(", "))).hint(format!(
                "`marsadm down {name}` there first; if that host is lost, here: \
                     `marsadm leave-resource {name} --host=HOST --force`"
            )),
        );
    }
    Ok(())
}
