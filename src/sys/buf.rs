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

use kernel::prelude::*;

use super::generated as c;

/// Owned memory that the block layer can address.
///
/// The memory starts at a multiple of 512, and at the start of a page if it is a page or longer.
/// Allocation never starts I/O (`GFP_NOIO`), so it may be used on the write path.
///
/// Dropping a [`Buf`] is meant for task context; elsewhere the memory is given back later.
///
/// # Invariants
///
/// - If `len` is not 0, `ptr` was returned by `mars_c_buf_alloc(len, ..)`, and this object owns
///   all of it. If `len` is 0, `ptr` is dangling and nothing is owned.
/// - All `len` bytes are initialised.
pub(crate) struct Buf {
    ptr: NonNull<u8>,
    len: usize,
    _owns: PhantomData<u8>,
}

// SAFETY: A `Buf` owns its bytes, which may be used from any thread.
unsafe impl Send for Buf {}
// SAFETY: Shared references only give shared access to the bytes.
unsafe impl Sync for Buf {}

impl Buf {
    /// Longest possible buffer; it keeps all lengths within what a bio can count.
    pub(crate) const MAX: usize = 1 << 30;

    /// Makes a buffer of `len` bytes, filled with zeros.
    ///
    /// Memory that was handed out by nobody else is zero in kernels that clear on allocation, as
    /// Debian's do, so this costs nothing beyond that. May sleep.
    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        let ptr = Self::alloc(len, true)?;

        // INVARIANT: `alloc` gives memory for `len`, filled with zeros.
        Ok(Self {
            ptr,
            len,
            _owns: PhantomData,
        })
    }

    /// Makes a buffer of `len` bytes for somebody who will fill it. It contains zeros.
    pub(crate) fn new(len: usize) -> Result<Self> {
        Self::zeroed(len)
    }

    /// Makes a buffer of `len` bytes which `fill` initialises. May sleep.
    ///
    /// # Safety
    ///
    /// When `fill` returns, it has written all `len` bytes from the pointer on.
    pub(super) unsafe fn new_with(len: usize, fill: impl FnOnce(*mut u8)) -> Result<Self> {
        let ptr = Self::alloc(len, false)?;
        fill(ptr.as_ptr());

        // INVARIANT: `alloc` gives memory for `len`; it is initialised by the safety requirements.
        Ok(Self {
            ptr,
            len,
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

    fn alloc(len: usize, zero: bool) -> Result<NonNull<u8>> {
        if len == 0 {
            return Ok(NonNull::dangling());
        }
        if len > Self::MAX {
            return Err(EINVAL);
        }
        // SAFETY: The function may be called with any length.
        let ptr = unsafe { c::mars_c_buf_alloc(len, zero) };
        NonNull::new(ptr.cast()).ok_or(ENOMEM)
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
        if self.len != 0 {
            // SAFETY: By the type invariants, `ptr` was allocated with this length and is owned.
            unsafe { c::mars_c_buf_free(self.ptr.as_ptr().cast(), self.len) };
        }
    }
}
