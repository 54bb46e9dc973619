// SPDX-License-Identifier: GPL-2.0-or-later

//! Payloads of all kinds: the first byte chooses the kind.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mars_core::wire::message::meta::Tree;
use mars_core::wire::message::*;

#[path = "../common.rs"]
mod common;

fuzz_target!(|data: &[u8]| {
    let Some((first, payload)) = data.split_first() else {
        return;
    };
    let kind = Kind::ALL[usize::from(*first) % Kind::ALL.len()];
    // Reading allocates nothing, whatever the payload says.
    let before = kernel::inject::allocations();
    if let Ok(tree) = Tree::decode(payload) {
        assert!(tree.entries().count() <= payload.len());
    }
    assert_eq!(kernel::inject::allocations(), before);
    if let Ok(again) = common::recode(kind, payload) {
        // What was understood means the same when it is sent on.
        assert_eq!(common::recode(kind, &again).as_ref(), Ok(&again));
    }
});
