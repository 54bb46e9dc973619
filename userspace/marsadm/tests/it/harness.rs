// SPDX-License-Identifier: GPL-2.0-or-later

//! A scratch cluster: tree, disks, kernels, and the tool as each of the hosts.

use crate::kernel::{Behaviour, Kernel, Tree};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Size of the disks.
pub const SIZE: u64 = 10_485_760;

pub struct Cluster {
    dir: TempDir,
    pub tree: Tree,
    kernel: Option<Kernel>,
}

/// What a run of the tool left.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Failed with this code, and says all of these words.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "'{word}' is missing in {self:#?}");
        }
        self
    }
}

impl Cluster {
    /// An empty `/mars`; no module, no cluster.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mars")).unwrap();
        for disk in ["hosta", "hostb", "hostc"] {
            let file = fs::File::create(dir.path().join(disk)).unwrap();
            file.set_len(SIZE).unwrap();
        }
        let tree = Tree(dir.path().join("mars"));
        Self {
            dir,
            tree,
            kernel: None,
        }
    }

    /// Loads the modules of these hosts.
    pub fn load(&mut self, hosts: &[&str]) {
        let proc_dir = self.dir.path().join("proc");
        fs::create_dir(&proc_dir).unwrap();
        fs::write(proc_dir.join("trigger"), "").unwrap();
        fs::write(proc_dir.join("version"), "fake 1\n").unwrap();
        self.kernel = Some(Kernel::start(&self.tree.0, hosts));
    }

    /// A cluster of these hosts with their modules.
    pub fn of(hosts: &[&str]) -> Self {
        let mut c = Self::bare();
        c.adm(hosts[0], "create-cluster --ip 10.0.0.1").ok();
        for (i, host) in hosts.iter().enumerate().skip(1) {
            c.tree
                .set(&format!("ips/ip-{host}"), &format!("10.0.0.{}", i + 1));
        }
        c.load(hosts);
        c
    }

    /// A resource `mydata`, primary on `hosta`, replica on `hostb`.
    pub fn pair() -> Self {
        let c = Self::of(&["hosta", "hostb"]);
        c.create();
        c.adm(
            "hostb",
            &format!("join-resource mydata {}", c.disk("hostb")),
        )
        .ok();
        c.settle("hostb");
        c
    }

    pub fn create(&self) {
        self.adm(
            "hosta",
            &format!("create-resource mydata {}", self.disk("hosta")),
        )
        .ok();
    }

    /// Waits until a replica is synced and at the primary's position.
    #[track_caller]
    pub fn settle(&self, host: &str) {
        self.until(&format!("{host} up to date"), || {
            let synced = self.get(&format!("syncstatus-{host}")) == self.get("size");
            let primary = self.get("primary").filter(|p| p != "(none)");
            synced
                && primary.is_none_or(|p| {
                    self.get(&format!("replay-{host}")) == self.get(&format!("replay-{p}"))
                })
        });
    }

    /// The disks of both hosts become larger.
    pub fn grow(&self, bytes: u64) {
        for host in ["hosta", "hostb"] {
            let disk = OpenOptions::new().write(true).open(self.disk(host));
            disk.unwrap().set_len(SIZE + bytes).unwrap();
        }
        let size = (SIZE + bytes).to_string();
        self.until("actsize", || {
            ["hosta", "hostb"]
                .iter()
                .all(|h| self.get(&format!("actsize-{h}")).as_ref() == Some(&size))
        });
    }

    pub fn disk(&self, host: &str) -> String {
        self.dir.path().join(host).to_str().unwrap().to_owned()
    }

    pub fn kernel(&self) -> MutexGuard<'_, Behaviour> {
        self.kernel.as_ref().unwrap().behaviour.lock().unwrap()
    }

    /// Opens or closes the device of `mydata`.
    pub fn open(&self, host: &str, count: u64) {
        self.kernel()
            .open
            .insert(("mydata".into(), host.into()), count);
        self.until("open-count", || {
            self.get(&format!("actual-{host}/open-count")) == Some(count.to_string())
        });
    }

    /// A link of `mydata`.
    pub fn get(&self, path: &str) -> Option<String> {
        self.tree.get(&format!("resource-mydata/{path}"))
    }

    /// Raw value, tombstones included.
    pub fn raw(&self, path: &str) -> Option<String> {
        let path = self.tree.0.join(format!("resource-mydata/{path}"));
        Some(fs::read_link(path).ok()?.to_str()?.to_owned())
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.tree.0.join(format!("resource-mydata/{path}"))
    }

    /// An application writes: so many bytes come into the log.
    pub fn write(&self, host: &str, number: u32, bytes: usize) {
        let path = self.path(&format!("log-{number:09}-{host}"));
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(&vec![7; bytes]).unwrap();
        let end = file.metadata().unwrap().len();
        let want = format!("log-{number:09}-{host},{end}");
        self.until("log-end", || {
            self.get(&format!("actual-{host}/log-end")).as_deref() == Some(&want)
        });
    }

    /// Polls for at most ten seconds.
    #[track_caller]
    pub fn until(&self, what: &str, f: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !f() {
            assert!(Instant::now() < end, "not reached: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn command(&self, host: &str, line: &str) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_marsadm"));
        c.args(["--timeout", "20", "--window", "4"])
            .args(line.split_whitespace())
            .env("MARSADM_MARS_DIR", &self.tree.0)
            .env("MARSADM_PROC_DIR", self.dir.path().join("proc"))
            .env("MARSADM_NODENAME", host)
            .env("MARSADM_FILE_DISKS", "true")
            .env_remove("MARS_CLUSTER_KEY")
            .env_remove("MARSADM_INJECT");
        c
    }

    /// Runs the tool as a host.
    pub fn adm(&self, host: &str, line: &str) -> Ran {
        ran(self.command(host, line).output().unwrap())
    }

    /// Runs the tool with something on its standard input.
    pub fn adm_with(&self, host: &str, line: &str, input: &str) -> Ran {
        let mut child = self
            .command(host, line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        ran(child.wait_with_output().unwrap())
    }

    /// Runs the tool and kills it at the beginning of a step.
    pub fn killed(&self, host: &str, line: &str, step: &str) -> Ran {
        ran(self
            .command(host, line)
            .env("MARSADM_INJECT", step)
            .output()
            .unwrap())
    }

    pub fn json(&self, host: &str) -> serde_json::Value {
        let ran = self.adm(host, "view --json").ok();
        serde_json::from_str(&ran.out).unwrap()
    }
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
