// SPDX-License-Identifier: GPL-2.0-or-later

//! What all parts of the engine on this host share.

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

use mars_core::{
    name::Name,
    wire::{
        auth::ClusterKey,
        message::handshake::ANY_UUID, //
    },
    writeback, //
};

use crate::{
    engine::{
        clock::Clock,
        member::Member,
        paths,
        space::Watch,
        store::Store,
        text,
        tunables, //
    },
    sys::{
        event::Event,
        file::{
            File,
            OpenFlags, //
        },
        host,
        socket::{
            Addr,
            Socket, //
        },
        time, //
    }, //
};

/// A former primary waits this long for its peers before it takes its role up again.
const SETTLE_MS: u64 = 6_000;
/// So long after its last word a peer whose clock is years ahead keeps this host from taking a role.
const LATE_MS: u64 = 15 * 60_000;
/// A peer that was not heard for longer than this is not asked first.
const ALIVE_MS: u64 = 30_000;

/// Counters since the module was loaded.
pub(crate) struct Stats {
    /// Bytes of logs fetched.
    pub(crate) fetched: Atomic<u64>,
    /// Bytes of logs and disks sent.
    pub(crate) served: Atomic<u64>,
    /// Bytes of disks that came by a sync.
    pub(crate) synced: Atomic<u64>,
}

/// What is known of the contact to a peer.
struct Contact {
    name: Name,
    heard_ns: Option<u64>,
    /// Its whole tree was merged here since the start.
    merged: bool,
    /// Its clock is so far ahead that what it says can't be believed.
    ahead: bool,
    /// Of which resources it says something else about the role, where which word is newer can't be known.
    doubts: KVec<Name>,
    /// What the last failed attempt said; reported again only when it changes.
    problem: Option<CString>,
}

struct Cluster {
    uuid: Option<CString>,
    key: Option<Arc<ClusterKey>>,
    members: KVec<Arc<Member>>,
    contacts: KVec<Contact>,
}

/// This host.
#[pin_data]
pub(crate) struct Env {
    /// Name of this host.
    pub(crate) me: Name,
    /// Base port.
    pub(crate) port: u16,
    /// The clock.
    pub(crate) clock: Arc<Clock>,
    /// The tree.
    pub(crate) store: Arc<Store>,
    /// Counters.
    pub(crate) stats: Stats,
    /// Wakes the cluster loop.
    #[pin]
    pub(crate) kick: Event,
    /// Bytes that are promised to write buffers.
    buffers: Atomic<u64>,
    stopping: AtomicFlag,
    started_ns: u64,
    /// Room in `/mars`.
    pub(crate) space: Watch,
    #[pin]
    cluster: Mutex<Cluster>,
}

/// How much a write buffer may hold; when it is dropped, others may have that.
pub(crate) struct BufferSize {
    env: Arc<Env>,
    bytes: u64,
}

impl BufferSize {
    /// The number.
    pub(crate) fn bytes(&self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX)
    }
}

impl Drop for BufferSize {
    fn drop(&mut self) {
        let _ = self.env.buffers.fetch_sub(self.bytes, Relaxed);
    }
}

impl Env {
    /// Makes the shared state of host `me`.
    pub(crate) fn new(me: Name, port: u16) -> Result<Arc<Self>> {
        let clock = Clock::new()?;
        let store = Store::new(me, clock.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                me,
                port,
                clock,
                store,
                stats: Stats {
                    fetched: Atomic::new(0),
                    served: Atomic::new(0),
                    synced: Atomic::new(0),
                },
                kick <- Event::new(),
                buffers: Atomic::new(0),
                stopping: AtomicFlag::new(false),
                started_ns: time::mono_ns(),
                space: Watch::new(),
                cluster <- new_mutex!(Cluster {
                    uuid: None,
                    key: None,
                    members: KVec::new(),
                    contacts: KVec::new(),
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// The module is being unloaded.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Says that everything is to end, and wakes all control threads.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.kick.signal();
        for m in &self.cluster.lock().members {
            m.kick.signal();
        }
    }

    /// Every peer was heard since the start, or had enough time to be.
    pub(crate) fn is_settled(&self) -> bool {
        if time::mono_ns().saturating_sub(self.started_ns) > SETTLE_MS * 1_000_000 {
            return true;
        }
        let mut all = true;
        let r = self.store.for_each("ips/ip-", |host, _| {
            if let Some(h) = Name::new(host.as_bytes()) {
                all &= h == self.me || self.has_merged(&h);
            }
        });
        r.is_ok() && all
    }

    /// Cluster identity, or `(any)`.
    pub(crate) fn uuid(&self) -> Result<CString> {
        let c = self.cluster.lock();
        let text = c.uuid.as_ref().map_or(ANY_UUID, text::of);
        CString::try_from_fmt(format_args!("{text}"))
    }

    /// The cluster key, if there is one.
    pub(crate) fn key(&self) -> Option<Arc<ClusterKey>> {
        self.cluster.lock().key.clone()
    }

    /// Takes up uuid and key from `/mars`. Called at each scan, since the tools may write them at any time.
    pub(crate) fn refresh(&self) {
        let uuid = self
            .store
            .get("uuid")
            .and_then(|v| CString::try_from_fmt(format_args!("{}", v.as_str())).ok());
        let key = read_key();
        let mut c = self.cluster.lock();
        c.uuid = uuid;
        match key {
            Ok(k) => c.key = Some(k),
            Err(e) if e == ENOENT => c.key = None,
            Err(e) => crate::sys::log::log_err!(
                "/mars/cluster-key can't be read: {:?}; it must hold 64 hex digits\n",
                e
            ),
        }
    }

    /// Bytes that the write buffer of one more resource may hold.
    pub(crate) fn buffer(self: &Arc<Self>) -> BufferSize {
        let mut given = self.buffers.load(Relaxed);
        loop {
            let bytes = match tunables::BUFFER_MB.get() {
                0 => writeback::buffer_share(host::memory_bytes(), given),
                n => u64::from(n).saturating_mul(1 << 20),
            };
            match self
                .buffers
                .cmpxchg(given, given.saturating_add(bytes), Relaxed)
            {
                Ok(_) => {
                    return BufferSize {
                        env: self.clone(),
                        bytes,
                    }
                }
                Err(now) => given = now,
            }
        }
    }

    /// A resource of which this host is a member.
    pub(crate) fn member(&self, name: &Name) -> Option<Arc<Member>> {
        self.cluster
            .lock()
            .members
            .iter()
            .find(|m| m.name == *name)
            .cloned()
    }

    /// Makes a resource known to the server.
    pub(crate) fn add_member(&self, m: Arc<Member>) -> Result {
        Ok(self.cluster.lock().members.push(m, GFP_KERNEL)?)
    }

    /// Forgets a resource.
    pub(crate) fn remove_member(&self, name: &Name) {
        self.cluster.lock().members.retain(|m| m.name != *name);
    }

    /// Wakes all control threads: something in the tree has changed.
    pub(crate) fn kick_members(&self) {
        for m in &self.cluster.lock().members {
            m.kick.signal();
        }
    }

    /// Address of `host` for the port with this offset.
    pub(crate) fn peer_addr(&self, host: &Name, port_offset: u16) -> Option<Addr> {
        let path = CString::try_from_fmt(format_args!("ips/ip-{host}")).ok()?;
        let ip = self.store.get(text::of(&path))?;
        Addr::parse(ip.as_bytes(), self.port.checked_add(port_offset)?).ok()
    }

    fn with_contact(&self, host: &Name, f: impl FnOnce(&mut Contact)) {
        let mut c = self.cluster.lock();
        if !c.contacts.iter().any(|x| x.name == *host) {
            let _ = c.contacts.push(
                Contact {
                    name: *host,
                    heard_ns: None,
                    merged: false,
                    ahead: false,
                    doubts: KVec::new(),
                    problem: None,
                },
                GFP_KERNEL,
            );
        }
        if let Some(x) = c.contacts.iter_mut().find(|x| x.name == *host) {
            f(x);
        }
    }

    /// Something came from `host`.
    pub(crate) fn heard(&self, host: &Name) {
        let now = time::mono_ns();
        self.with_contact(host, |c| c.heard_ns = Some(now));
    }

    /// Everything that `host` had to tell is in our tree.
    pub(crate) fn merged(&self, host: &Name) {
        self.with_contact(host, |c| c.merged = true);
    }

    /// Whether the clock of `host`, which talks to us, is too far ahead of ours for what it says to be taken.
    pub(crate) fn set_ahead(&self, host: &Name, ahead: bool) {
        self.with_contact(host, |c| c.ahead = ahead);
    }

    /// Whether that is so, or was when it was heard last, not long ago.
    pub(crate) fn is_ahead(&self, host: &Name) -> bool {
        let ahead = |c: &Contact| c.name == *host && c.ahead;
        let known = self.cluster.lock().contacts.iter().any(ahead);
        known && self.silence_ms(host).is_some_and(|ms| ms < LATE_MS)
    }

    /// Whether that is so of any peer.
    pub(crate) fn is_any_ahead(&self) -> bool {
        let now = time::mono_ns();
        let lately = |heard: u64| now.saturating_sub(heard) / 1_000_000 < LATE_MS;
        self.cluster
            .lock()
            .contacts
            .iter()
            .any(|c| c.ahead && c.heard_ns.is_some_and(lately))
    }

    /// Of which resources `host` says something else about the role, where which word is newer can't be known.
    pub(crate) fn set_doubts(&self, host: &Name, resources: KVec<Name>) {
        self.with_contact(host, |c| c.doubts = resources);
    }

    /// Whether there is one of which that is so, or was when `host` was heard last, not long ago.
    pub(crate) fn is_doubted(&self, host: &Name, of: impl Fn(&Name) -> bool) -> bool {
        let doubt = |c: &Contact| c.name == *host && c.doubts.iter().any(&of);
        let known = self.cluster.lock().contacts.iter().any(doubt);
        known && self.silence_ms(host).is_some_and(|ms| ms < LATE_MS)
    }

    fn has_merged(&self, host: &Name) -> bool {
        self.cluster
            .lock()
            .contacts
            .iter()
            .any(|c| c.name == *host && c.merged)
    }

    /// For how long nothing came from `host`; `None` if nothing ever did.
    pub(crate) fn silence_ms(&self, host: &Name) -> Option<u64> {
        let c = self.cluster.lock();
        let heard = c.contacts.iter().find(|x| x.name == *host)?.heard_ns?;
        Some(time::mono_ns().saturating_sub(heard) / 1_000_000)
    }

    /// Whether `host` was heard lately.
    pub(crate) fn is_alive(&self, host: &Name) -> bool {
        self.silence_ms(host).is_some_and(|ms| ms < ALIVE_MS)
    }

    /// Tells the administrator why a peer does not talk to us; once per reason.
    pub(crate) fn report_peer(&self, host: &Name, problem: Option<&str>) {
        let new = problem.and_then(|p| CString::try_from_fmt(format_args!("{p}")).ok());
        let mut news = false;
        let mut over = false;
        self.with_contact(host, |c| {
            news = new.is_some() && c.problem.as_ref().map(text::of) != new.as_ref().map(text::of);
            over = new.is_none() && c.problem.is_some();
            c.problem = new;
        });
        if news {
            pr_warn!(
                "no connection with host {}: {}\n",
                host.as_str(),
                problem.unwrap_or("")
            );
        } else if over {
            pr_info!("connected with host {} again\n", host.as_str());
        }
        if news || over {
            let _ = CString::try_from_fmt(format_args!("actual-{}/msg-peer-{host}", self.me))
                .and_then(|path| self.store.set(text::of(&path), problem.unwrap_or("OK")));
        }
    }

    /// A client was turned away.
    pub(crate) fn report_client(&self, socket: &Socket, reason: &str) {
        if let Ok(peer) = socket.peer() {
            text::warn_limited(format_args!("connection from {peer} refused: {reason}"));
        }
    }
}

fn read_key() -> Result<Arc<ClusterKey>> {
    let file = File::open(paths::KEY, OpenFlags::default(), 0o600)?;
    let mut text = [0; 128];
    let n = file.read_at(&mut text, 0)?;
    let key = ClusterKey::parse(text.get(..n).unwrap_or(&[])).map_err(|_| EINVAL)?;
    Ok(Arc::new(key, GFP_KERNEL)?)
}
