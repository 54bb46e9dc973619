// SPDX-License-Identifier: GPL-2.0-or-later

//! The symlink tree on disk: reading, ordered writing, tombstones, triggers.
//!
//! A value is the target of a symlink, its time the mtime of the link. Writing is always: hidden temporary link, set its
//! mtime, rename. So a reader, the kernel or a crash sees the old value or the new one. What must be durable before the
//! next step is made so by [`Store::barrier`].

use crate::error::{Failure, Kind, Result, Trying};
use crate::out;
use mars_core::lamport::{LamportTime, MAX_FUTURE_SECS};
use mars_core::tree::value::{is_valid, MAX_VALUE};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{utimensat, UtimensatFlags};
use nix::sys::time::TimeSpec;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{symlink, DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The value of a deleted object.
pub const TOMBSTONE: &str = ".deleted";

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A symlink: value and stamp.
    Link(String, LamportTime),
    /// A regular file: its size and time of last change.
    File(u64, LamportTime),
    /// A directory.
    Dir,
    /// Something that does not belong here.
    Other,
}

/// Which time a value gets.
#[derive(Clone, Copy, Debug)]
pub enum Stamp {
    /// Lamport time of now, and later than the value that is replaced.
    Now,
    /// Exactly this (values that come from a peer, or that are to lose against others).
    At(LamportTime),
}

/// The codes that are written to the trigger of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Look at the local tree.
    Local,
    /// Look, and tell the peers.
    Remote,
    /// Exchange everything with everybody.
    Full,
}

impl Trigger {
    fn code(self) -> &'static str {
        match self {
            Trigger::Local => "1",
            Trigger::Remote => "3",
            Trigger::Full => "8",
        }
    }
}

/// Access to the tree.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    proc_dir: PathBuf,
    dry_run: bool,
    last: Cell<LamportTime>,
    dirty: RefCell<BTreeSet<PathBuf>>,
    /// What a dry run would have left so far: its later steps decide by that, as those of a real one do.
    planned: RefCell<BTreeMap<String, Option<Entry>>>,
}

impl Store {
    /// A store below `root`; `proc_dir` is the module's `/proc/sys/mars`.
    pub fn new(root: PathBuf, proc_dir: PathBuf, dry_run: bool) -> Self {
        Self {
            root,
            proc_dir,
            dry_run,
            last: Cell::new(LamportTime::ZERO),
            dirty: RefCell::default(),
            planned: RefCell::default(),
        }
    }

    /// The root, normally `/mars`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Full path of something in the tree.
    pub fn path(&self, rel: &str) -> PathBuf {
        self.root.join(rel)
    }

    /// Whether writing is only told.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether the kernel module is loaded.
    pub fn module_loaded(&self) -> bool {
        self.proc_dir.is_dir()
    }

    /// A file of the module, trimmed.
    pub fn module_file(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.proc_dir.join(name)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Lamport time of now: the module's if it is loaded, else the real time.
    pub fn now(&self) -> LamportTime {
        let real = real_time();
        let lamport = self
            .module_file("lamport_clock")
            .and_then(|t| {
                let line = t.lines().find_map(|l| l.strip_prefix("lamport_now="))?;
                LamportTime::parse(line.trim().as_bytes())
            })
            .filter(|t| *t <= real.plus_secs(MAX_FUTURE_SECS));
        lamport.unwrap_or(real).max(self.last.get())
    }

    /// What stands at a path; `None` if nothing. A tombstone is a link like any other here.
    pub fn entry(&self, rel: &str) -> Option<Entry> {
        if let Some(planned) = self.planned.borrow().get(rel) {
            return planned.clone();
        }
        let path = self.path(rel);
        let meta = fs::symlink_metadata(&path).ok()?;
        let stamp = stamp_of(&meta);
        let kind = meta.file_type();
        Some(if kind.is_symlink() {
            let value = fs::read_link(&path).ok()?;
            Entry::Link(value.to_string_lossy().into_owned(), stamp)
        } else if kind.is_file() {
            Entry::File(meta.len(), stamp)
        } else if kind.is_dir() {
            Entry::Dir
        } else {
            Entry::Other
        })
    }

    /// Value and stamp of a link; `None` if it is missing or a tombstone.
    pub fn link(&self, rel: &str) -> Option<(String, LamportTime)> {
        match self.entry(rel)? {
            Entry::Link(value, stamp) if value != TOMBSTONE => Some((value, stamp)),
            _ => None,
        }
    }

    /// Value of a link; `None` if it is missing or a tombstone.
    pub fn get(&self, rel: &str) -> Option<String> {
        self.link(rel).map(|(value, _)| value)
    }

    /// A number.
    pub fn get_u64(&self, rel: &str) -> Option<u64> {
        self.get(rel)?.trim().parse().ok()
    }

    /// A switch or indicator: `1` is on.
    pub fn get_flag(&self, rel: &str) -> bool {
        self.get(rel).is_some_and(|v| super::values::is_on(&v))
    }

    /// Names in a directory, sorted; hidden ones are left out. A missing directory is empty.
    pub fn list(&self, rel: &str) -> Vec<String> {
        let mut names: BTreeSet<String> = fs::read_dir(self.path(rel))
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|n| !n.starts_with('.'))
            .collect();
        for (path, entry) in self.planned.borrow().iter() {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            if dir == rel && entry.is_some() {
                names.insert(name.to_owned());
            } else if dir == rel {
                names.remove(name);
            }
        }
        names.into_iter().collect()
    }

    /// Remembers what a dry run would do.
    fn plan(&self, rel: &str, entry: Option<Entry>) {
        let mut planned = self.planned.borrow_mut();
        for (end, _) in rel.match_indices('/') {
            let dir = rel.get(..end).unwrap_or_default();
            if !self.path(dir).is_dir() {
                planned.insert(dir.to_owned(), Some(Entry::Dir));
            }
        }
        planned.insert(rel.to_owned(), entry);
    }

    /// Makes a directory with its parents.
    pub fn mkdir(&self, rel: &str) -> Result<()> {
        let path = self.path(rel);
        if path.is_dir() || self.entry(rel) == Some(Entry::Dir) {
            return Ok(());
        }
        if self.dry_run {
            out::info(format_args!("would create directory {}", path.display()));
            self.plan(rel, Some(Entry::Dir));
            return Ok(());
        }
        // A tombstone, or what is left of a file, makes room.
        if let Some(Entry::Link(..)) = self.entry(rel) {
            fs::remove_file(&path).trying(|| format!("cannot replace {}", path.display()))?;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .trying(|| format!("cannot create directory {}", path.display()))?;
        self.touch_parent(&path);
        Ok(())
    }

    /// Writes a value with the time of now. Writing the same value again refreshes its time.
    pub fn set(&self, rel: &str, value: &str) -> Result<()> {
        self.set_at(rel, value, Stamp::Now)
    }

    /// The same for what an administrator decides over everything that was said before: what is here from a time when the clock
    /// was far ahead does not make it later, or others would not believe it. Not where this clock may be the wrong one.
    pub fn decide(&self, rel: &str, value: &str) -> Result<()> {
        let far = |t: LamportTime| t > real_time().plus_secs(MAX_FUTURE_SECS);
        match self.entry(rel) {
            Some(Entry::Link(_, t)) if far(t) => self.set_at(rel, value, Stamp::At(self.now())),
            _ => self.set(rel, value),
        }
    }

    /// Writes a value if it differs from what is there: the form for steps that may be repeated.
    pub fn ensure(&self, rel: &str, value: &str) -> Result<()> {
        if self.get(rel).as_deref() == Some(value) {
            return Ok(());
        }
        self.set(rel, value)
    }

    /// After an error for lack of space: gives up what the module keeps in `/mars/reserve` for the worst moment. The module
    /// takes it again when there is room.
    ///
    /// # Errors
    ///
    /// `e`, if it was another one, or nothing is kept.
    pub fn make_room(&self, e: io::Error) -> io::Result<()> {
        let full = matches!(
            e.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let reserve = self.root.join("reserve");
        let kept = fs::metadata(&reserve).is_ok_and(|m| m.is_file() && m.len() > 0);
        if !full || !kept {
            return Err(e);
        }
        let file = fs::OpenOptions::new().write(true).open(&reserve)?;
        file.set_len(0)?;
        file.sync_all()
    }

    /// Writes a value.
    pub fn set_at(&self, rel: &str, value: &str, stamp: Stamp) -> Result<()> {
        check_value(rel, value)?;
        let old = match self.entry(rel) {
            Some(Entry::Link(_, t)) => t,
            Some(Entry::File(_, t)) => t,
            _ => LamportTime::ZERO,
        };
        let now = self.now();
        let time = match stamp {
            Stamp::Now => now.max(old.next()),
            Stamp::At(t) => t,
        };
        self.last.set(self.last.get().max(time));
        let path = self.path(rel);
        if self.dry_run {
            out::info(format_args!(
                "would create symlink {} -> {value}",
                path.display()
            ));
            self.plan(rel, Some(Entry::Link(value.to_owned(), time)));
            return Ok(());
        }
        out::verbose(2, format_args!("{} -> {value} ({time})", path.display()));
        let parent = path.parent().unwrap_or(&self.root).to_owned();
        if !parent.is_dir() {
            let rel_parent = parent.strip_prefix(&self.root).unwrap_or(&parent);
            self.mkdir(&rel_parent.to_string_lossy())?;
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        let temp = parent.join(format!(
            ".tmp.{}.{}",
            std::process::id(),
            name.unwrap_or_default()
        ));
        let make = || -> io::Result<()> {
            let _ = fs::remove_file(&temp);
            symlink(value, &temp)?;
            let spec = timespec(time);
            utimensat(
                AT_FDCWD,
                &temp,
                &spec,
                &spec,
                UtimensatFlags::NoFollowSymlink,
            )?;
            if path.is_dir() && !path.is_symlink() {
                // Only an empty one can be replaced by a value.
                fs::remove_dir(&path)?;
            }
            fs::rename(&temp, &path)
        };
        let made = make().or_else(|e| self.make_room(e).and_then(|()| make()));
        made.map_err(|e| {
            let _ = fs::remove_file(&temp);
            let mut f = Failure::io(format_args!("cannot write {}", path.display()), &e);
            match e.kind() {
                io::ErrorKind::StorageFull => {
                    f = f.hint("/mars is full: free space there, e.g. `marsadm log-delete-all all`");
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    f = f.hint("the file system is read-only: look into the kernel log, repair and remount it");
                }
                _ => {}
            }
            f
        })?;
        self.touch_parent(&path);
        Ok(())
    }

    /// Puts a tombstone over whatever is there. Nothing happens if there is nothing, or a tombstone already.
    pub fn delete(&self, rel: &str) -> Result<()> {
        match self.entry(rel) {
            None | Some(Entry::Dir | Entry::Other) => Ok(()),
            Some(Entry::Link(value, _)) if value == TOMBSTONE => Ok(()),
            Some(_) => self.set(rel, TOMBSTONE),
        }
    }

    /// Creates an empty regular file; replaces a tombstone, keeps a file.
    pub fn create_empty(&self, rel: &str) -> Result<()> {
        let path = self.path(rel);
        if let Some(Entry::File(..)) = self.entry(rel) {
            return Ok(());
        }
        if self.dry_run {
            out::info(format_args!("would create file {}", path.display()));
            self.plan(rel, Some(Entry::File(0, self.now())));
            return Ok(());
        }
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let temp = path.with_file_name(format!(".tmp.{}.{name}", std::process::id()));
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temp)
            .and_then(|_| fs::rename(&temp, &path))
            .trying(|| format!("cannot create {}", path.display()))?;
        self.touch_parent(&path);
        Ok(())
    }

    /// Really removes a name (tombstones that have served, temporary names).
    pub fn purge(&self, rel: &str) -> Result<()> {
        let path = self.path(rel);
        if self.dry_run {
            if self.entry(rel).is_some() {
                out::info(format_args!("would remove {}", path.display()));
                self.plan(rel, None);
            }
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Failure::io(
                format_args!("cannot remove {}", path.display()),
                &e,
            )),
            _ => Ok(()),
        }
    }

    /// Makes everything written so far durable, before the next step depends on it.
    pub fn barrier(&self) -> Result<()> {
        for dir in std::mem::take(&mut *self.dirty.borrow_mut()) {
            match fs::File::open(&dir).and_then(|d| d.sync_all()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::io(
                        format_args!("cannot sync {}", dir.display()),
                        &e,
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the names in a directory durable, also those that others have written, before the next step depends on it.
    pub fn barrier_of(&self, rel: &str) -> Result<()> {
        self.dirty.borrow_mut().insert(self.path(rel));
        self.barrier()
    }

    /// Makes everything durable and tells the module to look.
    pub fn trigger(&self, what: Trigger) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        self.barrier()?;
        if self.module_loaded() {
            let path = self.proc_dir.join("trigger");
            if let Err(e) = fs::write(&path, what.code()) {
                // Not fatal: the module scans by itself every few seconds.
                out::warn(format_args!("cannot write {}: {e}", path.display()));
            }
        }
        Ok(())
    }

    fn touch_parent(&self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.dirty.borrow_mut().insert(parent.to_owned());
        }
    }
}

/// Real time of now.
pub fn real_time() -> LamportTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    LamportTime::new(since.as_secs(), since.subsec_nanos()).unwrap_or(LamportTime::ZERO)
}

fn stamp_of(meta: &fs::Metadata) -> LamportTime {
    let sec = u64::try_from(meta.mtime()).unwrap_or(0);
    let nsec = u32::try_from(meta.mtime_nsec()).unwrap_or(0);
    LamportTime::new(sec, nsec).unwrap_or(LamportTime::ZERO)
}

fn timespec(time: LamportTime) -> TimeSpec {
    TimeSpec::new(
        i64::try_from(time.sec()).unwrap_or(i64::MAX),
        i64::from(time.nsec()),
    )
}

fn check_value(rel: &str, value: &str) -> Result<()> {
    if !is_valid(value.as_bytes()) {
        return Err(Failure::new(
            Kind::Usage,
            format!("the value for {rel} must have 1 to {MAX_VALUE} bytes in one line"),
        ));
    }
    Ok(())
}
