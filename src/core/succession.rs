// SPDX-License-Identifier: GPL-2.0-or-later

//! Which log follows which, and what a number, an end or a position of a log means for what may be done next.
//!
//! Log numbers are counted by all members of a resource together, so none can be guessed: what follows a log is said by a
//! version link that names the end of that log as its predecessor. The engine and the simulator ask here.

use core::fmt;

use crate::{
    defect::defect,
    lamport::LamportTime,
    log::{
        chain::VersionPoint,
        LogName,
        VersionLink, //
    },
    name::Name,
    split_brain::{
        compare,
        Relation, //
    },
    text::parse_u64,
    tree::value::ReplayLink,
};

/// A gap between log numbers that is larger than this comes from a deleted resource of the same name.
const JUMP: u32 = 1000;

/// What the next log is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To be fetched: that the histories do not contradict each other is enough, since replay looks again.
    Fetch,
    /// To be replayed: all that is here must be a part of the other's history. It may be all of it: a host that died between the
    /// two links of a step knows by its history what its replay link does not have yet.
    Replay,
}

/// Looks for the log that follows a place, in the histories of the other members, one after the other.
#[derive(Debug)]
pub struct Search<'a> {
    mine: &'a [VersionLink],
    log: LogName,
    end: u64,
    purpose: Purpose,
    primary: Option<Name>,
    found: Option<LogName>,
    /// The primary's history says that nothing follows here.
    decided: bool,
}

impl<'a> Search<'a> {
    /// Searches what follows `log`, which ends at `end` here. `mine` is this host's own history; the word of `primary`, the
    /// designated one, counts more than that of others.
    pub fn new(
        mine: &'a [VersionLink],
        log: LogName,
        end: u64,
        primary: Option<Name>,
        purpose: Purpose,
    ) -> Self {
        Self {
            mine,
            log,
            end,
            purpose,
            primary,
            found: None,
            decided: false,
        }
    }

    /// Whether the history of `host` could still change the result.
    pub fn wants(&self, host: &Name) -> bool {
        !self.decided && (self.found.is_none() || self.primary == Some(*host))
    }

    /// Looks at the history of `host`, another member.
    pub fn look(&mut self, host: &Name, theirs: &[VersionLink]) {
        if !self.wants(host) {
            return;
        }
        let relation = compare(self.mine, theirs);
        let fits = match self.purpose {
            Purpose::Replay => matches!(relation, Relation::Behind | Relation::Equal),
            Purpose::Fetch => !matches!(relation, Relation::Diverged(_)),
        };
        let Some(number) = self.log.number.checked_add(1).filter(|_| fits) else {
            return;
        };
        if self.primary == Some(*host) {
            // What it knows of this number is all that counts: others may be on a way that was cut off.
            let here = |v: &&VersionLink| v.this.log.number == self.log.number;
            let there = |v: &&VersionLink| v.this.log.number == number;
            let (same, next) = (theirs.iter().find(here), theirs.iter().find(there));
            if !course(&self.log, same, next).has(self.end) {
                self.found = None;
                self.decided = true;
                return;
            }
        }
        let ends_here = |p: &VersionPoint| {
            p.log == self.log && (p.pos == self.end || defect!("successor-any-end"))
        };
        let next = theirs
            .iter()
            .find(|v| v.this.log.number == number && v.previous.as_ref().is_some_and(ends_here));
        if let Some(v) = next {
            self.found = Some(v.this.log);
        }
    }

    /// The log that follows, if anybody knows one.
    pub fn found(&self) -> Option<LogName> {
        self.found
    }
}

/// What the history of the designated primary says about a log that is fetched or replayed here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Course {
    /// That history has it at least up to here, and does not say where it ends.
    Open(u64),
    /// It counts up to here. What a copy has behind was cut off by a forced failover.
    EndsAt(u64),
    /// It is no part of that history.
    Elsewhere,
}

/// Looks `log` up in the history of the designated primary: `same` is its version link of the number of `log`, `next` that
/// of the number after it.
pub fn course(log: &LogName, same: Option<&VersionLink>, next: Option<&VersionLink>) -> Course {
    if defect!("no-course") {
        return Course::Open(0);
    }
    let before = next.and_then(|v| v.previous);
    if let Some(p) = before.filter(|p| p.log.number == log.number) {
        return if p.log == *log {
            Course::EndsAt(p.pos)
        } else {
            Course::Elsewhere
        };
    }
    match same.filter(|v| v.this.log.number == log.number) {
        Some(v) if v.this.log != *log => Course::Elsewhere,
        Some(v) => Course::Open(v.this.pos),
        None => Course::Open(0),
    }
}

impl Course {
    /// Whether a log that ends at `end` here lies on it.
    pub fn has(&self, end: u64) -> bool {
        match self {
            Self::Open(at) => *at <= end,
            Self::EndsAt(at) => *at == end,
            Self::Elsewhere => false,
        }
    }

    /// Whether a disk that, by its replay link, has the log up to `pos` has more than that history, whoever wrote it.
    pub fn is_short_of(&self, pos: u64) -> bool {
        matches!(self, Self::EndsAt(end) if pos > *end)
    }

    /// Whether a disk that has something of the log up to `pos` may still be on it.
    pub fn may_reach(&self, pos: u64) -> bool {
        match self {
            Self::Open(_) => true,
            Self::EndsAt(end) => pos <= *end,
            Self::Elsewhere => false,
        }
    }
}

/// Whether a disk may be filled by a sync from the designated primary while its replay link is in `log`: replay goes on there
/// over what was copied, so it has to be a log of that primary's `history`. [`None`]: that history begins later (its host was
/// filled later), and others may know; see [`vouches`].
///
/// It is not after a forced failover to a member that was behind, or while a new primary has not come so far yet.
pub fn may_sync_at(log: &LogName, history: &[VersionLink]) -> Option<bool> {
    let first = history.first()?.this.log.number;
    if log.number < first {
        return None;
    }
    Some(history.iter().any(|v| v.this.log == *log))
}

/// Whether the disk of a primary with the replay link `source` has all that comes before `start`: what a sync copies from it and
/// replay from `start` on does not write again must be there. It may not yet be if the position comes from another host, which
/// was primary when it was chosen.
pub fn has_before(source: Option<ReplayLink>, start: &ReplayLink) -> bool {
    source.is_some_and(|s| (s.log.number, s.pos) >= (start.log.number, start.pos))
        || defect!("sync-from-behind")
}

/// Whether `host` alone was primary since it wrote `log`, as its `history` shows: what a sync has copied from its disk then is still a
/// part of what it has now. After a failover and back, its disk may have had what nobody has any more.
pub fn wrote_all_since(log: &LogName, host: &Name, history: &[VersionLink]) -> bool {
    let since = |v: &VersionLink| v.this.log.number > log.number;
    let mut logs = history.iter().map(|v| v.this.log);
    defect!("sync-any-incarnation")
        || log.creator == *host
            && logs.any(|l| l == *log)
            && history
                .iter()
                .all(|v| !since(v) || v.this.log.creator == *host)
}

/// So many bytes of a disk, of which `done` are synced, are all of a good replica from before the resource grew: they need not be
/// compared again, whoever is primary, and a failover can go back to that size. Its `syncfrom-<host>` says so: "done,BYTES", or in
/// the source of the sync that fills the rest.
pub fn whole_part(syncfrom: &[u8], done: u64) -> Option<u64> {
    let whole = match syncfrom.strip_prefix(b"done,") {
        Some(text) => parse_u64(text).filter(|whole| *whole == done),
        None => sync_source(syncfrom)?.whole,
    };
    whole.filter(|whole| *whole > 0 && (*whole <= done || defect!("whole-for-ever")))
}

/// The value of `syncfrom-<host>` while a sync is not complete.
pub struct SyncSource {
    /// Who is copied.
    pub host: Name,
    /// Its newest log when that began.
    pub log: LogName,
    /// So many bytes the sync is to fill; older versions did not say.
    pub target: Option<u64>,
    /// The part that the sync does not look at, because it was complete before.
    pub whole: Option<u64>,
}

impl fmt::Display for SyncSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.host, self.log)?;
        match (self.target, self.whole) {
            (None, _) => Ok(()),
            (Some(target), None) => write!(f, ",{target}"),
            (Some(target), Some(whole)) => write!(f, ",{target},{whole}"),
        }
    }
}

fn sync_source(value: &[u8]) -> Option<SyncSource> {
    let mut parts = value.split(|b| *b == b',');
    let (host, log) = (Name::new(parts.next()?)?, LogName::parse(parts.next()?)?);
    let mut bytes = || parts.next().map_or(Some(None), |p| parse_u64(p).map(Some));
    let (target, whole) = (bytes()?, bytes()?);
    parts.next().is_none().then_some(SyncSource {
        host,
        log,
        target,
        whole,
    })
}

/// The value of `syncfrom-<host>` while a sync is not complete: the host that is copied, and its newest log when that began.
pub fn parse_sync_source(value: &[u8]) -> Option<(Name, LogName)> {
    sync_source(value).map(|s| (s.host, s.log))
}

/// How many bytes that sync is to fill.
fn sync_target(value: &[u8]) -> Option<u64> {
    sync_source(value)?.target
}

/// Whether a disk, of which `done` bytes are synced, was complete, so that a sync only has to look at what the resource has grown
/// by: `syncfrom` of its host.
pub fn only_grows(syncfrom: &[u8], done: u64) -> bool {
    let all = |wanted| done > 0 && done >= wanted;
    (whole_part(syncfrom, done).is_some() || sync_target(syncfrom).is_some_and(all))
        && !defect!("grows-over-gap")
}

/// Whether `theirs`, the history of any member, shows that `log` lies on the way to `history`, which begins later.
pub fn vouches(log: &LogName, theirs: &[VersionLink], history: &[VersionLink]) -> bool {
    theirs.iter().any(|v| v.this.log == *log)
        && matches!(
            compare(theirs, history),
            Relation::Equal | Relation::Ahead | Relation::Behind
        )
}

/// Whether a replica whose replay link is in `log` has gone another way than a running primary, the newest log of whose history
/// has the number `newest`. That one is still written to, so whatever follows it elsewhere follows a part of it that was cut
/// off by a forced failover, or another log. (That the histories themselves have no number in common, and say nothing of
/// each other, is possible: a replica that was made anew knows only the last two.)
pub fn is_beyond(log: &LogName, newest: u32) -> bool {
    log.number > newest
}

/// How far a disk may have been written from the log at its replay link. While replay runs that is known, but a crash leaves
/// a link that is older, and then everything counts that the local file had when it was looked at first, also what is damaged.
///
/// This says whether a replica may stop where a forced failover has cut a log off, and follow the new history from there: only
/// if it has nothing of what is behind. Else it is in split brain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach(Option<(LogName, u64)>);

impl Reach {
    /// After the start the file of `log`, in which the replay link is, has bytes up to `end`.
    pub fn found(&mut self, log: LogName, end: u64) {
        if self.0.is_none_or(|(l, _)| l != log) {
            self.0 = Some((log, end));
        }
    }

    /// What `log` has before `end` is about to be admitted.
    pub fn apply(&mut self, log: &LogName, end: u64) {
        if let Some((l, reach)) = &mut self.0 {
            if l == log {
                *reach = end.max(*reach);
            }
        }
    }

    /// Everything before `log` is on the disk, and nothing of it.
    pub fn begin(&mut self, log: LogName) {
        self.0 = Some((log, 0));
    }

    /// Whether replay, at `pos` of `log`, may go on with another log: everything that the disk may have is behind it.
    pub fn may_leave(&self, log: &LogName, pos: u64) -> bool {
        !self.0.is_some_and(|(l, reach)| l == *log && reach > pos)
    }

    /// Whether the disk of `me`, whose replay link is in `log`, may have what was cut off. Where an own log is no part of the course,
    /// nothing that follows it will ever be found, also if it is empty, and a crash has left no version link that would tell.
    pub fn is_cut_off(&self, log: &LogName, me: &Name, course: Course) -> bool {
        let of = |(l, reach): (LogName, u64)| l == *log && reach > 0 && !course.may_reach(reach);
        if log.creator == *me {
            course == Course::Elsewhere
        } else {
            self.0.is_some_and(of)
        }
    }

    /// Where replay of `log`, which `me` may have written, must stop on this course.
    pub fn stop(&self, log: &LogName, me: &Name, course: Course) -> Option<u64> {
        match (self.0, course) {
            // A primary's disk may have all that it has logged.
            _ if log.creator == *me => None,
            (Some((l, reach)), Course::EndsAt(end)) if l == *log && reach <= end => Some(end),
            // Nothing of a later log was applied.
            (Some((l, _)), Course::EndsAt(end)) if l.number < log.number => Some(end),
            _ => None,
        }
    }
}

/// Number of the log that a new primary `me` starts, when replay has ended at `pos` of `end`. `maxnr` is the highest number
/// that the tree knows.
///
/// A fresh resource starts in the empty log that the tool made; everything else starts a log of its own: one that exists
/// is never continued.
pub fn next_number(end: &LogName, pos: u64, me: &Name, maxnr: u32) -> u32 {
    if pos == 0 && end.creator == *me {
        return end.number;
    }
    let next = end.number.saturating_add(1);
    if maxnr > next.saturating_add(JUMP) {
        maxnr.saturating_add(1)
    } else {
        next
    }
}

/// The log of this host that goes on behind `pos` of `at` without any other member having to say so: a crash during a
/// rotation leaves the next log without a link that names it. `own` is this host's version link of the next number.
pub fn own_next(at: &LogName, pos: u64, me: &Name, own: Option<&VersionLink>) -> Option<LogName> {
    let adopted = own
        .and_then(|v| v.previous)
        .is_some_and(|p| p.log == *at && p.pos == pos);
    (at.creator == *me || adopted).then_some(LogName {
        number: at.number.checked_add(1)?,
        creator: *me,
    })
}

/// Whether a log that is here was made before the log that it goes on behind, by the stamps in their headers: then it is another
/// one of that name, from a history that was cut off. `now` is the wall clock: what a clock that was far ahead has stamped says
/// nothing, since others do not believe it.
pub fn is_stale(made: LamportTime, before: LamportTime, now: LamportTime) -> bool {
    made < before && before <= now
}

/// How far `log` was durable here, according to this host's own version link of that number: there it must be good.
pub fn reported_end(log: &LogName, own: Option<&VersionLink>) -> u64 {
    own.filter(|v| v.this.log == *log && !v.this.is_artificial())
        .map_or(0, |v| v.this.pos)
}

/// Whether all of a disk was filled by a sync, or was the source of one: `syncstatus` and `syncfrom` of its host, and `size` of
/// the resource.
///
/// `syncstatus` may be more than `size`: `marsadm resize` writes that of the primary first, and what stops it in between must not
/// leave a primary that counts as incomplete. But not if it says how far a sync has come that wanted more: then only that counts
/// which was complete before ([`whole_part`]).
pub fn is_synced(syncstatus: Option<u64>, size: Option<u64>, syncfrom: Option<&[u8]>) -> bool {
    let wanted = syncfrom.and_then(sync_target).unwrap_or(0);
    syncstatus.zip(size).is_some_and(|(done, size)| {
        let whole = syncfrom.and_then(|v| whole_part(v, done));
        done >= size.max(wanted) || whole.is_some_and(|whole| whole >= size)
    })
}

/// Whether a disk is complete, or was before the resource grew: then what it has is its own, and no sync replaces it.
pub fn is_whole(syncstatus: Option<u64>, size: Option<u64>, syncfrom: Option<&[u8]>) -> bool {
    // What never was filled by a sync is that of a primary.
    let grows = |done: u64| syncfrom.map_or(done > 0, |v| only_grows(v, done));
    is_synced(syncstatus, size, syncfrom) || syncstatus.is_some_and(grows)
}

/// The `syncstatus` that the complete disk of a host which is not designated has to go back to, if any: what it says of bytes that
/// the resource does not have comes from a resize that was never decided, or that a failover has cut off, and must not count when
/// the resource grows later.
pub fn undecided(syncstatus: Option<u64>, size: Option<u64>) -> Option<u64> {
    size.filter(|size| syncstatus.is_some_and(|done| done > *size) && !defect!("void-resize-stays"))
}

/// Whether a disk is being filled beyond `size`, of which it has all already: a failover has cut off the resize, and the sync of what
/// it had brought. Then `syncstatus` and `syncpos` have to go back to what was before ([`whole_part`]).
pub fn is_void_growth(syncstatus: Option<u64>, size: Option<u64>, syncfrom: Option<&[u8]>) -> bool {
    let Some(((done, size), from)) = syncstatus.zip(size).zip(syncfrom) else {
        return false;
    };
    parse_sync_source(from).is_some() && whole_part(from, done).is_some_and(|whole| whole >= size)
}

/// How large the device of a host is that becomes primary: its disk was complete when that was decided, and if the resource is
/// larger meanwhile, another host has decided that before a forced failover cut it off; see [`unheard_resize`].
pub fn device_size(syncstatus: Option<u64>, size: Option<u64>) -> Option<u64> {
    let done = if defect!("device-of-any-size") {
        size
    } else {
        syncstatus
    };
    Some(done?.min(size?)).filter(|size| *size > 0)
}

/// The `syncstatus` that a running primary whose device has `device` bytes has to say again, if any: somebody who was primary, too,
/// and has not heard of it, has resized the resource by force, and taken its word away.
pub fn unheard_primary(syncstatus: Option<u64>, device: u64) -> Option<u64> {
    Some(device).filter(|device| syncstatus.is_none_or(|done| done < *device))
}

/// The size of the resource that a running primary has to say again, if any. It was complete when it became primary, and whoever
/// makes it larger raises its `syncstatus` first; so a size beyond that was decided by another host before a forced failover cut
/// it off. With it, this disk could never become primary again. A size that is less than what its `device` has, which may be in
/// use, comes from a failover that was taken back.
pub fn unheard_resize(syncstatus: Option<u64>, size: Option<u64>, device: u64) -> Option<u64> {
    if size.is_some_and(|size| size < device) {
        return Some(device);
    }
    let has_less = |done: &u64| *done > 0 && size.is_some_and(|size| size > *done);
    syncstatus.filter(|done| has_less(done) && !defect!("unheard-resize-stays"))
}

/// Whether a disk that was filled by a sync is a state that the primary once had: replay has reached the position at which
/// the sync ended. `syncpos` is [`None`] if there is no such link, and `Some(None)` if it can't be understood.
pub fn is_consistent(syncpos: Option<Option<ReplayLink>>, replay: Option<ReplayLink>) -> bool {
    match (syncpos, replay) {
        _ if defect!("consistent-early") => true,
        (None | Some(None), _) => true,
        (Some(Some(need)), Some(have)) => {
            (have.log.number, have.pos) >= (need.log.number, need.pos)
        }
        (Some(Some(_)), None) => false,
    }
}

/// Whether a replay link may be moved to `pos` of log `number`: it never goes back (P9), whoever comes late.
pub fn is_forward(have: Option<ReplayLink>, number: u32, pos: u64) -> bool {
    have.is_none_or(|l| (l.log.number, l.pos) <= (number, pos))
}

/// Whether a host whose replay link this is no longer needs the file of log `number`.
pub fn is_passed(number: u32, replay: &ReplayLink) -> bool {
    number < replay.log.number || defect!("delete-early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn log(number: u32, creator: &str) -> LogName {
        LogName {
            number,
            creator: name(creator),
        }
    }

    fn chain(logs: &[(&str, u64)]) -> Vec<VersionLink> {
        let mut previous = None;
        let mut out = Vec::new();
        for (number, (creator, pos)) in (1..).zip(logs) {
            let mut digest = [u8::try_from(number).unwrap(); 16];
            digest[1] = u8::try_from(*pos).unwrap();
            let this = VersionPoint {
                digest,
                log: log(number, creator),
                pos: *pos,
            };
            out.push(VersionLink { this, previous });
            previous = Some(this);
        }
        out
    }

    fn search(
        mine: &[VersionLink],
        end: u64,
        purpose: Purpose,
        others: &[(&str, &[VersionLink])],
    ) -> Option<LogName> {
        let mut s = Search::new(mine, log(1, "a"), end, Some(name("p")), purpose);
        for (host, theirs) in others {
            s.look(&name(host), theirs);
        }
        s.found()
    }

    #[test]
    fn p1_given_a_primary_that_has_not_written_back_when_a_replica_begins_later_then_it_waits() {
        let link = |n, pos| ReplayLink {
            log: log(n, "a"),
            pos,
            rest: 0,
        };
        assert!(has_before(Some(link(3, 500)), &link(3, 0)));
        assert!(has_before(Some(link(3, 500)), &link(3, 500)));
        assert!(!has_before(Some(link(2, 500)), &link(3, 0)));
        assert!(!has_before(Some(link(3, 400)), &link(3, 500)));
        assert!(!has_before(None, &link(1, 0)));
    }

    #[test]
    fn given_a_successor_when_it_names_another_end_then_it_does_not_follow() {
        let mine = chain(&[("a", 10)]);
        let theirs = chain(&[("a", 10), ("b", 1)]);
        for purpose in [Purpose::Fetch, Purpose::Replay] {
            assert_eq!(
                search(&mine, 10, purpose, &[("b", &theirs)]),
                Some(log(2, "b"))
            );
            assert_eq!(search(&mine, 9, purpose, &[("b", &theirs)]), None);
            assert_eq!(search(&mine, 11, purpose, &[("b", &theirs)]), None);
        }
    }

    #[test]
    fn p10_given_a_link_that_lags_behind_its_own_history_when_that_is_the_primary_s_then_it_goes_on(
    ) {
        let mine = chain(&[("a", 10), ("p", 1)]);
        for purpose in [Purpose::Fetch, Purpose::Replay] {
            assert_eq!(
                search(&mine, 10, purpose, &[("p", &mine)]),
                Some(log(2, "p"))
            );
        }
        // What is known here only is no reason to go on.
        assert_eq!(
            search(&mine, 10, Purpose::Replay, &[("p", &mine[..1])]),
            None
        );
    }

    #[test]
    fn p5_given_diverged_histories_when_searched_then_nothing_follows() {
        let mine = chain(&[("a", 10), ("c", 5)]);
        let theirs = chain(&[("a", 10), ("b", 1)]);
        for purpose in [Purpose::Fetch, Purpose::Replay] {
            assert_eq!(search(&mine, 10, purpose, &[("b", &theirs)]), None);
        }
    }

    #[test]
    fn given_two_answers_when_one_is_the_primary_s_then_that_counts_in_any_order() {
        let mine = chain(&[("a", 10)]);
        let (b, p) = (chain(&[("a", 10), ("b", 1)]), chain(&[("a", 10), ("p", 1)]));
        for others in [
            [("b", b.as_slice()), ("p", p.as_slice())],
            [("p", p.as_slice()), ("b", b.as_slice())],
        ] {
            assert_eq!(
                search(&mine, 10, Purpose::Replay, &others),
                Some(log(2, "p"))
            );
        }
    }

    #[test]
    fn p5_given_a_log_that_a_failover_cut_when_others_go_on_with_it_then_the_primary_s_end_counts()
    {
        // `a` wrote log 1 up to 10 and went on; `p` was made primary by force when it had 7 of it.
        let a = chain(&[("a", 10), ("a", 1)]);
        let p = chain(&[("a", 7), ("p", 1)]);
        let mine = chain(&[("a", 5)]);
        let (same, next) = (p.first(), p.last());
        let c = course(&log(1, "a"), same, next);
        assert_eq!(c, Course::EndsAt(7));
        assert!(c.has(7) && !c.has(10) && !c.has(5));
        assert!(c.may_reach(7) && !c.may_reach(8));
        assert_eq!(course(&log(2, "a"), next, None), Course::Elsewhere);
        assert!(!Course::Elsewhere.may_reach(0) && !Course::Elsewhere.has(0));
        assert_eq!(course(&log(2, "p"), next, None), Course::Open(1));
        assert!(Course::Open(1).has(1) && !Course::Open(2).has(1));
        assert_eq!(course(&log(1, "b"), same, next), Course::Elsewhere);
        assert_eq!(course(&log(3, "a"), None, None), Course::Open(0));
        for others in [
            [("a", a.as_slice()), ("p", p.as_slice())],
            [("p", p.as_slice()), ("a", a.as_slice())],
        ] {
            for purpose in [Purpose::Fetch, Purpose::Replay] {
                assert_eq!(search(&mine, 10, purpose, &others), None);
                assert_eq!(search(&mine, 7, purpose, &others), Some(log(2, "p")));
            }
        }
    }

    #[test]
    fn p1_given_a_replica_whose_start_is_no_log_of_the_primary_then_no_sync_fills_it() {
        // Made anew from `a` in log 5; then `p`, which had only log 1, was made primary by force.
        let p = chain(&[("a", 7), ("p", 1)]);
        let may = |n, creator| may_sync_at(&log(n, creator), &p);
        assert_eq!(may(5, "a"), Some(false));
        assert!(is_beyond(&log(5, "a"), 2) && is_beyond(&log(3, "a"), 2));
        assert_eq!(may(2, "a"), Some(false));
        assert_eq!((may(2, "p"), may(1, "a")), (Some(true), Some(true)));
        assert!(!is_beyond(&log(2, "p"), 2) && !is_beyond(&log(1, "a"), 2));
    }

    #[test]
    fn p10_given_a_primary_that_was_filled_later_when_a_sync_begins_before_then_others_vouch() {
        let a = chain(&[("a", 7), ("b", 5), ("b", 9)]);
        let late = &a[1..];
        assert_eq!(may_sync_at(&log(1, "a"), late), None);
        assert!(vouches(&log(1, "a"), &a, late));
        // Not who does not know it, nor who has gone another way, nor who has nothing in common.
        assert!(!vouches(&log(1, "a"), late, late) && !vouches(&log(1, "b"), &a, late));
        assert!(!vouches(&log(1, "a"), &chain(&[("a", 7), ("a", 5)]), late));
        assert!(!vouches(&log(1, "a"), &a[..1], &a[2..]));
    }

    #[test]
    fn p5_given_a_log_that_was_cut_off_then_only_a_disk_that_has_nothing_behind_stops_there() {
        let (me, one, cut) = (name("c"), log(1, "a"), Course::EndsAt(7));
        let mut r = Reach::default();
        // Just started: nobody knows what an earlier run has applied.
        assert_eq!(r.stop(&one, &me, cut), None);
        r.apply(&one, 5);
        assert_eq!(r.stop(&one, &me, cut), None);
        r.found(one, 6);
        assert_eq!(r.stop(&one, &me, cut), Some(7));
        // What is fetched later is not applied by that.
        r.found(one, 9);
        r.apply(&log(2, "a"), 9);
        assert_eq!(r.stop(&one, &me, cut), Some(7));
        assert_eq!(r.stop(&log(2, "a"), &me, Course::EndsAt(0)), Some(0));
        assert_eq!(r.stop(&one, &me, Course::Open(3)), None);
        assert_eq!(r.stop(&one, &name("a"), cut), None);
        assert!(!r.is_cut_off(&one, &me, cut));
        assert!(r.may_leave(&one, 6) && !r.may_leave(&one, 5));
        r.apply(&one, 8);
        assert_eq!(r.stop(&one, &me, cut), None);
        assert!(r.is_cut_off(&one, &me, cut) && !r.may_leave(&one, 7));
        // Of a log that it wrote itself only that it does not count; how much of that counts is in its own history.
        let own = log(1, "c");
        assert!(r.is_cut_off(&own, &me, Course::Elsewhere));
        assert!(!r.is_cut_off(&own, &me, cut) && !r.is_cut_off(&own, &me, Course::Open(0)));
        assert!(!r.is_cut_off(&one, &name("a"), cut));
        assert!(!r.is_cut_off(&one, &me, Course::Open(0)));
        assert!(!r.is_cut_off(&log(2, "p"), &me, Course::EndsAt(0)));
        assert!(r.may_leave(&log(2, "p"), 0));
        r.begin(log(2, "p"));
        assert_eq!(r.stop(&one, &me, cut), None);
        assert_eq!(r.stop(&log(2, "p"), &me, cut), Some(7));
        r.found(log(3, "p"), 8);
        assert_eq!(r.stop(&log(3, "p"), &me, cut), None);
    }

    #[test]
    fn given_an_end_when_primary_then_only_an_empty_own_log_is_begun_again() {
        let me = name("a");
        assert_eq!(next_number(&log(1, "a"), 0, &me, 1), 1);
        assert_eq!(next_number(&log(1, "a"), 4096, &me, 1), 2);
        assert_eq!(next_number(&log(3, "b"), 0, &me, 9), 4);
        assert_eq!(next_number(&log(3, "b"), 0, &me, 2000), 2001);
        assert_eq!(next_number(&log(u32::MAX, "b"), 0, &me, u32::MAX), u32::MAX);
    }

    #[test]
    fn given_a_crash_in_a_rotation_when_recovering_then_the_own_next_log_is_tried() {
        let me = name("a");
        assert_eq!(own_next(&log(1, "a"), 10, &me, None), Some(log(2, "a")));
        assert_eq!(own_next(&log(1, "b"), 10, &me, None), None);
        let own = chain(&[("b", 10), ("a", 1)]);
        assert_eq!(
            own_next(&log(1, "b"), 10, &me, own.last()),
            Some(log(2, "a"))
        );
        assert_eq!(own_next(&log(1, "b"), 9, &me, own.last()), None);
        assert_eq!(own_next(&log(u32::MAX, "a"), 9, &me, None), None);
    }

    #[test]
    fn given_version_links_when_asked_for_a_durable_end_then_only_a_real_one_of_this_log_counts() {
        let own = chain(&[("a", 10)]);
        assert_eq!(reported_end(&log(1, "a"), own.first()), 10);
        assert_eq!(reported_end(&log(1, "b"), own.first()), 0);
        assert_eq!(reported_end(&log(1, "a"), None), 0);
        let mut artificial = own.clone();
        artificial[0].this.digest = [0; 16];
        assert_eq!(reported_end(&log(1, "a"), artificial.first()), 0);
    }

    #[test]
    fn given_a_half_done_sync_when_its_source_lost_the_role_meanwhile_then_it_does_not_go_on() {
        let a = name("a");
        let now = chain(&[("b", 5), ("a", 10), ("a", 20)]);
        assert!(wrote_all_since(&log(2, "a"), &a, &now));
        assert!(wrote_all_since(&log(3, "a"), &a, &now));
        // Another one's log, one that is not known, and one that the history does not have.
        for other in [log(1, "b"), log(4, "a"), log(2, "b")] {
            assert!(!wrote_all_since(&other, &a, &now));
        }
        let back = chain(&[("a", 10), ("b", 20), ("a", 5)]);
        assert!(!wrote_all_since(&log(1, "a"), &a, &back));
        assert!(wrote_all_since(&log(3, "a"), &a, &back));
        for told in ["", ",4096", ",4096,512"].map(|rest| std::format!("a,log-000000003-a{rest}")) {
            let source = sync_source(told.as_bytes()).unwrap();
            assert_eq!(std::format!("{source}"), told);
            let told = parse_sync_source(told.as_bytes());
            assert_eq!(told, Some((a, log(3, "a"))));
        }
        for bad in [
            "a",
            "",
            ",",
            "a,",
            "a,log-3-a",
            "a,log-000000003-a,",
            "a,log-000000003-a,x",
            "a,log-000000003-a,1,",
            "a,log-000000003-a,1,x",
            "a,log-000000003-a,1,2,3",
            "done,9",
        ] {
            assert_eq!(parse_sync_source(bad.as_bytes()), None);
        }
        assert_eq!(whole_part(b"done,4096", 4096), Some(4096));
        for (told, done) in [
            ("done,4096", 8192),
            ("done,0", 0),
            ("a,log-000000003-a", 9),
            ("a,log-000000003-a,9", 9),
            ("a,log-000000003-a,9,0", 9),
            ("a,log-000000003-a,9,5", 4),
        ] {
            assert_eq!(whole_part(told.as_bytes(), done), None);
        }
        for done in [5, 7, 9] {
            assert_eq!(whole_part(b"a,log-000000003-a,9,5", done), Some(5));
        }
    }

    #[test]
    fn p1_given_a_resize_that_was_cut_off_when_asked_then_a_part_of_a_sync_is_not_all() {
        let synced = |done, size, from: &str| is_synced(done, Some(size), Some(from.as_bytes()));
        assert!(is_synced(Some(64), Some(64), None) && is_synced(Some(96), Some(64), None));
        assert!(!is_synced(None, Some(64), None) && !is_synced(Some(64), None, None));
        assert!(!is_synced(Some(64), Some(96), None));
        // 64 or 70 of 96 were copied from a primary, then another one says that there are only 64.
        for done in [64, 70, 95] {
            assert!(!synced(Some(done), 64, "a,log-000000003-a,96"));
        }
        assert!(synced(Some(96), 64, "a,log-000000003-a,96"));
        assert!(synced(Some(96), 96, "done,96") && synced(Some(96), 64, "done,96"));
        assert!(synced(Some(64), 64, "a,log-000000003-a"));
        assert_eq!(undecided(Some(96), Some(64)), Some(64));
        assert_eq!(undecided(Some(64), Some(64)), None);
        assert_eq!(undecided(None, Some(64)), None);
        assert_eq!(unheard_resize(Some(64), Some(96), 64), Some(64));
        assert_eq!(unheard_resize(Some(64), Some(64), 96), Some(96));
        assert_eq!(unheard_resize(Some(96), Some(96), 64), None);
        assert_eq!(unheard_primary(None, 64), Some(64));
        assert_eq!(unheard_primary(Some(0), 64), Some(64));
        assert_eq!(unheard_primary(Some(64), 64), None);
        assert_eq!(unheard_primary(Some(96), 64), None);
        assert_eq!(device_size(Some(64), Some(96)), Some(64));
        assert_eq!(device_size(Some(96), Some(64)), Some(64));
        for (done, size) in [(Some(0), Some(64)), (None, Some(64)), (Some(64), None)] {
            assert_eq!(device_size(done, size), None);
        }
        for (done, size) in [
            (Some(96), Some(96)),
            (Some(96), Some(64)),
            (Some(0), Some(9)),
            (None, Some(9)),
        ] {
            assert_eq!(unheard_resize(done, size, 0), None);
        }
    }

    #[test]
    fn given_a_sync_when_replay_has_not_reached_its_end_then_it_is_not_consistent() {
        let link = |number, pos| ReplayLink {
            log: log(number, "a"),
            pos,
            rest: 0,
        };
        let need = Some(Some(link(2, 100)));
        assert!(!is_consistent(need, Some(link(2, 99))));
        assert!(!is_consistent(need, Some(link(1, 500))));
        assert!(!is_consistent(need, None));
        assert!(is_consistent(need, Some(link(2, 100))));
        assert!(is_consistent(need, Some(link(3, 0))));
        assert!(is_consistent(None, None));
        assert!(is_forward(None, 1, 0) && is_forward(Some(link(1, 9)), 2, 0));
        assert!(is_forward(Some(link(2, 9)), 2, 9));
        assert!(!is_forward(Some(link(2, 9)), 2, 8) && !is_forward(Some(link(2, 0)), 1, 9));
        assert!(is_passed(1, &link(2, 0)) && !is_passed(2, &link(2, 500)));
    }

    #[test]
    fn given_a_log_that_is_older_than_the_one_before_it_when_asked_then_it_is_stale() {
        let t = LamportTime::from_nanos;
        assert!(is_stale(t(4), t(5), t(9)));
        assert!(!is_stale(t(5), t(5), t(9)) && !is_stale(t(6), t(5), t(9)));
        // The clock of whoever made the log before was ahead.
        assert!(!is_stale(t(4), t(50), t(9)));
    }

    #[test]
    fn given_a_disk_that_was_complete_when_the_resource_grows_then_only_that_is_looked_at() {
        assert!(only_grows(b"done,64", 64));
        assert!(is_whole(Some(64), Some(96), Some(b"done,64")));
        assert!(is_whole(Some(64), Some(96), Some(b"a,log-000000002-a,64")));
        assert!(is_whole(Some(64), Some(64), None));
        assert!(is_whole(Some(64), Some(96), None) && !is_whole(Some(0), Some(96), None));
        assert!(!is_whole(Some(32), Some(96), Some(b"a,log-000000002-a,64")));
        assert!(!is_whole(Some(0), Some(96), Some(b"done,64")));
        assert!(!is_whole(None, Some(96), Some(b"done,64")));
        assert!(only_grows(b"a,log-000000002-a,64", 64));
        assert!(only_grows(b"a,log-000000002-a,64", 70));
        // While what it has grown by is copied.
        for done in [64, 80] {
            assert!(only_grows(b"a,log-000000002-a,96,64", done));
            assert!(is_whole(
                Some(done),
                Some(96),
                Some(b"a,log-000000002-a,96,64")
            ));
            assert!(!is_synced(
                Some(done),
                Some(96),
                Some(b"a,log-000000002-a,96,64")
            ));
            assert!(is_synced(
                Some(done),
                Some(64),
                Some(b"a,log-000000002-a,96,64")
            ));
            assert!(is_void_growth(
                Some(done),
                Some(64),
                Some(b"a,log-000000002-a,96,64")
            ));
            assert!(!is_void_growth(
                Some(done),
                Some(96),
                Some(b"a,log-000000002-a,96,64")
            ));
        }
        assert!(!is_void_growth(Some(64), Some(64), Some(b"done,64")));
        assert!(!is_void_growth(
            Some(64),
            Some(64),
            Some(b"a,log-000000002-a,64")
        ));
        assert!(!is_synced(
            Some(0),
            Some(64),
            Some(b"a,log-000000002-a,96,64")
        ));
        assert!(!only_grows(b"a,log-000000002-a,96,64", 32));
        // Half of a sync, or none at all.
        assert!(!only_grows(b"a,log-000000002-a,64", 32));
        assert!(!only_grows(b"a,log-000000002-a,64", 0) && !only_grows(b"done,64", 32));
    }
}
