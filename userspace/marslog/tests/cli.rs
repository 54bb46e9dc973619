// SPDX-License-Identifier: GPL-2.0-or-later

//! `marslog` as it is called.

#[path = "../../mars-core/tests/common/mod.rs"]
mod common;

use common::{
    bytes,
    Log,
    Rec, //
};
use mars_core::log::RecordKind;
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    process::Command, //
};

struct Out {
    code: i32,
    text: String,
    err: String,
}

fn marslog(args: &[&str]) -> Out {
    let out = Command::new(env!("CARGO_BIN_EXE_marslog"))
        .args(args)
        .output()
        .unwrap();
    Out {
        code: out.status.code().unwrap(),
        text: String::from_utf8(out.stdout).unwrap(),
        err: String::from_utf8(out.stderr).unwrap(),
    }
}

/// A file that is removed at the end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("marslog-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn log() -> Log {
    let mut log = Log::new(1, 512);
    log.append(&[
        Rec::write(4096, bytes(1024, 1)),
        Rec::write(0, bytes(512, 2)),
    ]);
    log.append(&[
        Rec {
            kind: RecordKind::Discard,
            offset: 1 << 20,
            length: 4096,
            stamp: 2_000_000_001,
            payload: Vec::new(),
        },
        Rec {
            kind: RecordKind::Marker,
            offset: 0,
            length: 0,
            stamp: 3,
            payload: b"noon".to_vec(),
        },
    ]);
    log.append(&[Rec::write(0, bytes(512, 2))]);
    log
}

#[test]
fn an_intact_log_is_good() {
    let mut log = log();
    let end = log.bytes.len();
    log.bytes.resize(end + (64 << 10), 0);
    let file = Temp::new("good", &log.bytes);
    let out = marslog(&["verify", file.path()]);
    assert_eq!(out.code, 0, "{}", out.text);
    assert!(
        out.text.contains("OK: 3 batches, 5 records"),
        "{}",
        out.text
    );
    assert!(out.text.contains(&format!("end at {end}: zeros")));

    let out = marslog(&["dump", file.path()]);
    assert_eq!(out.code, 0);
    for want in [
        "log-000000007-alpha of resource r0",
        "batch     1 at 4096",
        "  write        4096+1024 ",
        "  discard      1048576+4096 2.000000001",
        "\"noon\"",
        &format!("end       at {end}: zeros"),
    ] {
        assert!(out.text.contains(want), "{want}\n{}", out.text);
    }
    let out = marslog(&[
        "dump",
        "--no-records",
        "--count=1",
        "--from=6144",
        file.path(),
    ]);
    assert!(
        out.text.contains("batch     2 at 6144") && out.text.lines().count() == 6,
        "{}",
        out.text
    );
}

#[test]
fn programs_get_json() {
    let file = Temp::new("json", &log().bytes);
    let out = marslog(&["dump", "--json", file.path()]);
    let lines: Vec<Value> = out
        .text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["type"], "header");
    assert_eq!(lines[0]["creator"], "alpha");
    assert_eq!(lines[2]["records"][1]["text"], "noon");
    assert_eq!(lines[4]["reason"], "eof");
    let out = marslog(&["stat", "--json", file.path()]);
    let stat: Value = serde_json::from_str(&out.text).unwrap();
    assert_eq!(stat["records"], 5);
    assert_eq!(stat["write"]["bytes"], 2048);
    assert_eq!(stat["device_range"][1], (1 << 20) + 4096);
    assert_eq!(marslog(&["stat", file.path()]).code, 0);
    let out = marslog(&["verify", "--json", file.path()]);
    let report: Value = serde_json::from_str(&out.text).unwrap();
    assert_eq!(report["ok"], true);
}

#[test]
fn damage_is_found_and_explained() {
    let log = log();
    let mut middle = log.bytes.clone();
    middle[4096 + 600] ^= 1;
    let file = Temp::new("middle", &middle);
    let out = marslog(&["verify", file.path()]);
    assert_eq!(out.code, 1);
    assert!(out.text.contains("DAMAGED: 0 batches"), "{}", out.text);
    assert!(
        out.text.contains("wrong checksum of the data of record 0"),
        "{}",
        out.text
    );
    assert!(
        out.text.contains("the next whole batch is at 6144"),
        "{}",
        out.text
    );
    assert_eq!(marslog(&["dump", file.path()]).code, 1);

    let torn = Temp::new("torn", &log.bytes[..log.bytes.len() - 100]);
    let out = marslog(&["verify", torn.path()]);
    assert_eq!(out.code, 1);
    assert!(out.text.contains("ends within a batch"), "{}", out.text);
    // What was not confirmed is no loss.

    assert_eq!(
        marslog(&["verify", "--durable-end=7168", torn.path()]).code,
        0
    );
    let out = marslog(&["verify", "--durable-end=8192", torn.path()]);
    assert_eq!(out.code, 1);
    assert!(
        out.text.contains("confirmed bytes are lost"),
        "{}",
        out.text
    );

    let mut header = log.bytes.clone();
    header[100] ^= 1;
    let header = Temp::new("header", &header);
    assert_eq!(marslog(&["verify", header.path()]).code, 1);
    assert_eq!(marslog(&["dump", header.path()]).code, 1);
    assert_eq!(marslog(&["stat", header.path()]).code, 1);
}

#[test]
fn what_is_no_log_of_ours_is_told_so() {
    let empty = Temp::new("empty", b"");
    for cmd in ["dump", "verify", "stat"] {
        assert_eq!(marslog(&[cmd, empty.path()]).code, 0, "{cmd}");
    }
    let v1 = Temp::new("v1", &0xa8f7_e908_d917_7957_u64.to_le_bytes());
    let out = marslog(&["verify", v1.path()]);
    assert_eq!(out.code, 2);
    assert!(out.err.contains("format 1"), "{}", out.err);
    let mut newer = log().bytes;
    newer[8] = 3;
    let newer = Temp::new("newer", &newer);
    let out = marslog(&["verify", newer.path(), empty.path()]);
    assert_eq!(out.code, 2);
    assert!(out.err.contains("log format 3"), "{}", out.err);
    assert!(
        out.text.contains("OK"),
        "the second one is looked at nevertheless"
    );
    assert_eq!(marslog(&["verify", "/nonexistent"]).code, 2);
    assert_eq!(marslog(&["verify", "/"]).code, 2);
    assert_eq!(marslog(&["verify"]).code, 2);
}

#[test]
fn logs_bigger_than_memory_windows_are_read() {
    let mut log = Log::new(1, 4096);
    let payload = bytes(1 << 20, 5);
    for i in 0..30 {
        log.append(&[Rec::write(i << 20, payload.clone())]);
    }
    let file = Temp::new("big", &log.bytes);
    let out = marslog(&["verify", file.path()]);
    assert_eq!(out.code, 0);
    assert!(out.text.contains("30 batches"), "{}", out.text);
}
