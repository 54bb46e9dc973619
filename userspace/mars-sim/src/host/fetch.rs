// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/fetch.rs`: pulling log files from another member.

use super::{
    replay,
    server::{dial, Answer, Ask, Conn, LogReply},
    Host,
};
use crate::{
    defects::on,
    exec::{thread, Cond, Thread, MS},
    fs::{Errno, Node, Res},
    truth::HEADER,
};
use mars_core::{
    fetch::{Doubt, FetchPlan, Task},
    log::{LogHeader, LogName, HEADER_SIZE},
    name::Name,
    succession::{is_passed, reported_end, Course, Purpose, Reach},
};
use mars_host_digest::HostDigest;
use std::{cell::RefCell, rc::Rc};

const FETCH_BYTES: u32 = 4 << 10;
const LONG_POLL_MS: u64 = 2000;
const CONNECTIONS: usize = 2;

struct Target {
    log: LogName,
    ino: u32,
    plan: FetchPlan,
    source: Name,
    epoch: u64,
    id: u64,
    is_confirmed: bool,
    is_asked: bool,
}

#[derive(Default)]
struct State {
    target: Option<Target>,
    epoch: u64,
    complete: Vec<(LogName, u64)>,
    avoid: Vec<Name>,
    unsynced: Option<Doubt>,
    damaged: Option<Doubt>,
    reach: Reach,
    gone: Option<LogName>,
    busy: bool,
}

/// What the replay may read.
#[derive(Clone, Copy)]
pub struct Available {
    /// Bytes before this.
    pub end: u64,
    /// The log has been fetched.
    pub fetched: bool,
    /// It is closed and ends there.
    pub complete: bool,
}

/// State of fetching.
#[derive(Default)]
pub struct Fetch {
    state: RefCell<State>,
    changed: Cond,
}

impl Fetch {
    /// For people.
    pub fn describe(&self) -> String {
        let s = self.state.borrow();
        let t = s
            .target
            .as_ref()
            .map(|t| format!("{} from {}: {:?}", t.log, t.source, t.plan));
        format!(
            "fetch {t:?}, complete {:?}, avoid {:?}, unsynced {:?}, damaged {:?}",
            s.complete, s.avoid, s.unsynced, s.damaged
        )
    }

    /// Log and position up to which it has arrived.
    pub fn position(&self) -> Option<(LogName, u64)> {
        let s = self.state.borrow();
        s.target.as_ref().map(|t| (t.log, t.plan.contiguous()))
    }

    /// Whether something is under way.
    pub fn is_busy(&self) -> bool {
        let s = self.state.borrow();
        let behind = |t: &Target| t.plan.known_end() > t.plan.contiguous();
        s.busy && s.target.as_ref().is_some_and(behind)
    }

    /// What may be read of a log.
    pub fn available(&self, log: &LogName) -> Available {
        let s = self.state.borrow();
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
            _ => Available {
                end: u64::MAX,
                fetched: false,
                complete: false,
            },
        }
    }

    /// Waits for more of a log.
    pub async fn wait_news(&self, h: &Host, t: &Thread, log: &LogName, end: u64) {
        let known = {
            let s = self.state.borrow();
            let more = |t: &Target| {
                t.is_confirmed && (t.log != *log || t.plan.contiguous() > end && end != u64::MAX)
            };
            s.target.as_ref().is_some_and(more)
        };
        if !t.should_stop() && !known {
            self.changed.wait(&h.ex, 500 * MS).await;
        }
        let elsewhere = {
            let s = self.state.borrow();
            let other = |t: &Target| t.log != *log && t.is_confirmed;
            s.target.as_ref().is_some_and(other)
        };
        if elsewhere {
            t.sleep(&h.ex, 20 * MS).await;
        }
    }

    /// Whether replay may go on to a log, of which something may be here.
    pub fn may_go_on(&self, log: &LogName, asks: bool, here: bool) -> bool {
        let s = self.state.borrow();
        let target = s.target.as_ref().filter(|t| t.log == *log);
        let known = s.complete.iter().any(|(l, _)| l == log);
        !asks || !here || known || target.is_some_and(|t| t.is_confirmed) || on("same-name")
    }

    /// Replay has gone on.
    pub fn replaying(&self, log: &LogName) {
        let mut s = self.state.borrow_mut();
        s.complete.retain(|(l, _)| l.number >= log.number);
    }

    /// Throws the state away; the files stay.
    pub fn forget(&self) {
        let mut s = self.state.borrow_mut();
        s.target = None;
        s.complete.clear();
        s.avoid.clear();
        s.gone = None;
        s.epoch += 1;
    }

    /// The local copy is damaged: it is fetched again from there on. It is not cut.
    pub fn again_from(&self, h: &Host, log: &LogName, pos: u64) {
        let mut s = self.state.borrow_mut();
        s.epoch += 1;
        s.complete.retain(|(l, _)| l.number < log.number);
        s.damaged = Some(Doubt::new(*log, pos, u64::MAX, s.damaged));
        let Some(t) = s.target.take() else { return };
        s.avoid.push(t.source);
        drop(s);
        self.changed.notify(&h.ex);
    }

    /// What a log has before `end` is about to be applied.
    pub fn apply(&self, log: &LogName, end: u64) {
        self.state.borrow_mut().reach.apply(log, end);
    }

    /// Everything before a log is on the disk, and nothing of it.
    pub fn begin_replay(&self, log: &LogName) {
        self.state.borrow_mut().reach.begin(*log);
    }

    /// The log that the designated primary was asked for and does not have.
    pub fn gone(&self) -> Option<LogName> {
        let s = self.state.borrow();
        s.gone
            .filter(|log| s.target.as_ref().is_none_or(|t| t.log == *log))
    }

    /// The local file of a log, in which the replay link is, has so many bytes, before anything of it is replayed or cut.
    pub fn found(&self, log: &LogName, size: u64) {
        self.state.borrow_mut().reach.found(*log, size);
    }

    /// What the disk may have.
    pub fn reach(&self) -> Reach {
        self.state.borrow().reach
    }

    /// A sync of the local file has failed; before a position it is on the disk.
    pub fn not_synced(&self, log: &LogName, pos: u64, size: u64) {
        let mut s = self.state.borrow_mut();
        s.unsynced = Some(Doubt::new(*log, pos, size, s.unsynced));
    }

    /// From where on the local file may not be on the disk.
    pub fn unsynced(&self, log: &LogName) -> Option<u64> {
        Doubt::of(self.state.borrow().unsynced, log)
    }

    /// It is, before `end`.
    pub fn synced(&self, log: &LogName, end: u64) {
        let mut s = self.state.borrow_mut();
        s.unsynced = s.unsynced.and_then(|d| d.settle(log, end));
    }
}

/// Starts with the log at the replay link, or goes on with the next one.
pub async fn choose(h: &Rc<Host>) {
    let fetch = &h.fetch;
    keep_course(h);
    let (present, complete_now, epoch) = {
        let s = fetch.state.borrow();
        match &s.target {
            Some(t) if !t.is_confirmed => {
                let (log, source) = (t.log, t.source);
                drop(s);
                if pick_source(h, &log) != Some(source) {
                    reconsider(h, &log);
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
        None => match h.replay_link(&h.me) {
            Some(link) => (link.log, link.pos),
            None => return,
        },
        // Only what is damaged here is fetched: nobody else's history counts any more.
        Some(_) if h.designated() == Some(h.me) => return,
        Some((log, end, source)) => match h.search(&log, end, Purpose::Fetch) {
            Some(next) => {
                fetch.state.borrow_mut().complete.push((log, end));
                fetch.changed.notify(&h.ex);
                (next, 0)
            }
            None => {
                if !complete_now && pick_source(h, &log) != Some(source) {
                    reconsider(h, &log);
                }
                return;
            }
        },
    };
    let path = h.log_path(&log);
    if log.creator == h.me && present.is_none() && h.machine().fs.borrow().node(&path).is_some() {
        own_log(h, log, epoch).await;
        return;
    }
    if begin(h, log, from, epoch).await.is_err() {
        h.set_trouble(Some("waiting"));
    }
}

/// What is no part of the designated primary's history is not fetched.
fn keep_course(h: &Host) {
    // Replay, which was faster, may have left it, and then it may be deleted everywhere.
    let passed = h.replay_link(&h.me).is_some_and(|l| {
        let target = h.fetch.position().map(|(log, _)| log);
        target.is_some_and(|log| is_passed(log.number, &l))
    });
    if passed {
        h.fetch.forget();
        return;
    }
    let (logs, target, reach) = {
        let s = h.fetch.state.borrow();
        let target = s.target.as_ref().map(|t| t.log);
        (s.complete.clone(), target, s.reach)
    };
    let here = h.replay_link(&h.me).map(|l| l.log);
    let may_leave = |log: &LogName, course: Course| {
        log.creator != h.me && (here != Some(*log) || reach.stop(log, &h.me, course).is_some())
    };
    let mut lost = logs.iter().any(|(log, end)| {
        let course = h.course(log);
        may_leave(log, course) && !course.has(*end)
    });
    let mut wrong = None;
    if let Some(log) = target {
        let course = h.course(&log);
        let mut s = h.fetch.state.borrow_mut();
        if let Some(t) = s.target.as_mut() {
            let ends_at = t.plan.ends_at();
            if matches!(course, Course::Open(at) | Course::EndsAt(at) if t.plan.is_short_of(at)) {
                // Not if there is nobody else to ask.
                let other = |p: &Name| *p != t.source && h.is_alive(p);
                wrong = h.designated().filter(other).map(|_| t.source);
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
        h.say(|| format!("the history goes another way: {}", h.fetch.describe()));
        h.fetch.forget();
        h.fetch.state.borrow_mut().avoid.extend(wrong);
    }
}

async fn own_log(h: &Rc<Host>, log: LogName, epoch: u64) {
    let Some(link) = h.replay_link(&h.me) else {
        return;
    };
    let end = link.pos;
    // What is behind it may be on the disk, as may be what the next log of our own has: replay looks first.
    let longer = {
        let fs = h.machine().fs.borrow();
        let size = fs.file(&h.log_path(&log)).map_or(0, |ino| fs.size(ino));
        size as u64 > end
    };
    if longer || replay::own_unsaid(h, &log, end).is_some() {
        return;
    }
    if let Some(next) = h.search(&log, end, Purpose::Fetch) {
        match begin(h, next, 0, epoch).await {
            Ok(true) => h.fetch.state.borrow_mut().complete.push((log, end)),
            Ok(false) => (),
            Err(_) => h.set_trouble(Some("waiting")),
        }
    }
}

fn reconsider(h: &Host, log: &LogName) {
    let Some(source) = pick_source(h, log) else {
        return;
    };
    let mut s = h.fetch.state.borrow_mut();
    if let Some(t) = s.target.as_mut().filter(|t| t.log == *log) {
        t.source = source;
    }
}

fn pick_source(h: &Host, log: &LogName) -> Option<Name> {
    let avoid = h.fetch.state.borrow().avoid.clone();
    let primary = h.designated();
    let mut best: Option<(u8, Name)> = None;
    for m in h.members().into_iter().filter(|m| *m != h.me) {
        let mut rank = match () {
            () if m == log.creator => 0,
            () if primary == Some(m) => 1,
            () => 2,
        };
        if avoid.contains(&m) || !h.is_alive(&m) {
            rank += 10;
        }
        if best.is_none_or(|(r, _)| rank < r) {
            best = Some((rank, m));
        }
    }
    if best.is_some_and(|(r, _)| r >= 10) {
        h.fetch.state.borrow_mut().avoid.clear();
    }
    best.map(|(_, m)| m)
}

/// Gives whether it has begun: not if `epoch` is over.
async fn begin(h: &Rc<Host>, log: LogName, from: u64, epoch: u64) -> Res<bool> {
    let source = pick_source(h, &log).ok_or(Errno::NoEnt)?;
    h.fs_io().await?;
    let path = h.log_path(&log);
    if matches!(h.machine().fs.borrow().node(&path), Some(Node::Link(..))) {
        // Deleted, before any of it was here.
        h.fetch.state.borrow_mut().gone = Some(log);
        return Err(Errno::NoEnt);
    }
    let ino = h.machine().fs.borrow_mut().create(&path)?;
    let size = h.machine().fs.borrow().size(ino) as u64;
    if h.replay_link(&h.me).is_some_and(|l| l.log == log) {
        h.fetch.found(&log, size);
    }
    let (mut end, whole) = replay::valid_end(h, ino, &log, from).await?;
    // A designated primary has its disk for good, and fetches only what is damaged: not more than was durable here once.
    let repair = h.designated() == Some(h.me);
    if whole && !repair && h.machine().fs.borrow().size(ino) as u64 > end {
        h.torn.set(true);
        h.truncate(ino, end).await?;
    }
    // What was replayed of already is known to be the right one.
    let id = if from <= HEADER && end > 0 && !on("same-name") {
        short_id(h.machine().fs.borrow().bytes(ino))
    } else {
        0
    };
    let mut s = h.fetch.state.borrow_mut();
    if s.epoch != epoch {
        return Ok(false);
    }
    if let Some(damaged) = Doubt::of(s.damaged, &log) {
        end = end.min(damaged);
        s.damaged = None;
    }
    s.epoch += 1;
    let mut plan = FetchPlan::new(end);
    if repair {
        let reported = reported_end(&log, h.version(log.number).as_ref());
        plan.end_at(reported.max(from));
    }
    s.target = Some(Target {
        log,
        ino,
        plan,
        source,
        epoch: s.epoch,
        id,
        is_confirmed: id == 0 || repair,
        is_asked: false,
    });
    drop(s);
    h.say(|| format!("fetches {log} from {end} at {source}"));
    h.fetch.changed.notify(&h.ex);
    Ok(true)
}

/// Starts the bundle.
pub fn start(h: &Rc<Host>) -> Vec<Rc<Thread>> {
    h.fetch.state.borrow_mut().busy = true;
    (0..CONNECTIONS)
        .map(|_| {
            let h2 = h.clone();
            thread(&h.ex, h.i, move |t| async move { work(&t, &h2).await })
        })
        .collect()
}

struct Job {
    task: Task,
    log: LogName,
    ino: u32,
    source: Name,
    epoch: u64,
    id: u64,
}

/// Identity of the log in a file.
pub fn short_id(bytes: &[u8]) -> u64 {
    let block = bytes.get(..HEADER_SIZE).unwrap_or(&[]);
    LogHeader::parse::<HostDigest>(block).map_or(0, |(h, _)| h.short_id())
}

/// The local file has another log of this name, which is in no history any more: it is fetched anew.
async fn throw_away(h: &Rc<Host>, job: &Job) -> Res<()> {
    let epoch = {
        let mut s = h.fetch.state.borrow_mut();
        let epoch = s.epoch + 1;
        let target = s.target.as_mut().filter(|t| t.epoch == job.epoch);
        let Some(t) = target else {
            return Ok(());
        };
        t.epoch = epoch;
        s.epoch = epoch;
        epoch
    };
    h.say(|| format!("throws away another {}", job.log));
    let cut = h.truncate(job.ino, 0).await;
    {
        let mut s = h.fetch.state.borrow_mut();
        if let Some(t) = s.target.as_mut().filter(|t| t.epoch == epoch) {
            t.is_asked = false;
            if cut.is_ok() {
                s.target = None;
            }
        }
    }
    h.kick.signal(&h.ex);
    cut
}

async fn work(t: &Thread, h: &Rc<Host>) {
    let mut conn: Option<Conn> = None;
    while !t.should_stop() {
        let Some(job) = next_job(h) else {
            if !t.should_stop() {
                h.fetch.changed.wait(&h.ex, 300 * MS).await;
            }
            continue;
        };
        if conn
            .as_ref()
            .is_none_or(|c| c.peer != job.source || !c.is_usable(h))
        {
            conn = match dial(h, &job.source).await {
                Ok(c) => Some(c),
                Err(_) => {
                    give_back(h, &job, true);
                    t.sleep(&h.ex, 1000 * MS).await;
                    continue;
                }
            };
        }
        let Some(c) = &mut conn else { continue };
        if let Err(e) = run_job(h, c, &job).await {
            if e == Errno::NoSpc {
                h.set_trouble(Some("no-space"));
            }
            give_back(h, &job, true);
            conn = None;
            t.sleep(&h.ex, 500 * MS).await;
        }
    }
}

fn next_job(h: &Host) -> Option<Job> {
    let mut s = h.fetch.state.borrow_mut();
    let t = s.target.as_mut()?;
    // First of all, whether it is the same log.
    let asks = !t.is_confirmed;
    let task = if asks {
        Task::Idle
    } else {
        t.plan.next(FETCH_BYTES)
    };
    if task == Task::Idle && (!asks || t.is_asked) {
        return None;
    }
    t.is_asked = asks;
    Some(Job {
        task,
        log: t.log,
        ino: t.ino,
        source: t.source,
        epoch: t.epoch,
        id: if t.is_confirmed { 0 } else { t.id },
    })
}

fn give_back(h: &Host, job: &Job, avoid: bool) {
    let mut s = h.fetch.state.borrow_mut();
    if avoid && !s.avoid.contains(&job.source) {
        s.avoid.push(job.source);
    }
    if let Some(t) = s.target.as_mut().filter(|t| t.epoch == job.epoch) {
        if job.task == Task::Idle {
            t.is_asked = false;
        } else {
            t.plan.failed(job.task).expect("memory");
        }
    }
    drop(s);
    h.fetch.changed.notify(&h.ex);
}

async fn run_job(h: &Rc<Host>, conn: &mut Conn, job: &Job) -> Res<()> {
    let (offset, max, wait_ms) = match job.task {
        Task::Read(s) => (s.start, s.len, 0),
        Task::Poll(pos) => (pos, FETCH_BYTES, LONG_POLL_MS),
        // Nothing is wanted but that it is the same log.
        Task::Idle => (0, 0, 0),
    };
    let ask = Ask::Log {
        log: job.log,
        offset,
        max,
        wait_ms,
        id: job.id,
    };
    let Answer::Log(reply) = conn.call(h, ask, wait_ms * MS).await? else {
        return Err(Errno::Net);
    };
    let knows = job.source == job.log.creator || h.designated() == Some(job.source);
    if matches!(reply, LogReply::Other) && knows {
        return throw_away(h, job).await;
    }
    let LogReply::Data {
        end,
        closed,
        id,
        data,
    } = reply
    else {
        if h.designated() == Some(job.source) {
            let history = h.history(&job.source);
            let begins = history.first().map(|v| v.this.log.number);
            let is_past = matches!(h.course(&job.log), Course::EndsAt(_))
                || begins.is_some_and(|n| n > job.log.number);
            let mut s = h.fetch.state.borrow_mut();
            s.gone = Some(job.log);
            let target = s.target.as_mut().filter(|t| t.epoch == job.epoch);
            if let Some(t) = target.filter(|_| is_past) {
                t.is_confirmed = true;
            }
            drop(s);
            h.fetch.changed.notify(&h.ex);
            h.kick.signal(&h.ex);
        }
        return Err(Errno::NoEnt);
    };
    let said = id == job.id && end > 0;
    if job.task == Task::Idle && !said {
        return Err(Errno::Again);
    }
    if !data.is_empty() {
        h.write_file(job.ino, offset, &data).await?;
    } else if matches!(job.task, Task::Read(_)) {
        return Err(Errno::Again);
    }
    let len = u32::try_from(data.len()).expect("small");
    let mut s = h.fetch.state.borrow_mut();
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
    .map_err(|_| Errno::Net)?;
    t.plan.source_end(end, closed);
    let complete = t.plan.is_complete();
    drop(s);
    h.fetch.changed.notify(&h.ex);
    if complete {
        h.kick.signal(&h.ex);
    }
    Ok(())
}
