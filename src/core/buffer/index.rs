// SPDX-License-Identifier: GPL-2.0-or-later

//! Which record has the newest data of each byte: non-overlapping extents, ordered by device offset.
//!
//! A red-black tree of the kernel, keyed by the *end* of each extent (its first byte behind it). With that key one descent
//! to the first key above `start` finds the first extent that overlaps `start..`, where a key by start would need the
//! predecessor too; and an extent whose head is cut off keeps its place.

use super::Kind;
use kernel::{
    alloc::{
        flags::GFP_NOWAIT,
        AllocError, //
    },
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
};

/// The part of a record that no later record has overwritten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// First byte on the device.
    pub(super) start: u64,
    /// The record.
    pub(super) seq: u64,
    /// The I/O that writes it back at the moment; 0 if none.
    pub(super) io: u64,
    /// That I/O has ended well, but was not made durable yet.
    pub(super) landed: bool,
    /// Copied from the record.
    pub(super) kind: Kind,
}

/// What becomes of the extents of an I/O.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// On the disk, until it is flushed.
    Landed,
    /// On the disk for good.
    Gone,
    /// To be written again.
    Again,
}

/// What a new extent took away from an older one.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// The older extent, as it was.
    pub(super) old: Extent,
    /// How many bytes it lost.
    pub(super) bytes: u32,
}

/// The extents.
///
/// # Invariants
///
/// Keys are ends; `start < end` for each; no two extents overlap; each is at most as long as its record.
pub(super) struct Index {
    pub(super) tree: RBTree<u64, Extent>,
}

/// Bytes between two offsets of one extent.
pub(super) fn span(start: u64, end: u64) -> u32 {
    // An extent is at most as long as its record, so this never saturates.
    u32::try_from(end.saturating_sub(start)).unwrap_or(u32::MAX)
}

/// Nodes that an insertion will need.
type Nodes = (
    Option<RBTreeNodeReservation<u64, Extent>>,
    Option<RBTreeNodeReservation<u64, Extent>>,
);

impl Index {
    /// No extents.
    pub(super) fn new() -> Self {
        Self {
            tree: RBTree::new(),
        }
    }

    /// Whether any extent overlaps `start..end`.
    pub(super) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.tree
            .cursor_lower_bound(&start.saturating_add(1))
            .is_some_and(|c| c.current().1.start < end)
    }

    /// Gets all memory that [`Index::insert`] can need, so that it can't fail half-way.
    fn nodes_for(&self, start: u64, end: u64) -> Result<Nodes, AllocError> {
        let new = || RBTreeNodeReservation::new(GFP_NOWAIT).map_err(|_| AllocError);
        let Some(cursor) = self.tree.cursor_lower_bound(&start.saturating_add(1)) else {
            return Ok((Some(new()?), None));
        };
        let (&first_end, first) = cursor.current();
        if first.start >= start && first_end <= end {
            // Wholly covered: its own node will be used again.
            Ok((None, None))
        } else if first.start < start && first_end > end {
            Ok((Some(new()?), Some(new()?)))
        } else {
            Ok((Some(new()?), None))
        }
    }

    /// Puts `new`, whose bytes are `new.start..end`, in the place of everything older there, and tells `cut` about each
    /// extent that lost bytes. Nothing is changed when memory is lacking.
    pub(super) fn insert(
        &mut self,
        new: Extent,
        end: u64,
        mut cut: impl FnMut(Cut),
    ) -> Result<(), AllocError> {
        let start = new.start;
        let (mut node, second) = self.nodes_for(start, end)?;
        let mut left: Option<RBTreeNode<u64, Extent>> = None;
        let mut cursor = self.tree.cursor_lower_bound_mut(&start.saturating_add(1));
        while let Some(mut here) = cursor {
            let (&old_end, extent) = here.current_mut();
            // After the last extent has been removed the cursor stands before `start`.
            if extent.start >= end || old_end <= start {
                break;
            }
            let old = *extent;
            let covered = span(old.start.max(start), old_end.min(end));
            cut(Cut {
                old,
                bytes: covered,
            });
            if old.start >= start && old_end == end {
                if node.is_none() {
                    // Overwritten as a whole, the usual case of a hot block.
                    *extent = new;
                    return Ok(());
                }
                // The new extent takes over the key; `insert` below replaces the node.
                break;
            } else if old_end > end {
                // Its tail stays where it is; its head, if it has one, becomes an extent of its own.
                extent.start = end;
                if old.start < start {
                    left = second.map(|n| n.into_node(start, old));
                }
                break;
            }
            let (next, removed) = here.remove_current();
            let removed = removed.into_reservation();
            if old.start < start {
                // Its head stays, under a new key.
                left = Some(removed.into_node(start, old));
            } else if node.is_none() {
                node = Some(removed);
            }
            cursor = next;
        }
        if let Some(left) = left {
            self.tree.insert(left);
        }
        if let Some(node) = node {
            self.tree.insert(node.into_node(end, new));
        }
        Ok(())
    }

    /// Ends I/O `io` on `start..end`, as `how` says; `each` gets the records and lengths of its extents.
    pub(super) fn settle(
        &mut self,
        start: u64,
        end: u64,
        io: u64,
        how: Settled,
        mut each: impl FnMut(u64, u32),
    ) {
        let mut cursor = self.tree.cursor_lower_bound_mut(&start.saturating_add(1));
        while let Some(mut here) = cursor {
            let (&old_end, extent) = here.current_mut();
            if extent.start >= end || old_end <= start {
                break;
            }
            if extent.io != io {
                cursor = here.move_next();
                continue;
            }
            each(extent.seq, span(extent.start, old_end));
            cursor = match how {
                Settled::Gone => here.remove_current().0,
                Settled::Again => {
                    extent.io = 0;
                    extent.landed = false;
                    here.move_next()
                }
                Settled::Landed => {
                    extent.landed = true;
                    here.move_next()
                }
            };
        }
    }
}
