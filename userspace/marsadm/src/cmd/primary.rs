// SPDX-License-Identifier: GPL-2.0-or-later

//! primary (planned and forced) and secondary.
//!
//! Planned, interrupted: before `(none)` is written nothing has changed. After it nobody is designated: running the
//! command again resumes the handover, `marsadm primary` on the old host takes it back. When the old primary does not let
//! go within the deadline, the tool takes it back by itself. Forced: `size` (as it is here), then `primary`, each time: run
//! again, it decides anew.

use super::switch::{need_closed, opened_by, put, Switch};
use super::{failover, operation, peers, report_split};
use crate::ctx::Ctx;
use crate::error::{Failure, Kind, Result};
use crate::ops::Op;
use crate::out;
use crate::tree::model::{Member, Resource, NOBODY};
use crate::tree::split::{human, splits, Split};
use crate::tree::store::{Stamp, Trigger};
use crate::tree::values::Position;
use crate::wait::{fail_if_stuck, Deadline, Look};
use mars_core::lamport::LamportTime;
use std::time::Duration;

/// Who is taking the role, or took it last, by a planned handover.
const CLAIM: &str = "claimed-by";
/// Whoever is silent for so long does not answer a question just now.
const SPEAKS: Duration = Duration::from_secs(15);

/// `primary`.
pub fn primary(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    ctx.need_module("becoming primary")?;
    let own = ctx.own(&res)?;
    if res.designated() == Some(&ctx.me) && own.actual.primary && own.actual.if_on {
        report_split(&res);
        // What an interrupted run may have left to do.
        operation(ctx, name, |_| all_on(ctx, name))?;
        out::info(format_args!(
            "host '{}' is primary of '{name}' already",
            ctx.me
        ));
        return Ok(());
    }
    if !ctx.opt.force || own.size_before_resize(res.size).is_none() {
        need_good_replica(ctx, &res, own)?;
    }
    if own.actual.late {
        return Err(Failure::refused(format!(
            "the clock of a member of '{name}' is more than 30 days ahead of this host's: what was decided there can't be known here"
        ))
        .hint("set the clocks right; the kernel log names the host. If it is that one which is wrong, it may also be switched off: after a quarter of an hour of silence it does not count"));
    }
    if ctx.opt.force {
        operation(ctx, name, |op| failover::forced(ctx, op, name))
    } else {
        operation(ctx, name, |op| planned(ctx, op, name))
    }
}

/// Only a replica that equals some state of the primary may become one, forced or not (P1).
fn need_good_replica(ctx: &Ctx, res: &Resource, own: &Member) -> Result<()> {
    if let Some(before) = own.size_before_resize(res.size) {
        return Err(Failure::refused(format!(
            "'{}' has grown, and what it has grown by is not complete and consistent on '{}' yet: {} of {} are synced",
            res.name,
            ctx.me,
            human(own.syncstatus.unwrap_or(0)),
            human(res.size.unwrap_or(0))
        ))
        .hint(format!(
            "wait until the sync is complete. If the primary is lost: `marsadm pause-fetch {0}`, then `marsadm primary --force {0}` gives the resource the {1} back that it had before, without what is behind that",
            res.name,
            human(before)
        )));
    }
    if !own.is_synced(res.size) {
        return Err(Failure::refused(format!(
            "the replica of '{}' on '{}' is incomplete: {} of {} are synced",
            res.name,
            ctx.me,
            human(own.syncstatus.unwrap_or(0)),
            human(res.size.unwrap_or(0))
        ))
        .hint("wait until the sync is complete; an incomplete replica cannot become primary, not even by force"));
    }
    if !own.is_consistent(res.size) {
        let needed = own
            .syncpos
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        return Err(Failure::refused(format!(
            "the replica of '{}' on '{}' is not consistent yet: replay must first reach {needed}",
            res.name, ctx.me
        ))
        .hint(format!("`marsadm resume-replay {0}`, and wait until `marsadm view {0}` shows UpToDate or OutDated", res.name)));
    }
    Ok(())
}

/// Asks once more, after all that had to be waited for: the resource may have grown meanwhile.
pub fn still_good(ctx: &Ctx, name: &str) -> Result<Resource> {
    let res = ctx.resource(name)?;
    need_good_replica(ctx, &res, ctx.own(&res)?)?;
    Ok(res)
}

/// The host that is or was primary before, other than the acting one.
pub fn old_primary(ctx: &Ctx, res: &Resource) -> Option<String> {
    let designated = res.designated().filter(|h| *h != ctx.me).map(str::to_owned);
    let actual = || {
        res.actual_primaries()
            .iter()
            .map(|m| m.host.clone())
            .find(|h| *h != ctx.me)
    };
    let last = || res.last_primary.clone().filter(|h| *h != ctx.me);
    designated
        .or_else(actual)
        .or_else(last)
        .filter(|h| res.member(h).is_some())
}

fn planned(ctx: &Ctx, op: &mut Op, name: &str) -> Result<()> {
    let deadline = Deadline::new(ctx);
    let res = ctx.resource(name)?;
    let old = old_primary(ctx, &res);
    if res.designated() == Some(&ctx.me) {
        // Designated already, for instance by an interrupted run: only the effect is missing.
        op.step(ctx, "designate")?;
        return become_primary(ctx, op, name, old.as_deref(), &deadline);
    }
    let silent = match &old {
        Some(old) => peers::ping(ctx, std::slice::from_ref(old), false)?,
        None => Vec::new(),
    };
    preconditions(ctx, name, old.as_deref(), silent.is_empty())?;
    if let Some(old) = &old {
        op.step(ctx, "catch-up")?;
        caught_up(ctx, name, old, None, &deadline)?;
    }
    let res = ctx.resource(name)?;
    unchanged(ctx, &res, old.as_deref())?;
    still_good(ctx, name)?;
    op.step(ctx, "none")?;
    let had = old.clone().filter(|old| {
        let is_primary = res.member(old).is_some_and(|m| m.actual.primary);
        is_primary || res.designated() == Some(old)
    });
    let rival = claimant(ctx, &res);
    // So that whoever does not hear what comes of it knows whom to ask.
    ctx.store.ensure(&res.path(CLAIM), &ctx.me)?;
    // Also if nobody is designated: what others have decided before they have seen this is known then. If somebody else is
    // designated at the same time elsewhere, that one wins.
    let claim = LamportTime::weak(res.primary_stamp, ctx.store.now(), ctx.me.as_bytes());
    ctx.store
        .set_at(&res.path("primary"), NOBODY, Stamp::At(claim))?;
    ctx.store.trigger(Trigger::Remote)?;
    op.step(ctx, "release")?;
    if ctx.store.is_dry_run() {
        out::info(format_args!(
            "would then wait for the old primary and write primary -> {}",
            ctx.me
        ));
        return Ok(());
    }
    let released = match &old {
        Some(old) => caught_up(ctx, name, old, Some(claim), &deadline),
        None => Ok(()),
    };
    let heard = released
        .and_then(|()| heard(ctx, name, claim, rival.as_deref(), &deadline))
        .and_then(|()| still_good(ctx, name));
    let heard = heard.and_then(|_| {
        op.step(ctx, "designate")?;
        need_claim(&ctx.resource(name)?, claim)
    });
    if let Err(failure) = heard {
        let lost = ctx.resource(name)?.primary_stamp != claim;
        return Err(match &had {
            Some(old) if !lost => take_back(ctx, name, old, claim, failure),
            _ => failure,
        });
    }
    become_primary(ctx, op, name, old.as_deref(), &deadline)
}

/// All that must hold before a planned handover, told in one go; `answered` says whether the old primary did just now.
fn preconditions(ctx: &Ctx, name: &str, old: Option<&str>, answered: bool) -> Result<()> {
    let res = ctx.resource(name)?;
    let own = ctx.own(&res)?;
    let splits = splits(&res);
    if let Some(split) = splits.first() {
        return Err(Failure::refused(split.describe(name)).hint(format!(
            "a planned handover is not possible between histories that differ. {}",
            Split::remedy(&res)
        )));
    }
    let off: Vec<&str> = [
        (own.todo.attach, "attach"),
        (own.todo.fetch, "fetch"),
        (own.todo.replay, "replay"),
    ]
    .iter()
    .filter_map(|(on, word)| (!on).then_some(*word))
    .collect();
    if !off.is_empty() {
        return Err(Failure::refused(format!(
            "on '{}' these switches are off: {}",
            ctx.me,
            off.join(", ")
        ))
        .hint(format!("`marsadm up {name}`, then try again")));
    }
    fail_if_stuck(own)?;
    if own.actual.replay_code < 0 {
        return Err(Failure::refused(format!(
            "the replay on '{}' has stopped with error {}",
            ctx.me, own.actual.replay_code
        ))
        .hint(format!(
            "`marsadm view {name}` says more; `marsadm invalidate {name}` makes a fresh replica"
        )));
    }
    if own.actual.emergency {
        return Err(Failure::refused(format!(
            "'{}' is in emergency mode: its /mars is full",
            ctx.me
        ))
        .hint("free space there first, e.g. `marsadm log-delete-all all`"));
    }
    let syncing: Vec<&str> = res
        .real_members()
        .filter(|m| m.host != ctx.me && Some(m.host.as_str()) != old)
        .filter(|m| !m.is_synced(res.size) && ctx.is_alive(&m.host))
        .map(|m| m.host.as_str())
        .collect();
    if !syncing.is_empty() && !ctx.opt.ignore_sync {
        return Err(Failure::refused(format!(
            "replicas elsewhere are still being synced from the old primary: {}",
            syncing.join(", ")
        ))
        .hint("wait, or use --ignore-sync: their syncs then start again from the new primary"));
    }
    let third = res
        .real_members()
        .find(|m| m.actual.primary && m.host != ctx.me && Some(m.host.as_str()) != old);
    if let Some(third) = third {
        if !speaks(ctx, &third.host) {
            return Err(may_be_primary(ctx, name, third));
        }
        return Err(Failure::refused(format!(
            "'{}' is primary of '{name}', too: {}",
            third.host,
            opened_by(ctx, third)
        ))
        .hint("close the device there; it is no longer designated, so its role ends then"));
    }
    if let Some(other) = claimant(ctx, &res).filter(|h| !speaks(ctx, h)) {
        return Err(Failure::refused(format!(
            "'{other}' was taking the primary role of '{name}', and does not answer: it may be primary now"
        ))
        .hint(if_lost(name)));
    }
    let Some(old) = old.and_then(|h| res.member(h)) else {
        return Ok(());
    };
    // A silent host that was primary may still be, and one that is designated may have become primary since it was heard; one
    // that is neither only matters for what it has written. What it said last of its device and its /mars is no matter: nobody can
    // do anything about that there.
    let designated = res.designated() == Some(&old.host);
    let a = &old.actual;
    let role = a.primary || a.if_on || a.open_count > 0 || a.emergency || a.gap;
    if !(answered && ctx.is_alive(&old.host)) && (designated || role || !has_all_of(own, old)) {
        return Err(may_be_primary(ctx, name, old));
    }
    need_no_gap(old)?;
    need_closed(ctx, &res, old)
}

/// A host that does not answer may be primary, whatever it said last.
fn may_be_primary(ctx: &Ctx, name: &str, m: &Member) -> Failure {
    let mut why =
        "it may still be primary, or its last writes may not have arrived here".to_owned();
    if m.actual.open_count > 0 {
        why.push_str(&format!("; when it was last heard, {}", opened_by(ctx, m)));
    }
    if m.actual.emergency || m.actual.gap {
        why.push_str("; it was in emergency mode, and what it has written since then is in no log");
    }
    peers::silent(ctx, &m.host, &why).hint(if_lost(name))
}

fn if_lost(name: &str) -> String {
    format!(
        "if that host is lost: `marsadm pause-fetch {name}`, then `marsadm primary --force {name}`"
    )
}

/// The end of what a member has logged, as far as is known.
pub fn end_of(member: &Member) -> Option<Position> {
    end_with(member, member.log_end.clone())
}

/// The same by its history alone: a host that was primary in another one, before an invalidate, may still say where that
/// ended.
fn end_of_history(member: &Member) -> Option<Position> {
    end_with(member, None)
}

fn end_with(member: &Member, log_end: Option<Position>) -> Option<Position> {
    let replay = member.replay.clone()?;
    let newest = member
        .versions
        .values()
        .last()
        .map(|v| Position::new(v.link.this.log, v.link.this.pos));
    let candidates = [Some(replay.clone()), newest, log_end];
    // A position of another history (from before an invalidate) cannot be compared by its number alone.
    candidates
        .into_iter()
        .flatten()
        .filter(|p| p.log.number != replay.log.number || p.log == replay.log)
        .reduce(|a, b| if b > a { b } else { a })
}

/// Whether `own` has replayed everything of `old`.
pub fn has_all_of(own: &Member, old: &Member) -> bool {
    let (Some(have), Some(end)) = (&own.replay, end_of(old)) else {
        return false;
    };
    have.reaches(&end)
}

/// Waits until everything of the old primary is replayed here; with a `claim`, also until its device is gone and all is
/// written back there.
fn caught_up(
    ctx: &Ctx,
    name: &str,
    old: &str,
    claim: Option<LamportTime>,
    deadline: &Deadline,
) -> Result<()> {
    let released = claim.is_some();
    if ctx.store.is_dry_run() {
        return Ok(());
    }
    let what = if released {
        "release by the old primary"
    } else {
        "catching up"
    };
    deadline.wait_resource(ctx, name, what, |res| {
        claim.map_or(Ok(()), |claim| need_claim(res, claim))?;
        let own = ctx.own(res)?;
        let Some(old) = res.member(old) else {
            return Ok(Look::Done(()));
        };
        if let Some(split) = splits(res).first() {
            return Err(Failure::refused(split.describe(name)).hint(Split::remedy(res)));
        }
        deadline.fail_if_stuck(own)?;
        if old.actual.open_count > 0 && !released {
            if !ctx.is_alive(&old.host) {
                return Err(may_be_primary(ctx, name, old));
            }
            need_closed(ctx, res, old)?;
        }
        let (Some(have), Some(end)) = (&own.replay, end_of(old)) else {
            return Ok(Look::Missing("the positions are not known yet".into()));
        };
        if !have.reaches(&end) {
            return Ok(Look::Missing(format!(
                "'{}' is at {end}, here replay is at {have}{}",
                old.host,
                own.fetch_pos
                    .as_ref()
                    .map(|p| format!(" and fetch at {p}"))
                    .unwrap_or_default()
            )));
        }
        if let Some(text) = primary_still(ctx, old).filter(|_| released) {
            return Ok(Look::Missing(text));
        }
        // A disk that fails is a reason to hand over, not against it: what it did not take is in the log, which is here.
        let broken = old.state_word() == "disk-error";
        if released && !broken && !old.replay.as_ref().is_some_and(|p| p.reaches(&end)) {
            return Ok(Look::Missing(format!(
                "'{}' has not written everything back yet",
                old.host
            )));
        }
        Ok(Look::Done(()))
    })
}

/// Waits until each host that answers has seen `claim`, the time when the role was taken away from whoever had it, and has
/// none of it any more. Before that one may just be becoming primary, or have written what is not here.
fn heard(
    ctx: &Ctx,
    name: &str,
    claim: LamportTime,
    rival: Option<&str>,
    deadline: &Deadline,
) -> Result<()> {
    // Each host speaks every five seconds. One that has just died must not hold up a handover for all of the window: when it
    // comes back, it hears of this before it takes a role.
    // But who was taking the role itself may have it now.
    let answers = |m: &&Member| speaks(ctx, &m.host) || Some(m.host.as_str()) == rival;
    deadline.wait_resource(ctx, name, "word of the other hosts", |res| {
        need_claim(res, claim)?;
        let own = ctx.own(res)?;
        let others = res.real_members().filter(|m| m.host != ctx.me);
        for m in others.filter(answers) {
            need_no_gap(m)?;
            if let Some(text) = primary_still(ctx, m) {
                return Ok(Look::Missing(text));
            }
            if m.actual.primary_seen.is_some_and(|seen| seen != claim) {
                return Ok(Look::Missing(format!(
                    "'{}' has not heard yet that nobody is designated",
                    m.host
                )));
            }
            if let (Some(have), Some(end)) = (&own.replay, end_of_history(m)) {
                // In a log of this very host, another one has nothing that is not here.
                if end.log.creator.as_bytes() != ctx.me.as_bytes() && !have.reaches(&end) {
                    return Ok(Look::Missing(format!(
                        "'{}' is at {end}, here replay is at {have}",
                        m.host
                    )));
                }
            }
        }
        Ok(Look::Done(()))
    })
}

fn speaks(ctx: &Ctx, host: &str) -> bool {
    let silence = ctx.silence(&ctx.store.host(host), ctx.store.now());
    ctx.is_alive(host) && silence.is_some_and(|s| s < SPEAKS)
}

/// The other host that is taking the role while nobody is designated.
fn claimant(ctx: &Ctx, res: &Resource) -> Option<String> {
    let by = ctx.store.get(&res.path(CLAIM))?;
    let other = res.member(&by).is_some() && by != ctx.me;
    (other && res.designated().is_none()).then_some(by)
}

/// Fails if since `claim` somebody else has said who is primary.
fn need_claim(res: &Resource, claim: LamportTime) -> Result<()> {
    if res.primary_stamp == claim {
        return Ok(());
    }
    Err(Failure::refused(match res.designated() {
        Some(other) => format!("meanwhile '{other}' was made primary of '{}'", res.name),
        None => format!(
            "meanwhile somebody else takes the primary role of '{}'",
            res.name
        ),
    })
    .hint(format!("`marsadm view {}` shows who is primary", res.name)))
}

/// What keeps a host from being no primary.
fn primary_still(ctx: &Ctx, m: &Member) -> Option<String> {
    if m.actual.open_count > 0 && m.actual.if_on {
        Some(opened_by(ctx, m))
    } else if m.actual.if_on {
        Some(format!("the device on '{}' still exists", m.host))
    } else if m.actual.primary {
        Some(format!(
            "'{}' has crashed as primary, and has not said yet how far its log goes",
            m.host
        ))
    } else {
        None
    }
}

/// What a host has written without a log only that host can give to the others.
fn need_no_gap(m: &Member) -> Result<()> {
    if !m.actual.emergency && !m.actual.gap {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "'{}' is in emergency mode: its /mars is full, and what it has written since then is in no log",
        m.host
    ))
    .hint(format!("free space in /mars on '{0}' (if it is not primary now: `marsadm primary` there), and wait until it logs again and this host has followed", m.host)))
}

/// Between the checks and the writing somebody else may have decided otherwise.
fn unchanged(ctx: &Ctx, res: &Resource, old: Option<&str>) -> Result<()> {
    match res.designated() {
        None => Ok(()),
        Some(d) if d == ctx.me || Some(d) == old => Ok(()),
        Some(d) => Err(Failure::refused(format!(
            "meanwhile '{d}' was made primary of '{}'",
            res.name
        ))),
    }
}

/// The old primary did not let go, or this host can't take the role after all: the old one gets it back, so that there is a
/// primary at all. Whatever somebody else has decided since `claim`, and is not known here, is stronger.
fn take_back(ctx: &Ctx, name: &str, old: &str, claim: LamportTime, failure: Failure) -> Failure {
    let Ok(res) = ctx.resource(name) else {
        return failure;
    };
    let still = speaks(ctx, old)
        || res
            .member(old)
            .is_some_and(|m| m.actual.primary || m.actual.open_count > 0);
    if !still || res.designated().is_some() {
        return failure.hint(format!(
            "nobody is primary of '{name}' now: run the command again, or `marsadm primary {name}` on '{old}'"
        ));
    }
    let written = ctx
        .store
        .set_at(
            &res.path("primary"),
            old,
            Stamp::At(LamportTime::weak(claim, ctx.store.now(), ctx.me.as_bytes())),
        )
        .and_then(|()| ctx.store.trigger(Trigger::Remote));
    match written {
        Ok(()) => failure.hint(format!(
            "the handover was taken back: '{old}' is the designated primary again"
        )),
        Err(e) => failure.hint(format!(
            "and taking it back failed ({e}): `marsadm primary {name}` on '{old}'"
        )),
    }
}

/// Writes the designation and waits for the device.
pub fn become_primary(
    ctx: &Ctx,
    op: &mut Op,
    name: &str,
    old: Option<&str>,
    deadline: &Deadline,
) -> Result<()> {
    let res = ctx.resource(name)?;
    if res.designated() != Some(&ctx.me) {
        if let Some(last) = res.last_primary.as_deref().or(old).filter(|l| *l != ctx.me) {
            ctx.store
                .ensure(&res.path("userspace/prev-primary"), last)?;
        }
    }
    if ctx.opt.force {
        // Also if it is said already: that may have been by a clock which was wrong, so that others do not believe it.
        ctx.store.decide(&res.path("primary"), &ctx.me)?;
    } else if res.designated() != Some(&ctx.me) {
        ctx.store.set(&res.path("primary"), &ctx.me)?;
    }
    ctx.store
        .ensure(&res.path("userspace/last-primary"), &ctx.me)?;
    put(ctx, &res, Switch::Attach, true)?;
    ctx.store.trigger(Trigger::Remote)?;
    op.step(ctx, "device")?;
    if ctx.can_wait() {
        wait_primary(ctx, name, deadline)?;
    }
    op.step(ctx, "up")?;
    all_on(ctx, name)?;
    let res = ctx.resource(name)?;
    let device = ctx
        .own(&res)?
        .device
        .clone()
        .unwrap_or_else(|| name.to_owned());
    out::info(format_args!(
        "host '{}' is primary of '{name}': /dev/mars/{device}",
        ctx.me
    ));
    Ok(())
}

/// The implicit `up` at the end.
fn all_on(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.resource(name)?;
    for what in [Switch::Fetch, Switch::Sync, Switch::Replay] {
        put(ctx, &res, what, true)?;
    }
    ctx.store.trigger(Trigger::Remote)
}

fn wait_primary(ctx: &Ctx, name: &str, deadline: &Deadline) -> Result<()> {
    deadline.wait_resource(ctx, name, "device", |res| {
        let own = ctx.own(res)?;
        if own.actual.primary && own.actual.if_on {
            return Ok(Look::Done(()));
        }
        if res.designated() != Some(&ctx.me) {
            return Err(Failure::refused(format!(
                "meanwhile '{}' was made primary of '{name}'",
                res.primary.as_deref().unwrap_or(NOBODY)
            )));
        }
        deadline.fail_if_stuck(own)?;
        let reason = own
            .state_reason()
            .map(|r| format!(": {r}"))
            .unwrap_or_default();
        Ok(Look::Missing(format!(
            "the device does not exist yet (state '{}'{reason})",
            own.state_word()
        )))
    })
}

/// Nobody is designated any more; but whoever was made primary elsewhere meanwhile, unheard, stays it.
pub fn vacate(ctx: &Ctx, res: &Resource) -> Result<()> {
    let weak = LamportTime::weak(res.primary_stamp, ctx.store.now(), ctx.me.as_bytes());
    ctx.store
        .set_at(&res.path("primary"), NOBODY, Stamp::At(weak))
}

/// `secondary`.
pub fn secondary(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    report_split(&res);
    let own = ctx.own(&res)?;
    if let Some(other) = res.designated().filter(|d| *d != ctx.me) {
        if !own.actual.primary {
            out::info(format_args!(
                "host '{}' is not primary of '{name}' ('{other}' is): nothing to do",
                ctx.me
            ));
            return Ok(());
        }
        need_closed(ctx, &res, own)?;
    } else if res.designated().is_some() {
        need_closed(ctx, &res, own)?;
        ctx.store.ensure(&res.path(CLAIM), NOBODY)?;
        vacate(ctx, &res)?;
    }
    ctx.store.trigger(Trigger::Remote)?;
    if !ctx.can_wait() {
        return Ok(());
    }
    let waited = Deadline::new(ctx).wait_resource(ctx, name, "end of the primary role", |res| {
        let own = ctx.own(res)?;
        if !own.actual.if_on && !own.actual.primary {
            return Ok(Look::Done(()));
        }
        Ok(Look::Missing(if own.actual.open_count > 0 {
            opened_by(ctx, own)
        } else {
            "the device still exists".into()
        }))
    });
    if let Err(f) = waited {
        return Err(if f.kind == Kind::Timeout {
            f.hint(
                "the module goes on trying: it becomes secondary as soon as the device is closed",
            )
        } else {
            f
        });
    }
    out::info(format_args!("host '{}' is secondary of '{name}'", ctx.me));
    Ok(())
}
