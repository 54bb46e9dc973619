// SPDX-License-Identifier: GPL-2.0-or-later

//! Directories and symlinks. The argument is a folder of the file system to try.

use crate::{
    files::join,
    sys::{
        dir::{self, EntryKind},
        file::{File, OpenFlags},
        thread::{Thread, ThreadCtx},
    },
};
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

pub(crate) fn names(_: &ThreadCtx, folder: &CStr) -> Result {
    let top = ok!(join(folder, "a"));
    let deep = ok!(join(folder, "a/b/c"));
    let file = ok!(join(folder, "a/b/c/file"));
    let moved = ok!(join(folder, "a/moved"));
    ok!(dir::mkdir_p(&deep, 0o700));
    ok!(dir::mkdir_p(&deep, 0o700));
    ok!(dir::mkdir_p(&ok!(join(folder, "a/b/c/")), 0o700));
    ok!(dir::mkdir_p(c"/", 0o700));
    check!(ok!(dir::stat(&deep)).kind == EntryKind::Dir);
    let flags = OpenFlags {
        write: true,
        create: true,
        ..Default::default()
    };
    ok!(ok!(File::open(&file, flags, 0o640)).write_at(b"12345", 0));
    let stat = ok!(dir::stat(&file));
    check!(stat.kind == EntryKind::File && stat.size == 5, stat);
    check!(stat.mtime.0 > 1_700_000_000, stat);
    fails!(dir::mkdir_p(&file, 0o700), ENOTDIR);
    fails!(dir::mkdir_p(&ok!(join(&file, "x")), 0o700), ENOTDIR);

    fails!(dir::stat(&ok!(join(folder, "nothing"))), ENOENT);
    fails!(dir::unlink(&ok!(join(folder, "nothing"))), ENOENT);
    fails!(dir::unlink(&deep), EISDIR);
    fails!(dir::remove_dir(&deep), ENOTEMPTY);
    fails!(dir::remove_dir(&file), ENOTDIR);
    fails!(dir::rename(&deep, &ok!(join(&deep, "x"))), EINVAL);
    fails!(dir::rename(&ok!(join(folder, "nothing")), &moved), ENOENT);
    fails!(dir::rename(&file, c"/proc/version"), EXDEV);
    for bad in [c"", c"relative", c"/", c"/dev/", c"/dev/.", c"/dev/.."] {
        check!(dir::unlink(bad).is_err(), bad);
        check!(dir::remove_dir(bad).is_err(), bad);
        check!(dir::rename(bad, &moved).is_err(), bad);
        check!(dir::replace_link(bad, c"x", 1, 1).is_err(), bad);
    }
    fails!(dir::list(&file, |_, _| true), ENOTDIR);

    ok!(dir::rename(&file, &moved));
    ok!(File::open(&file, flags, 0o600));
    ok!(dir::rename(&file, &moved));
    check!(ok!(dir::stat(&moved)).size == 0);
    ok!(dir::sync_dir(&top));
    ok!(dir::sync_fs(&top));
    fails!(dir::sync_dir(&moved), ENOTDIR);
    ok!(dir::unlink(&moved));
    ok!(dir::remove_dir(&deep));
    ok!(dir::remove_dir(&ok!(join(folder, "a/b"))));
    ok!(dir::remove_dir(&top));
    fails!(dir::stat(&top), ENOENT);
    Ok(())
}

pub(crate) fn links(_: &ThreadCtx, folder: &CStr) -> Result {
    let link = ok!(join(folder, "link"));
    let mut value = KVec::new();
    fails!(dir::read_link(&link, &mut value), ENOENT);
    for i in 0..50u32 {
        let (sec, nsec) = (1_000_000_000 + u64::from(i), i * 17_171_717 % 1_000_000_000);
        let text = ok!(CString::try_from_fmt(fmt!(
            "log-{:09}-hosta,{},0",
            i,
            i * 4096
        )));
        ok!(dir::replace_link(&link, &text, sec, nsec));
        let stamp = ok!(dir::read_link(&link, &mut value));
        check!(stamp == (sec, nsec), stamp, sec, nsec);
        check!(value == text.to_bytes(), value);
        let stat = ok!(dir::stat(&link));
        check!(stat.kind == EntryKind::Symlink && stat.mtime == stamp, stat);
    }
    // An older stamp, the limits of time, and long values.
    for (sec, nsec) in [
        (1, 0),
        (0, 999_999_999),
        (1 << 32, 1),
        (1 << 33, 123_456_789),
    ] {
        let text = ok!(CString::try_from_fmt(fmt!("{:0>1023}", sec)));
        ok!(dir::replace_link(&link, &text, sec, nsec));
        let stamp = ok!(dir::read_link(&link, &mut value));
        check!(stamp == (sec, nsec), stamp, sec, nsec);
        check!(value == text.to_bytes());
    }
    fails!(dir::replace_link(&link, c"x", 1, 1_000_000_000), EINVAL);
    check!(dir::replace_link(&link, c"x", u64::MAX, 1).is_err());
    check!(dir::replace_link(&link, c"", 1, 1).is_err());

    // Instead of a regular file; not instead of a directory; not without one.
    ok!(dir::unlink(&link));
    let flags = OpenFlags {
        write: true,
        create: true,
        ..Default::default()
    };
    ok!(ok!(File::open(&link, flags, 0o600)).write_at(b"12345", 0));
    fails!(dir::read_link(&link, &mut value), EINVAL);
    ok!(dir::replace_link(&link, c"text", 5, 6));
    check!(ok!(dir::read_link(&link, &mut value)) == (5, 6));
    check!(value == *b"text", value);
    let sub = ok!(join(folder, "sub"));
    ok!(dir::mkdir_p(&sub, 0o700));
    fails!(dir::replace_link(&sub, c"x", 1, 1), EISDIR);
    fails!(
        dir::replace_link(&ok!(join(folder, "no/link")), c"x", 1, 1),
        ENOENT
    );
    // A crash has left the temporary name.
    let left = ok!(join(folder, ".tmp-link"));
    ok!(dir::replace_link(&left, c"left", 1, 1));
    ok!(dir::replace_link(&link, c"new", 7, 8));
    check!(ok!(dir::read_link(&link, &mut value)) == (7, 8));
    fails!(dir::stat(&left), ENOENT);
    let name = ok!(CString::try_from_fmt(fmt!(
        "{}/{:x>255}",
        folder.to_str()?,
        ""
    )));
    fails!(dir::replace_link(&name, c"x", 1, 1), ENAMETOOLONG);

    let (mut files, mut dirs, mut links, mut others) = (0, 0, 0, 0);
    ok!(dir::list(folder, |_, kind| {
        match kind {
            EntryKind::File => files += 1,
            EntryKind::Dir => dirs += 1,
            EntryKind::Symlink => links += 1,
            EntryKind::Other => others += 1,
        }
        true
    }));
    check!(links >= 1 && dirs >= 1, files, dirs, links, others);
    ok!(dir::remove_dir(&sub));
    ok!(dir::unlink(&link));
    Ok(())
}

/// Several threads write the same few links while others read them: no error, and each value
/// always has its own time.
pub(crate) fn links_parallel(ctx: &ThreadCtx, folder: &CStr) -> Result {
    let wrong = ok!(Arc::new(Atomic::new(0u32), GFP_KERNEL));
    let writes = ok!(Arc::new(Atomic::new(0u32), GFP_KERNEL));
    let mut threads = KVec::new();
    for name in ["x", "y", "z"] {
        ok!(dir::replace_link(&ok!(join(folder, name)), c"0", 0, 0));
    }
    for i in 0..8u32 {
        let (wrong, writes) = (wrong.clone(), writes.clone());
        let paths = [
            ok!(join(folder, "x")),
            ok!(join(folder, "y")),
            ok!(join(folder, "z")),
        ];
        let thread = Thread::spawn(c"links", move |ctx| {
            let mut value = KVec::new();
            let mut round = i;
            while !ctx.should_stop() {
                for path in &paths {
                    round = round.wrapping_add(8) % 1_000_000;
                    let result = if i < 4 {
                        writes.fetch_add(1, Relaxed);
                        CString::try_from_fmt(fmt!("{}", round))
                            .and_then(|text| dir::replace_link(path, &text, round.into(), round))
                    } else {
                        dir::read_link(path, &mut value).and_then(|(sec, nsec)| {
                            let text = CString::try_from_fmt(fmt!("{}", sec))?;
                            if value == text.to_bytes() && sec == u64::from(nsec) {
                                Ok(())
                            } else {
                                Err(EIO)
                            }
                        })
                    };
                    if let Err(e) = result {
                        pr_err!("selftest: link {:?}: {:?}\n", path, e);
                        wrong.fetch_add(1, Relaxed);
                    }
                }
            }
        });
        ok!(threads.push(ok!(thread), GFP_KERNEL));
    }
    ctx.sleep_ms(3000);
    for thread in &threads {
        thread.request_stop();
    }
    drop(threads);
    let (wrong, writes) = (wrong.load(Relaxed), writes.load(Relaxed));
    check!(wrong == 0, wrong);
    check!(writes > 100, writes);
    for name in ["x", "y", "z"] {
        ok!(dir::unlink(&ok!(join(folder, name))));
    }
    let mut rest = 0;
    ok!(dir::list(folder, |name, _| {
        rest += u32::from(name.starts_with(b".tmp"));
        true
    }));
    check!(rest == 0, rest);
    Ok(())
}

pub(crate) fn list_many(_: &ThreadCtx, folder: &CStr) -> Result {
    const COUNT: usize = 10_000;
    let sub = ok!(join(folder, "many"));
    ok!(dir::mkdir_p(&sub, 0o700));
    for i in 0..COUNT {
        let path = ok!(CString::try_from_fmt(fmt!(
            "{}/entry-{:05}",
            sub.to_str()?,
            i
        )));
        ok!(dir::replace_link(&path, c"value", 1, 1));
    }
    let mut seen = ok!(KVec::from_elem(false, COUNT, GFP_KERNEL));
    let (mut double, mut wrong) = (0, 0);
    ok!(dir::list(&sub, |name, kind| {
        let index = core::str::from_utf8(name)
            .ok()
            .and_then(|name| name.strip_prefix("entry-")?.parse::<usize>().ok())
            .and_then(|i| seen.get_mut(i));
        match index {
            Some(seen) if kind == EntryKind::Symlink => {
                double += u32::from(*seen);
                *seen = true;
            }
            _ => wrong += 1,
        }
        true
    }));
    check!(double == 0 && wrong == 0, double, wrong);
    check!(seen.iter().all(|seen| *seen));
    let mut calls = 0;
    ok!(dir::list(&sub, |_, _| {
        calls += 1;
        calls < 500
    }));
    check!(calls == 500);
    // Names may be removed from within: no lock is held.
    let (mut removed, mut failed) = (0, 0);
    ok!(dir::list(&sub, |name, _| {
        let done = core::str::from_utf8(name)
            .map_err(|_| EINVAL)
            .and_then(|name| join(&sub, name))
            .and_then(|path| dir::unlink(&path));
        match done {
            Ok(()) => removed += 1,
            Err(_) => failed += 1,
        }
        true
    }));
    check!(removed == COUNT && failed == 0, removed, failed);
    ok!(dir::remove_dir(&sub));
    Ok(())
}

pub(crate) fn mount_root(_: &ThreadCtx, folder: &CStr) -> Result {
    check!(ok!(dir::is_mount_root(folder)));
    Ok(())
}

pub(crate) fn not_mount_root(_: &ThreadCtx, folder: &CStr) -> Result {
    check!(!ok!(dir::is_mount_root(folder)));
    Ok(())
}
