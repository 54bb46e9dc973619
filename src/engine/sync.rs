// SPDX-License-Identifier: GPL-2.0-or-later

//! Filling a replica's disk: digests of both disks are compared, only blocks that differ travel.
//!
//! Each worker has a connection of its own and takes ranges from the plan of the core. The primary's *raw* disk is read,
//! which never has more than its durable log; so the replica is a state that the primary once had as soon as it has
//! replayed the log up to the durable end that the primary had when the last range was read (`syncpos`).
//!
//! The progress (`syncstatus`) is what is done without a gap *and* durable, so a sync goes on there after anything.

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

use mars_core::{
    dirty::{
        Bits,
        Geometry, //
    },
    log::{
        LogName,
        HEADER_SIZE, //
    },
    name::Name,
    succession::{
        has_before,
        only_grows,
        parse_sync_source,
        whole_part,
        wrote_all_since,
        SyncSource, //
    },
    sync::{
        differing,
        digest_chunk,
        digests_len,
        Chunk,
        ChunkCost,
        SyncPlan,
        DEFAULT_CHUNK,
        DEFAULT_GRAIN, //
    },
    tree::value::ReplayLink,
    wire::message::{
        bulk::{
            DirtyPiece,
            DirtyRead,
            SyncData,
            SyncDigest,
            SyncDigests,
            SyncEnd,
            SyncPos,
            SyncRead,
            SyncStatus, //
        },
        Message, //
    }, //
};

use crate::{
    engine::{
        conn::{
            Conn,
            Purpose, //
        },
        digest::KernelDigest,
        inject,
        member::Member,
        pipeline::DOUBTS,
        store::Value,
        tunables, //
    },
    sys::{
        bdev::BlockDevice,
        buf::Buf,
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

/// How often the progress is made durable and written to the tree.
const SAVE_MS: u64 = 3_000;
/// So often, with this pause, it is looked whether the primary's history has come so far as its answer to the end of a sync.
const NEWS_ROUNDS: u32 = 50;
const NEWS_MS: u32 = 100;

/// What is to be compared.
struct Job {
    plan: SyncPlan,
    /// The replay link when it began: replay goes on from there, over whatever is copied.
    link: Option<ReplayLink>,
    /// The `syncstatus` as this sync has told it last.
    told: u64,
    /// It looks at all of the disk.
    of_all: bool,
    /// Before anything is compared, the map of what was written before this log, since that number, is needed.
    need: Option<(LogName, u32)>,
    /// Only what is dirty here is compared.
    map: Option<Bits>,
}

impl Job {
    fn next_chunk(&mut self) -> Option<Chunk> {
        match &self.map {
            Some(map) => self
                .plan
                .next_wanted(|offset, len| map.is_dirty(offset, len)),
            None => self.plan.next_chunk(),
        }
    }
}

/// State of the sync of one resource; shared with the control thread.
#[pin_data]
pub(crate) struct Sync {
    #[pin]
    job: Mutex<Option<Job>>,
    /// Bytes that were transferred since the sync began.
    pub(crate) transferred: Atomic<u64>,
    running: Atomic<u32>,
    /// A flush of the disk failed: all ends, and begins again at what was durable before.
    broken: AtomicFlag,
    /// As it was at the last flush, or when the workers started.
    failed_syncs: Atomic<u64>,
    /// So often, in a row, a flush did not count because of that.
    doubts: Atomic<u32>,
    /// So did the last one.
    flush_failed: AtomicFlag,
}

impl Sync {
    /// No sync.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                job <- new_mutex!(None),
                transferred: Atomic::new(0),
                running: Atomic::new(0),
                broken: AtomicFlag::new(false),
                failed_syncs: Atomic::new(0),
                doubts: Atomic::new(0),
                flush_failed: AtomicFlag::new(false),
            }),
            GFP_KERNEL,
        )
    }
}

/// Whether what the designated primary has may be copied: it needs the history that the replay link here is in.
pub(crate) fn may_start(m: &Member) -> bool {
    m.designated()
        .is_some_and(|p| m.may_sync_from(&p).unwrap_or(false))
}

/// Whether the disk of the designated primary has all that replay does not write again here.
pub(crate) fn may_copy(m: &Member) -> bool {
    let start = m.replay_link(&m.me());
    let source = m.designated().and_then(|p| m.replay_link(&p));
    start.is_some_and(|start| has_before(source, &start))
}

/// Whether what was copied so far is of the disk that `from` has now.
fn has_same_source(m: &Member, from: &Name) -> Result<bool> {
    let Some(told) = m.get(format_args!("syncfrom-{}", m.me())) else {
        return Ok(false);
    };
    let history = m.history(from)?;
    Ok(parse_sync_source(told.as_bytes())
        .is_some_and(|(host, log)| host == *from && wrote_all_since(&log, from, &history)))
}

/// The workers of one sync; they stop when dropped.
pub(crate) struct Workers {
    _threads: KVec<Thread>,
    sync: Arc<Sync>,
}

impl Workers {
    /// Starts or goes on with a sync from `syncstatus-<me>` on.
    pub(crate) fn start(m: Arc<Member>, bdev: Arc<BlockDevice>) -> Result<Self> {
        let size = m.size().ok_or(EINVAL)?;
        let me = m.me();
        inject::at!(SyncStart)?;
        // Half a copy of one host and half of another is a state that neither ever had; nor is one from before a failover.
        let from = m.designated().ok_or(ENOENT)?;
        let told = m.get(format_args!("syncfrom-{me}"));
        let told = told.as_ref().map(Value::as_bytes);
        let header = u64::try_from(HEADER_SIZE)?;
        if m.dirty.is_open() {
            // What was written without a log, and nobody else has, is somewhere on this disk.
            m.try_set(format_args!("syncstatus-{me}"), format_args!("0"))?;
        }
        // Replay moves past the header only when there is no gap before it, or it was passed.
        let before_gap = |l: ReplayLink| l.pos < header && !m.has_passed_gap(&l.log);
        let done = m.number(format_args!("syncstatus-{me}")).unwrap_or(0);
        if told.is_some_and(|v| only_grows(v, done)) && m.replay_link(&me).is_some_and(before_gap) {
            // At the end it will be said that replay may begin in this log, also if there is a gap before it: then what was
            // written in the gap has to be looked for everywhere.
            m.try_set(format_args!("syncstatus-{me}"), format_args!("0"))?;
        }
        let newest = match told.and_then(parse_sync_source) {
            // Not if the resource has become smaller meanwhile: a failover has cut off a resize.
            Some((_, log))
                if has_same_source(&m, &from)?
                    && m.number(format_args!("syncstatus-{me}"))
                        .is_some_and(|done| done < size) =>
            {
                log
            }
            _ => {
                let done = m.number(format_args!("syncstatus-{me}")).unwrap_or(0);
                let whole = told.and_then(|v| whole_part(v, done)).unwrap_or(0);
                let start = whole.min(size);
                if start != done {
                    m.try_set(format_args!("syncstatus-{me}"), format_args!("{start}"))?;
                }
                m.history(&from)?.last().map(|v| v.this.log).ok_or(ENOENT)?
            }
        };
        // With the size: should the resource become smaller, because a resize was cut off, then a part is still not all. But what
        // was all before stays so.
        let start = m.number(format_args!("syncstatus-{me}")).unwrap_or(0);
        let whole = told.and_then(|v| whole_part(v, start));
        let source = SyncSource {
            host: from,
            log: newest,
            target: Some(size),
            whole,
        };
        m.try_set(format_args!("syncfrom-{me}"), format_args!("{source}"))?;
        // Before the first block is written it must be durable that this disk is no longer complete.
        crate::engine::paths::sync_resource_dir(&m.name)?;
        // What was written without a log counts no more, but not before that.
        m.dirty.clear()?;
        inject::at!(SyncBegin)?;
        // The link first: whoever moves it says last that nothing counts.
        let link = m.replay_link(&me);
        if let Some(l) = link.filter(|_| !told.is_some_and(|v| only_grows(v, start))) {
            // Whatever the disk had before is replaced.
            m.fetch.begin_replay(&l.log);
        }
        let need = m.gap_to_pass();
        *m.sync.job.lock() = Some(Job {
            of_all: start == 0 && need.is_none(),
            plan: SyncPlan::new(size, start, DEFAULT_GRAIN, DEFAULT_CHUNK).map_err(|_| EINVAL)?,
            link,
            told: start,
            need,
            map: None,
        });
        m.sync.failed_syncs.store(failed_syncs(), Relaxed);
        m.note_unflushed(&bdev);
        m.sync.transferred.store(0, Relaxed);
        m.sync.broken.store(false, Relaxed);
        // All former workers are gone; one that was stopped before it ran has not counted itself out.
        m.sync.running.store(0, Relaxed);
        let sync = m.sync.clone();
        let mut threads = KVec::new();
        for i in 0..tunables::CONNECTIONS.get() {
            let name = CString::try_from_fmt(format_args!("mars_sync{i}/{}", m.name))?;
            let (m, bdev) = (m.clone(), bdev.clone());
            sync.running.fetch_add(1, kernel::sync::atomic::Full);
            let t = Thread::spawn(&name, move |ctx| {
                work(ctx, &m, &bdev, from, i == 0);
                if m.sync.running.fetch_sub(1, kernel::sync::atomic::Full) == 1 {
                    m.kick.signal();
                }
            });
            match t {
                Ok(t) => threads.push(t, GFP_KERNEL)?,
                Err(e) => {
                    sync.running.fetch_sub(1, kernel::sync::atomic::Full);
                    return Err(e);
                }
            }
        }
        Ok(Self {
            _threads: threads,
            sync,
        })
    }

    /// All workers have ended by themselves: the sync is complete.
    pub(crate) fn is_finished(&self) -> bool {
        self.sync.running.load(Relaxed) == 0
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for t in &self._threads {
            t.request_stop();
        }
    }
}

fn work(ctx: &ThreadCtx, m: &Arc<Member>, bdev: &Arc<BlockDevice>, from: Name, leader: bool) {
    let mut conn: Option<Conn> = None;
    let mut saved = time::mono_ns();
    while !ctx.should_stop() && !m.sync.broken.load(Relaxed) {
        inject::pass!(SyncRound);
        if leader && time::mono_ns().saturating_sub(saved) > SAVE_MS * 1_000_000 {
            save(m, bdev);
            saved = time::mono_ns();
        }
        let Some(primary) = m.designated().filter(|h| *h != m.me()) else {
            ctx.sleep_ms(500);
            continue;
        };
        if from != primary {
            // Blocks of two hosts must not be mixed: the control thread starts anew.
            return;
        }
        if conn
            .as_ref()
            .is_none_or(|c| c.peer != primary || !c.is_usable())
        {
            conn = Conn::dial(&m.env, &primary, Purpose::Sync).ok();
        }
        let Some(c) = &mut conn else {
            ctx.sleep_ms(1000);
            continue;
        };
        let need = m.sync.job.lock().as_ref().and_then(|j| j.need);
        if let Some((log, since)) = need {
            if !leader {
                ctx.sleep_ms(100);
            } else if let Err(e) = get_map(m, c, &log, since) {
                trouble(m, e);
                if e != EAGAIN {
                    conn = None;
                }
                ctx.sleep_ms(1000);
            }
            continue;
        }
        let (chunk, complete) = {
            let mut j = m.sync.job.lock();
            let Some(job) = &mut *j else { return };
            (job.next_chunk(), job.plan.is_complete())
        };
        let Some(chunk) = chunk else {
            if !complete {
                ctx.sleep_ms(50);
                continue;
            }
            if !leader {
                return;
            }
            match finish(m, bdev, c, ctx) {
                Ok(()) => return,
                Err(e) => {
                    trouble(m, e);
                    conn = None;
                    ctx.sleep_ms(1000);
                    continue;
                }
            }
        };
        let r = one_chunk(m, bdev, c, chunk);
        let mut j = m.sync.job.lock();
        let Some(job) = &mut *j else { return };
        // A chunk that was taken back meanwhile is compared again by whoever has it now.
        let _ = match r {
            Ok(cost) => job.plan.done(chunk, cost),
            Err(_) => job.plan.failed(chunk),
        };
        drop(j);
        match r {
            Ok(cost) => {
                m.sync.transferred.fetch_add(cost.transferred, Relaxed);
                m.env.stats.synced.add(cost.transferred, Relaxed);
                m.set_trouble(None);
            }
            Err(e) => {
                trouble(m, e);
                if e != EREMOTEIO {
                    conn = None;
                }
                ctx.sleep_ms(500);
            }
        }
    }
    if leader && !m.sync.broken.load(Relaxed) {
        save(m, bdev);
    }
}

/// Flushes the disk. A flush that failed may have lost any block since the last good one, and the next one would not tell:
/// so everything since then is compared again.
fn flush(m: &Member, bdev: &BlockDevice) -> Result {
    let before = m.sync.failed_syncs.load(Relaxed);
    let r = inject::at!(SyncFlush).and_then(|()| bdev.flush());
    if r.is_err() && !m.sync.flush_failed.load(Relaxed) {
        // The first in a row.
        note_failed_sync();
    }
    m.sync.flush_failed.store(r.is_err(), Relaxed);
    let now = failed_syncs();
    m.sync.failed_syncs.store(now, Relaxed);
    if r.is_ok() && before != now && m.sync.doubts.fetch_add(1, Relaxed) < DOUBTS {
        // If that is on the same drive, it alone was told that the cache is lost.
        pr_warn!("{}: something else on this host could not be made durable; the sync begins again at what was durable before\n", m.name.as_str());
        m.sync.broken.store(true, Relaxed);
        bdev.note_unflushed();
        return Err(EAGAIN);
    } else if r.is_ok() {
        m.sync.doubts.store(0, Relaxed);
    }
    r.inspect_err(|e| {
        pr_err!("{}: flushing the disk failed: {:?}; the sync begins again at what was durable before\n", m.name.as_str(), e);
        m.sync.broken.store(true, Relaxed);
        bdev.note_unflushed();
        trouble(m, EIO);
    })
}

/// Errors of this host's disk; the disk's own numbers also mean other things here.
fn own_disk(e: Error) -> Error {
    crate::sys::log::log_err!("sync: the backing disk failed: {:?}\n", e);
    EIO
}

fn trouble(m: &Member, e: Error) {
    if e == EREMOTEIO || e == EAGAIN {
        m.set_trouble(Some(("waiting", format_args!("the sync waits: the designated primary is not primary yet, or its disk is not ready"))));
    } else if e == EIO {
        m.set_trouble(Some((
            "disk-error",
            format_args!("the sync waits: the backing disk fails. Repair or replace it"),
        )));
    } else if e != EINTR && e != ERESTARTSYS {
        m.set_trouble(Some(("waiting", format_args!("the sync waits: {e:?}"))));
    }
}

/// Compares one range and makes equal what differs.
fn one_chunk(m: &Member, bdev: &BlockDevice, c: &mut Conn, chunk: Chunk) -> Result<ChunkCost> {
    let len = usize::try_from(chunk.len)?;
    let mut local = Buf::new(len)?;
    inject::at!(SyncRead, chunk.offset, len)
        .and_then(|()| bdev.read_at(&mut local, 0, len, chunk.offset))
        .map_err(own_disk)?;
    let ask = SyncDigest {
        resource: m.name,
        offset: chunk.offset,
        length: chunk.len,
        grain: DEFAULT_GRAIN,
    };
    let payload = c.call(&ask, 0)?;
    let reply = SyncDigests::decode(payload).map_err(|_| EPROTO)?;
    status(reply.status)?;
    let mut ranges = KVec::new();
    for d in differing::<KernelDigest>(local.get(..len).ok_or(EIO)?, DEFAULT_GRAIN, reply.data)
        .map_err(|_| EPROTO)?
    {
        ranges.push(d, GFP_KERNEL)?;
    }
    let mut cost = ChunkCost::default();
    for d in &ranges {
        let offset = chunk.offset.saturating_add(u64::from(d.start));
        let from = usize::try_from(d.start)?;
        let n = usize::try_from(d.len)?;
        let part = local.get_mut(from..from.saturating_add(n)).ok_or(EPROTO)?;
        if d.zero {
            part.fill(0);
            cost.zeroed = cost.zeroed.saturating_add(u64::from(d.len));
        } else {
            let ask = SyncRead {
                resource: m.name,
                offset,
                length: d.len,
            };
            let payload = c.call(&ask, 0)?;
            let reply = SyncData::decode(payload).map_err(|_| EPROTO)?;
            status(reply.status)?;
            if reply.offset != offset || reply.data.len() != n {
                return Err(EPROTO);
            }
            part.copy_from_slice(reply.data);
            cost.transferred = cost.transferred.saturating_add(u64::from(d.len));
        }
        inject::at!(SyncWrite, offset, n)
            .and_then(|()| bdev.write_at(&local, from, n, offset, false))
            .map_err(own_disk)?;
    }
    if bdev.is_unflushed() {
        // It may show what it does not have: what compares equal is written, too.
        bdev.write_at(&local, 0, len, chunk.offset, false)
            .map_err(own_disk)?;
    }
    Ok(cost)
}

fn status(s: SyncStatus) -> Result {
    match s {
        SyncStatus::Data => Ok(()),
        SyncStatus::Unavailable | SyncStatus::Restart => Err(EAGAIN),
        SyncStatus::DiskError | SyncStatus::OutOfRange => Err(EREMOTEIO),
    }
}

/// An administrator may have moved the replay link meanwhile (`marsadm invalidate`, with an `attach` in between): what was
/// copied may lack writes from before the new place, which nobody replays. All ends then, and begins again at the
/// `syncstatus` that came with the new link. The same where another host was primary meanwhile.
fn need_same_link(m: &Member) -> Result {
    let place = |l: Option<ReplayLink>| l.map(|l| (l.log, l.pos));
    let (began, told) = {
        let job = m.sync.job.lock();
        (
            job.as_ref().map(|j| place(j.link)),
            job.as_ref().map(|j| j.told),
        )
    };
    // Somebody may have said meanwhile that nothing counts.
    let status = m.number(format_args!("syncstatus-{}", m.me()));
    let as_told = told == Some(status.unwrap_or(0));
    let from = m.designated().ok_or(EAGAIN)?;
    let planned = m.sync.job.lock().as_ref().map(|j| j.plan.size());
    let shrunk = m.size() < planned;
    if as_told
        && !shrunk
        && began == Some(place(m.replay_link(&m.me())))
        && has_same_source(m, &from)?
    {
        return Ok(());
    }
    m.sync.broken.store(true, Relaxed);
    Err(EAGAIN)
}

/// Makes what was written durable, then says so.
fn save(m: &Member, bdev: &BlockDevice) {
    let found = m
        .sync
        .job
        .lock()
        .as_ref()
        .map(|j| (j.plan.progress(), j.plan.size(), j.plan.stats()));
    let Some((done, size, stats)) = found else {
        return;
    };
    if done == size {
        // Only `finish` may say that the disk is complete.
        return;
    }
    if flush(m, bdev).is_ok() && inject::at!(SyncSave).is_ok() && need_same_link(m).is_ok() {
        let me = m.me();
        m.set(format_args!("syncstatus-{me}"), format_args!("{done}"));
        if let Some(j) = &mut *m.sync.job.lock() {
            j.told = done;
        }
        let equal = stats
            .compared
            .saturating_sub(stats.transferred)
            .saturating_sub(stats.zeroed);
        m.set(
            format_args!("verifystatus-{me}"),
            format_args!(
                "{},{}",
                equal >> 12,
                (stats.transferred + stats.zeroed) >> 12
            ),
        );
        m.set(format_args!("actual-{me}/sync-pos"), format_args!("{done}"));
    }
}

/// Everything was compared: asks the primary for its position, which the replica has to reach.
fn finish(m: &Member, bdev: &BlockDevice, c: &mut Conn, ctx: &ThreadCtx) -> Result {
    let payload = c.call(&SyncEnd { resource: m.name }, 0)?;
    let pos = SyncPos::decode(payload).map_err(|_| EPROTO)?;
    status(pos.status)?;
    let creator = pos.creator.ok_or(EPROTO)?;
    inject::at!(SyncFinish)?;
    let link = ReplayLink {
        log: LogName {
            number: pos.number,
            creator,
        },
        pos: pos.pos,
        rest: 0,
    };
    // Else it may come from a time of which nothing is known here yet: another host may have been primary before it. A log
    // that has just begun is known soon; asked anew, the primary may be in the next one already.
    let from = m.designated().ok_or(EAGAIN)?;
    let mut rounds = 0;
    while !m.history(&from)?.iter().any(|v| v.this.log == link.log) {
        if rounds >= NEWS_ROUNDS || ctx.should_stop() {
            return Err(EAGAIN);
        }
        rounds += 1;
        ctx.sleep_ms(NEWS_MS);
    }
    flush(m, bdev).map_err(|e| if e == EAGAIN { e } else { EIO })?;
    need_same_link(m)?;
    let me = m.me();
    // The order matters: a crash in between leaves a sync that has to look at nothing any more, never a disk that counts
    // as consistent too early.
    m.try_set(format_args!("syncpos-{me}"), format_args!("{link}"))?;
    // Replay may begin in the log of the replay link, also if there is a gap before it: all of this disk is from later.
    let from = m.replay_link(&me).ok_or(ENOENT)?.log;
    m.try_set(format_args!("gap-{me}"), format_args!("{from},done"))?;
    inject::at!(SyncPos)?;
    crate::engine::paths::sync_resource_dir(&m.name)?;
    inject::at!(SyncDurable)?;
    need_same_link(m)?;
    // Another host may have been made primary meanwhile.
    if !may_start(m) {
        return Err(EAGAIN);
    }
    // What was compared: if the resource has grown meanwhile, the rest comes next.
    let size = m.sync.job.lock().as_ref().map(|j| j.plan.size());
    let size = size.ok_or(EINVAL)?;
    m.set(format_args!("actual-{me}/sync-pos"), format_args!("{size}"));
    m.try_set(format_args!("syncstatus-{me}"), format_args!("{size}"))?;
    let of_all = m.sync.job.lock().as_ref().is_some_and(|j| j.of_all);
    if of_all {
        m.is_flushed(bdev, size);
    }
    m.set_trouble(None);
    let found = m.sync.job.lock().as_ref().map(|j| j.plan.stats());
    pr_info!(
        "{}: sync complete, {} bytes compared, {} bytes travelled; consistent at {:?} {}\n",
        m.name.as_str(),
        found.map_or(0, |s| s.compared),
        m.sync.transferred.load(Relaxed),
        link.log,
        link.pos
    );
    Ok(())
}

/// This replica has come to log `next`, before which the primary wrote without a log: what it wrote has to be copied. From
/// now until replay has passed the end of that, the disk is not consistent; so only if it can begin at once.
pub(crate) fn ask_for_gap(m: &Member, next: &LogName) {
    let me = m.me();
    let source = m.designated().filter(|h| {
        *h != me
            && m.env.is_alive(h)
            && m.switch(format_args!("actual-{h}/is-primary"))
            && !m.switch(format_args!("actual-{h}/is-emergency"))
    });
    if source.is_none() || !m.switch(format_args!("todo-{me}/sync")) {
        m.set_trouble(Some(("waiting", format_args!("the primary has written without a log before {next} (emergency mode); this replica stays as it is until the primary can be asked for that, and resume-sync permits it"))));
        return;
    }
    // In this order: a sync that is not known to be for a gap compares everything, which is right, too.
    let r = m
        .try_set(format_args!("gap-{me}"), format_args!("{next}"))
        .and_then(|()| inject::at!(GapAsk))
        .and_then(|()| m.try_set(format_args!("syncstatus-{me}"), format_args!("0")))
        .and_then(|()| crate::engine::paths::sync_resource_dir(&m.name));
    match r {
        Ok(()) => {
            pr_info!(
                "{}: getting what was written without a log before {:?}\n",
                m.name.as_str(),
                next
            );
            m.set_trouble(None);
        }
        Err(e) => m.set_trouble(Some((
            "waiting",
            format_args!("the sync can't start: {e:?}; is /mars full?"),
        ))),
    }
    m.kick.signal();
}

/// Gets the map of what was written before log `next`. If there is none, everything is compared.
#[inline(never)]
fn get_map(m: &Member, c: &mut Conn, next: &LogName, since: u32) -> Result {
    let mut found: Option<(Bits, u64)> = None;
    let mut piece = 0;
    loop {
        let ask = DirtyRead {
            resource: m.name,
            number: next.number,
            creator: next.creator,
            piece,
            since,
        };
        let payload = c.call(&ask, 0)?;
        let reply = DirtyPiece::decode(payload).map_err(|_| EPROTO)?;
        match reply.status {
            SyncStatus::Data => (),
            SyncStatus::Restart => return no_map(m, next),
            s => {
                status(s)?;
                return Err(EAGAIN);
            }
        }
        let geometry = Geometry::checked(reply.size, reply.grain).ok_or(EPROTO)?;
        let (mut bits, generation) = match found.take() {
            Some(f) => f,
            None => (Bits::new(geometry)?, reply.generation),
        };
        if bits.geometry() != geometry || generation != reply.generation || reply.piece != piece {
            // Another map meanwhile: from the beginning.
            return Err(EAGAIN);
        }
        if !bits.load(piece, reply.data) {
            return Err(EPROTO);
        }
        piece = piece.saturating_add(1);
        if piece < geometry.pieces() {
            found = Some((bits, generation));
            continue;
        }
        inject::at!(GapMap)?;
        pr_info!(
            "{}: {} bytes may have been written without a log, or by logs that are gone; they are compared\n",
            m.name.as_str(),
            bits.dirty_bytes()
        );
        if let Some(job) = &mut *m.sync.job.lock() {
            job.map = Some(bits);
            job.need = None;
        }
        return Ok(());
    }
}

/// The primary does not know what was written before log `next`.
fn no_map(m: &Member, next: &LogName) -> Result {
    let me = m.me();
    pr_warn!(
        "{}: the primary has no map of what is missing before {:?}; everything is compared\n",
        m.name.as_str(),
        next
    );
    // What was passed over by the map of another primary has to be compared as well.
    m.try_set(format_args!("syncstatus-{me}"), format_args!("0"))?;
    m.try_set(format_args!("gap-{me}"), format_args!("{next},all"))?;
    let size = m.size().ok_or(EINVAL)?;
    let plan = SyncPlan::new(size, 0, DEFAULT_GRAIN, DEFAULT_CHUNK).map_err(|_| EINVAL)?;
    if let Some(job) = &mut *m.sync.job.lock() {
        job.plan = plan;
        job.need = None;
        job.map = None;
    }
    Ok(())
}

/// The primary's half: digests of its raw disk.
pub(crate) fn digests(bdev: &BlockDevice, ask: &SyncDigest) -> Result<KVec<u8>> {
    let len = usize::try_from(ask.length)?;
    let mut buf = Buf::new(len)?;
    bdev.read_at(&mut buf, 0, len, ask.offset)?;
    let mut out = KVec::from_elem(0, digests_len(len, ask.grain).ok_or(EINVAL)?, GFP_KERNEL)?;
    digest_chunk::<KernelDigest>(buf.get(..len).ok_or(EIO)?, ask.grain, &mut out)
        .map_err(|_| EINVAL)?;
    Ok(out)
}
