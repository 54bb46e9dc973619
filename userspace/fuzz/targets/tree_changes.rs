// SPDX-License-Identifier: GPL-2.0-or-later

//! Any sequence of changes, merges and walks, with failing allocations: the mirror equals a simple model, and a peer that
//! follows the changes has the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::lamport::LamportTime;
use mars_core::name::Name;
use mars_core::tree::*;
use std::collections::BTreeMap;

const PATHS: [&str; 8] = [
    "uuid",
    "defaults/a",
    "ips/ip-a",
    "actual-b/alive",
    "resource-a/size",
    "resource-a/todo-b/attach",
    "resource-ab/size",
    "resource-b/primary",
];
const VALUES: [&str; 4] = ["0", "1", "a longer value than the others", ".deleted"];

type Model = BTreeMap<&'static str, (&'static str, LamportTime)>;

fuzz_target!(|data: &[u8]| {
    let now = LamportTime::from_nanos(1 << 40);
    let me = Name::new(b"me").expect("a name");
    let mut tree = Tree::new();
    let mut model = Model::new();
    let mut walking = false;
    let mut peer = BTreeMap::new();
    let mut read = 0;
    for op in data.chunks_exact(3) {
        let path = PATHS[usize::from(op[0] & 7)];
        let value = VALUES[usize::from(op[0] >> 3 & 3)];
        let stamp = LamportTime::from_nanos(u64::from(op[1]) + 1);
        let parsed = TreePath::parse(path.as_bytes()).expect("a path");
        if op[2] & 0x80 != 0 {
            kernel::inject::fail_once_after(u64::from(op[2] >> 3 & 7));
        }
        let before = dump(&tree);
        let failed = match op[2] & 7 {
            0 | 1 => match tree.apply_local(&parsed, value.as_bytes(), stamp) {
                Ok(LocalDecision::Older) => {
                    assert!(model[path].1 > stamp);
                    false
                }
                Ok(_) => {
                    model.insert(path, (value, stamp));
                    false
                }
                Err(_) => true,
            },
            2..=4 => match tree.apply_remote(&parsed, value.as_bytes(), stamp, now, &me) {
                Ok(MergeDecision::Take) => {
                    let old = model.insert(path, (value, stamp));
                    assert!(old.is_none_or(|(v, s)| (s, v) < (stamp, value)));
                    false
                }
                Ok(_) => false,
                Err(_) => true,
            },
            5 => match tree.begin_scan(b"") {
                Ok(()) => {
                    // Everything is seen as it is.
                    walking = true;
                    for (path, value, stamp) in before.clone() {
                        let path = TreePath::parse(path.as_bytes()).expect("a path");
                        assert_eq!(tree.observe(&path, value.as_bytes(), stamp), Ok(Seen::Same));
                    }
                    false
                }
                Err(_) => true,
            },
            6 if walking => {
                walking = false;
                assert_eq!(tree.end_scan().removed, 0);
                false
            }
            _ => {
                tree.forget_phantoms(stamp);
                false
            }
        };
        kernel::inject::fail_after(None);
        let after = dump(&tree);
        if failed {
            assert_eq!(before, after);
        }
        let want: Vec<_> = model
            .iter()
            .map(|(p, (v, s))| (p.to_string(), v.to_string(), *s))
            .collect();
        assert_eq!(after, want);
        // The peer takes at most two changes at a time.
        for e in tree.changed_since(read).take(2) {
            peer.insert(e.path.to_vec(), (e.value.to_vec(), e.stamp));
            assert!(e.generation > read);
            read = e.generation;
        }
    }
    for e in tree.changed_since(read) {
        peer.insert(e.path.to_vec(), (e.value.to_vec(), e.stamp));
    }
    // Tombstones that are only in memory, or were there.
    peer.retain(|path, (value, _)| value != b".deleted" || tree.entry(path).is_some());
    assert!(tree
        .iter()
        .map(|e| (e.path.to_vec(), (e.value.to_vec(), e.stamp)))
        .eq(peer));
    for name in tree.resources() {
        let res = tree.resource(&name);
        res.members().count();
    }
});

fn dump(tree: &Tree) -> Vec<(String, String, LamportTime)> {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).expect("text");
    tree.iter()
        .map(|e| (text(e.path), text(e.value), e.stamp))
        .collect()
}
