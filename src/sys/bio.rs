// SPDX-License-Identifier: GPL-2.0-or-later

//! Block I/O: what the block layer hands to our disks ([`IncomingBio`], [`BioList`]) and what we
//! send to the disks below ([`IoGroup`], [`Plug`]).
//!
//! [`init`] makes the pool that all our own bios come from, so that they make progress when memory
//! is short. Without it, nothing here can be started.
//!
//! Lock order: `Inner::queue` is a leaf, taken in interrupts; a [`Wake`] is called under it.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use core::{
    mem::ManuallyDrop,
    ops::Deref,
    pin::Pin,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    bindings,
    error::to_result,
    page::PAGE_SHIFT,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        new_spinlock_irq,
        Arc,
        SpinLockIrq, //
    },
    time::msecs_to_jiffies,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};

use super::{
    bdev::BlockDevice,
    buf::{
        Buf,
        Reserves, //
    },
    event::Event,
    generated as c, //
};

/// log2 of the block layer's unit.
const SECTOR_SHIFT: u32 = 9;

/// The most bytes that one [`IncomingBio`] has; longer ones are split before.
pub(crate) const MAX_BIO: u32 = c::MARS_C_MAX_BIO;

/// The pool of our own bios, while this exists.
///
/// Dropping it waits until all disks and block devices of this module are closed, and until no
/// completion handler of ours can be running any more: it has to be the last thing that a module
/// drops.
///
/// # Invariants
///
/// Made by a successful `mars_c_block_init`, once at a time.
#[must_use = "the pool goes away with its guard"]
pub(crate) struct BioSetGuard(());

/// Makes the pool of bios; `EBUSY` if there is one. May sleep.
pub(crate) fn init() -> Result<BioSetGuard> {
    // SAFETY: Modules are initialised by one task; a second call is refused.
    to_result(unsafe { c::mars_c_block_init() })?;

    // INVARIANT: It was successful.
    Ok(BioSetGuard(()))
}

impl Drop for BioSetGuard {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this ends our own `mars_c_block_init`.
        unsafe { c::mars_c_block_exit() };
    }
}

/// What a bio asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BioOp {
    /// Fill the bio with what is at its offset.
    Read,
    /// Store the bio's data; see also [`IncomingBio::is_preflush`] and [`IncomingBio::is_fua`].
    Write,
    /// No data, only: make durable whatever was completed before.
    Flush,
    /// The range is not needed any more.
    Discard,
    /// Fill the range with zeros.
    WriteZeroes,
    /// Something that we never advertise.
    Other(u32),
}

/// A bio that the block layer has handed to one of our disks.
///
/// It is [completed](Self::complete) or [passed on](Self::remap) exactly once. Dropping it without
/// either is a mistake of the caller: the bio then fails with `EIO`, and the log says so once.
///
/// # Invariants
///
/// `bio` is a valid bio, submitted to a disk of ours, started by `mars_c_bio_start`, and ours to
/// complete. It has at most [`MAX_BIO`] bytes of data.
#[must_use = "a bio has to be completed"]
pub(crate) struct IncomingBio {
    bio: NonNull<bindings::bio>,
}

// SAFETY: A bio may be worked on and completed by any thread.
unsafe impl Send for IncomingBio {}
// SAFETY: Methods on shared references only read.
unsafe impl Sync for IncomingBio {}

impl IncomingBio {
    /// Takes over a bio and starts its accounting.
    ///
    /// # Safety
    ///
    /// `bio` is valid, was submitted to a disk of ours, was split to its limits, and nobody else
    /// completes it.
    pub(super) unsafe fn from_raw(bio: NonNull<bindings::bio>) -> Self {
        // SAFETY: By the safety requirements, the bio is valid and ours.
        unsafe { c::mars_c_bio_start(bio.as_ptr()) };

        // INVARIANT: By the safety requirements, and started above.
        Self { bio }
    }

    /// Gives up the bio without completing it.
    fn into_raw(self) -> *mut bindings::bio {
        ManuallyDrop::new(self).bio.as_ptr()
    }

    fn opf(&self) -> u32 {
        // SAFETY: By the type invariants, `bio` is valid.
        unsafe { (*self.bio.as_ptr()).bi_opf }
    }

    /// What it asks for.
    pub(crate) fn op(&self) -> BioOp {
        match self.opf() & ((1 << bindings::REQ_OP_BITS) - 1) {
            bindings::req_op_REQ_OP_READ => BioOp::Read,
            bindings::req_op_REQ_OP_WRITE if self.len() == 0 => BioOp::Flush,
            bindings::req_op_REQ_OP_WRITE => BioOp::Write,
            bindings::req_op_REQ_OP_FLUSH => BioOp::Flush,
            bindings::req_op_REQ_OP_DISCARD => BioOp::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => BioOp::WriteZeroes,
            op => BioOp::Other(op),
        }
    }

    /// Where on the disk, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        // SAFETY: By the type invariants, `bio` is valid. The field is packed, but read by value.
        let sector = unsafe { (*self.bio.as_ptr()).bi_iter.bi_sector };
        // The block layer has checked it against the disk's size, which is counted in bytes too.
        sector << SECTOR_SHIFT
    }

    /// How much, in bytes: at most [`MAX_BIO`] if it has data.
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: By the type invariants, `bio` is valid. The field is packed, but read by value.
        unsafe { (*self.bio.as_ptr()).bi_iter.bi_size }
    }

    /// Whether it may only be completed when its own data is durable.
    pub(crate) fn is_fua(&self) -> bool {
        self.opf() & c::MARS_C_REQ_FUA != 0
    }

    /// Whether it may only be completed when everything completed before is durable.
    pub(crate) fn is_preflush(&self) -> bool {
        self.opf() & c::MARS_C_REQ_PREFLUSH != 0
    }

    /// Whether blocks that it fills with zeros must stay allocated.
    pub(crate) fn is_nounmap(&self) -> bool {
        self.opf() & c::MARS_C_REQ_NOUNMAP != 0
    }

    /// Whether it takes memory from somebody who gets it back when the bio is complete: a page on its way to swap space.
    pub(crate) fn is_swap(&self) -> bool {
        self.opf() & c::MARS_C_REQ_SWAP != 0
    }

    /// Whether somebody is waiting for it.
    pub(crate) fn is_sync(&self) -> bool {
        self.op() == BioOp::Read
            || self.opf() & (c::MARS_C_REQ_SYNC | c::MARS_C_REQ_FUA | c::MARS_C_REQ_PREFLUSH) != 0
    }

    /// Checks that `off..off + len` lies in the bio's data.
    fn check(&self, off: u32, len: usize) -> Result<u32> {
        if !matches!(self.op(), BioOp::Read | BioOp::Write) {
            return Err(EINVAL);
        }
        let len = u32::try_from(len)?;
        match off.checked_add(len) {
            Some(end) if end <= self.len() => Ok(len),
            _ => Err(EINVAL),
        }
    }

    /// Checks that `off..off + len` may be written to, that is that the bio is a read.
    fn check_mut(&self, off: u32, len: usize) -> Result<u32> {
        if self.op() != BioOp::Read {
            return Err(EINVAL);
        }
        self.check(off, len)
    }

    /// Copies the data from byte `bio_off` of the bio on into `dst`.
    ///
    /// The submitter may change the data meanwhile; so copy once, and work with the copy.
    pub(crate) fn copy_to_buf(&self, bio_off: u32, dst: &mut [u8]) -> Result {
        let len = self.check(bio_off, dst.len())?;
        // SAFETY: By the type invariants, `bio` is valid; it has the range by `check`; `dst` is
        // valid for writes of `len` bytes.
        unsafe { c::mars_c_bio_read(self.bio.as_ptr(), bio_off, dst.as_mut_ptr().cast(), len) };
        Ok(())
    }

    /// Copies `src` into the data of a read, from byte `bio_off` of the bio on.
    pub(crate) fn copy_from_buf(&mut self, bio_off: u32, src: &[u8]) -> Result {
        let len = self.check_mut(bio_off, src.len())?;
        // SAFETY: By the type invariants, `bio` is valid; it has the range by `check_mut`, and its
        // memory may be written to, as it is a read; `src` is valid for reads of `len` bytes.
        unsafe { c::mars_c_bio_write(self.bio.as_ptr(), bio_off, src.as_ptr().cast(), len) };
        Ok(())
    }

    /// Fills a part of the data of a read with zeros.
    pub(crate) fn zero(&mut self, bio_off: u32, len: u32) -> Result {
        let len = self.check_mut(bio_off, usize::try_from(len)?)?;
        // SAFETY: By the type invariants, `bio` is valid; it has the range by `check_mut`, and its
        // memory may be written to, as it is a read.
        unsafe { c::mars_c_bio_zero(self.bio.as_ptr(), bio_off, len) };
        Ok(())
    }

    /// Makes a buffer with a copy of a part of the data. May sleep.
    pub(crate) fn new_buf(&self, bio_off: u32, len: u32) -> Result<Buf> {
        let bytes = usize::try_from(len)?;
        self.check(bio_off, bytes)?;
        // SAFETY: The closure writes exactly the `len` bytes that the memory has: by the type
        // invariants, `bio` is valid, and it has the range by `check`.
        unsafe {
            Buf::new_with(bytes, |ptr| {
                c::mars_c_bio_read(self.bio.as_ptr(), bio_off, ptr.cast(), len)
            })
        }
    }

    /// Like [`new_buf`](Self::new_buf) for as much as there is memory for: at most `max` bytes, at
    /// least one page (or `max`, or the rest of the bio). So it only fails if `bio_off` is not
    /// within the bio, or if `max` is 0. May sleep.
    ///
    /// The length is a multiple of the logical block size if that is at most a page, and `max` and
    /// the bio are.
    pub(crate) fn next_buf(&self, bio_off: u32, max: u32) -> Result<Buf> {
        const PAGE: u32 = 1 << PAGE_SHIFT;

        let rest = self.len().checked_sub(bio_off).ok_or(EINVAL)?;
        let mut len = rest.min(max);
        if len == 0 {
            return Err(EINVAL);
        }
        loop {
            match self.new_buf(bio_off, len) {
                Err(ENOMEM) if len > PAGE => len = (len / 2).next_multiple_of(PAGE),
                result => return result,
            }
        }
    }

    /// Completes the bio. May be called in any context.
    pub(crate) fn complete(self, result: Result) {
        let bio = self.into_raw();
        // SAFETY: By the type invariants, `bio` is valid, started, and ours to complete, which
        // happens here, once, because `self` is gone.
        unsafe {
            c::mars_c_bio_end_acct(bio);
            if let Err(e) = result {
                (*bio).bi_status = bindings::errno_to_blk_status(e.to_errno());
            }
            bindings::bio_endio(bio);
        }
    }

    /// Passes the bio on to the same place of another device, which completes it. May sleep.
    ///
    /// The device has to stay open until all bios passed to it are complete; a disk that nobody
    /// has open has none.
    pub(crate) fn remap(self, bdev: &BlockDevice) {
        let bio = self.into_raw();
        // SAFETY: By the type invariants, `bio` is valid, started, and ours to complete, which is
        // given to the other device here, because `self` is gone. `bdev` is a valid block device.
        unsafe { c::mars_c_bio_remap(bio, bdev.as_raw()) };
    }

    /// Reads the same place of another device into a read, and waits. The bio itself is not
    /// completed by that. May sleep; `EDEADLK` in [`DiskOps::submit`](super::disk::DiskOps).
    pub(crate) fn read_through(&mut self, bdev: &BlockDevice) -> Result {
        self.check_mut(0, 0)?;
        // SAFETY: By the type invariants, `bio` is valid; it is a read by `check_mut`; `bdev` is a
        // valid block device.
        to_result(unsafe { c::mars_c_bio_read_through(self.bio.as_ptr(), bdev.as_raw()) })
    }
}

impl Drop for IncomingBio {
    fn drop(&mut self) {
        pr_warn_once!("a bio was dropped instead of completed: it fails\n");
        // INVARIANT: The object that `bio` is moved to is the only one, as this one ends.
        Self { bio: self.bio }.complete(Err(EIO));
    }
}

/// A queue of bios, first in, first out. Needs no memory: the bios are its links.
///
/// Dropping it fails the bios that are left.
///
/// # Invariants
///
/// `head` starts a list, linked through `bi_next` and ended by null, of what were
/// [`IncomingBio`]s and belongs to this list now; `tail` is its last one, null if it is empty.
pub(crate) struct BioList {
    head: *mut bindings::bio,
    tail: *mut bindings::bio,
    len: usize,
}

// SAFETY: It owns `IncomingBio`s, which are `Send`.
unsafe impl Send for BioList {}
// SAFETY: Methods on shared references do not look at the bios.
unsafe impl Sync for BioList {}

impl BioList {
    /// An empty list.
    pub(crate) const fn new() -> Self {
        // INVARIANT: It is empty.
        Self {
            head: ptr::null_mut(),
            tail: ptr::null_mut(),
            len: 0,
        }
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Number of bios.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a bio at the end.
    pub(crate) fn push(&mut self, bio: IncomingBio) {
        let bio = bio.into_raw();
        // SAFETY: `bio` is valid and ours; whoever owns a bio may use its link.
        unsafe { (*bio).bi_next = ptr::null_mut() };
        self.link(bio, bio, 1);
    }

    /// Moves all bios of `other` to the end.
    pub(crate) fn append(&mut self, other: &mut BioList) {
        let other = ManuallyDrop::new(core::mem::take(other));
        if !other.is_empty() {
            self.link(other.head, other.tail, other.len);
        }
    }

    /// Adds the list `head..=tail`, which the caller gives up.
    fn link(&mut self, head: *mut bindings::bio, tail: *mut bindings::bio, len: usize) {
        if self.tail.is_null() {
            self.head = head;
        } else {
            // SAFETY: By the type invariants, `tail` is a valid bio of ours.
            unsafe { (*self.tail).bi_next = head };
        }
        // INVARIANT: `head..=tail` were a list that ended with null, and they come last now.
        self.tail = tail;
        self.len = self.len.saturating_add(len);
    }

    /// Takes the first bio.
    pub(crate) fn pop(&mut self) -> Option<IncomingBio> {
        let bio = NonNull::new(self.head)?;
        // SAFETY: By the type invariants, `head` is a valid bio of ours.
        let next = unsafe { ptr::replace(&raw mut (*bio.as_ptr()).bi_next, ptr::null_mut()) };
        // INVARIANT: The rest of the list; the bio is not in it any more.
        self.head = next;
        if next.is_null() {
            self.tail = ptr::null_mut();
        }
        self.len = self.len.saturating_sub(1);

        // INVARIANT: It was an `IncomingBio` when it was put in, and is no part of the list now.
        Some(IncomingBio { bio })
    }
}

impl Default for BioList {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// While it exists, I/O that this thread submits is collected, so that the device gets it in one
/// go and can merge it. Sleeping submits what was collected.
///
/// # Invariants
///
/// If there is one, `plug` was started by this thread and does not move.
pub(crate) struct Plug {
    plug: Option<KBox<Opaque<bindings::blk_plug>>>,
    _not_send: NotThreadSafe,
}

impl Plug {
    /// Starts collecting. (If there is no memory for it, it is only slower.) Plugs may nest.
    pub(crate) fn new() -> Self {
        let plug = KBox::new(Opaque::uninit(), GFP_NOWAIT).ok();
        if let Some(p) = &plug {
            // SAFETY: The memory is valid for a `blk_plug` and does not move: it is boxed. It is
            // freed only after `blk_finish_plug`, or never.
            unsafe { bindings::blk_start_plug(p.get()) };
        }

        // INVARIANT: As above; `NotThreadSafe` keeps the object in this thread.
        Self {
            plug,
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        if let Some(p) = &self.plug {
            // SAFETY: By the type invariants, it was started by this thread.
            unsafe { bindings::blk_finish_plug(p.get()) };
        }
    }
}

/// Somebody who wants to know that an I/O has finished.
pub(crate) trait Wake: Send + Sync {
    /// Called when an I/O has finished, possibly in an interrupt, with interrupts disabled and a
    /// spinlock held: it must only wake up. It must not call the group back.
    fn wake(&self);
}

impl Wake for Event {
    fn wake(&self) {
        self.signal();
    }
}

/// A finished I/O.
pub(crate) struct Completed<T> {
    /// What was given when it was started.
    pub(crate) tag: T,
    /// Its result; of several errors, the first one.
    pub(crate) result: Result,
    /// The memory that was read into.
    pub(crate) buf: Option<Buf>,
}

/// A part of an [`Op`]'s data.
struct Frag {
    buf: Arc<Buf>,
    off: usize,
    len: u32,
}

/// The memory of an I/O.
enum Data {
    /// Nothing: a flush.
    None,
    /// A read into the whole buffer.
    Into(Buf),
    /// A write of all parts.
    From(KVec<Frag>),
    /// So many bytes of zeros, which the device makes.
    Made(u32),
    /// So many bytes of zeros, from memory.
    Zeros(u32),
}

/// How [`IoGroup::submit_zeroes`] fills a range with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroWith {
    /// The device does it; with `unmap` it may give up the blocks, which still read as zeros.
    Device {
        /// See there.
        unmap: bool,
    },
    /// Zeros are written, as any device can.
    Memory,
}

/// One I/O, which may be several bios.
///
/// # Invariants
///
/// - `group` is valid as long as the op is in flight: the group waits for it before it ends.
/// - `remaining` counts the bios in flight, and one for the submission.
struct Op<T> {
    next: *mut Op<T>,
    group: NonNull<Inner<T>>,
    remaining: Atomic<i32>,
    /// 0 or the (negative) number of the first error.
    error: Atomic<i32>,
    data: Data,
    tag: T,
    /// Keeps the device open.
    bdev: Arc<BlockDevice>,
}

/// # Invariants
///
/// `head` starts a list, linked through `next` and ended by null, of finished [`Op`]s (from
/// [`KBox::into_raw`]) that belong to the queue; `tail` is its last one if it is not empty.
struct Queue<T> {
    head: *mut Op<T>,
    tail: *mut Op<T>,
    /// Not finished yet.
    running: usize,
    /// Not taken by [`IoGroup::reap`] yet, including those that run.
    pending: usize,
    /// Who waits is woken when no more than so many run.
    wake_at: usize,
}

// SAFETY: It owns its ops, whose parts may all be sent to other threads.
unsafe impl<T: Send> Send for Queue<T> {}

#[pin_data]
struct Inner<T> {
    #[pin]
    queue: SpinLockIrq<Queue<T>>,
    #[pin]
    finished: Opaque<bindings::wait_queue_head>,
    waker: Option<Arc<dyn Wake>>,
}

/// Asynchronous I/Os to block devices, whose results are collected here.
///
/// Each I/O has a tag, owned by the group until [`reap`](Self::reap) gives it back; the memory and
/// the device are kept alive as long. Dropping the group waits for all its I/Os; it may sleep.
///
/// # Invariants
///
/// `inner.finished` is an initialised wait queue head.
pub(crate) struct IoGroup<T: Send> {
    inner: Pin<KBox<Inner<T>>>,
}

// SAFETY: All it contains is protected by a lock and may be sent to other threads; C's wait queues
// may be used by all threads.
unsafe impl<T: Send> Send for IoGroup<T> {}
// SAFETY: As above.
unsafe impl<T: Send> Sync for IoGroup<T> {}

impl<T: Send> IoGroup<T> {
    /// Makes an empty group. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Self::with_waker(None)
    }

    /// Makes an empty group that tells `waker` about each finished I/O. May sleep.
    pub(crate) fn with_waker(waker: Option<Arc<dyn Wake>>) -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                // INVARIANT: The list is empty.
                queue <- new_spinlock_irq!(Queue {
                    head: ptr::null_mut(),
                    tail: ptr::null_mut(),
                    running: 0,
                    pending: 0,
                    wake_at: 0,
                }, "mars_io_group"),
                // SAFETY: `slot` is valid for a wait queue head, which is pinned; name and key
                // live as long as the module.
                finished <- Opaque::ffi_init(|slot| unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"mars_io_group".as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                }),
                waker,
            }),
            GFP_KERNEL,
        )?;

        // INVARIANT: Initialised above.
        Ok(Self { inner })
    }

    /// Number of I/Os started and not yet taken by [`reap`](Self::reap).
    pub(crate) fn in_flight(&self) -> usize {
        self.inner.queue.lock().pending
    }

    /// Starts a write of `frags` (memory, first byte, number of bytes), one after the other, to
    /// `offset` of the device. May sleep.
    ///
    /// `offset` and all lengths must be multiples of the logical block size, the first bytes of
    /// 512. With `fua`, the data is durable when the I/O has finished. If it can't be started, the
    /// tag comes back.
    pub(crate) fn submit_write<'a>(
        &self,
        bdev: &Arc<BlockDevice>,
        offset: u64,
        frags: impl IntoIterator<Item = (&'a Arc<Buf>, u32, u32)>,
        fua: bool,
        tag: T,
    ) -> Result<(), (Error, T)> {
        let _reserves = Reserves::enter();
        let mut data = KVec::new();
        for (buf, off, len) in frags {
            if let Err(e) = Self::add(&mut data, bdev, buf, off, len) {
                return Err((e, tag));
            }
        }
        let mut opf = bindings::req_op_REQ_OP_WRITE;
        if fua {
            opf |= c::MARS_C_REQ_FUA;
        }
        self.submit(bdev, opf, offset, Data::From(data), tag)
    }

    fn add(
        data: &mut KVec<Frag>,
        bdev: &BlockDevice,
        buf: &Arc<Buf>,
        off: u32,
        len: u32,
    ) -> Result {
        let mask = bdev.logical_block_size().wrapping_sub(1);
        let off = usize::try_from(off)?;
        let end = off.checked_add(usize::try_from(len)?).ok_or(EINVAL)?;
        if off & 511 != 0 || len & mask != 0 || len == 0 || end > buf.len() {
            return Err(EINVAL);
        }
        let frag = Frag {
            buf: buf.clone(),
            off,
            len,
        };
        Ok(data.push(frag, GFP_KERNEL)?)
    }

    /// Starts a read from `offset` of the device that fills `buf`; [`Completed`] gives it back.
    /// May sleep.
    ///
    /// `offset` and the buffer's length must be multiples of the logical block size. If it can't
    /// be started, the tag comes back.
    pub(crate) fn submit_read(
        &self,
        bdev: &Arc<BlockDevice>,
        offset: u64,
        buf: Buf,
        tag: T,
    ) -> Result<(), (Error, T)> {
        let mask = usize::try_from(bdev.logical_block_size().wrapping_sub(1));
        if buf.len() == 0 || mask.map_or(true, |m| buf.len() & m != 0) {
            return Err((EINVAL, tag));
        }
        let opf = bindings::req_op_REQ_OP_READ;
        self.submit(bdev, opf, offset, Data::Into(buf), tag)
    }

    /// Starts filling `len` bytes from `offset` of the device with zeros. May sleep.
    ///
    /// `offset` and `len` must be multiples of the logical block size. What the device is to do by
    /// itself should not be longer than it can do at once
    /// ([`max_write_zeroes`](BlockDevice::max_write_zeroes)). If it can't be started, the tag comes
    /// back.
    pub(crate) fn submit_zeroes(
        &self,
        bdev: &Arc<BlockDevice>,
        offset: u64,
        len: u32,
        with: ZeroWith,
        tag: T,
    ) -> Result<(), (Error, T)> {
        if len == 0 || len & bdev.logical_block_size().wrapping_sub(1) != 0 {
            return Err((EINVAL, tag));
        }
        let (opf, data) = match with {
            ZeroWith::Device { unmap: true } => {
                (bindings::req_op_REQ_OP_WRITE_ZEROES, Data::Made(len))
            }
            ZeroWith::Device { unmap: false } => (
                bindings::req_op_REQ_OP_WRITE_ZEROES | c::MARS_C_REQ_NOUNMAP,
                Data::Made(len),
            ),
            ZeroWith::Memory => (bindings::req_op_REQ_OP_WRITE, Data::Zeros(len)),
        };
        self.submit(bdev, opf, offset, data, tag)
    }

    /// Starts a flush: when it has finished, everything is durable that had finished before it was
    /// started. May sleep. If it can't be started, the tag comes back.
    pub(crate) fn submit_flush(&self, bdev: &Arc<BlockDevice>, tag: T) -> Result<(), (Error, T)> {
        let opf = bindings::req_op_REQ_OP_WRITE | c::MARS_C_REQ_PREFLUSH;
        self.submit(bdev, opf, 0, Data::None, tag)
    }

    /// Starts the bios of one I/O. All of `data` is in multiples of the logical block size.
    fn submit(
        &self,
        bdev: &Arc<BlockDevice>,
        opf: u32,
        offset: u64,
        data: Data,
        tag: T,
    ) -> Result<(), (Error, T)> {
        if offset & u64::from(bdev.logical_block_size().wrapping_sub(1)) != 0 {
            return Err((EINVAL, tag));
        }
        let _reserves = Reserves::enter();
        let memory = match KBox::<Op<T>>::new_uninit(GFP_KERNEL) {
            Ok(m) => m,
            Err(e) => return Err((e.into(), tag)),
        };
        {
            let mut queue = self.inner.queue.lock();
            queue.running = queue.running.saturating_add(1);
            queue.pending = queue.pending.saturating_add(1);
        }
        // INVARIANT: The group waits for all that run, and this one was just counted.
        let op = KBox::into_raw(memory.write(Op {
            next: ptr::null_mut(),
            group: NonNull::from(&*self.inner),
            remaining: Atomic::new(1),
            error: Atomic::new(0),
            data,
            tag,
            bdev: bdev.clone(),
        }));
        // SAFETY: `op` was just made; the submission is still counted in `remaining`, so it stays.
        unsafe {
            if let Err(e) = Self::start(op, opf, offset >> SECTOR_SHIFT) {
                Op::fail(op, e.to_errno());
            }
            Op::put(op);
        }
        Ok(())
    }

    /// Builds and submits the bios of `op`.
    ///
    /// # Safety
    ///
    /// `op` is valid, and counted once more than it has bios in flight.
    unsafe fn start(op: *mut Op<T>, opf: u32, sector: u64) -> Result {
        // SAFETY: By the safety requirements, `op` is valid until we return. While bios are in
        // flight, only its atomics are changed; so it may be borrowed shared.
        let shared = unsafe { &*op };
        let mut next = Next {
            op,
            bdev: shared.bdev.as_raw(),
            opf,
            sector,
            bio: ptr::null_mut(),
            room: 0,
        };
        match &shared.data {
            // SAFETY: A bio without memory; `op` as required.
            Data::None => unsafe { next.open(0)? },
            Data::Made(len) => {
                // SAFETY: As above.
                unsafe { next.open(0)? };
                // SAFETY: The bio is open: valid, ours, and not submitted.
                unsafe { (*next.bio).bi_iter.bi_size = *len };
            }
            // SAFETY: `op` as required.
            Data::Zeros(len) => unsafe { next.add_zeros(*len)? },
            // SAFETY: The buffer is owned by `op`, so it stays as long as bios of `op` are in
            // flight, and nobody else can access it meanwhile.
            Data::Into(buf) => unsafe {
                next.add(buf.as_raw(), u32::try_from(buf.len())?, 0)?;
            },
            Data::From(frags) => {
                // How many vectors are still to come, to make the next bio long enough.
                let mut ahead = 0_u32;
                for f in frags.iter() {
                    ahead = ahead.saturating_add(f.vecs());
                }
                for f in frags.iter() {
                    ahead = ahead.saturating_sub(f.vecs());
                    // SAFETY: The buffer is kept by `op`, so it stays as long as bios of `op` are
                    // in flight; it is shared, so nobody writes to it; `off` and `len` were
                    // checked against its length.
                    unsafe { next.add(f.as_raw(), f.len, ahead)? };
                }
            }
        }
        next.send();
        Ok(())
    }

    /// Takes a finished I/O, if there is one. Never sleeps.
    pub(crate) fn reap(&self) -> Option<Completed<T>> {
        let op = {
            let mut queue = self.inner.queue.lock();
            let op = NonNull::new(queue.head)?;
            // SAFETY: By the type invariants, the queue's head is a valid op of its own.
            // INVARIANT: The rest of the list; the op is not in it any more.
            queue.head = unsafe { (*op.as_ptr()).next };
            queue.pending = queue.pending.saturating_sub(1);
            op
        };
        // SAFETY: It came from `KBox::into_raw`, has finished, and is in no list any more.
        let op = KBox::into_inner(unsafe { KBox::from_raw(op.as_ptr()) });
        Some(Completed {
            tag: op.tag,
            result: to_result(op.error.load(Relaxed)),
            buf: match op.data {
                Data::Into(buf) => Some(buf),
                _ => None,
            },
        })
    }

    /// Waits until no more than `left` I/Os run, at most `timeout_ms`. Who is content with some left is woken less often:
    /// several can be taken then. Signals (so also the request to stop a kernel thread) do not end it, because I/O ends by
    /// itself. May sleep. Only one thread waits.
    pub(crate) fn wait(&self, timeout_ms: u32, left: usize) {
        let jiffies = isize::try_from(msecs_to_jiffies(timeout_ms)).unwrap_or(isize::MAX);
        self.wait_for(bindings::TASK_IDLE, jiffies, left);
    }

    fn wait_for(&self, state: u32, mut jiffies: isize, left: usize) {
        let Ok(state) = c_int::try_from(state) else {
            return;
        };
        let head = self.inner.finished.get();
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: `entry` is valid for an entry.
        unsafe { bindings::init_wait(entry.get()) };
        loop {
            // SAFETY: By the type invariants, `head` is a wait queue head; `entry` was initialised,
            // and is taken off before it ends.
            unsafe { bindings::prepare_to_wait(head, entry.get(), state) };
            let ready = {
                let mut queue = self.inner.queue.lock();
                queue.wake_at = left;
                queue.running <= left
            };
            if ready || jiffies == 0 {
                break;
            }
            // SAFETY: A task may sleep here; the state was set above.
            jiffies = unsafe { bindings::schedule_timeout(jiffies) };
        }
        // SAFETY: As above.
        unsafe { bindings::finish_wait(head, entry.get()) };
    }
}

impl<T: Send> Drop for IoGroup<T> {
    fn drop(&mut self) {
        // Without an end, and visible to the detector of hung tasks.
        self.wait_for(bindings::TASK_UNINTERRUPTIBLE, isize::MAX, 0);
        while self.reap().is_some() {}
    }
}

/// A bio that is being filled, of an I/O that may need several.
///
/// # Invariants
///
/// `bio` is null, or a bio of ours that is not submitted yet and has room for `room` vectors. `op`
/// and `bdev` are valid.
struct Next<T> {
    op: *mut Op<T>,
    bdev: *mut bindings::block_device,
    opf: u32,
    sector: u64,
    bio: *mut bindings::bio,
    room: u32,
}

impl<T: Send> Next<T> {
    /// Longest piece of memory that always fits into one bio; a multiple of all block sizes.
    const PIECE: u32 = 15 << 16;

    /// Makes a new bio with at least `vecs` vectors, if that many are possible.
    ///
    /// # Safety
    ///
    /// There is no bio now.
    unsafe fn open(&mut self, vecs: u32) -> Result {
        let vecs = vecs.min(bindings::BIO_MAX_VECS);
        // SAFETY: By the type invariants, `bdev` is valid.
        let bio = unsafe { c::mars_c_bio_new(self.bdev, vecs, self.opf, self.sector) };
        if bio.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: The bio is new and ours.
        unsafe {
            (*bio).bi_private = self.op.cast();
            (*bio).bi_end_io = Some(end_io::<T>);
        }
        // INVARIANT: A new bio with as many vectors.
        self.bio = bio;
        self.room = vecs;
        Ok(())
    }

    /// Adds memory; `ahead` is the number of vectors that others will need after it.
    ///
    /// # Safety
    ///
    /// The memory is part of a [`Buf`] and stays valid for the I/O as long as bios of `op` are in
    /// flight.
    unsafe fn add(&mut self, mut addr: *mut u8, mut len: u32, ahead: u32) -> Result {
        while len != 0 {
            let piece = len.min(Self::PIECE);
            // SAFETY: Only the address is looked at.
            let vecs = unsafe { c::mars_c_bio_vecs(addr.cast(), piece) };
            if !self.bio.is_null() && vecs > self.room {
                self.send();
            }
            if self.bio.is_null() {
                // The rest of this memory may need a vector for each page.
                let rest = len.saturating_sub(piece) >> PAGE_SHIFT;
                let wanted = vecs.saturating_add(ahead).saturating_add(rest);
                // SAFETY: There is none.
                unsafe { self.open(wanted)? };
            }
            // SAFETY: By the type invariants, the bio is not submitted yet; the memory is valid by
            // the safety requirements.
            if unsafe { c::mars_c_bio_add(self.bio, addr.cast(), piece) } != piece {
                return Err(EIO);
            }
            self.room = self.room.saturating_sub(vecs);
            self.sector = self.sector.saturating_add(u64::from(piece >> SECTOR_SHIFT));
            len = len.saturating_sub(piece);
            addr = addr.wrapping_add(usize::try_from(piece)?);
        }
        Ok(())
    }

    /// Adds zeros.
    ///
    /// # Safety
    ///
    /// There is no bio now.
    unsafe fn add_zeros(&mut self, mut len: u32) -> Result {
        while len != 0 {
            // SAFETY: There is none: none at first, and what was filled is sent below.
            unsafe { self.open(len.div_ceil(1 << PAGE_SHIFT))? };
            // SAFETY: The bio is open: valid, ours, and not submitted. The zeros stay.
            let piece = unsafe { c::mars_c_bio_add_zeros(self.bio, len) };
            if piece == 0 {
                return Err(EIO);
            }
            self.send();
            self.sector = self.sector.saturating_add(u64::from(piece >> SECTOR_SHIFT));
            len = len.saturating_sub(piece);
        }
        Ok(())
    }

    /// Submits what there is.
    fn send(&mut self) {
        if self.bio.is_null() {
            return;
        }
        // SAFETY: By the type invariants, the op is valid, and the bio is ours and not submitted
        // yet. It is counted, and `end_io` takes over.
        unsafe {
            (*self.op).remaining.fetch_add(1, Relaxed);
            bindings::submit_bio(self.bio);
        }
        // INVARIANT: It is not ours any more.
        self.bio = ptr::null_mut();
    }
}

impl<T> Drop for Next<T> {
    fn drop(&mut self) {
        if !self.bio.is_null() {
            // SAFETY: By the type invariants, the bio is ours and not submitted.
            unsafe { bindings::bio_put(self.bio) };
        }
    }
}

impl Frag {
    fn as_raw(&self) -> *mut u8 {
        self.buf.as_raw().wrapping_add(self.off)
    }

    fn vecs(&self) -> u32 {
        // SAFETY: Only the address is looked at.
        unsafe { c::mars_c_bio_vecs(self.as_raw().cast(), self.len) }
    }
}

impl<T> Op<T> {
    /// Notes an error, if there was none.
    ///
    /// # Safety
    ///
    /// `op` is valid and counted.
    unsafe fn fail(op: *mut Op<T>, errno: c_int) {
        // SAFETY: By the safety requirements.
        let _ = unsafe { (*op).error.cmpxchg(0, errno, Relaxed) };
    }

    /// Gives up one count. The last one hands `op` to the group's queue; it may be gone then. May
    /// be called in interrupts.
    ///
    /// # Safety
    ///
    /// `op` is valid and the caller's count is one of `remaining`.
    unsafe fn put(op: *mut Op<T>) {
        // SAFETY: By the safety requirements.
        if unsafe { (*op).remaining.fetch_sub(1, Full) } != 1 {
            return;
        }
        // SAFETY: By the type invariants, the group is valid while the op runs, that is until
        // `running` is counted down and the lock is released below.
        let inner = unsafe { (*op).group.as_ref() };
        let mut queue = inner.queue.lock();
        if queue.head.is_null() {
            queue.head = op;
        } else {
            // SAFETY: By the invariants of the queue, `tail` is a valid op of its own.
            unsafe { (*queue.tail).next = op };
        }
        // INVARIANT: The op is the last one, and its `next` is null since it was made.
        queue.tail = op;
        queue.running = queue.running.saturating_sub(1);
        if queue.running <= queue.wake_at {
            // Under the lock, because after it the group may be gone.
            // SAFETY: `finished` is a wait queue head by the invariants of the group.
            unsafe {
                bindings::__wake_up(
                    inner.finished.get(),
                    bindings::TASK_NORMAL,
                    0,
                    ptr::null_mut(),
                )
            };
        }
        if let Some(waker) = &inner.waker {
            waker.deref().wake();
        }
    }
}

/// End of one bio of an [`Op`]. Usually in an interrupt.
///
/// # Safety
///
/// Only called by the block layer, for a bio that [`Next::send`] submitted.
unsafe extern "C" fn end_io<T: Send>(bio: *mut bindings::bio) {
    // SAFETY: The bio is valid, and `bi_private` was set to its op, which is counted for the bio.
    // The bio is ours again, and put once.
    unsafe {
        let op = (*bio).bi_private.cast::<Op<T>>();
        let status = (*bio).bi_status;
        bindings::bio_put(bio);
        if status != 0 {
            Op::fail(op, bindings::blk_status_to_errno(status));
        }
        Op::put(op);
    }
}
