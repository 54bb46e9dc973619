// SPDX-License-Identifier: GPL-2.0-or-later

//! The dirty map: whatever a crash tears, nothing that was written without a log is forgotten.

use kernel::inject::for_each_failure;
use mars_core::dirty::*;
use mars_core::lamport::LamportTime;
use mars_core::log::LogName;
use mars_core::name::Name;
use mars_core::tree::value::ReplayLink;
use mars_host_digest::HostDigest;
use proptest::prelude::*;
use std::collections::BTreeSet;

const GRAIN: u64 = 64 << 10;

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn log(number: u32, creator: &str) -> LogName {
    LogName {
        number,
        creator: name(creator),
    }
}

fn geometry(size: u64) -> Geometry {
    Geometry::for_size(size)
}

fn new_map(size: u64) -> DirtyMap {
    DirtyMap::new(name("data"), name("a"), geometry(size), 7).unwrap()
}

/// The file, as it is surely on the disk, and what was written since the last flush.
struct File {
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

impl File {
    fn new(map: &DirtyMap) -> Self {
        let len = file_len(&map.bits().geometry());
        Self {
            durable: vec![0; usize::try_from(len).unwrap()],
            pending: Vec::new(),
        }
    }

    fn write(&mut self, map: &mut DirtyMap) {
        let mut block = vec![0; BLOCK];
        while let Some(at) = map.next_write::<HostDigest>(&mut block) {
            self.pending
                .push((usize::try_from(at).unwrap(), block.clone()));
        }
    }

    fn flush(&mut self) {
        for (at, block) in self.pending.drain(..) {
            self.durable[at..at + BLOCK].copy_from_slice(&block);
        }
    }

    fn save(&mut self, map: &mut DirtyMap) {
        self.write(map);
        self.flush();
        map.saved();
        assert!(!map.is_unsaved());
    }

    /// What is there after a loss of power: of each pending block any of its sectors.
    fn crash(&mut self, choices: &mut impl Iterator<Item = u8>) {
        for (at, block) in self.pending.drain(..) {
            let mask = choices.next().unwrap_or(0);
            for sector in 0..8 {
                if mask & (1 << sector) != 0 {
                    let from = sector * 512;
                    self.durable[at + from..at + from + 512]
                        .copy_from_slice(&block[from..from + 512]);
                }
            }
        }
    }

    fn load(&self) -> Option<DirtyMap> {
        let mut map =
            DirtyMap::load::<HostDigest>(&name("data"), &name("a"), 7, &self.durable).unwrap()?;
        for index in 0..map.bits().geometry().pieces() {
            let at = (2 + usize::try_from(index).unwrap()) * BLOCK;
            map.load_piece::<HostDigest>(index, &self.durable[at..at + BLOCK]);
        }
        Some(map)
    }
}

#[test]
fn given_sizes_when_a_geometry_is_chosen_then_the_map_stays_small_and_the_grain_is_at_least_64_kib()
{
    for (size, grain) in [
        (512, 1 << 16),
        (1 << 40, 1 << 16),
        ((1 << 40) + 512, 1 << 17),
        (1 << 50, 1 << 26),
    ] {
        let g = geometry(size);
        assert_eq!(g.grain, grain, "{size}");
        assert!(g.pieces() <= MAX_PIECES && g.pieces() > 0);
        assert_eq!(Geometry::checked(size, g.grain), Some(g));
    }
    assert_eq!(Geometry::checked(0, MIN_GRAIN), None);
    assert_eq!(Geometry::checked(513, MIN_GRAIN), None);
    assert_eq!(Geometry::checked(1 << 20, MIN_GRAIN / 2), None);
    assert_eq!(Geometry::checked(1 << 20, MIN_GRAIN + 1), None);
    assert_eq!(Geometry::checked(1 << 62, MAX_GRAIN), None);
}

#[test]
fn given_ranges_when_marked_then_exactly_their_grains_are_dirty() {
    let size = 3 << 31;
    let mut bits = Bits::new(geometry(size)).unwrap();
    let mut pieces = Vec::new();
    let last = size - 512;
    for (offset, length) in [(GRAIN - 512, 1024), (5 * GRAIN, GRAIN), (last, 512)] {
        bits.mark(offset, length, |p| pieces.push(p));
        bits.mark(offset, length, |p| panic!("{p} has not changed"));
    }
    assert_eq!(pieces, [0, 0, 3]);
    for grain in 0..8 {
        let dirty = [0, 1, 5].contains(&grain);
        assert_eq!(bits.is_dirty(grain * GRAIN, GRAIN), dirty, "{grain}");
        assert_eq!(bits.is_dirty(grain * GRAIN + 512, 512), dirty, "{grain}");
    }
    assert!(bits.is_dirty(last, 512) && !bits.is_dirty(last - GRAIN, 512));
    assert!(bits.is_dirty(2 * GRAIN, 4 * GRAIN) && !bits.is_dirty(0, 0));
    assert_eq!(bits.dirty_bytes(), 4 * GRAIN);
    assert!(bits.is_dirty(size, 512), "outside nothing is known");
    bits.mark(size - 512, 1024, |_| ());
    assert!(bits.is_all() && bits.is_dirty(100 * GRAIN, 512));
    assert_eq!(bits.dirty_bytes(), size);
    bits.clear();
    assert_eq!(bits.dirty_bytes(), 0);
}

#[test]
fn given_a_piece_of_ones_when_loaded_then_bits_behind_the_device_do_not_count() {
    let size = 10 * GRAIN + 512;
    let mut bits = Bits::new(geometry(size)).unwrap();
    assert!(bits.load(0, &[0xff; PIECE]));
    assert_eq!(bits.dirty_bytes(), size);
    assert!(!bits.load(1, &[0xff; PIECE]) && !bits.load(0, &[0xff; PIECE - 1]));
    let mut out = [0; PIECE];
    assert!(bits.piece(0, &mut out));
    assert_eq!(out[..3], [0xff, 0x07, 0]);
}

#[test]
fn given_a_gap_when_it_opens_settles_and_closes_then_recovery_starts_where_it_must() {
    let mut m = new_map(1 << 30);
    assert_eq!(m.recovery(), Recovery::Normal);
    assert_eq!(m.settle(), Err(DirtyError::WrongState));
    assert_eq!(m.close_gap(9), Err(DirtyError::WrongState));
    m.open_gap(log(4, "b"), 8192, 5, LamportTime::ZERO).unwrap();
    assert_eq!(m.recovery(), until(None, log(4, "b"), 8192));
    let again = m.open_gap(log(4, "b"), 8192, 5, LamportTime::ZERO);
    assert_eq!(again, Err(DirtyError::WrongState));
    assert!(m.is_open() && !m.covers(&log(5, "a"), 0));
    m.settle().unwrap();
    assert_eq!(m.recovery(), Recovery::Behind(log(4, "b"), 8192));
    m.close_gap(5).unwrap();
    assert_eq!(m.recovery(), Recovery::From(log(5, "a")));
    assert!(m.covers(&log(5, "a"), 0) && !m.covers(&log(5, "b"), 0) && !m.covers(&log(6, "a"), 0));
    // A second gap before everybody has recovered from the first.
    m.mark(0, 512);
    m.open_gap(log(7, "a"), 9216, 8, LamportTime::ZERO).unwrap();
    m.close_gap(8).unwrap();
    for number in 4..10 {
        assert_eq!(m.covers(&log(number, "a"), 0), (5..=8).contains(&number));
    }
    assert!(m.bits().is_dirty(0, 512));
    m.clear();
    assert_eq!(
        (m.recovery(), m.bits().dirty_bytes()),
        (Recovery::Normal, 0)
    );
    assert!(!m.covers(&log(8, "a"), 0) && m.last_gap().is_none());
}

fn until(from: Option<LogName>, log: LogName, end: u64) -> Recovery {
    Recovery::Until { from, log, end }
}

#[test]
fn p2_given_a_second_gap_when_power_is_lost_then_what_is_before_the_first_is_not_replayed() {
    let mut m = new_map(GRAIN * 100);
    let mut f = File::new(&m);
    m.open_gap(log(4, "a"), 8192, 5, LamportTime::ZERO).unwrap();
    m.settle().unwrap();
    m.close_gap(5).unwrap();
    f.save(&mut m);
    // The replay link may still be in log 4, and the disk has newer data that was flushed without a log.
    m.open_gap(log(6, "a"), 4096, 7, LamportTime::ZERO).unwrap();
    f.save(&mut m);
    let mut l = f.load().unwrap();
    let want = until(Some(log(5, "a")), log(6, "a"), 4096);
    assert_eq!(l.recovery(), want);
    // Once settled nothing is replayed at all; without a gap that counts, the link does.
    l.settle().unwrap();
    assert_eq!(l.recovery(), Recovery::Behind(log(6, "a"), 4096));
    l.close_gap(7).unwrap();
    l.clear();
    l.open_gap(log(9, "a"), 8192, 10, LamportTime::ZERO)
        .unwrap();
    assert_eq!(l.recovery(), until(None, log(9, "a"), 8192));
}

#[test]
fn p1_given_an_end_that_could_not_be_written_when_the_gap_goes_on_then_any_crash_finds_it_open_with_what_was_marked(
) {
    for (mask, reached) in [(0, false), (0x0f, false), (0xff, false), (0xff, true)] {
        let mut m = new_map(1 << 30);
        let mut f = File::new(&m);
        m.open_gap(log(4, "a"), 8192, 5, LamportTime::ZERO).unwrap();
        m.settle().unwrap();
        f.save(&mut m);
        m.close_gap(5).unwrap();
        f.write(&mut m);
        if reached {
            // The disk has it, although it said that the flush had failed.
            f.flush();
        }
        m.failed();
        m.reopen();
        assert!(m.is_open() && m.is_unsaved());
        assert_eq!(m.settle(), Ok(()), "flushes without a log go on");
        assert!(!m.covers(&log(5, "a"), 0), "no replica may have it");
        f.pending.clear();
        m.mark(7 << 20, 512);
        f.write(&mut m);
        f.crash(&mut std::iter::repeat(mask));
        // Nothing that was marked has been written yet, so either is right.
        let found = f.load().unwrap().recovery();
        assert!(
            found == Recovery::Behind(log(4, "a"), 8192)
                || reached && found == Recovery::From(log(5, "a"))
        );
        m.failed();
        f.save(&mut m);
        let l = f.load().unwrap();
        assert_eq!(l.recovery(), Recovery::Behind(log(4, "a"), 8192));
        assert!(l.bits().is_dirty(7 << 20, 1));
        // At last it ends.
        m.close_gap(5).unwrap();
        f.save(&mut m);
        assert_eq!(f.load().unwrap().recovery(), Recovery::From(log(5, "a")));
        m.reopen();
        assert!(m.is_open());
    }
    let mut m = new_map(1 << 30);
    m.reopen();
    assert_eq!(
        m.recovery(),
        Recovery::Normal,
        "without a gap nothing is opened"
    );
}

#[test]
fn given_a_map_when_saved_and_loaded_then_it_is_the_same() {
    let mut m = new_map(3 << 31);
    let mut f = File::new(&m);
    f.save(&mut m);
    m.open_gap(log(4, "b"), 8192, 5, LamportTime::ZERO).unwrap();
    m.mark(5 << 30, 4096);
    f.save(&mut m);
    let l = f.load().unwrap();
    assert_eq!(l.recovery(), m.recovery());
    assert_eq!(l.last_gap(), Some((log(4, "b"), 8192, log(5, "a"))));
    assert!(l.bits().is_dirty(5 << 30, 1) && l.bits().dirty_bytes() == GRAIN);
    // Of another resource or host it is no map.
    let other = DirtyMap::load::<HostDigest>(&name("x"), &name("a"), 7, &f.durable);
    assert!(other.unwrap().is_none());
    let other = DirtyMap::load::<HostDigest>(&name("data"), &name("x"), 7, &f.durable);
    assert!(other.unwrap().is_none());
    let other = DirtyMap::load::<HostDigest>(&name("data"), &name("a"), 8, &f.durable);
    assert!(other.unwrap().is_none());
    assert!(File::new(&m).load().is_none());
}

#[test]
fn given_a_damaged_piece_when_loaded_then_all_of_it_is_dirty_until_the_map_is_cleared() {
    let mut m = new_map(3 << 31);
    let mut f = File::new(&m);
    m.open_gap(log(4, "a"), 8192, 5, LamportTime::ZERO).unwrap();
    f.save(&mut m);
    for at in [0, 5, 9, 100, 3000, BLOCK - 1] {
        let byte = 3 * BLOCK + at;
        f.durable[byte] ^= 1;
        let mut l = f.load().unwrap();
        assert_eq!(l.bits().dirty_bytes(), 4032 * 8 * GRAIN, "{at}");
        assert!(l.bits().is_dirty(4032 * 8 * GRAIN, 512) && !l.bits().is_dirty(0, 512));
        l.close_gap(5).unwrap();
        l.refresh();
        assert!(
            l.is_open() || l.covers(&log(5, "a"), 0),
            "a gap is not thrown away"
        );
        l.clear();
        l.refresh();
        let mut repaired = File {
            durable: f.durable.clone(),
            pending: Vec::new(),
        };
        repaired.save(&mut l);
        assert_eq!(repaired.load().unwrap().bits().dirty_bytes(), 0);
        f.durable[byte] ^= 1;
    }
    // A piece of another map at this place.
    let mut other = DirtyMap::new(name("data"), name("a"), geometry(3 << 31), 8).unwrap();
    let mut g = File::new(&other);
    g.save(&mut other);
    let start = 2 * BLOCK;
    f.durable[start..start + BLOCK].copy_from_slice(&g.durable[start..start + BLOCK]);
    assert!(f.load().unwrap().bits().is_dirty(0, 512));
}

#[test]
fn p5_given_a_map_that_was_lost_when_made_anew_then_everything_is_dirty_until_a_gap_said_so() {
    let mut m = new_map(1 << 30);
    let mut f = File::new(&m);
    m.distrust();
    f.save(&mut m);
    let mut l = f.load().unwrap();
    l.refresh();
    assert!(l.is_distrusted() && l.bits().dirty_bytes() == 1 << 30);
    l.open_gap(log(4, "a"), 8192, 5, LamportTime::ZERO).unwrap();
    f.save(&mut l);
    l.close_gap(5).unwrap();
    f.save(&mut l);
    let mut l = f.load().unwrap();
    assert!(!l.is_distrusted() && l.covers(&log(5, "a"), 0) && l.bits().is_dirty(77 * GRAIN, 512));
    l.clear();
    f.save(&mut l);
    assert_eq!(f.load().unwrap().bits().dirty_bytes(), 0);
}

#[test]
fn given_replay_links_when_asked_then_only_who_replays_behind_the_gap_has_recovered() {
    let at = |number, creator, pos| ReplayLink {
        log: log(number, creator),
        pos,
        rest: 0,
    };
    let next = log(5, "a");
    for (link, past) in [
        (at(4, "a", 99_999), false),
        (at(5, "a", 0), false),
        (at(5, "a", 4096), false),
        (at(5, "b", 8192), false),
        (at(5, "a", 8192), true),
        (at(6, "b", 0), true),
    ] {
        assert_eq!(is_past(&next, &link), past, "{link}");
    }
}

#[test]
fn given_any_flipped_bit_in_a_header_when_loaded_then_the_other_copy_counts() {
    let mut m = new_map(1 << 30);
    let mut f = File::new(&m);
    f.save(&mut m);
    m.open_gap(log(4, "a"), 8192, 5, LamportTime::ZERO).unwrap();
    f.save(&mut m);
    // The first header was the one with sequence 1, so the newest is in the first block.
    for bit in 0..BLOCK * 8 {
        f.durable[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(f.load().unwrap().gap(), Gap::None, "{bit}");
        f.durable[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(f.load().unwrap().is_open());
    f.durable[..2 * BLOCK].fill(0xa5);
    assert!(f.load().is_none());
}

#[test]
fn given_no_memory_when_made_or_loaded_then_it_says_so() {
    let mut m = new_map(1 << 30);
    let mut f = File::new(&m);
    f.save(&mut m);
    for_each_failure(|| {
        if let Ok(m) = DirtyMap::new(name("data"), name("a"), geometry(1 << 30), 7) {
            assert!(m.is_unsaved());
        }
        let _ = DirtyMap::load::<HostDigest>(&name("data"), &name("a"), 7, &f.durable);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Mark(u64),
    Settle,
    Close,
    Clear,
    Save,
    /// A write or flush fails; some of it may be on the disk nevertheless.
    Fail(Vec<u8>),
    Crash(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let masks = || prop::collection::vec(any::<u8>(), 0..6);
    prop_oneof![
        2 => Just(Step::Open),
        6 => (0u64..100_000).prop_map(Step::Mark),
        1 => Just(Step::Settle),
        2 => Just(Step::Close),
        1 => Just(Step::Clear),
        4 => Just(Step::Save),
        1 => masks().prop_map(Step::Fail),
        2 => masks().prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The caller saves after each change of the gap, as the rules say; a crash may come at any instant.
    #[test]
    fn p1_given_crashes_that_tear_blocks_when_loaded_then_nothing_saved_is_forgotten(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let size = 100_000 * GRAIN;
        let mut m = new_map(size);
        let mut f = File::new(&m);
        f.save(&mut m);
        // What may be on the disk without a log: bits that were saved since the last clear.
        let mut safe: BTreeSet<u64> = BTreeSet::new();
        let mut fresh: BTreeSet<u64> = BTreeSet::new();
        let mut number = 1;
        // States that the file may be in: the last saved one, and the one that is being saved.
        let mut before = (m.recovery(), m.generation());
        for s in steps {
            match s {
                Step::Open if !m.is_open() && !m.is_unsaved() => {
                    m.open_gap(log(number, "a"), 4096, number + 1, LamportTime::ZERO).unwrap();
                }
                // Bits may be marked at any time; they only must be saved before the data is written.
                Step::Mark(grain) if m.is_open() => {
                    m.mark(grain * GRAIN, 512);
                    fresh.insert(grain);
                }
                Step::Settle if m.is_open() && !m.is_unsaved() => m.settle().unwrap(),
                Step::Close if m.is_open() && !m.is_unsaved() => {
                    number += 1;
                    m.close_gap(number).unwrap();
                }
                Step::Clear if !m.is_open() && !m.is_unsaved() => {
                    m.clear();
                    safe.clear();
                    fresh.clear();
                }
                Step::Save => {
                    f.save(&mut m);
                    safe.append(&mut fresh);
                    before = (m.recovery(), m.generation());
                }
                Step::Fail(masks) => {
                    f.write(&mut m);
                    f.crash(&mut masks.into_iter());
                    m.failed();
                }
                Step::Crash(masks) => {
                    f.write(&mut m);
                    f.crash(&mut masks.into_iter());
                    let loaded = f.load();
                    prop_assert!(loaded.is_some(), "a good header is always left");
                    let l = loaded.unwrap();
                    let now = (l.recovery(), l.generation());
                    prop_assert!(now == before || now == (m.recovery(), m.generation()), "{now:?} {before:?}");
                    for grain in &safe {
                        prop_assert!(l.bits().is_dirty(grain * GRAIN, 512), "{grain} is forgotten");
                    }
                    m = l;
                    fresh.clear();
                    before = (m.recovery(), m.generation());
                    number = match m.recovery() {
                        Recovery::From(next) => next.number,
                        _ => number,
                    };
                }
                _ => (),
            }
        }
    }
}

#[test]
fn p1_given_logs_that_are_let_go_when_power_is_lost_then_the_map_never_promises_bits_that_it_lacks()
{
    for mask in [0x00, 0x01, 0x0f, 0xf0, 0xff] {
        let mut m = new_map(3 << 31);
        let mut f = File::new(&m);
        f.save(&mut m);
        let mut bits = Bits::new(m.bits().geometry()).unwrap();
        bits.mark(5 << 30, 4096, |_| ());
        bits.mark(0, 512, |_| ());
        m.add(&bits);
        f.write(&mut m);
        f.crash(&mut std::iter::repeat(mask));
        let l = f.load().unwrap();
        assert!(!l.is_used() && !l.covers(&log(9, "a"), 3), "{mask}");
        m.failed();
        f.save(&mut m);
        assert_eq!(m.drop_logs(3, 9), Dropped::NONE);
        f.write(&mut m);
        f.crash(&mut std::iter::repeat(mask));
        let mut l = f.load().unwrap();
        assert!(!l.covers(&log(9, "a"), 3) || l.is_used());
        assert!(l.bits().is_dirty(5 << 30, 1) && l.bits().is_dirty(0, 1));
        assert_eq!(l.recovery(), Recovery::Normal, "its own log goes on");
        l.refresh();
        assert_eq!(l.bits().dirty_bytes() > 0, l.is_used());
        m.failed();
        m.set_dropped(Dropped::NONE);
        f.save(&mut m);
        assert!(!f.load().unwrap().is_used());
    }
}

#[test]
fn p1_given_logs_that_are_let_go_when_a_replica_asks_then_only_who_has_all_before_gets_the_map() {
    let mut m = new_map(1 << 30);
    m.drop_logs(3, 9);
    for since in 0..12 {
        for next in 0..12 {
            let may = (3..9).contains(&since) && since < next && next <= 9;
            assert_eq!(m.covers(&log(next, "a"), since), may, "{since} {next}");
            assert!(!m.covers(&log(next, "b"), since));
        }
    }
    // More of them, right behind, and with a hole.
    assert_eq!(m.drop_logs(9, 12), Dropped { from: 3, to: 9 });
    assert_eq!(m.dropped(), Dropped { from: 3, to: 12 });
    m.drop_logs(20, 22);
    assert_eq!(m.dropped(), Dropped { from: 20, to: 22 });
    assert!(!m.covers(&log(22, "a"), 3) && m.covers(&log(22, "a"), 20));
    // Nothing of this disk is for sale while it has what no log will ever have.
    m.open_gap(log(22, "a"), 8192, 23, LamportTime::ZERO)
        .unwrap();
    assert!(!m.covers(&log(22, "a"), 20));
    m.close_gap(23).unwrap();
    assert!(m.covers(&log(22, "a"), 20) && m.covers(&log(23, "a"), 0));
    assert!(m.has_gap_before(23) && !m.has_gap_before(22));
}

#[test]
fn given_logs_that_were_let_go_when_members_come_back_then_the_map_stays_until_the_last_has_compared(
) {
    let at = |number, pos| ReplayLink {
        log: log(number, "a"),
        pos,
        rest: 0,
    };
    let mut m = new_map(1 << 30);
    m.drop_logs(3, 9);
    assert!(m.is_needed(None, true) && m.is_needed(Some(&at(4, 100)), true));
    // It stands behind them and is being compared; then it has been.
    assert!(m.is_needed(Some(&at(9, 0)), false) && !m.is_needed(Some(&at(9, 0)), true));
    m.open_gap(log(9, "a"), 8192, 10, LamportTime::ZERO)
        .unwrap();
    assert!(m.is_needed(Some(&at(11, 5000)), true), "not while it grows");
    m.close_gap(10).unwrap();
    assert!(m.is_needed(Some(&at(9, 0)), true) && !m.is_needed(Some(&at(10, 5000)), true));
    m.clear();
    assert!(!m.is_used() && m.dropped() == Dropped::NONE);
}

#[test]
fn given_bits_of_another_device_when_added_then_everything_is_dirty() {
    let mut m = new_map(1 << 30);
    let mut bits = Bits::new(geometry(2 << 30)).unwrap();
    bits.mark(0, 512, |_| ());
    m.add(&bits);
    assert_eq!(m.bits().dirty_bytes(), 1 << 30);
    let mut m = new_map(1 << 30);
    let mut all = Bits::new(geometry(1 << 30)).unwrap();
    all.set_all();
    m.add(&all);
    m.drop_logs(1, 2);
    let mut f = File::new(&m);
    f.save(&mut m);
    let l = f.load().unwrap();
    assert!(l.bits().is_dirty(77 * GRAIN, 512) && !l.is_distrusted());
}
