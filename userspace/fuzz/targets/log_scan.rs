// SPDX-License-Identifier: GPL-2.0-or-later

//! Batches of a log: as they are, and with identities, positions and checksums that are true, so that the fuzzer gets
//! behind them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::digest::crc;
use mars_core::log::*;
use mars_host_digest::HostDigest;

const CTX: LogContext = LogContext {
    log_id: [1; 16],
    align: 512,
};

fuzz_target!(|data: &[u8]| {
    let start = ScanPos::first(0);
    scan(data, start, false);
    find_end(data);
    let mut repaired = data.to_vec();
    repair(&mut repaired, start);
    scan(&repaired, start, true);
    find_end(&repaired);
});

/// Goes through all batches; what is accepted must keep to the format.
fn scan(data: &[u8], start: ScanPos, rewrite: bool) {
    let mut scanner = Scanner::resume(CTX, start);
    loop {
        let at = usize::try_from(scanner.pos() - start.pos).expect("within the data");
        let rest = &data[at..];
        match scanner.next::<HostDigest>(rest, rewrite) {
            Scan::Batch(batch) => {
                assert!(batch.total_len as usize <= rest.len() && batch.total_len <= MAX_BATCH);
                let mut known = 0;
                for r in batch.records() {
                    known += 1;
                    assert_eq!(&rest[r.payload_at..][..r.payload.len()], r.payload);
                    assert!(r.payload.len() <= MAX_PAYLOAD as usize);
                    assert!(r.offset.checked_add(u64::from(r.length)).is_some());
                }
                if rewrite && known == batch.record_count() {
                    again(&batch);
                }
            }
            Scan::NeedMore(min) => {
                assert!(min > rest.len() && min <= MAX_BATCH as usize);
                return;
            }
            Scan::End(_) => return,
        }
    }
}

/// The same batch written again says the same.
fn again(batch: &BatchView<'_>) {
    let mut buf = vec![0; batch.total_len as usize];
    let (seq, count) = (batch.seq, batch.record_count() as u32);
    let mut writer = BatchWriter::new(
        &mut buf,
        &CTX,
        seq,
        batch.pos,
        batch.chain,
        batch.stamp,
        count,
    )
    .expect("a good place");
    for r in batch.records() {
        writer.push(&r.head(), r.payload).expect("a good record");
    }
    let done = writer.finish::<HostDigest>().expect("a good batch");
    assert!(done.total_len <= batch.total_len);
    let mut scanner = Scanner::new(CTX, batch.pos, Some(seq), Some(batch.chain));
    match scanner.next::<HostDigest>(&buf, true) {
        Scan::Batch(same) => assert!(same.records().eq(batch.records().map(|mut r| {
            // The header of the batch may have been longer.
            r.payload_at -= (batch.used_len - same.used_len) as usize;
            r
        }))),
        other => panic!("{other:?}"),
    }
}

/// The end is the same whether the file is seen at once or in pieces.
fn find_end(data: &[u8]) {
    let start = ScanPos::first(0);
    let mut ends = Vec::new();
    for piece in [1, 700, data.len()] {
        let mut finder = EndFinder::new(CTX, start, true);
        let mut step = finder.start();
        loop {
            match step {
                EndStep::Done(end) => {
                    ends.push(end);
                    break;
                }
                EndStep::Read { pos, min } => {
                    let from = usize::try_from(pos - start.pos).expect("within the data");
                    let to = from.saturating_add(min.max(piece)).min(data.len());
                    step = finder.feed::<HostDigest>(&data[from..to], to == data.len());
                }
            }
        }
    }
    assert!(ends.windows(2).all(|w| w[0] == w[1]), "{ends:?}");
}

/// Makes identities, places and checksums true, as far as the lengths allow it.
fn repair(data: &mut [u8], start: ScanPos) {
    let (mut at, mut seq, mut chain) = (0usize, 1u64, 0u32);
    while let Some(b) = data.get_mut(at..).filter(|b| b.len() >= BATCH_HEADER_SIZE) {
        let u32_at = |b: &[u8], at: usize| {
            u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]) as usize
        };
        let (total, count) = (u32_at(b, 32), u32_at(b, 40));
        let header = usize::from(u16::from_le_bytes([b[6], b[7]]));
        b[..5].copy_from_slice(b"MBT2\x01");
        b[8..16].copy_from_slice(&[1; 8]);
        b[16..24].copy_from_slice(&seq.to_le_bytes());
        b[24..32].copy_from_slice(&(start.pos + at as u64).to_le_bytes());
        b[44..48].copy_from_slice(&chain.to_le_bytes());
        b[56..60].fill(0);
        let meta = header
            .saturating_add(count.saturating_mul(RECORD_SIZE))
            .next_multiple_of(512);
        if header < BATCH_HEADER_SIZE || meta > b.len() {
            return;
        }
        let mut payload = meta;
        for i in 0..count {
            let entry = header + i * RECORD_SIZE;
            let end = payload.saturating_add(u32_at(b, entry + 24));
            if end > b.len() {
                break;
            }
            let sum = crc::<HostDigest>(&[&b[payload..end]]);
            b[entry + 28..entry + 32].copy_from_slice(&sum.to_le_bytes());
            payload = end;
        }
        chain = crc::<HostDigest>(&[&b[..meta]]);
        b[56..60].copy_from_slice(&chain.to_le_bytes());
        if total == 0 {
            return;
        }
        at = at.saturating_add(total);
        seq += 1;
    }
}
