// SPDX-License-Identifier: GPL-2.0-or-later

//! The trace that was observed with the original tool, command by command: what each leaves in the tree.

use crate::harness::{Cluster, SIZE};

const ZERO: &str = "00000000000000000000000000000000";

#[test]
fn create_resource_writes_what_the_original_writes() {
    let c = Cluster::of(&["hosta"]);
    c.kernel().lazy.insert("hosta".into());
    // The lazy kernel does not make the device; what the tool wrote stands there untouched.
    let line = format!("create-resource mydata {} --timeout 1", c.disk("hosta"));
    c.adm("hosta", &line)
        .failed(3, &["device", "does not exist yet"]);
    for (path, value) in [
        ("size", SIZE.to_string()),
        ("data-hosta", c.disk("hosta")),
        ("device-hosta", "mydata".into()),
        ("primary", "hosta".into()),
        ("maxnr", "1".into()),
        ("syncstatus-hosta", SIZE.to_string()),
        ("replay-hosta", "log-000000001-hosta,0,0".into()),
        (
            "version-000000000-hosta",
            format!("{ZERO},log-000000000-hosta,0:"),
        ),
        (
            "version-000000001-hosta",
            format!("{ZERO},log-000000001-hosta,0:{ZERO},log-000000000-hosta,0"),
        ),
        ("todo-hosta/attach", "1".into()),
        ("todo-hosta/connect", "1".into()),
        ("todo-hosta/sync", "1".into()),
        ("todo-hosta/allow-replay", "1".into()),
        ("actual-hosta/if-on", "0".into()),
        ("userspace/last-primary", "hosta".into()),
    ] {
        assert_eq!(c.get(path), Some(value), "{path}");
    }
    let log = std::fs::symlink_metadata(c.path("log-000000001-hosta")).unwrap();
    assert!(log.is_file() && log.len() == 0);

    c.kernel().lazy.clear();
    c.adm("hosta", "wait-resource mydata is-device-on").ok();
    let version = c.get("version-000000001-hosta").unwrap();
    assert_eq!(
        version,
        format!(
            "0231d6c7dfe4610c290693bacd59ec3f,log-000000001-hosta,0:{ZERO},log-000000000-hosta,0"
        )
    );
}

#[test]
fn join_resource_writes_what_the_original_writes() {
    let c = Cluster::of(&["hosta", "hostb"]);
    c.create();
    c.kernel().hold_sync = true;
    c.adm(
        "hostb",
        &format!("join-resource mydata {}", c.disk("hostb")),
    )
    .ok();
    for (path, value) in [
        ("data-hostb", c.disk("hostb")),
        ("device-hostb", "mydata".into()),
        ("replay-hostb", "log-000000001-hosta,0,0".into()),
        ("skip-check-hostb", "1".into()),
        ("syncstatus-hostb", "0".into()),
        ("todo-hostb/attach", "1".into()),
        ("todo-hostb/connect", "1".into()),
        ("todo-hostb/sync", "1".into()),
        ("todo-hostb/allow-replay", "1".into()),
    ] {
        assert_eq!(c.get(path), Some(value), "{path}");
    }
    for n in 0..2 {
        let theirs = c.get(&format!("version-{n:09}-hosta"));
        assert_eq!(c.get(&format!("version-{n:09}-hostb")), theirs);
    }
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out
            .contains("  mydata [2/2] InConsistent Syncing dcAsFR Secondary hosta\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.out
            .contains("syncing:   [>....................]   0.00% (0 B of 10.000 MiB)"),
        "{}",
        ran.out
    );
    c.kernel().hold_sync = false;
    c.settle("hostb");
    assert_eq!(c.get("syncpos-hostb").unwrap(), "log-000000001-hosta,0,0");
}

#[test]
fn logs_rotate_and_are_deleted_when_nobody_needs_them() {
    let c = Cluster::pair();
    c.adm("hosta", "log-rotate mydata").ok();
    assert!(
        !c.path("log-000000002-hosta").exists(),
        "an empty log is not rotated"
    );
    c.write("hosta", 1, 100_000);
    c.adm("hosta", "log-rotate mydata").ok();
    assert_eq!(c.get("maxnr").unwrap(), "2");
    c.until("next log", || {
        c.get("replay-hosta").as_deref() == Some("log-000000002-hosta,0,0")
    });
    let first = c.get("version-000000001-hosta").unwrap();
    assert!(first.contains(",log-000000001-hosta,100000:"), "{first}");
    let second = c.get("version-000000002-hosta").unwrap();
    let digest = &first[..32];
    assert!(
        second.ends_with(&format!(
            ",log-000000002-hosta,0:{digest},log-000000001-hosta,100000"
        )),
        "{second}"
    );
    c.settle("hostb");

    c.adm("hosta", "cron mydata").ok();
    assert!(c.path("log-000000001-hosta").is_file(), "too young");
    c.adm("hosta", "log-delete-all mydata").ok();
    assert_eq!(c.raw("log-000000001-hosta").unwrap(), ".deleted");
    assert_eq!(c.raw("version-000000000-hosta").unwrap(), ".deleted");
    assert_ne!(c.raw("version-000000001-hosta").unwrap(), ".deleted");
    assert!(
        c.path("log-000000002-hosta").is_file(),
        "never the last one"
    );
}

#[test]
fn a_log_that_one_member_still_needs_is_kept() {
    let c = Cluster::pair();
    c.adm("hostb", "pause-replay mydata").ok();
    c.write("hosta", 1, 50_000);
    c.adm("hosta", "log-rotate mydata").ok();
    c.until("next log", || {
        c.get("replay-hosta").as_deref() == Some("log-000000002-hosta,0,0")
    });
    c.adm("hosta", "log-delete-all mydata").ok();
    assert!(c.path("log-000000001-hosta").is_file());
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out.contains("OutDated[FR] PausedReplay dCAS"),
        "{}",
        ran.out
    );
}

#[test]
fn logs_that_a_paused_member_needs_go_when_the_primary_has_noted_what_they_wrote() {
    let c = Cluster::pair();
    c.write("hosta", 1, 50_000);
    c.settle("hostb");
    c.adm("hosta", "log-rotate mydata").ok();
    c.until("next log", || {
        c.get("replay-hosta").as_deref() == Some("log-000000002-hosta,0,0")
    });
    c.settle("hostb");
    c.adm("hostb", "pause-replay mydata").ok();
    c.write("hosta", 2, 7000);
    c.adm("hosta", "log-rotate mydata").ok();
    c.until("next log", || {
        c.get("replay-hosta").as_deref() == Some("log-000000003-hosta,0,0")
    });
    c.adm("hostb", "log-delete-all mydata --also-needed")
        .failed(2, &["only the primary", "hosta"]);
    // A module that does nothing: then nothing goes.
    c.kernel().lazy.insert("hosta".into());
    c.adm("hosta", "log-delete-all mydata --also-needed --timeout 1")
        .failed(3, &["not yet noted"]);
    assert_eq!(c.get("todo-hosta/drop-logs").unwrap(), "0");
    assert!(c.path("log-000000002-hosta").is_file());
    c.kernel().lazy.clear();
    let ran = c.adm("hosta", "log-delete-all mydata --also-needed").ok();
    assert!(ran.err.contains("'hostb' (in log 2)"), "{}", ran.err);
    for log in ["log-000000001-hosta", "log-000000002-hosta"] {
        assert_eq!(c.raw(log).unwrap(), ".deleted");
    }
    assert!(c.path("log-000000003-hosta").is_file());
    // Where hostb stands must stay known.
    assert_ne!(c.raw("version-000000002-hosta").unwrap(), ".deleted");
    assert_eq!(c.get("todo-hosta/drop-logs").unwrap(), "0");
}

#[test]
fn cron_rotates_deletes_and_purges() {
    let c = Cluster::pair();
    c.write("hosta", 1, 9000);
    c.adm("hosta", "cron").ok();
    c.until("next log", || {
        c.get("replay-hosta").as_deref() == Some("log-000000002-hosta,0,0")
    });
    c.settle("hostb");
    c.adm("hosta", "log-delete-all all").ok();
    c.adm("hosta", "cron --keep-backup-hours 0").ok();
    // With a window of 4 s the tombstone stays for 8 s; --keep-backup-hours 0 ends that.
    assert_eq!(c.raw("log-000000001-hosta"), None);
}

#[test]
fn cron_clears_what_a_deleted_resource_leaves() {
    let c = Cluster::of(&["hosta", "hostb"]);
    c.create();
    for line in ["secondary", "down", "leave-resource", "delete-resource"] {
        c.adm("hosta", &format!("{line} mydata")).ok();
    }
    c.adm("hosta", "cron").ok();
    assert_eq!(c.raw("size").unwrap(), ".deleted", "too young");
    c.adm("hostb", "cron --keep-backup-hours 0").ok();
    assert_eq!(c.raw("size"), None);
    assert_eq!(c.raw("todo-hosta/attach"), None);
    assert_eq!(c.get("maxnr").unwrap(), "1");
    c.adm("hosta", "cron mydata").failed(2, &["does not exist"]);
}

/// That a peer is heard does not mean that it hears.
#[test]
fn a_tombstone_stays_while_a_peer_can_not_hear_of_it() {
    let c = Cluster::pair();
    c.kernel()
        .lazy
        .extend(["hosta".to_owned(), "hostb".to_owned()]);
    let path = "resource-mydata/userspace/note";
    c.adm("hosta", &format!("set-link .deleted {path}")).ok();
    let deaf = "actual-hostb/msg-peer-hosta";
    c.tree.set(deaf, "1.000000000 1.000000000 no route to host");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    c.adm("hosta", "cron --window 1").ok();
    assert_eq!(c.raw("userspace/note").unwrap(), ".deleted");
    c.tree.set(deaf, "OK");
    c.adm("hosta", "cron --window 1").ok();
    assert_eq!(c.raw("userspace/note"), None);
}

#[test]
fn a_planned_handover_goes_through_none_and_nothing_is_lost() {
    let c = Cluster::pair();
    c.write("hosta", 1, 12_345);
    c.adm("hostb", "primary mydata").ok();
    assert_eq!(c.get("primary").unwrap(), "hostb");
    assert_eq!(c.get("userspace/last-primary").unwrap(), "hostb");
    assert_eq!(c.get("userspace/prev-primary").unwrap(), "hosta");
    assert!(c.path("log-000000002-hostb").is_file());
    assert_eq!(c.get("actual-hosta/is-primary").unwrap(), "0");
    c.settle("hosta");
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out
            .contains("  mydata [2/2] UpToDate Replicating DCASFR Primary hostb\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.out
            .contains("  LocalDevice /dev/mars/mydata [Closed]\n"),
        "{}",
        ran.out
    );
    let ran = c.adm("hosta", "view mydata").ok();
    assert!(
        ran.out
            .contains("  mydata [2/2] UpToDate Replaying dCASFR Secondary hostb\n"),
        "{}",
        ran.out
    );
    // Back again, and again nothing happens.
    c.adm("hosta", "primary mydata").ok();
    assert!(c
        .adm("hosta", "primary mydata")
        .ok()
        .out
        .contains("already"));
    assert!(c.path("log-000000003-hosta").is_file());
}

#[test]
fn a_forced_failover_with_an_open_device_is_a_split_brain_and_invalidate_ends_it() {
    let c = Cluster::pair();
    c.write("hosta", 1, 5000);
    c.settle("hostb");
    c.open("hosta", 1);
    c.adm("hostb", "primary mydata")
        .failed(2, &["hosta", "open-count 1", "opened by mount(412)"]);
    assert_eq!(c.get("primary").unwrap(), "hosta");
    c.adm("hostb", "primary --force mydata")
        .failed(2, &["fetching must be off", "pause-fetch mydata"]);
    c.adm("hostb", "disconnect mydata").ok();
    c.write("hosta", 1, 3000);
    let ran = c.adm("hostb", "force-primary mydata").ok();
    assert!(ran.err.contains("SPLIT BRAIN"), "{}", ran.err);
    assert!(
        ran.err.contains("cut off: at least 2.929 KiB"),
        "{}",
        ran.err
    );
    assert_eq!(c.get("primary").unwrap(), "hostb");
    assert_eq!(c.get("todo-hostb/connect").unwrap(), "1");
    c.write("hostb", 2, 700);

    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out
            .contains("UpToDate Replicating DCASFR ForcedPrimary hostb\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.out
            .contains("SPLIT BRAIN of resource 'mydata' after log-000000001-hosta position 5000"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("'hosta' has 2.929 KiB of log"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("marsadm invalidate mydata"), "{}", ran.out);
    let ran = c.adm("hosta", "view mydata").ok();
    assert!(ran.out.contains("RemainsPrimary hostb\n"), "{}", ran.out);

    c.adm("hosta", "invalidate mydata")
        .failed(2, &["actual primary"]);
    c.open("hosta", 0);
    c.adm("hosta", "secondary mydata").ok();
    c.adm("hostb", "primary mydata").ok();
    c.adm("hosta", "primary mydata").failed(2, &["SPLIT BRAIN"]);
    c.adm("hosta", "invalidate mydata").ok();
    c.settle("hosta");
    let ran = c.adm("hosta", "view mydata").ok();
    assert!(
        ran.out
            .contains("UpToDate Replaying dCASFR Secondary hostb\n"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("SPLIT"), "{}", ran.out);
    // Now a planned handover works again.
    c.adm("hosta", "primary mydata").ok();
}

#[test]
fn invalidate_starts_the_replica_anew() {
    let c = Cluster::pair();
    c.kernel().hold_sync = true;
    // Left behind by a sync that was to compare a part only.
    c.tree
        .set("resource-mydata/gap-hostb", "log-000000001-hosta");
    c.adm("hostb", "invalidate mydata").ok();
    assert_eq!(c.raw("gap-hostb").unwrap(), ".deleted");
    assert_eq!(c.get("syncstatus-hostb").unwrap(), "0");
    assert_eq!(c.raw("syncpos-hostb").unwrap(), ".deleted");
    assert_eq!(c.get("replay-hostb").unwrap(), "log-000000001-hosta,0,0");
    for key in ["attach", "connect", "sync", "allow-replay"] {
        assert_eq!(c.get(&format!("todo-hostb/{key}")).unwrap(), "1", "{key}");
    }
    c.kernel().hold_sync = false;
    c.settle("hostb");
    c.adm("hosta", "invalidate mydata")
        .failed(2, &["primary", "destroy"]);
}

#[test]
fn secondary_takes_the_device_away_unless_it_is_open() {
    let c = Cluster::pair();
    c.open("hosta", 2);
    c.adm("hosta", "secondary mydata")
        .failed(2, &["open-count 2", "mounted ext4"]);
    assert_eq!(c.get("primary").unwrap(), "hosta");
    c.open("hosta", 0);
    c.adm("hosta", "secondary mydata").ok();
    assert_eq!(c.get("primary").unwrap(), "(none)");
    assert_eq!(c.get("actual-hosta/if-on").unwrap(), "0");
    assert!(c
        .adm("hostb", "secondary mydata")
        .ok()
        .out
        .contains("secondary"));
    // Without a primary, a planned one is possible from any side that has everything.
    c.adm("hostb", "primary mydata").ok();
    let ran = c.adm("hosta", "secondary mydata").ok();
    assert!(ran.out.contains("nothing to do"), "{}", ran.out);
    assert_eq!(
        c.get("primary").unwrap(),
        "hostb",
        "secondary on a secondary demotes nobody"
    );
}

#[test]
fn up_down_leave_and_delete() {
    let c = Cluster::pair();
    c.adm("hostb", "leave-resource mydata").failed(
        2,
        &[
            "is-attached",
            "todo attach",
            "todo connect",
            "todo sync",
            "todo allow-replay",
            "down mydata",
        ],
    );
    c.adm("hostb", "down mydata").ok();
    for key in ["attach", "connect", "sync", "allow-replay"] {
        assert_eq!(c.get(&format!("todo-hostb/{key}")).unwrap(), "0", "{key}");
    }
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out
            .contains("mydata [2/2] Detached PausedFetch dC-SFR Secondary hosta"),
        "{}",
        ran.out
    );
    c.adm("hostb", "up mydata").ok();
    assert_eq!(c.get("actual-hostb/is-attached").unwrap(), "1");
    c.adm("hostb", "down all").ok();
    c.adm("hostb", "leave-resource mydata").ok();
    for key in [
        "data",
        "device",
        "replay",
        "syncstatus",
        "skip-check",
        "actsize",
    ] {
        assert_eq!(
            c.raw(&format!("{key}-hostb")).as_deref(),
            Some(".deleted"),
            "{key}"
        );
    }
    assert_eq!(c.raw("version-000000001-hostb").unwrap(), ".deleted");
    assert!(
        c.path("log-000000001-hosta").is_file(),
        "logs of others stay"
    );
    c.adm("hosta", "delete-resource mydata")
        .failed(2, &["hosta"]);
    c.adm("hosta", "leave-resource mydata")
        .failed(2, &["primary"]);
    c.adm("hosta", "secondary mydata").ok();
    c.adm("hosta", "down mydata").ok();
    c.adm("hosta", "leave-resource mydata").ok();
    c.adm("hosta", "delete-resource mydata").ok();
    assert_eq!(c.raw("size").unwrap(), ".deleted");
    assert_eq!(c.get("maxnr").unwrap(), "1");
    assert_eq!(c.get("primary"), None);
    // Numbers go on where nobody has been yet.
    c.create();
    assert_eq!(c.get("replay-hosta").unwrap(), "log-000100001-hosta,0,0");
    assert_eq!(c.get("maxnr").unwrap(), "100001");
}

#[test]
fn a_dead_member_is_removed_by_a_survivor() {
    let c = Cluster::pair();
    c.kernel().silent.insert("hosta".into());
    c.adm("hostb", "pause-fetch mydata").ok();
    c.adm("hostb", "primary --force mydata").ok();
    c.adm("hostb", "leave-resource mydata --host=hosta --force")
        .ok();
    assert_eq!(c.raw("data-hosta").unwrap(), ".deleted");
    assert_eq!(c.get("primary").unwrap(), "hostb");
    c.adm("hostb", "leave-cluster --host=hosta").ok();
    assert_eq!(c.tree.get("ips/ip-hosta"), None);
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out
            .contains("mydata [1/1] UpToDate Replicating DCASFR Primary hostb"),
        "{}",
        ran.out
    );
}

#[test]
fn emergency_limits_are_percentages() {
    let c = Cluster::pair();
    c.adm("hosta", "set-emergency-limit mydata 50").ok();
    assert_eq!(c.get("todo-hosta/emergency-limit").unwrap(), "50");
    assert_eq!(
        c.adm("hosta", "get-emergency-limit mydata").ok().out,
        "50\n"
    );
    c.adm("hosta", "set-space-limit mydata 700").ok();
    assert_eq!(c.get("todo-hosta/space-limit").unwrap(), "700");
    assert_eq!(c.adm("hosta", "get-space-limit mydata").ok().out, "700\n");
    c.adm("hosta", "set-space-limit mydata many")
        .failed(2, &["is no number of MiB"]);
    c.adm("hosta", "set-emergency-limit mydata 150")
        .failed(2, &["0..100"]);
}

#[test]
fn resize_stays_within_what_all_disks_hold() {
    let c = Cluster::pair();
    c.adm("hosta", "resize mydata 4096")
        .failed(2, &["cannot shrink"]);
    c.adm("hosta", "resize mydata 1G")
        .failed(2, &["limited by"]);
    c.adm("hosta", "resize mydata").ok();
    c.grow(8192);
    let bigger = (SIZE + 8192).to_string();
    c.adm("hostb", "resize mydata").failed(2, &["not primary"]);
    c.adm("hosta", "resize mydata").ok();
    assert_eq!(c.get("size").unwrap(), bigger);
    assert_eq!(c.get("syncstatus-hosta").unwrap(), bigger);
}
