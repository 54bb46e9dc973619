// SPDX-License-Identifier: GPL-2.0-or-later

//! What a member of a resource is to do next: `observe → decide`.
//!
//! The engine gathers an [`Observed`] (wishes from the tree, facts from disk and device), asks [`decide`] and carries the
//! [`Step`] out; then it observes again. All knowledge of which role follows which is here.

use crate::defect::defect;

/// Who the tree says shall be primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Designated {
    /// This host.
    Me,
    /// Another member.
    Other,
    /// Nobody (`(none)`, or no link at all).
    Nobody,
}

/// What this host is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The backing disk is not open.
    Detached,
    /// The disk is open; logs are fetched and replayed, or synced, as the switches say.
    Secondary,
    /// `/dev/mars/<resource>` exists.
    Primary,
}

/// Wishes and facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observed {
    /// The module is being unloaded, or this host is no member any more.
    pub stopping: bool,
    /// `todo-<me>/attach`.
    pub attach: bool,
    /// `todo-<me>/connect`.
    pub fetch: bool,
    /// `todo-<me>/allow-replay`.
    pub replay: bool,
    /// `todo-<me>/sync`.
    pub sync: bool,
    /// The `primary` link.
    pub designated: Designated,
    /// Somebody holds `/dev/mars/<resource>` open.
    pub opened: bool,
    /// The backing disk has been filled by a sync (`succession::is_synced`).
    pub synced: bool,
    /// The replay position has reached `syncpos-<me>`, so that the disk is a state which the primary once had.
    pub consistent: bool,
    /// This host's history and that of another member exclude each other.
    pub split_brain: bool,
    /// The peers were heard since the module was loaded, or had long enough to be: a former primary that comes back
    /// must first learn whether somebody else was designated meanwhile.
    pub settled: bool,
    /// Recovery has just found a local log that is damaged, or not there. Other members may have it.
    pub damaged: bool,
}

/// What a secondary's workers may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Fetch logs from other members.
    pub fetch: bool,
    /// Replay fetched logs.
    pub replay: bool,
    /// Copy differing blocks from the primary; excludes replay.
    pub sync: bool,
}

/// The next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Keep the role as it is.
    Stay,
    /// Open the backing disk and become secondary.
    Attach,
    /// Stop all workers, write back what is buffered, close the disk.
    Detach,
    /// Replay what the local logs hold, start a new log, create the device.
    BecomePrimary,
    /// Remove the device, write everything back, close the log, become secondary.
    LeavePrimary,
    /// Let exactly these workers run.
    Follow(Work),
    /// This host is designated, but its disk is not a state which the primary ever had; say so and wait.
    RefuseInconsistent(Work),
    /// This host is designated, but a log that it needs is damaged. Let it be fetched again, as far as it was durable here
    /// once, before recovery is tried again.
    Repair(Work),
    /// The device shall go, but is held open; say who holds it and wait.
    WaitForClose,
}

/// Decides the next step of a member in `role`.
pub fn decide(role: Role, o: &Observed) -> Step {
    let wanted = o.attach && !o.stopping;
    match role {
        Role::Detached if wanted => Step::Attach,
        Role::Detached => Step::Stay,
        Role::Primary if wanted && o.designated == Designated::Me => Step::Stay,
        // The module can't be unloaded while a device is open, and `detach` is refused by marsadm: nothing is forced here.
        Role::Primary if o.opened => Step::WaitForClose,
        Role::Primary => Step::LeavePrimary,
        Role::Secondary if !wanted => Step::Detach,
        Role::Secondary if o.designated == Designated::Me => {
            if !o.settled {
                Step::Stay
            } else if o.synced && o.consistent && o.damaged {
                Step::Repair(Work {
                    replay: false,
                    ..work(o)
                })
            } else if o.synced && o.consistent || defect!("primary-inconsistent") {
                Step::BecomePrimary
            } else {
                Step::RefuseInconsistent(work(o))
            }
        }
        Role::Secondary => Step::Follow(work(o)),
    }
}

fn work(o: &Observed) -> Work {
    // Sync and replay write to the same disk, so they exclude each other; logs may be fetched meanwhile.
    // After a split brain nothing moves until `invalidate` (P5).
    let sync = !o.synced && o.sync && !o.split_brain && o.designated == Designated::Other;
    Work {
        fetch: o.fetch && !o.split_brain,
        replay: o.replay && (o.synced || defect!("sync-and-replay")) && !o.split_brain,
        sync,
    }
}

/// Disks with greater blocks, in bytes, are not supported.
pub const MOST_BLOCK: u32 = 4096;

/// The unit in which `/dev/mars/<resource>` is addressed, in bytes, over a disk whose own unit is `disk`; `None` if that is
/// greater than what the resource has (`said`: its link `block-size`), since records of other hosts could not be written then, or than a
/// page, since buffers could not be had when memory is short.
///
/// Without a link, or with one that makes no sense, the disk decides.
pub fn block_size(disk: u32, said: Option<u64>) -> Option<u32> {
    let said = said
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| n.is_power_of_two() && (512..=MOST_BLOCK).contains(n));
    match said {
        _ if disk > MOST_BLOCK => None,
        Some(n) if disk > n => None,
        Some(n) => Some(n),
        None => Some(disk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_disks_of_different_blocks_when_asked_then_the_device_has_those_of_the_resource() {
        assert_eq!(block_size(512, Some(512)), Some(512));
        assert_eq!(block_size(512, Some(4096)), Some(4096));
        assert_eq!(block_size(4096, Some(4096)), Some(4096));
        assert_eq!(block_size(4096, Some(512)), None);
        // 16 KiB: neither the disk nor the resource.
        assert_eq!(block_size(16384, None), None);
        assert_eq!(block_size(16384, Some(16384)), None);
        for senseless in [None, Some(0), Some(513), Some(1 << 20), Some(u64::MAX)] {
            assert_eq!(block_size(4096, senseless), Some(4096));
        }
    }

    const UP: Observed = Observed {
        stopping: false,
        attach: true,
        fetch: true,
        replay: true,
        sync: true,
        designated: Designated::Other,
        opened: false,
        synced: true,
        consistent: true,
        split_brain: false,
        settled: true,
        damaged: false,
    };

    fn all() -> impl Iterator<Item = (Role, Observed)> {
        (0u32..3 * 3 * 2048).map(|n| {
            let bit = |i: u32| ((n / 9) >> i) & 1 == 1;
            let o = Observed {
                stopping: bit(0),
                attach: bit(1),
                fetch: bit(2),
                replay: bit(3),
                sync: bit(4),
                opened: bit(5),
                synced: bit(6),
                consistent: bit(7),
                split_brain: bit(8),
                settled: bit(9),
                damaged: bit(10),
                designated: [Designated::Me, Designated::Other, Designated::Nobody]
                    [usize::try_from(n % 3).unwrap()],
            };
            let role = [Role::Detached, Role::Secondary, Role::Primary];
            (role[usize::try_from(n / 3 % 3).unwrap()], o)
        })
    }

    #[test]
    fn given_an_open_device_when_anything_is_wanted_then_it_is_never_taken_away() {
        for (role, o) in all() {
            if role == Role::Primary && o.opened {
                assert!(matches!(decide(role, &o), Step::Stay | Step::WaitForClose));
            }
        }
    }

    #[test]
    fn given_an_unsynced_or_inconsistent_disk_when_designated_then_it_never_becomes_primary() {
        for (role, o) in all() {
            if !(o.synced && o.consistent) {
                assert_ne!(decide(role, &o), Step::BecomePrimary);
            }
        }
    }

    #[test]
    fn p5_given_split_brain_when_secondary_then_nothing_is_fetched_replayed_or_synced() {
        for (role, o) in all() {
            if o.split_brain {
                if let Step::Follow(w) | Step::RefuseInconsistent(w) | Step::Repair(w) =
                    decide(role, &o)
                {
                    assert_eq!(w, Work::default());
                }
            }
        }
    }

    #[test]
    fn p10_given_a_damaged_log_when_designated_then_it_is_only_fetched_and_only_if_that_is_on() {
        for (role, o) in all() {
            match decide(role, &o) {
                Step::Repair(w) => {
                    assert!(o.damaged && role == Role::Secondary);
                    assert_eq!(o.designated, Designated::Me);
                    // A forced failover has fetching off: what is here is all that counts, until somebody says otherwise.
                    let fetch = o.fetch && !o.split_brain;
                    assert_eq!((w.fetch, w.replay, w.sync), (fetch, false, false));
                }
                Step::BecomePrimary => assert!(!o.damaged),
                _ => (),
            }
        }
    }

    #[test]
    fn given_a_sync_when_it_runs_then_replay_does_not() {
        for (role, o) in all() {
            if let Step::Follow(w) | Step::RefuseInconsistent(w) = decide(role, &o) {
                assert!(!(w.sync && w.replay));
            }
        }
    }

    #[test]
    fn p7_given_unloading_and_a_closed_device_when_steps_are_taken_then_it_ends_detached() {
        for (mut role, mut o) in all() {
            o.stopping = true;
            o.opened = false;
            for _ in 0..2 {
                role = match decide(role, &o) {
                    Step::LeavePrimary => Role::Secondary,
                    Step::Detach => Role::Detached,
                    Step::Stay => role,
                    other => panic!("{role:?} {other:?}"),
                };
            }
            assert_eq!(role, Role::Detached);
        }
    }

    #[test]
    fn given_the_usual_cluster_when_decided_then_roles_follow_the_primary_link() {
        assert_eq!(decide(Role::Detached, &UP), Step::Attach);
        let work = Work {
            fetch: true,
            replay: true,
            sync: false,
        };
        assert_eq!(decide(Role::Secondary, &UP), Step::Follow(work));
        let me = Observed {
            designated: Designated::Me,
            ..UP
        };
        assert_eq!(decide(Role::Secondary, &me), Step::BecomePrimary);
        assert_eq!(decide(Role::Primary, &me), Step::Stay);
        assert_eq!(decide(Role::Primary, &UP), Step::LeavePrimary);
    }
}
