// SPDX-License-Identifier: GPL-2.0-or-later

//! Tests of the write buffer, and a check of all its invariants for the simulated [`world`].

mod model;
mod world;

use super::*;
use std::{
    sync::Arc,
    vec,
    vec::Vec, //
};

type Bytes = Arc<[u8]>;
type Buffer = WriteBuffer<Bytes>;

/// Compares every sum with what it is the sum of, and every claim about extents with the extents.
pub(super) fn check(b: &Buffer) {
    let last = b.last_seq().0;
    assert!(b.records.finished() <= b.durable);
    assert!(b.durable <= b.logged && b.logged <= b.taken && b.taken <= last);
    let mut live = vec![0u64; usize::try_from(last + 1).unwrap()];
    let mut landed = live.clone();
    let (mut all, mut ready, mut plain) = (0, 0, 0);
    let mut before = 0;
    for (&end, e) in b.index.tree.iter() {
        assert!(before <= e.start && e.start < end, "extents overlap");
        before = end;
        live[usize::try_from(e.seq).unwrap()] += end - e.start;
        all += end - e.start;
        plain += if e.kind == Kind::Write {
            0
        } else {
            end - e.start
        };
        let r = b.records.get(e.seq).expect("an extent has its record");
        assert!(r.offset <= e.start && end <= r.offset + u64::from(r.length));
        assert_eq!(r.kind, e.kind);
        assert_eq!(r.data.is_some(), r.kind == Kind::Write);
        if e.landed {
            assert!(e.io != 0 && e.seq <= b.durable);
            landed[usize::try_from(e.seq).unwrap()] += end - e.start;
        } else if e.io != 0 {
            assert!(e.seq <= b.durable, "not durable, but in flight");
            assert!(b.flights.overlaps(e.start, end));
        } else if e.seq <= b.durable {
            ready += end - e.start;
        }
    }
    assert_eq!((b.dirty_bytes(), b.ready_bytes()), (all, ready));
    assert_eq!(b.plain_bytes(), plain);
    assert_eq!(b.landed_bytes(), landed.iter().sum::<u64>());
    let (mut held, mut failing) = (0, 0);
    let mut logs = [0usize; 3];
    for seq in b.records.finished() + 1..=last {
        let r = b.records.get(seq).unwrap();
        assert_eq!(u64::from(r.live), live[usize::try_from(seq).unwrap()]);
        assert_eq!(u64::from(r.landed), landed[usize::try_from(seq).unwrap()]);
        let payload = Buffer::payload(r.kind, r.length);
        let needed = r.live > 0 || seq > b.durable;
        assert_eq!(r.data.is_some(), needed && r.kind == Kind::Write);
        held += if r.data.is_some() { payload } else { 0 };
        failing += usize::from(r.errors > 0);
        for (sum, from) in logs.iter_mut().zip([b.taken, b.logged, b.durable]) {
            *sum += if seq > from { payload } else { 0 };
        }
    }
    let sums = [
        b.untaken_bytes(),
        b.unlogged_bytes(),
        b.undurable_bytes(), //
    ];
    assert_eq!(sums, logs);
    assert_eq!((b.totals.held, b.failing()), (held, failing));
    assert_eq!(b.is_empty(), b.bytes() == 0);
    if b.in_flight() == 0 {
        assert_eq!(b.flights.orphaned(), 0);
    }
    // A record at the front that is finished would have been dropped.
    if let Some(r) = b.records.queue.front() {
        let seq = b.records.finished() + 1;
        assert!(seq > b.durable || r.live > 0 || r.superseder > b.durable);
    }
}

fn data(value: u8, length: u32) -> Option<Bytes> {
    Some(vec![value; usize::try_from(length).unwrap()].into())
}

fn write(b: &mut Buffer, offset: u64, length: u32, value: u8) -> Seq {
    b.admit(
        Kind::Write,
        offset,
        length,
        u64::from(value),
        0,
        data(value, length),
    )
    .unwrap()
}

fn log_all(b: &mut Buffer, pos: u64) {
    let mut items = KVec::new();
    b.take_for_log(usize::MAX, usize::MAX, &mut items).unwrap();
    b.logged(b.last_seq(), LogPos { number: 1, pos });
    b.durable(b.last_seq());
}

fn plan(b: &mut Buffer, max_bytes: u32) -> Vec<WritebackIo<Bytes>> {
    let mut out = KVec::new();
    b.plan(max_bytes, usize::MAX, &mut out).unwrap();
    out.drain_all().collect()
}

/// An I/O that ends well and is flushed.
fn written(b: &mut Buffer, id: u64) {
    b.io_done(id, true);
    assert!(b.flush_begin());
    check(b);
    b.flush_end(true);
}

fn at(pos: u64) -> Option<LogPos> {
    Some(LogPos { number: 1, pos })
}

#[test]
fn given_records_not_in_the_log_when_planning_then_nothing_is_given_out() {
    let mut b = Buffer::new();
    write(&mut b, 0, 8, 1);
    assert!(plan(&mut b, 64).is_empty());
    let mut items = KVec::new();
    assert_eq!(b.take_for_log(9, 9, &mut items), Ok(1));
    assert!(plan(&mut b, 64).is_empty());
    b.logged(Seq(1), LogPos { number: 1, pos: 10 });
    assert!(plan(&mut b, 64).is_empty());
    b.durable(Seq(1));
    assert_eq!(plan(&mut b, 64).len(), 1);
    check(&b);
}

#[test]
fn given_neighbours_when_planning_then_they_go_in_one_io_in_the_order_of_the_device() {
    let mut b = Buffer::new();
    for (i, at) in [(1, 24), (2, 8), (3, 16), (4, 40)] {
        write(&mut b, at, 8, i);
    }
    log_all(&mut b, 10);
    let ios = plan(&mut b, 20);
    let shape: Vec<_> = ios.iter().map(|io| (io.offset, io.length)).collect();
    assert_eq!(shape, [(8, 16), (24, 8), (40, 8)]);
    let first: Vec<_> = ios[0].fragments.iter().map(|f| f.data[0]).collect();
    assert_eq!(first, [2, 3]);
    for io in ios {
        written(&mut b, io.id);
        check(&b);
    }
    assert!(b.is_empty());
    assert_eq!(b.written_position(), at(10));
}

#[test]
fn given_an_older_version_in_flight_when_planning_then_the_newer_one_waits() {
    let mut b = Buffer::new();
    write(&mut b, 0, 16, 1);
    log_all(&mut b, 10);
    let old = plan(&mut b, 64);
    write(&mut b, 4, 4, 2);
    log_all(&mut b, 20);
    // The first record is superseded in part, the rest is in flight.
    assert!(plan(&mut b, 64).is_empty());
    assert_eq!(b.flights.orphaned(), 4);
    assert_eq!(b.written_position(), None);
    written(&mut b, old[0].id);
    assert_eq!(b.written_position(), at(10));
    let new = plan(&mut b, 64);
    assert_eq!((new[0].offset, new[0].length), (4, 4));
    written(&mut b, new[0].id);
    assert_eq!(b.written_position(), at(20));
    assert!(b.is_empty());
}

#[test]
fn given_a_record_superseded_by_one_that_is_not_durable_when_asked_then_the_mark_waits() {
    let mut b = Buffer::new();
    write(&mut b, 0, 8, 1);
    log_all(&mut b, 10);
    write(&mut b, 0, 8, 2);
    assert_eq!((b.ready_bytes(), b.records()), (0, 2));
    // Neither on the disk nor replayable as something else: the first record has to be replayed after a crash.
    assert_eq!(b.written_position(), None);
    log_all(&mut b, 20);
    // Now the second one is in the log, and will be written over whatever the disk has.
    assert_eq!(b.written_position(), at(10));
    check(&b);
}

#[test]
fn given_a_stream_in_front_of_the_elevator_when_it_never_ends_then_other_records_get_their_turn() {
    let mut b = Buffer::new();
    write(&mut b, 1 << 40, 8, 1);
    write(&mut b, 0, 8, 1);
    log_all(&mut b, 1);
    let mut rounds = 0;
    while b.finished_seq() < Seq(2) {
        rounds += 1;
        assert!(rounds < 6, "the stream keeps the elevator for itself");
        // As much comes in as goes out.
        for i in 0..2 {
            write(&mut b, 8 * (2 * rounds + i), 8, 2);
        }
        log_all(&mut b, 1 + rounds);
        let mut out = KVec::new();
        b.plan(8, 2, &mut out).unwrap();
        for io in &out {
            written(&mut b, io.id);
        }
    }
}

#[test]
fn given_a_failed_io_when_planning_again_then_it_is_repeated_and_reported() {
    let mut b = Buffer::new();
    let seq = write(&mut b, 8, 8, 1);
    log_all(&mut b, 10);
    for times in 1..4 {
        let io = plan(&mut b, 64);
        b.io_done(io[0].id, false);
        check(&b);
        let failure = Failure {
            seq,
            offset: 8,
            length: 8,
            times,
        };
        assert_eq!((b.failing(), b.last_failure()), (1, Some(failure)));
    }
    let io = plan(&mut b, 64);
    written(&mut b, io[0].id);
    b.io_done(io[0].id, false);
    assert_eq!((b.failing(), b.last_failure(), b.io_errors()), (0, None, 3));
    assert!(b.is_empty());
}

#[test]
fn given_a_batch_that_failed_when_untaken_then_the_logger_gets_it_again() {
    let mut b = Buffer::new();
    for i in 1..=4 {
        write(&mut b, u64::from(i) * 8, 8, i);
    }
    let mut items = KVec::new();
    assert_eq!(b.take_for_log(2, 999, &mut items), Ok(2));
    b.logged(Seq(2), LogPos { number: 1, pos: 10 });
    assert_eq!(b.take_for_log(9, 9, &mut items), Ok(1));
    b.untake(Seq(1));
    check(&b);
    items.clear();
    assert_eq!(b.take_for_log(9, 999, &mut items), Ok(4));
    assert_eq!(items[0].seq, Seq(1));
    b.logged(Seq(4), LogPos { number: 2, pos: 30 });
    b.durable(Seq(9));
    assert_eq!(b.undurable(), 0);
    // What is durable stays so.
    b.untake(Seq(1));
    assert_eq!(b.untaken(), 0);
    for io in plan(&mut b, 999) {
        written(&mut b, io.id);
    }
    assert_eq!(b.written_position(), Some(LogPos { number: 2, pos: 30 }));
}

#[test]
fn given_little_memory_when_the_logger_takes_records_then_it_gets_as_many_as_there_is_room_for() {
    let mut b = Buffer::new();
    for i in 1..=100 {
        write(&mut b, u64::from(i) * 8, 8, i);
    }
    let mut items = KVec::new();
    kernel::inject::fail_once_after(0);
    assert_eq!(b.take_for_log(100, 9999, &mut items), Ok(50));
    check(&b);
    // None at all: what the list has room for, and nothing if that is nothing.
    items.clear();
    let room = items.capacity().min(50);
    kernel::inject::fail_after(Some(0));
    assert_eq!(b.take_for_log(100, 9999, &mut items), Ok(room));
    let mut none = KVec::new();
    write(&mut b, 8, 8, 1);
    let r = b.take_for_log(100, 9999, &mut none);
    kernel::inject::fail_after(None);
    assert_eq!(r, Err(BufferError::NoMemory));
    check(&b);
}

#[test]
fn given_a_batch_that_is_admitted_in_part_when_all_of_it_is_written_then_the_mark_stays_before() {
    let mut b = Buffer::new();
    let put = |b: &mut Buffer, at, end| {
        let end = LogPos {
            number: 1,
            pos: end,
        };
        b.admit_durable(Kind::Write, at, 8, 0, 0, data(1, 8), end)
            .unwrap();
        for io in plan(b, 64) {
            written(b, io.id);
        }
        check(b);
    };
    put(&mut b, 0, 10);
    assert!(b.is_empty());
    assert_eq!(b.written_position(), None);
    put(&mut b, 8, 10);
    put(&mut b, 16, 20);
    assert_eq!(b.written_position(), at(10));
    b.passed(LogPos { number: 1, pos: 20 });
    assert_eq!(b.written_position(), at(20));
    b.passed(LogPos { number: 2, pos: 0 });
    assert_eq!(b.written_position(), Some(LogPos { number: 2, pos: 0 }));
}

#[test]
fn given_waived_records_when_some_are_open_then_the_mark_stands_until_all_are_on_the_disk() {
    let mut b = Buffer::new();
    write(&mut b, 0, 8, 1);
    log_all(&mut b, 10);
    write(&mut b, 0, 8, 2);
    write(&mut b, 32, 8, 3);
    b.waive(Seq(3));
    check(&b);
    assert_eq!((b.undurable(), b.untaken()), (0, 0));
    let mut ios = plan(&mut b, 64);
    written(&mut b, ios.remove(0).id);
    // The log's version of the first bytes must not be replayed any more, but nobody knows the last ones.
    assert_eq!(b.written_position(), None);
    written(&mut b, ios.remove(0).id);
    assert_eq!(b.written_position(), at(10));
    write(&mut b, 0, 8, 4);
    log_all(&mut b, 50);
    let ios = plan(&mut b, 64);
    written(&mut b, ios[0].id);
    assert_eq!(b.written_position(), at(50));
}

#[test]
fn given_bad_records_when_admitted_then_they_are_refused() {
    let mut b = Buffer::new();
    let bad = Err(BufferError::BadRange);
    assert_eq!(b.admit(Kind::Discard, 0, 0, 0, 0, None), bad);
    assert_eq!(b.admit(Kind::Discard, u64::MAX - 7, 8, 0, 0, None), bad);
    let bad = Err(BufferError::BadPayload);
    assert_eq!(b.admit(Kind::Write, 0, 8, 0, 0, None), bad);
    assert_eq!(b.admit(Kind::Zeroes, 0, 8, 0, 0, data(1, 8)), bad);
    write(&mut b, 0, 8, 1);
    let end = LogPos::default();
    let late = b.admit_durable(Kind::Discard, 0, 8, 0, 0, None, end);
    assert_eq!(late, Err(BufferError::NotDurable));
    check(&b);
}

#[test]
fn given_parts_in_the_buffer_when_looked_up_then_the_pieces_are_the_newest_and_stay() {
    let mut b = Buffer::new();
    write(&mut b, 0, 16, 1);
    write(&mut b, 4, 4, 2);
    b.admit(Kind::Discard, 12, 8, 0, 0, None).unwrap();
    let mut out = KVec::new();
    assert_eq!(b.lookup(2, 16, &mut out), Ok(Coverage::Full));
    let shape: Vec<_> = out
        .iter()
        .map(|o| {
            (
                o.offset,
                o.length,
                o.data_offset,
                o.data.as_ref().map(|d| d[0]),
            )
        })
        .collect();
    let want = [
        (2, 2, 2, Some(1)),
        (4, 4, 0, Some(2)),
        (8, 4, 8, Some(1)),
        (12, 6, 0, None), //
    ];
    assert_eq!(shape, want);
    assert_eq!(gaps(2, 16, &out).count(), 0);
    assert_eq!(b.lookup(16, 16, &mut out), Ok(Coverage::Partial));
    assert_eq!(b.lookup(20, 4, &mut out), Ok(Coverage::None));
    assert!(b.overlaps(19, 2) && !b.overlaps(20, 9));
    log_all(&mut b, 1);
    for io in plan(&mut b, 64) {
        written(&mut b, io.id);
    }
    assert!(b.is_empty() && out[0].data.is_some());
}

#[test]
fn given_a_flush_that_failed_when_planning_then_all_since_the_last_good_one_is_written_again() {
    let mut b = Buffer::new();
    write(&mut b, 0, 8, 1);
    log_all(&mut b, 10);
    let io = plan(&mut b, 64);
    written(&mut b, io[0].id);
    assert_eq!(b.written_position(), at(10));
    assert!(!b.flush_begin(), "nothing to flush");

    for (i, place) in [(2, 8), (3, 32), (4, 64)] {
        write(&mut b, place, 8, i);
    }
    log_all(&mut b, 20);
    let ios = plan(&mut b, 64);
    b.io_done(ios[0].id, true);
    assert!(b.flush_begin() && !b.flush_begin());
    // Written while the flush is under way, and superseded while it is.
    b.io_done(ios[1].id, true);
    write(&mut b, 32, 4, 5);
    log_all(&mut b, 30);
    check(&b);
    assert!(!b.is_landed());
    b.flush_end(false);
    check(&b);
    assert_eq!((b.written_position(), b.landed_bytes()), (at(10), 0));
    // The disk may have had this one, too, when it lost its cache.
    b.io_done(ios[2].id, true);
    let again: Vec<_> = plan(&mut b, 8);
    let shape: Vec<_> = again
        .iter()
        .map(|io| (io.offset, io.fragments.iter().map(|f| f.data[0]).collect()))
        .collect();
    assert_eq!(shape, [(8, vec![2]), (32, vec![5, 3]), (64, vec![4])]);
    for io in again {
        b.io_done(io.id, true);
    }
    assert!(b.is_landed() && !b.is_empty());
    assert!(b.flush_begin());
    b.flush_end(true);
    assert!(b.is_empty());
    assert_eq!(b.written_position(), at(30));
    b.flush_end(false);
    check(&b);
}

#[test]
fn given_pieces_when_asked_for_the_gaps_then_both_together_are_the_range() {
    let mut b = Buffer::new();
    let found = |b: &mut Buffer, offset, length| {
        let mut out = KVec::new();
        b.lookup(offset, length, &mut out).unwrap();
        gaps(offset, length, &out).collect::<Vec<_>>()
    };
    assert_eq!(found(&mut b, 3, 5), [(3, 5)]);
    write(&mut b, 8, 8, 1);
    write(&mut b, 16, 8, 2);
    write(&mut b, 32, 8, 3);
    assert_eq!(found(&mut b, 0, 64), [(0, 8), (24, 8), (40, 24)]);
    assert_eq!(found(&mut b, 10, 24), [(24, 8)]);
    assert_eq!(found(&mut b, 8, 16), []);
    assert_eq!(found(&mut b, 20, 8), [(24, 4)]);
}

#[test]
fn given_written_records_when_the_oldest_is_asked_for_then_those_that_only_wait_for_a_flush_do_not_count(
) {
    let mut b = Buffer::new();
    for i in 1..=3 {
        write(&mut b, 8 * u64::from(i), 8, i);
        log_all(&mut b, u64::from(i));
        assert_eq!(b.oldest_dirty_stamp(), Some(u64::from(i)));
        let io = plan(&mut b, 64);
        b.io_done(io[0].id, true);
        assert_eq!(b.oldest_dirty_stamp(), None);
    }
    // The disk is asked for what it has.
    assert_eq!(b.lookup(8, 24, &mut KVec::new()), Ok(Coverage::None));
    assert!(b.overlaps(8, 24));
    assert!(b.flush_begin());
    b.flush_end(false);
    assert_eq!(b.oldest_dirty_stamp(), Some(1));
    assert_eq!(b.lookup(8, 24, &mut KVec::new()), Ok(Coverage::Full));
    check(&b);
}
