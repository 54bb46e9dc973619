// SPDX-License-Identifier: GPL-2.0-or-later

//! The file of the dirty map: what of the backing disk was written while nothing could be logged.
//!
//! The file is made when the disk is attached, and its blocks are written once, so that later writes only overwrite: a
//! `/mars` without a free byte can't prevent them. What the map means and in which order it is written is the core's
//! (`mars_core::dirty`); each call here returns only when its change is durable.
//!
//! Lock: [`Dirty::inner`] is held during I/O on the file, by the control thread and the logger; the server takes it for
//! each request, so it may have to wait for that. Nothing else is locked under it.

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

use mars_core::{
    buffer::LogItem,
    dirty::{
        file_len,
        Bits,
        DirtyMap,
        Dropped,
        Geometry,
        Recovery,
        BLOCK,
        PIECE, //
    },
    lamport::LamportTime,
    log::LogName, //
};

use crate::{
    engine::{
        digest::KernelDigest,
        inject,
        member::Member,
        paths,
        pipeline::Slice, //
    },
    sys::{
        buf::Buf,
        dir::{
            self,
            EntryKind, //
        },
        file::{
            failed_syncs,
            File,
            OpenFlags, //
        }, //
    }, //
};

/// Names that begin like this are never taken from, or sent to, another host.
const NAME: &str = "local-dirty-map";
/// The name while it is made.
const TEMPORARY: &str = ".tmp-dirty-map";

/// A map and its file.
struct Open {
    map: KBox<DirtyMap>,
    file: File,
    direct: bool,
    block: Buf,
}

impl Open {
    /// Makes everything durable that has changed.
    fn save(&mut self) -> Result {
        if !self.map.is_unsaved() {
            return Ok(());
        }
        let r = self.write();
        match r {
            Ok(()) => self.map.saved(),
            Err(_) => self.map.failed(),
        }
        r
    }

    fn write(&mut self) -> Result {
        let failed = failed_syncs();
        loop {
            let block = self.block.get_mut(..BLOCK).ok_or(EINVAL)?;
            let Some(at) = self.map.next_write::<KernelDigest>(block) else {
                break;
            };
            inject::at!(DirtyWrite, at, BLOCK)?;
            if self.direct {
                self.file.write_direct(&self.block, 0, BLOCK, at)?;
            } else {
                let block = self.block.get(..BLOCK).ok_or(EINVAL)?;
                self.file.write_at(block, at)?;
            }
        }
        inject::at!(DirtySync)?;
        self.file.datasync()?;
        if failed_syncs() != failed {
            // A drive has told another file that it lost its cache.
            return Err(EIO);
        }
        inject::at!(DirtySaved)
    }
}

/// A piece of the map for a peer.
pub(crate) enum Asked {
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
        bits: KVec<u8>,
    },
}

/// The dirty map of one resource; shared by control thread, logger and server.
#[pin_data]
pub(crate) struct Dirty {
    #[pin]
    inner: Mutex<Option<Open>>,
}

impl Dirty {
    /// No map.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                inner <- new_mutex!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// Opens the map for a device of `size` bytes, or makes a new one.
    ///
    /// # Errors
    ///
    /// There is one and it can't be read, or there is no room for a new one.
    #[inline(never)]
    pub(crate) fn prepare(&self, m: &Member, size: u64) -> Result {
        let mut inner = self.inner.lock();
        if inner.is_some() {
            return Ok(());
        }
        // What a former membership left behind says nothing about this disk.
        let id = m.joined_at().ok_or(ENOENT)?.as_nanos();
        let path = path(m, NAME)?;
        let geometry = Geometry::for_size(size);
        // A tombstone may be there, too.
        let there = match dir::stat(&path) {
            Ok(s) => s.kind == EntryKind::File,
            Err(e) if e == ENOENT => false,
            Err(e) => return Err(e),
        };
        let found = if there {
            let (file, direct) = open_file(&path, false)?;
            // What the disk has, for good: the next header is written beside the one that is found. If that had only been in a
            // cache since an attach that failed, a loss of power could leave neither.
            file.datasync()?;
            file.drop_cache(0, file.size());
            load(m, id, &file)?.map(|map| (file, direct, map))
        } else {
            None
        };
        if let Some((file, direct, mut map)) = found {
            if map.is_used() || map.bits().geometry() == geometry {
                map.refresh();
                let mut open = Open {
                    map,
                    file,
                    direct,
                    block: Buf::zeroed(BLOCK)?,
                };
                // Without what it says, replay would write older data over newer.
                let is_used = open.map.is_used();
                open.save().map_err(|e| if is_used { EIO } else { e })?;
                *inner = Some(open);
                return Ok(());
            }
        }
        let lost = m.is_in_gap();
        let mut map = new_map(m, geometry, id)?;
        if lost {
            pr_err!(
                "{}: the dirty map is damaged or missing: replicas will compare the whole disk\n",
                m.name.as_str()
            );
            map.distrust();
        }
        *inner = Some(create(m, map)?);
        Ok(())
    }

    /// Forgets the map; the file stays.
    pub(crate) fn forget(&self) {
        *self.inner.lock() = None;
    }

    fn change<R>(&self, f: impl FnOnce(&mut DirtyMap) -> Result<R>) -> Result<R> {
        let mut inner = self.inner.lock();
        let open = (*inner).as_mut().ok_or(ENODEV)?;
        let r = f(&mut open.map)?;
        open.save()?;
        Ok(r)
    }

    fn look<R>(&self, f: impl FnOnce(&DirtyMap) -> R) -> Option<R> {
        self.inner.lock().as_ref().map(|o| f(&o.map))
    }

    /// From where recovery starts.
    pub(crate) fn recovery(&self) -> Recovery {
        self.look(DirtyMap::recovery).unwrap_or(Recovery::Normal)
    }

    /// Whether nothing is logged at the moment.
    pub(crate) fn is_open(&self) -> bool {
        self.look(DirtyMap::is_open).unwrap_or(false)
    }

    /// Whether a gap must be opened for what a lost map may have said.
    pub(crate) fn is_distrusted(&self) -> bool {
        self.look(DirtyMap::is_distrusted).unwrap_or(false)
    }

    /// The log before the last gap, its end, and the log that follows.
    pub(crate) fn last_gap(&self) -> Option<(LogName, u64, LogName)> {
        self.look(DirtyMap::last_gap)?
    }

    /// Whether `log` is the one that will begin behind the gap which is open. `None`: the disk is not attached.
    pub(crate) fn is_ahead(&self, log: &LogName) -> Option<bool> {
        self.look(|m| m.is_open() && m.last_gap().is_some_and(|(_, _, next)| next == *log))
    }

    /// Bytes that count as dirty; `None` without a map, or where it says nothing.
    pub(crate) fn dirty_bytes(&self) -> Option<u64> {
        self.look(|m| m.is_used().then(|| m.bits().dirty_bytes()))?
    }

    /// Whether any of these bytes may be dirty; without a map, all.
    pub(crate) fn is_dirty(&self, offset: u64, len: u64) -> bool {
        self.look(|m| m.bits().is_dirty(offset, len))
            .unwrap_or(true)
    }

    /// Size and grain.
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        self.look(|m| m.bits().geometry())
    }

    /// Whether the map says what was written in the gap before log number `next`.
    pub(crate) fn has_gap_before(&self, next: u32) -> bool {
        self.look(|m| m.has_gap_before(next)).unwrap_or(false)
    }

    /// Which logs were deleted although members needed them.
    pub(crate) fn dropped(&self) -> Dropped {
        self.look(DirtyMap::dropped).unwrap_or(Dropped::NONE)
    }

    /// The logs from number `from` on, below `to`, may be deleted: `bits` says what they wrote.
    ///
    /// # Errors
    ///
    /// There is no map, or it can't be written. The logs must stay.
    pub(crate) fn drop_logs(&self, bits: &Bits, from: u32, to: u32) -> Result {
        // One lock for both: nobody may clear the bits in between.
        let mut inner = self.inner.lock();
        let open = (*inner).as_mut().ok_or(ENODEV)?;
        open.map.add(bits);
        open.save()?;
        // In a step of its own: the header must not be durable before the bits are.
        inject::at!(DropMarked)?;
        let old = open.map.drop_logs(from, to);
        open.save().inspect_err(|_| open.map.set_dropped(old))
    }

    /// Logging stops: log `base` ends at `end`.
    ///
    /// # Errors
    ///
    /// There is no map, or it can't be written. Logging must go on, or wait.
    pub(crate) fn open_gap(&self, now: LamportTime, base: LogName, end: u64, next: u32) -> Result {
        self.change(|map| {
            if map.is_open() {
                return Ok(());
            }
            map.open_gap(base, end, next, now).map_err(|_| EINVAL)
        })
    }

    /// Marks what is about to be written.
    ///
    /// # Errors
    ///
    /// The map can't be written: the data must not be written either.
    pub(crate) fn mark(&self, items: &[LogItem<Slice>]) -> Result {
        self.change(|map| {
            for i in items {
                map.mark(i.offset, i.length.into());
            }
            Ok(())
        })
    }

    /// All that was written so far is durable on the disk.
    ///
    /// # Errors
    ///
    /// The map can't be written.
    pub(crate) fn settle(&self) -> Result {
        self.change(|map| map.settle().map_err(|_| EINVAL))
    }

    /// The gap ends where log `next` begins.
    ///
    /// # Errors
    ///
    /// The map can't be written: the log must not be used.
    pub(crate) fn close_gap(&self, next: u32) -> Result {
        let mut inner = self.inner.lock();
        let open = (*inner).as_mut().ok_or(ENODEV)?;
        if open.map.is_open() {
            open.map.close_gap(next).map_err(|_| EINVAL)?;
        }
        // Whatever the disk has now is right as long as nothing more is written; before that, the map is written again.
        open.save().inspect_err(|_| open.map.reopen())
    }

    /// The disk is about to be filled by a sync: what was said of it counts no more.
    ///
    /// # Errors
    ///
    /// The map can't be written: the sync must not start.
    pub(crate) fn clear(&self) -> Result {
        let mut inner = self.inner.lock();
        match &mut *inner {
            Some(open) => {
                if open.map.is_used() {
                    open.map.clear();
                }
                // Also what an earlier attempt could not write.
                open.save()
            }
            None => Ok(()),
        }
    }

    /// Writes what could not be written before, and clears the map when no member needs it any more.
    pub(crate) fn maintain(&self, m: &Member) {
        // What could not be written when it changed: peers are told nothing of the map before that is done.
        if let Some(open) = &mut *self.inner.lock() {
            if !open.map.is_open() && open.save().is_err() {
                return;
            }
        }
        let Some(purpose) = self
            .look(|map| map.is_used().then(|| map.purpose()))
            .flatten()
        else {
            return;
        };
        let mut needed = false;
        let r = m.for_each_member(|host| {
            let synced = m.is_synced(&host);
            let link = m.replay_link(&host);
            needed |= self
                .look(|map| map.is_needed(link.as_ref(), synced))
                .unwrap_or(true);
        });
        // Our own link must be durable: without the map recovery starts there.
        if r.is_err() || needed || paths::sync_resource_dir(&m.name).is_err() {
            return;
        }
        let mut inner = self.inner.lock();
        let Some(open) = &mut *inner else { return };
        if open.map.purpose() != purpose {
            // Meanwhile a gap was opened, or logs were let go.
            return;
        }
        open.map.clear();
        let r = open.save();
        drop(inner);
        if r.is_ok() {
            pr_info!(
                "{}: all members have recovered; the dirty map is empty\n",
                m.name.as_str()
            );
        }
    }

    /// A piece of the map for a replica that stands before log `next`, and lacks the logs since number `since`, if any.
    ///
    /// # Errors
    ///
    /// Out of memory, or there is no such piece.
    pub(crate) fn piece(&self, next: &LogName, since: u32, index: u32) -> Result<Asked> {
        let mut bits = KVec::from_elem(0, PIECE, GFP_KERNEL)?;
        self.look(|map| {
            if map.is_open() || map.is_unsaved() {
                return Ok(Asked::Later);
            }
            if !map.covers(next, since) {
                return Ok(Asked::Unknown);
            }
            if !map.bits().piece(index, &mut bits) {
                return Err(EINVAL);
            }
            Ok(Asked::Piece {
                geometry: map.bits().geometry(),
                generation: map.generation(),
                bits,
            })
        })
        .unwrap_or(Ok(Asked::Later))
    }
}

fn path(m: &Member, name: &str) -> Result<CString> {
    CString::try_from_fmt(format_args!("/mars/resource-{}/{name}", m.name))
}

/// Opens with direct I/O where the file system can do that.
fn open_file(path: &CString, create: bool) -> Result<(File, bool)> {
    let flags = OpenFlags {
        write: true,
        create,
        direct: true,
        ..OpenFlags::default()
    };
    match File::open(path, flags, 0o600) {
        Ok(f) if (1..=4096).contains(&f.dio_align()) => return Ok((f, true)),
        Err(e) if e != EINVAL && e != EOPNOTSUPP => return Err(e),
        _ => (),
    }
    let flags = OpenFlags {
        direct: false,
        ..flags
    };
    Ok((File::open(path, flags, 0o600)?, false))
}

/// What the file says of a gap, also while the disk is not attached. `None`: there is no map; `Some(None)`: no gap is open; else
/// the log before the gap, and where it ends.
///
/// # Errors
///
/// The file can't be read.
pub(crate) fn open_gap(m: &Member) -> Result<Option<Option<(LogName, u64)>>> {
    let id = m.joined_at().ok_or(ENOENT)?.as_nanos();
    let path = path(m, NAME)?;
    let flags = OpenFlags::default();
    let file = match File::open(&path, flags, 0o600) {
        Err(e) if paths::is_absent(e) => return Ok(None),
        r => r?,
    };
    let mut blocks = Buf::zeroed(2 * BLOCK)?;
    let n = file.read_at(&mut blocks, 0)?;
    let map = load_header(m, id, blocks.get(..n).unwrap_or(&[]))?;
    Ok(map.map(|map| {
        let gap = map.last_gap().filter(|_| map.is_open());
        gap.map(|(log, end, _)| (log, end))
    }))
}

#[inline(never)]
fn load_header(m: &Member, id: u64, blocks: &[u8]) -> Result<Option<KBox<DirtyMap>>> {
    match DirtyMap::load::<KernelDigest>(&m.name, &m.me(), id, blocks)? {
        Some(map) => Ok(Some(KBox::new(map, GFP_KERNEL)?)),
        None => Ok(None),
    }
}

#[inline(never)]
fn new_map(m: &Member, geometry: Geometry, id: u64) -> Result<KBox<DirtyMap>> {
    let map = DirtyMap::new(m.name, m.me(), geometry, id)?;
    Ok(KBox::new(map, GFP_KERNEL)?)
}

#[inline(never)]
fn load(m: &Member, id: u64, file: &File) -> Result<Option<KBox<DirtyMap>>> {
    let mut block = Buf::zeroed(2 * BLOCK)?;
    let n = file.read_at(&mut block, 0)?;
    let blocks = block.get(..n).unwrap_or(&[]);
    let Some(mut map) = load_header(m, id, blocks)? else {
        return Ok(None);
    };
    let mut at = u64::try_from(2 * BLOCK)?;
    for index in 0..map.bits().geometry().pieces() {
        // What can't be read counts as dirty.
        let block = block.get_mut(..BLOCK).ok_or(EINVAL)?;
        let n = file.read_at(block, at).unwrap_or(0);
        map.load_piece::<KernelDigest>(index, block.get(..n).unwrap_or(&[]));
        at = at.saturating_add(u64::try_from(BLOCK)?);
    }
    Ok(Some(map))
}

/// Makes a new file: all of it is written and durable before it has its name.
#[inline(never)]
fn create(m: &Member, map: KBox<DirtyMap>) -> Result<Open> {
    let temporary = path(m, TEMPORARY)?;
    let _ = dir::unlink(&temporary);
    let (file, direct) = open_file(&temporary, true)?;
    let len = file_len(&map.bits().geometry());
    // The other copy of the header, too, gets its blocks now.
    let zeros = Buf::zeroed(BLOCK)?;
    let mut at = 0;
    while at < len {
        file.write_at(zeros.get(..BLOCK).ok_or(EINVAL)?, at)?;
        at = at.saturating_add(u64::try_from(BLOCK)?);
    }
    file.sync()?;
    let mut open = Open {
        map,
        file,
        direct,
        block: zeros,
    };
    let r = open
        .save()
        .and_then(|()| inject::at!(DirtyCreate))
        .and_then(|()| dir::rename(&temporary, &path(m, NAME)?))
        .and_then(|()| paths::sync_resource_dir(&m.name));
    if let Err(e) = r {
        let _ = dir::unlink(&temporary);
        return Err(e);
    }
    Ok(open)
}
