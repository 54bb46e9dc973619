// SPDX-License-Identifier: GPL-2.0-or-later

//! Reconciling the mirror with what a walk through the folders saw.
//!
//! The files are the truth, also where an administrator has changed them by hand. But a walk takes its
//! time, and other threads write meanwhile: what was set after the walk began is not undone by an
//! older value that the walk had seen before.

use super::{
    copy,
    path::TreePath,
    tombstone::is_tombstone,
    value,
    Node,
    Tree,
    TreeError, //
};
use crate::lamport::LamportTime;
use kernel::alloc::KVec;

/// A walk in progress.
#[derive(Debug)]
pub(super) struct State {
    number: u64,
    /// Generation at its beginning.
    start: u64,
    /// Only paths with this prefix are looked at.
    prefix: KVec<u8>,
    /// Something could not be taken in, so nothing can be said about what was not seen.
    incomplete: bool,
    changed: u64,
    newest: LamportTime,
}

/// What an observation meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// As it was.
    Same,
    /// Another value or stamp; the mirror has it now.
    Changed,
    /// It was set to something newer since the walk began.
    Outdated,
}

/// What a walk has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScanSummary {
    /// Entries that are new or different.
    pub changed: u64,
    /// Entries that are no longer there, without tombstones. Peers still have them: pull everything again.
    pub removed: u64,
    /// The newest stamp seen; the Lamport clock must be later.
    pub newest: LamportTime,
}

impl Tree {
    /// Begins a walk through all folders whose path starts with `prefix` (empty: everything). A walk
    /// that was not ended is forgotten.
    pub fn begin_scan(&mut self, prefix: &[u8]) -> Result<(), TreeError> {
        let prefix = copy(prefix)?;
        self.scans = self.scans.saturating_add(1);
        self.scan = Some(State {
            number: self.scans,
            start: self.generation,
            prefix,
            incomplete: false,
            changed: 0,
            newest: LamportTime::ZERO,
        });
        Ok(())
    }

    /// The walk has seen a symlink.
    pub fn observe(
        &mut self,
        path: &TreePath<'_>,
        value: &[u8],
        stamp: LamportTime,
    ) -> Result<Seen, TreeError> {
        let result = self.observe_inner(path, value, stamp);
        if let Some(scan) = &mut self.scan {
            scan.newest = scan.newest.max(stamp);
            match result {
                Ok(Seen::Changed) => scan.changed = scan.changed.saturating_add(1),
                Ok(_) => (),
                Err(_) => scan.incomplete = true,
            }
        }
        result
    }

    fn observe_inner(
        &mut self,
        path: &TreePath<'_>,
        value: &[u8],
        stamp: LamportTime,
    ) -> Result<Seen, TreeError> {
        if !value::is_valid(value) {
            return Err(TreeError::BadValue);
        }
        let (number, start) = match &self.scan {
            Some(scan) => (scan.number, scan.start),
            // Outside of a walk: believe what is told.
            None => (self.scans, self.generation),
        };
        if let Ok(at) = self.find(path.as_bytes()) {
            let slot = self.by_path.get(at).copied().unwrap_or(super::NONE);
            if let Some(node) = self.node_mut(slot).filter(|n| !n.phantom) {
                node.seen = number;
                if node.value == value && node.stamp == stamp {
                    return Ok(Seen::Same);
                }
                if node.generation > start && node.stamp > stamp {
                    return Ok(Seen::Outdated);
                }
            }
        }
        self.put(path.as_bytes(), value, stamp, false)?;
        Ok(Seen::Changed)
    }

    /// The walk could not see everything (an error): nothing that was not seen is taken for removed.
    pub fn scan_incomplete(&mut self) {
        if let Some(scan) = &mut self.scan {
            scan.incomplete = true;
        }
    }

    /// Ends the walk: what is in the mirror and was not seen is removed.
    pub fn end_scan(&mut self) -> ScanSummary {
        let Some(scan) = self.scan.take() else {
            return ScanSummary::default();
        };
        let mut removed = 0;
        if !scan.incomplete {
            let gone = |n: &Node| {
                !n.phantom
                    && n.seen != scan.number
                    && n.generation <= scan.start
                    && n.path.starts_with(&scan.prefix)
            };
            // A tombstone that was collected is still remembered for a while.
            for node in self.nodes.iter_mut() {
                if node.generation != 0 && is_tombstone(&node.value) && gone(node) {
                    node.phantom = true;
                }
            }
            removed = self.remove_if(gone);
        }
        if removed > 0 {
            self.generation = self.generation.saturating_add(1);
        }
        ScanSummary {
            changed: scan.changed,
            removed,
            newest: scan.newest,
        }
    }
}
