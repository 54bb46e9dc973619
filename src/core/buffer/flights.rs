// SPDX-License-Identifier: GPL-2.0-or-later

//! The I/Os that are on their way to the backing disk.

use crate::num::to_usize;
use kernel::alloc::{
    flags::GFP_NOWAIT,
    AllocError,
    KVec, //
};

/// One I/O in flight.
#[derive(Clone, Copy)]
pub(super) struct Flight {
    pub(super) id: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    /// A flush has failed meanwhile, see [`Flights::doubt`].
    pub(super) doubtful: bool,
    /// Bytes that were superseded since; the I/O still holds their memory.
    orphaned: usize,
}

/// All I/Os in flight. There are so few that they fit in an array; it is sorted by place on the disk.
///
/// # Invariants
///
/// No two overlap.
pub(super) struct Flights {
    sorted: KVec<Flight>,
    orphaned: usize,
}

impl Flights {
    pub(super) const fn new() -> Self {
        Self {
            sorted: KVec::new(),
            orphaned: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Payload bytes that only I/Os in flight hold.
    pub(super) fn orphaned(&self) -> usize {
        self.orphaned
    }

    /// Index of the first I/O that ends behind `start`.
    fn first_behind(&self, start: u64) -> usize {
        self.sorted.partition_point(|f| f.end <= start)
    }

    /// Whether an I/O overlaps `start..end`.
    pub(super) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.sorted
            .get(self.first_behind(start))
            .is_some_and(|f| f.start < end)
    }

    /// Makes sure that the next [`Flights::add`] succeeds.
    pub(super) fn reserve(&mut self) -> Result<(), AllocError> {
        self.sorted.reserve(1, GFP_NOWAIT)
    }

    /// Adds an I/O, for which [`Flights::reserve`] made room; its range was seen to be free.
    pub(super) fn add(&mut self, id: u64, start: u64, end: u64) -> bool {
        let flight = Flight {
            id,
            start,
            end,
            doubtful: false,
            orphaned: 0,
        };
        let at = self.first_behind(start);
        self.sorted.insert_within_capacity(at, flight).is_ok()
    }

    /// Notes that `bytes` of an I/O were superseded.
    pub(super) fn orphan(&mut self, id: u64, bytes: u32) {
        if let Some(f) = self.sorted.iter_mut().find(|f| f.id == id) {
            f.orphaned = f.orphaned.saturating_add(to_usize(bytes));
            self.orphaned = self.orphaned.saturating_add(to_usize(bytes));
        }
    }

    /// A flush has failed: the drive may have had the data of each of these already, in the cache that it has lost, although
    /// nobody was told yet that the I/O has ended.
    pub(super) fn doubt(&mut self) {
        for f in &mut self.sorted {
            f.doubtful = true;
        }
    }

    /// Removes an I/O that is done.
    pub(super) fn remove(&mut self, id: u64) -> Option<Flight> {
        let at = self.sorted.iter().position(|f| f.id == id)?;
        let flight = self.sorted.remove(at).ok()?;
        self.orphaned = self.orphaned.saturating_sub(flight.orphaned);
        Some(flight)
    }
}
