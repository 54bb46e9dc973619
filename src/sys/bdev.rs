// SPDX-License-Identifier: GPL-2.0-or-later

//! Block devices that we use: opened, measured, read and written synchronously.
//!
//! Asynchronous I/O is [`IoGroup`](super::bio::IoGroup)'s. Everything here may sleep, and what
//! waits for I/O must not be called from a disk's `submit` (it fails with `EDEADLK`).
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use core::ptr;

use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    str::{
        CStr,
        CString, //
    },
    sync::atomic::{
        AtomicFlag,
        Relaxed, //
    }, //
};

use super::{
    buf::Buf,
    generated as c, //
};

/// log2 of the block layer's unit.
const SECTOR_SHIFT: u32 = 9;

/// What a claim is made with: its address is unique among all holders.
struct Holder(#[expect(dead_code)] u64);

/// An opened block device.
///
/// Dropping it closes the device, which sleeps; others can use it at once.
///
/// # Invariants
///
/// `file` is a block device's file that `mars_c_bdev_open` returned, with `holder`'s address if
/// there is one; we own it. `bdev` is its block device, which lives at least as long.
pub(crate) struct BlockDevice {
    file: *mut bindings::file,
    bdev: *mut bindings::block_device,
    path: CString,
    /// See [`Self::note_unflushed`].
    unflushed: AtomicFlag,
    _holder: Option<KBox<Holder>>,
}

// SAFETY: The file and the block device may be used and closed by any thread.
unsafe impl Send for BlockDevice {}
// SAFETY: All methods on shared references call functions that the block layer allows to run
// concurrently.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    /// Opens the block device at `path`.
    ///
    /// With `exclusive` it is opened for reading and writing and claimed: nobody else, not even
    /// another `BlockDevice`, can mount or claim it meanwhile. Otherwise it is opened for reading.
    ///
    /// Fails with `EBUSY` if somebody else has claimed it, `ENOTBLK` if it is no block device,
    /// `ELOOP` if it is a disk of this very module, `EACCES` if it is read-only, `EOPNOTSUPP` if
    /// it is zoned; [`open_error_text`] says it in words.
    pub(crate) fn open(path: &CStr, exclusive: bool) -> Result<Self> {
        let name = CString::try_from(path)?;
        let holder = if exclusive {
            Some(KBox::new(Holder(0), GFP_KERNEL)?)
        } else {
            None
        };
        let token = holder
            .as_ref()
            .map_or(ptr::null_mut(), |h| ptr::from_ref(&**h).cast_mut().cast());
        // SAFETY: `path` is a C string; `token` is null or the address of memory that outlives
        // the claim, and nothing is read through it.
        let file = from_err_ptr(unsafe { c::mars_c_bdev_open(path.as_char_ptr(), token) })?;
        // SAFETY: `file` is a block device's file.
        let bdev = unsafe { bindings::file_bdev(file) };

        // INVARIANT: `file` was opened just now, with the address of `holder`'s memory.
        Ok(Self {
            file,
            bdev,
            path: name,
            unflushed: AtomicFlag::new(false),
            _holder: holder,
        })
    }

    /// The path it was opened with.
    pub(crate) fn name(&self) -> &CStr {
        &self.path
    }

    /// For C functions; valid as long as `self`.
    pub(super) fn as_raw(&self) -> *mut bindings::block_device {
        self.bdev
    }

    /// Number of bytes, as of now.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_size(self.bdev) }
    }

    /// Smallest unit that can be addressed, in bytes.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_logical_block_size(self.bdev) }
    }

    /// Smallest unit that is written without reading before, in bytes.
    pub(crate) fn physical_block_size(&self) -> u32 {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_physical_block_size(self.bdev) }
    }

    /// Preferred smallest I/O, in bytes.
    pub(crate) fn io_min(&self) -> u32 {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_io_min(self.bdev) }
    }

    /// Preferred I/O for throughput, in bytes; 0 if there is none.
    pub(crate) fn io_opt(&self) -> u32 {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_io_opt(self.bdev) }
    }

    /// Mask of the address bits that must be zero in memory for I/O.
    pub(crate) fn dma_alignment(&self) -> u32 {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_dma_alignment(self.bdev) }
    }

    /// Whether it has a volatile write cache, that is whether [`flush`](Self::flush) does anything.
    pub(crate) fn has_write_cache(&self) -> bool {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_write_cache(self.bdev) }
    }

    /// Whether it is a disk in the old sense of the word.
    pub(crate) fn is_rotational(&self) -> bool {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_rotational(self.bdev) }
    }

    /// Whether [`discard`](Self::discard) is supported.
    pub(crate) fn has_discard(&self) -> bool {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_max_discard_sectors(self.bdev) != 0 }
    }

    /// Unit in which it can give up blocks, in bytes; 0 if it can't.
    pub(crate) fn discard_granularity(&self) -> u32 {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { c::mars_c_bdev_discard_granularity(self.bdev) }
    }

    /// Longest range in bytes that it fills with zeros by itself, as of now: 0 if it has to be given
    /// the zeros. A device that can't do what it claimed loses the property.
    pub(crate) fn max_write_zeroes(&self) -> u64 {
        // SAFETY: By the type invariants, `bdev` is valid.
        u64::from(unsafe { c::mars_c_bdev_max_write_zeroes_sectors(self.bdev) }) << SECTOR_SHIFT
    }

    /// Makes everything durable that was completed before. May sleep.
    pub(crate) fn flush(&self) -> Result {
        may_wait()?;
        // SAFETY: By the type invariants, `bdev` is valid; the call above allows to wait.
        to_result(unsafe { bindings::blkdev_issue_flush(self.bdev) })
    }

    /// A flush has failed: what was written since the last good one may be lost, though the device still shows it. (A
    /// successful one afterwards says nothing of that.)
    pub(crate) fn note_unflushed(&self) {
        self.unflushed.store(true, Relaxed);
    }

    /// Whether that was so, since it was opened.
    pub(crate) fn is_unflushed(&self) -> bool {
        self.unflushed.load(Relaxed)
    }

    /// All that may be lost was written once more, and flushed.
    pub(crate) fn settle_unflushed(&self) {
        self.unflushed.store(false, Relaxed);
    }

    /// Reads `len` bytes from `offset` of the device into `buf`, from its byte `at` on. May sleep.
    ///
    /// `at` must be a multiple of 512, `len` and `offset` of the logical block size.
    pub(crate) fn read_at(&self, buf: &mut Buf, at: usize, len: usize, offset: u64) -> Result {
        let part = buf
            .get_mut(at..at.checked_add(len).ok_or(EINVAL)?)
            .ok_or(EINVAL)?;
        let ptr = part.as_mut_ptr();
        let sector = self.check(at, len, offset)?;
        // SAFETY: By the type invariants, `bdev` is valid. `ptr` is valid for writes of `len`
        // bytes, which belong to a `Buf` and are exclusively ours until the function returns; it
        // returns after the I/O.
        to_result(unsafe { c::mars_c_bdev_rw(self.bdev, false, false, ptr.cast(), len, sector) })
    }

    /// Writes `len` bytes from byte `at` of `buf` on to `offset` of the device. May sleep.
    ///
    /// `at` must be a multiple of 512, `len` and `offset` of the logical block size. With `fua`
    /// the data is durable afterwards.
    pub(crate) fn write_at(
        &self,
        buf: &Buf,
        at: usize,
        len: usize,
        offset: u64,
        fua: bool,
    ) -> Result {
        let part = buf
            .get(at..at.checked_add(len).ok_or(EINVAL)?)
            .ok_or(EINVAL)?;
        let ptr = part.as_ptr().cast_mut();
        let sector = self.check(at, len, offset)?;
        // SAFETY: By the type invariants, `bdev` is valid. `ptr` is valid for reads of `len`
        // bytes, which belong to a `Buf` that is borrowed until the function returns; it returns
        // after the I/O, and for writing the memory is only read.
        to_result(unsafe { c::mars_c_bdev_rw(self.bdev, true, fua, ptr.cast(), len, sector) })
    }

    /// Fills a range with zeros, with the device's help if it has it. May sleep.
    ///
    /// `offset` and `len` must be multiples of the logical block size.
    pub(crate) fn write_zeroes(&self, offset: u64, len: u64) -> Result {
        may_wait()?;
        let sectors = self.check_range(offset, len)?;
        let sector = offset >> SECTOR_SHIFT;
        // SAFETY: By the type invariants, `bdev` is valid; `may_wait` was asked.
        to_result(unsafe {
            bindings::blkdev_issue_zeroout(self.bdev, sector, sectors, c::MARS_C_GFP_NOIO, 0)
        })
    }

    /// Tells the device that the content of a range is not needed any more; what is read from it
    /// afterwards is undefined. `EOPNOTSUPP` if it can't do that. May sleep.
    ///
    /// `offset` and `len` must be multiples of the logical block size.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result {
        may_wait()?;
        if !self.has_discard() {
            return Err(EOPNOTSUPP);
        }
        let sectors = self.check_range(offset, len)?;
        let sector = offset >> SECTOR_SHIFT;
        // SAFETY: By the type invariants, `bdev` is valid; `may_wait` was asked.
        to_result(unsafe {
            bindings::blkdev_issue_discard(self.bdev, sector, sectors, c::MARS_C_GFP_NOIO)
        })
    }

    /// Forgets what the page cache holds of the device. Our own I/O goes past that cache, so those
    /// who read the device itself would otherwise see old data.
    pub(crate) fn invalidate_cache(&self) {
        // SAFETY: By the type invariants, `bdev` is valid.
        unsafe { bindings::invalidate_bdev(self.bdev) };
    }

    /// Checks alignment, returns the first sector.
    fn check(&self, at: usize, len: usize, offset: u64) -> Result<u64> {
        if at & 511 != 0 {
            return Err(EINVAL);
        }
        self.check_range(offset, u64::try_from(len)?)?;
        Ok(offset >> SECTOR_SHIFT)
    }

    /// Checks alignment, returns the number of sectors.
    fn check_range(&self, offset: u64, len: u64) -> Result<u64> {
        let mask = u64::from(self.logical_block_size().wrapping_sub(1));
        if (offset | len) & mask != 0 {
            return Err(EINVAL);
        }
        Ok(len >> SECTOR_SHIFT)
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, we own `file`. The claim ends with it, before the
        // holder's memory is freed.
        unsafe { c::mars_c_bdev_close(self.file) };
    }
}

/// `EDEADLK`, with a warning, where waiting for I/O would never end.
fn may_wait() -> Result {
    // SAFETY: The function may be called in any task context.
    if unsafe { c::mars_c_may_wait_for_io() } {
        Ok(())
    } else {
        Err(EDEADLK)
    }
}

/// What an error of [`BlockDevice::open`] means and what to do.
pub(crate) fn open_error_text(error: Error) -> &'static str {
    match error {
        EBUSY => "it is in use: mounted, swap, part of an array or volume group, or of another resource; release it first",
        ENOENT => "there is no such device node: check the path, and that the disk was found",
        ENXIO | ENODEV => "the device does not exist any more: check the disk",
        ENOTBLK => "it is not a block device",
        ELOOP => "it is a device of MARS itself, which can't be its own backing disk",
        EACCES | EPERM | EROFS => "it can't be written: make the device writable",
        EOPNOTSUPP => "zoned devices are not supported",
        _ => "it can't be opened",
    }
}
