// SPDX-License-Identifier: GPL-2.0-or-later

//! Disks that we offer: `/dev/mars/<name>`, bio based.
//!
//! A bio that comes in is given to [`DiskOps::submit`] in the context of whoever submitted it. Bios
//! of any size and shape are accepted; what is longer than [`MAX_BIO`](super::bio::MAX_BIO) is
//! split before. There is no partition table on such a disk. Pages need not be
//! stable while they are written (`BLK_FEAT_STABLE_WRITES`), provided that `submit` copies the data
//! once and works with the copy.
//!
//! Lock order: the disk's `open_mutex` (the block layer's), then `Inner::openers`.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    module::this_module,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    },
    types::ScopeGuard, //
};

use super::{
    bio::IncomingBio,
    generated as c,
    thread::NoIo, //
};

/// log2 of the block layer's unit.
const SECTOR_SHIFT: u32 = 9;

/// What a disk does.
pub(crate) trait DiskOps: Send + Sync + 'static {
    /// A bio has come in.
    ///
    /// Called in the context of its submitter, by many at a time; no allocation here starts I/O.
    /// It may sleep, but must not wait for a bio that is submitted here: that one is only started
    /// after the return.
    fn submit(&self, bio: IncomingBio);

    /// Somebody is opening the disk. Called under the disk's `open_mutex`: [`Disk::begin_removal`]
    /// must not be called here.
    fn opened(&self) {}

    /// Somebody has closed the disk. Called like [`opened`](Self::opened).
    fn closed(&self) {}
}

/// Properties of a disk. Those of the backing device are a good choice for most.
#[derive(Clone, Debug)]
pub(crate) struct DiskParams {
    /// Bytes; a multiple of the logical block size.
    pub(crate) size: u64,
    /// Smallest unit that can be addressed, in bytes: a power of two from 512 on.
    pub(crate) logical_block_size: u32,
    /// Smallest unit that is written without reading before, in bytes.
    pub(crate) physical_block_size: u32,
    /// Preferred smallest I/O, in bytes.
    pub(crate) io_min: u32,
    /// Preferred I/O for throughput, in bytes; 0 if there is none.
    pub(crate) io_opt: u32,
    /// Mask of the address bits that must be zero in memory. It must not be less strict than that
    /// of a device to which bios are remapped.
    pub(crate) dma_alignment: u32,
    /// Completed writes may be lost until a flush; FUA is obeyed. Otherwise neither is ever asked.
    pub(crate) write_cache: bool,
    /// Seeks are expensive.
    pub(crate) rotational: bool,
    /// Longest range of one discard or write of zeros, in bytes; 0 if neither is accepted.
    pub(crate) max_zeroes: u32,
    /// Unit in which discards are of use, in bytes; 0 if they are not accepted.
    pub(crate) discard_granularity: u32,
}

/// Who opened a disk.
#[derive(Clone, Copy)]
struct Opener {
    pid: c_int,
    comm: [u8; Self::COMM_LEN],
}

impl Opener {
    /// `TASK_COMM_LEN`.
    const COMM_LEN: usize = 16;

    /// The calling process.
    fn current() -> Self {
        let mut comm = [0; Self::COMM_LEN];
        // SAFETY: The buffer is valid for its length.
        let pid = unsafe { c::mars_c_current(comm.as_mut_ptr().cast(), comm.len()) };
        Self { pid, comm }
    }

    fn name(&self) -> &[u8] {
        self.comm.split(|b| *b == 0).next().unwrap_or(&[])
    }
}

/// The openers of a disk, as far as they can be known: a file may be closed by another process
/// than the one that opened it, and there may be more than are noted.
struct Openers {
    list: [Option<Opener>; Self::MAX],
}

impl Openers {
    const MAX: usize = 8;

    fn add(&mut self, opener: Opener) {
        if let Some(free) = self.list.iter_mut().find(|o| o.is_none()) {
            *free = Some(opener);
        }
    }

    /// Removes an entry of `pid`; and as many more as exceed the number of those that are `left`,
    /// the newest first: whoever opened it for a moment is rarely the one to be told about.
    fn remove(&mut self, pid: c_int, left: usize) {
        let own = |o: &&mut Option<Opener>| o.is_some_and(|o| o.pid == pid);
        if let Some(o) = self.list.iter_mut().rev().find(own) {
            *o = None;
        }
        let mut excess = self.list.iter().flatten().count().saturating_sub(left);
        for o in self.list.iter_mut().rev().filter(|o| o.is_some()) {
            if excess == 0 {
                break;
            }
            *o = None;
            excess = excess.saturating_sub(1);
        }
    }
}

/// What belongs to a disk until the block layer has released it.
#[pin_data]
struct Inner<T> {
    ops: Arc<T>,
    /// No more opens; changed under the disk's `open_mutex` only.
    removing: Atomic<bool>,
    #[pin]
    openers: Mutex<Openers>,
}

/// A disk, visible to everybody.
///
/// Dropping it removes the disk, which sleeps. Who has it open still then gets I/O errors; data
/// that was not written yet is given to `submit` before. The operations are released when the last
/// of them has closed it. While it is open, the module can't be unloaded.
///
/// # Invariants
///
/// - `disk` was made by `mars_c_disk_alloc` and added; we own a reference to it.
/// - Its `private_data` is an [`Inner<T>`] from [`Arc::into_raw`], until [`free_disk`] is called.
pub(crate) struct Disk<T: DiskOps> {
    disk: NonNull<bindings::gendisk>,
    _inner: PhantomData<Arc<Inner<T>>>,
}

// SAFETY: All functions that are called may be called by any thread, and `DiskOps` are `Send` and
// `Sync`.
unsafe impl<T: DiskOps> Send for Disk<T> {}
// SAFETY: As above.
unsafe impl<T: DiskOps> Sync for Disk<T> {}

impl<T: DiskOps> Disk<T> {
    const OPS: bindings::block_device_operations = bindings::block_device_operations {
        submit_bio: Some(submit_bio::<T>),
        open: Some(open::<T>),
        release: Some(release::<T>),
        free_disk: Some(free_disk::<T>),
        owner: this_module::<crate::LocalModule>().as_ptr(),
        ..pin_init::zeroed()
    };

    /// Makes the disk `/dev/mars/<name>`. It may be opened before this returns. May sleep.
    ///
    /// `ENAMETOOLONG` if the name has more than [`NAME_MAX`] bytes, `EINVAL` if it can't be one or the
    /// parameters do not fit together, `EEXIST` if there is such a disk.
    pub(crate) fn new(name: &str, params: &DiskParams, ops: Arc<T>) -> Result<Self> {
        if !is_name(name) {
            return Err(EINVAL);
        }
        if !valid_name(name) {
            return Err(ENAMETOOLONG);
        }
        let name = CString::try_from_fmt(fmt!("{name}"))?;
        let blocks = u64::from(params.logical_block_size.wrapping_sub(1));
        if params.size & blocks != 0 {
            return Err(EINVAL);
        }
        let inner = Arc::pin_init(
            pin_init!(Inner {
                ops,
                removing: Atomic::new(false),
                openers <- new_mutex!(Openers { list: [None; Openers::MAX] }, "mars_disk_openers"),
            }),
            GFP_KERNEL,
        )?;
        let inner = ScopeGuard::new_with_data(Arc::into_raw(inner), |inner| {
            // SAFETY: It came from `into_raw`; whoever dismisses the guard keeps it instead.
            drop(unsafe { Arc::from_raw(inner) })
        });
        // SAFETY: The operations are constant, and fit the private data that is given with them.
        let disk = from_err_ptr(unsafe {
            c::mars_c_disk_alloc(
                &Self::OPS,
                inner.cast_mut().cast(),
                params.logical_block_size,
                params.physical_block_size,
                params.io_min,
                params.io_opt,
                params.dma_alignment,
                params.write_cache,
                params.rotational,
                params.max_zeroes >> SECTOR_SHIFT,
                params.discard_granularity,
            )
        })?;
        let disk = NonNull::new(disk).ok_or(ENOMEM)?;
        // Dropped before `inner`; a disk that was not added does not call `free_disk`.
        let disk = ScopeGuard::new_with_data(disk, |disk| {
            // SAFETY: We own the reference; whoever dismisses the guard keeps it instead.
            unsafe { bindings::put_disk(disk.as_ptr()) }
        });
        let sectors = params.size >> SECTOR_SHIFT;
        // SAFETY: The disk was allocated just now, and `name` is a C string.
        to_result(unsafe { c::mars_c_disk_add(disk.as_ptr(), name.as_char_ptr(), sectors) })?;
        inner.dismiss();

        // INVARIANT: Allocated and added above, with `inner`, which nobody releases any more.
        Ok(Self {
            disk: disk.dismiss(),
            _inner: PhantomData,
        })
    }

    fn inner(&self) -> &Inner<T> {
        // SAFETY: By the type invariants, the private data is an `Inner<T>`, which is released
        // after our reference to the disk is.
        unsafe { inner(self.disk.as_ptr()) }
    }

    /// Changes the size and tells everybody. May sleep.
    pub(crate) fn set_size(&self, bytes: u64) {
        // SAFETY: By the type invariants, the disk is valid.
        unsafe { bindings::set_capacity_and_notify(self.disk.as_ptr(), bytes >> SECTOR_SHIFT) };
    }

    /// How many have it open, as of now.
    pub(crate) fn open_count(&self) -> u32 {
        // SAFETY: By the type invariants, the disk is valid.
        unsafe { c::mars_c_disk_openers(self.disk.as_ptr()) }
    }

    /// Appends to `out` who uses the disk, like `mounted ext4; opened by mount(412)`; nothing if it
    /// is not open. May sleep.
    pub(crate) fn holder(&self, out: &mut KVec<u8>) -> Result {
        let count = self.open_count();
        if count == 0 {
            return Ok(());
        }
        let mut claim = [0_u8; 48];
        // SAFETY: By the type invariants, the disk is valid; the buffer is valid for its length.
        let len = unsafe {
            c::mars_c_disk_holder(self.disk.as_ptr(), claim.as_mut_ptr().cast(), claim.len())
        };
        let claim = claim.get(..usize::try_from(len)?).ok_or(EINVAL)?;
        out.extend_from_slice(claim, GFP_KERNEL)?;
        let openers = self.inner().openers.lock().list;
        let known = openers.iter().flatten();
        let mut noted = 0_u32;
        for o in known {
            let sep: &[u8] = match (noted, claim.is_empty()) {
                (0, true) => b"opened by ",
                (0, false) => b"; opened by ",
                _ => b", ",
            };
            out.extend_from_slice(sep, GFP_KERNEL)?;
            out.extend_from_slice(o.name(), GFP_KERNEL)?;
            let pid = CString::try_from_fmt(fmt!("({})", o.pid))?;
            out.extend_from_slice(pid.to_bytes(), GFP_KERNEL)?;
            noted = noted.saturating_add(1);
        }
        if noted == 0 && claim.is_empty() {
            out.extend_from_slice(b"opened", GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Runs `f` while nobody can open or close the disk.
    fn with_opens_stopped<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: By the type invariants, the disk is valid.
        unsafe { c::mars_c_disk_lock(self.disk.as_ptr()) };
        let r = f();
        // SAFETY: Locked above.
        unsafe { c::mars_c_disk_unlock(self.disk.as_ptr()) };
        r
    }

    /// Refuses further opens with `ENXIO`, if nobody has it open now; says whether it did. May
    /// sleep.
    pub(crate) fn begin_removal(&self) -> bool {
        self.with_opens_stopped(|| {
            let unused = self.open_count() == 0;
            if unused {
                self.inner().removing.store(true, Relaxed);
            }
            unused
        })
    }

    /// Allows opens again. May sleep.
    pub(crate) fn cancel_removal(&self) {
        self.with_opens_stopped(|| self.inner().removing.store(false, Relaxed));
    }
}

impl<T: DiskOps> Drop for Disk<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the disk was added, and we own a reference. The private
        // data is released by `free_disk`.
        unsafe {
            c::mars_c_disk_del(self.disk.as_ptr());
            bindings::put_disk(self.disk.as_ptr());
        }
    }
}

/// # Safety
///
/// `disk` is valid for `'a`, and its private data is an [`Inner<T>`] that lives as long.
unsafe fn inner<'a, T>(disk: *mut bindings::gendisk) -> &'a Inner<T> {
    // SAFETY: By the safety requirements.
    unsafe { &*(*disk).private_data.cast_const().cast::<Inner<T>>() }
}

/// # Safety
///
/// Only called by the block layer, for a disk of [`Disk<T>`].
unsafe extern "C" fn submit_bio<T: DiskOps>(bio: *mut bindings::bio) {
    // SAFETY: The bio is valid, ours, and was submitted to a disk whose limits are set.
    let Some(bio) = NonNull::new(unsafe { bindings::bio_split_to_limits(bio) }) else {
        // It has failed, and was completed.
        return;
    };
    // SAFETY: The bio and its disk are valid; the disk is not removed before we return.
    let inner = unsafe { inner::<T>((*(*bio.as_ptr()).bi_bdev).bd_disk) };
    // SAFETY: The bio is valid, split, and ours to complete.
    let bio = unsafe { IncomingBio::from_raw(bio) };
    let _noio = NoIo::enter();
    inner.ops.submit(bio);
}

/// # Safety
///
/// Only called by the block layer, for a disk of [`Disk<T>`], under its `open_mutex`.
unsafe extern "C" fn open<T: DiskOps>(
    disk: *mut bindings::gendisk,
    _mode: bindings::blk_mode_t,
) -> c_int {
    // SAFETY: The caller has a reference to the disk.
    let inner = unsafe { inner::<T>(disk) };
    if inner.removing.load(Relaxed) {
        return ENXIO.to_errno();
    }
    inner.openers.lock().add(Opener::current());
    inner.ops.opened();
    0
}

/// # Safety
///
/// Only called by the block layer, for a disk of [`Disk<T>`], under its `open_mutex`.
unsafe extern "C" fn release<T: DiskOps>(disk: *mut bindings::gendisk) {
    // SAFETY: The caller has a reference to the disk.
    let inner = unsafe { inner::<T>(disk) };
    // SAFETY: As above.
    let left = unsafe { c::mars_c_disk_openers(disk) };
    let pid = Opener::current().pid;
    inner
        .openers
        .lock()
        .remove(pid, usize::try_from(left).unwrap_or(usize::MAX));
    inner.ops.closed();
}

/// # Safety
///
/// Only called by the block layer, once, for a disk of [`Disk<T>`] that was added.
unsafe extern "C" fn free_disk<T: DiskOps>(disk: *mut bindings::gendisk) {
    // SAFETY: The private data came from `Arc::into_raw`, and nobody can use it after this. The
    // call at the end belongs to the successful `mars_c_disk_add`.
    unsafe {
        drop(Arc::from_raw(
            (*disk).private_data.cast_const().cast::<Inner<T>>(),
        ));
        c::mars_c_disk_released();
    }
}

/// Longest name of a disk in bytes; it follows `mars/`, and a zero follows it.
pub(crate) const NAME_MAX: usize = 26;

/// Whether a disk can have this name: for a check long before it is made.
pub(crate) fn valid_name(name: &str) -> bool {
    name.len() <= NAME_MAX && is_name(name)
}

/// Whether it is a name at all, of any length.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '!', '\0'])
}
