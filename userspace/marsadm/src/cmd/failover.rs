// SPDX-License-Identifier: GPL-2.0-or-later

//! primary --force: a failover without asking the old primary.

use super::primary::{become_primary, end_of, old_primary, still_good};
use super::report_split;
use super::switch::opened_by;
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::ops::Op;
use crate::out;
use crate::tree::model::{Member, Resource};
use crate::tree::split::human;
use crate::wait::{Deadline, Look};

/// The steps of a forced failover.
pub fn forced(ctx: &Ctx, op: &mut Op, name: &str) -> Result<()> {
    let deadline = Deadline::new(ctx);
    let res = ctx.resource(name)?;
    let own = ctx.own(&res)?;
    report_split(&res);
    let old = old_primary(ctx, &res);
    if own.todo.fetch && res.designated() != Some(&ctx.me) {
        return Err(Failure::refused(format!(
            "for a forced failover, fetching must be off on '{}', so that nothing arrives meanwhile",
            ctx.me
        ))
        .hint(format!("`marsadm pause-fetch {name}`, then `marsadm primary --force {name}`")));
    }
    if !own.todo.replay || !own.todo.attach {
        return Err(
            Failure::refused(format!("attach and replay must be on on '{}'", ctx.me)).hint(
                format!(
                    "`marsadm attach {name}` and `marsadm resume-replay {name}`, then try again"
                ),
            ),
        );
    }
    op.step(ctx, "stop-fetch")?;
    if ctx.can_wait() {
        deadline.wait_resource(ctx, name, "end of fetching", |res| {
            Ok(if ctx.own(res)?.actual.fetching {
                Look::Missing("a fetch is still running".into())
            } else {
                Look::Done(())
            })
        })?;
    }
    if let Some(old) = old.as_deref().and_then(|h| res.member(h)) {
        loss(ctx, &res, own, old);
    }
    op.step(ctx, "designate")?;
    let res = ctx.resource(name)?;
    let own = ctx.own(&res)?;
    if let Some(size) = own.size_before_resize(res.size) {
        out::warn(format_args!(
            "cut off: '{name}' has {}, but what it has grown by is not complete on '{}': it gets the {} back that it had before (a file system that was enlarged since needs the rest: see resize in marsadm(8))",
            human(res.size.unwrap_or(0)),
            ctx.me,
            human(size)
        ));
        // What this disk says of itself follows in the module, when no sync runs there any more.
        ctx.store.decide(&res.path("size"), &size.to_string())?;
    } else if let Some(size) = still_good(ctx, name)?.size {
        let more = own.syncstatus.filter(|done| *done > size);
        if let Some(more) = more.filter(|_| !own.is_growing()) {
            out::warn(format_args!(
                "the resource has {}, but the disk of '{}' was complete of {}: a device that is made now is smaller. If what is behind counts, `marsadm resize {name} {more}` at once, and make the device anew",
                human(size), ctx.me, human(more)
            ));
        }
        // A resize that this host has not heard of is cut off with all else: with that size this disk would be incomplete.
        ctx.store.decide(&res.path("size"), &size.to_string())?;
    }
    become_primary(ctx, op, name, old.as_deref(), &deadline)
}

/// Says what a forced failover cuts off (P9).
fn loss(ctx: &Ctx, res: &Resource, own: &Member, old: &Member) {
    if old.actual.open_count > 0 {
        out::warn(format_args!(
            "{}: you are forcing a SPLIT BRAIN",
            opened_by(ctx, old)
        ));
    } else if old.actual.primary && ctx.is_alive(&old.host) {
        out::warn(format_args!(
            "'{}' is alive and primary: a planned handover (without --force) would lose nothing",
            old.host
        ));
    }
    if old.actual.emergency {
        out::warn(format_args!(
            "'{}' was in emergency mode: what it has written since its /mars was full is in no log, and is not here",
            old.host
        ));
    }
    let before_gap = own.replay.as_ref().is_some_and(|r| r.pos == 0);
    if before_gap && old.actual.dirty.is_some_and(|bytes| bytes > 0) && !old.actual.emergency {
        out::warn(format_args!(
            "'{}' was in emergency mode; what it has written then is in no log, and perhaps not here yet",
            old.host
        ));
    }
    let have = [own.fetch_pos.clone(), own.replay.clone()]
        .into_iter()
        .flatten()
        .reduce(|a, b| if b > a { b } else { a });
    let (Some(have), Some(end)) = (have, end_of(old)) else {
        return;
    };
    let heard = ctx.silence(&ctx.store.host(&old.host), ctx.store.now());
    let heard = heard.map_or_else(|| "never".into(), |s| format!("{} s ago", s.as_secs()));
    if have.reaches(&end) {
        out::info(format_args!(
            "everything that '{}' is known to have logged is here (last heard {heard})",
            old.host
        ));
    } else if have.log == end.log {
        out::warn(format_args!(
            "cut off: at least {} of log of '{}' ({have} is here, {end} was known there; last heard {heard})",
            human(end.pos.saturating_sub(have.pos)),
            old.host
        ));
    } else {
        let between: u64 = res
            .member(&old.host)
            .map(|m| {
                m.versions
                    .values()
                    .filter(|v| v.link.this.log.number > have.log.number)
                    .map(|v| v.link.this.pos)
                    .sum()
            })
            .unwrap_or(0);
        out::warn(format_args!(
            "cut off: at least {} of log of '{}' ({have} is here, {end} was known there; last heard {heard})",
            human(between),
            old.host
        ));
    }
}
