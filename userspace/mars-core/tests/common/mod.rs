// SPDX-License-Identifier: GPL-2.0-or-later

//! What the tests of the log share: making logs.

#![allow(dead_code, reason = "not every test needs everything")]

use mars_core::{
    digest::{
        crc,
        Digest, //
    },
    lamport::LamportTime,
    log::{
        batch_size,
        BatchWriter,
        Finished,
        LogHeader,
        RecordHead,
        RecordKind,
        ScanPos,
        HEADER_SIZE, //
    },
    name::Name,
};
use mars_host_digest::HostDigest;
use proptest::prelude::*;

/// A record to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Rec {
    pub kind: RecordKind,
    pub offset: u64,
    pub length: u32,
    pub stamp: u64,
    pub payload: Vec<u8>,
}

impl Rec {
    pub fn write(offset: u64, payload: Vec<u8>) -> Self {
        Self {
            kind: RecordKind::Write,
            offset,
            length: u32::try_from(payload.len()).unwrap(),
            stamp: 1,
            payload,
        }
    }

    pub fn head(&self) -> RecordHead {
        RecordHead {
            kind: self.kind,
            offset: self.offset,
            length: self.length,
            stamp: self.stamp,
            payload_crc: crc::<HostDigest>(&[&self.payload]),
        }
    }
}

/// A log in memory.
pub struct Log {
    pub header: LogHeader,
    pub header_crc: u32,
    pub bytes: Vec<u8>,
    pub next: ScanPos,
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

impl Log {
    pub fn new(id: u8, align: u32) -> Self {
        let header = LogHeader::new(
            7,
            [id; 16],
            align,
            b"alpha_1795323623.000000000",
            &name("r0"),
            &name("alpha"),
            LamportTime::new(1_795_323_640, 5).unwrap(),
        );
        let mut bytes = vec![0xee; HEADER_SIZE];
        let header_crc = header.encode::<HostDigest>(&mut bytes).unwrap();
        Self {
            header,
            header_crc,
            bytes,
            next: ScanPos::first(header_crc),
        }
    }

    /// Appends a batch.
    pub fn append(&mut self, records: &[Rec]) -> Finished {
        let (batch, done) = self.batch(records, self.next);
        self.bytes.extend_from_slice(&batch);
        self.next = ScanPos {
            pos: self.next.pos + u64::from(done.total_len),
            seq: self.next.seq.map(|s| s + 1),
            chain: Some(done.meta_crc),
        };
        done
    }

    /// Makes a batch for a place.
    pub fn batch(&self, records: &[Rec], at: ScanPos) -> (Vec<u8>, Finished) {
        let count = u32::try_from(records.len()).unwrap();
        let payload = records.iter().map(|r| r.payload.len() as u64).sum();
        let size = batch_size(count, payload, self.header.align).unwrap();
        // What the buffer held before must not matter.
        let mut buf = vec![0xdd; size as usize];
        let mut w = BatchWriter::new(
            &mut buf,
            &self.header.context(),
            at.seq.unwrap(),
            at.pos,
            at.chain.unwrap(),
            99,
            count,
        )
        .unwrap();
        for r in records {
            w.push(&r.head(), &r.payload).unwrap();
        }
        let done = w.finish::<HostDigest>().unwrap();
        assert_eq!(done.total_len, size);
        (buf, done)
    }
}

/// So many cases; MARS_TEST_FACTOR in the environment multiplies them. A failure is printed in its
/// smallest form, and not written to a file.
pub fn cases(n: u32) -> ProptestConfig {
    let factor = std::env::var("MARS_TEST_FACTOR").map_or(1, |s| s.parse().unwrap_or(1));
    ProptestConfig {
        cases: n.saturating_mul(factor),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Bytes that need no store of their own in a failing case.
pub fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed)
        .collect()
}

pub fn rec() -> impl Strategy<Value = Rec> {
    let range = (0u64..1 << 40, 1u32..9, any::<u64>(), any::<u8>());
    let kind = prop_oneof![
        4 => Just(RecordKind::Write),
        1 => Just(RecordKind::Discard),
        1 => Just(RecordKind::WriteZeroes),
        1 => Just(RecordKind::Marker),
    ];
    (kind, range).prop_map(|(kind, (sector, sectors, stamp, seed))| {
        let (offset, length, payload) = match kind {
            RecordKind::Write => (
                sector * 512,
                sectors * 512,
                bytes(sectors as usize * 512, seed),
            ),
            RecordKind::Marker => (0, 0, bytes(usize::from(seed), seed)),
            _ => (sector * 512, sectors * 512, Vec::new()),
        };
        Rec {
            kind,
            offset,
            length,
            stamp,
            payload,
        }
    })
}

pub fn batches() -> impl Strategy<Value = Vec<Vec<Rec>>> {
    proptest::collection::vec(proptest::collection::vec(rec(), 1..5), 1..5)
}

/// A log with these batches.
pub fn log_of(align: u32, batches: &[Vec<Rec>]) -> Log {
    let mut log = Log::new(1, align);
    for b in batches {
        log.append(b);
    }
    log
}

/// MD5 and others of the host, to be named shortly.
pub fn md5(parts: &[&[u8]]) -> [u8; 16] {
    HostDigest::md5(parts)
}
