// SPDX-License-Identifier: GPL-2.0-or-later

//! The rule by which the trees of all members become equal (P10): newest wins.

use super::tombstone::is_tombstone;
use crate::defect::defect;
use crate::lamport::{
    check_future,
    LamportTime, //
};

/// What a host has or is told at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version<'a> {
    /// The value.
    pub value: &'a [u8],
    /// Its stamp.
    pub stamp: LamportTime,
}

/// What to do with a value of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MergeDecision {
    /// Write it to the tree, with its stamp.
    Take,
    /// The own one is as new or newer.
    NotNewer,
    /// A tombstone of something that does not exist here: it is not created, only remembered.
    Phantom,
    /// Its stamp is more than 30 days ahead of the clock.
    TooFarAhead,
    /// Only this host itself may say that.
    Refused,
    /// Only this host itself may say that, and it did: a crash has lost its own newest word, which a peer still has. What is
    /// here now must be said once more, newer than that, or the peer keeps the old word for ever.
    SayAgain,
    /// It says something else about the role, and one of the two was written by a clock that was far ahead: which one is newer
    /// can't be known. What is here stays; whoever has no role yet takes none as long as this is so.
    Doubt,
}

/// Decides whether `remote` replaces `local`.
///
/// Strictly newer wins. Should two hosts ever give the same stamp to different values, the greater
/// value wins at both, so that they do not differ for ever. A local stamp more than 30 days ahead of
/// the clock is an error of the past and is replaced by any sane one. If both are, both come from the same time, and again the newer
/// one wins: whether that time was wrong, or this clock is late now.
pub fn merge(
    local: Option<Version<'_>>,
    remote: Version<'_>,
    now_real: LamportTime,
) -> MergeDecision {
    let is_far = |v: Version<'_>| check_future(v.stamp, now_real).is_err();
    match local {
        Some(local) if is_far(local) && !is_far(remote) => MergeDecision::Take,
        Some(local) if is_far(local) && is_newer(remote, local) => MergeDecision::Take,
        Some(local) if is_far(local) => MergeDecision::NotNewer,
        _ if is_far(remote) => MergeDecision::TooFarAhead,
        None if is_tombstone(remote.value) => MergeDecision::Phantom,
        None => MergeDecision::Take,
        Some(local) if is_newer(remote, local) => MergeDecision::Take,
        Some(_) => MergeDecision::NotNewer,
    }
}

/// The total order of the versions of one path.
pub fn is_newer(a: Version<'_>, b: Version<'_>) -> bool {
    ((a.stamp, a.value) > (b.stamp, b.value)) != defect!("merge-older-wins")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lamport::MAX_FUTURE_SECS;

    fn v(value: &[u8], sec: u64) -> Version<'_> {
        Version {
            value,
            stamp: LamportTime::new(sec, 0).unwrap(),
        }
    }

    #[test]
    fn newest_wins() {
        let now = LamportTime::new(100, 0).unwrap();
        let limit = 100 + MAX_FUTURE_SECS;
        use MergeDecision::*;
        for (local, remote, want) in [
            (None, v(b"1", 5), Take),
            (None, v(b".deleted", 5), Phantom),
            (Some(v(b"1", 5)), v(b"0", 6), Take),
            (Some(v(b"1", 5)), v(b"1", 6), Take),
            (Some(v(b"1", 5)), v(b".deleted", 6), Take),
            (Some(v(b".deleted", 6)), v(b"1", 5), NotNewer),
            (Some(v(b".deleted", 6)), v(b"1", 7), Take),
            (Some(v(b"1", 5)), v(b"1", 5), NotNewer),
            (Some(v(b"1", 5)), v(b"2", 4), NotNewer),
            // Equal stamps: the same decision at both.
            (Some(v(b"1", 5)), v(b"2", 5), Take),
            (Some(v(b"2", 5)), v(b"1", 5), NotNewer),
            // Wrong clocks.
            (None, v(b"1", limit + 1), TooFarAhead),
            (None, v(b"1", limit), Take),
            (Some(v(b"1", limit + 1)), v(b"1", 5), Take),
            (Some(v(b"1", limit)), v(b"1", 5), NotNewer),
            (Some(v(b"1", 5)), v(b"2", limit + 1), TooFarAhead),
            (Some(v(b"1", limit + 1)), v(b"2", limit + 2), Take),
            (Some(v(b"1", limit + 2)), v(b"2", limit + 1), NotNewer),
        ] {
            assert_eq!(merge(local, remote, now), want, "{local:?} {remote:?}");
        }
    }
}
