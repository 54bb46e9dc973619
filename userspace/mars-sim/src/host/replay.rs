// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/replay.rs`: local logs onto the disk, all the time on a secondary, once before a device appears.

use super::{
    logger::has_batches,
    pipeline::{self, Pipeline, Slice},
    sync, Host,
};
use crate::{
    defects::on,
    exec::{thread, Thread, MS},
    fs::{Errno, Res},
    truth::{Place, Whose, HEADER, SECTOR},
};
use mars_core::{
    buffer::{Kind, LogPos},
    dirty::Recovery,
    log::{EndFinder, EndStep, LogContext, LogHeader, LogName, ScanPos, HEADER_SIZE},
    replay::{Extent, Next, Replayer},
    succession::{is_stale, own_next, reported_end, Purpose},
    tree::value::ReplayLink,
    writeback::Policy,
};
use mars_host_digest::HostDigest;
use std::{cell::RefCell, rc::Rc};

const CHUNK: usize = 16 << 10;
const REPAIRS: u32 = 3;
const ROUNDS: u32 = 33; // Sooner than in the engine: runs are short.

/// Where a replay is.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Log.
    pub log: LogName,
    /// Everything before was admitted.
    pub pos: u64,
}

enum Looked {
    Admitted,
    Starved,
    End(bool),
    Bad(bool),
    /// The log begins behind a gap that this disk has not passed.
    Gap,
}

type Known = Rc<RefCell<Vec<LogName>>>;

struct Session {
    h: Rc<Host>,
    pipe: Rc<Pipeline>,
    writeback: Rc<Thread>,
    logs: Known,
    file: Option<u32>,
    at: At,
    replayer: Option<Replayer>,
    ctx: LogContext,
    known: bool,
    synced: u64,
    size: u64,
    /// This log of a former gap ends here, whatever the file has behind it.
    limit: Option<(LogName, u64)>,
    following: bool,
}

impl Session {
    async fn new(h: &Rc<Host>, following: bool) -> Res<Self> {
        let link = h.replay_link(&h.me).ok_or(Errno::NoEnt)?;
        if following && link.log.creator != h.me {
            // An earlier run may have replayed more than the link says: all that this file has.
            let fs = h.machine().fs.borrow();
            let size = fs
                .file(&h.log_path(&link.log))
                .map_or(0, |ino| fs.size(ino));
            h.fetch.found(&link.log, size as u64);
        }
        let (at, limit) = begin(h, &link).await;
        let size = h.machine().disk.borrow().len() as u64;
        let policy = if following {
            Policy::replica()
        } else {
            Policy::recovery()
        };
        let pipe = Pipeline::new(h, policy);
        let logs: Known = Rc::default();
        let (h2, logs2) = (h.clone(), logs.clone());
        let publish = move |pos| {
            let (h, logs) = (h2.clone(), logs2.clone());
            Box::pin(async move { publish(&h, &logs, pos).await }) as _
        };
        let writeback = pipeline::spawn(&pipe, Box::new(publish));
        Ok(Self {
            h: h.clone(),
            pipe,
            writeback,
            logs,
            file: None,
            at,
            replayer: None,
            ctx: LogContext {
                log_id: [0; 16],
                align: 512,
            },
            known: false,
            synced: 0,
            size,
            limit,
            following,
        })
    }

    /// No more than what counts of the present log.
    fn clip(&self, extent: Extent) -> Extent {
        match (self.limit, extent) {
            (Some((log, end)), Extent::Unknown) if log == self.at.log => Extent::Known(end),
            (Some((log, end)), Extent::Known(known)) if log == self.at.log => {
                Extent::Known(known.min(end))
            }
            _ => extent,
        }
    }

    /// A header that has arrived and can't be read is damaged.
    fn without_header(extent: Extent) -> Looked {
        match extent {
            Extent::Known(end) if end >= HEADER => Looked::Bad(true),
            _ => Looked::Starved,
        }
    }

    /// Opens the log at the present position; gives why that can't be done yet.
    async fn open(&mut self, extent: Extent) -> Res<Option<Looked>> {
        let is_known = matches!(extent, Extent::Known(_));
        if self.replayer.is_some() {
            match (self.known, extent, self.file) {
                (false, Extent::Known(_), _) => self.synced = self.at.pos,
                (true, Extent::Unknown, Some(_)) if on("recovery-stops-early") => (),
                (true, Extent::Unknown, Some(ino)) => {
                    let size = self.h.machine().fs.borrow().size(ino) as u64;
                    self.make_durable(ino, extent, self.applied(), false)
                        .await?;
                    self.synced = size;
                }
                _ => (),
            }
        }
        if let Some(r) = &mut self.replayer {
            match extent {
                Extent::Known(end) if self.known => r.known(end),
                Extent::Unknown if !self.known => (),
                _ => *r = Replayer::new(self.at.log.number, self.ctx, r.at(), extent, self.size),
            }
            self.known = is_known;
            return Ok(None);
        }
        if matches!(extent, Extent::Known(end) if end < HEADER) {
            return Ok(Some(Looked::Starved));
        }
        let path = self.h.log_path(&self.at.log);
        self.h.fs_io().await?;
        let Some(ino) = self.h.machine().fs.borrow().file(&path) else {
            return Ok(Some(Self::without_header(extent)));
        };
        drop_cache(&self.h, ino, &self.at.log);
        let Some((ctx, crc, gap)) = read_header(&self.h, ino, &self.at.log).await? else {
            return Ok(Some(Self::without_header(extent)));
        };
        let passed = self.h.has_passed_gap(&self.at.log) || on("replay-ignores-gap");
        if gap && self.at.pos <= HEADER && !passed {
            return Ok(Some(Looked::Gap));
        }
        let size = self.h.machine().fs.borrow().size(ino) as u64;
        self.make_durable(ino, extent, self.applied(), false)
            .await?;
        self.h.sync_dir().await?;
        self.synced = match extent {
            Extent::Known(end) => end,
            Extent::Unknown => size,
        };
        self.logs.borrow_mut().push(self.at.log);
        let from = if self.at.pos <= HEADER {
            self.at.pos = HEADER;
            ScanPos::first(crc)
        } else {
            ScanPos {
                pos: self.at.pos,
                seq: None,
                chain: None,
            }
        };
        self.ctx = ctx;
        self.known = is_known;
        self.replayer = Some(Replayer::new(
            self.at.log.number,
            ctx,
            from,
            extent,
            self.size,
        ));
        self.file = Some(ino);
        Ok(None)
    }

    /// Syncs the file, of which everything before `from` is on the disk. After a sync that failed, what is in doubt is written
    /// once more first, as far as everything has arrived: behind that fetching may be writing.
    async fn make_durable(
        &mut self,
        ino: u32,
        extent: Extent,
        from: u64,
        data_only: bool,
    ) -> Res<()> {
        let h = self.h.clone();
        let size = h.machine().fs.borrow().size(ino) as u64;
        let end = match extent {
            Extent::Known(end) => end.min(size),
            Extent::Unknown => size,
        };
        let again = h.fetch.unsynced(&self.at.log).filter(|pos| *pos < end);
        if let Some(pos) = again {
            write_again(&h, ino, pos, end).await?;
        }
        if let Err(e) = h.sync_file(ino, data_only).await {
            return Err(self.not_durable(ino, from, e));
        }
        if again.is_some() {
            h.fetch.synced(&self.at.log, end);
        }
        Ok(())
    }

    /// A sync of the present file has failed: the next one would not write again what this one has lost.
    fn not_durable(&mut self, ino: u32, from: u64, e: Errno) -> Errno {
        if on("trust-failed-sync") {
            return e;
        }
        let size = self.h.machine().fs.borrow().size(ino) as u64;
        self.h.fetch.not_synced(&self.at.log, from, size);
        self.replayer = None;
        self.file = None;
        e
    }

    /// Whether something is in doubt that is to be replayed now.
    fn is_in_doubt(&self, extent: Extent) -> bool {
        let pos = self.h.fetch.unsynced(&self.at.log);
        match extent {
            Extent::Known(end) => pos.is_some_and(|pos| pos < end),
            Extent::Unknown => pos.is_some(),
        }
    }

    /// What is before is on the disk. Nothing was applied yet of a log that just begins: its header may be in doubt, too.
    fn applied(&self) -> u64 {
        if self.at.pos <= HEADER {
            0
        } else {
            self.at.pos
        }
    }

    async fn step(&mut self, extent: Extent, stop: &Thread) -> Res<Looked> {
        let extent = self.clip(extent);
        let stop_at = if self.following {
            let log = &self.at.log;
            let reach = self.h.fetch.reach();
            reach.stop(log, &self.h.me, self.h.course(log))
        } else {
            None
        };
        if let Some(looked) = self.open(extent).await? {
            return Ok(looked);
        }
        let Some(ino) = self.file else {
            return Ok(Looked::Starved);
        };
        if let Extent::Known(end) = extent {
            if end > self.synced && on("replay-before-log-flush") {
                self.synced = end;
            }
            if end > self.synced {
                self.make_durable(ino, extent, self.synced, true).await?;
                self.synced = end;
            }
        }
        let limit = match extent {
            Extent::Known(end) => end,
            Extent::Unknown => self.synced,
        };
        let Some(replayer) = &mut self.replayer else {
            return Ok(Looked::Starved);
        };
        replayer.stop_at(stop_at);
        let limit = limit.min(stop_at.unwrap_or(u64::MAX));
        let mut want = CHUNK;
        loop {
            let left = usize::try_from(limit.saturating_sub(self.at.pos)).unwrap_or(usize::MAX);
            let rest = left.min(want);
            if rest == 0 {
                return Ok(Looked::Starved);
            }
            let buf = Rc::new(self.h.read_file(ino, self.at.pos, rest).await?);
            let n = buf.len();
            if self.following && extent == Extent::Unknown {
                if let Err(e) = self.h.sync_file(ino, true).await {
                    let from = self.at.pos;
                    return Err(self.not_durable(ino, from, e));
                }
            }
            let mut used = 0usize;
            loop {
                let bytes = buf.get(used..n).unwrap_or(&[]);
                let eof = n < rest || (extent == Extent::Unknown && n == left);
                match replayer.next::<HostDigest>(bytes, eof) {
                    Next::Batch(batch) => {
                        let end = batch.end();
                        self.h.fetch.apply(&self.at.log, end.pos);
                        let mut records: Vec<_> = batch.records().collect();
                        if on("replay-out-of-order") {
                            records.reverse();
                        }
                        for a in records {
                            let data = (a.kind == Kind::Write).then(|| Slice {
                                buf: buf.clone(),
                                off: u32::try_from(used + a.payload_at).expect("small"),
                            });
                            if let Err(e) = self.pipe.admit_replayed(&a, data, end, stop).await {
                                replayer.put_back();
                                return Err(e);
                            }
                        }
                        self.pipe.with(|s| s.buffer.passed(end));
                        used += batch.bytes() as usize;
                        self.at.pos = end.pos;
                    }
                    _ if used > 0 => {
                        self.pipe.work.signal(&self.h.ex);
                        return Ok(Looked::Admitted);
                    }
                    Next::CaughtUp => return Ok(Looked::Starved),
                    Next::Read { min, .. } if min > want => {
                        want = min;
                        break;
                    }
                    Next::Read { .. } => return Ok(Looked::Starved),
                    Next::End(reason) => return Ok(Looked::End(reason.is_clean())),
                    Next::Defective(d) => {
                        self.h.say(|| format!("defect {d}"));
                        return Ok(Looked::Bad(d.may_be_repaired()));
                    }
                }
            }
        }
    }

    async fn switch(&mut self, next: LogName) -> Res<()> {
        let (h, at) = (self.h.clone(), self.at);
        h.say(|| format!("goes on from {} {} to {next}", at.log, at.pos));
        adopt(&h, &at, &next);
        if let Some(ino) = self.file {
            if h.machine().fs.borrow().size(ino) as u64 > at.pos {
                h.say(|| format!("cuts {} at {}", at.log, at.pos));
                h.truncate(ino, at.pos).await?;
                h.sync_file(ino, false).await?;
            }
        }
        if !on("position-before-history") {
            h.advance(&at.log, at.pos, at.pos, true).await?;
        }
        if !on("closed-end-undurable") {
            h.sync_dir().await?;
        }
        // Of a log of this very host more may have been said: so much was durable once.
        h.set_version(&next, h.said_end(&next)).await?;
        h.advance(&next, 0, 0, false).await?;
        h.fetch.begin_replay(&next);
        self.replayer = None;
        self.file = None;
        self.at = At { log: next, pos: 0 };
        self.logs.borrow_mut().clear();
        Ok(())
    }

    async fn settle(&self, give_up: impl Fn() -> bool) -> Res<()> {
        if !on("switch-without-drain") {
            self.pipe.drain(give_up).await?;
        }
        let (log, pos) = (self.at.log, self.at.pos);
        covered(&self.h, &log, pos);
        self.h.advance(&log, pos, pos, true).await
    }

    async fn end(&self) {
        self.writeback.stop(&self.h.ex).await;
    }
}

/// A log that a crash left without anybody having used it begins where its creator stands.
fn adopt(h: &Host, at: &At, next: &LogName) {
    let Some(from) = h.place(&at.log, at.pos) else {
        return;
    };
    let mut t = h.sim.truth.borrow_mut();
    let fs = h.machine().fs.borrow();
    let Some(ino) = fs.file(&h.log_path(next)) else {
        return;
    };
    if let Some(id) = t.find_file(next, fs.bytes(ino)) {
        t.adopt(id, from);
    }
}

/// Nothing is in flight: what the disk has beyond the state at a position must come from logs that are here. (Rotation
/// does not wait for write-back, so a primary's disk may have records of the log after the one that it is replayed from.)
fn covered(h: &Host, log: &LogName, pos: u64) {
    if h.machine().flipped.get() || h.sim.is_good(h.i).is_none() {
        return;
    }
    let link = ReplayLink {
        log: *log,
        pos,
        rest: 0,
    };
    let m = h.machine();
    let (fs, disk) = (m.fs.borrow(), m.disk.borrow());
    let w = h.sim.whose(h.i, &fs, &disk, false);
    let r = h.sim.truth.borrow_mut().after_crash(w, &link, None);
    drop((fs, disk));
    h.sim.check(h.i, r);
}

/// Nothing is in flight: the first `size` bytes of the disk must be exactly a state of the truth.
///
/// A bit that has flipped behind what was reported as durable looks like a torn end after a crash, and what stood there may be on
/// the disk: two faults at once, of which one destroys what is needed against the other. Such a run ends.
pub fn exact(h: &Host, log: &LogName, pos: u64, size: u64, when: &str) {
    if h.sim.reached(h.i).is_none() {
        h.sim.violated(format!(
            "P1 prefix: {when} the disk is no state that the primary had (host {})",
            h.me
        ));
        return;
    }
    let Some(place): Option<Place> = h.place(log, pos) else {
        return;
    };
    let (fs, disk) = (h.machine().fs.borrow(), h.machine().disk.borrow());
    let w = Whose {
        sectors: usize::try_from(size).unwrap_or(0) / SECTOR,
        ..h.sim.whose(h.i, &fs, &disk, false)
    };
    let open = h.dirty.is_open_now();
    let r = h.sim.truth.borrow_mut().exact(w, place, open, when);
    if r.is_err() && h.machine().flipped.get() && h.torn.get() {
        h.say(|| "a damaged log was taken for a torn one: the run is over".into());
        h.sim.over.set(true);
        return;
    }
    h.sim.check(h.i, r);
}

/// Writes what can be read of a part of a log once more. (In the kernel, what the page cache has can always be read, and a place
/// that can't be is passed over. Here any read may fail.)
async fn write_again(h: &Host, ino: u32, from: u64, end: u64) -> Res<()> {
    let mut pos = from;
    while pos < end {
        let want = usize::try_from(end - pos).unwrap_or(CHUNK).min(CHUNK);
        let bytes = h.read_file(ino, pos, want).await?;
        if bytes.is_empty() {
            break;
        }
        h.write_file(ino, pos, &bytes).await?;
        pos += bytes.len() as u64;
    }
    Ok(())
}

/// Looks at what the disk has, not at what a failed sync of an earlier run of the module has left in the page cache. What this
/// run knows to be in doubt is still to be written once more from there.
fn drop_cache(h: &Host, ino: u32, log: &LogName) {
    let trusted = on("trust-page-cache") || on("trust-failed-sync");
    if h.fetch.unsynced(log).is_none() && !trusted {
        h.machine().fs.borrow_mut().drop_cache(ino);
    }
}

/// Where replay begins: at the replay link, unless the dirty map knows better. Also gives where the log before an open gap
/// ends.
async fn begin(h: &Host, link: &ReplayLink) -> (At, Option<(LogName, u64)>) {
    let here = At {
        log: link.log,
        pos: link.pos,
    };
    let later = |log: LogName, pos: u64| {
        if (log.number, pos) > (link.log.number, link.pos) && !on("gap-replays-base") {
            At { log, pos }
        } else {
            here
        }
    };
    match h.dirty.recovery(h).await {
        Recovery::Normal => (here, None),
        Recovery::Until { from, log, end } => {
            (from.map_or(here, |from| later(from, 0)), Some((log, end)))
        }
        Recovery::Behind(log, end) => (later(log, end), Some((log, end))),
        Recovery::From(log) => (later(log, 0), None),
    }
}

/// Header of a log: what its batches must have, the first chain value, and whether there is a gap before it.
pub async fn read_header(
    h: &Host,
    ino: u32,
    log: &LogName,
) -> Res<Option<(LogContext, u32, bool)>> {
    let block = h.read_file(ino, 0, HEADER_SIZE).await?;
    if block.len() < HEADER_SIZE {
        return Ok(None);
    }
    match LogHeader::parse::<HostDigest>(&block) {
        Ok((x, crc)) if x.name() == *log && x.resource == h.res => {
            Ok(Some((x.context(), crc, x.gap)))
        }
        Ok(_) | Err(_) => Ok(None),
    }
}

async fn publish(h: &Host, logs: &Known, pos: LogPos) -> bool {
    let log = logs
        .borrow()
        .iter()
        .find(|l| l.number == pos.number)
        .copied();
    let Some(log) = log else { return true };
    let end = h
        .fetch
        .position()
        .filter(|(l, _)| *l == log)
        .map_or(pos.pos, |(_, p)| p);
    h.advance(&log, pos.pos, end, true).await.is_ok()
}

/// Replays what the local logs hold, to their true end, and cuts the last one there.
pub async fn to_end(h: &Rc<Host>, t: &Thread) -> Res<At> {
    let mut s = Session::new(h, false).await?;
    let r = run_to_end(&mut s, t).await;
    s.end().await;
    if matches!(r, Err(Errno::BadMsg | Errno::NoEnt)) {
        let from = if s.at.pos <= HEADER { 0 } else { s.at.pos };
        h.fetch.again_from(h, &s.at.log, from);
    }
    r.map(|()| s.at)
}

async fn run_to_end(s: &mut Session, t: &Thread) -> Res<()> {
    let h = s.h.clone();
    loop {
        let base = s.limit.filter(|(log, _)| *log == s.at.log);
        let reported = reported_end(&s.at.log, h.version(s.at.log.number).as_ref());
        let known = base.map_or(reported, |(_, end)| end);
        let extent = if s.at.pos < known {
            Extent::Known(known)
        } else {
            Extent::Unknown
        };
        match s.step(extent, t).await? {
            Looked::Admitted => {
                if t.should_stop() {
                    return Err(Errno::Intr);
                }
                continue;
            }
            Looked::Starved if s.file.is_some() && s.at.pos < known => {
                h.say(|| format!("only {} bytes of {} that were durable", s.at.pos, known));
                return Err(Errno::BadMsg);
            }
            Looked::Starved if s.file.is_some() && matches!(extent, Extent::Known(_)) => continue,
            Looked::Starved | Looked::Gap => (),
            Looked::End(clean) => {
                h.torn.set(h.torn.get() || !clean);
                h.say(|| format!("{} ends at {} (clean: {clean})", s.at.log, s.at.pos))
            }
            Looked::Bad(_) => return Err(Errno::BadMsg),
        }
        if let Some(ino) = s.file {
            if h.machine().fs.borrow().size(ino) as u64 > s.at.pos {
                h.truncate(ino, s.at.pos).await?;
                h.sync_file(ino, false).await?;
            }
        }
        s.settle(|| t.should_stop()).await?;
        if s.file.is_none() && (s.at.pos > 0 || known > HEADER) {
            return Err(Errno::NoEnt);
        }
        if base.is_some() {
            // What follows was written without a log, and is on the disk.
            break;
        }
        let own = s.at.log.number.checked_add(1).and_then(|n| h.version(n));
        let mut next = own_next(&s.at.log, s.at.pos, &h.me, own.as_ref());
        if let Some(n) = next {
            if !has_log(&h, &n).await {
                next = None;
            }
        }
        if next.is_none() {
            next = h.search(&s.at.log, s.at.pos, Purpose::Replay);
            if let Some(n) = next {
                let stale = n.creator != h.me && is_other(&h, &s.at.log, &n);
                if stale || !has_log(&h, &n).await {
                    next = None;
                }
            }
        }
        match next {
            Some(n) => s.switch(n).await?,
            None => break,
        }
    }
    let at = s.at;
    h.say(|| format!("recovered to {} {}", at.log, at.pos));
    Ok(())
}

async fn has_log(h: &Host, log: &LogName) -> bool {
    let path = h.log_path(log);
    let Some(ino) = h.machine().fs.borrow().file(&path) else {
        return false;
    };
    matches!(read_header(h, ino, log).await, Ok(Some(_)))
}

/// End of the valid part of a local log file, and whether that is all.
pub async fn valid_end(h: &Host, ino: u32, log: &LogName, from: u64) -> Res<(u64, bool)> {
    drop_cache(h, ino, log);
    let header = match read_header(h, ino, log).await {
        Err(Errno::Io) => return Ok((0, false)),
        r => r?,
    };
    let Some((ctx, crc, _)) = header else {
        return Ok((0, true));
    };
    let from = if from <= HEADER {
        ScanPos::first(crc)
    } else {
        ScanPos {
            pos: from,
            seq: None,
            chain: None,
        }
    };
    let mut finder = EndFinder::new(ctx, from, true);
    let mut step = finder.start();
    loop {
        match step {
            EndStep::Read { pos, min } => {
                let len = min.max(CHUNK);
                let bytes = match h.read_file(ino, pos, len).await {
                    Err(Errno::Io) => return Ok((pos, false)),
                    r => r?,
                };
                step = finder.feed::<HostDigest>(&bytes, bytes.len() < len);
            }
            EndStep::Done(end) => return Ok((end.at.pos, true)),
        }
    }
}

/// Starts the replay thread of a secondary.
pub async fn start(h: &Rc<Host>) -> Res<Rc<Thread>> {
    let s = Session::new(h, true).await?;
    Ok(thread(&h.ex, h.i, move |t| async move {
        follow(&t, s).await;
    }))
}

async fn follow(t: &Thread, mut s: Session) {
    let h = s.h.clone();
    let mut repairs = 0;
    let mut failed = false;
    while !t.should_stop() {
        let limit = h.fetch.available(&s.at.log);
        let extent = if limit.fetched {
            Extent::Known(limit.end)
        } else {
            Extent::Unknown
        };
        match s.step(extent, t).await {
            Ok(Looked::Admitted) => {
                repairs = 0;
                failed = false;
                h.set_trouble(None);
                continue;
            }
            Ok(Looked::Starved | Looked::End(_)) if std::mem::take(&mut failed) => {
                h.set_trouble(None);
            }
            Ok(Looked::Starved | Looked::End(_)) => (),
            Ok(Looked::Gap) => {
                if s.settle(|| t.should_stop()).await.is_ok() {
                    sync::ask_for_gap(&h, &s.at.log).await;
                }
                t.sleep(&h.ex, 300 * MS).await;
                continue;
            }
            Ok(Looked::Bad(repairable)) => {
                repairs = repair(&h, &s.at, repairable, repairs).await;
                s.replayer = None;
                s.file = None;
            }
            Err(Errno::Intr) => break,
            Err(_) if s.is_in_doubt(extent) && repairs < REPAIRS => {
                repairs += 1;
                t.sleep(&h.ex, 500 * MS).await;
                continue;
            }
            Err(Errno::Io) if extent != Extent::Unknown && repairs < REPAIRS => {
                fetch_again(&h, &s.at).await;
                repairs += 1;
                s.replayer = None;
                s.file = None;
                continue;
            }
            Err(e) => {
                failed = true;
                h.set_trouble(Some("defective-log"));
                t.sleep(&h.ex, 500 * MS).await;
                // Whether something follows here can't be known: more of this log may stand behind.
                if e != Errno::NoEnt {
                    continue;
                }
            }
        }
        if !limit.fetched || limit.complete && s.at.pos >= limit.end {
            if let Some(next) = successor_after_drain(&mut s, t).await {
                if s.switch(next).await.is_ok() {
                    h.fetch.replaying(&next);
                } else {
                    t.sleep(&h.ex, 500 * MS).await;
                }
                continue;
            }
        }
        let published = h.replay_link(&h.me);
        if published.is_some_and(|l| (l.log, l.pos) != (s.at.log, s.at.pos))
            && s.pipe.with(|s| s.buffer.is_empty())
        {
            let _ = s.settle(|| t.should_stop()).await;
        }
        h.fetch.wait_news(&h, t, &s.at.log, limit.end).await;
    }
    let _ = s.settle(|| true).await;
    s.end().await;
}

async fn successor_after_drain(s: &mut Session, t: &Thread) -> Option<LogName> {
    let h = s.h.clone();
    let mine = h.replay_link(&h.me)?;
    if s.limit.is_some_and(|(log, _)| log == s.at.log) {
        // This disk has more than its log: nothing goes on here but this host, as primary.
        return None;
    }
    if (mine.log, mine.pos) != (s.at.log, s.at.pos) && s.settle(|| t.should_stop()).await.is_err() {
        return None;
    }
    if let Some(own) = own_unsaid(&h, &s.at.log, s.at.pos) {
        return Some(own);
    }
    let may_leave = h.fetch.reach().may_leave(&s.at.log, s.at.pos);
    let next = h
        .search(&s.at.log, s.at.pos, Purpose::Replay)
        .filter(|_| may_leave)?;
    let here = {
        let fs = h.machine().fs.borrow();
        let ino = fs.file(&h.log_path(&next));
        ino.is_some_and(|ino| fs.size(ino) > 0)
    };
    let own = next.creator == h.me;
    let asks = !own && h.switch(&format!("todo-{}/connect", h.me));
    let stale = || here && !own && is_other(&h, &s.at.log, &next);
    if h.fetch.may_go_on(&next, asks, here) && (asks || !stale()) {
        return Some(next);
    }
    if let Some(ino) = s.file.filter(|_| s.at.log.creator == h.me) {
        if h.machine().fs.borrow().size(ino) as u64 > s.at.pos {
            let _ = h.truncate(ino, s.at.pos).await;
            let _ = h.sync_file(ino, false).await;
        }
    }
    None
}

/// Whether the local file of `next` is another log of that name than the one that goes on behind `log`.
fn is_other(h: &Host, log: &LogName, next: &LogName) -> bool {
    let made = |log: &LogName| {
        let fs = h.machine().fs.borrow();
        let block = fs.bytes(fs.file(&h.log_path(log))?).get(..HEADER_SIZE)?;
        let (header, _) = LogHeader::parse::<HostDigest>(block).ok()?;
        Some(header.created)
    };
    let stale = made(log)
        .zip(made(next))
        .is_some_and(|(before, made)| is_stale(made, before, h.real()));
    stale && !on("stale-namesake")
}

/// The log of this very host that goes on here, if it was written to. Rotation does not wait for write-back, so the disk may
/// have what it says, and a crash may have left no link that names it: nothing else may go on here.
pub fn own_unsaid(h: &Host, log: &LogName, pos: u64) -> Option<LogName> {
    if on("own-log-unsaid") {
        return None;
    }
    let own = log.number.checked_add(1).and_then(|n| h.version(n));
    own_next(log, pos, &h.me, own.as_ref()).filter(|n| {
        let ino = h.machine().fs.borrow().file(&h.log_path(n));
        ino.is_some_and(|ino| has_batches(h, ino, n))
    })
}

async fn fetch_again(h: &Host, at: &At) {
    let from = if at.pos <= HEADER { 0 } else { at.pos };
    h.fetch.again_from(h, &at.log, from);
    h.sleep(500 * MS).await;
}

async fn repair(h: &Host, at: &At, repairable: bool, repairs: u32) -> u32 {
    if (repairs < REPAIRS || repairs % ROUNDS == 0) && repairable {
        fetch_again(h, at).await;
    } else {
        h.set_trouble(Some("defective-log"));
        h.sleep(2000 * MS).await;
    }
    repairs + 1
}
