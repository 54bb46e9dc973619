// SPDX-License-Identifier: GPL-2.0-or-later

//! Allocation, see `rust/kernel/alloc.rs`.

mod kbox;
mod kvec;

pub use self::kbox::{
    Box,
    KBox,
    KVBox,
    VBox, //
};
pub use self::kvec::{
    DrainAll,
    InsertError,
    KVVec,
    KVec,
    PushError,
    RemoveError,
    VVec,
    Vec, //
};

/// Indicates an allocation error.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct AllocError;

/// Which of the kernel's allocators: here only a name.
pub mod allocator {
    /// `kmalloc`: contiguous, at most some MiB.
    #[derive(Debug)]
    pub struct Kmalloc;
    /// `vmalloc`: for big areas.
    #[derive(Debug)]
    pub struct Vmalloc;
    /// `kvmalloc`: the first if possible, else the second.
    #[derive(Debug)]
    pub struct KVmalloc;
}

/// An allocator of the kernel.
pub trait Allocator {
    /// The largest single allocation in bytes.
    const MAX: usize;
}

impl Allocator for allocator::Kmalloc {
    // KMALLOC_MAX_SIZE of x86-64: the largest order is 10.
    const MAX: usize = 4 << 20;
}

impl Allocator for allocator::Vmalloc {
    const MAX: usize = isize::MAX.unsigned_abs();
}

impl Allocator for allocator::KVmalloc {
    const MAX: usize = isize::MAX.unsigned_abs();
}

/// Flags to be used when allocating memory.
#[derive(Clone, Copy, PartialEq)]
pub struct Flags(u32);

impl Flags {
    /// Check whether `flags` is contained in `self`.
    pub fn contains(self, flags: Flags) -> bool {
        (self & flags) == flags
    }
}

impl core::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl core::ops::BitAnd for Flags {
    type Output = Self;
    fn bitand(self, rhs: Self) -> Self {
        Self(self.0 & rhs.0)
    }
}

impl core::ops::Not for Flags {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// Allocation flags.
pub mod flags {
    use super::Flags;

    /// Zeroes out the allocated memory.
    pub const __GFP_ZERO: Flags = Flags(0x100);
    /// Allow the allocation to be in high memory.
    pub const __GFP_HIGHMEM: Flags = Flags(0x2);
    /// Users can not sleep and need the allocation to succeed.
    pub const GFP_ATOMIC: Flags = Flags(0x820);
    /// Typical for kernel-internal allocations.
    pub const GFP_KERNEL: Flags = Flags(0xcc0);
    /// The same, accounted to kmemcg.
    pub const GFP_KERNEL_ACCOUNT: Flags = Flags(0x40_0cc0);
    /// Does not stall for direct reclaim; is likely to fail.
    pub const GFP_NOWAIT: Flags = Flags(0x2800);
    /// Suppresses allocation failure reports.
    pub const __GFP_NOWARN: Flags = Flags(0x2000);
}
