// SPDX-License-Identifier: GPL-2.0-or-later

//! `view`: for people ([`text`]) and for machines ([`json`]), from the same findings ([`state`]).

mod json;
mod state;
mod text;

use crate::ctx::Ctx;
use crate::error::Result;
use crate::tree::model::{Member, Resource};
use crate::tree::split::{splits, Split};
use state::State;

/// What was found out about a resource.
struct Found {
    res: Resource,
    splits: Vec<Split>,
    members: Vec<(Member, State)>,
}

/// `view`.
pub fn view(ctx: &Ctx, args: &[String], json: bool) -> Result<()> {
    let all = args.is_empty() || args.iter().any(|a| a == "all");
    let names = if all {
        // Also the resources of which this host is not a member: they are part of the picture for machines.
        if json {
            ctx.store.resources()
        } else {
            ctx.store.resources_of(&ctx.me)
        }
    } else {
        let names = ctx.resources(args)?;
        for name in &names {
            ctx.resource(name)?;
        }
        names
    };
    let found: Vec<Found> = names
        .iter()
        .filter_map(|n| ctx.store.resource(n))
        .filter(|r| !all || ctx.store.exists(&r.name))
        .map(|r| find(ctx, r))
        .collect();
    if json {
        json::print(ctx, &found)
    } else {
        text::print(ctx, &found, all);
        Ok(())
    }
}

fn find(ctx: &Ctx, res: Resource) -> Found {
    let splits = splits(&res);
    let mut members: Vec<(Member, State)> = res
        .members
        .values()
        .map(|m| (m.clone(), state::state(ctx, &res, m, &splits)))
        .collect();
    // The own one first.
    members.sort_by_key(|(m, _)| (m.host != ctx.me, m.host.clone()));
    Found {
        res,
        splits,
        members,
    }
}
