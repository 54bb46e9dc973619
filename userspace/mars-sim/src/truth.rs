// SPDX-License-Identifier: GPL-2.0-or-later

//! What really happened: the complete write history of every log of every primary, and the promises checked against it.
//!
//! The truth knows each batch that a primary wrote, byte for byte, and what each record put where. It uses nothing of the
//! core's reading code, so a bug there can't hide itself. A violation is a text that begins with the name of the promise.

use crate::{
    disk::Disk,
    fs::Fs,
    host::dirty::{is_dirty, read},
};
use mars_core::{
    dirty::{DirtyMap, Recovery},
    lamport::LamportTime,
    log::{LogName, HEADER_SIZE},
    name::Name,
    tree::value::ReplayLink,
};
use std::rc::Rc;

/// Bytes of a sector: contents are compared sector by sector.
pub const SECTOR: usize = 512;

/// Bytes of a log's header.
pub const HEADER: u64 = HEADER_SIZE as u64;

/// Number of a write of an application; 0 is what the disk had at first.
pub type WriteId = u64;

/// What a place has in a sector that the resource had not at first, and nobody has written: what the disk of the primary had there
/// when it was resized, see [`Truth::grows`].
const UNKNOWN: WriteId = 1 << 41;

/// What the disk of a host has at first behind the end of the resource.
pub fn foreign(host: usize) -> WriteId {
    (1 << 40) + host as u64
}

/// Whether a place says by itself what a sector has.
pub fn is_written(id: WriteId) -> bool {
    id != UNKNOWN
}

/// Whether it is that of any host.
pub fn is_foreign(id: WriteId) -> bool {
    id >> 40 == 1
}

/// What write `id` puts into sector `at`.
pub fn pattern(id: WriteId, at: usize) -> [u8; SECTOR] {
    let mut out = [0; SECTOR];
    if id != 0 {
        let word = ((id << 16) | at as u64).to_le_bytes();
        for w in out.chunks_exact_mut(8) {
            w.copy_from_slice(&word);
        }
    }
    out
}

/// Which write a sector says it comes from.
pub fn id_of(sector: &[u8]) -> WriteId {
    sector
        .first_chunk()
        .map_or(0, |b| u64::from_le_bytes(*b) >> 16)
}

/// One record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Rec {
    /// First sector.
    pub at: usize,
    /// Sectors.
    pub n: usize,
    /// The write; 0 for zeros.
    pub id: WriteId,
    /// How many records the device had admitted with this one.
    pub nth: u64,
}

struct Batch {
    start: u64,
    bytes: Rc<Vec<u8>>,
    recs: Vec<Rec>,
}

impl Batch {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// Number of a log in the truth.
pub type LogId = usize;

/// A place in the true history.
pub type Place = (LogId, u64);

struct Log {
    name: LogName,
    id: [u8; 16],
    /// Of creations that came to nothing: a crash may show the file as one of them left it.
    former: Vec<[u8; 16]>,
    parent: Option<Place>,
    base: Rc<Vec<WriteId>>,
    /// What the log holds, in order.
    chain: Vec<Batch>,
    /// Batches whose writing failed; a crash may show that they are there after all.
    attempts: Vec<Batch>,
    device: usize,
    /// It begins behind a gap.
    gap: bool,
}

/// A stretch of time in which a primary wrote without a log: from the end of a log until it makes the next one.
struct Gap {
    host: Name,
    base: Place,
    device: usize,
    /// What the disk must have, if nothing newer.
    kept: Vec<WriteId>,
    /// What was written since, for each sector: any of it may be there after a crash.
    since: Vec<Vec<WriteId>>,
    /// All of it.
    newest: Vec<WriteId>,
    /// How many records the device had admitted with the last one that was written.
    nth: u64,
    /// The same with the last flush.
    flushed: u64,
    /// It has not ended.
    open: bool,
    /// The log that begins behind it.
    next: Option<LogId>,
    /// Its name.
    next_name: LogName,
}

/// A host whose disk is looked at.
#[derive(Clone, Copy)]
pub struct Whose<'a> {
    /// Its name.
    pub host: Name,
    /// `/mars`.
    pub fs: &'a Fs,
    /// Where the links and logs are there.
    pub dir: &'a str,
    /// The data disk.
    pub disk: &'a Disk,
    /// When its membership began: the map's identity.
    pub joined: u64,
    /// Sectors of the resource, by its word.
    pub sectors: usize,
    /// When that was decided.
    pub sized: LamportTime,
    /// What a loss of power at this moment could leave, not what there is.
    pub live: bool,
}

impl Whose<'_> {
    /// Calls `f` with each content that a sector has, or may have.
    fn each(&self, sector: usize, f: impl FnMut(&[u8])) {
        let mut f = f;
        if self.live {
            self.disk.outcomes(sector, f);
        } else {
            f(&self.disk.view()[sector * SECTOR..(sector + 1) * SECTOR]);
        }
    }

    /// The same, where replay may have written something before.
    fn after(&self, sector: usize, old: Option<WriteId>, mut f: impl FnMut(&[u8])) {
        match old {
            Some(id) => f(&pattern(id, sector)),
            None => self.each(sector, f),
        }
    }

    fn verb(&self) -> &'static str {
        if self.live {
            "could have, after a power cut,"
        } else {
            "has"
        }
    }

    /// The dirty map as its file says it.
    fn map(&self) -> Option<DirtyMap> {
        let path = format!("{}/{}", self.dir, crate::host::dirty::NAME);
        let ino = self.fs.file(&path)?;
        let bytes = if self.live {
            self.fs.durable(ino)
        } else {
            self.fs.bytes(ino)
        };
        read(&self.host, self.joined, bytes)
    }
}

/// A device that exists, or has existed.
struct Device {
    /// So many records are durable by the word that was given to the application.
    flushed: u64,
    /// The logs that it wrote.
    logs: Vec<LogId>,
}

/// A resize.
struct Grown {
    /// When it was decided, and all stamps with which that was said again.
    stamps: Vec<LamportTime>,
    /// Where the primary was.
    place: Place,
    /// First sector that is new.
    from: usize,
    /// What its disk had in the new ones.
    base: Vec<WriteId>,
}

/// All of it.
#[derive(Default)]
pub struct Truth {
    logs: Vec<Log>,
    devices: Vec<Device>,
    gaps: Vec<Gap>,
    grown: Vec<Grown>,
    /// Of a disk.
    sectors: usize,
    /// Of the resource, at first.
    small: usize,
    cache: Option<(Place, Rc<Vec<WriteId>>)>,
}

/// A promise that was broken.
pub type Violation = String;

impl Truth {
    /// Before anything was written.
    pub fn new(sectors: usize, small: usize) -> Self {
        Self {
            sectors,
            small,
            ..Self::default()
        }
    }

    fn empty(&self) -> Vec<WriteId> {
        let mut base = vec![0; self.small];
        base.resize(self.sectors, UNKNOWN);
        base
    }

    /// A primary at `place` decides that the resource has `to` sectors instead of `from`. What its disk has there is what all have,
    /// unless it was written since; also what stands at an earlier place of the same history, where these sectors had no meaning.
    pub fn grows(
        &mut self,
        stamp: LamportTime,
        place: Place,
        disk: &Disk,
        (from, to): (usize, usize),
    ) {
        let ids = disk.view().chunks_exact(SECTOR).map(id_of);
        let base = ids.skip(from).take(to.saturating_sub(from)).collect();
        let place = self.before_gap(place);
        self.grown.push(Grown {
            stamps: vec![stamp],
            place,
            from,
            base,
        });
    }

    /// The size is said again with another stamp, perhaps an older one.
    pub fn restamp(&mut self, old: LamportTime, new: LamportTime) {
        for g in &mut self.grown {
            if g.stamps.contains(&old) {
                g.stamps.push(new);
            }
        }
    }

    /// What a sector has of which a place says `id`, for a host that knows the resizes up to `sized`.
    pub fn wanted(&self, sized: LamportTime, place: Place, sector: usize, id: WriteId) -> WriteId {
        if id != UNKNOWN {
            return id;
        }
        let place = self.before_gap(place);
        // If one was cut off by a failover, the host that had decided it may be before or behind that place. Until it knows of
        // that, it is complete by its own word.
        let counts = |g: &&Grown| self.leads(place, g.place) || self.leads(g.place, place);
        let has = |g: &Grown| g.base.get(sector.checked_sub(g.from)?).copied();
        let is_known = |g: &&Grown| g.stamps.iter().any(|t| *t <= sized) && has(g).is_some();
        let known = || self.grown.iter().filter(is_known);
        let newest = |g: &&Grown| g.stamps.first().copied();
        let found = known().filter(counts).max_by_key(newest);
        let found = found.or_else(|| known().max_by_key(newest));
        found.and_then(has).unwrap_or(UNKNOWN)
    }

    /// What of a sector is wrong at a place that says `id` of it.
    pub fn differs(
        &self,
        sized: LamportTime,
        place: Place,
        sector: usize,
        id: WriteId,
        have: &[u8],
    ) -> bool {
        have != pattern(self.wanted(sized, place, sector, id), sector)
    }

    /// A device appears.
    pub fn device(&mut self) -> usize {
        self.devices.push(Device {
            flushed: 0,
            logs: Vec::new(),
        });
        self.devices.len() - 1
    }

    /// A log is created.
    pub fn create(&mut self, name: LogName, id: [u8; 16], device: usize, gap: bool) {
        // Also one that was to be the next by a rotation: it will not be used like that.
        let open = |g: &&Gap| g.open && g.device == device;
        let base = self.gaps.iter().rev().find(open);
        let gap = gap || base.is_some();
        let begin = base.map(|g| (g.base, Rc::new(g.newest.clone())));
        self.begin(name, id, device, gap);
        if let (Some((base, state)), Some(log)) = (begin, self.find(&name)) {
            self.logs[log].parent = Some(base);
            self.logs[log].base = state;
        }
    }

    fn begin(&mut self, name: LogName, id: [u8; 16], device: usize, gap: bool) {
        // One that was never used is begun again.
        if let Some(old) = self.find(&name).filter(|l| self.logs[*l].chain.is_empty()) {
            let log = &mut self.logs[old];
            log.former.push(log.id);
            log.id = id;
            log.attempts.clear();
            log.device = device;
            log.gap = gap;
            self.devices[device].logs.push(old);
            return;
        }
        self.logs.push(Log {
            name,
            id,
            former: Vec::new(),
            parent: None,
            base: Rc::new(self.empty()),
            chain: Vec::new(),
            attempts: Vec::new(),
            device,
            gap,
        });
        let log = self.logs.len() - 1;
        self.devices[device].logs.push(log);
    }

    /// The log that continues another one is known to do so only when it is used.
    pub fn set_parent(&mut self, log: LogId, parent: Place) {
        let parent = self.before_gap(parent);
        self.logs[log].base = self.state(parent);
        self.logs[log].parent = Some(parent);
    }

    /// A log that was made for a rotation which a crash has ended, and is begun again at `parent`.
    pub fn adopt(&mut self, log: LogId, parent: Place) {
        if self.logs[log].parent.is_none() && self.logs[log].chain.is_empty() {
            self.set_parent(log, parent);
        }
    }

    /// The newest log of a name.
    pub fn find(&self, name: &LogName) -> Option<LogId> {
        self.logs.iter().rposition(|l| l.name == *name)
    }

    /// The log whose header stands in a file.
    pub fn find_file(&self, name: &LogName, bytes: &[u8]) -> Option<LogId> {
        let id = bytes.get(32..48)?;
        self.logs
            .iter()
            .rposition(|l| l.name == *name && (l.id == id || l.former.iter().any(|f| f == id)))
    }

    /// A batch is about to be written.
    pub fn attempt(&mut self, log: LogId, start: u64, bytes: Rc<Vec<u8>>, recs: Vec<Rec>) {
        self.logs[log].attempts.push(Batch { start, bytes, recs });
    }

    /// The batch that was attempted last is a part of the log.
    pub fn appended(&mut self, log: LogId) {
        self.cache = None;
        let l = &mut self.logs[log];
        if let Some(b) = l.attempts.pop() {
            l.chain.push(b);
        }
    }

    /// What the device has promised to keep.
    pub fn flushed(&mut self, device: usize, count: u64) -> Result<(), Violation> {
        let d = &mut self.devices[device];
        d.flushed = d.flushed.max(count);
        let logged = d
            .logs
            .iter()
            .flat_map(|l| &self.logs[*l].chain)
            .flat_map(|b| &b.recs)
            .map(|r| r.nth)
            .max()
            .unwrap_or(0);
        let gaps = self.gaps.iter().filter(|g| g.device == device);
        let logged = gaps.map(|g| g.flushed).fold(logged, u64::max);
        if logged < count {
            return Err(format!(
                "P2 durable: a flush of {count} records is complete, the log has only {logged}"
            ));
        }
        Ok(())
    }

    fn gap(&self, host: &Name, base: Place) -> Option<usize> {
        let base = self.before_gap(base);
        let is_it = |g: &Gap| g.host == *host && g.base == base;
        self.gaps.iter().rposition(is_it)
    }

    /// The host of `next`, a primary, writes without a log from `base` on, until it begins that one. Its disk is what it has
    /// now: the state at `base`, or what a crash has left of an earlier time in the same gap.
    pub fn gap_begins(&mut self, next: LogName, base: Place, device: usize, now: Option<&Disk>) {
        let host = next.creator;
        self.cache = None;
        let base = self.before_gap(base);
        let log = &mut self.logs[base.0];
        if log.name.creator == host {
            log.chain.retain(|b| b.end() <= base.1);
            log.attempts.clear();
        }
        let state = match now {
            Some(disk) => {
                let ids = disk.view().chunks_exact(SECTOR).map(id_of);
                ids.map(|id| if is_foreign(id) { UNKNOWN } else { id })
                    .collect()
            }
            None => (*self.state(base)).clone(),
        };
        let gap = Gap {
            host,
            base,
            device,
            kept: state.clone(),
            since: vec![Vec::new(); self.sectors],
            newest: state,
            nth: 0,
            flushed: 0,
            open: true,
            next: None,
            next_name: next,
        };
        // One that was made for a rotation is behind the gap now.
        if let Some(n) = self.find(&next) {
            let l = &mut self.logs[n];
            if l.chain.is_empty() && l.parent.is_none_or(|p| p == base) {
                l.gap = true;
                l.parent = Some(base);
                l.base = Rc::new(gap.newest.clone());
            }
        }
        match self.gap(&host, base) {
            Some(i) => {
                let next = self.gaps[i].next;
                self.gaps[i] = Gap { next, ..gap };
            }
            None => self.gaps.push(gap),
        }
    }

    /// Records are about to be written without a log.
    pub fn gap_writes(&mut self, host: &Name, base: Place, recs: &[Rec]) {
        let Some(i) = self.gap(host, base) else {
            return;
        };
        let g = &mut self.gaps[i];
        for r in recs {
            for s in r.at..r.at + r.n {
                g.since[s].push(r.id);
                g.newest[s] = r.id;
            }
            g.nth = g.nth.max(r.nth);
        }
    }

    /// The disk has all that was written in a gap, it is said.
    pub fn gap_flushed(&mut self, host: &Name, base: Place, disk: &Disk) -> Result<(), Violation> {
        let Some(i) = self.gap(host, base) else {
            return Ok(());
        };
        let what = self.describe(base);
        let g = &mut self.gaps[i];
        for (sector, id) in g
            .newest
            .iter()
            .enumerate()
            .filter(|(_, id)| **id != UNKNOWN)
        {
            let want = pattern(*id, sector);
            let mut bad = None;
            disk.outcomes(sector, |have| {
                if have != want {
                    bad = Some(id_of(have));
                }
            });
            if let Some(have) = bad {
                return Err(format!(
                    "P2 durable: a flush without a log, in the gap behind {what}, is complete, and sector {sector} could have, after a power cut, write {have}, not {id}"
                ));
            }
        }
        g.kept.clone_from(&g.newest);
        g.since.iter_mut().for_each(Vec::clear);
        g.flushed = g.nth;
        Ok(())
    }

    /// A log begins behind a gap, with what was written in it.
    pub fn gap_ends(&mut self, host: &Name, base: Place, next: LogId) {
        let Some(i) = self.gap(host, base) else {
            return;
        };
        self.cache = None;
        let g = &mut self.gaps[i];
        g.next = Some(next);
        self.logs[next].base = Rc::new(g.newest.clone());
        self.logs[next].parent = Some(g.base);
    }

    /// It is used.
    pub fn gap_closed(&mut self, host: &Name, base: Place) {
        if let Some(i) = self.gap(host, base) {
            self.gaps[i].open = false;
        }
    }

    /// The contents of a device that begins in a gap.
    pub fn gap_state(&self, host: &Name, base: Place) -> Option<Vec<WriteId>> {
        Some(self.gaps[self.gap(host, base)?].newest.clone())
    }

    /// The contents of the device at a place.
    pub fn state(&mut self, (log, pos): Place) -> Rc<Vec<WriteId>> {
        if let Some((p, s)) = &self.cache {
            if *p == (log, pos) {
                return s.clone();
            }
        }
        let l = &self.logs[log];
        let mut s = (*l.base).clone();
        for b in l.chain.iter().take_while(|b| b.end() <= pos) {
            for r in &b.recs {
                s[r.at..r.at + r.n].fill(r.id);
            }
        }
        let s = Rc::new(s);
        self.cache = Some(((log, pos), s.clone()));
        s
    }

    /// Whether the past of `b` goes through `a`.
    pub fn is_past(&self, a: Place, b: Place) -> bool {
        self.leads(a, b) || self.leads(self.before_gap(a), b)
    }

    fn leads(&self, a: Place, b: Place) -> bool {
        let mut at = b;
        loop {
            if at.0 == a.0 {
                // The header of a log is nothing that one could miss.
                return a.1 <= at.1.max(HEADER);
            }
            match self.logs[at.0].parent {
                Some(p) => at = p,
                None => return false,
            }
        }
    }

    /// For people.
    pub fn describe(&self, (log, pos): Place) -> String {
        format!("{} (#{log}) {pos}", self.logs[log].name)
    }

    /// Whether a position is the end of a batch, or of the header.
    pub fn is_boundary(&self, (log, pos): Place) -> bool {
        pos <= HEADER || self.logs[log].chain.iter().any(|b| b.end() == pos)
    }

    /// End of what was written to a log.
    pub fn end(&self, log: LogId) -> u64 {
        self.logs[log].chain.last().map_or(HEADER, Batch::end)
    }

    /// How far the file in `fs` has a log's bytes from `from` on, as they were written; and the records there. `live`: only
    /// what is on the disk for good.
    fn walk(
        &mut self,
        fs: &Fs,
        dir: &str,
        log: LogId,
        (from, to): (u64, u64),
        live: bool,
        f: &mut impl FnMut(&Rec),
    ) -> u64 {
        let path = format!("{dir}/{}", self.logs[log].name);
        let Some(ino) = fs.file(&path) else {
            return from;
        };
        let bytes = if live { fs.durable(ino) } else { fs.bytes(ino) };
        if bytes.get(32..48) != Some(&self.logs[log].id[..]) {
            return from;
        }
        let l = &mut self.logs[log];
        let mut at = from.max(HEADER);
        loop {
            let here = |b: &Batch| {
                let start = usize::try_from(b.start).unwrap_or(usize::MAX);
                b.start == at
                    && b.end() <= to
                    && bytes.get(start..start + b.bytes.len()) == Some(&b.bytes[..])
            };
            if let Some(b) = l.chain.iter().find(|b| here(b)) {
                b.recs.iter().for_each(&mut *f);
                at = b.end();
                continue;
            }
            // A batch whose writing was reported as failed, or cut short by a crash, and which is there after all.
            let Some(i) = l.attempts.iter().position(here).filter(|_| !live) else {
                return at;
            };
            let b = l.attempts.remove(i);
            b.recs.iter().for_each(&mut *f);
            l.chain.retain(|c| c.start < at);
            at = b.end();
            l.chain.push(b);
            self.cache = None;
        }
    }

    /// The place in the truth that a replay link names.
    pub fn place(&self, fs: &Fs, dir: &str, link: &ReplayLink) -> Option<Place> {
        let path = format!("{dir}/{}", link.log);
        let log = fs
            .file(&path)
            .and_then(|ino| self.find_file(&link.log, fs.bytes(ino)))
            .or_else(|| self.find(&link.log));
        match log {
            Some(log) => Some((log, link.pos)),
            None => self.announced(link),
        }
    }

    /// The beginning of a log that a primary has announced when it stopped logging, and not made yet.
    fn announced(&self, link: &ReplayLink) -> Option<Place> {
        let is_it = |g: &&Gap| g.next_name == link.log && link.pos == 0;
        self.gaps.iter().rev().find(is_it).map(|g| g.base)
    }

    /// P1 and P2 of a host that has just lost its memory: what its disk is, together with its logs and its dirty map.
    ///
    /// `device`: the one that was there when it crashed, if it was primary.
    pub fn after_crash(
        &mut self,
        w: Whose<'_>,
        link: &ReplayLink,
        device: Option<usize>,
    ) -> Result<(), Violation> {
        let Some(mut place) = self.place(w.fs, w.dir, link) else {
            return Ok(());
        };
        let live = w.live;
        let map = w.map();
        let mut limit = None;
        if let Some(m) = &map {
            // Where recovery starts, at the earliest, and where it must end (`start` in the engine's replay).
            let (start, end) = match m.recovery() {
                Recovery::Normal => (None, None),
                Recovery::Until { from, log, end } => (from.map(|f| (f, HEADER)), Some((log, end))),
                Recovery::Behind(log, end) => (Some((log, end)), Some((log, end))),
                Recovery::From(log) => (Some((log, HEADER)), None),
            };
            let find = |(log, pos): (LogName, u64)| {
                let there = ReplayLink { log, pos, rest: 0 };
                self.place(w.fs, w.dir, &there)
            };
            limit = end.and_then(find);
            let later = start.filter(|(log, pos)| (log.number, *pos) > (link.log.number, link.pos));
            place = later.and_then(find).unwrap_or(place);
        }
        limit = limit.map(|l| self.before_gap(l));
        place = self.before_gap(place);
        let mut free = vec![false; self.sectors];
        // What replay of a log writes before it goes on behind a gap.
        let mut old = vec![None; self.sectors];
        let mut nth = 0;
        let mut at = place;
        loop {
            let to = limit.filter(|l| l.0 == at.0).map_or(u64::MAX, |l| l.1);
            let end = self.walk(w.fs, w.dir, at.0, (at.1, to), live, &mut |r| {
                free[r.at..r.at + r.n].fill(true);
                nth = nth.max(r.nth);
            });
            at.1 = at.1.max(end);
            if limit.is_some_and(|l| l.0 == at.0) {
                break;
            }
            let dev = self.logs[at.0].device;
            let next = (0..self.logs.len()).find(|l| {
                let next = &self.logs[*l];
                // Only its own host goes across a gap by itself.
                let goes_on = if next.gap {
                    next.name.creator == w.host && next.parent == Some(at)
                } else {
                    next.device == dev && next.parent.is_some_and(|p| p.0 == at.0 && p.1 <= at.1)
                };
                goes_on && w.fs.file(&format!("{}/{}", w.dir, next.name)).is_some()
            });
            let Some(n) = next else { break };
            if self.logs[n].gap {
                let state = self.state(at);
                for (sector, id) in state.iter().enumerate() {
                    if std::mem::take(&mut free[sector]) {
                        old[sector] = Some(*id);
                    }
                }
                place = (n, HEADER);
            }
            at = (n, 0);
        }
        let in_gap = limit.filter(|l| l.0 == at.0);
        if let (Some(base), Some(map)) = (in_gap, &map) {
            if at.1 < base.1 {
                return Err(format!(
                    "P2 durable: nothing is logged behind {}, and the log is here only until {}",
                    self.describe(base),
                    at.1
                ));
            }
            self.look_in_gap(&w, base, (&free, &old), map)?;
        } else {
            self.look_at(&w, place, at, (&free, &old))?;
        }
        if let Some(d) = device {
            let flushed = self.devices[d].flushed;
            let in_gap = in_gap.and_then(|base| self.gap(&w.host, base));
            let in_gap = in_gap.map(|i| &self.gaps[i]).filter(|g| g.device == d);
            let before = self.nth_at(d, place);
            let have = nth.max(before).max(in_gap.map_or(0, |g| g.flushed));
            if have < flushed {
                return Err(format!(
                    "P2 durable: {flushed} records were flushed, after the crash only {have} are left (link {}, log until {})",
                    self.describe(place),
                    self.describe(at)
                ));
            }
        }
        Ok(())
    }

    /// Whoever stands at the very beginning of a log behind a gap has not passed it.
    fn before_gap(&self, place: Place) -> Place {
        let log = &self.logs[place.0];
        log.parent
            .filter(|_| log.gap && place.1 < HEADER)
            .unwrap_or(place)
    }

    /// What a disk is at a place, apart from what its logs write again.
    fn look_at(
        &mut self,
        w: &Whose<'_>,
        place: Place,
        at: Place,
        (free, old): (&[bool], &[Option<WriteId>]),
    ) -> Result<(), Violation> {
        let state = self.state(place);
        for (sector, id) in state.iter().enumerate().take(w.sectors) {
            if free[sector] {
                continue;
            }
            let mut bad = None;
            w.after(sector, old[sector], |have| {
                if self.differs(w.sized, place, sector, *id, have) {
                    bad = Some(id_of(have));
                }
            });
            if let Some(have) = bad {
                return Err(format!(
                    "P1 prefix: sector {sector} {} write {have}, but at {} it is write {id}, and no log here from there to {} writes it",
                    w.verb(),
                    self.describe(place),
                    self.describe(at)
                ));
            }
        }
        Ok(())
    }

    /// What a disk is while a gap is open: of each sector what was flushed, or anything that was written since; and what differs
    /// from the end of the log is in the map. `free`: what recovery writes again.
    fn look_in_gap(
        &mut self,
        w: &Whose<'_>,
        base: Place,
        (free, old): (&[bool], &[Option<WriteId>]),
        map: &DirtyMap,
    ) -> Result<(), Violation> {
        let state = self.state(base);
        let gap = self.gap(&w.host, base).map(|i| &self.gaps[i]);
        for (sector, id) in state.iter().enumerate().take(w.sectors) {
            let offset = (sector * SECTOR) as u64;
            let marked = is_dirty(map.bits(), offset, SECTOR as u64);
            let wanted = self.wanted(w.sized, base, sector, *id);
            let mut bad = None;
            let mut look = |have: &[u8]| {
                let got = id_of(have);
                let may = match gap {
                    Some(g) if g.since[sector].contains(&got) => true,
                    Some(g) => self.wanted(w.sized, base, sector, g.kept[sector]) == got,
                    None => wanted == got,
                };
                if !may || have != pattern(got, sector) {
                    bad = Some(format!("{} write {got}", w.verb()));
                } else if wanted != got && !marked {
                    bad = Some(format!(
                        "{} write {got} without being in the dirty map",
                        w.verb()
                    ));
                }
            };
            if free[sector] {
                look(&pattern(wanted, sector));
            } else {
                w.after(sector, old[sector], look);
            }
            if let Some(bad) = bad {
                return Err(format!(
                    "P1 prefix: sector {sector} {bad}, in the gap behind {}, where the log has write {id}, kept is {:?} and written was {:?}",
                    self.describe(base),
                    gap.map(|g| g.kept[sector]),
                    gap.map(|g| &g.since[sector])
                ));
            }
        }
        Ok(())
    }

    /// How many records of a device lie before a place of its logs.
    fn nth_at(&self, device: usize, place: Place) -> u64 {
        let mut nth = 0;
        for l in &self.devices[device].logs {
            let upto = if *l == place.0 { place.1 } else { u64::MAX };
            if *l == place.0 || self.is_past((*l, self.end(*l)), place) {
                for b in self.logs[*l].chain.iter().filter(|b| b.end() <= upto) {
                    nth = b.recs.iter().map(|r| r.nth).fold(nth, u64::max);
                }
            }
        }
        for g in self.gaps.iter().filter(|g| g.device == device) {
            if g.next.is_some_and(|n| self.is_past((n, 0), place)) {
                nth = nth.max(g.flushed);
            }
        }
        nth
    }

    /// P1 where nothing is in flight: the disk is exactly the state at a place. `open`: as the host has it, a gap is open (also
    /// if the file says that it was closed, because the flush of that failed).
    pub fn exact(
        &mut self,
        w: Whose<'_>,
        place: Place,
        open: bool,
        when: &str,
    ) -> Result<(), Violation> {
        let place = self.before_gap(place);
        let disk = w.disk;
        let map = w.map().map(|mut m| {
            if open {
                m.reopen();
            }
            m
        });
        if let Some(map) = map.filter(DirtyMap::is_open) {
            let base = map.last_gap().and_then(|(log, pos, _)| {
                self.place(w.fs, w.dir, &ReplayLink { log, pos, rest: 0 })
            });
            if base.map(|b| self.before_gap(b)) == Some(place) {
                let (free, old) = (vec![false; self.sectors], vec![None; self.sectors]);
                return self.look_in_gap(&w, place, (&free, &old), &map);
            }
        }
        if !self.is_boundary(place) {
            return Err(format!(
                "P1 prefix: {when} the position {} is no end of a batch",
                self.describe(place)
            ));
        }
        let state = self.state(place);
        for (sector, id) in state.iter().enumerate().take(w.sectors) {
            let have = &disk.view()[sector * SECTOR..(sector + 1) * SECTOR];
            if self.differs(w.sized, place, sector, *id, have) {
                return Err(format!(
                    "P1 prefix: {when} sector {sector} has write {}, but at {} it is write {id}",
                    id_of(have),
                    self.describe(place)
                ));
            }
        }
        Ok(())
    }
}
