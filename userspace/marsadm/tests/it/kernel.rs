// SPDX-License-Identifier: GPL-2.0-or-later

//! A stand-in for the kernels of all hosts, which share one tree (so replication is instantaneous). It reacts to wishes
//! and publishes facts, as far as the tool depends on it.

use mars_core::dirty::DroppedLink;
use mars_core::log::LogName;
use mars_core::name::Name;
use mars_core::split_brain::{compare, Relation};
use mars_core::tree::value::{LogPosLink, ReplayLink, VersionLink};
use mars_host_digest::HostDigest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a test can make the kernels do.
#[derive(Default)]
pub struct Behaviour {
    /// (resource, host): how often the device is open.
    pub open: BTreeMap<(String, String), u64>,
    /// Hosts that are gone.
    pub silent: BTreeSet<String>,
    /// Hosts that do nothing but say that they live.
    pub lazy: BTreeSet<String>,
    /// (resource, host): the primary does not log.
    pub emergency: BTreeSet<(String, String)>,
    /// Syncs do not come to their end.
    pub hold_sync: bool,
    /// (resource, host): word and reason instead of the real state.
    pub state: BTreeMap<(String, String), String>,
}

pub struct Kernel {
    pub behaviour: Arc<Mutex<Behaviour>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kernel {
    pub fn start(root: &Path, hosts: &[&str]) -> Self {
        let behaviour = Arc::<Mutex<Behaviour>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (b, s) = (behaviour.clone(), stop.clone());
        let tree = Tree(root.to_owned());
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let thread = std::thread::spawn(move || {
            while !s.load(Ordering::Relaxed) {
                round(&tree, &hosts, &b.lock().unwrap());
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        Self {
            behaviour,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reading and writing links.
pub struct Tree(pub PathBuf);

impl Tree {
    pub fn get(&self, path: &str) -> Option<String> {
        let value = fs::read_link(self.0.join(path)).ok()?.to_str()?.to_owned();
        (value != ".deleted").then_some(value)
    }

    fn on(&self, path: &str) -> bool {
        self.get(path).as_deref() == Some("1")
    }

    pub fn set(&self, path: &str, value: &str) {
        if self.get(path).as_deref() == Some(value) {
            return;
        }
        let target = self.0.join(path);
        let dir = target.parent().unwrap();
        fs::create_dir_all(dir).unwrap();
        let temp = dir.join(format!(
            ".tmp-{}",
            target.file_name().unwrap().to_str().unwrap()
        ));
        let _ = fs::remove_file(&temp);
        symlink(value, &temp).unwrap();
        // A directory may have been replaced, or a link deleted, while we looked.
        let _ = fs::rename(&temp, &target);
    }

    fn list(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.join(dir))
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|n| !n.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    fn size(&self, path: &str) -> Option<u64> {
        let meta = fs::symlink_metadata(self.0.join(path)).ok()?;
        meta.is_file().then_some(meta.len())
    }
}

pub fn now() -> String {
    let t = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("{}.{:09}", t.as_secs(), t.subsec_nanos())
}

fn round(tree: &Tree, hosts: &[String], b: &Behaviour) {
    for host in hosts.iter().filter(|h| !b.silent.contains(*h)) {
        if tree.get(&format!("ips/ip-{host}")).is_none() {
            continue;
        }
        for (key, value) in [
            ("alive", "1"),
            ("tree", "0.1"),
            ("emergency", "0"),
            ("module", "fake"),
        ] {
            tree.set(&format!("actual-{host}/{key}"), value);
        }
        tree.set(&format!("actual-{host}/rest-space"), "14");
        tree.set(&format!("actual-{host}/total-space"), "15");
        tree.set(&format!("actual-{host}/time"), &now());
        if b.lazy.contains(host) {
            continue;
        }
        for res in tree
            .list("")
            .iter()
            .filter_map(|n| n.strip_prefix("resource-"))
        {
            Member { tree, res, host, b }.work();
        }
    }
}

struct Member<'a> {
    tree: &'a Tree,
    res: &'a str,
    host: &'a str,
    b: &'a Behaviour,
}

impl Member<'_> {
    fn path(&self, rest: &str) -> String {
        format!("resource-{}/{rest}", self.res)
    }

    fn own(&self, key: &str) -> Option<String> {
        self.tree.get(&self.path(&format!("{key}-{}", self.host)))
    }

    fn todo(&self, key: &str) -> bool {
        self.tree
            .on(&self.path(&format!("todo-{}/{key}", self.host)))
    }

    fn actual(&self, key: &str, value: &str) {
        self.tree
            .set(&self.path(&format!("actual-{}/{key}", self.host)), value);
    }

    fn is(&self, key: &str) -> bool {
        self.tree
            .on(&self.path(&format!("actual-{}/{key}", self.host)))
    }

    fn flag(&self, key: &str, on: bool) {
        self.actual(key, if on { "1" } else { "0" });
    }

    fn work(&self) {
        let Some(disk) = self.own("data").filter(|_| self.own("device").is_some()) else {
            return;
        };
        let Some(size) = self
            .tree
            .get(&self.path("size"))
            .and_then(|s| s.parse::<u64>().ok())
        else {
            return;
        };
        let attach = self.todo("attach");
        let key = (self.res.to_owned(), self.host.to_owned());
        let open = self.b.open.get(&key).copied().unwrap_or(0);
        let designated = self.tree.get(&self.path("primary")).as_deref() == Some(self.host);
        let was_primary = self.is("is-primary");
        if let Ok(meta) = fs::metadata(&disk) {
            self.tree.set(
                &self.path(&format!("actsize-{}", self.host)),
                &meta.len().to_string(),
            );
        }
        self.actual("open-count", &open.to_string());
        self.actual(
            "device-holder",
            if open > 0 {
                "mounted ext4; opened by mount(412)"
            } else {
                " "
            },
        );
        self.flag("is-emergency", self.b.emergency.contains(&key));
        for (name, value) in [
            ("has-emergency", "0"),
            ("replay-code", "0"),
            ("disk-error", "0"),
            ("if-flying", "0"),
            ("is-copying", "0"),
        ] {
            self.actual(name, value);
        }
        let synced = self
            .own("syncstatus")
            .and_then(|s| s.parse::<u64>().ok())
            .is_some_and(|n| n >= size);
        let primary = (designated && attach && synced) || (was_primary && open > 0);
        if primary && !was_primary {
            self.start_log();
        }
        if primary {
            self.log();
        } else if attach {
            self.follow(synced, size);
        }
        self.flag("is-primary", primary);
        self.flag("if-on", primary);
        self.flag("is-attached", attach || primary);
        self.flag(
            "is-replaying",
            attach && !primary && self.todo("allow-replay"),
        );
        self.flag(
            "is-syncing",
            attach && !primary && !synced && self.todo("sync"),
        );
        let word = if primary {
            "primary"
        } else if attach {
            "secondary"
        } else {
            "detached"
        };
        self.actual("state", self.b.state.get(&key).map_or(word, String::as_str));
    }

    fn replay(&self) -> Option<ReplayLink> {
        ReplayLink::parse(self.own("replay")?.as_bytes())
    }

    fn set_replay(&self, log: LogName, pos: u64) {
        let link = ReplayLink { log, pos, rest: 0 };
        self.tree.set(
            &self.path(&format!("replay-{}", self.host)),
            &link.to_string(),
        );
    }

    fn version_of(&self, host: &str, number: u32) -> Option<String> {
        self.tree
            .get(&self.path(&format!("version-{number:09}-{host}")))
    }

    fn set_version(&self, log: LogName, pos: u64) {
        let before = log
            .number
            .checked_sub(1)
            .and_then(|n| self.version_of(self.host, n))
            .unwrap_or_default();
        if let Some(link) = VersionLink::compute::<HostDigest>(log, pos, before.as_bytes()) {
            self.tree.set(
                &self.path(&format!("version-{:09}-{}", log.number, self.host)),
                &link.to_string(),
            );
        }
    }

    fn me(&self) -> Name {
        Name::new(self.host.as_bytes()).unwrap()
    }

    /// Becoming primary: the next log, unless the own one is still empty.
    fn start_log(&self) {
        let Some(replay) = self.replay() else { return };
        let size = self.tree.size(&self.path(&replay.log.to_string()));
        if replay.log.creator == self.me() && size == Some(0) {
            return;
        }
        let next = LogName {
            number: replay.log.number + 1,
            creator: self.me(),
        };
        fs::write(self.tree.0.join(self.path(&next.to_string())), b"").unwrap();
        self.set_replay(next, 0);
        self.set_version(next, 0);
    }

    /// Being primary: everything in the log is written back at once; an empty next log is taken.
    fn log(&self) {
        let Some(replay) = self.replay() else { return };
        let log = replay.log;
        let size = self.tree.size(&self.path(&log.to_string())).unwrap_or(0);
        self.set_version(log, size);
        let dropped = self
            .tree
            .get(&self.path(&format!("todo-{}/drop-logs", self.host)))
            .and_then(|n| n.parse().ok())
            .filter(|n| (1..=log.number).contains(n));
        if let Some(number) = dropped {
            let to = LogName { number, ..log };
            let link = DroppedLink { to, from: 1 };
            self.actual("dropped-logs", &link.to_string());
        }
        let next = LogName {
            number: log.number + 1,
            creator: self.me(),
        };
        if self.tree.size(&self.path(&next.to_string())).is_some() {
            self.set_replay(next, 0);
            self.set_version(next, 0);
            self.actual("log-end", &LogPosLink { log: next, pos: 0 }.to_string());
        } else {
            self.set_replay(log, size);
            self.actual("log-end", &LogPosLink { log, pos: size }.to_string());
        }
    }

    fn chain(&self, host: &str) -> Vec<VersionLink> {
        (0..1000)
            .filter_map(|n| VersionLink::parse(self.version_of(host, n)?.as_bytes()))
            .collect()
    }

    /// Being secondary: sync, then take over the history of who is primary.
    fn follow(&self, synced: bool, size: u64) {
        let Some(primary) = self.tree.get(&self.path("primary")) else {
            return;
        };
        let leader = if primary == "(none)" {
            match self.tree.get(&self.path("userspace/last-primary")) {
                Some(last) => last,
                None => return,
            }
        } else {
            primary
        };
        if leader == self.host || self.own("replay").is_none() {
            return;
        }
        let Some(theirs) = self.tree.get(&self.path(&format!("replay-{leader}"))) else {
            return;
        };
        if !synced {
            if self.todo("sync") && !self.b.hold_sync {
                self.tree
                    .set(&self.path(&format!("syncpos-{}", self.host)), &theirs);
                self.tree.set(
                    &self.path(&format!("syncstatus-{}", self.host)),
                    &size.to_string(),
                );
            }
            return;
        }
        if !self.todo("connect") || !self.todo("allow-replay") || self.b.silent.contains(&leader) {
            return;
        }
        if matches!(
            compare(&self.chain(self.host), &self.chain(&leader)),
            Relation::Diverged(_)
        ) {
            return;
        }
        let from = self.replay().map_or(0, |r| r.log.number.saturating_sub(1));
        for number in from..1000 {
            if let Some(version) = self.version_of(&leader, number) {
                self.tree.set(
                    &self.path(&format!("version-{number:09}-{}", self.host)),
                    &version,
                );
            }
        }
        self.tree
            .set(&self.path(&format!("replay-{}", self.host)), &theirs);
        if let Some(r) = ReplayLink::parse(theirs.as_bytes()) {
            self.actual(
                "fetch-pos",
                &LogPosLink {
                    log: r.log,
                    pos: r.pos,
                }
                .to_string(),
            );
        }
    }
}
