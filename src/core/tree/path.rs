// SPDX-License-Identifier: GPL-2.0-or-later

//! Paths of the tree, relative to `/mars`.
//!
//! Only paths that fit this grammar are read from the disk, sent, or taken from a peer; so nobody can
//! name a file outside the tree, a temporary name, or something whose meaning is not known (P6).

use super::tombstone::is_tombstone;
use crate::defect::defect;
use crate::name::Name;
use core::fmt;

/// Longest path in bytes.
pub const MAX_PATH: usize = 255;

/// Why a text is no path of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathError {
    /// Empty, longer than [`MAX_PATH`], or too many components.
    BadLength,
    /// An empty component, one that starts with a dot, or a character that is not printable ASCII.
    BadComponent,
    /// A host or resource in it is no valid name.
    BadName,
    /// No element of the tree is called like this.
    Unknown,
    /// An element that is only for its own host: `local-*`, `cache-*`, `backup*`, `probe-*`.
    Local,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadLength => "empty, too long or too deep path",
            Self::BadComponent => "invalid character or component in the path",
            Self::BadName => "invalid host or resource name in the path",
            Self::Unknown => "unknown element of the tree",
            Self::Local => "element that is not replicated",
        })
    }
}

/// Directories without a host in their name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shared {
    /// `userspace`: free for administrators.
    Userspace,
    /// `defaults`: for all hosts.
    Defaults,
    /// `todo-global`.
    TodoGlobal,
}

/// Directories of one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PerHost {
    /// `actual-<host>`: what is. Written by that host only.
    Actual,
    /// `todo-<host>`: what is wanted.
    Todo,
    /// `defaults-<host>`.
    Defaults,
}

/// What a path denotes; the rest is the last part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place<'a> {
    /// `uuid`.
    Uuid,
    /// `ips/ip-<host>`.
    Ip(Name),
    /// `userspace/…`, `defaults/…`, `todo-global/…`.
    Global(Shared, &'a [u8]),
    /// `actual-<host>/…`, `defaults-<host>/…`.
    Host(PerHost, Name, &'a [u8]),
    /// `resource-<res>/<key>`.
    Resource(Name, &'a [u8]),
    /// `resource-<res>/userspace/…` and the like.
    ResourceShared(Name, Shared, &'a [u8]),
    /// `resource-<res>/{actual,todo,defaults}-<host>/<key>`.
    ResourceHost(Name, PerHost, Name, &'a [u8]),
}

/// A path that fits the grammar.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TreePath<'a> {
    text: &'a [u8],
    place: Place<'a>,
}

impl<'a> TreePath<'a> {
    /// Checks a path.
    pub fn parse(text: &'a [u8]) -> Result<Self, PathError> {
        if text.is_empty() || text.len() > MAX_PATH {
            return Err(PathError::BadLength);
        }
        let mut depth = 0u32;
        for component in text.split(|&b| b == b'/') {
            check_component(component)?;
            depth = depth.saturating_add(1);
        }
        if depth > 3 {
            return Err(PathError::BadLength);
        }
        let place = parse_place(text)?;
        Ok(Self { text, place })
    }

    /// The path as it was given.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.text
    }

    /// The path as text.
    pub fn as_str(&self) -> &'a str {
        // It is ASCII.
        core::str::from_utf8(self.text).unwrap_or("")
    }

    /// What it denotes.
    pub fn place(&self) -> Place<'a> {
        self.place
    }

    /// The resource it belongs to.
    pub fn resource(&self) -> Option<Name> {
        match self.place {
            Place::Resource(res, _)
            | Place::ResourceShared(res, _, _)
            | Place::ResourceHost(res, _, _, _) => Some(res),
            _ => None,
        }
    }

    /// The host whose state it is (`actual-<host>/…`, anywhere).
    pub fn actual_of(&self) -> Option<Name> {
        match self.place {
            Place::Host(PerHost::Actual, host, _)
            | Place::ResourceHost(_, PerHost::Actual, host, _) => Some(host),
            _ => None,
        }
    }

    /// Path of the directory it lies in, without a slash at the end; empty for `/mars` itself.
    pub fn parent(&self) -> &'a [u8] {
        match split_last(self.text) {
            Some((dir, _)) => dir,
            None => b"",
        }
    }

    /// Its last component.
    pub fn leaf(&self) -> &'a [u8] {
        match split_last(self.text) {
            Some((_, leaf)) => leaf,
            None => self.text,
        }
    }

    /// Whether a peer may set it at the host `me`. All members of a cluster trust each other (they have
    /// the key), but what a host itself is only that host can know, and only it knows what is on its disk. A peer
    /// may have heard more of that than a crash has left here; but then replay, or a sync, has begun again at the
    /// older place, and is writing older data to the disk: the newer place is no longer true.
    ///
    /// That a host is no member any more, and so has no disk, anybody may say.
    pub fn accept_from_peer(&self, me: &Name, value: &[u8]) -> bool {
        self.actual_of() != Some(*me)
            && (!self.is_of_disk(me) || is_tombstone(value) || defect!("peers-know-my-disk"))
    }

    /// Whether it says who has the role, and of how great a device.
    pub fn is_of_role(&self) -> bool {
        matches!(self.place, Place::Resource(_, b"primary" | b"size"))
    }

    /// Whether it says how large a device is.
    pub fn is_of_size(&self) -> bool {
        matches!(self.place, Place::Resource(_, b"size"))
    }

    /// Whether it says what is on the disk of `me`.
    pub fn is_of_disk(&self, me: &Name) -> bool {
        let Place::Resource(_, key) = self.place else {
            return false;
        };
        let keys: [&[u8]; 6] = [
            b"replay-",
            b"syncstatus-",
            b"syncpos-",
            b"syncfrom-",
            b"gap-",
            b"unflushed-",
        ];
        keys.iter()
            .any(|prefix| key.strip_prefix(*prefix) == Some(me.as_bytes()))
    }
}

impl fmt::Display for TreePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TreePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn check_component(component: &[u8]) -> Result<(), PathError> {
    let good = component.first().is_some_and(|&b| b != b'.')
        && component.iter().all(|b| b.is_ascii_graphic());
    if good {
        Ok(())
    } else {
        Err(PathError::BadComponent)
    }
}

fn split_first(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&b| b == b'/')?;
    Some((text.get(..at)?, text.get(at.checked_add(1)?..)?))
}

fn split_last(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().rposition(|&b| b == b'/')?;
    Some((text.get(..at)?, text.get(at.checked_add(1)?..)?))
}

/// Names at the first level, or at the first one of a resource, that are never replicated.
pub fn is_local(component: &[u8]) -> bool {
    [&b"local-"[..], b"cache-", b"backup", b"probe-"]
        .iter()
        .any(|prefix| component.starts_with(prefix))
}

fn parse_place(text: &[u8]) -> Result<Place<'_>, PathError> {
    let Some((first, rest)) = split_first(text) else {
        return match text {
            b"uuid" => Ok(Place::Uuid),
            _ if is_local(text) => Err(PathError::Local),
            _ => Err(PathError::Unknown),
        };
    };
    if is_local(first) {
        return Err(PathError::Local);
    }
    if let Some(res) = first.strip_prefix(b"resource-") {
        return parse_resource(Name::new(res).ok_or(PathError::BadName)?, rest);
    }
    if let Some(shared) = parse_shared(first) {
        // Administrators may make folders in `userspace`.
        return if shared == Shared::Userspace || !rest.contains(&b'/') {
            Ok(Place::Global(shared, rest))
        } else {
            Err(PathError::BadLength)
        };
    }
    if rest.contains(&b'/') {
        return Err(PathError::BadLength);
    }
    if first == b"ips" {
        let host = rest.strip_prefix(b"ip-").ok_or(PathError::Unknown)?;
        return Ok(Place::Ip(Name::new(host).ok_or(PathError::BadName)?));
    }
    match parse_per_host(first)? {
        Some((PerHost::Todo, _)) | None => Err(PathError::Unknown),
        Some((kind, host)) => Ok(Place::Host(kind, host, rest)),
    }
}

fn parse_resource(res: Name, text: &[u8]) -> Result<Place<'_>, PathError> {
    let Some((dir, key)) = split_first(text) else {
        return match text {
            _ if is_local(text) => Err(PathError::Local),
            // A link in place of a folder would lead all that is written there to somewhere else.
            _ if parse_shared(text).is_some() || parse_per_host(text)?.is_some() => {
                Err(PathError::Unknown)
            }
            _ => Ok(Place::Resource(res, text)),
        };
    };
    if is_local(dir) {
        return Err(PathError::Local);
    }
    match parse_shared(dir) {
        Some(Shared::TodoGlobal) => return Err(PathError::Unknown),
        Some(shared) => return Ok(Place::ResourceShared(res, shared, key)),
        None => (),
    }
    match parse_per_host(dir)? {
        Some((kind, host)) => Ok(Place::ResourceHost(res, kind, host, key)),
        None => Err(PathError::Unknown),
    }
}

fn parse_shared(dir: &[u8]) -> Option<Shared> {
    match dir {
        b"userspace" => Some(Shared::Userspace),
        b"defaults" => Some(Shared::Defaults),
        b"todo-global" => Some(Shared::TodoGlobal),
        _ => None,
    }
}

fn parse_per_host(dir: &[u8]) -> Result<Option<(PerHost, Name)>, PathError> {
    for (prefix, kind) in [
        (&b"actual-"[..], PerHost::Actual),
        (b"todo-", PerHost::Todo),
        (b"defaults-", PerHost::Defaults),
    ] {
        if let Some(host) = dir.strip_prefix(prefix) {
            let host = Name::new(host).ok_or(PathError::BadName)?;
            return Ok(Some((kind, host)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn paths_are_understood() {
        let place = |text: &'static str| TreePath::parse(text.as_bytes()).map(|p| p.place());
        let (a, r) = (name("alpha"), name("r0"));
        assert_eq!(place("uuid"), Ok(Place::Uuid));
        assert_eq!(place("ips/ip-alpha"), Ok(Place::Ip(a)));
        assert_eq!(
            place("userspace/x/y"),
            Ok(Place::Global(Shared::Userspace, b"x/y"))
        );
        assert_eq!(
            place("actual-alpha/alive"),
            Ok(Place::Host(PerHost::Actual, a, b"alive"))
        );
        assert_eq!(
            place("resource-r0/replay-alpha"),
            Ok(Place::Resource(r, b"replay-alpha"))
        );
        assert_eq!(
            place("resource-r0/todo-alpha/attach"),
            Ok(Place::ResourceHost(r, PerHost::Todo, a, b"attach"))
        );
        assert_eq!(
            place("resource-r0/userspace/last-primary"),
            Ok(Place::ResourceShared(r, Shared::Userspace, b"last-primary"))
        );
        let p = TreePath::parse(b"resource-r0/todo-alpha/attach").unwrap();
        assert_eq!(p.parent(), b"resource-r0/todo-alpha");
        assert_eq!(p.leaf(), b"attach");
        assert_eq!(p.resource(), Some(r));
        assert_eq!(TreePath::parse(b"uuid").unwrap().parent(), b"");
    }

    #[test]
    fn p6_other_paths_are_refused() {
        for (text, why) in [
            ("", PathError::BadLength),
            ("/uuid", PathError::BadComponent),
            ("uuid/", PathError::BadComponent),
            ("ips//ip-a", PathError::BadComponent),
            ("../etc/passwd", PathError::BadComponent),
            ("userspace/../x", PathError::BadComponent),
            ("userspace/.tmp.1.x", PathError::BadComponent),
            ("userspace/a b", PathError::BadComponent),
            ("userspace/a\n", PathError::BadComponent),
            ("cluster-key", PathError::Unknown),
            ("ips", PathError::Unknown),
            ("ips/alpha", PathError::Unknown),
            ("ips/ip-", PathError::BadName),
            ("ips/ip-a.b", PathError::BadName),
            ("todo-alpha/x", PathError::Unknown),
            ("resource-r0", PathError::Unknown),
            ("resource-/x", PathError::BadName),
            ("resource-r0/foo/x", PathError::Unknown),
            ("resource-r0/userspace", PathError::Unknown),
            ("resource-r0/actual-a", PathError::Unknown),
            ("resource-r0/todo-a", PathError::Unknown),
            ("resource-r0/actual-/x", PathError::BadName),
            ("resource-r0/actual-a/x/y", PathError::BadLength),
            ("actual-a/x/y", PathError::BadLength),
            ("cache-alpha/invalid", PathError::Local),
            ("backup", PathError::Local),
            ("backups-2026/uuid", PathError::Local),
            ("resource-r0/local-alpha/x", PathError::Local),
        ] {
            assert_eq!(TreePath::parse(text.as_bytes()), Err(why), "{text}");
        }
        let long = format!("userspace/{}", "x".repeat(245));
        assert!(TreePath::parse(long.as_bytes()).is_ok());
        let long = format!("userspace/{}", "x".repeat(246));
        assert_eq!(TreePath::parse(long.as_bytes()), Err(PathError::BadLength));
    }

    #[test]
    fn what_a_host_is_only_that_host_says() {
        let me = name("alpha");
        let accept = |text: &str| {
            TreePath::parse(text.as_bytes())
                .unwrap()
                .accept_from_peer(&me, b"1")
        };
        assert!(!accept("actual-alpha/alive"));
        assert!(!accept("resource-r0/actual-alpha/is-primary"));
        assert!(accept("actual-beta/alive"));
        assert!(accept("resource-r0/actual-beta/is-primary"));
        assert!(accept("resource-r0/todo-alpha/attach"));
        assert!(accept("ips/ip-alpha"));
        for key in [
            "replay",
            "syncstatus",
            "syncpos",
            "syncfrom",
            "gap",
            "unflushed",
        ] {
            let own = std::format!("resource-r0/{key}-alpha");
            assert!(!accept(&own), "{own}");
            assert!(accept(&std::format!("resource-r0/{key}-beta")));
            let gone = TreePath::parse(own.as_bytes()).unwrap();
            assert!(gone.accept_from_peer(&me, b".deleted"));
        }
        assert!(accept("resource-r0/version-000000001-alpha"));
    }
}
