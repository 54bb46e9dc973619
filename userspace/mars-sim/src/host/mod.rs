// SPDX-License-Identifier: GPL-2.0-or-later

//! One host: the engine (`src/engine`) once more, over the simulated system instead of the kernel.
//!
//! The files are those of the engine, so that each can be read beside its model. What is decided is decided by the core;
//! what is here is order: which durable step comes after which.

pub mod cluster;
pub mod control;
pub mod device;
pub mod dirty;
pub mod drop_logs;
pub mod fetch;
pub mod last_words;
pub mod logger;
pub mod pipeline;
pub mod replay;
pub mod server;
pub mod space;
pub mod store;
pub mod sync;

use crate::{
    defects::on,
    exec::{never, Cond, Event, Exec, Lock, Ns, MS, SEC},
    fs::{Errno, Res},
    truth::{Place, HEADER},
    world::{Machine, Sim, DIR},
};
use mars_core::{
    dirty::{DroppedLink, GapLink, Lack},
    ends::News,
    lamport::{Clock, LamportTime},
    log::{LogName, VersionLink},
    name::Name,
    succession::{
        course, device_size, is_beyond, is_consistent, is_forward, is_synced, is_void_growth,
        is_whole, may_sync_at, parse_sync_source, reported_end, undecided, vouches, Course,
        Purpose, Search,
    },
    tree::{value::ReplayLink, Tree},
};
use mars_host_digest::HostDigest;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

/// A former primary waits this long for its peers.
const SETTLE: Ns = 6 * SEC;
/// A peer that was not heard for longer is not asked first.
const ALIVE: Ns = 30 * SEC;

/// What is known of the contact to a peer.
#[derive(Clone, Copy, Default)]
pub struct Contact {
    heard: Option<Ns>,
    merged: Option<Ns>,
    ahead: bool,
    doubt: bool,
}

/// What became of a link of a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// It was not taken.
    No,
    /// Something changed.
    News,
    /// Which word about the role is newer can't be known.
    Doubt,
}

/// Somebody has set the clock.
const CLOCK_SET: i64 = 60 * 1_000_000_000;

/// The module on one machine, from its start to its end.
pub struct Host {
    /// The run.
    pub sim: Rc<Sim>,
    /// The loop.
    pub ex: Rc<Exec>,
    /// Which machine.
    pub i: usize,
    /// Its name.
    pub me: Name,
    /// Name of the resource.
    pub res: Name,
    clock: RefCell<Clock>,
    /// What the wall clock was wrong by at the last look, and since when.
    set: Cell<(i64, LamportTime)>,
    trusted: Cell<bool>,
    /// A command that changes more than a switch holds its lock.
    pub admin_works: Cell<bool>,
    pub(crate) tree: RefCell<Tree>,
    instance: u64,
    writer: Lock,
    tree_changed: Cond,
    started: Ns,
    contacts: RefCell<BTreeMap<Name, Contact>>,
    /// Wakes the cluster loop.
    pub cluster_kick: Event,
    /// The module is being unloaded.
    pub stopping: Cell<bool>,
    /// It is unloaded.
    pub unloaded: Cell<bool>,
    /// Wakes the control thread.
    pub kick: Event,
    pub(crate) progress: logger::Progress,
    pub(crate) fetch: fetch::Fetch,
    pub(crate) sync: sync::Sync,
    /// A flush of the disk has failed: it may show what it does not have. A sync writes what compares equal, too.
    pub(crate) unflushed: Cell<bool>,
    pub(crate) dirty: dirty::Dirty,
    pub(crate) space: space::Watch,
    /// The disk is open; `/dev/mars/r` exists.
    pub(crate) attached: Cell<(bool, bool)>,
    publishing: Lock,
    pub(crate) trouble: Cell<Option<&'static str>>,
    /// The device, while there is one.
    pub device: RefCell<Option<Rc<device::Device>>>,
    /// Since the start, the end of a log was taken for one that a crash has torn.
    pub(crate) torn: Cell<bool>,
    /// The truth's number of it.
    pub device_id: Cell<Option<usize>>,
    /// When the device appeared.
    pub device_since: Cell<Ns>,
}

/// Whether everything up to a position has been passed: also the header of a log, since it may say that there is a gap before it.
pub fn reach(link: &ReplayLink, log: &LogName, pos: u64) -> bool {
    if link.log == *log {
        link.pos >= pos || pos <= HEADER && on("handover-before-gap")
    } else {
        link.log.number > log.number
    }
}

impl Host {
    /// A host whose module has just been loaded.
    pub fn new(sim: Rc<Sim>, i: usize) -> Rc<Self> {
        let m = &sim.machines[i];
        let me = m.name;
        let instance = m.rng.next();
        Rc::new(Self {
            ex: sim.ex.clone(),
            i,
            me,
            res: Name::new(b"r").expect("a name"),
            clock: RefCell::default(),
            set: Cell::new((m.clock.get(), sim.real(i))),
            trusted: Cell::new(false),
            admin_works: Cell::new(false),
            tree: RefCell::new(Tree::new()),
            instance,
            writer: Lock::default(),
            tree_changed: Cond::default(),
            started: sim.ex.now(),
            contacts: RefCell::default(),
            cluster_kick: Event::default(),
            stopping: Cell::new(false),
            unloaded: Cell::new(false),
            kick: Event::default(),
            progress: logger::Progress::new(),
            fetch: fetch::Fetch::default(),
            sync: sync::Sync::default(),
            unflushed: Cell::default(),
            dirty: dirty::Dirty::default(),
            space: space::Watch::default(),
            attached: Cell::new((false, false)),
            publishing: Lock::default(),
            trouble: Cell::new(None),
            device: RefCell::default(),
            torn: Cell::new(false),
            device_id: Cell::new(None),
            device_since: Cell::new(0),
            sim,
        })
    }

    /// Its machine.
    pub fn machine(&self) -> &Machine {
        &self.sim.machines[self.i]
    }

    /// Notes something.
    pub fn say(&self, what: impl FnOnce() -> String) {
        self.sim.say(self.i, what);
    }

    /// Sleeps.
    pub async fn sleep(&self, ns: Ns) {
        self.ex.sleep(ns).await;
    }

    /// An operation on a disk takes its time, and the host may die before it.
    pub async fn io(&self) {
        let m = self.machine();
        if let Some((n, how)) = m.doom.get() {
            if n == 0 {
                self.sim.crash(self.i, how);
                never().await;
            }
            m.doom.set(Some((n - 1, how)));
        }
        let ns = match m.rng.below(1000) {
            0 if !self.sim.calm.get() => m.rng.range(50 * MS, 1500 * MS),
            1..=20 => m.rng.range(2 * MS, 30 * MS),
            _ => m.rng.range(MS / 20, MS),
        };
        self.sleep(ns * m.slow.get()).await;
    }

    /// An operation on `/mars`.
    pub async fn fs_io(&self) -> Res<()> {
        self.io().await;
        self.sim.fails(self.i, |f| f.fs)
    }

    /// The wall clock.
    pub fn real(&self) -> LamportTime {
        self.sim.real(self.i)
    }

    /// A stamp for something that happens now.
    pub fn now(&self) -> LamportTime {
        self.clock.borrow_mut().tick(self.real())
    }

    /// Lamport time as the tools ask for it.
    pub fn lamport(&self) -> LamportTime {
        self.clock.borrow().get(self.real())
    }

    /// Takes note of a stamp from elsewhere, unless it lies too far in the future.
    pub fn saw(&self, stamp: LamportTime) -> bool {
        let real = self.real();
        self.clock.borrow_mut().advance(stamp, real).is_ok()
    }

    /// Since when the wall clock is what it is. Who has set it can't be trusted for what was said before.
    pub fn right_since(&self) -> LamportTime {
        let offset = self.machine().clock.get();
        if (offset - self.set.get().0).abs() > CLOCK_SET {
            self.set.set((offset, self.real()));
            self.trusted.set(false);
        }
        self.set.get().1
    }

    /// A peer has told all it has, and its clock is not ahead; or it is.
    pub fn trust(&self, trusted: bool) {
        self.right_since();
        self.trusted.set(trusted);
        if trusted {
            let real = self.real();
            self.clock.borrow_mut().correct(real);
        }
    }

    /// What was said of that last, if nobody has set the clock since.
    pub fn is_trusted(&self) -> bool {
        self.right_since();
        self.trusted.get()
    }

    /// Value of a link of the resource.
    pub fn get(&self, key: &str) -> Option<String> {
        let path = format!("{DIR}/{key}");
        let tree = self.tree.borrow();
        Some(String::from_utf8_lossy(tree.get(path.as_bytes())?).into_owned())
    }

    /// A switch.
    pub fn switch(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| v == "1")
    }

    /// A number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    /// Size of the device in bytes.
    pub fn size(&self) -> Option<u64> {
        self.number("size")
    }

    /// The designated primary.
    pub fn designated(&self) -> Option<Name> {
        Name::new(self.get("primary")?.as_bytes())
    }

    /// A replay link.
    pub fn replay_link(&self, host: &Name) -> Option<ReplayLink> {
        self.tree.borrow().resource(&self.res).replay(host)
    }

    /// Writes a link of the resource; failures are tried again by the next round.
    pub async fn put(&self, key: &str, value: &str) {
        let _ = self.try_put(key, value).await;
    }

    /// Writes a link of the resource, on which later ones rely.
    pub async fn try_put(&self, key: &str, value: &str) -> Res<()> {
        self.set(&format!("{DIR}/{key}"), value).await
    }

    /// Moves the replay link.
    pub async fn set_replay(&self, log: &LogName, pos: u64, end: u64) -> Res<()> {
        let link = ReplayLink {
            log: *log,
            pos,
            rest: end.saturating_sub(pos),
        };
        self.try_put(&format!("replay-{}", self.me), &link.to_string())
            .await?;
        self.moved(&link);
        Ok(())
    }

    /// Moves the replay link, unless somebody else has moved it further already.
    pub async fn advance(&self, log: &LogName, pos: u64, end: u64, version: bool) -> Res<()> {
        let _one_at_a_time = self.publishing.lock(&self.ex).await;
        if !is_forward(self.replay_link(&self.me), log.number, pos) {
            return Ok(());
        }
        // Also if there is no room for the longer one: only what is passed can be removed to make some.
        let history = version && !on("position-before-history") && self.said_end(log) <= pos;
        let said = match history {
            true => self.set_version(log, pos).await,
            false => Ok(()),
        };
        self.set_replay(log, pos, end).await?;
        if version && on("position-before-history") {
            return self.set_version(log, pos).await;
        }
        said
    }

    /// Says how far a log of this host is durable, unless more was said.
    pub async fn say_end(&self, log: &LogName, end: u64) -> Res<()> {
        let _one_at_a_time = self.publishing.lock(&self.ex).await;
        if self.said_end(log) >= end {
            return Ok(());
        }
        self.set_version(log, end).await
    }

    /// How far a log of this very host is durable, as it has said.
    pub fn said_end(&self, log: &LogName) -> u64 {
        match log.creator == self.me {
            true => reported_end(log, self.version(log.number).as_ref()),
            false => 0,
        }
    }

    /// P5 and P9 of a replay link that was written.
    fn moved(&self, link: &ReplayLink) {
        let m = self.machine();
        let place = {
            let truth = self.sim.truth.borrow();
            truth.place(&m.fs.borrow(), DIR, link)
        };
        let Some(place) = place else { return };
        if let Some(old) = m.place.get() {
            let truth = self.sim.truth.borrow();
            if !truth.is_past(old, place) {
                let (a, b) = (truth.describe(old), truth.describe(place));
                let what = if old.0 == place.0 {
                    "P9 monotone: the replay link went back"
                } else {
                    "P5 no silent fork: the replay link left its history"
                };
                drop(truth);
                self.sim
                    .violated(format!("{what}, from {a} to {b} (host {})", self.me));
            }
        }
        m.place.set(Some(place));
    }

    /// The place in the truth of a position here.
    pub fn place(&self, log: &LogName, pos: u64) -> Option<Place> {
        let link = ReplayLink {
            log: *log,
            pos,
            rest: 0,
        };
        let truth = self.sim.truth.borrow();
        truth.place(&self.machine().fs.borrow(), DIR, &link)
    }

    /// This host's version link of a number.
    pub fn version(&self, number: u32) -> Option<VersionLink> {
        self.tree
            .borrow()
            .resource(&self.res)
            .version(number, &self.me)
    }

    /// Writes this host's version link of a log.
    pub async fn set_version(&self, log: &LogName, pos: u64) -> Res<()> {
        let me = self.me;
        let before = log
            .number
            .checked_sub(1)
            .filter(|n| *n > 0)
            .and_then(|n| self.get(&format!("version-{n:09}-{me}")));
        let before = before.unwrap_or_default();
        let link = VersionLink::compute::<HostDigest>(*log, pos, before.as_bytes());
        let link = link.ok_or(Errno::Io)?;
        self.try_put(
            &format!("version-{:09}-{me}", log.number),
            &link.to_string(),
        )
        .await
    }

    /// Tells the tree what the logger has reached, closed logs first.
    pub async fn publish_logs(&self) -> Option<(LogName, u64)> {
        let _one_at_a_time = self.publishing.lock(&self.ex).await;
        loop {
            let Some(news) = self.progress.news() else {
                // That more was written than the log says must be known before another host can go on behind the log: with this
                // link its history would exclude ours.
                if self.dirty.is_open(self).await {
                    let (_, _, next) = self.dirty.last_gap(self).await?;
                    if self.version(next.number).is_none_or(|v| v.this.log != next) {
                        // First, and durably: who only has the tree, as long as the disk is not attached, must not serve what
                        // the file has, and others bring the version link back.
                        let key = format!("actual-{}/has-gap", self.me);
                        self.try_put(&key, "1").await.ok()?;
                        self.sync_actual_dir().await.ok()?;
                    }
                    self.set_version(&next, HEADER).await.ok()?;
                }
                return None;
            };
            match news {
                News::Closed(log, end) => {
                    self.set_version(&log, end).await.ok()?;
                    if !on("closed-end-undurable") {
                        self.sync_dir().await.ok()?;
                    }
                    self.progress.told(&log);
                }
                News::Current(log, end) => {
                    self.set_version(&log, end).await.ok()?;
                    return Some((log, end));
                }
            }
        }
    }

    /// When this host became a member with the disk it has now.
    pub fn joined_at(&self) -> Option<LamportTime> {
        self.stamp(&format!("data-{}", self.me))
    }

    /// When a link of the resource was written.
    pub fn stamp(&self, key: &str) -> Option<LamportTime> {
        let path = format!("{DIR}/{key}");
        let tree = self.tree.borrow();
        tree.entry(path.as_bytes()).map(|e| e.stamp)
    }

    /// Whether this replica may replay a log that begins behind a gap.
    pub fn has_passed_gap(&self, log: &LogName) -> bool {
        log.creator == self.me
            || self
                .gap_link()
                .is_some_and(|g| g.log == *log && g.lack == Lack::Done)
    }

    /// What this replica lacks, or lacked last, before which log.
    pub fn gap_link(&self) -> Option<GapLink> {
        GapLink::parse(self.get(&format!("gap-{}", self.me))?.as_bytes())
    }

    /// What this replica has to get by a map of the primary before it can begin at the log of its replay link.
    pub fn gap_to_pass(&self) -> Option<(LogName, u32)> {
        let link = self.gap_link()?;
        let since = match link.lack {
            Lack::Gap => 0,
            Lack::Since(number) => number,
            Lack::All | Lack::Done => return None,
        };
        (self.replay_link(&self.me)?.log == link.log).then_some((link.log, since))
    }

    /// Which logs a host has deleted although members needed them.
    pub fn dropped_logs(&self, host: &Name) -> Option<DroppedLink> {
        DroppedLink::parse(self.get(&format!("actual-{host}/dropped-logs"))?.as_bytes())
    }

    /// History of a member.
    pub fn history(&self, host: &Name) -> Vec<VersionLink> {
        let tree = self.tree.borrow();
        let r = tree.resource(&self.res);
        let out = r.versions(host).map(|(_, v)| v).collect();
        out
    }

    /// The members.
    pub fn members(&self) -> Vec<Name> {
        let tree = self.tree.borrow();
        let out = tree.resource(&self.res).members().collect();
        out
    }

    /// What the history of the designated primary, another host, says about a log.
    pub fn course(&self, log: &LogName) -> Course {
        let Some(primary) = self.designated().filter(|h| *h != self.me) else {
            return Course::Open(0);
        };
        let tree = self.tree.borrow();
        let of = |n| tree.resource(&self.res).version(n, &primary);
        let next = log.number.checked_add(1).and_then(of);
        course(log, of(log.number).as_ref(), next.as_ref())
    }

    /// Whether a sync from a host may fill the disk here.
    pub fn may_sync_from(&self, host: &Name) -> bool {
        let Some(link) = self.replay_link(&self.me) else {
            return false;
        };
        let theirs = self.history(host);
        may_sync_at(&link.log, &theirs).unwrap_or_else(|| {
            let others = self.members().into_iter().filter(|m| *m != self.me);
            others
                .into_iter()
                .any(|m| vouches(&link.log, &self.history(&m), &theirs))
        })
    }

    /// Whether the designated primary is another host, and is primary.
    pub fn is_led(&self) -> bool {
        self.designated()
            .is_some_and(|h| h != self.me && self.switch(&format!("actual-{h}/is-primary")))
    }

    /// Whether the replay link here, or where a sync of another primary ended, is in a log that the running primary's history
    /// does not lead to.
    pub fn is_beyond(&self) -> bool {
        let Some(primary) = self.designated().filter(|_| self.is_led()) else {
            return false;
        };
        let newest = self.history(&primary).last().map(|v| v.this.log.number);
        let link = self.replay_link(&self.me);
        let syncpos = self.get(&format!("syncpos-{}", self.me));
        // Of a log of its own the running primary may have said less than it told the sync.
        let need = syncpos
            .and_then(|v| ReplayLink::parse(v.as_bytes()))
            .filter(|n| n.log.creator != primary && !is_consistent(Some(Some(*n)), link))
            .filter(|_| !self.is_void_growth());
        let beyond =
            |l: Option<ReplayLink>| l.zip(newest).is_some_and(|(l, n)| is_beyond(&l.log, n));
        beyond(link) || beyond(need)
    }

    /// What follows a log in the history of another member.
    pub fn search(&self, log: &LogName, end: u64, purpose: Purpose) -> Option<LogName> {
        let mine = self.history(&self.me);
        let mut s = Search::new(&mine, *log, end, self.designated(), purpose);
        for host in self.members() {
            if host != self.me && s.wants(&host) {
                s.look(&host, &self.history(&host));
            }
        }
        s.found()
    }

    /// Whether the disk of this host is complete, or was before the resource grew.
    pub fn is_whole(&self) -> bool {
        let me = self.me;
        let from = self.get(&format!("syncfrom-{me}"));
        let done = self.number(&format!("syncstatus-{me}"));
        is_whole(done, self.size(), from.as_ref().map(String::as_bytes))
    }

    /// So much of the resource the disk of this host has.
    pub fn device_size(&self) -> Option<u64> {
        device_size(self.number(&format!("syncstatus-{}", self.me)), self.size())
    }

    /// Whether a failover has cut off a resize, and what this host has got of it.
    pub fn is_void_growth(&self) -> bool {
        let me = self.me;
        let from = self.get(&format!("syncfrom-{me}"));
        let done = self.number(&format!("syncstatus-{me}"));
        is_void_growth(done, self.size(), from.as_ref().map(String::as_bytes))
    }

    /// Goes back to what was complete before such a resize, while no sync runs.
    pub async fn forget_void_growth(&self) -> Res<()> {
        let me = self.me;
        let Some(size) = self.size().filter(|_| self.is_void_growth()) else {
            return Ok(());
        };
        self.try_put(&format!("syncstatus-{me}"), &size.to_string())
            .await?;
        self.try_put(&format!("syncpos-{me}"), ".deleted").await?;
        self.try_put(&format!("syncfrom-{me}"), &format!("done,{size}"))
            .await?;
        self.sync_dir().await
    }

    /// Takes back what the complete disk of this host says of a resize that was never decided, or that a failover has cut off.
    pub async fn forget_void_resize(&self) -> Res<()> {
        let me = self.me;
        let done = self.number(&format!("syncstatus-{me}"));
        let counts = self.is_synced(&me) && !self.is_void_growth();
        let Some(size) = undecided(done, self.size()).filter(|_| counts) else {
            return Ok(());
        };
        let from = self.get(&format!("syncfrom-{me}"));
        if let Some((host, log)) = from.and_then(|v| parse_sync_source(v.as_bytes())) {
            self.try_put(&format!("syncfrom-{me}"), &format!("{host},{log},{size}"))
                .await?;
        }
        self.try_put(&format!("syncstatus-{me}"), &size.to_string())
            .await
    }

    /// Whether all of the disk of `host` was filled by a sync, or was the source of one.
    pub fn is_synced(&self, host: &Name) -> bool {
        let from = self.get(&format!("syncfrom-{host}"));
        let done = self.number(&format!("syncstatus-{host}"));
        is_synced(done, self.size(), from.as_ref().map(String::as_bytes))
    }

    /// Every peer was heard, or had enough time to be; and none of them says what can't be taken here.
    pub fn is_settled(&self) -> bool {
        !self.is_late() && !self.is_in_doubt() && self.has_heard_all()
    }

    /// Every peer was heard, or had enough time to be.
    pub fn has_heard_all(&self) -> bool {
        if self.ex.now() - self.started > SETTLE {
            return true;
        }
        let tree = self.tree.borrow();
        let contacts = self.contacts.borrow();
        let out = tree
            .hosts()
            .all(|h| h == self.me || contacts.get(&h).is_some_and(|c| c.merged.is_some()));
        out
    }

    /// Whether a peer was heard lately.
    pub fn is_alive(&self, host: &Name) -> bool {
        let c = self.contacts.borrow();
        let heard = c.get(host).and_then(|c| c.heard);
        heard.is_some_and(|t| self.ex.now() - t < ALIVE)
    }

    /// Whether the clock of `host`, which was heard lately, is too far ahead of ours for what it says to be taken.
    fn is_ahead(&self, host: &Name) -> bool {
        self.is_alive(host) && self.contacts.borrow().get(host).is_some_and(|c| c.ahead)
    }

    /// Whether that of any member is.
    pub fn is_late(&self) -> bool {
        self.members().iter().any(|h| self.is_ahead(h))
    }

    /// Whether that of any peer is.
    fn is_any_ahead(&self) -> bool {
        let hosts: Vec<Name> = self.contacts.borrow().keys().copied().collect();
        hosts.iter().any(|h| self.is_ahead(h))
    }

    /// Whether `host`, which was heard lately, says something else about the role, and which word is newer can't be known.
    fn is_doubted(&self, host: &Name) -> bool {
        self.is_alive(host) && self.contacts.borrow().get(host).is_some_and(|c| c.doubt)
    }

    /// Whether any member does.
    pub fn is_in_doubt(&self) -> bool {
        self.members().iter().any(|h| self.is_doubted(h))
    }

    fn set_doubt(&self, host: &Name, doubt: bool) {
        let mut c = self.contacts.borrow_mut();
        c.entry(*host).or_default().doubt = doubt;
    }

    /// Something came from `host`.
    fn heard(&self, host: &Name) {
        let mut c = self.contacts.borrow_mut();
        c.entry(*host).or_default().heard = Some(self.ex.now());
    }

    fn set_ahead(&self, host: &Name, ahead: bool) {
        let mut c = self.contacts.borrow_mut();
        c.entry(*host).or_default().ahead = ahead;
    }

    /// All that `host` has was merged.
    fn merged(&self, host: &Name) {
        let mut c = self.contacts.borrow_mut();
        let now = self.ex.now();
        c.entry(*host).or_default().merged.get_or_insert(now);
    }

    /// When that was so for the first time.
    pub fn merged_at(&self, host: &Name) -> Option<Ns> {
        self.contacts.borrow().get(host)?.merged
    }

    /// When the module was loaded.
    pub fn started(&self) -> Ns {
        self.started
    }

    /// Sets or clears the reason why something can't go on.
    pub fn set_trouble(&self, word: Option<&'static str>) {
        if self.trouble.replace(word) != word {
            self.say(|| format!("trouble {word:?}"));
            self.kick.signal(&self.ex);
        }
    }

    /// Path of a log file.
    pub fn log_path(&self, log: &LogName) -> String {
        format!("{DIR}/{log}")
    }

    /// Makes names in the directory of the resource durable.
    pub async fn sync_dir(&self) -> Res<()> {
        self.sync(DIR).await
    }

    /// Makes what this host says of itself durable.
    pub async fn sync_actual_dir(&self) -> Res<()> {
        self.sync(&format!("{DIR}/actual-{}", self.me)).await
    }

    async fn sync(&self, dir: &str) -> Res<()> {
        let upto = self.machine().fs.borrow().sync_dir();
        self.fs_io().await?;
        self.machine().fs.borrow_mut().dir_synced(upto, dir);
        Ok(())
    }

    /// Makes a file durable.
    pub async fn sync_file(&self, ino: u32, data_only: bool) -> Res<()> {
        let mark = self.machine().fs.borrow().sync(ino);
        let done = self.fs_io().await;
        if let Err(e) = done.and_then(|()| self.sim.fails(self.i, |f| f.sync)) {
            let m = self.machine();
            m.fs.borrow_mut().sync_failed(ino, mark, &m.rng);
            self.say(|| format!("a sync of file {ino} failed"));
            return Err(e);
        }
        self.machine().fs.borrow_mut().synced(ino, mark, data_only);
        Ok(())
    }

    /// Writes to a file. The bytes may be on the disk from the beginning of the operation on.
    pub async fn write_file(&self, ino: u32, off: u64, data: &[u8]) -> Res<()> {
        let off = usize::try_from(off).map_err(|_| Errno::Io)?;
        let r = self.sim.fails(self.i, |f| f.fs);
        if r.is_ok() || self.machine().rng.chance(1, 2) {
            self.machine().fs.borrow_mut().write(ino, off, data)?;
        }
        self.io().await;
        r
    }

    /// Reads from a file.
    pub async fn read_file(&self, ino: u32, off: u64, len: usize) -> Res<Vec<u8>> {
        self.fs_io().await?;
        let off = usize::try_from(off).map_err(|_| Errno::Io)?;
        Ok(self.machine().fs.borrow().read(ino, off, len))
    }

    /// Cuts a file.
    pub async fn truncate(&self, ino: u32, size: u64) -> Res<()> {
        self.fs_io().await?;
        let size = usize::try_from(size).map_err(|_| Errno::Io)?;
        self.machine().fs.borrow_mut().truncate(ino, size);
        Ok(())
    }

    /// Flushes the data disk.
    pub async fn flush_disk(&self) -> Res<()> {
        let m = self.machine();
        let upto = m.disk.borrow().flush();
        self.io().await;
        if let Err(e) = self.sim.fails(self.i, |f| f.flush) {
            self.unflushed.set(!on("sync-trusts-flush"));
            m.disk.borrow_mut().flush_failed(upto, &m.rng);
            return Err(e);
        }
        m.disk.borrow_mut().flushed(upto);
        Ok(())
    }

    /// A flush that has failed is not forgotten when the disk is closed.
    pub async fn note_unflushed(&self) {
        let key = format!("unflushed-{}", self.me);
        let noted = self.number(&key);
        if noted.is_none() && self.get(&format!("data-{}", self.me)).is_some() {
            // It must be there before /mars is full.
            self.put(&key, "0").await;
        }
        let noted = noted.unwrap_or(0);
        if noted > 0 {
            self.unflushed.set(!on("sync-trusts-flush"));
        }
        let size = self.size().unwrap_or(0).max(1);
        if self.unflushed.get() && size > noted {
            self.put(&key, &size.to_string()).await;
            let _ = self.sync_dir().await;
        }
    }

    /// The first `size` bytes of the disk were written once more, and flushed.
    pub async fn is_flushed(&self, size: u64) {
        let key = format!("unflushed-{}", self.me);
        if self.unflushed.get() && self.number(&key).unwrap_or(0) <= size {
            self.put(&key, "0").await;
            self.unflushed.set(false);
        }
    }

    /// Writes to the data disk.
    pub async fn write_disk(&self, off: u64, data: Vec<u8>) -> Res<()> {
        let m = self.machine();
        let off = usize::try_from(off).map_err(|_| Errno::Io)?;
        let id = m.disk.borrow_mut().begin(off, data);
        self.io().await;
        let r = self.sim.fails(self.i, |f| f.disk);
        m.disk.borrow_mut().end(id, r.is_ok(), &m.rng);
        r
    }

    /// Reads from the data disk.
    pub async fn read_disk(&self, off: u64, len: usize) -> Res<Vec<u8>> {
        let m = self.machine();
        let off = usize::try_from(off).map_err(|_| Errno::Io)?;
        self.io().await;
        self.sim.fails(self.i, |f| f.disk)?;
        let out = m.disk.borrow().read(off, len, &m.rng);
        Ok(out)
    }
}
