// SPDX-License-Identifier: GPL-2.0-or-later

//! Names in the file system: directories, symlinks, renames.
//!
//! All functions sleep and take absolute paths. Except in [`list`] and the like, where the whole
//! path is followed, a symlink as the last part is the object itself. For the place of lookups see
//! [`file`](super::file).
//!
//! C headers: [`include/linux/namei.h`](srctree/include/linux/namei.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    file::{synced, to_len},
    generated,
    thread::Urgent,
    time,
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    prelude::*,
    str::CString,
};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symlink.
    Symlink,
    /// Anything else.
    Other,
}

impl EntryKind {
    fn from_type(kind: u8) -> Self {
        match kind {
            generated::MARS_C_DT_REG => Self::File,
            generated::MARS_C_DT_DIR => Self::Dir,
            generated::MARS_C_DT_LNK => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// The size of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// All bytes.
    pub(crate) total: u64,
    /// Bytes that are free for everybody.
    pub(crate) avail: u64,
}

/// Whether an error says that a path can't be, because something of another kind is in its way.
pub(crate) fn is_misplaced(e: Error) -> bool {
    let way = [
        bindings::ENOTDIR,
        bindings::EISDIR,
        bindings::EEXIST,
        bindings::ENOTEMPTY,
        bindings::ELOOP,
    ];
    way.iter()
        .any(|errno| i32::try_from(*errno).is_ok_and(|n| n == -e.to_errno()))
}

/// What is known about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// What it stands for.
    pub(crate) kind: EntryKind,
    /// The size in bytes.
    pub(crate) size: u64,
    /// The time of the last modification in seconds and nanoseconds.
    pub(crate) mtime: (u64, u32),
}

/// An open directory.
///
/// # Invariants
///
/// `file` is an open directory, of which we own a reference.
struct OpenDir {
    file: NonNull<bindings::file>,
}

impl OpenDir {
    fn open(path: &CStr) -> Result<Self> {
        let _urgent = Urgent::enter();
        // SAFETY: `path` is a C string.
        let file = from_err_ptr(unsafe { generated::mars_c_dir_open(path.as_char_ptr()) })?;
        // INVARIANT: Returns directories only.
        Ok(Self {
            file: NonNull::new(file).ok_or(EIO)?,
        })
    }

    /// Reads the next entries; 0 at the end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let _urgent = Urgent::enter();
        // SAFETY: By the type invariant; `buf` is valid for writing its length.
        to_len(unsafe {
            generated::mars_c_dir_read(self.file.as_ptr(), buf.as_mut_ptr(), buf.len())
        })
    }
}

impl Drop for OpenDir {
    fn drop(&mut self) {
        let _urgent = Urgent::enter();
        // SAFETY: By the type invariant; the reference is given up.
        unsafe { generated::mars_c_file_close(self.file.as_ptr()) };
    }
}

/// How much of a directory is read at once.
const LIST_BUF: usize = 8192;

/// Calls `each` for every entry but `.` and `..`, in no order, until it returns `false`.
///
/// No lock is held during the calls. Names that are made or removed meanwhile may be listed or
/// not; all others are listed once.
pub(crate) fn list(path: &CStr, mut each: impl FnMut(&[u8], EntryKind) -> bool) -> Result {
    let mut dir = OpenDir::open(path)?;
    let mut buf = KVec::from_elem(0u8, LIST_BUF, GFP_KERNEL)?;
    loop {
        let used = dir.read(&mut buf)?;
        let mut rest = buf.get(..used).ok_or(EIO)?;
        if rest.is_empty() {
            return Ok(());
        }
        while let [kind, len, tail @ ..] = rest {
            let name = tail.get(..usize::from(*len)).ok_or(EIO)?;
            rest = tail.get(usize::from(*len)..).ok_or(EIO)?;
            let kind = if *kind == generated::MARS_C_DT_UNKNOWN {
                kind_of(path, name)
            } else {
                EntryKind::from_type(*kind)
            };
            if !each(name, kind) {
                return Ok(());
            }
        }
    }
}

/// For file systems that do not tell the kind in their directories.
#[cold]
fn kind_of(dir: &CStr, name: &[u8]) -> EntryKind {
    let Ok(name) = core::str::from_utf8(name) else {
        return EntryKind::Other;
    };
    let Ok(dir) = dir.to_str() else {
        return EntryKind::Other;
    };
    CString::try_from_fmt(fmt!("{}/{}", dir, name))
        .and_then(|path| stat(&path))
        .map_or(EntryKind::Other, |stat| stat.kind)
}

/// The longest link that is read.
const LINK_MAX: usize = 4096;

/// Reads the symlink at `path` to `value`, which is overwritten; returns the link's own time of
/// modification. `EINVAL` if it is no symlink.
pub(crate) fn read_link(path: &CStr, value: &mut KVec<u8>) -> Result<(u64, u32)> {
    let _urgent = Urgent::enter();
    let (mut sec, mut nsec) = (0, 0);
    value.clear();
    value.reserve(LINK_MAX, GFP_KERNEL)?;
    let room = value.spare_capacity_mut();
    // SAFETY: `path` is a C string, `room` is valid for writing its length.
    let len = to_len(unsafe {
        generated::mars_c_read_link(
            path.as_char_ptr(),
            room.as_mut_ptr().cast(),
            room.len(),
            &mut sec,
            &mut nsec,
        )
    })?;
    // SAFETY: The first `len` bytes of the room were written.
    unsafe { value.inc_len(len) };
    Ok(time::stamp(sec, nsec))
}

/// Makes the symlink `path` with this value and this time of modification. Whatever was there, a
/// symlink or a regular file, is replaced in one step; other readers see the one or the other,
/// and never a new value with a wrong time. `EINVAL` if the value is empty.
///
/// Not durable before [`sync_dir`]. The name `.tmp-<name>` is used meanwhile.
pub(crate) fn replace_link(path: &CStr, value: &CStr, sec: u64, nsec: u32) -> Result {
    let _urgent = Urgent::enter();
    let sec = i64::try_from(sec)?;
    // SAFETY: Both are C strings.
    to_result(unsafe {
        generated::mars_c_replace_link(path.as_char_ptr(), value.as_char_ptr(), sec, nsec)
    })
}

/// Makes the directory and those above that are missing.
pub(crate) fn mkdir_p(path: &CStr, mode: u32) -> Result {
    let _urgent = Urgent::enter();
    let mode = u16::try_from(mode & 0o7777)?;
    // SAFETY: `path` is a C string.
    to_result(unsafe { generated::mars_c_mkdir_p(path.as_char_ptr(), mode) })
}

/// Removes a name that is no directory. What a file occupies is free once nobody has it open; XFS
/// takes a moment more.
pub(crate) fn unlink(path: &CStr) -> Result {
    let _urgent = Urgent::enter();
    // SAFETY: `path` is a C string.
    to_result(unsafe { generated::mars_c_unlink(path.as_char_ptr()) })
}

/// Removes an empty directory.
pub(crate) fn remove_dir(path: &CStr) -> Result {
    let _urgent = Urgent::enter();
    // SAFETY: `path` is a C string.
    to_result(unsafe { generated::mars_c_rmdir(path.as_char_ptr()) })
}

/// Renames within a file system; what has the new name is replaced.
pub(crate) fn rename(from: &CStr, to: &CStr) -> Result {
    let _urgent = Urgent::enter();
    // SAFETY: Both are C strings.
    to_result(unsafe { generated::mars_c_rename(from.as_char_ptr(), to.as_char_ptr()) })
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &CStr) -> Result {
    let _urgent = Urgent::enter();
    // SAFETY: `path` is a C string.
    synced(unsafe { generated::mars_c_sync_dir(path.as_char_ptr()) })
}

/// Makes everything in the file system of `path` durable. May take long.
pub(crate) fn sync_fs(path: &CStr) -> Result {
    let _urgent = Urgent::enter();
    // SAFETY: `path` is a C string.
    to_result(unsafe { generated::mars_c_sync_fs(path.as_char_ptr()) })
}

/// Whether a file system is mounted right at this directory.
pub(crate) fn is_mount_root(path: &CStr) -> Result<bool> {
    let _urgent = Urgent::enter();
    // SAFETY: `path` is a C string.
    let ret = unsafe { generated::mars_c_is_mount_root(path.as_char_ptr()) };
    if ret < 0 {
        return Err(Error::from_errno(ret));
    }
    Ok(ret > 0)
}

/// The size of the file system of `path`.
pub(crate) fn statfs(path: &CStr) -> Result<Space> {
    let _urgent = Urgent::enter();
    let (mut total, mut avail) = (0, 0);
    // SAFETY: `path` is a C string; the others are valid for writing.
    to_result(unsafe { generated::mars_c_statfs(path.as_char_ptr(), &mut total, &mut avail) })?;
    Ok(Space { total, avail })
}

/// What is known about a name; a symlink is not followed.
pub(crate) fn stat(path: &CStr) -> Result<Stat> {
    let _urgent = Urgent::enter();
    let (mut kind, mut size, mut sec, mut nsec) = (0, 0, 0, 0);
    // SAFETY: `path` is a C string; the others are valid for writing.
    to_result(unsafe {
        generated::mars_c_stat(
            path.as_char_ptr(),
            &mut kind,
            &mut size,
            &mut sec,
            &mut nsec,
        )
    })?;
    Ok(Stat {
        kind: EntryKind::from_type(kind),
        size,
        mtime: time::stamp(sec, nsec),
    })
}
