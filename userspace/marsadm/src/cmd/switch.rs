// SPDX-License-Identifier: GPL-2.0-or-later

//! attach, detach, up, down and the pause-/resume- switches.
//!
//! Each is a few independent switches: interrupted, some are set; run again, the rest is.

use super::{replica, report_split};
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::sys::disk;
use crate::tree::model::{Member, Resource};
use crate::tree::store::Trigger;
use crate::wait::{Deadline, Look};

/// A switch of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    Attach,
    Fetch,
    Replay,
    Sync,
}

impl Switch {
    /// Its name in the tree.
    pub fn key(self) -> &'static str {
        match self {
            Switch::Attach => "attach",
            Switch::Fetch => "connect",
            Switch::Replay => "allow-replay",
            Switch::Sync => "sync",
        }
    }

    /// Its name for people.
    pub fn word(self) -> &'static str {
        match self {
            Switch::Attach => "attach",
            Switch::Fetch => "fetch",
            Switch::Replay => "replay",
            Switch::Sync => "sync",
        }
    }
}

/// Whose switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// That of this host.
    Local,
    /// Those of all members.
    Global,
}

/// Writes a switch of the acting host.
pub fn put(ctx: &Ctx, res: &Resource, what: Switch, on: bool) -> Result<()> {
    put_of(ctx, res, &ctx.me, what, on)
}

fn put_of(ctx: &Ctx, res: &Resource, host: &str, what: Switch, on: bool) -> Result<()> {
    let path = res.path(&format!("todo-{host}/{}", what.key()));
    ctx.store.ensure(&path, if on { "1" } else { "0" })
}

/// The `pause-` and `resume-` commands.
pub fn set(ctx: &Ctx, name: &str, what: Switch, on: bool, scope: Scope) -> Result<()> {
    let res = ctx.joined(name)?;
    report_split(&res);
    if what == Switch::Sync && on && res.designated() != Some(&ctx.me) {
        replica::source(ctx, &res)?;
    }
    match scope {
        Scope::Local => put(ctx, &res, what, on)?,
        Scope::Global => {
            for member in res.real_members() {
                put_of(ctx, &res, &member.host, what, on)?;
            }
        }
    }
    ctx.store.trigger(Trigger::Remote)?;
    let who = if scope == Scope::Global {
        "all members"
    } else {
        &ctx.me
    };
    out::verbose(
        1,
        format_args!(
            "{} is {} for {who}",
            what.word(),
            if on { "on" } else { "off" }
        ),
    );
    Ok(())
}

/// `attach`.
pub fn attach(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    report_split(&res);
    put(ctx, &res, Switch::Attach, true)?;
    ctx.store.trigger(Trigger::Remote)?;
    up_wait(ctx, name)
}

/// `up`, first part: all switches.
pub fn up(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    report_split(&res);
    for what in [Switch::Attach, Switch::Fetch, Switch::Sync, Switch::Replay] {
        put(ctx, &res, what, true)?;
    }
    ctx.store.trigger(Trigger::Remote)
}

/// `up`, second part: wait until the disk is in use.
pub fn up_wait(ctx: &Ctx, name: &str) -> Result<()> {
    if not_loaded(ctx) {
        return Ok(());
    }
    let deadline = Deadline::new(ctx);
    deadline.wait_resource(ctx, name, "attach", |res| {
        let own = ctx.own(res)?;
        deadline.fail_if_stuck(own)?;
        Ok(if own.actual.attached {
            Look::Done(())
        } else {
            Look::Missing(format!(
                "the disk is not yet in use (state '{}')",
                own.state_word()
            ))
        })
    })
}

/// `detach`.
pub fn detach(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    need_closed(ctx, &res, ctx.own(&res)?)?;
    put(ctx, &res, Switch::Attach, false)?;
    ctx.store.trigger(Trigger::Remote)?;
    down_wait(ctx, name)
}

/// `down`, first part: all switches, in the original's order.
pub fn down(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    need_closed(ctx, &res, ctx.own(&res)?)?;
    all_off(ctx, &res)
}

/// Switches everything off.
pub fn all_off(ctx: &Ctx, res: &Resource) -> Result<()> {
    for what in [Switch::Replay, Switch::Sync, Switch::Fetch, Switch::Attach] {
        put(ctx, res, what, false)?;
    }
    ctx.store.trigger(Trigger::Remote)
}

/// `down`, second part: wait until nothing runs any more.
pub fn down_wait(ctx: &Ctx, name: &str) -> Result<()> {
    if not_loaded(ctx) {
        return Ok(());
    }
    wait_detached(ctx, name)
}

/// Waits until the member is detached and nothing works on its disk.
pub fn wait_detached(ctx: &Ctx, name: &str) -> Result<()> {
    Deadline::new(ctx).wait_resource(ctx, name, "detach", |res| {
        let own = ctx.own(res)?;
        let still = running(own);
        if still.is_empty() {
            return Ok(Look::Done(()));
        }
        let mut text = format!("still on: {}", still.join(", "));
        if own.actual.open_count > 0 {
            text.push_str(&format!("; {}", opened_by(ctx, own)));
        }
        Ok(Look::Missing(text))
    })
}

/// Indicators of a member that are on.
pub fn running(member: &Member) -> Vec<&'static str> {
    let a = &member.actual;
    [
        (a.attached, "is-attached"),
        (a.if_on, "if-on"),
        (a.primary, "is-primary"),
        (a.replaying, "is-replaying"),
        (a.syncing, "is-syncing"),
        (a.fetching, "is-copying"),
    ]
    .iter()
    .filter_map(|(on, name)| on.then_some(*name))
    .collect()
}

fn not_loaded(ctx: &Ctx) -> bool {
    if !ctx.store.module_loaded() {
        out::info(format_args!(
            "the kernel module is not loaded: the switches take effect when it is"
        ));
    }
    !ctx.can_wait()
}

/// Refuses while the device of a member is open.
pub fn need_closed(ctx: &Ctx, res: &Resource, member: &Member) -> Result<()> {
    let mounted = (member.host == ctx.here)
        .then(|| disk::mount_of_mars(member.device.as_deref().unwrap_or(&res.name)))
        .flatten();
    if member.actual.open_count == 0 && mounted.is_none() {
        return Ok(());
    }
    if ctx.opt.force {
        out::warn(format_args!("{}; forced", opened_by(ctx, member)));
        return Ok(());
    }
    let hint = match mounted {
        Some(m) => format!("`umount {}`, then try again", m.point.display()),
        None => format!(
            "close it on '{}': unmount, stop the virtual machine or database, swapoff",
            member.host
        ),
    };
    Err(Failure::refused(opened_by(ctx, member)).hint(hint))
}

/// Who holds the device of a member open: as its kernel tells, and for this host what is mounted.
pub fn opened_by(ctx: &Ctx, member: &Member) -> String {
    let device = member.device.as_deref().unwrap_or("?");
    let mut text = format!(
        "device /dev/mars/{device} is open on host '{}' (open-count {})",
        member.host, member.actual.open_count
    );
    if let Some(holder) = &member.actual.holder {
        text.push_str(&format!(": {holder}"));
    }
    if member.host == ctx.here {
        if let Some(mount) = disk::mount_of_mars(device) {
            text.push_str(&format!(
                "; mounted at {} ({})",
                mount.point.display(),
                mount.fstype
            ));
        }
    }
    text
}
