// SPDX-License-Identifier: GPL-2.0-or-later

//! One run: the cluster is made, the script happens, then everything is put right, and it must converge (P10).

use crate::{
    admin::{self, Cmd, View},
    exec::{Ns, MS, SEC, WORLD},
    fs::Node,
    script::{Action, Script},
    truth::{foreign, id_of, pattern, Violation, SECTOR},
    world::{Crash, Faults, Sim, DIR},
};
use mars_core::{lamport::LamportTime, name::Name};
use std::{cell::Cell, collections::BTreeMap, rc::Rc};

/// What came of a run.
pub struct Outcome {
    /// The first promise that was broken.
    pub violation: Option<Violation>,
    /// Simulated time of all hosts.
    pub host_ns: Ns,
    /// Steps of tasks.
    pub steps: u64,
    /// Writes of applications.
    pub writes: u64,
    /// Crashes.
    pub crashes: u64,
    /// Checks of whole disks.
    pub checks: u64,
    /// Devices that appeared.
    pub devices: u64,
    /// Times that a primary has stopped logging.
    pub gaps: u64,
    /// What happened, if it was to be noted.
    pub trace: Vec<String>,
}

/// So long everything may take to converge.
const PATIENCE: Ns = 240 * SEC;
/// No run takes so many steps.
const STEPS: u64 = 1_000_000;
/// Disks are looked at after so many steps.
const LOOK: u64 = 64;

/// Runs a script.
pub fn run(script: &Script, traced: bool) -> Outcome {
    let sim = Sim::new(&script.cfg, traced);
    setup(&sim);
    let mut looked = 0;
    let apps = vec![Cell::new(true); script.cfg.hosts];
    for i in 0..script.cfg.hosts {
        sim.boot(i);
    }
    for (ms, action) in &script.events {
        advance(&sim, (1500 + ms) * MS, &mut looked);
        if sim.is_over() {
            break;
        }
        act(&sim, &apps, *action);
    }
    if !sim.is_over() {
        calm(&sim, &mut looked);
    }
    for i in 0..script.cfg.hosts {
        // A host holds the simulation, and the other way round.
        let host = sim.machines[i].host.borrow_mut().take();
        sim.ex.kill(i);
        if let Some(h) = host {
            h.device.borrow_mut().take();
        }
    }
    sim.ex.kill(WORLD);
    let trace = sim.trace.borrow_mut().take();
    let violation = sim.violation.borrow_mut().take();
    Outcome {
        violation,
        host_ns: sim.ex.now() * script.cfg.hosts as u64,
        steps: sim.ex.polls(),
        writes: sim.counts.writes.get(),
        crashes: sim.counts.crashes.get(),
        checks: sim.counts.checks.get(),
        devices: sim.counts.devices.get(),
        gaps: sim.counts.gaps.get(),
        trace: trace.map_or(Vec::new(), Vec::from),
    }
}

fn advance(sim: &Rc<Sim>, until: Ns, looked: &mut u64) {
    while !sim.is_over() && sim.ex.step(until) {
        *looked += 1;
        if *looked > STEPS {
            sim.violated(format!(
                "P8 bounded: more than {STEPS} steps, something spins"
            ));
        }
        if *looked % LOOK == 0 {
            let i = usize::try_from(*looked / LOOK).unwrap_or(0) % sim.machines.len();
            if sim.machines[i].host.borrow().is_some() {
                sim.look(i, true);
            }
        }
    }
    sim.ex.advance(until);
}

/// The cluster after `create-cluster`, `join-cluster` and `create-resource`.
fn setup(sim: &Rc<Sim>) {
    let size = sim.cfg.small * SECTOR;
    let first = sim.machines[0].name;
    for (i, m) in sim.machines.iter().enumerate() {
        let mut fs = m.fs.borrow_mut();
        let mut n = 0;
        let mut put = |path: &str, value: &str| {
            n += 1;
            let stamp = LamportTime::new(1_799_999_000, n).unwrap_or(LamportTime::ZERO);
            fs.put_link(path, value, stamp).expect("there is room");
        };
        put("uuid", "sim");
        for (k, m) in sim.machines.iter().enumerate() {
            put(&format!("ips/ip-{}", m.name), &format!("192.0.2.{}", k + 1));
        }
        put(&format!("{DIR}/maxnr"), "1");
        put(&format!("{DIR}/size"), &size.to_string());
        put(&format!("{DIR}/primary"), first.as_str());
        put(&format!("{DIR}/userspace/last-primary"), first.as_str());
        let zero = "0".repeat(32);
        let before = format!("{zero},log-000000000-{first},0");
        for (k, m) in sim.machines.iter().enumerate() {
            if k > 0 && !sim.cfg.synced {
                continue;
            }
            let h = m.name;
            put(&format!("{DIR}/syncstatus-{h}"), &size.to_string());
            put(
                &format!("{DIR}/version-000000000-{h}"),
                &format!("{before}:"),
            );
            put(
                &format!("{DIR}/version-000000001-{h}"),
                &format!("{zero},log-000000001-{first},0:{before}"),
            );
            put(
                &format!("{DIR}/replay-{h}"),
                &format!("log-000000001-{first},0,0"),
            );
            put(&format!("{DIR}/device-{h}"), "r");
            put(&format!("{DIR}/data-{h}"), "/dev/disk");
            for key in ["attach", "connect", "sync", "allow-replay"] {
                put(&format!("{DIR}/todo-{h}/{key}"), "1");
            }
        }
        if i == 0 {
            let _ = fs.create(&format!("{DIR}/log-000000001-{first}"));
        } else if !sim.cfg.synced {
            m.disk.borrow_mut().scribble(&m.rng);
        }
        for s in sim.cfg.small..sim.cfg.sectors {
            m.disk
                .borrow_mut()
                .preset(s * SECTOR, &pattern(foreign(i), s));
        }
        fs.sync_all();
    }
    if !sim.cfg.synced {
        for i in 1..sim.machines.len() {
            let s = sim.clone();
            sim.ex.spawn(WORLD, async move {
                s.ex.sleep(SEC + i as u64 * 10 * MS).await;
                command(&s, i, Cmd::Join);
            });
        }
    }
}

fn command(sim: &Rc<Sim>, i: usize, cmd: Cmd) {
    let host = sim.machines[i].host.borrow().clone();
    if let Some(h) = host {
        sim.ex.spawn(i, admin::run(h, cmd));
    }
}

fn devices(sim: &Rc<Sim>, apps: &[Cell<bool>], f: impl Fn(&Rc<crate::host::device::Device>)) {
    for (m, app) in sim.machines.iter().zip(apps) {
        let host = m.host.borrow().clone();
        let device = host.and_then(|h| h.device.borrow().clone());
        if let Some(d) = device.filter(|_| app.get()) {
            f(&d);
        }
    }
}

fn act(sim: &Rc<Sim>, apps: &[Cell<bool>], action: Action) {
    if !matches!(action, Action::Write(..) | Action::Flush | Action::Read(_)) {
        sim.say(usize::MAX, || format!("{action:?}"));
    }
    let fault = |h: usize, f: &dyn Fn(&mut Faults)| {
        let m = &sim.machines[h];
        let mut faults = m.faults.get();
        f(&mut faults);
        m.faults.set(faults);
    };
    match action {
        Action::Write(kind, at, n, fua) => devices(sim, apps, |d| d.write(kind, at, n, fua)),
        Action::Flush => devices(sim, apps, |d| d.flush()),
        Action::Read(at) => devices(sim, apps, |d| d.read(at)),
        Action::Close(h) => {
            apps[h].set(false);
            close(sim, h);
        }
        Action::Open => apps.iter().for_each(|a| a.set(true)),
        Action::Crash(h, how, after) => {
            if sim.machines[h].host.borrow().is_some() {
                sim.machines[h].doom.set(Some((after, how)));
            }
        }
        Action::Boot(h) => {
            // If it has not died yet, it dies now.
            if sim.machines[h].doom.get().is_some() {
                sim.crash(h, Crash::Power);
            }
            sim.boot(h);
        }
        Action::Cut(a, b) => sim.net.set(a, b, true),
        Action::Mend(a, b) => sim.net.set(a, b, false),
        Action::Reset(a, b) => sim.net.reset(a, b),
        Action::Delay(ms) => sim.net.delay.set(ms * MS),
        Action::Clock(h, ms) => {
            let c = &sim.machines[h].clock;
            c.set(c.get() + ms * 1_000_000);
        }
        Action::Drift(h, ppm) => sim.machines[h].drift.set(ppm),
        Action::Flip(h, n) => flip(sim, h, n),
        Action::FsFault(h, n) => fault(h, &|f| f.fs = n),
        Action::SyncFault(h, n) => fault(h, &|f| f.sync = n),
        Action::DiskFault(h, n) => fault(h, &|f| f.disk = n),
        Action::FlushFault(h, n) => fault(h, &|f| f.flush = n),
        Action::Full(h, free) => {
            let mut fs = sim.machines[h].fs.borrow_mut();
            let used = fs.used();
            fs.set_capacity(used + free);
        }
        Action::Room(h) => {
            let m = &sim.machines[h];
            m.fs.borrow_mut().set_capacity(sim.cfg.capacity);
        }
        Action::Slow(h, n) => sim.machines[h].slow.set(n),
        Action::Admin(h, cmd) => command(sim, h, cmd),
    }
}

fn close(sim: &Rc<Sim>, i: usize) {
    let host = sim.machines[i].host.borrow().clone();
    let device = host.and_then(|h| h.device.borrow().clone());
    if let Some(d) = device {
        sim.ex.spawn(i, async move { d.close().await });
    }
}

/// A bit of some log that lies on this host changes. Only of one whose bytes a good copy exists of elsewhere: the last copy
/// of a log can't be brought back by anybody.
fn flip(sim: &Rc<Sim>, i: usize, n: u64) {
    let m = &sim.machines[i];
    let mut fs = m.fs.borrow_mut();
    let suffix = format!("-{}", m.name);
    let logs: Vec<u32> = fs
        .names()
        .iter()
        .filter(|(path, _)| path.contains("/log-") && !path.ends_with(&suffix))
        .filter_map(|(_, node)| match node {
            Node::File(ino) if fs.size(*ino) > 0 => Some(*ino),
            _ => None,
        })
        .collect();
    if logs.is_empty() {
        return;
    }
    let at = |n: u64, of: usize| usize::try_from(n % of as u64).unwrap_or(0);
    let ino = logs[at(n, logs.len())];
    let byte = at(n >> 8, fs.size(ino));
    m.flipped.set(true);
    fs.flip(ino, byte, u32::try_from((n >> 4) & 7).unwrap_or(0));
}

/// All faults end, and administrators do what the status asks for.
fn calm(sim: &Rc<Sim>, looked: &mut u64) {
    sim.calm.set(true);
    sim.say(usize::MAX, || "all faults are over".into());
    sim.net.heal();
    for i in 0..sim.machines.len() {
        let m = &sim.machines[i];
        m.faults.set(Faults::default());
        m.clock.set(0);
        m.drift.set(0);
        m.slow.set(1);
        m.fs.borrow_mut().set_capacity(sim.cfg.capacity);
        if m.doom.get().is_some() {
            sim.crash(i, Crash::Power);
        }
        sim.boot(i);
        close(sim, i);
    }
    let begin = sim.ex.now();
    advance(sim, begin + 8 * SEC, looked);
    for i in 0..sim.machines.len() {
        command(sim, i, Cmd::Up);
    }
    let mut helped = sim.ex.now() + 12 * SEC;
    while !sim.is_over() {
        advance(sim, sim.ex.now() + SEC, looked);
        if sim.is_over() {
            return;
        }
        let Err(why) = converged(sim) else {
            finally(sim);
            return;
        };
        if sim.ex.now() > begin + PATIENCE {
            sim.violated(format!(
                "P10 converges: not within {} s: {why}",
                PATIENCE / SEC
            ));
            return;
        }
        if sim.ex.now() > helped {
            sim.say(usize::MAX, || format!("not converged: {why}"));
            for i in 0..sim.machines.len() {
                if let Some(h) = sim.machines[i].host.borrow().as_ref() {
                    sim.say(i, || {
                        let key = |k: &str| h.get(&format!("{k}-{}", h.me));
                        format!(
                            "replay {:?}, syncpos {:?}, syncstatus {:?}, {}, {:?}, {:?}",
                            key("replay"),
                            key("syncpos"),
                            key("syncstatus"),
                            h.fetch.describe(),
                            h.fetch.reach(),
                            h.replay_link(&h.me).map(|l| h.course(&l.log))
                        )
                    });
                }
            }
            help(sim);
            helped = sim.ex.now() + 15 * SEC;
        }
    }
}

fn members(sim: &Sim) -> Vec<usize> {
    let v = View::new(sim, 0);
    (0..sim.machines.len())
        .filter(|i| v.members().contains(&sim.machines[*i].name))
        .collect()
}

/// Whether all members have the same, and know it.
fn converged(sim: &Rc<Sim>) -> Result<(), String> {
    let v = View::new(sim, 0);
    let members = members(sim);
    if members.is_empty() {
        // All have left, each while another was still there; `marsadm` says what can be done with that.
        return Ok(());
    }
    let Some(p) = v.designated() else {
        return Err("nobody is designated".into());
    };
    let Some(primary) = members.iter().find(|i| sim.machines[**i].name == p) else {
        return Err(format!("the designated primary {p} is no member"));
    };
    let host = sim.machines[*primary].host.borrow().clone();
    let Some((log, end)) = host.as_ref().and_then(|h| h.progress.current()) else {
        // The only copy of a log is damaged: nobody can do more than say so.
        if members == [*primary]
            && sim.machines[*primary].flipped.get()
            && v.state(&p) == "defective-log"
        {
            return Ok(());
        }
        return Err(format!("{p} is not primary"));
    };
    let place = host.as_ref().and_then(|h| h.place(&log, end));
    let Some(place) = place else {
        return Err("the log of the primary is not known".into());
    };
    let state = sim.truth.borrow_mut().state(place);
    let (sectors, sized) = (sim.sectors(0), sim.size_stamp(0));
    for i in &members {
        let m = &sim.machines[*i];
        let Some(link) = sim.is_good(*i) else {
            return Err(format!("{} is not good: {}", m.name, v.state(&m.name)));
        };
        if link.log != log || link.pos != end {
            return Err(format!(
                "{} is at {} {}, the primary at {log} {end}: {}",
                m.name,
                link.log,
                link.pos,
                v.state(&m.name)
            ));
        }
        let disk = m.disk.borrow();
        let (truth, theirs) = (sim.truth.borrow(), sim.machines[*primary].disk.borrow());
        for (s, id) in state.iter().enumerate().take(sectors) {
            let have = &disk.view()[s * SECTOR..(s + 1) * SECTOR];
            if truth.differs(sized, place, s, *id, have) {
                let (has, wanted) = (id_of(have), truth.wanted(sized, place, s, *id));
                return Err(format!(
                    "sector {s} of {} is write {has}, not {wanted}",
                    m.name
                ));
            }
            if *have != theirs.view()[s * SECTOR..(s + 1) * SECTOR] {
                return Err(format!(
                    "sector {s} of {} differs from the primary's",
                    m.name
                ));
            }
        }
    }
    let trees: Vec<BTreeMap<String, Node>> = (0..sim.machines.len())
        .map(|i| {
            let fs = sim.machines[i].fs.borrow();
            fs.names()
                .iter()
                .filter(|(path, node)| {
                    let Node::Link(v, _) = node else { return false };
                    v != ".deleted" && !path.ends_with("/time")
                })
                .map(|(p, n)| (p.clone(), n.clone()))
                .collect()
        })
        .collect();
    for (i, t) in trees.iter().enumerate().skip(1) {
        if let Some(path) = differs(&trees[0], t).or_else(|| differs(t, &trees[0])) {
            return Err(format!(
                "the trees of {} and {} differ at {path}",
                sim.machines[0].name, sim.machines[i].name
            ));
        }
    }
    Ok(())
}

fn differs<'a>(a: &'a BTreeMap<String, Node>, b: &BTreeMap<String, Node>) -> Option<&'a str> {
    a.iter()
        .find(|(path, node)| b.get(*path) != Some(node))
        .map(|(path, _)| path.as_str())
}

/// What a reasonable administrator does by what `view` says. Whatever needs help must say so (P10).
fn help(sim: &Rc<Sim>) {
    let v = View::new(sim, 0);
    let members = members(sim);
    let name = |i: usize| sim.machines[i].name;
    let index = |n: &Name| members.iter().copied().find(|i| name(*i) == *n);
    let good: Vec<usize> = members
        .iter()
        .copied()
        .filter(|i| v.good(&name(*i)) && v.state(&name(*i)) != "defective-log")
        .collect();
    let primary = v.designated().and_then(|n| index(&n));
    let Some(p) = primary.filter(|p| v.is_primary(&name(*p))) else {
        // Nobody is primary: the best replica becomes it.
        let best = good
            .iter()
            .copied()
            .filter(|i| Some(*i) != primary || v.state(&name(*i)) != "defective-log")
            .max_by_key(|i| {
                let place = v.replay(&name(*i)).map(|r| (r.log.number, r.pos));
                // Not always the same, if there are others.
                let tried = sim.tried.borrow().iter().filter(|t| *t == i).count();
                (place, std::cmp::Reverse(tried))
            });
        match (primary, best) {
            (Some(p), _) if good.contains(&p) && v.state(&name(p)) != "waiting" => (),
            (_, Some(b)) => {
                let s = sim.clone();
                sim.tried.borrow_mut().push(b);
                sim.ex.spawn(WORLD, async move {
                    command(&s, b, Cmd::PauseFetch);
                    s.ex.sleep(2 * SEC).await;
                    command(&s, b, Cmd::Force);
                });
            }
            _ => (),
        }
        return;
    };
    let diverged = v.diverged();
    let apart = |i: usize| {
        diverged
            .iter()
            .any(|(a, b)| [*a, *b].contains(&name(i)) && [*a, *b].contains(&name(p)))
    };
    for i in members.iter().copied().filter(|i| *i != p) {
        let state = v.state(&name(i));
        if v.is_primary(&name(i)) {
            command(sim, i, Cmd::Secondary);
            continue;
        }
        let word = matches!(
            state,
            "split-brain" | "defective-log" | "no-history" | "gone"
        );
        let broken = word || apart(i);
        if broken || v.replay(&name(i)).is_none() {
            command(sim, i, Cmd::Invalidate);
        } else {
            command(sim, i, Cmd::Up);
        }
    }
}

/// What must hold of every run once it is over.
fn finally(sim: &Rc<Sim>) {
    for i in 0..sim.machines.len() {
        sim.look(i, true);
    }
}
