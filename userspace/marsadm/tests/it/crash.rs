// SPDX-License-Identifier: GPL-2.0-or-later

//! Commands that are killed at the beginning of each of their steps, and run again (P8).

use crate::harness::{Cluster, SIZE};

/// Kills `line` at each of `steps`, checks what is left, runs it again, and checks the end.
fn at_each_step(
    steps: &[&str],
    prepare: impl Fn() -> Cluster,
    host: &str,
    line: impl Fn(&Cluster) -> String,
    meanwhile: impl Fn(&Cluster, &str),
    end: impl Fn(&Cluster, &str),
) {
    for step in steps {
        let c = prepare();
        let line = line(&c);
        let ran = c.killed(host, &line, step);
        assert_eq!(ran.code, 99, "{step}: {ran:#?}");
        let shown = c.adm(host, "view all").ok();
        assert!(
            shown.err.contains("was interrupted") && shown.err.contains(step),
            "{step}: {shown:#?}"
        );
        meanwhile(&c, step);
        c.adm(host, &line).ok();
        end(&c, step);
        assert_eq!(c.adm(host, "ops").ok().out, "", "{step}");
    }
}

#[test]
fn create_resource() {
    at_each_step(
        &["tree", "member", "attach"],
        || Cluster::of(&["hosta"]),
        "hosta",
        |c| format!("create-resource mydata {}", c.disk("hosta")),
        |c, step| assert_eq!(c.get("data-hosta").is_some(), step == "attach", "{step}"),
        |c, step| {
            assert_eq!(c.get("actual-hosta/is-primary").unwrap(), "1", "{step}");
            assert_eq!(
                c.get("replay-hosta").unwrap(),
                "log-000000001-hosta,0,0",
                "{step}"
            );
        },
    );
}

#[test]
fn join_resource() {
    at_each_step(
        &["prepare", "position", "member", "check", "attach"],
        || {
            let c = Cluster::of(&["hosta", "hostb"]);
            c.create();
            c
        },
        "hostb",
        |c| format!("join-resource mydata {}", c.disk("hostb")),
        |c, step| {
            if step != "prepare" {
                assert_eq!(
                    c.get("syncstatus-hostb").unwrap(),
                    "0",
                    "never taken for a good replica"
                );
            }
            c.adm("hostb", "primary mydata").failed(2, &[]);
        },
        |c, _| c.settle("hostb"),
    );
}

/// As long as the old disk is in use, nothing says that another one is.
#[test]
fn join_with_another_disk() {
    let c = Cluster::pair();
    let line = format!("join-resource mydata {} --force", c.disk("hostc"));
    c.kernel().lazy.insert("hostb".into());
    c.adm("hostb", &format!("{line} --timeout 1"))
        .failed(3, &["is-attached"]);
    assert_eq!(c.get("data-hostb").unwrap(), c.disk("hostb"));
    assert_eq!(c.get("todo-hostb/attach").unwrap(), "0");
    c.kernel().lazy.clear();
    c.adm("hostb", &line).ok();
    assert_eq!(c.get("data-hostb").unwrap(), c.disk("hostc"));
    c.settle("hostb");
}

#[test]
fn planned_primary() {
    at_each_step(
        &["catch-up", "none", "release", "designate", "device", "up"],
        || {
            let c = Cluster::pair();
            c.write("hosta", 1, 20_000);
            c
        },
        "hostb",
        |_| "primary mydata".into(),
        |c, step| {
            let expected = match step {
                "catch-up" | "none" => "hosta",
                "release" | "designate" => "(none)",
                _ => "hostb",
            };
            assert_eq!(c.get("primary").unwrap(), expected, "{step}");
        },
        |c, step| {
            assert_eq!(c.get("primary").unwrap(), "hostb", "{step}");
            assert_eq!(c.get("actual-hostb/is-primary").unwrap(), "1", "{step}");
            assert_eq!(c.get("actual-hosta/is-primary").unwrap(), "0", "{step}");
            c.settle("hosta");
            assert!(
                !c.adm("hosta", "view mydata").ok().out.contains("SPLIT"),
                "{step}"
            );
        },
    );
}

#[test]
fn resize() {
    let bigger = (SIZE + 8192).to_string();
    at_each_step(
        &["undecided", "syncstatus", "size"],
        || {
            let c = Cluster::pair();
            c.grow(8192);
            // It was primary once, and a resize there never came to an end.
            c.kernel().silent.insert("hostb".into());
            c.tree.set("resource-mydata/syncstatus-hostb", &bigger);
            c
        },
        "hosta",
        |_| "resize mydata --force".into(),
        |c, step| {
            assert_eq!(c.get("size").unwrap(), SIZE.to_string(), "{step}");
            let undecided = c.get("syncstatus-hostb").as_ref() == Some(&bigger);
            assert_eq!(undecided, step == "undecided", "{step}");
            c.adm("hosta", "view mydata").ok();
        },
        |c, step| {
            assert_eq!(c.get("size").unwrap(), bigger, "{step}");
            assert_eq!(c.get("syncstatus-hosta").unwrap(), bigger, "{step}");
            let theirs = c.get("syncstatus-hostb");
            assert_eq!(theirs, None, "the new part is not the same there: {step}");
        },
    );
}

/// The resource grows while a handover waits: the new part is not here, so the old primary gets its role back.
#[test]
fn a_resize_amid_a_handover() {
    let c = Cluster::pair();
    c.grow(8192);
    assert_eq!(c.killed("hostb", "primary mydata", "none").code, 99);
    c.kernel().silent.insert("hostb".into());
    c.adm("hosta", "resize mydata")
        .failed(2, &["hostb did not answer", "--force"]);
    assert_eq!(c.get("size").unwrap(), SIZE.to_string());
    c.adm("hosta", "resize mydata --force").ok();
    c.adm("hostb", "primary mydata").failed(2, &["incomplete"]);
    assert_eq!(c.get("primary").unwrap(), "hosta");
    c.kernel().silent.clear();
    c.settle("hostb");
    c.adm("hostb", "primary mydata").ok();
}

/// The primary is lost while what the resource has grown by is copied: what was complete before is a good replica.
#[test]
fn a_failover_amid_a_resize() {
    let bigger = (SIZE + 8192).to_string();
    let source = format!("hosta,log-000000001-hosta,{bigger},{SIZE}");
    let grown = || {
        let c = Cluster::pair();
        c.grow(8192);
        c.kernel().hold_sync = true;
        c.adm("hosta", "resize mydata").ok();
        let set = |key: &str, value: &str| c.tree.set(&format!("resource-mydata/{key}"), value);
        set("syncstatus-hostb", &(SIZE + 4096).to_string());
        set("syncfrom-hostb", &source);
        // The end of the sync, of which nothing counts any more.
        set("syncpos-hostb", "log-000000009-hosta,9999,0");
        c.kernel().silent.insert("hosta".into());
        c.adm("hostb", "primary mydata")
            .failed(2, &["has grown", "primary --force mydata", "10.000 MiB"]);
        c.adm("hostb", "pause-fetch mydata").ok();
        c
    };
    let ran = grown().adm("hostb", "primary --force mydata").ok();
    assert!(ran.err.contains("cut off: 'mydata' has"), "{ran:#?}");
    assert!(!ran.err.contains("was complete of"), "{ran:#?}");
    at_each_step(
        &["stop-fetch", "designate", "device", "up"],
        grown,
        "hostb",
        |_| "primary --force mydata".into(),
        |c, step| {
            let size = c.get("size").unwrap();
            let done = ["device", "up"].contains(&step);
            assert_eq!(size == SIZE.to_string(), done, "{step}: {size}");
        },
        |c, step| {
            assert_eq!(c.get("size").unwrap(), SIZE.to_string(), "{step}");
            assert_eq!(c.get("actual-hostb/is-primary").unwrap(), "1", "{step}");
        },
    );
}

#[test]
fn an_interrupted_handover_can_be_taken_back() {
    for step in ["none", "release", "designate"] {
        let c = Cluster::pair();
        assert_eq!(c.killed("hostb", "primary mydata", step).code, 99);
        c.adm("hosta", "primary mydata").ok();
        assert_eq!(c.get("primary").unwrap(), "hosta");
        c.until("is-primary", || {
            c.get("actual-hosta/is-primary").as_deref() == Some("1")
        });
        c.adm("hostb", "ops --forget mydata").ok();
        assert_eq!(c.adm("hostb", "ops").ok().out, "");
    }
}

#[test]
fn forced_primary() {
    at_each_step(
        &["stop-fetch", "designate", "device", "up"],
        || {
            let c = Cluster::pair();
            c.kernel().silent.insert("hosta".into());
            c.adm("hostb", "pause-fetch mydata").ok();
            c
        },
        "hostb",
        |_| "primary --force mydata".into(),
        |_, _| (),
        |c, step| assert_eq!(c.get("actual-hostb/is-primary").unwrap(), "1", "{step}"),
    );
}

#[test]
fn invalidate() {
    at_each_step(
        &["off", "worthless", "history", "purge", "position", "on"],
        Cluster::pair,
        "hostb",
        |_| "invalidate mydata".into(),
        |c, step| {
            if !["off", "worthless"].contains(&step) {
                c.adm("hostb", "primary mydata").failed(2, &["incomplete"]);
            }
        },
        |c, step| {
            c.settle("hostb");
            for key in ["attach", "connect", "sync", "allow-replay"] {
                assert_eq!(
                    c.get(&format!("todo-hostb/{key}")).unwrap(),
                    "1",
                    "{step} {key}"
                );
            }
        },
    );
}

#[test]
fn leave_resource() {
    at_each_step(
        &["member", "links", "logs", "device"],
        || {
            let c = Cluster::pair();
            c.adm("hostb", "down mydata").ok();
            c
        },
        "hostb",
        |_| "leave-resource mydata".into(),
        |_, _| (),
        |c, step| {
            for key in ["data", "device", "replay", "syncstatus"] {
                assert_eq!(c.get(&format!("{key}-hostb")), None, "{step} {key}");
            }
            assert!(c
                .adm("hostb", "leave-resource mydata")
                .ok()
                .out
                .contains("nothing to do"));
        },
    );
}

#[test]
fn delete_resource() {
    at_each_step(
        &["tombstones"],
        || {
            let c = Cluster::of(&["hosta"]);
            c.create();
            for line in ["secondary mydata", "down mydata", "leave-resource mydata"] {
                c.adm("hosta", line).ok();
            }
            c
        },
        "hosta",
        |_| "delete-resource mydata".into(),
        |_, _| (),
        |c, _| assert_eq!(c.get("size"), None),
    );
}
