// SPDX-License-Identifier: GPL-2.0-or-later

//! Reading the tree by what is meant, not by paths.

use super::{
    path::MAX_PATH,
    value::{
        parse_ip,
        parse_switch,
        LogPosLink,
        ReplayLink,
        VersionLink, //
    },
    Entry,
    Tree, //
};
use crate::{
    log::name::parse_numbered,
    name::Name,
    text::{
        parse_i64,
        parse_u64,
        Text, //
    },
};
use core::{
    fmt,
    net::IpAddr, //
};

/// A path that is being made.
pub type PathText = Text<MAX_PATH>;

/// `resource-<res>/<rest>`; `None` if it is too long.
pub fn resource_path(res: &Name, rest: impl fmt::Display) -> Option<PathText> {
    PathText::from_display(&format_args!("resource-{res}/{rest}"))
}

/// `actual-<host>/<key>`; `None` if it is too long.
pub fn actual_path(host: &Name, key: &str) -> Option<PathText> {
    PathText::from_display(&format_args!("actual-{host}/{key}"))
}

impl Tree {
    /// Entry at a path that is printed.
    fn at(&self, path: fmt::Arguments<'_>) -> Option<Entry<'_>> {
        self.entry(PathText::from_display(&path)?.as_bytes())
    }

    /// The identity of the cluster.
    pub fn uuid(&self) -> Option<&[u8]> {
        self.get(b"uuid")
    }

    /// The members of the cluster: hosts with an address. In alphabetical order.
    pub fn hosts(&self) -> impl Iterator<Item = Name> + '_ {
        const PREFIX: &[u8] = b"ips/ip-";
        self.with_prefix(PREFIX)
            .filter(|e| e.live().is_some())
            .filter_map(|e| Name::new(e.path.strip_prefix(PREFIX)?))
    }

    /// The address of a host.
    pub fn ip(&self, host: &Name) -> Option<IpAddr> {
        parse_ip(self.at(format_args!("ips/ip-{host}"))?.live()?)
    }

    /// `actual-<host>/<key>`, with its stamp.
    pub fn actual(&self, host: &Name, key: &str) -> Option<Entry<'_>> {
        self.at(format_args!("actual-{host}/{key}"))
            .filter(|e| e.live().is_some())
    }

    /// The resources that have any entry that is no tombstone, in alphabetical order.
    pub fn resources(&self) -> Resources<'_> {
        Resources {
            tree: self,
            last: None,
        }
    }

    /// A resource.
    pub fn resource(&self, name: &Name) -> ResourceView<'_> {
        ResourceView {
            tree: self,
            name: *name,
        }
    }
}

/// See [`Tree::resources`].
pub struct Resources<'a> {
    tree: &'a Tree,
    last: Option<Name>,
}

impl Iterator for Resources<'_> {
    type Item = Name;

    fn next(&mut self) -> Option<Name> {
        const PREFIX: &[u8] = b"resource-";
        // '0' comes directly after '/': this skips all of the last resource.
        let from = match &self.last {
            None => PathText::from_bytes(PREFIX)?,
            Some(last) => PathText::from_display(&format_args!("resource-{last}0"))?,
        };
        let start = self.tree.find(from.as_bytes()).unwrap_or_else(|at| at);
        for &slot in self.tree.by_path.get(start..)? {
            let path = &*self.tree.node(slot)?.path;
            let rest = path.strip_prefix(PREFIX)?;
            let live = self.tree.visible(slot).is_some_and(|e| e.live().is_some());
            let name = Name::new(rest.split(|&b| b == b'/').next()?);
            if live && name.is_some() && name != self.last {
                self.last = name;
                return name;
            }
        }
        None
    }
}

/// Reads the entries of one resource.
#[derive(Clone, Copy)]
pub struct ResourceView<'a> {
    tree: &'a Tree,
    name: Name,
}

impl<'a> ResourceView<'a> {
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The entry `resource-<res>/<key>`, unless it is a tombstone.
    pub fn entry(&self, key: impl fmt::Display) -> Option<Entry<'a>> {
        self.tree
            .entry(resource_path(&self.name, key)?.as_bytes())
            .filter(|e| e.live().is_some())
    }

    /// The value of `resource-<res>/<key>`.
    pub fn get(&self, key: impl fmt::Display) -> Option<&'a [u8]> {
        Some(self.entry(key)?.value)
    }

    fn number(&self, key: impl fmt::Display) -> Option<u64> {
        parse_u64(self.get(key)?)
    }

    /// The designated primary; `None` also for `(none)`.
    pub fn primary(&self) -> Option<Name> {
        Name::new(self.get("primary")?)
    }

    /// Its logical size in bytes.
    pub fn size(&self) -> Option<u64> {
        self.number("size")
    }

    /// The highest log number ever.
    pub fn maxnr(&self) -> Option<u32> {
        u32::try_from(self.number("maxnr")?).ok()
    }

    /// Path of the backing disk of a member.
    pub fn data(&self, host: &Name) -> Option<&'a [u8]> {
        self.get(format_args!("data-{host}"))
    }

    /// Name of the device at a member or guest.
    pub fn device(&self, host: &Name) -> Option<&'a [u8]> {
        self.get(format_args!("device-{host}"))
    }

    /// Whether a host has a backing disk for it.
    pub fn is_member(&self, host: &Name) -> bool {
        self.data(host).is_some()
    }

    /// The members, in alphabetical order.
    pub fn members(&self) -> impl Iterator<Item = Name> + 'a {
        Keys::new(self, "data-").filter_map(|(key, _)| Name::new(key))
    }

    /// `replay-<host>`: what is on its disk.
    pub fn replay(&self, host: &Name) -> Option<ReplayLink> {
        ReplayLink::parse(self.get(format_args!("replay-{host}"))?)
    }

    /// `syncpos-<host>`: what replay must reach before the disk is consistent after a sync.
    pub fn syncpos(&self, host: &Name) -> Option<ReplayLink> {
        ReplayLink::parse(self.get(format_args!("syncpos-{host}"))?)
    }

    /// `syncstatus-<host>`: bytes that are synced.
    pub fn syncstatus(&self, host: &Name) -> Option<u64> {
        self.number(format_args!("syncstatus-{host}"))
    }

    /// `actsize-<host>`: size of the backing disk.
    pub fn actsize(&self, host: &Name) -> Option<u64> {
        self.number(format_args!("actsize-{host}"))
    }

    /// `skip-check-<host>`: up to this number a jump in the version links is permitted.
    pub fn skip_check(&self, host: &Name) -> Option<u32> {
        let value = self.get(format_args!("skip-check-{host}"))?;
        let end = value
            .iter()
            .position(|b| !b.is_ascii_digit())
            .unwrap_or(value.len());
        u32::try_from(parse_u64(value.get(..end)?)?).ok()
    }

    /// The value of `version-<number>-<host>`, to be chained to.
    pub fn version_value(&self, number: u32, host: &Name) -> Option<&'a [u8]> {
        self.get(format_args!("version-{number:09}-{host}"))
    }

    /// The version link of a number.
    pub fn version(&self, number: u32, host: &Name) -> Option<VersionLink> {
        VersionLink::parse(self.version_value(number, host)?)
    }

    /// The version links of a host by ascending number; those that can't be understood are left out.
    pub fn versions(&self, host: &Name) -> impl Iterator<Item = (u32, VersionLink)> + 'a {
        let host = *host;
        Keys::new(self, "version-").filter_map(move |(key, value)| {
            let (number, of) = parse_numbered(key)?;
            (of == host).then_some(())?;
            Some((number, VersionLink::parse(value)?))
        })
    }

    /// `todo-<host>/<key>`: attach, connect, sync, allow-replay. What is missing is off.
    pub fn switch(&self, host: &Name, key: &str) -> bool {
        self.get(format_args!("todo-{host}/{key}"))
            .is_some_and(parse_switch)
    }

    /// `todo-<host>/<key>` as a number.
    pub fn todo_number(&self, host: &Name, key: &str) -> Option<i64> {
        parse_i64(self.get(format_args!("todo-{host}/{key}"))?)
    }

    /// `actual-<host>/<key>`, with its stamp.
    pub fn actual(&self, host: &Name, key: &str) -> Option<Entry<'a>> {
        self.entry(format_args!("actual-{host}/{key}"))
    }

    /// `actual-<host>/<key>` as an indicator. What is missing is off.
    pub fn indicator(&self, host: &Name, key: &str) -> bool {
        self.actual(host, key)
            .is_some_and(|e| parse_switch(e.value))
    }

    /// `actual-<host>/log-end`: durable end of the newest log of a primary.
    pub fn log_end(&self, host: &Name) -> Option<LogPosLink> {
        LogPosLink::parse(self.actual(host, "log-end")?.value)
    }

    /// `actual-<host>/fetch-pos`: how far a secondary has the logs.
    pub fn fetch_pos(&self, host: &Name) -> Option<LogPosLink> {
        LogPosLink::parse(self.actual(host, "fetch-pos")?.value)
    }
}

/// Keys of a resource that start with some text: what follows that text, and the value.
struct Keys<'a> {
    tree: &'a Tree,
    prefix: PathText,
    at: usize,
}

impl<'a> Keys<'a> {
    fn new(view: &ResourceView<'a>, key: &str) -> Self {
        // It fits: names have at most 63 bytes.
        let prefix = resource_path(&view.name, key).unwrap_or_default();
        Self {
            tree: view.tree,
            at: view.tree.find(prefix.as_bytes()).unwrap_or_else(|at| at),
            prefix,
        }
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let tree = self.tree;
        loop {
            let slot = *tree.by_path.get(self.at)?;
            let path: &'a [u8] = &tree.node(slot)?.path;
            let rest = path.strip_prefix(self.prefix.as_bytes())?;
            self.at = self.at.checked_add(1)?;
            if let Some(value) = tree.visible(slot).and_then(|e| e.live()) {
                return Some((rest, value));
            }
        }
    }
}
