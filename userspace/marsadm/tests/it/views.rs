// SPDX-License-Identifier: GPL-2.0-or-later

//! What `view` shows.

use crate::harness::{Cluster, SIZE};
use serde_json::{json, Value};

/// The names of the fields, with their nesting.
fn shape(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, v) in map {
                let at = format!("{at}.{key}");
                out.push(at.clone());
                shape(v, &at, out);
            }
        }
        Value::Array(list) => {
            if let Some(v) = list.first() {
                shape(v, &format!("{at}[]"), out);
            }
        }
        _ => {}
    }
}

#[test]
fn the_json_document_has_schema_1() {
    let c = Cluster::pair();
    c.write("hosta", 1, 8192);
    c.settle("hostb");
    let v = c.json("hosta");
    assert_eq!(v["schema"], 1);
    assert_eq!(v["host"], "hosta");
    assert_eq!(v["module"], json!({"loaded": true, "version": "fake 1"}));
    let host = &v["cluster"]["hosts"][1];
    assert_eq!(
        (&host["name"], &host["alive"]),
        (&json!("hostb"), &json!(true))
    );
    let r = &v["resources"][0];
    assert_eq!(r["name"], "mydata");
    assert_eq!(r["size"], SIZE);
    assert_eq!(r["designated_primary"], "hosta");
    assert_eq!(r["actual_primaries"], json!(["hosta"]));
    assert_eq!(r["split_brain"], json!([]));
    let (a, b) = (&r["members"][0], &r["members"][1]);
    assert_eq!(
        (&a["host"], &a["role"], &a["flags"]),
        (&json!("hosta"), &json!("Primary"), &json!("DCASFR"))
    );
    assert_eq!(
        (&b["host"], &b["role"], &b["flags"]),
        (&json!("hostb"), &json!("Secondary"), &json!("dCASFR"))
    );
    assert_eq!(
        b["lag"],
        json!({"fetch_bytes": 0, "replay_bytes": 0, "writeback_bytes": null, "sync_bytes": 0})
    );
    assert_eq!(
        b["positions"]["replay"],
        json!({"log": "log-000000001-hosta", "number": 1, "creator": "hosta", "pos": 8192})
    );
    assert_eq!(
        b["todo"],
        json!({"attach": true, "fetch": true, "replay": true, "sync": true})
    );
    assert_eq!(b["consistent"], true);

    let mut fields = Vec::new();
    shape(&v, "", &mut fields);
    let documented = include_str!("../../../../Documentation/marsadm.md");
    for field in fields {
        let name = field.rsplit('.').next().unwrap();
        assert!(
            documented.contains(&format!("`{name}`")),
            "{field} is not documented"
        );
    }
}

#[test]
fn lag_and_split_brain_are_told_in_bytes() {
    let c = Cluster::pair();
    c.adm("hostb", "pause-replay mydata").ok();
    c.write("hosta", 1, 6000);
    c.adm("hosta", "log-rotate mydata").ok();
    c.until("next log", || {
        c.get("replay-hosta").as_deref() == Some("log-000000002-hosta,0,0")
    });
    c.write("hosta", 2, 5000);
    let b = c.json("hosta")["resources"][0]["members"][1].clone();
    assert_eq!(b["lag"]["replay_bytes"], 11_000);
    let ran = c.adm("hosta", "view mydata").ok();
    assert!(ran.out.contains("hostb:"), "{}", ran.out);
    assert!(ran.out.contains("10.742 KiB behind"), "{}", ran.out);
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out
            .contains("replaying: [>....................]   0.00% (0 B of 10.742 KiB)"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("logs: [1..2]"), "{}", ran.out);

    c.open("hosta", 1);
    c.adm("hostb", "pause-fetch mydata").ok();
    c.adm("hostb", "resume-replay mydata").ok();
    c.adm("hostb", "primary --force mydata").ok();
    c.write("hosta", 2, 100);
    let split = c.json("hostb")["resources"][0]["split_brain"][0].clone();
    assert_eq!(split["hosts"], json!(["hosta", "hostb"]));
    assert_eq!(split["only_bytes"], json!([11_100, 0]));
    assert_eq!(split["common_log"], "log-000000001-hosta");
    assert_eq!(split["common_pos"], 0);
    assert!(split["text"].as_str().unwrap().contains("SPLIT BRAIN"));
}

#[test]
fn silence_is_shown() {
    let c = Cluster::pair();
    c.kernel().silent.insert("hosta".into());
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let ran = c.adm("hostb", "view all --window 1").ok();
    assert!(ran.out.contains("PrimaryUnreachable"), "{}", ran.out);
    assert!(ran.out.contains("UnResponsive"), "{}", ran.out);
    assert!(
        ran.out
            .contains("host hosta        10.0.0.1        silent for 1 s"),
        "{}",
        ran.out
    );
    assert!(
        ran.out
            .contains("--------- resource mydata 10.000 MiB [2/2]"),
        "{}",
        ran.out
    );
}

#[test]
fn resources_of_others_are_seen_too() {
    let c = Cluster::of(&["hosta", "hostb"]);
    c.create();
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(
        ran.out.contains("mydata [1/2] NotJoined hosta"),
        "{}",
        ran.out
    );
    let ran = c.adm("hostb", "view").ok();
    assert!(ran.out.contains("takes part in no resource"), "{}", ran.out);
    assert_eq!(c.json("hostb")["resources"][0]["name"], "mydata");
    c.adm("hostb", "view nothing")
        .failed(2, &["nothing", "existing resources: mydata"]);
}

#[test]
fn a_damaged_tree_is_still_shown() {
    let c = Cluster::pair();
    c.kernel()
        .lazy
        .extend(["hosta".to_owned(), "hostb".to_owned()]);
    for (path, value) in [
        ("replay-hosta", "rubbish"),
        ("version-000000001-hosta", "rubbish"),
        ("size", "-1"),
        ("primary", "no/name"),
        ("actual-hosta/open-count", "99999999999999999999999"),
    ] {
        c.tree.set(&format!("resource-mydata/{path}"), value);
    }
    c.adm("hosta", "view all").ok();
    c.json("hostb");
}

#[test]
fn what_the_module_has_to_say_is_shown() {
    let c = Cluster::pair();
    c.tree.set(
        "actual-hosta/msg-peer-hostb",
        "1.000000000 1.000000000 wrong key: copy /mars/cluster-key from a member",
    );
    c.tree.set("actual-hosta/msg-peer-hostc", "OK");
    let ran = c.adm("hosta", "view all").ok();
    assert!(
        ran.out
            .contains("    peer-hostb: wrong key: copy /mars/cluster-key"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("peer-hostc"), "{}", ran.out);
    assert_eq!(
        c.json("hosta")["cluster"]["hosts"][0]["messages"][0]["key"],
        "peer-hostb"
    );
}

/// Without room in `/mars` the module only says the word.
#[test]
fn a_bare_word_is_told_with_what_to_do() {
    let c = Cluster::pair();
    for (word, remedy) in [
        ("disk-error", "repair or reconnect the disk /"),
        ("defective-log", "`marsadm invalidate mydata` on 'hostb'"),
        ("no-history", "`marsadm invalidate mydata` on 'hostb'"),
        ("split-brain", "`marsadm invalidate mydata`"),
        ("no-space", "free space in /mars on 'hostb'"),
        ("emergency", "free space in /mars on 'hostb'"),
        ("stopping", "close the device on 'hostb'"),
        ("waiting", "the kernel log of 'hostb' says"),
    ] {
        let key = ("mydata".to_owned(), "hostb".to_owned());
        c.kernel().state.insert(key, word.into());
        c.until(word, || {
            c.get("actual-hostb/state").as_deref() == Some(word)
        });
        for host in ["hosta", "hostb"] {
            let ran = c.adm(host, "view mydata").ok();
            let told = ran
                .out
                .lines()
                .any(|l| l.contains(" -> ") && l.contains(remedy));
            assert!(
                told && ran.out.contains(&format!("  {word}")),
                "{}",
                ran.out
            );
            let json = c.json(host)["resources"][0]["members"].clone();
            let members = json.as_array().unwrap();
            let b = members.iter().find(|m| m["host"] == "hostb").unwrap();
            assert!(b["remedy"].as_str().unwrap().contains(remedy), "{b}");
        }
    }
    // The tool says what it can see.
    c.adm("hosta", "secondary mydata").ok();
    let ran = c.adm("hostb", "view mydata").ok();
    assert!(ran.out.contains("-> nobody is designated"), "{}", ran.out);
}
