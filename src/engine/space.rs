// SPDX-License-Identifier: GPL-2.0-or-later

//! Room in `/mars`: how much there is, what a resource may do with it, and which log files go by themselves.
//!
//! The cluster loop looks once a second ([`Watch::look`]); control threads ask. What follows from it is decided by
//! `mars_core::space`. No locks.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use mars_core::{
    log::LogName,
    space::{
        decide,
        is_near_limit,
        may_unlink,
        next_level,
        Limits,
        Shortage,
        Space,
        View, //
    }, //
};

use crate::{
    engine::{
        inject,
        member::Member,
        paths,
        tunables, //
    },
    sys::dir::{
        self,
        EntryKind, //
    }, //
};

/// What was seen last.
pub(crate) struct Watch {
    level: Atomic<u32>,
    free: Atomic<u64>,
    total: Atomic<u64>,
}

impl Watch {
    /// Nothing seen yet: no shortage.
    pub(crate) fn new() -> Self {
        Self {
            level: Atomic::new(0),
            free: Atomic::new(0),
            total: Atomic::new(0),
        }
    }

    /// Looks at the file system, and moves the level: at most one step down, if it may fall at all.
    pub(crate) fn look(&self, fall: bool) {
        let Ok(s) = dir::statfs(paths::ROOT) else {
            return;
        };
        let space = Space {
            total: s.total,
            free: s.avail,
        };
        let old = self.level();
        let may_fall = fall && tunables::RESET_EMERGENCY.get() != 0;
        let new = next_level(old, &space, &limits(space.total), may_fall);
        self.free.store(space.free, Relaxed);
        self.total.store(space.total, Relaxed);
        self.level.store(new.into(), Relaxed);
        if new > old {
            pr_warn!(
                "/mars gets full: {} MiB of {} are free, emergency level {} of 4. Make room: marsadm log-delete-all all, or a larger /mars\n",
                space.free >> 20,
                space.total >> 20,
                new
            );
        } else if new == 0 && old > 0 {
            pr_info!("/mars has room again: {} MiB are free\n", space.free >> 20);
        }
    }

    /// Emergency level, 0 to 4.
    pub(crate) fn level(&self) -> u8 {
        u8::try_from(self.level.load(Relaxed)).unwrap_or(0)
    }

    /// Total and free bytes.
    pub(crate) fn space(&self) -> Space {
        Space {
            total: self.total.load(Relaxed),
            free: self.free.load(Relaxed),
        }
    }
}

fn limits(total: u64) -> Limits {
    Limits::new(tunables::FREE_SPACE_GB.each_ref().map(|t| t.get()), total)
}

/// What may be done with the room.
pub(crate) struct Verdict {
    /// Whether to log.
    pub(crate) log: core::result::Result<(), Shortage>,
    /// The resource comes near to its own limits.
    pub(crate) near: bool,
    /// Bytes that its logs occupy; only known if there is a budget.
    pub(crate) used: u64,
}

/// Whether `m` may log, if it does so now, or has stopped for so many milliseconds.
#[inline(never)]
pub(crate) fn verdict(m: &Member, stopped_ms: Option<u64>) -> Verdict {
    let me = m.me();
    if stopped_ms.is_some() {
        // What was seen last may be from before somebody took the rest.
        m.env.space.look(false);
    }
    let budget = m
        .number(format_args!("todo-{me}/space-limit"))
        .unwrap_or(0)
        .saturating_mul(1 << 20);
    let mut used = 0u64;
    if budget > 0 {
        // What is only kept ready for the log that is written does not count: a small limit would never be kept.
        let current = m.progress.current();
        for_each_log(m, |log, size| {
            let written = current.filter(|(l, _)| *l == log).map(|(_, end)| end);
            used = used.saturating_add(written.map_or(size, |end| end.min(size)));
        });
    }
    let view = View {
        logging: stopped_ms.is_none(),
        stopped_ms: stopped_ms.unwrap_or(0),
        level: m.env.space.level(),
        space: m.env.space.space(),
        limit_percent: m
            .number(format_args!("todo-{me}/emergency-limit"))
            .unwrap_or(0)
            .min(100),
        budget,
        used,
        resume: tunables::LOGGER_RESUME.get() != 0,
    };
    Verdict {
        log: decide(&view),
        near: is_near_limit(&view),
        used,
    }
}

/// Calls `f` with each log file and its size.
pub(crate) fn for_each_log(m: &Member, mut f: impl FnMut(LogName, u64)) {
    let mut found: KVec<LogName> = KVec::new();
    let _ = paths::resource(&m.name).and_then(|path| {
        dir::list(&path, |name, kind| {
            match LogName::parse(name).filter(|_| kind == EntryKind::File) {
                Some(log) => found.push(log, GFP_KERNEL).is_ok(),
                None => true,
            }
        })
    });
    for log in &found {
        if let Ok(s) = paths::log(&m.name, log).and_then(|p| dir::stat(&p)) {
            f(*log, s.size);
        }
    }
}

/// Removes log files that are needed no more, when space is short.
#[inline(never)]
pub(crate) fn unlink_old(m: &Member, primary: bool) {
    let level = m.env.space.level();
    if level == 0 {
        return;
    }
    let Some(own) = m.replay_link(&m.me()) else {
        return;
    };
    let mut lowest = Some(own.log.number);
    let r = m.for_each_member(|host| {
        let number = m.replay_link(&host).map(|l| l.log.number);
        lowest = lowest.zip(number).map(|(a, b)| a.min(b));
    });
    if r.is_err() {
        return;
    }
    let mut gone = 0u32;
    let mut bytes = 0u64;
    let mut durable = false;
    for_each_log(m, |log, size| {
        if !may_unlink(level, primary, log.number, own.log.number, lowest) {
            return;
        }
        // After a crash the link must not be in a log that has gone, on no file system.
        durable = durable || paths::sync_resource_dir(&m.name).is_ok();
        if durable
            && inject::at!(LogUnlink).is_ok()
            && paths::log(&m.name, &log)
                .and_then(|p| dir::unlink(&p))
                .is_ok()
        {
            inject::pass!(LogUnlinked);
            gone = gone.saturating_add(1);
            bytes = bytes.saturating_add(size);
        }
    });
    if gone > 0 {
        pr_info!(
            "{}: {} logs with {} bytes removed, because /mars gets full\n",
            m.name.as_str(),
            gone,
            bytes
        );
    }
}
