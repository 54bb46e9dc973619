// SPDX-License-Identifier: GPL-2.0-or-later

//! What is refused, and that it is said who, what, why and what to do.

use crate::harness::Cluster;
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn disks_are_checked() {
    let c = Cluster::of(&["hosta"]);
    c.adm("hosta", "create-resource mydata /no/such/disk")
        .failed(2, &["/no/such/disk"]);
    c.adm("hosta", "create-resource mydata relative")
        .failed(1, &["full path"]);
    c.adm("hosta", "create-resource mydata /tmp")
        .failed(2, &["not a block device"]);
    let small = c.tree.0.join("../small");
    fs::write(&small, vec![0; 65536]).unwrap();
    c.adm(
        "hosta",
        &format!("create-resource mydata {}", small.display()),
    )
    .failed(2, &["65536 bytes"]);
    let line = format!("create-resource mydata {} mydata 1G", c.disk("hosta"));
    c.adm("hosta", &line).failed(2, &["larger than the disk"]);
    let line = format!("create-resource mydata {} mydata 5000", c.disk("hosta"));
    c.adm("hosta", &line).failed(1, &["no multiple of 4096"]);
    c.adm("hosta", &format!("create-resource all {}", c.disk("hosta")))
        .failed(1, &["reserved"]);
    c.adm(
        "hosta",
        &format!("create-resource my/data {}", c.disk("hosta")),
    )
    .failed(1, &["my/data"]);
    assert!(!c.path("").exists(), "nothing was made");
    // An odd size is rounded down, and said.
    let odd = c.tree.0.join("../odd");
    fs::write(&odd, vec![0; 100_000]).unwrap();
    let ran = c
        .adm(
            "hosta",
            &format!("create-resource mydata {}", odd.display()),
        )
        .ok();
    assert!(
        ran.out.contains("last 1696 bytes are not used"),
        "{}",
        ran.out
    );
    assert_eq!(c.get("size").unwrap(), "98304");
    // A second create is refused, with the same disk and with another one.
    c.adm(
        "hosta",
        &format!("create-resource mydata {}", odd.display()),
    )
    .failed(2, &["exists already"]);
    c.adm(
        "hosta",
        &format!("create-resource mydata {}", c.disk("hosta")),
    )
    .failed(2, &["exists already"]);
    c.adm(
        "hosta",
        &format!("create-resource other {} mydata", c.disk("hosta")),
    )
    .failed(2, &["device name"]);
}

#[test]
fn joining_needs_a_living_primary_and_a_fitting_disk() {
    let c = Cluster::of(&["hosta", "hostb", "hostc"]);
    let join = format!("join-resource mydata {}", c.disk("hostb"));
    c.adm("hostb", &join).failed(2, &["does not exist"]);
    c.create();
    let small = c.tree.0.join("../small");
    fs::write(&small, vec![0; 1 << 20]).unwrap();
    c.adm(
        "hostb",
        &format!("join-resource mydata {}", small.display()),
    )
    .failed(2, &["too small"]);
    c.adm(
        "hosta",
        &format!("join-resource mydata {}", c.disk("hostc")),
    )
    .failed(2, &["already a member"]);
    c.adm("hosta", "secondary mydata").ok();
    c.adm("hostb", &join).failed(2, &["no designated primary"]);
    c.adm("hosta", "primary mydata").ok();
    c.kernel().silent.insert("hosta".into());
    std::thread::sleep(Duration::from_millis(1100));
    c.adm("hostb", &format!("{join} --window 1"))
        .failed(2, &["does not answer", "hosta"]);
    assert_eq!(c.get("data-hostb"), None);
    c.kernel().silent.clear();
    c.adm("hostb", &join).ok();
    c.adm("hostb", &join).ok();
    let other = format!("join-resource mydata {}", c.disk("hostc"));
    c.adm("hostb", &other)
        .failed(2, &["already a member", "leave-resource"]);
}

#[test]
fn an_incomplete_replica_never_becomes_primary() {
    let c = Cluster::of(&["hosta", "hostb"]);
    c.create();
    c.kernel().hold_sync = true;
    c.adm(
        "hostb",
        &format!("join-resource mydata {}", c.disk("hostb")),
    )
    .ok();
    c.adm("hostb", "primary mydata")
        .failed(2, &["incomplete", "0 B of 10.000 MiB"]);
    c.adm("hostb", "pause-fetch mydata").ok();
    c.adm("hostb", "primary --force mydata")
        .failed(2, &["not even by force"]);
    assert_eq!(c.get("primary").unwrap(), "hosta");
}

#[test]
fn a_handover_waits_for_syncs_elsewhere_unless_told_otherwise() {
    let c = Cluster::of(&["hosta", "hostb", "hostc"]);
    c.create();
    c.adm(
        "hostb",
        &format!("join-resource mydata {}", c.disk("hostb")),
    )
    .ok();
    c.settle("hostb");
    c.kernel().hold_sync = true;
    c.adm(
        "hostc",
        &format!("join-resource mydata {}", c.disk("hostc")),
    )
    .ok();
    c.adm("hostb", "primary mydata")
        .failed(2, &["hostc", "--ignore-sync"]);
    c.adm("hostb", "primary mydata --ignore-sync").ok();
}

#[test]
fn a_handover_needs_the_switches_and_the_old_primary() {
    let c = Cluster::pair();
    c.adm("hostb", "pause-replay mydata").ok();
    c.adm("hostb", "primary mydata")
        .failed(2, &["switches are off: replay", "up mydata"]);
    c.adm("hostb", "pause-fetch mydata").ok();
    c.write("hosta", 1, 5000);
    c.kernel().silent.insert("hosta".into());
    c.adm("hostb", "up mydata").ok();
    let line = "primary mydata --window 1";
    c.adm("hostb", line)
        .failed(2, &["hosta", "last writes", "primary --force mydata"]);
    assert_eq!(c.get("primary").unwrap(), "hosta");
}

#[test]
fn an_old_primary_that_does_not_let_go_gets_its_role_back() {
    let c = Cluster::pair();
    // It says that it is closed, but never gives up the device.
    c.kernel().lazy.insert("hosta".into());
    let begin = Instant::now();
    let ran = c.adm("hostb", "primary mydata --timeout 2");
    let ran = ran.failed(3, &["the device on 'hosta' still exists", "taken back"]);
    assert!(begin.elapsed() < Duration::from_secs(15), "{ran:?}");
    assert_eq!(c.get("primary").unwrap(), "hosta");
}

#[test]
fn a_stuck_engine_ends_the_waiting_at_once() {
    let c = Cluster::pair();
    let key = ("mydata".to_owned(), "hostb".to_owned());
    c.kernel()
        .state
        .insert(key.clone(), "disk-error cannot open: no medium".into());
    let begin = Instant::now();
    c.until("state", || {
        c.get("actual-hostb/state")
            .is_some_and(|s| s.starts_with("disk-error"))
    });
    let ran = c
        .adm("hostb", "primary mydata")
        .failed(2, &["cannot open: no medium"]);
    assert!(begin.elapsed() < Duration::from_secs(10), "{ran:?}");
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(ran.out.contains("DISK_ERROR="), "{}", ran.out);
    assert!(
        ran.out.contains("disk-error: cannot open: no medium"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("-> repair"), "{}", ran.out);
}

#[test]
fn detaching_an_open_device_is_refused() {
    let c = Cluster::pair();
    c.open("hosta", 1);
    for command in ["detach mydata", "down mydata"] {
        c.adm("hosta", command)
            .failed(2, &["/dev/mars/mydata", "hosta", "opened by mount(412)"]);
    }
    assert_eq!(c.get("todo-hosta/attach").unwrap(), "1");
    assert_eq!(c.get("todo-hosta/connect").unwrap(), "1");
    c.adm("hosta", "wait-umount mydata --timeout 1")
        .failed(3, &["open-count 1"]);
    c.open("hosta", 0);
    c.adm("hosta", "wait-umount mydata").ok();
    c.adm("hosta", "wait-resource mydata todo-attach-off --timeout 1")
        .failed(3, &["todo-attach is on"]);
    c.adm("hosta", "wait-resource mydata is-nonsense")
        .failed(1, &["is-nonsense"]);
}

#[test]
fn rotation_happens_at_the_primary() {
    let c = Cluster::pair();
    c.adm("hostb", "log-rotate mydata")
        .failed(2, &["not primary", "hosta"]);
    c.adm("hostb", "log-rotate all").ok();
}

#[test]
fn two_commands_on_one_resource_do_not_meet() {
    let c = Cluster::pair();
    c.kernel().lazy.insert("hosta".into());
    let mut first = c
        .command("hostb", "primary mydata --timeout 3")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    c.until("the first one works", || {
        c.get("primary").as_deref() == Some("(none)")
    });
    c.adm("hostb", "invalidate mydata --force").failed(2, &[]);
    c.adm("hostb", "leave-resource mydata --force")
        .failed(2, &["is working on 'mydata'", "primary mydata"]);
    first.wait().unwrap();
}

#[test]
fn a_silent_host_that_was_primary_may_still_be() {
    let c = Cluster::pair();
    c.kernel().silent.insert("hosta".into());
    std::thread::sleep(Duration::from_millis(1100));
    // Everything that is known to have been written is here, but that is not enough.
    c.adm("hostb", "primary mydata --window 1")
        .failed(2, &["hosta", "may still be primary", "--force"]);
    assert_eq!(c.get("primary").unwrap(), "hosta");
}

/// Nobody can unmount there what a dead host had mounted.
#[test]
fn a_dead_primary_whose_device_was_open_is_told_to_be_silent() {
    let c = Cluster::pair();
    c.open("hosta", 1);
    c.kernel().silent.insert("hosta".into());
    // Long before the window is over: it was asked just now.
    for _ in 0..2 {
        let ran = c.adm("hostb", "primary mydata").failed(
            2,
            &[
                "'hosta' does not answer",
                "last heard",
                "opened by mount(412)",
                "pause-fetch mydata",
                "primary --force mydata",
            ],
        );
        assert!(!ran.err.contains("close it"), "{ran:#?}");
        std::thread::sleep(Duration::from_secs(3));
    }
    assert_eq!(c.get("primary").unwrap(), "hosta");
    c.adm("hostb", "pause-fetch mydata").ok();
    c.adm("hostb", "primary --force mydata").ok();
}

#[test]
fn a_host_that_gave_up_the_role_before_it_went_away_is_not_needed() {
    let c = Cluster::pair();
    c.write("hosta", 1, 5000);
    c.adm("hosta", "secondary mydata").ok();
    c.settle("hostb");
    c.until("replayed", || {
        c.get("replay-hosta") == c.get("replay-hostb")
    });
    c.kernel().silent.insert("hosta".into());
    std::thread::sleep(Duration::from_millis(1100));
    c.adm("hostb", "primary mydata --window 1").ok();
    assert_eq!(c.get("actual-hostb/is-primary").unwrap(), "1");
}

#[test]
fn a_primary_that_does_not_log_can_neither_be_copied_nor_be_followed() {
    let c = Cluster::of(&["hosta", "hostb", "hostc"]);
    c.create();
    let join = |host: &str| format!("join-resource mydata {}", c.disk(host));
    c.adm("hostb", &join("hostb")).ok();
    c.settle("hostb");
    let key = ("mydata".to_owned(), "hosta".to_owned());
    c.kernel().emergency.insert(key.clone());
    c.until("emergency", || {
        c.get("actual-hosta/is-emergency").as_deref() == Some("1")
    });
    for (host, command) in [
        ("hostb", "primary mydata".to_owned()),
        ("hostb", "invalidate mydata".to_owned()),
        ("hostc", join("hostc")),
    ] {
        c.adm(host, &command)
            .failed(2, &["emergency mode", "free space", "hosta"]);
    }
    assert_eq!(c.get("primary").unwrap(), "hosta");
    let view = c.adm("hostb", "view --json mydata").ok().out;
    assert!(view.contains("\"disk_state\": \"EmergencyMode\""), "{view}");
    c.kernel().emergency.remove(&key);
    c.until("no emergency", || {
        c.get("actual-hosta/is-emergency").as_deref() == Some("0")
    });
    c.adm("hostb", "primary mydata").ok();
}

/// What only a silent host knows is not decided without it: that it has a resource of this name, or is primary of it.
#[test]
fn resources_are_neither_made_nor_deleted_behind_the_back_of_a_silent_host() {
    let c = Cluster::of(&["hosta", "hostb"]);
    let create = format!("create-resource mydata {}", c.disk("hosta"));
    c.kernel().silent.insert("hostb".into());
    c.adm("hosta", &create)
        .failed(2, &["hostb did not answer", "may exist", "--force"]);
    assert!(!c.path("").exists(), "nothing was made");
    c.adm("hosta", &format!("{create} --force")).ok();
    // It is known here: no need to ask.
    c.adm("hosta", &create).failed(2, &["exists already"]);
    for line in ["secondary mydata", "down mydata", "leave-resource mydata"] {
        c.adm("hosta", line).ok();
    }
    c.adm("hosta", "delete-resource mydata")
        .failed(2, &["hostb did not answer", "may have a member", "--force"]);
    assert!(c.get("size").is_some());
    c.kernel().silent.clear();
    c.adm("hosta", "delete-resource mydata").ok();
}

#[test]
fn a_resource_is_made_without_the_module_only_where_nobody_has_to_be_asked() {
    let c = Cluster::bare();
    c.adm("hosta", "create-cluster --ip 10.0.0.1").ok();
    let create = |name: &str, host: &str| format!("create-resource {name} {}", c.disk(host));
    c.adm("hosta", &create("mydata", "hosta")).ok();
    c.tree.set("ips/ip-hostb", "10.0.0.2");
    c.adm("hosta", &create("other", "hostb"))
        .failed(4, &["several hosts", "modprobe mars", "--force"]);
    c.adm("hosta", "delete-resource mydata")
        .failed(2, &["still has members: hosta"]);
    for key in ["data", "device"] {
        std::fs::remove_file(c.path(&format!("{key}-hosta"))).unwrap();
    }
    c.adm("hosta", "delete-resource mydata")
        .failed(4, &["several hosts", "modprobe mars"]);
    c.adm("hosta", &format!("{} --force", create("other", "hostb")))
        .ok();
}

/// What a silent host said last, that it is primary or has everything, does not count.
#[test]
fn nobody_leaves_because_of_what_a_silent_host_said() {
    let c = Cluster::of(&["hosta", "hostb", "hostc"]);
    c.create();
    for host in ["hostb", "hostc"] {
        let line = format!("join-resource mydata {}", c.disk(host));
        c.adm(host, &line).ok();
        c.settle(host);
    }
    c.adm("hostb", "down mydata").ok();
    let leave = "leave-resource mydata --window 1";
    // It may be primary by now.
    c.kernel().silent.insert("hostb".into());
    std::thread::sleep(Duration::from_millis(1100));
    c.adm("hostc", &format!("{leave} --host=hostb"))
        .failed(2, &["'hostb' does not answer", "may be primary", "--force"]);
    // The primary dies, and its word that it is primary with it.
    c.kernel().silent = ["hosta".to_owned()].into();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(c.get("actual-hosta/is-primary").unwrap(), "1");
    c.adm("hostb", leave)
        .failed(2, &["hosta does not answer", "no running primary answers"]);
    c.adm("hostc", &format!("{leave} --host=hosta --force"))
        .failed(
            2,
            &["nobody else who answers is primary", "primary --force"],
        );
    // Neither does it lead when it was not designated any more.
    c.tree.set("resource-mydata/primary", "hostc");
    c.tree
        .set("resource-mydata/userspace/last-primary", "hostc");
    c.kernel().lazy.insert("hostc".into());
    c.adm("hostb", &format!("{leave} --host=hostc --force"))
        .failed(2, &["'hostc' was primary", "nobody else who answers"]);
    for host in ["hosta", "hostb", "hostc"] {
        assert!(c.get(&format!("data-{host}")).is_some(), "{host}");
    }
    c.kernel().silent.clear();
    c.kernel().lazy.clear();
}

/// hostc joined late, and never had what hostb, which is behind, has to replay next.
#[test]
fn the_only_copy_of_a_log_that_somebody_needs_is_not_given_up() {
    let c = Cluster::of(&["hosta", "hostb", "hostc"]);
    let join = |host: &str| {
        let line = format!("join-resource mydata {}", c.disk(host));
        c.adm(host, &line).ok();
        c.settle(host);
    };
    c.create();
    join("hostb");
    c.adm("hostb", "pause-replay mydata").ok();
    for number in 1..3 {
        c.write("hosta", number, 9000);
        c.adm("hosta", "log-rotate mydata").ok();
        let next = format!("log-{:09}-hosta,0,0", number + 1);
        c.until("next log", || c.get("replay-hosta").as_ref() == Some(&next));
    }
    join("hostc");
    c.adm("hostc", "primary mydata").ok();
    c.settle("hosta");
    let words = ["'hostb' still needs log-000000001-hosta", "no other member"];
    c.adm("hosta", "invalidate mydata").failed(2, &words);
    c.adm("hosta", "down mydata").ok();
    c.adm("hosta", "leave-resource mydata").failed(2, &words);
    assert!(c.path("log-000000002-hosta").is_file());
    // As soon as it has caught up, nobody needs them.
    c.adm("hostb", "up mydata").ok();
    c.settle("hostb");
    c.adm("hosta", "leave-resource mydata").ok();
    assert_eq!(c.get("data-hosta"), None);
}

/// The hint says what helps.
#[test]
fn remains_of_a_split_brain_are_removed_before_joining_again() {
    let c = Cluster::of(&["hosta", "hostb", "hostc"]);
    c.create();
    let join = |host: &str| format!("join-resource mydata {}", c.disk(host));
    c.adm("hostc", &join("hostc")).ok();
    c.settle("hostc");
    let log = c.path("log-000000007-hostb");
    fs::write(&log, "data").unwrap();
    // hostc has followed it.
    c.kernel().lazy.insert("hostc".into());
    let version = c.get("version-000000001-hosta").unwrap();
    let theirs = version.replacen("log-000000001-hosta", "log-000000007-hostb", 1);
    c.tree
        .set("resource-mydata/version-000000007-hostc", &theirs);
    c.adm("hostb", &join("hostb")).failed(
        2,
        &[
            "log-000000007-hostb",
            "history of hostc",
            "invalidate mydata",
        ],
    );
    let ran = c.adm("hostb", "leave-resource mydata").ok();
    assert!(ran.out.contains("nothing to do"), "{ran:#?}");
    fs::remove_file(c.path("version-000000007-hostc")).unwrap();
    c.adm("hostb", &join("hostb")).failed(
        2,
        &[
            "log-000000007-hostb",
            "HINT: `marsadm leave-resource mydata` here",
        ],
    );
    c.adm("hostb", "leave-resource mydata").ok();
    assert_eq!(c.raw("log-000000007-hostb").unwrap(), ".deleted");
    c.adm("hostb", &join("hostb")).ok();
}
