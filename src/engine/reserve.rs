// SPDX-License-Identifier: GPL-2.0-or-later

//! A little room in `/mars` for the worst moment: when it is full to the last byte, the tree must still be able to say so.
//!
//! Most links need no block of their own, but the longer ones (histories, sentences for the administrator) do. The file
//! `/mars/reserve` holds 1 MiB for them. [`release`] gives it up when a link could not be written, [`fill`] takes it again
//! when there is room. Nothing that keeps data safe depends on it.

use kernel::prelude::*;

use crate::{
    engine::paths,
    sys::file::{
        File,
        OpenFlags, //
    }, //
};

const BYTES: u64 = 1 << 20;

fn open(create: bool) -> Result<File> {
    let flags = OpenFlags {
        write: true,
        create,
        ..OpenFlags::default()
    };
    File::open(paths::RESERVE, flags, 0o600)
}

/// The unit in bytes that the disk below `/mars` writes at once, if that is known.
pub(crate) fn disk_block() -> Option<u32> {
    let block = open(true).ok()?.disk_block();
    Some(block.max(512))
}

/// Takes the room, if it is not taken yet.
pub(crate) fn fill() {
    let r = open(true).and_then(|f| {
        if f.size() >= BYTES {
            return Ok(());
        }
        let r = f.fallocate(false, 0, BYTES);
        if r.is_err() {
            let _ = f.truncate(0);
        }
        r
    });
    if let Err(e) = r {
        if e != EOPNOTSUPP && e != ENOSPC && e != EDQUOT {
            crate::engine::text::warn_limited(format_args!("/mars/reserve can't be made: {e:?}"));
        }
    }
}

/// Gives the room up; `false` if there was none.
pub(crate) fn release() -> bool {
    open(false).is_ok_and(|f| f.size() > 0 && f.truncate(0).is_ok())
}
