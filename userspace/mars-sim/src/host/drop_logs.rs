// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/drop_logs.rs`: letting logs go that a member still needs.

use super::{dirty, replay::read_header, Host};
use crate::{
    defects::on,
    exec::{thread, Thread},
    fs::{Errno, Res},
};
use mars_core::{
    dirty::{Bits, DroppedLink, GapLink, Lack},
    log::{LogHeader, LogName, Scan, Scanner, HEADER_SIZE},
    name::Name,
};
use mars_host_digest::HostDigest;
use std::{cell::Cell, rc::Rc};

/// Reads logs.
pub struct Worker {
    thread: Rc<Thread>,
    finished: Rc<Cell<bool>>,
    to: u32,
}

impl Worker {
    fn start(h: &Rc<Host>, from: u32, to: u32) -> Self {
        let h2 = h.clone();
        let finished: Rc<Cell<bool>> = Rc::default();
        let f2 = finished.clone();
        let thread = thread(&h.ex, h.i, move |t| async move {
            let r = note(&t, &h2, from, to).await;
            h2.say(|| format!("the logs {from} to {to} may be deleted: {r:?}"));
            f2.set(true);
            if r.is_ok() {
                h2.kick.signal(&h2.ex);
            }
        });
        Self {
            thread,
            finished,
            to,
        }
    }

    /// Ends it.
    pub async fn stop(self, h: &Host) {
        self.thread.stop(&h.ex).await;
    }
}

/// Does what `todo-<me>/drop-logs` asks a primary for.
pub async fn watch(h: &Rc<Host>, worker: &mut Option<Worker>) {
    let dropped = h.dirty.dropped(h).await;
    let asked = h
        .number(&format!("todo-{}/drop-logs", h.me))
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > dropped.to);
    let Some((from, to)) = asked.and_then(|a| range(h, a)) else {
        if let Some(w) = worker.take() {
            w.stop(h).await;
        }
        return;
    };
    if worker
        .as_ref()
        .is_none_or(|w| w.to != to && w.finished.get())
    {
        *worker = Some(Worker::start(h, from, to));
    }
}

/// Says which logs may be deleted, because the map has what they wrote.
pub async fn say(h: &Host) {
    let me = h.me;
    let dropped = h.dirty.dropped(h).await;
    let key = format!("actual-{me}/dropped-logs");
    if dropped.is_some() {
        let to = LogName {
            number: dropped.to,
            creator: me,
        };
        let link = DroppedLink {
            to,
            from: dropped.from,
        };
        h.put(&key, &link.to_string()).await;
    } else if h.dropped_logs(&me).is_some() {
        h.put(&key, "(none)").await;
    }
}

fn range(h: &Host, asked: u32) -> Option<(u32, u32)> {
    // A log that is written, or that this disk still needs, is never one of them.
    let to = asked.min(h.replay_link(&h.me)?.log.number);
    // Who comes later has to begin in a log of this host: it is this host's map.
    if h.version(to).is_none_or(|v| v.this.log.creator != h.me) {
        return None;
    }
    let mut from = to;
    for host in h.members() {
        // Also of one that is being filled: it has to replay from its link on afterwards.
        if let Some(link) = h.replay_link(&host) {
            from = from.min(link.log.number);
        }
    }
    (from < to).then_some((from, to))
}

async fn note(t: &Thread, h: &Host, from: u32, to: u32) -> Res<()> {
    let geometry = h.dirty.geometry(h).await.ok_or(Errno::NoEnt)?;
    let mut bits = Bits::new(geometry).expect("memory");
    let first = from + u32::from(on("drop-forgets-log"));
    for number in first..to {
        if !note_log(t, h, number, &mut bits).await? {
            bits.set_all();
        }
    }
    // Somebody who stands right before a gap needs what was written in it, too.
    if is_behind_gap(h, to).await? && !h.dirty.has_gap_before(h, to).await {
        bits.set_all();
    }
    h.dirty.drop_logs(h, &bits, from, to).await
}

/// The log of this number in this host's history, and its end.
fn end_of(h: &Host, number: u32) -> Option<(LogName, u64)> {
    let before = h.version(number.checked_add(1)?)?.previous?;
    (before.log.number == number).then_some((before.log, before.pos))
}

async fn is_behind_gap(h: &Host, number: u32) -> Res<bool> {
    let log = LogName {
        number,
        creator: h.me,
    };
    let ino = h.machine().fs.borrow().file(&h.log_path(&log));
    let ino = ino.ok_or(Errno::NoEnt)?;
    let found = read_header(h, ino, &log).await?;
    Ok(found.is_none_or(|(.., gap)| gap))
}

/// Marks what one log wrote. `false`: it is not known whether that is all.
async fn note_log(t: &Thread, h: &Host, number: u32, bits: &mut Bits) -> Res<bool> {
    let Some((log, end)) = end_of(h, number) else {
        return Ok(false);
    };
    let ino = h.machine().fs.borrow().file(&h.log_path(&log));
    let Some(ino) = ino else { return Ok(false) };
    let block = h.read_file(ino, 0, HEADER_SIZE).await?;
    let head = match LogHeader::parse::<HostDigest>(&block) {
        Ok((head, crc)) if head.name() == log && head.resource == h.res => (head, crc),
        _ => return Ok(false),
    };
    if head.0.gap && !h.dirty.has_gap_before(h, number).await {
        return Ok(false);
    }
    let mut scanner = Scanner::first(&head.0, head.1);
    while scanner.pos() < end {
        if t.should_stop() {
            return Err(Errno::Intr);
        }
        let start = scanner.pos();
        let Ok(bytes) = h.read_file(ino, start, 64 << 10).await else {
            return Ok(false);
        };
        let mut rest = &bytes[..];
        while let Scan::Batch(batch) = scanner.next::<HostDigest>(rest, false) {
            for r in batch.records() {
                dirty::mark(bits, r.offset, r.length.into());
            }
            rest = rest.get(batch.total_len as usize..).unwrap_or(&[]);
            if scanner.pos() >= end {
                break;
            }
        }
        if scanner.pos() == start {
            return Ok(false);
        }
    }
    Ok(scanner.pos() == end)
}

/// What a replica that can't get the next log can do: the link of the designated primary that says so, and whether the way was
/// begun already.
pub fn help(h: &Host) -> Option<(Name, DroppedLink, bool)> {
    let primary = h.designated().filter(|_| h.is_led())?;
    if h.switch(&format!("actual-{primary}/is-emergency")) || !h.is_alive(&primary) {
        return None;
    }
    let dropped = h.dropped_logs(&primary)?;
    let link = h.replay_link(&h.me)?;
    let begun = h.gap_link().is_some_and(|g| {
        g.log == dropped.to && matches!(g.lack, Lack::Since(_)) && link.log.number < g.log.number
    });
    let gone = h.fetch.gone();
    let helped = gone.is_some_and(|g| dropped.helps(&link, g.number));
    (begun || helped).then_some((primary, dropped, begun))
}

/// Puts this replica before the first log that there still is. No worker may run.
pub async fn jump(h: &Host, primary: &Name, dropped: &DroppedLink, begun: bool) -> Res<()> {
    let me = h.me;
    let link = h.replay_link(&me).ok_or(Errno::NoEnt)?;
    let to = dropped.to;
    if !begun {
        let gap = GapLink {
            log: to,
            lack: Lack::Since(link.log.number),
        };
        h.try_put(&format!("gap-{me}"), &gap.to_string()).await?;
    }
    // From here on the disk counts as incomplete, durably. With the old replay link any sync compares everything.
    if !on("jump-counts-complete") {
        h.try_put(&format!("syncstatus-{me}"), "0").await?;
    }
    h.sync_dir().await?;
    let first = to.number.saturating_sub(1);
    for v in &h.history(&me) {
        let number = v.this.log.number;
        if !(first..=to.number).contains(&number) {
            h.try_put(&format!("version-{number:09}-{me}"), ".deleted")
                .await?;
        }
    }
    h.sync_dir().await?;
    for number in first..=to.number {
        if let Some(text) = h.get(&format!("version-{number:09}-{primary}")) {
            h.try_put(&format!("version-{number:09}-{me}"), &text)
                .await?;
            h.sync_dir().await?;
        }
    }
    h.set_replay(&to, 0, 0).await?;
    h.sync_dir().await?;
    h.say(|| format!("goes on at {to}, behind logs that were deleted"));
    Ok(())
}
