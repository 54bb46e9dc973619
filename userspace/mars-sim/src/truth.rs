// SPDX-License-Identifier: GPL-2.0-or-later

//! What really happened: the complete write history of every log of every primary, and the promises checked against it.
//!
//! The truth knows each batch that a primary wrote, byte for byte, and what each record put where. It uses nothing of the
//! core's reading code, so a bug there can't hide itself. A violation is a text that begins with the name of the promise.

use crate::{disk::Disk, fs::Fs};
use mars_core::{
    log::{LogName, HEADER_SIZE},
    tree::value::ReplayLink,
};
use std::rc::Rc;

/// Bytes of a sector: contents are compared sector by sector.
pub const SECTOR: usize = 512;

/// Bytes of a log's header.
pub const HEADER: u64 = HEADER_SIZE as u64;

/// Number of a write of an application; 0 is what the disk had at first.
pub type WriteId = u64;

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
}

/// A device that exists, or has existed.
struct Device {
    /// So many records are durable by the word that was given to the application.
    flushed: u64,
    /// The logs that it wrote.
    logs: Vec<LogId>,
}

/// All of it.
#[derive(Default)]
pub struct Truth {
    logs: Vec<Log>,
    devices: Vec<Device>,
    sectors: usize,
    cache: Option<(Place, Rc<Vec<WriteId>>)>,
}

/// A promise that was broken.
pub type Violation = String;

impl Truth {
    /// Before anything was written.
    pub fn new(sectors: usize) -> Self {
        Self {
            sectors,
            ..Self::default()
        }
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
    pub fn create(&mut self, name: LogName, id: [u8; 16], device: usize) {
        // One that was never used is begun again.
        if let Some(old) = self.find(&name).filter(|l| self.logs[*l].chain.is_empty()) {
            let log = &mut self.logs[old];
            log.former.push(log.id);
            log.id = id;
            log.attempts.clear();
            log.device = device;
            self.devices[device].logs.push(old);
            return;
        }
        self.logs.push(Log {
            name,
            id,
            former: Vec::new(),
            parent: None,
            base: Rc::new(vec![0; self.sectors]),
            chain: Vec::new(),
            attempts: Vec::new(),
            device,
        });
        let log = self.logs.len() - 1;
        self.devices[device].logs.push(log);
    }

    /// The log that continues another one is known to do so only when it is used.
    pub fn set_parent(&mut self, log: LogId, parent: Place) {
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
        if logged < count {
            return Err(format!(
                "P2 durable: a flush of {count} records is complete, the log has only {logged}"
            ));
        }
        Ok(())
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
        from: u64,
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
                b.start == at && bytes.get(start..start + b.bytes.len()) == Some(&b.bytes[..])
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
            .or_else(|| self.find(&link.log))?;
        Some((log, link.pos))
    }

    /// P1 and P2 of a host that has just lost its memory: what its disk is, together with its logs.
    ///
    /// `flushed`: the device that was there when it crashed, if it was primary.
    pub fn after_crash(
        &mut self,
        fs: &Fs,
        dir: &str,
        disk: &Disk,
        link: &ReplayLink,
        device: Option<usize>,
        live: bool,
    ) -> Result<(), Violation> {
        let Some(place) = self.place(fs, dir, link) else {
            return Ok(());
        };
        let mut free = vec![false; self.sectors];
        let mut nth = 0;
        let mut at = place;
        loop {
            let end = self.walk(fs, dir, at.0, at.1, live, &mut |r| {
                free[r.at..r.at + r.n].fill(true);
                nth = nth.max(r.nth);
            });
            at.1 = at.1.max(end);
            let dev = self.logs[at.0].device;
            let next = (0..self.logs.len()).find(|l| {
                let next = &self.logs[*l];
                next.device == dev
                    && next.parent.is_some_and(|p| p.0 == at.0 && p.1 <= at.1)
                    && fs.file(&format!("{dir}/{}", next.name)).is_some()
            });
            match next {
                Some(n) => at = (n, 0),
                None => break,
            }
        }
        let state = self.state(place);
        for (sector, id) in state.iter().enumerate() {
            if free[sector] {
                continue;
            }
            let want = pattern(*id, sector);
            let mut bad = None;
            if live {
                disk.outcomes(sector, |have| {
                    if have != want {
                        bad = Some(id_of(have));
                    }
                });
            } else {
                let have = &disk.view()[sector * SECTOR..(sector + 1) * SECTOR];
                if have != want {
                    bad = Some(id_of(have));
                }
            }
            if let Some(have) = bad {
                return Err(format!(
                    "P1 prefix: sector {sector} {} write {have}, but at {} it is write {id}, and no log here from there to {} writes it",
                    if live { "could have, after a power cut," } else { "has" },
                    self.describe(place),
                    self.describe(at)
                ));
            }
        }
        if let Some(d) = device {
            let flushed = self.devices[d].flushed;
            let before = self.nth_at(d, place);
            if nth.max(before) < flushed {
                return Err(format!(
                    "P2 durable: {flushed} records were flushed, after the crash only {} are left (link {}, log until {})",
                    nth.max(before),
                    self.describe(place),
                    self.describe(at)
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
        nth
    }

    /// P1 where nothing is in flight: the disk is exactly the state at a place.
    pub fn exact(&mut self, disk: &Disk, place: Place, when: &str) -> Result<(), Violation> {
        if !self.is_boundary(place) {
            return Err(format!(
                "P1 prefix: {when} the position {} is no end of a batch",
                self.describe(place)
            ));
        }
        let state = self.state(place);
        for (sector, id) in state.iter().enumerate() {
            let have = &disk.view()[sector * SECTOR..(sector + 1) * SECTOR];
            if have != pattern(*id, sector) {
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
