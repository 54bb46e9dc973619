// SPDX-License-Identifier: GPL-2.0-or-later

//! Bugs on demand: each must be found, or a checker is worth nothing.
//!
//! Those of the core are in `src/core` (`defect!`), those of the engine's order of steps in `host/`. Without the feature
//! `defects` none of them can be switched on.

/// Name, what is wrong, and which promise that breaks first, as a rule.
pub const ALL: &[(&str, &str)] = &[
    ("lose-log-flush", "the log is not flushed"),
    (
        "no-rewrite-after-error",
        "after a failed flush, what it may have lost is not written again",
    ),
    ("show-undurable", "peers see what is not durable"),
    ("fua-early", "FUA is complete when the write is admitted"),
    (
        "flush-early",
        "a flush is complete when all is written to the log",
    ),
    ("read-ignores-buffer", "reads do not look at the buffer"),
    (
        "write-back-early",
        "written back before it is durable in the log",
    ),
    ("overlapping-io", "two I/Os overlap in flight"),
    (
        "mark-unfinished",
        "the mark moves over records that are not written",
    ),
    (
        "mark-superseded",
        "the mark moves over records whose successors are not durable",
    ),
    (
        "link-before-flush",
        "the replay link moves before the disk is flushed",
    ),
    (
        "peers-know-my-disk",
        "a peer's word about the own disk is taken",
    ),
    (
        "replay-before-log-flush",
        "records are applied before the log is durable here",
    ),
    (
        "trust-failed-sync",
        "after a failed sync of a fetched log, the next one counts",
    ),
    (
        "doubt-forgets-pieces",
        "after a failed sync of a fetched log, pieces behind a hole are not written again",
    ),
    (
        "trust-page-cache",
        "after a restart, what a failed sync has lost is read from the page cache",
    ),
    (
        "replay-out-of-order",
        "the records of a batch are applied in reverse",
    ),
    ("skip-payload-crc", "payloads are not checked"),
    (
        "recovery-stops-early",
        "recovery stops at the end that was published last",
    ),
    (
        "switch-without-drain",
        "replay goes on to the next log before the last one is on the disk",
    ),
    (
        "leave-without-drain",
        "a primary gives up its role before all is written back",
    ),
    (
        "rotate-twice",
        "the next log is made again while the old one is being closed",
    ),
    (
        "successor-before-end",
        "a log is published before the final end of its predecessor",
    ),
    (
        "closed-end-undurable",
        "the next log is published before the end of its predecessor is on the disk",
    ),
    (
        "successor-any-end",
        "what follows a log is taken without looking where it ends",
    ),
    (
        "zeros-lost",
        "a range that becomes zero is not written back",
    ),
    (
        "grows-over-gap",
        "what the resource has grown by is copied, and a gap before it is forgotten",
    ),
    (
        "void-resize-stays",
        "a disk counts as complete of a size that was cut off",
    ),
    (
        "unheard-resize-stays",
        "a primary takes the size of a resize that was cut off",
    ),
    (
        "whole-for-ever",
        "what was complete before a resize counts also after it was given up",
    ),
    (
        "device-of-any-size",
        "a device is made larger than the disk is complete",
    ),
    (
        "no-course",
        "a log is followed behind the place where a forced failover has cut it off",
    ),
    (
        "position-before-history",
        "the replay link goes on to the next log before the end of the last one is in the history",
    ),
    (
        "handover-unheard",
        "a handover does not wait until the old primary has heard of it",
    ),
    (
        "handover-before-gap",
        "a replica that has not passed the gap before an empty log counts as up to date",
    ),
    (
        "join-without-history",
        "a replica begins although it does not have all of the primary's version links",
    ),
    (
        "forget-own-history",
        "a version link is deleted from which the next one is still to be computed",
    ),
    (
        "map-from-cache",
        "a dirty map that was read is taken for durable, and its other copy written",
    ),
    (
        "stale-namesake",
        "with fetching off, any log of the right name is replayed",
    ),
    (
        "primary-undurable",
        "a crash can forget that a host was primary",
    ),
    (
        "same-name",
        "the rest of a log that was cut off is taken for one of the same name that came later",
    ),
    (
        "claim-ignored",
        "a vacant role is taken although another host was taking it and is silent now",
    ),
    (
        "seen-undurable",
        "a host says that it has heard who is designated before it could survive a crash",
    ),
    (
        "crash-without-last-words",
        "a host that has crashed as a primary does not say how far its log goes",
    ),
    (
        "sync-from-behind",
        "a sync copies a disk that does not have yet what comes before the replica's position",
    ),
    (
        "delete-before-the-link",
        "a log is deleted before the link that has passed it is on the disk",
    ),
    (
        "split-brain-blind",
        "histories that exclude each other are not seen",
    ),
    (
        "delete-early",
        "logs are deleted that are still needed here",
    ),
    ("merge-older-wins", "older values of the tree win"),
    (
        "sync-forgets-end",
        "a sync does not say up to where replay must go",
    ),
    (
        "sync-any-incarnation",
        "a sync goes on after its source lived through a failover",
    ),
    (
        "sync-status-before-flush",
        "a sync is complete before the disk is flushed",
    ),
    (
        "sync-trusts-flush",
        "after a failed flush, a sync goes on where it was",
    ),
    ("sync-and-replay", "sync and replay run at the same time"),
    (
        "consistent-early",
        "consistent before replay has reached the end of the sync",
    ),
    (
        "primary-inconsistent",
        "an inconsistent replica becomes primary",
    ),
    (
        "own-log-unsaid",
        "a former primary's own log that no link names is passed over",
    ),
    (
        "history-goes-back",
        "a peer's word takes the own history back",
    ),
    (
        "gap-mark-late",
        "without a log: written back before it is marked in the dirty map",
    ),
    (
        "gap-flush-early",
        "without a log: a flush is complete before the disk has everything",
    ),
    (
        "gap-unsettled",
        "without a log: a flush is complete before the map says that the log is not to be replayed",
    ),
    (
        "gap-replays-base",
        "recovery replays what the map says is on the disk, under newer data",
    ),
    (
        "gap-forgotten",
        "a former primary in a gap follows another host",
    ),
    (
        "gap-without-bit",
        "the header of the log behind a gap does not say so",
    ),
    (
        "replay-ignores-gap",
        "replay does not stop at a log that begins behind a gap",
    ),
    (
        "second-gap-from-link",
        "recovery in a second gap begins at the replay link, though that is before the first",
    ),
    (
        "serve-in-gap",
        "while a gap is open, replicas get what stands in the file of the log to come",
    ),
    (
        "clear-amid-gap",
        "the dirty map is cleared although a gap was opened after the links had been looked at",
    ),
    (
        "covers-any",
        "a map is given for a gap that it does not have",
    ),
    (
        "drop-forgets-log",
        "what the first of the dropped logs wrote is not noted in the map",
    ),
    (
        "jump-counts-complete",
        "a replica goes on behind dropped logs without a sync",
    ),
];

/// Bugs that do no harm as long as a host says after a crash, before everything else, how far its own logs go: they come with
/// that one, and count as found where that one alone does no harm.
pub const HIDDEN: &[&str] = &["own-log-unsaid", "recovery-stops-early"];

/// What hides them.
#[cfg(feature = "defects")]
const HIDES: &str = "crash-without-last-words";

/// Whether a bug is switched on.
#[cfg(feature = "defects")]
pub fn on(name: &str) -> bool {
    debug_assert!(ALL.iter().any(|(n, _)| *n == name));
    mars_core::defect::is_on(name)
}

/// Whether a bug is switched on: never.
#[cfg(not(feature = "defects"))]
pub const fn on(_: &str) -> bool {
    false
}

/// Needs the feature.
#[cfg(not(feature = "defects"))]
pub fn all(_: Option<&str>) -> bool {
    eprintln!(
        "this program was built without defects: make simulate-defects; there are {}",
        ALL.len()
    );
    false
}

/// Switches one on.
#[cfg(feature = "defects")]
pub fn switch_on(name: &str) -> bool {
    mars_core::defect::switch_on(name);
    ALL.iter().any(|(n, _)| *n == name)
}

/// Needs the feature.
#[cfg(not(feature = "defects"))]
pub fn switch_on(_: &str) -> bool {
    all(None)
}

/// Switches on one after the other, and says what found it.
#[cfg(feature = "defects")]
pub fn all(only: Option<&str>) -> bool {
    use std::time::{Duration, Instant};

    let known = crate::known();
    let mut missed = 0;
    let mut found = 0;
    println!("{:26} {:>26} {:>7}  found by", "defect", "run", "seconds");
    for (name, what) in ALL.iter().filter(|(n, _)| only.is_none_or(|o| o == *n)) {
        let start = Instant::now();
        let until = |seconds| start + Duration::from_secs(seconds);
        let found_by = by_script(name)
            .or_else(|| by_variant(name, name, until(20)))
            .or_else(|| by_variant(name, "", until(70)))
            .or_else(|| {
                let generated = |seed| {
                    let known = known.contains(&seed);
                    (!known).then(|| crate::script::generate(seed))
                };
                let (seed, v) = search(name, until(120), &generated)?;
                Some((seed.to_string(), v))
            });
        match found_by {
            Some((run, v)) => {
                found += 1;
                let v: String = v.chars().take(70).collect();
                println!(
                    "{name:26} {run:>26} {:7.1}  {v}",
                    start.elapsed().as_secs_f64()
                );
            }
            None => {
                missed += 1;
                println!("{name:26} {:>26} {:>7}  NOT FOUND: {what}", "-", "-");
            }
        }
    }
    println!("simulate-defects: {found} passed, {missed} failed");
    missed == 0 && found > 0
}

/// The first script of `regressions/` that breaks a promise with the bug. (Without any, all of them keep all promises.) What comes
/// together once in a million runs is found by the script that was made of that one.
#[cfg(feature = "defects")]
fn by_script(name: &str) -> Option<(String, String)> {
    scripts().into_iter().find_map(|(file, s)| {
        mars_core::defect::switch_on(name);
        let found = crate::run::run(&s, false).violation;
        mars_core::defect::switch_on("");
        let v = found.filter(|_| is_kept_without(name, &s))?;
        Some((file, v))
    })
}

/// Whether a run keeps all promises without the bug, also with what hides it.
#[cfg(feature = "defects")]
fn is_kept_without(name: &str, s: &crate::script::Script) -> bool {
    let kept = || crate::run::run(s, false).violation.is_none();
    let hidden = || {
        mars_core::defect::switch_on(HIDES);
        let kept = kept();
        mars_core::defect::switch_on("");
        kept
    };
    kept() && (!HIDDEN.contains(&name) || hidden())
}

/// The scripts of `regressions/`, with their names.
#[cfg(feature = "defects")]
fn scripts() -> Vec<(String, crate::script::Script)> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions");
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let parsed = files.filter_map(|e| {
        let s = crate::script::Script::parse(&std::fs::read_to_string(e.path()).ok()?).ok()?;
        Some((e.file_name().to_string_lossy().into_owned(), s))
    });
    let mut all: Vec<_> = parsed.collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// A script whose name begins like that, with other random numbers: what it was made of does not happen in the same microsecond
/// any more when the system has changed.
#[cfg(feature = "defects")]
fn by_variant(name: &str, of: &str, until: std::time::Instant) -> Option<(String, String)> {
    let mut all = scripts();
    all.retain(|(file, _)| file.starts_with(of));
    let nth = |n: u64| all.get(usize::try_from(n).ok()?.checked_rem(all.len())?);
    nth(0)?;
    let variant = |n: u64| {
        let mut s = nth(n)?.1.clone();
        s.cfg.seed = s.cfg.seed.wrapping_add(n);
        Some(s)
    };
    let (n, v) = search(name, until, &variant)?;
    Some((format!("{}+{n}", nth(n)?.0), v))
}

/// What a number stands for, if it is to be looked at.
#[cfg(feature = "defects")]
type Make<'a> = &'a (dyn Fn(u64) -> Option<crate::script::Script> + Sync);

/// Searches for a run that breaks a promise with the bug, and keeps all without it.
#[cfg(feature = "defects")]
fn search(name: &str, until: std::time::Instant, make: Make<'_>) -> Option<(u64, String)> {
    let mut from = 1;
    loop {
        mars_core::defect::switch_on(name);
        let found = failing(from, until, make);
        mars_core::defect::switch_on("");
        let (n, v) = found?;
        if is_kept_without(name, &make(n)?) {
            return Some((n, v));
        }
        from = n + 1;
    }
}

/// The first run, from a number on, that breaks a promise.
#[cfg(feature = "defects")]
fn failing(from: u64, until: std::time::Instant, make: Make<'_>) -> Option<(u64, String)> {
    use std::{
        sync::{
            atomic::{AtomicBool, AtomicU64, Ordering},
            Mutex,
        },
        time::Instant,
    };

    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let found = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let Some(s) = make(seed) else { continue };
                    if let Some(v) = crate::run::run(&s, false).violation {
                        stop.store(true, Ordering::Relaxed);
                        if let Ok(mut f) = found.lock() {
                            f.get_or_insert((seed, v));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().ok().flatten()
}
