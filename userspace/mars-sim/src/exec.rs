// SPDX-License-Identifier: GPL-2.0-or-later

//! The event loop: tasks, simulated time, and what tasks wait for.
//!
//! One thread of the engine is one task here, an `async` function that looks like the thread's code; wherever the thread
//! could sleep, the task awaits. So everything runs in one thread and in an order that only depends on the seed, any task
//! can be stopped at any such point, and a crash of a host is: drop all of its tasks.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
    future::{poll_fn, Future},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Simulated nanoseconds since the start.
pub type Ns = u64;
/// A millisecond.
pub const MS: Ns = 1_000_000;
/// A second.
pub const SEC: Ns = 1_000_000_000;

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    work: Option<Work>,
    owner: usize,
    /// Counts polls: a timer that was set before the last one is out of date.
    epoch: u32,
    alive: bool,
}

/// Owner of the tasks that belong to no host.
pub const WORLD: usize = usize::MAX;

type Entry = Reverse<(Ns, u64, u32, u32)>;

/// The loop.
#[derive(Default)]
pub struct Exec {
    now: Cell<Ns>,
    seq: Cell<u64>,
    heap: RefCell<BinaryHeap<Entry>>,
    tasks: RefCell<Vec<Task>>,
    free: RefCell<Vec<u32>>,
    current: Cell<(u32, u32)>,
    polls: Cell<u64>,
}

impl Exec {
    /// Time now.
    pub fn now(&self) -> Ns {
        self.now.get()
    }

    /// How many steps were taken.
    pub fn polls(&self) -> u64 {
        self.polls.get()
    }

    fn push(&self, at: Ns, task: u32, epoch: u32) {
        let seq = self.seq.get() + 1;
        self.seq.set(seq);
        self.heap
            .borrow_mut()
            .push(Reverse((at.max(self.now.get()), seq, task, epoch)));
    }

    /// Starts a task.
    pub fn spawn(&self, owner: usize, work: impl Future<Output = ()> + 'static) {
        let task = Task {
            work: Some(Box::pin(work)),
            owner,
            epoch: 0,
            alive: true,
        };
        let mut tasks = self.tasks.borrow_mut();
        let id = match self.free.borrow_mut().pop() {
            Some(id) => {
                let slot = &mut tasks[id as usize];
                let epoch = slot.epoch + 1;
                *slot = Task { epoch, ..task };
                id
            }
            None => {
                tasks.push(task);
                u32::try_from(tasks.len() - 1).expect("few tasks")
            }
        };
        let epoch = tasks[id as usize].epoch;
        drop(tasks);
        self.push(self.now(), id, epoch);
    }

    /// Drops all tasks of an owner, at once and without their agreement.
    pub fn kill(&self, owner: usize) {
        let mut dead = Vec::new();
        for (id, t) in (0u32..).zip(self.tasks.borrow_mut().iter_mut()) {
            if t.alive && t.owner == owner {
                t.alive = false;
                t.epoch += 1;
                dead.extend(t.work.take());
                self.free.borrow_mut().push(id);
            }
        }
        // Their destructors may look at the loop.
        drop(dead);
    }

    /// Takes the next step; `false` if there is none before `until`.
    pub fn step(&self, until: Ns) -> bool {
        let (task, epoch) = loop {
            let mut heap = self.heap.borrow_mut();
            let Some(&Reverse((at, _, task, epoch))) = heap.peek() else {
                return false;
            };
            if at > until {
                return false;
            }
            heap.pop();
            let tasks = self.tasks.borrow();
            let t = &tasks[task as usize];
            if t.alive && t.epoch == epoch {
                self.now.set(at);
                break (task, epoch);
            }
        };
        self.polls.set(self.polls.get() + 1);
        let epoch = epoch + 1;
        let work = {
            let mut tasks = self.tasks.borrow_mut();
            let t = &mut tasks[task as usize];
            t.epoch = epoch;
            t.work.take()
        };
        let Some(mut work) = work else { return true };
        self.current.set((task, epoch));
        let done = work
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready();
        let mut tasks = self.tasks.borrow_mut();
        let t = &mut tasks[task as usize];
        if t.alive && t.epoch == epoch {
            if done {
                t.alive = false;
                self.free.borrow_mut().push(task);
            } else {
                t.work = Some(work);
                return true;
            }
        }
        drop(tasks);
        drop(work);
        true
    }

    /// Time passes without anything that happens.
    pub fn advance(&self, to: Ns) {
        self.now.set(self.now.get().max(to));
    }

    fn timer(&self, at: Ns) {
        let (task, epoch) = self.current.get();
        self.push(at, task, epoch);
    }

    /// Waits so long.
    pub fn sleep(self: &Rc<Self>, ns: Ns) -> impl Future<Output = ()> {
        let ex = self.clone();
        let until = ex.now() + ns;
        poll_fn(move |_| {
            if ex.now() >= until {
                return Poll::Ready(());
            }
            ex.timer(until);
            Poll::Pending
        })
    }
}

/// Waits for ever: what a task does whose host has just crashed.
pub async fn never() {
    poll_fn(|_| Poll::<()>::Pending).await;
}

/// A condition that tasks wait for, together with a time limit.
#[derive(Default)]
pub struct Cond {
    count: Cell<u64>,
    waiters: RefCell<Vec<(u32, u32)>>,
}

impl Cond {
    /// Wakes all who wait.
    pub fn notify(&self, ex: &Exec) {
        self.count.set(self.count.get() + 1);
        for (task, epoch) in self.waiters.borrow_mut().drain(..) {
            ex.push(ex.now(), task, epoch);
        }
    }

    /// Waits for a [`Cond::notify`] that comes after this call; `false` after `ns`.
    pub async fn wait(&self, ex: &Rc<Exec>, ns: Ns) -> bool {
        let seen = self.count.get();
        let until = ex.now().saturating_add(ns);
        poll_fn(|_| {
            if self.count.get() != seen {
                return Poll::Ready(true);
            }
            if ex.now() >= until {
                return Poll::Ready(false);
            }
            self.waiters.borrow_mut().push(ex.current.get());
            ex.timer(until);
            Poll::Pending
        })
        .await
    }
}

/// A signal that is not lost if it comes before the wait (`sys::event`).
#[derive(Default)]
pub struct Event {
    set: Cell<bool>,
    cond: Cond,
}

impl Event {
    /// Signals.
    pub fn signal(&self, ex: &Exec) {
        self.set.set(true);
        self.cond.notify(ex);
    }

    /// Waits for a signal; `false` after `ns`.
    pub async fn wait(&self, ex: &Rc<Exec>, ns: Ns) -> bool {
        if !self.set.get() {
            self.cond.wait(ex, ns).await;
        }
        self.set.replace(false)
    }
}

/// A sleeping lock.
#[derive(Default)]
pub struct Lock {
    held: Rc<Cell<bool>>,
    cond: Rc<Cond>,
}

/// The lock is held until this is dropped.
pub struct Guard {
    held: Rc<Cell<bool>>,
    cond: Rc<Cond>,
    ex: Rc<Exec>,
}

impl Lock {
    /// Takes the lock.
    pub async fn lock(&self, ex: &Rc<Exec>) -> Guard {
        while self.held.get() {
            self.cond.wait(ex, SEC).await;
        }
        self.held.set(true);
        Guard {
            held: self.held.clone(),
            cond: self.cond.clone(),
            ex: ex.clone(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.held.set(false);
        self.cond.notify(&self.ex);
    }
}

/// A task that was asked to stop, and that somebody waits for (`sys::thread`).
#[derive(Default)]
pub struct Thread {
    stop: Cell<bool>,
    done: Cell<bool>,
    ended: Cond,
    /// Wakes it out of a sleep that may be interrupted.
    wake: Cond,
}

impl Thread {
    /// Whether it is to stop.
    pub fn should_stop(&self) -> bool {
        self.stop.get()
    }

    /// Sleeps, but not beyond a request to stop.
    pub async fn sleep(&self, ex: &Rc<Exec>, ns: Ns) {
        if !self.stop.get() {
            self.wake.wait(ex, ns).await;
        }
    }

    /// Asks it to stop.
    pub fn request_stop(&self, ex: &Exec) {
        self.stop.set(true);
        self.wake.notify(ex);
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(&self, ex: &Rc<Exec>) {
        self.request_stop(ex);
        while !self.done.get() {
            self.ended.wait(ex, SEC).await;
        }
    }
}

/// Starts a thread of `owner`.
pub fn thread<F: Future<Output = ()> + 'static>(
    ex: &Rc<Exec>,
    owner: usize,
    body: impl FnOnce(Rc<Thread>) -> F,
) -> Rc<Thread> {
    let t = Rc::new(Thread::default());
    let work = body(t.clone());
    let (t2, ex2) = (t.clone(), ex.clone());
    ex.spawn(owner, async move {
        work.await;
        t2.done.set(true);
        t2.ended.notify(&ex2);
    });
    t
}
