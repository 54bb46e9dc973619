// SPDX-License-Identifier: GPL-2.0-or-later

//! Regular files. The argument is a folder of the file system to try.

use crate::sys::{
    buf::Buf,
    dir,
    file::{File, OpenFlags},
    thread::{Thread, ThreadCtx},
};
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

const NEW: OpenFlags = OpenFlags {
    write: true,
    create: true,
    excl: false,
    truncate: true,
    direct: true,
};

const READ: OpenFlags = OpenFlags {
    write: false,
    create: false,
    excl: false,
    truncate: false,
    direct: false,
};

pub(crate) fn join(folder: &CStr, name: &str) -> Result<CString> {
    CString::try_from_fmt(fmt!("{}/{}", folder.to_str()?, name))
}

/// A byte that depends on its place.
fn pattern(pos: usize, seed: u8) -> u8 {
    (pos ^ (pos >> 8) ^ (pos >> 16)) as u8 ^ seed
}

fn fill(buf: &mut [u8], pos: usize, seed: u8) {
    for (i, byte) in buf.iter_mut().enumerate() {
        *byte = pattern(pos + i, seed);
    }
}

fn is_filled(buf: &[u8], pos: usize, seed: u8) -> bool {
    buf.iter()
        .enumerate()
        .all(|(i, byte)| *byte == pattern(pos + i, seed))
}

pub(crate) fn files(ctx: &ThreadCtx, folder: &CStr) -> Result {
    let path = ok!(join(folder, "file"));
    fails!(File::open(&path, READ, 0), ENOENT);
    let file = ok!(File::open(&path, NEW, 0o600));
    fails!(
        File::open(&path, OpenFlags { excl: true, ..NEW }, 0o600),
        EEXIST
    );
    fails!(File::open(folder, READ, 0), EISDIR);

    // Small and large pieces, across pages, with a hole.
    ok!(file.write_at(b"hello", 3));
    check!(file.size() == 8);
    let mut big = ok!(Buf::zeroed(3_000_001));
    fill(&mut big, 0, 1);
    ok!(file.write_at(&big, 1_000_000));
    check!(file.size() == 4_000_001, file.size());
    let mut small = [1u8; 8];
    check!(ok!(file.read_at(&mut small, 0)) == 8);
    check!(&small == b"\0\0\0hello", small);
    big.fill(0);
    check!(ok!(file.read_at(&mut big, 1_000_000)) == big.len());
    check!(is_filled(&big, 0, 1));
    check!(ok!(file.read_at(&mut big, 4_000_000)) == 1);
    check!(ok!(file.read_at(&mut big, 4_000_001)) == 0);
    check!(ok!(file.read_at(&mut big, 1 << 40)) == 0);
    check!(ok!(file.read_at(&mut [], 0)) == 0);
    ok!(file.write_at(&[], 1 << 40));
    check!(file.size() == 4_000_001);
    fails!(file.read_at(&mut small, u64::MAX - 3), EINVAL);
    fails!(file.write_at(&small, u64::MAX - 3), EFBIG);
    fails!(file.write_at(&small, i64::MAX as u64), EFBIG);

    // Sizes and allocation.
    ok!(file.truncate(10));
    check!(file.size() == 10);
    ok!(file.fallocate(true, 0, 1 << 20));
    check!(file.size() == 10);
    ok!(file.fallocate(false, 0, 1 << 20));
    check!(file.size() == 1 << 20);
    check!(ok!(file.read_at(&mut small, 4)) == 8);
    check!(&small == b"ello\0\0\0\0", small);
    fails!(file.truncate(u64::MAX), EFBIG);
    fails!(file.fallocate(false, u64::MAX, 2), EFBIG);
    fails!(file.fallocate(false, 0, 0), EINVAL);
    ok!(file.datasync());
    ok!(file.sync());
    file.drop_cache(0, 1 << 20);
    file.drop_cache(u64::MAX, 5);
    check!(ok!(file.read_at(&mut small, 3)) == 8);
    check!(&small == b"hello\0\0\0", small);
    drop(file);

    // Reading only; permissions of what is not allowed.
    let file = ok!(File::open(&path, READ, 0));
    fails!(file.write_at(b"x", 0), EBADF);
    fails!(file.fallocate(true, 0, 4096), EBADF);
    drop(file);
    check!(ok!(dir::stat(&path)).size == 1 << 20);
    let file = ok!(File::open(
        &path,
        OpenFlags {
            truncate: true,
            write: true,
            ..READ
        },
        0
    ));
    check!(file.size() == 0);
    drop(file);

    // What is no regular file is refused; the test has made these.
    fails!(File::open(&ok!(join(folder, "symlink")), READ, 0), ELOOP);
    fails!(File::open(&ok!(join(folder, "fifo")), READ, 0), EINVAL);
    fails!(File::open(&ok!(join(folder, "device")), READ, 0), EINVAL);

    // Space is free as soon as a removed file is closed.
    let before = ok!(dir::statfs(folder)).avail;
    let file = ok!(File::open(&path, NEW, 0o600));
    ok!(file.fallocate(false, 0, 32 << 20));
    ok!(dir::unlink(&path));
    let during = ok!(dir::statfs(folder)).avail;
    drop(file);
    check!(during + (31 << 20) < before, before, during);
    let mut after = ok!(dir::statfs(folder)).avail;
    // XFS does it in the background.
    for _ in 0..100 {
        if after + (1 << 20) > before {
            break;
        }
        ctx.sleep_ms(100);
        after = ok!(dir::statfs(folder)).avail;
    }
    check!(after + (1 << 20) > before, before, after);

    for _ in 0..1000 {
        drop(ok!(File::open(&path, NEW, 0o600)));
    }
    ok!(dir::unlink(&path));
    Ok(())
}

pub(crate) fn direct(_: &ThreadCtx, folder: &CStr) -> Result {
    const LEN: usize = 8 << 20;
    let path = ok!(join(folder, "direct"));
    let file = ok!(File::open(&path, NEW, 0o600));
    let align = file.dio_align();
    let mut buf = ok!(Buf::zeroed(LEN));
    if align == 0 {
        // The file system has none, and says so.
        pr_info!("selftest: no direct I/O in {:?}\n", folder);
        drop(file);
        ok!(dir::unlink(&path));
        return Ok(());
    }
    check!(
        (512..=4096).contains(&align) && align.is_power_of_two(),
        align
    );
    let step = align as usize;
    ok!(file.fallocate(false, 0, LEN as u64));

    // Pieces of all sizes from the middle of a buffer, mixed with reads through the page cache.
    fill(&mut buf, 0, 2);
    let (mut pos, mut len) = (0, step);
    while pos < LEN {
        let part = len.min(LEN - pos);
        ok!(file.write_direct(&buf, pos, part, pos as u64));
        let mut head = [0; 16];
        check!(ok!(file.read_at(&mut head, pos as u64)) == 16);
        check!(is_filled(&head, pos, 2), pos, head);
        pos += part;
        len = len * 2 + step;
    }
    check!(file.size() == LEN as u64);
    ok!(file.datasync());
    buf.fill(0);
    check!(ok!(file.read_direct(&mut buf, 0, LEN, 0)) == LEN);
    check!(is_filled(&buf, 0, 2));
    buf.fill(0);
    check!(ok!(file.read_at(&mut buf, 0)) == LEN);
    check!(is_filled(&buf, 0, 2));

    // Overwritten while it is cached: the cache must not keep the old bytes.
    fill(&mut buf, 0, 3);
    ok!(file.write_direct_durable(&buf, step, 4 * step, step as u64));
    let mut part = ok!(Buf::zeroed(6 * step));
    check!(ok!(file.read_at(&mut part, 0)) == 6 * step);
    check!(is_filled(&part[..step], 0, 2));
    check!(is_filled(&part[step..5 * step], step, 3));
    check!(is_filled(&part[5 * step..], 5 * step, 2));

    // Written through the cache and read directly.
    ok!(file.write_at(&buf[..2 * step], 0));
    check!(ok!(file.read_direct(&mut part, 0, 2 * step, 0)) == 2 * step);
    check!(is_filled(&part[..2 * step], 0, 3));

    // At the end of the file, and where it grows.
    check!(ok!(file.read_direct(&mut part, 0, 4 * step, (LEN - step) as u64)) == step);
    check!(ok!(file.read_direct(&mut part, 0, step, LEN as u64)) == 0);
    ok!(file.write_direct(&buf, 0, 4 * step, LEN as u64));
    check!(file.size() == (LEN + 4 * step) as u64);
    ok!(file.write_direct(&buf, 0, 0, 0));

    // What is not aligned or not there is refused, without a trace.
    fails!(file.write_direct(&buf, 0, step - 1, 0), EINVAL);
    fails!(file.write_direct(&buf, 0, step, 1), EINVAL);
    fails!(file.write_direct(&buf, LEN, step, 0), EINVAL);
    fails!(file.write_direct(&buf, usize::MAX, 2, 0), EINVAL);
    fails!(file.read_direct(&mut part, 6 * step, step, 0), EINVAL);
    fails!(file.write_direct(&buf, 0, step, u64::MAX - 511), EFBIG);
    // A small buffer is of another kind of memory.
    let tiny = ok!(Buf::zeroed(step));
    ok!(file.write_direct(&tiny, 0, step, 0));
    check!(ok!(file.read_direct(&mut part, 0, step, 0)) == step);
    check!(part[..step].iter().all(|byte| *byte == 0));
    drop(file);

    let file = ok!(File::open(&path, READ, 0));
    fails!(file.write_direct(&buf, 0, step, 0), EBADF);
    check!(ok!(file.read_direct(&mut part, 0, step, step as u64)) == step);
    drop(file);
    ok!(dir::unlink(&path));
    Ok(())
}

/// In a small file system.
pub(crate) fn enospc(ctx: &ThreadCtx, folder: &CStr) -> Result {
    let path = ok!(join(folder, "full"));
    let file = ok!(File::open(&path, NEW, 0o600));
    let mut buf = ok!(Buf::zeroed(1 << 20));
    fill(&mut buf, 0, 4);
    let space = ok!(dir::statfs(folder));
    check!(space.avail <= space.total && space.total > 0, space);
    fails!(file.fallocate(false, 0, space.total * 2), ENOSPC);
    ok!(file.truncate(0));
    let mut pos = 0;
    let error = loop {
        let result = if file.dio_align() > 0 {
            file.write_direct(&buf, 0, buf.len(), pos)
        } else {
            file.write_at(&buf, pos)
        };
        match result {
            Ok(()) => pos += buf.len() as u64,
            Err(e) => break e,
        }
        check!(pos <= space.total, pos);
    };
    check!(error == ENOSPC, error);
    check!(pos > space.total / 2, pos, space);
    let mut head = [0; 64];
    check!(ok!(file.read_at(&mut head, pos - (1 << 20))) == 64);
    check!(is_filled(&head, 0, 4));
    fails!(file.write_at(&buf, space.total), ENOSPC);
    // Links of this length need blocks of their own.
    let long = ok!(CString::try_from_fmt(fmt!("{:0>900}", 1)));
    let mut result = Ok(());
    for i in 0..20_000 {
        let link = ok!(CString::try_from_fmt(fmt!(
            "{}/link-{}",
            folder.to_str()?,
            i
        )));
        result = dir::replace_link(&link, &long, 1, 2);
        if result.is_err() {
            break;
        }
    }
    fails!(result, ENOSPC);
    let mut names = 0;
    ok!(dir::list(folder, |name, _| {
        names += u32::from(name.starts_with(b".tmp-"));
        true
    }));
    check!(names == 0, names);
    ok!(dir::unlink(&path));
    drop(file);
    // XFS does it in the background.
    let mut after = ok!(dir::statfs(folder));
    for _ in 0..100 {
        if after.avail > pos / 2 {
            break;
        }
        ctx.sleep_ms(100);
        after = ok!(dir::statfs(folder));
    }
    check!(after.avail > pos / 2, after, pos);
    Ok(())
}

/// A thread that was asked to stop can still bring its files in order.
pub(crate) fn after_stop(ctx: &ThreadCtx, folder: &CStr) -> Result {
    let path = ok!(join(folder, "file"));
    let link = ok!(join(folder, "link"));
    let top = ok!(join(folder, ""));
    let sub = ok!(join(folder, "sub/sub"));
    let errno = ok!(Arc::new(Atomic::new(1i32), GFP_KERNEL));
    let result = errno.clone();
    let thread = ok!(Thread::spawn(c"after-stop", move |ctx| {
        let work = || -> Result {
            let mut buf = Buf::zeroed(1 << 20)?;
            let file = File::open(&path, NEW, 0o600)?;
            file.write_at(&buf, 0)?;
            if file.dio_align() > 0 {
                file.fallocate(false, 0, 4 << 20)?;
                file.write_direct(&buf, 0, 1 << 20, 1 << 20)?;
                file.read_direct(&mut buf, 0, 1 << 20, 0)?;
            }
            file.datasync()?;
            file.drop_cache(0, 4 << 20);
            if file.read_at(&mut buf, 0)? != 1 << 20 {
                return Err(EIO);
            }
            file.truncate(4096)?;
            dir::mkdir_p(&sub, 0o700)?;
            dir::replace_link(&link, c"value", 1, 2)?;
            let mut value = KVec::new();
            dir::read_link(&link, &mut value)?;
            dir::list(&top, |_, _| true)?;
            dir::sync_dir(&top)?;
            dir::unlink(&link)?;
            dir::unlink(&path)?;
            dir::remove_dir(&sub)?;
            dir::sync_fs(&top)
        };
        while !ctx.should_stop() {
            ctx.sleep_ms(1_000_000);
        }
        result.store(work().map_or_else(|e| e.to_errno(), |()| 0), Relaxed);
    }));
    ctx.sleep_ms(20);
    thread.request_stop();
    drop(thread);
    check!(errno.load(Relaxed) == 0, errno.load(Relaxed));
    Ok(())
}
