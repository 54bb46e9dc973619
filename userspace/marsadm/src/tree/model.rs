// SPDX-License-Identifier: GPL-2.0-or-later

//! A snapshot of the tree in types: the cluster, its hosts, a resource with its members.
//!
//! Reading never fails: what is missing or malformed is `None`, because a half-made or damaged resource must still be
//! visible and repairable.

use super::store::{Entry, Store, TOMBSTONE};
use super::values::{self, LogName, Position, VersionValue};
use mars_core::dirty::DroppedLink;
use mars_core::lamport::LamportTime;
use mars_core::succession::{is_synced, is_void_growth, parse_sync_source, whole_part};
use std::collections::BTreeMap;

/// Value of the `primary` link when nobody shall be primary.
pub const NOBODY: &str = "(none)";

/// Global facts about a host, published by its module.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Name.
    pub name: String,
    /// Address; `None` for a host that is no member of the cluster (any more).
    pub ip: Option<String>,
    /// Lamport time of its last sign of life that has arrived here.
    pub time: Option<LamportTime>,
    /// Whether its module is loaded; `Some(false)` when it said so while being unloaded.
    pub alive: Option<bool>,
    /// Version of the module.
    pub module: Option<String>,
    /// Version of the tool that was last used there.
    pub marsadm: Option<String>,
    /// Emergency level 0..4 of its `/mars`.
    pub emergency: u64,
    /// Free and total space of its `/mars` in GiB, minus what is reserved.
    pub space_gib: Option<(i64, i64)>,
    /// Messages `msg-*` that are not OK: key and text.
    pub messages: Vec<(String, String)>,
}

/// The four switches of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Todo {
    /// Use the disk.
    pub attach: bool,
    /// Fetch logs.
    pub fetch: bool,
    /// Replay logs.
    pub replay: bool,
    /// Sync the disk.
    pub sync: bool,
}

/// What a member's module says about itself.
#[derive(Clone, Debug, Default)]
pub struct Actual {
    /// Whether it said anything at all.
    pub present: bool,
    /// The disk is in use.
    pub attached: bool,
    /// A replay is running.
    pub replaying: bool,
    /// A fetch is running.
    pub fetching: bool,
    /// A sync is running.
    pub syncing: bool,
    /// The device exists.
    pub primary: bool,
    /// The device exists (as told by the device itself).
    pub if_on: bool,
    /// Logging has stopped for lack of space.
    pub emergency: bool,
    /// The disk has what is in no log, because of that, and it is not over.
    pub gap: bool,
    /// The clock of a member is too far ahead for what it says to be taken.
    pub late: bool,
    /// Time of the newest word about who is designated that the module has acted upon.
    pub primary_seen: Option<LamportTime>,
    /// How often the device is opened.
    pub open_count: u64,
    /// Who holds it open.
    pub holder: Option<String>,
    /// Requests in flight.
    pub flying: u64,
    /// Result of the replay; negative is an error.
    pub replay_code: i64,
    /// Error of the backing disk, negative errno or 0.
    pub disk_error: i64,
    /// Word and reason of the engine.
    pub state: Option<(String, String)>,
    /// When it said so.
    pub state_stamp: LamportTime,
    /// Bytes of the disk that replicas may have to compare, because they were written without a log.
    pub dirty: Option<u64>,
    /// Logs that were deleted although members needed them.
    pub dropped: Option<DroppedLink>,
    /// Bytes that the primary still holds in memory.
    pub buffered: Option<u64>,
    /// Messages `msg-err-*` that are not OK: key and text.
    pub errors: Vec<(String, String)>,
}

/// A member or guest of a resource.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Host name.
    pub host: String,
    /// Backing disk; `None` for a guest.
    pub disk: Option<String>,
    /// Name of the device below `/dev/mars`.
    pub device: Option<String>,
    /// Switches.
    pub todo: Todo,
    /// Facts.
    pub actual: Actual,
    /// Replay (secondary) or write-back (primary) position.
    pub replay: Option<Position>,
    /// Durable end of the newest log (primary).
    pub log_end: Option<Position>,
    /// Contiguous local end of the log being fetched (secondary).
    pub fetch_pos: Option<Position>,
    /// Synced bytes of the running sync.
    pub sync_pos_bytes: Option<u64>,
    /// Synced bytes, durable; equal to the size when the sync is complete.
    pub syncstatus: Option<u64>,
    /// The source of its sync, or how much of it was complete.
    pub syncfrom: Option<String>,
    /// A flush of its disk has failed: the disk may show what it does not have.
    pub unflushed: bool,
    /// Number of the log in which it began to follow: earlier ones were never there, although its history names the last of them.
    pub began: Option<u32>,
    /// Position that replay must reach before the disk is consistent.
    pub syncpos: Option<Position>,
    /// Physical size of the disk.
    pub actsize: Option<u64>,
    /// Version links by log number.
    pub versions: BTreeMap<u32, VersionValue>,
    /// Emergency limit in percent.
    pub emergency_limit: Option<u64>,
    /// MiB that its logs may occupy.
    pub space_limit: Option<u64>,
}

/// A regular log file here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Number and creator.
    pub name: LogName,
    /// Size of the file; may be larger than its durable end.
    pub size: u64,
    /// Time of its last change.
    pub changed: LamportTime,
}

/// A resource.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// Name.
    pub name: String,
    /// Logical size.
    pub size: Option<u64>,
    /// Unit in which the device is addressed, in bytes.
    pub block_size: Option<u64>,
    /// The `primary` link as it stands; `None` if missing.
    pub primary: Option<String>,
    /// When it was written.
    pub primary_stamp: LamportTime,
    /// Highest log number ever.
    pub maxnr: Option<u64>,
    /// Members and guests by host name.
    pub members: BTreeMap<String, Member>,
    /// Log files in the local directory, sorted by number.
    pub logs: Vec<LogFile>,
    /// Log numbers that are deleted (tombstones), for information.
    pub deleted_logs: usize,
    /// The last and the previous designated primary.
    pub last_primary: Option<String>,
}

impl Store {
    /// Names of all hosts with an address.
    pub fn hosts(&self) -> Vec<String> {
        self.list("ips")
            .iter()
            .filter_map(|n| n.strip_prefix("ip-"))
            .filter(|h| self.get(&format!("ips/ip-{h}")).is_some())
            .map(str::to_owned)
            .collect()
    }

    /// Facts about a host.
    pub fn host(&self, name: &str) -> Host {
        let key = |k: &str| self.get(&format!("actual-{name}/{k}"));
        Host {
            name: name.to_owned(),
            ip: self.get(&format!("ips/ip-{name}")),
            time: key("time").and_then(|t| LamportTime::parse(t.as_bytes())),
            alive: key("alive").map(|v| v == "1"),
            module: key("module").or_else(|| key("buildtag")),
            marsadm: key("marsadm-version"),
            emergency: key("emergency").and_then(|v| v.parse().ok()).unwrap_or(0),
            space_gib: key("rest-space")
                .and_then(|v| v.parse().ok())
                .zip(key("total-space").and_then(|v| v.parse().ok())),
            messages: self.messages(&format!("actual-{name}")),
        }
    }

    /// Messages `msg-*` in a directory that are not OK: key and text.
    fn messages(&self, dir: &str) -> Vec<(String, String)> {
        self.list(dir)
            .into_iter()
            .filter_map(|name| {
                let key = name.strip_prefix("msg-")?.to_owned();
                let text = values::message_text(&self.get(&format!("{dir}/{name}"))?)?;
                Some((key, text))
            })
            .collect()
    }

    /// Names of all resources that exist in some form: `resource-*` directories that are not mere tombstones.
    pub fn resources(&self) -> Vec<String> {
        self.list("")
            .iter()
            .filter_map(|n| n.strip_prefix("resource-"))
            .filter(|r| self.entry(&format!("resource-{r}")) == Some(Entry::Dir))
            .map(str::to_owned)
            .collect()
    }

    /// Whether a resource is more than the shell that a deleted one leaves.
    pub fn exists(&self, name: &str) -> bool {
        let dir = format!("resource-{name}");
        self.list(&dir).iter().any(|file| {
            let live = match self.entry(&format!("{dir}/{file}")) {
                Some(Entry::Link(value, _)) => value != TOMBSTONE,
                Some(Entry::File(..)) => true,
                _ => false,
            };
            live && file != "maxnr"
        })
    }

    /// Names of the resources that a host takes part in, as member or guest.
    pub fn resources_of(&self, host: &str) -> Vec<String> {
        let mut names = self.resources();
        names.retain(|r| {
            ["device", "data"]
                .iter()
                .any(|k| self.get(&format!("resource-{r}/{k}-{host}")).is_some())
        });
        names
    }

    /// A snapshot of a resource; `None` if there is no such directory.
    pub fn resource(&self, name: &str) -> Option<Resource> {
        let dir = format!("resource-{name}");
        if self.entry(&dir) != Some(Entry::Dir) {
            return None;
        }
        let (primary, primary_stamp) = self.link(&format!("{dir}/primary")).unzip();
        let mut res = Resource {
            name: name.to_owned(),
            size: self.get_u64(&format!("{dir}/size")),
            block_size: self.get_u64(&format!("{dir}/block-size")),
            primary,
            primary_stamp: primary_stamp.unwrap_or(LamportTime::ZERO),
            maxnr: self.get_u64(&format!("{dir}/maxnr")),
            last_primary: self.get(&format!("{dir}/userspace/last-primary")),
            ..Resource::default()
        };
        let names = self.list(&dir);
        for file in &names {
            for prefix in ["data-", "device-"] {
                let Some(host) = file.strip_prefix(prefix) else {
                    continue;
                };
                if self.get(&format!("{dir}/{file}")).is_some() && values::is_name(host) {
                    res.members
                        .entry(host.to_owned())
                        .or_insert_with(|| self.member(&dir, host));
                }
            }
            if let Some(log) = LogName::parse(file.as_bytes()) {
                match self.entry(&format!("{dir}/{file}")) {
                    Some(Entry::File(size, changed)) => {
                        res.logs.push(LogFile {
                            name: log,
                            size,
                            changed,
                        });
                    }
                    Some(_) => res.deleted_logs += 1,
                    None => {}
                }
            }
        }
        for file in &names {
            let Some((number, host)) = values::parse_version_name(file) else {
                continue;
            };
            let Some(member) = res.members.get_mut(host.as_str()) else {
                continue;
            };
            let value = self.get(&format!("{dir}/{file}"));
            if let Some(v) = value
                .as_deref()
                .and_then(|v| VersionValue::parse(number, v))
            {
                member.versions.insert(number, v);
            }
        }
        Some(res)
    }

    fn member(&self, dir: &str, host: &str) -> Member {
        let own = |k: &str| self.get(&format!("{dir}/{k}-{host}"));
        let actual = |k: &str| self.get(&format!("{dir}/actual-{host}/{k}"));
        let number =
            |k: &str| actual(k).and_then(|v| v.split(',').next()?.trim().parse::<i64>().ok());
        let flag = |k: &str| actual(k).is_some_and(|v| values::is_on(&v));
        let todo = |k: &str| self.get_flag(&format!("{dir}/todo-{host}/{k}"));
        let mut errors = self.messages(&format!("{dir}/actual-{host}"));
        errors.retain(|(key, _)| key.starts_with("err-"));
        Member {
            host: host.to_owned(),
            disk: own("data"),
            device: own("device"),
            todo: Todo {
                attach: todo("attach"),
                fetch: todo("connect"),
                replay: todo("allow-replay"),
                sync: todo("sync"),
            },
            actual: Actual {
                present: actual("is-attached").is_some() || actual("state").is_some(),
                attached: flag("is-attached"),
                replaying: flag("is-replaying"),
                fetching: flag("is-copying"),
                syncing: flag("is-syncing"),
                primary: flag("is-primary"),
                if_on: flag("if-on"),
                emergency: flag("is-emergency") || flag("has-emergency"),
                gap: flag("has-gap"),
                late: flag("is-late"),
                primary_seen: actual("primary-seen").and_then(|v| LamportTime::parse(v.as_bytes())),
                open_count: number("open-count")
                    .and_then(|n| u64::try_from(n).ok())
                    .unwrap_or(0),
                holder: actual("device-holder").filter(|v| !v.trim().is_empty() && v != NOBODY),
                flying: number("if-flying")
                    .and_then(|n| u64::try_from(n).ok())
                    .unwrap_or(0),
                replay_code: number("replay-code").unwrap_or(0),
                disk_error: number("disk-error").unwrap_or(0),
                state: actual("state").map(|v| values::split_state(&v)),
                state_stamp: self
                    .link(&format!("{dir}/actual-{host}/state"))
                    .map_or(LamportTime::ZERO, |(_, stamp)| stamp),
                dirty: actual("dirty-bytes").and_then(|v| v.parse().ok()),
                dropped: actual("dropped-logs").and_then(|v| DroppedLink::parse(v.as_bytes())),
                buffered: actual("write-back").and_then(|v| v.parse().ok()),
                errors,
            },
            replay: own("replay").as_deref().and_then(Position::parse_replay),
            log_end: actual("log-end").as_deref().and_then(Position::parse),
            fetch_pos: actual("fetch-pos").as_deref().and_then(Position::parse),
            sync_pos_bytes: actual("sync-pos").and_then(|v| v.parse().ok()),
            syncstatus: own("syncstatus").and_then(|v| v.parse().ok()),
            syncfrom: own("syncfrom"),
            unflushed: own("unflushed").is_some_and(|v| v != "0"),
            began: own("skip-check")
                .and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()),
            syncpos: own("syncpos").as_deref().and_then(Position::parse_replay),
            actsize: own("actsize").and_then(|v| v.parse().ok()),
            versions: BTreeMap::new(),
            emergency_limit: self.get_u64(&format!("{dir}/todo-{host}/emergency-limit")),
            space_limit: self.get_u64(&format!("{dir}/todo-{host}/space-limit")),
        }
    }
}

impl Resource {
    /// Path of something of the resource, relative to the root.
    pub fn path(&self, rest: &str) -> String {
        format!("resource-{}/{rest}", self.name)
    }

    /// The designated primary; `None` if nobody is.
    pub fn designated(&self) -> Option<&str> {
        self.primary.as_deref().filter(|p| *p != NOBODY)
    }

    /// A member (not a guest).
    pub fn member(&self, host: &str) -> Option<&Member> {
        self.members.get(host).filter(|m| m.disk.is_some())
    }

    /// The members, without guests.
    pub fn real_members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|m| m.disk.is_some())
    }

    /// Hosts that are primary at this moment, as far as is known here.
    pub fn actual_primaries(&self) -> Vec<&Member> {
        self.real_members().filter(|m| m.actual.primary).collect()
    }

    /// The log that a host is writing: its newest own one.
    pub fn newest_own_log(&self, host: &str) -> Option<&LogFile> {
        self.logs
            .iter()
            .rev()
            .find(|l| l.name.creator.as_str() == host)
    }

    /// The highest log number that is known in any form.
    pub fn highest_number(&self) -> u32 {
        let logs = self.logs.iter().map(|l| l.name.number);
        let versions = self
            .members
            .values()
            .filter_map(|m| m.versions.keys().last().copied());
        let replays = self
            .members
            .values()
            .filter_map(|m| m.replay.as_ref().map(|p| p.log.number));
        logs.chain(versions).chain(replays).max().unwrap_or(0)
    }
}

impl Member {
    /// Whether the disk holds all of the primary's data of some moment: the sync is complete and replay has passed the
    /// position that it was complete at.
    pub fn is_consistent(&self, size: Option<u64>) -> bool {
        let from = self.syncfrom.as_ref().map(String::as_bytes);
        if is_void_growth(self.syncstatus, size, from) {
            return true;
        }
        self.is_synced(size)
            && match (&self.syncpos, &self.replay) {
                (Some(needed), Some(replay)) => replay >= needed,
                _ => true,
            }
    }

    /// Whether the sync is complete.
    pub fn is_synced(&self, size: Option<u64>) -> bool {
        let from = self.syncfrom.as_ref().map(String::as_bytes);
        is_synced(self.syncstatus, size, from)
    }

    /// Whether a sync is to fill what the resource has grown by.
    pub fn is_growing(&self) -> bool {
        let from = self.syncfrom.as_ref().map(String::as_bytes);
        let source = from.filter(|v| parse_sync_source(v).is_some());
        let whole = source
            .zip(self.syncstatus)
            .and_then(|(v, done)| whole_part(v, done));
        whole.is_some()
    }

    /// While what the resource has grown by is copied: what the disk had of it before, which is a good replica by itself.
    pub fn size_before_resize(&self, size: Option<u64>) -> Option<u64> {
        // What is here already may make all of it good, as soon as it is replayed.
        let reaches = |need: &Position| {
            let mut have = self.replay.iter().chain(&self.fetch_pos);
            have.any(|have| have >= need)
        };
        let reachable = self.syncpos.as_ref().is_some_and(reaches);
        if self.is_consistent(size) || self.is_synced(size) && reachable {
            return None;
        }
        let whole = whole_part(self.syncfrom.as_ref()?.as_bytes(), self.syncstatus?);
        whole.filter(|whole| size.is_some_and(|size| *whole < size))
    }

    /// The engine's word for what it does, empty if unknown.
    pub fn state_word(&self) -> &str {
        self.actual.state.as_ref().map_or("", |(word, _)| word)
    }

    /// The engine's reason, if it needs an administrator.
    pub fn state_reason(&self) -> Option<&str> {
        let (_, reason) = self.actual.state.as_ref()?;
        (!reason.is_empty()).then_some(reason)
    }
}
