// SPDX-License-Identifier: GPL-2.0-or-later

//! wait-resource and wait-umount.

use super::switch::opened_by;
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::tree::model::{Member, Resource};
use crate::wait::{Deadline, Look};

/// A parsed condition.
#[derive(Debug, PartialEq, Eq)]
struct Condition<'a> {
    todo: bool,
    what: &'a str,
    on: bool,
}

const WHAT: &[&str] = &[
    "attach",
    "fetch",
    "replay",
    "sync",
    "primary",
    "secondary",
    "device",
];

/// Parses `[is-|todo-]WHAT[-on|-off]`.
fn parse(text: &str) -> Option<Condition<'_>> {
    let (todo, rest) = match text.strip_prefix("todo-") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("is-").unwrap_or(text)),
    };
    let (what, on) = if let Some(what) = rest.strip_suffix("-off") {
        (what, false)
    } else {
        (rest.strip_suffix("-on").unwrap_or(rest), true)
    };
    let possible = WHAT.contains(&what) && !(todo && what == "device");
    possible.then_some(Condition { todo, what, on })
}

fn holds(res: &Resource, me: &Member, c: &Condition<'_>) -> bool {
    let designated = res.designated() == Some(&me.host);
    let a = &me.actual;
    let now = match (c.todo, c.what) {
        (true, "attach") => me.todo.attach,
        (true, "fetch") => me.todo.fetch,
        (true, "replay") => me.todo.replay,
        (true, "sync") => me.todo.sync,
        (true, "primary") => designated,
        (true, _) => !designated,
        (false, "attach") => a.attached,
        (false, "fetch") => a.fetching,
        (false, "replay") => a.replaying,
        (false, "sync") => a.syncing,
        (false, "primary") => a.primary,
        (false, "secondary") => !a.primary,
        (false, _) => a.if_on,
    };
    now == c.on
}

/// `wait-resource`.
pub fn wait_resource(ctx: &Ctx, name: &str, condition: &str) -> Result<()> {
    let c = parse(condition).ok_or_else(|| {
        Failure::usage(format!("'{condition}' is no condition"))
            .hint(format!("[is-|todo-]{{{}}}[-on|-off]", WHAT.join(",")))
    })?;
    ctx.joined(name)?;
    if !c.todo {
        ctx.need_module("waiting for an effect")?;
    }
    Deadline::new(ctx).wait_resource(ctx, name, condition, |res| {
        let own = ctx.own(res)?;
        Ok(if holds(res, own, &c) {
            Look::Done(())
        } else {
            Look::Missing(format!(
                "{}-{} is {}",
                if c.todo { "todo" } else { "is" },
                c.what,
                if c.on { "off" } else { "on" }
            ))
        })
    })
}

/// `wait-umount`.
pub fn wait_umount(ctx: &Ctx, name: &str) -> Result<()> {
    ctx.joined(name)?;
    ctx.need_module("waiting for the device to be closed")?;
    Deadline::new(ctx).wait_resource(ctx, name, "wait-umount", |res| {
        let open: Vec<String> = res
            .real_members()
            .filter(|m| m.actual.open_count > 0)
            .map(|m| opened_by(ctx, m))
            .collect();
        Ok(if open.is_empty() {
            Look::Done(())
        } else {
            Look::Missing(open.join("; "))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_those_of_the_original() {
        let c = |todo, what, on| Some(Condition { todo, what, on });
        assert_eq!(parse("is-attach-on"), c(false, "attach", true));
        assert_eq!(parse("todo-primary"), c(true, "primary", true));
        assert_eq!(parse("device-off"), c(false, "device", false));
        assert_eq!(parse("sync"), c(false, "sync", true));
        assert_eq!(parse("is-nothing"), None);
        assert_eq!(parse("todo-device"), None);
    }
}
