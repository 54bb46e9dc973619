// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/pipeline.rs`: the write buffer and what empties it.

use super::Host;
use crate::{
    defects::on,
    exec::{thread, Cond, Event, Ns, Thread, MS},
    fs::{Errno, Res},
};
use mars_core::{
    buffer::{Kind, LogPos, WriteBuffer, WritebackIo},
    replay::Admission,
    writeback,
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
};

/// Bytes that the buffer may hold.
const BUDGET: usize = 64 << 10;
/// Largest I/O.
const IO_BYTES: u32 = 8 << 10;

/// Payload bytes.
#[derive(Clone)]
pub struct Slice {
    /// The memory.
    pub buf: Rc<Vec<u8>>,
    /// First byte.
    pub off: u32,
}

impl Slice {
    /// A part of it.
    pub fn bytes(&self, from: u32, len: u32) -> &[u8] {
        let start = (self.off + from) as usize;
        &self.buf[start..start + len as usize]
    }
}

/// Called when somebody's flush has become durable.
pub type Waiter = Box<dyn FnOnce(bool)>;

/// What the engine has under a lock.
pub struct State {
    /// Records between admission and disk.
    pub buffer: WriteBuffer<Slice>,
    /// Who waits for durability.
    pub waiting: Vec<Waiter>,
    /// Write everything back as fast as possible.
    pub draining: bool,
    /// Write-back fails.
    pub disk_error: Option<Errno>,
    last_error: Ns,
    failures: u32,
    flush_failed: bool,
    /// Published last.
    pub published: Option<LogPos>,
    /// When the last record was admitted.
    admitted_at: Ns,
    /// Nothing is logged.
    pub unlogged: bool,
    /// Nothing is admitted for the moment.
    held: bool,
    /// Somebody waited because of that.
    held_up: bool,
    /// So much may be in the buffer, if that is less than its size.
    pub cap: usize,
}

impl State {
    /// Whether everything that was admitted would survive a loss of power, as far as that can be said without I/O.
    pub fn is_durable(&self) -> bool {
        self.buffer.undurable() == 0 && !self.unlogged
    }

    fn has_room(&self, len: usize) -> bool {
        !self.held && writeback::may_admit(self.buffer.bytes(), len, BUDGET.min(self.cap))
    }
}

/// Buffer of one backing disk.
pub struct Pipeline {
    h: Rc<Host>,
    state: RefCell<State>,
    changed: Cond,
    /// Wakes write-back.
    pub work: Event,
    /// Wakes the logger.
    pub log_work: Event,
    policy: writeback::Policy,
    in_flight: Cell<usize>,
    done: RefCell<VecDeque<(u64, bool)>>,
    reaped: Event,
}

/// What publishes a position.
pub type Publish = Box<dyn Fn(LogPos) -> Pin<Box<dyn Future<Output = bool>>>>;

impl Pipeline {
    /// An empty one.
    pub fn new(h: &Rc<Host>, policy: writeback::Policy) -> Rc<Self> {
        Rc::new(Self {
            h: h.clone(),
            policy,
            state: RefCell::new(State {
                buffer: WriteBuffer::new(),
                waiting: Vec::new(),
                draining: false,
                disk_error: None,
                last_error: 0,
                failures: 0,
                flush_failed: false,
                published: None,
                admitted_at: 0,
                unlogged: false,
                held: false,
                held_up: false,
                cap: usize::MAX,
            }),
            changed: Cond::default(),
            work: Event::default(),
            log_work: Event::default(),
            in_flight: Cell::new(0),
            done: RefCell::default(),
            reaped: Event::default(),
        })
    }

    /// Runs `f` under the lock.
    pub fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.borrow_mut())
    }

    /// Admits a record of a primary, waiting for room; without data, a range of `length` bytes becomes zero.
    pub async fn admit(
        &self,
        kind: Kind,
        (offset, length): (u64, u32),
        (stamp, crc): (u64, u32),
        data: Option<Rc<Vec<u8>>>,
        then: impl FnOnce(&mut State),
    ) {
        let room = data.as_ref().map_or(0, |d| d.len());
        loop {
            if self.with(|s| {
                s.held_up |= s.held;
                s.has_room(room)
            }) {
                break;
            }
            self.work.signal(&self.h.ex);
            self.log_work.signal(&self.h.ex);
            self.changed.wait(&self.h.ex, 1000 * MS).await;
        }
        let now = self.h.ex.now();
        let first = self.with(|s| {
            let data = data.map(|buf| Slice { buf, off: 0 });
            s.buffer
                .admit(kind, offset, length, stamp, crc, data)
                .expect("memory");
            s.admitted_at = now;
            then(s);
            s.buffer.untaken() == 1
        });
        if first {
            self.log_work.signal(&self.h.ex);
        }
    }

    /// Admits a record from a log, waiting for room.
    pub async fn admit_replayed(
        &self,
        a: &Admission,
        data: Option<Slice>,
        end: LogPos,
        stop: &Thread,
    ) -> Res<()> {
        while !self.with(|s| writeback::may_admit(s.buffer.bytes(), a.length as usize, BUDGET)) {
            if stop.should_stop() {
                return Err(Errno::Intr);
            }
            self.work.signal(&self.h.ex);
            self.changed.wait(&self.h.ex, 100 * MS).await;
        }
        let now = self.h.ex.now();
        let stamp = self.h.real().as_nanos();
        self.with(|s| {
            s.buffer
                .admit_durable(a.kind, a.offset, a.length, stamp, a.crc, data, end)
                .expect("memory");
            s.admitted_at = now;
        });
        Ok(())
    }

    /// Admits nothing until [`Self::let_go`].
    pub fn hold(&self) {
        self.with(|s| s.held = true);
    }

    /// Ends [`Self::hold`], and lets those who waited go first.
    pub async fn let_go(&self) {
        let waited = self.with(|s| {
            s.held = false;
            std::mem::take(&mut s.held_up)
        });
        self.changed.notify(&self.h.ex);
        if waited {
            self.h.sleep(MS).await;
        }
    }

    /// Waits until everything that was admitted is on the disk, durably; nothing may be admitted meanwhile.
    pub async fn write_all(&self) -> Res<()> {
        let since = self.h.ex.now();
        self.with(|s| s.draining = true);
        let done = loop {
            let (empty, error, undurable) = self.with(|s| {
                let error = s.disk_error.filter(|_| s.last_error > since);
                (s.buffer.is_empty(), error, s.buffer.undurable() > 0)
            });
            if empty {
                break Ok(());
            }
            if let Some(e) = error {
                break Err(e);
            }
            if undurable {
                break Err(Errno::Again);
            }
            self.work.signal(&self.h.ex);
            self.changed.wait(&self.h.ex, 20 * MS).await;
        };
        self.with(|s| s.draining = false);
        done
    }

    /// Waits until everything is written back, or it fails and `give_up` says so.
    pub async fn drain(&self, give_up: impl Fn() -> bool) -> Res<()> {
        self.with(|s| s.draining = true);
        let done = loop {
            let (empty, error) = self.with(|s| {
                let stuck = (s.buffer.undurable() > 0).then_some(Errno::Io);
                (s.buffer.is_empty(), s.disk_error.or(stuck))
            });
            if empty {
                break Ok(());
            }
            if let Some(e) = error {
                if give_up() {
                    break Err(e);
                }
            }
            self.work.signal(&self.h.ex);
            self.h.sleep(10 * MS).await;
        };
        self.with(|s| s.draining = false);
        done
    }
}

/// Starts the write-back thread.
pub fn spawn(pipe: &Rc<Pipeline>, publish: Publish) -> Rc<Thread> {
    let pipe = pipe.clone();
    let h = pipe.h.clone();
    thread(&h.ex.clone(), h.i, move |t| async move {
        run(&t, &pipe, &publish).await;
    })
}

async fn run(t: &Thread, pipe: &Rc<Pipeline>, publish: &Publish) {
    let h = &pipe.h;
    let mut last_flush = h.ex.now();
    let mut last_publish = last_flush;
    while !t.should_stop() {
        reap(pipe);
        let now = h.ex.now();
        let real = h.real().as_nanos();
        let mut plan = kernel::alloc::KVec::new();
        let decision = pipe.with(|s| {
            let view = writeback::View {
                dirty_bytes: s.buffer.bytes(),
                budget: BUDGET.min(s.cap),
                in_flight: pipe.in_flight.get(),
                draining: s.draining,
                failures: s.failures,
                landed_bytes: usize::try_from(s.buffer.landed_bytes()).expect("small"),
                all_landed: s.buffer.is_landed(),
                flushing: false,
                now_ns: now,
                last_flush_ns: last_flush,
                idle: s.buffer.undurable() == 0,
                last_admitted_ns: s.admitted_at,
                oldest_dirty_ns: s
                    .buffer
                    .oldest_dirty_stamp()
                    .map(|t| now.saturating_sub(real.saturating_sub(t))),
                last_error_ns: s.last_error,
                incoming_per_s: 0,
            };
            let d = writeback::decide(&view, &pipe.policy);
            if d.start > 0 {
                s.buffer.plan(IO_BYTES, d.start, &mut plan).expect("memory");
            }
            d
        });
        let started = plan.len();
        for io in plan.drain_all() {
            submit(pipe, io);
        }
        let mut news = now - last_publish >= pipe.policy.publish_ns;
        if decision.flush {
            last_flush = now;
            news |= flush(pipe).await;
        }
        if news {
            last_publish = h.ex.now();
            tell(pipe, publish).await;
        }
        if started == 0 {
            if pipe.in_flight.get() > 0 {
                pipe.reaped.wait(&h.ex, 50 * MS).await;
            } else {
                pipe.work
                    .wait(&h.ex, u64::from(decision.sleep_ms) * MS)
                    .await;
            }
        }
    }
    while pipe.in_flight.get() > 0 {
        pipe.reaped.wait(&h.ex, 1000 * MS).await;
        reap(pipe);
    }
    reap(pipe);
    flush(pipe).await;
    tell(pipe, publish).await;
}

fn reap(pipe: &Pipeline) {
    let mut any = false;
    while let Some((id, ok)) = pipe.done.borrow_mut().pop_front() {
        any = true;
        pipe.with(|s| {
            s.buffer.io_done(id, ok);
            if ok {
                succeeded(s);
            } else {
                failed(s, Errno::Io, pipe.h.ex.now());
            }
        });
    }
    if any {
        pipe.changed.notify(&pipe.h.ex);
    }
}

fn submit(pipe: &Rc<Pipeline>, io: WritebackIo<Slice>) {
    let mut data = Vec::with_capacity(io.length as usize);
    for f in &io.fragments {
        data.extend_from_slice(f.data.bytes(f.offset, f.length));
    }
    if io.fragments.is_empty() && on("zeros-lost") {
        // What is there stays.
        let (off, len) = (io.offset, io.length as usize);
        let off = usize::try_from(off).expect("small");
        data.extend_from_slice(&pipe.h.machine().disk.borrow().view()[off..off + len]);
    }
    data.resize(io.length as usize, 0);
    pipe.in_flight.set(pipe.in_flight.get() + 1);
    let p = pipe.clone();
    let (id, offset) = (io.id, io.offset);
    pipe.h.ex.spawn(pipe.h.i, async move {
        let r = p.h.write_disk(offset, data).await;
        p.done.borrow_mut().push_back((id, r.is_ok()));
        p.in_flight.set(p.in_flight.get() - 1);
        p.reaped.signal(&p.h.ex);
    });
}

fn failed(s: &mut State, e: Errno, now: Ns) {
    s.disk_error = Some(e);
    s.failures = s.failures.saturating_add(1);
    s.last_error = now;
}

fn succeeded(s: &mut State) {
    s.failures = 0;
    if !s.flush_failed && s.buffer.failing() == 0 {
        s.disk_error = None;
    }
}

/// Makes durable what was written up to now; whether it was.
async fn flush(pipe: &Pipeline) -> bool {
    if !pipe.with(|s| s.buffer.flush_begin()) {
        return false;
    }
    let r = if on("link-before-flush") {
        Ok(())
    } else {
        pipe.h.flush_disk().await
    };
    pipe.with(|s| {
        s.buffer.flush_end(r.is_ok());
        s.flush_failed = r.is_err();
        match r {
            Ok(()) => succeeded(s),
            Err(e) => failed(s, e, pipe.h.ex.now()),
        }
    });
    pipe.changed.notify(&pipe.h.ex);
    r.is_ok()
}

/// Lets the replay position move to where the disk is durable.
async fn tell(pipe: &Pipeline, publish: &Publish) {
    let mark = pipe.with(|s| s.buffer.written_position());
    if let Some(pos) = mark.filter(|_| mark != pipe.with(|s| s.published)) {
        if publish(pos).await {
            pipe.with(|s| s.published = mark);
        }
        pipe.changed.notify(&pipe.h.ex);
    }
}
