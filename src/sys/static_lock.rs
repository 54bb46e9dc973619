// SPDX-License-Identifier: GPL-2.0-or-later

//! A spinlock in a `static`, for what must be reachable from everywhere in the module.
//!
//! ```ignore
//! static LIST: StaticLock<KVec<u8>> = StaticLock::new();
//!
//! let _guard = LIST.set_up(KVec::new())?;     // the value goes away with it
//! LIST.with(|list| list.len());               // None before
//! ```
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use core::{
    cell::UnsafeCell,
    mem::MaybeUninit, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        new_spinlock,
        SpinLock, //
    },
};

const EMPTY: u32 = 0;
const BUSY: u32 = 1;
const READY: u32 = 2;

/// See the [module's description](self).
///
/// # Invariants
///
/// While `state` is `READY`, `lock` is initialised. It is so once and for ever, and it does not move, since only a
/// `&'static self` gets there.
pub(crate) struct StaticLock<T> {
    state: Atomic<u32>,
    lock: UnsafeCell<MaybeUninit<SpinLock<Option<T>>>>,
}

// SAFETY: The value is only reached through the spinlock, and the spinlock is written once, by whoever has brought `state`
// from `EMPTY` to `BUSY`, before others can see it.
unsafe impl<T: Send> Sync for StaticLock<T> {}

impl<T: Unpin> StaticLock<T> {
    /// Without a value.
    pub(crate) const fn new() -> Self {
        Self {
            state: Atomic::new(EMPTY),
            lock: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    fn get(&'static self) -> Option<&'static SpinLock<Option<T>>> {
        if self.state.load(Acquire) != READY {
            return None;
        }
        // SAFETY: By the type invariant it is initialised, and nobody writes there any more.
        Some(unsafe { (*self.lock.get()).assume_init_ref() })
    }

    /// Puts the value there until the result is dropped; `EBUSY` if there is one.
    pub(crate) fn set_up(&'static self, value: T) -> Result<SetUp<T>> {
        if self.state.cmpxchg(EMPTY, BUSY, Full).is_ok() {
            let slot = self.lock.get().cast::<SpinLock<Option<T>>>();
            // SAFETY: Nobody else is here, since `state` was `EMPTY`; `slot` is valid for writing and never moves, because
            // `self` is static.
            unsafe { pin_init::raw_init(slot, new_spinlock!(None)) };
            // INVARIANT: It was initialised just now.
            self.state.store(READY, Release);
        }
        let mut slot = self.get().ok_or(EBUSY)?.lock();
        if slot.is_some() {
            return Err(EBUSY);
        }
        *slot = Some(value);
        drop(slot);
        Ok(SetUp(self))
    }

    /// Calls `f` with the value, under the lock: `f` must not sleep. `None` if there is no value.
    pub(crate) fn with<R>(&'static self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        (*self.get()?.lock()).as_mut().map(f)
    }
}

/// Removes the value of a [`StaticLock`] when it is dropped.
pub(crate) struct SetUp<T: Unpin + 'static>(&'static StaticLock<T>);

impl<T: Unpin> Drop for SetUp<T> {
    fn drop(&mut self) {
        if let Some(lock) = self.0.get() {
            let old = (*lock.lock()).take();
            // Not under the lock: it may sleep.
            drop(old);
        }
    }
}
