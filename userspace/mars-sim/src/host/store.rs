// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/store.rs`: the links on the disk and their mirror in memory.

use super::{Host, Merged};
use crate::{
    defects::on,
    exec::{Ns, MS},
    fs::{Node, Res},
};
use mars_core::{
    lamport::LamportTime,
    log::LogName,
    succession::is_passed,
    tree::{
        is_tombstone,
        merge::{merge, MergeDecision, Version},
        value::ReplayLink,
        TreePath,
    },
};

/// A link on the wire.
pub type Wire = (String, String, LamportTime);

impl Host {
    /// Writes a link, if its value is another one, with a stamp newer than everything seen.
    pub async fn set(&self, path: &str, value: &str) -> Res<()> {
        {
            let tree = self.tree.borrow();
            let old = tree.entry(path.as_bytes());
            let deleted = is_tombstone(value.as_bytes());
            if old.is_some_and(|e| e.value == value.as_bytes()) || (old.is_none() && deleted) {
                return Ok(());
            }
        }
        let checked = TreePath::parse(path.as_bytes()).expect("a path of the engine");
        let writer = self.writer.lock(&self.ex).await;
        let now = self.now();
        let trusted = self.is_trusted();
        let stamp = self.tree.borrow().stamp_for(path.as_bytes(), now, trusted);
        self.write_link(path, value, stamp).await?;
        let r = self
            .tree
            .borrow_mut()
            .apply_local(&checked, value.as_bytes(), stamp);
        r.expect("memory");
        drop(writer);
        self.tree_changed.notify(&self.ex);
        Ok(())
    }

    async fn write_link(&self, path: &str, value: &str, stamp: LamportTime) -> Res<()> {
        self.fs_io().await?;
        let m = self.machine();
        m.fs.borrow_mut().put_link(path, value, stamp)
    }

    /// Takes what a peer says about one link, if the rules allow it.
    pub async fn merge_one(&self, path: &str, value: &str, stamp: LamportTime) -> Res<Merged> {
        let Ok(checked) = TreePath::parse(path.as_bytes()) else {
            return Ok(Merged::No);
        };
        let log = LogName::parse(checked.leaf());
        let writer = self.writer.lock(&self.ex).await;
        if let Some(log) = log {
            if !is_tombstone(value.as_bytes()) || !self.may_delete(&log) {
                return Ok(Merged::No);
            }
        }
        let real = self.real();
        let decision = {
            let mut tree = self.tree.borrow_mut();
            tree.set_right_since(self.right_since());
            match tree
                .decide_remote(&checked, value.as_bytes(), stamp, real, &self.me)
                .expect("memory")
            {
                MergeDecision::Phantom if log.is_some() => MergeDecision::Take,
                MergeDecision::Phantom => tree
                    .apply_remote(&checked, value.as_bytes(), stamp, real, &self.me)
                    .expect("memory"),
                d => d,
            }
        };
        if decision == MergeDecision::SayAgain {
            self.saw(stamp);
            self.say_again(&checked, None).await?;
            drop(writer);
            self.tree_changed.notify(&self.ex);
            return Ok(Merged::News);
        }
        if decision == MergeDecision::Doubt {
            return Ok(Merged::Doubt);
        }
        if decision != MergeDecision::Take {
            return Ok(Merged::No);
        }
        {
            let fs = self.machine().fs.borrow();
            if let Some((old, t)) = fs.link(path) {
                let local = Version {
                    value: old.as_bytes(),
                    stamp: t,
                };
                let remote = Version {
                    value: value.as_bytes(),
                    stamp,
                };
                if merge(Some(local), remote, real) != MergeDecision::Take {
                    return Ok(Merged::No);
                }
            }
        }
        self.saw(stamp);
        if let Some(log) = log {
            if !on("delete-before-the-link") {
                self.sync_dir().await?;
            }
            self.about_to_delete(&log);
        }
        self.write_link(path, value, stamp).await?;
        {
            let mut tree = self.tree.borrow_mut();
            if log.is_some() {
                let _ = tree.apply_local(&checked, value.as_bytes(), stamp);
            } else {
                let _ = tree.apply_remote(&checked, value.as_bytes(), stamp, real, &self.me);
            }
        }
        drop(writer);
        self.tree_changed.notify(&self.ex);
        Ok(Merged::News)
    }

    /// Writes what this host says of itself once more, with a new stamp; `writer` is held.
    async fn say_again(&self, path: &TreePath<'_>, stamp: Option<LamportTime>) -> Res<()> {
        let own = {
            let tree = self.tree.borrow();
            let own = tree.get(path.as_bytes()).unwrap_or(b".deleted");
            String::from_utf8_lossy(own).into_owned()
        };
        let (now, trusted) = (self.now(), self.is_trusted());
        let given = self.tree.borrow().stamp_for(path.as_bytes(), now, trusted);
        let stamp = stamp.unwrap_or(given);
        let old = self.tree.borrow().entry(path.as_bytes()).map(|e| e.stamp);
        self.write_link(path.as_str(), &own, stamp).await?;
        if let Some(old) = old.filter(|_| path.is_of_size()) {
            self.sim.truth.borrow_mut().restamp(old, stamp);
        }
        let mut tree = self.tree.borrow_mut();
        let _ = tree.apply_local(path, own.as_bytes(), stamp);
        Ok(())
    }

    /// Says again what others refuse since the clock of this host was far ahead, and is known to be right now.
    pub async fn say_unheard(&self) -> Res<()> {
        if !self.is_trusted() || !self.has_heard_all() {
            return Ok(());
        }
        let list: Vec<String> = {
            let tree = self.tree.borrow();
            let own = tree.unheard(&self.me, self.real());
            own.map(|e| String::from_utf8_lossy(e.path).into_owned())
                .collect()
        };
        let leads = || self.attached.get().1 && self.designated() == Some(self.me);
        for path in &list {
            let checked = TreePath::parse(path.as_bytes()).expect("a path of the tree");
            if checked.is_of_role() && !leads() {
                continue;
            }
            let writer = self.writer.lock(&self.ex).await;
            // What is said of a role was decided before the clock was right.
            let stamp = checked.is_of_role().then(|| self.right_since());
            self.say_again(&checked, stamp).await?;
            drop(writer);
        }
        if !list.is_empty() {
            self.say(|| format!("says {} links again", list.len()));
            self.tree_changed.notify(&self.ex);
        }
        Ok(())
    }

    /// A running primary knows that it is one: where it is in doubt which word about that is newer, its own is.
    pub async fn insist(&self, path: &str) -> Res<()> {
        let writer = self.writer.lock(&self.ex).await;
        if self.attached.get().1 && self.designated() == Some(self.me) && self.is_trusted() {
            self.say(|| format!("insists on {path}"));
            let checked = TreePath::parse(path.as_bytes()).expect("a path of the tree");
            self.say_again(&checked, None).await?;
            drop(writer);
            self.tree_changed.notify(&self.ex);
        }
        Ok(())
    }

    fn may_delete(&self, log: &LogName) -> bool {
        match self.get(&format!("replay-{}", self.me)) {
            Some(v) => ReplayLink::parse(v.as_bytes()).is_some_and(|l| is_passed(log.number, &l)),
            None => true,
        }
    }

    /// Deleting is right only if the disk, as a power cut would leave it, does not need the log.
    fn about_to_delete(&self, log: &LogName) {
        self.say(|| format!("deletes {log}"));
    }

    /// Reads the links from the disk: the tools write there.
    pub async fn scan(&self) -> bool {
        self.tree.borrow_mut().begin_scan(b"").expect("memory");
        let names: Vec<String> = {
            let fs = self.machine().fs.borrow();
            fs.names().keys().cloned().collect()
        };
        for (n, name) in names.iter().enumerate() {
            // A walk takes its time, and other threads write meanwhile.
            if n % 64 == 63 {
                self.io().await;
            }
            let fs = self.machine().fs.borrow();
            let Some(Node::Link(value, stamp)) = fs.node(name) else {
                continue;
            };
            if let Ok(path) = TreePath::parse(name.as_bytes()) {
                let mut tree = self.tree.borrow_mut();
                let _ = tree.observe(&path, value.as_bytes(), *stamp);
            }
        }
        let summary = self.tree.borrow_mut().end_scan();
        let _ = self
            .clock
            .borrow_mut()
            .advance_nonstrict(summary.newest, self.real());
        let changed = summary.changed + summary.removed > 0;
        if changed {
            self.tree_changed.notify(&self.ex);
        }
        changed
    }

    /// Waits until something is newer than `generation`.
    pub async fn wait_newer(&self, generation: u64, ms: u64) -> bool {
        if self.tree.borrow().generation() == generation {
            let ns: Ns = ms * MS;
            self.tree_changed.wait(&self.ex, ns).await;
        }
        self.tree.borrow().generation() != generation
    }

    /// What changed since, for a peer; and the generation that it then has.
    pub fn changes(&self, since: u64) -> (Vec<Wire>, u64) {
        let tree = self.tree.borrow();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let list = tree
            .changed_since(since)
            .map(|e| (text(e.path), text(e.value), e.stamp))
            .collect();
        (list, tree.generation())
    }

    /// Random number of this run of the module.
    pub fn instance(&self) -> u64 {
        self.instance
    }
}
