// SPDX-License-Identifier: GPL-2.0-or-later

//! Pulling log files from another member over a bundle of connections.
//!
//! The control thread chooses which log comes next ([`choose`]); the workers, each with a connection of its own, do what
//! the plan of the core gives them and write what arrives to the local file. Replay may read up to
//! [`Fetch::available`]. The file holds exactly the bytes of the source, byte for byte; after a restart its valid part is
//! found again by checking it, so that nothing about it has to be stored.
//!
//! Lock order: `Fetch::state` is a leaf; no I/O is done under it.

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
    fetch::{
        Doubt,
        FetchPlan,
        Task, //
    },
    log::LogName,
    name::Name,
    succession::{
        self,
        is_passed,
        Course,
        Reach, //
    },
    wire::message::bulk::{
        LogRead,
        LogStatus, //
    }, //
};

use crate::{
    engine::{
        conn::{
            Conn,
            Purpose, //
        },
        inject,
        member::Member,
        paths,
        replay,
        tunables, //
    },
    sys::{
        buf::Buf,
        file::{
            failed_syncs,
            File,
            OpenFlags, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        }, //
    }, //
};

/// The log that is fetched at the moment.
struct Target {
    log: LogName,
    file: Arc<File>,
    plan: FetchPlan,
    /// The member it comes from.
    source: Name,
    /// Counts changes of target or plan, so that a late reply is not taken for a new one.
    epoch: u64,
    /// Identity of what was here of a log of this name already; 0: nothing. It may be of one that a failover has cut off.
    id: u64,
    /// A source has said that its log is the same. Before that nothing of it is replayed, and nothing else asked.
    is_confirmed: bool,
    /// It is being asked for that.
    is_asked: bool,
}

struct State {
    target: Option<Target>,
    epoch: u64,
    /// Logs that are complete, with their ends.
    complete: KVec<(LogName, u64)>,
    /// Members that did not have what was asked, since the last success.
    avoid: KVec<Name>,
    /// A sync of the local file failed: what is behind may not be on the disk, although reading it gives it, and the next
    /// sync would say yes without having written it. Outlives [`Fetch::forget`].
    unsynced: Option<Doubt>,
    /// The local file is damaged, or can't be read.
    damaged: Option<Doubt>,
    /// What the disk may have. Outlives [`Fetch::forget`].
    reach: Reach,
    /// The designated primary does not have this log.
    gone: Option<LogName>,
    busy: bool,
}

/// What the replay may read.
#[derive(Clone, Copy)]
pub(crate) struct Available {
    /// Bytes before this may be read.
    pub(crate) end: u64,
    /// The log has been (or is being) fetched, so everything before `end` is known to have arrived.
    pub(crate) fetched: bool,
    /// The log is closed and `end` is its end.
    pub(crate) complete: bool,
}

/// State of fetching the logs of one resource; shared.
#[pin_data]
pub(crate) struct Fetch {
    #[pin]
    state: Mutex<State>,
    #[pin]
    changed: CondVar,
    /// Failed syncs of files in `/mars` when a fetched log was synced last.
    failed_syncs: Atomic<u64>,
}

impl Fetch {
    /// Nothing is fetched yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                state <- new_mutex!(State {
                    target: None,
                    epoch: 0,
                    complete: KVec::new(),
                    avoid: KVec::new(),
                    unsynced: None,
                    damaged: None,
                    reach: Reach::default(),
                    gone: None,
                    busy: false,
                }),
                changed <- new_condvar!(),
                failed_syncs: Atomic::new(failed_syncs()),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether a sync of another file has failed since this was asked last, or since the module was loaded: a drive tells one only
    /// that it has lost its cache, in which may have been what was fetched.
    pub(crate) fn may_have_lost(&self) -> bool {
        let now = failed_syncs();
        self.failed_syncs.xchg(now, Relaxed) != now
    }

    /// Log and position up to which it has arrived.
    pub(crate) fn position(&self) -> Option<(LogName, u64)> {
        let s = self.state.lock();
        s.target.as_ref().map(|t| (t.log, t.plan.contiguous()))
    }

    /// Whether something is under way.
    pub(crate) fn is_busy(&self) -> bool {
        let s = self.state.lock();
        s.busy
            && s.target
                .as_ref()
                .is_some_and(|t| t.plan.known_end() > t.plan.contiguous())
    }

    /// What may be read of `log`.
    pub(crate) fn available(&self, log: &LogName) -> Available {
        let s = self.state.lock();
        if let Some((_, end)) = s.complete.iter().find(|(l, _)| l == log) {
            return Available {
                end: *end,
                fetched: true,
                complete: true,
            };
        }
        match &s.target {
            Some(t) if t.log == *log && !t.is_confirmed => Available {
                end: 0,
                fetched: true,
                complete: false,
            },
            Some(t) if t.log == *log => Available {
                end: t.plan.contiguous(),
                fetched: true,
                complete: t.plan.is_complete(),
            },
            // Nothing was fetched since the start: what is in the file counts as far as it is valid.
            _ => Available {
                end: u64::MAX,
                fetched: false,
                complete: false,
            },
        }
    }

    /// Waits for more of `log` than `end`, at most a second.
    pub(crate) fn wait_news(&self, ctx: &ThreadCtx, log: &LogName, end: u64) {
        let mut s = self.state.lock();
        let known = |s: &State| {
            s.target.as_ref().is_some_and(|t| {
                t.is_confirmed && (t.log != *log || t.plan.contiguous() > end && end != u64::MAX)
            })
        };
        if !ctx.should_stop() && !known(&s) {
            let _ = self
                .changed
                .wait_interruptible_timeout(&mut s, msecs_to_jiffies(500));
        }
        let elsewhere = known(&s) && s.target.as_ref().is_some_and(|t| t.log != *log);
        drop(s);
        if elsewhere {
            ctx.sleep_ms(20);
        }
    }

    /// Whether replay may go on to `log`, of which `here` says whether something of that name is here: only if that is known to
    /// be the right one, or nobody is asked.
    pub(crate) fn may_go_on(&self, log: &LogName, asks: bool, here: bool) -> bool {
        let s = self.state.lock();
        let target = s.target.as_ref().filter(|t| t.log == *log);
        let known = s.complete.iter().any(|(l, _)| l == log);
        !asks || !here || known || target.is_some_and(|t| t.is_confirmed)
    }

    /// Replay has gone on to `log`: complete logs before it are no longer of interest.
    pub(crate) fn replaying(&self, log: &LogName) {
        self.state
            .lock()
            .complete
            .retain(|(l, _)| l.number >= log.number);
    }

    /// Throws the state away; the files stay.
    pub(crate) fn forget(&self) {
        let mut s = self.state.lock();
        s.target = None;
        s.complete.clear();
        s.avoid.clear();
        s.gone = None;
        s.epoch = s.epoch.wrapping_add(1);
    }

    /// The local copy of `log` is damaged at `pos`: it is fetched again from there on, from another member if possible. It is
    /// not cut: the disk may have what stands behind, and then is a state of the primary only together with it.
    pub(crate) fn again_from(&self, log: &LogName, pos: u64) {
        let mut s = self.state.lock();
        s.epoch = s.epoch.wrapping_add(1);
        s.complete.retain(|(l, _)| l.number < log.number);
        s.damaged = Some(Doubt::new(*log, pos, u64::MAX, s.damaged));
        let Some(t) = s.target.take() else { return };
        let _ = s.avoid.push(t.source, GFP_KERNEL);
        drop(s);
        inject::pass!(FetchAgain);
        self.changed.notify_all();
    }

    /// What `log` has before `end` is about to be admitted.
    pub(crate) fn apply(&self, log: &LogName, end: u64) {
        self.state.lock().reach.apply(log, end);
    }

    /// Everything before `log` is on the disk, and nothing of it.
    pub(crate) fn begin_replay(&self, log: &LogName) {
        self.state.lock().reach.begin(*log);
    }

    /// The log that the designated primary was asked for and does not have.
    pub(crate) fn gone(&self) -> Option<LogName> {
        let s = self.state.lock();
        s.gone
            .filter(|log| s.target.as_ref().is_none_or(|t| t.log == *log))
    }

    /// The local file of `log`, in which the replay link is, has so many bytes, before anything of it is replayed or cut.
    pub(crate) fn found(&self, log: &LogName, size: u64) {
        self.state.lock().reach.found(*log, size);
    }

    /// What the disk may have.
    pub(crate) fn reach(&self) -> Reach {
        self.state.lock().reach
    }

    /// A sync of the local file of `log`, of so many bytes, has failed; before `pos` it is on the disk.
    pub(crate) fn not_synced(&self, log: &LogName, pos: u64, size: u64) {
        let mut s = self.state.lock();
        s.unsynced = Some(Doubt::new(*log, pos, size, s.unsynced));
    }

    /// From where on the local file of `log` may not be on the disk.
    pub(crate) fn unsynced(&self, log: &LogName) -> Option<u64> {
        Doubt::of(self.state.lock().unsynced, log)
    }

    /// What was not on the disk of `log` before `end` has been written once more, and is.
    pub(crate) fn synced(&self, log: &LogName, end: u64) {
        let mut s = self.state.lock();
        s.unsynced = s.unsynced.and_then(|d| d.settle(log, end));
    }
}

/// Starts with the log at the replay link, or goes on with the next log when one is complete. Called by the control
/// thread in each round; checks the local file, which may take a while after a restart.
pub(crate) fn choose(m: &Arc<Member>) {
    let fetch = &m.fetch;
    keep_course(m);
    let (present, complete_now, epoch) = {
        let s = fetch.state.lock();
        match &s.target {
            Some(t) if !t.is_confirmed => {
                let (log, source) = (t.log, t.source);
                drop(s);
                if pick_source(m, &log) != Some(source) {
                    reconsider(m, &log);
                }
                return;
            }
            Some(t) => (
                Some((t.log, t.plan.contiguous(), t.source)),
                t.plan.is_complete(),
                s.epoch,
            ),
            None => (None, false, s.epoch),
        }
    };
    let (log, from) = match present {
        None => match m.replay_link(&m.me()) {
            Some(link) => (link.log, link.pos),
            None => return,
        },
        // Only what is damaged here is fetched: nobody else's history counts any more.
        Some(_) if m.designated() == Some(m.me()) => return,
        Some((log, end, source)) => {
            // Closed according to the source, or the tree knows what follows exactly here.
            match next_log(m, &log, end) {
                Some(next) => {
                    let mut s = fetch.state.lock();
                    // It is tried again as long as the next one can't be begun.
                    let known = s.complete.iter().any(|(l, _)| *l == log);
                    // Replay may have found it damaged meanwhile.
                    if s.epoch != epoch
                        || !known && s.complete.push((log, end), GFP_KERNEL).is_err()
                    {
                        return;
                    }
                    drop(s);
                    fetch.changed.notify_all();
                    (next, 0)
                }
                None => {
                    if !complete_now && pick_source(m, &log) != Some(source) {
                        reconsider(m, &log);
                    }
                    return;
                }
            }
        }
    };
    if log.creator == m.me() {
        // Own logs are never fetched, except after this host lost them; replay sees what is there.
        if paths::log(&m.name, &log).is_ok_and(|p| crate::sys::dir::stat(&p).is_ok())
            && present.is_none()
        {
            own_log(m, log, epoch);
            return;
        }
    }
    match begin(m, log, from, epoch) {
        // The control thread sees what can be done.
        Err(e) if paths::is_absent(e) => (),
        Err(e) => m.set_trouble(Some((
            "waiting",
            format_args!("fetching {log} can't start: {e:?}; is /mars full?"),
        ))),
        Ok(_) => (),
    }
}

/// Where the designated primary's history is another one than that which is being fetched: a log ends where that says, and
/// what is no part of it is forgotten (the files stay), so that fetching begins again at the replay link.
#[inline(never)]
fn keep_course(m: &Arc<Member>) {
    let me = m.me();
    // Replay, which was faster, may have left it, and then it may be deleted everywhere.
    let passed = m.replay_link(&me).is_some_and(|l| {
        let target = m.fetch.position().map(|(log, _)| log);
        target.is_some_and(|log| is_passed(log.number, &l))
    });
    if passed {
        m.fetch.forget();
        return;
    }
    let mut logs: KVec<(LogName, u64)> = KVec::new();
    let (target, reach) = {
        let s = m.fetch.state.lock();
        if logs.extend_from_slice(&s.complete, GFP_KERNEL).is_err() {
            return;
        }
        (s.target.as_ref().map(|t| t.log), s.reach)
    };
    let here = m.replay_link(&me).map(|l| l.log);
    // Logs of our own are not fetched, and end where we say. In that at the replay link, replay may have to go beyond.
    let may_leave = |log: &LogName, course: Course| {
        log.creator != me && (here != Some(*log) || reach.stop(log, &me, course).is_some())
    };
    let mut lost = logs.iter().any(|(log, end)| {
        let course = m.course(log);
        may_leave(log, course) && !course.has(*end)
    });
    let mut wrong = None;
    if let Some(log) = target {
        let course = m.course(&log);
        let primary = m.designated().filter(|p| m.env.is_alive(p));
        let mut s = m.fetch.state.lock();
        if let Some(t) = s.target.as_mut().filter(|t| t.log == log) {
            let ends_at = t.plan.ends_at();
            if matches!(course, Course::Open(at) | Course::EndsAt(at) if t.plan.is_short_of(at)) {
                // Not if there is nobody else to ask.
                wrong = primary.filter(|p| *p != t.source).map(|_| t.source);
                lost |= wrong.is_some();
            }
            match course {
                Course::Open(at) => lost |= ends_at.is_some_and(|end| end < at),
                Course::EndsAt(end) if ends_at.is_some_and(|e| e != end) => lost = true,
                Course::EndsAt(end) if may_leave(&log, course) => t.plan.end_at(end),
                Course::EndsAt(_) => (),
                Course::Elsewhere => lost |= here != Some(log),
            }
        }
    }
    if lost {
        pr_info!(
            "{}: the primary's history goes another way; fetching begins again at the replay position\n",
            m.name.as_str()
        );
        m.fetch.forget();
        if let Some(source) = wrong {
            let _ = m.fetch.state.lock().avoid.push(source, GFP_KERNEL);
        }
    }
}

/// The replay link names a log of this very host: it was primary. Its file is complete as it is.
fn own_log(m: &Arc<Member>, log: LogName, epoch: u64) {
    let Some(link) = m.replay_link(&m.me()) else {
        return;
    };
    let end = link.pos;
    // What is behind it may be on the disk, as may be what the next log of our own has: replay looks first.
    let longer = paths::log(&m.name, &log)
        .and_then(|p| crate::sys::dir::stat(&p))
        .is_ok_and(|s| s.size > end);
    if longer || replay::own_unsaid(m, &log, end).is_some() {
        return;
    }
    if let Some(next) = next_log(m, &log, end) {
        match begin(m, next, 0, epoch) {
            Ok(true) => {
                let mut s = m.fetch.state.lock();
                let _ = s.complete.push((log, end), GFP_KERNEL);
            }
            Ok(false) => (),
            Err(e) => m.set_trouble(Some((
                "waiting",
                format_args!("fetching {next} can't start: {e:?}"),
            ))),
        }
    }
}

fn reconsider(m: &Arc<Member>, log: &LogName) {
    let Some(source) = pick_source(m, log) else {
        return;
    };
    let mut s = m.fetch.state.lock();
    if let Some(t) = &mut s.target {
        if t.log == *log {
            t.source = source;
        }
    }
}

/// The log that follows `log`, whose end is `end`, in the history of any other member.
fn next_log(m: &Member, log: &LogName, end: u64) -> Option<LogName> {
    replay::search(m, log, end, succession::Purpose::Fetch)
}

/// Whom to ask for `log`: its creator, else the designated primary, else anybody, except those who did not have it.
fn pick_source(m: &Member, log: &LogName) -> Option<Name> {
    let me = m.me();
    let avoid = {
        let s = m.fetch.state.lock();
        let mut v = KVec::new();
        v.extend_from_slice(&s.avoid, GFP_KERNEL).ok()?;
        v
    };
    let primary = m.designated();
    let mut best: Option<(u8, Name)> = None;
    let _ = m.for_each_member(|h| {
        if h == me {
            return;
        }
        let mut rank = match () {
            () if h == log.creator => 0,
            () if primary == Some(h) => 1,
            () => 2,
        };
        if avoid.contains(&h) || !m.env.is_alive(&h) {
            rank += 10;
        }
        if best.is_none_or(|(r, _)| rank < r) {
            best = Some((rank, h));
        }
    });
    if best.is_some_and(|(r, _)| r >= 10) {
        // Nobody is left: begin again with everybody.
        m.fetch.state.lock().avoid.clear();
    }
    best.map(|(_, h)| h)
}

/// Fetches `log` from `from` on. Gives whether it has begun: not if `epoch` is over, since then something else is to be fetched.
fn begin(m: &Arc<Member>, log: LogName, from: u64, epoch: u64) -> Result<bool> {
    let source = pick_source(m, &log).ok_or(ENOENT)?;
    let path = paths::log(&m.name, &log)?;
    let flags = OpenFlags {
        write: true,
        create: true,
        ..OpenFlags::default()
    };
    if crate::sys::dir::stat(&path).is_ok_and(|s| s.kind == crate::sys::dir::EntryKind::Symlink) {
        // The tombstone of another log of this name, which was cut off. This one is in the history that counts.
        crate::sys::dir::unlink(&path)?;
    }
    let file = File::open(&path, flags, 0o600).inspect_err(|e| {
        if paths::is_absent(*e) {
            // Deleted, before any of it was here.
            m.fetch.state.lock().gone = Some(log);
        }
    })?;
    let size = file.size();
    if m.replay_link(&m.me()).is_some_and(|l| l.log == log) {
        m.fetch.found(&log, size);
    }
    let (mut end, whole) = replay::valid_end(m, &file, &log, from)?;
    // A designated primary has its disk for good, and fetches only what is damaged: not more than was durable here once.
    let repair = m.designated() == Some(m.me());
    if whole && !repair && file.size() > end {
        inject::at!(FetchBeginCut, end, 0)?;
        file.truncate(end)?;
    }
    // What was replayed of already is known to be the right one.
    let header = u64::try_from(mars_core::log::HEADER_SIZE)?;
    let id = if from <= header && end > 0 {
        replay::read_id(&file)?
    } else {
        0
    };
    let file = Arc::new(file, GFP_KERNEL)?;
    let reported = m.reported_end(&log);
    let mut s = m.fetch.state.lock();
    if s.epoch != epoch {
        return Ok(false);
    }
    if let Some(damaged) = Doubt::of(s.damaged, &log) {
        end = end.min(damaged);
        s.damaged = None;
    }
    let mut plan = FetchPlan::new(end);
    if repair {
        plan.end_at(reported.max(from));
    }
    s.epoch = s.epoch.wrapping_add(1);
    s.target = Some(Target {
        log,
        file,
        plan,
        source,
        epoch: s.epoch,
        id,
        is_confirmed: id == 0 || repair,
        is_asked: false,
    });
    drop(s);
    m.fetch.changed.notify_all();
    Ok(true)
}

/// The workers of one bundle; they stop when dropped.
pub(crate) struct Workers {
    _threads: KVec<Thread>,
}

impl Workers {
    /// Starts the bundle.
    pub(crate) fn start(m: Arc<Member>) -> Result<Self> {
        let mut threads = KVec::new();
        m.fetch.state.lock().busy = true;
        for i in 0..tunables::CONNECTIONS.get() {
            let name = CString::try_from_fmt(format_args!("mars_get{i}/{}", m.name))?;
            let m = m.clone();
            threads.push(Thread::spawn(&name, move |ctx| work(ctx, &m))?, GFP_KERNEL)?;
        }
        Ok(Self { _threads: threads })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for t in &self._threads {
            t.request_stop();
        }
    }
}

/// What one worker is to do.
struct Job {
    task: Task,
    log: LogName,
    file: Arc<File>,
    source: Name,
    epoch: u64,
    id: u64,
}

fn work(ctx: &ThreadCtx, m: &Arc<Member>) {
    let mut conn: Option<Conn> = None;
    while !ctx.should_stop() {
        inject::pass!(FetchRound);
        let Some(job) = next_job(m) else {
            let mut s = m.fetch.state.lock();
            if !ctx.should_stop() {
                let _ = m
                    .fetch
                    .changed
                    .wait_interruptible_timeout(&mut s, msecs_to_jiffies(300));
            }
            continue;
        };
        if conn
            .as_ref()
            .is_none_or(|c| c.peer != job.source || !c.is_usable())
        {
            conn = match Conn::dial(&m.env, &job.source, Purpose::Log) {
                Ok(c) => Some(c),
                Err(_) => {
                    give_back(m, &job, true);
                    ctx.sleep_ms(1000);
                    continue;
                }
            };
        }
        let Some(c) = &mut conn else { continue };
        match run_job(m, c, &job) {
            Ok(()) => (),
            Err(e) => {
                if e == ENOSPC || e == EDQUOT {
                    m.set_trouble(Some(("no-space", format_args!("/mars is full: {} can't be fetched; make room (marsadm log-delete-all, or a larger /mars)", job.log))));
                }
                // Also who has less than was expected is not asked next: two members that wait for each other would do so for
                // ever.
                give_back(m, &job, true);
                conn = None;
                ctx.sleep_ms(500);
            }
        }
    }
    // A poll that nobody waits for any more must be possible again.
}

fn next_job(m: &Member) -> Option<Job> {
    let mut s = m.fetch.state.lock();
    let t = s.target.as_mut()?;
    // First of all, whether it is the same log.
    let asks = !t.is_confirmed;
    let task = if asks {
        Task::Idle
    } else {
        t.plan.next(tunables::FETCH_BYTES)
    };
    if task == Task::Idle && (!asks || t.is_asked) {
        return None;
    }
    t.is_asked = asks;
    Some(Job {
        task,
        log: t.log,
        file: t.file.clone(),
        source: t.source,
        epoch: t.epoch,
        id: if t.is_confirmed { 0 } else { t.id },
    })
}

/// The local file has another log of this name, which is in no history any more: it is fetched anew.
#[cold]
fn throw_away(m: &Arc<Member>, job: &Job) -> Result {
    // Until it is cut it stays one that is not confirmed, and that nobody else asks for: nobody may take it for the right one.
    let epoch = {
        let mut s = m.fetch.state.lock();
        let epoch = s.epoch.wrapping_add(1);
        let target = s.target.as_mut().filter(|t| t.epoch == job.epoch);
        let Some(t) = target else {
            return Ok(());
        };
        t.epoch = epoch;
        s.epoch = epoch;
        epoch
    };
    pr_info!(
        "{}: the local {:?} is another log of this name, from a history that was cut off; fetching it anew\n",
        m.name.as_str(),
        job.log
    );
    let cut = job.file.truncate(0);
    let mut s = m.fetch.state.lock();
    if let Some(t) = s.target.as_mut().filter(|t| t.epoch == epoch) {
        t.is_asked = false;
        if cut.is_ok() {
            s.target = None;
        }
    }
    drop(s);
    m.kick.signal();
    cut
}

fn give_back(m: &Arc<Member>, job: &Job, avoid: bool) {
    let mut s = m.fetch.state.lock();
    if avoid && !s.avoid.contains(&job.source) {
        let _ = s.avoid.push(job.source, GFP_KERNEL);
    }
    if let Some(t) = s.target.as_mut().filter(|t| t.epoch == job.epoch) {
        if job.task == Task::Idle {
            t.is_asked = false;
        } else if t.plan.failed(job.task).is_err() {
            // No memory even for that: forget the plan, the next round makes one from the file.
            s.target = None;
        }
    }
    drop(s);
    m.fetch.changed.notify_all();
}

/// Writes what has arrived to the local copy, past the page cache where position and length allow that: everything is
/// read only once, by replay, and soon.
fn keep(file: &File, data: &[u8], offset: u64) -> Result {
    #[cfg(MARS_INJECT)]
    let mut copy = KVec::new();
    #[cfg(MARS_INJECT)]
    let data = {
        copy.extend_from_slice(data, GFP_KERNEL)?;
        match inject::data!(FetchWrite, offset, &mut copy)? {
            Some(n) => {
                return file
                    .write_at(copy.get(..n).ok_or(EIO)?, offset)
                    .and(Err(EIO))
            }
            None => &copy[..],
        }
    };
    let align = usize::try_from(file.dio_align())?;
    let start = usize::try_from(offset)?;
    if align == 0 || start % align != 0 || data.len() % align != 0 {
        return file.write_at(data, offset);
    }
    let mut buf = Buf::new(data.len())?;
    buf.copy_from_slice(data);
    file.write_direct(&buf, 0, data.len(), offset)
}

fn run_job(m: &Arc<Member>, conn: &mut Conn, job: &Job) -> Result {
    let (offset, max, wait_ms) = match job.task {
        Task::Read(s) => (s.start, s.len, 0),
        Task::Poll(pos) => (pos, tunables::FETCH_BYTES, tunables::LONG_POLL_MS),
        // Nothing is wanted but that it is the same log.
        Task::Idle => (0, 512, 0),
    };
    let request = LogRead {
        resource: m.name,
        number: job.log.number,
        creator: job.log.creator,
        offset,
        max,
        wait_ms,
        log_id: job.id,
    };
    inject::at!(FetchRequest, offset, 0)?;
    let reply = conn.log_read(&request)?;
    match reply.status {
        // Who has nothing of it, or does not know either which one that is, has not said that it is the same.
        LogStatus::Data | LogStatus::Nothing
            if job.task == Task::Idle && (reply.log_id != job.id || reply.end == 0) =>
        {
            return Err(EAGAIN)
        }
        LogStatus::Data | LogStatus::Nothing => (),
        LogStatus::OtherLog
            if job.id != 0
                && (job.source == job.log.creator || m.designated() == Some(job.source)) =>
        {
            return throw_away(m, job)
        }
        LogStatus::NoLog | LogStatus::OtherLog => {
            if m.designated() == Some(job.source) {
                // Nobody can say more of what is here, where the primary has gone on behind it, or has begun behind it. One that
                // has only begun, or is about to, is none that anybody can have yet.
                let begins_behind = || {
                    let history = m.history(&job.source).ok()?;
                    Some(history.first()?.this.log.number > job.log.number)
                };
                let is_past = matches!(m.course(&job.log), Course::EndsAt(_))
                    || begins_behind().unwrap_or(false);
                let mut s = m.fetch.state.lock();
                s.gone = Some(job.log);
                let target = s.target.as_mut().filter(|t| t.epoch == job.epoch);
                if let Some(t) = target.filter(|_| is_past) {
                    t.is_confirmed = true;
                }
                drop(s);
                m.fetch.changed.notify_all();
                m.kick.signal();
            }
            return Err(ENOENT);
        }
        LogStatus::Unavailable => {
            m.set_trouble(Some((
                "waiting",
                format_args!(
                    "{} can't read {} at {offset}; is the disk of its /mars failing?",
                    job.source, job.log
                ),
            )));
            return Err(ENOENT);
        }
    }
    let data = reply.data;
    if reply.offset != offset || data.len() > usize::try_from(max)? {
        return Err(EPROTO);
    }
    if job.task == Task::Idle {
        // The same stands here.
    } else if !data.is_empty() {
        keep(&job.file, data, offset)?;
        inject::at!(FetchWritten, offset, data.len())?;
    } else if matches!(job.task, Task::Read(_)) {
        // The source said that it has these bytes and gave none.
        return Err(EAGAIN);
    }
    let len = if job.task == Task::Idle {
        0
    } else {
        u32::try_from(data.len())?
    };
    let (end, closed) = (reply.end, reply.closed);
    let mut s = m.fetch.state.lock();
    s.avoid.clear();
    if len > 0 {
        // Somebody has it. (Who gives nothing may wait for it, too.)
        s.gone = None;
    }
    let Some(t) = s.target.as_mut().filter(|t| t.epoch == job.epoch) else {
        return Ok(());
    };
    t.is_confirmed = true;
    match job.task {
        Task::Read(span) => t.plan.arrived(span, len),
        Task::Poll(_) => t.plan.polled(offset, len),
        Task::Idle => Ok(()),
    }
    .map_err(|_| EPROTO)?;
    t.plan.source_end(end, closed);
    let complete = t.plan.is_complete();
    m.env
        .stats
        .fetched
        .add(u64::from(len), kernel::sync::atomic::Relaxed);
    drop(s);
    m.fetch.changed.notify_all();
    if complete {
        m.kick.signal();
    }
    Ok(())
}
