// SPDX-License-Identifier: GPL-2.0-or-later

//! Named points of the engine where tests let things go wrong: each durable step has one before it and one after it.
//!
//! ```ignore
//! inject::at!(LogHeader)?;                            // a step that can fail
//! inject::at!(LogRewrite, pos, len)?;                 // the same, with `len` bytes at `pos` in its hands
//! inject::data!(AppendWrite, pos, &mut bytes)?;       // the same, and may spoil them; Some(n): only n bytes count
//! inject::pass!(Rotate);                              // a place that is only passed
//! inject::skew!()                                     // seconds that the wall clock shows too much
//! ```
//!
//! In the product all of these are nothing, and their arguments are not evaluated: it has no trace of the injector
//! (`scripts/lint/no-injector` looks). With `make module INJECT=1` they ask the rules of `mars_core::inject`, which are given and
//! listed through the file `mars/inject` of debugfs (Documentation/fault-injection.md).
//!
//! Lock: the rules' spinlock is a leaf and is not held while anything happens. Points are passed where the thread may sleep,
//! except `skew!`, which is asked under spinlocks.

#[cfg(MARS_INJECT)]
mod active;
#[cfg(MARS_INJECT)]
pub(crate) use active::*;

/// The list of all points. Kinds: see `mars_core::inject::Kind`.
#[cfg(MARS_INJECT)]
macro_rules! points {
    ($($kind:ident $name:ident $text:literal: $doc:literal,)*) => {
        /// A place in the engine.
        #[derive(Clone, Copy)]
        pub(crate) enum Point {
            $(#[doc = $doc] $name,)*
        }

        /// Their names and kinds, in the order of the numbers.
        const POINTS: &[(&str, mars_core::inject::Kind)] =
            &[$(($text, mars_core::inject::Kind::$kind),)*];
    };
}

#[cfg(MARS_INJECT)]
points! {
    // The primary's log. Positions are of the log.
    Memory AppendMemory "append-memory": "Memory for a batch is needed.",
    Step LogExtend "log-extend": "Zeros are written ahead of the end.",
    Data AppendWrite "append-write": "A batch is written.",
    Step AppendDone "append-done": "A batch was written; nobody knows yet.",
    Step FlushLog "flush-log": "The log is flushed.",
    Step FlushLogDone "flush-log-done": "The log was flushed; nobody knows yet.",
    Pass FlushComplete "flush-complete": "Peers may see what was flushed; the flushes of the application are not complete yet.",
    Step LogRewrite "log-rewrite": "A batch is written again, because a flush failed.",
    Step LogCreate "log-create": "A log is created.",
    Step LogHeader "log-header": "The file is there and empty; its header is written.",
    Step LogCreateSync "log-create-sync": "Header and zeros are made durable.",
    Step LogCreated "log-created": "The log is durable; no link names it yet.",
    Pass Rotate "rotate": "The logger closes the old log; the next one is ready.",
    Step LogCloseCut "log-close-cut": "A log is cut to its end.",
    Step LogCloseSync "log-close-sync": "The cut is made durable.",
    Pass Rotated "rotated": "The logger has begun the next log; no link says so.",
    Pass LoggerRound "logger-round": "The logger looks what there is to do.",

    // Links.
    Step LinkWrite "link-write": "A link is written.",
    Step LinkWritten "link-written": "A link was written; memory has its old value.",
    Step VersionLink "version-link": "A version link is set.",
    Step ReplayLink "replay-link": "The replay link is moved.",
    Step ReplayLinkMoved "replay-link-moved": "The replay link was moved.",
    Step DirSync "dir-sync": "The names in a resource's directory are made durable.",
    Step DirSynced "dir-synced": "They are durable.",
    Step MergeLink "merge-link": "A link of a peer is merged.",
    Step LogDelete "log-delete": "A log is replaced by a peer's tombstone.",
    Step LogDeleted "log-deleted": "It was replaced.",
    Step LogUnlink "log-unlink": "A log is removed because /mars gets full.",
    Pass LogUnlinked "log-unlinked": "It was removed.",
    Step Scan "scan": "A directory of the tree is read.",

    // Roles.
    Step RecoverySettled "recovery-settled": "A local log was cut and replayed to its end, and the link moved.",
    Step RecoveryCut "recovery-cut": "A log was cut where recovery found its end; that is not durable yet, and not all before it is on the disk.",
    Step Recovered "recovered": "Recovery is complete; there is no new log yet.",
    Step FirstFlush "first-flush": "The disk is flushed before a primary makes its first log.",
    Step PrimaryLinks "primary-links": "The links of a primary's first log were written, and are made durable.",
    Step PrimaryDevice "primary-device": "All is durable; the device is made.",
    Pass PrimaryReady "primary-ready": "The device is there.",
    Pass LeaveBegin "leave-begin": "Nobody can open the device any more.",
    Pass LeaveDevice "leave-device": "The device is gone; the log is still open.",
    Pass LeaveClosed "leave-closed": "The log is closed; no link says so.",
    Pass LeavePublished "leave-published": "The links have the end of the log; not everything is written back.",
    Pass LeaveDrained "leave-drained": "All is written back and flushed; the replay link says less.",
    Pass LeaveLink "leave-link": "The replay link is at the end, but not durable.",
    Pass ControlRound "control-round": "A control thread looks what there is to do.",

    // Write-back. Positions are of the disk.
    Step WriteBack "write-back": "A write of the write-back is submitted.",
    Step WriteBackDone "write-back-done": "It has ended well; the buffer does not know.",
    Step WriteBackZero "write-back-zero": "A range is made zero.",
    Step DiskFlush "disk-flush": "A flush of the disk is submitted.",
    Step DiskFlushed "disk-flushed": "It has ended well; the buffer does not know.",
    Pass Publish "publish": "What is durable on the disk is going to be published.",
    Pass WriteBackRound "write-back-round": "The write-back looks what there is to do.",

    // Memory on the way of a write.
    Memory WriteMemory "write-memory": "Memory for the data of a write is needed.",
    Memory AdmitMemory "admit-memory": "Memory for a record is needed.",
    Memory PlanMemory "plan-memory": "Memory for the plan of the write-back is needed.",

    // Fetch. Positions are of the log.
    Step Dial "dial": "A connection is made.",
    Step NetSend "net-send": "A request is sent.",
    Data NetReceived "net-received": "A reply has arrived; its checksum is not yet looked at.",
    Step FetchRequest "fetch-request": "Bytes of a log are asked for.",
    Data FetchWrite "fetch-write": "Fetched bytes are written to the file.",
    Step FetchWritten "fetch-written": "They were written; the plan does not know.",
    Step FetchBeginCut "fetch-begin-cut": "What is not good at the end of a local copy is cut off.",
    Pass FetchAgain "fetch-again": "A damaged copy is going to be fetched again.",
    Pass FetchRound "fetch-round": "A fetching thread looks what there is to do.",

    // Serving. Positions are of the log or of the disk.
    Data ServeLog "serve-log": "Bytes of a log were read for a peer.",
    Data ServeSync "serve-sync": "A block of the disk was read for a peer's sync.",

    // Replay. Positions are of the log.
    Step ReplayOpenSync "replay-open-sync": "A log was opened, and what is in it is made durable.",
    Step ReplaySync "replay-sync": "A fetched log is made durable.",
    Step ReplayUnfetched "replay-unfetched": "What was read of a log that nothing is fetched of is made durable.",
    Step ReplayRewrite "replay-rewrite": "A fetched log that could not be made durable is written again.",
    Data ReplayRead "replay-read": "Bytes of a log were read.",
    Memory ReplayAdmit "replay-admit": "Memory for a record of a log is needed.",
    Step ReplaySettled "replay-settled": "All of a log is on the disk; the link says less.",
    Step SwitchCut "switch-cut": "A log is cut where it ends for good; there was something behind.",
    Step SwitchCutSync "switch-cut-sync": "The cut is made durable.",
    Step SwitchLog "switch-log": "Replay goes on with the next log.",
    Step SwitchLink "switch-link": "The next log has its version link, the replay link is in the old one.",
    Pass ReplayRound "replay-round": "Replay looks what there is to do.",

    // Sync. Positions are of the disk.
    Step SyncStart "sync-start": "A sync is going to start.",
    Step SyncBegin "sync-begin": "It is durable that the disk is not complete; no block was written.",
    Step SyncRead "sync-read": "A block of the own disk is read.",
    Step SyncWrite "sync-write": "A block that differs is written.",
    Step SyncFlush "sync-flush": "The disk is flushed.",
    Step SyncSave "sync-save": "The disk was flushed; the progress is not yet written.",
    Step SyncFinish "sync-finish": "All was compared; nothing says so.",
    Step SyncPos "sync-pos": "It is written, but not durable, from where on the disk is consistent.",
    Step SyncDurable "sync-durable": "That is durable; the sync does not count as complete yet.",
    Pass SyncRound "sync-round": "A syncing thread looks what there is to do.",

    // Emergency mode. Positions are of the file of the map.
    Step DirtyWrite "dirty-write": "A block of the dirty map is written.",
    Step DirtySync "dirty-sync": "The dirty map is made durable.",
    Step DirtySaved "dirty-saved": "It is durable.",
    Step DirtyCreate "dirty-create": "A new dirty map is complete and gets its name.",
    Step GapOpen "gap-open": "Logging stops: the gap is opened in the map.",
    Pass GapOpened "gap-opened": "The gap is open; the buffer does not know.",
    Step GapMark "gap-mark": "What is to be written is marked.",
    Pass GapMarked "gap-marked": "It is marked, and may be written.",
    Step GapWritten "gap-written": "All is on the disk, durably; the map does not say so.",
    Step GapClose "gap-close": "The gap is closed in the map.",
    Pass GapClosed "gap-closed": "It is closed; the logger does not log yet.",
    Step GapAsk "gap-ask": "A replica has noted that it needs a map; its disk still counts as complete.",
    Step GapMap "gap-map": "A replica has got the map.",
    Step DropMarked "drop-marked": "What logs wrote is in the map; it does not say that they may be deleted.",
    Step JumpBegin "jump-begin": "A replica whose logs are gone has said that its disk is not complete.",
    Step JumpLink "jump-link": "It has the history of the primary; the replay link is the old one.",

    // The host.
    Pass ClusterRound "cluster-round": "The cluster loop looks at the tree.",
    Pass PeerRound "peer-round": "A peer is asked what is new.",
    Clock ClockRead "clock-read": "Somebody looks at the wall clock.",
}

#[cfg(MARS_INJECT)]
mod calls {
    macro_rules! at {
        ($point:ident) => {
            $crate::engine::inject::at($crate::engine::inject::Point::$point, 0, 0)
        };
        ($point:ident, $pos:expr, $len:expr) => {
            $crate::engine::inject::at($crate::engine::inject::Point::$point, $pos, $len)
        };
    }
    macro_rules! data {
        ($point:ident, $pos:expr, $data:expr) => {
            $crate::engine::inject::data($crate::engine::inject::Point::$point, $pos, $data)
        };
    }
    macro_rules! pass {
        ($point:ident) => {
            $crate::engine::inject::pass($crate::engine::inject::Point::$point)
        };
    }
    macro_rules! skew {
        () => {
            $crate::engine::inject::skew()
        };
    }
    pub(crate) use {
        at,
        data,
        pass,
        skew, //
    };
}

#[cfg(not(MARS_INJECT))]
mod calls {
    macro_rules! at {
        ($point:ident) => {
            Ok::<(), ::kernel::error::Error>(())
        };
        ($point:ident, $pos:expr, $len:expr) => {{
            // Compiled, never run.
            let _ = || {
                let _: (u64, usize) = ($pos, $len);
            };
            Ok::<(), ::kernel::error::Error>(())
        }};
    }
    macro_rules! data {
        ($point:ident, $pos:expr, $data:expr) => {{
            let _ = || {
                let _: (u64, &mut [u8]) = ($pos, $data);
            };
            Ok::<Option<usize>, ::kernel::error::Error>(None)
        }};
    }
    macro_rules! pass {
        ($point:ident) => {{}};
    }
    macro_rules! skew {
        () => {
            0
        };
    }
    pub(crate) use {
        at,
        data,
        pass,
        skew, //
    };
}
pub(crate) use calls::*;
