// SPDX-License-Identifier: GPL-2.0-or-later

//! The logger of a primary: appends admitted records to the log in their order, many at a time (group commit).
//!
//! One thread. It takes what was admitted while the last batch was on its way, writes it as one batch, and flushes when
//! somebody waits for durability, when enough is unflushed, or when the oldest unflushed record gets too old: only what
//! is durable may be written back to the disk or be seen by a peer (else a crash could leave a replica, or the own disk,
//! ahead of the log). At a rotation the switch happens between two batches.
//!
//! When memory is short, a batch is made in a buffer that is kept for that, and flushed before the next one: the log always
//! gets on, because nothing becomes free before it does. What its file system needs, that waits for, as for any file: its
//! allocations may not fail, so the kernel's last memory ([`Reserves`]) is no help for them, and forbidden.

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
        LogItem,
        LogPos,
        Seq, //
    },
    ends::LogEnds,
    log::{
        batch_size,
        LogName, //
    },
    name::Name, //
};

pub(crate) use mars_core::ends::News;

use crate::{
    engine::{
        clock::Clock,
        dirty::Dirty,
        inject,
        logfile::LogFile,
        pipeline::{
            self,
            Pipeline,
            Slice, //
        },
        tunables, //
    },
    sys::{
        bio::BioList,
        buf::{
            Buf,
            Reserves, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

mod unlogged;

/// Records and payload bytes of one batch.
const BATCH_RECORDS: usize = 1024;
const BATCH_BYTES: usize = 1 << 20;
/// Less than so many records and bytes may wait for more, for so long, if nobody has waited for a flush in the last time.
const FEW_RECORDS: usize = 32;
const FEW_BYTES: usize = 128 << 10;
const GATHER_MS: u32 = 4;
const ALONE_NS: u64 = 100_000_000;
/// Durable batches that are kept in memory for peers that follow closely.
const RECENT_BYTES: usize = 16 << 20;
const RECENT_BATCHES: usize = 512;
/// How often a failing log is tried after the thread was told to stop.
const LAST_TRIES: u32 = 5;

/// A batch that peers may still ask for.
struct Recent {
    number: u32,
    pos: u64,
    len: usize,
    data: Arc<Buf>,
}

/// What the logger has reached.
struct Inner {
    ends: LogEnds,
    recent: KVec<Recent>,
    recent_bytes: usize,
    next: Option<KBox<LogFile>>,
    /// The logs before, the newest first, which are not cut yet.
    left: Option<KBox<LogFile>>,
    error: Option<Error>,
    /// There is no room to log.
    must_stop: bool,
    /// The log has not many blocks left, and must not get more now.
    wants_next: bool,
}

/// Shared between logger, control thread and server.
#[pin_data]
pub(crate) struct Progress {
    /// Name of the resource, for messages.
    resource: Name,
    #[pin]
    inner: Mutex<Inner>,
    #[pin]
    changed: CondVar,
}

impl Progress {
    /// Nothing reached yet.
    pub(crate) fn new(resource: Name) -> Result<Arc<Self>> {
        let ends = LogEnds::new()?;
        Arc::pin_init(
            try_pin_init!(Self {
                resource,
                inner <- new_mutex!(Inner {
                    ends,
                    recent: KVec::new(),
                    recent_bytes: 0,
                    next: None,
                    left: None,
                    error: None,
                    must_stop: false,
                    wants_next: false,
                }),
                changed <- new_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    /// The log that is written, and its durable end.
    pub(crate) fn current(&self) -> Option<(LogName, u64)> {
        let i = self.inner.lock();
        i.ends.log().map(|l| (l, i.ends.end()))
    }

    /// Last error of the log, if it still fails.
    pub(crate) fn error(&self) -> Option<Error> {
        self.inner.lock().error
    }

    /// Hands over the log to switch to at the next batch.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; the log is given up.
    pub(crate) fn rotate_to(&self, next: KBox<LogFile>) -> Result {
        let mut i = self.inner.lock();
        i.ends.rotate()?;
        i.next = Some(next);
        Ok(())
    }

    /// Whether the logger has to stop logging.
    pub(crate) fn stop_logging(&self, stop: bool) {
        self.inner.lock().must_stop = stop;
    }

    /// The logger would like to have a new log.
    pub(crate) fn wants_next(&self) -> bool {
        self.inner.lock().wants_next
    }

    /// A rotation that the logger has not carried out yet.
    pub(crate) fn is_rotating(&self) -> bool {
        self.inner.lock().ends.is_rotating()
    }

    /// What the tree has to be told next: the oldest closed log whose final end it does not have, else the log that is
    /// written.
    pub(crate) fn news(&self) -> Option<News> {
        self.inner.lock().ends.news()
    }

    /// Whether the tree does not have the end of a log before `number` yet.
    pub(crate) fn is_untold(&self, number: u32) -> bool {
        self.inner.lock().ends.is_untold(number)
    }

    /// The tree has the final end of `log`.
    pub(crate) fn told(&self, log: &LogName) {
        self.inner.lock().ends.told(log);
    }

    /// The log that was closed last, and its end.
    pub(crate) fn last_closed(&self) -> Option<(LogName, u64)> {
        self.inner.lock().ends.last_closed()
    }

    /// The logger has ended: recovery will find the ends that the tree does not have, and a log that was to come next is one
    /// of those that recovery finds.
    pub(crate) fn forget(&self) {
        let mut i = self.inner.lock();
        i.ends.forget();
        let next = i.next.take();
        drop(i);
        // Closes a file.
        drop(next);
        self.close_left();
    }

    /// Gives up a log of which everything is durable, for the control thread to close. That waits for the journal of `/mars`,
    /// which may wait for memory, which may come from what the logger is to write next.
    fn leave(&self, mut log: KBox<LogFile>) {
        let (name, pos) = (log.name, log.pos);
        let mut i = self.inner.lock();
        log.before = i.left.take();
        i.left = Some(log);
        drop(i);
        self.finished(name, pos);
    }

    /// Closes the logs that the logger has given up.
    pub(crate) fn close_left(&self) {
        let mut left = self.inner.lock().left.take();
        while let Some(mut log) = left {
            left = log.before.take();
            self.cut(log);
        }
    }

    fn cut(&self, log: KBox<LogFile>) {
        let name = log.name;
        if let Err(e) = KBox::into_inner(log).close() {
            pr_err!(
                "{}: closing {:?} failed: {:?}; it is cut to its end at the next start\n",
                self.resource.as_str(),
                name,
                e
            );
        }
    }

    /// Waits until log `name` has more than `offset` durable bytes, is no longer the current one, or `wait_ms` are over.
    /// Gives `(durable end, still current)`.
    pub(crate) fn wait_beyond(
        &self,
        name: &LogName,
        offset: u64,
        wait_ms: u32,
    ) -> Option<(u64, bool)> {
        let mut i = self.inner.lock();
        let mut rest = msecs_to_jiffies(wait_ms);
        loop {
            let log = i.ends.log()?;
            if log != *name {
                return None;
            }
            if i.ends.end() > offset || rest == 0 {
                return Some((i.ends.end(), true));
            }
            match self.changed.wait_interruptible_timeout(&mut i, rest) {
                kernel::sync::CondVarTimeoutResult::Woken { jiffies } => rest = jiffies,
                _ => rest = 0,
            }
        }
    }

    /// The batches in memory from `pos` of log `number` on, without a gap, and their bytes: at most `max` in all. None if no
    /// batch starts there, or if the first is longer.
    pub(crate) fn recent(
        &self,
        number: u32,
        pos: u64,
        max: usize,
    ) -> Result<(KVec<Arc<Buf>>, usize)> {
        let mut found = KVec::new();
        let mut bytes = 0usize;
        let mut next = pos;
        let i = self.inner.lock();
        for r in i.recent.iter() {
            if r.number != number || r.pos != next {
                continue;
            }
            if bytes.saturating_add(r.len) > max {
                break;
            }
            // The logger needs this lock: nobody may wait for memory here.
            found.push(r.data.clone(), GFP_NOWAIT)?;
            bytes = bytes.saturating_add(r.len);
            next = next.saturating_add(u64::try_from(r.len)?);
        }
        Ok((found, bytes))
    }

    /// Gives up the log that was to be next.
    fn drop_next(&self) {
        let mut i = self.inner.lock();
        let unused = i.next.take();
        i.ends.cancel_rotation();
        drop(i);
        drop(unused);
    }

    fn start(&self, name: LogName, end: u64) {
        let mut i = self.inner.lock();
        i.ends.start(name, end);
        i.wants_next = false;
        drop(i);
        self.changed.notify_all();
    }

    fn durable(&self, end: u64, batches: &mut KVec<Recent>) {
        let mut i = self.inner.lock();
        i.ends.durable(end);
        for b in batches.drain_all() {
            i.recent_bytes = i.recent_bytes.saturating_add(b.len);
            // Without memory the peers read the file.
            if i.recent.push(b, GFP_NOWAIT).is_err() {
                i.recent.clear();
                i.recent_bytes = 0;
            }
        }
        while i.recent_bytes > RECENT_BYTES || i.recent.len() > RECENT_BATCHES {
            match i.recent.remove(0) {
                Ok(old) => i.recent_bytes = i.recent_bytes.saturating_sub(old.len),
                Err(_) => break,
            }
        }
        drop(i);
        self.changed.notify_all();
    }

    /// Gives up what is only kept to spare peers and the disk a read.
    fn drop_recent(&self) {
        let mut i = self.inner.lock();
        let old = core::mem::replace(&mut i.recent, KVec::new());
        i.recent_bytes = 0;
        drop(i);
        drop(old);
    }

    /// Asks the control thread for the next log, once.
    fn ask_for_next(&self, kick: &impl Fn()) {
        if !core::mem::replace(&mut self.inner.lock().wants_next, true) {
            kick();
        }
    }

    fn finished(&self, name: LogName, end: u64) {
        // `rotate_to` and `new` have made room.
        if !self.inner.lock().ends.close(name, end) {
            pr_err!(
                "{}: the end of {:?} can't be reported\n",
                self.resource.as_str(),
                name
            );
        }
        self.changed.notify_all();
    }

    fn fail(&self, error: Option<Error>) {
        self.inner.lock().error = error;
    }
}

/// Spawns the logger. It ends when it is stopped *and* everything admitted is durable (or the log keeps failing), and
/// closes the log. `kick` is called when a log was closed or begun. Without a log it begins in emergency mode, for which a
/// gap must be open.
pub(crate) fn spawn(
    name: &CStr,
    pipe: Arc<Pipeline>,
    progress: Arc<Progress>,
    dirty: Arc<Dirty>,
    clock: Arc<Clock>,
    log: Option<KBox<LogFile>>,
    kick: impl Fn() + Send + 'static,
) -> Result<Thread> {
    // Of a logger that ended before it came to it.
    progress.drop_next();
    match &log {
        Some(log) => progress.start(log.name, log.pos),
        None => pipe.with(|s| s.unlogged = true),
    }
    progress.stop_logging(false);
    let longest = batch_size(
        u32::try_from(BATCH_RECORDS)?,
        u64::try_from(BATCH_BYTES)?,
        4096,
    )
    .ok_or(EOVERFLOW)?;
    let spare = Buf::new(usize::try_from(longest)?)?;
    Thread::spawn(name, move |ctx| {
        Logger {
            pipe: &pipe,
            progress: &progress,
            dirty: &dirty,
            clock: &clock,
            waiting: BioList::new(),
            target: Seq::default(),
            logged: Seq::default(),
            unflushed: KVec::new(),
            spare,
            spare_used: None,
            unflushed_bytes: 0,
            unflushed_since: 0,
            waited_at: 0,
            failures: 0,
            suspect: false,
            full: false,
            gap_begun: false,
        }
        .run(ctx, log, &kick)
    })
}

struct Logger<'a> {
    pipe: &'a Pipeline,
    progress: &'a Progress,
    dirty: &'a Dirty,
    clock: &'a Clock,
    /// Flush and FUA bios that are complete when `target` is durable.
    waiting: BioList,
    target: Seq,
    logged: Seq,
    unflushed: KVec<Recent>,
    /// Memory for one batch, for when there is no other.
    spare: Buf,
    /// Where the batch in it stands in the log, and its length, until that is flushed. It is the last one.
    spare_used: Option<(u64, usize)>,
    unflushed_bytes: usize,
    unflushed_since: u64,
    /// Monotonic time when somebody was seen last who waits for a flush.
    waited_at: u64,
    failures: u32,
    /// A flush failed: nobody knows what the disk has of `unflushed`.
    suspect: bool,
    /// There was no room for the last batch.
    full: bool,
    /// A gap was begun, and the map could not be written: on the disk it may be open or not. Nothing may be logged behind
    /// its beginning, since recovery would not look there.
    gap_begun: bool,
}

/// What comes when a log, or the time without one, has ended.
enum After {
    /// This log is written.
    Log(KBox<LogFile>),
    /// Nothing is logged.
    Gap,
    /// The thread ends.
    End,
}

impl Logger<'_> {
    fn run(mut self, ctx: &ThreadCtx, mut log: Option<KBox<LogFile>>, kick: &impl Fn()) {
        loop {
            let after = match log.take() {
                Some(log) => self.logged(ctx, log, kick),
                None => self.unlogged(ctx),
            };
            kick();
            match after {
                After::Log(next) => log = Some(next),
                After::Gap => (),
                After::End => break,
            }
        }
        while let Some(bio) = self.waiting.pop() {
            bio.complete(Err(EIO));
        }
        kick();
    }

    /// Writes `log`, and those that follow it.
    fn logged(&mut self, ctx: &ThreadCtx, mut log: KBox<LogFile>, kick: &impl Fn()) -> After {
        let mut items: KVec<LogItem<Slice>> = KVec::new();
        loop {
            let stopping = ctx.should_stop();
            if self.is_out_of_room() && self.open_gap(&mut log) {
                self.progress.leave(log);
                return After::Gap;
            }
            if self.gap_begun && !(stopping && self.failures > LAST_TRIES) {
                self.give_up_flushes();
                time::sleep_ms(200);
                continue;
            }
            if stopping && self.failures > LAST_TRIES {
                pr_err!(
                    "{}: {:?} can't be written; what was admitted and not made durable is given up\n",
                    self.resource(),
                    log.name
                );
                // Only what is known to be durable may ever count as its end.
                log.pos = self.progress.inner.lock().ends.end();
                break;
            }
            inject::pass!(LoggerRound);
            items.clear();
            self.give_up_flushes();
            if self.spare_used.is_some() && !self.flush(&mut log) {
                time::sleep_ms(200);
                continue;
            }
            self.gather(stopping);
            let rest = self.take(&mut items);
            if !items.is_empty() && !self.append(&mut log, &items) {
                time::sleep_ms(200);
                continue;
            }
            if core::mem::take(&mut log.is_ending) {
                self.progress.ask_for_next(kick);
            }
            let rotate = self.progress.is_rotating();
            if self.must_flush(rest, stopping || rotate) && !self.flush(&mut log) {
                time::sleep_ms(200);
                continue;
            }
            // Nothing may be unflushed when a log is closed: its end is final.
            if rotate && self.unflushed_since == 0 {
                let next = self.progress.inner.lock().next.take();
                if let Some(next) = next {
                    inject::pass!(Rotate);
                    self.progress.leave(log);
                    self.progress.start(next.name, next.pos);
                    inject::pass!(Rotated);
                    log = next;
                    kick();
                }
                continue;
            }
            if !items.is_empty() {
                continue;
            }
            if rest > 0 {
                // There was no memory to take them.
                time::sleep_ms(10);
                continue;
            }
            if stopping && self.unflushed_since == 0 && self.waiting.is_empty() {
                break;
            }
            let ms = if self.unflushed_since == 0 {
                1000
            } else {
                tunables::LOG_FLUSH_MS
            };
            self.pipe.log_work.wait_timeout(ms);
        }
        self.close(log);
        After::End
    }

    /// Lets a few records become more, so that they share what a batch costs, unless somebody waits for them, or did
    /// shortly before: then the log shall be ahead of the next flush.
    fn gather(&mut self, stopping: bool) {
        let now = time::mono_ns();
        let (little, waited) = self.pipe.with(|s| {
            (
                (1..FEW_RECORDS).contains(&s.buffer.untaken())
                    && s.buffer.untaken_bytes() < FEW_BYTES,
                !s.waiting.is_empty(),
            )
        });
        if waited || !self.waiting.is_empty() {
            self.waited_at = now;
        }
        if little && !stopping && now.saturating_sub(self.waited_at) >= ALONE_NS {
            self.pipe.log_work.wait_timeout(GATHER_MS);
        }
    }

    /// Name of the resource, for messages.
    fn resource(&self) -> &str {
        self.progress.resource.as_str()
    }

    /// Takes the next records and, if no earlier ones are open, the flushes that wait. Gives how many records are left.
    fn take(&mut self, items: &mut KVec<LogItem<Slice>>) -> usize {
        let waiting = &mut self.waiting;
        let target = &mut self.target;
        let resource = self.progress.resource.as_str();
        self.pipe.with(|s| {
            let _reserves = Reserves::enter();
            if let Err(e) = s.buffer.take_for_log(BATCH_RECORDS, BATCH_BYTES, items) {
                crate::sys::log::log_warn!(
                    "{}: the logger waits for memory: {:?}\n",
                    resource,
                    Error::from(e)
                );
            }
            if waiting.is_empty() && !s.waiting.is_empty() {
                waiting.append(&mut s.waiting);
                *target = s.buffer.last_seq();
            }
            s.buffer.untaken()
        })
    }

    fn append(&mut self, log: &mut LogFile, items: &[LogItem<Slice>]) -> bool {
        let start = log.pos;
        // Room for the note comes first: a batch that could not be written again after a failed flush must not exist.
        let room = {
            let _reserves = Reserves::enter();
            self.unflushed.reserve(1, GFP_NOWAIT)
        };
        let appended = room.map_err(Error::from).and_then(|()| {
            let short = self.pipe.is_memory_short();
            log.append(items, self.clock.now(), &mut self.spare, short)
        });
        match appended {
            Ok((data, len)) => {
                self.succeeded();
                let last = items.last().map_or(self.logged, |i| i.seq);
                self.logged = last;
                let end = LogPos {
                    number: log.name.number,
                    pos: log.pos,
                };
                self.pipe.with(|s| s.buffer.logged(last, end));
                self.unflushed_bytes = self.unflushed_bytes.saturating_add(len);
                if self.unflushed_since == 0 {
                    self.unflushed_since = time::mono_ns();
                }
                match data {
                    Some(data) => {
                        let _ = self.unflushed.push_within_capacity(Recent {
                            number: log.name.number,
                            pos: start,
                            len,
                            data,
                        });
                    }
                    None => {
                        self.spare_used = Some((start, len));
                        // They are a convenience; peers read the file.
                        self.progress.drop_recent();
                    }
                }
                true
            }
            Err(e) => {
                if self.failures == 0 {
                    pr_err!("{}: appending to {:?} failed: {:?}; writes wait in memory until it succeeds. Is /mars full?\n", self.resource(), log.name, e);
                }
                self.failed(e);
                if let Some(first) = items.first() {
                    self.pipe.with(|s| s.buffer.untake(first.seq));
                }
                false
            }
        }
    }

    fn failed(&mut self, e: Error) {
        self.failures = self.failures.saturating_add(1);
        self.full = e == ENOSPC || e == EDQUOT;
        self.progress.fail(Some(e));
        // Space comes back when somebody makes some; everything else is for the application to know.
        let error = (e != ENOSPC && e != EDQUOT && e != ENOMEM).then_some(e);
        self.pipe.with(|s| s.set_log_error(error));
        self.pipe.notify();
    }

    fn succeeded(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.full = false;
            self.progress.fail(None);
            self.pipe.with(|s| s.set_log_error(None));
        }
    }

    /// Fails the flushes that wait, if the log has failed for long. The data stays in the buffer, and is logged if the log
    /// comes back.
    fn give_up_flushes(&mut self) {
        if self.failures == 0 {
            return;
        }
        let waiting = &mut self.waiting;
        if !self.pipe.with(|s| {
            let failed = s.log_failed();
            if failed {
                waiting.append(&mut s.waiting);
            }
            failed
        }) {
            return;
        }
        while let Some(bio) = self.waiting.pop() {
            bio.complete(Err(EIO));
        }
    }

    fn must_flush(&self, rest: usize, at_once: bool) -> bool {
        if self.spare_used.is_some() {
            return true;
        }
        if !self.waiting.is_empty() && self.logged >= self.target {
            return true;
        }
        if self.unflushed_since == 0 {
            return false;
        }
        let age_ms = time::mono_ns().saturating_sub(self.unflushed_since) / 1_000_000;
        self.unflushed_bytes >= tunables::LOG_FLUSH_BYTES
            || age_ms >= u64::from(tunables::LOG_FLUSH_MS)
            || (at_once && rest == 0)
    }

    /// Makes what was appended durable, tells everybody, completes the flushes that waited for it. `false`: failed.
    fn flush(&mut self, log: &mut LogFile) -> bool {
        if self.unflushed_since != 0 {
            if let Err(e) = self.sync(log) {
                if self.failures == 0 {
                    pr_err!("{}: flushing {:?} failed: {:?}; flushes of the application wait until it succeeds\n", self.resource(), log.name, e);
                }
                self.failed(e);
                return false;
            }
            self.succeeded();
            let logged = self.logged;
            // Said first: a sync reads the raw disk and then asks for this end, so the disk must never have more.
            self.progress.durable(log.pos, &mut self.unflushed);
            inject::pass!(FlushComplete);
            self.pipe.with(|s| {
                s.buffer.durable(logged);
            });
            self.spare_used = None;
            self.unflushed_bytes = 0;
            self.unflushed_since = 0;
            self.pipe.work.signal();
        }
        if self.logged >= self.target {
            while let Some(bio) = self.waiting.pop() {
                bio.complete(Ok(()));
            }
        }
        true
    }

    /// Flushes the file. After a failure the kernel may have forgotten what was dirty, and a drive what was in its cache,
    /// so everything since the last success is written again first.
    fn sync(&mut self, log: &mut LogFile) -> Result {
        if self.suspect {
            log.begin_rewrite();
            for b in &self.unflushed {
                log.rewrite(b.pos, &b.data, b.len)?;
            }
            if let Some((pos, len)) = self.spare_used {
                log.rewrite(pos, &self.spare, len)?;
            }
        }
        self.suspect = true;
        log.sync()?;
        self.suspect = false;
        Ok(())
    }

    fn close(&self, log: KBox<LogFile>) {
        let (name, pos) = (log.name, log.pos);
        self.progress.cut(log);
        self.progress.finished(name, pos);
    }
}
