// SPDX-License-Identifier: GPL-2.0-or-later

//! Asking the peers for a sign of life.

use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::tree::store::Trigger;
use crate::wait::{Deadline, Look};

/// The other hosts of the cluster.
pub fn others(ctx: &Ctx) -> Vec<String> {
    let mut hosts = ctx.store.hosts();
    hosts.retain(|h| *h != ctx.me && *h != ctx.here);
    hosts
}

/// Triggers an exchange with the peers and waits until each has written its time anew, at most half of `--window`.
/// Returns those that did not answer; with `strict` that is a failure.
pub fn ping(ctx: &Ctx, peers: &[String], strict: bool) -> Result<Vec<String>> {
    if peers.is_empty() || !ctx.can_wait() {
        return Ok(Vec::new());
    }
    let start = ctx.store.now();
    ctx.store.trigger(Trigger::Full)?;
    let patience = ctx.opt.timeout.min(ctx.opt.window.div_ceil(2));
    let silent = || -> Vec<String> {
        let quiet = |h: &&String| ctx.store.host(h).time.is_none_or(|t| t <= start);
        peers.iter().filter(quiet).cloned().collect()
    };
    let result = Deadline::seconds(ctx, patience).wait(ctx, "answers of the peers", || {
        let missing = silent();
        Ok(if missing.is_empty() {
            Look::Done(())
        } else {
            Look::Missing(format!("no answer from {}", missing.join(", ")))
        })
    });
    let Err(failure) = result else {
        return Ok(Vec::new());
    };
    let missing = silent();
    if strict {
        return Err(failure.hint(advice(&missing)));
    }
    out::warn(format_args!(
        "no answer from {} within {patience} s",
        missing.join(", ")
    ));
    Ok(missing)
}

/// Asks all peers, because what only one of them knows decides about `what`. Refused while one is silent; with `--force`, only
/// a warning. A host without peers needs nobody.
pub fn need_all(ctx: &Ctx, what: &str, why: &str) -> Result<()> {
    let peers = others(ctx);
    if peers.is_empty() {
        return Ok(());
    }
    if !ctx.opt.force {
        ctx.need_module(&format!("{what} in a cluster of several hosts"))
            .map_err(|f| f.hint("or, if all other hosts are lost: --force"))?;
    }
    let silent = ping(ctx, &peers, false)?;
    if silent.is_empty() || ctx.opt.force {
        return Ok(());
    }
    Err(
        Failure::refused(format!("{} did not answer: {why} there", silent.join(", ")))
            .hint(advice(&silent))
            .hint("if it is known that this is not so, or the host is lost: --force"),
    )
}

fn advice(missing: &[String]) -> String {
    format!(
        "on {}: is the host up, the module loaded (`lsmod | grep mars`), and port 7777 reachable from here?",
        missing.join(", ")
    )
}

/// `wait-cluster`.
pub fn wait_cluster(ctx: &Ctx) -> Result<()> {
    ctx.need_module("waiting for the peers")?;
    let peers = others(ctx);
    ping(ctx, &peers, true)?;
    out::info(format_args!("{} peers have answered", peers.len()));
    Ok(())
}

/// Fails unless a peer whose word is needed is alive.
pub fn need_alive(ctx: &Ctx, host: &str, why: &str) -> Result<()> {
    if ctx.is_alive(host) || !ctx.store.module_loaded() {
        return Ok(());
    }
    Err(silent(ctx, host, why))
}

/// A peer whose word is needed does not answer.
pub fn silent(ctx: &Ctx, host: &str, why: &str) -> Failure {
    let silence = ctx.silence(&ctx.store.host(host), ctx.store.now());
    let since = silence.map_or_else(
        || "it was never heard".into(),
        |s| format!("silent for {} s", s.as_secs()),
    );
    Failure::refused(format!("host '{host}' does not answer ({since}): {why}"))
        .hint(advice(&[host.to_owned()]))
}
