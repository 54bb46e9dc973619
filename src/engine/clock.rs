// SPDX-License-Identifier: GPL-2.0-or-later

//! The Lamport clock of this host: the rule is the core's, the time is the kernel's.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            AtomicFlag,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    }, //
};

use mars_core::lamport::{
    self,
    LamportTime, //
};

use crate::{
    engine::inject,
    sys::time, //
};

/// Shared Lamport clock. Any context that may take a spinlock, but no interrupt.
#[pin_data]
pub(crate) struct Clock {
    #[pin]
    inner: SpinLock<lamport::Clock>,
    /// See [`Self::trust`].
    trusted: AtomicFlag,
}

impl Clock {
    /// A clock that has seen nothing yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                inner <- new_spinlock!(lamport::Clock::new()),
                trusted: AtomicFlag::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// The wall clock.
    pub(crate) fn real() -> LamportTime {
        let (sec, nsec) = time::real_now();
        let sec = sec.saturating_add_signed(inject::skew!());
        LamportTime::new(sec, nsec).unwrap_or(LamportTime::ZERO)
    }

    /// A peer has told all it has, and nothing of it was too far ahead: this clock is not late. Or one was.
    pub(crate) fn trust(&self, trusted: bool) {
        self.trusted.store(trusted, Relaxed);
    }

    /// What was said of that last.
    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted.load(Relaxed)
    }

    /// A stamp for something that happens now: later than everything seen so far.
    pub(crate) fn now(&self) -> LamportTime {
        self.inner.lock().tick(Self::real())
    }

    /// Takes note of a stamp that came from elsewhere; `false` if it lies too far in the future to be believed.
    pub(crate) fn saw(&self, stamp: LamportTime) -> bool {
        self.inner.lock().advance(stamp, Self::real()).is_ok()
    }

    /// Takes note of a stamp in the own tree; looking twice does not move the clock.
    pub(crate) fn looked_at(&self, stamp: LamportTime) {
        let _ = self.inner.lock().advance_nonstrict(stamp, Self::real());
    }
}
