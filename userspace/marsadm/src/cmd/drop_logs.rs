// SPDX-License-Identifier: GPL-2.0-or-later

//! `log-delete-all --also-needed`: making room at the expense of members that are away.
//!
//! The module of the primary notes in its dirty map what the logs wrote, and says so in `actual-<primary>/dropped-logs`; not
//! before that a log is deleted. Interrupted: the logs are there, or deletable; running it again does the rest.

use super::logs::delete_old;
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::out;
use crate::tree::model::{Member, Resource};
use crate::tree::store::Trigger;
use crate::wait::{Deadline, Look};

/// Whether a member gets on with the logs by itself, so that there is no need to make it compare anything.
fn follows(ctx: &Ctx, m: &Member) -> bool {
    ctx.is_alive(&m.host) && m.todo.attach && m.todo.fetch && m.todo.replay
}

/// Deletes all logs but the newest one, and those that a member who follows still needs (with `--force`, these, too). Gives
/// how many.
pub fn delete_needed(ctx: &Ctx, res: &Resource) -> Result<usize> {
    let name = &res.name;
    let own = ctx.own(res)?;
    if !own.actual.primary {
        return Err(Failure::refused(format!(
            "'{}' is not primary of '{name}': only the primary can note what the logs say before they are deleted",
            ctx.me
        ))
        .hint(format!(
            "run it on '{}'",
            res.designated().unwrap_or("the primary")
        )));
    }
    let Some(newest) = res.newest_own_log(&ctx.me) else {
        return Ok(0);
    };
    let others = || {
        res.real_members()
            .filter(|m| m.host != ctx.me)
            .filter_map(|m| Some((m, m.replay.as_ref()?.log.number)))
    };
    let wanted = others()
        .filter(|(m, _)| !ctx.opt.force && follows(ctx, m))
        .map(|(_, number)| number);
    let to = wanted.fold(newest.name.number, u32::min);
    let behind: Vec<String> = others()
        .filter(|(_, number)| *number < to)
        .map(|(m, number)| format!("'{}' (in log {number})", m.host))
        .collect();
    if behind.is_empty() {
        return delete_old(ctx, res, None, false);
    }
    ctx.need_module("noting what the logs say")?;
    out::warn(format_args!(
        "logs of '{name}' are deleted that {} still needs: it will compare what they wrote, and is not consistent meanwhile",
        behind.join(" and ")
    ));
    let asked = res.path(&format!("todo-{}/drop-logs", ctx.me));
    ctx.store.set(&asked, &to.to_string())?;
    ctx.store.trigger(Trigger::Local)?;
    let noted = if ctx.can_wait() {
        Deadline::new(ctx).wait_resource(ctx, name, "noting what the logs wrote", |res| {
            let own = ctx.own(res)?;
            Ok(match own.actual.dropped {
                Some(d) if d.to.number >= to => Look::Done(()),
                _ if !own.actual.primary => {
                    return Err(Failure::refused(format!(
                        "'{}' is not primary any more: nothing was deleted",
                        ctx.me
                    )))
                }
                _ => Look::Missing(format!(
                    "the module has not yet noted what the logs before number {to} wrote. Reading them may take long (--timeout); if it failed, its kernel log says why"
                )),
            })
        })
    } else {
        Ok(())
    };
    ctx.store.set(&asked, "0")?;
    noted?;
    delete_old(ctx, res, Some(to), false)
}
