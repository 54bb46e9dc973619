// SPDX-License-Identifier: GPL-2.0-or-later

//! What a host may be told about its own history, and what it says again after its clock was far ahead.
//!
//! A crash may have lost its newest version links, and a peer that still has them says how far a log was durable here: worth
//! knowing, since recovery then insists on that much. But recovery may have gone further meanwhile, without having heard
//! anybody, and if the clock went back its links look older than what the peer has. Then the peer's word is of the past. If it
//! was taken, the link of the next log would be made from it and name an end that is too early: whoever follows would leave out
//! what is behind.
//!
//! Stamps from a time when a clock was more than 30 days ahead are refused by all who were not there. What only one host says, that host
//! says again once its clock is right. Who shall be primary is nobody's own word: there a far stamp does not lose against a sane
//! one from before, or a forced failover would be undone by whoever was down meanwhile.

use super::{
    is_tombstone,
    merge::{
        MergeDecision,
        Version, //
    },
    value::ReplayLink,
    Entry,
    Place,
    Tree,
    TreePath, //
};
use crate::{
    defect::defect,
    lamport::{
        check_future,
        LamportTime, //
    },
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

    /// Since when, by the wall clock, that is what it is: since the module was loaded, or somebody set the clock. What has a far stamp
    /// here was written before that.
    pub fn set_right_since(&mut self, time: LamportTime) {
        self.right_since = time;
    }

    /// What `decision` becomes where the role is concerned.
    pub(super) fn judge_role(
        &self,
        decision: MergeDecision,
        path: &TreePath<'_>,
        local: Option<Version<'_>>,
        remote: Version<'_>,
    ) -> MergeDecision {
        if !path.is_of_role() {
            return decision;
        }
        let Some(local) = local else {
            // Nothing is here that could be wrong.
            return decision;
        };
        let same = local.value == remote.value;
        match decision {
            MergeDecision::TooFarAhead if !same => MergeDecision::Doubt,
            // The stamp that is here is a far one. What was written when it could not be any more is newer.
            MergeDecision::Take if local.stamp > remote.stamp => {
                if remote.stamp >= self.right_since {
                    MergeDecision::Take
                } else if same {
                    MergeDecision::NotNewer
                } else {
                    MergeDecision::Doubt
                }
            }
            d => d,
        }
    }

    /// What `me` alone says, and what is said of roles, where others refuse that since the stamp is from a time when a clock was far
    /// ahead. Only to be said again when the clock is known to be right, and the peers were heard: a crash may have left less than
    /// what they know. And of a role only by the running primary.
    pub fn unheard<'a>(
        &'a self,
        me: &'a Name,
        now_real: LamportTime,
    ) -> impl Iterator<Item = Entry<'a>> + 'a {
        self.iter().filter(move |e| {
            check_future(e.stamp, now_real).is_err()
                && TreePath::parse(e.path).is_ok_and(|p| is_own(&p, me) || p.is_of_role())
        })
    }
}

/// Whether only `me` says that. Not `data-<me>`: its stamp is the identity of the membership.
fn is_own(path: &TreePath<'_>, me: &Name) -> bool {
    let version = match path.place() {
        Place::Resource(_, key) => key.strip_prefix(b"version-").and_then(parse_numbered),
        _ => None,
    };
    path.actual_of() == Some(*me)
        || path.is_of_disk(me)
        || version.is_some_and(|(_, host)| host == *me)
}
