// SPDX-License-Identifier: GPL-2.0-or-later

//! create-cluster, join-cluster, leave-cluster, show-key and the address book.
//!
//! Interrupted create-cluster: `uuid` is written last, so that without it nothing has happened yet and the command is
//! simply run again; a key that is there already is kept. Interrupted join-cluster: the key comes first, `uuid` last;
//! everything between is merged by time, so that running it again does the rest.

use super::peers;
use crate::cli::KeyArgs;
use crate::ctx::{check_name, Ctx};
use crate::error::{Failure, Result, Trying};
use crate::ops;
use crate::out;
use crate::sys::key::{self, Key};
use crate::sys::net;
use crate::tree::store::{Stamp, Trigger};
use std::net::SocketAddr;

/// Version of this tool, as it is written into the tree.
pub const TOOL_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `join-cluster`.
#[derive(Debug)]
pub struct JoinArgs {
    pub peer: String,
    pub peer_ip: Option<String>,
    pub ip: Option<String>,
    pub port: u16,
    pub key: KeyArgs,
}

/// `create-cluster`.
pub fn create(ctx: &Ctx, ip: Option<&str>, key: &KeyArgs) -> Result<()> {
    if let Some(uuid) = ctx.store.get("uuid").filter(|u| u != "(any)") {
        if !ctx.opt.force {
            return Err(Failure::refused(format!("host '{}' already belongs to the cluster '{uuid}'", ctx.me))
                .hint("nothing is to be done if this is the cluster that you mean; `marsadm leave-cluster` leaves it"));
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
        let made = match (Key::from_args(key)?, Key::load(&ctx.store)?) {
            (Some(given), _) => {
                given.store(&ctx.store)?;
                false
            }
            (None, Some(_)) => false,
            (None, None) => {
                Key::random()?.store(&ctx.store)?;
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
                ctx.store.path(key::FILE).display(),
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
fn own_links(ctx: &Ctx) -> Result<()> {
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

/// `join-cluster`.
pub fn join(ctx: &Ctx, args: &JoinArgs) -> Result<()> {
    check_name("host", &args.peer, ctx.opt.force)?;
    if args.peer == ctx.me {
        return Err(
            Failure::usage(format!("host '{}' cannot join itself", ctx.me))
                .hint("PEER is another host, one that already belongs to the cluster"),
        );
    }
    let uuid = ctx.store.get("uuid").filter(|u| u != "(any)");
    let mine = ctx.store.resources_of(&ctx.me);
    if !mine.is_empty() && uuid.is_none() && !ctx.opt.force {
        return Err(Failure::refused(format!(
            "there are already resources here, but no cluster: {}",
            mine.join(", ")
        ))
        .hint("make a fresh file system for /mars, or use --force"));
    }
    let known = ctx.store.get(&format!("ips/ip-{}", args.peer));
    if let (Some(known), Some(given)) = (&known, &args.peer_ip) {
        if net::parse_ip(known)? != net::parse_ip(given)? && !ctx.opt.force {
            return Err(Failure::refused(format!(
                "the address of '{}' is known to be {known}, not {given}",
                args.peer
            ))
            .hint(format!(
                "`marsadm lowlevel-set-host-ip {} ADDRESS` changes it",
                args.peer
            )));
        }
    }
    let address = net::resolve(
        &args.peer,
        args.peer_ip.as_deref(),
        known.as_deref(),
        args.port,
    )?;
    let own = match &args.ip {
        Some(ip) => net::parse_ip(ip)?,
        None => match net::own_address_towards(address) {
            Some(ip) => ip,
            None => net::own_address()?,
        },
    };
    let key = match Key::from_args(&args.key)? {
        Some(key) => key,
        None => Key::load(&ctx.store)?.ok_or_else(|| {
            Failure::usage("the key of the cluster is needed").hint(format!(
                "on '{0}': `marsadm show-key | ssh {1} marsadm join-cluster {0} --key-file -`",
                args.peer, ctx.me
            ))
        })?,
    };
    ops::run(ctx, ops::CLUSTER, |op| {
        op.step(ctx, "ask")?;
        if ctx.store.is_dry_run() {
            out::dry(format_args!(
                "would ask '{}' at {address} for the tree, as '{}' with {own}",
                args.peer, ctx.me
            ));
            return Ok(());
        }
        let tree = ask(ctx, args, address, &own.to_string(), &key)?;
        let theirs = tree
            .iter()
            .find(|e| e.path == "uuid")
            .map(|e| e.value.clone())
            .ok_or_else(|| {
                Failure::refused(format!(
                    "host '{}' does not belong to a cluster yet",
                    args.peer
                ))
                .hint(format!("`marsadm create-cluster` on '{}' first", args.peer))
            })?;
        if let Some(uuid) = uuid.filter(|u| *u != theirs) {
            return Err(Failure::refused(format!(
                "host '{}' belongs to the cluster '{uuid}', but '{}' to '{theirs}'",
                ctx.me, args.peer
            ))
            .hint("`marsadm leave-cluster` here first, then make a fresh file system for /mars"));
        }
        op.step(ctx, "key")?;
        key.store(&ctx.store)?;
        op.step(ctx, "merge")?;
        let merged = merge(ctx, &tree)?;
        out::verbose(
            1,
            format_args!("{merged} of {} links taken over", tree.len()),
        );
        own_links(ctx)?;
        ctx.store
            .ensure(&format!("ips/ip-{}", ctx.me), &own.to_string())?;
        let peer_link = format!("ips/ip-{}", args.peer);
        if ctx.store.get(&peer_link).is_none() {
            // So old that any real value wins, as in the original.
            let old = mars_core::lamport::LamportTime::ZERO.plus_secs(1);
            ctx.store
                .set_at(&peer_link, &address.ip().to_string(), Stamp::At(old))?;
        }
        op.step(ctx, "uuid")?;
        for e in tree.iter().filter(|e| e.path == "uuid") {
            ctx.store.set_at("uuid", &e.value, Stamp::At(e.stamp))?;
        }
        ctx.store.trigger(Trigger::Full)?;
        out::info(format_args!(
            "host '{}' ({own}) has joined the cluster '{theirs}' of {}",
            ctx.me,
            ctx.store.hosts().join(", ")
        ));
        if !ctx.store.module_loaded() {
            out::info(format_args!(
                "The kernel module is not loaded yet: `modprobe mars` starts it."
            ));
        }
        Ok(())
    })
}

/// A link that came from a peer.
#[derive(Debug, Clone)]
pub struct PeerLink {
    pub path: String,
    pub value: String,
    pub stamp: mars_core::lamport::LamportTime,
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
    let key = Key::load(&ctx.store)?.ok_or_else(|| {
        Failure::environment(format!(
            "{} does not exist",
            ctx.store.path(key::FILE).display()
        ))
        .hint("`marsadm create-cluster` or `join-cluster` make it; or copy it from another host")
    })?;
    out::info(format_args!("{}", key.to_hex()));
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

/// Takes over what is newer than what is here; `uuid` is left to the end.
fn merge(ctx: &Ctx, tree: &[PeerLink]) -> Result<usize> {
    let mut count = 0;
    for e in tree.iter().filter(|e| e.path != "uuid") {
        if crate::tree::values::merge_accepts(ctx, e) {
            ctx.store.set_at(&e.path, &e.value, Stamp::At(e.stamp))?;
            count += 1;
        }
    }
    Ok(count)
}

/// Asks the peer for its tree.
fn ask(
    ctx: &Ctx,
    args: &JoinArgs,
    address: SocketAddr,
    own: &str,
    key: &Key,
) -> Result<Vec<PeerLink>> {
    let _ = (ctx, args, address, own, key);
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported)).trying(|| "join".into())
}
