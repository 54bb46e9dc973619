// SPDX-License-Identifier: GPL-2.0-or-later

//! What other members may ask of this host: the tree (port +0), bytes of logs (+1), the raw disk during a sync (+2).
//!
//! One listening thread a port, one thread a connection, with a limit for each port so that clients which never finish
//! the handshake can't exhaust the host. Requests name resources and log numbers, never paths; every number has been
//! checked by the core's decoder, and is checked here against what there is (P6).
//!
//! Nothing here takes a lock that the data path of a primary holds for longer than a look (P3).

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            AtomicFlag,
            Relaxed, //
        },
        Arc, //
    }, //
};

use mars_core::{
    log::{
        LogName,
        HEADER_SIZE, //
    },
    wire::{
        auth::Refusal,
        frame::MAX_DATA,
        message::{
            bulk::{
                DirtyPiece,
                DirtyRead,
                LogData,
                LogRead,
                LogStatus,
                SyncData,
                SyncDigest,
                SyncDigests,
                SyncEnd,
                SyncPos,
                SyncRead,
                SyncStatus, //
            },
            meta::{
                Contact,
                Done,
                GetTree,
                Join,
                Ping,
                Pong,
                PutLink,
                Reach,
                Reached, //
            },
            ErrorCode,
            Kind,
            Message, //
        }, //
    }, //
};

use crate::{
    engine::{
        clock::Clock,
        conn::{
            Conn,
            Purpose, //
        },
        dirty::Asked,
        env::Env,
        inject,
        member::Member,
        paths,
        store::Merged,
        sync,
        text, //
    },
    sys::{
        bdev::BlockDevice,
        buf::Buf,
        file::{
            File,
            OpenFlags, //
        },
        socket::{
            Listener,
            Socket, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

/// Connections of one port at the same time: each replica of each resource has a bundle of them for logs.
const MAX_CLIENTS: usize = 4096;
/// Those of them that have not shown yet that they have the key.
const MAX_STRANGERS: usize = 64;
/// How long a thread waits before it looks whether it is to stop.
const POLL_MS: u32 = 500;
/// Smallest time between two answers on the same connection, for changes of the tree and for a little log.
const TREE_SPACING_MS: u32 = 50;
const LOG_SPACING_MS: u32 = 50;
/// A client that waits gets so much log at once.
const ENOUGH_LOG: u64 = 512 << 10;

/// A connection that is being served.
struct Client {
    socket: Arc<Socket>,
    progress: Arc<Progress>,
    _thread: Thread,
}

/// How far a client's thread is.
struct Progress {
    /// The client has the key.
    proved: AtomicFlag,
    /// The thread is about to end.
    finished: AtomicFlag,
}

/// The listening thread of one port; stops it and all its connections when dropped.
pub(crate) struct Server {
    _thread: Thread,
}

impl Server {
    /// Listens on the base port + `offset`.
    ///
    /// # Errors
    ///
    /// The port is in use, with a message in the kernel log.
    pub(crate) fn start(env: Arc<Env>, offset: u16) -> Result<Self> {
        let port = env.port.checked_add(offset).ok_or(EINVAL)?;
        let listener = Listener::bind(port).inspect_err(|e| {
            pr_err!("port {} can't be opened: {:?}; is something else using it? (module parameter mars_port)\n", port, e);
        })?;
        let name = CString::try_from_fmt(format_args!("mars_srv/{port}"))?;
        let thread = Thread::spawn(&name, move |ctx| listen(ctx, &env, &listener, offset))?;
        Ok(Self { _thread: thread })
    }
}

fn listen(ctx: &ThreadCtx, env: &Arc<Env>, listener: &Listener, offset: u16) {
    let mut clients: KVec<Client> = KVec::new();
    let mut count = 0u64;
    while !ctx.should_stop() {
        clients.retain(|c| !c.progress.finished.load(Relaxed));
        let socket = match listener.accept(POLL_MS) {
            Ok(Some(s)) => s,
            Ok(None) => continue,
            Err(_) if ctx.should_stop() => break,
            Err(e) => {
                crate::engine::text::warn_limited(format_args!(
                    "accepting a connection failed: {e:?}"
                ));
                ctx.sleep_ms(200);
                continue;
            }
        };
        let strangers = || clients.iter().filter(|c| !c.progress.proved.load(Relaxed));
        if clients.len() >= MAX_CLIENTS {
            crate::engine::text::warn_limited(format_args!(
                "more than {MAX_CLIENTS} connections on one port; a new one is turned away"
            ));
            continue;
        }
        if strangers().count() >= MAX_STRANGERS {
            crate::engine::text::warn_limited(format_args!(
                "more than {MAX_STRANGERS} connections on one port that do not show the key of the cluster; the oldest one is ended"
            ));
            if strangers().count() >= 2 * MAX_STRANGERS {
                // They come faster than they end.
                continue;
            }
            if let Some(oldest) = strangers().next() {
                oldest.socket.shutdown();
            }
        }
        count = count.wrapping_add(1);
        if let Err(e) = admit(env, socket, offset, count, &mut clients) {
            crate::engine::text::warn_limited(format_args!("serving a connection failed: {e:?}"));
        }
    }
    for c in &clients {
        c.socket.shutdown();
    }
}

fn admit(
    env: &Arc<Env>,
    socket: Socket,
    offset: u16,
    count: u64,
    clients: &mut KVec<Client>,
) -> Result {
    let socket = Arc::new(socket, GFP_KERNEL)?;
    let progress = Progress {
        proved: AtomicFlag::new(false),
        finished: AtomicFlag::new(false),
    };
    let progress = Arc::new(progress, GFP_KERNEL)?;
    clients.reserve(1, GFP_KERNEL)?;
    let name = CString::try_from_fmt(format_args!("mars_h{offset}.{}", count % 100_000))?;
    let (e, s, p) = (env.clone(), socket.clone(), progress.clone());
    let thread = Thread::spawn(&name, move |ctx| {
        serve(ctx, &e, s, offset, &p);
        p.finished.store(true, Relaxed);
    })?;
    clients.push(
        Client {
            socket,
            progress,
            _thread: thread,
        },
        GFP_KERNEL,
    )?;
    Ok(())
}

#[inline(never)]
fn serve(ctx: &ThreadCtx, env: &Arc<Env>, socket: Arc<Socket>, offset: u16, progress: &Progress) {
    let Ok((mut conn, purpose)) = Conn::accept(env, socket.clone(), offset) else {
        socket.shutdown();
        return;
    };
    progress.proved.store(true, Relaxed);
    let mut session = Handler {
        env,
        log: None,
        answered: 0,
    };
    while !ctx.should_stop() && !env.is_stopping() {
        match conn.next_request(POLL_MS) {
            // A log that is deleted gives its room back only when nobody has it open.
            Ok(None) => session.log = None,
            Ok(Some((kind, id, len))) => {
                if session
                    .answer(ctx, &mut conn, purpose, kind, id, len)
                    .is_err()
                {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    socket.shutdown();
}

/// A log file that a client reads, kept open between its requests.
struct OpenLog {
    resource: mars_core::name::Name,
    log: LogName,
    file: File,
    direct: bool,
    id: u64,
}

struct Handler<'a> {
    env: &'a Arc<Env>,
    log: Option<OpenLog>,
    /// Monotonic time of the last answer to a request that waits for news.
    answered: u64,
}

impl Handler<'_> {
    #[inline(never)]
    fn answer(
        &mut self,
        ctx: &ThreadCtx,
        conn: &mut Conn,
        _purpose: Purpose,
        kind: Kind,
        id: u32,
        len: usize,
    ) -> Result {
        macro_rules! request {
            ($t:ty) => {
                match <$t>::decode(conn.payload(len)) {
                    Ok(m) => m,
                    Err(e) => return conn.refuse(id, &Refusal::from(e)),
                }
            };
        }
        match kind {
            Kind::LogRead => {
                let m = request!(LogRead);
                self.log_read(ctx, conn, id, &m)
            }
            Kind::SyncDigest => {
                let m = request!(SyncDigest);
                self.sync_digest(conn, id, &m)
            }
            Kind::SyncRead => {
                let m = request!(SyncRead);
                self.sync_read(conn, id, &m)
            }
            Kind::DirtyRead => {
                let m = request!(DirtyRead);
                self.dirty_read(conn, id, &m)
            }
            Kind::SyncEnd => {
                let m = request!(SyncEnd);
                self.sync_end(conn, id, &m)
            }
            Kind::GetTree => {
                let m = request!(GetTree);
                self.env.clock.saw(m.now);
                self.env.heard(&conn.peer);
                self.get_tree(ctx, conn, id, &m)
            }
            Kind::Ping => {
                let m = request!(Ping);
                self.env.clock.saw(m.now);
                conn.reply(
                    id,
                    &Pong {
                        now: self.env.clock.now(),
                        real: Clock::real(),
                    },
                )
            }
            Kind::Notify => {
                self.env.kick_members();
                Ok(())
            }
            Kind::Reach => {
                let m = request!(Reach);
                let age = self.env.silence_ms(&m.host);
                let contact = match age {
                    Some(_) => Contact::Seen,
                    None if self.env.peer_addr(&m.host, 0).is_some() => Contact::Never,
                    None => Contact::Unknown,
                };
                conn.reply(
                    id,
                    &Reached {
                        contact,
                        age_ms: age.unwrap_or(0),
                        text: "",
                    },
                )
            }
            Kind::PutLink => {
                let m = request!(PutLink<'_>);
                let merged = self
                    .env
                    .store
                    .merge_one(&conn.peer, m.path, m.value, m.stamp)?;
                self.env.kick_members();
                let done = Done {
                    now: self.env.clock.now(),
                    changed: merged == Merged::News,
                };
                conn.reply(id, &done)
            }
            Kind::Join => {
                let m = request!(Join<'_>);
                if m.host == self.env.me {
                    let refusal = Refusal::new(
                        ErrorCode::WrongHost,
                        format_args!("a host of the name {} is in the cluster already", m.host),
                    );
                    return conn.refuse(id, &refusal);
                }
                let path = CString::try_from_fmt(format_args!("ips/ip-{}", m.host))?;
                let known = self.env.store.get(text::of(&path));
                if known.is_some_and(|v| v.as_str() != m.ip) {
                    let refusal = Refusal::new(
                        ErrorCode::NotAllowed,
                        format_args!("host {} is known in the cluster with another address; if that host is gone, run 'marsadm --host={} leave-cluster --force' first", m.host, m.host),
                    );
                    return conn.refuse(id, &refusal);
                }
                self.env.clock.saw(m.now);
                self.env.store.set(text::of(&path), m.ip)?;
                pr_info!("host {} ({}) joins the cluster\n", m.host.as_str(), m.ip);
                self.env.kick.signal();
                self.send_tree(conn, id, 0, true)
            }
            _ => conn.refuse(
                id,
                &Refusal::new(
                    ErrorCode::NotAllowed,
                    format_args!("this request is not served here"),
                ),
            ),
        }
    }

    /// News are told at once, but not more often than each `spacing_ms`: what gathers meanwhile travels together, and both
    /// sides have less to do for it.
    fn gather(&mut self, ctx: &ThreadCtx, spacing_ms: u32) {
        let since = time::mono_ns().saturating_sub(self.answered) / 1_000_000;
        let rest = u64::from(spacing_ms).saturating_sub(since);
        if rest > 0 {
            ctx.sleep_ms(u32::try_from(rest).unwrap_or(spacing_ms));
        }
        self.answered = time::mono_ns();
    }

    #[inline(never)]
    fn get_tree(&mut self, ctx: &ThreadCtx, conn: &mut Conn, id: u32, m: &GetTree) -> Result {
        let store = &self.env.store;
        let full = m.instance != store.instance() || m.since > store.generation();
        let since = if full { 0 } else { m.since };
        if !full {
            let mut rest = m.wait_ms.min(10_000);
            while rest > 0 && !ctx.should_stop() && !store.wait_newer(since, rest.min(POLL_MS)) {
                rest = rest.saturating_sub(POLL_MS);
            }
            self.gather(ctx, TREE_SPACING_MS);
        }
        self.send_tree(conn, id, since, full)
    }

    /// Sends all entries newer than `since`, in as many parts as it takes.
    #[inline(never)]
    fn send_tree(&self, conn: &mut Conn, id: u32, mut since: u64, full: bool) -> Result {
        let now = self.env.clock.now();
        loop {
            let mut more = false;
            conn.reply_with(Kind::Tree, id, |out| {
                more = self.env.store.write_part(out, &mut since, full, now)?;
                Ok(())
            })?;
            if !more {
                return Ok(());
            }
        }
    }

    #[inline(never)]
    fn log_read(&mut self, ctx: &ThreadCtx, conn: &mut Conn, id: u32, m: &LogRead) -> Result {
        let log = LogName {
            number: m.number,
            creator: m.creator,
        };
        let empty = |status, end, closed, log_id| LogData {
            status,
            end,
            closed,
            log_id,
            offset: m.offset,
            data: &[],
        };
        let Some(member) = self.env.member(&m.resource) else {
            return conn.reply_bulk(id, &empty(LogStatus::NoLog, 0, false, 0), &[]);
        };
        // How far this log may be read, waiting for more if the client wants that.
        let mut waited = 0;
        let (mut end, mut closed) = loop {
            let step = POLL_MS.min(m.wait_ms.saturating_sub(waited));
            match durable_end(&member, &log, m.offset, step) {
                Some((end, closed))
                    if end > m.offset || closed || waited >= m.wait_ms || ctx.should_stop() =>
                {
                    break (end, closed)
                }
                Some(_) => waited = waited.saturating_add(step.max(1)),
                None => return conn.reply_bulk(id, &empty(LogStatus::NoLog, 0, false, 0), &[]),
            }
        };
        if m.wait_ms > 0 && end.saturating_sub(m.offset) < ENOUGH_LOG && !closed {
            self.gather(ctx, LOG_SPACING_MS);
            (end, closed) = durable_end(&member, &log, m.offset, 0).unwrap_or((end, closed));
        }
        if m.log_id != 0 {
            // Which log it is: what the file says now.
            self.log = None;
        }
        if let Err(e) = self.open_log(&member, &log) {
            self.log = None;
            let status = if paths::is_absent(e) {
                LogStatus::NoLog
            } else {
                unreadable(&log, 0, e);
                LogStatus::Unavailable
            };
            return conn.reply_bulk(id, &empty(status, 0, false, 0), &[]);
        }
        let Some(open) = &self.log else {
            return Err(EIO);
        };
        if m.log_id != 0 && open.id != 0 && m.log_id != open.id {
            return conn.reply_bulk(id, &empty(LogStatus::OtherLog, end, closed, open.id), &[]);
        }
        let want = usize::try_from(
            end.saturating_sub(m.offset)
                .min(u64::from(m.max))
                .min(u64::from(MAX_DATA)),
        )?;
        if want == 0 {
            return conn.reply_bulk(id, &empty(LogStatus::Nothing, end, closed, open.id), &[]);
        }
        let head = LogData {
            status: LogStatus::Data,
            end,
            closed,
            log_id: open.id,
            offset: m.offset,
            data: &[],
        };
        let mut buf;
        // A client that follows closely asks for batches which are still in memory.
        let (batches, len) = member
            .progress
            .recent(m.number, m.offset, want)
            .unwrap_or((KVec::new(), 0));
        if let (Some(first), true) = (batches.first(), len > 0) {
            self.env.stats.served.add(u64::try_from(len)?, Relaxed);
            if batches.len() == 1 {
                return conn.reply_bulk(id, &head, first.get(..len).ok_or(EIO)?);
            }
            buf = Buf::new(len)?;
            let mut at = 0usize;
            for b in &batches {
                let part = b.len().min(len - at);
                buf.get_mut(at..at + part)
                    .ok_or(EIO)?
                    .copy_from_slice(b.get(..part).ok_or(EIO)?);
                at += part;
            }
            return conn.reply_bulk(id, &head, buf.get(..len).ok_or(EIO)?);
        }
        // Direct I/O: what a peer reads must not push out, or get stale in, the page cache under the logger's own writes.
        let (from, len) = if open.direct {
            let start = m.offset & !4095;
            let skip = usize::try_from(m.offset - start)?;
            let len = (skip + want + 4095) & !4095;
            buf = Buf::new(len)?;
            let n = open
                .file
                .read_direct(&mut buf, 0, len, start)
                .unwrap_or_else(|e| unreadable(&log, m.offset, e));
            (skip, n.min(skip + want).saturating_sub(skip))
        } else {
            buf = Buf::new(want)?;
            let n = open
                .file
                .read_at(&mut buf, m.offset)
                .unwrap_or_else(|e| unreadable(&log, m.offset, e));
            (0, n)
        };
        let part = buf.get_mut(from..from + len).unwrap_or(&mut []);
        let len = match inject::data!(ServeLog, m.offset, part) {
            Ok(n) => n.unwrap_or(len),
            Err(e) => unreadable(&log, m.offset, e),
        };
        let data = buf.get(from..from + len).unwrap_or(&[]);
        if data.is_empty() {
            return conn.reply_bulk(
                id,
                &empty(LogStatus::Unavailable, end, closed, open.id),
                &[],
            );
        }
        self.env
            .stats
            .served
            .add(u64::try_from(data.len())?, Relaxed);
        conn.reply_bulk(id, &head, data)
    }

    #[inline(never)]
    fn open_log(&mut self, member: &Member, log: &LogName) -> Result {
        // One that is gone may come again, as another log.
        if self.log.as_ref().is_some_and(|o| {
            o.resource == member.name && o.log == *log && o.id != 0 && !o.file.is_unlinked()
        }) {
            return Ok(());
        }
        let path = paths::log(&member.name, log)?;
        let flags = OpenFlags {
            direct: true,
            ..OpenFlags::default()
        };
        let (file, direct) = match File::open(&path, flags, 0o600) {
            Ok(f) if (1..=4096).contains(&f.dio_align()) => (f, true),
            _ => (File::open(&path, OpenFlags::default(), 0o600)?, false),
        };
        let mut head = Buf::zeroed(HEADER_SIZE)?;
        let n = if direct {
            file.read_direct(&mut head, 0, HEADER_SIZE, 0)?
        } else {
            file.read_at(&mut head, 0)?
        };
        let id = if n == HEADER_SIZE {
            mars_core::log::LogHeader::parse::<crate::engine::digest::KernelDigest>(&head)
                .map_or(0, |(h, _)| h.short_id())
        } else {
            0
        };
        self.log = Some(OpenLog {
            resource: member.name,
            log: *log,
            file,
            direct,
            id,
        });
        Ok(())
    }

    fn disk(&self, resource: &mars_core::name::Name) -> Option<(Arc<Member>, Arc<BlockDevice>)> {
        let member = self.env.member(resource)?;
        let bdev = {
            let a = member.attached.lock();
            if !a.primary {
                return None;
            }
            a.bdev.clone()?
        };
        Some((member, bdev))
    }

    #[inline(never)]
    fn sync_digest(&self, conn: &mut Conn, id: u32, m: &SyncDigest) -> Result {
        let reply = |status| SyncDigests {
            status,
            offset: m.offset,
            length: m.length,
            grain: m.grain,
            data: &[],
        };
        let Some((member, bdev)) = self.disk(&m.resource) else {
            return conn.reply_bulk(id, &reply(SyncStatus::Unavailable), &[]);
        };
        if m.offset.saturating_add(u64::from(m.length)) > member.device_size().unwrap_or(0) {
            return conn.reply_bulk(id, &reply(SyncStatus::OutOfRange), &[]);
        }
        match sync::digests(&bdev, m) {
            Ok(out) => conn.reply_bulk(id, &reply(SyncStatus::Data), &out),
            Err(_) => conn.reply_bulk(id, &reply(SyncStatus::DiskError), &[]),
        }
    }

    #[inline(never)]
    fn sync_read(&self, conn: &mut Conn, id: u32, m: &SyncRead) -> Result {
        let reply = |status| SyncData {
            status,
            offset: m.offset,
            data: &[],
        };
        let Some((member, bdev)) = self.disk(&m.resource) else {
            return conn.reply_bulk(id, &reply(SyncStatus::Unavailable), &[]);
        };
        if m.offset.saturating_add(u64::from(m.length)) > member.device_size().unwrap_or(0) {
            return conn.reply_bulk(id, &reply(SyncStatus::OutOfRange), &[]);
        }
        let len = usize::try_from(m.length)?;
        let mut buf = Buf::new(len)?;
        let r = bdev
            .read_at(&mut buf, 0, len, m.offset)
            .and_then(|()| inject::data!(ServeSync, m.offset, &mut buf));
        match r {
            Ok(n) => {
                let len = n.unwrap_or(len);
                self.env.stats.served.add(u64::from(m.length), Relaxed);
                conn.reply_bulk(id, &reply(SyncStatus::Data), buf.get(..len).unwrap_or(&[]))
            }
            Err(_) => conn.reply_bulk(id, &reply(SyncStatus::DiskError), &[]),
        }
    }

    #[inline(never)]
    fn dirty_read(&self, conn: &mut Conn, id: u32, m: &DirtyRead) -> Result {
        let reply = |status| DirtyPiece {
            status,
            piece: m.piece,
            size: 0,
            grain: 0,
            generation: 0,
            data: &[],
        };
        let Some((member, _)) = self.disk(&m.resource) else {
            return conn.reply_bulk(id, &reply(SyncStatus::Unavailable), &[]);
        };
        let next = LogName {
            number: m.number,
            creator: m.creator,
        };
        match member.dirty.piece(&next, m.since, m.piece) {
            Ok(Asked::Piece {
                geometry,
                generation,
                bits,
            }) => {
                let head = DirtyPiece {
                    size: geometry.size,
                    grain: geometry.grain,
                    generation,
                    ..reply(SyncStatus::Data)
                };
                conn.reply_bulk(id, &head, &bits)
            }
            Ok(Asked::Later) => conn.reply_bulk(id, &reply(SyncStatus::Unavailable), &[]),
            Ok(Asked::Unknown) => conn.reply_bulk(id, &reply(SyncStatus::Restart), &[]),
            Err(_) => conn.reply_bulk(id, &reply(SyncStatus::OutOfRange), &[]),
        }
    }

    #[inline(never)]
    fn sync_end(&self, conn: &mut Conn, id: u32, m: &SyncEnd) -> Result {
        let found = self
            .disk(&m.resource)
            .and_then(|(member, _)| Some((member.progress.current()?, member.size()?)));
        let reply = match found {
            Some(((log, end), size)) => SyncPos {
                status: SyncStatus::Data,
                number: log.number,
                creator: Some(log.creator),
                pos: end,
                size,
            },
            None => SyncPos {
                status: SyncStatus::Unavailable,
                number: 0,
                creator: None,
                pos: 0,
                size: 0,
            },
        };
        conn.reply(id, &reply)
    }
}

/// Durable end of a log of ours (or of a copy of ours), and whether it will stay there. `None`: there is no such log.
fn durable_end(m: &Member, log: &LogName, beyond: u64, wait_ms: u32) -> Option<(u64, bool)> {
    if m.is_ahead(log) {
        // Its version link is there already. What the file has is not used yet, or was made for a rotation, or when there was
        // no room for more than a header: then that does not say that there is a gap, and a replica would go across it.
        if wait_ms > 0 {
            crate::sys::time::sleep_ms(wait_ms.min(200));
        }
        return Some((0, false));
    }
    if let Some((end, _)) = m.progress.wait_beyond(log, beyond, wait_ms) {
        return Some((end, false));
    }
    if let Some((_, end)) = m.progress.last_closed().filter(|(l, _)| l == log) {
        // Closed, and the tree does not say so yet (perhaps for want of room).
        return Some((end, true));
    }
    let copy = m.fetch.available(log);
    if copy.fetched {
        if !copy.complete && copy.end <= beyond && wait_ms > 0 {
            crate::sys::time::sleep_ms(wait_ms.min(200));
        }
        return Some((copy.end, copy.complete));
    }
    // A log from before: closed, if this host's history goes on behind it.
    let me = m.me();
    let next = log.number.checked_add(1)?;
    if let Some(previous) = m
        .version(next, &me)
        .and_then(|(_, v)| v.previous)
        .filter(|p| p.log == *log)
    {
        return Some((previous.pos, true));
    }
    // The last one, of a device that is gone: nothing comes behind it for the time being.
    let (_, last) = m
        .version(log.number, &me)
        .filter(|(_, v)| v.this.log == *log)?;
    if last.this.pos <= beyond && wait_ms > 0 {
        crate::sys::time::sleep_ms(wait_ms.min(200));
    }
    Some((last.this.pos, false))
}

/// A peer wants what this host's disk does not give; it is told so, and looks elsewhere.
#[cold]
fn unreadable(log: &LogName, offset: u64, e: Error) -> usize {
    crate::sys::log::log_err!(
        "{:?} can't be read at {}: {:?}; is the disk of /mars failing?\n",
        log,
        offset,
        e
    );
    0
}
