// SPDX-License-Identifier: GPL-2.0-or-later

//! `view --json`: schema version 1, documented in `Documentation/marsadm.md`. Fields are only ever added to a version.

use super::state::{end_of_log, remedy, silence, Lag, State};
use super::Found;
use crate::cmd::TOOL_VERSION;
use crate::ctx::Ctx;
use crate::error::{Failure, Result};
use crate::ops;
use crate::tree::model::Member;
use crate::tree::split::Split;
use crate::tree::values::Position;
use serde::Serialize;
use std::io::Write;

/// Version of the schema.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document {
    schema: u32,
    tool: &'static str,
    time: String,
    host: String,
    module: Module,
    cluster: Cluster,
    space: Option<Space>,
    interrupted: Vec<ops::Record>,
    resources: Vec<Resource>,
}

#[derive(Serialize)]
struct Module {
    loaded: bool,
    version: Option<String>,
}

#[derive(Serialize)]
struct Cluster {
    uuid: Option<String>,
    hosts: Vec<Host>,
}

#[derive(Serialize)]
struct Host {
    name: String,
    address: Option<String>,
    alive: bool,
    silence_seconds: Option<u64>,
    time: Option<String>,
    module: Option<String>,
    marsadm: Option<String>,
    emergency: u64,
    rest_space_gib: Option<i64>,
    total_space_gib: Option<i64>,
    messages: Vec<Message>,
}

/// The file system of `/mars` on this host.
#[derive(Serialize)]
struct Space {
    total_bytes: u64,
    free_bytes: u64,
}

#[derive(Serialize)]
struct Resource {
    name: String,
    size: Option<u64>,
    designated_primary: Option<String>,
    actual_primaries: Vec<String>,
    last_primary: Option<String>,
    max_log_number: Option<u64>,
    log_end: Option<Place>,
    split_brain: Vec<SplitBrain>,
    split_brain_remedy: Option<String>,
    members: Vec<MemberView>,
    logs: Vec<Log>,
}

#[derive(Serialize)]
struct SplitBrain {
    hosts: [String; 2],
    log_number: u32,
    common_log: Option<String>,
    common_pos: Option<u64>,
    only_bytes: [Option<u64>; 2],
    text: String,
}

#[derive(Serialize)]
struct MemberView {
    host: String,
    is_member: bool,
    disk: Option<String>,
    device: Option<String>,
    disk_state: String,
    replication_state: &'static str,
    flags: String,
    role: &'static str,
    reachable: bool,
    silence_seconds: Option<u64>,
    consistent: bool,
    synced: bool,
    disk_size: Option<u64>,
    todo: Todo,
    actual: Actual,
    state: Option<String>,
    state_reason: Option<String>,
    remedy: Option<String>,
    positions: Positions,
    lag: Lag,
    errors: Vec<Message>,
    emergency_limit: Option<u64>,
    space_limit_mib: Option<u64>,
    versions: Vec<String>,
}

#[derive(Serialize)]
struct Todo {
    attach: bool,
    fetch: bool,
    replay: bool,
    sync: bool,
}

#[derive(Serialize)]
struct Actual {
    attached: bool,
    fetching: bool,
    replaying: bool,
    syncing: bool,
    primary: bool,
    device_present: bool,
    emergency: bool,
    open_count: u64,
    holder: Option<String>,
    in_flight: u64,
    buffered_bytes: Option<u64>,
    dirty_bytes: Option<u64>,
    replay_code: i64,
    disk_error: i64,
}

#[derive(Serialize)]
struct Positions {
    replay: Option<Place>,
    log_end: Option<Place>,
    fetch: Option<Place>,
    consistent_from: Option<Place>,
    sync: Option<u64>,
}

#[derive(Serialize)]
struct Place {
    log: String,
    number: u32,
    creator: String,
    pos: u64,
}

#[derive(Serialize)]
struct Message {
    key: String,
    text: String,
}

#[derive(Serialize)]
struct Log {
    name: String,
    number: u32,
    creator: String,
    file_bytes: u64,
}

/// Prints the document.
pub fn print(ctx: &Ctx, found: &[Found]) -> Result<()> {
    let document = Document {
        schema: SCHEMA,
        tool: TOOL_VERSION,
        time: ctx.store.now().to_string(),
        host: ctx.me.clone(),
        module: Module {
            loaded: ctx.store.module_loaded(),
            version: ctx.store.module_file("version"),
        },
        cluster: Cluster {
            uuid: ctx.store.get("uuid"),
            hosts: ctx.store.hosts().iter().map(|h| host(ctx, h)).collect(),
        },
        space: space(ctx),
        interrupted: ops::interrupted(ctx),
        resources: found.iter().map(resource).collect(),
    };
    let text = serde_json::to_string_pretty(&document)
        .map_err(|e| Failure::refused(format!("cannot make the JSON document: {e}")))?;
    writeln!(std::io::stdout(), "{text}")
        .map_err(|e| Failure::io("cannot write the JSON document", &e))
}

fn host(ctx: &Ctx, name: &str) -> Host {
    let h = ctx.store.host(name);
    Host {
        alive: ctx.is_alive(name),
        silence_seconds: silence(ctx, &h),
        name: h.name,
        address: h.ip,
        time: h.time.map(|t| t.to_string()),
        module: h.module,
        marsadm: h.marsadm,
        emergency: h.emergency,
        rest_space_gib: h.space_gib.map(|(rest, _)| rest),
        total_space_gib: h.space_gib.map(|(_, total)| total),
        messages: h
            .messages
            .into_iter()
            .map(|(key, text)| Message { key, text })
            .collect(),
    }
}

fn space(ctx: &Ctx) -> Option<Space> {
    let vfs = nix::sys::statvfs::statvfs(ctx.store.root()).ok()?;
    let unit = vfs.fragment_size();
    Some(Space {
        total_bytes: unit.saturating_mul(vfs.blocks()),
        free_bytes: unit.saturating_mul(vfs.blocks_available()),
    })
}

fn place(p: &Position) -> Place {
    Place {
        log: p.log.to_string(),
        number: p.log.number,
        creator: p.log.creator.to_string(),
        pos: p.pos,
    }
}

fn resource(f: &Found) -> Resource {
    let res = &f.res;
    let split = |s: &Split| SplitBrain {
        hosts: [s.a.clone(), s.b.clone()],
        log_number: s.number,
        common_log: s.common.as_ref().map(|(log, _)| log.clone()),
        common_pos: s.common.as_ref().map(|(_, pos)| *pos),
        only_bytes: [s.only_a, s.only_b],
        text: s.describe(&res.name),
    };
    Resource {
        name: res.name.clone(),
        size: res.size,
        designated_primary: res.designated().map(str::to_owned),
        actual_primaries: res
            .actual_primaries()
            .iter()
            .map(|m| m.host.clone())
            .collect(),
        last_primary: res.last_primary.clone(),
        max_log_number: res.maxnr,
        log_end: end_of_log(res).as_ref().map(place),
        split_brain: f.splits.iter().map(split).collect(),
        split_brain_remedy: (!f.splits.is_empty()).then(|| Split::remedy(res)),
        members: f.members.iter().map(|(m, s)| member(f, m, s)).collect(),
        logs: res
            .logs
            .iter()
            .map(|l| Log {
                name: l.name.to_string(),
                number: l.name.number,
                creator: l.name.creator.to_string(),
                file_bytes: l.size,
            })
            .collect(),
    }
}

fn member(f: &Found, m: &Member, s: &State) -> MemberView {
    let a = &m.actual;
    MemberView {
        host: m.host.clone(),
        is_member: m.disk.is_some(),
        disk: m.disk.clone(),
        device: m.device.clone(),
        disk_state: s.disk.clone(),
        replication_state: s.replication,
        flags: s.flags.clone(),
        role: s.role,
        reachable: s.reachable,
        silence_seconds: s.silence,
        consistent: m.is_consistent(f.res.size),
        synced: m.is_synced(f.res.size),
        disk_size: m.actsize,
        todo: Todo {
            attach: m.todo.attach,
            fetch: m.todo.fetch,
            replay: m.todo.replay,
            sync: m.todo.sync,
        },
        actual: Actual {
            attached: a.attached,
            fetching: a.fetching,
            replaying: a.replaying,
            syncing: a.syncing,
            primary: a.primary,
            device_present: a.if_on,
            emergency: a.emergency,
            open_count: a.open_count,
            holder: a.holder.clone(),
            in_flight: a.flying,
            buffered_bytes: a.buffered,
            dirty_bytes: a.dirty,
            replay_code: a.replay_code,
            disk_error: a.disk_error,
        },
        state: a.state.as_ref().map(|(word, _)| word.clone()),
        state_reason: m.state_reason().map(str::to_owned),
        remedy: remedy(&f.res, m),
        positions: Positions {
            replay: m.replay.as_ref().map(place),
            log_end: m.log_end.as_ref().map(place),
            fetch: m.fetch_pos.as_ref().map(place),
            consistent_from: m.syncpos.as_ref().map(place),
            sync: m.sync_pos_bytes.or(m.syncstatus),
        },
        lag: s.lag,
        errors: a
            .errors
            .iter()
            .map(|(key, text)| Message {
                key: key.clone(),
                text: text.clone(),
            })
            .collect(),
        emergency_limit: m.emergency_limit,
        space_limit_mib: m.space_limit,
        versions: m
            .versions
            .iter()
            .map(|(number, v)| format!("version-{number:09}-{}={}", m.host, v.text))
            .collect(),
    }
}
