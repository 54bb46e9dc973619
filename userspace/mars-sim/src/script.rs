// SPDX-License-Identifier: GPL-2.0-or-later

//! What happens in a run: made from a seed, written as a text, read again.
//!
//! A line is a time in milliseconds and an action. Everything else (how long an operation takes, what a power cut
//! leaves) comes from the seed in the first line, so a text says all of a run.

use crate::{
    admin::{Cmd, NAMES},
    rng::Rng,
    world::{Config, Crash},
};
use mars_core::buffer::Kind;
use std::fmt;

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Applications write, or discard, or have become zero: first sector, sectors, with FUA.
    Write(Kind, usize, usize, bool),
    /// Applications flush.
    Flush,
    /// Applications read a sector.
    Read(usize),
    /// The application of a host closes the device, and leaves it closed.
    Close(usize),
    /// Applications may open devices again.
    Open,
    /// A host dies after so many operations.
    Crash(usize, Crash, u64),
    /// It is started.
    Boot(usize),
    /// One direction is cut.
    Cut(usize, usize),
    /// And mended.
    Mend(usize, usize),
    /// Connections are lost.
    Reset(usize, usize),
    /// One-way delay in milliseconds.
    Delay(u64),
    /// A clock jumps by milliseconds.
    Clock(usize, i64),
    /// A clock drifts, in parts per million.
    Drift(usize, i64),
    /// A bit of the logs of a host changes: a number that chooses it.
    Flip(usize, u64),
    /// `/mars` fails so many times in 256.
    FsFault(usize, u64),
    /// Of 256 syncs of a file of `/mars`, so many fail.
    SyncFault(usize, u64),
    /// The data disk fails.
    DiskFault(usize, u64),
    /// Flushes of the data disk fail.
    FlushFault(usize, u64),
    /// `/mars` has so many bytes free.
    Full(usize, usize),
    /// And as many as at first.
    Room(usize),
    /// A host's disks are slower by this factor.
    Slow(usize, u64),
    /// An administrator.
    Admin(usize, Cmd),
}

/// A run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// Sizes and seed.
    pub cfg: Config,
    /// What happens, in the order of time.
    pub events: Vec<(u64, Action)>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.cfg;
        writeln!(
            f,
            "run seed={} hosts={} sectors={} small={} unit={} fs_unit={} ordered={} stale={} capacity={} rotate={} synced={}",
            c.seed, c.hosts, c.sectors, c.small, c.unit, c.fs_unit, u8::from(c.ordered), u8::from(c.stale), c.capacity, c.rotate, u8::from(c.synced)
        )?;
        for (ms, a) in &self.events {
            write!(f, "{ms} ")?;
            match a {
                Action::Write(kind, at, n, fua) => {
                    let kind = match kind {
                        Kind::Write => "write",
                        Kind::Zeroes => "zero",
                        Kind::Discard => "discard",
                    };
                    write!(f, "{kind} {at} {n}{}", if *fua { " fua" } else { "" })?
                }
                Action::Flush => write!(f, "flush")?,
                Action::Read(at) => write!(f, "read {at}")?,
                Action::Close(h) => write!(f, "close {h}")?,
                Action::Open => write!(f, "open")?,
                Action::Crash(h, Crash::Power, n) => write!(f, "power-cut {h} {n}")?,
                Action::Crash(h, Crash::Kernel, n) => write!(f, "kernel-crash {h} {n}")?,
                Action::Boot(h) => write!(f, "boot {h}")?,
                Action::Cut(a, b) => write!(f, "cut {a} {b}")?,
                Action::Mend(a, b) => write!(f, "mend {a} {b}")?,
                Action::Reset(a, b) => write!(f, "reset {a} {b}")?,
                Action::Delay(d) => write!(f, "delay {d}")?,
                Action::Clock(h, d) => write!(f, "clock {h} {d}")?,
                Action::Drift(h, d) => write!(f, "drift {h} {d}")?,
                Action::Flip(h, n) => write!(f, "flip {h} {n}")?,
                Action::FsFault(h, n) => write!(f, "fs-fault {h} {n}")?,
                Action::SyncFault(h, n) => write!(f, "sync-fault {h} {n}")?,
                Action::DiskFault(h, n) => write!(f, "disk-fault {h} {n}")?,
                Action::FlushFault(h, n) => write!(f, "flush-fault {h} {n}")?,
                Action::Full(h, n) => write!(f, "full {h} {n}")?,
                Action::Room(h) => write!(f, "room {h}")?,
                Action::Slow(h, n) => write!(f, "slow {h} {n}")?,
                Action::Admin(h, cmd) => {
                    let name = NAMES.iter().find(|(c, _)| c == cmd).map_or("", |(_, n)| n);
                    write!(f, "{name} {h}")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Script {
    /// Reads a text; lines that begin with `#` are for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        let head = lines.next().ok_or("the script is empty")?;
        let field = |key: &str| -> Result<u64, String> {
            head.split_whitespace()
                .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
                .and_then(|v| v.parse().ok())
                .ok_or_else(|| format!("the first line has no {key}="))
        };
        let size = |key: &str| -> Result<usize, String> {
            usize::try_from(field(key)?).map_err(|e| e.to_string())
        };
        let cfg = Config {
            seed: field("seed")?,
            hosts: size("hosts")?,
            sectors: size("sectors")?,
            small: size("small").or_else(|_| size("sectors"))?,
            unit: size("unit")?,
            fs_unit: size("fs_unit")?,
            ordered: field("ordered")? != 0,
            stale: field("stale")? != 0,
            capacity: size("capacity")?,
            rotate: field("rotate")?,
            synced: field("synced")? != 0,
        };
        let mut events = Vec::new();
        for line in lines {
            let event = parse_line(line).ok_or_else(|| format!("not understood: {line}"))?;
            events.push(event);
        }
        Ok(Self { cfg, events })
    }
}

fn parse_line(line: &str) -> Option<(u64, Action)> {
    let mut words = line.split_whitespace();
    let ms = words.next()?.parse().ok()?;
    let verb = words.next()?;
    let rest: Vec<&str> = words.collect();
    let num = |i: usize| -> Option<u64> { rest.get(i)?.parse().ok() };
    let int = |i: usize| -> Option<i64> { rest.get(i)?.parse().ok() };
    let host = |i: usize| -> Option<usize> { rest.get(i)?.parse().ok() };
    let action = match verb {
        "write" | "zero" | "discard" => {
            let kind = match verb {
                "zero" => Kind::Zeroes,
                "discard" => Kind::Discard,
                _ => Kind::Write,
            };
            Action::Write(kind, host(0)?, host(1)?, rest.get(2) == Some(&"fua"))
        }
        "flush" => Action::Flush,
        "read" => Action::Read(host(0)?),
        "close" => Action::Close(host(0)?),
        "open" => Action::Open,
        "power-cut" => Action::Crash(host(0)?, Crash::Power, num(1)?),
        "kernel-crash" => Action::Crash(host(0)?, Crash::Kernel, num(1)?),
        "boot" => Action::Boot(host(0)?),
        "cut" => Action::Cut(host(0)?, host(1)?),
        "mend" => Action::Mend(host(0)?, host(1)?),
        "reset" => Action::Reset(host(0)?, host(1)?),
        "delay" => Action::Delay(num(0)?),
        "clock" => Action::Clock(host(0)?, int(1)?),
        "drift" => Action::Drift(host(0)?, int(1)?),
        "flip" => Action::Flip(host(0)?, num(1)?),
        "fs-fault" => Action::FsFault(host(0)?, num(1)?),
        "sync-fault" => Action::SyncFault(host(0)?, num(1)?),
        "disk-fault" => Action::DiskFault(host(0)?, num(1)?),
        "flush-fault" => Action::FlushFault(host(0)?, num(1)?),
        "full" => Action::Full(host(0)?, host(1)?),
        "room" => Action::Room(host(0)?),
        "slow" => Action::Slow(host(0)?, num(1)?),
        _ => {
            let (cmd, _) = NAMES.iter().find(|(_, n)| *n == verb)?;
            Action::Admin(host(0)?, *cmd)
        }
    };
    Some((ms, action))
}

/// Which faults a run has.
#[derive(Clone, Copy)]
struct Mood {
    crashes: u64,
    net: u64,
    admin: u64,
    force: u64,
    media: u64,
    clocks: u64,
    /// `/mars` is full for a while.
    full: u64,
    /// Logs are let go.
    drops: u64,
}

/// Makes the script of a seed.
pub fn generate(seed: u64) -> Script {
    let rng = Rng::new(seed, 7777);
    let hosts = match rng.below(10) {
        0..=4 => 2,
        5..=7 => 3,
        8 => 4,
        _ => usize::try_from(rng.range(4, 7)).unwrap_or(4),
    };
    let unit = if rng.chance(1, 2) { 512 } else { 4096 };
    let cfg = Config {
        seed: rng.next() >> 16,
        hosts,
        sectors: usize::try_from(8 * rng.range(4, 16)).unwrap_or(64),
        small: 0,
        unit,
        fs_unit: if rng.chance(1, 2) { 512 } else { 4096 },
        ordered: rng.chance(3, 4),
        stale: rng.chance(1, 3),
        capacity: 4 << 20,
        rotate: *rng.pick(&[16 << 10, 24 << 10, 40 << 10, 1 << 20]),
        synced: rng.chance(2, 3),
    };
    let some = |n: u64| {
        if rng.chance(1, 2) {
            rng.below(n + 1)
        } else {
            0
        }
    };
    let mood = Mood {
        crashes: some(4),
        net: some(5),
        admin: some(5),
        force: if rng.chance(1, 4) { 1 } else { 0 },
        media: some(3),
        clocks: some(2),
        full: 0,
        drops: 0,
    };
    let length = rng.range(3_000, 15_000);
    let more = Rng::new(seed, 8888);
    let mood = Mood {
        full: if more.chance(1, 3) {
            more.range(1, 3)
        } else {
            0
        },
        drops: u64::from(more.chance(1, 6)),
        ..mood
    };
    let mut s = Script {
        cfg: Config {
            small: cfg.sectors,
            ..cfg
        },
        events: Vec::new(),
    };
    let maker = Maker { rng, length };
    maker.fill(&mut s, mood);
    let sizes = Rng::new(seed, 6666);
    if sizes.chance(1, 4) {
        maker.sizes(&mut s, &sizes);
    }
    let clock = Rng::new(seed, 9999);
    if clock.chance(1, 12) {
        // The battery of its clock is empty.
        let boots = s.events.iter().filter_map(|(ms, a)| match a {
            Action::Boot(h) => Some((ms.saturating_sub(1), Action::Clock(*h, -YEAR_MS))),
            _ => None,
        });
        let late: Vec<_> = boots.filter(|_| clock.chance(1, 2)).collect();
        s.events.extend(late);
    }
    let zeros = Rng::new(seed, 5555);
    if zeros.chance(1, 4) {
        for (_, action) in &mut s.events {
            let Action::Write(kind, _, n, _) = action else {
                continue;
            };
            if zeros.chance(1, 5) {
                *kind = *zeros.pick(&[Kind::Zeroes, Kind::Discard]);
                *n *= *zeros.pick(&[1, 1, 4, 20]);
            }
        }
    }
    s.events.sort_by_key(|(ms, _)| *ms);
    s
}

/// Much more than what the Lamport rules bear.
const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

struct Maker {
    rng: Rng,
    length: u64,
}

impl Maker {
    fn host(&self, s: &Script) -> usize {
        usize::try_from(self.rng.below(s.cfg.hosts as u64)).unwrap_or(0)
    }

    fn pair(&self, s: &Script) -> (usize, usize) {
        let a = self.host(s);
        let b = (a + 1 + usize::try_from(self.rng.below(s.cfg.hosts as u64 - 1)).unwrap_or(0))
            % s.cfg.hosts;
        (a, b)
    }

    fn at(&self) -> u64 {
        self.rng.range(200, self.length)
    }

    fn fill(&self, s: &mut Script, mood: Mood) {
        self.load(s);
        for _ in 0..mood.crashes {
            let (h, t) = (self.host(s), self.at());
            let how = if self.rng.chance(3, 4) {
                Crash::Power
            } else {
                Crash::Kernel
            };
            s.events
                .push((t, Action::Crash(h, how, self.rng.below(200))));
            s.events
                .push((t + self.rng.range(100, 5000), Action::Boot(h)));
        }
        for _ in 0..mood.net {
            self.trouble(s);
        }
        for _ in 0..mood.admin {
            self.command(s);
        }
        for _ in 0..mood.force {
            self.failover(s);
        }
        for _ in 0..mood.media {
            self.media(s);
        }
        for _ in 0..mood.clocks {
            let (h, t) = (self.host(s), self.at());
            let by = i64::try_from(self.rng.below(600_000)).unwrap_or(0) - 300_000;
            let a = if self.rng.chance(1, 2) {
                Action::Clock(h, by)
            } else {
                Action::Drift(h, by / 10)
            };
            s.events.push((t, a));
        }
        for _ in 0..mood.full {
            self.full(s);
        }
        for _ in 0..mood.drops {
            self.drop_logs(s);
        }
    }

    /// Applications: bursts, small regions that are rewritten often, flushes.
    fn load(&self, s: &mut Script) {
        let r = &self.rng;
        let sectors = s.cfg.sectors as u64;
        let hot = r.below(sectors);
        for _ in 0..r.range(1, 6) {
            let mut t = self.at();
            let gap = *r.pick(&[1, 5, 40, 200]);
            for _ in 0..r.range(3, 30) {
                let at = if r.chance(1, 3) {
                    (hot + r.below(4)) % sectors
                } else {
                    r.below(sectors)
                };
                let n = if s.cfg.unit == 4096 && r.chance(1, 2) {
                    8
                } else {
                    r.range(1, 8)
                };
                let at = if n == 8 { at & !7 } else { at };
                let small = |x: u64| usize::try_from(x).unwrap_or(0);
                s.events.push((
                    t,
                    Action::Write(Kind::Write, small(at), small(n), r.chance(1, 10)),
                ));
                if r.chance(1, 6) {
                    s.events.push((t + r.below(gap + 1), Action::Flush));
                }
                if r.chance(1, 8) {
                    s.events
                        .push((t + r.below(1000), Action::Read(small(r.below(sectors)))));
                }
                t += r.below(gap + 1);
            }
        }
    }

    /// `/mars` of the primary is full from one moment to another: applications go on meanwhile, and afterwards.
    fn full(&self, s: &mut Script) {
        let r = &self.rng;
        let h = if r.chance(2, 3) { 0 } else { self.host(s) };
        let t = self.at();
        let until = t + *r.pick(&[300, 2000, 5000, 9000]);
        let small = |x: u64| usize::try_from(x).unwrap_or(0);
        let free = if r.chance(1, 2) { 0 } else { r.below(12 << 10) };
        s.events.push((t, Action::Full(h, small(free))));
        s.events.push((until, Action::Room(h)));
        let sectors = s.cfg.sectors as u64;
        for _ in 0..r.range(4, 30) {
            let when = t + r.below(until - t + 5000);
            let write = Action::Write(
                Kind::Write,
                small(r.below(sectors)),
                small(r.range(1, 8)),
                r.chance(1, 8),
            );
            s.events.push((when, write));
            if r.chance(1, 5) {
                s.events.push((when + r.below(20), Action::Flush));
            }
        }
        if r.chance(1, 3) {
            let how = if r.chance(3, 4) {
                Crash::Power
            } else {
                Crash::Kernel
            };
            let when = t + r.below(until - t + 6000);
            s.events.push((when, Action::Crash(h, how, r.below(60))));
            s.events.push((when + r.range(100, 4000), Action::Boot(h)));
        }
    }

    /// The resource is smaller than the disks at first.
    fn sizes(&self, s: &mut Script, r: &Rng) {
        let units = s.cfg.sectors as u64 / 8;
        s.cfg.small = usize::try_from(8 * r.range(1, units - 1)).unwrap_or(8);
        if r.chance(1, 3) {
            self.void_size(s, r);
        }
        for _ in 0..r.range(1, 3) {
            let h = if r.chance(2, 3) {
                0
            } else {
                usize::try_from(r.below(s.cfg.hosts as u64)).unwrap_or(0)
            };
            let t = r.range(200, self.length);
            s.events.push((t, Action::Admin(h, Cmd::Resize)));
            if r.chance(1, 3) {
                self.amid_growth(s, r, t);
            }
            if r.chance(2, 3) {
                // The device has the new size when it is made anew.
                let t = t + r.range(100, 4000);
                s.events.push((t, Action::Close(h)));
                s.events.push((t + 50, Action::Admin(h, Cmd::Secondary)));
                let back = t + r.range(300, 2000);
                s.events.push((back, Action::Admin(h, Cmd::Primary)));
                s.events.push((back, Action::Open));
            }
        }
    }

    /// A failover to a replica that does not have yet what the resource has grown by.
    fn amid_growth(&self, s: &mut Script, r: &Rng, t: u64) {
        let h = usize::try_from(r.below(s.cfg.hosts as u64)).unwrap_or(0);
        let at = t + *r.pick(&[200, 600, 1200, 2500]) + r.below(600);
        if r.chance(1, 2) {
            s.events
                .push((t.saturating_sub(100), Action::Admin(h, Cmd::PauseSync)));
            if r.chance(1, 2) {
                s.events.push((at - 100, Action::Admin(h, Cmd::ResumeSync)));
            }
        } else {
            s.events.push((t, Action::Slow(h, *r.pick(&[5, 20, 60]))));
            s.events.push((at + 1000, Action::Slow(h, 1)));
        }
        if r.chance(1, 2) {
            s.events
                .push((at, Action::Crash(0, Crash::Power, r.below(400))));
            s.events.push((at + r.range(2000, 8000), Action::Boot(0)));
        }
        s.events.push((at, Action::Admin(h, Cmd::PauseFetch)));
        s.events
            .push((at + r.range(10, 1500), Action::Admin(h, Cmd::Force)));
    }

    /// A resize that a failover cuts off, and another one by the new primary.
    fn void_size(&self, s: &mut Script, r: &Rng) {
        let (p, t) = (0, r.range(200, self.length));
        let h = usize::try_from(r.range(1, s.cfg.hosts as u64 - 1)).unwrap_or(1);
        for x in 1..s.cfg.hosts {
            s.events.push((t, Action::Cut(p, x)));
            let mend = if r.chance(1, 3) {
                r.range(200, 1000)
            } else {
                3000
            };
            s.events.push((t + mend, Action::Mend(p, x)));
        }
        let when = *r.pick(&[50, 500, 2000, 2800]);
        s.events.push((t + when, Action::Admin(p, Cmd::Resize)));
        if r.chance(1, 2) {
            s.events.push((t + 50, Action::Close(p)));
        }
        if r.chance(1, 2) {
            let n = r.below(400);
            s.events.push((t + 100, Action::Crash(p, Crash::Power, n)));
            s.events.push((t + r.range(1000, 6000), Action::Boot(p)));
        }
        s.events.push((t + 200, Action::Admin(h, Cmd::PauseFetch)));
        s.events
            .push((t + r.range(900, 2500), Action::Admin(h, Cmd::Force)));
        let again = t + r.range(3000, 12_000);
        s.events
            .push((again - 200, Action::Admin(h, Cmd::ResumeFetch)));
        s.events.push((again, Action::Admin(h, Cmd::Resize)));
        s.events.push((again + 200, Action::Open));
    }

    /// A replica is away while logs are rotated, and let go.
    fn drop_logs(&self, s: &mut Script) {
        let r = &self.rng;
        let (h, t) = (self.host(s), self.at());
        let p = if r.chance(3, 4) { 0 } else { self.host(s) };
        let back = t + r.range(2000, 9000);
        match r.below(3) {
            0 => {
                s.events.push((t, Action::Admin(h, Cmd::PauseFetch)));
                s.events.push((back, Action::Admin(h, Cmd::ResumeFetch)));
            }
            1 => {
                s.events.push((t, Action::Admin(h, Cmd::PauseReplay)));
                s.events.push((back, Action::Admin(h, Cmd::ResumeReplay)));
            }
            _ => {
                s.events
                    .push((t, Action::Crash(h, Crash::Power, r.below(50))));
                s.events.push((back, Action::Boot(h)));
            }
        }
        let mut at = t + 100;
        for _ in 0..r.range(1, 4) {
            let small = |x: u64| usize::try_from(x).unwrap_or(0);
            for _ in 0..r.range(1, 8) {
                let sector = small(r.below(s.cfg.sectors as u64));
                let write = Action::Write(Kind::Write, sector, small(r.range(1, 8)), false);
                s.events.push((at + r.below(300), write));
            }
            at += 400;
            s.events.push((at, Action::Admin(p, Cmd::Rotate)));
            at += r.range(200, 1200);
        }
        s.events.push((at, Action::Admin(p, Cmd::Drop)));
        if r.chance(1, 3) {
            let when = at + r.below(3000);
            let who = if r.chance(1, 2) { p } else { h };
            s.events
                .push((when, Action::Crash(who, Crash::Power, r.below(60))));
            s.events
                .push((when + r.range(100, 4000), Action::Boot(who)));
        }
    }

    fn trouble(&self, s: &mut Script) {
        let r = &self.rng;
        let (a, b) = self.pair(s);
        let t = self.at();
        let until = t + *r.pick(&[100, 1000, 4000, 12_000]);
        match r.below(6) {
            0 | 1 => {
                for (x, y) in [(a, b), (b, a)] {
                    s.events.push((t, Action::Cut(x, y)));
                    s.events.push((until, Action::Mend(x, y)));
                }
            }
            2 => {
                s.events.push((t, Action::Cut(a, b)));
                s.events.push((until, Action::Mend(a, b)));
            }
            3 | 4 => {
                for _ in 0..r.range(1, 4) {
                    s.events.push((t + r.below(2000), Action::Reset(a, b)));
                }
            }
            _ => {
                s.events.push((t, Action::Delay(*r.pick(&[10, 60, 300]))));
                s.events.push((until, Action::Delay(1)));
            }
        }
    }

    fn command(&self, s: &mut Script) {
        let r = &self.rng;
        let (h, t) = (self.host(s), self.at());
        let back = t + r.range(200, 5000);
        let pair = |s: &mut Script, a, b| {
            s.events.push((t, Action::Admin(h, a)));
            s.events.push((back, Action::Admin(h, b)));
        };
        match r.below(14) {
            0..=2 => self.handover(s, h, t),
            3 => pair(s, Cmd::PauseFetch, Cmd::ResumeFetch),
            4 => pair(s, Cmd::PauseReplay, Cmd::ResumeReplay),
            5 => pair(s, Cmd::PauseSync, Cmd::ResumeSync),
            6 => pair(s, Cmd::Detach, Cmd::Attach),
            7 => pair(s, Cmd::Down, Cmd::Up),
            8 => {
                for _ in 0..r.range(1, 4) {
                    for h in 0..s.cfg.hosts {
                        s.events
                            .push((t + r.below(4000), Action::Admin(h, Cmd::Rotate)));
                    }
                }
            }
            9 => {
                for h in 0..s.cfg.hosts {
                    s.events
                        .push((t + r.below(300), Action::Admin(h, Cmd::Rotate)));
                }
                s.events
                    .push((t + r.range(300, 4000), Action::Admin(h, Cmd::Delete)));
            }
            10 => s.events.push((t, Action::Admin(h, Cmd::Invalidate))),
            11 => pair(s, Cmd::Leave, Cmd::Join),
            12 => {
                s.events.push((t, Action::Close(h)));
                s.events.push((t + 50, Action::Admin(h, Cmd::Reload)));
                s.events.push((back, Action::Open));
            }
            _ => {
                s.events.push((t, Action::Close(h)));
                s.events.push((t + 50, Action::Admin(h, Cmd::Secondary)));
                s.events.push((back, Action::Admin(h, Cmd::Primary)));
                s.events.push((back, Action::Open));
            }
        }
    }

    fn handover(&self, s: &mut Script, h: usize, t: u64) {
        for x in 0..s.cfg.hosts {
            if self.rng.chance(9, 10) {
                s.events.push((t, Action::Close(x)));
            }
        }
        s.events.push((t + 100, Action::Admin(h, Cmd::Primary)));
        s.events
            .push((t + self.rng.range(1000, 4000), Action::Open));
    }

    fn failover(&self, s: &mut Script) {
        let (h, t) = (self.host(s), self.at());
        if self.rng.chance(1, 2) {
            for x in (0..s.cfg.hosts).filter(|x| *x != h) {
                if self.rng.chance(2, 3) {
                    let n = self.rng.below(50);
                    s.events.push((t, Action::Crash(x, Crash::Power, n)));
                    let back = t + self.rng.range(2000, 9000);
                    s.events.push((back, Action::Boot(x)));
                }
            }
        }
        s.events.push((t + 200, Action::Admin(h, Cmd::PauseFetch)));
        let later = t + self.rng.range(1200, 3000);
        s.events.push((later, Action::Admin(h, Cmd::Force)));
    }

    fn media(&self, s: &mut Script) {
        let r = &self.rng;
        let (h, t) = (self.host(s), self.at());
        let until = t + r.range(200, 4000);
        let rate = *r.pick(&[4, 32, 128, 256]);
        match r.below(8) {
            0 | 1 => s.events.push((t, Action::Flip(h, r.next() >> 20))),
            2 => {
                s.events.push((t, Action::FsFault(h, rate)));
                s.events.push((until, Action::FsFault(h, 0)));
            }
            3 => {
                s.events.push((t, Action::SyncFault(h, rate)));
                s.events.push((until, Action::SyncFault(h, 0)));
                if r.chance(1, 3) {
                    let when = t + r.below(until - t + 2000);
                    s.events.push((when, Action::Admin(h, Cmd::Reload)));
                }
            }
            4 => {
                s.events.push((t, Action::DiskFault(h, rate)));
                s.events.push((until, Action::DiskFault(h, 0)));
            }
            5 => {
                s.events.push((t, Action::FlushFault(h, rate)));
                s.events.push((until, Action::FlushFault(h, 0)));
                // Its cache may be lost while it still shows it.
                for cmd in [Cmd::Invalidate, Cmd::Reload] {
                    if r.chance(1, 3) {
                        s.events
                            .push((t + r.below(until - t + 2000), Action::Admin(h, cmd)));
                    }
                }
            }
            6 => {
                let free = usize::try_from(r.below(16 << 10)).unwrap_or(0);
                s.events.push((t, Action::Full(h, free)));
                s.events.push((until, Action::Room(h)));
            }
            _ => {
                s.events.push((t, Action::Slow(h, *r.pick(&[5, 20]))));
                s.events.push((until, Action::Slow(h, 1)));
            }
        }
    }
}
