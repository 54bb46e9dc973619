// SPDX-License-Identifier: GPL-2.0-or-later

//! The journal of multi-step operations: intent before effect, completion after.
//!
//! One small file per resource in `/mars/.marsadm/` (hidden names are neither scanned nor replicated by the module). While
//! a command works on a resource it holds a lock on the file, so that a second one fails at once and names the first. The
//! file says which command line it was and which step was begun. What a killed command leaves is therefore visible in
//! `view` and `ops`. All steps are idempotent: running the command again resumes it.

use crate::ctx::{private_dir, Ctx};
use crate::error::{Failure, Result, Trying};
use crate::out;
use crate::tree::store::real_time;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Environment variable that kills the tool at the beginning of a step: `STEP` or `RESOURCE:STEP` (tests).
const INJECT: &str = "MARSADM_INJECT";
/// Exit code of a tool that was killed that way.
const INJECTED: i32 = 99;
/// The subject of operations on the cluster itself.
pub const CLUSTER: &str = "cluster";

/// What the file says.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Record {
    /// Version of the format, 1.
    pub version: u32,
    /// Resource, or `cluster`.
    pub subject: String,
    /// The command line, for running it again.
    pub command: String,
    /// Host on whose behalf it runs.
    pub host: String,
    /// The step that was begun last.
    pub step: String,
    /// Process.
    pub pid: u32,
    /// Seconds since 1970 at which it began.
    pub since: u64,
}

/// A running operation; the lock goes with it.
#[derive(Debug)]
pub struct Op {
    path: PathBuf,
    file: Option<Flock<File>>,
    record: Record,
}

impl Op {
    /// Takes the lock of a subject. With `--dry-run` nothing is locked or written.
    pub fn begin(ctx: &Ctx, subject: &str) -> Result<Self> {
        let command = command_line();
        let record = Record {
            version: 1,
            subject: subject.to_owned(),
            command,
            host: ctx.me.clone(),
            step: String::new(),
            pid: std::process::id(),
            since: real_time().sec(),
        };
        let dir = private_dir(&ctx.store);
        let path = dir.join(format!("op-{subject}-{}", ctx.me));
        if ctx.store.is_dry_run() {
            return Ok(Self {
                path,
                file: None,
                record,
            });
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .trying(|| format!("cannot create {}", dir.display()))?;
        let mut file = lock(&path, subject)?;
        let old = read(&mut file);
        if let Some(old) = old {
            if old.command != record.command && !old.step.is_empty() {
                out::info(format_args!(
                    "note: an earlier `{}` was interrupted at the step '{}'",
                    old.command, old.step
                ));
            }
        }
        Ok(Self {
            path,
            file: Some(file),
            record,
        })
    }

    /// Notes that a step begins. Everything before it is made durable first.
    pub fn step(&mut self, ctx: &Ctx, name: &str) -> Result<()> {
        ctx.store.barrier()?;
        self.record.step = name.to_owned();
        out::verbose(1, format_args!("step: {name}"));
        if let Some(file) = &mut self.file {
            let path = &self.path;
            let text = serde_json::to_string(&self.record).unwrap_or_default() + "\n";
            let len = text.len() as u64;
            // Cut last: without room the record of the step before stays.
            let mut write = || {
                file.rewind()
                    .and_then(|()| file.write_all(text.as_bytes()))
                    .and_then(|()| file.set_len(len))
                    .and_then(|()| file.sync_data())
            };
            write()
                .or_else(|e| ctx.store.make_room(e).and_then(|()| write()))
                .trying(|| format!("cannot write the journal {}", path.display()))?;
        }
        if let Ok(at) = std::env::var(INJECT) {
            if at == name || at == format!("{}:{name}", self.record.subject) {
                // No destructor runs, as with a real kill.
                std::process::exit(INJECTED);
            }
        }
        Ok(())
    }

    /// The operation is complete: its record goes.
    pub fn done(self, ctx: &Ctx) -> Result<()> {
        ctx.store.barrier()?;
        if self.file.is_some() {
            remove(&self.path)?;
        }
        Ok(())
    }
}

/// Runs the steps of an operation; the record stays if it fails after its first step.
pub fn run<T>(ctx: &Ctx, subject: &str, work: impl FnOnce(&mut Op) -> Result<T>) -> Result<T> {
    let mut op = Op::begin(ctx, subject)?;
    match work(&mut op) {
        Ok(value) => {
            op.done(ctx)?;
            Ok(value)
        }
        Err(e) => {
            if op.record.step.is_empty() && op.file.is_some() {
                // Refused before anything was changed. An older record, if any, is still true.
                if fs::metadata(&op.path).is_ok_and(|m| m.len() == 0) {
                    remove(&op.path)?;
                }
            }
            Err(e)
        }
    }
}

/// Interrupted operations: records whose lock nobody holds.
pub fn interrupted(ctx: &Ctx) -> Vec<Record> {
    let dir = private_dir(&ctx.store);
    let Ok(entries) = fs::read_dir(&dir) else {
        return Vec::new();
    };
    let mut out: Vec<Record> = entries
        .filter_map(|e| {
            let path = e.ok()?.path();
            if !path.file_name()?.to_str()?.starts_with("op-") {
                return None;
            }
            let file = File::open(&path).ok()?;
            let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
            read(&mut file)
        })
        .collect();
    out.sort_by(|a, b| a.subject.cmp(&b.subject));
    out
}

/// Forgets an interrupted operation.
pub fn forget(ctx: &Ctx, subject: &str) -> Result<()> {
    let mut found = false;
    for record in interrupted(ctx)
        .into_iter()
        .filter(|r| r.subject == subject)
    {
        let path = private_dir(&ctx.store).join(format!("op-{subject}-{}", record.host));
        let _lock = lock(&path, subject)?;
        remove(&path)?;
        out::info(format_args!("forgotten: `{}`", record.command));
        found = true;
    }
    if found {
        return Ok(());
    }
    Err(
        Failure::refused(format!("there is no interrupted operation of '{subject}'"))
            .hint("`marsadm ops` lists them"),
    )
}

fn lock(path: &Path, subject: &str) -> Result<Flock<File>> {
    loop {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .trying(|| format!("cannot open the journal {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                // The one before may have removed the name meanwhile.
                let same = fs::metadata(path)
                    .and_then(|a| Ok(a.ino() == file.metadata()?.ino()))
                    .unwrap_or(false);
                if same {
                    return Ok(file);
                }
            }
            Err((mut file, _)) => {
                let who = read(&mut file).map_or_else(
                    || "another marsadm".to_owned(),
                    |r| format!("`{}` (process {}, step '{}')", r.command, r.pid, r.step),
                );
                return Err(Failure::refused(format!("{who} is working on '{subject}'"))
                    .hint("wait until it has ended, or end it; what it began can be resumed"));
            }
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).trying(|| format!("cannot remove {}", path.display()))
}

fn read(file: &mut File) -> Option<Record> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(text.trim()).ok()
}

/// The command line as an administrator would type it again, without secrets.
fn command_line() -> String {
    let mut args = std::env::args().skip(1);
    let mut out = String::from("marsadm");
    while let Some(arg) = args.next() {
        if arg == "--key" || arg.starts_with("--key=") {
            if arg == "--key" {
                args.next();
            }
            out.push_str(" --key …");
            continue;
        }
        out.push(' ');
        out.push_str(&arg);
    }
    out
}
