// SPDX-License-Identifier: GPL-2.0-or-later

//! resize.
//!
//! Interrupted: `syncstatus-<host>` (never less than before) is written before `size`, which is the decision; run again,
//! the rest follows. What an earlier run that never came so far left on a host that was primary then, and has not taken back
//! itself, counts no more: the new part is not the same there.

use super::{operation, peers, report_split};
use crate::ctx::{parse_size, Ctx};
use crate::error::{Failure, Result};
use crate::out;
use crate::sys::disk::GRAIN;
use crate::tree::model::Resource;
use crate::tree::split::human;
use crate::tree::store::{Trigger, TOMBSTONE};
use mars_core::succession::undecided;

fn need_primary(ctx: &Ctx, res: &Resource) -> Result<()> {
    if ctx.own(res)?.actual.primary && res.designated() == Some(&ctx.me) {
        return Ok(());
    }
    Err(
        Failure::refused(format!("'{}' is not primary of '{}'", ctx.me, res.name)).hint(format!(
            "run it on '{}'",
            res.designated().unwrap_or("the primary")
        )),
    )
}

/// Nothing has changed since it was decided what to do.
fn need_still(ctx: &Ctx, res: &Resource, old: u64) -> Result<()> {
    need_primary(ctx, res)?;
    let size = res.size.unwrap_or(0);
    let have = ctx.own(res)?.syncstatus.unwrap_or(0);
    if have < size {
        return Err(Failure::refused(format!(
            "'{}' was resized to {} by a host that was primary before '{}', which has {}",
            res.name,
            human(size),
            ctx.me,
            human(have)
        ))
        .hint("the module takes that back within half a minute: look at `marsadm view`, and run it again"));
    }
    if ctx.own(res)?.unflushed && !ctx.opt.force {
        return Err(Failure::refused(format!(
            "a flush of the disk of '{}' on '{}', or of another one or of /mars there, has failed (see its kernel log): what the disk shows of the new part may be lost later",
            res.name, ctx.me
        ))
        .hint(format!("hand over to another member, repair what has failed here, and `marsadm invalidate {0}` here. If this is the only member, or it is certain that the disk has all that it shows: --force", res.name)));
    }
    if size == old {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "meanwhile '{}' was resized from {} to {} elsewhere",
        res.name,
        human(old),
        human(size)
    ))
    .hint("look at `marsadm view`, and run it again"))
}

/// `resize RESOURCE [SIZE]`.
pub fn resize(ctx: &Ctx, name: &str, size: Option<&str>) -> Result<()> {
    let res = ctx.joined(name)?;
    ctx.need_here("resize")?;
    ctx.need_module("resize")?;
    report_split(&res);
    need_still(ctx, &res, res.size.unwrap_or(0))?;
    let unknown: Vec<&str> = res
        .real_members()
        .filter(|m| m.actsize.is_none())
        .map(|m| m.host.as_str())
        .collect();
    if !unknown.is_empty() {
        return Err(Failure::refused(format!(
            "the size of the disk is not known on {}",
            unknown.join(", ")
        ))
        .hint("attach the resource there first"));
    }
    let smallest = res
        .real_members()
        .filter_map(|m| Some((m.actsize?, m.host.as_str())))
        .min();
    let Some((possible, limiting)) = smallest else {
        return Err(Failure::refused(format!("'{name}' has no members")));
    };
    let possible = possible - possible % GRAIN;
    let old = res.size.unwrap_or(0);
    let new = match size {
        Some(text) => parse_size(text)?,
        None => possible,
    };
    if new % GRAIN != 0 {
        return Err(Failure::usage(format!(
            "the size {new} is no multiple of {GRAIN}"
        )));
    }
    if new > possible {
        return Err(Failure::refused(format!(
            "{new} is more than the disks can hold: {possible} ({}), limited by '{limiting}'",
            human(possible)
        ))
        .hint(format!("grow the disk on '{limiting}' first")));
    }
    if new < old {
        return Err(Failure::refused(format!(
            "'{name}' has {old} bytes; it cannot shrink to {new}"
        )));
    }
    if new == old {
        out::info(format_args!(
            "'{name}' has {} already, the most that its disks hold",
            human(old)
        ));
        return Ok(());
    }
    let others: Vec<String> = res
        .real_members()
        .map(|m| m.host.clone())
        .filter(|h| *h != ctx.me)
        .collect();
    let silent = peers::ping(ctx, &others, false)?;
    if !silent.is_empty() && !ctx.opt.force {
        return Err(Failure::refused(format!(
            "{} did not answer: what is there of a resize that was decided elsewhere before a failover is not known here",
            silent.join(", ")
        ))
        .hint("wait until it answers, or remove it with `marsadm leave-resource --host`. With --force it has to compare all of its disk when it comes back, and can't become primary before that"));
    }
    let running: Vec<&str> = res
        .real_members()
        .filter(|m| m.actual.primary && silent.contains(&m.host))
        .map(|m| m.host.as_str())
        .collect();
    if !running.is_empty() {
        return Err(Failure::refused(format!(
            "{} was primary when it was heard last, and does not answer: it may resize the resource, too",
            running.join(", ")
        ))
        .hint("wait until it answers, or remove it with `marsadm leave-resource --host`"));
    }
    // As it is said by now: to ask has taken its time.
    let res = ctx.resource(name)?;
    need_still(ctx, &res, old)?;
    operation(ctx, name, |op| {
        op.step(ctx, "undecided")?;
        for m in res.real_members().filter(|m| m.host != ctx.me) {
            // Of what is on its disk a host is only told that it is nothing.
            let key = res.path(&format!("syncstatus-{}", m.host));
            if silent.contains(&m.host) {
                // Also if that is said already: since then it may have said more.
                ctx.store.set(&key, TOMBSTONE)?;
            } else if undecided(m.syncstatus, Some(old)).is_some() {
                ctx.store.delete(&key)?;
            }
        }
        op.step(ctx, "syncstatus")?;
        let own = res.path(&format!("syncstatus-{}", ctx.me));
        ctx.store.set(&own, &new.to_string())?;
        ctx.store.barrier()?;
        op.step(ctx, "size")?;
        let now = ctx.resource(name)?;
        if let Err(e) = need_still(ctx, &now, old) {
            // Else this disk would count as complete of what another primary resizes.
            if ctx.own(&now)?.syncstatus == Some(new) {
                ctx.store.set(&own, &old.to_string())?;
                ctx.store.barrier()?;
                ctx.store.trigger(Trigger::Remote)?;
            }
            return Err(e);
        }
        ctx.store.set(&res.path("size"), &new.to_string())?;
        ctx.store.trigger(Trigger::Remote)?;
        out::info(format_args!(
            "'{name}': {} -> {}; the other members sync the new part",
            human(old),
            human(new)
        ));
        Ok(())
    })
}
