// SPDX-License-Identifier: GPL-2.0-or-later

//! Have two members lived through the same history? (P5)
//!
//! Each member publishes `version-<number>-<host>` links: how far it got in the log of that number, and a digest over all
//! that was before. A log number that a later link names as its predecessor is *closed*: its end can never change again.
//! The highest number is *open*: there a member is somewhere on its way. From this follows the whole rule, number by number:
//!
//! * different creators of one number: two hosts wrote at the same time, the histories exclude each other;
//! * closed at both: end and digest must be equal;
//! * closed at one, open at the other: the open one may be behind or at the end, but never past it;
//! * open at both: the shorter is a prefix of the longer; at the same position the digests must be equal.
//!
//! Digests of all zeros are the artificial ones of `create-resource` and say nothing. The engine and `marsadm` share this
//! file, so that what the tool reports is what the kernel acts on. Pure and without memory allocation.

use crate::{
    defect::defect,
    log::{
        chain::VersionPoint,
        LogName,
        VersionLink, //
    },
    name::Name, //
};

/// How two histories exclude each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// Number of the log in which, or at the start of which, they part.
    pub number: u32,
    /// Last position that both have, if it is known.
    pub common: Option<VersionPoint>,
    /// Bytes of log that only the first one has.
    pub only_a: u64,
    /// Bytes of log that only the second one has.
    pub only_b: u64,
}

/// What two histories are to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// No log number is known of both: nothing can be said.
    Unknown,
    /// The same.
    Equal,
    /// The first one has everything of the second, and more.
    Ahead,
    /// The second one has everything of the first, and more.
    Behind,
    /// Split brain.
    Diverged(Divergence),
}

/// Same log, same position, and no contradiction in the digests.
fn agree(a: &VersionPoint, b: &VersionPoint) -> bool {
    a.log == b.log
        && a.pos == b.pos
        && (a.digest == b.digest || a.is_artificial() || b.is_artificial())
}

/// What one member says about one log number.
#[derive(Clone, Copy)]
struct Known {
    point: VersionPoint,
    closed: bool,
}

/// Walks a member's numbers in ascending order, closed ends taken from the successor's link where there is one.
struct Walk<'a> {
    versions: &'a [VersionLink],
    /// The predecessor named by the first link, when it has no link of its own.
    head: Option<VersionPoint>,
}

impl<'a> Walk<'a> {
    fn new(versions: &'a [VersionLink]) -> Self {
        let head = versions.first().and_then(|v| v.previous);
        Self { versions, head }
    }

    fn peek(&self) -> Option<Known> {
        if let Some(point) = self.head {
            return Some(Known {
                point,
                closed: true,
            });
        }
        let (first, rest) = self.versions.split_first()?;
        let next = rest.first();
        let end = next.and_then(|n| n.previous);
        Some(match end {
            Some(point) if point.log.number == first.this.log.number => Known {
                point,
                closed: true,
            },
            _ => Known {
                point: first.this,
                closed: next.is_some(),
            },
        })
    }

    fn step(&mut self) {
        if self.head.take().is_none() {
            self.versions = self.versions.get(1..).unwrap_or(&[]);
        }
    }

    /// Bytes of all logs from the present one on, its own counted from `from`.
    fn bytes(mut self, from: u64) -> u64 {
        let mut sum = 0u64;
        let mut skip = from;
        while let Some(known) = self.peek() {
            sum = sum.saturating_add(known.point.pos.saturating_sub(skip));
            skip = 0;
            self.step();
        }
        sum
    }
}

/// Compares two histories; both slices are sorted by number, ascending, without doubles.
pub fn compare(a: &[VersionLink], b: &[VersionLink]) -> Relation {
    let (mut wa, mut wb) = (Walk::new(a), Walk::new(b));
    let mut common = None;
    let mut seen = false;
    // True while the last number that both know was the open one of the side.
    let mut relation = Relation::Unknown;
    while let (Some(ka), Some(kb)) = (wa.peek(), wb.peek()) {
        let (pa, pb) = (ka.point, kb.point);
        if pa.log.number < pb.log.number {
            wa.step();
            continue;
        }
        if pb.log.number < pa.log.number {
            wb.step();
            continue;
        }
        let same_log = pa.log == pb.log;
        let fits = match (ka.closed, kb.closed) {
            (true, true) => agree(&pa, &pb),
            (true, false) => same_log && (pb.pos < pa.pos || agree(&pa, &pb)),
            (false, true) => same_log && (pa.pos < pb.pos || agree(&pa, &pb)),
            (false, false) => same_log && (pa.pos != pb.pos || agree(&pa, &pb)),
        };
        let shorter = if pa.pos <= pb.pos { pa } else { pb };
        if !fits && !defect!("split-brain-blind") {
            // At the same end the digests differ: then already something before is different, and nothing here is common.
            let in_log = same_log && pa.pos != pb.pos;
            let from = if in_log { shorter.pos } else { 0 };
            return Relation::Diverged(Divergence {
                number: pa.log.number,
                common: if in_log { Some(shorter) } else { common },
                only_a: wa.bytes(from),
                only_b: wb.bytes(from),
            });
        }
        seen = true;
        common = Some(shorter);
        relation = match pa.pos.cmp(&pb.pos) {
            core::cmp::Ordering::Less => Relation::Behind,
            core::cmp::Ordering::Equal => Relation::Equal,
            core::cmp::Ordering::Greater => Relation::Ahead,
        };
        wa.step();
        wb.step();
    }
    match (seen, wa.peek().is_some(), wb.peek().is_some()) {
        (false, _, _) => Relation::Unknown,
        (true, true, _) => Relation::Ahead,
        (true, false, true) => Relation::Behind,
        (true, false, false) => relation,
    }
}

/// The first log number that two hosts have created; `logs` is sorted.
///
/// Only logs that hold data or that a version link names may be passed: an empty one was only prepared.
pub fn double_number(logs: &[LogName]) -> Option<(u32, Name, Name)> {
    logs.iter()
        .zip(logs.iter().skip(1))
        .find(|(a, b)| a.number == b.number && a.creator != b.creator)
        .map(|(a, b)| (a.number, a.creator, b.creator))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn point(number: u32, creator: &str, pos: u64, digest: u8) -> VersionPoint {
        let creator = Name::new(creator.as_bytes()).unwrap();
        VersionPoint {
            digest: [digest; 16],
            log: LogName { number, creator },
            pos,
        }
    }

    /// A chain whose digests depend on everything before, as the real ones do.
    fn chain(first: u32, logs: &[(&str, u64)]) -> Vec<VersionLink> {
        let mut previous = None;
        let mut digest = 1u8;
        let mut out = Vec::new();
        for (i, (creator, pos)) in logs.iter().enumerate() {
            let number = first + u32::try_from(i).unwrap();
            digest = creator
                .bytes()
                .chain(pos.to_le_bytes())
                .fold(digest, |d, b| d.wrapping_mul(31).wrapping_add(b).max(1));
            let this = point(number, creator, *pos, digest);
            out.push(VersionLink { this, previous });
            previous = Some(this);
        }
        out
    }

    fn diverged(a: &[VersionLink], b: &[VersionLink]) -> Divergence {
        match compare(a, b) {
            Relation::Diverged(d) => d,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn given_a_replica_on_its_way_when_compared_then_it_is_behind_and_never_split() {
        let a = chain(1, &[("a", 300), ("a", 500)]);
        for b in [
            chain(1, &[("a", 0)]),
            chain(1, &[("a", 299)]),
            chain(1, &[("a", 300)]),
            chain(1, &[("a", 300), ("a", 0)]),
            chain(1, &[("a", 300), ("a", 499)]),
        ] {
            assert_eq!(compare(&a, &b), Relation::Ahead);
            assert_eq!(compare(&b, &a), Relation::Behind);
        }
        assert_eq!(compare(&a, &a), Relation::Equal);
    }

    #[test]
    fn p5_given_both_primary_when_the_same_number_has_two_creators_then_it_is_split() {
        let a = chain(1, &[("a", 300), ("a", 70)]);
        let b = chain(1, &[("a", 300), ("b", 5)]);
        let d = diverged(&a, &b);
        assert_eq!((d.number, d.only_a, d.only_b), (2, 70, 5));
        assert_eq!(d.common.unwrap().pos, 300);
        assert_eq!(d.common.unwrap().log.number, 1);
    }

    #[test]
    fn p5_given_a_forced_failover_that_cut_a_log_when_the_old_side_has_more_of_it_then_it_is_split()
    {
        let old = chain(4, &[("a", 200)]);
        let new = chain(4, &[("a", 100), ("b", 50)]);
        let d = diverged(&old, &new);
        assert_eq!((d.number, d.only_a, d.only_b), (4, 100, 50));
        assert_eq!(d.common.unwrap().pos, 100);
        let d = diverged(&new, &old);
        assert_eq!((d.number, d.only_a, d.only_b), (4, 50, 100));
    }

    #[test]
    fn given_a_forced_failover_when_the_old_side_has_not_more_then_it_just_follows() {
        let new = chain(4, &[("a", 100), ("b", 50)]);
        for pos in [0, 99, 100] {
            assert_eq!(compare(&chain(4, &[("a", pos)]), &new), Relation::Behind);
        }
    }

    #[test]
    fn p5_given_equal_positions_when_the_digests_differ_then_it_is_split() {
        let a = [VersionLink {
            this: point(7, "a", 10, 1),
            previous: None,
        }];
        let b = [VersionLink {
            this: point(7, "a", 10, 2),
            previous: None,
        }];
        assert_eq!(diverged(&a, &b).number, 7);
        assert_eq!(diverged(&a, &b).common, None);
    }

    #[test]
    fn p5_given_different_pasts_when_only_the_predecessor_part_tells_then_it_is_split() {
        let a = [VersionLink {
            this: point(7, "c", 10, 1),
            previous: Some(point(6, "a", 5, 3)),
        }];
        let b = [VersionLink {
            this: point(7, "c", 11, 2),
            previous: Some(point(6, "a", 5, 4)),
        }];
        assert_eq!(diverged(&a, &b).number, 6);
    }

    #[test]
    fn given_artificial_digests_when_compared_then_they_do_not_count() {
        let a = [VersionLink {
            this: point(1, "a", 0, 0),
            previous: Some(point(0, "a", 0, 0)),
        }];
        let b = [VersionLink {
            this: point(1, "a", 0, 9),
            previous: Some(point(0, "a", 0, 0)),
        }];
        assert_eq!(compare(&a, &b), Relation::Equal);
    }

    #[test]
    fn given_deleted_old_links_when_the_rest_overlaps_then_it_is_compared() {
        let long = chain(1, &[("a", 300), ("a", 500), ("b", 20), ("b", 7)]);
        assert_eq!(compare(&long[3..], &long[..3]), Relation::Ahead);
        assert_eq!(compare(&long[3..], &long[..2]), Relation::Unknown);
        assert_eq!(compare(&[], &long), Relation::Unknown);
    }

    /// All states of a member after at most three logs of two possible creators, each log with at most two bytes.
    fn states() -> Vec<Vec<(u8, u8)>> {
        let mut all: Vec<Vec<(u8, u8)>> = Vec::new();
        let mut last: Vec<Vec<(u8, u8)>> = std::vec![Vec::new()];
        for _ in 0..3 {
            let longer = |s: &Vec<(u8, u8)>, log| s.iter().copied().chain([log]).collect();
            last = last
                .iter()
                .flat_map(|s| (0..6).map(move |n| longer(s, (n / 3, n % 3))))
                .collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    /// What the member publishes; each digest stands for exactly one history.
    fn published(state: &[(u8, u8)]) -> Vec<VersionLink> {
        let mut history = 1u128;
        let mut previous = None;
        let mut out = Vec::new();
        for (number, (creator, pos)) in (1..).zip(state) {
            history = history * 7 + u128::from(creator * 3 + pos) + 1;
            let name = Name::new(if *creator == 0 { b"a" } else { b"b" }).unwrap();
            let this = VersionPoint {
                digest: history.to_le_bytes(),
                log: LogName {
                    number,
                    creator: name,
                },
                pos: u64::from(*pos),
            };
            out.push(VersionLink { this, previous });
            previous = Some(this);
        }
        out
    }

    /// Whether who is at `t` can have been at `s`: all but the last log of `s` are closed there.
    fn is_past(s: &[(u8, u8)], t: &[(u8, u8)]) -> bool {
        let ((creator, pos), closed) = s.split_last().unwrap();
        let Some((c, p)) = t.get(closed.len()) else {
            return false;
        };
        t.starts_with(closed) && c == creator && pos <= p
    }

    #[test]
    fn p5_given_any_two_states_when_compared_then_split_means_that_neither_is_the_past_of_the_other(
    ) {
        let states: Vec<_> = states().into_iter().map(|s| (published(&s), s)).collect();
        for (links_s, s) in &states {
            for (links_t, t) in &states {
                let expected = match (is_past(s, t), is_past(t, s)) {
                    (true, true) => Some(Relation::Equal),
                    (true, false) => Some(Relation::Behind),
                    (false, true) => Some(Relation::Ahead),
                    (false, false) => None,
                };
                match (compare(links_s, links_t), expected) {
                    (Relation::Diverged(d), None) => {
                        assert!(d.common.is_some() || d.number == 1, "{s:?} {t:?} {d:?}");
                    }
                    (relation, Some(expected)) => assert_eq!(relation, expected, "{s:?} {t:?}"),
                    (relation, None) => panic!("{s:?} {t:?}: {relation:?}"),
                }
                // Old links are deleted: what is left never makes a split brain out of none.
                for cut in 1..links_s.len() {
                    if expected.is_some() {
                        let relation = compare(&links_s[cut..], links_t);
                        assert!(
                            !matches!(relation, Relation::Diverged(_)),
                            "{s:?} {t:?} {cut}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn given_doubles_when_searched_then_the_first_is_found() {
        let n = |s: &str| Name::new(s.as_bytes()).unwrap();
        let log = |number, s| LogName {
            number,
            creator: n(s),
        };
        let split = [log(1, "a"), log(2, "a"), log(2, "b")];
        assert_eq!(double_number(&split), Some((2, n("a"), n("b"))));
        assert_eq!(
            double_number(&[log(1, "a"), log(1, "a"), log(2, "b")]),
            None
        );
        assert_eq!(double_number(&[]), None);
    }
}
