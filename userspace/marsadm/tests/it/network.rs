// SPDX-License-Identifier: GPL-2.0-or-later

//! join-cluster against a server that speaks the real protocol.

#[allow(dead_code)]
#[path = "../../../mars-net/tests/common/mod.rs"]
mod common;

use crate::harness::Cluster;
use common::{key, local, Server, UUID};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn server() -> Server {
    let server = Server::start("127.0.0.1", local("alpha", 1), &[]);
    server.links.lock().unwrap().extend(
        [
            ("uuid", UUID),
            ("ips/ip-alpha", "10.1.1.1"),
            ("resource-r0/primary", "alpha"),
            ("resource-r0/size", "1048576"),
            ("actual-hostb/alive", "1"),
            ("../etc/evil", "x"),
            ("cluster-key", "x"),
        ]
        .map(|(p, v)| (p.to_owned(), v.to_owned())),
    );
    server
}

fn hex(seed: u8) -> String {
    String::from_utf8(key(seed).to_text().to_vec()).unwrap()
}

fn join(server: &Server, rest: &str) -> String {
    format!(
        "join-cluster alpha 127.0.0.1 --port {} {rest}",
        server.address.port()
    )
}

#[test]
fn join_cluster_brings_the_tree_the_uuid_and_the_key() {
    let c = Cluster::bare();
    let s = server();
    let ran = c.adm_with("hostb", &join(&s, "--key-file -"), &hex(1)).ok();
    assert!(ran.out.contains("has joined the cluster"), "{ran:?}");
    assert_eq!(c.tree.get("uuid").unwrap(), UUID);
    assert_eq!(c.tree.get("ips/ip-alpha").unwrap(), "10.1.1.1");
    assert_eq!(c.tree.get("resource-r0/primary").unwrap(), "alpha");
    assert_eq!(
        c.tree.get("ips/ip-hostb").unwrap(),
        "127.0.0.1",
        "own address towards the peer"
    );
    assert_eq!(c.tree.get("defaults-hostb/sync-limit").unwrap(), "0");
    let file = c.tree.0.join("cluster-key");
    assert_eq!(fs::read_to_string(&file).unwrap(), hex(1));
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // What only this host can know, and what is no path of the tree, is not taken from a peer.
    assert_eq!(c.tree.get("actual-hostb/alive"), None);
    assert!(!c.tree.0.join("../etc/evil").exists());
    assert!(!ran.out.contains(hex(1).trim()), "the key is not shown");

    // Again: the same, with the key that is there.
    c.adm("hostb", &join(&s, "")).ok();
    assert_eq!(c.adm("hostb", "show-key").ok().out, hex(1));
}

#[test]
fn join_cluster_with_a_wrong_key_changes_nothing() {
    let c = Cluster::bare();
    let s = server();
    let line = join(&s, &format!("--key {}", hex(9).trim()));
    c.adm("hostb", &line)
        .failed(2, &["does not let this host join"]);
    assert_eq!(c.tree.get("uuid"), None);
    assert!(!c.tree.0.join("cluster-key").exists());
    assert_eq!(c.tree.get("ips/ip-alpha"), None);
}

#[test]
fn join_cluster_refuses_what_cannot_be() {
    let c = Cluster::bare();
    let s = server();
    c.adm("hostb", &join(&s, ""))
        .failed(1, &["key of the cluster is needed", "show-key"]);
    c.adm_with("hostb", &join(&s, "--key-file -"), "rubbish")
        .failed(1, &["standard input"]);
    c.adm("hostb", "join-cluster hostb 1.2.3.4")
        .failed(1, &["cannot join itself"]);
    let nobody = format!(
        "join-cluster alpha 127.0.0.1 --port 1 --key {}",
        hex(1).trim()
    );
    c.adm("hostb", &nobody)
        .failed(2, &["127.0.0.1", "module is loaded"]);
    let other = join(&s, &format!("--key {}", hex(1).trim())).replace("alpha", "gamma");
    c.adm("hostb", &other).failed(2, &["gamma"]);

    let mut command = c.command("hostb", &join(&s, ""));
    assert!(command
        .env("MARS_CLUSTER_KEY", hex(1).trim())
        .output()
        .unwrap()
        .status
        .success());

    // A member of another cluster stays where it is.
    let d = Cluster::of(&["hosta"]);
    fs::remove_file(d.tree.0.join("cluster-key")).unwrap();
    let before = d.tree.get("uuid");
    let line = join(&s, &format!("--key {}", hex(1).trim()));
    d.adm("hosta", &line).failed(2, &["cluster"]);
    assert_eq!(d.tree.get("uuid"), before);
    assert_eq!(d.tree.get("resource-r0/primary"), None);
}

#[test]
fn an_interrupted_join_cluster_is_completed_by_the_next_run() {
    for step in ["ask", "key", "merge", "uuid"] {
        let c = Cluster::bare();
        let s = server();
        let line = join(&s, &format!("--key {}", hex(1).trim()));
        assert_eq!(c.killed("hostb", &line, step).code, 99, "{step}");
        assert_eq!(
            c.tree.get("uuid"),
            None,
            "{step}: nothing happens before the uuid is there"
        );
        let shown = c.adm("hostb", "ops").ok().out;
        assert!(
            shown.contains("join-cluster") && shown.contains(step),
            "{shown}"
        );
        assert!(
            !shown.contains(hex(1).trim()),
            "the key is not in the journal"
        );
        c.adm("hostb", &line).ok();
        assert_eq!(c.tree.get("uuid").unwrap(), UUID);
        assert_eq!(c.tree.get("resource-r0/size").unwrap(), "1048576");
        assert_eq!(c.adm("hostb", "ops").ok().out, "");
    }
}
