// SPDX-License-Identifier: GPL-2.0-or-later

//! The simulated file system of `/mars`: log files with a page cache, and symlinks.
//!
//! Names and sizes go through a journal: after a crash an older state of them is there (with `ordered`, as ext4 and xfs do
//! it, all of one moment; else each name and each file for itself). Bytes of files go to the disk in any order until they
//! are synced. What a file got as new blocks and was not written there may show bytes of files that were removed or cut.

use crate::rng::Rng;
use mars_core::lamport::LamportTime;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// Errors, as their numbers are called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Errno {
    /// There is no such file.
    NoEnt,
    /// The file system is full.
    NoSpc,
    /// The disk fails.
    Io,
    /// No (good) reply.
    Net,
    /// Try again.
    Again,
    /// The peer's disk or role.
    Remote,
    /// The file has content already.
    Exist,
    /// Damaged.
    BadMsg,
    /// Asked to stop.
    Intr,
}

/// Result of an operation.
pub type Res<T> = Result<T, Errno>;

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// A symlink: value and time.
    Link(String, LamportTime),
    /// A file.
    File(u32),
}

#[derive(Clone)]
enum Op {
    Put(String, Node),
    Gone(String),
    /// A file got longer. What was written behind its old size may be on the disk already.
    Grown(u32, usize),
    Cut(u32, usize),
}

impl Op {
    fn key(&self) -> String {
        match self {
            Self::Put(path, _) | Self::Gone(path) => path.clone(),
            Self::Grown(ino, _) | Self::Cut(ino, _) => format!("#{ino}"),
        }
    }
}

#[derive(Default)]
struct Inode {
    view: Vec<u8>,
    durable: Vec<u8>,
    /// Which write it was, place and bytes.
    cache: Vec<(u64, usize, Rc<Vec<u8>>)>,
    /// Counts writes: what came after the beginning of a sync is not what that writes, whatever was cut meanwhile.
    writes: u64,
    /// Where its blocks were before.
    stale: Rc<Vec<u8>>,
}

impl Inode {
    /// Only what the disk has, or is to get yet.
    fn drop_cache(&mut self) {
        let size = self.view.len();
        let mut bytes = self.durable.clone();
        grow(&mut bytes, size, &self.stale);
        bytes.truncate(size);
        for (_, off, data) in &self.cache {
            if let Some(part) = bytes.get_mut(*off..*off + data.len()) {
                part.copy_from_slice(data);
            }
        }
        self.view = bytes;
    }

    /// Takes what a sync that began after so many writes brings to the disk.
    fn written_until(&mut self, written: u64) -> Vec<(usize, Rc<Vec<u8>>)> {
        let n = self.cache.partition_point(|(w, ..)| *w <= written);
        self.cache.drain(..n).map(|(_, off, d)| (off, d)).collect()
    }
}

/// The file system.
pub struct Fs {
    unit: usize,
    ordered: bool,
    /// Whether blocks that were not written show what was in them.
    stale: bool,
    names: BTreeMap<String, Node>,
    durable_names: BTreeMap<String, Node>,
    inodes: BTreeMap<u32, Inode>,
    journal: Vec<Op>,
    next: u32,
    capacity: usize,
    /// Bytes of a file that was removed or cut.
    graveyard: Rc<Vec<u8>>,
}

impl Fs {
    /// An empty one.
    pub fn new(unit: usize, ordered: bool, stale: bool, capacity: usize) -> Self {
        Self {
            unit,
            ordered,
            stale,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            inodes: BTreeMap::new(),
            journal: Vec::new(),
            next: 1,
            capacity,
            graveyard: Rc::default(),
        }
    }

    /// What a name stands for.
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.names.get(path)
    }

    /// All names, in order.
    pub fn names(&self) -> &BTreeMap<String, Node> {
        &self.names
    }

    /// Value and time of a link.
    pub fn link(&self, path: &str) -> Option<(&str, LamportTime)> {
        match self.names.get(path)? {
            Node::Link(v, t) => Some((v, *t)),
            Node::File(_) => None,
        }
    }

    /// Value of a link that a loss of power leaves.
    pub fn durable_link(&self, path: &str) -> Option<&str> {
        match self.durable_names.get(path)? {
            Node::Link(v, _) => Some(v),
            Node::File(_) => None,
        }
    }

    /// A file's number.
    pub fn file(&self, path: &str) -> Option<u32> {
        match self.names.get(path)? {
            Node::File(ino) => Some(*ino),
            Node::Link(..) => None,
        }
    }

    /// Bytes in files.
    pub fn used(&self) -> usize {
        let used = |n: &Node| match n {
            Node::File(ino) => self.inodes.get(ino).map_or(0, |i| i.view.len()),
            Node::Link(..) => 0,
        };
        self.names.values().map(used).sum()
    }

    /// Changes the size of the file system.
    pub fn set_capacity(&mut self, bytes: usize) {
        self.capacity = bytes;
    }

    /// Bytes that are free.
    pub fn free(&self) -> usize {
        self.capacity.saturating_sub(self.used())
    }

    /// Renames a new link over what was there. A file that was there is gone.
    pub fn put_link(&mut self, path: &str, value: &str, stamp: LamportTime) -> Res<()> {
        if self.free() == 0 && !self.names.contains_key(path) {
            return Err(Errno::NoSpc);
        }
        self.bury(path);
        let node = Node::Link(value.to_owned(), stamp);
        self.names.insert(path.to_owned(), node.clone());
        self.journal.push(Op::Put(path.to_owned(), node));
        Ok(())
    }

    fn bury(&mut self, path: &str) {
        if let Some(ino) = self.file(path) {
            if let Some(i) = self.inodes.get(&ino).filter(|i| !i.view.is_empty()) {
                self.graveyard = Rc::new(i.view.clone());
            }
        }
    }

    /// Opens or makes a file.
    pub fn create(&mut self, path: &str) -> Res<u32> {
        if let Some(ino) = self.file(path) {
            return Ok(ino);
        }
        if self.free() == 0 {
            return Err(Errno::NoSpc);
        }
        let ino = self.next;
        self.next += 1;
        let stale = if self.stale {
            self.graveyard.clone()
        } else {
            Rc::default()
        };
        let inode = Inode {
            stale,
            ..Inode::default()
        };
        self.inodes.insert(ino, inode);
        self.names.insert(path.to_owned(), Node::File(ino));
        self.journal.push(Op::Put(path.to_owned(), Node::File(ino)));
        Ok(ino)
    }

    /// Gives a file another name.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(node) = self.names.remove(from) {
            self.bury(to);
            self.names.insert(to.to_owned(), node.clone());
            self.journal.push(Op::Put(to.to_owned(), node));
            self.journal.push(Op::Gone(from.to_owned()));
        }
    }

    /// Removes a name.
    pub fn unlink(&mut self, path: &str) {
        self.bury(path);
        if self.names.remove(path).is_some() {
            self.journal.push(Op::Gone(path.to_owned()));
        }
    }

    /// Bytes that there are in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of a file.
    pub fn size(&self, ino: u32) -> usize {
        self.inodes.get(&ino).map_or(0, |i| i.view.len())
    }

    /// Its bytes.
    pub fn bytes(&self, ino: u32) -> &[u8] {
        self.inodes.get(&ino).map_or(&[], |i| &i.view)
    }

    /// What would be left of it if the power went now and nothing was in any cache.
    pub fn durable(&self, ino: u32) -> &[u8] {
        self.inodes.get(&ino).map_or(&[], |i| &i.durable)
    }

    /// Everything becomes durable.
    pub fn sync_all(&mut self) {
        let all = self.journal.len();
        self.commit(all);
    }

    /// Reads.
    pub fn read(&self, ino: u32, off: usize, len: usize) -> Vec<u8> {
        let b = self.bytes(ino);
        b[off.min(b.len())..(off + len).min(b.len())].to_vec()
    }

    /// Writes to the cache.
    pub fn write(&mut self, ino: u32, off: usize, data: &[u8]) -> Res<()> {
        let free = self.free();
        let Some(i) = self.inodes.get_mut(&ino) else {
            return Err(Errno::Io);
        };
        let end = off + data.len();
        if end.saturating_sub(i.view.len()) > free {
            return Err(Errno::NoSpc);
        }
        if end > i.view.len() {
            i.view.resize(end, 0);
            self.journal.push(Op::Grown(ino, end));
        }
        i.view[off..end].copy_from_slice(data);
        i.writes += 1;
        i.cache.push((i.writes, off, Rc::new(data.to_vec())));
        Ok(())
    }

    /// Cuts a file.
    pub fn truncate(&mut self, ino: u32, size: usize) {
        let Some(i) = self.inodes.get_mut(&ino) else {
            return;
        };
        if size >= i.view.len() {
            return;
        }
        if self.stale {
            i.stale = Rc::new(i.view.clone());
        }
        i.view.truncate(size);
        for (_, off, data) in &mut i.cache {
            let keep = size.saturating_sub(*off).min(data.len());
            if keep < data.len() {
                *data = Rc::new(data[..keep].to_vec());
            }
        }
        i.cache.retain(|(.., d)| !d.is_empty());
        self.journal.push(Op::Cut(ino, size));
    }

    /// A sync of a file begins: gives what [`Fs::synced`] has to be told.
    pub fn sync(&self, ino: u32) -> (u64, usize) {
        let written = self.inodes.get(&ino).map_or(0, |i| i.writes);
        (written, self.journal.len())
    }

    /// A sync has ended. `data_only`: names and unchanged sizes are not made durable.
    pub fn synced(&mut self, ino: u32, (written, journal): (u64, usize), data_only: bool) {
        let journal = journal.min(self.journal.len());
        let sized = self.journal[..journal]
            .iter()
            .any(|op| matches!(op, Op::Grown(i, _) | Op::Cut(i, _) if *i == ino));
        // The size is committed with the bytes that it makes visible, or after them.
        if sized || !data_only {
            if self.ordered {
                self.commit(journal);
            } else {
                self.commit_key(&format!("#{ino}"), journal);
            }
        }
        if let Some(i) = self.inodes.get_mut(&ino) {
            for (off, data) in i.written_until(written) {
                put(&mut i.durable, off, &data, &i.stale);
            }
        }
    }

    /// A sync has failed: what was to be written is taken for clean, and a part of it is not on the disk.
    pub fn sync_failed(&mut self, ino: u32, (written, _): (u64, usize), rng: &Rng) {
        let cut = |op: &Op| matches!(op, Op::Cut(i, _) if *i == ino);
        // What is written behind a cut that is not committed goes with it.
        let all_lost = self.journal.iter().any(cut);
        if let Some(i) = self.inodes.get_mut(&ino) {
            for (off, data) in i.written_until(written) {
                if !all_lost && rng.chance(1, 2) {
                    put(&mut i.durable, off, &data, &i.stale);
                }
            }
        }
    }

    /// Names of a directory become durable; gives what [`Fs::dir_synced`] has to be told.
    pub fn sync_dir(&self) -> usize {
        self.journal.len()
    }

    /// See [`Fs::sync_dir`].
    pub fn dir_synced(&mut self, upto: usize, dir: &str) {
        let upto = upto.min(self.journal.len());
        if self.ordered {
            self.commit(upto);
            return;
        }
        let here = |op: &Op| match op {
            Op::Put(path, _) | Op::Gone(path) => {
                path.rsplit_once('/').map_or("", |(d, _)| d) == dir
            }
            Op::Grown(..) | Op::Cut(..) => false,
        };
        let keys: BTreeSet<String> = self.journal[..upto]
            .iter()
            .filter(|op| here(op))
            .map(Op::key)
            .collect();
        for k in keys {
            self.commit_key(&k, upto);
        }
    }

    /// The journal is written now and then.
    pub fn background(&mut self, rng: &Rng) {
        let n = usize::try_from(rng.below(self.journal.len() as u64 + 1)).unwrap_or(0);
        self.commit(n);
    }

    fn commit(&mut self, upto: usize) {
        let ops: Vec<Op> = self.journal.drain(..upto).collect();
        for op in ops {
            self.apply(op);
        }
    }

    fn commit_key(&mut self, key: &str, upto: usize) {
        let journal = std::mem::take(&mut self.journal);
        for (n, op) in journal.into_iter().enumerate() {
            if n < upto && op.key() == key {
                self.apply(op);
            } else {
                self.journal.push(op);
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put(path, node) => {
                self.durable_names.insert(path, node);
            }
            Op::Gone(path) => {
                self.durable_names.remove(&path);
            }
            Op::Grown(ino, size) => {
                if let Some(i) = self.inodes.get_mut(&ino) {
                    grow(&mut i.durable, size, &i.stale);
                }
            }
            Op::Cut(ino, size) => {
                if let Some(i) = self.inodes.get_mut(&ino) {
                    i.durable.truncate(size);
                }
            }
        }
    }

    /// Drops what the page cache has of a file, but for what is still to be written.
    pub fn drop_cache(&mut self, ino: u32) {
        if let Some(i) = self.inodes.get_mut(&ino) {
            i.drop_cache();
        }
    }

    /// The kernel has crashed, and all that was on its way to the disk gets there. What a failed sync has lost was in memory
    /// only.
    pub fn kernel_crash(&mut self) {
        for i in self.inodes.values_mut() {
            i.drop_cache();
        }
    }

    /// The power is gone.
    pub fn power_cut(&mut self, rng: &Rng) {
        let journal = std::mem::take(&mut self.journal);
        let all = journal.len() as u64 + 1;
        let prefix = rng.below(all);
        let mut each: BTreeMap<String, u64> = BTreeMap::new();
        for (n, op) in (0u64..).zip(journal) {
            let limit = if self.ordered {
                prefix
            } else {
                *each.entry(op.key()).or_insert_with(|| rng.below(all))
            };
            if n < limit {
                self.apply(op);
            }
        }
        let unit = self.unit;
        for i in self.inodes.values_mut() {
            let cache = std::mem::take(&mut i.cache);
            let mut count: BTreeMap<usize, u64> = BTreeMap::new();
            let units = |off: usize, len: usize| off / unit..(off + len).div_ceil(unit);
            for (_, off, data) in &cache {
                for u in units(*off, data.len()) {
                    *count.entry(u).or_default() += 1;
                }
            }
            for n in count.values_mut() {
                *n = rng.below(*n + 1);
            }
            for (_, off, data) in &cache {
                for u in units(*off, data.len()) {
                    let n = count.entry(u).or_default();
                    if *n == 0 {
                        continue;
                    }
                    *n -= 1;
                    let (a, b) = ((u * unit).max(*off), ((u + 1) * unit).min(off + data.len()));
                    let b = b.min(i.durable.len());
                    if a < b {
                        i.durable[a..b].copy_from_slice(&data[a - off..b - off]);
                    }
                }
            }
            i.view = i.durable.clone();
        }
        self.names = self.durable_names.clone();
        let used: BTreeSet<u32> = self
            .names
            .values()
            .filter_map(|n| match n {
                Node::File(ino) => Some(*ino),
                Node::Link(..) => None,
            })
            .collect();
        self.inodes.retain(|ino, _| used.contains(ino));
    }

    /// A bit changes on the disk.
    pub fn flip(&mut self, ino: u32, byte: usize, bit: u32) {
        if let Some(i) = self.inodes.get_mut(&ino) {
            for bytes in [&mut i.view, &mut i.durable] {
                if let Some(b) = bytes.get_mut(byte) {
                    *b ^= 1 << (bit % 8);
                }
            }
        }
    }
}

fn grow(bytes: &mut Vec<u8>, size: usize, stale: &[u8]) {
    let old = bytes.len();
    if size > old {
        bytes.resize(size, 0);
        let end = size.min(stale.len());
        if old < end {
            bytes[old..end].copy_from_slice(&stale[old..end]);
        }
    }
}

fn put(bytes: &mut Vec<u8>, off: usize, data: &[u8], stale: &[u8]) {
    // Bytes behind the durable size belong to a size that is not committed, or to blocks that were cut off.
    grow(bytes, off + data.len(), stale);
    bytes[off..off + data.len()].copy_from_slice(data);
}
