// SPDX-License-Identifier: GPL-2.0-or-later

//! Waiting for an effect, with a deadline (P8).

use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::tree::model::{Member, Resource};
use crate::tree::store::Trigger;
use mars_core::lamport::LamportTime;
use std::time::{Duration, Instant};

/// How often the tree is looked at; at first more often, because most effects come at once.
const POLL: Duration = Duration::from_millis(200);
const FIRST_POLL: Duration = Duration::from_millis(10);
/// The module tries again what failed after five seconds.
const GRACE: Duration = Duration::from_secs(8);
/// How often the module is asked to look, while nothing happens.
const NUDGE: Duration = Duration::from_secs(2);

/// What a look at the tree says.
pub enum Look<T> {
    /// The condition holds.
    Done(T),
    /// Not yet; what is missing.
    Missing(String),
}

/// A point in time after which nobody waits any more.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    begin: Instant,
    begin_stamp: LamportTime,
    end: Instant,
    seconds: u64,
}

impl Deadline {
    /// So many seconds from now.
    pub fn seconds(ctx: &Ctx, seconds: u64) -> Self {
        let begin = Instant::now();
        // About a hundred years are as good as for ever, and cannot overflow.
        let end = begin + Duration::from_secs(seconds.min(3_000_000_000));
        Self {
            begin,
            begin_stamp: ctx.store.now(),
            end,
            seconds,
        }
    }

    /// As `--timeout` says.
    pub fn new(ctx: &Ctx) -> Self {
        Self::seconds(ctx, ctx.opt.timeout)
    }

    /// Fails early when the engine of a member needs an administrator: waiting longer would not help. What it said before
    /// the waiting began counts only after a while, because it may have tried nothing since.
    pub fn fail_if_stuck(&self, member: &Member) -> Result<()> {
        let fresh = member.actual.state_stamp > self.begin_stamp;
        if fresh || self.begin.elapsed() > GRACE {
            fail_if_stuck(member)
        } else {
            Ok(())
        }
    }

    /// Polls until `look` is done, fails, or the time is over.
    pub fn wait<T>(
        &self,
        ctx: &Ctx,
        what: &str,
        mut look: impl FnMut() -> Result<Look<T>>,
    ) -> Result<T> {
        let mut nudged = Instant::now();
        let begin = Instant::now();
        let mut pause = FIRST_POLL;
        loop {
            let missing = match look()? {
                Look::Done(value) => return Ok(value),
                Look::Missing(text) => text,
            };
            let now = Instant::now();
            if now >= self.end {
                return Err(Failure::timeout(format!(
                    "{what}: not reached within {} s\n{missing}",
                    self.seconds
                )));
            }
            if now.duration_since(nudged) >= NUDGE {
                nudged = now;
                ctx.store.trigger(Trigger::Remote)?;
            }
            let waited = now.duration_since(begin).as_secs();
            out::progress(&format!("{what} ({waited} s): {missing}"));
            std::thread::sleep(pause.min(self.end.saturating_duration_since(now)));
            pause = POLL.min(pause * 2);
        }
    }

    /// Polls a resource until `look` at it is done.
    pub fn wait_resource<T>(
        &self,
        ctx: &Ctx,
        name: &str,
        what: &str,
        mut look: impl FnMut(&Resource) -> Result<Look<T>>,
    ) -> Result<T> {
        self.wait(ctx, what, || look(&ctx.resource(name)?))
    }
}

/// Fails when the engine of a member says that it needs an administrator.
pub fn fail_if_stuck(member: &Member) -> Result<()> {
    let reason = member.state_reason().unwrap_or("see the kernel log");
    let f = match member.state_word() {
        "disk-error" => Failure::refused(format!(
            "the module on '{}' cannot use the disk {}: {reason}",
            member.host,
            member.disk.as_deref().unwrap_or("")
        ))
        .hint("repair or reconnect the disk; the module tries again by itself"),
        "defective-log" => Failure::refused(format!(
            "a transaction log on '{}' is defective: {reason}",
            member.host
        ))
        // Which way out there is depends on who is designated.
        .hint("`marsadm view` there says what helps"),
        "no-space" => Failure::refused(format!("/mars is full on '{}': {reason}", member.host))
            .hint("free space there, e.g. `marsadm log-delete-all all`"),
        _ if member.actual.disk_error < 0 => Failure::refused(format!(
            "the module on '{}' cannot open the disk {}: error {}",
            member.host,
            member.disk.as_deref().unwrap_or(""),
            member.actual.disk_error
        ))
        .hint("is the disk present, and not in use by somebody else (mounted, LVM, RAID)?"),
        _ => return Ok(()),
    };
    Err(f)
}
