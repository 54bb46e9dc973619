// SPDX-License-Identifier: GPL-2.0-or-later

//! join-resource.
//!
//! Interrupted: `syncstatus`=0 comes first, so that whatever is there is never taken for a good replica; `data-<host>`,
//! which makes the host a member, comes last but one. Running the command again does everything once more, or (when it is
//! a member already) sets the attach switch.

use super::create::{check_names, unique_device};
use super::{invalidate, operation, peers, replica, report_split, switch};
use crate::cli::DiskArgs;
use crate::ctx::{parse_size, Ctx};
use crate::error::{Failure, Result};
use crate::out;
use crate::sys::disk;
use crate::tree::model::Resource;
use crate::tree::split::human;
use crate::tree::store::Trigger;
use mars_core::resource::block_size;

/// `join-resource RESOURCE DISK [DEVICE]`.
pub fn join_resource(ctx: &Ctx, args: &DiskArgs) -> Result<()> {
    let name = &args.resource;
    check_names(ctx, args)?;
    ctx.need_here("join-resource")?;
    ctx.need_mountpoint()?;
    let me = &ctx.me;
    let device = args.device.as_deref().unwrap_or(name);
    // A host that has just joined the cluster may not know the resource yet; else only its primary has to answer.
    let asked = match ctx
        .store
        .resource(name)
        .as_ref()
        .and_then(|r| r.designated())
    {
        Some(primary) if primary != me => vec![primary.to_owned()],
        _ => peers::others(ctx),
    };
    peers::ping(ctx, &asked, false)?;
    let res = ctx.resource(name)?;
    let disk_path = args.disk.to_str().unwrap_or_default();
    if let Some(member) = res.member(me) {
        let same = member.disk.as_deref() == Some(disk_path);
        if same && member.replay.is_some() {
            return resume(ctx, name);
        }
        // Without a position an earlier attempt has not come to its end.
        if !same && !ctx.opt.force {
            return Err(Failure::refused(format!(
                "host '{me}' is already a member of '{name}', with the disk {}",
                member.disk.as_deref().unwrap_or("?")
            ))
            .hint(format!("to change the disk: `marsadm down {name}`, `marsadm leave-resource {name}`, then join again")));
        }
        invalidate::need_not_primary(ctx, &res, "another disk")?;
    }
    report_split(&res);
    let primary = replica::source(ctx, &res)?.host.clone();
    peers::need_alive(ctx, &primary, "joining needs the primary")?;
    replica::need_primary(ctx, name, &primary)?;
    let size = res.size.ok_or_else(|| {
        Failure::refused(format!("the size of '{name}' is not known yet"))
            .hint("`marsadm wait-cluster`, then try again")
    })?;
    if let Some(text) = &args.size {
        let wanted = parse_size(text)?;
        if wanted != size {
            return Err(Failure::usage(format!(
                "resource '{name}' has {size} bytes; another size cannot be chosen"
            )));
        }
    }
    unique_device(ctx, name, device)?;
    let disk = disk::check(ctx, &args.disk)?;
    if disk.size < size {
        return Err(Failure::refused(format!(
            "the disk {} is too small: it has {} bytes, resource '{name}' has {size} ({})",
            disk.path,
            disk.size,
            human(size)
        )));
    }
    if block_size(disk.block, res.block_size).is_none() {
        let block = res.block_size.unwrap_or_default();
        return Err(Failure::refused(format!(
            "the disk {} is addressed in blocks of {} bytes, resource '{name}' in {block}: smaller writes could not be replayed",
            disk.path, disk.block
        ))
        .hint("use a disk with smaller blocks, or create the resource on the host whose disk has the largest ones"));
    }
    if disk.size > size {
        out::info(format_args!(
            "the disk is larger than the resource: {} stay unused",
            human(disk.size - size)
        ));
    }
    no_newer_remains(ctx, &res, &primary)?;

    operation(ctx, name, |op| {
        op.step(ctx, "prepare")?;
        if res.member(me).is_some() {
            // Another disk by force: the module must not go on with the one that it has open.
            switch::all_off(ctx, &res)?;
            if ctx.can_wait() {
                switch::wait_detached(ctx, name)?;
            }
        }
        let dir = format!("resource-{name}");
        for sub in ["defaults", "local", "actual", "todo"] {
            ctx.store.mkdir(&format!("{dir}/{sub}-{me}"))?;
        }
        let set = |key: &str, value: &str| ctx.store.set(&format!("{dir}/{key}"), value);
        set(&format!("todo-{me}/attach"), "0")?;
        for switch in ["connect", "sync", "allow-replay"] {
            set(&format!("todo-{me}/{switch}"), "1")?;
        }
        set(&format!("syncstatus-{me}"), "0")?;
        ctx.store.delete(&format!("{dir}/syncpos-{me}"))?;
        ctx.store.delete(&format!("{dir}/verifystatus-{me}"))?;
        set(&format!("actual-{me}/if-on"), "0")?;
        op.step(ctx, "position")?;
        replica::position(ctx, name, &primary)?;
        op.step(ctx, "member")?;
        set(&format!("device-{me}"), device)?;
        set(&format!("data-{me}"), &disk.path)?;
        op.step(ctx, "check")?;
        replica::settle(ctx, name, &primary)?;
        op.step(ctx, "attach")?;
        set(&format!("todo-{me}/attach"), "1")?;
        ctx.store.trigger(Trigger::Remote)?;
        out::info(format_args!(
            "host '{me}' has joined resource '{name}'; {} are being synced from '{primary}' (`marsadm view {name}`)",
            human(size)
        ));
        switch::up_wait(ctx, name)
    })
}

/// Own remains of this resource that are newer than what the primary has would be taken for logs of the new replica.
fn no_newer_remains(ctx: &Ctx, res: &Resource, primary: &str) -> Result<()> {
    let Some(current) = res
        .member(primary)
        .and_then(|p| p.replay.as_ref())
        .map(|p| p.log.number)
    else {
        return Ok(());
    };
    let newer = res
        .logs
        .iter()
        .find(|l| l.name.creator.as_str() == ctx.me && l.name.number >= current && l.size > 0);
    let Some(log) = newer.filter(|_| !ctx.opt.force) else {
        return Ok(());
    };
    // As long as a history leads to it, it is not removed.
    let others = res.real_members().filter(|m| m.host != ctx.me);
    let holders: Vec<&str> = others
        .filter(|m| replica::names_log(m, &log.name))
        .map(|m| m.host.as_str())
        .collect();
    let first = if holders.is_empty() {
        String::new()
    } else {
        format!(
            "it is in the history of {}: `marsadm invalidate {}` there first; then ",
            holders.join(", "),
            res.name
        )
    };
    Err(Failure::refused(format!(
        "there is a log {} of this host, as new as the primary's: remains of an earlier split brain?",
        log.name
    ))
    .hint(format!(
        "{first}`marsadm leave-resource {}` here removes what is left",
        res.name
    )))
}

/// The same command again.
fn resume(ctx: &Ctx, name: &str) -> Result<()> {
    operation(ctx, name, |_| {
        ctx.store
            .ensure(&format!("resource-{name}/todo-{}/attach", ctx.me), "1")?;
        ctx.store.trigger(Trigger::Remote)?;
        out::info(format_args!(
            "host '{}' is a member of '{name}' already, as wanted",
            ctx.me
        ));
        switch::up_wait(ctx, name)
    })
}
