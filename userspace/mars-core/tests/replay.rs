// SPDX-License-Identifier: GPL-2.0-or-later

//! Replay: real logs, given in pieces of any size, through the write buffer to a simulated disk.

mod common;

use common::{
    batches,
    bytes,
    log_of,
    Log,
    Rec, //
};
use kernel::alloc::KVec;
use mars_core::{
    buffer::{
        Kind,
        LogPos,
        WriteBuffer, //
    },
    log::{
        EndReason,
        RecordKind,
        ScanPos,
        HEADER_SIZE, //
    },
    replay::{
        may_admit,
        Defect,
        Extent,
        Flaw,
        Next,
        Replayer, //
    },
};
use mars_host_digest::HostDigest;
use proptest::prelude::*;
use std::{
    ops::Range,
    sync::Arc, //
};

const SECTORS: u64 = 64;
const DEVICE: u64 = SECTORS * 512;

/// Payloads stay where they were read: a handle is the buffer and a place in it, as in the engine.
type Handle = (Arc<Vec<u8>>, usize);

struct Machine<'a> {
    log: &'a Log,
    replayer: Replayer,
    buffer: WriteBuffer<Handle>,
    disk: Vec<u8>,
    chunk: usize,
    window: usize,
}

impl<'a> Machine<'a> {
    fn new(log: &'a Log, from: ScanPos, extent: Extent) -> Self {
        Self {
            log,
            replayer: Replayer::new(7, log.header.context(), from, extent, DEVICE),
            buffer: WriteBuffer::new(),
            disk: vec![0; DEVICE as usize],
            chunk: 8192,
            window: 4096,
        }
    }

    fn write_back(&mut self, ios: usize) {
        let mut out = KVec::new();
        self.buffer.plan(2048, ios, &mut out).unwrap();
        for io in out.iter() {
            let mut at = io.offset as usize;
            let end = at + io.length as usize;
            if io.kind != Kind::Write {
                self.disk[at..end].fill(0);
            }
            for f in io.fragments.iter() {
                let from = f.data.1 + f.offset as usize;
                let len = f.length as usize;
                self.disk[at..at + len].copy_from_slice(&f.data.0[from..from + len]);
                at += len;
            }
            self.buffer.io_done(io.id, true);
        }
        self.buffer.flush_begin();
        self.buffer.flush_end(true);
    }

    /// Replays until something else than a batch comes.
    fn run(&mut self) -> Next<'static> {
        let mut want = self.chunk;
        loop {
            let pos = self.replayer.pos().pos as usize;
            let end = self.log.bytes.len().min(pos.saturating_add(want));
            let eof = end == self.log.bytes.len();
            let chunk = Arc::new(self.log.bytes[pos..end].to_vec());
            match self.replayer.next::<HostDigest>(&chunk, eof) {
                Next::Batch(batch) => {
                    for a in batch.records() {
                        while !may_admit(self.buffer.bytes(), a.length as usize, self.window) {
                            self.write_back(1);
                        }
                        let data = (a.kind == Kind::Write).then(|| (chunk.clone(), a.payload_at));
                        let end = batch.end();
                        self.buffer
                            .admit_durable(a.kind, a.offset, a.length, a.stamp, a.crc, data, end)
                            .unwrap();
                    }
                    self.buffer.passed(batch.end());
                    assert_eq!(batch.end(), self.replayer.pos());
                    want = self.chunk;
                }
                Next::Read { pos: at, min } => {
                    assert_eq!(at as usize, pos);
                    assert!(min > chunk.len() && !eof);
                    want = min;
                }
                Next::CaughtUp => return Next::CaughtUp,
                Next::End(reason) => return Next::End(reason),
                Next::Defective(defect) => return Next::Defective(defect),
            }
        }
    }

    fn drain(&mut self) {
        while !self.buffer.is_empty() {
            self.write_back(3);
        }
    }
}

fn start(log: &Log) -> ScanPos {
    ScanPos::first(log.header_crc)
}

/// The device after these batches.
fn expected(batches: &[Vec<Rec>]) -> Vec<u8> {
    let mut disk = vec![0; DEVICE as usize];
    for r in batches.iter().flatten() {
        let range: Range<usize> = r.offset as usize..r.offset as usize + r.length as usize;
        match r.kind {
            RecordKind::Write => disk[range].copy_from_slice(&r.payload),
            RecordKind::Marker => (),
            _ => disk[range].fill(0),
        }
    }
    disk
}

/// Batches whose records lie on the device.
fn on_device() -> impl Strategy<Value = Vec<Vec<Rec>>> {
    proptest::collection::vec(batches(), 1..4).prop_map(|parts| {
        let mut all: Vec<Vec<Rec>> = parts.into_iter().flatten().collect();
        for r in all.iter_mut().flatten() {
            r.offset %= DEVICE - u64::from(r.length);
            r.offset -= r.offset % 512;
        }
        all
    })
}

/// Ends of the batches of a log, the header's first.
fn ends(align: u32, batches: &[Vec<Rec>]) -> Vec<u64> {
    let mut log = Log::new(1, align);
    let mut ends = vec![HEADER_SIZE as u64];
    for b in batches {
        log.append(b);
        ends.push(log.next.pos);
    }
    ends
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p1_given_any_limit_when_replayed_then_the_disk_is_the_state_at_the_last_whole_batch_below(
        batches in on_device(),
        chunk in 1usize..6000,
        window in 0usize..9000,
        cut in 0u64..60_000,
        by_stop: bool,
    ) {
        let log = log_of(512, &batches);
        let ends = ends(512, &batches);
        let limit = (HEADER_SIZE as u64 + cut).min(log.next.pos);
        let whole = ends.iter().take_while(|e| **e <= limit).count() - 1;
        let known = if by_stop { log.next.pos } else { limit };
        let mut m = Machine::new(&log, start(&log), Extent::Known(known));
        m.chunk = chunk;
        m.window = window;
        if by_stop {
            m.replayer.stop_at(Some(limit));
        }
        prop_assert!(matches!(m.run(), Next::CaughtUp));
        prop_assert_eq!(m.replayer.pos().pos, ends[whole]);
        m.drain();
        prop_assert_eq!(&m.disk, &expected(&batches[..whole]));
        if whole > 0 {
            prop_assert_eq!(m.buffer.written_position(), Some(LogPos { number: 7, pos: ends[whole] }));
        }
        // Later the limit moves on, and another replayer goes on from the same place.
        let mut rest = Machine::new(&log, m.replayer.at(), Extent::Known(0));
        rest.disk = m.disk;
        rest.replayer.known(log.next.pos);
        prop_assert!(matches!(rest.run(), Next::CaughtUp));
        rest.drain();
        prop_assert_eq!(&rest.disk, &expected(&batches));
    }

    #[test]
    fn given_a_log_cut_anywhere_when_recovered_then_its_end_is_behind_the_last_whole_batch(
        batches in on_device(),
        cut in 0usize..60_000,
        zeros in 0usize..3,
    ) {
        let mut log = log_of(512, &batches);
        let ends = ends(512, &batches);
        log.bytes.truncate(HEADER_SIZE + cut);
        let whole = ends.iter().take_while(|e| **e <= log.bytes.len() as u64).count() - 1;
        log.bytes.resize(log.bytes.len() + zeros * 512, 0);
        let mut m = Machine::new(&log, start(&log), Extent::Unknown);
        prop_assert!(matches!(m.run(), Next::End(_)));
        m.drain();
        // Lost zeros at the end of a batch come back with the zeros behind it.
        let found = m.replayer.pos().pos;
        let at = ends.iter().position(|e| *e == found).unwrap();
        prop_assert!(at >= whole);
        prop_assert_eq!(&m.disk, &expected(&batches[..at]));
    }
}

fn three() -> Vec<Vec<Rec>> {
    (0..3u8)
        .map(|i| vec![Rec::write(u64::from(i) * 512, bytes(512, i))])
        .collect()
}

#[test]
fn given_damage_below_the_known_end_when_replayed_then_it_is_a_defect_that_can_be_fetched_again() {
    let batches = three();
    let good = log_of(512, &batches);
    let mut log = log_of(512, &batches);
    let second = ends(512, &batches)[1];
    let last = log.bytes.len();
    let payload = &batches[1][0].payload;
    let at = log.bytes.windows(512).position(|w| w == payload).unwrap();
    log.bytes[at + 200] ^= 1;
    let mut m = Machine::new(&log, start(&log), Extent::Known(last as u64));
    let Next::Defective(defect) = m.run() else {
        panic!("damage was not seen");
    };
    assert_eq!(
        defect.at,
        LogPos {
            number: 7,
            pos: second
        }
    );
    assert!(defect.may_be_repaired());
    assert_eq!(defect.what, Flaw::Scan(EndReason::BadPayload(0)));
    m.drain();
    assert_eq!(m.disk, expected(&batches[..1]));
    // Fetched again.
    m.log = &good;
    assert!(matches!(m.run(), Next::CaughtUp));
    m.drain();
    assert_eq!(m.disk, expected(&batches));
}

#[test]
fn given_a_batch_that_could_not_be_admitted_when_put_back_then_it_comes_again() {
    let batches = three();
    let log = log_of(512, &batches);
    let mut m = Machine::new(&log, start(&log), Extent::Known(log.next.pos));
    m.replayer.put_back();
    let first = m.replayer.at();
    assert!(matches!(
        m.replayer
            .next::<HostDigest>(&log.bytes[HEADER_SIZE..], true),
        Next::Batch(_)
    ));
    m.replayer.put_back();
    m.replayer.put_back();
    assert_eq!(m.replayer.at(), first);
    assert!(matches!(m.run(), Next::CaughtUp));
    m.drain();
    assert_eq!(m.disk, expected(&batches));
}

#[test]
fn given_a_file_shorter_than_known_when_replayed_then_it_is_a_defect() {
    let mut log = log_of(512, &three());
    let end = log.next.pos;
    log.bytes.truncate(log.bytes.len() - 512);
    let mut m = Machine::new(&log, start(&log), Extent::Known(end));
    let Next::Defective(d) = m.run() else {
        panic!("bytes are missing");
    };
    assert_eq!(d.what, Flaw::Scan(EndReason::Truncated));
}

#[test]
fn given_a_record_behind_the_end_of_the_device_when_replayed_then_nothing_of_its_batch_is_admitted()
{
    let batches = vec![
        vec![Rec::write(0, bytes(512, 1))],
        vec![
            Rec::write(0, bytes(512, 2)),
            Rec::write(DEVICE - 512, bytes(1024, 3)),
        ],
    ];
    let log = log_of(512, &batches);
    for extent in [Extent::Unknown, Extent::Known(log.next.pos)] {
        let mut m = Machine::new(&log, start(&log), extent);
        let Next::Defective(d) = m.run() else {
            panic!("the record was not seen");
        };
        let what = Flaw::OutOfDevice {
            record: 1,
            end: DEVICE + 512,
            device: DEVICE,
        };
        let pos = ends(512, &batches)[1];
        let at = LogPos { number: 7, pos };
        assert_eq!(d, Defect { at, what });
        assert!(!d.may_be_repaired());
        assert!(d.to_string().contains("make the disk as large"));
        m.drain();
        assert_eq!(m.disk, expected(&batches[..1]));
        // The administrator did.
        m.replayer.resized(DEVICE + 512);
        m.disk.resize(DEVICE as usize + 512, 0);
        assert!(matches!(
            m.run(),
            Next::CaughtUp | Next::End(EndReason::Eof)
        ));
    }
}
