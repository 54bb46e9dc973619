// SPDX-License-Identifier: GPL-2.0-or-later

//! join-cluster: over the metadata port of a member, without ssh.
//!
//! Interrupted: the key is stored first, `uuid` last, and everything between is merged by time; run again, the rest
//! follows. Without `uuid` the module does not talk to anybody.

use super::cluster::{own_links, TOOL_VERSION};
use crate::cli::KeyArgs;
use crate::ctx::{check_name, Ctx};
use crate::error::{Failure, Result};
use crate::ops;
use crate::out;
use crate::sys::{key, net};
use crate::tree::store::{Stamp, Trigger};
use crate::tree::values;
use mars_core::lamport::LamportTime;
use mars_core::name::Name;
use mars_net::{Client, ClusterKey, Local, NetError, Purpose, ANY_UUID};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest time for the connection; `--timeout` may be shorter.
const PATIENCE: u64 = 30;

/// Arguments of `join-cluster`.
#[derive(Debug)]
pub struct JoinArgs {
    pub peer: String,
    pub peer_ip: Option<String>,
    pub ip: Option<String>,
    pub port: u16,
    pub key: KeyArgs,
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
    let key = match key::from_args(&args.key)? {
        Some(key) => key,
        None => key::load(&ctx.store)?.ok_or_else(|| {
            Failure::usage("the key of the cluster is needed").hint(format!(
                "on '{0}': `marsadm show-key | ssh {1} marsadm join-cluster {0} --key-file -`",
                args.peer, ctx.me
            ))
        })?,
    };
    ops::run(ctx, ops::CLUSTER, |op| {
        op.step(ctx, "ask")?;
        if ctx.store.is_dry_run() {
            out::info(format_args!(
                "would ask '{}' at {address} for the tree, as '{}' with {own}",
                args.peer, ctx.me
            ));
            return Ok(());
        }
        let tree = ask(ctx, args, address, own, &key)?;
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
        key::store(&ctx.store, &key)?;
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
            let old = LamportTime::ZERO.plus_secs(1);
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
    pub stamp: LamportTime,
}

/// Takes over what is newer than what is here; `uuid` is left to the end.
fn merge(ctx: &Ctx, tree: &[PeerLink]) -> Result<usize> {
    let mut count = 0;
    for e in tree.iter().filter(|e| e.path != "uuid") {
        if values::merge_accepts(ctx, e) {
            ctx.store.set_at(&e.path, &e.value, Stamp::At(e.stamp))?;
            count += 1;
        }
    }
    Ok(count)
}

/// Asks the peer for its tree, and is made known to the cluster by it.
fn ask(
    ctx: &Ctx,
    args: &JoinArgs,
    address: SocketAddr,
    own: IpAddr,
    key: &ClusterKey,
) -> Result<Vec<PeerLink>> {
    let name = |text: &str| {
        Name::new(text.as_bytes())
            .ok_or_else(|| Failure::usage(format!("'{text}' is no host name")))
    };
    let (host, peer) = (name(&ctx.me)?, name(&args.peer)?);
    let local = Local {
        host,
        uuid: ctx.store.get("uuid").unwrap_or_else(|| ANY_UUID.into()),
        key: key.clone(),
        version: TOOL_VERSION.into(),
    };
    let explain = |e: NetError| {
        Failure::refused(format!(
            "host '{}' does not let this host join: {e}",
            args.peer
        ))
    };
    let timeout = Duration::from_secs(ctx.opt.timeout.clamp(1, PATIENCE));
    let mut client = Client::connect(
        &address.ip().to_string(),
        address.port(),
        Purpose::Join,
        Some(peer),
        &local,
        timeout,
    )
    .map_err(explain)?;
    let copy = client.join(host, own, ctx.store.now()).map_err(explain)?;
    let link = |e: mars_net::TreeEntry| {
        Some(PeerLink {
            path: e.path,
            value: String::from_utf8(e.value).ok()?,
            stamp: e.stamp,
        })
    };
    Ok(copy.entries.into_iter().filter_map(link).collect())
}
