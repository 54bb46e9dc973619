// SPDX-License-Identifier: GPL-2.0-or-later

//! Digest sync: whatever fails in between, both images are equal at the end, and progress never goes back.

use mars_core::digest::Digest;
use mars_core::sync::*;
use mars_host_digest::HostDigest;
use proptest::prelude::*;

const GRAIN: u32 = 4096;

/// Asks a "primary" for the digests of a chunk and makes "our disk" equal.
fn work(chunk: Chunk, grain: u32, primary: &[u8], ours: &mut [u8]) -> ChunkCost {
    let range = chunk.range();
    let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
    let (primary, ours) = (&primary[range.clone()], &mut ours[range]);
    let mut digests = vec![1; digests_len(primary.len(), grain).unwrap()];
    digest_chunk::<HostDigest>(primary, grain, &mut digests).unwrap();
    let found: Vec<_> = differing::<HostDigest>(ours, grain, &digests)
        .unwrap()
        .collect();
    let mut cost = ChunkCost::default();
    for Difference { start, len, zero } in found {
        let range = usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
        if zero {
            ours[range].fill(0);
            cost.zeroed += u64::from(len);
        } else {
            ours[range.clone()].copy_from_slice(&primary[range]);
            cost.transferred += u64::from(len);
        }
    }
    cost
}

/// Sectors that are zero, equal on both sides, or different.
fn image(sectors: &[u8], side: u8) -> Vec<u8> {
    let of = |kind: &u8| match kind {
        0 => 0,
        1 => 0x11,
        _ => side,
    };
    sectors.iter().flat_map(|kind| [of(kind); 512]).collect()
}

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    Take,
    Done(prop::sample::Index),
    Failed(prop::sample::Index),
    AllGone,
    /// The module is loaded anew: a new plan starts at the last progress that was written.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Take),
        4 => any::<prop::sample::Index>().prop_map(Event::Done),
        2 => any::<prop::sample::Index>().prop_map(Event::Failed),
        1 => Just(Event::AllGone),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    // Hashing is slow in a build for tests.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn p9_p10_whatever_fails_progress_is_monotone_and_the_images_become_equal(
        sectors in prop::collection::vec(0u8..4, 0..400),
        start in 0usize..400,
        chunk_grains in 1u32..4,
        events in prop::collection::vec(event(), 0..150),
    ) {
        let primary = image(&sectors, 0xaa);
        let mut ours = image(&sectors, 0x55);
        let start = start.min(sectors.len()) * 512;
        ours[..start].copy_from_slice(&primary[..start]);
        let size = u64::try_from(primary.len()).unwrap();
        let new = |from| SyncPlan::new(size, from, GRAIN, chunk_grains * GRAIN).unwrap();
        let mut plan = new(u64::try_from(start).unwrap());
        let mut busy: Vec<Chunk> = Vec::new();
        let mut late: Vec<Chunk> = Vec::new();
        let mut reached = plan.progress();

        for event in events {
            match event {
                Event::Take => {
                    if let Some(chunk) = plan.next_chunk() {
                        let overlaps = |b: &Chunk| b.offset < chunk.range().end && chunk.offset < b.range().end;
                        prop_assert!(!busy.iter().any(overlaps));
                        prop_assert!(chunk.len > 0 && chunk.range().end <= size);
                        busy.push(chunk);
                    }
                }
                Event::Done(which) if !busy.is_empty() => {
                    let chunk = busy.swap_remove(which.index(busy.len()));
                    let cost = work(chunk, GRAIN, &primary, &mut ours);
                    prop_assert_eq!(plan.done(chunk, cost), Ok(()));
                    prop_assert_eq!(plan.done(chunk, cost), Err(SyncError::Stale));
                }
                Event::Failed(which) if !busy.is_empty() => {
                    let chunk = busy.swap_remove(which.index(busy.len()));
                    prop_assert_eq!(plan.failed(chunk), Ok(()));
                    prop_assert_eq!(plan.failed(chunk), Err(SyncError::Stale));
                }
                Event::AllGone => {
                    plan.take_all_back();
                    late.append(&mut busy);
                }
                Event::Restart => {
                    plan = new(plan.progress());
                    busy.clear();
                    late.clear();
                }
                _ => {}
            }
            for chunk in &late {
                prop_assert_eq!(plan.done(*chunk, ChunkCost::default()), Err(SyncError::Stale));
            }
            prop_assert!(plan.progress() >= reached);
            reached = plan.progress();
            prop_assert_eq!(u32::try_from(busy.len()).unwrap(), plan.busy());
            let below = usize::try_from(reached).unwrap();
            prop_assert!(ours[..below] == primary[..below]);
        }

        plan.take_all_back();
        while let Some(chunk) = plan.next_chunk() {
            let cost = work(chunk, GRAIN, &primary, &mut ours);
            plan.done(chunk, cost).unwrap();
        }
        prop_assert!(plan.is_complete());
        prop_assert_eq!(plan.progress(), size);
        prop_assert!(ours == primary);
    }

    #[test]
    fn differences_are_disjoint_ascending_and_complete(
        sectors in prop::collection::vec(0u8..4, 1..200),
        grain_log in 9u32..14,
    ) {
        let grain = 1 << grain_log;
        let (primary, ours) = (image(&sectors, 0xaa), image(&sectors, 0x55));
        let mut digests = vec![0; digests_len(primary.len(), grain).unwrap()];
        digest_chunk::<HostDigest>(&primary, grain, &mut digests).unwrap();
        let mut end = 0;
        let mut covered = vec![false; primary.len()];
        for found in differing::<HostDigest>(&ours, grain, &digests).unwrap() {
            prop_assert!(found.start >= end && found.len > 0);
            end = found.start + found.len;
            let range = usize::try_from(found.start).unwrap()..usize::try_from(end).unwrap();
            covered[range.clone()].fill(true);
            prop_assert!(!found.zero || is_zero(&primary[range]));
        }
        prop_assert!((0..primary.len()).all(|i| covered[i] || primary[i] == ours[i]));
    }

    #[test]
    fn any_geometry_is_refused_or_covers_the_device_exactly(
        size in 0u64..(1 << 22), start in 0u64..(1 << 22), grain: u32, chunk: u32,
        good in any::<bool>(), grain_log in 12u32..16, factor in 1u32..8,
    ) {
        let (size, start, grain, chunk) = if good {
            (size & !511, start.min(size) & !511, 1 << grain_log, factor << grain_log)
        } else {
            (size, start, grain, chunk)
        };
        let plan = SyncPlan::new(size, start, grain, chunk);
        prop_assert!(plan.is_ok() || !good);
        if let Ok(mut plan) = plan {
            let mut at = start;
            while let Some(chunk) = plan.next_chunk() {
                prop_assert_eq!(chunk.offset, at);
                at = chunk.range().end;
                plan.done(chunk, ChunkCost::default()).unwrap();
                prop_assert_eq!(plan.progress(), at);
            }
            prop_assert_eq!(at, size);
        }
    }
}

#[test]
fn given_a_stuck_worker_when_others_go_on_then_they_stop_at_the_window() {
    let mut plan = SyncPlan::new(1 << 40, 0, 4096, 4096).unwrap();
    let stuck = plan.next_chunk().unwrap();
    for _ in 1..WINDOW {
        let chunk = plan.next_chunk().unwrap();
        plan.done(chunk, ChunkCost::default()).unwrap();
    }
    assert_eq!(plan.next_chunk(), None);
    assert_eq!((plan.progress(), plan.busy()), (0, 1));
    plan.done(stuck, ChunkCost::default()).unwrap();
    assert_eq!(plan.progress(), u64::from(WINDOW) * 4096);
    assert!(plan.next_chunk().is_some());
}

#[test]
fn given_failures_when_counted_then_a_success_ends_the_row() {
    let mut plan = SyncPlan::new(1 << 20, 0, 4096, 65536).unwrap();
    for n in 1..5 {
        let chunk = plan.next_chunk().unwrap();
        assert_eq!(chunk.offset, 0);
        plan.failed(chunk).unwrap();
        assert_eq!(plan.failures_in_a_row(), n);
    }
    let chunk = plan.next_chunk().unwrap();
    let cost = ChunkCost {
        transferred: 4096,
        zeroed: 512,
    };
    plan.done(chunk, cost).unwrap();
    let want = SyncStats {
        compared: 65536,
        transferred: 4096,
        zeroed: 512,
        failed_chunks: 4,
    };
    assert_eq!((plan.failures_in_a_row(), plan.stats()), (0, want));
}

#[test]
fn given_a_grown_device_when_planned_anew_then_only_the_new_part_is_compared() {
    let mut plan = SyncPlan::new(70_144, 0, 4096, 65536).unwrap();
    while let Some(chunk) = plan.next_chunk() {
        plan.done(chunk, ChunkCost::default()).unwrap();
    }
    assert_eq!(plan.progress(), 70_144);
    let mut grown = SyncPlan::new(1 << 20, plan.progress(), 4096, 65536).unwrap();
    let chunk = grown.next_chunk().unwrap();
    assert_eq!(chunk.range(), 70_144..131_072);
}

#[test]
fn given_zeros_when_digested_then_nothing_is_hashed_and_nothing_transferred() {
    /// Fails the test when it is used.
    struct NoHash;
    impl Digest for NoHash {
        fn crc32c(_: u32, _: &[u8]) -> u32 {
            unreachable!()
        }
        fn md5(_: &[&[u8]]) -> [u8; 16] {
            unreachable!()
        }
        fn sha256(_: &[&[u8]]) -> [u8; 32] {
            unreachable!()
        }
        fn hmac_sha256(_: &[u8], _: &[&[u8]]) -> [u8; 32] {
            unreachable!()
        }
    }
    let zeros = vec![0; 65536];
    let mut digests = vec![7; 512];
    digest_chunk::<NoHash>(&zeros, 4096, &mut digests).unwrap();
    assert!(is_zero(&digests));
    assert_eq!(
        differing::<NoHash>(&zeros, 4096, &digests).unwrap().next(),
        None
    );
    let dirty = vec![1; 65536];
    let all: Vec<_> = differing::<NoHash>(&dirty, 4096, &digests)
        .unwrap()
        .collect();
    assert_eq!(
        all,
        [Difference {
            start: 0,
            len: 65536,
            zero: true
        }]
    );
}

#[test]
fn given_a_hash_that_is_all_zero_or_all_ones_when_compared_then_the_data_is_transferred() {
    /// Hashes everything to the same byte.
    struct Constant<const BYTE: u8>;
    impl<const BYTE: u8> Digest for Constant<BYTE> {
        fn crc32c(_: u32, _: &[u8]) -> u32 {
            0
        }
        fn md5(_: &[&[u8]]) -> [u8; 16] {
            [BYTE; 16]
        }
        fn sha256(_: &[&[u8]]) -> [u8; 32] {
            [BYTE; 32]
        }
        fn hmac_sha256(_: &[u8], _: &[&[u8]]) -> [u8; 32] {
            [BYTE; 32]
        }
    }
    fn check<D: Digest>() {
        let data = vec![1; 8192];
        let mut digests = vec![0; 64];
        digest_chunk::<D>(&data, 4096, &mut digests).unwrap();
        assert!(!is_zero(&digests));
        for ours in [&data, &vec![0; 8192]] {
            let all: Vec<_> = differing::<D>(ours, 4096, &digests).unwrap().collect();
            assert_eq!(
                all,
                [Difference {
                    start: 0,
                    len: 8192,
                    zero: false
                }]
            );
        }
    }
    check::<Constant<0>>();
    check::<Constant<0xff>>();
}

#[test]
fn given_much_that_differs_when_united_then_no_piece_exceeds_a_message() {
    let ours = vec![1; (5 << 19) + 512];
    let digests = vec![2; digests_len(ours.len(), 4096).unwrap()];
    let all: Vec<_> = differing::<HostDigest>(&ours, 4096, &digests)
        .unwrap()
        .collect();
    let lens: Vec<_> = all.iter().map(|d| d.len).collect();
    assert_eq!(lens, [1 << 20, 1 << 20, (1 << 19) + 512]);
}

#[test]
fn given_a_wrong_number_of_digests_when_compared_then_it_is_refused() {
    let ours = [0; 8192];
    for len in [0, 32, 63, 65, 96] {
        assert!(differing::<HostDigest>(&ours, 4096, &vec![0; len]).is_err());
        assert!(digest_chunk::<HostDigest>(&ours, 4096, &mut vec![0; len]).is_err());
    }
    assert!(differing::<HostDigest>(&ours, 0, &[]).is_err());
}

#[test]
fn given_one_byte_anywhere_when_looked_at_then_it_is_not_zero() {
    let mut data = vec![0; 1500];
    assert!(is_zero(&data) && is_zero(&[]));
    for at in 0..data.len() {
        data[at] = 1;
        assert!(!is_zero(&data), "{at}");
        data[at] = 0;
    }
}

#[test]
fn given_chunks_that_nobody_wants_when_taken_then_they_count_as_done_and_the_rest_is_compared() {
    const CHUNK: u32 = 8192;
    // Far more than the window, with long stretches that are passed over.
    let size = 1000 * u64::from(CHUNK) + 512;
    let wanted =
        |offset: u64, _: u64| [0, 3, 500, 999, 1000].contains(&(offset / u64::from(CHUNK)));
    let mut plan = SyncPlan::new(size, 0, GRAIN, CHUNK).unwrap();
    let mut seen = Vec::new();
    let mut held = Vec::new();
    loop {
        match plan.next_wanted(wanted) {
            Some(c) => {
                seen.push((c.offset / u64::from(CHUNK), c.len));
                held.push(c);
            }
            None if held.is_empty() => break,
            None => {
                // The window is closed until the oldest is done.
                assert!(plan.progress() <= held[0].offset);
                plan.done(held.remove(0), ChunkCost::default()).unwrap();
            }
        }
    }
    assert_eq!(
        seen,
        [
            (0, CHUNK),
            (3, CHUNK),
            (500, CHUNK),
            (999, CHUNK),
            (1000, 512)
        ]
    );
    assert!(plan.is_complete() && plan.progress() == size);
    let mut nothing = SyncPlan::new(size, 0, GRAIN, CHUNK).unwrap();
    assert!(nothing.next_wanted(|_, _| false).is_none() && nothing.is_complete());
}

#[test]
fn given_an_unwanted_chunk_before_a_failed_one_when_tried_again_then_only_that_one_comes() {
    let mut plan = SyncPlan::new(10 * 8192, 0, GRAIN, 8192).unwrap();
    let wanted = |offset: u64, _: u64| offset == 8192 * 4;
    let c = plan.next_wanted(wanted).unwrap();
    assert_eq!(plan.progress(), 8192 * 4);
    assert!(plan.next_wanted(wanted).is_none() && !plan.is_complete());
    plan.failed(c).unwrap();
    let again = plan.next_wanted(wanted).unwrap();
    assert_eq!(again.offset, c.offset);
    plan.done(again, ChunkCost::default()).unwrap();
    assert!(plan.is_complete());
}
