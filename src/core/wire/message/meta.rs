// SPDX-License-Identifier: GPL-2.0-or-later

//! Messages about the tree and the clocks, port +0.

use core::net::IpAddr;

use kernel::alloc::KVec;

use super::{
    messages,
    numbers,
    rule,
    structs,
    Message,
    MAX_TEXT, //
};
use crate::lamport::LamportTime;
use crate::name::Name;
use crate::num::to_usize;
use crate::wire::schema::{
    begin_field,
    end_field,
    put_field,
    types,
    List,
    OpenField,
    Struct,
    ELEMENT, //
};
use crate::wire::WireError;

/// Longest path of an entry, relative to /mars.
pub const MAX_PATH: usize = 255;
/// Longest value of an entry.
pub const MAX_VALUE: usize = 1023;
/// Longest time that a request may wait at the server.
pub const MAX_WAIT_MS: u32 = 60_000;

structs! {
    /// One entry of the tree. `path` is only checked for its length here: whether a path may stand in the tree, and
    /// whether a peer may set it, is asked of `tree::path` for each entry, so that entries of a newer MARS are skipped.
    struct Entry<'a> {
        /// Relative to /mars.
        1 path: &'a str,
        /// What the link says.
        2 value: &'a [u8],
        /// When it was written.
        3 stamp: LamportTime,
    } where (|m: &Entry<'_>| {
        rule(!m.path.is_empty() && m.path.len() <= MAX_PATH, "path")?;
        rule(is_value(m.value), "value")
    })

    /// Give me the tree if it is not what I have. Answered by one or more [`Tree`], of which the last has `more` false.
    struct GetTree {
        /// Generation that the client has; 0: none.
        1 since: u64,
        /// Instance of the server that gave this generation.
        2 instance: u64,
        /// How long to wait for something newer.
        3 wait_ms: u32,
        /// Lamport time of the client.
        4 now: LamportTime,
    } where (|m: &GetTree| rule(m.wait_ms <= MAX_WAIT_MS, "wait_ms"))

    /// A part of the tree. Written by [`TreeWriter`].
    struct Tree<'a> {
        /// Random number of the server's run: generations of different runs are not comparable.
        1 instance: u64,
        /// What the client has when it has read all parts.
        2 generation: u64,
        /// All entries, not only those that are newer than `since`.
        3 full: bool,
        /// Lamport time of the server.
        4 now: LamportTime,
        /// [`Entry`]s; see [`Tree::entries`].
        5 list: List<'a>,
        /// Another part follows.
        6 more: bool,
    }

    /// Something changed here: come and see. No reply.
    struct Notify {
        /// Lamport time of the sender.
        1 now: LamportTime,
    }

    /// Make me known. Answered by the full [`Tree`].
    struct Join<'a> {
        /// Name of who joins.
        1 host: Name,
        /// Its address for all members.
        2 ip: &'a str,
        /// Lamport time of who joins.
        3 now: LamportTime,
    } where (|m: &Join<'_>| rule(m.ip.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified()), "ip"))

    /// Take this entry; the rules of merging decide. Answered by [`Done`].
    struct PutLink<'a> {
        /// As in [`Entry`].
        1 path: &'a str,
        /// As in [`Entry`].
        2 value: &'a [u8],
        /// As in [`Entry`].
        3 stamp: LamportTime,
        /// Lamport time of the sender.
        4 now: LamportTime,
    } where (|m: &PutLink<'_>| {
        rule(!m.path.is_empty() && m.path.len() <= MAX_PATH, "path")?;
        rule(is_value(m.value), "value")
    })

    /// The request was carried out.
    struct Done {
        /// Lamport time of the server.
        1 now: LamportTime,
        /// Whether anything changed by it.
        2 changed: bool,
    }

    /// Are you there?
    struct Ping {
        /// Lamport time of the client.
        1 now: LamportTime,
    }

    /// Yes.
    struct Pong {
        /// Lamport time of the server.
        1 now: LamportTime,
        /// Real time of the server, to tell the administrator that a clock is wrong.
        2 real: LamportTime,
    }

    /// Do you have contact to that member? For a failover: others see what one host alone can't.
    struct Reach {
        /// The member in question.
        1 host: Name,
    }

    /// Answer to [`Reach`].
    struct Reached<'a> {
        /// What is known.
        1 contact: Contact,
        /// How long ago the last message came from there; 0 if there was none.
        2 age_ms: u64,
        /// What the server would tell its own administrator about the connection.
        3 text: &'a str,
    } where (|m: &Reached<'_>| rule(m.text.len() <= MAX_TEXT, "text"))
}

messages! { GetTree Tree<'a> Notify Join<'a> PutLink<'a> Done Ping Pong Reach Reached<'a> }

numbers! {
    /// Contact to a member.
    Contact: u8, other = Unknown {
        /// Not a member.
        Unknown = 0,
        /// No contact since the module was loaded.
        Never = 1,
        /// There is, or was, contact.
        Seen = 2,
    }
}

impl<'a> Tree<'a> {
    /// The entries of this part. One that is not valid is an error of its own; the others count nevertheless.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry<'a>, WireError>> + 'a {
        self.list.iter()
    }
}

/// A value can be the target of a symlink and one line of text.
fn is_value(value: &[u8]) -> bool {
    value.len() <= MAX_VALUE && !value.iter().any(|c| matches!(c, 0 | b'\n'))
}

/// What stands at the head of each part of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeHead {
    /// See [`Tree::instance`].
    pub instance: u64,
    /// See [`Tree::generation`].
    pub generation: u64,
    /// See [`Tree::full`].
    pub full: bool,
    /// See [`Tree::now`].
    pub now: LamportTime,
}

/// Writes one part of a tree, entry by entry, up to a limit.
#[derive(Debug)]
pub struct TreeWriter<'b> {
    out: &'b mut KVec<u8>,
    start: usize,
    limit: usize,
    list: OpenField,
}

/// Room that is kept for what stands behind the entries.
const TREE_TAIL: usize = 64;

impl<'b> TreeWriter<'b> {
    /// Begins a payload at the end of `out`, of at most about `limit` bytes.
    pub fn new(out: &'b mut KVec<u8>, limit: usize, head: &TreeHead) -> Result<Self, WireError> {
        let start = out.len();
        let limit = limit
            .min(to_usize(crate::wire::frame::MAX_PAYLOAD))
            .saturating_sub(TREE_TAIL);
        match Self::begin(out, head) {
            Ok(list) => Ok(Self {
                out,
                start,
                limit,
                list,
            }),
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }

    fn begin(out: &mut KVec<u8>, head: &TreeHead) -> Result<OpenField, WireError> {
        put_field(out, 1, &head.instance)?;
        put_field(out, 2, &head.generation)?;
        put_field(out, 3, &head.full)?;
        put_field(out, 4, &head.now)?;
        begin_field(out, 5, types::LIST)
    }

    /// Adds an entry. False: there is no room left; nothing was written, the entry belongs into the next part.
    pub fn push(&mut self, entry: &Entry<'_>) -> Result<bool, WireError> {
        let before = self.out.len();
        let result = begin_field(self.out, ELEMENT, types::STRUCT).and_then(|open| {
            entry
                .encode_fields(self.out)
                .and_then(|()| end_field(self.out, open))
        });
        let len = self.out.len().saturating_sub(self.start);
        if result.is_err() || len > self.limit {
            self.out.truncate(before);
        }
        result.map(|()| len <= self.limit)
    }

    /// Ends the part. After an error `out` is as before [`TreeWriter::new`].
    pub fn finish(self, more: bool) -> Result<(), WireError> {
        let Self {
            out, start, list, ..
        } = self;
        let result = end_field(out, list).and_then(|()| put_field(out, 6, &more));
        if result.is_err() {
            out.truncate(start);
        }
        result
    }
}

// The payload of `TreeWriter` is a `Tree`.
const _: fn() = || {
    fn is_message<'a, T: Message<'a>>() {}
    is_message::<Tree<'_>>();
};
