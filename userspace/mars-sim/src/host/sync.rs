// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/sync.rs`: filling a replica's disk.

use super::{
    dirty::{self, Asked},
    server::{dial, Answer, Ask, Conn},
    Host,
};
use crate::{
    defects::on,
    exec::{thread, Thread, MS},
    fs::{Errno, Res},
    truth::HEADER,
};
use mars_core::{
    dirty::{Bits, Geometry},
    log::LogName,
    name::Name,
    succession::{
        has_before, only_grows, parse_sync_source, whole_part, wrote_all_since, SyncSource,
    },
    sync::{differing, digest_chunk, digests_len, Chunk, ChunkCost, SyncPlan},
    tree::value::ReplayLink,
};
use mars_host_digest::HostDigest;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// Bytes per digest.
pub const GRAIN: u32 = 4 << 10;
const CHUNK: u32 = 8 << 10;
const SAVE_MS: u64 = 300;
const NEWS_MS: u64 = 100;
const NEWS_ROUNDS: u32 = 50;
const CONNECTIONS: usize = 2;

/// State of the sync.
#[derive(Default)]
pub struct Sync {
    plan: RefCell<Option<SyncPlan>>,
    /// The replay link when it began.
    link: Cell<Option<ReplayLink>>,
    /// The `syncstatus` as this sync has told it last.
    told: Cell<u64>,
    /// Before anything is compared, the map of what was written before this log, since that number, is needed.
    need: Cell<Option<(LogName, u32)>>,
    /// Only what is dirty here is compared.
    map: RefCell<Option<Bits>>,
    /// All ends, and begins again.
    broken: Cell<bool>,
    /// It looks at all of the disk.
    of_all: Cell<bool>,
    running: Cell<usize>,
}

impl Sync {
    /// All workers have ended by themselves.
    pub fn is_finished(&self) -> bool {
        self.running.get() == 0
    }
}

/// Whether what the designated primary has may be copied: it needs the history that the replay link here is in.
pub fn may_start(h: &Host) -> bool {
    h.designated().is_some_and(|p| h.may_sync_from(&p))
}

/// Whether the disk of the designated primary has all that replay does not write again here.
pub fn may_copy(h: &Host) -> bool {
    let source = h.designated().and_then(|p| h.replay_link(&p));
    h.replay_link(&h.me)
        .is_some_and(|start| has_before(source, &start))
}

/// Whether what was copied so far is of the disk that `from` has now.
fn has_same_source(h: &Host, from: &Name) -> bool {
    let told = h.get(&format!("syncfrom-{}", h.me));
    told.and_then(|v| parse_sync_source(v.as_bytes()))
        .is_some_and(|(host, log)| host == *from && wrote_all_since(&log, from, &h.history(from)))
}

/// Starts or goes on with a sync.
pub async fn start(h: &Rc<Host>) -> Res<Vec<Rc<Thread>>> {
    let size = h.size().ok_or(Errno::NoEnt)?;
    let me = h.me;
    let from = h.designated().ok_or(Errno::NoEnt)?;
    let told = h.get(&format!("syncfrom-{me}"));
    if h.dirty.is_open(h).await {
        h.try_put(&format!("syncstatus-{me}"), "0").await?;
    }
    let before_gap = |l: ReplayLink| l.pos < HEADER && !h.has_passed_gap(&l.log);
    let done = || h.number(&format!("syncstatus-{me}")).unwrap_or(0);
    let grows = |v: &String| only_grows(v.as_bytes(), done());
    if told.as_ref().is_some_and(grows) && h.replay_link(&me).is_some_and(before_gap) {
        h.try_put(&format!("syncstatus-{me}"), "0").await?;
    }
    let whole = |done| told.as_ref().and_then(|v| whole_part(v.as_bytes(), done));
    let newest = match told.as_ref().and_then(|v| parse_sync_source(v.as_bytes())) {
        Some((_, log))
            if has_same_source(h, &from)
                && h.number(&format!("syncstatus-{me}"))
                    .is_some_and(|done| done < size) =>
        {
            log
        }
        _ => {
            let start = whole(done()).unwrap_or(0).min(size);
            if start != done() {
                h.try_put(&format!("syncstatus-{me}"), &start.to_string())
                    .await?;
            }
            let history = h.history(&from);
            history.last().map(|v| v.this.log).ok_or(Errno::NoEnt)?
        }
    };
    let start = done();
    let source = SyncSource {
        host: from,
        log: newest,
        target: Some(size),
        whole: whole(start),
    };
    h.try_put(&format!("syncfrom-{me}"), &source.to_string())
        .await?;
    h.sync_dir().await?;
    h.dirty.clear(h).await?;
    let link = h.replay_link(&me);
    h.sync.link.set(link);
    let grows = told.is_some_and(|v| only_grows(v.as_bytes(), start));
    if let Some(l) = link.filter(|_| !grows) {
        // Whatever the disk had before is replaced.
        h.fetch.begin_replay(&l.log);
    }
    h.sync.told.set(start);
    let plan = SyncPlan::new(size, start, GRAIN, CHUNK).map_err(|_| Errno::Io)?;
    *h.sync.plan.borrow_mut() = Some(plan);
    h.sync.need.set(h.gap_to_pass());
    h.sync.of_all.set(start == 0 && h.sync.need.get().is_none());
    *h.sync.map.borrow_mut() = None;
    h.sync.broken.set(false);
    h.note_unflushed().await;
    h.say(|| format!("syncs from {from} at {start}"));
    let mut threads = Vec::new();
    for i in 0..CONNECTIONS {
        h.sync.running.set(h.sync.running.get() + 1);
        let h2 = h.clone();
        threads.push(thread(&h.ex, h.i, move |t| async move {
            work(&t, &h2, from, i == 0).await;
            h2.sync.running.set(h2.sync.running.get() - 1);
            if h2.sync.is_finished() {
                h2.kick.signal(&h2.ex);
            }
        }));
    }
    Ok(threads)
}

async fn work(t: &Thread, h: &Rc<Host>, from: Name, leader: bool) {
    let mut conn: Option<Conn> = None;
    let mut saved = h.ex.now();
    while !t.should_stop() && !h.sync.broken.get() {
        if leader && h.ex.now() - saved > SAVE_MS * MS {
            save(h).await;
            saved = h.ex.now();
        }
        let Some(primary) = h.designated().filter(|p| *p != h.me) else {
            t.sleep(&h.ex, 500 * MS).await;
            continue;
        };
        if from != primary {
            return;
        }
        if conn
            .as_ref()
            .is_none_or(|c| c.peer != primary || !c.is_usable(h))
        {
            conn = dial(h, &primary).await.ok();
        }
        let Some(c) = &mut conn else {
            t.sleep(&h.ex, 1000 * MS).await;
            continue;
        };
        if let Some((log, since)) = h.sync.need.get() {
            if !leader {
                t.sleep(&h.ex, 100 * MS).await;
            } else if let Err(e) = get_map(h, c, &log, since).await {
                h.set_trouble(Some("waiting"));
                if e != Errno::Again {
                    conn = None;
                }
                t.sleep(&h.ex, 1000 * MS).await;
            }
            continue;
        }
        let (chunk, complete) = {
            let mut p = h.sync.plan.borrow_mut();
            let Some(plan) = &mut *p else { return };
            let chunk = match &*h.sync.map.borrow() {
                Some(map) => plan.next_wanted(|offset, len| dirty::is_dirty(map, offset, len)),
                None => plan.next_chunk(),
            };
            (chunk, plan.is_complete())
        };
        let Some(chunk) = chunk else {
            if !complete {
                t.sleep(&h.ex, 50 * MS).await;
                continue;
            }
            if !leader {
                return;
            }
            if finish(h, c, t).await.is_ok() {
                return;
            }
            h.set_trouble(Some("waiting"));
            conn = None;
            t.sleep(&h.ex, 1000 * MS).await;
            continue;
        };
        let r = one_chunk(h, c, chunk).await;
        {
            let mut p = h.sync.plan.borrow_mut();
            let Some(plan) = &mut *p else { return };
            let _ = match r {
                Ok(()) => plan.done(chunk, ChunkCost::default()),
                Err(_) => plan.failed(chunk),
            };
        }
        match r {
            Ok(()) => h.set_trouble(None),
            Err(e) => {
                h.set_trouble(Some("waiting"));
                if e != Errno::Remote {
                    conn = None;
                }
                t.sleep(&h.ex, 500 * MS).await;
            }
        }
    }
    if leader && !h.sync.broken.get() {
        save(h).await;
    }
}

async fn one_chunk(h: &Rc<Host>, c: &mut Conn, chunk: Chunk) -> Res<()> {
    let len = chunk.len as usize;
    let mut local = h.read_disk(chunk.offset, len).await?;
    let ask = Ask::Digest {
        offset: chunk.offset,
        len,
    };
    let Answer::Bytes(digests) = c.call(h, ask, 0).await? else {
        return Err(Errno::Again);
    };
    let ranges: Vec<_> = differing::<HostDigest>(&local, GRAIN, &digests)
        .map_err(|_| Errno::Net)?
        .collect();
    for d in ranges {
        let offset = chunk.offset + u64::from(d.start);
        let (from, n) = (d.start as usize, d.len as usize);
        if d.zero {
            local[from..from + n].fill(0);
        } else {
            let ask = Ask::Read { offset, len: n };
            let Answer::Bytes(bytes) = c.call(h, ask, 0).await? else {
                return Err(Errno::Again);
            };
            if bytes.len() != n {
                return Err(Errno::Net);
            }
            local[from..from + n].copy_from_slice(&bytes);
        }
        h.write_disk(offset, local[from..from + n].to_vec()).await?;
    }
    if h.unflushed.get() {
        // It may show what it does not have.
        h.write_disk(chunk.offset, local).await?;
    }
    Ok(())
}

/// Flushes the disk. A flush that failed may have lost any block since the last good one, and the next one would not tell:
/// so everything since then is compared again.
async fn flush(h: &Host) -> Res<()> {
    let r = h.flush_disk().await;
    if r.is_err() && !on("sync-trusts-flush") {
        h.sync.broken.set(true);
    }
    r
}

/// Whether the replay link is where it was when the sync began, and nobody else was primary meanwhile.
fn need_same_link(h: &Host) -> Res<()> {
    let place = |l: Option<ReplayLink>| l.map(|l| (l.log, l.pos));
    let from = h.designated().ok_or(Errno::Again)?;
    let status = h.number(&format!("syncstatus-{}", h.me)).unwrap_or(0);
    let planned = h.sync.plan.borrow().as_ref().map(SyncPlan::size);
    if status == h.sync.told.get()
        && h.size() >= planned
        && place(h.sync.link.get()) == place(h.replay_link(&h.me))
        && has_same_source(h, &from)
    {
        return Ok(());
    }
    h.sync.broken.set(true);
    Err(Errno::Again)
}

async fn save(h: &Host) {
    let done = h.sync.plan.borrow().as_ref().map(SyncPlan::progress);
    let Some(done) = done else { return };
    if Some(done) == h.sync.plan.borrow().as_ref().map(SyncPlan::size) {
        return;
    }
    if flush(h).await.is_ok() && need_same_link(h).is_ok() {
        let me = h.me;
        h.put(&format!("syncstatus-{me}"), &done.to_string()).await;
        h.sync.told.set(done);
    }
}

async fn finish(h: &Rc<Host>, c: &mut Conn, t: &Thread) -> Res<()> {
    let Answer::End(Some((log, pos))) = c.call(h, Ask::End, 0).await? else {
        return Err(Errno::Again);
    };
    let link = ReplayLink { log, pos, rest: 0 };
    // Else it may come from a time of which nothing is known here yet: another host may have been primary before it.
    let from = h.designated().ok_or(Errno::Again)?;
    let mut rounds = 0;
    while !h.history(&from).iter().any(|v| v.this.log == log) {
        if rounds >= NEWS_ROUNDS || t.should_stop() {
            return Err(Errno::Again);
        }
        rounds += 1;
        t.sleep(&h.ex, NEWS_MS * MS).await;
    }
    if !on("sync-status-before-flush") {
        flush(h).await?;
    }
    need_same_link(h)?;
    let me = h.me;
    if !on("sync-forgets-end") {
        h.try_put(&format!("syncpos-{me}"), &link.to_string())
            .await?;
    }
    // Replay may begin in the log of the replay link, also if there is a gap before it: all of this disk is from later.
    let from = h.replay_link(&me).ok_or(Errno::NoEnt)?.log;
    h.try_put(&format!("gap-{me}"), &format!("{from},done"))
        .await?;
    h.sync_dir().await?;
    need_same_link(h)?;
    if !may_start(h) {
        return Err(Errno::Again);
    }
    let size = h.sync.plan.borrow().as_ref().map(SyncPlan::size);
    let size = size.ok_or(Errno::NoEnt)?;
    h.try_put(&format!("syncstatus-{me}"), &size.to_string())
        .await?;
    if h.sync.of_all.get() {
        h.is_flushed(size).await;
    }
    h.set_trouble(None);
    h.say(|| format!("sync is complete, consistent at {log} {pos}"));
    Ok(())
}

/// This replica has come to log `next`, before which the primary wrote without a log: what it wrote has to be copied.
pub async fn ask_for_gap(h: &Host, next: &LogName) {
    let me = h.me;
    let source = h.designated().filter(|d| {
        *d != me
            && h.is_alive(d)
            && h.switch(&format!("actual-{d}/is-primary"))
            && !h.switch(&format!("actual-{d}/is-emergency"))
    });
    if source.is_none() || !h.switch(&format!("todo-{me}/sync")) {
        h.set_trouble(Some("waiting"));
        return;
    }
    // In this order: a sync that is not known to be for a gap compares everything, which is right, too.
    let r: Res<()> = async {
        h.try_put(&format!("gap-{me}"), &next.to_string()).await?;
        h.try_put(&format!("syncstatus-{me}"), "0").await?;
        h.sync_dir().await
    }
    .await;
    h.say(|| format!("getting what was written without a log before {next}: {r:?}"));
    h.set_trouble(r.err().map(|_| "waiting"));
    h.kick.signal(&h.ex);
}

/// Gets the map of what was written before log `next`. If there is none, everything is compared.
async fn get_map(h: &Rc<Host>, c: &mut Conn, next: &LogName, since: u32) -> Res<()> {
    let mut found: Option<(Bits, u64)> = None;
    let mut piece = 0;
    loop {
        let ask = Ask::Dirty {
            next: *next,
            since,
            piece,
        };
        let Answer::Dirty(reply) = c.call(h, ask, 0).await? else {
            return Err(Errno::Again);
        };
        let (geometry, generation, data) = match reply {
            Asked::Piece {
                geometry,
                generation,
                bits,
            } => (geometry, generation, bits),
            Asked::Unknown => return no_map(h, next).await,
            Asked::Later => return Err(Errno::Again),
        };
        let geometry = Geometry::checked(geometry.size, geometry.grain).ok_or(Errno::Net)?;
        let (mut bits, same) = match found.take() {
            Some(f) => f,
            None => (Bits::new(geometry).expect("memory"), generation),
        };
        if bits.geometry() != geometry || generation != same {
            return Err(Errno::Again);
        }
        if !bits.load(piece, &data) {
            return Err(Errno::Net);
        }
        piece += 1;
        if piece < geometry.pieces() {
            found = Some((bits, generation));
            continue;
        }
        h.say(|| format!("the map says {} dirty", bits.dirty_bytes() / dirty::SCALE));
        *h.sync.map.borrow_mut() = Some(bits);
        h.sync.need.set(None);
        return Ok(());
    }
}

/// The primary does not know what was written before log `next`.
async fn no_map(h: &Host, next: &LogName) -> Res<()> {
    let me = h.me;
    h.say(|| "the primary has no map, everything is compared".into());
    // What was passed over by the map of another primary has to be compared as well.
    h.try_put(&format!("syncstatus-{me}"), "0").await?;
    h.try_put(&format!("gap-{me}"), &format!("{next},all"))
        .await?;
    let size = h.size().ok_or(Errno::NoEnt)?;
    let plan = SyncPlan::new(size, 0, GRAIN, CHUNK).map_err(|_| Errno::Io)?;
    *h.sync.plan.borrow_mut() = Some(plan);
    h.sync.need.set(None);
    *h.sync.map.borrow_mut() = None;
    Ok(())
}

/// The primary's half: digests of its raw disk.
pub async fn digests(h: &Host, offset: u64, len: usize) -> Res<Vec<u8>> {
    let bytes = h.read_disk(offset, len).await?;
    let mut out = vec![0; digests_len(len, GRAIN).ok_or(Errno::Io)?];
    digest_chunk::<HostDigest>(&bytes, GRAIN, &mut out).map_err(|_| Errno::Io)?;
    Ok(out)
}
