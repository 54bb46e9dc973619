// SPDX-License-Identifier: GPL-2.0-or-later

//! Ranges that become zero: what the device offers, and how write-back does it.
//!
//! A discard is logged as "this becomes zero, and the disk may give up its blocks". It can't be less than that: what a disk
//! reads after a plain discard is its own affair, and replicas have to be equal byte by byte (P1). So the backing disk never
//! gets a discard, but a write of zeros by which it may give up blocks, and where it can't do that by itself, zeros.
//!
//! * *Writes of zeros* are always offered: in the log and on the network they cost nothing.
//! * *Discards* are offered where the primary's backing disk has discards and can write zeros by itself: elsewhere a file
//!   system would have them done by writing, which is worse than not discarding. What is logged is done by every member,
//!   by whatever its own disk can.
//! * *Long ones* are done in pieces, one after the other, so that neither a queue nor a thread is filled with a single one.

/// Longest range of one discard or write of zeros that the device accepts; longer ones are split by the block layer.
pub const MAX_REQUEST: u32 = 1 << 30;

/// Longest piece that the backing disk is asked to do by itself.
const MAX_BY_DEVICE: u64 = 1 << 30;
/// Longest piece that is written: a few I/Os of the usual size.
const MAX_WRITTEN: u32 = 4 << 20;
/// So much may wait to become zero if the backing disk does it by itself.
const WAITING_BY_DEVICE: u64 = 64 << 30;

/// What a backing disk can do, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// Logical block size.
    pub block: u32,
    /// Longest range that it fills with zeros by itself; 0 if it can't.
    pub max_zeroes: u64,
    /// It has discards.
    pub discard: bool,
    /// Unit in which it gives up blocks; 0 if it does not say.
    pub granularity: u32,
}

impl Backing {
    /// Unit of the discards that are worth offering; 0 if none are.
    pub fn offers_discard(&self) -> u32 {
        if self.discard && self.max_zeroes > 0 {
            self.granularity.max(self.block)
        } else {
            0
        }
    }

    /// How much of `length` bytes at `offset` to do next.
    pub fn piece(&self, offset: u64, length: u32) -> Piece {
        let blocks = !self.block.saturating_sub(1);
        let by_device =
            u32::try_from(self.max_zeroes.min(MAX_BY_DEVICE)).unwrap_or(u32::MAX) & blocks;
        if by_device == 0 {
            return Piece {
                length: length.min(MAX_WRITTEN),
                by_device: false,
            };
        }
        let mut piece = length.min(by_device);
        if piece < length && self.granularity > 0 {
            // Where it is cut, no block should be left that neither of the two pieces has as a whole.
            let end = offset.saturating_add(u64::from(piece));
            let over = end.checked_rem(u64::from(self.granularity)).unwrap_or(0);
            let shorter = piece.saturating_sub(u32::try_from(over).unwrap_or(u32::MAX)) & blocks;
            if shorter > 0 {
                piece = shorter;
            }
        }
        Piece {
            length: piece,
            by_device: true,
        }
    }

    /// How many bytes may wait to become zero before the next ones have to wait for admission: as much as write-back does
    /// in the time in which it empties a buffer of `budget` bytes.
    pub fn may_wait(&self, budget: usize) -> u64 {
        let written = crate::num::to_u64(budget);
        if self.max_zeroes > 0 {
            WAITING_BY_DEVICE.max(written)
        } else {
            written
        }
    }
}

/// A part of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes.
    pub length: u32,
    /// The disk makes the zeros; else they are written.
    pub by_device: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ABLE: Backing = Backing {
        block: 512,
        max_zeroes: 2 << 30,
        discard: true,
        granularity: 4096,
    };

    #[test]
    fn given_a_disk_that_can_only_discard_then_discards_are_not_offered() {
        assert_eq!(ABLE.offers_discard(), 4096);
        let unsure = Backing {
            max_zeroes: 0,
            ..ABLE
        };
        assert_eq!(unsure.offers_discard(), 0);
        let never = Backing {
            discard: false,
            ..ABLE
        };
        assert_eq!(never.offers_discard(), 0);
    }

    #[test]
    fn given_a_disk_that_can_not_make_zeros_then_they_are_written_in_small_pieces() {
        let plain = Backing {
            block: 4096,
            ..Backing::default()
        };
        let p = plain.piece(4096, 1 << 30);
        assert_eq!((p.length, p.by_device), (4 << 20, false));
        assert_eq!(plain.may_wait(100), 100);
        assert_eq!(ABLE.may_wait(100), 64 << 30);
    }

    #[test]
    fn given_a_long_range_when_it_is_cut_then_at_the_unit_in_which_blocks_are_given_up() {
        let small = Backing {
            max_zeroes: 10_000,
            ..ABLE
        };
        assert_eq!(small.piece(512, 100 * 512).length, 8192 - 512);
        assert_eq!(small.piece(8192, 512).length, 512);
    }

    proptest! {
        #[test]
        fn given_any_disk_when_a_range_is_done_piece_by_piece_then_each_is_of_whole_blocks_and_nothing_is_left(
            log in 9..13u32, max in 0..(3u64 << 30), discard: bool, granularity in 0..(1u32 << 26),
            first in 0..(1u64 << 40), blocks in 1..(1u32 << 19),
        ) {
            let block = 1 << log;
            let disk = Backing { block, max_zeroes: max, discard, granularity };
            let (mut offset, mut rest) = (first * u64::from(block), blocks * block);
            let mut pieces = 0u64;
            while rest > 0 {
                let p = disk.piece(offset, rest);
                prop_assert!(p.length > 0 && p.length <= rest && p.length % block == 0);
                prop_assert!(!p.by_device || u64::from(p.length) <= max);
                offset += u64::from(p.length);
                rest -= p.length;
                pieces += 1;
                // The rest of a long one goes like its beginning.
                if pieces > 2000 { break; }
            }
        }
    }
}
