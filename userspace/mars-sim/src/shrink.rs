// SPDX-License-Identifier: GPL-2.0-or-later

//! Makes a failing script as short as it gets, by leaving out events as long as the same promise is still broken.

use crate::{run, script::Script, truth::Violation};

/// Runs that are tried at most.
const TRIES: usize = 3000;

/// The name of the promise that was broken.
fn promise(v: &str) -> &str {
    v.split_whitespace().next().unwrap_or("")
}

/// Shortens a script that fails with `v`.
pub fn shrink(mut s: Script, mut v: Violation) -> (Script, Violation) {
    let mut tries = 0;
    let mut part = s.events.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        let mut smaller = false;
        while at < s.events.len() && tries < TRIES {
            let mut t = s.clone();
            t.events.drain(at..(at + part).min(s.events.len()));
            tries += 1;
            match run::run(&t, false).violation {
                Some(w) if promise(&w) == promise(&v) => {
                    s = t;
                    v = w;
                    smaller = true;
                }
                _ => at += part,
            }
        }
        if !smaller {
            part /= 2;
        }
    }
    (s, v)
}
