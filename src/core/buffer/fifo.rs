// SPDX-License-Identifier: GPL-2.0-or-later

//! A queue whose entries have consecutive numbers, so that each can be found at once.
//!
//! The kernel crate has no such thing. One growing array would have to be copied as a whole now and then, under the lock
//! of the write path; here the entries live in chunks, and only the short list of chunks ever grows.

use core::mem;
use kernel::alloc::{
    flags::GFP_NOWAIT,
    AllocError,
    KVec, //
};

/// Entries of a chunk; a power of two.
const CHUNK: u64 = 32;
const CHUNK_LEN: usize = 32;
/// Slots of the first ring of chunks; a power of two.
const RING: usize = 16;

/// A queue of entries with the numbers `first..next`.
///
/// # Invariants
///
/// * `ring.len()` is zero or a power of two; the chunk with number `c` (the entries `c * CHUNK ..`) is at `c mod ring.len()`.
/// * Chunks from that of `first` up to that of `next - 1` are filled from their start without gaps, entries before `first`
///   included; all others are empty.
pub(super) struct Fifo<T> {
    ring: KVec<KVec<T>>,
    first: u64,
    next: u64,
    /// A chunk without entries, kept so that a short queue needs no allocation at all.
    spare: KVec<T>,
}

impl<T> Fifo<T> {
    /// An empty queue; its first entry will have the number 0.
    pub(super) const fn new() -> Self {
        Self {
            ring: KVec::new(),
            first: 0,
            next: 0,
            spare: KVec::new(),
        }
    }

    /// Number of the oldest entry, or of the next one if there is none.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next entry will get.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.next.saturating_sub(self.first)
    }

    /// Whether there is no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.next
    }

    fn slot_in(ring_len: usize, number: u64) -> Option<usize> {
        let mask = ring_len.checked_sub(1)?;
        // What does not fit into a size is cut off by the mask anyway.
        let chunk = usize::try_from((number / CHUNK) & u64::from(u32::MAX)).ok()?;
        Some(chunk & mask)
    }

    fn slot(&self, number: u64) -> Option<usize> {
        Self::slot_in(self.ring.len(), number)
    }

    fn index(number: u64) -> Option<usize> {
        usize::try_from(number % CHUNK).ok()
    }

    /// Makes sure that the next [`Fifo::push`] succeeds.
    pub(super) fn reserve(&mut self) -> Result<(), AllocError> {
        let in_use = match self.len() {
            0 => 0,
            _ => (self.next.saturating_sub(1) / CHUNK)
                .saturating_sub(self.first / CHUNK)
                .saturating_add(1),
        };
        let full = usize::try_from(in_use).map_err(|_| AllocError)? >= self.ring.len();
        if full && (self.next % CHUNK == 0 || self.ring.is_empty()) {
            self.grow()?;
        }
        let spare = &mut self.spare;
        let slot = Self::slot_in(self.ring.len(), self.next).ok_or(AllocError)?;
        let chunk = self.ring.get_mut(slot).ok_or(AllocError)?;
        if chunk.capacity() == 0 {
            if spare.capacity() == 0 {
                *spare = KVec::with_capacity(CHUNK_LEN, GFP_NOWAIT)?;
            }
            *chunk = mem::take(spare);
        }
        Ok(())
    }

    #[cold]
    fn grow(&mut self) -> Result<(), AllocError> {
        let len = self.ring.len().saturating_mul(2).max(RING);
        let mut ring = KVec::with_capacity(len, GFP_NOWAIT)?;
        for _ in 0..len {
            ring.push_within_capacity(KVec::new())
                .map_err(|_| AllocError)?;
        }
        let mut number = self.first;
        while number < self.next {
            let from = self.slot(number).and_then(|s| self.ring.get_mut(s));
            let to = Self::slot_in(len, number).and_then(|s| ring.get_mut(s));
            if let (Some(from), Some(to)) = (from, to) {
                mem::swap(from, to);
            }
            number = (number / CHUNK).saturating_add(1).saturating_mul(CHUNK);
        }
        // INVARIANT: Each chunk in use was moved to its place in the new ring.
        self.ring = ring;
        Ok(())
    }

    /// Appends an entry, for which [`Fifo::reserve`] made room.
    pub(super) fn push(&mut self, entry: T) -> bool {
        let slot = self.slot(self.next);
        let Some(chunk) = slot.and_then(|s| self.ring.get_mut(s)) else {
            return false;
        };
        if chunk.push_within_capacity(entry).is_err() {
            return false;
        }
        self.next = self.next.saturating_add(1);
        true
    }

    /// The entry with this number.
    pub(super) fn get(&self, number: u64) -> Option<&T> {
        if number < self.first || number >= self.next {
            return None;
        }
        self.ring.get(self.slot(number)?)?.get(Self::index(number)?)
    }

    /// The entry with this number.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        if number < self.first || number >= self.next {
            return None;
        }
        let slot = self.slot(number)?;
        self.ring.get_mut(slot)?.get_mut(Self::index(number)?)
    }

    /// The oldest entry.
    pub(super) fn front(&self) -> Option<&T> {
        self.get(self.first)
    }

    /// Takes the oldest entry out of the queue. It is dropped together with its chunk, so what holds other memory has to
    /// be taken out of it before.
    pub(super) fn pop(&mut self) {
        if self.is_empty() {
            return;
        }
        let slot = self.slot(self.first);
        self.first = self.first.saturating_add(1);
        if self.first % CHUNK == 0 {
            if let Some(chunk) = slot.and_then(|s| self.ring.get_mut(s)) {
                let mut old = mem::take(chunk);
                old.clear();
                if self.spare.capacity() == 0 {
                    self.spare = old;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn given_any_mix_of_pushes_and_pops_when_looked_up_then_it_is_like_a_deque() {
        let mut f = Fifo::new();
        let mut model = VecDeque::new();
        let mut rng = 1u64;
        let mut number = 0u64;
        for round in 0..20_000u64 {
            rng = rng
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Phases of growing and of shrinking, several rings long.
            let grow = (round / 3000) % 2 == 0;
            if (rng >> 33) % 10 < if grow { 8 } else { 2 } {
                f.reserve().unwrap();
                assert!(f.push(number));
                model.push_back(number);
                number += 1;
            } else {
                assert_eq!(f.front().copied(), model.pop_front());
                f.pop();
            }
            assert_eq!(f.len(), u64::try_from(model.len()).unwrap());
            assert_eq!(f.front(), model.front());
            let probe = f.first() + (rng >> 40) % (f.len() + 2);
            let index = usize::try_from(probe - f.first()).unwrap();
            assert_eq!(f.get(probe), model.get(index));
            assert_eq!(f.get_mut(probe).copied(), model.get(index).copied());
        }
    }

    #[test]
    fn given_no_memory_when_reserving_then_nothing_is_lost() {
        kernel::inject::for_each_failure(|| {
            let mut f = Fifo::new();
            for n in 0..2000u64 {
                while f.reserve().is_err() {}
                assert!(f.push(n));
                if n % 3 == 0 {
                    f.pop();
                }
            }
            assert!((f.first()..f.next()).all(|n| f.get(n) == Some(&n)));
        });
    }
}
