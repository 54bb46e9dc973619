// SPDX-License-Identifier: GPL-2.0-or-later

//! The Lamport clock of this host: the rule is the core's, the time is the kernel's.

use kernel::{
    prelude::*,
    sync::{
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

/// The wall clock was set when it has jumped by so much.
const SET_SECS: u64 = 60;

struct State {
    lamport: lamport::Clock,
    /// Seconds from the start of this host to now, as the wall clock has them.
    offset: u64,
    /// See [`Clock::right_since`].
    right_since: LamportTime,
    /// See [`Clock::trust`].
    trusted: bool,
}

impl State {
    /// Takes note if somebody has set the wall clock.
    fn look(&mut self, real: LamportTime) {
        let offset = offset(real);
        if offset.abs_diff(self.offset) > SET_SECS {
            self.offset = offset;
            self.right_since = real;
            self.trusted = false;
        }
    }
}

/// Seconds from the start of this host to `real`.
fn offset(real: LamportTime) -> u64 {
    let up = time::mono_ns().checked_div(1_000_000_000).unwrap_or(0);
    real.sec().saturating_sub(up)
}

/// Whether two times from [`Clock::offset`] have to do with different settings of the wall clock.
pub(crate) fn was_set(a: u64, b: u64) -> bool {
    a.abs_diff(b) > SET_SECS
}

/// Shared Lamport clock. Any context that may take a spinlock, but no interrupt.
#[pin_data]
pub(crate) struct Clock {
    #[pin]
    inner: SpinLock<State>,
}

impl Clock {
    /// A clock that has seen nothing yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let real = Self::real();
        let state = State {
            lamport: lamport::Clock::new(),
            offset: offset(real),
            right_since: real,
            trusted: false,
        };
        Arc::pin_init(
            pin_init!(Self {
                inner <- new_spinlock!(state),
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

    /// Seconds from the start of this host to now, as the wall clock has them: changes when somebody sets that.
    pub(crate) fn offset() -> u64 {
        offset(Self::real())
    }

    /// Since when the wall clock is what it is: since the module was loaded, or somebody set it.
    pub(crate) fn right_since(&self) -> LamportTime {
        let real = Self::real();
        let mut state = self.inner.lock();
        state.look(real);
        state.right_since
    }

    /// A peer has told all it has, and its clock is not too far ahead: this one is not late. Or one is.
    pub(crate) fn trust(&self, trusted: bool) {
        let real = Self::real();
        let mut state = self.inner.lock();
        state.look(real);
        state.trusted = trusted;
        if trusted {
            state.lamport.correct(real);
        }
    }

    /// What was said of that last, if nobody has set the wall clock since.
    pub(crate) fn is_trusted(&self) -> bool {
        let real = Self::real();
        let mut state = self.inner.lock();
        state.look(real);
        state.trusted
    }

    /// A stamp for something that happens now: later than everything seen so far.
    pub(crate) fn now(&self) -> LamportTime {
        self.inner.lock().lamport.tick(Self::real())
    }

    /// Takes note of a stamp that came from elsewhere; `false` if it lies too far in the future to be believed.
    pub(crate) fn saw(&self, stamp: LamportTime) -> bool {
        self.inner
            .lock()
            .lamport
            .advance(stamp, Self::real())
            .is_ok()
    }

    /// Takes note of a stamp in the own tree; looking twice does not move the clock.
    pub(crate) fn looked_at(&self, stamp: LamportTime) {
        let _ = self
            .inner
            .lock()
            .lamport
            .advance_nonstrict(stamp, Self::real());
    }
}
