// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/cluster.rs`: reads the tree, says that this host is alive, starts and ends peers and the resource.

use super::{
    control,
    server::{follow, Peer},
    Host,
};
use crate::exec::{thread, Thread, MS, SEC};
use std::rc::Rc;

const SCAN: u64 = 5;

/// Loads the module.
pub fn start(h: &Rc<Host>) {
    let h2 = h.clone();
    thread(&h.ex, h.i, move |_| async move { run(&h2).await });
    let h2 = h.clone();
    // The file system writes its journal now and then.
    h.ex.spawn(h.i, async move {
        loop {
            h2.sleep(3 * SEC + h2.machine().rng.below(4 * SEC)).await;
            let m = h2.machine();
            m.fs.borrow_mut().background(&m.rng);
        }
    });
}

async fn run(h: &Rc<Host>) {
    let mut peers: Vec<Peer> = Vec::new();
    let mut resource: Option<Rc<Thread>> = None;
    while !h.stopping.get() {
        h.scan().await;
        let _ = h.say_unheard().await;
        say_alive(h).await;
        match_peers(h, &mut peers);
        let member = h.get(&format!("data-{}", h.me)).is_some();
        if member && resource.is_none() {
            resource = Some(control::spawn(h));
        } else if !member && !h.attached.get().0 {
            if let Some(t) = resource.take() {
                t.request_stop(&h.ex);
                h.kick.signal(&h.ex);
                t.stop(&h.ex).await;
            }
        }
        h.kick.signal(&h.ex);
        for _ in 0..SCAN {
            if h.cluster_kick.wait(&h.ex, 1000 * MS).await || h.stopping.get() {
                break;
            }
            say_alive(h).await;
        }
    }
    for p in &peers {
        p.thread.request_stop(&h.ex);
    }
    if let Some(t) = resource {
        t.request_stop(&h.ex);
        h.kick.signal(&h.ex);
        t.stop(&h.ex).await;
    }
    h.unloaded.set(true);
}

async fn say_alive(h: &Host) {
    h.space.look(h, true);
    let time = h.now().to_string();
    let _ = h.set(&format!("actual-{}/time", h.me), &time).await;
}

fn match_peers(h: &Rc<Host>, peers: &mut Vec<Peer>) {
    let wanted: Vec<_> = {
        let tree = h.tree.borrow();
        let out = tree.hosts().filter(|n| *n != h.me).collect();
        out
    };
    peers.retain(|p| {
        let keep = wanted.contains(&p.name);
        if !keep {
            p.thread.request_stop(&h.ex);
        }
        keep
    });
    for name in wanted {
        if !peers.iter().any(|p| p.name == name) {
            peers.push(follow(h, name));
        }
    }
}
