// SPDX-License-Identifier: GPL-2.0-or-later

//! Everything there is in one run: machines, network, the truth, and what has gone wrong.

use crate::{
    disk::Disk,
    exec::{Exec, Ns, MS, SEC},
    fs::{Errno, Fs, Res},
    host::{dirty::joined, Host},
    rng::Rng,
    truth::{Place, Truth, Violation, Whose, SECTOR},
};
use mars_core::{
    lamport::{LamportTime, MAX_FUTURE_SECS},
    name::Name,
    succession::{is_synced, is_void_growth},
    tree::value::ReplayLink,
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

/// Where the links and logs of the resource are.
pub const DIR: &str = "resource-r";
/// So long the word of a forced failover may be on its way.
const FORCED: Ns = 3 * SEC;

/// Sizes and habits of one run, all from its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Seed of everything that is not in the script.
    pub seed: u64,
    /// Hosts.
    pub hosts: usize,
    /// Sectors of the disks.
    pub sectors: usize,
    /// Sectors of the resource, before somebody resizes it.
    pub small: usize,
    /// What a power cut decides for itself on the data disks.
    pub unit: usize,
    /// The same for `/mars`.
    pub fs_unit: usize,
    /// Metadata of `/mars` survives in order.
    pub ordered: bool,
    /// New blocks of `/mars` show old bytes.
    pub stale: bool,
    /// Bytes of `/mars`.
    pub capacity: usize,
    /// Logs are rotated at this size.
    pub rotate: u64,
    /// The replicas are filled before the run begins.
    pub synced: bool,
}

/// How a host dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// Everything that was not made durable is at risk.
    Power,
    /// Memory is lost, caches of the disks are kept.
    Kernel,
}

/// What fails at the moment, in 256ths.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Operations on `/mars`.
    pub fs: u64,
    /// Syncs of files of `/mars`.
    pub sync: u64,
    /// Reads and writes of the data disk.
    pub disk: u64,
    /// Flushes of the data disk.
    pub flush: u64,
}

/// What of a machine survives its crashes.
pub struct Machine {
    /// Its name.
    pub name: Name,
    /// The data disk.
    pub disk: RefCell<Disk>,
    /// `/mars`.
    pub fs: RefCell<Fs>,
    /// The running module.
    pub host: RefCell<Option<Rc<Host>>>,
    /// Counts starts.
    pub boots: Cell<u64>,
    /// What its clock is wrong by.
    pub clock: Cell<i64>,
    /// What it gains or loses, in parts per million.
    pub drift: Cell<i64>,
    /// What fails.
    pub faults: Cell<Faults>,
    /// It dies after so many more operations.
    pub doom: Cell<Option<(u64, Crash)>>,
    /// A bit of its logs has changed: only other members can put that right.
    pub flipped: Cell<bool>,
    /// Slower by this factor.
    pub slow: Cell<u64>,
    /// Where the replay link was last, for P5 and P9.
    pub place: Cell<Option<Place>>,
    /// Device that existed when it crashed.
    pub device: Cell<Option<usize>>,
    /// Latencies and choices of this machine.
    pub rng: Rng,
}

/// The network: who can send to whom.
pub struct Net {
    n: usize,
    cut: RefCell<Vec<bool>>,
    /// Counts losses of the connections of a pair.
    pub resets: RefCell<Vec<u64>>,
    /// One-way delay.
    pub delay: Cell<Ns>,
    /// Delays and losses.
    pub rng: Rng,
}

impl Net {
    fn new(n: usize, seed: u64) -> Self {
        Self {
            n,
            cut: RefCell::new(vec![false; n * n]),
            resets: RefCell::new(vec![0; n * n]),
            delay: Cell::new(MS),
            rng: Rng::new(seed, 1000),
        }
    }

    /// Cuts or mends one direction.
    pub fn set(&self, from: usize, to: usize, cut: bool) {
        self.cut.borrow_mut()[from * self.n + to] = cut;
    }

    /// Whether a message gets through.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.borrow()[from * self.n + to]
    }

    /// All connections of two hosts are lost.
    pub fn reset(&self, a: usize, b: usize) {
        let mut r = self.resets.borrow_mut();
        r[a * self.n + b] += 1;
        r[b * self.n + a] += 1;
    }

    /// Which connections are lost.
    pub fn generation(&self, a: usize, b: usize) -> u64 {
        self.resets.borrow()[a * self.n + b]
    }

    /// Everything is as it should be.
    pub fn heal(&self) {
        self.cut.borrow_mut().fill(false);
        self.delay.set(MS);
    }
}

/// What happened in a run, for the figures at the end.
#[derive(Default)]
pub struct Counts {
    /// Writes that were admitted.
    pub writes: Cell<u64>,
    /// Crashes.
    pub crashes: Cell<u64>,
    /// Checks of whole disks.
    pub checks: Cell<u64>,
    /// Devices that appeared.
    pub devices: Cell<u64>,
    /// Times that a primary has stopped logging.
    pub gaps: Cell<u64>,
}

/// One run.
pub struct Sim {
    /// The loop.
    pub ex: Rc<Exec>,
    /// Sizes.
    pub cfg: Config,
    /// Machines.
    pub machines: Vec<Machine>,
    /// Network.
    pub net: Net,
    /// What really happened.
    pub truth: RefCell<Truth>,
    /// The first promise that was broken.
    pub violation: RefCell<Option<Violation>>,
    /// Last things that happened, if somebody wants to know.
    pub trace: RefCell<Option<VecDeque<String>>>,
    /// Next number of a write.
    pub next_write: Cell<u64>,
    /// Figures.
    pub counts: Counts,
    /// The script is over and all faults are gone.
    pub calm: Cell<bool>,
    /// What happened is more than is promised: the run ends here.
    pub over: Cell<bool>,
    /// An administrator has made a primary by force: only then there may be two histories.
    pub forced: Cell<bool>,
    /// When that was last.
    pub forced_at: Cell<Option<Ns>>,
    /// Where, until it is primary.
    forced_by: Cell<Option<usize>>,
    /// Whom an administrator has tried in vain to make primary at the end.
    pub tried: RefCell<Vec<usize>>,
    /// Whom an administrator has designated last.
    pub designated: Cell<Option<Name>>,
}

impl Sim {
    /// Makes the machines; nothing runs yet.
    pub fn new(cfg: &Config, traced: bool) -> Rc<Self> {
        let machine = |i: usize| {
            let letter = char::from(b'a' + u8::try_from(i).unwrap_or(0));
            Machine {
                name: Name::new(letter.to_string().as_bytes()).expect("a letter"),
                disk: RefCell::new(Disk::new(cfg.sectors * SECTOR, cfg.unit)),
                fs: RefCell::new(Fs::new(cfg.fs_unit, cfg.ordered, cfg.stale, cfg.capacity)),
                host: RefCell::default(),
                boots: Cell::new(0),
                clock: Cell::new(0),
                drift: Cell::new(0),
                faults: Cell::default(),
                doom: Cell::new(None),
                flipped: Cell::new(false),
                slow: Cell::new(1),
                place: Cell::new(None),
                device: Cell::new(None),
                rng: Rng::new(cfg.seed, i as u64),
            }
        };
        Rc::new(Self {
            ex: Rc::default(),
            machines: (0..cfg.hosts).map(machine).collect(),
            net: Net::new(cfg.hosts, cfg.seed),
            truth: RefCell::new(Truth::new(cfg.sectors, cfg.small)),
            violation: RefCell::default(),
            trace: RefCell::new(traced.then(VecDeque::new)),
            next_write: Cell::new(1),
            counts: Counts::default(),
            calm: Cell::new(false),
            over: Cell::new(false),
            forced: Cell::new(false),
            forced_at: Cell::new(None),
            forced_by: Cell::new(None),
            tried: RefCell::default(),
            designated: Cell::new(None),
            cfg: cfg.clone(),
        })
    }

    /// Notes something for whoever reads a failing run.
    pub fn say(&self, host: usize, what: impl FnOnce() -> String) {
        if let Some(t) = self.trace.borrow_mut().as_mut() {
            if t.len() >= 100_000 {
                t.pop_front();
            }
            let now = self.ex.now();
            let name = self.machines.get(host).map_or("*", |m| m.name.as_str());
            let line = format!("{:10.6} {name} {}", now as f64 / 1e9, what());
            if std::env::var_os("MARS_SIM_LIVE").is_some() {
                eprintln!("{line}");
            }
            t.push_back(line);
        }
    }

    /// Nothing that happens from now on says anything.
    pub fn is_over(&self) -> bool {
        self.over.get() || self.violation.borrow().is_some()
    }

    /// A promise was broken.
    pub fn violated(&self, what: Violation) {
        let mut v = self.violation.borrow_mut();
        if v.is_none() {
            self.say(usize::MAX, || format!("VIOLATION {what}"));
            *v = Some(what);
        }
    }

    /// Takes a check's result.
    pub fn check(&self, host: usize, r: Result<(), Violation>) {
        if let Err(v) = r {
            self.violated(format!("{v} (host {})", self.machines[host].name));
        }
    }

    /// The wall clock of a machine.
    pub fn real(&self, i: usize) -> LamportTime {
        let m = &self.machines[i];
        let now = i128::from(self.ex.now());
        let t = i128::from(1_800_000_000u64) * i128::from(SEC)
            + now
            + now * i128::from(m.drift.get()) / 1_000_000
            + i128::from(m.clock.get());
        LamportTime::from_nanos(u64::try_from(t).unwrap_or(0))
    }

    /// Whether the clock of a machine is so late that it can't take what others say.
    pub fn has_late_clock(&self) -> bool {
        let bears = i64::try_from(MAX_FUTURE_SECS * SEC).unwrap_or(i64::MAX);
        self.machines.iter().any(|m| m.clock.get() < -bears)
    }

    /// P5 of a device that has just appeared on `host`: there is no other one, of a host with which this one talks, that knew of
    /// this one when it became primary, or is whom an administrator has chosen last. Unless one has forced something since either
    /// was started, or not long before, so that the word of it is yet on its way: then two may be primary for a while.
    pub fn look_at_roles(&self, host: &Host) {
        for m in &self.machines {
            let other = m.host.borrow().clone();
            let Some(other) = other.filter(|o| o.i != host.i && o.attached.get().1) else {
                continue;
            };
            let begun = host.started().min(other.started());
            let forced = self.forced_at.get().is_some_and(|t| t + FORCED >= begun);
            let knew = other.device_since.get() > other.merged_at(&host.me).unwrap_or(Ns::MAX);
            let chosen = self.designated.get() == Some(other.me);
            if host.merged_at(&other.me).is_some() && !forced && (knew || chosen) {
                self.violated(format!(
                    "P5 no silent fork: {} becomes primary, {} is it, too, and nobody has forced that",
                    host.me, other.me
                ));
            }
        }
        if self.forced_by.get() == Some(host.i) {
            self.forced_by.set(None);
        }
    }

    /// A failover is forced on a machine. A slow one, or one whose module has yet to start, says so later.
    pub fn force(&self, i: usize) {
        let later = FORCED * self.machines[i].slow.get().saturating_sub(1);
        self.forced_at.set(Some(self.ex.now() + later));
        self.forced_by.set(Some(i));
    }

    /// Starts the module on a machine.
    pub fn boot(self: &Rc<Self>, i: usize) {
        let m = &self.machines[i];
        if m.host.borrow().is_some() {
            return;
        }
        m.boots.set(m.boots.get() + 1);
        self.say(i, || "boot".into());
        if self.forced_by.get() == Some(i) {
            self.force(i);
        }
        let h = Host::new(self.clone(), i);
        *m.host.borrow_mut() = Some(h.clone());
        crate::host::cluster::start(&h);
    }

    /// Kills a machine, and looks at what is left of it.
    pub fn crash(&self, i: usize, how: Crash) {
        let m = &self.machines[i];
        let Some(host) = m.host.borrow_mut().take() else {
            return;
        };
        self.say(i, || format!("crash {how:?}"));
        self.counts.crashes.set(self.counts.crashes.get() + 1);
        m.doom.set(None);
        m.device.set(host.device_id.get());
        self.ex.kill(i);
        // A device holds its host, and the other way round.
        host.device.borrow_mut().take();
        drop(host);
        let mut fs = m.fs.borrow_mut();
        let mut disk = m.disk.borrow_mut();
        match how {
            Crash::Power => {
                fs.power_cut(&m.rng);
                disk.power_cut(&m.rng);
            }
            Crash::Kernel => {
                if m.rng.chance(1, 2) {
                    fs.power_cut(&m.rng);
                } else {
                    fs.kernel_crash();
                }
                disk.kernel_crash(&m.rng);
            }
        }
        for (path, node) in fs.names() {
            if let crate::fs::Node::File(ino) = node {
                self.say(i, || format!("left: {path} {} bytes", fs.size(*ino)));
            }
        }
        drop((fs, disk));
        m.place.set(None);
        if let Some(primary) = self.value(i, "primary") {
            self.say(i, || format!("left: primary {primary}"));
        }
        if let Some(link) = self.is_good(i) {
            self.say(i, || format!("left: replay link {link}"));
        }
        self.look(i, false);
    }

    /// What a link of the resource says on the disk of a machine.
    pub fn value(&self, i: usize, key: &str) -> Option<String> {
        let fs = self.machines[i].fs.borrow();
        let (v, _) = fs.link(&format!("{DIR}/{key}"))?;
        (v != ".deleted").then(|| v.to_owned())
    }

    fn number(&self, i: usize, key: &str) -> Option<u64> {
        self.value(i, key)?.parse().ok()
    }

    /// Sectors of the resource, by the word of a machine.
    pub fn sectors(&self, i: usize) -> usize {
        let size = self.number(i, "size").unwrap_or(0);
        usize::try_from(size).unwrap_or(0) / SECTOR
    }

    /// When the size was decided that a machine knows.
    pub fn size_stamp(&self, i: usize) -> LamportTime {
        let fs = self.machines[i].fs.borrow();
        let link = fs.link(&format!("{DIR}/size"));
        link.map_or(LamportTime::ZERO, |(_, stamp)| stamp)
    }

    /// The replay link of a machine, if its disk has all that a sync has copied from later.
    pub fn reached(&self, i: usize) -> Option<ReplayLink> {
        let name = self.machines[i].name;
        let link = ReplayLink::parse(self.value(i, &format!("replay-{name}"))?.as_bytes())?;
        let syncpos = self
            .value(i, &format!("syncpos-{name}"))
            .and_then(|v| ReplayLink::parse(v.as_bytes()));
        let reached = syncpos.is_none_or(|p| (link.log.number, link.pos) >= (p.log.number, p.pos));
        let from = self.value(i, &format!("syncfrom-{name}"));
        let done = self.number(i, &format!("syncstatus-{name}"));
        let from = from.as_ref().map(String::as_bytes);
        let reached = reached || is_void_growth(done, self.number(i, "size"), from);
        (reached && self.value(i, &format!("data-{name}")).is_some()).then_some(link)
    }

    /// Whether the disk of a machine says of itself that it is a state of the primary.
    pub fn is_good(&self, i: usize) -> Option<ReplayLink> {
        let name = self.machines[i].name;
        let from = self.value(i, &format!("syncfrom-{name}"));
        let synced = is_synced(
            self.number(i, &format!("syncstatus-{name}")),
            self.number(i, "size"),
            from.as_ref().map(String::as_bytes),
        );
        self.reached(i).filter(|_| synced)
    }

    /// P1 and P2 of a machine that is down, or (`live`) of what a power cut at this moment could leave.
    pub fn look(&self, i: usize, live: bool) {
        let Some(link) = self.is_good(i) else {
            return;
        };
        let m = &self.machines[i];
        let flipped = m.flipped.get();
        if flipped && live {
            return;
        }
        let device = if live { None } else { m.device.take() };
        let (fs, disk) = (m.fs.borrow(), m.disk.borrow());
        let w = self.whose(i, &fs, &disk, live);
        let r = self.truth.borrow_mut().after_crash(w, &link, device);
        // Nothing can be said about what a bit has flipped in, but what is found of a batch that the crash cut short is history.
        if !flipped {
            self.counts.checks.set(self.counts.checks.get() + 1);
            self.check(i, r);
        }
    }

    /// A host whose disk the truth is to look at.
    pub fn whose<'a>(&self, i: usize, fs: &'a Fs, disk: &'a Disk, live: bool) -> Whose<'a> {
        let host = self.machines[i].name;
        let joined = joined(fs.node(&format!("{DIR}/data-{host}")));
        Whose {
            host,
            fs,
            dir: DIR,
            disk,
            joined: joined.map_or(0, LamportTime::as_nanos),
            sectors: self.sectors(i),
            sized: self.size_stamp(i),
            live,
        }
    }

    /// Whether an operation fails now.
    pub fn fails(&self, i: usize, rate: impl Fn(&Faults) -> u64) -> Res<()> {
        let m = &self.machines[i];
        let rate = rate(&m.faults.get());
        if rate > 0 && m.rng.chance(rate, 256) {
            return Err(Errno::Io);
        }
        Ok(())
    }
}
