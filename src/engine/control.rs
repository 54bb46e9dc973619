// SPDX-License-Identifier: GPL-2.0-or-later

//! The control thread of one resource: observe → decide → act.
//!
//! It owns every running part of the resource, so starting and stopping need no lock, and one slow disk or peer delays
//! no other resource. What to do is decided by `mars_core::resource`; here it is done, and what is gets published in the
//! tree (`actual-<me>/…`).

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

use mars_core::{
    buffer::LogPos,
    dirty::DroppedLink,
    lamport::LamportTime,
    log::{
        LogName,
        VersionLink,
        HEADER_SIZE, //
    },
    name::Name,
    pace::Pace,
    resource::{
        block_size,
        decide,
        Designated,
        Observed,
        Role,
        Step,
        Work,
        MOST_BLOCK, //
    },
    space::{
        rotate_at,
        Shortage, //
    },
    split_brain::{
        compare,
        Relation, //
    },
    succession::{
        is_consistent,
        next_number,
        unheard_primary,
        unheard_resize, //
    },
    tree::value::ReplayLink,
    writeback::Policy,
    zeroes, //
};

use crate::{
    engine::{
        device::Device,
        drop_logs,
        fetch,
        inject,
        last_words,
        logfile::{
            has_batches,
            LogFile, //
        },
        logger,
        member::{
            Member,
            Reason, //
        },
        paths,
        pipeline::{
            self,
            Pipeline, //
        },
        replay,
        space,
        sync,
        tunables, //
    },
    sys::{
        bdev::BlockDevice,
        buf::Buf,
        dir,
        disk::{
            Disk,
            DiskParams, //
        },
        file::{
            note_failed_sync,
            File,
            OpenFlags, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

/// How often the tree is looked at when nobody kicks, in milliseconds.
const TICK_MS: u32 = 500;
/// Smallest time between two rounds: who kicks often must not take the processor from those who do the work.
const PAUSE_MS: u32 = 25;
/// Pause after a disk that could not be opened, or a role change that failed.
const RETRY_MS: u64 = 5_000;
/// So long the view of the cluster must not change before a good replica is given up for one that is compared.
const LACKING_MS: u64 = 2_000;
/// So long the resource must be larger than a running primary before that counts as a resize which was cut off.
const LARGER_MS: u64 = 15_000;
/// So much of what no log has is written once more at a time.
const REWRITE: usize = 1 << 20;
/// So much is buffered at most while logging may stop soon.
const SHORT_BUFFER: usize = 64 << 20;

/// A disk that is open, and its followers. Fields drop in this order: workers before the disk.
struct Secondary {
    sync: Option<sync::Workers>,
    replay: Option<replay::Worker>,
    fetch: Option<fetch::Workers>,
    bdev: Arc<BlockDevice>,
}

/// A running primary. Fields drop in this order: no new bios, then no reads in flight, then the log is closed, then
/// write-back ends, then the disk is closed.
struct Primary {
    disk: Disk<Device>,
    _reader: Thread,
    _writer: Thread,
    logger: Thread,
    writeback: pipeline::Threads,
    pipe: Arc<Pipeline>,
    device: Arc<Device>,
    bdev: Arc<BlockDevice>,
    log: LogName,
    /// Bytes of the device.
    size: u64,
    /// `begin_removal` has succeeded: nobody can open the device any more.
    removing: bool,
}

enum Running {
    Detached,
    Secondary(KBox<Secondary>),
    Primary(KBox<Primary>),
}

/// State of the control thread.
struct Control {
    m: Arc<Member>,
    running: Running,
    /// Monotonic time before which a failed step is not tried again.
    retry_at: u64,
    /// Why the last step failed.
    failure: Option<Reason>,
    /// Monotonic time when it was seen that nothing is logged any more.
    stopped_at: Option<u64>,
    /// Why there is no room for logs.
    shortage: Option<Shortage>,
    /// The resource comes near to its own limits.
    near_limit: bool,
    /// Whether this round writes figures that change all the time.
    figures: bool,
    /// Notes what logs wrote that are to be deleted.
    dropping: Option<drop_logs::Worker>,
    /// The links say that this host is primary, from before a crash, and it may have written more than they say.
    unsaid: bool,
    /// When it was written who is designated, as of the last look.
    seen: Option<LamportTime>,
    /// What was said last of that.
    said: Option<LamportTime>,
    /// See [`Self::is_late`], as of the last look.
    is_late: bool,
    /// What the log that was made last takes for the unit of all members' disks, see [`Member::log_block`].
    log_block: Atomic<u32>,
    /// Last words are not tried before; monotonic nanoseconds.
    words_at: u64,
    /// See [`Self::is_in_doubt`], as of the last look.
    in_doubt: bool,
    /// Nothing moves until an administrator has decided, as of the last look.
    split_brain: bool,
    /// Since when the resource is larger than this primary's disk is complete (monotonic).
    larger: Option<u64>,
    /// Since when a primary's map could help this replica, whose logs are gone (monotonic).
    lacking: Option<(Name, DroppedLink, u64)>,
    pace: Pace<Option<(LogName, u64)>>,
}

/// Spawns the control thread of `m`. It ends, with everything detached, some time after it was asked to stop.
pub(crate) fn spawn(m: Arc<Member>) -> Result<Thread> {
    let name = CString::try_from_fmt(format_args!("mars_ctl/{}", m.name))?;
    Thread::spawn(&name, move |ctx| {
        let mut c = Control {
            m,
            running: Running::Detached,
            retry_at: 0,
            failure: None,
            stopped_at: None,
            shortage: None,
            near_limit: false,
            figures: true,
            unsaid: false,
            seen: None,
            said: None,
            dropping: None,
            is_late: false,
            log_block: Atomic::new(0),
            words_at: 0,
            in_doubt: false,
            split_brain: false,
            larger: None,
            lacking: None,
            pace: Pace::new(),
        };
        c.run(ctx);
    })
}

impl Control {
    fn run(&mut self, ctx: &ThreadCtx) {
        self.unsaid = self
            .m
            .switch(format_args!("actual-{}/is-primary", self.m.me()));
        loop {
            inject::pass!(ControlRound);
            self.say_last_words();
            let stopping = ctx.should_stop() || self.m.env.is_stopping();
            let o = self.observe(stopping);
            let step = decide(self.role(), &o);
            let now = time::mono_ns();
            let changes = !matches!(step, Step::Stay | Step::Follow(_));
            self.figures = self.pace.look(now, self.position(), changes);
            self.act(step, ctx);
            self.publish(step, &o);
            if matches!(self.running, Running::Detached) && ctx.should_stop() {
                return;
            }
            if stopping {
                self.m.kick.wait_timeout(20);
            } else {
                ctx.sleep_ms(PAUSE_MS);
                self.m.kick.wait_timeout(self.pace.next_look_ms(TICK_MS));
            }
        }
    }

    /// After a crash as a primary.
    fn say_last_words(&mut self) {
        if !self.unsaid {
            return;
        }
        let now = time::mono_ns();
        if now < self.words_at {
            return;
        }
        // Else recovery has said it.
        if self.role() != Role::Primary {
            if let Err(e) = last_words::say(&self.m) {
                crate::sys::log::log_warn!(
                    "{}: how far the logs of this host go after a crash can't be told: {:?}; until then it counts as primary. If another host was made primary, run 'marsadm invalidate' here\n",
                    self.m.name.as_str(),
                    e
                );
                self.words_at = now.saturating_add(RETRY_MS.saturating_mul(1_000_000));
                return;
            }
        }
        self.unsaid = false;
    }

    /// How far the log that is written or fetched here is.
    fn position(&self) -> Option<(LogName, u64)> {
        match &self.running {
            Running::Primary(_) => self.m.progress.current(),
            _ => self.m.fetch.position(),
        }
    }

    fn role(&self) -> Role {
        match self.running {
            Running::Detached => Role::Detached,
            Running::Secondary(_) => Role::Secondary,
            Running::Primary(_) => Role::Primary,
        }
    }

    #[inline(never)]
    fn observe(&mut self, stopping: bool) -> Observed {
        // First: what is decided then is not older than what is said to have been seen.
        self.seen = self.m.stamp(format_args!("primary"));
        self.is_late = self.is_late();
        self.in_doubt = self.is_in_doubt();
        self.split_brain = self.role() != Role::Primary
            && (self.has_diverged() || self.has_more() || self.may_have_more());
        let m = &self.m;
        let me = m.me();
        let is_member = m.get(format_args!("data-{me}")).is_some();
        Observed {
            stopping: stopping || !is_member,
            attach: m.switch(format_args!("todo-{me}/attach")),
            fetch: m.switch(format_args!("todo-{me}/connect")),
            replay: m.switch(format_args!("todo-{me}/allow-replay")),
            sync: m.switch(format_args!("todo-{me}/sync")),
            designated: match m.designated() {
                Some(h) if h == me => Designated::Me,
                Some(_) => Designated::Other,
                None => Designated::Nobody,
            },
            opened: match &self.running {
                Running::Primary(p) => p.disk.open_count() > 0,
                _ => false,
            },
            synced: self.is_synced(),
            consistent: self.is_consistent(),
            split_brain: self.split_brain,
            settled: m.env.is_settled() && !self.is_late && !self.in_doubt,
            damaged: self
                .failure
                .as_ref()
                .is_some_and(|r| r.word == "defective-log")
                && time::mono_ns() < self.retry_at,
        }
    }

    /// Whether the clock of a member that talks to us is too far ahead for what it says to be taken: as long as this host does
    /// not know what was decided elsewhere, it must not take a role because of what it knows.
    fn is_late(&self) -> bool {
        let mut late = false;
        let r = self
            .m
            .for_each_member(|host| late |= self.m.env.is_ahead(&host));
        late || r.is_err()
    }

    /// Whether a member says something else about who is primary, or of which size, with a stamp of a clock that was far ahead, or
    /// where this host has one: which word is newer can't be known, so nobody takes a role because of either.
    fn is_in_doubt(&self) -> bool {
        let mut doubt = false;
        let r = self
            .m
            .for_each_member(|host| doubt |= self.m.env.is_doubted(&host, |r| *r == self.m.name));
        doubt || r.is_err()
    }

    /// The disk has been filled by a sync.
    fn is_synced(&self) -> bool {
        self.m.is_synced(&self.m.me())
    }

    /// The replay link has reached the end of the primary's log as it was when the sync ended.
    fn is_consistent(&self) -> bool {
        let me = self.m.me();
        let syncpos = self
            .m
            .get(format_args!("syncpos-{me}"))
            .map(|v| ReplayLink::parse(v.as_bytes()));
        is_consistent(syncpos, self.m.replay_link(&me)) || self.m.is_void_growth()
    }

    /// Whether this disk has what no log has, while another host is designated: what it would replay does not go on here,
    /// also if this host's history can't say so yet.
    fn has_more(&self) -> bool {
        let me = self.m.me();
        self.m.dirty.is_open() && self.m.designated().is_some_and(|h| h != me) && self.m.is_whole()
    }

    /// Whether another host is primary while it can't be told how far this host's own logs go: its disk may have what is cut off.
    fn may_have_more(&self) -> bool {
        self.unsaid && self.m.is_led()
    }

    /// Whether this host's history and that of another member exclude each other.
    fn has_diverged(&self) -> bool {
        let me = self.m.me();
        // The designated primary's history is the one that counts; without one, everybody's. What can't be read for lack of
        // memory counts as diverged: then nothing moves in this round.
        let designated = self.m.designated().filter(|h| *h != me);
        let Ok(mine) = self.m.history(&me) else {
            return true;
        };
        let mut diverged = false;
        let r = self.m.for_each_member(|host| {
            if host != me && designated.is_none_or(|d| d == host) {
                diverged |= match self.m.history(&host) {
                    Ok(theirs) => matches!(compare(&mine, &theirs), Relation::Diverged(_)),
                    Err(_) => true,
                };
            }
        });
        r.is_err() || diverged || self.is_cut_off()
    }

    /// Whether this disk has, or may have, what the designated primary's history does not have: from replay, also if this
    /// host's history can't say so yet, or from a sync that ended behind the cut. It can never become a state of that.
    fn is_cut_off(&self) -> bool {
        let me = self.m.me();
        if self.m.is_beyond().unwrap_or(true) {
            return true;
        }
        // What a disk had that is not complete is replaced by the sync.
        let link = self.m.replay_link(&me).filter(|_| self.m.is_whole());
        let reach = self.m.fetch.reach();
        if link.is_some_and(|l| {
            let course = self.m.course(&l.log);
            course.is_short_of(l.pos) || reach.is_cut_off(&l.log, &me, course)
        }) {
            return true;
        }
        let syncpos = self.m.get(format_args!("syncpos-{me}"));
        let need = syncpos.and_then(|v| ReplayLink::parse(v.as_bytes()));
        need.is_some_and(|n| !self.is_consistent() && !self.m.course(&n.log).may_reach(n.pos))
    }

    fn act(&mut self, step: Step, ctx: &ThreadCtx) {
        if matches!(step, Step::Attach | Step::BecomePrimary) && time::mono_ns() < self.retry_at {
            return;
        }
        let result = match step {
            Step::Stay => self.stay(),
            Step::Attach => self.attach(),
            Step::Detach => {
                self.detach();
                Ok(())
            }
            Step::BecomePrimary => self.become_primary(ctx),
            Step::LeavePrimary => self.leave_primary(ctx),
            Step::Follow(work) | Step::RefuseInconsistent(work) | Step::Repair(work) => {
                self.follow(work)
            }
            Step::WaitForClose => {
                self.m.progress.close_left();
                Ok(())
            }
        };
        match result {
            Ok(()) => {
                if !matches!(step, Step::WaitForClose | Step::Repair(_)) {
                    self.failure = None;
                }
            }
            Err(reason) => {
                self.retry_at = time::mono_ns().saturating_add(RETRY_MS.saturating_mul(1_000_000));
                let known = |f: &Reason| f.word == reason.word && f.text() == reason.text();
                if !self.failure.as_ref().is_some_and(known) {
                    pr_err!(
                        "{}: {}: {}\n",
                        self.m.name.as_str(),
                        reason.word,
                        reason.text()
                    );
                }
                self.failure = Some(reason);
            }
        }
    }

    #[inline(never)]
    fn attach(&mut self) -> Result<(), Reason> {
        let m = &self.m;
        let me = m.me();
        let path = m
            .disk_path()
            .ok_or_else(|| fail("disk-error", format_args!("there is no data-{me} link")))?;
        let bdev = BlockDevice::open(&path, true).map_err(|e| {
            m.set(format_args!("actual-{me}/disk-error"), format_args!("{}", e.to_errno()));
            fail(
                "disk-error",
                format_args!("opening {} failed: {e:?}; is it there, and not mounted or used by something else?", path.to_str().unwrap_or("")),
            )
        })?;
        m.set(format_args!("actual-{me}/disk-error"), format_args!("0"));
        m.set(
            format_args!("actsize-{me}"),
            format_args!("{}", bdev.size()),
        );
        let size = m.size().unwrap_or(0);
        if bdev.size() < size || size == 0 {
            return Err(fail(
                "disk-error",
                format_args!("the disk has {} bytes, the resource needs {size}; enlarge the disk or use another", bdev.size()),
            ));
        }
        let block = bdev.logical_block_size();
        let said = m.number(format_args!("block-size"));
        if block_size(block, said).is_none() {
            return Err(fail(
                "disk-error",
                format_args!("the disk is addressed in blocks of {block} bytes, the resource in {}: smaller writes could not be replayed; join with a disk of smaller blocks", said.unwrap_or(u64::MAX).min(u64::from(MOST_BLOCK))),
            ));
        }
        match m.dirty.prepare(m, size) {
            // Only a primary must have it; it tries again.
            Err(e) if e == ENOSPC || e == EDQUOT => pr_warn!(
                "{}: there is no room in /mars for the dirty map\n",
                m.name.as_str()
            ),
            r => r.map_err(|e| {
                fail(
                    "disk-error",
                    format_args!("the dirty map in /mars can't be read or written: {e:?}"),
                )
            })?,
        }
        let bdev = Arc::new(bdev, GFP_KERNEL).map_err(no_memory)?;
        let secondary = Secondary {
            sync: None,
            replay: None,
            fetch: None,
            bdev: bdev.clone(),
        };
        self.running = Running::Secondary(KBox::new(secondary, GFP_KERNEL).map_err(no_memory)?);
        self.share(Some(bdev), false);
        Ok(())
    }

    fn note_unflushed(&self) {
        let bdev = self.m.attached.lock().bdev.clone();
        if let Some(bdev) = bdev {
            self.m.note_unflushed(&bdev);
        }
    }

    fn share(&self, bdev: Option<Arc<BlockDevice>>, primary: bool) {
        let mut a = self.m.attached.lock();
        let before = core::mem::replace(&mut a.bdev, bdev);
        a.primary = primary;
        drop(a);
        // Closing a disk may wait for it.
        drop(before);
    }

    fn detach(&mut self) {
        self.m.attached.lock().primary = false;
        self.running = Running::Detached;
        self.note_unflushed();
        // Last: the cluster loop takes this for the end, and must not have to wait for a disk.
        self.share(None, false);
        self.m.dirty.forget();
        self.m.fetch.forget();
        self.m.set_trouble(None);
    }

    /// Lets exactly the workers in `work` run.
    #[inline(never)]
    fn follow(&mut self, work: Work) -> Result<(), Reason> {
        let m = self.m.clone();
        let Running::Secondary(s) = &mut self.running else {
            return Ok(());
        };
        // What must stop stops first: sync and replay must never overlap.
        if !work.sync {
            s.sync = None;
        }
        if !work.replay {
            s.replay = None;
        }
        if !work.fetch {
            s.fetch = None;
        }
        if self.go_on_without_logs(work)? {
            return Ok(());
        }
        // While a sync runs it may still say how far it is. (The size may have changed since `work` was decided.)
        let quiet = matches!(&self.running, Running::Secondary(s) if s.sync.is_none());
        if quiet {
            let _ = m.forget_void_growth();
        }
        if let Some(size) = m.size().filter(|_| self.is_synced()) {
            let me = m.me();
            if self.is_consistent() && !m.is_void_growth() {
                // All of it, whoever was the source: when the resource grows, only the rest has to be copied.
                m.set(format_args!("syncfrom-{me}"), format_args!("done,{size}"));
            }
            // In a split brain it may be this host that goes on.
            if m.is_led() && !self.split_brain {
                let _ = m.forget_void_resize();
            }
        }
        let Running::Secondary(s) = &mut self.running else {
            return Ok(());
        };
        let start_sync = work.sync && s.sync.as_ref().is_none_or(sync::Workers::is_finished);
        if start_sync && !sync::may_start(&m) {
            s.sync = None;
            if m.is_led() {
                m.set_trouble(Some(("no-history", format_args!("the history of the primary does not lead to the position of this replica, where replay would begin after a sync. Run 'marsadm invalidate {}' here", m.name))));
            } else {
                m.set_trouble(Some((
                    "waiting",
                    format_args!("the sync waits: the designated primary is not primary yet"),
                )));
            }
        } else if start_sync && !sync::may_copy(&m) {
            s.sync = None;
            m.set_trouble(Some((
                "waiting",
                format_args!("the sync waits: the primary's disk does not have yet what comes before the log in which this replica begins"),
            )));
        } else if start_sync {
            s.sync = None;
            s.sync = Some(
                sync::Workers::start(m.clone(), s.bdev.clone())
                    .map_err(|e| fail("syncing", format_args!("sync can't start: {e:?}")))?,
            );
        }
        if work.replay && s.replay.is_none() {
            s.replay = Some(
                replay::Worker::start(m.clone(), s.bdev.clone())
                    .map_err(|e| fail("replaying", format_args!("replay can't start: {e:?}")))?,
            );
        }
        if work.fetch {
            if s.fetch.is_none() {
                s.fetch = Some(
                    fetch::Workers::start(m.clone())
                        .map_err(|e| fail("waiting", format_args!("fetch can't start: {e:?}")))?,
                );
            }
            fetch::choose(&m);
        }
        space::unlink_old(&m, false);
        Ok(())
    }

    /// Where the logs that this replica needs were deleted, goes on behind them, if the primary can say what they wrote. `true`:
    /// everything begins anew with the next round.
    #[inline(never)]
    fn go_on_without_logs(&mut self, work: Work) -> Result<bool, Reason> {
        let m = self.m.clone();
        let Running::Secondary(s) = &mut self.running else {
            return Ok(false);
        };
        let Some((primary, dropped, begun)) = drop_logs::help(&m).filter(|_| work.fetch) else {
            self.lacking = None;
            return Ok(false);
        };
        if !m.switch(format_args!("todo-{}/sync", m.me())) {
            m.set_trouble(Some(("waiting", format_args!("logs that this replica needs were deleted on {primary}; it stays as it is until resume-sync permits to compare what they wrote"))));
            return Ok(false);
        }
        if !work.replay && !begun {
            return Ok(false);
        }
        // News arrive link by link: that there is another primary meanwhile, who has no map, may come last.
        let now = time::mono_ns();
        let since = match self.lacking {
            Some((p, d, since)) if p == primary && d == dropped => since,
            _ => now,
        };
        self.lacking = Some((primary, dropped, since));
        if !begun && now.saturating_sub(since) < LACKING_MS * 1_000_000 {
            return Ok(false);
        }
        s.sync = None;
        s.replay = None;
        s.fetch = None;
        m.fetch.forget();
        m.set_trouble(None);
        drop_logs::jump(&m, &primary, &dropped, begun).map_err(|e| {
            fail(
                "waiting",
                format_args!("logs that this replica needs were deleted on {primary}, and going on behind them failed: {e:?}; is /mars full?"),
            )
        })?;
        m.kick.signal();
        Ok(true)
    }

    #[inline(never)]
    fn become_primary(&mut self, ctx: &ThreadCtx) -> Result<(), Reason> {
        let m = self.m.clone();
        let me = m.me();
        let Running::Secondary(s) = &mut self.running else {
            return Ok(());
        };
        s.sync = None;
        s.replay = None;
        s.fetch = None;
        m.fetch.forget();
        // What kept a worker waiting is no state of a primary.
        m.set_trouble(None);
        self.larger = None;
        // Here and in recovery there are links to write.
        space::unlink_old(&m, true);
        // No sync can say any more that nothing counts.
        m.forget_void_growth().map_err(|e| {
            fail(
                "no-space",
                format_args!(
                    "what is said of the disk can't be written: {e:?}; make room in /mars"
                ),
            )
        })?;
        if !self.is_synced() || !self.is_consistent() {
            return Err(fail(
                "waiting",
                format_args!(
                    "the disk is not complete any more: it needs a sync from another member"
                ),
            ));
        }
        let Running::Secondary(s) = &mut self.running else {
            return Ok(());
        };
        // As it was decided: what is heard of a resize from now on, this disk does not have.
        let size = m
            .device_size()
            .ok_or_else(|| fail("waiting", format_args!("the disk is not complete any more")))?;
        let bdev = s.bdev.clone();
        m.set(
            format_args!("actual-{me}/state"),
            format_args!("recovering"),
        );
        m.dirty
            .prepare(&m, size)
            .map_err(|e| fail("no-space", format_args!("there is no room for the dirty map: {e:?}; a primary needs it for the time when /mars is full")))?;
        let end = replay::to_end(&m, &bdev, ctx)
            .and_then(|end| inject::at!(Recovered).map(|()| end))
            .map_err(recovery_failed)?;
        self.need_designated()?;
        let max = m
            .number(format_args!("maxnr"))
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0);
        let number = next_number(&end.log, end.pos, &me, max);
        let name = LogName {
            number,
            creator: me,
        };
        match clear_own_from(&m, &end.log, number) {
            Ok(None) => (),
            Ok(Some(old)) => return Err(log_failed(&old, EEXIST)),
            Err(e) => return Err(log_failed(&name, e)),
        }
        let log = self.first_log(&bdev, &end, name, ctx)?;
        if log.is_some() {
            let header = u64::try_from(HEADER_SIZE).unwrap_or(0);
            m.set_version(&name, header)
                .and_then(|()| m.set_replay(&name, header, header))
                .map_err(|e| {
                    fail(
                        "no-space",
                        format_args!("the links of log {name} can't be written: {e:?}; is /mars full or read-only?"),
                    )
                })?;
            self.note_maxnr(number);
            inject::at!(PrimaryLinks)
                .and_then(|()| paths::sync_resource_dir(&m.name))
                .map_err(|e| {
                    fail(
                        "disk-error",
                        format_args!("/mars can't be made durable: {e:?}"),
                    )
                })?;
        }
        let name = if log.is_some() { name } else { end.log };
        self.need_designated()?;
        // Before anything is confirmed to an application: after a crash this host looks how far its logs go (`last_words`) only if
        // it was primary.
        m.try_set(format_args!("actual-{me}/is-primary"), format_args!("1"))
            .and_then(|()| paths::sync_actual_dir(&m.name, &me))
            .map_err(|e| {
                fail(
                    "no-space",
                    format_args!("that this host is primary can't be written to /mars: {e:?}"),
                )
            })?;
        let p = self
            .start_primary(bdev.clone(), log, name, size)
            .map_err(|e| {
                self.share(Some(bdev), false);
                // The log that was begun is one like any other that a crash leaves: recovery finds its end.
                m.progress.forget();
                fail(
                    "disk-error",
                    format_args!(
                        "the device can't be made: {e:?}; is there one of this name already?"
                    ),
                )
            })?;
        self.running = Running::Primary(p);
        inject::pass!(PrimaryReady);
        m.env.kick.signal();
        Ok(())
    }

    /// Recovery may take long, and an administrator may have changed his mind meanwhile.
    fn need_designated(&self) -> Result<(), Reason> {
        if self.m.designated() == Some(self.m.me()) {
            return Ok(());
        }
        Err(fail(
            "waiting",
            format_args!("meanwhile this host is designated no more"),
        ))
    }

    /// A flush of the disk has failed in an earlier run, and of what was written in an open gap the disk may only show what it
    /// has lost. No log has that, so it is written once more before anything else relies on it.
    fn rewrite_unlogged(&self, bdev: &BlockDevice, ctx: &ThreadCtx) -> Result<(), Reason> {
        let m = &self.m;
        let unlogged = m.dirty.is_open() || m.dirty.is_distrusted();
        if !bdev.is_unflushed() || !unlogged {
            return Ok(());
        }
        pr_warn!("{}: a flush of the disk has failed before; what was written without a log is written once more\n", m.name.as_str());
        let failed = |e: Error| {
            fail(
                "disk-error",
                format_args!("what no log has can't be written once more: {e:?}; repair the disk"),
            )
        };
        let size = m.device_size().unwrap_or(0);
        let mut buf = Buf::new(REWRITE).map_err(no_memory)?;
        let mut offset = 0u64;
        while offset < size {
            let n =
                usize::try_from(size.saturating_sub(offset)).map_or(REWRITE, |n| n.min(REWRITE));
            let len = n as u64;
            if m.dirty.is_dirty(offset, len) {
                self.need_designated()?;
                if ctx.should_stop() || m.env.is_stopping() {
                    return Err(fail(
                        "waiting",
                        format_args!("the module is being unloaded"),
                    ));
                }
                bdev.read_at(&mut buf, 0, n, offset)
                    .and_then(|()| bdev.write_at(&buf, 0, n, offset, false))
                    .map_err(failed)?;
            }
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    /// Log `name` of a new primary whose disk stands at `end`; `None`: there is no room for it, and it starts in emergency mode.
    #[inline(never)]
    fn first_log(
        &self,
        bdev: &BlockDevice,
        end: &replay::At,
        name: LogName,
        ctx: &ThreadCtx,
    ) -> Result<Option<KBox<LogFile>>, Reason> {
        let m = &self.m;
        let map = |e: Error| {
            fail(
                "no-space",
                format_args!("the dirty map can't be written: {e:?}; make room in /mars"),
            )
        };
        self.rewrite_unlogged(bdev, ctx)?;
        // What this disk has counts from here on, also of what a crash left in its cache.
        let flushed = inject::at!(FirstFlush).and_then(|()| bdev.flush());
        flushed.map_err(|e| {
            if self.failure.is_none() {
                // The first in a row.
                note_failed_sync();
            }
            bdev.note_unflushed();
            fail(
                "disk-error",
                format_args!("the disk can't be flushed: {e:?}"),
            )
        })?;
        if m.dirty.is_distrusted() {
            m.dirty
                .open_gap(m.now(), end.log, end.pos, name.number)
                .map_err(map)?;
        }
        let gap = m.dirty.is_open();
        // Where nothing was ever logged nobody waits yet, and an administrator is there.
        let fresh = end.log == name;
        if fresh || space::verdict(m, gap.then_some(u64::MAX)).log.is_ok() {
            match self.try_create_log(name, gap, false) {
                Ok(log) => {
                    if gap {
                        m.dirty.close_gap(name.number).map_err(map)?;
                    }
                    return Ok(Some(log));
                }
                Err(e) if !fresh && (e == ENOSPC || e == EDQUOT) => (),
                Err(e) => return Err(log_failed(&name, e)),
            }
        }
        pr_err!(
            "{}: EMERGENCY MODE from the start: there is no room in /mars for a log\n",
            m.name.as_str()
        );
        m.dirty
            .open_gap(m.now(), end.log, end.pos, name.number)
            .and_then(|()| m.dirty.settle())
            .map_err(map)?;
        Ok(None)
    }

    #[inline(never)]
    fn try_create_log(&self, name: LogName, gap: bool, short: bool) -> Result<KBox<LogFile>> {
        let m = &self.m;
        let uuid = m.env.uuid()?;
        let block = m.log_block();
        let log = LogFile::create(&m.name, name, uuid.to_bytes(), m.now(), gap, short, block)?;
        self.log_block.store(block, Relaxed);
        Ok(KBox::new(log, GFP_KERNEL)?)
    }

    fn create_log(&self, name: LogName, gap: bool) -> Result<KBox<LogFile>, Reason> {
        let short = match &self.running {
            Running::Primary(p) => p.pipe.is_memory_short(),
            _ => false,
        };
        self.try_create_log(name, gap, short)
            .map_err(|e| log_failed(&name, e))
    }

    fn note_maxnr(&self, number: u32) {
        if self.m.number(format_args!("maxnr")).unwrap_or(0) < u64::from(number) {
            self.m.set(format_args!("maxnr"), format_args!("{number}"));
        }
    }

    #[inline(never)]
    fn start_primary(
        &self,
        bdev: Arc<BlockDevice>,
        log: Option<KBox<LogFile>>,
        name: LogName,
        size: u64,
    ) -> Result<KBox<Primary>> {
        let m = &self.m;
        let pipe = Pipeline::new(bdev.clone(), m.env.buffer(), Policy::primary())?;
        let res = m.name;
        let thread = |kind: &str| CString::try_from_fmt(format_args!("mars_{kind}/{res}"));
        let publisher = m.clone();
        let writeback = pipeline::spawn(&res, pipe.clone(), move |pos| {
            publish_written(&publisher, pos)
        })?;
        let kicker = m.clone();
        let logger = logger::spawn(
            &thread("log")?,
            pipe.clone(),
            m.progress.clone(),
            m.dirty.clone(),
            m.env.clock.clone(),
            log,
            move || kicker.kick.signal(),
        )?;
        let device = Device::new(pipe.clone(), m.clone())?;
        let reader = device.spawn_reader(&thread("rd")?)?;
        let writer = device.spawn_writer(&thread("wr")?)?;
        let me = m.me();
        let dev = m.get(format_args!("device-{me}")).ok_or(ENOENT)?;
        let backing = pipeline::backing(&bdev);
        let said = m.number(format_args!("block-size"));
        let block = block_size(bdev.logical_block_size(), said).ok_or(EINVAL)?;
        if said.is_none() {
            // Created by an older version.
            m.set(format_args!("block-size"), format_args!("{block}"));
        }
        let params = DiskParams {
            size,
            logical_block_size: block,
            physical_block_size: bdev.physical_block_size().max(block),
            io_min: bdev.io_min(),
            io_opt: bdev.io_opt(),
            dma_alignment: bdev.dma_alignment(),
            write_cache: true,
            rotational: bdev.is_rotational(),
            max_zeroes: zeroes::MAX_REQUEST,
            discard_granularity: backing.offers_discard(),
        };
        self.share(Some(bdev.clone()), true);
        inject::at!(PrimaryDevice)?;
        let disk = Disk::new(dev.as_str(), &params, device.clone())?;
        pr_info!(
            "{}: /dev/mars/{} is there, {} {:?}\n",
            res.as_str(),
            dev.as_str(),
            if m.dirty.is_open() {
                "without a log since"
            } else {
                "logging to"
            },
            name
        );
        Ok(KBox::new(
            Primary {
                disk,
                _reader: reader,
                _writer: writer,
                logger,
                writeback,
                pipe,
                device,
                bdev,
                log: name,
                size,
                removing: false,
            },
            GFP_KERNEL,
        )?)
    }

    #[inline(never)]
    fn leave_primary(&mut self, ctx: &ThreadCtx) -> Result<(), Reason> {
        let unloading = {
            let env = self.m.env.clone();
            move || ctx.should_stop() || env.is_stopping()
        };
        let Running::Primary(p) = &mut self.running else {
            return Ok(());
        };
        if !p.disk.begin_removal() {
            return Ok(());
        }
        p.removing = true;
        inject::pass!(LeaveBegin);
        // Nothing is given up as long as somebody can still make room in /mars; the next round tries again. A log whose disk
        // fails has told so to every flush: what none of them confirmed ends with the device, as with any disk.
        let (undurable, log_failed) = p.pipe.with(|s| (s.buffer.undurable(), s.log_failed()));
        if undurable > 0 && !log_failed && !unloading() {
            p.pipe.log_work.signal();
            return Ok(());
        }
        let Running::Primary(p) = core::mem::replace(&mut self.running, Running::Detached) else {
            return Ok(());
        };
        let m = self.m.clone();
        self.dropping = None;
        m.set(
            format_args!("actual-{}/state", m.me()),
            format_args!("stopping"),
        );
        let Primary {
            disk,
            _reader: reader,
            _writer: writer,
            logger,
            writeback,
            pipe,
            device,
            bdev,
            log,
            ..
        } = KBox::into_inner(p);
        drop(disk);
        drop(reader);
        drop(writer);
        drop(device);
        inject::pass!(LeaveDevice);
        drop(logger);
        inject::pass!(LeaveClosed);
        let (name, end) = m.progress.last_closed().unwrap_or((log, 0));
        m.publish_logs();
        inject::pass!(LeavePublished);
        // What could not be written to the tree is found by replay, which reads the logs to their ends; so until then
        // `publish_written` does not pass them.
        let drained = pipe.drain(unloading);
        drop(writeback);
        inject::pass!(LeaveDrained);
        let told = m.progress.last_closed().is_none();
        m.progress.forget();
        match drained {
            Ok(()) if told && end > 0 => {
                let _ = m.set_replay(&name, end, end);
            }
            Ok(()) => (),
            // The logger has said what is lost.
            Err(_) if pipe.with(|s| s.unlogged) => (),
            Err(e) => pr_err!("{}: the disk fails ({:?}); what it did not take stays in the log and is replayed at the next attach\n", m.name.as_str(), e),
        }
        inject::pass!(LeaveLink);
        let _ = paths::sync_resource_dir(&m.name);
        pr_info!(
            "{}: the device is gone, the log is closed\n",
            m.name.as_str()
        );
        // As long as nothing has the disk open, nothing claims it.
        self.share(None, false);
        let secondary = Secondary {
            sync: None,
            replay: None,
            fetch: None,
            bdev: bdev.clone(),
        };
        self.running = Running::Secondary(KBox::new(secondary, GFP_KERNEL).map_err(no_memory)?);
        self.share(Some(bdev), false);
        m.env.kick.signal();
        Ok(())
    }

    /// What a primary has to look after while nothing changes: rotation.
    #[inline(never)]
    fn stay(&mut self) -> Result<(), Reason> {
        let m = self.m.clone();
        let Running::Primary(p) = &mut self.running else {
            return Ok(());
        };
        if p.removing {
            // Designated again before it was gone.
            p.disk.cancel_removal();
            p.removing = false;
        }
        let device = p.size;
        self.keep_size(device);
        m.progress.close_left();
        drop_logs::watch(&m, &mut self.dropping)
            .map_err(|e| fail("waiting", format_args!("logs can't be let go: {e:?}")))?;
        if self.watch_space()? {
            return Ok(());
        }
        let Running::Primary(p) = &mut self.running else {
            return Ok(());
        };
        // Asked first: the logger may switch at any moment, and then what is current is seen below.
        let rotating = m.progress.is_rotating();
        let Some((mut current, mut end)) = m.progress.current() else {
            return Ok(());
        };
        if current != p.log {
            match m.publish_logs() {
                Some(now) => (current, end) = now,
                None => return Ok(()),
            }
            p.log = current;
        }
        // Everything of the logs before is on the disk: they are no longer needed here.
        let header = u64::try_from(HEADER_SIZE).unwrap_or(0);
        if let Some(link) = m.replay_link(&m.me()) {
            let behind = link.log.number < current.number;
            if behind
                && p.pipe
                    .with(|s| s.published.is_none_or(|l| l.number < current.number))
                && p.pipe
                    .with(|s| s.buffer.is_empty() && s.published == s.buffer.written_position())
            {
                let _ = m.advance(&current, header, end, false);
            }
        }
        if rotating {
            return Ok(());
        }
        let next = LogName {
            number: current.number.saturating_add(1),
            creator: m.me(),
        };
        let asked = paths::log(&m.name, &next)
            .and_then(|p| dir::stat(&p))
            .is_ok_and(|s| s.kind == dir::EntryKind::File && s.size == 0);
        let limit = rotate_at(
            tunables::LOGROT_AUTO_GB.get(),
            m.env.space.space().total,
            m.env.space.level(),
        );
        // Somebody has joined whose disk writes larger units than the batches of this log keep apart.
        let coarser = m.log_block() > self.log_block.load(Relaxed);
        if asked || coarser || end >= limit || m.progress.wants_next() {
            // Since the last time the logger may have given up another.
            m.progress.close_left();
            let log = self.create_log(next, false)?;
            self.note_maxnr(next.number);
            m.progress.rotate_to(log).map_err(no_memory)?;
            if let Running::Primary(p) = &self.running {
                p.pipe.log_work.signal();
            }
        }
        Ok(())
    }

    /// Says the size again that this primary has, where a forced failover has cut off a resize that it had not heard of, and that
    /// its disk is complete.
    fn keep_size(&mut self, device: u64) {
        let m = &self.m;
        let me = m.me();
        let status = || m.number(format_args!("syncstatus-{me}"));
        if m.designated() == Some(me) {
            if let Some(device) = unheard_primary(status(), device) {
                let said = m.try_set(format_args!("syncstatus-{me}"), format_args!("{device}"));
                if said.is_ok() {
                    pr_warn!("{}: another host said that this disk is not complete; this host is primary, so it is\n", m.name.as_str());
                }
            }
        }
        let done = status();
        // Not while the role goes to another host.
        let device = if m.designated() == Some(me) {
            device
        } else {
            0
        };
        let Some(size) = unheard_resize(done, m.size(), device) else {
            self.larger = None;
            return;
        };
        // A tool writes two links, and a scan may have seen one of them only.
        let now = time::mono_ns();
        let since = *self.larger.get_or_insert(now);
        if now.saturating_sub(since) > LARGER_MS * 1_000_000 {
            if m.try_set(format_args!("size"), format_args!("{size}"))
                .is_ok()
            {
                pr_warn!(
                    "{}: what another host said about the size is void since a failover; the resource has {} bytes\n",
                    m.name.as_str(),
                    size
                );
            } else {
                self.larger = Some(now);
            }
        }
    }

    /// Stops logging where there is no room for it, and goes back to it. `true`: nothing is logged.
    #[inline(never)]
    fn watch_space(&mut self) -> Result<bool, Reason> {
        let m = self.m.clone();
        let Running::Primary(p) = &self.running else {
            return Ok(false);
        };
        space::unlink_old(&m, true);
        let gap = m.dirty.is_open();
        let stopped_ms = gap.then(|| {
            let now = time::mono_ns();
            let since = *self.stopped_at.get_or_insert(now);
            now.saturating_sub(since) / 1_000_000
        });
        if !gap {
            self.stopped_at = None;
        }
        let v = space::verdict(&m, stopped_ms);
        if v.near != self.near_limit {
            self.near_limit = v.near;
            if v.near {
                pr_warn!(
                    "{}: its logs come near to the limit of this resource ({} bytes)\n",
                    m.name.as_str(),
                    v.used
                );
            }
        }
        self.shortage = v.log.err();
        if !gap {
            m.progress.stop_logging(v.log.is_err());
            let level = m.env.space.level();
            p.pipe.with(|s| {
                if !s.unlogged {
                    // What is buffered when logging stops has to go to the disk before the next flush is complete.
                    s.cap = if level >= 3 { SHORT_BUFFER } else { usize::MAX };
                }
            });
            if v.log.is_err() {
                p.pipe.log_work.signal();
            }
            m.dirty.maintain(&m);
            return Ok(false);
        }
        m.progress.stop_logging(false);
        m.publish_logs();
        let next = m.dirty.last_gap().map(|(_, _, next)| next);
        let may = |next: &LogName| {
            v.log.is_ok() && !m.progress.is_rotating() && !m.progress.is_untold(next.number)
        };
        if let Some(next) = next.filter(may) {
            let log = self.create_log(next, true)?;
            self.note_maxnr(next.number);
            m.progress.rotate_to(log).map_err(no_memory)?;
            p.pipe.log_work.signal();
        }
        Ok(true)
    }

    /// Writes what is.
    #[inline(never)]
    fn publish(&mut self, step: Step, o: &Observed) {
        let m = &self.m;
        let me = m.me();
        let bit = |key: &str, on: bool| {
            m.set(
                format_args!("actual-{me}/{key}"),
                format_args!("{}", u8::from(on)),
            )
        };
        let role = self.role();
        self.note_unflushed();
        bit("is-attached", role != Role::Detached);
        bit("is-primary", role == Role::Primary || self.unsaid);
        bit("if-on", role == Role::Primary);
        let (syncing, replaying, fetching) = match &self.running {
            Running::Secondary(s) => (
                s.sync.as_ref().is_some_and(|w| !w.is_finished()),
                s.replay.is_some(),
                s.fetch.is_some() && m.fetch.is_busy(),
            ),
            _ => (false, false, false),
        };
        bit("is-syncing", syncing);
        bit("is-replaying", replaying);
        if role == Role::Primary {
            drop_logs::say(m);
        }
        let gap = m.dirty.is_open();
        bit("is-late", self.is_late);
        bit("is-emergency", gap && role == Role::Primary);
        if role != Role::Detached {
            // Also in a secondary, until it is primary again.
            bit("has-gap", gap);
        }
        bit(
            "has-emergency",
            role == Role::Primary && self.shortage.is_some(),
        );
        if let Some(bytes) = m.dirty.dirty_bytes() {
            m.set(
                format_args!("actual-{me}/dirty-bytes"),
                format_args!("{bytes}"),
            );
        } else if m.get(format_args!("actual-{me}/dirty-bytes")).is_some() {
            m.set(format_args!("actual-{me}/dirty-bytes"), format_args!("0"));
        }
        // While the workers run it changes with every request.
        let may_fetch = matches!(&self.running, Running::Secondary(s) if s.fetch.is_some());
        if self.figures || !may_fetch {
            bit("is-copying", fetching);
        }
        let mut opened = 0;
        if let Running::Primary(p) = &self.running {
            opened = p.disk.open_count();
            let mut holder = KVec::new();
            let _ = p.disk.holder(&mut holder);
            let holder = core::str::from_utf8(&holder)
                .ok()
                .filter(|h| !h.is_empty())
                .unwrap_or("(none)");
            m.set(
                format_args!("actual-{me}/device-holder"),
                format_args!("{holder}"),
            );
        }
        if self.figures {
            self.publish_figures();
        }
        m.set(
            format_args!("actual-{me}/open-count"),
            format_args!("{opened}"),
        );
        self.publish_state(step, o, syncing, replaying);
        // After all that was done about it: who takes the role waits for this.
        if let Some(seen) = self.seen.filter(|seen| self.said != Some(*seen)) {
            // A crash must not bring back an older word: then this host would take up a role that another one has.
            let said = paths::sync_resource_dir(&m.name).and_then(|()| {
                m.try_set(
                    format_args!("actual-{me}/primary-seen"),
                    format_args!("{seen}"),
                )
            });
            if said.is_ok() {
                self.said = Some(seen);
            }
        }
    }

    /// What changes all the time.
    #[inline(never)]
    fn publish_figures(&self) {
        let m = &self.m;
        let me = m.me();
        if let Running::Primary(p) = &self.running {
            if let Some((log, end)) = m.publish_logs() {
                m.set(
                    format_args!("actual-{me}/log-end"),
                    format_args!("{log},{end}"),
                );
            }
            m.set(
                format_args!("actual-{me}/write-back"),
                format_args!("{}", p.pipe.with(|s| s.buffer.bytes())),
            );
        } else if let Some((log, pos)) = m.fetch.position() {
            m.set(
                format_args!("actual-{me}/fetch-pos"),
                format_args!("{log},{pos}"),
            );
        }
    }

    /// Whether the designated primary says that it does not log.
    fn emergency_elsewhere(&self) -> bool {
        let me = self.m.me();
        self.m
            .designated()
            .is_some_and(|h| h != me && self.m.switch(format_args!("actual-{h}/is-emergency")))
    }

    #[inline(never)]
    fn publish_state(&self, step: Step, o: &Observed, syncing: bool, replaying: bool) {
        let m = &self.m;
        let me = m.me();
        let state = |word: &str, text: core::fmt::Arguments<'_>| {
            let r = m.try_set(
                format_args!("actual-{me}/state"),
                format_args!("{word}{text}"),
            );
            if r.is_err_and(|e| e == ENOSPC || e == EDQUOT) {
                // A sentence needs a block of its own, one word does not: it is told also when not a byte is left.
                m.set(format_args!("actual-{me}/state"), format_args!("{word}"));
            }
        };
        let code = |n: i32| m.set(format_args!("actual-{me}/replay-code"), format_args!("{n}"));
        let trouble = m.trouble.lock();
        // In a split brain no worker runs: what troubled one of them is over, and would hide what matters.
        let trouble = trouble.as_ref().filter(|_| !o.split_brain);
        let failure = self.failure.as_ref().or(trouble);
        if let Some(r) = failure {
            code(if r.word == "defective-log" {
                EBADMSG.to_errno()
            } else {
                0
            });
            return state(r.word, format_args!(" {}", r.text()));
        }
        code(if replaying { 0 } else { 1 });
        match &self.running {
            Running::Primary(p) => {
                if let Some(e) = p.pipe.with(|s| s.disk_error) {
                    return state("disk-error", format_args!(" writing to the disk fails ({e:?}); the data is safe in buffer and log. Replace the disk or hand over"));
                }
                if let Some(e) = p.pipe.with(|s| s.log_error) {
                    return state("disk-error", format_args!(" the log can't be written ({e:?}), the disk of /mars fails; flushes fail, and nothing new is replicated. Repair it"));
                }
            }
            Running::Secondary(s) => {
                if let Some(e) = s.replay.as_ref().and_then(replay::Worker::disk_error) {
                    return state("disk-error", format_args!(" replay can't write to the disk ({e:?}); it goes on by itself as soon as it can. Repair or replace the disk"));
                }
            }
            Running::Detached => (),
        }
        if let (Running::Primary(_), Some(e)) = (&self.running, m.progress.error()) {
            return state(
                "no-space",
                format_args!(" the log can't be written ({e:?}); writes wait. Make room in /mars"),
            );
        }
        if let (Running::Primary(_), true) = (&self.running, m.dirty.is_open()) {
            let why = match self.shortage {
                Some(Shortage::Limit) => {
                    "less than this resource's emergency-limit is free in /mars"
                }
                Some(Shortage::Budget) => "its logs exceed this resource's space-limit",
                Some(Shortage::Held) => "there is room again, but logger_resume is 0",
                Some(Shortage::NotYet) => "there is not yet enough room in /mars",
                Some(Shortage::Jammed) => "/mars is full",
                None => "logging begins again",
            };
            return state("emergency", format_args!(" {why}: applications go on, nothing is logged, replicas stay where they are. Make room: marsadm log-delete-all {}, let members that are away catch up or leave, or enlarge /mars", m.name));
        }
        let elsewhere = self.emergency_elsewhere();
        match (step, &self.running) {
            (Step::Stay, Running::Secondary(_)) if o.designated == Designated::Me && self.is_late => state("waiting", format_args!(" the clock of another host is more than 30 days ahead of this host's: what was decided there can't be known here, so the primary role is not taken. Set the clocks right (the kernel log names the host)")),
            (Step::Stay, Running::Secondary(_)) if o.designated == Designated::Me && self.in_doubt => state("waiting", format_args!(" another host has something else than this one about who is primary of which size, and one of the two was written by a clock that was more than 30 days ahead: which one is newer can't be known. Set the clocks right if they are not; then decide with 'marsadm primary --force {}' on the host whose data survives", m.name)),
            (Step::WaitForClose, _) => state("stopping", format_args!(" the device is still open; close it")),
            (_, Running::Primary(_)) => state("primary", format_args!("")),
            (_, Running::Detached) => state("detached", format_args!("")),
            _ if o.split_brain => state("split-brain", format_args!(" this host and another have written different histories; decide which one survives and run 'marsadm invalidate {}' on the other", m.name)),
            (Step::RefuseInconsistent(_), _) => state("waiting", format_args!(" designated primary, but the disk is not consistent yet")),
            _ if elsewhere && !syncing => state("waiting", format_args!(" the primary's /mars is full, it does not log (emergency mode). This replica stays as it is and goes on by itself when there is room on the primary")),
            _ if syncing => state("syncing", format_args!("")),
            (Step::Follow(Work { replay: true, .. }), _) if m.is_led() && m.fetch.gone().is_some() && self.lacking.is_none() => state("waiting", format_args!(" the primary does not have the log that this replica needs next. If no other member has it ('marsadm view'), run 'marsadm invalidate {}' here", m.name)),
            _ if replaying => state("replaying", format_args!("")),
            _ => state("secondary", format_args!("")),
        }
    }
}

/// Removes the logs of this host with the number `from` or a later one that are from a history which was cut off: recovery, which
/// has ended in `end`, did not come to them, they are older than that, and no other member names them. The next rotations would
/// meet them. Gives one that is to stay.
///
/// # Errors
///
/// `/mars` can't be read, or written.
#[inline(never)]
fn clear_own_from(m: &Member, end: &LogName, from: u32) -> Result<Option<LogName>> {
    let me = m.me();
    let mut found: KVec<LogName> = KVec::new();
    let mut failed = Ok(());
    space::for_each_log(m, |log, size| {
        if log.creator == me && log.number >= from && size > 0 {
            failed = failed.and(found.push(log, GFP_KERNEL).map_err(|_| ENOMEM));
        }
    });
    failed?;
    for log in &found {
        let path = paths::log(&m.name, log)?;
        let file = File::open(&path, OpenFlags::default(), 0o600)?;
        if !has_batches(&file, &m.name, log) {
            continue;
        }
        let mut named = false;
        m.for_each_member(|host| {
            let is_it =
                |v: &VersionLink| v.this.log == *log || v.previous.is_some_and(|p| p.log == *log);
            named |= host != me
                && (m.replay_link(&host).is_some_and(|l| l.log == *log)
                    || m.history(&host).map_or(true, |h| h.iter().any(is_it)));
        })?;
        // One that is newer was perhaps only not found, because something else is damaged.
        if named || !replay::is_other(m, end, log) {
            return Ok(Some(*log));
        }
        pr_warn!(
            "{}: removing {:?}, which no member names any more\n",
            m.name.as_str(),
            log
        );
        paths::sync_resource_dir(&m.name)?;
        dir::unlink(&path)?;
    }
    Ok(None)
}

fn log_failed(name: &LogName, e: Error) -> Reason {
    if e == EEXIST {
        // It must not be removed, nor another one get its name: whoever has replayed it would take that for the same.
        return fail(
            "waiting",
            format_args!("log {name} of this host is here and in the way, so it can't become primary. If it is from a history that was cut off and another member still has it, run 'marsadm invalidate' on that member, or if that is lost, 'marsadm leave-resource --host=HOST --force' for it; then it goes on by itself. Else something before it is damaged (see the kernel log): let another member become primary"),
        );
    }
    fail(
        "no-space",
        format_args!("log {name} can't be started: {e:?}; is /mars full or read-only?"),
    )
}

/// A position became durable on the primary's disk.
fn publish_written(m: &Member, pos: LogPos) -> bool {
    let name = LogName {
        number: pos.number,
        creator: m.me(),
    };
    // The history first: whoever joins at this position copies it.
    let end = match m.publish_logs() {
        Some((log, end)) if log == name => end,
        _ => pos.pos,
    };
    if m.progress.is_untold(name.number) {
        return false;
    }
    m.advance(&name, pos.pos, end, false).is_ok()
}

#[cold]
fn recovery_failed(e: Error) -> Reason {
    if e == EBADMSG || e == ENOENT {
        return fail("defective-log", format_args!("recovery of the local log failed: {e:?}; see the kernel log. The log is fetched again from another member while fetching is on ('marsadm resume-fetch'), as far as it was durable here. If no member has it: 'marsadm pause-fetch' and 'marsadm primary --force' on a member whose view shows no DefectiveLog, and 'marsadm invalidate' here"));
    }
    if e == ENOSPC || e == EDQUOT {
        return fail("no-space", format_args!("recovery of the local log can't write its links: {e:?}; make room in /mars (a few MiB), it goes on by itself"));
    }
    fail("disk-error", format_args!("recovery of the local log failed: {e:?}; it is tried again. See the kernel log for the disk that fails"))
}

fn fail(word: &'static str, text: core::fmt::Arguments<'_>) -> Reason {
    Reason {
        word,
        text: CString::try_from_fmt(text).ok(),
    }
}

fn no_memory<E>(_: E) -> Reason {
    Reason {
        word: "waiting",
        text: None,
    }
}
