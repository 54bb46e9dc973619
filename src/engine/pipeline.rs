// SPDX-License-Identifier: GPL-2.0-or-later

//! The write buffer and what empties it: admission, write-back, publication of the replay position.
//!
//! One [`Pipeline`] serves one backing disk in one role. On a primary the device admits writes and the logger reports them
//! durable; in replay and recovery the records come from a log and are durable from the start. Everything after that is
//! the same: a write-back thread ([`run`]) takes what the plan of the core gives, in device order, flushes the disk from
//! time to time, and only then lets the replay position move.
//!
//! Lock order: `Pipeline::state` is a leaf of the engine; nothing but the wait queues of this file is taken under it, and
//! no I/O is done under it. It is a sleeping lock: never taken in an interrupt.

use kernel::{
    prelude::*,
    sync::{
        new_condvar,
        new_mutex,
        Arc,
        CondVar,
        Mutex, //
    },
    time::msecs_to_jiffies, //
};

use mars_core::{
    buffer::{
        Kind,
        LogPos,
        Overlap,
        WriteBuffer,
        WritebackIo, //
    },
    replay::Admission,
    writeback, //
};

use crate::{
    engine::{
        clock::Clock,
        tunables, //
    },
    sys::{
        bdev::BlockDevice,
        bio::{
            BioList,
            IoGroup,
            Plug, //
        },
        buf::Buf,
        event::Event,
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

/// Payload bytes: a part of a shared buffer.
#[derive(Clone)]
pub(crate) struct Slice {
    /// The memory.
    pub(crate) buf: Arc<Buf>,
    /// First byte of the part.
    pub(crate) off: u32,
}

impl Slice {
    /// The bytes `from..from + len` of the part.
    pub(crate) fn bytes(&self, from: u32, len: u32) -> Option<&[u8]> {
        let start = usize::try_from(self.off.checked_add(from)?).ok()?;
        let len = usize::try_from(len).ok()?;
        self.buf.get(start..start.checked_add(len)?)
    }
}

/// What [`Pipeline::state`] protects.
pub(crate) struct State {
    /// Records between admission and disk.
    pub(crate) buffer: WriteBuffer<Slice>,
    /// Flush and FUA bios which wait until everything admitted before them is durable.
    pub(crate) waiting: BioList,
    /// Write everything back as fast as the disk takes it.
    pub(crate) draining: bool,
    /// Last error of write-back; cleared by the next success.
    pub(crate) disk_error: Option<Error>,
    /// Monotonic time of that error.
    pub(crate) last_error_ns: u64,
    /// Position that was published last.
    pub(crate) published: Option<LogPos>,
    /// Nothing is logged: what counts as durable in the log may be on its way to the disk (`logger/unlogged.rs`).
    pub(crate) unlogged: bool,
    /// Nothing is admitted for the moment.
    pub(crate) held: bool,
    /// Somebody waited because of `held`.
    pub(crate) held_up: bool,
    /// So much may be in the buffer, if that is less than its size.
    pub(crate) cap: usize,
    /// Monotonic time when the last record was admitted.
    pub(crate) admitted_at: u64,
    /// Monotonic time when the oldest record that is not yet durable was admitted.
    pub(crate) undurable_since: Option<u64>,
}

impl State {
    /// Whether everything that was admitted would survive a loss of power, as far as that can be said without I/O.
    pub(crate) fn is_durable(&self) -> bool {
        self.buffer.undurable() == 0 && !self.unlogged
    }

    /// Takes note of an I/O that failed; the data stays in the buffer and will be tried again.
    fn fail(&mut self, e: Error) {
        if self.disk_error.is_none() {
            pr_err!("writing back to the disk failed: {:?}; the data stays in buffer and log, it will be tried again\n", e);
        }
        self.disk_error = Some(e);
        self.last_error_ns = time::mono_ns();
    }
}

/// Buffer of one backing disk.
#[pin_data]
pub(crate) struct Pipeline {
    #[pin]
    state: Mutex<State>,
    /// Signalled when payload memory was freed, when the buffer ran empty, or when it was closed.
    #[pin]
    changed: CondVar,
    /// Wakes the write-back thread.
    #[pin]
    pub(crate) work: Event,
    /// Wakes the logger (primary only).
    #[pin]
    pub(crate) log_work: Event,
    /// The disk.
    pub(crate) bdev: Arc<BlockDevice>,
    budget: usize,
}

impl Pipeline {
    /// Makes an empty pipeline for `bdev` that holds at most `budget` bytes of payload.
    pub(crate) fn new(bdev: Arc<BlockDevice>, budget: usize) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                state <- new_mutex!(State {
                    buffer: WriteBuffer::new(),
                    waiting: BioList::new(),
                    draining: false,
                    disk_error: None,
                    last_error_ns: 0,
                    published: None,
                    unlogged: false,
                    held: false,
                    held_up: false,
                    cap: usize::MAX,
                    admitted_at: 0,
                    undurable_since: None,
                }),
                changed <- new_condvar!(),
                work <- Event::new(),
                log_work <- Event::new(),
                bdev,
                budget,
            }),
            GFP_KERNEL,
        )
    }

    /// Runs `f` under the lock.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock())
    }

    /// Admits one record of a primary, waiting for room; gives what `then` returns, called under the same lock.
    ///
    /// May sleep for as long as the disks need.
    #[expect(clippy::too_many_arguments, reason = "the parts of a record, once")]
    pub(crate) fn admit<R>(
        &self,
        kind: Kind,
        offset: u64,
        length: u32,
        stamp: u64,
        crc: u32,
        data: Option<Slice>,
        then: impl FnOnce(&mut State) -> R,
    ) -> Result<R> {
        let mut state = self.state.lock();
        let len = usize::try_from(length)?;
        loop {
            let budget = self.budget.min(state.cap);
            if state.held || !writeback::may_admit(state.buffer.bytes(), len, budget) {
                state.held_up |= state.held;
                self.work.signal();
                self.log_work.signal();
                self.changed.wait(&mut state);
                continue;
            }
            match state
                .buffer
                .admit(kind, offset, length, stamp, crc, data.clone())
                .map_err(Error::from)
            {
                Ok(_) => break,
                // Write-back frees memory; the application must not see that there is none just now (P4).
                Err(e) if e == ENOMEM => {
                    drop(state);
                    time::sleep_ms(10);
                    state = self.state.lock();
                }
                Err(e) => return Err(e),
            }
        }
        let now = time::mono_ns();
        state.admitted_at = now;
        if state.undurable_since.is_none() {
            state.undurable_since = Some(now);
        }
        let r = then(&mut state);
        let first = state.buffer.untaken() == 1;
        drop(state);
        // A logger that is at work looks again before it sleeps; waking it for each write would cost more than the write.
        if first {
            self.log_work.signal();
        }
        Ok(r)
    }

    /// Admits one record from a log, waiting for room.
    ///
    /// # Errors
    ///
    /// `EINTR` if `stop` says so while it waits.
    pub(crate) fn admit_replayed(
        &self,
        a: &Admission,
        data: Option<Slice>,
        end: LogPos,
        stop: &impl Fn() -> bool,
    ) -> Result {
        let mut state = self.state.lock();
        let len = usize::try_from(a.length)?;
        while !writeback::may_admit(state.buffer.bytes(), len, self.budget) {
            if stop() {
                return Err(EINTR);
            }
            self.work.signal();
            let _ = self
                .changed
                .wait_interruptible_timeout(&mut state, msecs_to_jiffies(100));
        }
        state
            .buffer
            .admit_durable(a.kind, a.offset, a.length, a.stamp, a.crc, data, end)
            .map_err(Error::from)?;
        state.admitted_at = time::mono_ns();
        Ok(())
    }

    /// Tells everybody that waits for room or for emptiness to look again.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits until everything has been written back, or a write-back error came up, or `ctx` is to stop.
    pub(crate) fn drain(&self, give_up: impl Fn() -> bool) -> Result {
        let mut state = self.state.lock();
        state.draining = true;
        let done = loop {
            if state.buffer.is_empty() {
                break Ok(());
            }
            // The log has what a failing disk does not take. What no log took either is lost, and was reported.
            let stuck = state
                .disk_error
                .or((state.buffer.undurable() > 0).then_some(EIO));
            if let Some(e) = stuck {
                if give_up() {
                    break Err(e);
                }
            }
            self.work.signal();
            // Not an interruptible wait: a thread that was told to stop would spin.
            drop(state);
            time::sleep_ms(10);
            state = self.state.lock();
        };
        state.draining = false;
        done
    }

    /// Admits nothing until [`Self::let_go`].
    pub(crate) fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Ends [`Self::hold`], and lets those who waited go first.
    pub(crate) fn let_go(&self) {
        let waited = {
            let mut state = self.state.lock();
            state.held = false;
            core::mem::take(&mut state.held_up)
        };
        self.changed.notify_all();
        if waited {
            // Flushes that come one after the other must not keep writes out for ever.
            time::sleep_ms(1);
        }
    }

    /// Waits until everything that was admitted is on the disk, not yet durably; nothing may be admitted meanwhile.
    ///
    /// # Errors
    ///
    /// The disk fails. What is in the buffer stays there.
    pub(crate) fn write_all(&self) -> Result {
        let mut state = self.state.lock();
        let since = time::mono_ns();
        state.draining = true;
        let done = loop {
            if state.buffer.is_empty() {
                break Ok(());
            }
            if let Some(e) = state.disk_error.filter(|_| state.last_error_ns > since) {
                break Err(e);
            }
            if state.buffer.undurable() > 0 {
                break Err(EAGAIN);
            }
            self.work.signal();
            let _ = self
                .changed
                .wait_interruptible_timeout(&mut state, msecs_to_jiffies(20));
            // A thread that was told to stop does not sleep in the wait.
            if !state.buffer.is_empty() {
                drop(state);
                time::sleep_ms(1);
                state = self.state.lock();
            }
        };
        state.draining = false;
        done
    }

    /// Whether the range has buffered data; cheap.
    pub(crate) fn lookup(
        &self,
        offset: u64,
        len: u32,
        out: &mut KVec<Overlap<Slice>>,
    ) -> Result<mars_core::buffer::Coverage> {
        Ok(self.state.lock().buffer.lookup(offset, len, out)?)
    }
}

/// Spawns the write-back thread of `pipe`. `publish` is called, without locks, with each position that became durable on
/// the backing disk; it may sleep, and says whether it has succeeded.
pub(crate) fn spawn(
    name: &CStr,
    pipe: Arc<Pipeline>,
    publish: impl Fn(LogPos) -> bool + Send + 'static,
) -> Result<Thread> {
    let group = IoGroup::new()?;
    Thread::spawn(name, move |ctx| run(ctx, &pipe, group, publish))
}

/// What belongs to one I/O in flight.
type Tag = u64;

fn run(ctx: &ThreadCtx, pipe: &Pipeline, group: IoGroup<Tag>, publish: impl Fn(LogPos) -> bool) {
    let mut plan: KVec<WritebackIo<Slice>> = KVec::new();
    let mut last_publish = time::mono_ns();
    while !ctx.should_stop() {
        reap(pipe, &group);
        let now = time::mono_ns();
        let real = Clock::real().as_nanos();
        let (decision, mark) = pipe.with(|s| {
            let view = writeback::View {
                dirty_bytes: s.buffer.bytes(),
                budget: pipe.budget.min(s.cap),
                in_flight: group.in_flight(),
                draining: s.draining,
                failing: s.disk_error.is_some(),
                now_ns: now,
                last_flush_ns: last_publish,
                unpublished: s.buffer.written_position() != s.published,
                idle: s.buffer.undurable() == 0,
                last_admitted_ns: s.admitted_at,
                oldest_dirty_ns: s
                    .buffer
                    .oldest_dirty_stamp()
                    .map(|t| now.saturating_sub(real.saturating_sub(t))),
                last_error_ns: s.last_error_ns,
                incoming_per_s: 0,
            };
            let d = writeback::decide(&view, &writeback::Policy::default());
            plan.clear();
            if d.start > 0 {
                if let Err(e) = s
                    .buffer
                    .plan(tunables::writeback_io_bytes(), d.start, &mut plan)
                {
                    crate::sys::log::log_warn!("write-back has to wait for memory: {:?}\n", e);
                }
            }
            (d, s.buffer.written_position())
        });
        let started = plan.len();
        submit(pipe, &group, &mut plan);
        if decision.flush && mark != pipe.with(|s| s.published) {
            last_publish = now;
            flush_and_publish(pipe, mark, &publish);
        }
        if started == 0 {
            if group.in_flight() > 0 {
                group.wait(50);
            } else {
                pipe.work.wait_timeout(decision.sleep_ms);
            }
        }
    }
    // Whoever stops this thread has drained the buffer, or has decided to leave the rest to the log.
    while group.in_flight() > 0 {
        group.wait(1000);
        reap(pipe, &group);
    }
    let mark = pipe.with(|s| s.buffer.written_position());
    if mark != pipe.with(|s| s.published) {
        flush_and_publish(pipe, mark, &publish);
    }
}

/// Takes note of finished I/Os.
fn reap(pipe: &Pipeline, group: &IoGroup<Tag>) {
    let mut any = false;
    while let Some(done) = group.reap() {
        any = true;
        pipe.with(|s| {
            s.buffer.io_done(done.tag, done.result.is_ok());
            match done.result {
                Ok(()) => s.disk_error = None,
                Err(e) => s.fail(e),
            }
        });
    }
    if any {
        pipe.notify();
    }
}

/// Starts the planned I/Os.
fn submit(pipe: &Pipeline, group: &IoGroup<Tag>, plan: &mut KVec<WritebackIo<Slice>>) {
    if plan.is_empty() {
        return;
    }
    let _plug = Plug::new();
    for io in plan.drain_all() {
        let id = io.id;
        let sent = match io.kind {
            Kind::Write => group.submit_write(
                &pipe.bdev,
                io.offset,
                io.fragments
                    .iter()
                    .map(|f| (&f.data.buf, f.data.off.saturating_add(f.offset), f.length)),
                false,
                id,
            ),
            // Rare (resize, tools); the disk needs its own time for it, and there is nothing to overlap it with.
            Kind::Zeroes | Kind::Discard => {
                let r = pipe.bdev.write_zeroes(io.offset, u64::from(io.length));
                pipe.with(|s| s.buffer.io_done(id, r.is_ok()));
                pipe.notify();
                Ok(())
            }
        };
        if let Err((e, id)) = sent {
            pipe.with(|s| {
                s.buffer.io_done(id, false);
                s.fail(e);
            });
        }
    }
}

/// Makes the disk durable, then moves the replay position to `mark`, which was taken before.
fn flush_and_publish(pipe: &Pipeline, mark: Option<LogPos>, publish: &impl Fn(LogPos) -> bool) {
    let Some(pos) = mark else { return };
    match pipe.bdev.flush() {
        Ok(()) => {
            // Noted afterwards: who sees it may move the link on to the next log, and nothing may move it back then. What
            // could not be published is tried again.
            if publish(pos) {
                pipe.with(|s| s.published = mark);
            }
            pipe.notify();
        }
        Err(e) => {
            pr_err!(
                "flushing the disk failed: {:?}; the replay position stays where it is\n",
                e
            );
            pipe.with(|s| s.fail(e));
        }
    }
}
