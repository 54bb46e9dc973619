// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/space.rs`: room in `/mars`.

use super::Host;
use crate::{fs::Node, world::DIR};
use mars_core::{
    log::LogName,
    space::{decide, may_unlink, next_level, Limits, Shortage, Space, View},
};
use std::cell::Cell;

/// What was seen last.
#[derive(Default)]
pub struct Watch {
    level: Cell<u8>,
    space: Cell<Space>,
}

impl Watch {
    /// Looks at the file system, and moves the level.
    pub fn look(&self, h: &Host, fall: bool) {
        let fs = h.machine().fs.borrow();
        let space = Space {
            total: fs.capacity() as u64,
            free: fs.free() as u64,
        };
        let limits = Limits::new([2; 4], space.total);
        let new = next_level(self.level(), &space, &limits, fall);
        self.space.set(space);
        if self.level.replace(new) != new {
            h.say(|| format!("emergency level {new}, {} bytes are free", space.free));
            h.kick.signal(&h.ex);
        }
    }

    /// Emergency level, 0 to 4.
    pub fn level(&self) -> u8 {
        self.level.get()
    }
}

/// Whether to log, if this host does so now, or has stopped for so many milliseconds.
pub fn verdict(h: &Host, stopped_ms: Option<u64>) -> Result<(), Shortage> {
    if stopped_ms.is_some() {
        // What was seen last may be from before somebody took the rest.
        h.space.look(h, false);
    }
    decide(&View {
        logging: stopped_ms.is_none(),
        stopped_ms: stopped_ms.unwrap_or(0),
        level: h.space.level(),
        space: h.space.space.get(),
        limit_percent: 0,
        budget: 0,
        used: 0,
        resume: true,
    })
}

/// Removes log files that are needed no more, when space is short.
pub async fn unlink_old(h: &Host, primary: bool) {
    let level = h.space.level();
    if level == 0 {
        return;
    }
    let Some(own) = h.replay_link(&h.me) else {
        return;
    };
    let mut lowest = Some(own.log.number);
    for host in h.members() {
        let number = h.replay_link(&host).map(|l| l.log.number);
        lowest = lowest.zip(number).map(|(a, b)| a.min(b));
    }
    let logs: Vec<LogName> = {
        let fs = h.machine().fs.borrow();
        let names = fs.names().iter();
        names
            .filter(|(_, node)| matches!(node, Node::File(_)))
            .filter_map(|(path, _)| LogName::parse(path.strip_prefix(DIR)?.get(1..)?.as_bytes()))
            .collect()
    };
    let mut durable = false;
    for log in logs {
        if !may_unlink(level, primary, log.number, own.log.number, lowest) {
            continue;
        }
        // After a crash the link must not be in a log that has gone, on no file system.
        durable = durable || h.sync_dir().await.is_ok();
        if durable && h.fs_io().await.is_ok() {
            h.say(|| format!("removes {log}"));
            h.machine().fs.borrow_mut().unlink(&h.log_path(&log));
        }
    }
}
