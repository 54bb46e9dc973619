// SPDX-License-Identifier: GPL-2.0-or-later

//! Reading a log ahead of the one who checks it: how it is cut into pieces, and where the bytes of a batch are found.
//!
//! A log is read in large pieces of equal length, whatever batches it has. Most batches lie in one piece and stay where they
//! are. One that begins in a piece and ends in the next is put together from both: that copies less than reading its first
//! part again would cost the disk, as long as a piece is several batches long.

use core::ops::Range;

/// Bytes of a piece: as long as the longest batch, and several times as long as one that is written under load.
pub const PIECE: usize = 4 << 20;
/// Without the memory for a whole piece, no less than this is tried.
pub const MIN_PIECE: usize = 256 << 10;
/// Pieces that wait to be looked at, so that the disk is not idle meanwhile, and no more memory than needed is taken.
pub const DEPTH: usize = 3;

/// Bytes of the piece that begins at `pos` of a log of which `limit` counts; 0 at its end. Pieces end at multiples of
/// `piece`, which keeps direct I/O aligned.
pub fn next_piece(pos: u64, limit: u64, piece: usize) -> usize {
    let left = usize::try_from(limit.saturating_sub(pos)).unwrap_or(usize::MAX);
    let piece_bytes = crate::num::to_u64(piece);
    let behind = pos.checked_rem(piece_bytes).unwrap_or(0);
    let to_end = usize::try_from(piece_bytes.saturating_sub(behind)).unwrap_or(piece);
    left.min(to_end)
}

/// A shorter piece, after there was no memory for one of `piece` bytes; `None` if that was the shortest one.
pub fn shorter(piece: usize) -> Option<usize> {
    (piece > MIN_PIECE).then(|| (piece / 2).max(MIN_PIECE))
}

/// Which bytes of a log a piece has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first one.
    pub pos: u64,
    /// How many.
    pub len: usize,
}

impl Span {
    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.pos.saturating_add(crate::num::to_u64(self.len))
    }

    /// Where `pos` lies in it, if it does, or at its end.
    fn offset_of(&self, pos: u64) -> Option<usize> {
        let at = usize::try_from(pos.checked_sub(self.pos)?).ok()?;
        (at <= self.len).then_some(at)
    }
}

/// Where the bytes are that somebody wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// This part of the present piece.
    Here(Range<usize>),
    /// Not in the present piece any more: the next one takes its place.
    Next,
    /// Not without the next piece, which is still to come.
    Wait,
    /// This part of the present piece, and this one of the next.
    Both(Range<usize>, Range<usize>),
    /// Not here. They have to be read.
    Elsewhere,
}

/// Where `min` bytes (at least one) of the log from `pos` on are; fewer only if `last` says that nothing comes after
/// `next`, or after `here` without one. Who gets a part of a piece gets all of it, and of the next one no more than needed.
pub fn find(pos: u64, min: usize, here: Span, next: Option<Span>, last: bool) -> Found {
    let Some(from) = here.offset_of(pos) else {
        // Behind a batch that was put together, for example.
        return match next {
            Some(n) if n.offset_of(pos).is_some() => Found::Next,
            _ => Found::Elsewhere,
        };
    };
    let rest = here.len.saturating_sub(from);
    let missing = min.max(1).saturating_sub(rest);
    let Some(next) = next else {
        return match (missing, last) {
            (0, _) => Found::Here(from..here.len),
            (_, true) if rest > 0 => Found::Here(from..here.len),
            (_, true) => Found::Elsewhere,
            (_, false) => Found::Wait,
        };
    };
    if missing == 0 {
        return Found::Here(from..here.len);
    }
    if next.pos != here.end() {
        return Found::Elsewhere;
    }
    if rest == 0 {
        return Found::Next;
    }
    if missing <= next.len || last {
        return Found::Both(from..here.len, 0..missing.min(next.len));
    }
    // Longer than both: pieces are short because there is no memory.
    Found::Elsewhere
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Span = Span { pos: 100, len: 50 };
    const NEXT: Span = Span { pos: 150, len: 20 };

    #[test]
    fn given_any_start_when_a_log_is_cut_then_pieces_follow_each_other_up_to_the_limit() {
        for start in [0, 512, 4096, 4095 * 512, (4 << 20) - 512, 5 << 20] {
            for limit in [start, start + 512, start + (9 << 20) + 512] {
                let (mut pos, mut pieces) = (start, 0);
                loop {
                    let len = next_piece(pos, limit, PIECE);
                    if len == 0 {
                        break;
                    }
                    assert!(len <= PIECE && len % 512 == 0);
                    pos += u64::try_from(len).unwrap();
                    assert!(pos == limit || pos % (4 << 20) == 0);
                    pieces += 1;
                }
                assert_eq!(pos, limit.max(start));
                assert!(pieces <= 4);
            }
        }
        assert_eq!(next_piece(10, 5, PIECE), 0);
    }

    #[test]
    fn given_no_memory_when_pieces_get_shorter_then_that_has_an_end() {
        let sizes: std::vec::Vec<_> =
            core::iter::successors(Some(PIECE), |&p| shorter(p)).collect();
        assert_eq!(sizes, [4 << 20, 2 << 20, 1 << 20, 512 << 10, MIN_PIECE]);
    }

    #[test]
    fn given_a_batch_within_a_piece_when_looked_for_then_it_is_there_whatever_comes_next() {
        for (next, last) in [
            (None, false),
            (None, true),
            (Some(NEXT), false),
            (Some(NEXT), true),
        ] {
            assert_eq!(find(120, 30, HERE, next, last), Found::Here(20..50));
            assert_eq!(find(100, 1, HERE, next, last), Found::Here(0..50));
        }
    }

    #[test]
    fn given_a_batch_across_two_pieces_when_looked_for_then_no_more_than_it_is_put_together() {
        assert_eq!(find(140, 11, HERE, None, false), Found::Wait);
        assert_eq!(
            find(140, 11, HERE, Some(NEXT), false),
            Found::Both(40..50, 0..1)
        );
        assert_eq!(
            find(140, 30, HERE, Some(NEXT), false),
            Found::Both(40..50, 0..20)
        );
        assert_eq!(find(140, 31, HERE, Some(NEXT), false), Found::Elsewhere);
    }

    #[test]
    fn given_the_end_of_a_log_when_more_is_wanted_then_it_gives_what_there_is() {
        assert_eq!(find(140, 11, HERE, None, true), Found::Here(40..50));
        assert_eq!(
            find(140, 31, HERE, Some(NEXT), true),
            Found::Both(40..50, 0..20)
        );
        assert_eq!(find(150, 1, HERE, None, true), Found::Elsewhere);
    }

    #[test]
    fn given_a_piece_that_is_used_up_when_looked_for_then_the_next_one_is_next() {
        assert_eq!(find(150, 1, HERE, Some(NEXT), false), Found::Next);
        assert_eq!(find(150, 1, HERE, None, false), Found::Wait);
        assert_eq!(find(160, 1, HERE, Some(NEXT), false), Found::Next);
        assert_eq!(find(170, 1, HERE, Some(NEXT), true), Found::Next);
    }

    /// As the engine does it; gives what was put together, in bytes, or `None` if something was not found.
    fn go_through(batches: &[usize], piece: usize) -> Option<usize> {
        let limit = crate::num::to_u64(batches.iter().sum());
        let mut cut = core::iter::successors(Some(Span { pos: 0, len: 0 }), |s| {
            let (pos, len) = (s.end(), next_piece(s.end(), limit, piece));
            (len > 0).then_some(Span { pos, len })
        })
        .peekable();
        let mut here = cut.next()?;
        let (mut next, mut pos, mut joined) = (None, 0, 0);
        for &batch in batches {
            // First the header is looked at.
            for min in [1, 64, batch] {
                loop {
                    next = next.or_else(|| cut.next());
                    match find(pos, min, here, next, cut.peek().is_none()) {
                        Found::Next => here = next.take()?,
                        Found::Here(part) => {
                            assert_eq!(here.pos + crate::num::to_u64(part.start), pos);
                            assert!(part.len() >= min);
                            break;
                        }
                        Found::Both(one, two) => {
                            assert_eq!(here.pos + crate::num::to_u64(one.start), pos);
                            assert_eq!((one.end, two.start), (here.len, 0));
                            assert_eq!(one.len() + two.len(), min);
                            joined += if min == batch { batch } else { 0 };
                            break;
                        }
                        Found::Wait | Found::Elsewhere => return None,
                    }
                }
            }
            pos += crate::num::to_u64(batch);
        }
        Some(joined)
    }

    #[test]
    fn given_batches_of_any_length_when_a_log_is_gone_through_then_all_are_found_and_few_put_together(
    ) {
        let mut rng = 7u64;
        for longest in [1, 8, 512, 2056, 8192] {
            let batches: std::vec::Vec<usize> = (0..300)
                .map(|_| {
                    rng = rng
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    512 * (1 + usize::try_from(rng >> 40).unwrap() % longest)
                })
                .collect();
            let all: usize = batches.iter().sum();
            let joined = go_through(&batches, PIECE).expect("all are found");
            if longest <= 2056 {
                assert!(joined * 3 < all, "{joined} of {all} bytes were copied");
            }
        }
        assert_eq!(
            go_through(&[512 * 1024, 2 << 20], MIN_PIECE),
            None,
            "short pieces, long batch"
        );
    }

    #[test]
    fn given_a_position_or_a_piece_that_does_not_fit_when_looked_for_then_nothing_is_found() {
        assert_eq!(find(99, 1, HERE, Some(NEXT), false), Found::Elsewhere);
        assert_eq!(find(171, 1, HERE, Some(NEXT), false), Found::Elsewhere);
        assert_eq!(find(151, 1, HERE, None, false), Found::Elsewhere);
        let gap = Span { pos: 151, len: 20 };
        assert_eq!(find(150, 1, HERE, Some(gap), false), Found::Elsewhere);
        assert_eq!(find(140, 11, HERE, Some(gap), true), Found::Elsewhere);
    }
}
