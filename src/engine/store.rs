// SPDX-License-Identifier: GPL-2.0-or-later

//! `/mars` as this host has it: the symlinks on the disk, and a copy of them in memory that readers use.
//!
//! Everything that changes a link goes through here, so that file and memory agree: the engine's own facts
//! ([`Store::set`]), what peers tell ([`Store::merge_one`]), and what the tools wrote ([`Store::scan`]). The rules which
//! value wins are the core's.
//!
//! Lock order: `writer` (held while a link is written to the disk) before `tree`. Readers take only `tree`, which is never
//! held during I/O.

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        new_condvar,
        new_mutex,
        Arc,
        CondVar,
        Mutex, //
    },
    time::msecs_to_jiffies, //
};

use mars_core::{
    lamport::LamportTime,
    log::LogName,
    name::Name,
    succession::is_passed,
    tree::{
        merge::{
            merge,
            MergeDecision,
            Version, //
        },
        path::{
            is_local,
            TreePath, //
        },
        tombstone::{
            is_tombstone,
            TOMBSTONE, //
        },
        value::{
            is_valid,
            ReplayLink, //
        },
        Tree, //
    },
    wire::{
        message::meta::{
            Entry,
            TreeHead,
            TreeWriter, //
        },
        WireError, //
    }, //
};

use crate::{
    engine::{
        clock::Clock,
        inject,
        logfile,
        paths,
        reserve,
        text, //
    },
    sys::{
        checksum,
        dir::{
            self,
            EntryKind, //
        }, //
    }, //
};

/// Bytes of one part of a tree on the wire.
const PART_BYTES: usize = 64 << 10;

/// What became of a link of a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merged {
    /// It was not taken.
    No,
    /// Something changed.
    News,
    /// Which word about the role is newer can't be known.
    Doubt,
}

/// Value of a link.
pub(crate) struct Value(KVec<u8>);

impl Value {
    /// The value as text.
    pub(crate) fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or("")
    }

    /// The value.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The tree of this host.
#[pin_data]
pub(crate) struct Store {
    me: Name,
    clock: Arc<Clock>,
    instance: u64,
    #[pin]
    writer: Mutex<()>,
    #[pin]
    tree: Mutex<Tree>,
    #[pin]
    changed: CondVar,
}

impl Store {
    /// An empty copy; [`Store::scan`] fills it.
    pub(crate) fn new(me: Name, clock: Arc<Clock>) -> Result<Arc<Self>> {
        let mut instance = [0; 8];
        checksum::random(&mut instance);
        Arc::pin_init(
            try_pin_init!(Self {
                me,
                clock,
                instance: u64::from_le_bytes(instance),
                writer <- new_mutex!(()),
                tree <- new_mutex!(Tree::new()),
                changed <- new_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    /// Random number of this run of the module.
    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }

    /// Counts changes.
    pub(crate) fn generation(&self) -> u64 {
        self.tree.lock().generation()
    }

    /// Value of a link; `None` if there is none, or a tombstone.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let tree = self.tree.lock();
        let mut v = KVec::new();
        v.extend_from_slice(tree.get(path.as_bytes())?, GFP_KERNEL)
            .ok()?;
        Some(Value(v))
    }

    /// When a link was written; `None` if there is none, or a tombstone.
    pub(crate) fn stamp(&self, path: &str) -> Option<LamportTime> {
        let tree = self.tree.lock();
        let entry = tree.entry(path.as_bytes())?;
        entry.live().map(|_| entry.stamp)
    }

    /// Calls `f` with the rest of the path and the value of each live link whose path begins with `prefix`, in order.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, before `f` was called at all: decisions must not be made on a part of the truth.
    pub(crate) fn for_each(&self, prefix: &str, mut f: impl FnMut(&str, &Value)) -> Result {
        // A copy of the few that match, so that `f` may use the store.
        let mut found: KVVec<(KVec<u8>, Value)> = KVVec::new();
        for e in self.tree.lock().with_prefix(prefix.as_bytes()) {
            let (Some(rest), Some(value)) = (e.path.get(prefix.len()..), e.live()) else {
                continue;
            };
            let (mut p, mut v) = (KVec::new(), KVec::new());
            p.extend_from_slice(rest, GFP_KERNEL)?;
            v.extend_from_slice(value, GFP_KERNEL)?;
            found.push((p, Value(v)), GFP_KERNEL)?;
        }
        for (rest, value) in &found {
            if let Ok(rest) = core::str::from_utf8(rest) {
                f(rest, value);
            }
        }
        Ok(())
    }

    /// Writes a link, if its value is not the same already, with a stamp newer than everything seen.
    ///
    /// # Errors
    ///
    /// The file system of `/mars` failed or is full; memory then still has the old value.
    pub(crate) fn set(&self, path: &str, value: &str) -> Result {
        {
            let tree = self.tree.lock();
            let old = tree.entry(path.as_bytes());
            if old.is_some_and(|e| e.value == value.as_bytes())
                || (old.is_none() && is_tombstone(value.as_bytes()))
            {
                return Ok(());
            }
        }
        let checked = TreePath::parse(path.as_bytes()).map_err(|_| EINVAL)?;
        if !is_valid(value.as_bytes()) {
            return Err(EINVAL);
        }
        let writer = self.writer.lock();
        let now = self.clock.now();
        let stamp = self
            .tree
            .lock()
            .stamp_for(path.as_bytes(), now, self.clock.is_trusted());
        self.write(path, value, stamp)?;
        self.tree
            .lock()
            .apply_local(&checked, value.as_bytes(), stamp)?;
        drop(writer);
        self.changed.notify_all();
        Ok(())
    }

    /// Writes to the disk; makes the directory if need be.
    fn write(&self, path: &str, value: &str, stamp: LamportTime) -> Result {
        paths::need_mounted()?;
        let file = paths::absolute(path)?;
        let value = CString::try_from_fmt(format_args!("{value}"))?;
        inject::at!(LinkWrite)?;
        let mut r = dir::replace_link(&file, &value, stamp.sec(), stamp.nsec());
        if r.is_err_and(|e| e == ENOSPC || e == EDQUOT) && reserve::release() {
            r = dir::replace_link(&file, &value, stamp.sec(), stamp.nsec());
        }
        match r {
            Err(e) if e == ENOENT => {
                let parent = path.rsplit_once('/').map_or("", |(p, _)| p);
                dir::mkdir_p(&paths::absolute(parent)?, 0o700)?;
                dir::replace_link(&file, &value, stamp.sec(), stamp.nsec())?;
            }
            r => r?,
        }
        inject::at!(LinkWritten)
    }

    /// Takes what `peer` says about one link, if the rules allow it.
    ///
    /// # Errors
    ///
    /// Only failures of memory or of the file system: what is refused is refused silently or with a message.
    pub(crate) fn merge_one(
        &self,
        peer: &Name,
        path: &str,
        value: &[u8],
        stamp: LamportTime,
    ) -> Result<Merged> {
        let Ok(checked) = TreePath::parse(path.as_bytes()) else {
            crate::sys::log::log_warn!(
                "host {} sent a link with an impossible path\n",
                peer.as_str()
            );
            return Ok(Merged::No);
        };
        let Ok(text) = core::str::from_utf8(value) else {
            return Ok(Merged::No);
        };
        let log = LogName::parse(checked.leaf());
        let writer = self.writer.lock();
        if let (Some(log), Some(resource)) = (log, checked.resource()) {
            // Where a log file lies no link may go, except a tombstone when this host no longer needs the file.
            if !is_tombstone(value) || !self.may_delete(&resource, &log) {
                return Ok(Merged::No);
            }
        }
        let real = Clock::real();
        let right_since = self.clock.right_since();
        let decision = {
            let mut tree = self.tree.lock();
            tree.set_right_since(right_since);
            match tree.decide_remote(&checked, value, stamp, real, &self.me)? {
                // A log file is no link, so memory does not know it.
                MergeDecision::Phantom if log.is_some() => MergeDecision::Take,
                // Remembered in memory only.
                MergeDecision::Phantom => {
                    tree.apply_remote(&checked, value, stamp, real, &self.me)?
                }
                d => d,
            }
        };
        match decision {
            MergeDecision::Take => (),
            MergeDecision::SayAgain => {
                self.clock.saw(stamp);
                self.say_again(&checked, None)?;
                drop(writer);
                self.changed.notify_all();
                return Ok(Merged::News);
            }
            MergeDecision::Doubt => return Ok(Merged::Doubt),
            MergeDecision::TooFarAhead => {
                crate::sys::log::log_warn!(
                    "host {} sent a stamp more than 30 days ahead; set the clocks right\n",
                    peer.as_str()
                );
                return Ok(Merged::No);
            }
            _ => return Ok(Merged::No),
        }
        // A tool may have written since the last scan: what is on the disk decides, not the copy in memory.
        let mut old = KVec::new();
        if let Ok((sec, nsec)) = dir::read_link(&paths::absolute(path)?, &mut old) {
            let local = Version {
                value: &old,
                stamp: LamportTime::new(sec, nsec).unwrap_or(LamportTime::ZERO),
            };
            if merge(Some(local), Version { value, stamp }, real) != MergeDecision::Take {
                return Ok(Merged::No);
            }
        }
        self.clock.saw(stamp);
        if let (Some(_), Some(resource)) = (log, checked.resource()) {
            let file = dir::stat(&paths::absolute(path)?);
            if file.is_ok_and(|s| s.kind == dir::EntryKind::File) {
                let created = logfile::created(&paths::absolute(path)?);
                if created.is_some_and(|created| created > stamp) {
                    // A tombstone from before this log, of one with the same name that was cut off once.
                    return Ok(Merged::No);
                }
                // A crash must not bring back an older replay link, which needs this log.
                paths::sync_resource_dir(&resource)?;
            }
            inject::at!(LogDelete)?;
        }
        match self.write(path, text, stamp) {
            // As good as an invalid path: what is true elsewhere must not stop all else that the peer tells.
            Err(e) if dir::is_misplaced(e) => {
                crate::engine::text::warn_limited(format_args!(
                    "host {peer} sent the link {path}, where a folder is here, or below what is none: {e:?}"
                ));
                return Ok(Merged::No);
            }
            r => r?,
        }
        if log.is_some() {
            inject::at!(LogDeleted)?;
        }
        let mut tree = self.tree.lock();
        if log.is_some() {
            tree.apply_local(&checked, value, stamp)?;
        } else {
            tree.apply_remote(&checked, value, stamp, real, &self.me)?;
        }
        drop(tree);
        drop(writer);
        self.changed.notify_all();
        Ok(Merged::News)
    }

    /// Says again what others refuse since the clock of this host was far ahead. Only once that is known to be right, and the peers
    /// were heard: a crash may have left less here than what they know. Of a role only where this host `leads` by the path; asked
    /// without the tree's lock.
    pub(crate) fn say_unheard(&self, leads: impl Fn(&str) -> bool) -> Result {
        if !self.clock.is_trusted() {
            return Ok(());
        }
        let mut list: KVVec<KVec<u8>> = KVVec::new();
        {
            let tree = self.tree.lock();
            for e in tree.unheard(&self.me, Clock::real()) {
                let mut path = KVec::new();
                path.extend_from_slice(e.path, GFP_KERNEL)?;
                list.push(path, GFP_KERNEL)?;
            }
        }
        for path in &list {
            let checked = TreePath::parse(path).map_err(|_| EINVAL)?;
            if !checked.is_of_role() {
                self.repeat(path)?;
            } else if leads(checked.as_str()) {
                // It was decided before the clock was right. What was decided elsewhere since then is newer.
                self.repeat_at(path, Some(self.clock.right_since()))?;
            }
        }
        Ok(())
    }

    /// Writes what is here once more, with a new stamp.
    pub(crate) fn repeat(&self, path: &[u8]) -> Result {
        self.repeat_at(path, None)
    }

    /// The same, with this stamp.
    fn repeat_at(&self, path: &[u8], stamp: Option<LamportTime>) -> Result {
        let path = TreePath::parse(path).map_err(|_| EINVAL)?;
        let writer = self.writer.lock();
        self.say_again(&path, stamp)?;
        drop(writer);
        self.changed.notify_all();
        Ok(())
    }

    /// Writes what this host says of itself once more, with a new stamp; `writer` is held.
    fn say_again(&self, path: &TreePath<'_>, stamp: Option<LamportTime>) -> Result {
        let mut value = KVec::new();
        let mut before = LamportTime::ZERO;
        // A tool may have written since the last scan: what is on the disk decides, not the copy in memory.
        match dir::read_link(&paths::absolute(path.as_str())?, &mut value) {
            Ok((sec, nsec)) => before = LamportTime::new(sec, nsec).unwrap_or(before).next(),
            Err(e) if e == ENOENT => {
                let own = self.get(path.as_str());
                value.clear();
                value.extend_from_slice(
                    own.as_ref().map_or(TOMBSTONE, Value::as_bytes),
                    GFP_KERNEL,
                )?;
            }
            Err(e) => return Err(e),
        }
        let text = core::str::from_utf8(&value).map_err(|_| EINVAL)?;
        let trusted = self.clock.is_trusted();
        let before = if trusted { LamportTime::ZERO } else { before };
        let now = self.clock.now().max(before);
        let stamp = stamp.unwrap_or_else(|| {
            self.tree
                .lock()
                .stamp_for(path.as_bytes(), now, self.clock.is_trusted())
        });
        self.write(path.as_str(), text, stamp)?;
        self.tree.lock().apply_local(path, &value, stamp)?;
        Ok(())
    }

    /// Whether this host no longer needs a log: its replay link is in a later one (or it is no member).
    fn may_delete(&self, resource: &Name, log: &LogName) -> bool {
        let path = CString::try_from_fmt(format_args!("resource-{resource}/replay-{}", self.me));
        match path.map(|p| self.get(text::of(&p))) {
            Ok(Some(v)) => {
                ReplayLink::parse(v.as_bytes()).is_some_and(|l| is_passed(log.number, &l))
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Forgets tombstones of things that never were here, once no older value can be on its way any more.
    pub(crate) fn forget_old(&self) {
        const DAYS: u64 = 7;
        let now = Clock::real();
        if let Some(before) = LamportTime::new(now.sec().saturating_sub(DAYS * 24 * 3600), 0) {
            self.tree.lock().forget_phantoms(before);
        }
    }

    /// Reads the links of the whole tree from the disk: the tools write there. Gives whether anything changed. Only one
    /// thread may do this.
    pub(crate) fn scan(&self) -> Result<bool> {
        paths::need_mounted()?;
        self.tree.lock().begin_scan(b"")?;
        let mut dirs: KVec<KVec<u8>> = KVec::new();
        let mut r = self.scan_dir(b"", &mut dirs);
        let mut i = 0;
        // What can't be read in one place must not hide all else.
        while let Some(d) = dirs.get(i) {
            let mut prefix = KVec::new();
            prefix.extend_from_slice(d, GFP_KERNEL)?;
            i += 1;
            let one = self.scan_dir(&prefix, &mut dirs);
            r = r.and(one);
        }
        let mut tree = self.tree.lock();
        if r.is_err() {
            tree.scan_incomplete();
        }
        let summary = tree.end_scan();
        drop(tree);
        self.clock.looked_at(summary.newest);
        let changed = summary.changed + summary.removed > 0;
        if changed {
            self.changed.notify_all();
        }
        r.map(|()| changed)
    }

    /// Reads one directory; `prefix` is its path with a slash, or empty. Directories found are appended to `dirs`.
    fn scan_dir(&self, prefix: &[u8], dirs: &mut KVec<KVec<u8>>) -> Result {
        let text = core::str::from_utf8(prefix).map_err(|_| EINVAL)?;
        let path = paths::absolute(text.trim_end_matches('/'))?;
        let depth = prefix.iter().filter(|b| **b == b'/').count();
        let mut names: KVVec<(KVec<u8>, EntryKind)> = KVVec::new();
        let mut failed: Result = Ok(());
        inject::at!(Scan)?;
        dir::list(&path, |name, kind| {
            if name.first() == Some(&b'.') || !matches!(kind, EntryKind::Dir | EntryKind::Symlink) {
                return true;
            }
            let mut n = KVec::new();
            let r = n
                .extend_from_slice(prefix, GFP_KERNEL)
                .and_then(|()| n.extend_from_slice(name, GFP_KERNEL));
            if let Err(e) = r.and_then(|()| names.push((n, kind), GFP_KERNEL)) {
                failed = Err(e.into());
                return false;
            }
            true
        })?;
        core::mem::replace(&mut failed, Ok(()))?;
        let mut value = KVec::new();
        for (mut name, kind) in names.drain_all() {
            if kind == EntryKind::Dir {
                if depth < 2 && !name.rsplit(|b| *b == b'/').next().is_some_and(is_local) {
                    name.push(b'/', GFP_KERNEL)?;
                    dirs.push(name, GFP_KERNEL)?;
                }
                continue;
            }
            let Ok(path) = TreePath::parse(&name) else {
                continue;
            };
            let file = paths::absolute(path.as_str())?;
            value.clear();
            let (sec, nsec) = match dir::read_link(&file, &mut value) {
                Ok(t) => t,
                // A tool may have replaced or removed it since the listing: the next scan sees that.
                Err(e) if e == ENOENT || e == EINVAL || dir::is_misplaced(e) => continue,
                // What can't be read is not gone.
                Err(e) => {
                    failed = Err(e);
                    continue;
                }
            };
            let stamp = LamportTime::new(sec, nsec).unwrap_or(LamportTime::ZERO);
            if let Err(e) = self.tree.lock().observe(&path, &value, stamp) {
                crate::sys::log::log_warn!("a link of the tree can't be used: {:?}\n", e);
            }
        }
        failed
    }

    /// Waits until something is newer than `generation`; `false` after `wait_ms`.
    pub(crate) fn wait_newer(&self, generation: u64, wait_ms: u32) -> bool {
        let mut tree = self.tree.lock();
        if tree.generation() == generation {
            let _ = self
                .changed
                .wait_interruptible_timeout(&mut tree, msecs_to_jiffies(wait_ms));
        }
        tree.generation() != generation
    }

    /// Writes entries that changed after `*since` as one part of a tree, and moves `*since` behind them. Gives whether more
    /// follow.
    pub(crate) fn write_part(
        &self,
        out: &mut KVec<u8>,
        since: &mut u64,
        full: bool,
        now: LamportTime,
    ) -> core::result::Result<bool, WireError> {
        let tree = self.tree.lock();
        let head = TreeHead {
            instance: self.instance,
            generation: tree.generation(),
            full,
            now,
        };
        let mut w = TreeWriter::new(out, PART_BYTES, &head)?;
        let mut more = false;
        for e in tree.changed_since(*since) {
            let Ok(path) = core::str::from_utf8(e.path) else {
                continue;
            };
            if !w.push(&Entry {
                path,
                value: e.value,
                stamp: e.stamp,
            })? {
                more = true;
                break;
            }
            *since = e.generation;
        }
        w.finish(more)?;
        Ok(more)
    }
}
