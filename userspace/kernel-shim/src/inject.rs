// SPDX-License-Identifier: GPL-2.0-or-later

//! Injection of allocation failures, per thread.
//!
//! A kernel must survive that any allocation fails. [`for_each_failure`] runs a scenario again and
//! again and lets the first, the second, … allocation fail once, until a run needs no more.

use std::cell::Cell;

#[derive(Clone, Copy)]
enum Plan {
    /// All succeed.
    Off,
    /// The allocation after so many successful ones fails, the next ones succeed.
    Once(u64),
    /// From the allocation after so many successful ones on, all fail.
    From(u64),
}

thread_local! {
    static PLAN: Cell<Plan> = const { Cell::new(Plan::Off) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static FAILED: Cell<u64> = const { Cell::new(0) };
}

/// Called by everything that allocates: whether this allocation is to fail.
pub fn should_fail() -> bool {
    COUNT.with(|c| c.set(c.get().wrapping_add(1)));
    let fail = PLAN.with(|plan| match plan.get() {
        Plan::Off => false,
        Plan::Once(0) => {
            plan.set(Plan::Off);
            true
        }
        Plan::From(0) => true,
        Plan::Once(n) => {
            plan.set(Plan::Once(n.saturating_sub(1)));
            false
        }
        Plan::From(n) => {
            plan.set(Plan::From(n.saturating_sub(1)));
            false
        }
    });
    if fail {
        FAILED.with(|c| c.set(c.get().wrapping_add(1)));
    }
    fail
}

/// Lets `n` allocations succeed and all later ones fail; `None` ends the injection.
pub fn fail_after(n: Option<u64>) {
    PLAN.with(|plan| plan.set(n.map_or(Plan::Off, Plan::From)));
}

/// Lets `n` allocations succeed and the next one fail, once.
pub fn fail_once_after(n: u64) {
    PLAN.with(|plan| plan.set(Plan::Once(n)));
}

/// How many allocations this thread has asked for.
pub fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

/// How many allocations of this thread were made to fail.
pub fn failures() -> u64 {
    FAILED.with(Cell::get)
}

/// Ends the injection also when a test panics.
struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        fail_after(None);
    }
}

/// Runs `scenario` with its first allocation failing, then with its second, and so on, until a
/// run completes without having met the failure. Returns the number of allocations tried.
///
/// The scenario must not panic and must not take a failed allocation for success; that is for it
/// to check. It must be deterministic.
pub fn for_each_failure(mut scenario: impl FnMut()) -> u64 {
    let _reset = Reset;
    let mut n = 0;
    loop {
        let before = failures();
        fail_once_after(n);
        scenario();
        fail_after(None);
        if failures() == before {
            return n;
        }
        n = n.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::{
        flags::GFP_KERNEL,
        KVec, //
    };

    #[test]
    fn each_allocation_fails_once() {
        let mut outcomes = Vec::new();
        let n = for_each_failure(|| {
            let mut first = KVec::new();
            let mut second = KVec::new();
            outcomes.push((
                first.push(1u8, GFP_KERNEL).is_ok(),
                second.push(1u8, GFP_KERNEL).is_ok(),
            ));
        });
        assert_eq!(n, 2);
        assert_eq!(outcomes, [(false, true), (true, false), (true, true)]);
    }
}
