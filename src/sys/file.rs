// SPDX-License-Identifier: GPL-2.0-or-later

//! Regular files, read and written by the kernel.
//!
//! All functions sleep. Paths are looked up in the file system of init, as root, from whatever
//! thread: kernel threads have an empty root of their own. A thread
//! that was asked to stop can still do all of this (except to allocate in tmpfs: `EINTR`).
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{buf::Buf, generated, thread::Urgent};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// An open regular file; closed when dropped.
///
/// # Invariants
///
/// `file` is an open regular file, of which we own a reference.
pub(crate) struct File {
    file: NonNull<bindings::file>,
}

// SAFETY: An open file is bound to no thread.
unsafe impl Send for File {}
// SAFETY: All operations name their position and are locked inside.
unsafe impl Sync for File {}

/// How a file is opened; the default is to read an existing one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenFlags {
    /// For reading and writing, otherwise for reading only.
    pub(crate) write: bool,
    /// Make the file if there is none.
    pub(crate) create: bool,
    /// With `create`: fail with `EEXIST` if there is one.
    pub(crate) excl: bool,
    /// Cut it to length 0.
    pub(crate) truncate: bool,
    /// Direct I/O is wanted. Only an intention: whether it is possible says [`File::dio_align`],
    /// and which way is taken is decided by the functions called.
    pub(crate) direct: bool,
}

/// See [`failed_syncs`].
static FAILED_SYNCS: Atomic<u64> = Atomic::new(0);

/// How many syncs of files and directories, and first flushes in a row of a backing disk, have failed since the module was
/// loaded. When one did, a drive may have lost what was in its cache from anybody, and says so only once.
pub(crate) fn failed_syncs() -> u64 {
    FAILED_SYNCS.load(Relaxed)
}

/// Counts a flush that failed.
pub(crate) fn note_failed_sync() {
    FAILED_SYNCS.fetch_add(1, Relaxed);
}

/// Counts a sync that failed.
pub(super) fn synced(ret: c_int) -> Result {
    // What was not even begun has lost nothing.
    to_result(ret).inspect_err(|e| {
        if *e != ENOMEM && *e != ENOENT {
            note_failed_sync();
        }
    })
}

/// The number of bytes that C reports, or its error.
pub(super) fn to_len(ret: isize) -> Result<usize> {
    usize::try_from(ret)
        .map_err(|_| Error::from_errno(c_int::try_from(ret).unwrap_or(EIO.to_errno())))
}

impl File {
    /// Opens the regular file at an absolute path. A symlink as the last part is not followed
    /// (`ELOOP`), other kinds of files are refused (`EISDIR`, `EINVAL`).
    pub(crate) fn open(path: &CStr, flags: OpenFlags, mode: u32) -> Result<Self> {
        let _urgent = Urgent::enter();
        let mode = u16::try_from(mode & 0o7777)?;
        // SAFETY: `path` is a C string.
        let file = from_err_ptr(unsafe {
            generated::mars_c_file_open(
                path.as_char_ptr(),
                flags.write,
                flags.create,
                flags.excl,
                flags.truncate,
                mode,
            )
        })?;
        // INVARIANT: `mars_c_file_open` returns regular files only.
        Ok(Self {
            file: NonNull::new(file).ok_or(EIO)?,
        })
    }

    /// Reads through the page cache; less than the buffer holds only at the end of the file.
    pub(crate) fn read_at(&self, buf: &mut [u8], pos: u64) -> Result<usize> {
        let _urgent = Urgent::enter();
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..) {
            if rest.is_empty() {
                break;
            }
            let at = advance(pos, done)?;
            // SAFETY: By the type invariant; `rest` is valid for writing its length.
            let got = to_len(unsafe {
                generated::mars_c_file_read(
                    self.file.as_ptr(),
                    rest.as_mut_ptr().cast(),
                    rest.len(),
                    at,
                )
            })?;
            if got == 0 {
                break;
            }
            done = done.checked_add(got).ok_or(EOVERFLOW)?;
        }
        Ok(done)
    }

    /// Writes all of `buf` through the page cache, or fails.
    pub(crate) fn write_at(&self, buf: &[u8], pos: u64) -> Result {
        let _urgent = Urgent::enter();
        let mut done = 0;
        while let Some(rest) = buf.get(done..) {
            if rest.is_empty() {
                break;
            }
            let at = advance(pos, done)?;
            // SAFETY: By the type invariant; `rest` is valid for reading its length.
            let put = to_len(unsafe {
                generated::mars_c_file_write(
                    self.file.as_ptr(),
                    rest.as_ptr().cast(),
                    rest.len(),
                    at,
                )
            })?;
            if put == 0 {
                return Err(EIO);
            }
            done = done.checked_add(put).ok_or(EOVERFLOW)?;
        }
        Ok(())
    }

    /// Writes `len` bytes from `off` of `buf` past the page cache, or fails. What is cached of
    /// this range is dropped. `buf`, `off`, `len` and `pos` are aligned to [`File::dio_align`].
    ///
    /// Not durable before [`File::datasync`].
    pub(crate) fn write_direct(&self, buf: &Buf, off: usize, len: usize, pos: u64) -> Result {
        self.write_direct_slice(slice(buf, off, len)?, pos, false)
    }

    /// Like [`File::write_direct`], and durable when it returns. Cheaper than a following
    /// [`File::datasync`] where blocks that were written before are overwritten (FUA).
    pub(crate) fn write_direct_durable(
        &self,
        buf: &Buf,
        off: usize,
        len: usize,
        pos: u64,
    ) -> Result {
        self.write_direct_slice(slice(buf, off, len)?, pos, true)
    }

    fn write_direct_slice(&self, data: &[u8], pos: u64, durable: bool) -> Result {
        let _urgent = Urgent::enter();
        // SAFETY: By the type invariant; `data` is valid for reading its length, and it is memory
        // of the kernel's allocators, as `Buf` is.
        let put = to_len(unsafe {
            generated::mars_c_file_write_direct(
                self.file.as_ptr(),
                data.as_ptr().cast(),
                data.len(),
                pos,
                durable,
            )
        })?;
        if put == data.len() {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Reads up to `len` bytes to `off` of `buf` past the page cache; fewer only at the end of the
    /// file. Aligned as for [`File::write_direct`].
    pub(crate) fn read_direct(
        &self,
        buf: &mut Buf,
        off: usize,
        len: usize,
        pos: u64,
    ) -> Result<usize> {
        let _urgent = Urgent::enter();
        let end = off.checked_add(len).ok_or(EINVAL)?;
        let data = buf.get_mut(off..end).ok_or(EINVAL)?;
        // SAFETY: By the type invariant; `data` is valid for writing its length, and it is memory
        // of the kernel's allocators, as `Buf` is.
        to_len(unsafe {
            generated::mars_c_file_read_direct(
                self.file.as_ptr(),
                data.as_mut_ptr().cast(),
                data.len(),
                pos,
            )
        })
    }

    /// The alignment that direct I/O needs in memory and in the file, 512 to 4096; 0 where this
    /// file has no direct I/O.
    pub(crate) fn dio_align(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_file_dio_align(self.file.as_ptr()) }
    }

    /// The unit in bytes that the disk below the file system writes at once, at most 4096; 0 where it is unknown. What
    /// shares it with something that is written later may be lost with that.
    pub(crate) fn disk_block(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_file_disk_block(self.file.as_ptr()) }
    }

    /// The length of the file in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_file_size(self.file.as_ptr()) }
    }

    /// Cuts or extends the file.
    pub(crate) fn truncate(&self, len: u64) -> Result {
        let _urgent = Urgent::enter();
        // SAFETY: By the type invariant.
        to_result(unsafe { generated::mars_c_file_truncate(self.file.as_ptr(), len) })
    }

    /// Allocates the range, which reads as zeroes where it was not written. Extends the file
    /// unless `keep_size`.
    pub(crate) fn fallocate(&self, keep_size: bool, pos: u64, len: u64) -> Result {
        let _urgent = Urgent::enter();
        // SAFETY: By the type invariant.
        to_result(unsafe {
            generated::mars_c_file_fallocate(self.file.as_ptr(), keep_size, pos, len)
        })
    }

    /// Makes everything durable that is needed to read the data again.
    pub(crate) fn datasync(&self) -> Result {
        // SAFETY: By the type invariant.
        synced(unsafe { generated::mars_c_file_sync(self.file.as_ptr(), true) })
    }

    /// Whether [`File::flush_device`] is possible.
    pub(crate) fn can_flush_device(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_file_can_flush_device(self.file.as_ptr()) }
    }

    /// Flushes the disk below the file system. So it makes durable what [`File::write_direct`] has written, if that only has
    /// overwritten what was written and made durable by [`File::datasync`] before. Waits for nothing of the file system.
    pub(crate) fn flush_device(&self) -> Result {
        // SAFETY: By the type invariant.
        synced(unsafe { generated::mars_c_file_flush_device(self.file.as_ptr()) })
    }

    /// Makes data and times durable.
    pub(crate) fn sync(&self) -> Result {
        let _urgent = Urgent::enter();
        // SAFETY: By the type invariant.
        synced(unsafe { generated::mars_c_file_sync(self.file.as_ptr(), false) })
    }

    /// Whether it has no name any more.
    pub(crate) fn is_unlinked(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_file_is_unlinked(self.file.as_ptr()) }
    }

    /// Drops the range from the page cache; what is dirty is only sent on its way.
    pub(crate) fn drop_cache(&self, pos: u64, len: u64) {
        // SAFETY: By the type invariant. Only a hint: errors have no consequence.
        unsafe { generated::mars_c_file_drop_cache(self.file.as_ptr(), pos, len) };
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _urgent = Urgent::enter();
        // SAFETY: By the type invariant; the reference is given up.
        unsafe { generated::mars_c_file_close(self.file.as_ptr()) };
    }
}

fn advance(pos: u64, done: usize) -> Result<u64> {
    pos.checked_add(u64::try_from(done)?).ok_or(EFBIG)
}

fn slice(buf: &Buf, off: usize, len: usize) -> Result<&[u8]> {
    let end = off.checked_add(len).ok_or(EINVAL)?;
    buf.get(off..end).ok_or(EINVAL)
}
