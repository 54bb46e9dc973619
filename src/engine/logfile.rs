// SPDX-License-Identifier: GPL-2.0-or-later

//! The log file that a primary appends to.
//!
//! Appends go past the page cache where the file system can do that. The file is filled with zeros some way ahead, so
//! that an append overwrites blocks which exist already: then a flush is one of the disk and not a commit of the file
//! system's journal. The file is therefore longer than the log while it is open; [`LogFile::close`] cuts it to
//! its true end, and so does recovery after a crash.
//!
//! `fdatasync` waits for the journal when blocks are new, and the journal's thread may wait for memory (or for swap I/O, in
//! reclaim), which only becomes free when the log gets on. So the file is made longer early, a thread of its own
//! ([`Ahead`]) waits until the journal has that, and a flush of what lies before is one of the disk alone: the blocks and the
//! file's size are durable already, only what direct I/O has written there since is not. Where that can't be said (another
//! file system than ext4, no direct I/O, no room, or the thread is behind), it is `fdatasync` as before.
//!
//! Owned by the logger thread (or by the control thread until it hands the file over); no lock. All calls may sleep.

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        UniqueArc, //
    }, //
};

use mars_core::{
    buffer::{
        Kind,
        LogItem, //
    },
    lamport::LamportTime,
    log::{
        batch_size,
        room::{
            self,
            Action, //
        },
        BatchWriter,
        LogContext,
        LogHeader,
        LogName,
        RecordHead,
        RecordKind,
        Scan,
        Scanner,
        HEADER_SIZE,
        MAX_BATCH, //
    },
    name::Name, //
};

use crate::{
    engine::{
        digest::KernelDigest,
        inject,
        paths,
        pipeline::Slice, //
    },
    sys::{
        buf::Buf,
        checksum,
        dir,
        event::Event,
        file::{
            self,
            File,
            OpenFlags, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        }, //
    }, //
};

/// How far ahead of the end the file is filled with zeros, each time that it gets short.
const ZERO_AHEAD: usize = 4 << 20;

/// What the thread knows that makes new blocks durable.
#[pin_data]
struct Ahead {
    /// Up to here somebody has extended the file.
    wanted: Atomic<u64>,
    /// Up to here blocks and size are durable.
    durable: Atomic<u64>,
    #[pin]
    work: Event,
}

impl Ahead {
    fn run(&self, ctx: &ThreadCtx, file: &File) {
        while !ctx.should_stop() {
            let wanted = self.wanted.load(Acquire);
            if wanted <= self.durable.load(Relaxed) {
                self.work.wait_timeout(1000);
                continue;
            }
            match file.datasync() {
                Ok(()) => self.durable.store(wanted, Release),
                // The logger sees that by `failed_syncs`.
                Err(_) => ctx.sleep_ms(1000),
            }
        }
    }
}

/// An open log at its end.
pub(crate) struct LogFile {
    /// Ends before the file is cut.
    ahead_thread: Option<Thread>,
    ahead: Option<Arc<Ahead>>,
    file: Arc<File>,
    /// Its name.
    pub(crate) name: LogName,
    ctx: LogContext,
    direct: bool,
    /// It begins behind a gap.
    pub(crate) gap: bool,
    /// Where the next batch goes.
    pub(crate) pos: u64,
    seq: u64,
    chain: u32,
    zeroed: u64,
    /// Before this position it is not extended early.
    look_at: u64,
    /// It had enough blocks at first to do without the journal for a while. Where it had not, the next one will not, either.
    is_roomy: bool,
    /// The next log should begin soon: memory is short, and this one is near the end of its blocks.
    pub(crate) is_ending: bool,
    /// One that was given up before this, and is to be closed, too.
    pub(crate) before: Option<KBox<LogFile>>,
    /// Failed syncs of files in `/mars` at the last sync of this one.
    failed_syncs: u64,
    zeros: Buf,
}

impl LogFile {
    /// Starts log `number` of `resource`: creates the file (or takes an empty one that `marsadm log-rotate` left) and
    /// writes its header durably. `gap`: it does not go on where the log before ends. `memory_short`: it shall do for a while
    /// without the journal. Its batches begin at multiples of `block` bytes at least.
    ///
    /// # Errors
    ///
    /// `EEXIST` if a log of this name has content already: a log is never appended to after a restart.
    #[inline(never)]
    pub(crate) fn create(
        resource: &Name,
        name: LogName,
        uuid: &[u8],
        now: LamportTime,
        gap: bool,
        memory_short: bool,
        block: u32,
    ) -> Result<Self> {
        let path = paths::log(resource, &name)?;
        let flags = OpenFlags {
            write: true,
            create: true,
            excl: false,
            truncate: false,
            direct: true,
        };
        inject::at!(LogCreate)?;
        if dir::stat(&path).is_ok_and(|s| s.kind == dir::EntryKind::Symlink) {
            // The tombstone of a log of that name which an invalidate has cut off.
            dir::unlink(&path)?;
        }
        let (file, align) = open_direct(&path, flags)?;
        if file.size() > 0 && has_batches(&file, resource, &name) {
            pr_err!("{:?} exists already and is not empty; a log is never appended to after a restart\n", path);
            return Err(EEXIST);
        }
        // Without any batch nothing was ever logged there: the host died when it had just made the file.
        file.truncate(0)?;
        let direct = align > 0;
        let mut log_id = [0; 16];
        checksum::random(&mut log_id);
        let mut header = LogHeader::new(
            name.number,
            log_id,
            // Not in one unit of the disk, here or on a replica, with what is durable already.
            align.max(file.disk_block()).max(block).max(512),
            uuid,
            resource,
            &name.creator,
            now,
        );
        header.gap = gap;
        let mut block = Buf::zeroed(HEADER_SIZE)?;
        let chain = header
            .encode::<KernelDigest>(&mut block)
            .map_err(Error::from)?;
        let mut log = Self {
            ahead_thread: None,
            ahead: None,
            file: Arc::new(file, GFP_KERNEL)?,
            name,
            ctx: header.context(),
            direct,
            gap,
            pos: u64::try_from(HEADER_SIZE)?,
            seq: 1,
            chain,
            zeroed: u64::try_from(HEADER_SIZE)?,
            look_at: 0,
            is_roomy: false,
            is_ending: false,
            before: None,
            failed_syncs: file::failed_syncs(),
            zeros: Buf::zeroed(ZERO_AHEAD)?,
        };
        match log.begin(resource, &block, memory_short) {
            Ok(()) => Ok(log),
            Err(e) => {
                log.ahead_thread = None;
                // Empty, it is one that is still wanted: it is tried again, and gives its room back until then.
                let _ = log.file.truncate(0);
                Err(e)
            }
        }
    }

    /// Writes the header `block`, and makes the file durable.
    fn begin(&mut self, resource: &Name, block: &Buf, memory_short: bool) -> Result {
        inject::at!(LogHeader)?;
        self.write(block, HEADER_SIZE, 0)?;
        self.extend()?;
        // There is room for a log, so the rest may fail.
        let can_flush = self.direct && self.file.can_flush_device();
        let free = dir::statfs(paths::ROOT).map_or(0, |s| s.avail);
        // Where each flush is one of the journal, more would be of no use.
        let first = if can_flush {
            room::at_first(free, memory_short)
        } else {
            0
        };
        let is_short = |log: &Self| log.zeroed.saturating_sub(log.pos) < first;
        while is_short(self) && self.extend().is_ok() {}
        self.is_roomy = first > 0 && !is_short(self);
        inject::at!(LogCreateSync)?;
        self.file.sync()?;
        let mut tries = 3;
        while file::failed_syncs() != self.failed_syncs {
            // A drive has told another file that it lost its cache.
            if tries == 0 {
                return Err(EIO);
            }
            tries -= 1;
            self.failed_syncs = file::failed_syncs();
            self.write(block, HEADER_SIZE, 0)?;
            self.file.sync()?;
        }
        paths::sync_resource_dir(resource)?;
        inject::at!(LogCreated)?;
        if can_flush {
            self.start_ahead(resource)?;
        }
        Ok(())
    }

    /// From now on, what is before the present end of the file needs no journal.
    fn start_ahead(&mut self, resource: &Name) -> Result {
        let zeroed = self.zeroed;
        let ahead = Arc::pin_init(
            pin_init!(Ahead {
                wanted: Atomic::new(zeroed),
                durable: Atomic::new(zeroed),
                work <- Event::new(),
            }),
            GFP_KERNEL,
        )?;
        let (shared, file) = (ahead.clone(), self.file.clone());
        let name = CString::try_from_fmt(format_args!("mars_ext/{resource}"))?;
        self.ahead_thread = Some(Thread::spawn(&name, move |ctx| shared.run(ctx, &file))?);
        self.ahead = Some(ahead);
        Ok(())
    }

    fn write(&self, buf: &Buf, len: usize, pos: u64) -> Result {
        if self.direct {
            self.file.write_direct(buf, 0, len, pos)
        } else {
            self.file.write_at(buf.get(..len).ok_or(EINVAL)?, pos)
        }
    }

    fn zero_ahead(&mut self, len: usize, memory_short: bool) -> Result {
        let need = self.pos.saturating_add(u64::try_from(len)?);
        let ahead = self.ahead.clone();
        let durable = ahead
            .as_ref()
            .is_some_and(|a| a.durable.load(Relaxed) >= a.wanted.load(Relaxed));
        loop {
            match room::action(self.zeroed.saturating_sub(need), memory_short, durable) {
                Action::Must => self.extend()?,
                Action::Early if self.pos >= self.look_at => {
                    // There is room for what has to be written now, so this may fail.
                    let room = dir::statfs(paths::ROOT).is_ok_and(|s| room::has_room(s.avail));
                    if !room || self.extend().is_err() {
                        self.look_at = self.pos.saturating_add(1 << 20);
                    }
                    break;
                }
                Action::Rotate => {
                    self.is_ending = self.is_roomy;
                    break;
                }
                Action::Early | Action::Enough => break,
            }
        }
        let Some(ahead) = ahead else {
            return Ok(());
        };
        if self.zeroed > ahead.wanted.load(Relaxed) {
            ahead.wanted.store(self.zeroed, Release);
            ahead.work.signal();
        }
        Ok(())
    }

    fn extend(&mut self) -> Result {
        inject::at!(LogExtend, self.zeroed, ZERO_AHEAD)?;
        self.write(&self.zeros, ZERO_AHEAD, self.zeroed)?;
        self.zeroed = self.zeroed.saturating_add(u64::try_from(ZERO_AHEAD)?);
        Ok(())
    }

    /// Appends one batch with `items`; not durable before [`LogFile::sync`]. Gives its memory and its length. Where there is
    /// no memory for it, it is made in `spare`, which may be longer than it, and no memory is given. `memory_short`: it must
    /// not wait for the journal, if that can be helped.
    ///
    /// # Errors
    ///
    /// On any error nothing counts as appended, and the same batch may be tried again.
    #[inline(never)]
    pub(crate) fn append(
        &mut self,
        items: &[LogItem<Slice>],
        now: LamportTime,
        spare: &mut Buf,
        memory_short: bool,
    ) -> Result<(Option<Arc<Buf>>, usize)> {
        let count = u32::try_from(items.len())?;
        let mut payload = 0u64;
        for i in items {
            if i.data.is_some() {
                payload = payload.saturating_add(u64::from(i.length));
            }
        }
        let len = batch_size(count, payload, self.ctx.align).ok_or(EOVERFLOW)?;
        let total = usize::try_from(len)?;
        let mut own = match inject::at!(AppendMemory, self.pos, total).and_then(|()| memory(total))
        {
            Ok(own) => Some(own),
            Err(e) if e == ENOMEM => None,
            Err(e) => return Err(e),
        };
        let buf: &mut Buf = match &mut own {
            Some(own) => own,
            None => spare,
        };
        let mut w = BatchWriter::new(
            buf.get_mut(..total).ok_or(ENOMEM)?,
            &self.ctx,
            self.seq,
            self.pos,
            self.chain,
            now.as_nanos(),
            count,
        )
        .map_err(Error::from)?;
        for i in items {
            let head = RecordHead {
                kind: match i.kind {
                    Kind::Write => RecordKind::Write,
                    Kind::Zeroes => RecordKind::WriteZeroes,
                    Kind::Discard => RecordKind::Discard,
                },
                offset: i.offset,
                length: i.length,
                stamp: i.stamp,
                payload_crc: i.crc,
            };
            let bytes = match &i.data {
                Some(s) => s.bytes(0, i.length).ok_or(EIO)?,
                None => &[],
            };
            w.push(&head, bytes).map_err(Error::from)?;
        }
        let done = w.finish::<KernelDigest>().map_err(Error::from)?;
        self.zero_ahead(total, memory_short)?;
        let bytes = buf.get_mut(..total).ok_or(EIO)?;
        if let Some(n) = inject::data!(AppendWrite, self.pos, bytes)? {
            // Torn, at a boundary that direct I/O allows.
            self.write(buf, n & !4095, self.pos)?;
            return Err(EIO);
        }
        self.write(buf, total, self.pos)?;
        inject::at!(AppendDone, self.pos, total)?;
        self.pos = self.pos.saturating_add(u64::from(done.total_len));
        self.seq = self.seq.saturating_add(1);
        self.chain = done.meta_crc;
        Ok((own.map(Arc::from), total))
    }

    /// What is not durable is going to be written once more: it does not matter what has failed before.
    pub(crate) fn begin_rewrite(&mut self) {
        self.failed_syncs = file::failed_syncs();
    }

    /// Writes a batch once more to its place: after a failed flush nobody knows what the disk has of it.
    pub(crate) fn rewrite(&self, pos: u64, data: &Buf, len: usize) -> Result {
        inject::at!(LogRewrite, pos, len)?;
        self.write(data, len, pos)
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    ///
    /// Also `EIO` when the sync of another file of `/mars` has failed meanwhile, since the last sync or [`Self::begin_rewrite`]: a drive
    /// reports to one only that it has lost its cache, in which may have been what was appended here.
    pub(crate) fn sync(&mut self) -> Result {
        inject::at!(FlushLog, self.pos, 0)?;
        let done = match &self.ahead {
            Some(ahead) if self.pos <= ahead.durable.load(Acquire) => self.file.flush_device(),
            _ => self.file.datasync(),
        };
        let before = core::mem::replace(&mut self.failed_syncs, file::failed_syncs());
        done?;
        if before != self.failed_syncs {
            return Err(EIO);
        }
        inject::at!(FlushLogDone, self.pos, 0)
    }

    /// Cuts the file to its true end and makes it durable; gives the end.
    pub(crate) fn close(mut self) -> Result<u64> {
        self.ahead_thread = None;
        inject::at!(LogCloseCut)?;
        self.file.truncate(self.pos)?;
        inject::at!(LogCloseSync)?;
        self.file.sync()?;
        Ok(self.pos)
    }
}

/// Memory for a batch, and for its handle.
fn memory(len: usize) -> Result<UniqueArc<Buf>> {
    let buf = Buf::try_new(len)?;
    Ok(UniqueArc::new(buf, GFP_NOWAIT)?)
}

/// Whether there is the header of log `name`, and at least one batch behind it. What can't be read counts as yes. (A crash may
/// show in a new file what its blocks had before: another log.)
pub(crate) fn has_batches(file: &File, resource: &Name, name: &LogName) -> bool {
    let Ok(mut start) = Buf::zeroed(HEADER_SIZE + usize::try_from(MAX_BATCH).unwrap_or(0)) else {
        return true;
    };
    let Ok(n) = file.read_at(&mut start, 0) else {
        return true;
    };
    let Some((block, rest)) = start.get(..n).and_then(|b| b.split_at_checked(HEADER_SIZE)) else {
        return false;
    };
    match LogHeader::parse::<KernelDigest>(block) {
        Ok((header, _)) if !header.is_of(resource, name) => false,
        Ok((header, crc)) => matches!(
            Scanner::first(&header, crc).next::<KernelDigest>(rest, true),
            Scan::Batch(_)
        ),
        Err(_) => false,
    }
}

/// When a log was begun; `None` if its header can't be read.
pub(crate) fn created(path: &CString) -> Option<LamportTime> {
    let file = File::open(path, OpenFlags::default(), 0o600).ok()?;
    let mut block = Buf::zeroed(HEADER_SIZE).ok()?;
    let n = file.read_at(&mut block, 0).ok()?;
    let header = LogHeader::parse::<KernelDigest>(block.get(..n)?);
    header.ok().map(|(header, _)| header.created)
}

/// Opens for direct I/O, or else through the page cache; gives the alignment that direct I/O wants, or 0.
fn open_direct(path: &CString, flags: OpenFlags) -> Result<(File, u32)> {
    match File::open(path, flags, 0o600) {
        Ok(f) => {
            let align = f.dio_align();
            if align > 0 && align <= 4096 {
                return Ok((f, align));
            }
        }
        Err(e) if e == EINVAL || e == EOPNOTSUPP => (),
        Err(e) => return Err(e),
    }
    pr_warn!("the file system of /mars can't do direct I/O; logs go through its page cache, which is slower\n");
    let buffered = OpenFlags {
        direct: false,
        ..flags
    };
    Ok((File::open(path, buffered, 0o600)?, 0))
}
