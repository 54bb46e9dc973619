// SPDX-License-Identifier: GPL-2.0-or-later

//! What every command needs: who we are, the tree, the options; and the checks that come before every command.

use crate::cli::Global;
use crate::error::{Failure, Result, Trying};
use crate::out;
use crate::tree::model::{Host, Member, Resource};
use crate::tree::store::Store;
use crate::tree::values;
use mars_core::lamport::LamportTime;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

/// Names that would be misunderstood.
const RESERVED: &[&str] = &[
    "none",
    "all",
    "any",
    "full",
    "empty",
    "undefined",
    "remote",
    "local",
    "localhost",
    "cluster",
];

/// The context of a run.
#[derive(Debug)]
pub struct Ctx {
    /// Global options.
    pub opt: Global,
    /// The tree.
    pub store: Store,
    /// The host on whose behalf we act: this one, or `--host`.
    pub me: String,
    /// The host we run on.
    pub here: String,
}

impl Ctx {
    /// Finds out who we are and where the tree is.
    pub fn new(opt: Global) -> Result<Self> {
        let here = match &opt.nodename {
            Some(name) => name.clone(),
            None => node_name()?,
        };
        check_name("host", &here, false)?;
        let me = opt.host.clone().unwrap_or_else(|| here.clone());
        check_name("host", &me, false)?;
        let root = opt.mars_dir.clone().unwrap_or_else(|| "/mars".into());
        let proc_dir = opt
            .proc_dir
            .clone()
            .unwrap_or_else(|| "/proc/sys/mars".into());
        let store = Store::new(root, proc_dir, opt.dry_run);
        Ok(Self {
            opt,
            store,
            me,
            here,
        })
    }

    /// Whether the tree is a scratch one of a test.
    fn is_scratch(&self) -> bool {
        self.opt.mars_dir.is_some()
    }

    /// Whether we act for another host.
    pub fn is_remote(&self) -> bool {
        self.me != self.here
    }

    /// Refuses `--host`: it is about what is on the disks of this host.
    pub fn need_here(&self, what: &str) -> Result<()> {
        if self.is_remote() {
            return Err(Failure::usage(format!(
                "{what} can't be done on behalf of another host: run it on '{}'",
                self.me
            )));
        }
        Ok(())
    }

    /// Only root may change the tree.
    pub fn need_root(&self) -> Result<()> {
        if self.is_scratch() || nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        Err(Failure::environment("only root may do this").hint("run it with sudo, or as root"))
    }

    /// `/mars` must be there; wrong owner or mode is repaired, because the tree holds the key and all data in flight.
    pub fn need_mars(&self) -> Result<()> {
        let root = self.store.root();
        let meta = fs::metadata(root).map_err(|e| {
            Failure::environment(format!("{} cannot be used: {e}", root.display())).hint(
                "make a file system of its own (ext4 or xfs, a few GiB at least) and mount it there",
            )
        })?;
        if !meta.is_dir() {
            return Err(Failure::environment(format!(
                "{} is no directory",
                root.display()
            )));
        }
        let wrong = meta.uid() != 0 || meta.mode() & 0o777 != 0o700;
        if self.is_scratch() || !wrong {
            return Ok(());
        }
        if self.store.is_dry_run() {
            out::info(format_args!(
                "would repair owner or mode of {}",
                root.display()
            ));
        } else {
            out::warn(format_args!(
                "{}: owner or mode was wrong, repaired to root, 0700",
                root.display()
            ));
            std::os::unix::fs::chown(root, Some(0), Some(0))
                .and_then(|()| fs::set_permissions(root, fs::Permissions::from_mode(0o700)))
                .trying(|| format!("cannot repair {}", root.display()))?;
        }
        Ok(())
    }

    /// For commands that only read.
    pub fn need_mars_readable(&self) -> Result<()> {
        let root = self.store.root();
        fs::read_dir(root).map(drop).map_err(|e| {
            Failure::environment(format!("{} cannot be read: {e}", root.display()))
                .hint("is it mounted? Only root can read it")
        })
    }

    /// `/mars` must be a file system of its own: a full one must not stop the system, nor the system's files fill it.
    pub fn need_mountpoint(&self) -> Result<()> {
        if self.is_scratch() {
            return Ok(());
        }
        let root = self.store.root();
        let parent = root.parent().unwrap_or(root);
        // Not one that a symlink leads to: the module refuses that.
        let dev = |p| fs::symlink_metadata(p).map(|m| m.dev());
        match (dev(root), dev(parent)) {
            (Ok(a), Ok(b)) if a != b => Ok(()),
            _ => Err(Failure::environment(format!(
                "{} is not a mounted file system of its own",
                root.display()
            ))
            .hint("mount it: transaction logs must neither fill nor be stopped by another file system")),
        }
    }

    /// This host must belong to a cluster.
    pub fn need_cluster(&self) -> Result<()> {
        match self.store.get("uuid").as_deref() {
            Some("(any)") | None => Err(Failure::environment(format!(
                "host '{}' does not belong to a cluster: {}/uuid is missing",
                self.here,
                self.store.root().display()
            ))
            .hint("`marsadm create-cluster` on the first host, `marsadm join-cluster HOST` on the others")),
            Some(_) => Ok(()),
        }
    }

    /// The module must be loaded, because `what` needs its reaction.
    pub fn need_module(&self, what: &str) -> Result<()> {
        if self.store.module_loaded() || self.store.is_dry_run() {
            return Ok(());
        }
        Err(Failure::environment(format!(
            "{what} needs the kernel module, which is not loaded"
        ))
        .hint("`modprobe mars`, then try again"))
    }

    /// Whether effects can be waited for.
    pub fn can_wait(&self) -> bool {
        self.store.module_loaded() && !self.store.is_dry_run()
    }

    /// The resource, which must exist.
    pub fn resource(&self, name: &str) -> Result<Resource> {
        check_name("resource", name, self.opt.force)?;
        let found = self.store.resource(name);
        found.filter(|_| self.store.exists(name)).ok_or_else(|| {
            let mut known = self.store.resources();
            known.retain(|r| self.store.exists(r));
            let known = known.join(", ");
            let f = Failure::refused(format!("resource '{name}' does not exist"));
            if known.is_empty() {
                f.hint("`marsadm create-resource` or `marsadm join-resource` first")
            } else {
                f.hint(format!("existing resources: {known}"))
            }
        })
    }

    /// The resource, of which the acting host must be a member.
    pub fn joined(&self, name: &str) -> Result<Resource> {
        let res = self.resource(name)?;
        if res.member(&self.me).is_some() {
            return Ok(res);
        }
        let members: Vec<&str> = res.real_members().map(|m| m.host.as_str()).collect();
        Err(Failure::refused(format!(
            "host '{}' is not a member of resource '{name}' (members: {})",
            self.me,
            if members.is_empty() {
                "none".into()
            } else {
                members.join(", ")
            }
        ))
        .hint(format!("`marsadm join-resource {name} DISK` makes it one")))
    }

    /// Own part of a resource in which this host is known to be a member.
    pub fn own<'a>(&self, res: &'a Resource) -> Result<&'a Member> {
        res.member(&self.me).ok_or_else(|| {
            Failure::refused(format!(
                "host '{}' is no longer a member of '{}'",
                self.me, res.name
            ))
        })
    }

    /// Resolves the resource arguments: lists, `all`, and the name of a device instead of the resource's.
    pub fn resources(&self, args: &[String]) -> Result<Vec<String>> {
        let mut out: Vec<String> = Vec::new();
        for arg in args.iter().filter(|a| !a.is_empty()) {
            if arg == "all" {
                let all = self.store.resources_of(&self.me);
                if all.is_empty() {
                    out::warn(format_args!("host '{}' takes part in no resource", self.me));
                }
                out.extend(all);
            } else {
                check_name("resource", arg, self.opt.force)?;
                out.push(self.by_device(arg).unwrap_or_else(|| arg.clone()));
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        out.retain(|r| seen.insert(r.clone()));
        Ok(out)
    }

    /// The resource whose device here has this name, when there is no resource of that name.
    fn by_device(&self, name: &str) -> Option<String> {
        if self.store.resource(name).is_some() {
            return None;
        }
        let mut hits = self.store.resources_of(&self.me).into_iter().filter(|r| {
            self.store
                .get(&format!("resource-{r}/device-{}", self.me))
                .as_deref()
                == Some(name)
        });
        let hit = hits.next()?;
        if hits.next().is_some() {
            return None;
        }
        out::warn(format_args!(
            "there is no resource '{name}'; taking '{hit}', whose device has this name"
        ));
        Some(hit)
    }

    /// Lamport seconds since a host was heard; `None` if never.
    pub fn silence(&self, host: &Host, now: LamportTime) -> Option<Duration> {
        host.time.map(|t| Duration::from_nanos(now.nanos_since(t)))
    }

    /// Whether a host was heard within the window and has not said goodbye.
    pub fn is_alive(&self, name: &str) -> bool {
        if name == self.here {
            return self.store.module_loaded();
        }
        let host = self.store.host(name);
        let window = Duration::from_secs(self.opt.window);
        host.alive != Some(false)
            && self
                .silence(&host, self.store.now())
                .is_some_and(|s| s <= window)
    }
}

/// The name of this machine as the kernel module sees it.
fn node_name() -> Result<String> {
    let uts = nix::sys::utsname::uname()
        .map_err(|e| Failure::environment(format!("cannot find out the name of this host: {e}")))?;
    let name = uts.nodename().to_string_lossy().into_owned();
    if name.contains('.') {
        let short = name.split('.').next().unwrap_or_default().to_owned();
        return Err(Failure::environment(format!(
            "the name of this host is '{name}': a host name with dots cannot be used, because names stand in file names \
             and must be the same for ever"
        ))
        .hint(format!("`hostnamectl set-hostname {short}`, then try again")));
    }
    Ok(name)
}

/// Checks a name against the grammar, and unless forced, against the reserved words.
pub fn check_name(what: &str, name: &str, force: bool) -> Result<()> {
    if !values::is_name(name) {
        return Err(Failure::usage(format!(
            "'{name}' cannot be the name of a {what}: letters, digits, '_' and (not first) '-', at most 63"
        )));
    }
    let bare = name.trim_matches(|c| c == '(' || c == ')');
    if RESERVED.contains(&bare) && !force {
        return Err(Failure::usage(format!(
            "'{name}' is a reserved word and cannot be the name of a {what}"
        )));
    }
    Ok(())
}

/// Parses a size: bytes, or a number with a suffix, `kmgtp` powers of 1000, `KMGTP` powers of 1024.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        Failure::usage(format!(
            "'{text}' is no size: a number of bytes, or with a suffix kmgtp (1000) or KMGTP (1024)"
        ))
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let suffix = text.get(digits.len()..).unwrap_or_default();
    let factor = match suffix {
        "" => 1,
        s if s.len() == 1 => {
            let lower = s.to_ascii_lowercase();
            let exp = "kmgtp".find(lower.as_str()).ok_or_else(bad)? + 1;
            let base: u64 = if s == lower { 1000 } else { 1024 };
            base.pow(u32::try_from(exp).unwrap_or(0))
        }
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(bad)
}

/// Where commands keep what is only for this host and never replicated.
pub fn private_dir(store: &Store) -> PathBuf {
    store.root().join(".marsadm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_with_both_kinds_of_suffixes() {
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert_eq!(parse_size("4k").unwrap(), 4000);
        assert_eq!(parse_size("4K").unwrap(), 4096);
        assert_eq!(parse_size("2G").unwrap(), 2 << 30);
        assert_eq!(parse_size("1t").unwrap(), 1_000_000_000_000);
        for bad in ["", "G", "4x", "4KB", "-1", "99999999999P"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
