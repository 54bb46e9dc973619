// SPDX-License-Identifier: GPL-2.0-or-later

//! Threads and events.

use crate::sys::{
    event::Event,
    thread::{NoIo, Thread, ThreadCtx},
    time::mono_ns,
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        new_mutex, Arc, Mutex,
    },
};

/// Counts how many there are.
struct Counted(Arc<Atomic<i32>>);

impl Counted {
    fn new(count: &Arc<Atomic<i32>>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn counter() -> Result<Arc<Atomic<i32>>> {
    Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
}

pub(crate) fn threads(ctx: &ThreadCtx, _: &CStr) -> Result {
    check!(!ctx.should_stop());
    // One that returns by itself, and is long gone when it is stopped.
    let count = ok!(counter());
    let held = Counted::new(&count);
    let thread = ok!(Thread::spawn(c"short", move |ctx| {
        let _held = held;
        assert!(!ctx.should_stop());
    }));
    while !thread.is_finished() {
        ctx.sleep_ms(1);
    }
    ctx.sleep_ms(20);
    check!(count.load(Relaxed) == 0);
    thread.request_stop();
    thread.request_stop();
    drop(thread);

    // One that sleeps long is stopped at once, by a request or by the drop.
    for request in [false, true] {
        let thread = ok!(Thread::spawn(c"sleeper", |ctx| {
            while !ctx.should_stop() {
                ctx.sleep_ms(1_000_000);
            }
        }));
        ctx.sleep_ms(20);
        check!(!thread.is_finished());
        let begin = mono_ns();
        if request {
            thread.request_stop();
            while !thread.is_finished() {
                ctx.sleep_ms(1);
            }
        }
        drop(thread);
        let passed = mono_ns() - begin;
        check!(passed < 1_000_000_000, passed);
    }
    // A stop flag tells others.
    let thread = ok!(Thread::spawn(c"flag", |ctx| {
        let flag = ctx.stop_flag();
        while !flag.is_set() {
            ctx.sleep_ms(1_000_000);
        }
    }));
    drop(thread);

    let outer = NoIo::enter();
    drop(NoIo::enter());
    drop(outer);
    Ok(())
}

/// Stopped at every possible moment, also before it ran for the first time.
pub(crate) fn stop_races(_: &ThreadCtx, _: &CStr) -> Result {
    let count = ok!(counter());
    let ran = ok!(counter());
    for round in 0..1000u32 {
        let (held, ran) = (Counted::new(&count), ran.clone());
        let thread = ok!(Thread::spawn(c"race", move |ctx| {
            let _held = held;
            ran.fetch_add(1, Relaxed);
            while round % 3 == 0 && !ctx.should_stop() {
                ctx.sleep_ms(1000);
            }
        }));
        for _ in 0..round % 7 * 1000 {
            core::hint::spin_loop();
        }
        if round % 2 == 0 {
            thread.request_stop();
        }
        drop(thread);
        check!(count.load(Relaxed) == 0, round);
    }
    let ran = ran.load(Relaxed);
    pr_info!(
        "selftest: {} of 1000 threads ran before they were stopped\n",
        ran
    );
    Ok(())
}

/// Requests stop many threads side by side.
pub(crate) fn stop_many(ctx: &ThreadCtx, _: &CStr) -> Result {
    let count = ok!(counter());
    let mut threads = KVec::new();
    for _ in 0..50 {
        let held = Counted::new(&count);
        let thread = ok!(Thread::spawn(c"many", move |ctx| {
            let _held = held;
            while !ctx.should_stop() {
                ctx.sleep_ms(1_000_000);
            }
            // Its work at the end takes a while.
            crate::sys::time::sleep_ms(100);
        }));
        ok!(threads.push(thread, GFP_KERNEL));
    }
    ctx.sleep_ms(50);
    let begin = mono_ns();
    for thread in &threads {
        thread.request_stop();
    }
    drop(threads);
    let passed = mono_ns() - begin;
    check!(passed < 2_500_000_000, passed);
    check!(count.load(Relaxed) == 0);
    Ok(())
}

/// Where a thread finds itself.
#[pin_data]
struct Slot {
    #[pin]
    thread: Mutex<Option<Thread>>,
}

/// A thread that drops the last reference of itself leaves by itself.
pub(crate) fn detach(ctx: &ThreadCtx, _: &CStr) -> Result {
    let count = ok!(counter());
    for _ in 0..100 {
        let slot = ok!(Arc::pin_init(
            pin_init!(Slot { thread <- new_mutex!(None) }),
            GFP_KERNEL
        ));
        let (held, inner) = (Counted::new(&count), slot.clone());
        let thread = ok!(Thread::spawn(c"detach", move |ctx| {
            let _held = held;
            loop {
                let thread = inner.thread.lock().take();
                if let Some(thread) = thread {
                    drop(thread);
                    break;
                }
                ctx.sleep_ms(1);
            }
            assert!(ctx.should_stop());
        }));
        *slot.thread.lock() = Some(thread);
    }
    for _ in 0..1000 {
        if count.load(Relaxed) == 0 {
            break;
        }
        ctx.sleep_ms(10);
    }
    check!(count.load(Relaxed) == 0);
    // The last instructions of their functions, before the module may go away, are secured by
    // its reference count, not by this.
    Ok(())
}

pub(crate) fn events(ctx: &ThreadCtx, _: &CStr) -> Result {
    let event = ok!(Event::shared());
    check!(!event.wait_timeout(0));
    let begin = mono_ns();
    check!(!event.wait_timeout(50));
    check!(!event.wait_timeout_us(2500));
    let passed = mono_ns() - begin;
    check!((47_000_000..2_000_000_000).contains(&passed), passed);
    // Several signals are one.
    event.signal();
    event.signal();
    check!(event.wait_timeout(u32::MAX));
    check!(!event.wait_timeout(0));
    event.signal();
    check!(event.wait_timeout(0));
    event.signal();
    check!(event.wait_timeout_us(0));
    check!(!event.wait_timeout_us(0));
    // A waiter is woken, with and without a limit.
    for limit in [u32::MAX, 100_000] {
        let inner = event.clone();
        let thread = ok!(Thread::spawn(c"waiter", move |_| {
            inner.wait_timeout(limit);
        }));
        ctx.sleep_ms(20);
        check!(!thread.is_finished());
        event.signal();
        while !thread.is_finished() {
            ctx.sleep_ms(1);
        }
    }
    // A stop ends the wait, and the signal remains for others.
    for exact in [false, true] {
        let inner = event.clone();
        let thread = ok!(Thread::spawn(c"waiter", move |_| {
            if exact {
                inner.wait_timeout_us(1_000_000_000);
            } else {
                inner.wait_timeout(u32::MAX);
            }
        }));
        ctx.sleep_ms(20);
        drop(thread);
    }
    Ok(())
}

/// No signal is lost: two threads play ping-pong, and many waiters take turns.
pub(crate) fn event_storm(_: &ThreadCtx, _: &CStr) -> Result {
    let (ping, pong) = (ok!(Event::shared()), ok!(Event::shared()));
    let (a, b) = (ping.clone(), pong.clone());
    let thread = ok!(Thread::spawn(c"pong", move |ctx| {
        while !ctx.should_stop() {
            if a.wait_timeout(u32::MAX) {
                b.signal();
            }
        }
    }));
    for round in 0..5000 {
        ping.signal();
        check!(pong.wait_timeout(20_000), round);
    }
    drop(thread);

    let event = ok!(Event::shared());
    let taken = ok!(counter());
    let mut threads = KVec::new();
    for i in 0..4 {
        let (event, taken) = (event.clone(), taken.clone());
        let thread = ok!(Thread::spawn(c"taker", move |ctx| {
            while !ctx.should_stop() {
                let got = if i % 2 == 0 {
                    event.wait_timeout(u32::MAX)
                } else {
                    event.wait_timeout_us(1_000_000)
                };
                if got {
                    taken.fetch_add(1, Relaxed);
                }
            }
        }));
        ok!(threads.push(thread, GFP_KERNEL));
    }
    for round in 0..1000 {
        event.signal();
        let begin = mono_ns();
        while taken.load(Relaxed) <= round {
            check!(mono_ns() - begin < 20_000_000_000, round);
            core::hint::spin_loop();
        }
        check!(taken.load(Relaxed) == round + 1, round);
    }
    Ok(())
}
