// SPDX-License-Identifier: GPL-2.0-or-later

//! Small commands: limits, raw links, operations, versions, generated documents.

use crate::cli::Cli;
use crate::ctx::Ctx;
use crate::error::{Failure, Result, Trying};
use crate::ops;
use crate::out;
use crate::tree::store::{real_time, Trigger};
use clap::CommandFactory;
use std::fs;
use std::path::Path;

/// `get-emergency-limit`.
pub fn get_emergency_limit(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    out::info(format_args!(
        "{}",
        ctx.own(&res)?.emergency_limit.unwrap_or(0)
    ));
    Ok(())
}

/// `set-emergency-limit`.
pub fn set_emergency_limit(ctx: &Ctx, name: &str, percent: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    match percent.parse::<u64>() {
        Ok(n) if n <= 100 => {
            ctx.store.set(
                &res.path(&format!("todo-{}/emergency-limit", ctx.me)),
                &n.to_string(),
            )?;
            ctx.store.trigger(Trigger::Remote)
        }
        _ => Err(Failure::refused(format!(
            "'{percent}' is no percentage: 0..100"
        ))),
    }
}

/// `get-space-limit`.
pub fn get_space_limit(ctx: &Ctx, name: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    out::info(format_args!("{}", ctx.own(&res)?.space_limit.unwrap_or(0)));
    Ok(())
}

/// `set-space-limit`.
pub fn set_space_limit(ctx: &Ctx, name: &str, mib: &str) -> Result<()> {
    let res = ctx.joined(name)?;
    match mib.parse::<u64>() {
        Ok(n) if n <= 1 << 40 => {
            ctx.store.set(
                &res.path(&format!("todo-{}/space-limit", ctx.me)),
                &n.to_string(),
            )?;
            ctx.store.trigger(Trigger::Remote)
        }
        _ => Err(Failure::refused(format!(
            "'{mib}' is no number of MiB; 0 is no limit"
        ))),
    }
}

/// `ops`.
pub fn ops(ctx: &Ctx, forget: Option<&str>) -> Result<()> {
    if let Some(subject) = forget {
        return ops::forget(ctx, subject);
    }
    for r in ops::interrupted(ctx) {
        let age = real_time().sec().saturating_sub(r.since);
        out::info(format_args!(
            "{}: `{}` was interrupted at the step '{}' {age} s ago",
            r.subject, r.command, r.step
        ));
    }
    Ok(())
}

/// `get-link`.
pub fn get_link(ctx: &Ctx, path: &str) -> Result<()> {
    let value = ctx
        .store
        .get(clean(ctx, path)?)
        .ok_or_else(|| Failure::refused(format!("there is no link '{path}'")))?;
    out::info(format_args!("{value}"));
    Ok(())
}

/// `set-link`.
pub fn set_link(ctx: &Ctx, value: &str, path: &str) -> Result<()> {
    let rel = clean(ctx, path)?;
    if !rel.starts_with("userspace/") && !rel.contains("/userspace/") && !ctx.opt.force {
        return Err(Failure::refused(format!("'{path}' belongs to MARS: writing it can destroy a cluster"))
            .hint("free values live below userspace/ and resource-RES/userspace/; --force writes anything"));
    }
    ctx.store.set(rel, value)?;
    ctx.store.trigger(Trigger::Remote)
}

/// A path of the tree, with or without the root in front.
fn clean<'a>(ctx: &Ctx, path: &'a str) -> Result<&'a str> {
    let root = ctx.store.root().to_str().unwrap_or_default();
    let rel = path
        .strip_prefix(root)
        .unwrap_or(path)
        .trim_start_matches('/');
    mars_core::tree::path::TreePath::parse(rel.as_bytes())
        .map_err(|e| Failure::usage(format!("'{path}': {e}")))?;
    Ok(rel)
}

/// `version`.
pub fn version(ctx: &Ctx) -> Result<()> {
    out::info(format_args!("marsadm {}", super::TOOL_VERSION));
    match ctx.store.module_file("version") {
        Some(v) => out::info(format_args!("module {v}")),
        None => out::info(format_args!("module not loaded")),
    }
    Ok(())
}

/// `--generate-man DIR`: `marsadm.8` and one page per command.
pub fn generate_man(dir: &Path) -> Result<()> {
    let write = |name: &str, command: clap::Command, title: &str| -> std::io::Result<()> {
        let man = clap_mangen::Man::new(command)
            .section("8")
            .title(title)
            .manual("MARS");
        let mut page = Vec::new();
        man.render(&mut page)?;
        fs::write(dir.join(name), page)
    };
    let work = || -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut cli = Cli::command();
        cli.build();
        for sub in cli
            .get_subcommands()
            .filter(|s| !s.is_hide_set() && s.get_name() != "help")
        {
            let name = format!("marsadm-{}", sub.get_name());
            write(&format!("{name}.8"), sub.clone().name(name.clone()), &name)?;
        }
        write("marsadm.8", cli, "marsadm")
    };
    work().trying(|| format!("cannot write man pages into {}", dir.display()))
}

/// `--generate-completion SHELL`.
pub fn generate_completion(shell: clap_complete::Shell) {
    clap_complete::generate(
        shell,
        &mut Cli::command(),
        "marsadm",
        &mut std::io::stdout(),
    );
}
