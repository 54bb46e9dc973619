// SPDX-License-Identifier: GPL-2.0-or-later

//! To be told before the machine goes down.
//!
//! C header: [`include/linux/reboot.h`](srctree/include/linux/reboot.h)

use super::generated;
use core::{marker::PhantomPinned, mem::offset_of, pin::Pin};
use kernel::{bindings, error::to_result, prelude::*, types::Opaque};

/// A callback before restart, halt or power off.
///
/// # Invariants
///
/// While it is registered, it does not move, and `block` belongs to the chain.
#[pin_data]
struct Inner {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    call: KBox<dyn Fn() + Send + Sync>,
    #[pin]
    _pinned: PhantomPinned,
}

/// The registration of a callback; ends when dropped.
///
/// # Invariants
///
/// `inner` is registered.
pub(crate) struct RebootNotifier {
    inner: Pin<KBox<Inner>>,
}

// SAFETY: The chain may be changed by any thread, and the callback is `Send`.
unsafe impl Send for RebootNotifier {}
// SAFETY: `&RebootNotifier` allows nothing.
unsafe impl Sync for RebootNotifier {}

/// Called by the chain.
///
/// # Safety
///
/// `block` is the one of an [`Inner`] that is registered.
unsafe extern "C" fn on_reboot(
    block: *mut bindings::notifier_block,
    _event: c_ulong,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: By the requirement of this function; `Opaque` has the address of what it holds. The
    // chain's lock keeps the registration, and with it `inner`, during the call.
    let inner = unsafe { &*block.byte_sub(offset_of!(Inner, block)).cast::<Inner>() };
    (inner.call)();
    0
}

impl RebootNotifier {
    /// Has `call` called before the machine goes down, in the task that does it; it may sleep, but
    /// everything waits for it. It may not drop this registration.
    pub(crate) fn register(call: impl Fn() + Send + Sync + 'static) -> Result<Self> {
        let call: KBox<dyn Fn() + Send + Sync> = KBox::new(call, GFP_KERNEL)?;
        let inner = KBox::pin_init(
            pin_init!(Inner {
                block: Opaque::new(bindings::notifier_block {
                    notifier_call: Some(on_reboot),
                    ..pin_init::zeroed()
                }),
                call,
                _pinned: PhantomPinned,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: `block` remains where it is until it is unregistered by `drop`.
        to_result(unsafe { generated::register_reboot_notifier(inner.block.get()) })?;
        // INVARIANT: It was registered just now.
        Ok(Self { inner })
    }
}

impl Drop for RebootNotifier {
    /// Waits for a call that is under way. Sleeps.
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { generated::unregister_reboot_notifier(self.inner.block.get()) };
    }
}
