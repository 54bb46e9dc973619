// SPDX-License-Identifier: GPL-2.0-or-later

//! Block devices below and I/O to them. The argument is a block device whose content is lost.

use crate::sys::{
    bdev::{self, BlockDevice},
    bio::{self, BioSetGuard, IoGroup, Plug, ZeroWith},
    buf::Buf,
    disk::{Disk, DiskOps, DiskParams},
    thread::ThreadCtx,
    time,
};
use kernel::{prelude::*, sync::Arc};

/// xorshift64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The pool of bios and the device; local variables are dropped from the last to the first.
fn open(path: &CStr) -> Result<(BioSetGuard, Arc<BlockDevice>)> {
    let bios = ok!(bio::init());
    let bdev = ok!(BlockDevice::open(path, true));
    Ok((bios, ok!(Arc::new(bdev, GFP_KERNEL))))
}

/// Parameters of a disk over `lower`.
pub(crate) fn params(lower: &BlockDevice) -> DiskParams {
    DiskParams {
        size: lower.size(),
        logical_block_size: lower.logical_block_size(),
        physical_block_size: lower.physical_block_size(),
        io_min: lower.io_min(),
        io_opt: lower.io_opt(),
        dma_alignment: lower.dma_alignment(),
        write_cache: true,
        rotational: lower.is_rotational(),
        max_zeroes: 0,
        discard_granularity: 0,
    }
}

/// A disk of zeros.
struct Zeroes;

impl DiskOps for Zeroes {
    fn submit(&self, mut bio: bio::IncomingBio) {
        let len = bio.len();
        let r = match bio.op() {
            bio::BioOp::Read => bio.zero(0, len),
            bio::BioOp::Write | bio::BioOp::Flush => Ok(()),
            _ => Err(EOPNOTSUPP),
        };
        bio.complete(r);
    }
}

/// Opening, and what is wrong with disks that can't be made.
pub(crate) fn block_open(_: &ThreadCtx, path: &CStr) -> Result {
    fails!(BlockDevice::open(path, true), ENODEV);
    fails!(
        Disk::new("t2", &ZEROES, ok!(Arc::new(Zeroes, GFP_KERNEL))),
        ENODEV
    );
    let (_bios, first) = open(path)?;
    pr_info!(
        "{}: size {} blocks {} {} io {} {} dma {:x} cache {} rotational {} discard {}\n",
        first.name(),
        first.size(),
        first.logical_block_size(),
        first.physical_block_size(),
        first.io_min(),
        first.io_opt(),
        first.dma_alignment(),
        first.has_write_cache(),
        first.is_rotational(),
        first.has_discard(),
    );
    fails!(bio::init(), EBUSY);
    fails!(BlockDevice::open(path, true), EBUSY);
    ok!(BlockDevice::open(path, false));
    fails!(BlockDevice::open(c"/dev/nothing", true), ENOENT);
    fails!(BlockDevice::open(c"/dev/null", true), ENOTBLK);
    fails!(BlockDevice::open(c"/etc", true), ENOTBLK);
    check!(bdev::open_error_text(EBUSY).contains("in use"));
    let good = params(&first);
    drop(first);
    // It is closed at once.
    for _ in 0..50 {
        ok!(BlockDevice::open(path, true));
    }

    let new = |name, p: &DiskParams| Disk::new(name, p, Arc::new(Zeroes, GFP_KERNEL)?);
    let disk = ok!(new("t2", &good));
    fails!(BlockDevice::open(c"/dev/mars/t2", true), ELOOP);
    check!(disk.open_count() == 0);
    fails!(new("t2", &good), EEXIST);
    drop(disk);
    for name in ["", ".", "..", "a/b", "a!b"] {
        fails!(new(name, &good), EINVAL);
    }
    fails!(new("x12345678901234567890123456", &good), ENAMETOOLONG);
    ok!(new("x1234567890123456789012345", &good));
    let bad = [
        DiskParams {
            logical_block_size: 100,
            ..good.clone()
        },
        DiskParams {
            logical_block_size: 0,
            size: 1,
            ..good.clone()
        },
        DiskParams {
            size: 1000,
            ..good.clone()
        },
        DiskParams {
            physical_block_size: 5000,
            ..good.clone()
        },
    ];
    for p in &bad {
        fails!(new("t3", p), EINVAL);
    }
    Ok(())
}

/// Writes something that depends on the block and the generation.
fn stamp(block: &mut [u8], number: u64, generation: u32) {
    let mut x = Rng(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(generation) | 1);
    for w in block.chunks_exact_mut(8) {
        w.copy_from_slice(&x.next().to_le_bytes());
    }
}

/// Number of writes in [`block_many`].
const WRITES: u32 = 10_000;

/// Ten thousand writes of all sizes and shapes, then everything is read back.
pub(crate) fn block_many(_: &ThreadCtx, path: &CStr) -> Result {
    let (_bios, lower) = open(path)?;
    let group: IoGroup<u64> = ok!(IoGroup::new());
    let lbs = u64::from(lower.logical_block_size());
    let block = lbs as usize;
    let blocks = (lower.size() / lbs).min((128 << 20) / lbs);
    ok!(lower.write_zeroes(0, blocks * lbs));
    // What was written last to each block, and what is being written.
    let mut generations = ok!(KVVec::from_elem(0_u32, blocks as usize, GFP_KERNEL));
    let mut busy: KVec<(u64, u64)> = KVec::new();
    let mut r = Rng(12345);
    let mut done = 0;
    for generation in 1..=WRITES {
        // Mostly small; a few in memory that is mapped page by page.
        let max = match r.below(1000) {
            0..=899 => 16 << 9,
            900..=995 => 2048 << 9,
            _ => 14000 << 9,
        };
        let len = (1 + r.below(max / lbs + 1)).min(blocks);
        let first = r.below(blocks - len + 1);
        let end = first + len;
        // Which of two overlapping writes comes last is not defined.
        loop {
            while let Some(d) = group.reap() {
                ok!(d.result);
                done += 1;
                busy.retain(|b| b.0 != d.tag);
            }
            if !busy.iter().any(|b| first < b.1 && b.0 < end) && group.in_flight() < 64 {
                break;
            }
            group.wait(1000, 0);
        }
        let mut frags: KVec<(Arc<Buf>, u32, u32)> = KVec::new();
        let mut at = first;
        while at < end {
            let part = match r.below(8) {
                0 => end - at,
                _ => (1 + r.below(8)).min(end - at),
            };
            let skip = r.below(4) * lbs;
            let mut buf = ok!(Buf::new((skip + part * lbs) as usize));
            check!(buf.as_ptr() as usize % 512 == 0);
            check!(buf.len() < 4096 || buf.as_ptr() as usize % 4096 == 0);
            for (i, b) in buf[skip as usize..].chunks_exact_mut(block).enumerate() {
                stamp(b, at + i as u64, generation);
            }
            let frag = (
                ok!(Arc::new(buf, GFP_KERNEL)),
                skip as u32,
                (part * lbs) as u32,
            );
            ok!(frags.push(frag, GFP_KERNEL));
            at += part;
        }
        for g in &mut generations[first as usize..end as usize] {
            *g = generation;
        }
        ok!(busy.push((first, end), GFP_KERNEL));
        let fua = r.below(100) == 0;
        let _plug = Plug::new();
        let parts = frags.iter().map(|f| (&f.0, f.1, f.2));
        ok!(group
            .submit_write(&lower, first * lbs, parts, fua, first)
            .map_err(|e| e.0));
    }
    while group.in_flight() > 0 {
        group.wait(1000, 0);
        while let Some(d) = group.reap() {
            ok!(d.result);
            done += 1;
        }
    }
    check!(done == WRITES, done);
    ok!(lower.flush());

    let reader: IoGroup<u64> = ok!(IoGroup::new());
    let mut want = ok!(KVec::from_elem(0_u8, block, GFP_KERNEL));
    let (mut at, mut reads) = (0, 0);
    while at < blocks || reader.in_flight() > 0 {
        while at < blocks && reader.in_flight() < 8 {
            let max = if reads % 16 == 0 {
                14000 << 9
            } else {
                300 << 9
            };
            let len = (1 + r.below(max / lbs)).min(blocks - at);
            let buf = ok!(Buf::new((len * lbs) as usize));
            ok!(reader
                .submit_read(&lower, at * lbs, buf, at)
                .map_err(|e| e.0));
            at += len;
            reads += 1;
        }
        reader.wait(1000, 0);
        while let Some(d) = reader.reap() {
            ok!(d.result);
            let buf = ok!(d.buf.ok_or(EIO));
            for (i, b) in buf.chunks_exact(block).enumerate() {
                let n = d.tag + i as u64;
                let generation = generations[n as usize];
                match generation {
                    0 => want.fill(0),
                    g => stamp(&mut want, n, g),
                }
                check!(*b == *want, n, generation);
            }
        }
    }
    Ok(())
}

/// Groups that end with I/O in flight, without any, and with results that nobody took.
pub(crate) fn block_groups(_: &ThreadCtx, path: &CStr) -> Result {
    let (_bios, lower) = open(path)?;
    let small = ok!(Arc::new(ok!(Buf::zeroed(65536)), GFP_KERNEL));
    let big = ok!(Arc::new(ok!(Buf::zeroed(8 << 20)), GFP_KERNEL));
    for i in 0..200_u32 {
        let g: IoGroup<Arc<Buf>> = ok!(IoGroup::new());
        g.wait(10_000, 0);
        check!(g.in_flight() == 0);
        let buf = if i % 20 == 0 { &big } else { &small };
        let part = (buf, 0, buf.len() as u32);
        ok!(g
            .submit_write(&lower, 0, [part], i % 7 == 0, buf.clone())
            .map_err(|e| e.0));
        ok!(g.submit_flush(&lower, buf.clone()).map_err(|e| e.0));
        check!(g.in_flight() == 2);
        if i % 3 == 0 {
            g.wait(10_000, 1);
            check!(g.in_flight() == 2);
            check!(g.reap().is_some());
            check!(g.in_flight() == 1);
        }
    }
    // All of them gave back what they held.
    check!(Arc::into_unique_or_drop(big).is_some());
    check!(Arc::into_unique_or_drop(small).is_some());
    Ok(())
}

/// Ranges become zeros, and nothing beside them, whoever makes the zeros; also long ones.
pub(crate) fn block_zeroes(_: &ThreadCtx, path: &CStr) -> Result {
    let (_bios, lower) = open(path)?;
    let lbs = lower.logical_block_size();
    let group: IoGroup<u32> = ok!(IoGroup::new());
    let size = 8_usize << 20;
    let mut ones = ok!(Buf::new(size));
    ones.fill(0xff);
    let mut kinds = ok!(KVec::from_elem(ZeroWith::Memory, 1, GFP_KERNEL));
    if lower.max_write_zeroes() >= size as u64 {
        ok!(kinds.push(ZeroWith::Device { unmap: true }, GFP_KERNEL));
        ok!(kinds.push(ZeroWith::Device { unmap: false }, GFP_KERNEL));
    }
    let mut buf = ok!(Buf::new(size));
    for with in kinds {
        ok!(lower.write_at(&ones, 0, size, 0, false));
        let ranges = [(lbs, lbs), (64 << 10, 3 * lbs), (1 << 20, (5 << 20) + lbs)];
        for (offset, len) in ranges {
            ok!(group
                .submit_zeroes(&lower, u64::from(offset), len, with, len)
                .map_err(|e| e.0));
        }
        while group.in_flight() > 0 {
            group.wait(1000, 0);
            while let Some(d) = group.reap() {
                ok!(d.result);
            }
        }
        ok!(lower.read_at(&mut buf, 0, size, 0));
        for (i, b) in buf.iter().enumerate() {
            let inside = |r: &(u32, u32)| (r.0 as usize..(r.0 + r.1) as usize).contains(&i);
            let want = if ranges.iter().any(inside) { 0 } else { 0xff };
            check!(*b == want, with, i);
        }
    }
    for (offset, len) in [(0, 0), (0, 13), (1, lbs)] {
        let refused = group.submit_zeroes(&lower, offset, len, ZeroWith::Memory, 7);
        check!(refused.err() == Some((EINVAL, 7)));
    }
    Ok(())
}

/// Number of threads in [`block_finish_race`].
const RACERS: u32 = 4;

/// A group ends at the very moment when its last I/O does, very often.
pub(crate) fn block_finish_race(ctx: &ThreadCtx, path: &CStr) -> Result {
    let (_bios, lower) = open(path)?;
    let mut threads = KVec::new();
    for i in 0..RACERS {
        let lower = lower.clone();
        let thread = crate::sys::thread::Thread::spawn(c"racer", move |_| {
            let Ok(data) = Buf::zeroed(4096).and_then(|b| Ok(Arc::new(b, GFP_KERNEL)?)) else {
                return;
            };
            for n in 0..5000_u64 {
                if let Ok(g) = IoGroup::new() {
                    let at = u64::from(i) << 20;
                    let _ = g.submit_write(&lower, at, [(&data, 0, 4096)], false, n);
                }
            }
        });
        ok!(threads.push(ok!(thread), GFP_KERNEL));
    }
    while threads.iter().any(|t| !t.is_finished()) {
        ctx.sleep_ms(20);
    }
    Ok(())
}

/// A device whose first MiB is fine, and whose second one fails; it ends there.
pub(crate) fn block_errors(_: &ThreadCtx, path: &CStr) -> Result {
    let (_bios, lower) = open(path)?;
    let group: IoGroup<u32> = ok!(IoGroup::new());
    let data = ok!(Arc::new(ok!(Buf::zeroed(2 << 20)), GFP_KERNEL));
    for i in 0..64_u32 {
        let parts = [(&data, 0, 4096), (&data, 8192, 28672)];
        ok!(group
            .submit_write(&lower, u64::from(i) << 15, parts, i & 1 == 0, i)
            .map_err(|e| e.0));
    }
    // Half of it fails.
    ok!(group
        .submit_write(&lower, 0, [(&data, 0, 2 << 20)], false, 64)
        .map_err(|e| e.0));
    while group.in_flight() > 0 {
        group.wait(1000, 0);
        while let Some(d) = group.reap() {
            let want = if d.tag < 32 { Ok(()) } else { Err(EIO) };
            check!(d.result == want, d.tag, d.result);
        }
    }

    let mut buf = ok!(Buf::new(8192));
    ok!(lower.read_at(&mut buf, 0, 8192, 0));
    ok!(lower.read_at(&mut buf, 0, 0, 0));
    fails!(lower.read_at(&mut buf, 0, 8192, (1 << 20) - 4096), EIO);
    fails!(lower.write_at(&buf, 0, 8192, 1 << 20, true), EIO);
    fails!(lower.write_zeroes(1 << 20, 1 << 16), EIO);
    fails!(lower.read_at(&mut buf, 0, 8192, 2 << 20), EIO);
    fails!(lower.read_at(&mut buf, 0, 8192, u64::MAX & !4095), EIO);
    fails!(lower.read_at(&mut buf, 512, 8192, 0), EINVAL);
    fails!(lower.read_at(&mut buf, 0, 8192, 13), EINVAL);
    fails!(lower.read_at(&mut buf, 0, 513, 0), EINVAL);
    fails!(lower.read_at(&mut buf, usize::MAX, 2, 0), EINVAL);
    fails!(lower.read_at(&mut buf, 7, 512, 0), EINVAL);
    fails!(lower.write_zeroes(0, 13), EINVAL);
    fails!(Buf::new(usize::MAX), EINVAL);

    let refused = [
        group.submit_write(&lower, 0, [(&data, 2 << 20, 512)], false, 0),
        group.submit_write(&lower, 0, [(&data, 0, 0)], false, 0),
        group.submit_write(&lower, 0, [(&data, 3, 512)], false, 0),
        group.submit_write(&lower, 0, [(&data, u32::MAX & !511, 512)], false, 0),
        group.submit_write(&lower, 0, [(&data, 0, u32::MAX & !511)], false, 0),
        group.submit_write(&lower, 1, [(&data, 0, 512)], false, 0),
        group.submit_write(&lower, 0, [(&data, 0, 513)], false, 0),
        group.submit_read(&lower, 0, ok!(Buf::new(100)), 0),
        group.submit_read(&lower, 0, ok!(Buf::new(0)), 0),
    ];
    for r in refused {
        fails!(r.map_err(|e| e.0), EINVAL);
    }
    // A write of nothing is no flush.
    ok!(group.submit_write(&lower, 0, [], false, 0).map_err(|e| e.0));
    check!(group.reap().is_some_and(|d| d.result.is_ok()));
    Ok(())
}

/// A disk of zeros.
const ZEROES: DiskParams = DiskParams {
    size: 16 << 20,
    logical_block_size: 4096,
    physical_block_size: 4096,
    io_min: 4096,
    io_opt: 0,
    dma_alignment: 511,
    write_cache: false,
    rotational: false,
    max_zeroes: 0,
    discard_granularity: 0,
};

/// A disk comes and goes many times, while others open, use and close it. The argument says how
/// many times; a quarter of them it is removed from under whoever has it open.
pub(crate) fn disk_churn(_: &ThreadCtx, rounds: &CStr) -> Result {
    let _bios = ok!(bio::init());
    let rounds: u32 = ok!(rounds.to_str()?.parse().map_err(|_| EINVAL));
    let (mut busy, mut forced) = (0_u32, 0_u32);
    let mut r = Rng(99);
    for round in 0..rounds {
        let ops = ok!(Arc::new(Zeroes, GFP_KERNEL));
        let disk = ok!(Disk::new("t1", &ZEROES, ops));
        time::sleep_ms(r.below(30) as u32);
        disk.set_size(32 << 20);
        if round % 4 == 0 {
            forced += u32::from(disk.open_count() > 0);
            continue;
        }
        let mut text = KVec::new();
        ok!(disk.holder(&mut text));
        let remove = |busy: &mut u32| {
            let begin = time::mono_ns();
            while !disk.begin_removal() {
                *busy += 1;
                check!(time::mono_ns() - begin < 20_000_000_000);
                time::sleep_ms(1);
            }
            Ok(())
        };
        remove(&mut busy)?;
        check!(disk.open_count() == 0);
        if round % 3 == 0 {
            disk.cancel_removal();
            time::sleep_ms(3);
            remove(&mut busy)?;
        }
        time::sleep_ms(r.below(5) as u32);
        check!(disk.open_count() == 0);
    }
    pr_info!("selftest: {rounds} disks, {busy} times busy, {forced} forced\n");
    Ok(())
}
