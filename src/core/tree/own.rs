// SPDX-License-Identifier: GPL-2.0-or-later

//! What a host may be told about its own history.
//!
//! A crash may have lost its newest version links, and a peer that still has them says how far a log was durable here: worth
//! knowing, since recovery then insists on that much. But recovery may have gone further meanwhile, without having heard
//! anybody, and if the clock went back its links look older than what the peer has. Then the peer's word is of the past. If it
//! was taken, the link of the next log would be made from it and name an end that is too early: whoever follows would leave out
//! what is behind.

use super::{
    is_tombstone,
    value::ReplayLink,
    Place,
    Tree,
    TreePath, //
};
use crate::{
    defect::defect,
    log::{
        name::parse_numbered,
        VersionLink, //
    },
    name::Name,
};

impl Tree {
    /// Whether `value`, a peer's newer word at `path`, may replace what `me` says there.
    pub(super) fn may_learn(&self, path: &TreePath<'_>, value: &[u8], me: &Name) -> bool {
        let Place::Resource(res, key) = path.place() else {
            return true;
        };
        let of = key.strip_prefix(b"version-").and_then(parse_numbered);
        let Some((number, _)) = of.filter(|(_, host)| host == me) else {
            return true;
        };
        let view = self.resource(&res);
        let own = view.version(number, me);
        if is_tombstone(value) {
            // The link of a log is computed from that of the one before. After a crash this host may begin in an earlier log than
            // others have seen.
            let passed = |r: ReplayLink| r.log.number > number.saturating_add(1);
            return own.is_none()
                || view.replay(me).is_none_or(passed)
                || defect!("forget-own-history");
        }
        let (Some(own), Some(heard)) = (own, VersionLink::parse(value)) else {
            return true;
        };
        let next = number.checked_add(1).and_then(|n| view.version(n, me));
        let is_closed = next.is_some();
        let is_here = || view.replay(me).is_some_and(|r| r.log == own.this.log);
        if defect!("history-goes-back") {
            return true;
        }
        !is_closed
            && if own.this.log == heard.this.log {
                heard.this.pos > own.this.pos
            } else {
                !is_here()
            }
    }
}
