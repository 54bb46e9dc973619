// SPDX-License-Identifier: GPL-2.0-or-later

//! How long a record takes from admission to the end, all calls of the write buffer together. Run with
//! `cargo test --release -p mars-core --test buffer_speed -- --ignored --nocapture`.
//!
//! In userspace the ordered map is a sorted array, whose insertions take longer the more there is in it; the kernel's tree
//! does not have that. So only the small sizes tell something about the module.

use kernel::alloc::KVec;
use mars_core::buffer::{
    Kind,
    LogPos,
    WriteBuffer, //
};
use std::{
    sync::Arc,
    time::{
        Duration,
        Instant, //
    }, //
};

struct Times {
    admit: Duration,
    log: Duration,
    write_back: Duration,
    /// Time on a processor, which other programs can't lengthen much.
    cpu_ns: u64,
}

/// Time that this thread has been on a processor.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Admits `records` writes of 4 KiB with about `dirty` of them in the buffer, at random places of `blocks`.
fn run(records: u64, dirty: usize, blocks: u64, batch: u64) -> Times {
    let mut b: WriteBuffer<Arc<()>> = WriteBuffer::new();
    let mut items = KVec::new();
    let mut ios = KVec::new();
    let payload = Arc::new(());
    let mut t = Times {
        admit: Duration::ZERO,
        log: Duration::ZERO,
        write_back: Duration::ZERO,
        cpu_ns: cpu_ns(),
    };
    let mut rng = 1u64;
    let mut done = 0;
    while done < records {
        let t0 = Instant::now();
        for _ in 0..batch {
            rng = rng
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (rng >> 20) % blocks * 4096;
            b.admit(Kind::Write, at, 4096, done, 0, Some(payload.clone()))
                .unwrap();
        }
        done += batch;
        let t1 = Instant::now();
        while b.untaken() > 0 {
            items.clear();
            b.take_for_log(1024, 1 << 20, &mut items).unwrap();
            let last = items.last().unwrap().seq;
            b.logged(
                last,
                LogPos {
                    number: 1,
                    pos: done,
                },
            );
        }
        b.durable(b.last_seq());
        let t2 = Instant::now();
        while b.dirty_bytes() > dirty as u64 * 4096 {
            ios.clear();
            b.plan(512 << 10, 16, &mut ios).unwrap();
            for io in ios.iter() {
                b.io_done(io.id, true);
            }
            b.flush_begin();
            b.flush_end(true);
        }
        t.admit += t1 - t0;
        t.log += t2 - t1;
        t.write_back += t2.elapsed();
    }
    t.cpu_ns = cpu_ns() - t.cpu_ns;
    assert!(b.written_position().is_some() || done < 4 * dirty as u64);
    t
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    println!("  dirty    blocks  batch | admit   log  write  (ns each) |   cpu  records/s of it");
    for (dirty, blocks) in [
        (64, 1 << 12),
        (1024, 1 << 18),
        (16 << 10, 1 << 18),
        (64 << 10, 1 << 24),
        (256 << 10, 1 << 24),
    ] {
        for batch in [32, 512] {
            let n = 600_000;
            let t = run(n, dirty, blocks, batch);
            let per = |d: Duration| d.as_nanos() as u64 / n;
            println!(
                "{dirty:8} {blocks:8} {batch:6} | {:5} {:5} {:6} | {:5} {:8}",
                per(t.admit),
                per(t.log),
                per(t.write_back),
                t.cpu_ns / n,
                1_000_000_000 * n / t.cpu_ns,
            );
        }
    }
}
