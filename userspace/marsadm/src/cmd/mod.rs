// SPDX-License-Identifier: GPL-2.0-or-later

//! The commands, by groups, and how one runs over several resources.

mod cluster;
mod create;
mod drop_logs;
mod failover;
mod invalidate;
mod join;
mod join_cluster;
mod leave;
mod logs;
mod misc;
mod peers;
mod primary;
mod replica;
mod resize;
mod switch;
mod waiting;

use crate::cli::{Cli, Command};
use crate::ctx::Ctx;
use crate::error::{Failure, Kind, Result};
use crate::ops::{self, Op};
use crate::tree::model::Resource;
use crate::tree::split;
use crate::{out, view};

pub use cluster::TOOL_VERSION;
pub use join_cluster::PeerLink;

/// Runs the command; the error is the exit code.
pub fn run(cli: Cli) -> std::result::Result<(), u8> {
    let report = |f: Failure| {
        out::failure(&f);
        f.kind.code()
    };
    let Cli { global, command } = cli;
    // These need no host, no tree.
    match &command {
        Command::GenerateMan { dir } => return misc::generate_man(dir).map_err(report),
        Command::GenerateCompletion { shell } => {
            misc::generate_completion(*shell);
            return Ok(());
        }
        _ => {}
    }
    let ctx = Ctx::new(global).map_err(report)?;
    prepare(&ctx, &command).map_err(report)?;
    dispatch(&ctx, command)
}

/// The checks that come before every command.
fn prepare(ctx: &Ctx, command: &Command) -> Result<()> {
    match command {
        Command::Version => Ok(()),
        Command::View { .. } | Command::GetLink { .. } => ctx.need_mars_readable(),
        Command::CreateCluster { .. } | Command::JoinCluster { .. } => {
            ctx.need_root()?;
            ctx.need_mars()?;
            ctx.need_mountpoint()
        }
        Command::Ops { .. } => {
            ctx.need_root()?;
            ctx.need_mars()
        }
        _ => {
            ctx.need_root()?;
            ctx.need_mars()?;
            ctx.need_cluster()
        }
    }
}

fn dispatch(ctx: &Ctx, command: Command) -> std::result::Result<(), u8> {
    use switch::Switch::{Fetch, Replay, Sync};
    use switch::{Scope::Global, Scope::Local};
    use Command as C;
    let set =
        |res: &[String], what, on, scope| each(ctx, res, |r| switch::set(ctx, r, what, on, scope));
    match command {
        C::CreateCluster { ip, key } => one(cluster::create(ctx, ip.as_deref(), &key)),
        C::JoinCluster {
            peer,
            peer_ip,
            ip,
            port,
            key,
        } => one(join_cluster::join(
            ctx,
            &join_cluster::JoinArgs {
                peer,
                peer_ip,
                ip,
                port,
                key,
            },
        )),
        C::LeaveCluster => one(cluster::leave(ctx)),
        C::ShowKey => one(cluster::show_key(ctx)),
        C::WaitCluster => one(peers::wait_cluster(ctx)),
        C::LowlevelLsHostIps => one(cluster::ls_host_ips(ctx)),
        C::LowlevelSetHostIp { name, address } => one(cluster::set_host_ip(ctx, &name, &address)),

        C::CreateResource(args) => one(create::create_resource(ctx, &args)),
        C::JoinResource(args) => one(join::join_resource(ctx, &args)),
        C::LeaveResource(r) => each(ctx, &r.resources, |r| leave::leave_resource(ctx, r)),
        C::DeleteResource(r) => each(ctx, &r.resources, |r| leave::delete_resource(ctx, r)),
        C::Resize { resource, size } => one(resize::resize(ctx, &resource, size.as_deref())),

        C::Attach(r) => each(ctx, &r.resources, |r| switch::attach(ctx, r)),
        C::Detach(r) => each(ctx, &r.resources, |r| switch::detach(ctx, r)),
        C::Up(r) => phases(
            ctx,
            &r.resources,
            &[&|r| switch::up(ctx, r), &|r| switch::up_wait(ctx, r)],
        ),
        C::Down(r) => phases(
            ctx,
            &r.resources,
            &[&|r| switch::down(ctx, r), &|r| switch::down_wait(ctx, r)],
        ),
        C::PauseFetch(r) => set(&r.resources, Fetch, false, Local),
        C::PauseFetchGlobal(r) => set(&r.resources, Fetch, false, Global),
        C::ResumeFetch(r) => set(&r.resources, Fetch, true, Local),
        C::ResumeFetchGlobal(r) => set(&r.resources, Fetch, true, Global),
        C::PauseReplay(r) => set(&r.resources, Replay, false, Local),
        C::PauseReplayGlobal(r) => set(&r.resources, Replay, false, Global),
        C::ResumeReplay(r) => set(&r.resources, Replay, true, Local),
        C::ResumeReplayGlobal(r) => set(&r.resources, Replay, true, Global),
        C::PauseSync(r) => set(&r.resources, Sync, false, Local),
        C::PauseSyncGlobal(r) => set(&r.resources, Sync, false, Global),
        C::ResumeSync(r) => set(&r.resources, Sync, true, Local),
        C::ResumeSyncGlobal(r) => set(&r.resources, Sync, true, Global),

        C::Primary(r) => each(ctx, &r.resources, |r| primary::primary(ctx, r)),
        C::Secondary(r) => each(ctx, &r.resources, |r| primary::secondary(ctx, r)),
        C::Invalidate(r) => each(ctx, &r.resources, |r| invalidate::invalidate(ctx, r)),

        C::LogRotate(r) => {
            let all = r.resources.iter().any(|a| a == "all");
            each(ctx, &r.resources, |r| logs::rotate(ctx, r, all))
        }
        C::LogDeleteAll {
            resources,
            also_needed,
        } => each(ctx, &resources.resources, |r| {
            logs::delete_all(ctx, r, also_needed)
        }),
        C::Cron {
            resources,
            thresh_logsize,
            thresh_logfiles,
            keep_backup_hours,
        } => {
            let limits = logs::Limits {
                thresh_logsize,
                thresh_logfiles,
                keep_backup_hours,
            };
            let names = match resources.resources {
                names if names.is_empty() => ctx.store.resources_of(&ctx.me),
                names => names,
            };
            one(logs::purge_global(ctx, &limits))
                .and(each(ctx, &names, |r| logs::cron(ctx, r, &limits)))
        }

        C::WaitResource {
            resources,
            condition,
        } => each(ctx, &resources.names(), |r| {
            waiting::wait_resource(ctx, r, &condition)
        }),
        C::WaitUmount(r) => each(ctx, &r.resources, |r| waiting::wait_umount(ctx, r)),

        C::View { resources, json } => one(view::view(ctx, &resources.resources, json)),
        C::GetEmergencyLimit(r) => each(ctx, &r.resources, |r| misc::get_emergency_limit(ctx, r)),
        C::SetEmergencyLimit { resources, percent } => each(ctx, &resources.names(), |r| {
            misc::set_emergency_limit(ctx, r, &percent)
        }),
        C::GetSpaceLimit(r) => each(ctx, &r.resources, |r| misc::get_space_limit(ctx, r)),
        C::SetSpaceLimit { resources, mib } => each(ctx, &resources.names(), |r| {
            misc::set_space_limit(ctx, r, &mib)
        }),
        C::Ops { forget } => one(misc::ops(ctx, forget.as_deref())),
        C::GetLink { path } => one(misc::get_link(ctx, &path)),
        C::SetLink { value, path } => one(misc::set_link(ctx, &value, &path)),
        C::Version => one(misc::version(ctx)),
        C::GenerateMan { .. } | C::GenerateCompletion { .. } => Ok(()),
    }
}

/// A command that is one piece of work.
fn one(result: Result<()>) -> std::result::Result<(), u8> {
    result.map_err(|f| {
        out::failure(&f);
        f.kind.code()
    })
}

/// Runs a command over resources: one that fails does not stop the others.
fn each(
    ctx: &Ctx,
    args: &[String],
    work: impl Fn(&str) -> Result<()>,
) -> std::result::Result<(), u8> {
    phases(ctx, args, &[&work])
}

/// A phase of a command for one resource.
type Phase<'a> = &'a dyn Fn(&str) -> Result<()>;

/// Runs phases over resources: each phase for all resources before the next one. A resource that fails is left out of
/// the later phases. The exit code is that of the failures if they are all of one kind, else 2.
fn phases(ctx: &Ctx, args: &[String], phases: &[Phase<'_>]) -> std::result::Result<(), u8> {
    let mut names = match ctx.resources(args) {
        Ok(names) => names,
        Err(f) => return one(Err(f)),
    };
    let several = names.len() > 1;
    let total = names.len();
    let mut failed: Vec<(String, Kind)> = Vec::new();
    for phase in phases {
        names.retain(|name| {
            if several {
                out::set_subject(name);
            }
            let result = phase(name);
            if let Err(f) = &result {
                out::failure(f);
                failed.push((name.clone(), f.kind));
            }
            out::set_subject("");
            result.is_ok()
        });
    }
    let Some((_, first)) = failed.first() else {
        return Ok(());
    };
    if several {
        let list: Vec<&str> = failed.iter().map(|(n, _)| n.as_str()).collect();
        out::warn(format_args!(
            "{} of {total} resources failed: {}",
            failed.len(),
            list.join(", ")
        ));
    }
    let same = failed.iter().all(|(_, k)| k == first);
    Err(if same {
        first.code()
    } else {
        Kind::Refused.code()
    })
}

/// Runs the steps of an operation on a resource under its journal.
fn operation(ctx: &Ctx, res: &str, work: impl FnOnce(&mut Op) -> Result<()>) -> Result<()> {
    ops::run(ctx, res, work)
}

/// Reports split brain before an action, as every command does.
pub fn report_split(res: &Resource) -> bool {
    let splits = split::splits(res);
    for s in &splits {
        out::warn(format_args!("{}", s.describe(&res.name)));
    }
    if !splits.is_empty() {
        out::hint(&split::Split::remedy(res));
    }
    !splits.is_empty()
}
