// SPDX-License-Identifier: GPL-2.0-or-later

//! One resource as this host sees it: names, its part of the tree, and what its running parts share.
//!
//! A [`Member`] is shared by the control thread, the workers and the server (by `Arc`); the running parts themselves are
//! owned by the control thread (`control.rs`). Locks here are leaves, except `publishing`, which comes before the store's.

use core::fmt::Arguments;

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

use mars_core::{
    dirty::{
        DroppedLink,
        GapLink,
        Lack, //
    },
    lamport::LamportTime,
    log::{
        LogName,
        VersionLink,
        HEADER_SIZE, //
    },
    name::Name,
    succession::{
        course,
        device_size,
        is_beyond,
        is_consistent,
        is_forward,
        is_synced,
        is_void_growth,
        is_whole,
        may_sync_at,
        parse_sync_source,
        reported_end,
        undecided,
        vouches,
        Course, //
    },
    tree::{
        value::ReplayLink,
        TOMBSTONE_TEXT, //
    }, //
};

use crate::{
    engine::{
        digest::KernelDigest,
        dirty::Dirty,
        env::Env,
        fetch::Fetch,
        inject,
        logger::{
            News,
            Progress, //
        },
        paths,
        store::Value,
        sync::Sync,
        text, //
    },
    sys::{
        bdev::BlockDevice,
        event::Event, //
    }, //
};

/// Why a resource can't go on, for `actual-<me>/state`.
pub(crate) struct Reason {
    /// A word for machines.
    pub(crate) word: &'static str,
    /// A sentence for people that says what to do; `None` if there was no memory for it.
    pub(crate) text: Option<CString>,
}

impl Reason {
    /// The sentence.
    pub(crate) fn text(&self) -> &str {
        self.text.as_ref().map_or("out of memory", text::of)
    }
}

/// What the server may use while the disk is attached.
#[derive(Default)]
pub(crate) struct Attached {
    /// The backing disk.
    pub(crate) bdev: Option<Arc<BlockDevice>>,
    /// `/dev/mars/<resource>` exists here.
    pub(crate) primary: bool,
}

/// A resource on this host.
#[pin_data]
pub(crate) struct Member {
    /// Name of the resource.
    pub(crate) name: Name,
    /// The host.
    pub(crate) env: Arc<Env>,
    /// Wakes the control thread.
    #[pin]
    pub(crate) kick: Event,
    /// What the logger has reached, while primary.
    pub(crate) progress: Arc<Progress>,
    /// State of fetching logs.
    pub(crate) fetch: Arc<Fetch>,
    /// State of the sync.
    pub(crate) sync: Arc<Sync>,
    /// What was written without a log.
    pub(crate) dirty: Arc<Dirty>,
    #[pin]
    pub(crate) attached: Mutex<Attached>,
    /// Held by [`Self::publish_logs`] and [`Self::advance`], also while the links are written.
    #[pin]
    publishing: Mutex<()>,
    /// Why replay or sync can't go on; shown until it goes on.
    #[pin]
    pub(crate) trouble: Mutex<Option<Reason>>,
}

impl Member {
    /// Makes the shared part of resource `name`.
    pub(crate) fn new(name: Name, env: Arc<Env>) -> Result<Arc<Self>> {
        let progress = Progress::new(name)?;
        let fetch = Fetch::new()?;
        let sync = Sync::new()?;
        let dirty = Dirty::new()?;
        Arc::pin_init(
            try_pin_init!(Self {
                name,
                env,
                kick <- Event::new(),
                progress,
                fetch,
                sync,
                dirty,
                attached <- new_mutex!(Attached::default()),
                publishing <- new_mutex!(()),
                trouble <- new_mutex!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// This host.
    pub(crate) fn me(&self) -> Name {
        self.env.me
    }

    fn path(&self, key: Arguments<'_>) -> Result<CString> {
        CString::try_from_fmt(format_args!("resource-{}/{}", self.name, key))
    }

    /// Value of a link of this resource; `None` if it does not exist or is deleted.
    pub(crate) fn get(&self, key: Arguments<'_>) -> Option<Value> {
        let path = self.path(key).ok()?;
        self.env.store.get(text::of(&path))
    }

    /// Whether a switch is on; off when there is none.
    pub(crate) fn switch(&self, key: Arguments<'_>) -> bool {
        self.get(key).is_some_and(|v| v.as_bytes() == b"1")
    }

    /// A link that holds a number.
    pub(crate) fn number(&self, key: Arguments<'_>) -> Option<u64> {
        self.get(key)?.as_str().parse().ok()
    }

    /// Writes a link if its value changes. Failure is reported in the kernel log: the next round tries again.
    pub(crate) fn set(&self, key: Arguments<'_>, value: Arguments<'_>) {
        let _ = self.try_set(key, value);
    }

    /// Like [`Self::set`], for what later links rely on.
    ///
    /// # Errors
    ///
    /// The link has its old value: `/mars` is full or fails, or there is no memory.
    pub(crate) fn try_set(&self, key: Arguments<'_>, value: Arguments<'_>) -> Result {
        self.path(key)
            .and_then(|path| {
                let value = CString::try_from_fmt(value)?;
                self.env.store.set(text::of(&path), text::of(&value))
            })
            .inspect_err(|e| {
                crate::engine::text::warn_limited(format_args!(
                    "{}: writing a link failed: {e:?}",
                    self.name
                ));
            })
    }

    /// When this host became a member with the disk it has now.
    pub(crate) fn joined_at(&self) -> Option<LamportTime> {
        self.stamp(format_args!("data-{}", self.me()))
    }

    /// When a link of the resource was written.
    pub(crate) fn stamp(&self, key: Arguments<'_>) -> Option<LamportTime> {
        let path = self.path(key).ok()?;
        self.env.store.stamp(text::of(&path))
    }

    /// Whether this host said last that its disk has what no log has.
    pub(crate) fn is_in_gap(&self) -> bool {
        self.switch(format_args!("actual-{}/has-gap", self.me()))
    }

    /// Whether `log` is the one that this host will begin behind a gap which is open.
    pub(crate) fn is_ahead(&self, log: &LogName) -> bool {
        self.dirty.is_ahead(log).unwrap_or_else(|| {
            // Without the map, the tree.
            let header = u64::try_from(HEADER_SIZE).unwrap_or(0);
            let said = || self.version(log.number, &self.me());
            self.is_in_gap()
                && log.creator == self.me()
                && said().is_none_or(|(_, v)| v.this.pos <= header)
        })
    }

    /// Whether this replica may replay `log`, which begins behind a gap: its disk had what was written in the gap.
    pub(crate) fn has_passed_gap(&self, log: &LogName) -> bool {
        let me = self.me();
        log.creator == me
            || self
                .gap_link()
                .is_some_and(|g| g.log == *log && g.lack == Lack::Done)
    }

    /// What this replica lacks, or lacked last, before which log.
    pub(crate) fn gap_link(&self) -> Option<GapLink> {
        GapLink::parse(self.get(format_args!("gap-{}", self.me()))?.as_bytes())
    }

    /// What this replica has to get by a map of the primary before it can begin at the log of its replay link: the log, and
    /// [`DirtyRead::since`](mars_core::wire::message::bulk::DirtyRead::since).
    pub(crate) fn gap_to_pass(&self) -> Option<(LogName, u32)> {
        let link = self.gap_link()?;
        let since = match link.lack {
            Lack::Gap => 0,
            Lack::Since(number) => number,
            Lack::All | Lack::Done => return None,
        };
        (self.replay_link(&self.me())?.log == link.log).then_some((link.log, since))
    }

    /// Which logs `host` has deleted although members needed them.
    pub(crate) fn dropped_logs(&self, host: &Name) -> Option<DroppedLink> {
        DroppedLink::parse(
            self.get(format_args!("actual-{host}/dropped-logs"))?
                .as_bytes(),
        )
    }

    /// The largest unit, in bytes, that a disk below `/mars` of a member writes at once. Of a host that has not said it, the most.
    pub(crate) fn log_block(&self) -> u32 {
        const MOST: u32 = 4096;
        let mut block = 0;
        let r = self.for_each_member(|host| {
            let said = CString::try_from_fmt(format_args!("actual-{host}/log-block"))
                .ok()
                .and_then(|path| self.env.store.get(text::of(&path)))
                .and_then(|v| v.as_str().parse::<u32>().ok())
                .filter(|n| n.is_power_of_two() && *n <= MOST);
            block = block.max(said.unwrap_or(if host == self.me() { 0 } else { MOST }));
        });
        r.map_or(MOST, |()| block)
    }

    /// Backing disk and size as the tree has them.
    pub(crate) fn disk_path(&self) -> Option<CString> {
        let v = self.get(format_args!("data-{}", self.me()))?;
        CString::try_from_fmt(format_args!("{}", v.as_str())).ok()
    }

    /// Logical size in bytes.
    pub(crate) fn size(&self) -> Option<u64> {
        self.number(format_args!("size"))
    }

    /// Whether the disk of this host is complete, or was before the resource grew.
    pub(crate) fn is_whole(&self) -> bool {
        let me = self.me();
        let from = self.get(format_args!("syncfrom-{me}"));
        let from = from.as_ref().map(Value::as_bytes);
        is_whole(
            self.number(format_args!("syncstatus-{me}")),
            self.size(),
            from,
        )
    }

    /// So much of the resource the disk of this host has.
    pub(crate) fn device_size(&self) -> Option<u64> {
        let me = self.me();
        device_size(self.number(format_args!("syncstatus-{me}")), self.size())
    }

    /// A flush of the disk that has failed is not forgotten when the disk is closed, or the module unloaded.
    pub(crate) fn note_unflushed(&self, bdev: &BlockDevice) {
        let me = self.me();
        let noted = self.number(format_args!("unflushed-{me}"));
        if noted.is_none() && self.disk_path().is_some() {
            // It must be there before /mars is full.
            self.set(format_args!("unflushed-{me}"), format_args!("0"));
        }
        let noted = noted.unwrap_or(0);
        if noted > 0 {
            bdev.note_unflushed();
        }
        let size = self.size().unwrap_or(0).max(1);
        if bdev.is_unflushed() && size > noted {
            self.set(format_args!("unflushed-{me}"), format_args!("{size}"));
            // If the kernel crashes and the disk goes on, so does the doubt.
            let _ = paths::sync_resource_dir(&self.name);
        }
    }

    /// The first `size` bytes of the disk were written once more, and flushed.
    pub(crate) fn is_flushed(&self, bdev: &BlockDevice, size: u64) {
        let me = self.me();
        let noted = self.number(format_args!("unflushed-{me}")).unwrap_or(0);
        if bdev.is_unflushed() && noted <= size {
            self.set(format_args!("unflushed-{me}"), format_args!("0"));
            bdev.settle_unflushed();
        }
    }

    /// Whether a failover has cut off a resize, and what this host has got of it: see [`is_void_growth`].
    pub(crate) fn is_void_growth(&self) -> bool {
        let me = self.me();
        let from = self.get(format_args!("syncfrom-{me}"));
        is_void_growth(
            self.number(format_args!("syncstatus-{me}")),
            self.size(),
            from.as_ref().map(Value::as_bytes),
        )
    }

    /// Goes back to what was complete before such a resize, while no sync runs. That was consistent, too, wherever the end of
    /// the sync was.
    pub(crate) fn forget_void_growth(&self) -> Result {
        let me = self.me();
        let Some(size) = self.size().filter(|_| self.is_void_growth()) else {
            return Ok(());
        };
        // In this order: of more than that this disk is never complete.
        self.try_set(format_args!("syncstatus-{me}"), format_args!("{size}"))?;
        self.try_set(
            format_args!("syncpos-{me}"),
            format_args!("{TOMBSTONE_TEXT}"),
        )?;
        self.try_set(format_args!("syncfrom-{me}"), format_args!("done,{size}"))?;
        paths::sync_resource_dir(&self.name)
    }

    /// Takes back what the complete disk of this host says of a resize that was never decided, or that a failover has cut off.
    pub(crate) fn forget_void_resize(&self) -> Result {
        let me = self.me();
        let done = self.number(format_args!("syncstatus-{me}"));
        // Of a sync that is under way nothing counts, or what was complete before it (`forget_void_growth`).
        let counts = self.is_synced(&me) && !self.is_void_growth();
        let Some(size) = undecided(done, self.size()).filter(|_| counts) else {
            return Ok(());
        };
        let from = self.get(format_args!("syncfrom-{me}"));
        if let Some((host, log)) = from.and_then(|v| parse_sync_source(v.as_bytes())) {
            // Complete, but not consistent yet.
            self.try_set(
                format_args!("syncfrom-{me}"),
                format_args!("{host},{log},{size}"),
            )?;
        }
        self.try_set(format_args!("syncstatus-{me}"), format_args!("{size}"))
    }

    /// Whether all of the disk of `host` was filled by a sync, or was the source of one.
    pub(crate) fn is_synced(&self, host: &Name) -> bool {
        let from = self.get(format_args!("syncfrom-{host}"));
        is_synced(
            self.number(format_args!("syncstatus-{host}")),
            self.size(),
            from.as_ref().map(Value::as_bytes),
        )
    }

    /// The replay link of `host`.
    pub(crate) fn replay_link(&self, host: &Name) -> Option<ReplayLink> {
        ReplayLink::parse(self.get(format_args!("replay-{host}"))?.as_bytes())
    }

    /// Moves this host's replay link; `end` is where the log ends as far as known.
    ///
    /// # Errors
    ///
    /// As [`Self::try_set`].
    pub(crate) fn set_replay(&self, log: &LogName, pos: u64, end: u64) -> Result {
        let link = ReplayLink {
            log: *log,
            pos,
            rest: end.saturating_sub(pos),
        };
        inject::at!(ReplayLink, pos, 0)?;
        self.try_set(format_args!("replay-{}", self.me()), format_args!("{link}"))?;
        inject::at!(ReplayLinkMoved, pos, 0)
    }

    /// Moves this host's replay link as [`Self::set_replay`], unless somebody else has moved it further already, and with
    /// `version` the version link, too. For threads that take a position and then the time to publish it.
    ///
    /// # Errors
    ///
    /// As [`Self::try_set`]; then it is to be called again, also with the same position.
    pub(crate) fn advance(&self, log: &LogName, pos: u64, end: u64, version: bool) -> Result {
        let _one_at_a_time = self.publishing.lock();
        if !is_forward(self.replay_link(&self.me()), log.number, pos) {
            return Ok(());
        }
        // The history first, or a crash leaves one behind that is too short where the next log begins. If there is no room for
        // it, the shorter link is written nevertheless: only what is passed can be removed to make some.
        let said = if version && self.said_end(log) <= pos {
            self.set_version(log, pos)
        } else {
            Ok(())
        };
        self.set_replay(log, pos, end)?;
        said
    }

    /// Says how far a log of this host is durable, unless more was said.
    ///
    /// # Errors
    ///
    /// As [`Self::try_set`].
    pub(crate) fn say_end(&self, log: &LogName, end: u64) -> Result {
        let _one_at_a_time = self.publishing.lock();
        if self.said_end(log) >= end {
            return Ok(());
        }
        self.set_version(log, end)
    }

    /// How far `log` was durable here according to this host's own version link.
    pub(crate) fn reported_end(&self, log: &LogName) -> u64 {
        let own = self.version(log.number, &self.me());
        reported_end(log, own.as_ref().map(|(_, v)| v))
    }

    /// How far a log of this very host is durable, as it has said: that counts, also while it replays what is before.
    pub(crate) fn said_end(&self, log: &LogName) -> u64 {
        if log.creator == self.me() {
            self.reported_end(log)
        } else {
            0
        }
    }

    /// The version link `number` of `host`, raw and parsed.
    pub(crate) fn version(&self, number: u32, host: &Name) -> Option<(Value, VersionLink)> {
        let v = self.get(format_args!("version-{number:09}-{host}"))?;
        let parsed = VersionLink::parse(v.as_bytes())?;
        Some((v, parsed))
    }

    /// Writes this host's version link for `log`, which it has up to `pos`. That of the log before must be final, because
    /// this one names its end, and other members take that for the truth.
    ///
    /// # Errors
    ///
    /// As [`Self::try_set`].
    pub(crate) fn set_version(&self, log: &LogName, pos: u64) -> Result {
        let me = self.me();
        // The first log has no predecessor (as in the original, which has an artificial link 0 nevertheless).
        let before = log
            .number
            .checked_sub(1)
            .filter(|n| *n > 0)
            .and_then(|n| self.version(n, &me));
        let previous = before.as_ref().map_or(&[][..], |(v, _)| v.as_bytes());
        let link = VersionLink::compute::<KernelDigest>(*log, pos, previous);
        let link = link.ok_or(EINVAL).inspect_err(|_| {
            pr_err!("version link of log {} can't be computed\n", log.number);
        })?;
        inject::at!(VersionLink, pos, 0)?;
        self.try_set(
            format_args!("version-{:09}-{me}", log.number),
            format_args!("{link}"),
        )
    }

    /// Tells the tree what the logger has reached, closed logs first: a version link never names an end of its predecessor
    /// that is not the final one. Gives the log that is written, and its durable end.
    pub(crate) fn publish_logs(&self) -> Option<(LogName, u64)> {
        let _one_at_a_time = self.publishing.lock();
        loop {
            let Some(news) = self.progress.news() else {
                // That more was written than the log says must be known before another host can go on behind the log: with
                // this link its history would exclude ours.
                let (_, _, next) = self.dirty.last_gap().filter(|_| self.dirty.is_open())?;
                let header = u64::try_from(HEADER_SIZE).unwrap_or(0);
                let me = self.me();
                if self
                    .version(next.number, &me)
                    .is_none_or(|(_, v)| v.this.log != next)
                {
                    // First, and durably: who only has the tree, as long as the disk is not attached, must not serve what the
                    // file has, and others bring the version link back.
                    self.try_set(format_args!("actual-{me}/has-gap"), format_args!("1"))
                        .and_then(|()| paths::sync_actual_dir(&self.name, &me))
                        .ok()?;
                }
                self.set_version(&next, header).ok()?;
                return None;
            };
            match news {
                News::Closed(log, end) => {
                    self.set_version(&log, end).ok()?;
                    // A crash must not bring back an older one beside the link of the next log, which would then be made anew
                    // from it and name an end that is too early.
                    paths::sync_resource_dir(&self.name).ok()?;
                    self.progress.told(&log);
                }
                News::Current(log, end) => {
                    self.set_version(&log, end).ok()?;
                    return Some((log, end));
                }
            }
        }
    }

    /// History of `host`, ascending.
    pub(crate) fn history(&self, host: &Name) -> Result<KVec<VersionLink>> {
        let mut out: KVec<VersionLink> = KVec::new();
        let prefix = CString::try_from_fmt(format_args!("resource-{}/version-", self.name))?;
        let mut failed: Result = Ok(());
        self.env.store.for_each(text::of(&prefix), |rest, value| {
            let Some((_, h)) = rest.split_at_checked(10) else {
                return;
            };
            if h.as_bytes() != host.as_bytes() {
                return;
            }
            if let Some(v) = VersionLink::parse(value.as_bytes()) {
                if let Err(e) = out.push(v, GFP_KERNEL) {
                    failed = Err(e.into());
                }
            }
        })?;
        failed.map(|()| out)
    }

    /// What the history of the designated primary, another host, says about `log`.
    pub(crate) fn course(&self, log: &LogName) -> Course {
        let Some(primary) = self.designated().filter(|h| *h != self.me()) else {
            return Course::Open(0);
        };
        let of = |n| self.version(n, &primary).map(|(_, v)| v);
        let next = log.number.checked_add(1).and_then(of);
        course(log, of(log.number).as_ref(), next.as_ref())
    }

    /// Whether a sync from `host` may fill the disk here.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub(crate) fn may_sync_from(&self, host: &Name) -> Result<bool> {
        let me = self.me();
        let Some(link) = self.replay_link(&me) else {
            return Ok(false);
        };
        let theirs = self.history(host)?;
        if let Some(may) = may_sync_at(&link.log, &theirs) {
            return Ok(may);
        }
        let mut found = false;
        self.for_each_member(|h| {
            if h != me && !found {
                let other = self.history(&h);
                found = other.is_ok_and(|o| vouches(&link.log, &o, &theirs));
            }
        })?;
        Ok(found)
    }

    /// Whether the designated primary is another host, and is primary.
    pub(crate) fn is_led(&self) -> bool {
        self.designated()
            .is_some_and(|h| h != self.me() && self.switch(format_args!("actual-{h}/is-primary")))
    }

    /// Whether the replay link here is in a log that the running primary's history does not lead to, or replay would have to
    /// reach such a log before what a sync from another primary has copied is consistent.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub(crate) fn is_beyond(&self) -> Result<bool> {
        let Some(primary) = self.designated().filter(|_| self.is_led()) else {
            return Ok(false);
        };
        let newest = self.history(&primary)?.last().map(|v| v.this.log.number);
        let me = self.me();
        let link = self.replay_link(&me);
        let syncpos = self.get(format_args!("syncpos-{me}"));
        // Of a log of its own the running primary may have said less than it told the sync.
        let need = syncpos
            .and_then(|v| ReplayLink::parse(v.as_bytes()))
            .filter(|n| n.log.creator != primary && !is_consistent(Some(Some(*n)), link))
            .filter(|_| !self.is_void_growth());
        let beyond =
            |l: Option<ReplayLink>| l.zip(newest).is_some_and(|(l, n)| is_beyond(&l.log, n));
        Ok(beyond(link) || beyond(need))
    }

    /// Calls `f` for each member of the resource (`data-<host>` exists).
    pub(crate) fn for_each_member(&self, mut f: impl FnMut(Name)) -> Result {
        let prefix = CString::try_from_fmt(format_args!("resource-{}/data-", self.name))?;
        self.env.store.for_each(text::of(&prefix), |rest, _| {
            if let Some(host) = Name::new(rest.as_bytes()) {
                f(host);
            }
        })
    }

    /// The designated primary.
    pub(crate) fn designated(&self) -> Option<Name> {
        Name::new(self.get(format_args!("primary"))?.as_bytes())
    }

    /// Sets or clears the reason why something can't go on.
    pub(crate) fn set_trouble(&self, trouble: Option<(&'static str, Arguments<'_>)>) {
        let new = trouble.map(|(word, text)| Reason {
            word,
            text: CString::try_from_fmt(text).ok(),
        });
        let mut t = self.trouble.lock();
        let same = match (&new, &*t) {
            // Called for each batch while all is well.
            (None, None) => true,
            (Some(new), Some(old)) => new.word == old.word && new.text() == old.text(),
            _ => false,
        };
        if same {
            // Else the control thread, which asks each time whether something may go on, would wake itself.
            return;
        }
        if let Some(r) = &new {
            if t.as_ref().is_none_or(|old| old.word != r.word) {
                pr_warn!("{}: {}: {}\n", self.name.as_str(), r.word, r.text());
            }
        }
        *t = new;
        drop(t);
        self.kick.signal();
    }

    /// Lamport stamp for now.
    pub(crate) fn now(&self) -> LamportTime {
        self.env.clock.now()
    }
}
