// SPDX-License-Identifier: GPL-2.0-or-later

//! Letting logs go that a member still needs, on an administrator's word (`marsadm log-delete-all --force`).
//!
//! On the primary, what they wrote is noted in the dirty map first. A thread reads the logs, because they may be large. It
//! owns no lock while it reads; the map is changed at the end, durably, and only then the control thread says in the tree
//! that the logs may go ([`say`]). The files themselves are deleted by `marsadm`.
//!
//! A replica that needs them goes on at the first log that there still is ([`jump`]), and has its disk compared, but only
//! where the map says so.

use kernel::{
    prelude::*,
    str::CString,
    sync::Arc, //
};

use mars_core::{
    dirty::{
        Bits,
        DroppedLink,
        GapLink,
        Lack, //
    },
    log::{
        LogName,
        Scan,
        ScanPos,
        Scanner,
        MAX_BATCH, //
    },
    name::Name,
    tree::TOMBSTONE_TEXT, //
};

use crate::{
    engine::{
        digest::KernelDigest,
        inject,
        member::Member,
        paths,
        replay::read_header, //
    },
    sys::{
        buf::Buf,
        file::{
            File,
            OpenFlags, //
        },
        thread::{
            Thread,
            ThreadCtx, //
        }, //
    }, //
};

/// Reads logs; stops when dropped.
pub(crate) struct Worker {
    thread: Thread,
    /// The first log that stays.
    to: u32,
}

impl Worker {
    /// Notes what the logs of number `from` and above, below `to`, wrote.
    fn start(m: Arc<Member>, from: u32, to: u32) -> Result<Self> {
        let name = CString::try_from_fmt(format_args!("mars_drop/{}", m.name))?;
        let thread = Thread::spawn(&name, move |ctx| match note(ctx, &m, from, to) {
            Ok(bytes) => {
                pr_info!(
                    "{}: the logs {} to {} may be deleted: {} bytes that they wrote are noted in the dirty map\n",
                    m.name.as_str(),
                    from,
                    to.saturating_sub(1),
                    bytes
                );
                m.kick.signal();
            }
            Err(e) if e == EINTR => (),
            Err(e) => pr_err!(
                "{}: the logs {} to {} can't be let go: {:?}\n",
                m.name.as_str(),
                from,
                to.saturating_sub(1),
                e
            ),
        })?;
        Ok(Self { thread, to })
    }
}

/// Does what `todo-<me>/drop-logs` asks a primary for. `worker` stays when it has failed, until something else is asked for.
pub(crate) fn watch(m: &Arc<Member>, worker: &mut Option<Worker>) -> Result {
    let asked = m
        .number(format_args!("todo-{}/drop-logs", m.me()))
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > m.dirty.dropped().to);
    let range = match asked {
        Some(asked) => range(m, asked)?,
        None => None,
    };
    let Some((from, to)) = range else {
        *worker = None;
        return Ok(());
    };
    if worker
        .as_ref()
        .is_none_or(|w| w.to != to && w.thread.is_finished())
    {
        *worker = Some(Worker::start(m.clone(), from, to)?);
    }
    Ok(())
}

/// Says which logs may be deleted, because the map has what they wrote.
pub(crate) fn say(m: &Member) {
    let me = m.me();
    let dropped = m.dirty.dropped();
    if dropped.is_some() {
        let link = DroppedLink {
            to: LogName {
                number: dropped.to,
                creator: me,
            },
            from: dropped.from,
        };
        m.set(
            format_args!("actual-{me}/dropped-logs"),
            format_args!("{link}"),
        );
    } else if m.dropped_logs(&me).is_some() {
        m.set(
            format_args!("actual-{me}/dropped-logs"),
            format_args!("(none)"),
        );
    }
}

/// The numbers of logs that may be dropped so that those from `asked` on stay: from the first one that a member still needs,
/// to the first one that must stay. [`None`]: nothing is to be done.
fn range(m: &Member, asked: u32) -> Result<Option<(u32, u32)>> {
    let me = m.me();
    // A log that is written, or that this disk still needs, is never one of them.
    let Some(own) = m.replay_link(&me) else {
        return Ok(None);
    };
    let to = asked.min(own.log.number);
    // Who comes later has to begin in a log of this host: it is this host's map.
    if m.version(to, &me)
        .is_none_or(|(_, v)| v.this.log.creator != me)
    {
        return Ok(None);
    }
    let mut from = to;
    m.for_each_member(|host| {
        // Also of one that is being filled: it has to replay from its link on afterwards.
        if let Some(link) = m.replay_link(&host) {
            from = from.min(link.log.number);
        }
    })?;
    Ok((from < to).then_some((from, to)))
}

fn note(ctx: &ThreadCtx, m: &Member, from: u32, to: u32) -> Result<u64> {
    let mut bits = Bits::new(m.dirty.geometry().ok_or(ENODEV)?)?;
    for number in from..to {
        if !note_log(ctx, m, number, &mut bits)? {
            pr_warn!(
                "{}: log {} is not whole: the members that need it will compare everything\n",
                m.name.as_str(),
                number
            );
            bits.set_all();
        }
    }
    // Somebody who stands right before a gap needs what was written in it, too.
    if is_behind_gap(m, to)? && !m.dirty.has_gap_before(to) {
        bits.set_all();
    }
    let bytes = bits.dirty_bytes();
    m.dirty.drop_logs(&bits, from, to)?;
    Ok(bytes)
}

/// The log of this number in this host's history, and its end.
fn end_of(m: &Member, number: u32) -> Option<(LogName, u64)> {
    let next = number.checked_add(1)?;
    let before = m.version(next, &m.me())?.1.previous?;
    (before.log.number == number).then_some((before.log, before.pos))
}

fn open(m: &Member, log: &LogName) -> Result<File> {
    File::open(&paths::log(&m.name, log)?, OpenFlags::default(), 0o600)
}

/// Whether this host's log of that number begins behind a gap.
fn is_behind_gap(m: &Member, number: u32) -> Result<bool> {
    let log = LogName {
        number,
        creator: m.me(),
    };
    let found = read_header(m, &open(m, &log)?, &log)?;
    Ok(found.is_none_or(|(_, _, gap)| gap))
}

/// Marks what one log wrote. `false`: it is not known whether that is all.
#[inline(never)]
fn note_log(ctx: &ThreadCtx, m: &Member, number: u32, bits: &mut Bits) -> Result<bool> {
    let Some((log, end)) = end_of(m, number) else {
        return Ok(false);
    };
    let file = match open(m, &log) {
        Err(e) if paths::is_absent(e) => return Ok(false),
        r => r?,
    };
    let Ok(Some((ctx_of_log, crc, gap))) = read_header(m, &file, &log) else {
        return Ok(false);
    };
    if gap && !m.dirty.has_gap_before(number) {
        return Ok(false);
    }
    let mut scanner = Scanner::resume(ctx_of_log, ScanPos::first(crc));
    let mut buf = Buf::new(usize::try_from(MAX_BATCH)?)?;
    while scanner.pos() < end {
        if ctx.should_stop() {
            return Err(EINTR);
        }
        let start = scanner.pos();
        let Ok(n) = file.read_at(&mut buf, start) else {
            return Ok(false);
        };
        let mut rest = buf.get(..n).unwrap_or(&[]);
        loop {
            // Payloads don't matter: the checksum of a batch's head covers where it wrote.
            let Scan::Batch(batch) = scanner.next::<KernelDigest>(rest, false) else {
                break;
            };
            for r in batch.records() {
                bits.mark(r.offset, r.length.into(), |_| ());
            }
            rest = rest.get(usize::try_from(batch.total_len)?..).unwrap_or(&[]);
            if scanner.pos() >= end {
                break;
            }
        }
        file.drop_cache(start, scanner.pos().saturating_sub(start));
        if scanner.pos() == start {
            return Ok(false);
        }
    }
    Ok(scanner.pos() == end)
}

/// What a replica that can't get the next log can do: the link of the designated primary that says so, and whether the
/// way was begun already.
pub(crate) fn help(m: &Member) -> Option<(Name, DroppedLink, bool)> {
    let primary = m.designated().filter(|_| m.is_led())?;
    if m.switch(format_args!("actual-{primary}/is-emergency")) || !m.env.is_alive(&primary) {
        return None;
    }
    let dropped = m.dropped_logs(&primary)?;
    let link = m.replay_link(&m.me())?;
    let begun = m.gap_link().is_some_and(|g| {
        g.log == dropped.to && matches!(g.lack, Lack::Since(_)) && link.log.number < g.log.number
    });
    let gone = m.fetch.gone();
    let helped = gone.is_some_and(|g| dropped.helps(&link, g.number));
    (begun || helped).then_some((primary, dropped, begun))
}

/// Puts this replica before the first log that there still is, with the primary's history, and has its disk count as
/// incomplete until the sync has compared what the map of `primary` says. No worker may run.
///
/// # Errors
///
/// `/mars` is full or fails; it is tried again, also after a crash.
#[inline(never)]
pub(crate) fn jump(m: &Member, primary: &Name, dropped: &DroppedLink, begun: bool) -> Result {
    let me = m.me();
    let link = m.replay_link(&me).ok_or(ENOENT)?;
    let to = dropped.to;
    if !begun {
        let gap = GapLink {
            log: to,
            lack: Lack::Since(link.log.number),
        };
        m.try_set(format_args!("gap-{me}"), format_args!("{gap}"))?;
    }
    // From here on the disk counts as incomplete, durably. With the old replay link any sync compares everything.
    m.try_set(format_args!("syncstatus-{me}"), format_args!("0"))?;
    paths::sync_resource_dir(&m.name)?;
    inject::at!(JumpBegin)?;
    let first = to.number.saturating_sub(1);
    // A link without its predecessor, or beside an older one, would say that this host's history is another one.
    for v in &m.history(&me)? {
        let number = v.this.log.number;
        if !(first..=to.number).contains(&number) {
            m.try_set(
                format_args!("version-{number:09}-{me}"),
                format_args!("{TOMBSTONE_TEXT}"),
            )?;
        }
    }
    paths::sync_resource_dir(&m.name)?;
    for number in first..=to.number {
        if let Some((text, _)) = m.version(number, primary) {
            m.try_set(
                format_args!("version-{number:09}-{me}"),
                format_args!("{}", text.as_str()),
            )?;
            paths::sync_resource_dir(&m.name)?;
        }
    }
    m.try_set(
        format_args!("skip-check-{me}"),
        format_args!("{}", to.number),
    )?;
    inject::at!(JumpLink)?;
    m.set_replay(&to, 0, 0)?;
    paths::sync_resource_dir(&m.name)?;
    pr_info!(
        "{}: logs {} to {} were deleted on {}; this replica goes on at {:?}, and what they wrote is compared\n",
        m.name.as_str(),
        link.log.number,
        first,
        primary.as_str(),
        to
    );
    Ok(())
}
