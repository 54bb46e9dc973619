// SPDX-License-Identifier: GPL-2.0-or-later

//! Administrators: what the commands of `marsadm` look at, refuse, and write, in which order (`userspace/marsadm/src/cmd`).
//!
//! They read the links on the disk of their host, not the module's memory, and write there, too.

use crate::{
    defects::on,
    exec::{Ns, MS, SEC},
    fs::{Errno, Node, Res},
    host::Host,
    truth::SECTOR,
    world::{Sim, DIR},
};
use mars_core::{
    dirty::DroppedLink,
    lamport::{check_future, LamportTime},
    log::{LogName, VersionLink},
    name::Name,
    split_brain::{compare, Relation},
    succession::{is_synced, is_void_growth, undecided, whole_part},
    tree::value::{LogPosLink, ReplayLink},
};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cmd {
    Primary,
    Force,
    Secondary,
    Up,
    Down,
    Attach,
    Detach,
    PauseFetch,
    ResumeFetch,
    PauseReplay,
    ResumeReplay,
    PauseSync,
    ResumeSync,
    Invalidate,
    Join,
    Leave,
    Rotate,
    Delete,
    Drop,
    Reload,
    Resize,
}

/// Their names in scripts.
pub const NAMES: [(Cmd, &str); 21] = [
    (Cmd::Primary, "primary"),
    (Cmd::Force, "primary-force"),
    (Cmd::Secondary, "secondary"),
    (Cmd::Up, "up"),
    (Cmd::Down, "down"),
    (Cmd::Attach, "attach"),
    (Cmd::Detach, "detach"),
    (Cmd::PauseFetch, "pause-fetch"),
    (Cmd::ResumeFetch, "resume-fetch"),
    (Cmd::PauseReplay, "pause-replay"),
    (Cmd::ResumeReplay, "resume-replay"),
    (Cmd::PauseSync, "pause-sync"),
    (Cmd::ResumeSync, "resume-sync"),
    (Cmd::Invalidate, "invalidate"),
    (Cmd::Join, "join"),
    (Cmd::Leave, "leave"),
    (Cmd::Rotate, "log-rotate"),
    (Cmd::Delete, "log-delete"),
    (Cmd::Drop, "log-drop"),
    (Cmd::Reload, "reload"),
    (Cmd::Resize, "resize"),
];

const TIMEOUT: Ns = 25 * SEC;
/// Sectors of the smallest part by which a resource grows.
const UNIT: usize = 8;
const POLL: Ns = 200 * MS;

/// One command at its work.
struct Ctx {
    h: Rc<Host>,
    last: Cell<LamportTime>,
    until: Ns,
}

/// Runs a command on a host. An error means that it was refused or has failed, as it would tell its administrator.
pub async fn run(h: Rc<Host>, cmd: Cmd) {
    let c = Ctx {
        last: Cell::new(LamportTime::ZERO),
        until: h.ex.now() + TIMEOUT,
        h: h.clone(),
    };
    h.say(|| format!("marsadm {cmd:?}"));
    let locks = matches!(
        cmd,
        Cmd::Primary
            | Cmd::Force
            | Cmd::Invalidate
            | Cmd::Join
            | Cmd::Leave
            | Cmd::Drop
            | Cmd::Resize
    );
    let r = if locks && h.admin_works.replace(true) {
        Err("another command works on the resource")
    } else {
        let r = c.run(cmd).await;
        if locks {
            h.admin_works.set(false);
        }
        r
    };
    h.say(|| format!("marsadm {cmd:?}: {r:?}"));
}

type Done = Result<(), &'static str>;

impl From<Errno> for &'static str {
    fn from(_: Errno) -> Self {
        "input or output failed"
    }
}

/// The links of the resource as they stand on the disk of a host.
pub struct View {
    links: BTreeMap<String, String>,
    logs: Vec<(LogName, usize)>,
}

impl View {
    /// Reads them.
    pub fn new(sim: &Sim, i: usize) -> Self {
        let fs = sim.machines[i].fs.borrow();
        let mut links = BTreeMap::new();
        let mut logs = Vec::new();
        for (path, node) in fs.names() {
            let Some(key) = path.strip_prefix("resource-r/") else {
                continue;
            };
            match node {
                Node::Link(v, _) if v != ".deleted" => {
                    links.insert(key.to_owned(), v.clone());
                }
                Node::Link(..) => (),
                Node::File(ino) => {
                    logs.extend(LogName::parse(key.as_bytes()).map(|l| (l, fs.size(*ino))));
                }
            }
        }
        Self { links, logs }
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.links.get(key).map(String::as_str)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    pub fn designated(&self) -> Option<Name> {
        Name::new(self.get("primary")?.as_bytes())
    }

    pub fn members(&self) -> Vec<Name> {
        self.links
            .keys()
            .filter_map(|k| Name::new(k.strip_prefix("data-")?.as_bytes()))
            .collect()
    }

    pub fn replay(&self, host: &Name) -> Option<ReplayLink> {
        ReplayLink::parse(self.get(&format!("replay-{host}"))?.as_bytes())
    }

    pub fn history(&self, host: &Name) -> Vec<VersionLink> {
        let suffix = format!("-{host}");
        self.links
            .iter()
            .filter(|(k, _)| k.starts_with("version-") && k.ends_with(&suffix))
            .filter_map(|(_, v)| VersionLink::parse(v.as_bytes()))
            .collect()
    }

    pub fn synced(&self, host: &Name) -> bool {
        let number = |key: &str| self.get(key)?.parse().ok();
        let from = self.get(&format!("syncfrom-{host}"));
        is_synced(
            number(&format!("syncstatus-{host}")),
            number("size"),
            from.map(str::as_bytes),
        )
    }

    /// What the disk of a host had before the resource grew, while what that has brought is copied.
    fn size_before_resize(&self, host: &Name) -> Option<u64> {
        let link = |key: String| ReplayLink::parse(self.get(&key)?.as_bytes());
        let at = |l: ReplayLink| (l.log.number, l.pos);
        let need = link(format!("syncpos-{host}"));
        let fetched = self
            .get(&format!("actual-{host}/fetch-pos"))
            .and_then(|v| LogPosLink::parse(v.as_bytes()));
        let have = self
            .replay(host)
            .map(at)
            .max(fetched.map(|l| (l.log.number, l.pos)));
        let reachable = need.is_some_and(|n| have.is_some_and(|h| h >= at(n)));
        if self.good(host) || self.synced(host) && reachable {
            return None;
        }
        let number = |key: &str| self.get(key)?.parse().ok();
        let done = number(&format!("syncstatus-{host}"))?;
        let size: u64 = number("size")?;
        let from = self.get(&format!("syncfrom-{host}"))?;
        whole_part(from.as_bytes(), done).filter(|whole| *whole < size)
    }

    pub fn good(&self, host: &Name) -> bool {
        let syncpos = self
            .get(&format!("syncpos-{host}"))
            .and_then(|v| ReplayLink::parse(v.as_bytes()));
        let at = |l: ReplayLink| (l.log.number, l.pos);
        let number = |key: &str| self.get(key)?.parse().ok();
        let from = self.get(&format!("syncfrom-{host}")).map(str::as_bytes);
        if is_void_growth(number(&format!("syncstatus-{host}")), number("size"), from) {
            return true;
        }
        self.synced(host)
            && match (syncpos, self.replay(host)) {
                (Some(need), Some(have)) => at(have) >= at(need),
                _ => true,
            }
    }

    pub fn state(&self, host: &Name) -> &str {
        self.get(&format!("actual-{host}/state")).unwrap_or("")
    }

    pub fn is_primary(&self, host: &Name) -> bool {
        self.flag(&format!("actual-{host}/is-primary"))
    }

    /// It does not log, or is about not to.
    pub fn emergency(&self, host: &Name) -> bool {
        self.flag(&format!("actual-{host}/is-emergency"))
            || self.flag(&format!("actual-{host}/has-emergency"))
    }

    /// It has written what no log has, and only it can end that.
    fn has_gap(&self, host: &Name) -> bool {
        self.flag(&format!("actual-{host}/has-gap"))
    }

    fn end_of(&self, host: &Name) -> Option<(LogName, u64)> {
        let log_end = self
            .get(&format!("actual-{host}/log-end"))
            .and_then(|v| LogPosLink::parse(v.as_bytes()))
            .map(|l| (l.log, l.pos));
        self.end_with(host, log_end)
    }

    fn end_with(&self, host: &Name, log_end: Option<(LogName, u64)>) -> Option<(LogName, u64)> {
        let replay = self.replay(host)?;
        let newest = self.history(host).last().map(|v| (v.this.log, v.this.pos));
        [Some((replay.log, replay.pos)), newest, log_end]
            .into_iter()
            .flatten()
            .filter(|p| p.0.number != replay.log.number || p.0 == replay.log)
            .reduce(|a, b| {
                if (b.0.number, b.1) > (a.0.number, a.1) {
                    b
                } else {
                    a
                }
            })
    }

    /// Whether `me` has what no other member has, while others are left that would need it.
    fn is_last_copy(&self, me: &Name) -> bool {
        let others: Vec<Name> = self.members().into_iter().filter(|m| m != me).collect();
        let (Some(end), true) = (self.end_of(me), self.good(me) && !others.is_empty()) else {
            return false;
        };
        let has_it = |m: &Name| {
            let stuck = matches!(
                self.state(m),
                "defective-log" | "split-brain" | "disk-error"
            );
            let has_all = self
                .replay(m)
                .is_some_and(|r| crate::host::reach(&r, &end.0, end.1));
            self.good(m) && !stuck && has_all
        };
        // Who is to become primary may yet need something for that, unless it was and is in a log of its own; once it is, its
        // word is all that counts.
        match self.designated().filter(|p| others.contains(p)) {
            Some(p) => {
                let own_log = self.replay(&p).is_some_and(|r| r.log.creator == p);
                !(self.is_primary(&p) || own_log && has_it(&p))
            }
            None => !others.iter().any(has_it),
        }
    }

    pub fn diverged(&self) -> Vec<(Name, Name)> {
        let members: Vec<Name> = self
            .members()
            .into_iter()
            .filter(|m| self.replay(m).is_some())
            .collect();
        let mut out = Vec::new();
        for (i, a) in members.iter().enumerate() {
            for b in &members[i + 1..] {
                if matches!(
                    compare(&self.history(a), &self.history(b)),
                    Relation::Diverged(_)
                ) {
                    out.push((*a, *b));
                }
            }
        }
        out
    }
}

impl Ctx {
    fn view(&self) -> View {
        View::new(&self.h.sim, self.h.i)
    }

    fn now(&self) -> LamportTime {
        self.h.lamport().max(self.last.get())
    }

    async fn write(&self, path: &str, value: &str, weak: bool) -> Res<()> {
        self.h.fs_io().await?;
        let m = self.h.machine();
        let old =
            m.fs.borrow()
                .link(path)
                .map_or(LamportTime::ZERO, |(_, t)| t);
        let now = self.now();
        let stamp = if weak {
            LamportTime::weak(old, now, self.h.me.as_bytes())
        } else {
            now.max(old.next())
        };
        self.last.set(self.last.get().max(stamp));
        let r = m.fs.borrow_mut().put_link(path, value, stamp);
        r
    }

    async fn set(&self, key: &str, value: &str) -> Res<()> {
        self.write(&format!("{DIR}/{key}"), value, false).await
    }

    /// What is here from a time when the clock was far ahead does not make it later.
    async fn decide(&self, key: &str, value: &str) -> Res<()> {
        let path = format!("{DIR}/{key}");
        let far = {
            let m = self.h.machine();
            let fs = m.fs.borrow();
            fs.link(&path)
                .is_some_and(|(_, t)| check_future(t, self.h.real()).is_err())
        };
        let old = self.h.sim.size_stamp(self.h.i);
        if !far {
            self.set(key, value).await?;
        } else {
            self.h.fs_io().await?;
            let now = self.now();
            self.last.set(self.last.get().max(now));
            let m = self.h.machine();
            m.fs.borrow_mut().put_link(&path, value, now)?;
        }
        if key == "size" {
            let new = self.h.sim.size_stamp(self.h.i);
            self.h.sim.truth.borrow_mut().restamp(old, new);
        }
        Ok(())
    }

    async fn ensure(&self, key: &str, value: &str) -> Res<()> {
        if self.view().get(key) == Some(value) {
            return Ok(());
        }
        self.set(key, value).await
    }

    async fn delete(&self, key: &str) -> Res<()> {
        let path = format!("{DIR}/{key}");
        let there = match self.h.machine().fs.borrow().node(&path) {
            None => false,
            Some(Node::Link(v, _)) => v != ".deleted",
            Some(Node::File(_)) => true,
        };
        if there {
            self.set(key, ".deleted").await?;
        }
        Ok(())
    }

    async fn barrier(&self) -> Res<()> {
        self.h.sync_dir().await
    }

    async fn trigger(&self) -> Res<()> {
        self.barrier().await?;
        self.h.cluster_kick.signal(&self.h.ex);
        Ok(())
    }

    async fn switch(&self, key: &str, on: bool) -> Res<()> {
        let key = format!("todo-{}/{key}", self.h.me);
        self.ensure(&key, if on { "1" } else { "0" }).await
    }

    /// Waits until `f` says so; an error of it ends the waiting.
    async fn wait(&self, mut f: impl FnMut(&View) -> Result<bool, &'static str>) -> Done {
        let mut nudge = self.h.ex.now();
        loop {
            if f(&self.view())? {
                return Ok(());
            }
            if self.h.ex.now() >= self.until {
                return Err("the time is over");
            }
            if self.h.ex.now() > nudge + 2 * SEC {
                nudge = self.h.ex.now();
                self.h.cluster_kick.signal(&self.h.ex);
            }
            self.h.sleep(POLL).await;
        }
    }

    /// Waits until a peer has said something that is newer than this moment.
    async fn ping(&self, peer: &Name) -> Done {
        let start = self.now();
        self.trigger().await?;
        let path = format!("actual-{peer}/time");
        let until = self.h.ex.now() + 10 * SEC;
        loop {
            let heard = {
                let fs = self.h.machine().fs.borrow();
                let t = fs
                    .link(&path)
                    .and_then(|(v, _)| LamportTime::parse(v.as_bytes()));
                t.is_some_and(|t| t > start)
            };
            if heard {
                return Ok(());
            }
            if self.h.ex.now() >= until {
                return Err("the peer does not answer");
            }
            self.h.sleep(POLL).await;
        }
    }

    async fn run(&self, cmd: Cmd) -> Done {
        let v = self.view();
        let me = self.h.me;
        if !matches!(cmd, Cmd::Join | Cmd::Reload) && !v.members().contains(&me) {
            return Err("this host is no member");
        }
        let switch = |key, on| async move {
            self.switch(key, on).await?;
            Ok::<(), &'static str>(self.trigger().await?)
        };
        match cmd {
            Cmd::Primary => self.primary(false).await,
            Cmd::Force => {
                self.h.sim.forced.set(true);
                self.h.sim.force(self.h.i);
                self.primary(true).await
            }
            Cmd::Secondary => self.secondary(&v).await,
            Cmd::Up => self.all(true).await,
            Cmd::Down => self.down(&v).await,
            Cmd::Attach => switch("attach", true).await,
            Cmd::Detach => {
                self.need_not_open(&v)?;
                switch("attach", false).await
            }
            Cmd::PauseFetch => switch("connect", false).await,
            Cmd::ResumeFetch => switch("connect", true).await,
            Cmd::PauseReplay => switch("allow-replay", false).await,
            Cmd::ResumeReplay => switch("allow-replay", true).await,
            Cmd::PauseSync => switch("sync", false).await,
            Cmd::ResumeSync => switch("sync", true).await,
            Cmd::Invalidate => self.invalidate(&v).await,
            Cmd::Join => self.join(&v).await,
            Cmd::Leave => self.leave(&v).await,
            Cmd::Rotate => self.rotate(&v).await,
            Cmd::Delete => self.delete_old(&v, None).await,
            Cmd::Drop => self.drop_logs(&v).await,
            Cmd::Reload => self.reload().await,
            Cmd::Resize => self.resize(&v).await,
        }
    }

    fn need_not_open(&self, v: &View) -> Done {
        if v.flag(&format!("actual-{}/open-count", self.h.me)) {
            return Err("the device is open");
        }
        Ok(())
    }

    async fn all(&self, on: bool) -> Done {
        for key in ["attach", "connect", "sync", "allow-replay"] {
            self.switch(key, on).await?;
        }
        Ok(self.trigger().await?)
    }

    async fn down(&self, v: &View) -> Done {
        self.need_not_open(v)?;
        self.all(false).await?;
        let key = format!("actual-{}/is-attached", self.h.me);
        self.wait(|v| Ok(!v.flag(&key))).await
    }

    fn old_primary(&self, v: &View) -> Option<Name> {
        let me = self.h.me;
        let other = |n: &Name| *n != me && v.members().contains(n);
        let actual = || {
            v.members()
                .into_iter()
                .find(|m| v.is_primary(m) && *m != me)
        };
        let last = || Name::new(v.get("userspace/last-primary")?.as_bytes());
        v.designated()
            .filter(|n| *n != me)
            .or_else(actual)
            .or_else(|| last().filter(|n| *n != me))
            .filter(other)
    }

    async fn primary(&self, force: bool) -> Done {
        let v = self.view();
        let me = self.h.me;
        if v.designated() == Some(me) && v.is_primary(&me) {
            return self.all(true).await;
        }
        if !v.good(&me) && (!force || v.size_before_resize(&me).is_none()) {
            return Err("the replica is incomplete or not consistent");
        }
        if v.flag(&format!("actual-{me}/is-late")) {
            return Err("the clock of a member is far ahead");
        }
        let old = self.old_primary(&v);
        if force {
            if v.flag(&format!("todo-{me}/connect")) && v.designated() != Some(me) {
                return Err("fetching must be off");
            }
            if !v.flag(&format!("todo-{me}/attach")) || !v.flag(&format!("todo-{me}/allow-replay"))
            {
                return Err("attach and replay must be on");
            }
            let key = format!("actual-{me}/is-copying");
            self.wait(|v| Ok(!v.flag(&key))).await?;
            let v = self.view();
            if let Some(before) = v.size_before_resize(&me) {
                let before = before.to_string();
                self.h.say(|| format!("goes back to the size {before}"));
                self.decide("size", &before).await?;
                return self.become_primary(force).await;
            }
            if !v.good(&me) {
                return Err("meanwhile the replica has become incomplete");
            }
            // A resize that this host has not heard of is cut off with all else.
            if let Some(size) = v.get("size") {
                self.decide("size", size).await?;
            }
            return self.become_primary(force).await;
        }
        if v.designated() == Some(me) {
            return self.become_primary(force).await;
        }
        if let Some(old) = &old {
            let _ = self.ping(old).await;
        }
        let v = self.view();
        self.preconditions(&v, old.as_ref())?;
        if let Some(old) = &old {
            self.caught_up(old, None).await?;
        }
        let v = self.view();
        if v.designated().is_some_and(|d| d != me && Some(d) != old) {
            return Err("meanwhile another host was made primary");
        }
        if !v.good(&me) {
            return Err("meanwhile the replica has become incomplete");
        }
        let had = old.filter(|o| v.is_primary(o) || v.designated() == Some(*o));
        let rival = self.claimant(&v);
        let claim = self.claim().await?;
        let mut heard = match &old {
            Some(old) => self.caught_up(old, Some(claim)).await,
            None => Ok(()),
        };
        if heard.is_ok() && !on("handover-unheard") {
            heard = self.heard(claim, rival).await;
        }
        if heard.is_ok() && !self.view().good(&me) {
            heard = Err("meanwhile the replica has become incomplete");
        }
        if let Err(e) = heard {
            if let Some(old) = had.filter(|_| self.claimed() == Some(claim)) {
                self.write(&format!("{DIR}/primary"), old.as_str(), true)
                    .await?;
                self.trigger().await?;
            }
            return Err(e);
        }
        if self.view().designated().is_some_and(|d| d != me) {
            return Err("meanwhile another host was made primary");
        }
        self.become_primary(force).await
    }

    /// Takes the role away from whoever has it. Gives the time of this, which tells it from what others do.
    async fn claim(&self) -> Result<LamportTime, &'static str> {
        self.ensure("claimed-by", self.h.me.as_str()).await?;
        let path = format!("{DIR}/primary");
        self.write(&path, "(none)", true).await?;
        self.trigger().await?;
        self.claimed().ok_or("the link is gone")
    }

    /// When it was written last who is designated.
    fn claimed(&self) -> Option<LamportTime> {
        let path = format!("{DIR}/primary");
        let fs = self.h.machine().fs.borrow();
        fs.link(&path).map(|(_, stamp)| stamp)
    }

    /// Waits until each host that answers has seen `claim`, and none is primary or has more than this one. Before that, one
    /// may be just becoming primary.
    /// The other host that is taking the role while nobody is designated.
    fn claimant(&self, v: &View) -> Option<Name> {
        let by = Name::new(v.get("claimed-by")?.as_bytes())?;
        let other = by != self.h.me && v.members().contains(&by);
        (other && v.designated().is_none() && !on("claim-ignored")).then_some(by)
    }

    async fn heard(&self, claim: LamportTime, rival: Option<Name>) -> Done {
        let me = self.h.me;
        self.wait(|v| {
            if self.claimed() != Some(claim) {
                return Err("meanwhile another host was made primary, or wants to be");
            }
            if v.members()
                .iter()
                .any(|m| *m != me && v.has_gap(m) && self.h.is_alive(m))
            {
                return Err("another host has written what no log has");
            }
            let have = v.replay(&me);
            Ok(v.members().iter().all(|m| {
                let seen = v.get(&format!("actual-{m}/primary-seen"));
                let has_all = match (&have, v.end_with(m, None)) {
                    // In a log of this very host, another one has nothing that is not here.
                    (Some(have), Some(end)) if end.0.creator != me => {
                        crate::host::reach(have, &end.0, end.1)
                    }
                    _ => true,
                };
                let calm = !v.is_primary(m) && has_all && seen == Some(&claim.to_string());
                *m == me || calm || !self.h.is_alive(m) && rival != Some(*m)
            }))
        })
        .await
    }

    fn preconditions(&self, v: &View, old: Option<&Name>) -> Done {
        let me = self.h.me;
        if !v.diverged().is_empty() {
            return Err("split brain");
        }
        for key in ["attach", "connect", "allow-replay"] {
            if !v.flag(&format!("todo-{me}/{key}")) {
                return Err("switches are off");
            }
        }
        if matches!(v.state(&me), "split-brain" | "defective-log" | "disk-error") {
            return Err("this replica is stuck");
        }
        if v.emergency(&me) {
            return Err("this host is in emergency mode");
        }
        if v.members()
            .iter()
            .any(|m| v.is_primary(m) && *m != me && Some(m) != old)
        {
            return Err("a third host is primary, too");
        }
        let rival = self.claimant(v);
        if rival.is_some_and(|h| !self.h.is_alive(&h)) {
            return Err("another host was taking the role, and does not answer");
        }
        let Some(old) = old else { return Ok(()) };
        if v.emergency(old) || v.has_gap(old) && !on("handover-unheard") {
            return Err("the old primary is in emergency mode");
        }
        if v.flag(&format!("actual-{old}/open-count")) {
            return Err("the device is open on the old primary");
        }
        let has_all = match (v.replay(&me), v.end_of(old)) {
            (Some(have), Some(end)) => crate::host::reach(&have, &end.0, end.1),
            _ => false,
        };
        let designated = v.designated() == Some(*old);
        if (designated || !has_all || v.is_primary(old)) && !self.h.is_alive(old) {
            return Err("the old primary does not answer");
        }
        Ok(())
    }

    async fn caught_up(&self, old: &Name, claim: Option<LamportTime>) -> Done {
        let me = self.h.me;
        let released = claim.is_some();
        self.wait(|v| {
            if !v.members().contains(old) {
                return Ok(true);
            }
            if !v.diverged().is_empty() {
                return Err("split brain");
            }
            if v.flag(&format!("actual-{old}/open-count")) && !released {
                return Err("the device is open on the old primary");
            }
            let (Some(have), Some(end)) = (v.replay(&me), v.end_of(old)) else {
                return Ok(false);
            };
            if !crate::host::reach(&have, &end.0, end.1) {
                return Ok(false);
            }
            if !released {
                return Ok(true);
            }
            let back = v
                .replay(old)
                .is_some_and(|r| crate::host::reach(&r, &end.0, end.1));
            Ok(!v.is_primary(old) && back)
        })
        .await
    }

    async fn become_primary(&self, force: bool) -> Done {
        let me = self.h.me;
        if force {
            // Also if it is said already: that may have been by a clock which was wrong.
            self.h.sim.force(self.h.i);
            self.decide("primary", me.as_str()).await?;
        } else if self.view().designated() != Some(me) {
            self.set("primary", me.as_str()).await?;
        }
        self.h.sim.designated.set(Some(me));
        self.ensure("userspace/last-primary", me.as_str()).await?;
        self.switch("attach", true).await?;
        self.trigger().await?;
        self.wait(|v| {
            if v.is_primary(&me) {
                return Ok(true);
            }
            if v.designated() != Some(me) {
                return Err("meanwhile another host was made primary");
            }
            Ok(false)
        })
        .await?;
        self.all(true).await
    }

    async fn secondary(&self, v: &View) -> Done {
        let me = self.h.me;
        if v.designated() == Some(me) || v.is_primary(&me) {
            self.need_not_open(v)?;
        }
        if v.designated() == Some(me) {
            self.ensure("claimed-by", "(none)").await?;
            self.set("primary", "(none)").await?;
        }
        self.trigger().await?;
        self.wait(|v| Ok(!v.is_primary(&me))).await
    }

    /// The designated primary, which must be primary: before that its history may still change.
    async fn source(&self, v: &View) -> Result<Name, &'static str> {
        let p = v.designated().ok_or("nobody is designated")?;
        if p == self.h.me {
            return Err("this host is the primary");
        }
        if !v.members().contains(&p) || v.replay(&p).is_none() {
            return Err("nothing is known of the primary");
        }
        if v.emergency(&p) {
            return Err("the primary is in emergency mode");
        }
        if !v.is_primary(&p) {
            // Perhaps the news have not arrived yet.
            let _ = self.ping(&p).await;
            if !self.view().is_primary(&p) {
                return Err("the designated primary is not primary");
            }
        }
        Ok(p)
    }

    async fn position(&self, primary: &Name) -> Done {
        let v = self.view();
        let me = self.h.me;
        let log = v.replay(primary).ok_or("no position")?.log;
        let mut needed = log.number.saturating_sub(1)..=log.number;
        let is_known = |n| v.get(&format!("version-{n:09}-{primary}")).is_some();
        if !needed.all(|n| n == 0 || is_known(n)) && !on("join-without-history") {
            return Err("the history of the primary is not known here");
        }
        self.set(&format!("syncstatus-{me}"), "0").await?;
        // Else a sync that an earlier life of this disk asked for would compare only a part of it.
        self.delete(&format!("gap-{me}")).await?;
        // Until the history is complete there is no position in it.
        self.delete(&format!("replay-{me}")).await?;
        // What an earlier attempt has copied of a log that was still written then would contradict what comes after it.
        let first = log.number.saturating_sub(1);
        for number in 0..=log.number {
            let own = format!("version-{number:09}-{me}");
            let theirs = v.get(&format!("version-{number:09}-{primary}"));
            if let Some(text) = theirs.filter(|_| self.view().get(&own).is_some()) {
                let text = text.to_owned();
                self.ensure(&own, &text).await?;
            }
        }
        self.barrier().await?;
        for number in first..=log.number {
            if let Some(text) = v.get(&format!("version-{number:09}-{primary}")) {
                let text = text.to_owned();
                self.ensure(&format!("version-{number:09}-{me}"), &text)
                    .await?;
            }
        }
        // The history first: without it, what follows would seem to be another one.
        self.barrier().await?;
        let start = ReplayLink {
            log,
            pos: 0,
            rest: 0,
        };
        self.h.machine().place.set(None);
        self.set(&format!("replay-{me}"), &start.to_string())
            .await?;
        self.set(&format!("syncstatus-{me}"), "0").await?;
        self.drop_versions(&[first, log.number]).await?;
        self.h.machine().place.set(None);
        Ok(())
    }

    async fn drop_versions(&self, keep: &[u32]) -> Res<()> {
        let suffix = format!("-{}", self.h.me);
        let v = self.view();
        for key in v.links.keys() {
            let number = key.strip_prefix("version-").and_then(|k| k.get(..9));
            let number = number.and_then(|n| n.parse::<u32>().ok());
            if number.is_some_and(|n| !keep.contains(&n)) && key.ends_with(&suffix) {
                self.delete(key).await?;
            }
        }
        Ok(())
    }

    async fn settle(&self, primary: &Name) -> Done {
        self.trigger().await?;
        for _ in 0..5 {
            let _ = self.ping(primary).await;
            let v = self.view();
            let number = |host: &Name| v.replay(host).map(|r| r.log.number);
            let Some(start) = number(&self.h.me) else {
                return Err("the replay link has vanished");
            };
            if number(primary).is_none_or(|n| n <= start) {
                return Ok(());
            }
            self.position(primary).await?;
            self.trigger().await?;
        }
        Err("logs are rotated faster than this host can join")
    }

    async fn purge_own_logs(&self) -> Res<()> {
        let v = self.view();
        let me = self.h.me;
        let mut needed = BTreeSet::new();
        for m in v.members().iter().filter(|m| **m != me) {
            needed.extend(v.replay(m).map(|r| r.log));
            for x in v.history(m) {
                needed.insert(x.this.log);
                needed.extend(x.previous.map(|p| p.log));
            }
        }
        for (log, _) in &v.logs {
            if log.creator == me && !needed.contains(log) {
                self.delete(&log.to_string()).await?;
            }
        }
        Ok(())
    }

    async fn invalidate(&self, v: &View) -> Done {
        let me = self.h.me;
        if v.designated() == Some(me) || v.is_primary(&me) {
            return Err("this host is the primary");
        }
        let primary = self.source(v).await?;
        if !self.h.is_alive(&primary) {
            return Err("the primary does not answer");
        }
        self.all(false).await?;
        let key = format!("actual-{me}/is-attached");
        self.wait(|v| Ok(!v.flag(&key))).await?;
        self.set(&format!("syncstatus-{me}"), "0").await?;
        for key in ["syncpos", "verifystatus"] {
            self.delete(&format!("{key}-{me}")).await?;
        }
        self.barrier().await?;
        self.delete(&format!("replay-{me}")).await?;
        // A position without the history before it would begin another one.
        self.barrier().await?;
        self.drop_versions(&[]).await?;
        self.purge_own_logs().await?;
        self.trigger().await?;
        let _ = self.ping(&primary).await;
        self.position(&primary).await?;
        self.settle(&primary).await?;
        self.all(true).await
    }

    async fn join(&self, v: &View) -> Done {
        let me = self.h.me;
        if v.members().contains(&me) {
            if v.replay(&me).is_some() {
                self.switch("attach", true).await?;
                return Ok(self.trigger().await?);
            }
            return Err("this host is a member already");
        }
        let primary = self.source(v).await?;
        if !self.h.is_alive(&primary) {
            return Err("the primary does not answer");
        }
        let current = v.replay(&primary).map_or(0, |r| r.log.number);
        let newer =
            |(l, size): &(LogName, usize)| l.creator == me && l.number >= current && *size > 0;
        if v.logs.iter().any(newer) {
            return Err("there are newer logs of this host");
        }
        self.switch("attach", false).await?;
        for key in ["connect", "sync", "allow-replay"] {
            self.switch(key, true).await?;
        }
        self.set(&format!("syncstatus-{me}"), "0").await?;
        self.delete(&format!("syncpos-{me}")).await?;
        self.position(&primary).await?;
        self.set(&format!("device-{me}"), "r").await?;
        self.set(&format!("data-{me}"), "/dev/disk").await?;
        self.settle(&primary).await?;
        self.switch("attach", true).await?;
        Ok(self.trigger().await?)
    }

    async fn leave(&self, v: &View) -> Done {
        let me = self.h.me;
        if v.designated() == Some(me) || v.is_primary(&me) {
            return Err("this host is the primary");
        }
        if v.is_last_copy(&me) {
            return Err("no other member has what is here");
        }
        self.down(v).await?;
        self.delete(&format!("data-{me}")).await?;
        self.barrier().await?;
        for key in [
            "syncstatus",
            "syncpos",
            "verifystatus",
            "replay",
            "syncfrom",
            "gap",
            "unflushed",
        ] {
            self.delete(&format!("{key}-{me}")).await?;
        }
        for key in ["attach", "connect", "sync", "allow-replay"] {
            self.delete(&format!("todo-{me}/{key}")).await?;
        }
        self.drop_versions(&[]).await?;
        for key in ["is-emergency", "has-emergency", "has-gap", "dropped-logs"] {
            self.delete(&format!("actual-{me}/{key}")).await?;
        }
        self.purge_own_logs().await?;
        // What was written without a log to a disk that does not belong to the resource any more.
        let map = format!("{DIR}/{}", crate::host::dirty::NAME);
        self.h.machine().fs.borrow_mut().unlink(&map);
        self.delete(&format!("device-{me}")).await?;
        self.h.machine().place.set(None);
        Ok(self.trigger().await?)
    }

    async fn rotate(&self, v: &View) -> Done {
        let me = self.h.me;
        if !v.is_primary(&me) {
            return Err("this host is not primary");
        }
        let newest = v.logs.iter().rev().find(|(l, _)| l.creator == me);
        let Some((newest, _)) = newest else {
            return Err("there is no log of this host");
        };
        let highest = v
            .members()
            .iter()
            .filter_map(|m| v.replay(m).map(|r| r.log.number))
            .chain(v.logs.iter().map(|(l, _)| l.number))
            .max();
        if highest != Some(newest.number) {
            return Err("there is a higher log elsewhere");
        }
        let next = LogName {
            number: newest.number + 1,
            creator: me,
        };
        self.h.fs_io().await?;
        let path = format!("{DIR}/{next}");
        self.h.machine().fs.borrow_mut().create(&path)?;
        let most = self.view().get("maxnr").and_then(|m| m.parse().ok());
        let most = most.unwrap_or(0).max(next.number);
        self.ensure("maxnr", &most.to_string()).await?;
        Ok(self.trigger().await?)
    }

    /// To a half of what the disks have more, at least by one unit. With `--force` where somebody is silent.
    async fn resize(&self, v: &View) -> Done {
        let (h, me) = (&self.h, self.h.me);
        let is_primary = |v: &View| v.is_primary(&me) && v.designated() == Some(me);
        if !is_primary(v) {
            return Err("this host is not primary");
        }
        let sectors = h.sim.cfg.sectors;
        let old = h.sim.sectors(h.i);
        let new = old + ((sectors - old) / 2).next_multiple_of(UNIT).max(UNIT);
        if new > sectors {
            return Err("it is as large as the disks");
        }
        let mut silent = Vec::new();
        for m in v.members().into_iter().filter(|m| *m != me) {
            if self.ping(&m).await.is_err() {
                silent.push(m);
            }
        }
        let v = self.view();
        if silent.iter().any(|m| v.is_primary(m)) {
            return Err("a silent host was primary");
        }
        if !is_primary(&v) || h.sim.sectors(h.i) != old {
            return Err("meanwhile another host was made primary");
        }
        if h.device_size() < h.size() {
            return Err("the size was decided elsewhere, and is void");
        }
        if h.number(&format!("unflushed-{me}")).unwrap_or(0) > 0 {
            return Err("a flush of the disk has failed");
        }
        for m in v.members().into_iter().filter(|m| *m != me) {
            let key = format!("syncstatus-{m}");
            let done = v.get(&key).and_then(|v| v.parse().ok());
            let was = Some((old * SECTOR) as u64);
            if silent.contains(&m) {
                // Also if that is said already.
                self.set(&key, ".deleted").await?;
            } else if undecided(done, was).is_some() {
                self.delete(&key).await?;
            }
        }
        let (bytes, before) = ((new * SECTOR).to_string(), (old * SECTOR).to_string());
        let own = format!("syncstatus-{me}");
        self.set(&own, &bytes).await?;
        self.barrier().await?;
        if !is_primary(&self.view()) || h.sim.sectors(h.i) != old {
            if self.view().get(&own) == Some(&bytes) {
                self.set(&own, &before).await?;
                self.trigger().await?;
            }
            return Err("meanwhile another host was made primary");
        }
        let place = h
            .progress
            .current()
            .and_then(|(log, end)| h.place(&log, end));
        let place = place.or_else(|| h.machine().place.get());
        let place = place.ok_or("the place of the primary is not known")?;
        self.set("size", &bytes).await?;
        {
            let disk = h.machine().disk.borrow();
            let mut truth = h.sim.truth.borrow_mut();
            truth.grows(h.sim.size_stamp(h.i), place, &disk, (old, new));
        }
        Ok(self.trigger().await?)
    }

    /// `log-delete-all --also-needed`.
    async fn drop_logs(&self, v: &View) -> Done {
        let me = self.h.me;
        if !v.is_primary(&me) {
            return Err("this host is not primary");
        }
        let newest = v.logs.iter().rev().find(|(l, _)| l.creator == me);
        let Some((newest, _)) = newest else {
            return Ok(());
        };
        let to = newest.number;
        let behind = v
            .members()
            .iter()
            .filter(|m| **m != me)
            .any(|m| v.replay(m).is_some_and(|r| r.log.number < to));
        if !behind {
            return self.delete_old(v, None).await;
        }
        let asked = format!("todo-{me}/drop-logs");
        self.set(&asked, &to.to_string()).await?;
        self.trigger().await?;
        let noted = self
            .wait(|v| {
                let dropped = v
                    .get(&format!("actual-{me}/dropped-logs"))
                    .and_then(|l| DroppedLink::parse(l.as_bytes()));
                match dropped {
                    Some(d) if d.to.number >= to => Ok(true),
                    _ if !v.is_primary(&me) => Err("this host is not primary any more"),
                    _ => Ok(false),
                }
            })
            .await;
        self.set(&asked, "0").await?;
        noted?;
        // What `delete_old` of `marsadm` is given was read at the beginning, too.
        self.delete_old(v, Some(to)).await
    }

    async fn delete_old(&self, v: &View, dropped: Option<u32>) -> Done {
        let mut lowest = u32::MAX;
        for m in v.members() {
            let Some(r) = v.replay(&m) else {
                if dropped.is_some() {
                    continue;
                }
                return Err("a position is not known");
            };
            lowest = lowest.min(r.log.number);
        }
        let last = v.logs.iter().map(|(l, _)| l.number).max().unwrap_or(0);
        let limit = lowest.min(last);
        let below = dropped.unwrap_or(limit).max(limit);
        if !on("delete-before-the-link") {
            self.barrier().await?;
        }
        for (log, _) in v.logs.iter().filter(|(l, _)| l.number < below) {
            self.delete(&log.to_string()).await?;
        }
        for key in v.links.keys() {
            let number = key.strip_prefix("version-").and_then(|k| k.get(..9));
            if number
                .and_then(|n| n.parse::<u32>().ok())
                .is_some_and(|n| n + 1 < limit)
            {
                self.delete(key).await?;
            }
        }
        Ok(self.trigger().await?)
    }

    /// `rmmod` and `modprobe`.
    async fn reload(&self) -> Done {
        let v = self.view();
        self.need_not_open(&v)?;
        let (sim, i) = (self.h.sim.clone(), self.h.i);
        if self
            .h
            .device
            .borrow()
            .as_ref()
            .is_some_and(|d| !d.begin_removal())
        {
            return Err("the device is open");
        }
        self.h.stopping.set(true);
        self.h.cluster_kick.signal(&self.h.ex);
        self.h.kick.signal(&self.h.ex);
        let until = self.h.ex.now() + 60 * SEC;
        while !self.h.unloaded.get() {
            if self.h.ex.now() > until {
                self.h
                    .sim
                    .violated(format!("P7 leaves: rmmod hangs (host {})", self.h.me));
                return Err("rmmod hangs");
            }
            self.h.sleep(20 * MS).await;
        }
        // Memory goes in an orderly way: nothing is lost that the file system has.
        let ex = self.h.ex.clone();
        let sim2 = sim.clone();
        ex.spawn(crate::exec::WORLD, async move {
            let m = &sim2.machines[i];
            if m.host.borrow_mut().take().is_some() {
                sim2.ex.kill(i);
                m.place.set(None);
                sim2.look(i, false);
                sim2.boot(i);
            }
        });
        Ok(())
    }
}
