// SPDX-License-Identifier: GPL-2.0-or-later

//! The log format: what was written is read, and nothing else is ever taken for it.

mod common;

use common::{
    batches,
    bytes,
    log_of,
    Log,
    Rec, //
};
use mars_core::log::{
    batch_size,
    BatchWriter,
    EndFinder,
    EndReason,
    EndStep,
    LogError,
    LogHeader,
    RecordHead,
    RecordKind,
    Scan,
    ScanPos,
    Scanner,
    BATCH_HEADER_SIZE,
    HEADER_SIZE,
    MAX_BATCH,
    MAX_PAYLOAD,
    MAX_RECORDS,
    RECORD_SIZE, //
};
use mars_host_digest::HostDigest;
use proptest::prelude::*;

/// Reads a log in memory to its end.
fn scan(log: &Log, bytes: &[u8]) -> (Vec<Vec<Rec>>, EndReason) {
    let mut scanner = Scanner::first(&log.header, log.header_crc);
    let mut found = Vec::new();
    loop {
        let at = usize::try_from(scanner.pos()).unwrap();
        match scanner.next_at_eof::<HostDigest>(&bytes[at..], true) {
            Scan::Batch(batch) => {
                assert_eq!(batch.pos as usize, at);
                let records = batch.records().map(|r| {
                    let whole = &bytes[at..at + batch.total_len as usize];
                    assert_eq!(r.payload, &whole[r.payload_at..][..r.payload.len()]);
                    Rec {
                        kind: r.kind,
                        offset: r.offset,
                        length: r.length,
                        stamp: r.stamp,
                        payload: r.payload.to_vec(),
                    }
                });
                found.push(records.collect());
            }
            Scan::NeedMore(_) => panic!("there is no more"),
            Scan::End(reason) => return (found, reason),
        }
    }
}

proptest! {
    #![proptest_config(common::cases(64))]

    #[test]
    fn what_was_written_is_read(batches in batches(), shift in 9u32..13, zeros in 0usize..3) {
        let mut log = log_of(1 << shift, &batches);
        log.bytes.resize(log.bytes.len() + zeros * 512, 0);
        let (header, crc) = LogHeader::parse::<HostDigest>(&log.bytes).unwrap();
        prop_assert_eq!(header, log.header);
        prop_assert_eq!(crc, log.header_crc);
        let (found, reason) = scan(&log, &log.bytes);
        prop_assert_eq!(found, batches);
        prop_assert_eq!(reason, if zeros == 0 { EndReason::Eof } else { EndReason::Zeroes });
    }

    #[test]
    fn p6_any_flipped_bit_is_found(batches in batches(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let log = log_of(512, &batches);
        let mut damaged = log.bytes.clone();
        let at = at.index(damaged.len());
        damaged[at] ^= 1 << bit;
        if at < HEADER_SIZE {
            prop_assert!(LogHeader::parse::<HostDigest>(&damaged).is_err());
        } else {
            let (found, reason) = scan(&log, &damaged);
            // All batches before the damaged one, and none from there on.
            prop_assert!(found.len() < batches.len());
            prop_assert_eq!(&found[..], &batches[..found.len()]);
            prop_assert!(!reason.is_clean());
        }
    }

    #[test]
    fn p6_any_truncation_is_more_needed_or_the_end(batches in batches(), cut in any::<prop::sample::Index>()) {
        let log = log_of(512, &batches);
        let cut = HEADER_SIZE + cut.index(log.bytes.len() - HEADER_SIZE);
        let short = &log.bytes[..cut];
        let (found, _) = scan(&log, short);
        prop_assert!(found.len() < batches.len());
        prop_assert_eq!(&found[..], &batches[..found.len()]);
        // Without knowing that the file ends, more is wanted: never less than there is, never beyond the log.
        let mut scanner = Scanner::first(&log.header, log.header_crc);
        loop {
            let at = scanner.pos() as usize;
            match scanner.next::<HostDigest>(&short[at..], true) {
                Scan::Batch(_) => (),
                Scan::NeedMore(min) => {
                    prop_assert!(min > cut - at && at + min <= log.bytes.len().max(at + BATCH_HEADER_SIZE));
                    break;
                }
                Scan::End(reason) => prop_assert!(false, "{reason:?}"),
            }
        }
    }

    #[test]
    fn p6_the_scanner_survives_garbage(
        garbage in proptest::collection::vec(any::<u8>(), 0..4096),
        seq in any::<Option<u64>>(),
        pos in any::<u64>(),
        verify: bool,
        align in any::<u32>(),
    ) {
        let ctx = mars_core::log::LogContext { log_id: [1; 16], align };
        let mut scanner = Scanner::new(ctx, pos, seq, None);
        let is_batch = matches!(scanner.next::<HostDigest>(&garbage, verify), Scan::Batch(_));
        prop_assert!(!is_batch);
        let _ = LogHeader::parse::<HostDigest>(&garbage);
    }

    #[test]
    fn p6_a_true_checksum_over_wrong_fields_does_not_help(
        batches in batches(),
        field in 0usize..BATCH_HEADER_SIZE + RECORD_SIZE,
        value in any::<u32>(),
    ) {
        // The writer itself is wrong (or hostile): nothing may panic, and records stay within the format.
        let log = log_of(512, &batches);
        let mut bytes = log.bytes.clone();
        for (i, b) in value.to_le_bytes().into_iter().enumerate() {
            bytes[HEADER_SIZE + field + i] = b;
        }
        fix_meta_crc(&mut bytes[HEADER_SIZE..]);
        let mut scanner = Scanner::first(&log.header, log.header_crc);
        if let Scan::Batch(batch) = scanner.next::<HostDigest>(&bytes[HEADER_SIZE..], false) {
            for r in batch.records() {
                prop_assert!(r.payload.len() <= MAX_PAYLOAD as usize);
                prop_assert!(r.offset.checked_add(u64::from(r.length)).is_some());
            }
        }
    }
}

/// Makes the checksum of the first batch in `bytes` right again, if its lengths allow that.
fn fix_meta_crc(bytes: &mut [u8]) {
    let count = u32::from_le_bytes(bytes[40..44].try_into().unwrap()) as usize;
    let header = usize::from(u16::from_le_bytes(bytes[6..8].try_into().unwrap()));
    let entries = count.saturating_mul(RECORD_SIZE).saturating_add(header);
    let len = entries.saturating_add(511) / 512 * 512;
    if (64..=bytes.len()).contains(&len) {
        bytes[56..60].fill(0);
        let crc = mars_core::digest::crc::<HostDigest>(&[&bytes[..len]]);
        bytes[56..60].copy_from_slice(&crc.to_le_bytes());
    }
}

fn two_batches() -> Log {
    log_of(
        512,
        &[
            vec![Rec::write(0, bytes(512, 1))],
            vec![Rec::write(512, bytes(1024, 2))],
        ],
    )
}

fn end_at(log: &Log, at: ScanPos, bytes: &[u8]) -> EndReason {
    let mut scanner = Scanner::resume(log.header.context(), at);
    match scanner.next_at_eof::<HostDigest>(bytes, true) {
        Scan::End(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn p6_stale_batches_are_refused() {
    let log = two_batches();
    let other = Log::new(2, 512);
    let first = ScanPos::first(log.header_crc);
    let batch = &log.bytes[HEADER_SIZE..];
    // Of another log.
    assert_eq!(
        end_at(&other, ScanPos::first(other.header_crc), batch),
        EndReason::OtherLog
    );
    // Of this log, but of another place.
    assert_eq!(end_at(&log, log.next, batch), EndReason::BadPos);
    // Of this log and this place, from before it was cut and written again.
    let again = ScanPos {
        chain: Some(1),
        ..first
    };
    assert_eq!(end_at(&log, again, batch), EndReason::BadChain);
    let later = ScanPos {
        seq: Some(2),
        ..first
    };
    assert_eq!(end_at(&log, later, batch), EndReason::BadSeq);
}

#[test]
fn scanning_resumes_anywhere() {
    let log = two_batches();
    let mut scanner = Scanner::first(&log.header, log.header_crc);
    assert!(matches!(
        scanner.next::<HostDigest>(&log.bytes[HEADER_SIZE..], true),
        Scan::Batch(_)
    ));
    let noted = scanner.at();
    for at in [
        noted,
        // Only the position was noted.
        ScanPos {
            seq: None,
            chain: None,
            ..noted
        },
    ] {
        let mut scanner = Scanner::resume(log.header.context(), at);
        let rest = &log.bytes[noted.pos as usize..];
        assert!(matches!(
            scanner.next::<HostDigest>(rest, true),
            Scan::Batch(_)
        ));
        assert_eq!(scanner.at(), log.next);
    }
}

#[test]
fn the_end_is_found_in_pieces_of_any_size() {
    let mut log = two_batches();
    let end = log.next;
    log.bytes.resize(log.bytes.len() + 8192, 0);
    for piece in [1, 64, 100, 512, 1000, 1 << 20] {
        let ctx = log.header.context();
        let mut finder = EndFinder::new(ctx, ScanPos::first(log.header_crc), true);
        let mut step = finder.start();
        let found = loop {
            match step {
                EndStep::Done(found) => break found,
                EndStep::Read { pos, min } => {
                    let from = pos as usize;
                    let to = (from + min.max(piece)).min(log.bytes.len());
                    step = finder.feed::<HostDigest>(&log.bytes[from..to], to == log.bytes.len());
                }
            }
        };
        assert_eq!(found.at, end);
        assert_eq!(found.reason, EndReason::Zeroes);
        assert_eq!(found.batches, 2);
        assert_eq!(found.stamp, 99);
    }
}

#[test]
fn a_log_is_continued_at_its_end() {
    let mut log = two_batches();
    log.append(&[Rec::write(4096, bytes(4096, 9))]);
    assert_eq!(scan(&log, &log.bytes).0.len(), 3);
}

#[test]
fn a_later_version_is_told_from_damage() {
    let log = two_batches();
    let at = ScanPos::first(log.header_crc);
    let mut batch = log.bytes[HEADER_SIZE..].to_vec();
    batch[4] = 2;
    assert_eq!(end_at(&log, at, &batch), EndReason::Unsupported);

    let with = |at: usize, value: u8| {
        let mut b = log.bytes[HEADER_SIZE..].to_vec();
        b[at] = value;
        fix_meta_crc(&mut b);
        b
    };
    // Batch and record flags that must be known, and the same that may be ignored.
    assert_eq!(end_at(&log, at, &with(5, 0x10)), EndReason::Unsupported);
    assert_eq!(end_at(&log, at, &with(65, 0x80)), EndReason::Unsupported);
    for b in [with(5, 0x08), with(65, 0x08)] {
        let mut scanner = Scanner::first(&log.header, log.header_crc);
        assert!(matches!(
            scanner.next::<HostDigest>(&b, true),
            Scan::Batch(_)
        ));
    }
    // A second volume, a new kind of record.
    assert_eq!(end_at(&log, at, &with(66, 1)), EndReason::Unsupported);
    assert_eq!(end_at(&log, at, &with(64, 9)), EndReason::Unsupported);
}

#[test]
fn an_unknown_record_that_may_be_ignored_is_skipped() {
    let mut log = Log::new(1, 512);
    log.append(&[Rec::write(0, bytes(512, 1)), Rec::write(512, bytes(512, 2))]);
    log.bytes[HEADER_SIZE + 64] = 9;
    log.bytes[HEADER_SIZE + 65] = 1;
    fix_meta_crc(&mut log.bytes[HEADER_SIZE..]);
    let (found, reason) = scan(&log, &log.bytes);
    assert_eq!(found, [[Rec::write(512, bytes(512, 2))]]);
    assert_eq!(reason, EndReason::Eof);
}

#[test]
fn headers_say_what_is_wrong() {
    let log = Log::new(1, 4096);
    let parse = |bytes: &[u8]| LogHeader::parse::<HostDigest>(bytes).map(|_| ());
    assert_eq!(parse(&log.bytes), Ok(()));
    assert_eq!(parse(&log.bytes[..4095]), Err(LogError::TooShort));
    assert_eq!(parse(b""), Err(LogError::TooShort));
    assert_eq!(parse(b"hello"), Err(LogError::BadMagic));
    let with = |at: usize, bytes: &[u8], fix: bool| {
        let mut b = log.bytes.clone();
        b[at..at + bytes.len()].copy_from_slice(bytes);
        if fix {
            let crc = mars_core::digest::crc::<HostDigest>(&[&b[..4092]]);
            b[4092..4096].copy_from_slice(&crc.to_le_bytes());
        }
        parse(&b)
    };
    assert_eq!(with(8, &[3], false), Err(LogError::Version(3)));
    assert_eq!(with(300, &[1], false), Err(LogError::BadCrc));
    assert_eq!(with(12, &[4], true), Err(LogError::Unsupported(4)));
    assert_eq!(with(20, &[1], true), Err(LogError::BadAlign));
    assert_eq!(with(144, b"../r", true), Err(LogError::BadName));
    assert_eq!(with(48, &[0xff], true), Err(LogError::BadName));
    // Later minor versions and what may be ignored.
    assert_eq!(with(10, &[9], true), Ok(()));
    assert_eq!(with(16, &[0xff], true), Ok(()));
    assert_eq!(with(300, &[1], true), Ok(()));
}

#[test]
fn the_layout_is_the_documented_one() {
    let log = two_batches();
    let b = &log.bytes[..];
    assert_eq!(&b[..8], b"MARSLOG2");
    assert_eq!(b[8..12], [2, 0, 0, 0]);
    assert_eq!(b[20..28], [0, 2, 0, 0, 7, 0, 0, 0]);
    assert_eq!(b[32..48], [1; 16]);
    assert_eq!(&b[48..49], b"a");
    assert_eq!(&b[144..147], b"r0\0");
    assert_eq!(&b[208..214], b"alpha\0");
    assert_eq!(b[272..280], 1_795_323_640_000_000_005u64.to_le_bytes());
    assert!(b[280..4092].iter().all(|&x| x == 0));
    let b = &b[4096..];
    assert_eq!(&b[..8], b"MBT2\x01\0\x40\0");
    assert_eq!(b[8..16], [1; 8]);
    assert_eq!(b[16..24], 1u64.to_le_bytes());
    assert_eq!(b[24..32], 4096u64.to_le_bytes());
    assert_eq!(b[32..36], 1024u32.to_le_bytes());
    assert_eq!(b[36..40], (512 + 512u32).to_le_bytes());
    assert_eq!(b[40..44], 1u32.to_le_bytes());
    assert_eq!(b[44..48], log.header_crc.to_le_bytes());
    assert_eq!(b[48..56], 99u64.to_le_bytes());
    assert_eq!(b[64..68], [1, 0, 0, 0]);
    assert_eq!(b[68..72], 512u32.to_le_bytes());
    assert_eq!(b[72..80], 0u64.to_le_bytes());
    assert_eq!(b[80..88], 1u64.to_le_bytes());
    assert_eq!(b[88..92], 512u32.to_le_bytes());
    assert_eq!(&b[512..512 + 512], &bytes(512, 1)[..]);
}

#[test]
fn a_writer_refuses_what_a_reader_would() {
    let log = Log::new(1, 512);
    let ctx = log.header.context();
    let mut buf = vec![0; MAX_BATCH as usize];
    let new =
        |buf: &mut [u8], pos, count| BatchWriter::new(buf, &ctx, 1, pos, 0, 0, count).map(|_| ());
    assert_eq!(new(&mut buf, 4096, 0), Err(LogError::BadCount));
    assert_eq!(
        new(&mut buf, 4096, MAX_RECORDS + 1),
        Err(LogError::BadCount)
    );
    assert_eq!(new(&mut buf, 4097, 1), Err(LogError::BadPos));
    assert_eq!(new(&mut buf[..100], 4096, 1), Err(LogError::TooShort));

    let head = |kind, offset, length| RecordHead {
        kind,
        offset,
        length,
        stamp: 0,
        payload_crc: 0,
    };
    let big = vec![0; MAX_PAYLOAD as usize + 512];
    let mut w = BatchWriter::new(&mut buf, &ctx, 1, 4096, 0, 0, 2).unwrap();
    for (h, payload) in [
        (head(RecordKind::Write, 0, 512), 0),
        (head(RecordKind::Write, 1, 512), 512),
        (head(RecordKind::Write, 0, 513), 513),
        (head(RecordKind::Write, 0, 0), 0),
        (head(RecordKind::Write, u64::MAX - 511, 512), 512),
        (head(RecordKind::Write, 0, MAX_PAYLOAD + 512), big.len()),
        (head(RecordKind::Discard, 0, 512), 512),
        (head(RecordKind::Marker, 512, 0), 0),
    ] {
        assert_eq!(
            w.push(&h, &big[..payload]),
            Err(LogError::BadRecord),
            "{h:?}"
        );
    }
    w.push(&head(RecordKind::Discard, 0, 512), &[]).unwrap();
    assert_eq!(w.finish::<HostDigest>(), Err(LogError::BadCount));
}

#[test]
fn sizes_have_their_limits() {
    assert_eq!(batch_size(1, 512, 512), Some(1024));
    assert_eq!(batch_size(1, 4096, 4096), Some(8192));
    assert_eq!(batch_size(0, 0, 512), None);
    assert_eq!(batch_size(MAX_RECORDS, 0, 512), Some(82432));
    assert_eq!(batch_size(MAX_RECORDS + 1, 0, 512), None);
    assert_eq!(batch_size(1, u64::from(MAX_BATCH), 512), None);
    assert_eq!(batch_size(3, 3 << 20, 4096), Some((3 << 20) + 4096));
    assert_eq!(batch_size(1, u64::MAX, 512), None);
}

#[test]
fn the_biggest_batch_goes_both_ways() {
    let mut log = Log::new(1, 4096);
    let payload = bytes(MAX_PAYLOAD as usize, 3);
    let records: Vec<_> = (0..3)
        .map(|i| Rec::write(i << 20, payload.clone()))
        .collect();
    log.append(&records);
    assert_eq!(scan(&log, &log.bytes).0, [records]);
}

#[test]
fn writing_and_reading_allocate_nothing() {
    let before = kernel::inject::allocations();
    let log = two_batches();
    scan(&log, &log.bytes);
    assert_eq!(kernel::inject::allocations(), before);
}
