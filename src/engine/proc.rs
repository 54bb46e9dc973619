// SPDX-License-Identifier: GPL-2.0-or-later

//! `/proc/sys/mars`: the tools' way to the module, besides the tree.

use core::fmt::Arguments;

use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

use crate::{
    engine::{
        clock::Clock,
        env::Env,
        tunables, //
    },
    sys::{
        buf,
        sysctl::{
            Sysctl,
            TextWriter, //
        }, //
    },
    VERSION, //
};

/// Makes the directory; it goes away when the result is dropped.
pub(crate) fn register(env: &Arc<Env>) -> Result<Sysctl> {
    let e = env.clone();
    let clock = move |w: &mut TextWriter| {
        w.print(format_args!(
            "CURRENT_TIME={}\nlamport_now={}\n",
            Clock::real(),
            e.clock.now()
        ))
    };
    let e = env.clone();
    let info = move |w: &mut TextWriter| info(w, &e);
    let e = env.clone();
    let mut b = Sysctl::builder()
        .text(c"version", |w| w.print(format_args!("{VERSION}\n")))?
        .text(c"lamport_clock", clock)?
        .text(c"info", info)?
        .trigger(c"trigger", move |bytes| trigger(&e, bytes))?;
    for t in tunables::ALL {
        b = b.tunable_u32(t)?;
    }
    b.register(c"mars")
}

fn info(w: &mut TextWriter, env: &Env) -> Result {
    let mut line = |text: Arguments<'_>| w.print(text);
    line(format_args!(
        "host {} port {} uuid {}\n",
        env.me,
        env.port,
        crate::engine::text::of(&env.uuid()?)
    ))?;
    line(format_args!(
        "fetched_bytes {}\nserved_bytes {}\nsynced_bytes {}\n",
        env.stats.fetched.load(Relaxed),
        env.stats.served.load(Relaxed),
        env.stats.synced.load(Relaxed)
    ))?;
    line(format_args!("tree_generation {}\n", env.store.generation()))?;
    line(format_args!("payload_bytes {}\n", buf::bytes_in_use()))
}

/// `1`, `2`, `3`, `8`: look at the tree now (all the same here: peers are told by what changes). Other words of the
/// original (`p`, `P`, `c`, `f`) push links to hosts by address, which authenticated peers don't need.
fn trigger(env: &Env, bytes: &[u8]) -> Result {
    let word = bytes.trim_ascii();
    match word.first() {
        Some(b'0'..=b'9' | b't') => {
            env.kick.signal();
            Ok(())
        }
        Some(b'l' | b'L') => {
            let text = core::str::from_utf8(word.get(1..).unwrap_or(&[])).map_err(|_| EINVAL)?;
            pr_info!("{}\n", text.trim_ascii());
            Ok(())
        }
        _ => Err(EINVAL),
    }
}
