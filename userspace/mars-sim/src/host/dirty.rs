// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/dirty.rs`: the file of the dirty map.
//!
//! The disks are so small that the smallest grain of the map would be a whole one, so the map stands for a disk [`SCALE`] times as
//! large.

use super::Host;
use crate::{
    defects::on,
    exec::Lock,
    fs::{Errno, Node, Res},
    world::DIR,
};
use kernel::alloc::KVec;
use mars_core::{
    buffer::LogItem,
    dirty::{file_len, Bits, DirtyMap, Dropped, Geometry, Recovery, BLOCK, PIECE},
    lamport::LamportTime,
    log::LogName,
};
use mars_host_digest::HostDigest;
use std::cell::RefCell;

/// Bytes of the map's disk for each byte of the disk: a grain is 4 KiB.
pub const SCALE: u64 = 16;
/// Names that begin like this are never taken from, or sent to, another host.
pub const NAME: &str = "local-dirty-map";
const TEMPORARY: &str = ".tmp-dirty-map";

struct Open {
    map: DirtyMap,
    ino: u32,
}

/// A piece of the map for a peer.
#[derive(Clone)]
pub enum Asked {
    /// Not now: a gap is open.
    Later,
    /// There is no map for this gap.
    Unknown,
    /// Here it is.
    Piece {
        /// Size and grain.
        geometry: Geometry,
        /// Of the map.
        generation: u64,
        /// The bits.
        bits: Vec<u8>,
    },
}

/// The dirty map of the resource.
#[derive(Default)]
pub struct Dirty {
    lock: Lock,
    inner: RefCell<Option<Open>>,
}

/// Size and grain for a disk.
fn geometry(size: u64) -> Geometry {
    Geometry::for_size(size * SCALE)
}

/// Marks a range of the disk.
pub fn mark(bits: &mut Bits, offset: u64, length: u64) {
    bits.mark(offset * SCALE, length * SCALE, |_| ());
}

/// Whether a range of the disk is dirty.
pub fn is_dirty(bits: &Bits, offset: u64, length: u64) -> bool {
    bits.is_dirty(offset * SCALE, length * SCALE)
}

/// Bytes that are written once more at a time.
const CHUNK: u32 = 4096;

impl Dirty {
    fn with<R>(&self, f: impl FnOnce(&mut DirtyMap) -> R) -> Res<R> {
        let mut inner = self.inner.borrow_mut();
        Ok(f(&mut inner.as_mut().ok_or(Errno::NoEnt)?.map))
    }

    /// Makes everything durable that has changed; the lock is held.
    async fn save(&self, h: &Host) -> Res<()> {
        if !self.with(|m| m.is_unsaved())? {
            return Ok(());
        }
        let r = self.write(h).await;
        self.with(|m| match r {
            Ok(()) => m.saved(),
            Err(_) => m.failed(),
        })?;
        r
    }

    async fn write(&self, h: &Host) -> Res<()> {
        let ino = self.inner.borrow().as_ref().ok_or(Errno::NoEnt)?.ino;
        loop {
            let mut block = vec![0; BLOCK];
            let Some(at) = self.with(|m| m.next_write::<HostDigest>(&mut block))? else {
                break;
            };
            h.write_file(ino, at, &block).await?;
        }
        h.sync_file(ino, true).await
    }

    async fn change(
        &self,
        h: &Host,
        f: impl FnOnce(&mut DirtyMap) -> Result<(), mars_core::dirty::DirtyError>,
    ) -> Res<()> {
        let _locked = self.lock.lock(&h.ex).await;
        self.with(f)?.map_err(|_| Errno::Io)?;
        self.save(h).await
    }

    async fn look<R>(&self, h: &Host, f: impl FnOnce(&DirtyMap) -> R) -> Option<R> {
        let _locked = self.lock.lock(&h.ex).await;
        let inner = self.inner.borrow();
        inner.as_ref().map(|o| f(&o.map))
    }

    /// Opens the map, or makes a new one.
    pub async fn prepare(&self, h: &Host, size: u64) -> Res<()> {
        let _locked = self.lock.lock(&h.ex).await;
        if self.inner.borrow().is_some() {
            return Ok(());
        }
        // What a former membership left behind says nothing about this disk.
        let id = h.joined_at().ok_or(Errno::NoEnt)?.as_nanos();
        let path = format!("{DIR}/{NAME}");
        let there = h.machine().fs.borrow().file(&path);
        let found = match there {
            Some(ino) => {
                if !on("map-from-cache") {
                    h.sync_file(ino, true).await?;
                    h.machine().fs.borrow_mut().drop_cache(ino);
                }
                load(h, id, ino).await?.map(|map| (ino, map))
            }
            None => None,
        };
        if let Some((ino, mut map)) = found {
            if map.is_used() || map.bits().geometry() == geometry(size) {
                map.refresh();
                *self.inner.borrow_mut() = Some(Open { map, ino });
                let r = self.save(h).await;
                if r.is_err() {
                    *self.inner.borrow_mut() = None;
                }
                return r;
            }
        }
        let lost = there.is_some() && h.switch(&format!("actual-{}/has-gap", h.me));
        let mut map = DirtyMap::new(h.res, h.me, geometry(size), id).expect("memory");
        if lost {
            h.say(|| "the dirty map is damaged".into());
            map.distrust();
        }
        let r = self.create(h, map).await;
        if r.is_err() {
            *self.inner.borrow_mut() = None;
            let mut fs = h.machine().fs.borrow_mut();
            fs.unlink(&format!("{DIR}/{TEMPORARY}"));
        }
        r
    }

    /// Makes a new file: all of it is written and durable before it has its name.
    async fn create(&self, h: &Host, map: DirtyMap) -> Res<()> {
        let temporary = format!("{DIR}/{TEMPORARY}");
        h.fs_io().await?;
        let ino = {
            let mut fs = h.machine().fs.borrow_mut();
            fs.unlink(&temporary);
            fs.create(&temporary)?
        };
        let zeros = vec![0; usize::try_from(file_len(&map.bits().geometry())).expect("small")];
        h.write_file(ino, 0, &zeros).await?;
        h.sync_file(ino, false).await?;
        *self.inner.borrow_mut() = Some(Open { map, ino });
        self.save(h).await?;
        h.fs_io().await?;
        let path = format!("{DIR}/{NAME}");
        h.machine().fs.borrow_mut().rename(&temporary, &path);
        h.sync_dir().await
    }

    /// Closes it.
    pub async fn forget(&self, h: &Host) {
        let _locked = self.lock.lock(&h.ex).await;
        *self.inner.borrow_mut() = None;
    }

    /// From where recovery starts.
    pub async fn recovery(&self, h: &Host) -> Recovery {
        let r = self.look(h, DirtyMap::recovery).await;
        r.unwrap_or(Recovery::Normal)
    }

    /// Whether nothing is logged at the moment.
    pub async fn is_open(&self, h: &Host) -> bool {
        self.look(h, DirtyMap::is_open).await.unwrap_or(false)
    }

    /// After a flush has failed: what no log has is written once more.
    pub async fn rewrite_unlogged(&self, h: &Host) -> Res<()> {
        let unlogged = self.is_open(h).await || self.is_distrusted(h).await;
        if !h.unflushed.get() || !unlogged || on("sync-trusts-flush") {
            return Ok(());
        }
        let size = h.device_size().ok_or(Errno::NoEnt)?;
        for offset in (0..size).step_by(CHUNK as usize) {
            let len = u64::from(CHUNK).min(size - offset);
            let dirty = self.look(h, |m| is_dirty(m.bits(), offset, len)).await;
            if dirty.unwrap_or(true) {
                let bytes = h
                    .read_disk(offset, usize::try_from(len).unwrap_or(0))
                    .await?;
                h.write_disk(offset, bytes).await?;
            }
        }
        Ok(())
    }

    /// The same for a checker, also while it changes.
    pub fn is_open_now(&self) -> bool {
        let inner = self.inner.borrow();
        inner.as_ref().is_some_and(|o| o.map.is_open())
    }

    /// What the file says of a gap, also while the disk is not attached.
    pub async fn open_gap_of(&self, h: &Host) -> Res<Option<Option<(LogName, u64)>>> {
        h.fs_io().await?;
        let fs = h.machine().fs.borrow();
        let id = joined(fs.node(&format!("{DIR}/data-{}", h.me))).ok_or(Errno::NoEnt)?;
        let ino = fs.file(&format!("{DIR}/{NAME}"));
        let map = ino.and_then(|ino| read(&h.me, id.as_nanos(), fs.bytes(ino)));
        Ok(map.map(|map| {
            let gap = map.last_gap().filter(|_| map.is_open());
            gap.map(|(log, end, _)| (log, end))
        }))
    }

    /// Whether a gap must be opened for what a lost map may have said.
    pub async fn is_distrusted(&self, h: &Host) -> bool {
        let r = self.look(h, DirtyMap::is_distrusted).await;
        r.unwrap_or(false)
    }

    /// The log before the last gap, its end, and the log that follows.
    pub async fn last_gap(&self, h: &Host) -> Option<(LogName, u64, LogName)> {
        self.look(h, DirtyMap::last_gap).await?
    }

    /// Whether a log is the one that is to begin behind the gap which is open.
    pub async fn is_ahead(&self, h: &Host, log: &LogName) -> bool {
        let r = self.look(h, |m| {
            m.is_open() && m.last_gap().is_some_and(|(_, _, next)| next == *log)
        });
        // Without the map, the tree.
        r.await.unwrap_or_else(|| {
            let said = h.version(log.number);
            h.switch(&format!("actual-{}/has-gap", h.me))
                && log.creator == h.me
                && said.is_none_or(|v| v.this.pos <= crate::truth::HEADER)
        })
    }

    /// Size and grain.
    pub async fn geometry(&self, h: &Host) -> Option<Geometry> {
        self.look(h, |m| m.bits().geometry()).await
    }

    /// Whether the map says what was written in the gap before a log.
    pub async fn has_gap_before(&self, h: &Host, next: u32) -> bool {
        let r = self.look(h, |m| m.has_gap_before(next)).await;
        r.unwrap_or(false)
    }

    /// Which logs were deleted although members needed them.
    pub async fn dropped(&self, h: &Host) -> Dropped {
        let r = self.look(h, DirtyMap::dropped).await;
        r.unwrap_or(Dropped::NONE)
    }

    /// The logs from number `from` on, below `to`, may be deleted: `bits` says what they wrote.
    pub async fn drop_logs(&self, h: &Host, bits: &Bits, from: u32, to: u32) -> Res<()> {
        let _locked = self.lock.lock(&h.ex).await;
        self.with(|m| m.add(bits))?;
        self.save(h).await?;
        let old = self.with(|m| m.drop_logs(from, to))?;
        let r = self.save(h).await;
        if r.is_err() {
            self.with(|m| m.set_dropped(old))?;
        }
        r
    }

    /// Logging stops: log `base` ends at `end`.
    pub async fn open_gap(
        &self,
        h: &Host,
        now: LamportTime,
        base: LogName,
        end: u64,
        next: u32,
    ) -> Res<()> {
        self.change(h, |m| {
            if m.is_open() {
                return Ok(());
            }
            m.open_gap(base, end, next, now)
        })
        .await
    }

    /// Marks what is about to be written.
    pub async fn mark<D>(&self, h: &Host, items: &KVec<LogItem<D>>) -> Res<()> {
        self.change(h, |m| {
            for i in items {
                m.mark(i.offset * SCALE, u64::from(i.length) * SCALE);
            }
            Ok(())
        })
        .await
    }

    /// All that was written so far is durable on the disk.
    pub async fn settle(&self, h: &Host) -> Res<()> {
        self.change(h, DirtyMap::settle).await
    }

    /// The gap ends where log `next` begins.
    pub async fn close_gap(&self, h: &Host, next: u32) -> Res<()> {
        let _locked = self.lock.lock(&h.ex).await;
        self.with(|m| {
            if m.is_open() {
                m.close_gap(next).map_err(|_| Errno::Io)?;
            }
            Ok(())
        })??;
        // Whatever the disk has now is right as long as nothing more is written; before that, the map is written again.
        let r = self.save(h).await;
        if r.is_err() {
            self.with(DirtyMap::reopen)?;
        }
        r
    }

    /// The disk is about to be filled by a sync: what was said of it counts no more.
    pub async fn clear(&self, h: &Host) -> Res<()> {
        let _locked = self.lock.lock(&h.ex).await;
        if self.inner.borrow().is_none() {
            return Ok(());
        }
        self.with(|m| {
            if m.is_used() {
                m.clear();
            }
        })?;
        self.save(h).await
    }

    /// Writes what could not be written before, and clears the map when no member needs it any more.
    pub async fn maintain(&self, h: &Host) {
        {
            let _locked = self.lock.lock(&h.ex).await;
            // What could not be written when it changed: peers are told nothing of the map before that is done.
            if self.with(|m| m.is_open()) == Ok(false) && self.save(h).await.is_err() {
                return;
            }
        }
        let purpose = |m: &DirtyMap| m.is_used().then(|| m.purpose());
        let Some(purpose) = self.look(h, purpose).await.flatten() else {
            return;
        };
        let mut needed = false;
        for host in h.members() {
            let synced = h.is_synced(&host);
            let link = h.replay_link(&host);
            needed |= self
                .look(h, |m| m.is_needed(link.as_ref(), synced))
                .await
                .unwrap_or(true);
        }
        // Our own link must be durable: without the map recovery starts there.
        if needed || h.sync_dir().await.is_err() {
            return;
        }
        let _locked = self.lock.lock(&h.ex).await;
        let same = |m: &mut DirtyMap| m.purpose() == purpose || on("clear-amid-gap");
        if self.with(same) != Ok(true) || self.with(DirtyMap::clear).is_err() {
            // Meanwhile a gap was opened, or logs were let go.
            return;
        }
        if self.save(h).await.is_ok() {
            h.say(|| "all members have recovered; the dirty map is empty".into());
        }
    }

    /// A piece of the map for a replica that stands before log `next`, and lacks the logs since number `since`, if any.
    pub async fn piece(&self, h: &Host, next: &LogName, since: u32, index: u32) -> Res<Asked> {
        let r = self
            .look(h, |m| {
                if m.is_open() || m.is_unsaved() {
                    return Ok(Asked::Later);
                }
                if !m.covers(next, since) {
                    return Ok(Asked::Unknown);
                }
                let mut bits = vec![0; PIECE];
                if !m.bits().piece(index, &mut bits) {
                    return Err(Errno::Io);
                }
                Ok(Asked::Piece {
                    geometry: m.bits().geometry(),
                    generation: m.generation(),
                    bits,
                })
            })
            .await;
        r.unwrap_or(Ok(Asked::Later))
    }
}

async fn load(h: &Host, id: u64, ino: u32) -> Res<Option<DirtyMap>> {
    let blocks = h.read_file(ino, 0, 2 * BLOCK).await?;
    let found = DirtyMap::load::<HostDigest>(&h.res, &h.me, id, &blocks).expect("memory");
    let Some(mut map) = found else {
        return Ok(None);
    };
    let mut at = 2 * BLOCK as u64;
    for index in 0..map.bits().geometry().pieces() {
        // What can't be read counts as dirty.
        let block = h.read_file(ino, at, BLOCK).await.unwrap_or_default();
        map.load_piece::<HostDigest>(index, &block);
        at += BLOCK as u64;
    }
    Ok(Some(map))
}

/// The map as a file has it, for the truth.
pub fn read(host: &mars_core::name::Name, id: u64, file: &[u8]) -> Option<DirtyMap> {
    let res = mars_core::name::Name::new(b"r").expect("a name");
    let blocks = file.get(..2 * BLOCK).unwrap_or(file);
    let mut map = DirtyMap::load::<HostDigest>(&res, host, id, blocks).expect("memory")?;
    for index in 0..map.bits().geometry().pieces() {
        let at = (2 + index as usize) * BLOCK;
        let block = file.get(at..at + BLOCK).unwrap_or(&[]);
        map.load_piece::<HostDigest>(index, block);
    }
    Some(map)
}

/// When this membership began, as the links on a disk say.
pub fn joined(node: Option<&Node>) -> Option<LamportTime> {
    match node {
        Some(Node::Link(v, t)) if v != ".deleted" => Some(*t),
        _ => None,
    }
}
