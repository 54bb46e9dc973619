// SPDX-License-Identifier: GPL-2.0-or-later

//! `Box`, see `rust/kernel/alloc/kbox.rs`.

use super::{
    allocator::{
        KVmalloc,
        Kmalloc,
        Vmalloc, //
    },
    AllocError,
    Allocator,
    Flags, //
};
use core::{
    fmt,
    marker::PhantomData,
    ops::{
        Deref,
        DerefMut, //
    },
};

/// The kernel's `Box`.
pub struct Box<T: ?Sized, A: Allocator>(std::boxed::Box<T>, PhantomData<A>);

/// A box from `kmalloc`.
pub type KBox<T> = Box<T, Kmalloc>;
/// A box from `vmalloc`.
pub type VBox<T> = Box<T, Vmalloc>;
/// A box from `kvmalloc`.
pub type KVBox<T> = Box<T, KVmalloc>;

impl<T, A: Allocator> Box<T, A> {
    /// Allocates a box with `x` in it.
    pub fn new(x: T, _flags: Flags) -> Result<Self, AllocError> {
        let size = core::mem::size_of::<T>();
        if size != 0 && (size > A::MAX || crate::inject::should_fail()) {
            return Err(AllocError);
        }
        Ok(Self(std::boxed::Box::new(x), PhantomData))
    }

    /// Moves the value out.
    pub fn into_inner(b: Self) -> T {
        *b.0
    }
}

impl<T: ?Sized, A: Allocator> Deref for Box<T, A> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized, A: Allocator> DerefMut for Box<T, A> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: ?Sized + fmt::Debug, A: Allocator> fmt::Debug for Box<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: ?Sized + fmt::Display, A: Allocator> fmt::Display for Box<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
