// SPDX-License-Identifier: GPL-2.0-or-later

//! P10: whatever is delivered in whatever order, all members end with the same tree.

mod common;

use common::name;
use mars_core::{
    lamport::{
        Clock,
        LamportTime, //
    },
    name::Name,
    tree::{
        is_tombstone,
        Tree,
        TreePath, //
    },
};
use proptest::prelude::*;
use std::collections::{
    BTreeMap,
    BTreeSet, //
};

const PATHS: [&str; 6] = [
    "uuid",
    "resource-r0/primary",
    "resource-r0/data-a",
    "resource-r0/todo-b/attach",
    "resource-r1/size",
    "defaults/x",
];

const VALUES: [&str; 4] = ["1", "2", "(none)", ".deleted"];

#[derive(Clone, Debug)]
enum Step {
    /// A host sets something; its real clock has this error in seconds.
    Set {
        host: usize,
        path: usize,
        value: usize,
    },
    /// One host asks another for what is new, and takes at most so many entries of the answer.
    Pull {
        host: usize,
        from: usize,
        page: usize,
    },
    /// A host is started again: its memory is lost, its files are not.
    Restart { host: usize },
    /// An administrator or `marsadm cron` removes an old tombstone from the disk.
    Collect { host: usize, path: usize },
}

fn step(hosts: usize) -> impl Strategy<Value = Step> {
    let host = 0..hosts;
    prop_oneof![
        4 => (host.clone(), 0..PATHS.len(), 0..VALUES.len())
            .prop_map(|(host, path, value)| Step::Set { host, path, value }),
        6 => (host.clone(), host.clone(), 1usize..8)
            .prop_map(|(host, from, page)| Step::Pull { host, from, page }),
        1 => host.clone().prop_map(|host| Step::Restart { host }),
        1 => (host, 0..PATHS.len()).prop_map(|(host, path)| Step::Collect { host, path }),
    ]
}

struct Host {
    me: Name,
    tree: Tree,
    instance: u64,
    clock: Clock,
    /// Of each peer: its instance, and how far it was read.
    read: BTreeMap<usize, (u64, u64)>,
    /// Error of the real clock.
    error: u64,
}

impl Host {
    fn now(&self, time: u64) -> LamportTime {
        LamportTime::new(1_000_000 + time + self.error, 0).unwrap()
    }
}

fn pull(hosts: &mut [Host], host: usize, from: usize, page: usize, time: u64) -> bool {
    let (instance, mut since) = *hosts[host].read.get(&from).unwrap_or(&(0, 0));
    if instance != hosts[from].instance {
        since = 0;
    }
    let mut answer = Vec::new();
    let mut generation = hosts[from].tree.generation();
    for e in hosts[from].tree.changed_since(since) {
        if answer.len() == page {
            let (_, _, _, last): &(_, _, _, u64) = answer.last().unwrap();
            generation = *last;
            break;
        }
        answer.push((e.path.to_vec(), e.value.to_vec(), e.stamp, e.generation));
    }
    let instance = hosts[from].instance;
    let me = &mut hosts[host];
    let now = me.now(time);
    for (path, value, stamp, _) in &answer {
        let path = TreePath::parse(path).unwrap();
        me.tree
            .apply_remote(&path, value, *stamp, now, &me.me)
            .unwrap();
        me.clock.advance(*stamp, now).unwrap();
    }
    me.read.insert(from, (instance, generation));
    !answer.is_empty()
}

fn live(tree: &Tree) -> Vec<(Vec<u8>, Vec<u8>, LamportTime)> {
    tree.iter()
        .filter(|e| !is_tombstone(e.value))
        .map(|e| (e.path.to_vec(), e.value.to_vec(), e.stamp))
        .collect()
}

fn run(count: usize, steps: &[Step]) {
    let mut hosts: Vec<_> = (0..count)
        .map(|i| Host {
            me: name(&format!("h{i}")),
            tree: Tree::new(),
            instance: 1,
            clock: Clock::new(),
            read: BTreeMap::new(),
            // Clocks differ by hours.
            error: i as u64 * 4000,
        })
        .collect();
    let mut newest = BTreeMap::new();
    let mut collected = BTreeSet::new();
    for (time, step) in (0u64..).zip(steps) {
        match *step {
            Step::Set { host, path, value } => {
                let h = &mut hosts[host];
                let stamp = h.clock.tick(h.now(time));
                let p = TreePath::parse(PATHS[path].as_bytes()).unwrap();
                h.tree
                    .apply_local(&p, VALUES[value].as_bytes(), stamp)
                    .unwrap();
                let value = VALUES[value].as_bytes();
                let entry = newest.entry(path).or_insert((stamp, value));
                *entry = (*entry).max((stamp, value));
            }
            Step::Pull { host, from, page } => {
                pull(&mut hosts, host, from, page, time);
            }
            Step::Restart { host } => {
                let h = &mut hosts[host];
                let mut tree = Tree::new();
                tree.begin_scan(b"").unwrap();
                for e in h.tree.iter() {
                    let path = TreePath::parse(e.path).unwrap();
                    tree.observe(&path, e.value, e.stamp).unwrap();
                }
                let newest = tree.end_scan().newest;
                h.tree = tree;
                h.clock = Clock::new();
                h.clock.advance_nonstrict(newest, h.now(time)).unwrap();
                h.instance += 1;
                h.read.clear();
            }
            Step::Collect { host, path } => {
                // Only what everybody has seen is old enough to be collected.
                let p = PATHS[path].as_bytes();
                let everywhere = hosts.iter().all(|h| h.tree.get(p).is_none());
                if everywhere {
                    // A host with a slow clock that has not seen it may now set something older.
                    newest.remove(&path);
                    collected.insert(path);
                    let h = &mut hosts[host];
                    h.tree.begin_scan(p).unwrap();
                    h.tree.end_scan();
                }
            }
        }
    }
    // The faults end: everybody asks everybody until nothing is new.
    let time = steps.len() as u64;
    let mut rounds = 0;
    loop {
        let mut news = false;
        for host in 0..count {
            for from in 0..count {
                news |= host != from && pull(&mut hosts, host, from, 3, time);
            }
        }
        if !news {
            break;
        }
        rounds += 1;
        assert!(rounds < 100, "it does not come to rest");
    }
    for h in &hosts[1..] {
        assert_eq!(live(&h.tree), live(&hosts[0].tree));
    }
    // And it is the newest of everything that was ever set.
    newest.retain(|path, _| !collected.contains(path));
    for (path, (stamp, value)) in newest {
        let have = hosts[0].tree.entry(PATHS[path].as_bytes());
        if is_tombstone(value) {
            assert!(have.is_none_or(|e| e.live().is_none()));
        } else {
            let have = have.unwrap();
            assert_eq!((have.stamp, have.value), (stamp, value));
        }
    }
}

proptest! {
    #![proptest_config(common::cases(256))]

    #[test]
    fn p10_any_order_of_deliveries_converges(
        (count, steps) in (2usize..5).prop_flat_map(|n| {
            (Just(n), proptest::collection::vec(step(n), 0..120))
        })
    ) {
        run(count, &steps);
    }
}
