// SPDX-License-Identifier: GPL-2.0-or-later

//! Payload memory: what bios, files and sockets read from and write to.
//!
//! C headers: [`include/linux/slab.h`](srctree/include/linux/slab.h),
//! [`include/linux/vmalloc.h`](srctree/include/linux/vmalloc.h)

use core::{
    marker::PhantomData,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull,
    slice, //
};

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    types::NotThreadSafe, //
};

use super::generated as c;

/// Owned memory that the block layer can address.
///
/// The memory starts at a multiple of 512, and at the start of a page if it is a page or longer.
///
/// Allocation never starts I/O (`GFP_NOIO`), so it may be used on the write path. Up to
/// [`Buf::PAGE`] it does not fail, but waits until there is memory; there is a small reserve for
/// that, which is filled again by the buffers that are dropped. Longer ones fail with `ENOMEM` when
/// memory is short: try it with shorter ones then.
///
/// Dropping a [`Buf`] is meant for task context; elsewhere the memory is given back later.
///
/// # Invariants
///
/// - If `len` is not 0, `ptr` was returned by `mars_c_buf_alloc(len, ..)`, which set `reserved`,
///   and this object owns all of it. If `len` is 0, `ptr` is dangling and nothing is owned.
/// - All `len` bytes are initialised.
/// - `counter`, if there is one, has `len` added.
pub(crate) struct Buf {
    ptr: NonNull<u8>,
    len: usize,
    reserved: bool,
    counter: Option<Arc<Atomic<usize>>>,
    _owns: PhantomData<u8>,
}

// SAFETY: A `Buf` owns its bytes, which may be used from any thread.
unsafe impl Send for Buf {}
// SAFETY: Shared references only give shared access to the bytes.
unsafe impl Sync for Buf {}

impl Buf {
    /// Longest possible buffer; it keeps all lengths within what a bio can count.
    pub(crate) const MAX: usize = 1 << 30;

    /// Longest buffer that can always be had.
    pub(crate) const PAGE: usize = PAGE_SIZE;

    /// Makes a buffer of `len` bytes, filled with zeros.
    ///
    /// Memory that was handed out by nobody else is zero in kernels that clear on allocation, as
    /// Debian's do, so this costs nothing beyond that. May sleep.
    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        let (ptr, reserved) = Self::alloc(len, true, true)?;

        // INVARIANT: `alloc` gives memory for `len`, filled with zeros.
        Ok(Self {
            ptr,
            len,
            reserved,
            counter: None,
            _owns: PhantomData,
        })
    }

    /// Makes a buffer of `len` bytes for somebody who will fill it. It contains zeros.
    pub(crate) fn new(len: usize) -> Result<Self> {
        Self::zeroed(len)
    }

    /// The same; as long as it lives, `counter` counts its bytes.
    pub(crate) fn counted(len: usize, counter: &Arc<Atomic<usize>>) -> Result<Self> {
        let mut buf = Self::new(len)?;
        counter.add(len, Relaxed);
        buf.counter = Some(counter.clone());
        Ok(buf)
    }

    /// Like [`new`](Self::new) for somebody who has another way: it fails when memory is short, whatever the length, and
    /// leaves the reserve to others.
    pub(crate) fn try_new(len: usize) -> Result<Self> {
        let (ptr, reserved) = Self::alloc(len, true, false)?;

        // INVARIANT: `alloc` gives memory for `len`, filled with zeros.
        Ok(Self {
            ptr,
            len,
            reserved,
            counter: None,
            _owns: PhantomData,
        })
    }

    /// Makes a buffer of `len` bytes which `fill` initialises. May sleep, but longer than a page it fails at once when memory
    /// is short.
    ///
    /// # Safety
    ///
    /// When `fill` returns, it has written all `len` bytes from the pointer on.
    pub(super) unsafe fn new_with(len: usize, fill: impl FnOnce(*mut u8)) -> Result<Self> {
        let (ptr, reserved) = Self::alloc(len, false, len <= Self::PAGE)?;
        fill(ptr.as_ptr());

        // INVARIANT: `alloc` gives memory for `len`; it is initialised by the safety requirements.
        Ok(Self {
            ptr,
            len,
            reserved,
            counter: None,
            _owns: PhantomData,
        })
    }

    /// Makes a buffer with a copy of `data`. May sleep.
    pub(crate) fn copy_of(data: &[u8]) -> Result<Self> {
        // SAFETY: The closure writes exactly `data.len()` bytes, for which the memory, which is
        // new and so does not overlap with `data`, has room.
        unsafe {
            Self::new_with(data.len(), |ptr| {
                ptr.copy_from_nonoverlapping(data.as_ptr(), data.len())
            })
        }
    }

    /// Memory, and whether it came from the reserve.
    fn alloc(len: usize, zero: bool, wait: bool) -> Result<(NonNull<u8>, bool)> {
        let mut reserved = false;
        if len == 0 {
            return Ok((NonNull::dangling(), reserved));
        }
        if len > Self::MAX {
            return Err(EINVAL);
        }
        // SAFETY: The function may be called with any length; `reserved` is valid for writes.
        let ptr = unsafe { c::mars_c_buf_alloc(len, zero, wait, &mut reserved) };
        Ok((NonNull::new(ptr.cast()).ok_or(ENOMEM)?, reserved))
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Start of the memory, for C.
    pub(super) fn as_raw(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the type invariants, `ptr` is valid and initialised for `len` bytes (or
        // dangling for none), and the borrow of `self` keeps everybody from writing.
        unsafe { slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: As in `deref`; the exclusive borrow of `self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Some(counter) = &self.counter {
            let _ = counter.fetch_sub(self.len, Relaxed);
        }
        if self.len != 0 {
            // SAFETY: By the type invariants, `ptr` was allocated like this and is owned.
            unsafe { c::mars_c_buf_free(self.ptr.as_ptr().cast(), self.len, self.reserved) };
        }
    }
}

/// While it lives, small allocations of this thread may take the kernel's last memory, and do not
/// wait for more.
///
/// For those who bring data to disk, as that is what makes memory free, and who hold locks which
/// they need: bounded in number, and given back soon. Guards are dropped in reverse order of their
/// making.
///
/// # Invariants
///
/// `flags` was returned by `memalloc_noreclaim_save` in this thread.
#[must_use = "the scope ends when the guard is dropped"]
pub(crate) struct Reserves {
    flags: c_uint,
    _not_send: NotThreadSafe,
}

impl Reserves {
    /// Opens the scope.
    pub(crate) fn enter() -> Self {
        // INVARIANT: As stated; `NotThreadSafe` keeps the object in this thread.
        Self {
            // SAFETY: Changes flags of the current task.
            flags: unsafe { c::mars_c_reserves_save() },
            _not_send: NotThreadSafe,
        }
    }
}

/// Bytes that all buffers have together.
pub(crate) fn bytes_in_use() -> usize {
    // SAFETY: Reads counters.
    unsafe { c::mars_c_buf_bytes() }
}

/// Whether this thread is about to make memory free (reclaim), and must not wait for any, nor for who may wait for it.
pub(crate) fn in_reclaim() -> bool {
    // SAFETY: Reads flags of the current task.
    unsafe { c::mars_c_in_reclaim() }
}

/// Whether this thread looks for memory that can be made free: there is too little. (Some threads that write have the rights of
/// reclaim all the time.)
pub(crate) fn reclaims() -> bool {
    // SAFETY: Reads a field of the current task.
    unsafe { c::mars_c_reclaims() }
}

impl Drop for Reserves {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { c::mars_c_reserves_restore(self.flags) };
    }
}
