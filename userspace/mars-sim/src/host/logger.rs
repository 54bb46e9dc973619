// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/logger.rs` and `logfile.rs`: admitted records become batches of the log.

use super::{
    pipeline::{Pipeline, Slice, Waiter},
    Host,
};
use crate::{
    defects::on,
    exec::{thread, Cond, Ns, Thread, MS},
    fs::{Errno, Res},
    truth::{id_of, LogId, Place, Rec, HEADER, SECTOR},
};
use kernel::alloc::KVec;
use mars_core::{
    buffer::{Kind, LogItem, LogPos, Seq},
    ends::{LogEnds, News},
    log::{
        batch_size, BatchWriter, LogContext, LogHeader, LogName, RecordHead, RecordKind, Scan,
        Scanner, HEADER_SIZE,
    },
};
use mars_host_digest::HostDigest;
use std::{cell::RefCell, rc::Rc};

mod unlogged;

const BATCH_RECORDS: usize = 16;
const BATCH_BYTES: usize = 16 << 10;
const FLUSH_MS: u64 = 50;
const FLUSH_BYTES: usize = 24 << 10;
const LAST_TRIES: u32 = 5;
/// How far ahead of the end the file is filled with zeros.
const ZERO_AHEAD: usize = 8 << 10;
const ZERO_LEAST: u64 = 2 << 10;
const RECENT: usize = 8;

/// A log that is written.
pub struct LogFile {
    h: Rc<Host>,
    ino: u32,
    /// Its name.
    pub name: LogName,
    /// The truth's number of it.
    pub id: LogId,
    /// It begins behind a gap.
    pub gap: bool,
    ctx: LogContext,
    /// Where the next batch goes.
    pub pos: u64,
    seq: u64,
    chain: u32,
    zeroed: u64,
}

impl LogFile {
    /// Starts a log durably.
    pub async fn create(h: &Rc<Host>, name: LogName, device: usize, gap: bool) -> Res<Self> {
        let path = h.log_path(&name);
        h.fs_io().await?;
        let ino = h.machine().fs.borrow_mut().create(&path)?;
        if has_batches(h, ino, &name) {
            return Err(Errno::Exist);
        }
        h.truncate(ino, 0).await?;
        let mut log_id = [0; 16];
        for b in log_id.chunks_exact_mut(8) {
            b.copy_from_slice(&h.machine().rng.next().to_le_bytes());
        }
        let mut header = LogHeader::new(name.number, log_id, 512, b"sim", &h.res, &h.me, h.now());
        header.gap = gap && !on("gap-without-bit");
        let mut block = vec![0; HEADER_SIZE];
        let chain = header.encode::<HostDigest>(&mut block).expect("a header");
        let id = {
            let mut t = h.sim.truth.borrow_mut();
            t.create(name, log_id, device, gap);
            t.find(&name).expect("just made")
        };
        let mut log = Self {
            h: h.clone(),
            ino,
            name,
            id,
            gap,
            ctx: header.context(),
            pos: HEADER,
            seq: 1,
            chain,
            zeroed: HEADER,
        };
        h.write_file(ino, 0, &block).await?;
        log.zero_ahead(0).await?;
        h.sync_file(ino, false).await?;
        h.sync_dir().await?;
        h.say(|| format!("created {name}"));
        Ok(log)
    }

    async fn zero_ahead(&mut self, len: u64) -> Res<()> {
        while self.zeroed < self.pos + len + ZERO_LEAST {
            self.h
                .write_file(self.ino, self.zeroed, &[0; ZERO_AHEAD])
                .await?;
            self.zeroed += ZERO_AHEAD as u64;
        }
        Ok(())
    }

    async fn append(&mut self, items: &[LogItem<Slice>]) -> Res<Rc<Vec<u8>>> {
        let count = u32::try_from(items.len()).expect("few");
        let payload = items
            .iter()
            .filter(|i| i.data.is_some())
            .map(|i| u64::from(i.length))
            .sum();
        let len = batch_size(count, payload, self.ctx.align).expect("fits");
        let mut buf = vec![0xdd; len as usize];
        let now = self.h.now().as_nanos();
        let mut w = BatchWriter::new(
            &mut buf, &self.ctx, self.seq, self.pos, self.chain, now, count,
        )
        .expect("fits");
        let mut recs = Vec::new();
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
                Some(s) => s.bytes(0, i.length),
                None => &[],
            };
            w.push(&head, bytes).expect("fits");
            recs.push(Rec {
                at: usize::try_from(i.offset).expect("small") / SECTOR,
                n: i.length as usize / SECTOR,
                id: id_of(bytes),
                nth: i.seq.0,
            });
        }
        let done = w.finish::<HostDigest>().expect("whole");
        self.zero_ahead(u64::from(len)).await?;
        let buf = Rc::new(buf);
        let truth = &self.h.sim.truth;
        truth
            .borrow_mut()
            .attempt(self.id, self.pos, buf.clone(), recs);
        self.h.write_file(self.ino, self.pos, &buf).await?;
        truth.borrow_mut().appended(self.id);
        self.pos += u64::from(done.total_len);
        self.seq += 1;
        self.chain = done.meta_crc;
        Ok(buf)
    }

    async fn close(&self) -> Res<()> {
        self.h.truncate(self.ino, self.pos).await?;
        self.h.sync_file(self.ino, false).await
    }
}

/// Whether there is a header and at least one batch behind it.
pub fn has_batches(h: &Host, ino: u32, name: &LogName) -> bool {
    let fs = h.machine().fs.borrow();
    let bytes = fs.bytes(ino);
    let Some((block, rest)) = bytes.split_at_checked(HEADER_SIZE) else {
        return false;
    };
    match LogHeader::parse::<HostDigest>(block) {
        Ok((header, _)) if !header.is_of(&header.resource, name) => false,
        Ok((header, crc)) => matches!(
            Scanner::first(&header, crc).next::<HostDigest>(rest, true),
            Scan::Batch(_)
        ),
        Err(_) => false,
    }
}

struct Recent {
    number: u32,
    pos: u64,
    data: Rc<Vec<u8>>,
}

struct Inner {
    ends: LogEnds,
    recent: Vec<Recent>,
    next: Option<LogFile>,
    /// The log before, which is not cut yet.
    left: Option<LogFile>,
    error: Option<Errno>,
    /// There is no room to log.
    must_stop: bool,
}

/// Shared between logger, control thread and server.
pub struct Progress {
    inner: RefCell<Inner>,
    changed: Cond,
}

impl Progress {
    /// Nothing reached yet.
    pub fn new() -> Self {
        Self {
            inner: RefCell::new(Inner {
                ends: LogEnds::new().expect("memory"),
                recent: Vec::new(),
                next: None,
                left: None,
                error: None,
                must_stop: false,
            }),
            changed: Cond::default(),
        }
    }

    /// The log that is written, and its durable end.
    pub fn current(&self) -> Option<(LogName, u64)> {
        let i = self.inner.borrow();
        i.ends.log().map(|l| (l, i.ends.end()))
    }

    /// The log fails.
    pub fn error(&self) -> Option<Errno> {
        self.inner.borrow().error
    }

    /// Hands over the log to switch to.
    pub fn rotate_to(&self, next: LogFile) {
        let mut i = self.inner.borrow_mut();
        i.ends.rotate().expect("memory");
        i.next = Some(next);
    }

    /// Whether the logger has to stop logging.
    pub fn stop_logging(&self, stop: bool) {
        self.inner.borrow_mut().must_stop = stop;
    }

    /// Gives up the log that was to be next.
    fn drop_next(&self) {
        let mut i = self.inner.borrow_mut();
        i.next = None;
        i.ends.cancel_rotation();
    }

    /// A rotation that was not carried out yet.
    pub fn is_rotating(&self) -> bool {
        self.inner.borrow().ends.is_rotating()
    }

    /// What the tree has to be told next.
    pub fn news(&self) -> Option<News> {
        self.inner.borrow().ends.news()
    }

    /// The tree does not have the end of a log before this one.
    pub fn is_untold(&self, number: u32) -> bool {
        self.inner.borrow().ends.is_untold(number)
    }

    /// It was told.
    pub fn told(&self, log: &LogName) {
        self.inner.borrow_mut().ends.told(log);
    }

    /// The log that was closed last, if the tree does not have its end.
    pub fn last_closed(&self) -> Option<(LogName, u64)> {
        self.inner.borrow().ends.last_closed()
    }

    /// Recovery will find them.
    pub fn forget(&self) {
        let mut i = self.inner.borrow_mut();
        i.ends.forget();
        i.next = None;
    }

    /// Gives up a log of which everything is durable, for the control thread to close.
    fn leave(&self, h: &Host, log: LogFile) {
        let (name, end) = (log.name, log.pos);
        self.inner.borrow_mut().left = Some(log);
        self.finished(h, name, end);
    }

    /// Closes the log that the logger has given up.
    pub async fn close_left(&self) {
        let left = self.inner.borrow_mut().left.take();
        if let Some(log) = left {
            let _ = log.close().await;
        }
    }

    /// Waits until a log has more than `offset` durable bytes.
    pub async fn wait_beyond(
        &self,
        h: &Host,
        name: &LogName,
        offset: u64,
        ns: Ns,
    ) -> Option<(u64, bool)> {
        let until = h.ex.now() + ns;
        loop {
            {
                let i = self.inner.borrow();
                if i.ends.log()? != *name {
                    return None;
                }
                if i.ends.end() > offset || h.ex.now() >= until {
                    return Some((i.ends.end(), true));
                }
            }
            let rest = until.saturating_sub(h.ex.now());
            self.changed.wait(&h.ex, rest).await;
        }
    }

    /// A batch in memory.
    pub fn recent(&self, number: u32, pos: u64) -> Option<Rc<Vec<u8>>> {
        let i = self.inner.borrow();
        let r = i.recent.iter().find(|r| r.number == number && r.pos == pos);
        r.map(|r| r.data.clone())
    }

    fn start(&self, h: &Host, name: LogName, end: u64) {
        self.inner.borrow_mut().ends.start(name, end);
        self.changed.notify(&h.ex);
    }

    fn durable(&self, h: &Host, end: u64, batches: &mut Vec<Recent>) {
        let mut i = self.inner.borrow_mut();
        i.ends.durable(end);
        i.recent.append(batches);
        let old = i.recent.len().saturating_sub(RECENT);
        i.recent.drain(..old);
        drop(i);
        self.changed.notify(&h.ex);
    }

    fn finished(&self, h: &Host, name: LogName, end: u64) {
        assert!(self.inner.borrow_mut().ends.close(name, end));
        self.changed.notify(&h.ex);
    }

    fn fail(&self, error: Option<Errno>) {
        self.inner.borrow_mut().error = error;
    }
}

pub(super) struct Logger {
    h: Rc<Host>,
    pipe: Rc<Pipeline>,
    /// The truth's number of the device.
    device: usize,
    waiting: Vec<Waiter>,
    target: Seq,
    logged: Seq,
    unflushed: Vec<Recent>,
    unflushed_bytes: usize,
    unflushed_since: Ns,
    failures: u32,
    suspect: bool,
    /// There was no room for the last batch.
    full: bool,
    /// A gap was begun, and the map could not be written.
    gap_begun: bool,
    /// The place in the truth where the gap begins.
    gap: Option<Place>,
}

/// What comes when a log, or the time without one, has ended.
enum After {
    /// This log is written.
    Log(LogFile),
    /// Nothing is logged.
    Gap,
    /// The thread ends.
    End,
}

/// Starts the logger; it ends when it was stopped and everything is durable, or the log keeps failing. Without a log it begins
/// in a gap, whose place in the truth is given.
pub fn spawn(
    h: &Rc<Host>,
    pipe: &Rc<Pipeline>,
    device: usize,
    log: Option<LogFile>,
    gap: Option<Place>,
) -> Rc<Thread> {
    h.progress.drop_next();
    match &log {
        Some(log) => h.progress.start(h, log.name, log.pos),
        None => pipe.with(|s| s.unlogged = true),
    }
    h.progress.stop_logging(false);
    let l = Logger {
        h: h.clone(),
        pipe: pipe.clone(),
        device,
        waiting: Vec::new(),
        target: Seq::default(),
        logged: Seq::default(),
        unflushed: Vec::new(),
        unflushed_bytes: 0,
        unflushed_since: 0,
        failures: 0,
        suspect: false,
        full: false,
        gap_begun: false,
        gap,
    };
    thread(&h.ex, h.i, move |t| l.run(t, log))
}

impl Logger {
    async fn run(mut self, t: Rc<Thread>, mut log: Option<LogFile>) {
        let h = self.h.clone();
        loop {
            let after = match log.take() {
                Some(log) => self.logged(&t, log).await,
                None => self.unlogged(&t).await,
            };
            h.kick.signal(&h.ex);
            match after {
                After::Log(next) => log = Some(next),
                After::Gap => (),
                After::End => break,
            }
        }
        for w in self.waiting.drain(..) {
            w(false);
        }
        h.kick.signal(&h.ex);
    }

    /// Writes a log, and those that follow it.
    async fn logged(&mut self, t: &Thread, mut log: LogFile) -> After {
        let h = self.h.clone();
        let progress = || &h.progress;
        let mut items: KVec<LogItem<Slice>> = KVec::new();
        loop {
            let stopping = t.should_stop();
            if self.is_out_of_room() && self.open_gap(&mut log).await {
                progress().leave(&h, log);
                return After::Gap;
            }
            if self.gap_begun && !(stopping && self.failures > LAST_TRIES) {
                h.sleep(200 * MS).await;
                continue;
            }
            if stopping && self.failures > LAST_TRIES {
                log.pos = progress().inner.borrow().ends.end();
                break;
            }
            items.clear();
            let rest = self.take(&mut items);
            if !items.is_empty() && !self.append(&mut log, &items).await {
                h.sleep(200 * MS).await;
                continue;
            }
            let rotate = progress().is_rotating();
            if self.must_flush(rest, stopping || rotate) && !self.flush(&log).await {
                h.sleep(200 * MS).await;
                continue;
            }
            if rotate && self.unflushed_since == 0 {
                let next = progress().inner.borrow_mut().next.take();
                if let Some(next) = next {
                    let end = (log.id, log.pos);
                    progress().leave(&h, log);
                    h.sim.truth.borrow_mut().set_parent(next.id, end);
                    progress().start(&h, next.name, next.pos);
                    log = next;
                    h.kick.signal(&h.ex);
                }
                continue;
            }
            if !items.is_empty() {
                continue;
            }
            if stopping && self.unflushed_since == 0 && self.waiting.is_empty() {
                break;
            }
            let ms = if self.unflushed_since == 0 {
                1000
            } else {
                FLUSH_MS
            };
            self.pipe.log_work.wait(&h.ex, ms * MS).await;
        }
        self.close(&log).await;
        After::End
    }

    fn take(&mut self, items: &mut KVec<LogItem<Slice>>) -> usize {
        let waiting = &mut self.waiting;
        let target = &mut self.target;
        self.pipe.with(|s| {
            s.buffer
                .take_for_log(BATCH_RECORDS, BATCH_BYTES, items)
                .expect("memory");
            if waiting.is_empty() && !s.waiting.is_empty() {
                waiting.append(&mut s.waiting);
                *target = s.buffer.last_seq();
            }
            s.buffer.untaken()
        })
    }

    async fn append(&mut self, log: &mut LogFile, items: &[LogItem<Slice>]) -> bool {
        let start = log.pos;
        match log.append(items).await {
            Ok(data) => {
                self.succeeded();
                let last = items.last().map_or(self.logged, |i| i.seq);
                self.logged = last;
                let end = LogPos {
                    number: log.name.number,
                    pos: log.pos,
                };
                self.pipe.with(|s| s.buffer.logged(last, end));
                if on("show-undurable") {
                    self.h.progress.inner.borrow_mut().ends.durable(log.pos);
                }
                self.unflushed_bytes += data.len();
                if self.unflushed_since == 0 {
                    self.unflushed_since = self.h.ex.now().max(1);
                }
                self.unflushed.push(Recent {
                    number: log.name.number,
                    pos: start,
                    data,
                });
                true
            }
            Err(e) => {
                self.failed(e);
                if let Some(first) = items.first() {
                    self.pipe.with(|s| s.buffer.untake(first.seq));
                }
                false
            }
        }
    }

    fn failed(&mut self, e: Errno) {
        self.failures += 1;
        self.full = e == Errno::NoSpc;
        self.h.progress.fail(Some(e));
    }

    fn succeeded(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.full = false;
            self.h.progress.fail(None);
        }
    }

    fn must_flush(&self, rest: usize, at_once: bool) -> bool {
        if !self.waiting.is_empty() && self.logged >= self.target {
            return true;
        }
        if self.unflushed_since == 0 {
            return false;
        }
        let age_ms = (self.h.ex.now() - self.unflushed_since) / MS;
        self.unflushed_bytes >= FLUSH_BYTES || age_ms >= FLUSH_MS || (at_once && rest == 0)
    }

    async fn flush(&mut self, log: &LogFile) -> bool {
        if self.unflushed_since != 0 {
            if let Err(e) = self.sync(log).await {
                self.failed(e);
                return false;
            }
            self.succeeded();
            let logged = self.logged;
            self.h
                .progress
                .durable(&self.h, log.pos, &mut self.unflushed);
            self.pipe.with(|s| s.buffer.durable(logged));
            self.unflushed_bytes = 0;
            self.unflushed_since = 0;
            self.pipe.work.signal(&self.h.ex);
        }
        if self.logged >= self.target {
            for w in self.waiting.drain(..) {
                w(true);
            }
        }
        true
    }

    async fn sync(&mut self, log: &LogFile) -> Res<()> {
        if self.suspect && !on("no-rewrite-after-error") {
            for b in &self.unflushed {
                self.h.write_file(log.ino, b.pos, &b.data).await?;
            }
        }
        self.suspect = true;
        if !on("lose-log-flush") {
            self.h.sync_file(log.ino, true).await?;
        }
        self.suspect = false;
        Ok(())
    }

    async fn close(&self, log: &LogFile) {
        let _ = log.close().await;
        self.h.progress.finished(&self.h, log.name, log.pos);
    }
}
