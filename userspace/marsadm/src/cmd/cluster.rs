// SPDX-License-Identifier: GPL-2.0-or-later

//! create-cluster, leave-cluster, show-key and the address book.
//!
//! Interrupted create-cluster: `uuid` is written last, so that without it nothing has happened yet and the command is
//! simply run again; a key that is there already is kept. Interrupted leave-cluster: the tombstone of the own address is
//! the decision, and is written last; run again, the rest follows.

use super::peers;
use crate::cli::KeyArgs;
use crate::ctx::{check_name, Ctx};
use crate::error::{Failure, Result};
use crate::ops;
use crate::out;
use crate::sys::{key, net};
use crate::tree::store::Trigger;

/// Version of this tool, as it is written into the tree.
pub const TOOL_VERSION: &str = env!("CARGO_PKG_VERSION");

/// `create-cluster`.
pub fn create(ctx: &Ctx, ip: Option<&str>, key: &KeyArgs) -> Result<()> {
    if let Some(uuid) = ctx.store.get("uuid").filter(|u| u != "(any)") {
        if !ctx.opt.force {
            let left = ctx.store.get(&format!("ips/ip-{}", ctx.me)).is_none();
            let (verb, hint) = if left {
                ("has left", "make a fresh file system for /mars")
            } else {
                (
                    "already belongs to",
                    "nothing is to be done if this is the cluster that you mean; `marsadm leave-cluster` leaves it",
                )
            };
            return Err(
                Failure::refused(format!("host '{}' {verb} the cluster '{uuid}'", ctx.me))
                    .hint(hint),
            );
        }
    }
    let others: Vec<String> = ctx
        .store
        .hosts()
        .into_iter()
        .filter(|h| *h != ctx.me)
        .collect();
    if !others.is_empty() && !ctx.opt.force {
        return Err(Failure::refused(format!(
            "{} knows hosts of another cluster: {}",
            ctx.store.root().display(),
            others.join(", ")
        ))
        .hint("make a fresh file system for /mars, or use --force if these are remains"));
    }
    let own = match (ip, ctx.store.get(&format!("ips/ip-{}", ctx.me))) {
        (Some(ip), _) => net::parse_ip(ip)?,
        (None, Some(known)) => net::parse_ip(&known)?,
        (None, None) => net::own_address()?,
    };
    ops::run(ctx, ops::CLUSTER, |op| {
        op.step(ctx, "key")?;
        let made = match (key::from_args(key)?, key::load(&ctx.store)?) {
            (Some(given), _) => {
                key::store(&ctx.store, &given)?;
                false
            }
            (None, Some(_)) => false,
            (None, None) => {
                key::store(&ctx.store, &key::random()?)?;
                true
            }
        };
        op.step(ctx, "tree")?;
        own_links(ctx)?;
        ctx.store
            .ensure(&format!("ips/ip-{}", ctx.me), &own.to_string())?;
        op.step(ctx, "uuid")?;
        ctx.store
            .set("uuid", &format!("{}_{}", ctx.me, ctx.store.now()))?;
        ctx.store.trigger(Trigger::Local)?;
        out::info(format_args!(
            "cluster '{}' created; this host is '{}' with the address {own}",
            ctx.store.get("uuid").unwrap_or_default(),
            ctx.me
        ));
        if made {
            out::info(format_args!(
                "The key of the cluster is in {0}. Each further host needs it once:\n    \
                 marsadm show-key | ssh OTHERHOST marsadm join-cluster {1} {own} --key-file -\n\
                 or copy {0} there by any safe way and use --key-file FILE.",
                key::path(&ctx.store).display(),
                ctx.me
            ));
        }
        if !ctx.store.module_loaded() {
            out::info(format_args!(
                "The kernel module is not loaded yet: `modprobe mars` starts it."
            ));
        }
        Ok(())
    })
}

/// Directories and links that each host brings into the tree.
pub fn own_links(ctx: &Ctx) -> Result<()> {
    let me = &ctx.me;
    for dir in ["ips", "userspace", "defaults", "todo-global"] {
        ctx.store.mkdir(dir)?;
    }
    for dir in ["defaults", "actual"] {
        ctx.store.mkdir(&format!("{dir}-{me}"))?;
    }
    ctx.store
        .ensure(&format!("actual-{me}/marsadm-version"), TOOL_VERSION)?;
    for (name, value) in [("sync-limit", "0"), ("sync-pref-list", "(none)")] {
        let path = format!("defaults-{me}/{name}");
        if ctx.store.get(&path).is_none() {
            ctx.store.set(&path, value)?;
        }
    }
    Ok(())
}

/// `leave-cluster`.
pub fn leave(ctx: &Ctx) -> Result<()> {
    let mine = ctx.store.resources_of(&ctx.me);
    if !mine.is_empty() && !ctx.opt.force {
        return Err(Failure::refused(format!(
            "host '{}' still takes part in: {}",
            ctx.me,
            mine.join(", ")
        ))
        .hint("for each: `marsadm down`, then `marsadm leave-resource`"));
    }
    let others = peers::others(ctx);
    if !others.is_empty() {
        ctx.need_module("telling the other hosts")?;
    }
    ops::run(ctx, ops::CLUSTER, |op| {
        op.step(ctx, "wait-cluster")?;
        if ctx.can_wait() {
            peers::ping(ctx, &others, false)?;
        }
        op.step(ctx, "tombstones")?;
        let defaults = format!("defaults-{}", ctx.me);
        for name in ctx.store.list(&defaults) {
            ctx.store.delete(&format!("{defaults}/{name}"))?;
        }
        ctx.store.delete(&format!("ips/ip-{}", ctx.me))?;
        ctx.store.set(
            &format!("todo-global/deleted-{}", ctx.me),
            crate::tree::store::TOMBSTONE,
        )?;
        ctx.store.trigger(Trigger::Full)?;
        op.step(ctx, "tell")?;
        if ctx.can_wait() {
            // The peers fetch the tombstones with their next look at this host.
            peers::ping(ctx, &others, false)?;
        }
        out::info(format_args!("host '{}' has left the cluster", ctx.me));
        if !ctx.is_remote() {
            out::info(format_args!(
                "Now unload the module (`modprobe -r mars`). For joining another cluster, make a fresh file system for {}.",
                ctx.store.root().display()
            ));
        }
        Ok(())
    })
}

/// `show-key`.
pub fn show_key(ctx: &Ctx) -> Result<()> {
    let key = key::load(&ctx.store)?.ok_or_else(|| {
        Failure::environment(format!(
            "{} does not exist",
            key::path(&ctx.store).display()
        ))
        .hint("`marsadm create-cluster` or `join-cluster` make it; or copy it from another host")
    })?;
    out::info(format_args!(
        "{}",
        String::from_utf8_lossy(&key.to_text()).trim_end()
    ));
    Ok(())
}

/// `lowlevel-ls-host-ips`.
pub fn ls_host_ips(ctx: &Ctx) -> Result<()> {
    for host in ctx.store.hosts() {
        let ip = ctx.store.get(&format!("ips/ip-{host}")).unwrap_or_default();
        out::info(format_args!("{host} {ip}"));
    }
    Ok(())
}

/// `lowlevel-set-host-ip`.
pub fn set_host_ip(ctx: &Ctx, name: &str, address: &str) -> Result<()> {
    check_name("host", name, ctx.opt.force)?;
    let ip = net::parse_ip(address)?;
    let path = format!("ips/ip-{name}");
    if ctx.store.get(&path).is_none() && !ctx.opt.force {
        return Err(
            Failure::refused(format!("host '{name}' is no member of the cluster"))
                .hint("`marsadm lowlevel-ls-host-ips` lists them"),
        );
    }
    ctx.store.set(&path, &ip.to_string())?;
    ctx.store.trigger(Trigger::Full)
}
