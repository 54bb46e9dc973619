// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/{conn,server,peer}.rs`: connections, what others may ask of this host, following their trees.
//!
//! Messages are values; that they are the same after their way over the wire is tested elsewhere. What the network does
//! here: it delays, each connection for itself; it is cut, in one direction or both; connections are lost, with a
//! request or its reply; replies are shorter than asked.

use super::{dirty::Asked, fetch, store::Wire, sync, Host, Merged, CLOCK_SET};
use crate::{
    defects::on,
    exec::{thread, Cond, Ns, Thread, MS, SEC},
    fs::{Errno, Res},
    world::Sim,
};
use mars_core::{lamport::LamportTime, log::LogName, name::Name, tree::path::TreePath};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

const NET_TIMEOUT: Ns = 10 * SEC;
const CONNECT_TIMEOUT: Ns = 5 * SEC;
const POLL_MS: u64 = 500;
const LONG_POLL_MS: u64 = 2000;
const FULL: Ns = 120 * SEC;

/// A request.
#[derive(Clone)]
pub enum Ask {
    /// What changed since.
    Tree {
        /// Generation.
        since: u64,
        /// Of this run of the server.
        instance: u64,
        /// Lamport time of the client.
        now: LamportTime,
    },
    /// Bytes of a log.
    Log {
        /// Which.
        log: LogName,
        /// From here.
        offset: u64,
        /// At most.
        max: u32,
        /// Wait for more.
        wait_ms: u64,
        /// Of what the client has; 0: of nothing.
        id: u64,
    },
    /// Digests of the raw disk.
    Digest {
        /// From here.
        offset: u64,
        /// So many bytes.
        len: usize,
    },
    /// Bytes of the raw disk.
    Read {
        /// From here.
        offset: u64,
        /// So many.
        len: usize,
    },
    /// Where the primary's log ends.
    End,
    /// A piece of the dirty map, for what is missing before a log.
    Dirty {
        /// Before this one.
        next: LogName,
        /// Since this number; 0: only a gap.
        since: u32,
        /// Which piece.
        piece: u32,
    },
}

/// A reply about a log.
#[derive(Clone)]
pub enum LogReply {
    /// Bytes, perhaps none.
    Data {
        /// Durable end.
        end: u64,
        /// The log will not grow.
        closed: bool,
        /// Identity of the file; 0 if there is none.
        id: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// There is no such log.
    None,
    /// Another one of that name.
    Other,
}

/// A reply.
#[derive(Clone)]
pub enum Answer {
    /// A part of the tree.
    Tree {
        /// The run of the server.
        instance: u64,
        /// What the client has then.
        generation: u64,
        /// Lamport time of the server.
        now: LamportTime,
        /// Links.
        list: Vec<Wire>,
    },
    /// About a log.
    Log(LogReply),
    /// Digests or bytes.
    Bytes(Vec<u8>),
    /// Where the log ends; nothing if this is no primary.
    End(Option<(LogName, u64)>),
    /// A piece of the dirty map.
    Dirty(Asked),
    /// Not here, or not now.
    Unavailable,
}

/// A connection.
pub struct Conn {
    /// With whom.
    pub peer: Name,
    to: usize,
    boot: u64,
    generation: u64,
    broken: bool,
}

fn index(sim: &Sim, name: &Name) -> Option<usize> {
    sim.machines.iter().position(|m| m.name == *name)
}

/// A message travels; lost only if the line stays cut until `until`.
async fn travel(sim: &Sim, from: usize, to: usize, until: Ns) -> Res<()> {
    let ex = &sim.ex;
    let base = sim.net.delay.get();
    ex.sleep(base / 2 + sim.net.rng.below(base)).await;
    while sim.net.is_cut(from, to) {
        if ex.now() >= until {
            return Err(Errno::Net);
        }
        ex.sleep((200 * MS).min(until - ex.now()).max(1)).await;
    }
    Ok(())
}

/// Connects with a peer.
pub async fn dial(h: &Rc<Host>, peer: &Name) -> Res<Conn> {
    let sim = &h.sim;
    let to = index(sim, peer).ok_or(Errno::NoEnt)?;
    let until = h.ex.now() + CONNECT_TIMEOUT;
    for (a, b) in [(h.i, to), (to, h.i)] {
        travel(sim, a, b, until).await?;
    }
    let m = &sim.machines[to];
    if m.host.borrow().is_none() {
        return Err(Errno::Net);
    }
    Ok(Conn {
        peer: *peer,
        to,
        boot: m.boots.get(),
        generation: sim.net.generation(h.i, to),
        broken: false,
    })
}

impl Conn {
    /// Whether it was not lost.
    pub fn is_usable(&self, h: &Host) -> bool {
        !self.broken && self.generation == h.sim.net.generation(h.i, self.to)
    }

    /// Asks, and waits for the reply.
    pub async fn call(&mut self, h: &Rc<Host>, ask: Ask, wait: Ns) -> Res<Answer> {
        let r = self.try_call(h, ask, wait).await;
        if r.is_err() {
            self.broken = true;
        }
        r
    }

    async fn try_call(&mut self, h: &Rc<Host>, ask: Ask, wait: Ns) -> Res<Answer> {
        let sim = &h.sim;
        let until = h.ex.now() + NET_TIMEOUT + wait;
        travel(sim, h.i, self.to, until).await?;
        let server = self.server(h)?;
        let slot: Rc<RefCell<Option<Answer>>> = Rc::default();
        let done: Rc<Cond> = Rc::default();
        let (slot2, done2, s2) = (slot.clone(), done.clone(), server.clone());
        let client = h.me;
        sim.ex.spawn(server.i, async move {
            let a = answer(&s2, &client, ask).await;
            *slot2.borrow_mut() = Some(a);
            done2.notify(&s2.ex);
        });
        drop(server);
        let answer = loop {
            if let Some(a) = slot.borrow_mut().take() {
                break a;
            }
            self.server(h)?;
            if h.ex.now() >= until {
                return Err(Errno::Net);
            }
            done.wait(&h.ex, 200 * MS).await;
        };
        travel(sim, self.to, h.i, until).await?;
        self.server(h)?;
        Ok(answer)
    }

    fn server(&self, h: &Host) -> Res<Rc<Host>> {
        let m = &h.sim.machines[self.to];
        let up = m.host.borrow().clone();
        match up {
            Some(s) if m.boots.get() == self.boot && self.is_usable(h) => Ok(s),
            _ => Err(Errno::Net),
        }
    }
}

async fn answer(h: &Rc<Host>, client: &Name, ask: Ask) -> Answer {
    let _ = client;
    match ask {
        Ask::Tree {
            since,
            instance,
            now,
        } => {
            h.saw(now);
            h.heard(client);
            let full = instance != h.instance() || since > h.tree.borrow().generation();
            let since = if full { 0 } else { since };
            if !full {
                let mut rest = LONG_POLL_MS;
                while rest > 0 && !h.wait_newer(since, rest.min(POLL_MS)).await {
                    rest = rest.saturating_sub(POLL_MS);
                }
            }
            let (list, generation) = h.changes(since);
            Answer::Tree {
                instance: h.instance(),
                generation,
                now: h.now(),
                list,
            }
        }
        Ask::Log {
            log,
            offset,
            max,
            wait_ms,
            id,
        } => {
            let reply = log_read(h, &log, offset, max, wait_ms).await;
            let fs = h.machine().fs.borrow();
            let here = fs
                .file(&h.log_path(&log))
                .map_or(0, |ino| fetch::short_id(fs.bytes(ino)));
            let other = id != 0 && here != 0 && id != here;
            Answer::Log(match reply {
                LogReply::Data { .. } if other => LogReply::Other,
                LogReply::Data {
                    end, closed, data, ..
                } => LogReply::Data {
                    end,
                    closed,
                    id: here,
                    data,
                },
                reply => reply,
            })
        }
        Ask::Digest { offset, len } | Ask::Read { offset, len }
            if offset + len as u64 > h.device_size().unwrap_or(0) =>
        {
            Answer::Unavailable
        }
        Ask::Digest { offset, len } if h.attached.get().1 => {
            match sync::digests(h, offset, len).await {
                Ok(d) => Answer::Bytes(d),
                Err(_) => Answer::Unavailable,
            }
        }
        Ask::Read { offset, len } if h.attached.get().1 => match h.read_disk(offset, len).await {
            Ok(b) => Answer::Bytes(b),
            Err(_) => Answer::Unavailable,
        },
        Ask::End if h.attached.get().1 => Answer::End(h.progress.current()),
        Ask::Dirty { next, since, piece } if h.attached.get().1 => {
            match h.dirty.piece(h, &next, since, piece).await {
                Ok(asked) => Answer::Dirty(asked),
                Err(_) => Answer::Unavailable,
            }
        }
        Ask::Digest { .. } | Ask::Read { .. } | Ask::End | Ask::Dirty { .. } => Answer::Unavailable,
    }
}

async fn log_read(h: &Rc<Host>, log: &LogName, offset: u64, max: u32, wait_ms: u64) -> LogReply {
    if h.get(&format!("data-{}", h.me)).is_none() {
        return LogReply::None;
    }
    let mut waited = 0;
    let (end, closed) = loop {
        let step = POLL_MS.min(wait_ms - waited.min(wait_ms));
        match durable_end(h, log, offset, step).await {
            Some((end, closed)) if end > offset || closed || waited >= wait_ms => {
                break (end, closed)
            }
            Some(_) => waited += step.max(1),
            None => return LogReply::None,
        }
    };
    let Some(ino) = h.machine().fs.borrow().file(&h.log_path(log)) else {
        return LogReply::None;
    };
    let mut want = usize::try_from(end.saturating_sub(offset))
        .unwrap_or(0)
        .min(max as usize);
    // A server may give less than was asked.
    if want > 512 && h.machine().rng.chance(1, 16) {
        want = 512 * usize::try_from(h.machine().rng.range(1, want as u64 / 512)).unwrap_or(1);
    }
    if want == 0 {
        return LogReply::Data {
            end,
            closed,
            id: 0,
            data: Vec::new(),
        };
    }
    if let Some(b) = h.progress.recent(log.number, offset) {
        if b.len() <= want {
            return LogReply::Data {
                end,
                closed,
                id: 0,
                data: (*b).clone(),
            };
        }
    }
    match h.read_file(ino, offset, want).await {
        Ok(data) if !data.is_empty() => LogReply::Data {
            end,
            closed,
            id: 0,
            data,
        },
        _ => LogReply::None,
    }
}

/// Durable end of a log of ours (or of a copy), and whether it will stay there.
async fn durable_end(h: &Rc<Host>, log: &LogName, beyond: u64, ms: u64) -> Option<(u64, bool)> {
    // What stands in the file of a log that is to begin behind a gap was made before the gap, or is not used yet.
    if !on("serve-in-gap") && h.dirty.is_ahead(h, log).await {
        if ms > 0 {
            h.sleep(ms.min(200) * MS).await;
        }
        return Some((0, false));
    }
    if let Some((end, _)) = h.progress.wait_beyond(h, log, beyond, ms * MS).await {
        return Some((end, false));
    }
    if let Some((_, end)) = h.progress.last_closed().filter(|(l, _)| l == log) {
        // Closed, and the tree does not say so yet (perhaps for want of room).
        return Some((end, true));
    }
    let copy = h.fetch.available(log);
    if copy.fetched {
        if !copy.complete && copy.end <= beyond && ms > 0 {
            h.sleep(ms.min(200) * MS).await;
        }
        return Some((copy.end, copy.complete));
    }
    let next = h.version(log.number.checked_add(1)?);
    if let Some(p) = next.and_then(|v| v.previous).filter(|p| p.log == *log) {
        return Some((p.pos, true));
    }
    let last = h.version(log.number).filter(|v| v.this.log == *log)?;
    if last.this.pos <= beyond && ms > 0 {
        h.sleep(ms.min(200) * MS).await;
    }
    Some((last.this.pos, false))
}

/// A peer that is followed.
pub struct Peer {
    /// Its name.
    pub name: Name,
    /// Who follows it.
    pub thread: Rc<Thread>,
}

/// Starts following a peer.
pub fn follow(h: &Rc<Host>, name: Name) -> Peer {
    let h2 = h.clone();
    let thread = thread(&h.ex, h.i, move |t| async move { run(&t, &h2, name).await });
    Peer { name, thread }
}

async fn run(t: &Thread, h: &Rc<Host>, name: Name) {
    let mut pause = 500;
    let (mut since, mut instance) = (0, 0);
    let full_at = Cell::new(h.ex.now());
    let mut clock = h.machine().clock.get();
    while !t.should_stop() {
        let Ok(mut conn) = dial(h, &name).await else {
            t.sleep(&h.ex, pause * MS).await;
            pause = (pause * 2).min(5000);
            continue;
        };
        pause = 500;
        while !t.should_stop() {
            let offset = h.machine().clock.get();
            if h.ex.now() - full_at.get() > FULL || (offset - clock).abs() > CLOCK_SET {
                clock = offset;
                full_at.set(h.ex.now());
                since = 0;
            }
            let whole = since == 0;
            match exchange(h, &name, &mut conn, &mut since, &mut instance).await {
                Ok(Heard { ahead: true, .. }) => {
                    h.heard(&name);
                    h.set_ahead(&name, true);
                    h.trust(false);
                }
                Ok(Heard { doubts, .. }) => {
                    h.heard(&name);
                    if whole {
                        h.set_ahead(&name, false);
                    }
                    if whole || !doubts.is_empty() {
                        h.set_doubt(&name, !doubts.is_empty());
                    }
                    if h.is_ahead(&name) {
                        since = 0;
                        continue;
                    }
                    let same = (h.machine().clock.get() - clock).abs() <= CLOCK_SET;
                    if whole && same && !h.is_any_ahead() {
                        h.trust(true);
                    }
                    if !doubts.is_empty() {
                        for path in &doubts {
                            let _ = h.insist(path).await;
                        }
                    } else if h.is_doubted(&name) {
                        since = 0;
                    } else {
                        h.merged(&name);
                    }
                }
                Err(_) => {
                    t.sleep(&h.ex, 500 * MS).await;
                    break;
                }
            }
        }
    }
}

/// What came of asking a peer.
struct Heard {
    /// Its clock is too far ahead of ours.
    ahead: bool,
    /// What it says of the role, if which word is newer can't be known.
    doubts: Vec<String>,
}

/// A size that is newer than the one that is known here.
fn is_new_size(h: &Host, path: &str, value: &str, stamp: LamportTime) -> bool {
    let of_size = TreePath::parse(path.as_bytes()).is_ok_and(|p| p.is_of_size());
    let other = h.get("size").is_some_and(|v| v != value);
    of_size && other && h.stamp("size").is_some_and(|t| stamp > t)
}

/// What this host itself has said of more than the size that it knew is taken back first.
async fn before_size(h: &Host) -> Res<()> {
    if h.designated() != Some(h.me) {
        h.forget_void_resize().await?;
    }
    h.sync_dir().await
}

async fn exchange(
    h: &Rc<Host>,
    name: &Name,
    conn: &mut Conn,
    since: &mut u64,
    instance: &mut u64,
) -> Res<Heard> {
    let ask = Ask::Tree {
        since: *since,
        instance: *instance,
        now: h.now(),
    };
    let Answer::Tree {
        instance: theirs,
        generation,
        now,
        list,
    } = conn.call(h, ask, LONG_POLL_MS * MS).await?
    else {
        return Err(Errno::Net);
    };
    let ahead = !h.saw(now);
    let mut news = false;
    let mut failed = Ok(());
    let mut doubts = Vec::new();
    // First what is said of the disk of this host, sizes last.
    let is_own = |path: &str| TreePath::parse(path.as_bytes()).is_ok_and(|p| p.is_of_disk(&h.me));
    let (own, rest): (Vec<_>, Vec<_>) = list.iter().partition(|(path, ..)| is_own(path));
    let is_size =
        |(path, value, stamp): &&(String, String, LamportTime)| is_new_size(h, path, value, *stamp);
    let (sizes, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_size);
    let (owned, last) = (own.len(), own.len() + rest.len());
    let all = own.into_iter().chain(rest).chain(sizes).enumerate();
    let mut own_failed = false;
    for (i, (path, value, stamp)) in all {
        let mut merged = Ok(Merged::No);
        if i >= last {
            if own_failed {
                continue;
            }
            merged = before_size(h).await.map(|()| Merged::No);
        }
        if merged.is_ok() {
            merged = h.merge_one(path, value, *stamp).await;
        }
        own_failed |= i < owned && merged.is_err();
        match merged {
            Ok(Merged::News) => news |= path.starts_with("resource-"),
            Ok(Merged::Doubt) => doubts.push(path.clone()),
            Ok(Merged::No) => (),
            Err(e) => failed = Err(e),
        }
    }
    if news {
        h.say(|| format!("merged news of {name}"));
        h.kick.signal(&h.ex);
    }
    failed?;
    *since = generation;
    *instance = theirs;
    Ok(Heard { ahead, doubts })
}
