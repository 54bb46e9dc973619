// SPDX-License-Identifier: GPL-2.0-or-later

//! invalidate.
//!
//! Interrupted: first everything is switched off, then `syncstatus`=0 says that the replica is worthless, and only then
//! positions are rewritten. So the replica is never taken for good meanwhile. Running the command again starts over.

use super::switch::{all_off, put, wait_detached, Switch};
use super::{operation, peers, replica, report_split};
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::tree::model::{Member, Resource};
use crate::tree::store::Trigger;
use std::collections::BTreeSet;

/// `invalidate`.
pub fn invalidate(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    ctx.need_here("invalidate")?;
    ctx.need_module("invalidate")?;
    report_split(&res);
    need_not_primary(ctx, &res, "invalidate")?;
    let primary = replica::source(ctx, &res)?.host.clone();
    peers::need_alive(ctx, &primary, "a fresh replica needs the primary")?;
    replica::need_primary(ctx, name, &primary)?;
    if ctx.own(&res)?.actual.primary {
        return Err(
            Failure::refused(format!("'{}' is still actual primary of '{name}'", ctx.me)).hint(
                format!("close the device and `marsadm secondary {name}` first"),
            ),
        );
    }
    replica::need_not_last_log(ctx, &res, "invalidate")?;
    operation(ctx, name, |op| {
        op.step(ctx, "off")?;
        all_off(ctx, &res)?;
        if ctx.can_wait() {
            wait_detached(ctx, name)?;
        }
        op.step(ctx, "worthless")?;
        // All that had to be waited for took its time: what is here may be the only good copy now.
        need_source(ctx, name, &primary)?;
        let me = &ctx.me;
        ctx.store.set(&res.path(&format!("syncstatus-{me}")), "0")?;
        for key in ["syncpos", "verifystatus"] {
            ctx.store.delete(&res.path(&format!("{key}-{me}")))?;
        }
        ctx.store.barrier()?;
        op.step(ctx, "history")?;
        ctx.store.delete(&res.path(&format!("replay-{me}")))?;
        // A position without the history before it would begin another one.
        ctx.store.barrier()?;
        replica::drop_versions(ctx, &res, &BTreeSet::new())?;
        op.step(ctx, "purge")?;
        replica::purge_own_logs(ctx, &ctx.resource(name)?)?;
        op.step(ctx, "position")?;
        ctx.store.trigger(Trigger::Remote)?;
        peers::ping(ctx, std::slice::from_ref(&primary), false)?;
        replica::position(ctx, name, &primary)?;
        replica::settle(ctx, name, &primary)?;
        let fresh = ctx.resource(name)?;
        op.step(ctx, "on")?;
        for what in [Switch::Attach, Switch::Fetch, Switch::Replay, Switch::Sync] {
            put(ctx, &fresh, what, true)?;
        }
        ctx.store.trigger(Trigger::Remote)?;
        out::info(format_args!(
            "the replica of '{name}' on '{me}' is being made anew from '{primary}' (`marsadm view {name}`)"
        ));
        Ok(())
    })
}

/// Refuses unless `primary`, from which the disk is to be filled, says just now that it is primary.
fn need_source(ctx: &Ctx, name: &str, primary: &str) -> Result<()> {
    peers::ping(ctx, &[primary.to_owned()], true)?;
    let res = ctx.resource(name)?;
    need_not_primary(ctx, &res, "invalidate")?;
    if res.designated() == Some(primary) && res.member(primary).is_some_and(|m| m.actual.primary) {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "meanwhile '{primary}' is not primary of '{name}' any more: nothing was given up here"
    ))
    .hint(format!("`marsadm up {name}` to go on as before")))
}

/// Refuses on the designated or actual primary.
pub fn need_not_primary(ctx: &Ctx, res: &Resource, what: &str) -> Result<()> {
    // After a crash a host counts as primary until it can tell how far its logs go. Where they can't be read this never ends, and
    // what the module says now is that there is no device.
    let runs = |m: &Member| m.actual.primary && (m.actual.if_on || !ctx.store.module_loaded());
    let actual = res.member(&ctx.me).is_some_and(runs);
    if res.designated() != Some(&ctx.me) && !actual {
        return Ok(());
    }
    let kind = if actual { "actual" } else { "designated" };
    Err(Failure::refused(format!(
        "'{}' is the {kind} primary of '{}': {what} there would destroy the data",
        ctx.me, res.name
    ))
    .hint(format!(
        "make another host primary first: `marsadm primary {}` there",
        res.name
    )))
}
