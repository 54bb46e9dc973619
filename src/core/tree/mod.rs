// SPDX-License-Identifier: GPL-2.0-or-later

//! The symlink tree of `/mars`, and its mirror in memory.
//!
//! All state and all wishes are symlinks: the target is the value, the time of the link its Lamport
//! stamp. The files are the truth; [`Tree`] mirrors them, so that nobody has to read a disk to look
//! something up, and so that peers can be told what changed. Every change has a number of its own
//! (its *generation*), in ascending order.
//!
//! The caller holds the lock. All calls that allocate change nothing when they fail.

pub mod merge;
mod own;
pub mod path;
mod scan;
pub mod tombstone;
pub mod value;
pub mod view;

use crate::{
    lamport::{
        check_future,
        LamportTime, //
    },
    name::Name, //
};
use core::fmt;
use kernel::{
    alloc::{
        flags::GFP_KERNEL,
        AllocError,
        KVVec,
        KVec, //
    },
    error::{
        code,
        Error, //
    },
};

pub use self::{
    merge::{
        merge,
        MergeDecision,
        Version, //
    },
    path::{
        PathError,
        Place,
        TreePath, //
    },
    scan::{
        ScanSummary,
        Seen, //
    },
    tombstone::{
        is_tombstone,
        TOMBSTONE,
        TOMBSTONE_TEXT, //
    },
    view::ResourceView,
};

/// Most entries of a tree; a bound against a peer gone mad, far above any real cluster.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Why the tree was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TreeError {
    /// Out of memory.
    NoMemory,
    /// There are [`MAX_ENTRIES`] already.
    Full,
    /// The value is empty, longer than 1023 bytes or has a NUL or newline in it.
    BadValue,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "out of memory",
            Self::Full => "too many entries in the tree",
            Self::BadValue => "invalid value",
        })
    }
}

impl From<AllocError> for TreeError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

impl From<TreeError> for Error {
    fn from(e: TreeError) -> Self {
        match e {
            TreeError::NoMemory => code::ENOMEM,
            TreeError::Full => code::ENOSPC,
            TreeError::BadValue => code::EINVAL,
        }
    }
}

/// What became of a value of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalDecision {
    /// It is another value than before.
    Changed,
    /// It is the same value with a new stamp.
    Restamped,
    /// There is a newer one already; it stays.
    Older,
}

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    path: KVec<u8>,
    value: KVec<u8>,
    stamp: LamportTime,
    /// Number of its last change; 0 for free slots.
    generation: u64,
    /// Number of the last scan that saw it.
    seen: u64,
    /// See [`tombstone`].
    phantom: bool,
    /// Next free slot, for free slots.
    next_free: u32,
}

impl Node {
    fn entry(&self) -> Entry<'_> {
        Entry {
            path: &self.path,
            value: &self.value,
            stamp: self.stamp,
            generation: self.generation,
        }
    }
}

/// The mirror.
///
/// # Invariants
///
/// * `by_path` has the slots in use, ordered by path, each path once.
/// * `changes` is ordered by generation; for each slot in use it has the slot's generation. Other
///   elements are out of date and are skipped.
#[derive(Debug)]
pub struct Tree {
    nodes: KVVec<Node>,
    free: u32,
    by_path: KVVec<u32>,
    changes: KVVec<(u64, u32)>,
    generation: u64,
    scan: Option<scan::State>,
    scans: u64,
    /// See [`Self::set_right_since`].
    right_since: LamportTime,
}

/// An entry of the tree, tombstones included.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Its stamp.
    pub stamp: LamportTime,
    /// Number of its last change.
    pub generation: u64,
}

impl<'a> Entry<'a> {
    /// Value and stamp.
    pub fn version(&self) -> Version<'a> {
        Version {
            value: self.value,
            stamp: self.stamp,
        }
    }

    /// The value, unless it is a tombstone.
    pub fn live(&self) -> Option<&'a [u8]> {
        tombstone::live(self.value)
    }
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |b| core::str::from_utf8(b).unwrap_or("?");
        write!(
            f,
            "{} -> {} ({})",
            text(self.path),
            text(self.value),
            self.stamp
        )
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// An empty tree.
    pub const fn new() -> Self {
        Self {
            nodes: KVVec::new(),
            free: NONE,
            by_path: KVVec::new(),
            changes: KVVec::new(),
            generation: 0,
            scan: None,
            scans: 0,
            right_since: LamportTime::ZERO,
        }
    }

    /// Number of the last change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The value at a path; `None` if there is none, or a tombstone.
    pub fn get(&self, path: &[u8]) -> Option<&[u8]> {
        self.entry(path)?.live()
    }

    /// The entry at a path, tombstones included.
    pub fn entry(&self, path: &[u8]) -> Option<Entry<'_>> {
        let at = self.find(path).ok()?;
        self.by_path.get(at).and_then(|&slot| self.visible(slot))
    }

    /// The stamp of a new value that is written here `now`: newer than what is there, since the clock of a host may have
    /// lost years since it wrote that. But not if it is known that the clock is right now (`trusted`), and what is there comes from
    /// a time when it was years ahead: others would go on refusing it.
    pub fn stamp_for(&self, path: &[u8], now: LamportTime, trusted: bool) -> LamportTime {
        match self.find_node(path) {
            Some(old) if !trusted || check_future(old.stamp, now).is_ok() => {
                now.max(old.stamp.next())
            }
            _ => now,
        }
    }

    /// All entries in the order of their paths, tombstones included.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.by_path.iter().filter_map(|&slot| self.visible(slot))
    }

    /// All entries whose path starts with `prefix`, tombstones included. For a folder the prefix ends
    /// with a slash.
    pub fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = Entry<'a>> + 'a {
        let start = self.find(prefix).unwrap_or_else(|at| at);
        self.by_path
            .get(start..)
            .unwrap_or(&[])
            .iter()
            .map_while(move |&slot| {
                let node = self.node(slot)?;
                node.path.starts_with(prefix).then_some(slot)
            })
            .filter_map(|slot| self.visible(slot))
    }

    /// What changed after generation `since`, in the order of the changes, each entry once (with its
    /// last state), phantoms included (see [`tombstone`]). A reader that stops in between goes on after the generation of the last entry it
    /// has taken; one that comes to the end has everything up to [`Self::generation`].
    pub fn changed_since(&self, since: u64) -> impl Iterator<Item = Entry<'_>> {
        let start = self.changes.partition_point(|&(g, _)| g <= since);
        self.changes
            .get(start..)
            .unwrap_or(&[])
            .iter()
            .filter_map(|&(g, slot)| self.node(slot).filter(|n| n.generation == g))
            .map(Node::entry)
    }

    /// Sets a value of this host. An equally old or older one is replaced.
    pub fn apply_local(
        &mut self,
        path: &TreePath<'_>,
        value: &[u8],
        stamp: LamportTime,
    ) -> Result<LocalDecision, TreeError> {
        let decision = match self.entry(path.as_bytes()) {
            Some(old) if old.stamp > stamp && check_future(old.stamp, stamp).is_ok() => {
                return Ok(LocalDecision::Older)
            }
            Some(old) if old.value == value => LocalDecision::Restamped,
            _ => LocalDecision::Changed,
        };
        self.put(path.as_bytes(), value, stamp, false)?;
        Ok(decision)
    }

    /// What [`Self::apply_remote`] would decide. Between the two the value is written to the disk.
    pub fn decide_remote(
        &self,
        path: &TreePath<'_>,
        value: &[u8],
        stamp: LamportTime,
        now_real: LamportTime,
        me: &Name,
    ) -> Result<MergeDecision, TreeError> {
        if !value::is_valid(value) {
            return Err(TreeError::BadValue);
        }
        let remote = Version { value, stamp };
        let node = self.find_node(path.as_bytes());
        let local = node.map(|n| Version {
            value: &n.value,
            stamp: n.stamp,
        });
        let decision = merge(local, remote, now_real);
        if !path.accept_from_peer(me, value) {
            let newer = decision == MergeDecision::Take;
            return Ok(if newer {
                MergeDecision::SayAgain
            } else {
                MergeDecision::Refused
            });
        }
        if decision == MergeDecision::Take && !self.may_learn(path, value, me) {
            return Ok(MergeDecision::SayAgain);
        }
        let phantom = node.is_some_and(|n| n.phantom);
        if decision == MergeDecision::Take && phantom && is_tombstone(value) {
            // There was nothing, and there shall be nothing.
            return Ok(MergeDecision::Phantom);
        }
        Ok(self.judge_role(decision, path, local, remote))
    }

    /// Merges a value that a peer has. See [`MergeDecision`] for what happened.
    pub fn apply_remote(
        &mut self,
        path: &TreePath<'_>,
        value: &[u8],
        stamp: LamportTime,
        now_real: LamportTime,
        me: &Name,
    ) -> Result<MergeDecision, TreeError> {
        let decision = self.decide_remote(path, value, stamp, now_real, me)?;
        match decision {
            MergeDecision::Take => self.put(path.as_bytes(), value, stamp, false)?,
            MergeDecision::Phantom => self.put(path.as_bytes(), value, stamp, true)?,
            MergeDecision::NotNewer
            | MergeDecision::TooFarAhead
            | MergeDecision::Doubt
            | MergeDecision::Refused
            | MergeDecision::SayAgain => (),
        }
        Ok(decision)
    }

    /// Forgets the tombstones in memory (see [`tombstone`]) that are older than `before`: when no
    /// older value can be on its way any more. To be called now and then, with a week, say.
    pub fn forget_phantoms(&mut self, before: LamportTime) {
        self.remove_if(|n| n.phantom && n.stamp < before);
    }

    // ---- below: the mechanism ------------------------------------------------------------------

    fn node(&self, slot: u32) -> Option<&Node> {
        self.nodes.get(crate::num::to_usize(slot))
    }

    fn node_mut(&mut self, slot: u32) -> Option<&mut Node> {
        self.nodes.get_mut(crate::num::to_usize(slot))
    }

    fn find_node(&self, path: &[u8]) -> Option<&Node> {
        let at = self.find(path).ok()?;
        self.by_path.get(at).and_then(|&slot| self.node(slot))
    }

    /// The entry in a slot, unless it is a phantom.
    fn visible(&self, slot: u32) -> Option<Entry<'_>> {
        self.node(slot).filter(|n| !n.phantom).map(Node::entry)
    }

    /// Where in `by_path` a path is, or would be.
    fn find(&self, path: &[u8]) -> Result<usize, usize> {
        self.by_path.binary_search_by(|&slot| {
            let have: &[u8] = self.node(slot).map_or(&[], |n| &n.path);
            have.cmp(path)
        })
    }

    /// Makes room for one more change, and forgets the out of date ones when they are too many.
    fn reserve_change(&mut self) -> Result<(), AllocError> {
        let limit = self.by_path.len().saturating_mul(2).max(64);
        if self.changes.len() >= limit {
            let nodes = &self.nodes;
            self.changes.retain(|&mut (g, slot)| {
                nodes
                    .get(crate::num::to_usize(slot))
                    .is_some_and(|n| n.generation == g)
            });
        }
        self.changes.reserve(1, GFP_KERNEL)
    }

    /// Sets an entry, whatever was there.
    fn put(
        &mut self,
        path: &[u8],
        value: &[u8],
        stamp: LamportTime,
        phantom: bool,
    ) -> Result<(), TreeError> {
        if !value::is_valid(value) {
            return Err(TreeError::BadValue);
        }
        let found = self.find(path);
        let slot = match found {
            Ok(at) => self.by_path.get(at).copied(),
            Err(_) => None,
        };
        // First everything that can fail.
        let same = slot
            .and_then(|slot| self.node(slot))
            .is_some_and(|n| n.value == value);
        let new_value = if same { None } else { Some(copy(value)?) };
        self.reserve_change()?;
        let slot = match (slot, found) {
            (Some(slot), _) => slot,
            (None, Ok(at) | Err(at)) => self.insert(path, at)?,
        };
        // Then everything that can't.
        let generation = self.generation.saturating_add(1);
        self.generation = generation;
        let _ = self.changes.push_within_capacity((generation, slot));
        let scans = self.scans;
        if let Some(node) = self.node_mut(slot) {
            if let Some(value) = new_value {
                node.value = value;
            }
            node.stamp = stamp;
            node.generation = generation;
            node.phantom = phantom;
            node.seen = scans;
        }
        Ok(())
    }

    /// Makes a node for `path`, which goes to `at` in `by_path`.
    fn insert(&mut self, path: &[u8], at: usize) -> Result<u32, TreeError> {
        if self.by_path.len() >= MAX_ENTRIES {
            return Err(TreeError::Full);
        }
        let path = copy(path)?;
        self.by_path.reserve(1, GFP_KERNEL)?;
        let slot = if self.free == NONE {
            let slot = u32::try_from(self.nodes.len()).map_err(|_| TreeError::Full)?;
            let node = Node {
                path,
                value: KVec::new(),
                stamp: LamportTime::ZERO,
                generation: 0,
                seen: 0,
                phantom: false,
                next_free: NONE,
            };
            self.nodes.push(node, GFP_KERNEL)?;
            slot
        } else {
            let slot = self.free;
            let node = self.node_mut(slot).ok_or(TreeError::Full)?;
            node.path = path;
            let next = core::mem::replace(&mut node.next_free, NONE);
            self.free = next;
            slot
        };
        // The room was reserved above.
        let _ = self.by_path.insert_within_capacity(at, slot);
        Ok(slot)
    }

    /// Removes nodes. Returns how many that were visible.
    fn remove_if(&mut self, mut condition: impl FnMut(&Node) -> bool) -> u64 {
        let mut removed = 0u64;
        let mut free = self.free;
        let nodes = &mut self.nodes;
        self.by_path.retain(|&mut slot| {
            let Some(node) = nodes.get_mut(crate::num::to_usize(slot)) else {
                return false;
            };
            if !condition(node) {
                return true;
            }
            if !node.phantom {
                removed = removed.saturating_add(1);
            }
            node.path = KVec::new();
            node.value = KVec::new();
            node.generation = 0;
            node.phantom = false;
            node.next_free = core::mem::replace(&mut free, slot);
            false
        });
        self.free = free;
        removed
    }
}

fn copy(bytes: &[u8]) -> Result<KVec<u8>, AllocError> {
    let mut v = KVec::with_capacity(bytes.len(), GFP_KERNEL)?;
    v.extend_from_slice(bytes, GFP_KERNEL)?;
    Ok(v)
}
