// SPDX-License-Identifier: GPL-2.0-or-later

//! Commands on the cluster itself, and what the command line is like.

use crate::harness::Cluster;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn create_cluster_makes_an_identity_and_a_key_that_is_not_shown() {
    let c = Cluster::bare();
    let ran = c.adm("hosta", "create-cluster --ip 10.0.0.1").ok();
    assert!(c.tree.get("uuid").unwrap().starts_with("hosta_"));
    assert_eq!(c.tree.get("ips/ip-hosta").unwrap(), "10.0.0.1");
    assert_eq!(c.tree.get("defaults-hosta/sync-limit").unwrap(), "0");
    assert_eq!(
        c.tree.get("defaults-hosta/sync-pref-list").unwrap(),
        "(none)"
    );
    assert_eq!(
        c.tree.get("actual-hosta/marsadm-version").unwrap(),
        env!("CARGO_PKG_VERSION")
    );
    for dir in ["todo-global", "userspace", "defaults"] {
        assert!(c.tree.0.join(dir).is_dir(), "{dir}");
    }
    let file = c.tree.0.join("cluster-key");
    let key = fs::read_to_string(&file).unwrap();
    assert_eq!(key.len(), 65);
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(!ran.out.contains(key.trim()));
    assert!(
        ran.out.contains("show-key") && ran.out.contains("modprobe mars"),
        "{}",
        ran.out
    );
    assert_eq!(c.adm("hosta", "show-key").ok().out, key);
    c.adm("hosta", "create-cluster --ip 10.0.0.1")
        .failed(2, &["already belongs"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), key);
}

#[test]
fn an_interrupted_create_cluster_is_completed_by_the_next_run() {
    for step in ["key", "tree", "uuid"] {
        let c = Cluster::bare();
        assert_eq!(
            c.killed("hosta", "create-cluster --ip 10.0.0.1", step).code,
            99
        );
        assert_eq!(c.tree.get("uuid"), None);
        let key = fs::read(c.tree.0.join("cluster-key")).ok();
        c.adm("hosta", "create-cluster --ip 10.0.0.1").ok();
        assert!(c.tree.get("uuid").is_some());
        if let Some(key) = key {
            assert_eq!(
                fs::read(c.tree.0.join("cluster-key")).unwrap(),
                key,
                "the key stays"
            );
        }
    }
}

#[test]
fn leave_cluster_needs_to_have_left_all_resources() {
    let c = Cluster::pair();
    c.adm("hostb", "leave-cluster")
        .failed(2, &["mydata", "leave-resource"]);
    c.adm("hostb", "down mydata").ok();
    c.adm("hostb", "leave-resource mydata").ok();
    c.adm("hostb", "leave-cluster").ok();
    assert_eq!(c.tree.get("ips/ip-hostb"), None);
    assert_eq!(
        c.adm("hosta", "lowlevel-ls-host-ips").ok().out,
        "hosta 10.0.0.1\n"
    );
}

#[test]
fn wait_cluster_waits_for_every_peer() {
    let c = Cluster::of(&["hosta", "hostb"]);
    c.adm("hosta", "wait-cluster").ok();
    c.kernel().silent.insert("hostb".into());
    c.adm("hosta", "wait-cluster")
        .failed(3, &["hostb", "port 7777"]);
}

#[test]
fn addresses_can_be_changed() {
    let c = Cluster::of(&["hosta", "hostb"]);
    c.adm("hosta", "lowlevel-set-host-ip hostb fd00::2").ok();
    assert_eq!(c.tree.get("ips/ip-hostb").unwrap(), "fd00::2");
    c.adm("hosta", "lowlevel-set-host-ip hostx 10.0.0.9")
        .failed(2, &["hostx"]);
    c.adm("hosta", "lowlevel-set-host-ip hostb 10.0.0.999")
        .failed(1, &["10.0.0.999"]);
}

#[test]
fn options_may_stand_anywhere_and_force_may_be_a_prefix() {
    let c = Cluster::pair();
    c.adm("hosta", "--verbose view mydata").ok();
    c.adm("hosta", "view --window 4 mydata").ok();
    c.adm("hosta", "force-log-rotate mydata").ok();
    c.adm("hosta", "no-such-command")
        .failed(1, &["no-such-command"]);
    c.adm("hosta", "up").failed(1, &["RESOURCE"]);
    let ran = c.adm("hosta", "--help").ok();
    for word in ["create-resource", "join-cluster", "Exit codes", "--timeout"] {
        assert!(ran.out.contains(word), "{word}");
    }
    assert!(!ran.out.contains("mars-dir"));
    assert!(c.adm("hosta", "version").ok().out.contains("module fake 1"));
}

#[test]
fn a_resource_that_fails_does_not_stop_the_others() {
    let c = Cluster::pair();
    let ran = c
        .adm("hosta", "pause-fetch nothing,mydata")
        .failed(2, &["nothing", "1 of 2 resources failed"]);
    assert!(ran.err.contains("existing resources: mydata"));
    assert_eq!(c.get("todo-hosta/connect").unwrap(), "0");
    c.adm("hosta", "connect all").ok();
    assert_eq!(c.get("todo-hosta/connect").unwrap(), "1");
    c.adm("hosta", "pause-replay-global mydata").ok();
    assert_eq!(c.get("todo-hostb/allow-replay").unwrap(), "0");
}

#[test]
fn a_dry_run_writes_nothing() {
    let c = Cluster::pair();
    let ran = c.adm("hostb", "primary mydata --dry-run").ok();
    assert!(
        ran.out.contains("DRY-RUN: would create symlink"),
        "{}",
        ran.out
    );
    c.adm("hostb", "down mydata --dry-run").ok();
    c.adm("hostb", "leave-resource mydata --dry-run --force")
        .ok();
    assert_eq!(c.get("primary").unwrap(), "hosta");
    assert!(c.get("data-hostb").is_some());
    assert_eq!(c.get("todo-hostb/attach").unwrap(), "1");
}

/// Everything below `/mars` but what the kernels say: names, values, times.
fn everything(c: &Cluster) -> Vec<String> {
    fn walk(dir: &std::path::Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                out.push(path.display().to_string());
                walk(&path, out);
            } else if !path.to_str().unwrap().contains("/actual-") {
                let value = fs::read_link(&path).unwrap_or_default();
                let time = meta.modified().unwrap();
                out.push(format!("{} {value:?} {time:?}", path.display()));
            }
        }
    }
    let mut out = Vec::new();
    walk(&c.tree.0, &mut out);
    out.sort();
    out
}

#[test]
fn a_dry_run_tells_all_that_a_real_run_writes() {
    for command in ["join-resource mydata DISK", "invalidate mydata"] {
        let c = Cluster::of(&["hosta", "hostb"]);
        c.create();
        c.write("hosta", 1, 9000);
        let line = command.replace("DISK", &c.disk("hostb"));
        c.kernel().hold_sync = true;
        if command == "invalidate mydata" {
            c.adm(
                "hostb",
                &format!("join-resource mydata {}", c.disk("hostb")),
            )
            .ok();
        }
        let before = everything(&c);
        let dry = c.adm("hostb", &format!("{line} --dry-run")).ok();
        assert_eq!(everything(&c), before, "{command}");
        let real = c.adm("hostb", &format!("{line} -v -v")).ok();
        let root = c.tree.0.to_str().unwrap();
        let links = |text: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|l| {
                let l = l.get(l.find(root)?..)?;
                l.contains(" -> ")
                    .then(|| l.split(" (").next().unwrap().to_owned())
            });
            lines.collect()
        };
        assert_eq!(links(&dry.out), links(&real.out), "{command}");
        assert!(links(&dry.out).len() > 10, "{dry:#?}");
    }
    // What would be refused is refused.
    let c = Cluster::pair();
    c.kernel().silent.insert("hosta".into());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    c.adm("hostb", "invalidate mydata --dry-run --window 1")
        .failed(2, &["does not answer"]);
}

#[test]
fn raw_links_are_read_and_written_with_care() {
    let c = Cluster::pair();
    c.adm("hosta", "set-link x resource-mydata/primary")
        .failed(2, &["userspace"]);
    c.adm("hosta", "set-link hello resource-mydata/userspace/note")
        .ok();
    assert_eq!(
        c.adm("hostb", "get-link resource-mydata/userspace/note")
            .ok()
            .out,
        "hello\n"
    );
    c.adm("hosta", "set-link x ../outside --force")
        .failed(1, &["../outside"]);
    c.adm("hosta", "get-link resource-mydata/userspace/nothing")
        .failed(2, &["nothing"]);
}

#[test]
fn man_pages_and_completions_are_generated() {
    let c = Cluster::bare();
    let dir = c.tree.0.join("man");
    c.adm("hosta", &format!("--generate-man {}", dir.display()))
        .ok();
    let page = fs::read_to_string(dir.join("marsadm.8")).unwrap();
    assert!(page.contains("create\\-resource"), "{page}");
    let page = fs::read_to_string(dir.join("marsadm-primary.8")).unwrap();
    assert!(page.contains("failover"), "{page}");
    let ran = c.adm("hosta", "--generate-completion bash").ok();
    assert!(ran.out.contains("join-resource"));
}

#[test]
fn without_a_cluster_or_a_module_it_is_said() {
    let c = Cluster::bare();
    c.adm("hosta", "up all")
        .failed(4, &["does not belong to a cluster", "create-cluster"]);
    c.adm("hosta", "create-cluster --ip 10.0.0.1").ok();
    c.adm("hosta", "wait-cluster")
        .failed(4, &["module", "modprobe mars"]);
    let ran = c.adm("hosta", "view").ok();
    assert!(ran.err.contains("module is not loaded"), "{}", ran.err);
    c.adm("host.with.dots", "view")
        .failed(1, &["host.with.dots"]);
}
