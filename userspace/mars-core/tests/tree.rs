// SPDX-License-Identifier: GPL-2.0-or-later

//! The tree: golden trees of the original, changes, walks, failures.

mod common;

use common::name;
use mars_core::{
    lamport::LamportTime,
    log::VersionLink,
    tree::{
        value,
        LocalDecision,
        MergeDecision,
        PathError,
        ScanSummary,
        Seen,
        Tree,
        TreePath, //
    },
};
use mars_host_digest::HostDigest;

fn t(sec: u64) -> LamportTime {
    LamportTime::new(sec, 0).unwrap()
}

fn path(text: &str) -> TreePath<'_> {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// Path, value, stamp.
type Line<'a> = (&'a str, &'a str, LamportTime);

fn lines(dump: &str) -> Vec<Line<'_>> {
    dump.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut parts = line.split('\t');
            let mut part = || parts.next().unwrap();
            (
                part(),
                part(),
                LamportTime::parse(part().as_bytes()).unwrap(),
            )
        })
        .collect()
}

fn alpha() -> Vec<Line<'static>> {
    lines(include_str!("fixtures/tree-alpha.tsv"))
}

fn beta() -> Vec<Line<'static>> {
    lines(include_str!("fixtures/tree-beta.tsv"))
}

/// Those that are replicated.
fn shared(mut lines: Vec<Line<'_>>) -> Vec<Line<'_>> {
    lines.retain(|l| TreePath::parse(l.0.as_bytes()).is_ok());
    lines
}

fn load(lines: &[Line<'_>]) -> Tree {
    let mut tree = Tree::new();
    tree.begin_scan(b"").unwrap();
    for (text, value, stamp) in lines {
        if let Ok(path) = TreePath::parse(text.as_bytes()) {
            tree.observe(&path, value.as_bytes(), *stamp).unwrap();
        }
    }
    tree.end_scan();
    tree
}

/// What is there, for comparison.
fn dump(tree: &Tree) -> Vec<(String, String, LamportTime)> {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    tree.iter()
        .map(|e| (text(e.path), text(e.value), e.stamp))
        .collect()
}

fn values(tree: &Tree) -> Vec<(String, String)> {
    dump(tree).into_iter().map(|(p, v, _)| (p, v)).collect()
}

#[test]
fn all_of_a_tree_of_the_original_is_understood() {
    for lines in [alpha(), beta()] {
        for (text, value, _) in &lines {
            assert!(value::is_valid(value.as_bytes()));
            match TreePath::parse(text.as_bytes()) {
                Ok(path) => assert_eq!(path.as_bytes(), text.as_bytes()),
                Err(why) => {
                    assert_eq!(why, PathError::Local, "{text}");
                    assert!(text.starts_with("cache-"));
                }
            }
        }
        let tree = load(&lines);
        let cached = lines.iter().filter(|l| l.0.starts_with("cache-")).count();
        assert_eq!(tree.iter().count(), lines.len() - cached);
    }
}

#[test]
fn the_golden_tree_is_read_by_its_meaning() {
    let tree = load(&alpha());
    let (a, b) = (name("alpha"), name("beta"));
    assert_eq!(tree.uuid(), Some(&b"alpha_1795323623.000000000"[..]));
    assert_eq!(tree.hosts().collect::<Vec<_>>(), [a, b]);
    assert_eq!(tree.ip(&b), Some("10.77.0.2".parse().unwrap()));
    assert_eq!(tree.actual(&b, "alive").unwrap().value, b"1");
    assert_eq!(tree.resources().collect::<Vec<_>>(), [name("r0")]);

    let res = tree.resource(&name("r0"));
    assert_eq!(res.members().collect::<Vec<_>>(), [a, b]);
    assert_eq!(res.primary(), None);
    assert_eq!(res.get("primary"), Some(value::NONE));
    assert_eq!(res.size(), Some(64 << 20));
    assert_eq!(res.maxnr(), Some(2));
    assert_eq!(res.data(&a), Some(&b"/dev/vdc"[..]));
    assert!(res.is_member(&b) && !res.is_member(&name("gamma")));
    let replay = res.replay(&a).unwrap();
    assert_eq!((replay.log.number, replay.log.creator), (3, b));
    assert_eq!((replay.pos, replay.rest), (4180, 0));
    assert_eq!(res.syncstatus(&b), res.size());
    assert_eq!(res.syncpos(&b).unwrap().log.number, 1);
    assert_eq!(res.skip_check(&b), Some(1));
    assert!(res.switch(&b, "attach") && !res.switch(&a, "attach"));
    assert!(res.indicator(&b, "is-attached") && !res.indicator(&a, "is-attached"));
    let numbers: Vec<_> = res.versions(&a).map(|(n, _)| n).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
    assert_eq!(res.versions(&b).count(), 3);
    assert_eq!(res.version(2, &a), res.version(2, &b));
}

#[test]
fn p5_the_golden_version_chain_is_computed() {
    let tree = load(&alpha());
    let res = tree.resource(&name("r0"));
    for host in [name("alpha"), name("beta")] {
        let mut before: &[u8] = b"";
        for number in 1..=3 {
            let want = res.version(number, &host).unwrap();
            let link = VersionLink::compute::<HostDigest>(want.this.log, want.this.pos, before);
            assert_eq!(link, Some(want));
            before = res.version_value(number, &host).unwrap();
        }
    }
}

#[test]
fn p10_the_golden_trees_merge_to_one() {
    let now = t(1_795_323_700);
    let (mut a, mut b) = (load(&alpha()), load(&beta()));
    let pull = |to: &mut Tree, from: &Tree, me| {
        for e in from.iter() {
            let path = TreePath::parse(e.path).unwrap();
            to.apply_remote(&path, e.value, e.stamp, now, &name(me))
                .unwrap();
        }
    };
    pull(&mut a, &b, "alpha");
    pull(&mut b, &a, "beta");
    // What the original writes into the state of another host stays where it is.
    let comparable = |tree: &Tree| {
        let mut all = dump(tree);
        all.retain(|(path, ..)| !path.ends_with("read-stamp"));
        all
    };
    assert_eq!(comparable(&a), comparable(&b));
    assert_eq!(a.get(b"actual-beta/alive"), Some(&b"0"[..]));
    assert!(!a.resource(&name("r0")).switch(&name("beta"), "attach"));
}

#[test]
fn resources_are_told_apart() {
    let mut tree = Tree::new();
    for text in [
        "resource-a/size",
        "resource-a-b/size",
        "resource-a-b/primary",
        "resource-a0/size",
        "resource-gone/size",
        "resource-b/todo-x/attach",
        "uuid",
    ] {
        let value: &[u8] = if text.contains("gone") {
            b".deleted"
        } else {
            b"1"
        };
        tree.apply_local(&path(text), value, t(1)).unwrap();
    }
    let names: Vec<_> = tree.resources().map(|n| n.as_str().to_string()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    for want in ["a", "a-b", "a0", "b"] {
        assert!(names.iter().any(|n| n == want), "{want}");
    }
}

#[test]
fn changes_are_told_once_each_and_in_pages() {
    let mut tree = Tree::new();
    let put = |tree: &mut Tree, p: &str, v: &str, s| {
        tree.apply_local(&path(p), v.as_bytes(), t(s)).unwrap()
    };
    assert_eq!(put(&mut tree, "uuid", "x", 1), LocalDecision::Changed);
    assert_eq!(put(&mut tree, "defaults/a", "1", 2), LocalDecision::Changed);
    let since = tree.generation();
    assert_eq!(put(&mut tree, "uuid", "x", 3), LocalDecision::Restamped);
    assert_eq!(put(&mut tree, "uuid", "y", 3), LocalDecision::Changed);
    assert_eq!(put(&mut tree, "uuid", "z", 2), LocalDecision::Older);
    let changed: Vec<_> = tree
        .changed_since(since)
        .map(|e| (e.path, e.value))
        .collect();
    assert_eq!(changed, [(&b"uuid"[..], &b"y"[..])]);
    assert_eq!(tree.changed_since(tree.generation()).count(), 0);

    // Many changes of the same: the list of changes does not grow without bound, and nothing gets lost.
    for i in 0..1000 {
        put(
            &mut tree,
            &format!("defaults/k{}", i % 7),
            &i.to_string(),
            10 + i,
        );
    }
    let mut seen = Vec::new();
    let mut at = 0;
    loop {
        let page: Vec<_> = tree.changed_since(at).take(2).collect();
        let Some(last) = page.last() else { break };
        at = last.generation;
        seen.extend(page.iter().map(|e| e.path.to_vec()));
    }
    assert_eq!(at, tree.generation());
    seen.sort();
    assert_eq!(
        seen,
        tree.iter().map(|e| e.path.to_vec()).collect::<Vec<_>>()
    );
}

#[test]
fn tombstones_hide_and_are_passed_on() {
    let mut tree = Tree::new();
    let p = path("resource-r0/data-beta");
    tree.apply_local(&p, b"/dev/x", t(1)).unwrap();
    tree.apply_local(&p, b".deleted", t(2)).unwrap();
    assert_eq!(tree.get(p.as_bytes()), None);
    assert!(!tree.resource(&name("r0")).is_member(&name("beta")));
    assert_eq!(tree.changed_since(0).count(), 1);
}

#[test]
fn a_deletion_of_something_unknown_is_remembered_but_not_created() {
    let (mut tree, me, now) = (Tree::new(), name("gamma"), t(100));
    let p = path("resource-r0/data-beta");
    let mut apply = |v: &[u8], s| tree.apply_remote(&p, v, t(s), now, &me).unwrap();
    assert_eq!(apply(b".deleted", 7), MergeDecision::Phantom);
    // An old value comes by a detour.
    assert_eq!(apply(b"/dev/x", 5), MergeDecision::NotNewer);
    assert_eq!(apply(b".deleted", 8), MergeDecision::Phantom);
    assert_eq!(apply(b"/dev/y", 9), MergeDecision::Take);
    assert_eq!(apply(b".deleted", 10), MergeDecision::Take);
    assert_eq!(tree.iter().count(), 1);

    let q = path("uuid");
    let put = |tree: &mut Tree, v: &[u8], s| tree.apply_remote(&q, v, t(s), now, &me).unwrap();
    assert_eq!(put(&mut tree, b".deleted", 7), MergeDecision::Phantom);
    assert!(tree.entry(b"uuid").is_none());
    // But it is passed on.
    assert_eq!(tree.changed_since(0).count(), 2);
    tree.forget_phantoms(t(8));
    assert_eq!(tree.changed_since(0).count(), 1);
    assert_eq!(put(&mut tree, b"x", 5), MergeDecision::Take);
}

#[test]
fn a_tombstone_that_was_collected_is_remembered_for_a_while() {
    let (mut tree, me, now) = (Tree::new(), name("gamma"), t(100));
    let p = path("resource-r0/data-beta");
    tree.apply_local(&p, b".deleted", t(7)).unwrap();
    tree.begin_scan(b"").unwrap();
    assert_eq!(tree.end_scan().removed, 0);
    assert_eq!(tree.iter().count(), 0);
    let old = tree.apply_remote(&p, b"/dev/x", t(5), now, &me);
    assert_eq!(old, Ok(MergeDecision::NotNewer));
    assert_eq!(
        tree.apply_local(&p, b"/dev/y", t(9)),
        Ok(LocalDecision::Changed)
    );
}

#[test]
fn p6_peers_do_not_speak_for_this_host() {
    let (mut tree, me) = (Tree::new(), name("alpha"));
    let mut apply = |p: &str, v: &[u8], s| tree.apply_remote(&path(p), v, t(s), t(100), &me);
    // A crash has lost what this host said of itself last: it says again what is.
    assert_eq!(
        apply("actual-alpha/alive", b"1", 5),
        Ok(MergeDecision::SayAgain)
    );
    assert_eq!(
        apply("actual-alpha/alive", b".deleted", 5),
        Ok(MergeDecision::Refused)
    );
    assert_eq!(apply("actual-beta/alive", b"1", 5), Ok(MergeDecision::Take));
    assert_eq!(
        apply("actual-beta/alive", b"1", 100 + 31 * 86400),
        Ok(MergeDecision::TooFarAhead)
    );
    assert!(apply("actual-beta/alive", b"a\nb", 6).is_err());
}

#[test]
fn p10_given_a_crash_that_lost_the_own_newest_word_when_a_peer_has_it_then_it_is_said_again() {
    let (mut tree, me) = (Tree::new(), name("alpha"));
    let p = path("actual-alpha/open");
    tree.apply_local(&p, b"0", t(5)).unwrap();
    let mut apply = |v: &[u8], s| tree.apply_remote(&p, v, t(s), t(100), &me);
    assert_eq!(apply(b"1", 6), Ok(MergeDecision::SayAgain));
    assert_eq!(apply(b"1", 4), Ok(MergeDecision::Refused));
    assert_eq!(apply(b"0", 5), Ok(MergeDecision::Refused));
    assert_eq!(tree.get(p.as_bytes()), Some(&b"0"[..]));
}

#[test]
fn p5_given_an_own_version_link_when_a_peer_has_another_then_the_history_never_goes_back() {
    let (mut tree, me) = (Tree::new(), name("alpha"));
    let point = |number: u32, creator: &str, pos: u64| {
        format!("{:032x},log-{number:09}-{creator},{pos}", pos + 1)
    };
    let link = |number, creator: &str, pos| {
        let before = point(number - 1, "alpha", 900);
        format!("{}:{before}", point(number, creator, pos))
    };
    let two = path("resource-r/version-000000002-alpha");
    let three = path("resource-r/version-000000003-alpha");
    let replay = path("resource-r/replay-alpha");
    let local = |tree: &mut Tree, p: &TreePath<'_>, v: &str| {
        tree.apply_local(p, v.as_bytes(), t(5)).unwrap();
    };
    let decide =
        |tree: &Tree, v: &str, s| tree.decide_remote(&two, v.as_bytes(), t(s), t(100), &me);
    // A crash has lost it all, or the newest word.
    assert_eq!(
        decide(&tree, &link(2, "alpha", 500), 6),
        Ok(MergeDecision::Take)
    );
    local(&mut tree, &two, &link(2, "alpha", 400));
    local(&mut tree, &replay, "log-000000002-alpha,400,0");
    assert_eq!(
        decide(&tree, &link(2, "alpha", 500), 6),
        Ok(MergeDecision::Take)
    );
    assert_eq!(
        decide(&tree, &link(2, "alpha", 500), 4),
        Ok(MergeDecision::NotNewer)
    );
    // Recovery has gone further than the peer knows.
    assert_eq!(
        decide(&tree, &link(2, "alpha", 300), 6),
        Ok(MergeDecision::SayAgain)
    );
    assert_eq!(
        decide(&tree, &link(2, "beta", 500), 6),
        Ok(MergeDecision::SayAgain)
    );
    // It is still needed for the next link.
    assert_eq!(decide(&tree, ".deleted", 6), Ok(MergeDecision::SayAgain));
    // The log is closed.
    local(&mut tree, &three, &link(3, "alpha", 100));
    assert_eq!(
        decide(&tree, &link(2, "alpha", 500), 6),
        Ok(MergeDecision::SayAgain)
    );
    // Other hosts speak for themselves.
    let beta = path("resource-r/version-000000002-beta");
    tree.apply_local(&beta, link(2, "alpha", 400).as_bytes(), t(5))
        .unwrap();
    let less = link(2, "alpha", 300);
    let r = tree.decide_remote(&beta, less.as_bytes(), t(6), t(100), &me);
    assert_eq!(r, Ok(MergeDecision::Take));
}

#[test]
fn a_walk_finds_what_was_changed_by_hand() {
    let mut tree = load(&alpha());
    let before = tree.generation();
    let mut files = alpha();
    files.retain(|l| l.0 != "defaults-beta/sync-limit");
    for l in &mut files {
        if l.0 == "resource-r0/primary" {
            // Also with an older time: the disk is the truth.
            *l = (l.0, "beta", t(5));
        }
    }
    tree.begin_scan(b"").unwrap();
    for (text, value, stamp) in &files {
        if let Ok(path) = TreePath::parse(text.as_bytes()) {
            let seen = tree.observe(&path, value.as_bytes(), *stamp).unwrap();
            let changed = *text == "resource-r0/primary";
            assert_eq!(seen == Seen::Changed, changed, "{text}");
        }
    }
    let summary = tree.end_scan();
    assert_eq!((summary.changed, summary.removed), (1, 1));
    assert_eq!(summary.newest, LamportTime::new(1_795_323_686, 0).unwrap());
    assert!(tree.generation() > before);
    assert_eq!(tree.resource(&name("r0")).primary(), Some(name("beta")));
    assert_eq!(tree.get(b"defaults-beta/sync-limit"), None);
    assert_eq!(tree.changed_since(before).count(), 1);
}

#[test]
fn a_walk_does_not_undo_what_was_set_meanwhile() {
    let mut tree = Tree::new();
    let (p, q) = (path("resource-r0/replay-a"), path("resource-r0/maxnr"));
    tree.apply_local(&p, b"old", t(1)).unwrap();
    tree.begin_scan(b"").unwrap();
    // The walk has read the link; before it reports, it is written anew, and a new one appears.
    tree.apply_local(&p, b"new", t(2)).unwrap();
    tree.apply_local(&q, b"1", t(2)).unwrap();
    assert_eq!(tree.observe(&p, b"old", t(1)), Ok(Seen::Outdated));
    assert_eq!(tree.end_scan().removed, 0);
    assert_eq!(tree.get(p.as_bytes()), Some(&b"new"[..]));
    assert_eq!(tree.get(q.as_bytes()), Some(&b"1"[..]));
}

#[test]
fn a_walk_of_a_part_or_with_errors_removes_nothing_else() {
    let mut tree = load(&alpha());
    let all = tree.iter().count();
    tree.begin_scan(b"ips/").unwrap();
    tree.observe(&path("ips/ip-alpha"), b"10.77.0.1", t(1))
        .unwrap();
    assert_eq!(tree.end_scan().removed, 1);
    assert_eq!(tree.iter().count(), all - 1);

    tree.begin_scan(b"").unwrap();
    tree.scan_incomplete();
    assert_eq!(tree.end_scan(), ScanSummary::default());
    tree.begin_scan(b"").unwrap();
    assert!(tree.observe(&path("uuid"), b"\n", t(1)).is_err());
    assert_eq!(tree.end_scan().removed, 0);

    // All is removed, all comes back; slots are used again.
    tree.begin_scan(b"").unwrap();
    assert_eq!(tree.end_scan().removed, all as u64 - 1);
    assert_eq!(tree.iter().count(), 0);
    assert_eq!(tree.resources().count(), 0);
    let again = load(&alpha());
    for e in again.iter() {
        tree.apply_local(&TreePath::parse(e.path).unwrap(), e.value, e.stamp)
            .unwrap();
    }
    assert_eq!(dump(&tree), dump(&again));
}

#[test]
fn a_failed_allocation_changes_nothing_and_the_next_try_succeeds() {
    let lines = &shared(alpha())[..40];
    let tries = kernel::inject::for_each_failure(|| {
        let mut tree = Tree::new();
        let mut want = Vec::new();
        for (text, value, stamp) in lines {
            let path = path(text);
            let before = values(&tree);
            let generation = tree.generation();
            let (value, now, me) = (value.as_bytes(), t(1_795_323_700), name("gamma"));
            if tree.apply_remote(&path, value, *stamp, now, &me).is_err() {
                assert_eq!(values(&tree), before);
                assert_eq!(tree.generation(), generation);
                tree.apply_remote(&path, value, *stamp, now, &me).unwrap();
            }
            want.push((text.to_string(), String::from_utf8(value.to_vec()).unwrap()));
        }
        want.sort();
        assert_eq!(values(&tree), want);
        assert_eq!(tree.changed_since(0).count(), want.len());
    });
    assert!(tries > 80, "{tries}");
}

#[test]
fn a_walk_survives_failed_allocations() {
    let all = shared(alpha());
    let (first, second) = (&all[..40], &all[10..50]);
    kernel::inject::for_each_failure(|| {
        let mut tree = Tree::new();
        for walk in [first, second, second] {
            // A failed walk is done again at the next opportunity.
            if tree.begin_scan(b"").is_err() {
                tree.begin_scan(b"").unwrap();
            }
            for (text, value, stamp) in walk {
                let _ = tree.observe(&path(text), value.as_bytes(), *stamp);
            }
            tree.end_scan();
        }
        assert_eq!(tree.iter().count(), second.len());
    });
}

#[test]
fn given_an_own_value_from_another_time_when_written_anew_then_it_is_newer_or_the_clock_is_trusted()
{
    let year = |n: u64| t(n * 365 * 24 * 3600);
    let p = path("resource-r/replay-alpha");
    let mut tree = Tree::new();
    tree.apply_local(&p, b"1", year(50)).unwrap();
    // The battery of the clock is empty.
    let stamp = tree.stamp_for(p.as_bytes(), year(40), false);
    assert!(stamp > year(50) && stamp < year(51));
    // The clock was years ahead, and is right now.
    let stamp = tree.stamp_for(p.as_bytes(), year(40), true);
    assert_eq!(stamp, year(40));
    assert_eq!(
        tree.apply_local(&p, b"2", stamp),
        Ok(LocalDecision::Changed)
    );
    assert_eq!(tree.get(p.as_bytes()), Some(&b"2"[..]));
    assert_eq!(tree.stamp_for(p.as_bytes(), year(41), true), year(41));
}

#[test]
fn given_a_far_word_about_the_role_when_another_one_is_heard_then_only_a_later_one_replaces_it() {
    let day = |n: u64| t(n * 24 * 3600);
    let p = path("resource-r/primary");
    let mut tree = Tree::new();
    tree.apply_local(&p, b"alpha", day(1000)).unwrap();
    tree.set_right_since(day(300));
    let decide = |tree: &Tree, value: &[u8], stamp, now| {
        let r = tree.decide_remote(&p, value, stamp, now, &name("alpha"));
        r.unwrap()
    };
    // From before the clock was right: it may be the older one.
    let now = day(301);
    assert_eq!(decide(&tree, b"beta", day(299), now), MergeDecision::Doubt);
    assert_eq!(
        decide(&tree, b"alpha", day(299), now),
        MergeDecision::NotNewer
    );
    assert_eq!(decide(&tree, b"beta", day(301), now), MergeDecision::Take);
    // Both are far: the newer one.
    assert_eq!(decide(&tree, b"beta", day(1001), now), MergeDecision::Take);
    assert_eq!(
        decide(&tree, b"beta", day(999), now),
        MergeDecision::NotNewer
    );
    // The host that was not there.
    let mut tree = Tree::new();
    tree.apply_local(&p, b"beta", day(200)).unwrap();
    assert_eq!(
        decide(&tree, b"alpha", day(1000), now),
        MergeDecision::Doubt
    );
    assert_eq!(
        decide(&tree, b"beta", day(1000), now),
        MergeDecision::TooFarAhead
    );
    // Anything else is only refused.
    let other = path("resource-r/todo-beta/attach");
    let r = tree.decide_remote(&other, b"1", day(1000), now, &name("alpha"));
    assert_eq!(r, Ok(MergeDecision::TooFarAhead));
}

#[test]
fn given_far_stamps_when_the_clock_is_right_then_a_host_says_again_what_only_it_says() {
    let day = |n: u64| t(n * 24 * 3600);
    let mut tree = Tree::new();
    let own = [
        "actual-alpha/alive",
        "resource-r/actual-alpha/state",
        "resource-r/primary",
        "resource-r/replay-alpha",
        "resource-r/size",
        "resource-r/version-000000001-alpha",
    ];
    let others = [
        "actual-beta/alive",
        "resource-r/data-alpha",
        "resource-r/replay-beta",
        "resource-r/version-000000001-beta",
    ];
    for p in own.iter().chain(&others) {
        tree.apply_local(&path(p), b"x", day(1000)).unwrap();
    }
    tree.apply_local(&path("resource-r/gap-alpha"), b"x", day(290))
        .unwrap();
    let me = name("alpha");
    let said: Vec<_> = tree.unheard(&me, day(300)).map(|e| e.path).collect();
    let want: Vec<_> = own.iter().map(|p| p.as_bytes()).collect();
    assert_eq!(said, want);
    assert_eq!(tree.unheard(&me, day(999)).count(), 0);
}
