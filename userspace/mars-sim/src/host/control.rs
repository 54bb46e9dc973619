// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/control.rs`: observe → decide → act.

use super::{
    device::Device,
    drop_logs, fetch, last_words, logger,
    logger::LogFile,
    pipeline::{self, Pipeline},
    replay, space, sync, Host,
};
use crate::{
    defects::{on, HIDDEN},
    exec::{thread, Ns, Thread, MS},
    fs::{Errno, Node, Res},
    truth::{id_of, is_written, Place, WriteId, HEADER, SECTOR},
};
use mars_core::{
    dirty::DroppedLink,
    lamport::LamportTime,
    log::LogName,
    name::Name,
    pace::Pace,
    resource::{decide, Designated, Observed, Role, Step, Work},
    space::Shortage,
    split_brain::{compare, Relation},
    succession::{is_consistent, next_number, unheard_primary, unheard_resize},
    tree::value::ReplayLink,
    writeback::Policy,
};
use std::rc::Rc;

const TICK_MS: u32 = 500;
const RETRY: Ns = 5_000 * MS;
/// So long the view of the cluster must not change before a good replica is given up for one that is compared.
const LACKING: Ns = 2_000 * MS;
/// So long links may be on their way.
const SPLIT: Ns = 5_000 * MS;
/// So much may be buffered when it may soon have to go to the disk before a flush is complete.
const SHORT_BUFFER: usize = 16 << 10;

#[derive(Default)]
struct Secondary {
    sync: Option<Vec<Rc<Thread>>>,
    replay: Option<Rc<Thread>>,
    fetch: Option<Vec<Rc<Thread>>>,
}

struct Primary {
    logger: Rc<Thread>,
    writeback: Rc<Thread>,
    pipe: Rc<Pipeline>,
    device: Rc<Device>,
    log: LogName,
}

enum Running {
    Detached,
    Secondary(Secondary),
    Primary(Primary),
}

struct Control {
    h: Rc<Host>,
    t: Rc<Thread>,
    running: Running,
    retry_at: Ns,
    failure: Option<&'static str>,
    /// Since when nothing is logged.
    stopped_at: Option<Ns>,
    /// Since when it shows a split brain.
    split_since: Option<Ns>,
    /// The links say that this host is primary, from before a crash, and it may have written more than they say.
    unsaid: bool,
    /// When it was written who is designated, as of the last look.
    seen: Option<LamportTime>,
    /// What was said last of that.
    said: Option<LamportTime>,
    /// Why not.
    shortage: Option<Shortage>,
    /// Reads logs that are to be let go.
    dropping: Option<drop_logs::Worker>,
    /// Since when a primary's map could help this replica, whose logs are gone.
    lacking: Option<(Name, DroppedLink, Ns)>,
    /// Since when the resource is larger than what this primary's disk is complete of.
    larger: Option<Ns>,
    /// It shows a split brain.
    split_brain: bool,
    /// Whether this round tells figures that change all the time.
    figures: bool,
    pace: Pace<Option<(LogName, u64)>>,
}

/// So long the resource must be larger than a running primary before that counts as a resize which was cut off.
const LARGER: Ns = 15_000 * MS;

/// Starts the control thread.
pub fn spawn(h: &Rc<Host>) -> Rc<Thread> {
    let h2 = h.clone();
    thread(&h.ex, h.i, move |t| async move {
        let mut c = Control {
            h: h2,
            t,
            running: Running::Detached,
            retry_at: 0,
            failure: None,
            stopped_at: None,
            split_since: None,
            unsaid: false,
            larger: None,
            split_brain: false,
            seen: None,
            said: None,
            shortage: None,
            dropping: None,
            lacking: None,
            figures: true,
            pace: Pace::new(),
        };
        c.run().await;
    })
}

async fn stop_all(h: &Host, threads: Option<Vec<Rc<Thread>>>) {
    let threads = threads.unwrap_or_default();
    for t in &threads {
        t.request_stop(&h.ex);
    }
    for t in &threads {
        t.stop(&h.ex).await;
    }
}

async fn stop_one(h: &Host, thread: Option<Rc<Thread>>) {
    if let Some(t) = thread {
        t.stop(&h.ex).await;
    }
}

impl Control {
    async fn run(&mut self) {
        let h = self.h.clone();
        // What a primary says of itself after a crash hides that its logs are passed over later.
        let silent = on("crash-without-last-words") || HIDDEN.iter().any(|name| on(name));
        self.unsaid = h.switch(&format!("actual-{}/is-primary", h.me)) && !silent;
        loop {
            if self.unsaid {
                self.unsaid = self.role() != Role::Primary && last_words::say(&h).await.is_err();
            }
            let stopping = self.t.should_stop() || h.stopping.get();
            let o = self.observe(stopping).await;
            let step = decide(self.role(), &o);
            let changes = !matches!(step, Step::Stay | Step::Follow(_));
            self.figures = self.pace.look(h.ex.now(), self.position(), changes);
            self.act(step).await;
            if self.role() != Role::Detached {
                h.note_unflushed().await;
            }
            self.publish(step, &o).await;
            if matches!(self.running, Running::Detached) && self.t.should_stop() {
                return;
            }
            let ns = if stopping {
                20 * MS
            } else {
                u64::from(self.pace.next_look_ms(TICK_MS)) * MS
            };
            h.kick.wait(&h.ex, ns).await;
        }
    }

    /// How far the log that is written or fetched here is.
    fn position(&self) -> Option<(LogName, u64)> {
        match &self.running {
            Running::Primary(_) => self.h.progress.current(),
            _ => self.h.fetch.position(),
        }
    }

    fn role(&self) -> Role {
        match self.running {
            Running::Detached => Role::Detached,
            Running::Secondary(_) => Role::Secondary,
            Running::Primary(_) => Role::Primary,
        }
    }

    async fn observe(&mut self, stopping: bool) -> Observed {
        // First: what is decided then is not older than what is said to have been seen.
        self.seen = self.h.stamp("primary");
        let h = &self.h;
        let me = h.me;
        let is_member = h.get(&format!("data-{me}")).is_some();
        let split_brain = self.role() != Role::Primary
            && (self.has_diverged() || self.has_more().await || self.unsaid && h.is_led());
        self.split_brain = split_brain;
        Observed {
            stopping: stopping || !is_member,
            attach: h.switch(&format!("todo-{me}/attach")),
            fetch: h.switch(&format!("todo-{me}/connect")),
            replay: h.switch(&format!("todo-{me}/allow-replay")),
            sync: h.switch(&format!("todo-{me}/sync")),
            designated: match h.designated() {
                Some(d) if d == me => Designated::Me,
                Some(_) => Designated::Other,
                None => Designated::Nobody,
            },
            opened: match &self.running {
                Running::Primary(p) => p.device.opened.get(),
                _ => false,
            },
            synced: self.is_synced(),
            consistent: self.is_consistent(),
            split_brain,
            settled: h.is_settled(),
            damaged: self.failure == Some("defective-log") && h.ex.now() < self.retry_at,
        }
    }

    fn is_synced(&self) -> bool {
        self.h.is_synced(&self.h.me)
    }

    fn is_consistent(&self) -> bool {
        let h = &self.h;
        let syncpos = h
            .get(&format!("syncpos-{}", h.me))
            .map(|v| ReplayLink::parse(v.as_bytes()));
        is_consistent(syncpos, h.replay_link(&h.me)) || h.is_void_growth()
    }

    /// Whether this disk has what no log has, while another host is designated.
    async fn has_more(&self) -> bool {
        let h = &self.h;
        !on("gap-forgotten")
            && h.dirty.is_open(h).await
            && h.designated().is_some_and(|d| d != h.me)
            && h.is_whole()
    }

    fn has_diverged(&self) -> bool {
        let h = &self.h;
        let designated = h.designated().filter(|d| *d != h.me);
        let mine = h.history(&h.me);
        let diverged = h.members().iter().any(|m| {
            *m != h.me
                && designated.is_none_or(|d| d == *m)
                && matches!(compare(&mine, &h.history(m)), Relation::Diverged(_))
        });
        diverged || self.is_cut_off()
    }

    fn is_cut_off(&self) -> bool {
        let h = &self.h;
        if h.is_beyond() {
            return true;
        }
        let (link, reach) = (h.replay_link(&h.me), h.fetch.reach());
        let link = link.filter(|_| h.is_whole());
        if link.is_some_and(|l| {
            let course = h.course(&l.log);
            course.is_short_of(l.pos) || reach.is_cut_off(&l.log, &h.me, course)
        }) {
            return true;
        }
        let syncpos = h.get(&format!("syncpos-{}", h.me));
        let need = syncpos.and_then(|v| ReplayLink::parse(v.as_bytes()));
        need.is_some_and(|n| {
            let have = h.replay_link(&h.me);
            let consistent = is_consistent(Some(need), have) || h.is_void_growth();
            !consistent && !h.course(&n.log).may_reach(n.pos)
        })
    }

    async fn act(&mut self, step: Step) {
        if matches!(step, Step::Attach | Step::BecomePrimary) && self.h.ex.now() < self.retry_at {
            return;
        }
        let result = match step {
            Step::Stay => self.stay().await,
            Step::Attach => self.attach().await,
            Step::Detach => {
                self.detach().await;
                Ok(())
            }
            Step::BecomePrimary => self.become_primary().await,
            Step::LeavePrimary => self.leave_primary().await,
            Step::Follow(work) | Step::RefuseInconsistent(work) | Step::Repair(work) => {
                self.follow(work).await
            }
            Step::WaitForClose => Ok(()),
        };
        match result {
            Ok(()) => {
                if !matches!(step, Step::WaitForClose | Step::Repair(_)) {
                    self.failure = None;
                }
            }
            Err(word) => {
                self.h.say(|| format!("{step:?} failed: {word}"));
                self.retry_at = self.h.ex.now() + RETRY;
                self.failure = Some(word);
            }
        }
    }

    async fn attach(&mut self) -> Result<(), &'static str> {
        let h = &self.h;
        h.io().await;
        let size = h.size().unwrap_or(0);
        if size == 0 || (h.machine().disk.borrow().len() as u64) < size {
            return Err("disk-error");
        }
        match h.dirty.prepare(h, size).await {
            // Only a primary must have it; it tries again.
            Ok(()) | Err(Errno::NoSpc) => (),
            Err(_) => return Err("disk-error"),
        }
        h.attached.set((true, false));
        self.running = Running::Secondary(Secondary::default());
        Ok(())
    }

    async fn detach(&mut self) {
        let h = self.h.clone();
        h.attached.set((false, false));
        if let Running::Secondary(s) = std::mem::replace(&mut self.running, Running::Detached) {
            stop_all(&h, s.sync).await;
            stop_one(&h, s.replay).await;
            stop_all(&h, s.fetch).await;
        }
        h.note_unflushed().await;
        h.unflushed.set(false);
        h.dirty.forget(&h).await;
        h.fetch.forget();
        h.set_trouble(None);
    }

    async fn follow(&mut self, work: Work) -> Result<(), &'static str> {
        let h = self.h.clone();
        let Running::Secondary(s) = &mut self.running else {
            return Ok(());
        };
        if !work.sync {
            stop_all(&h, s.sync.take()).await;
        }
        if !work.replay {
            stop_one(&h, s.replay.take()).await;
        }
        if !work.fetch {
            stop_all(&h, s.fetch.take()).await;
        }
        if s.sync.is_none() {
            let _ = h.forget_void_growth().await;
        }
        if let Some(size) = h.size().filter(|_| h.is_synced(&h.me)) {
            let me = h.me;
            if self.is_consistent() && !h.is_void_growth() {
                h.put(&format!("syncfrom-{me}"), &format!("done,{size}"))
                    .await;
            }
            if h.is_led() && !self.split_brain {
                let _ = h.forget_void_resize().await;
            }
        }
        let Running::Secondary(s) = &mut self.running else {
            return Ok(());
        };
        let help = drop_logs::help(&h).filter(|_| work.fetch);
        if help.is_none() {
            self.lacking = None;
        }
        if help.is_none() && h.fetch.gone().is_some() && work.replay && h.is_led() {
            h.set_trouble(Some("gone"));
        }
        if let Some((primary, dropped, begun)) = help {
            if !h.switch(&format!("todo-{}/sync", h.me)) {
                h.set_trouble(Some("waiting"));
            } else if work.replay || begun {
                // News arrive link by link: that there is another primary meanwhile, who has no map, may come last.
                let now = h.ex.now();
                let since = match self.lacking {
                    Some((p, d, since)) if p == primary && d == dropped => since,
                    _ => now,
                };
                self.lacking = Some((primary, dropped, since));
                if begun || now.saturating_sub(since) >= LACKING {
                    stop_all(&h, s.sync.take()).await;
                    stop_one(&h, s.replay.take()).await;
                    stop_all(&h, s.fetch.take()).await;
                    h.fetch.forget();
                    h.set_trouble(None);
                    drop_logs::jump(&h, &primary, &dropped, begun)
                        .await
                        .map_err(|_| "waiting")?;
                    h.kick.signal(&h.ex);
                    return Ok(());
                }
            }
        }
        if work.sync && (s.sync.is_none() || h.sync.is_finished()) {
            stop_all(&h, s.sync.take()).await;
            if sync::may_start(&h) && !sync::may_copy(&h) {
                h.set_trouble(Some("waiting"));
            } else if sync::may_start(&h) {
                s.sync = Some(sync::start(&h).await.map_err(|_| "syncing")?);
            } else {
                let led = h.is_led();
                h.set_trouble(Some(if led { "no-history" } else { "waiting" }));
            }
        }
        if work.replay && s.replay.is_none() {
            s.replay = Some(replay::start(&h).await.map_err(|_| "replaying")?);
        }
        if work.fetch {
            if s.fetch.is_none() {
                s.fetch = Some(fetch::start(&h));
            }
            fetch::choose(&h).await;
        }
        space::unlink_old(&h, false).await;
        Ok(())
    }

    async fn become_primary(&mut self) -> Result<(), &'static str> {
        let h = self.h.clone();
        let me = h.me;
        let Running::Secondary(s) = &mut self.running else {
            return Ok(());
        };
        stop_all(&h, s.sync.take()).await;
        stop_one(&h, s.replay.take()).await;
        stop_all(&h, s.fetch.take()).await;
        h.fetch.forget();
        self.larger = None;
        let back = h.forget_void_growth().await;
        let good = self.is_synced() && self.is_consistent();
        if back.is_err() || !good && !on("primary-inconsistent") {
            return Err("waiting");
        }
        let size = h.device_size().ok_or("waiting")?;
        h.put(&format!("actual-{me}/state"), "recovering").await;
        h.dirty.prepare(&h, size).await.map_err(|_| "no-space")?;
        let end = replay::to_end(&h, &self.t)
            .await
            .map_err(|_| "defective-log")?;
        if h.designated() != Some(me) {
            // Recovery may take long.
            return Err("waiting");
        }
        replay::exact(&h, &end.log, end.pos, size, "before it becomes primary");
        let max = h
            .number("maxnr")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0);
        let number = next_number(&end.log, end.pos, &me, max);
        let name = LogName {
            number,
            creator: me,
        };
        let device = h.sim.truth.borrow_mut().device();
        let (log, base, contents) = self.first_log(&end, name, device).await?;
        if log.is_some() {
            let links = async {
                h.set_version(&name, HEADER).await?;
                h.set_replay(&name, HEADER, HEADER).await
            };
            links.await.map_err(|_| "no-space")?;
            self.note_maxnr(number).await;
            h.sync_dir().await.map_err(|_| "disk-error")?;
        }
        let name = if log.is_some() { name } else { end.log };
        if h.designated() != Some(me) {
            return Err("waiting");
        }
        // Before anything is confirmed to an application: after a crash this host looks how far its logs go only if it was primary.
        h.try_put(&format!("actual-{me}/is-primary"), "1")
            .await
            .map_err(|_| "no-space")?;
        if !on("primary-undurable") {
            h.sync_actual_dir().await.map_err(|_| "disk-error")?;
        }
        let path = format!("{}/actual-{me}/is-primary", crate::world::DIR);
        if h.machine().fs.borrow().durable_link(&path) != Some("1") {
            h.sim.violated(format!(
                "P5 no silent fork: a device appears, and a crash could forget that this host was primary (host {me})"
            ));
        }
        let pipe = Pipeline::new(&h, Policy::primary());
        let h2 = h.clone();
        let publish = move |pos| {
            let h = h2.clone();
            Box::pin(async move { publish_written(&h, pos).await }) as _
        };
        let writeback = pipeline::spawn(&pipe, Box::new(publish));
        let logger = logger::spawn(&h, &pipe, device, log, base);
        let sectors = usize::try_from(size).unwrap_or(0) / SECTOR;
        let contents = {
            let disk = h.machine().disk.borrow();
            let ids = disk.view().chunks_exact(SECTOR).map(id_of);
            let known = contents.into_iter().zip(ids);
            known
                .map(|(want, have)| if is_written(want) { want } else { have })
                .take(sectors)
                .collect()
        };
        let dev = Device::new(&h, &pipe, device, contents);
        h.attached.set((true, true));
        h.device_id.set(Some(device));
        h.device_since.set(h.ex.now());
        h.sim.look_at_roles(&h);
        *h.device.borrow_mut() = Some(dev.clone());
        let c = &h.sim.counts.devices;
        c.set(c.get() + 1);
        h.say(|| format!("device {device}, logging to {name}"));
        self.running = Running::Primary(Primary {
            logger,
            writeback,
            pipe,
            device: dev,
            log: name,
        });
        h.cluster_kick.signal(&h.ex);
        Ok(())
    }

    /// The log of a new primary whose disk stands at `end`; none: there is no room for it, and it starts in emergency mode. With
    /// the place in the truth where the gap begins, and what the device has.
    async fn first_log(
        &self,
        end: &replay::At,
        name: LogName,
        device: usize,
    ) -> Result<(Option<LogFile>, Option<Place>, Vec<WriteId>), &'static str> {
        let h = &self.h;
        let open = |now| h.dirty.open_gap(h, now, end.log, end.pos, name.number);
        h.dirty
            .rewrite_unlogged(h)
            .await
            .map_err(|_| "disk-error")?;
        // What this disk has counts from here on, also of what a crash left in its cache.
        h.flush_disk().await.map_err(|_| "disk-error")?;
        if h.dirty.is_distrusted(h).await {
            open(h.now()).await.map_err(|_| "no-space")?;
        }
        let gap = h.dirty.is_open(h).await;
        let from = h.place(&end.log, end.pos);
        if let Some(base) = from.filter(|_| gap) {
            let disk = h.machine().disk.borrow();
            let mut t = h.sim.truth.borrow_mut();
            t.gap_begins(name, base, device, Some(&disk));
        }
        // Where nothing was ever logged nobody waits yet, and an administrator is there.
        let fresh = end.log == name;
        if fresh || space::verdict(h, gap.then_some(u64::MAX)).is_ok() {
            match LogFile::create(h, name, device, gap).await {
                Ok(log) => {
                    {
                        let mut t = h.sim.truth.borrow_mut();
                        match from {
                            Some(base) if gap => t.gap_ends(&h.me, base, log.id),
                            Some(from) if name != end.log => t.set_parent(log.id, from),
                            _ => (),
                        }
                    }
                    if gap {
                        let r = h.dirty.close_gap(h, name.number).await;
                        r.map_err(|_| "no-space")?;
                        if let Some(base) = from {
                            h.sim.truth.borrow_mut().gap_closed(&h.me, base);
                        }
                    }
                    let state = h.sim.truth.borrow_mut().state((log.id, HEADER));
                    return Ok((Some(log), None, (*state).clone()));
                }
                Err(Errno::NoSpc) if !fresh => (),
                Err(_) => return Err("no-space"),
            }
        }
        h.say(|| "EMERGENCY MODE from the start".into());
        let settled = async {
            open(h.now()).await?;
            h.dirty.settle(h).await
        };
        let r: Res<()> = settled.await;
        r.map_err(|_| "no-space")?;
        let base = from.ok_or("no-space")?;
        let mut t = h.sim.truth.borrow_mut();
        if !gap {
            t.gap_begins(name, base, device, None);
        }
        let c = &h.sim.counts.gaps;
        c.set(c.get() + 1);
        let state = t.gap_state(&h.me, base);
        Ok((None, Some(base), state.ok_or("no-space")?))
    }

    async fn note_maxnr(&self, number: u32) {
        if self.h.number("maxnr").unwrap_or(0) < u64::from(number) {
            self.h.put("maxnr", &number.to_string()).await;
        }
    }

    async fn leave_primary(&mut self) -> Result<(), &'static str> {
        let h = self.h.clone();
        let t = self.t.clone();
        let unloading = || t.should_stop() || h.stopping.get();
        let Running::Primary(p) = &mut self.running else {
            return Ok(());
        };
        if !p.device.begin_removal() {
            return Ok(());
        }
        if p.pipe.with(|s| s.buffer.undurable()) > 0 && !unloading() {
            p.pipe.log_work.signal(&h.ex);
            return Ok(());
        }
        let Running::Primary(p) = std::mem::replace(&mut self.running, Running::Detached) else {
            return Ok(());
        };
        if let Some(w) = self.dropping.take() {
            w.stop(&h).await;
        }
        h.put(&format!("actual-{}/state", h.me), "stopping").await;
        *h.device.borrow_mut() = None;
        p.logger.request_stop(&h.ex);
        p.pipe.log_work.signal(&h.ex);
        p.logger.stop(&h.ex).await;
        let (name, end) = h.progress.last_closed().unwrap_or((p.log, 0));
        h.publish_logs().await;
        h.progress.close_left().await;
        let drained = if on("leave-without-drain") {
            Ok(())
        } else {
            p.pipe.drain(unloading).await
        };
        p.writeback.stop(&h.ex).await;
        let told = h.progress.last_closed().is_none();
        h.progress.forget();
        if drained.is_ok() && told && end > 0 {
            let _ = h.set_replay(&name, end, end).await;
        }
        let _ = h.sync_dir().await;
        h.device_id.set(None);
        h.attached.set((true, false));
        h.say(|| "the device is gone".into());
        self.running = Running::Secondary(Secondary::default());
        h.cluster_kick.signal(&h.ex);
        Ok(())
    }

    /// Says the size again that this primary has, where a forced failover has cut off a resize that it had not heard of.
    async fn keep_size(&mut self, device: u64) {
        let h = self.h.clone();
        let key = format!("syncstatus-{}", h.me);
        if h.designated() == Some(h.me) {
            if let Some(device) = unheard_primary(h.number(&key), device) {
                h.put(&key, &device.to_string()).await;
            }
        }
        let done = h.number(&key);
        let device = if h.designated() == Some(h.me) {
            device
        } else {
            0
        };
        let Some(size) = unheard_resize(done, h.size(), device) else {
            self.larger = None;
            return;
        };
        let now = h.ex.now();
        let since = *self.larger.get_or_insert(now);
        if now.saturating_sub(since) > LARGER {
            if h.try_put("size", &size.to_string()).await.is_ok() {
                h.say(|| format!("a resize is void; the resource has {size} bytes"));
            } else {
                self.larger = Some(now);
            }
        }
    }

    async fn stay(&mut self) -> Result<(), &'static str> {
        let h = self.h.clone();
        let Running::Primary(p) = &mut self.running else {
            return Ok(());
        };
        p.device.removing.set(false);
        let device = p.device.sectors() * SECTOR;
        self.keep_size(device as u64).await;
        h.progress.close_left().await;
        drop_logs::watch(&h, &mut self.dropping).await;
        if self.watch_space().await? {
            return Ok(());
        }
        let Running::Primary(p) = &mut self.running else {
            return Ok(());
        };
        let rotating = h.progress.is_rotating();
        let Some((mut current, mut end)) = h.progress.current() else {
            return Ok(());
        };
        if current != p.log {
            match h.publish_logs().await {
                Some(now) => (current, end) = now,
                None => return Ok(()),
            }
            p.log = current;
        }
        if let Some(link) = h.replay_link(&h.me) {
            let done = p.pipe.with(|s| {
                s.published.is_none_or(|l| l.number < current.number)
                    && s.buffer.is_empty()
                    && s.published == s.buffer.written_position()
            });
            if link.log.number < current.number && done {
                let _ = h.advance(&current, HEADER, end, false).await;
            }
        }
        if rotating {
            return Ok(());
        }
        let next = LogName {
            number: current.number + 1,
            creator: h.me,
        };
        let asked = {
            let fs = h.machine().fs.borrow();
            matches!(fs.node(&h.log_path(&next)), Some(Node::File(ino)) if fs.size(*ino) == 0)
        };
        if asked || end >= h.sim.cfg.rotate {
            let device = p.device.id;
            let log = LogFile::create(&h, next, device, false)
                .await
                .map_err(|_| "no-space")?;
            self.note_maxnr(next.number).await;
            h.progress.rotate_to(log);
            if let Running::Primary(p) = &self.running {
                p.pipe.log_work.signal(&h.ex);
            }
        }
        Ok(())
    }

    /// Stops logging where there is no room for it, and goes back to it. `true`: nothing is logged.
    async fn watch_space(&mut self) -> Result<bool, &'static str> {
        let h = self.h.clone();
        space::unlink_old(&h, true).await;
        let gap = h.dirty.is_open(&h).await;
        let stopped_ms = gap.then(|| {
            let now = h.ex.now();
            let since = *self.stopped_at.get_or_insert(now);
            (now - since) / MS
        });
        if !gap {
            self.stopped_at = None;
        }
        self.shortage = space::verdict(&h, stopped_ms).err();
        let Running::Primary(p) = &self.running else {
            return Ok(false);
        };
        if !gap {
            h.progress.stop_logging(self.shortage.is_some());
            let level = h.space.level();
            p.pipe.with(|s| {
                if !s.unlogged {
                    s.cap = if level >= 3 { SHORT_BUFFER } else { usize::MAX };
                }
            });
            if self.shortage.is_some() {
                p.pipe.log_work.signal(&h.ex);
            }
            h.dirty.maintain(&h).await;
            return Ok(false);
        }
        h.progress.stop_logging(false);
        h.publish_logs().await;
        let next = h.dirty.last_gap(&h).await.map(|(_, _, next)| next);
        let may = self.shortage.is_none() && !h.progress.is_rotating();
        let untold =
            |next: &LogName| h.progress.is_untold(next.number) && !on("position-before-history");
        if let Some(next) = next.filter(|n| may && !untold(n)) {
            let log = LogFile::create(&h, next, p.device.id, true)
                .await
                .map_err(|_| "no-space")?;
            self.note_maxnr(next.number).await;
            h.progress.rotate_to(log);
            if let Running::Primary(p) = &self.running {
                p.pipe.log_work.signal(&h.ex);
            }
        }
        Ok(true)
    }

    async fn publish(&mut self, step: Step, o: &Observed) {
        let h = self.h.clone();
        let me = h.me;
        let role = self.role();
        let (syncing, replaying, fetching) = match &self.running {
            Running::Secondary(s) => (
                s.sync.is_some() && !h.sync.is_finished(),
                s.replay.is_some(),
                s.fetch.is_some() && h.fetch.is_busy(),
            ),
            _ => (false, false, false),
        };
        let opened = matches!(&self.running, Running::Primary(p) if p.device.opened.get());
        if role == Role::Primary {
            drop_logs::say(&h).await;
        }
        let gap = h.dirty.is_open(&h).await;
        let short = role == Role::Primary && self.shortage.is_some();
        for (key, on) in [
            ("is-late", h.is_late()),
            ("is-emergency", gap && role == Role::Primary),
            ("has-emergency", short),
        ] {
            h.put(&format!("actual-{me}/{key}"), if on { "1" } else { "0" })
                .await;
        }
        if role != Role::Detached {
            // Also in a secondary, until it is primary again.
            h.put(&format!("actual-{me}/has-gap"), if gap { "1" } else { "0" })
                .await;
        }
        let bits = [
            ("is-attached", role != Role::Detached),
            ("is-primary", role == Role::Primary || self.unsaid),
            ("if-on", role == Role::Primary),
            ("is-syncing", syncing),
            ("is-replaying", replaying),
            ("is-copying", fetching),
            ("open-count", opened),
        ];
        for (key, on) in bits {
            h.put(&format!("actual-{me}/{key}"), if on { "1" } else { "0" })
                .await;
        }
        if !self.figures {
            // Not told in this round.
        } else if role == Role::Primary {
            if let Some((log, end)) = h.publish_logs().await {
                h.put(&format!("actual-{me}/log-end"), &format!("{log},{end}"))
                    .await;
            }
        } else if let Some((log, pos)) = h.fetch.position() {
            h.put(&format!("actual-{me}/fetch-pos"), &format!("{log},{pos}"))
                .await;
        }
        // Behind what was done about it.
        if let Some(seen) = self.seen.filter(|seen| self.said != Some(*seen)) {
            if !on("seen-undurable") && h.sync_dir().await.is_err() {
                return;
            }
            self.said = Some(seen);
            h.put(&format!("actual-{me}/primary-seen"), &seen.to_string())
                .await;
        }
        // With a clock that is years late a host sees only a part of what the others say.
        if !o.split_brain || h.sim.has_late_clock() {
            self.split_since = None;
        }
        let failure = self.failure.or(h.trouble.get().filter(|_| !o.split_brain));
        let word = match (step, &self.running) {
            _ if failure.is_some() => failure.unwrap_or(""),
            (Step::Stay, Running::Secondary(_))
                if o.designated == Designated::Me && (h.is_late() || h.is_in_doubt()) =>
            {
                "waiting"
            }
            (Step::WaitForClose, _) => "stopping",
            (_, Running::Primary(p)) if p.pipe.with(|s| s.disk_error.is_some()) => "disk-error",
            (_, Running::Primary(_)) if h.progress.error().is_some() => "no-space",
            (_, Running::Primary(_)) if gap => "emergency",
            (_, Running::Primary(_)) => "primary",
            (_, Running::Detached) => "detached",
            _ if o.split_brain => {
                let now = h.ex.now();
                let since = *self.split_since.get_or_insert(now);
                if !h.sim.forced.get() && now - since > SPLIT {
                    for m in h.members() {
                        h.say(|| {
                            let links = h.history(&m);
                            let links: Vec<_> = links.iter().map(|v| v.to_string()).collect();
                            format!("history of {m}: {}", links.join(" "))
                        });
                    }
                    let what = "P10 split brain: shown, but there is only one history (host ";
                    h.sim.violated(format!("{what}{me})"));
                }
                "split-brain"
            }
            (Step::RefuseInconsistent(_), _) => "waiting",
            _ if syncing => "syncing",
            _ if replaying => "replaying",
            _ => "secondary",
        };
        h.put(&format!("actual-{me}/state"), word).await;
    }
}

async fn publish_written(h: &Host, pos: mars_core::buffer::LogPos) -> bool {
    let name = LogName {
        number: pos.number,
        creator: h.me,
    };
    let end = match h.publish_logs().await {
        Some((log, end)) if log == name => end,
        _ => pos.pos,
    };
    if h.progress.is_untold(name.number) && !on("position-before-history") {
        return false;
    }
    h.advance(&name, pos.pos, end, false).await.is_ok()
}
