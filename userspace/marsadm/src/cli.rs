// SPDX-License-Identifier: GPL-2.0-or-later

//! The command line: global options and one variant per command.
//!
//! The texts here are the `--help` output and the source of the man page; the reference with every detail is
//! `Documentation/marsadm.md`.

use clap::builder::styling::Styles;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;

/// Administer MARS: asynchronous replication of block devices over any distance.
///
/// The tool writes what is wanted into the symlink tree below /mars; the kernel module of each host acts on it and
/// publishes what is. Commands that change more than one thing may be interrupted at any moment and run again.
#[derive(Parser, Debug)]
#[command(args_override_self = true)]
#[command(name = "marsadm", version, styles = Styles::plain(), max_term_width = 100)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = false
)]
#[command(
    after_help = "Exit codes: 0 done, 1 wrong command line, 2 refused or failed, 3 timeout, 4 machine not ready."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Skip safety checks; a `primary` becomes a forced failover. The word force- before a command is the same
    #[arg(short, long, global = true)]
    pub force: bool,
    /// Say what would be written, and write nothing
    #[arg(short, long, global = true)]
    pub dry_run: bool,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Wait at most this many seconds for an effect
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// A peer that was heard within this time is alive (hosts say so each five seconds)
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60)]
    pub window: u64,
    /// Act as if on another host (for hosts that are gone for good)
    #[arg(long, global = true, value_name = "NAME")]
    pub host: Option<String>,
    /// At a planned handover, do not wait for replicas elsewhere that are still being synced
    #[arg(long, global = true)]
    pub ignore_sync: bool,

    /// Another place of the tree (tests)
    #[arg(
        long,
        global = true,
        hide = true,
        value_name = "DIR",
        env = "MARSADM_MARS_DIR"
    )]
    pub mars_dir: Option<PathBuf>,
    /// Another place of /proc/sys/mars (tests)
    #[arg(
        long,
        global = true,
        hide = true,
        value_name = "DIR",
        env = "MARSADM_PROC_DIR"
    )]
    pub proc_dir: Option<PathBuf>,
    /// The name of this host, instead of `uname -n` (tests)
    #[arg(
        long,
        global = true,
        hide = true,
        value_name = "NAME",
        env = "MARSADM_NODENAME"
    )]
    pub nodename: Option<String>,
    /// Accept regular files as disks (tests)
    #[arg(long, global = true, hide = true, env = "MARSADM_FILE_DISKS")]
    pub file_disks: bool,
}

/// One or more resources.
#[derive(Args, Debug, Clone)]
pub struct Resources {
    /// A resource, a comma separated list, or `all` (every resource that this host takes part in)
    #[arg(value_name = "RESOURCE", required = true, value_delimiter = ',')]
    pub resources: Vec<String>,
}

/// One or more resources; all of them when none is named.
#[derive(Args, Debug, Clone)]
pub struct OptionalResources {
    /// A resource, a comma separated list, or `all`, which is also the default
    #[arg(value_name = "RESOURCE", value_delimiter = ',')]
    pub resources: Vec<String>,
}

/// How the key of the cluster comes here.
#[derive(Args, Debug, Clone)]
pub struct KeyArgs {
    /// Read the cluster key from a file; `-` is the standard input
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    pub key_file: Option<PathBuf>,
    /// The cluster key as 64 hexadecimal digits (visible to others in `ps`: prefer --key-file)
    #[arg(
        long,
        value_name = "HEX",
        env = "MARS_CLUSTER_KEY",
        hide_env_values = true
    )]
    pub key: Option<String>,
}

/// A new member of a resource.
#[derive(Args, Debug, Clone)]
pub struct DiskArgs {
    /// Name of the resource
    #[arg(value_name = "RESOURCE")]
    pub resource: String,
    /// The backing disk, a block device
    #[arg(value_name = "DISK")]
    pub disk: PathBuf,
    /// Name of the device below /dev/mars, if it shall differ from the name of the resource
    #[arg(value_name = "DEVICE")]
    pub device: Option<String>,
    /// Size, if it shall be smaller than the disk: bytes, or with a suffix kmgtp (1000) or KMGTP (1024)
    #[arg(value_name = "SIZE")]
    pub size: Option<String>,
}

/// The commands.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Make this host the first one of a new cluster
    ///
    /// Writes the identity of the cluster into /mars and makes a random key, with which hosts prove to each other that
    /// they belong to it. Refused when this host is a member of a cluster already.
    CreateCluster {
        /// Address at which the other hosts reach this one
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<String>,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Make this host a member of the cluster that PEER belongs to
    ///
    /// Connects to the metadata port of the peer, whose module must be loaded; each side proves that it has the cluster
    /// key. No ssh is needed. The key is kept in /mars/cluster-key.
    JoinCluster {
        /// Name of a host of the cluster
        #[arg(value_name = "PEER")]
        peer: String,
        /// Its address, if its name can't be resolved
        #[arg(value_name = "ADDRESS")]
        peer_ip: Option<String>,
        /// Address at which the other hosts reach this one
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<String>,
        /// Metadata port of the peer
        #[arg(long, value_name = "PORT", default_value_t = 7777)]
        port: u16,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Take this host out of the cluster; it must not be a member of any resource
    LeaveCluster,
    /// Print the key of the cluster, for bringing it to another host
    ShowKey,
    /// Wait until every peer has answered
    #[command(alias = "wait-connect", alias = "update-cluster")]
    WaitCluster,
    /// List the hosts of the cluster with their addresses
    LowlevelLsHostIps,
    /// Change the address of a host
    LowlevelSetHostIp {
        /// Host
        #[arg(value_name = "HOST")]
        name: String,
        /// Address
        #[arg(value_name = "ADDRESS")]
        address: String,
    },

    /// Create a resource on a disk of this host, which becomes its primary
    ///
    /// The contents of the disk stay as they are. /dev/mars/DEVICE appears as soon as the module has seen it.
    CreateResource(DiskArgs),
    /// Make a disk of this host a further replica of an existing resource
    ///
    /// The contents of the disk are overwritten: a sync from the primary starts at once.
    JoinResource(DiskArgs),
    /// Give up the replica of this host; it must be down and must not be primary
    LeaveResource(Resources),
    /// Delete a resource that has no members any more
    DeleteResource(Resources),
    /// Change the size of a resource after all disks below it have grown
    Resize {
        /// Resource
        #[arg(value_name = "RESOURCE")]
        resource: String,
        /// New size; the default is the largest that all members can hold
        #[arg(value_name = "SIZE")]
        size: Option<String>,
    },

    /// Permit the use of the backing disk
    Attach(Resources),
    /// Stop using the backing disk; the device must be closed
    Detach(Resources),
    /// attach, resume-fetch, resume-sync and resume-replay in one
    Up(Resources),
    /// pause-replay, pause-sync, pause-fetch and detach in one
    Down(Resources),

    /// Do not fetch transaction logs any more
    #[command(
        alias = "pause-fetch-local",
        visible_alias = "disconnect",
        alias = "disconnect-local"
    )]
    PauseFetch(Resources),
    /// The same on all members
    #[command(alias = "disconnect-global")]
    PauseFetchGlobal(Resources),
    /// Fetch transaction logs from the other members
    #[command(
        alias = "resume-fetch-local",
        visible_alias = "connect",
        alias = "connect-local"
    )]
    ResumeFetch(Resources),
    /// The same on all members
    #[command(alias = "connect-global")]
    ResumeFetchGlobal(Resources),
    /// Do not replay transaction logs any more
    #[command(alias = "pause-replay-local")]
    PauseReplay(Resources),
    /// The same on all members
    PauseReplayGlobal(Resources),
    /// Replay fetched transaction logs
    #[command(alias = "resume-replay-local")]
    ResumeReplay(Resources),
    /// The same on all members
    ResumeReplayGlobal(Resources),
    /// Do not sync the disk from the primary any more
    #[command(alias = "pause-sync-local")]
    PauseSync(Resources),
    /// The same on all members
    PauseSyncGlobal(Resources),
    /// Sync the disk from the primary, where it is not complete
    #[command(alias = "resume-sync-local")]
    ResumeSync(Resources),
    /// The same on all members
    ResumeSyncGlobal(Resources),

    /// Make this host primary
    ///
    /// Planned: the old primary must have closed its device; its last write is replayed here first, and nothing is lost.
    /// With --force: a failover without asking the old primary; fetching must be paused first (pause-fetch). What was not
    /// yet transferred is cut off; it is told how much that is.
    Primary(Resources),
    /// Give up the primary role without naming a new primary
    Secondary(Resources),
    /// Declare the replica of this host worthless and sync it again from the primary
    Invalidate(Resources),

    /// Let the primary start a new transaction log
    LogRotate(Resources),
    /// Delete transaction logs that no member needs any more
    #[command(alias = "log-delete", alias = "log-delete-all-replayed")]
    LogDeleteAll {
        #[command(flatten)]
        resources: Resources,
        /// On the primary: also logs that members who are away, or paused, still need (with --force: any member). They compare what these wrote when they come back
        #[arg(long)]
        also_needed: bool,
    },
    /// Regular work: rotate big logs, delete old ones, purge old tombstones
    Cron {
        #[command(flatten)]
        resources: OptionalResources,
        /// Rotate no log smaller than this many GB when there are --thresh-logfiles of them
        #[arg(long, value_name = "GB", default_value_t = 5)]
        thresh_logsize: u64,
        /// See --thresh-logsize
        #[arg(long, value_name = "N", default_value_t = 10)]
        thresh_logfiles: usize,
        /// Keep tombstones at least this long for peers that are silent
        #[arg(long, value_name = "HOURS", default_value_t = 168)]
        keep_backup_hours: u64,
    },

    /// Wait until a condition holds
    ///
    /// CONDITION is [is-|todo-]{attach,fetch,replay,sync,primary,secondary,device}[-on|-off].
    WaitResource {
        #[command(flatten)]
        resources: ResourcesOne,
        /// What to wait for
        #[arg(value_name = "CONDITION", default_value = "is-device-on")]
        condition: String,
    },
    /// Wait until the device is closed
    WaitUmount(Resources),

    /// Show the state of resources
    ///
    /// Per resource: name, [members/peers], state of the disk, state of replication, flags, role, designated primary.
    /// Flags: Device, Consistent, Attached, Synced, Fetched, Replayed; a capital letter is good.
    View {
        #[command(flatten)]
        resources: OptionalResources,
        /// For machines: everything as one JSON document, schema version 1
        #[arg(long)]
        json: bool,
    },
    /// Emergency limit of this host for a resource: percent of /mars that must stay free
    GetEmergencyLimit(Resources),
    /// Set the emergency limit of this host for a resource
    SetEmergencyLimit {
        #[command(flatten)]
        resources: ResourcesOne,
        /// 0..100; 0 is off
        #[arg(value_name = "PERCENT")]
        percent: String,
    },
    /// Space limit of this host for a resource: MiB that its logs in /mars may occupy
    GetSpaceLimit(Resources),
    /// Set the space limit of this host for a resource
    ///
    /// When the logs of the resource occupy more, its primary stops logging (emergency mode) until they are fewer.
    SetSpaceLimit {
        #[command(flatten)]
        resources: ResourcesOne,
        /// In MiB; 0 is off
        #[arg(value_name = "MIB")]
        mib: String,
    },
    /// List interrupted operations of this host, or forget one
    Ops {
        /// Forget the interrupted operation of this resource (of `cluster` for the cluster's own)
        #[arg(long, value_name = "RESOURCE")]
        forget: Option<String>,
    },
    /// Print a link of the tree
    GetLink {
        /// Path relative to /mars
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Write a link of the tree (experts; only below userspace/ without --force)
    SetLink {
        /// Value
        #[arg(value_name = "VALUE")]
        value: String,
        /// Path relative to /mars
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Print the versions of the tool and of the module
    Version,

    /// Write man pages into a directory
    #[command(hide = true, name = "generate-man")]
    GenerateMan {
        /// Directory
        dir: PathBuf,
    },
    /// Print the completion of a shell
    #[command(hide = true, name = "generate-completion")]
    GenerateCompletion {
        /// Shell
        shell: clap_complete::Shell,
    },
}

/// Resources where a further argument follows.
#[derive(Args, Debug, Clone)]
pub struct ResourcesOne {
    /// A resource, a comma separated list, or `all`
    #[arg(value_name = "RESOURCE")]
    pub resource: String,
}

impl ResourcesOne {
    /// The names.
    pub fn names(&self) -> Vec<String> {
        self.resource.split(',').map(str::to_owned).collect()
    }
}

/// Rewrites the original's forms that clap does not know: `force-primary`, `--generate-man DIR`.
pub fn normalize(args: impl IntoIterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut out = Vec::new();
    let mut seen = false;
    let commands = Cli::command();
    let is_command = |word: &str| commands.find_subcommand(word).is_some();
    for arg in args {
        match arg.to_str() {
            Some("--generate-man") => out.push("generate-man".into()),
            Some("--generate-completion") => out.push("generate-completion".into()),
            Some(word) => {
                let forced = word
                    .strip_prefix("force-")
                    .filter(|w| !seen && is_command(w));
                // Only the command: what comes behind it may be a name.
                seen |= forced.is_some() || is_command(word);
                match forced {
                    Some(command) => out.extend(["--force".into(), command.into()]),
                    None => out.push(arg),
                }
            }
            None => out.push(arg),
        }
    }
    out
}
