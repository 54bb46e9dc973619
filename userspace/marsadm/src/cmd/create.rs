// SPDX-License-Identifier: GPL-2.0-or-later

//! create-resource.
//!
//! Interrupted: `data-<host>` is written last but one. Without it the host is no member, nothing has an effect, and the
//! command is run again; with it only the attach switch may be missing, which running it again (or `up`) sets.

use super::{operation, peers};
use crate::cli::DiskArgs;
use crate::ctx::{check_name, parse_size, Ctx};
use crate::error::{Failure, Result};
use crate::out;
use crate::sys::disk::{self, GRAIN};
use crate::tree::split::human;
use crate::tree::store::Trigger;
use crate::tree::values::{log_name, Position, VersionValue};
use crate::wait::{Deadline, Look};

/// `create-resource RESOURCE DISK [DEVICE [SIZE]]`.
pub fn create_resource(ctx: &Ctx, args: &DiskArgs) -> Result<()> {
    let name = &args.resource;
    check_names(ctx, args)?;
    ctx.need_mountpoint()?;
    let me = &ctx.me;
    let device = args.device.as_deref().unwrap_or(name);
    let disk_path = args.disk.to_str().unwrap_or_default();
    let mut number = 1;
    if let Some(res) = ctx.store.resource(name) {
        if let Some(member) = res.member(me) {
            // Only an attempt that did not come to its end is resumed; a second create is an error.
            let unfinished = !member.todo.attach;
            if unfinished
                && member.disk.as_deref() == Some(disk_path)
                && res.designated() == Some(me)
            {
                return resume(ctx, name);
            }
        }
    }
    // What is known here needs no question.
    if !ctx.opt.force {
        need_new(ctx, name)?;
    }
    let why = format!("a resource '{name}' may exist");
    peers::need_all(ctx, "create-resource", &why)?;
    match need_new(ctx, name) {
        // It is for lost hosts, and not to be written over by who only has a silent third one.
        Err(f) if ctx.opt.force && !has_living_member(ctx, name) => {
            out::warn(format_args!("{f}; forced"));
        }
        other => other?,
    }
    if let Some(res) = ctx.store.resource(name) {
        if let Some(old) = res.maxnr {
            let old = u32::try_from(old).unwrap_or(u32::MAX);
            let used = |l: &crate::tree::model::LogFile| l.name.number >= old && l.size > 0;
            if res.size.is_some() && !res.logs.iter().any(used) {
                // An interrupted attempt to create it.
                number = old;
            } else {
                // Deleted earlier: numbers that other hosts may still have seen must not come again.
                number = old.checked_add(100_000).ok_or_else(|| {
                    Failure::refused(format!("the log numbers of '{name}' are used up"))
                        .hint("choose another name")
                })?;
                out::info(format_args!(
                    "'{name}' existed before: its logs start with number {number}"
                ));
            }
        }
    }
    unique_device(ctx, name, device)?;
    let disk = disk::check(ctx, &args.disk)?;
    let size = chosen_size(args.size.as_deref(), disk.size, &disk.path)?;

    operation(ctx, name, |op| {
        op.step(ctx, "tree")?;
        let dir = format!("resource-{name}");
        for sub in ["userspace", "defaults"] {
            ctx.store.mkdir(&format!("{dir}/{sub}"))?;
        }
        for sub in ["defaults", "local", "actual", "todo"] {
            ctx.store.mkdir(&format!("{dir}/{sub}-{me}"))?;
        }
        let set = |key: &str, value: &str| ctx.store.set(&format!("{dir}/{key}"), value);
        let log = log_name(number, me)?;
        set(&format!("todo-{me}/attach"), "0")?;
        for switch in ["connect", "sync", "allow-replay"] {
            set(&format!("todo-{me}/{switch}"), "1")?;
        }
        set(&format!("actual-{me}/if-on"), "0")?;
        set("maxnr", &number.to_string())?;
        set("size", &size.to_string())?;
        set("block-size", &disk.block.to_string())?;
        set(&format!("syncstatus-{me}"), &size.to_string())?;
        let before = log_name(number.saturating_sub(1), me)?;
        set(
            &format!("version-{:09}-{me}", before.number),
            &VersionValue::artificial(before, None),
        )?;
        set(
            &format!("version-{number:09}-{me}"),
            &VersionValue::artificial(log, Some(before)),
        )?;
        if number > 1 {
            set(&format!("skip-check-{me}"), &number.to_string())?;
        }
        ctx.store.create_empty(&format!("{dir}/{log}"))?;
        set(
            &format!("replay-{me}"),
            &Position::new(log, 0).replay_value(),
        )?;
        set("primary", me)?;
        set("userspace/last-primary", me)?;

        op.step(ctx, "member")?;
        set(&format!("device-{me}"), device)?;
        set(&format!("data-{me}"), &disk.path)?;
        op.step(ctx, "attach")?;
        set(&format!("todo-{me}/attach"), "1")?;
        ctx.store.trigger(Trigger::Remote)?;
        out::info(format_args!(
            "resource '{name}' created with {} on {}; its device is /dev/mars/{device}",
            human(size),
            disk.path
        ));
        wait_device(ctx, name)
    })
}

/// Whether a member of the resource is there to be asked.
fn has_living_member(ctx: &Ctx, name: &str) -> bool {
    ctx.store
        .resource(name)
        .is_some_and(|res| res.real_members().any(|m| ctx.is_alive(&m.host)))
}

/// Refuses if there is a resource of this name.
fn need_new(ctx: &Ctx, name: &str) -> Result<()> {
    let Some(res) = ctx.store.resource(name) else {
        return Ok(());
    };
    let members: Vec<&str> = res.real_members().map(|m| m.host.as_str()).collect();
    if members.is_empty() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "resource '{name}' exists already, with the members {}",
        members.join(", ")
    ))
    .hint(format!(
        "`marsadm join-resource {name} DISK` adds a member; or choose another name"
    )))
}

/// The same command again: completes what is missing.
fn resume(ctx: &Ctx, name: &str) -> Result<()> {
    operation(ctx, name, |_| {
        ctx.store
            .ensure(&format!("resource-{name}/todo-{}/attach", ctx.me), "1")?;
        ctx.store.trigger(Trigger::Remote)?;
        out::info(format_args!("creation of resource '{name}' is completed"));
        wait_device(ctx, name)
    })
}

fn wait_device(ctx: &Ctx, name: &str) -> Result<()> {
    if !ctx.can_wait() {
        return Ok(());
    }
    let deadline = Deadline::new(ctx);
    deadline.wait_resource(ctx, name, "device", |res| {
        let own = ctx.own(res)?;
        deadline.fail_if_stuck(own)?;
        Ok(if own.actual.if_on || own.actual.primary {
            Look::Done(())
        } else {
            Look::Missing(format!(
                "the device does not exist yet (state '{}')",
                own.state_word()
            ))
        })
    })
}

/// Checks the names that an administrator chose.
pub fn check_names(ctx: &Ctx, args: &DiskArgs) -> Result<()> {
    check_name("resource", &args.resource, ctx.opt.force)?;
    if let Some(device) = &args.device {
        check_name("device", device, ctx.opt.force)?;
    }
    Ok(())
}

/// No two resources of a host may have the same device name.
pub fn unique_device(ctx: &Ctx, name: &str, device: &str) -> Result<()> {
    let other = ctx.store.resources_of(&ctx.me).into_iter().find(|r| {
        r != name
            && ctx
                .store
                .get(&format!("resource-{r}/device-{}", ctx.me))
                .as_deref()
                == Some(device)
    });
    match other {
        None => Ok(()),
        Some(other) => Err(Failure::refused(format!(
            "the device name '{device}' is used by resource '{other}' here"
        ))
        .hint("choose another device name (third argument)")),
    }
}

/// The size that was asked for, or that of the disk.
fn chosen_size(wanted: Option<&str>, possible: u64, disk: &str) -> Result<u64> {
    let Some(text) = wanted else {
        return Ok(possible);
    };
    let size = parse_size(text)?;
    if size % GRAIN != 0 || size == 0 {
        return Err(Failure::usage(format!(
            "the size {size} is no multiple of {GRAIN}"
        )));
    }
    if size > possible {
        return Err(Failure::refused(format!(
            "the size {size} ({}) is larger than the disk {disk}, which has {possible} ({})",
            human(size),
            human(possible)
        )));
    }
    Ok(size)
}
