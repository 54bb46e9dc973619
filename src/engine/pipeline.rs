// SPDX-License-Identifier: GPL-2.0-or-later

//! The write buffer and what empties it: admission, write-back, publication of the replay position.
//!
//! One [`Pipeline`] serves one backing disk in one role. On a primary the device admits writes and the logger reports them
//! durable; in replay and recovery the records come from a log and are durable from the start. Everything after that is
//! the same: a write-back thread ([`run`]) takes what the plan of the core gives, in device order, and flushes the disk from
//! time to time; only then the replay position moves, which another thread publishes.
//!
//! A disk that fails is tried again, with pauses; what it does not take stays in the buffer, and what it took since its last
//! good flush is written again if a flush fails. Who waits for it gives up after a while: a drain after [`DRAIN_MS`], because
//! the log has everything, and a write that finds no room after [`STUCK_MS`], with an error, because otherwise it would hang
//! until the disk is replaced, and its application with it. The same goes for a log that can't be written.
//!
//! When memory is short, what is here is what makes memory free. So nothing waits for memory under `Pipeline::state`: the
//! buffer's allocations don't, and may take the kernel's last memory ([`Reserves`]) for the few bytes that they need. Who
//! waits, for memory or for room, does so without it.
//!
//! Lock order: `Pipeline::turn`, then `Pipeline::state`, which is a leaf of the engine; nothing but the wait queues of this
//! file is taken under it, and no I/O is done under it. They are sleeping locks: never taken in an interrupt.

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
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
        Coverage,
        Kind,
        LogPos,
        Overlap,
        WriteBuffer,
        WritebackIo, //
    },
    log::room,
    name::Name,
    replay::Admission,
    writeback,
    zeroes::Backing, //
};

use crate::{
    engine::{
        clock::Clock,
        env::BufferSize,
        inject,
        tunables, //
    },
    sys::{
        bdev::BlockDevice,
        bio::{
            BioList,
            IoGroup,
            Plug,
            ZeroWith, //
        },
        buf::{
            Buf,
            Reserves, //
        },
        event::Event,
        file::{
            failed_syncs,
            note_failed_sync, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

/// So often in a row what was written is written again because something else could not be made durable.
pub(crate) const DOUBTS: u32 = 3;
/// A disk that fails for so long is not waited for by who wants to be done with it.
const DRAIN_MS: u64 = 5_000;
/// A disk or log that fails, and makes no room for so long, fails writes.
pub(crate) const STUCK_MS: u64 = 30_000;

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
    /// Last error of write-back or of a flush, until everything that failed was written and flushed.
    pub(crate) disk_error: Option<Error>,
    /// Monotonic time of that error.
    last_error_ns: u64,
    /// I/Os that failed since the last one that did not.
    failures: u32,
    /// The last flush failed.
    flush_failed: bool,
    /// The log can't be written, for another reason than want of space.
    pub(crate) log_error: Option<Error>,
    /// Monotonic time since when; 0 if it can.
    log_failed_since: u64,
    /// Monotonic time since when no write was admitted for want of room.
    stuck_since: Option<u64>,
    /// Position that was published last.
    pub(crate) published: Option<LogPos>,
    /// Nothing is logged: what counts as durable in the log may be on its way to the disk (`logger/unlogged.rs`).
    pub(crate) unlogged: bool,
    /// Writes that wait for their turn, or for room.
    queued: usize,
    /// Nothing is admitted for the moment.
    pub(crate) held: bool,
    /// Somebody waited because of `held`.
    pub(crate) held_up: bool,
    /// So much may be in the buffer, if that is less than its size.
    pub(crate) cap: usize,
    /// Monotonic time when the last record was admitted.
    pub(crate) admitted_at: u64,
}

impl State {
    /// Whether everything that was admitted would survive a loss of power, as far as that can be said without I/O.
    pub(crate) fn is_durable(&self) -> bool {
        self.buffer.undurable() == 0 && !self.unlogged
    }

    /// Why nothing gets out of the buffer.
    fn cause(&self) -> Option<Error> {
        self.disk_error.or(self.log_error)
    }

    /// Takes note that the log can't be written (or can again).
    pub(crate) fn set_log_error(&mut self, e: Option<Error>) {
        self.log_error = e;
        match e {
            None => self.log_failed_since = 0,
            Some(_) if self.log_failed_since == 0 => self.log_failed_since = time::mono_ns(),
            Some(_) => (),
        }
    }

    /// Whether the log has failed for so long that flushes shall fail.
    pub(crate) fn log_failed(&self) -> bool {
        self.log_failed_since != 0
            && time::mono_ns().saturating_sub(self.log_failed_since) >= STUCK_MS * 1_000_000
    }

    /// There is room for a write.
    fn unstuck(&mut self) {
        self.stuck_since = None;
    }

    /// There is no room for a write; gives the error that it shall have, if it has been so for too long.
    fn stuck(&mut self) -> Option<Error> {
        let now = time::mono_ns();
        let since = *self.stuck_since.get_or_insert(now);
        self.cause()
            .filter(|_| now.saturating_sub(since) >= STUCK_MS * 1_000_000)
    }
}

/// Buffer of one backing disk.
#[pin_data]
pub(crate) struct Pipeline {
    #[pin]
    state: Mutex<State>,
    /// Held by the one write that waits for room; the next ones wait for it, in their order. Each for itself would be woken
    /// with all others, and one that needs much would never find it free among many that need little.
    #[pin]
    turn: Mutex<()>,
    /// Signalled when payload memory was freed, when the buffer ran empty, or when it was closed.
    #[pin]
    changed: CondVar,
    /// Wakes the write-back thread.
    #[pin]
    pub(crate) work: Event,
    /// Wakes the logger (primary only).
    #[pin]
    pub(crate) log_work: Event,
    /// Wakes the thread that publishes.
    #[pin]
    publish_work: Event,
    /// The disk.
    pub(crate) bdev: Arc<BlockDevice>,
    budget: usize,
    _size: BufferSize,
    /// Bytes of logs that were read for this pipeline and are in memory (replay only).
    pub(crate) read: Arc<Atomic<usize>>,
    /// Monotonic time of the last write by which memory is to become free; 0 if there was none.
    pub(crate) reclaimed_ns: Atomic<u64>,
    /// When and how deep to write back.
    policy: writeback::Policy,
    /// So many bytes may wait to become zero.
    zero_limit: u64,
    /// Monotonic time since when the disk fails; 0 if it does not.
    failing_since: Atomic<u64>,
}

/// What the disk can do about zeros, as of now.
pub(crate) fn backing(bdev: &BlockDevice) -> Backing {
    Backing {
        block: bdev.logical_block_size(),
        max_zeroes: bdev.max_write_zeroes(),
        discard: bdev.has_discard(),
        granularity: bdev.discard_granularity(),
    }
}

impl Pipeline {
    /// Makes an empty pipeline for `bdev` that holds at most `size` bytes of payload.
    pub(crate) fn new(
        bdev: Arc<BlockDevice>,
        size: BufferSize,
        policy: writeback::Policy,
    ) -> Result<Arc<Self>> {
        let budget = size.bytes();
        Arc::pin_init(
            try_pin_init!(Self {
                state <- new_mutex!(State {
                    buffer: WriteBuffer::new(),
                    waiting: BioList::new(),
                    draining: false,
                    disk_error: None,
                    last_error_ns: 0,
                    failures: 0,
                    flush_failed: false,
                    log_error: None,
                    log_failed_since: 0,
                    stuck_since: None,
                    published: None,
                    unlogged: false,
                    queued: 0,
                    held: false,
                    held_up: false,
                    cap: usize::MAX,
                    admitted_at: 0,
                }),
                turn <- new_mutex!(()),
                changed <- new_condvar!(),
                work <- Event::new(),
                log_work <- Event::new(),
                publish_work <- Event::new(),
                zero_limit: backing(&bdev).may_wait(budget),
                failing_since: Atomic::new(0),
                bdev,
                budget,
                _size: size,
                read: Arc::new(Atomic::new(0), GFP_KERNEL)?,
                reclaimed_ns: Atomic::new(0),
                policy,
            }),
            GFP_KERNEL,
        )
    }

    /// Runs `f` under the lock.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock())
    }

    fn has_room(&self, state: &State, kind: Kind, length: u32) -> bool {
        let budget = self.budget.min(state.cap);
        match kind {
            Kind::Write => usize::try_from(length)
                .is_ok_and(|len| writeback::may_admit(state.buffer.bytes(), len, budget)),
            Kind::Zeroes | Kind::Discard => {
                writeback::may_admit(state.buffer.bytes(), 0, budget)
                    && writeback::may_admit_zeroes(
                        state.buffer.plain_bytes(),
                        length,
                        self.zero_limit,
                    )
            }
        }
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
        let mut turn = None;
        if state.queued > 0 || state.held || !self.has_room(&state, kind, length) {
            state.queued = state.queued.saturating_add(1);
            drop(state);
            turn = Some(self.turn.lock());
            state = self.state.lock();
        }
        let admitted = loop {
            if state.held || !self.has_room(&state, kind, length) {
                if turn.is_none() {
                    // While there was no memory the room has gone.
                    state.queued = state.queued.saturating_add(1);
                    drop(state);
                    turn = Some(self.turn.lock());
                    state = self.state.lock();
                    continue;
                }
                if let Some(e) = state.stuck() {
                    break Err(e);
                }
                state.held_up |= state.held;
                self.work.signal();
                self.log_work.signal();
                self.changed.wait(&mut state);
                continue;
            }
            state.unstuck();
            match inject::at!(AdmitMemory, offset, 0).and_then(|()| {
                let _reserves = Reserves::enter();
                state
                    .buffer
                    .admit(kind, offset, length, stamp, crc, data.clone())
                    .map_err(Error::from)
            }) {
                Ok(_) => break Ok(()),
                // Write-back frees memory; the application must not see that there is none just now (P4).
                Err(e) if e == ENOMEM => {
                    drop(state);
                    time::sleep_ms(10);
                    state = self.state.lock();
                }
                Err(e) => break Err(e),
            }
        };
        if turn.is_some() {
            state.queued = state.queued.saturating_sub(1);
        }
        admitted?;
        state.admitted_at = time::mono_ns();
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
        loop {
            let full = !self.has_room(&state, a.kind, a.length);
            // Not the log's stamp: that is another host's clock, and it is only used to tell how old the record is here.
            let stamp = Clock::real().as_nanos();
            if !full {
                let _reserves = Reserves::enter();
                match state
                    .buffer
                    .admit_durable(a.kind, a.offset, a.length, stamp, a.crc, data.clone(), end)
                    .map_err(Error::from)
                {
                    Ok(_) => break,
                    Err(e) if e == ENOMEM => (),
                    Err(e) => return Err(e),
                }
            }
            if stop() {
                return Err(EINTR);
            }
            self.work.signal();
            if full {
                let _ = self
                    .changed
                    .wait_interruptible_timeout(&mut state, msecs_to_jiffies(100));
            } else {
                drop(state);
                time::sleep_ms(10);
                state = self.state.lock();
            }
        }
        state.admitted_at = time::mono_ns();
        Ok(())
    }

    /// Whether memory becomes free by writes to this device.
    pub(crate) fn is_memory_short(&self) -> bool {
        room::is_short(time::mono_ns(), self.reclaimed_ns.load(Relaxed))
    }

    /// Waits until more of the log may be read: a record keeps all that was read together with it until it is on the disk.
    ///
    /// # Errors
    ///
    /// `EINTR` if `stop` says so while it waits.
    pub(crate) fn wait_to_read(&self, stop: &impl Fn() -> bool) -> Result {
        let mut state = self.state.lock();
        while !writeback::may_read(self.read.load(Relaxed), state.buffer.bytes(), self.budget) {
            if stop() {
                return Err(EINTR);
            }
            self.work.signal();
            let _ = self
                .changed
                .wait_interruptible_timeout(&mut state, msecs_to_jiffies(100));
        }
        Ok(())
    }

    /// Tells everybody that waits for room or for emptiness to look again.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Whether the disk has failed for so long that nobody should wait for it.
    pub(crate) fn is_failing(&self) -> bool {
        match self.failing_since.load(Relaxed) {
            0 => false,
            since => time::mono_ns().saturating_sub(since) >= DRAIN_MS * 1_000_000,
        }
    }

    /// Takes note of an I/O that failed; the data stays in the buffer and will be tried again.
    fn failed(&self, state: &mut State, e: Error) {
        let now = time::mono_ns();
        if state.disk_error.is_none() {
            pr_err!("writing to {} failed: {:?}; the data stays in buffer and log, it will be tried again\n", self.name(), e);
            self.failing_since.store(now, Relaxed);
        }
        state.disk_error = Some(e);
        state.failures = state.failures.saturating_add(1);
        state.last_error_ns = now;
    }

    /// Takes note of an I/O or flush that did not fail.
    fn succeeded(&self, state: &mut State) {
        state.failures = 0;
        if state.disk_error.is_some() && !state.flush_failed && state.buffer.failing() == 0 {
            pr_info!("{} takes writes again\n", self.name());
            state.disk_error = None;
            self.failing_since.store(0, Relaxed);
        }
    }

    fn name(&self) -> &str {
        self.bdev.name().to_str().unwrap_or("the disk")
    }

    /// Waits until everything is written back and durable.
    ///
    /// # Errors
    ///
    /// That of the disk, if it has failed for long, or `give_up` says so; the log has what is missing.
    pub(crate) fn drain(&self, give_up: impl Fn() -> bool) -> Result {
        let mut state = self.state.lock();
        state.draining = true;
        let done = loop {
            if state.buffer.is_empty() {
                break Ok(());
            }
            // The log has what a failing disk does not take. What no log took either is lost, and was reported.
            let unlogged = state.buffer.undurable() > 0;
            if let Some(e) = state.disk_error.or(unlogged.then_some(EIO)) {
                if give_up() || self.is_failing() || unlogged && state.log_failed() {
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

    /// Waits until everything that was admitted is on the disk, durably; nothing may be admitted meanwhile.
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

    /// Lets the replay position move to where the disk is durable.
    fn tell(&self, publish: impl Fn(LogPos) -> bool) {
        let news = self.with(|s| {
            let mark = s.buffer.written_position();
            (mark != s.published).then_some(mark).flatten()
        });
        if let Some(pos) = news {
            // Noted afterwards: who sees it may move the link on to the next log, and nothing may move it back then. What
            // could not be published is tried again.
            inject::pass!(Publish);
            if publish(pos) {
                self.with(|s| s.published = Some(pos));
            }
            self.notify();
        }
    }

    /// Whether the range has buffered data; cheap. Gives the pieces in `out`. Waits for memory, if there is none.
    pub(crate) fn lookup(&self, offset: u64, len: u32, out: &mut KVec<Overlap<Slice>>) -> Coverage {
        loop {
            out.clear();
            let found = {
                let _reserves = Reserves::enter();
                self.state.lock().buffer.lookup(offset, len, out)
            };
            match found {
                Ok(coverage) => return coverage,
                // A read that is in memory must not fail because there is no more of it (P4).
                Err(_) => time::sleep_ms(10),
            }
        }
    }
}

/// The threads of a pipeline, see [`spawn`]. They end in this order: nobody else publishes when write-back does it at its end.
pub(crate) struct Threads {
    _publisher: Thread,
    _writeback: Thread,
}

/// Spawns the threads of `pipe`: `mars_wb` and `mars_pub`. `publish` is called, without locks, with each position that
/// became durable on the backing disk; it may sleep, and says whether it has succeeded.
///
/// It has a thread of its own because it writes to the file system of `/mars`, which may have to wait for memory, or for
/// who waits for memory; write-back makes memory free, and must not wait for it.
pub(crate) fn spawn(
    resource: &Name,
    pipe: Arc<Pipeline>,
    publish: impl Fn(LogPos) -> bool + Send + core::marker::Sync + 'static,
) -> Result<Threads> {
    let publish = Arc::new(publish, GFP_KERNEL)?;
    let group = IoGroup::new()?;
    let (p, f) = (pipe.clone(), publish.clone());
    let name = CString::try_from_fmt(format_args!("mars_wb/{resource}"))?;
    let writeback = Thread::spawn(&name, move |ctx| run(ctx, &p, group, &*f))?;
    let name = CString::try_from_fmt(format_args!("mars_pub/{resource}"))?;
    let publisher = Thread::spawn(&name, move |ctx| {
        let ms = u32::try_from(pipe.policy.publish_ns / 1_000_000).unwrap_or(1000);
        while !ctx.should_stop() {
            pipe.publish_work.wait_timeout(ms);
            pipe.tell(&*publish);
        }
    })?;
    Ok(Threads {
        _publisher: publisher,
        _writeback: writeback,
    })
}

/// What belongs to one I/O in flight.
enum Tag {
    /// The I/O with this number in the buffer.
    Write(u64),
    /// The same, a range that becomes zero. It is done in pieces; these come after the one in flight.
    Zero(u64, Zeroing),
    /// A flush.
    Flush,
}

/// A range that becomes zero.
#[derive(Clone, Copy)]
struct Zeroing {
    unmap: bool,
    offset: u64,
    length: u32,
    /// The piece in flight is made by the disk.
    by_device: bool,
}

/// The write-back thread.
struct WriteBack<'a> {
    pipe: &'a Pipeline,
    group: IoGroup<Tag>,
    flushing: bool,
    last_flush: u64,
    /// The disk does what it says about zeros.
    can_zero: bool,
    /// As it was when a flush ended last, see [`Self::is_in_doubt`].
    failed_syncs: u64,
    /// So often, in a row, a flush did not count because of that.
    doubts: u32,
}

fn run(ctx: &ThreadCtx, pipe: &Pipeline, group: IoGroup<Tag>, publish: impl Fn(LogPos) -> bool) {
    let mut w = WriteBack {
        pipe,
        group,
        flushing: false,
        last_flush: time::mono_ns(),
        can_zero: true,
        failed_syncs: failed_syncs(),
        doubts: 0,
    };
    let mut plan: KVec<WritebackIo<Slice>> = KVec::new();
    while !ctx.should_stop() {
        w.round(&mut plan);
    }
    w.end();
    pipe.tell(publish);
}

impl WriteBack<'_> {
    #[inline(never)]
    fn round(&mut self, plan: &mut KVec<WritebackIo<Slice>>) {
        inject::pass!(WriteBackRound);
        self.reap(false);
        let now = time::mono_ns();
        let decision = self.decide(now, plan);
        let started = plan.len();
        self.submit(plan);
        if decision.flush {
            self.flush(now);
        }
        if started == 0 {
            match self.group.in_flight().checked_sub(1) {
                // If there was nothing to start, the next one that ends may change that.
                Some(others) => self.group.wait(50, decision.left.min(others)),
                None => {
                    self.pipe.work.wait_timeout(decision.sleep_ms);
                }
            }
        }
    }

    /// Asks the core what to do, and for what to write.
    #[inline(never)]
    fn decide(&self, now: u64, plan: &mut KVec<WritebackIo<Slice>>) -> writeback::Decision {
        let real = Clock::real().as_nanos();
        let writes = self
            .group
            .in_flight()
            .saturating_sub(usize::from(self.flushing));
        let pipe = self.pipe;
        let decision = pipe.with(|s| {
            let landed = s.buffer.landed_bytes();
            let budget = pipe.budget.min(s.cap);
            let view = writeback::View {
                dirty_bytes: writeback::fill(
                    s.buffer.bytes(),
                    budget,
                    s.buffer.plain_bytes(),
                    pipe.zero_limit,
                ),
                landed_bytes: usize::try_from(landed).unwrap_or(usize::MAX),
                all_landed: s.buffer.is_landed(),
                budget,
                in_flight: writes,
                flushing: self.flushing,
                draining: s.draining,
                failures: s.failures,
                now_ns: now,
                last_flush_ns: self.last_flush,
                idle: s.buffer.undurable() == 0,
                last_admitted_ns: s.admitted_at,
                oldest_dirty_ns: s
                    .buffer
                    .oldest_dirty_stamp()
                    .map(|t| now.saturating_sub(real.saturating_sub(t))),
                last_error_ns: s.last_error_ns,
                incoming_per_s: 0,
            };
            let mut d = writeback::decide(&view, &pipe.policy);
            plan.clear();
            if d.start > 0 {
                let r = inject::at!(PlanMemory).and_then(|()| {
                    let _reserves = Reserves::enter();
                    Ok(s.buffer
                        .plan(tunables::writeback_io_bytes(), d.start, plan)?)
                });
                if let Err(e) = r {
                    crate::sys::log::log_warn!("write-back has to wait for memory: {:?}\n", e);
                    d.sleep_ms = d.sleep_ms.min(10);
                }
            }
            d
        });
        // Who waits for a disk that fails looks at the time.
        if pipe.failing_since.load(Relaxed) != 0 {
            pipe.notify();
        }
        decision
    }

    /// Takes note of finished I/Os, and goes on with those that are done in pieces, unless `stopping`.
    fn reap(&mut self, stopping: bool) {
        let mut any = false;
        let pipe = self.pipe;
        while let Some(done) = self.group.reap() {
            any = true;
            let result = done.result.and_then(|()| match &done.tag {
                Tag::Flush => inject::at!(DiskFlushed),
                Tag::Write(_) | Tag::Zero(..) => inject::at!(WriteBackDone),
            });
            match (done.tag, result) {
                (Tag::Flush, r) => {
                    self.flushing = false;
                    self.flushed(r);
                }
                (Tag::Zero(id, z), Ok(())) if z.length > 0 && !stopping => self.zero(id, z),
                (Tag::Zero(id, z), Ok(())) if z.length > 0 => {
                    pipe.with(|s| s.buffer.io_done(id, false));
                }
                (Tag::Write(id) | Tag::Zero(id, _), Ok(())) => pipe.with(|s| {
                    // What is done is noted, or it would be done again.
                    let _reserves = Reserves::enter();
                    s.buffer.io_done(id, true);
                    pipe.succeeded(s);
                }),
                // Some disks only find out now that they can't. Next time zeros are written.
                (Tag::Zero(id, z), Err(e))
                    if z.by_device
                        && (e == EOPNOTSUPP
                            || e == EREMOTEIO
                            || pipe.bdev.max_write_zeroes() == 0) =>
                {
                    self.can_zero = false;
                    pipe.with(|s| s.buffer.io_done(id, false));
                }
                (Tag::Write(id) | Tag::Zero(id, _), Err(e)) => self.not_written(id, e),
            }
        }
        if any {
            pipe.notify();
        }
    }

    fn not_written(&self, id: u64, e: Error) {
        self.pipe.with(|s| {
            s.buffer.io_done(id, false);
            self.pipe.failed(s, e);
        });
    }

    /// Starts the planned I/Os.
    fn submit(&mut self, plan: &mut KVec<WritebackIo<Slice>>) {
        if plan.is_empty() {
            return;
        }
        let _plug = Plug::new();
        for io in plan.drain_all() {
            let id = io.id;
            let unmap = match io.kind {
                Kind::Write => {
                    let len = usize::try_from(io.length).unwrap_or(0);
                    if let Err(e) = inject::at!(WriteBack, io.offset, len) {
                        self.not_written(id, e);
                        continue;
                    }
                    let sent = self.group.submit_write(
                        &self.pipe.bdev,
                        io.offset,
                        io.fragments
                            .iter()
                            .map(|f| (&f.data.buf, f.data.off.saturating_add(f.offset), f.length)),
                        false,
                        Tag::Write(id),
                    );
                    if let Err((e, _)) = sent {
                        self.not_written(id, e);
                    }
                    continue;
                }
                Kind::Zeroes => false,
                Kind::Discard => true,
            };
            let range = Zeroing {
                unmap,
                offset: io.offset,
                length: io.length,
                by_device: false,
            };
            self.zero(id, range);
        }
    }

    /// Starts the next piece of a range that becomes zero.
    fn zero(&self, id: u64, range: Zeroing) {
        if let Err(e) = inject::at!(WriteBackZero, range.offset, 0) {
            return self.not_written(id, e);
        }
        let mut disk = backing(&self.pipe.bdev);
        if !self.can_zero {
            disk.max_zeroes = 0;
        }
        let piece = disk.piece(range.offset, range.length);
        let with = if piece.by_device {
            ZeroWith::Device { unmap: range.unmap }
        } else {
            ZeroWith::Memory
        };
        let rest = Zeroing {
            offset: range.offset.saturating_add(u64::from(piece.length)),
            length: range.length.saturating_sub(piece.length),
            by_device: piece.by_device,
            ..range
        };
        let sent = self.group.submit_zeroes(
            &self.pipe.bdev,
            range.offset,
            piece.length,
            with,
            Tag::Zero(id, rest),
        );
        if let Err((e, _)) = sent {
            self.not_written(id, e);
        }
    }

    /// Starts to make durable what was written up to now.
    fn flush(&mut self, now: u64) {
        self.last_flush = now;
        if self.flushing || !self.pipe.with(|s| s.buffer.flush_begin()) {
            return;
        }
        self.flushing = true;
        if let Err(e) = inject::at!(DiskFlush) {
            self.flushing = false;
            return self.flushed(Err(e));
        }
        if let Err((e, _)) = self.group.submit_flush(&self.pipe.bdev, Tag::Flush) {
            self.flushing = false;
            self.flushed(Err(e));
        }
    }

    /// Whether something else on this host could not be made durable since the last flush ended. It may be on the same drive,
    /// which tells one only that it has lost its cache. Not for ever: a `/mars` that fails does not hold up a good disk.
    fn is_in_doubt(&mut self) -> bool {
        let now = failed_syncs();
        let failed = core::mem::replace(&mut self.failed_syncs, now) != now;
        self.doubts = if failed && self.doubts < DOUBTS {
            self.doubts.saturating_add(1)
        } else {
            0
        };
        self.doubts > 0
    }

    /// A flush has ended. If it failed, the core gives out again what the disk may have lost; the replay position stays
    /// where it is until that is durable.
    fn flushed(&mut self, result: Result) {
        let pipe = self.pipe;
        if result.is_err_and(|e| e != ENOMEM) {
            pipe.bdev.note_unflushed();
            if !pipe.with(|s| s.flush_failed) {
                note_failed_sync();
            }
        }
        if self.is_in_doubt() && result.is_ok() {
            pipe.bdev.note_unflushed();
            return pipe.with(|s| s.buffer.flush_end(false));
        }
        pipe.with(|s| {
            s.buffer.flush_end(result.is_ok());
            let again = core::mem::replace(&mut s.flush_failed, result.is_err());
            match result {
                Ok(()) => pipe.succeeded(s),
                Err(e) => {
                    if !again {
                        pr_err!(
                            "flushing {} failed: {:?}; all that was written since the last good flush is written again\n",
                            pipe.name(),
                            e
                        );
                    }
                    pipe.failed(s, e);
                }
            }
        });
        if result.is_ok() {
            pipe.publish_work.signal();
        }
    }

    /// Whoever stops this thread has drained the buffer, or has decided to leave the rest to the log.
    fn end(&mut self) {
        while self.group.in_flight() > 0 {
            self.group.wait(1000, 0);
            self.reap(true);
        }
        self.flush(time::mono_ns());
        while self.group.in_flight() > 0 {
            self.group.wait(1000, 0);
            self.reap(true);
        }
    }
}
