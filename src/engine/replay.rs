// SPDX-License-Identifier: GPL-2.0-or-later

//! Applying local logs to the backing disk: on a secondary all the time, on a primary once, before its device appears.
//!
//! A [`Session`] reads the local file of one log after the other, from the replay position on, checks every batch and
//! admits its records to a [`Pipeline`], which writes them in device order and lets the replay link move behind. The
//! file itself is made durable *before* its records are admitted: write-back goes in device order, so after a loss of power
//! the disk may have any of them, and only a log that has all of them can make a state out of that again.
//!
//! Crash at any instant: the link is behind what is on the disk; replay begins there again, and applying a record twice
//! in log order gives the same state (P1).

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
    buffer::{
        Kind,
        LogPos, //
    },
    dirty::Recovery,
    lamport::LamportTime,
    log::{
        EndFinder,
        EndReason,
        EndStep,
        LogContext,
        LogHeader,
        LogName,
        ScanPos,
        HEADER_SIZE,
        MAX_BATCH, //
    },
    replay::{
        Defect,
        Extent,
        Flaw,
        Next,
        Replayer, //
    },
    succession::{
        is_stale,
        own_next,
        Purpose,
        Search, //
    },
    tree::value::ReplayLink,
    writeback::Policy, //
};

use crate::{
    engine::{
        ahead::{
            Ahead,
            Window, //
        },
        clock::Clock,
        digest::KernelDigest,
        inject,
        logfile::has_batches,
        member::Member,
        paths,
        pipeline::{
            self,
            Pipeline,
            Slice, //
        },
        sync, //
    },
    sys::{
        bdev::BlockDevice,
        buf::Buf,
        dir::{
            self,
            EntryKind, //
        },
        file::{
            File,
            OpenFlags, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

/// Bytes read from a log at once.
const CHUNK: usize = 1 << 20;
/// Less than this is made durable only so often.
const GATHER_BYTES: u64 = 1 << 20;
const GATHER_MS: u64 = 50;
/// Who waits so long for a word on the identity of a log says so.
const UNCONFIRMED_MS: u64 = 10_000;
/// How often a damaged place is fetched again before an administrator is asked.
const REPAIRS: u32 = 3;
/// After so many rounds, of two seconds each, it is tried once more: a member that has a good copy may have come back.
const ROUNDS: u32 = 450;

/// Where a replay is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// Log.
    pub(crate) log: LogName,
    /// Byte of it; everything before was admitted.
    pub(crate) pos: u64,
}

/// Outcome of looking at the next bytes of a log.
enum Looked {
    /// Records were admitted.
    Admitted,
    /// There is nothing (complete) behind the position, below the limit.
    Starved,
    /// The log ends here.
    End(EndReason),
    /// What stands here should be good and is not.
    Bad(Defect),
    /// The log begins behind a gap that this disk has not passed.
    Gap,
}

/// What became of some bytes of a log.
enum Admitted {
    /// This was seen at their end, or behind what was admitted.
    Until(Looked),
    /// Nothing: the batch has so many bytes.
    Needs(usize),
}

/// The log that is being read, as the publisher sees it: it outlives a switch to the next log.
#[pin_data]
struct Files {
    #[pin]
    list: Mutex<KVec<(LogName, Arc<File>)>>,
}

struct Session {
    m: Arc<Member>,
    pipe: Arc<Pipeline>,
    writeback: Option<pipeline::Threads>,
    files: Arc<Files>,
    file: Option<Arc<File>>,
    at: At,
    replayer: Option<Replayer>,
    ctx: LogContext,
    /// The present log is known to be good up to a position.
    known: bool,
    /// The present file is durable up to here.
    synced: u64,
    /// Monotonic time when it was made so last.
    synced_at: u64,
    size: u64,
    /// This log of a former gap ends here, whatever the file has behind it.
    limit: Option<(LogName, u64)>,
    /// Fetching goes on beside it.
    following: bool,
    /// The present file, read ahead.
    ahead: Option<Ahead>,
    /// Up to this limit that has failed.
    no_ahead: Option<u64>,
    /// The next log is here, and nobody has confirmed it since.
    unconfirmed: Option<(LogName, u64)>,
}

impl Session {
    #[inline(never)]
    fn new(m: Arc<Member>, bdev: Arc<BlockDevice>, following: bool) -> Result<Self> {
        let link = m.replay_link(&m.me()).ok_or(ENOENT)?;
        if following && link.log.creator != m.me() {
            // An earlier run of the module may have replayed more than the link says: all that this file has.
            let stat = dir::stat(&paths::log(&m.name, &link.log)?);
            let size = stat.map_or(0, |s| if s.kind == EntryKind::File { s.size } else { 0 });
            m.fetch.found(&link.log, size);
        }
        let (at, limit) = start(&m, &link);
        // Of the disk: the log may have what was written after a resize that is not known here yet.
        let size = bdev.size();
        let policy = if following {
            Policy::replica()
        } else {
            Policy::recovery()
        };
        let pipe = Pipeline::new(bdev, m.env.buffer(), policy)?;
        let files = Arc::pin_init(
            pin_init!(Files { list <- new_mutex!(KVec::new()) }),
            GFP_KERNEL,
        )?;
        let publisher = m.clone();
        let known = files.clone();
        let writeback = pipeline::spawn(&m.name, pipe.clone(), move |pos| {
            publish(&publisher, &known, pos)
        })?;
        Ok(Self {
            m,
            pipe,
            writeback: Some(writeback),
            files,
            file: None,
            at,
            replayer: None,
            ctx: LogContext {
                log_id: [0; 16],
                align: 512,
            },
            known: false,
            synced: 0,
            synced_at: 0,
            size,
            limit,
            following,
            ahead: None,
            no_ahead: None,
            unconfirmed: None,
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
    fn without_header(&self, extent: Extent) -> Looked {
        let header = u64::try_from(HEADER_SIZE).unwrap_or(0);
        match extent {
            Extent::Known(end) if end >= header => Looked::Bad(Defect {
                at: LogPos {
                    number: self.at.log.number,
                    pos: 0,
                },
                what: Flaw::Scan(EndReason::BadCrc),
            }),
            _ => Looked::Starved,
        }
    }

    /// Opens the log at the present position; gives why that can't be done yet.
    #[inline(never)]
    fn open(&mut self, extent: Extent) -> Result<Option<Looked>> {
        if let (Some(r), Some(file)) = (&mut self.replayer, &self.file) {
            match extent {
                Extent::Known(end) if self.known => r.known(end),
                Extent::Unknown if !self.known => (),
                _ => {
                    self.synced = match extent {
                        // From here on it is fetched, perhaps after it was cut.
                        Extent::Known(_) => self.at.pos,
                        // What is known to be good has been replayed; now to whatever end the file has.
                        Extent::Unknown => {
                            let (file, size) = (file.clone(), file.size());
                            self.make_all_durable(&file, extent)?;
                            size
                        }
                    };
                    if let Some(r) = &mut self.replayer {
                        *r = Replayer::new(self.at.log.number, self.ctx, r.at(), extent, self.size);
                    }
                }
            }
            self.known = matches!(extent, Extent::Known(_));
            return Ok(None);
        }
        let header = u64::try_from(HEADER_SIZE)?;
        if matches!(extent, Extent::Known(end) if end < header) {
            return Ok(Some(Looked::Starved));
        }
        let path = paths::log(&self.m.name, &self.at.log)?;
        let flags = OpenFlags {
            write: true,
            ..OpenFlags::default()
        };
        let file = match File::open(&path, flags, 0o600) {
            Ok(f) => f,
            Err(e) if paths::is_absent(e) => return Ok(Some(self.without_header(extent))),
            Err(e) => return Err(e),
        };
        drop_cache(&self.m, &file, &self.at.log);
        let Some((ctx, crc, gap)) = read_header(&self.m, &file, &self.at.log)? else {
            return Ok(Some(self.without_header(extent)));
        };
        if gap && self.at.pos <= header && !self.m.has_passed_gap(&self.at.log) {
            return Ok(Some(Looked::Gap));
        }
        // What a crash left in the page cache, or in a drive's, is not durable yet. Nor are perhaps the file's name and the
        // links that say that everything before this log is on the disk; once its first record is, they must be.
        // Fetching may go on meanwhile: what comes after this moment is not durable when the sync has ended.
        let size = file.size();
        self.make_all_durable(&file, extent)?;
        paths::sync_resource_dir(&self.m.name)?;
        // Of a log that is being fetched the file may be longer than what has arrived without a gap.
        self.synced = match extent {
            Extent::Known(end) => end,
            Extent::Unknown => size,
        };
        let file = Arc::new(file, GFP_KERNEL)?;
        let mut list = self.files.list.lock();
        list.retain(|(log, _)| *log != self.at.log);
        list.push((self.at.log, file.clone()), GFP_KERNEL)?;
        drop(list);
        let from = if self.at.pos <= header {
            self.at.pos = header;
            ScanPos::first(crc)
        } else {
            ScanPos {
                pos: self.at.pos,
                seq: None,
                chain: None,
            }
        };
        self.ctx = ctx;
        self.known = matches!(extent, Extent::Known(_));
        self.replayer = Some(Replayer::new(
            self.at.log.number,
            ctx,
            from,
            extent,
            self.size,
        ));
        self.file = Some(file);
        Ok(None)
    }

    /// Makes the file durable, of which everything before `from` is. After a sync that failed, what is in doubt is written once
    /// more first, as far as everything has arrived: behind that fetching may be writing.
    #[inline(never)]
    fn make_durable(
        &mut self,
        file: &File,
        extent: Extent,
        from: u64,
        sync: impl FnOnce() -> Result,
    ) -> Result {
        let size = file.size();
        let end = match extent {
            Extent::Known(end) => end.min(size),
            Extent::Unknown => size,
        };
        if self.m.fetch.may_have_lost() {
            // All that was not on the disk by the last sync that counts; written once more below.
            self.m.fetch.not_synced(&self.at.log, from, size);
        }
        let again = self.m.fetch.unsynced(&self.at.log).filter(|p| *p < end);
        if let Some(first) = again {
            inject::at!(ReplayRewrite, first, 0)?;
            write_again(file, first, end)?;
        }
        if let Err(e) = sync() {
            return Err(self.not_durable(file, from, e));
        }
        if self.m.fetch.may_have_lost() {
            return Err(self.not_durable(file, from, EIO));
        }
        if again.is_some() {
            self.m.fetch.synced(&self.at.log, end);
        }
        Ok(())
    }

    /// Makes durable what there was when the file was opened, and its size. Nothing was applied yet of a log that just begins:
    /// its header may be in doubt, too.
    fn make_all_durable(&mut self, file: &File, extent: Extent) -> Result {
        let from = if self.at.pos <= u64::try_from(HEADER_SIZE)? {
            0
        } else {
            self.at.pos
        };
        self.make_durable(file, extent, from, || {
            inject::at!(ReplayOpenSync).and_then(|()| file.sync())
        })
    }

    /// A sync of the present file has failed. The page cache takes it for clean now, but what is behind `from` may not be on
    /// the disk, and the next sync would not write it either. Nothing is cut: from an earlier run the disk may have what stands
    /// behind.
    #[cold]
    fn not_durable(&mut self, file: &File, from: u64, e: Error) -> Error {
        self.m.fetch.not_synced(&self.at.log, from, file.size());
        self.close();
        e
    }

    /// Whether something is in doubt that is to be replayed now.
    fn is_in_doubt(&self, extent: Extent) -> bool {
        let pos = self.m.fetch.unsynced(&self.at.log);
        match extent {
            Extent::Known(end) => pos.is_some_and(|pos| pos < end),
            Extent::Unknown => pos.is_some(),
        }
    }

    /// The file is opened anew before anything else is read.
    fn close(&mut self) {
        self.ahead = None;
        self.no_ahead = None;
        self.replayer = None;
        self.file = None;
    }

    /// Looks at the log from the present position on.
    #[inline(never)]
    fn step(&mut self, extent: Extent, stop: &impl Fn() -> bool) -> Result<Looked> {
        let extent = self.clip(extent);
        // What a forced failover has cut off does not count, if nothing of it is on this disk.
        let stop_at = if self.following {
            let log = &self.at.log;
            let reach = self.m.fetch.reach();
            reach.stop(log, &self.m.me(), self.m.course(log))
        } else {
            None
        };
        if let Some(looked) = self.open(extent)? {
            return Ok(looked);
        }
        let Some(file) = self.file.clone() else {
            return Ok(Looked::Starved);
        };
        if let Extent::Known(end) = extent {
            if end > self.synced {
                let from = self.synced;
                self.make_durable(&file, extent, from, || {
                    inject::at!(ReplaySync, from, 0).and_then(|()| file.datasync())
                })?;
                self.synced = end;
                self.synced_at = time::mono_ns();
            }
        }
        // What was appended since the file was opened is neither durable nor known to have arrived.
        let limit = match extent {
            Extent::Known(end) => end,
            Extent::Unknown => self.synced,
        };
        let Some(replayer) = &mut self.replayer else {
            return Ok(Looked::Starved);
        };
        replayer.stop_at(stop_at);
        let limit = limit.min(stop_at.unwrap_or(u64::MAX));
        if !self.following {
            if let Some(looked) = self.step_ahead(limit, stop)? {
                return Ok(looked);
            }
        }
        let mut want = CHUNK;
        loop {
            let left = usize::try_from(limit.saturating_sub(self.at.pos)).unwrap_or(usize::MAX);
            let rest = left.min(want);
            if rest == 0 {
                return Ok(Looked::Starved);
            }
            self.pipe.wait_to_read(stop)?;
            let mut buf = Buf::counted(rest, &self.pipe.read)?;
            let n = read(&file, &mut buf, self.at.pos)?;
            let bytes = buf.get_mut(..n).ok_or(EIO)?;
            let n = inject::data!(ReplayRead, self.at.pos, bytes)?.unwrap_or(n);
            if self.following && extent == Extent::Unknown {
                // Fetching may just have begun to cut the file and to fill it again.
                let from = self.at.pos;
                let done = inject::at!(ReplayUnfetched, from, 0).and_then(|()| file.datasync());
                if let Err(e) = done {
                    return Err(self.not_durable(&file, from, e));
                }
            }
            let window = Window {
                buf: Arc::new(buf, GFP_KERNEL)?,
                from: 0,
                to: n,
                last: n < rest || (extent == Extent::Unknown && n == left),
            };
            match self.admit(&window, stop)? {
                Admitted::Until(looked) => return Ok(looked),
                Admitted::Needs(min) if min > want => want = min,
                Admitted::Needs(_) => return Ok(Looked::Starved),
            }
        }
    }

    /// The same with what is read ahead; `None` if there is nothing.
    fn step_ahead(&mut self, limit: u64, stop: &impl Fn() -> bool) -> Result<Option<Looked>> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        if self.at.pos >= limit {
            return Ok(Some(Looked::Starved));
        }
        if !self.ahead.as_ref().is_some_and(|a| a.reads_to(limit)) {
            if self.no_ahead == Some(limit) {
                return Ok(None);
            }
            self.ahead = None;
            let name = CString::try_from_fmt(format_args!("mars_ra/{}", self.m.name))?;
            let counter = self.pipe.read.clone();
            self.ahead = Ahead::start(&name, file.clone(), self.at.pos, limit, counter).ok();
        }
        let mut min = 1;
        while let Some(ahead) = &mut self.ahead {
            self.pipe.wait_to_read(stop)?;
            let Some(window) = ahead.get(self.at.pos, min, stop)? else {
                break;
            };
            match self.admit(&window, stop)? {
                Admitted::Until(looked) => return Ok(Some(looked)),
                Admitted::Needs(more) if more > min => min = more,
                Admitted::Needs(_) => break,
            }
        }
        self.ahead = None;
        self.no_ahead = Some(limit);
        Ok(None)
    }

    /// Admits all whole batches of `window`, which begins at the present position.
    fn admit(&mut self, window: &Window, stop: &impl Fn() -> bool) -> Result<Admitted> {
        let Some(replayer) = &mut self.replayer else {
            return Ok(Admitted::Until(Looked::Starved));
        };
        let mut used = window.from;
        loop {
            let bytes = window.buf.get(used..window.to).unwrap_or(&[]);
            let looked = match replayer.next::<KernelDigest>(bytes, window.last) {
                Next::Batch(batch) => {
                    let end = batch.end();
                    // Not what was read: of a batch of which the rest is missing nothing gets to the disk.
                    self.m.fetch.apply(&self.at.log, end.pos);
                    for a in batch.records() {
                        let at = used.saturating_add(a.payload_at);
                        let r = inject::at!(ReplayAdmit, end.pos, 0)
                            .and_then(|()| match a.kind {
                                Kind::Write => {
                                    payload(&self.pipe, &window.buf, at, a.length).map(Some)
                                }
                                _ => Ok(None),
                            })
                            .and_then(|data| self.pipe.admit_replayed(&a, data, end, stop));
                        if let Err(e) = r {
                            replayer.put_back();
                            return Err(e);
                        }
                    }
                    self.pipe.with(|s| s.buffer.passed(end));
                    used = used.saturating_add(usize::try_from(batch.bytes())?);
                    self.at.pos = end.pos;
                    continue;
                }
                _ if used > window.from => {
                    self.pipe.work.signal();
                    Looked::Admitted
                }
                Next::CaughtUp => Looked::Starved,
                Next::Read { min, .. } => return Ok(Admitted::Needs(min)),
                Next::End(reason) => Looked::End(reason),
                Next::Defective(d) => Looked::Bad(d),
            };
            return Ok(Admitted::Until(looked));
        }
    }

    /// Goes on with the next log. Everything of the present one has been written back and published.
    fn switch(&mut self, next: LogName) -> Result {
        inject::at!(SwitchLog)?;
        if let Some(file) = self.file.as_ref().filter(|f| f.size() > self.at.pos) {
            // Else recovery after a crash, from an older link, would go on in what a forced failover has cut off.
            pr_warn!(
                "{}: {:?} ends at {} for good; cutting off the {} bytes that were here behind it\n",
                self.m.name.as_str(),
                self.at.log,
                self.at.pos,
                file.size().saturating_sub(self.at.pos)
            );
            inject::at!(SwitchCut, self.at.pos, 0)?;
            file.truncate(self.at.pos)?;
            inject::at!(SwitchCutSync, self.at.pos, 0)?;
            file.sync()?;
        }
        // The version link of the next log is made from that of the present one, which may be older than the replay link if
        // there was no room for it; also after a crash: an older one must not come back beside it.
        self.m
            .advance(&self.at.log, self.at.pos, self.at.pos, true)?;
        paths::sync_resource_dir(&self.m.name)?;
        // Of a log of this very host more may have been said: so much was durable once.
        self.m.set_version(&next, self.m.said_end(&next))?;
        inject::at!(SwitchLink)?;
        self.m.advance(&next, 0, 0, false)?;
        self.m.fetch.begin_replay(&next);
        self.close();
        self.at = At { log: next, pos: 0 };
        self.files.list.lock().clear();
        Ok(())
    }

    /// Replay can't go on to `next`, of which nobody has said yet whether the local file is the right one.
    #[cold]
    fn wait_for_word(&mut self, next: &LogName) {
        let now = time::mono_ns();
        let (_, since) = *self.unconfirmed.get_or_insert((*next, now));
        if self.at.log.creator == self.m.me() {
            // Fetching only looks at the next log when this one, which is ours, has nothing behind its end.
            if let Some(file) = self.file.as_ref().filter(|f| f.size() > self.at.pos) {
                let _ = file.truncate(self.at.pos).and_then(|()| file.sync());
            }
        }
        if now.saturating_sub(since) > UNCONFIRMED_MS * 1_000_000 {
            self.m.set_trouble(Some((
                "waiting",
                format_args!("whether the local {next} is the right one, or another of that name from a history that was cut off, can only say who has it, and none of them answers; it goes on by itself when one does. If they are lost, 'marsadm pause-fetch {}' lets it be replayed if it is not older than the log before it", self.m.name),
            )));
        }
    }

    /// Waits until everything admitted is on the disk, then publishes the position.
    #[inline(never)]
    fn settle(&self, give_up: impl Fn() -> bool) -> Result {
        self.pipe.drain(give_up)?;
        inject::at!(ReplaySettled, self.at.pos, 0)?;
        self.m.advance(&self.at.log, self.at.pos, self.at.pos, true)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What is not on the disk yet is replayed from the log the next time.
        self.writeback = None;
    }
}

/// Where replay begins: at the replay link, unless the dirty map knows better. What was written without a log may be newer
/// than what stands in the log before the gap, and the link may be older than what was durable. Also gives where the log
/// before an open gap ends.
fn start(m: &Member, link: &ReplayLink) -> (At, Option<(LogName, u64)>) {
    let here = At {
        log: link.log,
        pos: link.pos,
    };
    let later = |log: LogName, pos: u64| {
        if (log.number, pos) > (link.log.number, link.pos) {
            At { log, pos }
        } else {
            here
        }
    };
    match m.dirty.recovery() {
        Recovery::Normal => (here, None),
        Recovery::Until { from, log, end } => {
            (from.map_or(here, |from| later(from, 0)), Some((log, end)))
        }
        Recovery::Behind(log, end) => (later(log, end), Some((log, end))),
        Recovery::From(log) => (later(log, 0), None),
    }
}

/// Fills `buf` from `pos` of a log on, past the page cache where that is possible; less only at the end of the file.
pub(crate) fn read(file: &File, buf: &mut Buf, pos: u64) -> Result<usize> {
    let align = u64::from(file.dio_align());
    let len = buf.len();
    if align == 0 || pos % align != 0 || u64::try_from(len)? % align != 0 {
        return file.read_at(buf, pos);
    }
    file.read_direct(buf, 0, len, pos)
}

/// Looks at what the disk has, not at what a failed sync of an earlier run of the module has left in the page cache. What this
/// run knows to be in doubt is still to be written once more from there.
fn drop_cache(m: &Member, file: &File, log: &LogName) {
    if m.fetch.unsynced(log).is_none() {
        file.drop_cache(0, file.size());
    }
}

/// Writes what can be read of a part of a log once more, so that the next sync brings it to the disk. What the page cache has
/// can always be read; what it does not have and can't be read is for replay to meet.
#[cold]
fn write_again(file: &File, from: u64, end: u64) -> Result {
    const PAGE: usize = 4096;
    let mut buf = Buf::new(CHUNK)?;
    let mut pos = from;
    let mut piece = CHUNK;
    while pos < end {
        let to_page = PAGE.saturating_sub(usize::try_from(pos % 4096)?);
        let most = if piece == PAGE { to_page } else { piece };
        let want = usize::try_from(end.saturating_sub(pos))
            .unwrap_or(most)
            .min(most);
        let n = match file.read_at(buf.get_mut(..want).ok_or(EIO)?, pos) {
            Ok(0) => break,
            Ok(n) => {
                file.write_at(buf.get(..n).ok_or(EIO)?, pos)?;
                n
            }
            Err(e) if is_unreadable(e) && piece > PAGE => {
                piece = PAGE;
                continue;
            }
            Err(e) if is_unreadable(e) => want,
            Err(e) => return Err(e),
        };
        pos = pos.saturating_add(u64::try_from(n)?);
    }
    Ok(())
}

/// Header of a log file: what its batches must have, the first chain value, and whether there is a gap before it. `None`:
/// not there (yet).
pub(crate) fn read_header(
    m: &Member,
    file: &File,
    log: &LogName,
) -> Result<Option<(LogContext, u32, bool)>> {
    if file.size() < u64::try_from(HEADER_SIZE)? {
        return Ok(None);
    }
    let mut block = Buf::zeroed(HEADER_SIZE)?;
    if file.read_at(&mut block, 0)? < HEADER_SIZE {
        return Ok(None);
    }
    match LogHeader::parse::<KernelDigest>(&block) {
        Ok((h, crc)) if h.is_of(&m.name, log) => Ok(Some((h.context(), crc, h.gap))),
        // New blocks with the bytes of an older file: a crash came before the header was on the disk.
        Ok(_) => {
            pr_warn!(
                "{}: {:?} has the header of another log\n",
                m.name.as_str(),
                log
            );
            Ok(None)
        }
        Err(_) => Ok(None),
    }
}

/// A position became durable on the disk of a secondary.
fn publish(m: &Member, files: &Files, pos: LogPos) -> bool {
    let found = files
        .list
        .lock()
        .iter()
        .find(|(l, _)| l.number == pos.number)
        .map(|(l, _)| *l);
    let Some(log) = found else { return true };
    let end = m
        .fetch
        .position()
        .filter(|(l, _)| *l == log)
        .map_or(pos.pos, |(_, p)| p);
    m.advance(&log, pos.pos, end, true).is_ok()
}

/// The log that follows `at` in the history of another member, if that history contains ours.
pub(crate) fn successor(m: &Member, at: &At) -> Option<LogName> {
    search(m, &at.log, at.pos, Purpose::Replay)
}

/// The log that follows `log`, whose end is `end`, in the history of any other member.
pub(crate) fn search(m: &Member, log: &LogName, end: u64, purpose: Purpose) -> Option<LogName> {
    let me = m.me();
    let mine = m.history(&me).ok()?;
    let mut s = Search::new(&mine, *log, end, m.designated(), purpose);
    let _ = m.for_each_member(|host| {
        if host != me && s.wants(&host) {
            if let Ok(theirs) = m.history(&host) {
                s.look(&host, &theirs);
            }
        }
    });
    s.found()
}

/// Replays what the local logs hold, to their true end, and cuts the last one there. For becoming primary: afterwards the
/// disk is the newest state that this host knows.
///
/// # Errors
///
/// The disk or `/mars` failed, the module is being unloaded, or a log that has a position is gone.
#[inline(never)]
pub(crate) fn to_end(m: &Arc<Member>, bdev: &Arc<BlockDevice>, ctx: &ThreadCtx) -> Result<At> {
    let mut s = Session::new(m.clone(), bdev.clone(), false)?;
    let r = run_to_end(&mut s, ctx);
    let at = s.at;
    // Write-back ends first: then the link is as far as it can be.
    drop(s);
    if matches!(r, Err(e) if e == EBADMSG || e == ENOENT) {
        // Until it is tried again, what is damaged may be fetched.
        m.fetch.again_from(&at.log, damaged_from(&at));
    }
    r.map(|()| at)
}

#[inline(never)]
fn run_to_end(s: &mut Session, ctx: &ThreadCtx) -> Result {
    let m = &s.m.clone();
    let started = s.at;
    let t0 = time::mono_ns();
    let mut bytes = 0u64;
    loop {
        let before = s.at.pos;
        // What was reported durable once must be there; only behind it the log may end anywhere.
        let base = s.limit.filter(|(log, _)| *log == s.at.log);
        let known = base.map_or_else(|| m.reported_end(&s.at.log), |(_, end)| end);
        let extent = if s.at.pos < known {
            Extent::Known(known)
        } else {
            Extent::Unknown
        };
        let pipe = s.pipe.clone();
        let looked = match s.step(extent, &|| ctx.should_stop() || pipe.is_failing()) {
            Err(e) if e == EINTR && !ctx.should_stop() => return Err(EIO),
            r => r?,
        };
        bytes = bytes.saturating_add(s.at.pos.saturating_sub(before));
        match looked {
            Looked::Admitted => {
                if ctx.should_stop() {
                    return Err(EINTR);
                }
                continue;
            }
            Looked::Starved if s.file.is_some() && s.at.pos < known => {
                pr_err!(
                    "{}: {:?} has only {} bytes, but {} were durable once\n",
                    m.name.as_str(),
                    s.at.log,
                    s.at.pos,
                    known
                );
                return Err(EBADMSG);
            }
            Looked::Starved if s.file.is_some() && matches!(extent, Extent::Known(_)) => continue,
            Looked::Starved | Looked::Gap => (),
            Looked::End(reason) if reason.is_clean() => (),
            Looked::End(reason) => pr_warn!(
                "{}: {:?} ends at {} ({:?}); what stands behind was never durable, or is damaged\n",
                m.name.as_str(),
                s.at.log,
                s.at.pos,
                reason
            ),
            Looked::Bad(d) => {
                pr_err!(
                    "{}: {:?} can't be replayed: {:?}\n",
                    m.name.as_str(),
                    s.at.log,
                    d
                );
                return Err(EBADMSG);
            }
        }
        s.ahead = None;
        let here = s.file.as_ref();
        if let Some(f) = here.filter(|f| f.size() > s.at.pos) {
            // First: in a full /mars the links need the room that was made here in advance.
            f.truncate(s.at.pos)?;
            inject::at!(RecoveryCut, s.at.pos, 0)?;
            f.sync()?;
        }
        s.settle(|| ctx.should_stop())?;
        inject::at!(RecoverySettled, s.at.pos, 0)?;
        if s.file.is_none() && (s.at.pos > 0 || known > u64::try_from(HEADER_SIZE)?) {
            pr_err!(
                "{}: {:?} is missing, the replay link is at {} of it\n",
                m.name.as_str(),
                s.at.log,
                s.at.pos
            );
            return Err(ENOENT);
        }
        if base.is_some() {
            // What follows was written without a log, and is on the disk.
            break;
        }
        // A crash during a rotation leaves the next log of our own without any link that names it.
        let own =
            s.at.log
                .number
                .checked_add(1)
                .and_then(|n| m.version(n, &m.me()));
        let own = own_next(&s.at.log, s.at.pos, &m.me(), own.as_ref().map(|(_, v)| v));
        // One of which it was said that so much is durable is there, or damaged; never overwritten.
        let header = u64::try_from(HEADER_SIZE)?;
        let next = own
            .filter(|n| has_log(m, n) || m.said_end(n) > header)
            .or_else(|| {
                let next = successor(m, &s.at).filter(|n| has_log(m, n));
                next.filter(|n| n.creator == m.me() || !is_other(m, &s.at.log, n))
            });
        match next {
            Some(n) => s.switch(n)?,
            None => break,
        }
    }
    let ms = time::mono_ns().saturating_sub(t0) / 1_000_000;
    pr_info!(
        "{}: recovered {} bytes of log in {} ms, from {:?} {} to {:?} {}\n",
        m.name.as_str(),
        bytes,
        ms,
        started.log,
        started.pos,
        s.at.log,
        s.at.pos
    );
    Ok(())
}

fn has_log(m: &Member, log: &LogName) -> bool {
    let Ok(path) = paths::log(&m.name, log) else {
        return false;
    };
    let Ok(file) = File::open(&path, OpenFlags::default(), 0o600) else {
        return false;
    };
    matches!(read_header(m, &file, log), Ok(Some(_)))
}

/// Identity of the log in a file; 0 without a header.
pub(crate) fn read_id(file: &File) -> Result<u64> {
    let mut block = Buf::zeroed(HEADER_SIZE)?;
    if file.read_at(&mut block, 0)? < HEADER_SIZE {
        return Ok(0);
    }
    let header = LogHeader::parse::<KernelDigest>(&block);
    Ok(header.map_or(0, |(h, _)| h.short_id()))
}

/// The payload of a record, at `at` of what was read of a log, in memory that the disk can write from: in a log it lies at a multiple
/// of 512, and encrypted disks, for instance, want one of their block size.
fn payload(pipe: &Pipeline, read: &Arc<Buf>, at: usize, length: u32) -> Result<Slice> {
    // Of a disk that asks for less, too: behind the text of a marker nothing lies at such a multiple.
    let mask = usize::try_from(pipe.bdev.dma_alignment() | 511)?;
    if at & mask == 0 {
        return Ok(Slice {
            buf: read.clone(),
            off: u32::try_from(at)?,
        });
    }
    let len = usize::try_from(length)?;
    let mut own = Buf::counted(len, &pipe.read)?;
    let bytes = read.get(at..at.saturating_add(len)).ok_or(EIO)?;
    own.get_mut(..len).ok_or(EIO)?.copy_from_slice(bytes);
    Ok(Slice {
        buf: Arc::new(own, GFP_KERNEL)?,
        off: 0,
    })
}

/// End of the valid part of a local log file, from `from` on (which must be 0 or the start of a batch), and whether that is
/// all: what can't be read may be there.
pub(crate) fn valid_end(m: &Member, file: &File, log: &LogName, from: u64) -> Result<(u64, bool)> {
    drop_cache(m, file, log);
    let header = match read_header(m, file, log) {
        Err(e) if is_unreadable(e) => return Ok((0, false)),
        r => r?,
    };
    let Some((ctx, crc, _)) = header else {
        return Ok((0, true));
    };
    let header = u64::try_from(HEADER_SIZE)?;
    let from = if from <= header {
        ScanPos::first(crc)
    } else {
        ScanPos {
            pos: from,
            seq: None,
            chain: None,
        }
    };
    let mut finder = EndFinder::new(ctx, from, true);
    let mut buf = Buf::new(usize::try_from(MAX_BATCH)?)?;
    let mut step = finder.start();
    loop {
        match step {
            EndStep::Read { pos, .. } => {
                if m.env.is_stopping() {
                    return Err(EINTR);
                }
                let n = match read(file, &mut buf, pos) {
                    Err(e) if is_unreadable(e) => return Ok((pos, false)),
                    r => r?,
                };
                step = finder.feed::<KernelDigest>(buf.get(..n).unwrap_or(&[]), n < buf.len());
            }
            EndStep::Done(end) => return Ok((end.at.pos, true)),
        }
    }
}

/// Whether an error says that the disk does not give what it has.
fn is_unreadable(e: Error) -> bool {
    e == EIO || e == ENODATA || e == EREMOTEIO
}

/// The replay thread of a secondary; stops when dropped.
pub(crate) struct Worker {
    _thread: Thread,
    pipe: Arc<Pipeline>,
}

impl Worker {
    /// Starts replaying at the replay link.
    pub(crate) fn start(m: Arc<Member>, bdev: Arc<BlockDevice>) -> Result<Self> {
        let name = CString::try_from_fmt(format_args!("mars_rpl/{}", m.name))?;
        let session = Session::new(m, bdev, true)?;
        let pipe = session.pipe.clone();
        Ok(Self {
            _thread: Thread::spawn(&name, move |ctx| follow(ctx, session))?,
            pipe,
        })
    }

    /// Why the backing disk does not take what is replayed.
    pub(crate) fn disk_error(&self) -> Option<Error> {
        self.pipe.with(|s| s.disk_error)
    }
}

fn follow(ctx: &ThreadCtx, mut s: Session) {
    let m = s.m.clone();
    let mut repairs = 0;
    let mut failed = false;
    let stop = || ctx.should_stop();
    while !ctx.should_stop() {
        inject::pass!(ReplayRound);
        let mut limit = m.fetch.available(&s.at.log);
        if limit.fetched && limit.end.saturating_sub(s.synced) < GATHER_BYTES {
            // Each sync of the file is a commit of its file system's journal: a little more may come meanwhile.
            let since = time::mono_ns().saturating_sub(s.synced_at) / 1_000_000;
            let rest = GATHER_MS.saturating_sub(since);
            if rest > 0 && limit.end > s.synced {
                ctx.sleep_ms(u32::try_from(rest).unwrap_or(0));
                limit = m.fetch.available(&s.at.log);
            }
        }
        let extent = if limit.fetched {
            Extent::Known(limit.end)
        } else {
            Extent::Unknown
        };
        match s.step(extent, &stop) {
            Ok(Looked::Admitted) => {
                repairs = 0;
                failed = false;
                m.set_trouble(None);
                continue;
            }
            // Whatever failed before is good again, also if there is nothing more to replay.
            Ok(Looked::Starved | Looked::End(_)) if core::mem::take(&mut failed) => {
                m.set_trouble(None);
            }
            Ok(Looked::Starved | Looked::End(_)) => (),
            Ok(Looked::Gap) => {
                if s.settle(stop).is_ok() {
                    sync::ask_for_gap(&m, &s.at.log);
                }
                ctx.sleep_ms(300);
                continue;
            }
            // Below the limit everything has arrived, so this is damage and not a gap.
            Ok(Looked::Bad(d)) => {
                repairs = repair(&m, &s.at, &d, repairs);
                s.close();
            }
            Err(e) if e == EINTR => break,
            // The page cache may still have what is to be written once more.
            Err(e) if s.is_in_doubt(extent) && repairs < REPAIRS => {
                pr_err!(
                    "{}: {:?} can't be made durable behind {}: {:?}; writing it once more\n",
                    m.name.as_str(),
                    s.at.log,
                    s.at.pos,
                    e
                );
                repairs += 1;
                ctx.sleep_ms(500);
                continue;
            }
            // A place that can't be read.
            Err(e) if is_unreadable(e) && extent != Extent::Unknown && repairs < REPAIRS => {
                pr_err!(
                    "{}: the disk of {:?} fails at {}; fetching it again from there\n",
                    m.name.as_str(),
                    s.at.log,
                    s.at.pos
                );
                fetch_again(&m, &s.at);
                repairs += 1;
                s.close();
                continue;
            }
            Err(e) if e == ENOMEM => {
                failed = true;
                m.set_trouble(Some((
                    "waiting",
                    format_args!("no memory to replay {} at {}", s.at.log, s.at.pos),
                )));
                ctx.sleep_ms(500);
                // Whether something follows here can't be known: more of this log may stand behind.
                continue;
            }
            Err(e) => {
                failed = true;
                m.set_trouble(Some((
                    "defective-log",
                    format_args!(
                        "reading {} at {} failed: {e:?}; is the disk of /mars failing?",
                        s.at.log, s.at.pos
                    ),
                )));
                ctx.sleep_ms(500);
                // Whether something follows here can't be known: more of this log may stand behind.
                if !paths::is_absent(e) {
                    continue;
                }
            }
        }
        if !limit.fetched || limit.complete && s.at.pos >= limit.end {
            if let Some(next) = successor_after_drain(&m, &mut s, ctx) {
                if s.switch(next).is_ok() {
                    m.fetch.replaying(&next);
                } else {
                    // /mars is full, perhaps.
                    ctx.sleep_ms(500);
                }
                continue;
            }
        }
        // Also where nothing was written (a log that has only its header) the position is published.
        let published = m.replay_link(&m.me());
        if published.is_some_and(|l| (l.log, l.pos) != (s.at.log, s.at.pos))
            && s.pipe.with(|s| s.buffer.is_empty())
        {
            let _ = s.settle(stop);
        }
        m.fetch.wait_news(ctx, &s.at.log, limit.end);
    }
    if s.unconfirmed.is_some() {
        m.set_trouble(None);
    }
    // Leave a position as new as possible behind, without waiting for a failing disk.
    let _ = s.settle(|| true);
}

/// The next log, once everything of the present one is on the disk.
fn successor_after_drain(m: &Member, s: &mut Session, ctx: &ThreadCtx) -> Option<LogName> {
    let mine = m.replay_link(&m.me())?;
    if s.limit.is_some_and(|(log, _)| log == s.at.log) {
        // This disk has more than its log: nothing goes on here but this host, as primary.
        return None;
    }
    if (mine.log, mine.pos) != (s.at.log, s.at.pos) && s.settle(|| ctx.should_stop()).is_err() {
        return None;
    }
    if let Some(own) = own_unsaid(m, &s.at.log, s.at.pos) {
        return Some(own);
    }
    let may_leave = m.fetch.reach().may_leave(&s.at.log, s.at.pos);
    let next = successor(m, &s.at).filter(|_| may_leave)?;
    let own = next.creator == m.me();
    let here = paths::log(&m.name, &next).and_then(|p| dir::stat(&p));
    let here = here.is_ok_and(|s| s.kind == EntryKind::File && s.size > 0);
    let asks = !own && m.switch(format_args!("todo-{}/connect", m.me()));
    let stale = || here && !own && is_other(m, &s.at.log, &next);
    if m.fetch.may_go_on(&next, asks, here) && (asks || !stale()) {
        if s.unconfirmed.take().is_some() {
            m.set_trouble(None);
        }
        return Some(next);
    }
    s.wait_for_word(&next);
    None
}

/// Whether the local file of `next` is another log of that name than the one that goes on behind `log`, as far as that can be
/// seen here.
pub(crate) fn is_other(m: &Member, log: &LogName, next: &LogName) -> bool {
    let stale = made(m, log)
        .zip(made(m, next))
        .is_some_and(|(before, made)| is_stale(made, before, Clock::real()));
    if stale {
        crate::sys::log::log_warn!(
            "{}: the local {:?} is older than {:?}: it is another log of that name, from a history that was cut off, and not replayed\n",
            m.name.as_str(),
            next,
            log
        );
    }
    stale
}

/// When a log was made, by its local file.
fn made(m: &Member, log: &LogName) -> Option<LamportTime> {
    let file = File::open(&paths::log(&m.name, log).ok()?, OpenFlags::default(), 0o600).ok()?;
    let mut block = Buf::zeroed(HEADER_SIZE).ok()?;
    file.read_at(&mut block, 0).ok()?;
    let (header, _) = LogHeader::parse::<KernelDigest>(&block).ok()?;
    Some(header.created)
}

/// The log of this very host that goes on at `pos` of `log`, if it was written to. Rotation does not wait for write-back, so
/// the disk may have what it says, and a crash may have left no link that names it: nothing else may go on here.
pub(crate) fn own_unsaid(m: &Member, log: &LogName, pos: u64) -> Option<LogName> {
    let own = log
        .number
        .checked_add(1)
        .and_then(|n| m.version(n, &m.me()));
    let next = own_next(log, pos, &m.me(), own.as_ref().map(|(_, v)| v))?;
    let path = paths::log(&m.name, &next).ok()?;
    match File::open(&path, OpenFlags::default(), 0o600) {
        Ok(f) if !has_batches(&f, &m.name, &next) => None,
        Err(e) if paths::is_absent(e) => None,
        // What can't be read may be there.
        _ => Some(next),
    }
}

fn fetch_again(m: &Member, at: &At) {
    m.fetch.again_from(&at.log, damaged_from(at));
    time::sleep_ms(500);
}

fn damaged_from(at: &At) -> u64 {
    // A damaged first batch may also mean that the log was made anew behind this copy's header.
    let header = u64::try_from(HEADER_SIZE).unwrap_or(0);
    if at.pos <= header {
        0
    } else {
        at.pos
    }
}

fn repair(m: &Member, at: &At, defect: &Defect, repairs: u32) -> u32 {
    if (repairs < REPAIRS || repairs % ROUNDS == 0) && defect.may_be_repaired() {
        pr_warn!(
            "{}: {:?} is damaged: {:?}; fetching it again from there\n",
            m.name.as_str(),
            at.log,
            defect
        );
        fetch_again(m, at);
    } else {
        m.set_trouble(Some((
            "defective-log",
            format_args!("{} can't be replayed at {defect}; if no member has a good copy, run 'marsadm log-rotate {}' on the primary, and after that 'marsadm invalidate {}' here", at.log, m.name, m.name),
        )));
        time::sleep_ms(2000);
    }
    repairs.saturating_add(1)
}
