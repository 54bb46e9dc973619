// SPDX-License-Identifier: GPL-2.0-or-later

//! An event that threads wait for: set by anybody, taken by one waiter.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use super::generated;
use kernel::{bindings, prelude::*, sync::Arc, types::Opaque};

/// An auto-reset event.
///
/// [`Event::signal`] sets it, and one waiter takes it; signals that nobody took yet are one.
///
/// # Invariants
///
/// `queue` is an initialised wait queue; `set` is only accessed by the functions of `helpers.c`,
/// atomically.
#[pin_data]
pub(crate) struct Event {
    #[pin]
    queue: Opaque<bindings::wait_queue_head>,
    set: Opaque<c_uint>,
}

// SAFETY: A wait queue is bound to no thread.
unsafe impl Send for Event {}
// SAFETY: Wait queues are locked inside, and `set` is accessed atomically.
unsafe impl Sync for Event {}

impl Event {
    /// An event that is not set.
    pub(crate) fn new() -> impl PinInit<Self> {
        // INVARIANT: The queue is initialised here.
        pin_init!(Self {
            queue <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid memory for a wait queue.
                unsafe { generated::mars_c_event_init(slot) }
            }),
            set: Opaque::new(0),
        })
    }

    /// An event of its own in memory. May sleep.
    pub(crate) fn shared() -> Result<Arc<Self>> {
        Arc::pin_init(Self::new(), GFP_KERNEL)
    }

    /// Sets the event. Callable from every context, also from interrupts.
    pub(crate) fn signal(&self) {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_event_signal(self.queue.get(), self.set.get()) };
    }

    /// Waits until the event is set and takes it. Sleeps.
    ///
    /// Returns `false` when `ms` milliseconds have passed or the thread shall stop. `u32::MAX`
    /// waits without a limit, 0 not at all. Limits are counted in
    /// timer ticks: up to 4 ms less or more.
    pub(crate) fn wait_timeout(&self, ms: u32) -> bool {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_event_wait(self.queue.get(), self.set.get(), ms) }
    }

    /// Like [`Event::wait_timeout`], for short and exact times of up to an hour. Sleeps.
    pub(crate) fn wait_timeout_us(&self, us: u64) -> bool {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_event_wait_us(self.queue.get(), self.set.get(), us) }
    }
}
