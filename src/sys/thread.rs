// SPDX-License-Identifier: GPL-2.0-or-later

//! Kernel threads that run a closure, and the no-I/O allocation scope.
//!
//! A thread is asked to stop without waiting by [`Thread::request_stop`], so that many threads
//! stop side by side, and is waited for when its [`Thread`] is dropped. Both end interruptible
//! waits (sleeps, [`Event`](super::event::Event), sockets) at once and for good: from then on each
//! such wait of this thread returns immediately.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use super::generated;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc,
    },
    types::{NotThreadSafe, ScopeGuard},
};

/// What a thread and its owner share.
struct Shared {
    /// The thread shall leave.
    stop: Atomic<bool>,
    /// The closure has returned.
    finished: Atomic<bool>,
    /// The thread dropped its own [`Thread`]: nobody waits for it.
    detached: Atomic<bool>,
}

/// What a new thread is given.
struct Start<F> {
    shared: Arc<Shared>,
    run: F,
}

/// A running or finished kernel thread; dropping it stops the thread and waits until it is gone.
///
/// # Invariants
///
/// * `task` is a kernel thread of which we own a reference.
/// * `start` points at the `Start<F>` that belongs to `drop_start`. It belongs to the thread from
///   the moment that its function is called, which `kthread_stop` tells us about.
pub(crate) struct Thread {
    task: NonNull<bindings::task_struct>,
    shared: Arc<Shared>,
    start: NonNull<c_void>,
    drop_start: unsafe fn(NonNull<c_void>),
}

// SAFETY: A `task_struct` may be used by any thread that owns a reference of it, and `start` is
// only touched by `drop`, after the thread is gone; `F` is `Send`.
unsafe impl Send for Thread {}
// SAFETY: `&Thread` only allows to wake the task and to use atomics.
unsafe impl Sync for Thread {}

/// What the closure of a thread knows about its thread.
pub(crate) struct ThreadCtx {
    shared: Arc<Shared>,
    _not_thread_safe: NotThreadSafe,
}

/// Frees a closure that never ran.
///
/// # Safety
///
/// `start` comes from `KBox<Start<F>>::into_raw`, and nobody else uses it any more.
unsafe fn drop_start<F>(start: NonNull<c_void>) {
    // SAFETY: By the requirement of this function.
    drop(unsafe { KBox::<Start<F>>::from_raw(start.as_ptr().cast()) });
}

/// The function of all our threads.
///
/// # Safety
///
/// `data` comes from `KBox<Start<F>>::into_raw` and is handed over.
unsafe extern "C" fn thread_main<F: FnOnce(&ThreadCtx) + Send + 'static>(
    data: *mut c_void,
) -> c_int {
    // SAFETY: By the requirement of this function.
    let start = unsafe { KBox::<Start<F>>::from_raw(data.cast()) };
    let Start { shared, run } = KBox::into_inner(start);
    // SAFETY: Sets flags of the current task.
    unsafe { generated::mars_c_thread_enter() };
    let ctx = ThreadCtx {
        shared,
        _not_thread_safe: NotThreadSafe,
    };
    run(&ctx);
    ctx.shared.finished.store(true, Release);
    let detached = ctx.shared.detached.load(Acquire);
    drop(ctx);
    if detached {
        // SAFETY: `Thread::drop` has taken a reference of the module for this call, and all values
        // of this function are dropped.
        unsafe { generated::mars_c_thread_exit_detached() };
    }
    0
}

impl Thread {
    /// Starts a thread. May sleep.
    ///
    /// The thread allocates without waiting for I/O (`PF_MEMALLOC_NOIO`).
    pub(crate) fn spawn<F: FnOnce(&ThreadCtx) + Send + 'static>(
        name: &CStr,
        run: F,
    ) -> Result<Self> {
        let shared = Arc::new(
            Shared {
                stop: Atomic::new(false),
                finished: Atomic::new(false),
                detached: Atomic::new(false),
            },
            GFP_KERNEL,
        )?;
        let start = KBox::new(
            Start {
                shared: shared.clone(),
                run,
            },
            GFP_KERNEL,
        )?;
        let start = ScopeGuard::new_with_data(KBox::into_raw(start), |start| {
            // SAFETY: Comes from `into_raw` above, and there is no thread that would use it.
            drop(unsafe { KBox::from_raw(start) })
        });
        // SAFETY: The format takes one string. `start` is what `thread_main::<F>` requires; when
        // no thread is returned, then it is never called.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(thread_main::<F>),
                (*start).cast(),
                bindings::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        })?;
        let task = NonNull::new(task).ok_or(ENOMEM)?;
        // SAFETY: The thread waits for its first wake-up, so `task` is valid. With the reference,
        // it remains so after the thread has left.
        unsafe {
            bindings::get_task_struct(task.as_ptr());
            bindings::wake_up_process(task.as_ptr());
        }
        let start = NonNull::new(start.dismiss().cast()).ok_or(ENOMEM)?;
        // INVARIANT: The reference was taken above; `start` is a `Start<F>`.
        Ok(Self {
            task,
            shared,
            start,
            drop_start: drop_start::<F>,
        })
    }

    /// Asks the thread to leave, without waiting. Callable from any context that may wake tasks.
    pub(crate) fn request_stop(&self) {
        self.shared.stop.store(true, Release);
        // SAFETY: By the type invariant. Waking is a full barrier, and the flag was set before.
        unsafe { generated::mars_c_thread_hint(self.task.as_ptr()) };
    }

    /// Whether the closure has returned. The thread itself may exist a little longer.
    pub(crate) fn is_finished(&self) -> bool {
        self.shared.finished.load(Acquire)
    }
}

impl Drop for Thread {
    /// Stops the thread and waits for its end. Sleeps.
    ///
    /// A thread that drops its own `Thread` cannot wait for itself: it goes on with its stop flag
    /// set and holds the module until it leaves. (While the module is being removed, this must
    /// not happen; owners of threads belong to other threads.)
    fn drop(&mut self) {
        self.shared.stop.store(true, Release);
        // SAFETY: By the type invariant.
        if unsafe { generated::mars_c_thread_is_current(self.task.as_ptr()) } {
            self.shared.detached.store(true, Release);
            // SAFETY: We give away our reference of the task. It remains valid, as it is running;
            // it sees `detached` and then returns the module's reference.
            unsafe { generated::mars_c_thread_detach(self.task.as_ptr()) };
            return;
        }
        // SAFETY: By the type invariant; the reference is given up.
        let result = unsafe { bindings::kthread_stop_put(self.task.as_ptr()) };
        // `thread_main` returns 0. If it was never called, then the thread's result is `-EINTR`.
        if result == EINTR.to_errno() {
            // SAFETY: The thread is gone and never had the closure.
            unsafe { (self.drop_start)(self.start) };
        }
    }
}

impl ThreadCtx {
    /// Whether the thread shall leave.
    pub(crate) fn should_stop(&self) -> bool {
        // SAFETY: `self` is not `Send` and lives on the stack of a kernel thread.
        self.shared.stop.load(Acquire) || unsafe { bindings::kthread_should_stop() }
    }

    /// Sleeps; returns early when the thread shall stop.
    pub(crate) fn sleep_ms(&self, ms: u32) {
        if !self.should_stop() {
            // SAFETY: A thread may sleep. A stop between the check and the call ends it at once.
            unsafe { bindings::msleep_interruptible(ms) };
        }
    }

    /// A handle to ask the same things elsewhere, for example in a callback of another thread.
    pub(crate) fn stop_flag(&self) -> StopFlag {
        StopFlag {
            shared: self.shared.clone(),
        }
    }
}

/// Tells anywhere whether a thread was asked to stop.
#[derive(Clone)]
pub(crate) struct StopFlag {
    shared: Arc<Shared>,
}

impl StopFlag {
    /// Whether [`Thread::request_stop`] was called or the [`Thread`] is being dropped.
    pub(crate) fn is_set(&self) -> bool {
        self.shared.stop.load(Relaxed)
    }
}

/// While it lives, allocations of this thread never wait for I/O (`GFP_NOIO`).
///
/// Guards are dropped in reverse order of their making. Threads of [`Thread::spawn`] need none.
#[must_use = "the scope ends when the guard is dropped"]
pub(crate) struct NoIo {
    flags: c_uint,
    _not_thread_safe: NotThreadSafe,
}

impl NoIo {
    /// Opens the scope.
    pub(crate) fn enter() -> Self {
        // SAFETY: Changes flags of the current task.
        let flags = unsafe { generated::mars_c_noio_save() };
        Self {
            flags,
            _not_thread_safe: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: `flags` comes from `mars_c_noio_save` of the same task, as `Self` is not `Send`.
        unsafe { generated::mars_c_noio_restore(self.flags) };
    }
}

/// While it lives, allocations of this thread may take a part of the memory that the kernel keeps for those who are in a
/// hurry. Does nothing in tasks that are not kernel threads.
///
/// For the functions of file systems: who waits for memory in one of them holds a transaction, for which all others wait that
/// write there, among them those who make memory free. Guards are dropped in reverse order of their making, before anything
/// that takes long.
#[must_use = "the scope ends when the guard is dropped"]
pub(crate) struct Urgent {
    entered: bool,
    _not_thread_safe: NotThreadSafe,
}

impl Urgent {
    /// Opens the scope.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: Changes the current task, if it is a kernel thread.
            entered: unsafe { generated::mars_c_urgent_enter() },
            _not_thread_safe: NotThreadSafe,
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if self.entered {
            // SAFETY: This task entered it, as `Self` is not `Send`.
            unsafe { generated::mars_c_urgent_leave() };
        }
    }
}
