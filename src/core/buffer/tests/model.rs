// SPDX-License-Identifier: GPL-2.0-or-later

//! Any order of admissions, batches, flushes, I/Os and failures, with a crash at any instant, in a simulated [`World`].

use super::{
    check,
    world::{
        World,
        DEVICE, //
    }, //
};
use kernel::inject;
use proptest::prelude::*;
use std::{
    vec,
    vec::Vec, //
};

#[derive(Clone, Debug)]
enum Op {
    Admit(u8, usize, usize),
    Take(usize, usize),
    Batch(usize),
    Durable(usize),
    Fail(usize),
    Plan(u32, usize),
    Done(usize, bool),
    FlushStart,
    FlushEnd(bool),
    Look(usize, usize),
    Starve(u64),
    Crash(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = || (0..DEVICE, 1..24usize);
    let op = prop_oneof![
        8 => (0..10u8, range()).prop_map(|(k, (o, l))| Op::Admit(k, o, l)),
        4 => (1..6usize, 1..64usize).prop_map(|(n, b)| Op::Take(n, b)),
        4 => (1..6usize).prop_map(Op::Batch),
        3 => (1..4usize).prop_map(Op::Durable),
        1 => (0..4usize).prop_map(Op::Fail),
        4 => (1..40u32, 1..4usize).prop_map(|(b, n)| Op::Plan(b, n)),
        5 => (0..4usize, prop::bool::weighted(0.85)).prop_map(|(i, ok)| Op::Done(i, ok)),
        3 => Just(Op::FlushStart),
        3 => prop::bool::weighted(0.7).prop_map(Op::FlushEnd),
        2 => range().prop_map(|(o, l)| Op::Look(o, l)),
        1 => (0..4u64).prop_map(Op::Starve),
        1 => (0..3usize).prop_map(Op::Crash),
    ];
    prop::collection::vec(op, 1..160)
}

impl World {
    fn step(&mut self, op: &Op) {
        match *op {
            Op::Admit(kind, offset, length) => self.admit(kind, offset, length),
            Op::Take(records, bytes) => self.take(records, bytes),
            Op::Batch(records) => self.batch(records),
            Op::Durable(batches) => self.make_durable(batches),
            Op::Fail(batches) => self.fail(batches),
            Op::Plan(bytes, ios) => self.plan(bytes, ios),
            Op::Done(which, ok) => self.done(which, ok),
            Op::FlushStart => self.flush_start(),
            Op::FlushEnd(ok) => self.flush_end(ok),
            Op::Look(offset, length) => self.check_look(offset, length),
            Op::Starve(n) => return inject::fail_once_after(n),
            Op::Crash(extra) => {
                inject::fail_after(None);
                self.crash(extra);
            }
        }
        if !matches!(op, Op::Look(..)) {
            inject::fail_after(None);
        }
        check(&self.buffer);
        let mark = self.buffer.written_position();
        assert!(mark >= self.mark, "P9: the mark went back");
        self.mark = mark;
        // The mark may be told at any time.
        self.published = self.published.max(mark);
        assert!(mark.is_none() || self.first_open(mark) <= self.durable);
        self.check_crash();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p1_p2_p9_given_any_history_when_it_crashes_anywhere_then_disk_and_log_give_a_prefix(
        seed: u64,
        ops in ops(),
    ) {
        let mut world = World::new(seed);
        for op in &ops {
            world.step(op);
        }
        world.finish();
    }
}

#[test]
fn given_each_allocation_failing_once_when_a_history_runs_then_nothing_is_lost() {
    let admit = |o: usize, l: usize| Op::Admit(5, o, l);
    let mut history = vec![
        admit(0, 20),
        admit(30, 20),
        admit(5, 5),
        admit(0, 10),
        admit(2, 4),
    ];
    history.extend([
        Op::Take(3, 99),
        Op::Batch(9),
        Op::Durable(9),
        Op::Plan(9, 1),
        admit(4, 40),
    ]);
    history.extend([
        Op::Look(0, 64),
        Op::Take(9, 999),
        Op::Batch(2),
        Op::Batch(2),
        Op::Durable(1),
    ]);
    history.extend([
        Op::Plan(40, 3),
        Op::Done(0, false),
        Op::Done(0, true),
        Op::FlushStart,
        Op::FlushEnd(false),
        Op::Plan(40, 3),
        Op::Done(0, true),
        Op::FlushStart,
        Op::FlushEnd(true),
    ]);
    let tried = inject::for_each_failure(|| {
        let mut world = World::new(7);
        for op in &history {
            // As `step`, but the failure stays armed from one operation to the next.
            match *op {
                Op::Admit(k, o, l) => world.admit(k, o, l),
                Op::Take(n, b) => world.take(n, b),
                Op::Batch(n) => world.batch(n),
                Op::Durable(n) => world.make_durable(n),
                Op::Plan(b, n) => world.plan(b, n),
                Op::Done(i, ok) => world.done(i, ok),
                Op::Look(o, l) => world.check_look(o, l),
                Op::FlushStart => world.flush_start(),
                Op::FlushEnd(ok) => world.flush_end(ok),
                _ => (),
            }
            check(&world.buffer);
            world.check_crash();
        }
        let before = inject::failures();
        world.take(usize::MAX, usize::MAX);
        if inject::failures() == before {
            world.finish();
        }
    });
    assert!(tried > 20, "{tried}");
}
