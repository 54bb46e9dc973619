// SPDX-License-Identifier: GPL-2.0-or-later

//! Making a replica's disk equal to the primary's device by comparing digests (first join, invalidate, resize).
//!
//! Several workers, each with a connection of its own, take chunks from one [`SyncPlan`]. For each chunk a worker asks the
//! primary for the digests of its grains, compares them with its own disk ([`differing`]), and reads and writes only what
//! differs. What failed is handed out again, to whoever comes first.
//!
//! The primary's device changes meanwhile. That is no matter: its changes since the sync began are in its log, and the
//! replica is marked inconsistent until it has replayed up to the log position that the primary names at the end.
//!
//! [`SyncPlan::progress`] is the position below which everything was done. It never goes back (P9). It may be written to
//! the tree only after the disk was flushed *since it was read*, so that a restart from it misses nothing.
//!
//! Pure: no clock, no socket, no allocation; the caller holds the lock.

use core::fmt;
use core::ops::Range;

use crate::num::is_aligned;
use crate::wire::message::bulk::{
    MAX_DIGEST_RANGE,
    MAX_GRAIN,
    MIN_GRAIN, //
};
use crate::wire::SECTOR;

mod compare;

pub use compare::{
    differing,
    digest_chunk,
    digests_len,
    is_zero,
    Difference,
    Differing, //
};

/// How many chunks may be between the lowest unfinished one and the highest one handed out, and so the largest number of
/// workers. Bounds the work that is done twice after a restart.
pub const WINDOW: u32 = u64::BITS;

/// Grain and chunk where nobody knows better.
pub const DEFAULT_GRAIN: u32 = 16 << 10;
/// See [`DEFAULT_GRAIN`].
pub const DEFAULT_CHUNK: u32 = 1 << 20;

/// Misuse of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncError {
    /// Size, start, grain or chunk do not fit together.
    BadGeometry,
    /// The chunk was taken back meanwhile, or is already finished: its result does not count.
    Stale,
    /// The number of digests is not that of the grains.
    BadDigests,
}

impl fmt::Display for SyncError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadGeometry => "size, start, grain and chunk of the sync do not fit together",
            Self::Stale => "the chunk was taken back meanwhile",
            Self::BadDigests => "the peer sent another number of digests than asked for",
        })
    }
}

/// A part of the device that one worker compares. Give it back by [`SyncPlan::done`] or [`SyncPlan::failed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
    index: u64,
    epoch: u32,
}

impl Chunk {
    /// The bytes of the device.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.len.into())
    }
}

/// What a finished chunk cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChunkCost {
    /// Bytes that came over the network.
    pub transferred: u64,
    /// Bytes that were made zero without being transferred.
    pub zeroed: u64,
}

/// Counters since the plan was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncStats {
    /// Bytes of finished chunks.
    pub compared: u64,
    /// See [`ChunkCost`].
    pub transferred: u64,
    /// See [`ChunkCost`].
    pub zeroed: u64,
    /// Chunks that failed or were taken back.
    pub failed_chunks: u64,
}

/// State of one sync.
///
/// # Invariants
///
/// Bit `i` of `done`, `busy` and `retry` belongs to chunk `base + i`; a chunk is in at most one of them. Chunks below
/// `base` are done, chunks from `next` on were never handed out, `base <= next <= base + WINDOW`. Bit 0 of `done` is clear.
#[derive(Debug)]
pub struct SyncPlan {
    size: u64,
    start: u64,
    grain: u32,
    chunk: u32,
    base: u64,
    next: u64,
    done: u64,
    busy: u64,
    retry: u64,
    epoch: u32,
    failures_in_a_row: u32,
    stats: SyncStats,
}

impl SyncPlan {
    /// Syncs a device of `size` bytes from byte `start` on, in chunks of `chunk` bytes with a digest per `grain` bytes.
    ///
    /// To go on after a restart, or after the device was resized, make a new plan that starts at the last progress.
    pub fn new(size: u64, start: u64, grain: u32, chunk: u32) -> Result<Self, SyncError> {
        let good = is_aligned(size, SECTOR)
            && is_aligned(start, SECTOR)
            && start <= size
            && size <= u64::MAX >> 1
            && grain.is_power_of_two()
            && (MIN_GRAIN..=MAX_GRAIN).contains(&grain)
            && (grain..=MAX_DIGEST_RANGE).contains(&chunk)
            && is_aligned(chunk.into(), grain.into());
        let first = start.checked_div(chunk.into()).filter(|_| good);
        let first = first.ok_or(SyncError::BadGeometry)?;
        // INVARIANT: No chunk was handed out.
        Ok(Self {
            size,
            start,
            grain,
            chunk,
            base: first,
            next: first,
            done: 0,
            busy: 0,
            retry: 0,
            epoch: 0,
            failures_in_a_row: 0,
            stats: SyncStats::default(),
        })
    }

    /// The next chunk for a worker; [`None`] if there is nothing to do at the moment. More may come when another worker
    /// gives a chunk back.
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        self.next_wanted(|_, _| true)
    }

    /// As [`Self::next_chunk`], but passes over chunks that are `wanted` by nobody: they count as done. `wanted` gets first
    /// byte and length; a chunk that it wanted once it must want for ever.
    pub fn next_wanted(&mut self, wanted: impl Fn(u64, u64) -> bool) -> Option<Chunk> {
        let index = if self.retry == 0 {
            loop {
                let used = self.next.saturating_sub(self.base);
                if used >= WINDOW.into() || self.start_of(self.next) >= self.size {
                    return None;
                }
                let index = self.next;
                self.next = index.checked_add(1)?;
                let offset = self.start_of(index);
                if wanted(offset, self.end_of(index).saturating_sub(offset)) {
                    break index;
                }
                // INVARIANT: It was in none, and `advance` restores that bit 0 is clear.
                self.done |= self.bit(index)?;
                self.advance();
            }
        } else {
            self.base.checked_add(self.retry.trailing_zeros().into())?
        };
        // INVARIANT: The chunk was in `retry` or in none.
        let bit = self.bit(index)?;
        self.retry &= !bit;
        self.busy |= bit;
        let offset = self.start_of(index);
        let end = self.end_of(index);
        let len = u32::try_from(end.checked_sub(offset)?).ok()?;
        Some(Chunk {
            offset,
            len,
            index,
            epoch: self.epoch,
        })
    }

    /// The chunk of our disk equals what the primary had. Everything was written, not yet flushed.
    pub fn done(&mut self, chunk: Chunk, cost: ChunkCost) -> Result<(), SyncError> {
        let bit = self.take(chunk)?;
        // INVARIANT: `take` removed it from `busy`.
        self.done |= bit;
        self.advance();
        let stats = &mut self.stats;
        stats.compared = stats.compared.saturating_add(chunk.len.into());
        stats.transferred = stats.transferred.saturating_add(cost.transferred);
        stats.zeroed = stats.zeroed.saturating_add(cost.zeroed);
        self.failures_in_a_row = 0;
        Ok(())
    }

    /// The worker could not finish the chunk; another one, or the same, gets it again.
    pub fn failed(&mut self, chunk: Chunk) -> Result<(), SyncError> {
        // INVARIANT: `take` removed it from `busy`.
        self.retry |= self.take(chunk)?;
        self.count_failures(1);
        Ok(())
    }

    /// All workers are gone, for instance because the primary is: takes all chunks back. Late results are [`SyncError::Stale`].
    pub fn take_all_back(&mut self) {
        self.count_failures(self.busy.count_ones());
        // INVARIANT: They move from one to the other.
        self.retry |= self.busy;
        self.busy = 0;
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Everything below this byte was made equal, and everything below the start of the plan.
    pub fn progress(&self) -> u64 {
        self.start_of(self.base)
    }

    /// All was made equal. Now flush the disk, and ask the primary for its log position.
    pub fn is_complete(&self) -> bool {
        self.progress() >= self.size
    }

    /// Chunks that workers have.
    pub fn busy(&self) -> u32 {
        self.busy.count_ones()
    }

    /// Failures since the last success: wait the longer the more there are.
    pub fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row
    }

    /// Counters.
    pub fn stats(&self) -> SyncStats {
        self.stats
    }

    /// Bytes per digest.
    pub fn grain(&self) -> u32 {
        self.grain
    }

    /// Size of the device.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Passes what is done without a gap.
    fn advance(&mut self) {
        // INVARIANT: All bits and `base` move together.
        while self.done & 1 != 0 {
            self.done >>= 1;
            self.busy >>= 1;
            self.retry >>= 1;
            self.base = self.base.saturating_add(1);
        }
    }

    /// Removes the chunk from `busy`.
    fn take(&mut self, chunk: Chunk) -> Result<u64, SyncError> {
        let bit = self.bit(chunk.index).filter(|bit| self.busy & bit != 0);
        let bit = bit.filter(|_| chunk.epoch == self.epoch);
        let bit = bit.ok_or(SyncError::Stale)?;
        self.busy &= !bit;
        Ok(bit)
    }

    fn count_failures(&mut self, n: u32) {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(n);
        self.stats.failed_chunks = self.stats.failed_chunks.saturating_add(n.into());
    }

    fn bit(&self, index: u64) -> Option<u64> {
        1u64.checked_shl(u32::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// First byte of a chunk. Chunks lie at multiples of their length; the first one may begin later, the last end earlier.
    fn start_of(&self, index: u64) -> u64 {
        let at = index.saturating_mul(self.chunk.into());
        at.max(self.start).min(self.size)
    }

    fn end_of(&self, index: u64) -> u64 {
        self.start_of(index.saturating_add(1))
    }
}
