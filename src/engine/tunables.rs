// SPDX-License-Identifier: GPL-2.0-or-later

//! What an administrator can tune, in `/proc/sys/mars/`, and constants that are not worth tuning.
//! Documentation/tunables.md says what each means.

use mars_core::completion::Completion;

use crate::sys::sysctl::Tunable;

/// Port of metadata; logs are on the next, sync on the one after.
pub(crate) const DEFAULT_PORT: u16 = 7777;

/// Largest write-back I/O in bytes.
pub(crate) fn writeback_io_bytes() -> u32 {
    WRITEBACK_IO_KB.get().saturating_mul(1024)
}

/// The oldest record that is not yet durable in the log gets no older than this.
pub(crate) const LOG_FLUSH_MS: u32 = 50;

/// So many bytes may be in the log without having been flushed.
pub(crate) const LOG_FLUSH_BYTES: usize = 8 << 20;

/// How long a server keeps a request that asks for news before it answers that there are none.
pub(crate) const LONG_POLL_MS: u32 = 2000;

/// Reply of a peer that does not come within this time means that the connection is broken.
pub(crate) const NET_TIMEOUT_MS: u32 = 10_000;

/// Connecting takes no longer than this.
pub(crate) const CONNECT_TIMEOUT_MS: u32 = 5_000;

/// Bytes of one request for log data.
pub(crate) const FETCH_BYTES: u32 = 512 << 10;

/// Size of the write buffer of one resource, in MiB.
pub(crate) static BUFFER_MB: Tunable<u32> = Tunable::<u32>::new(c"write_buffer_mb", 0, 0, 1 << 20);

/// Largest write-back I/O in KiB.
pub(crate) static WRITEBACK_IO_KB: Tunable<u32> =
    Tunable::<u32>::new(c"writeback_io_kb", 512, 4, 1024);

/// TCP connections of each transfer of logs or of a sync.
pub(crate) static CONNECTIONS: Tunable<u32> = Tunable::<u32>::new(c"parallel_connections", 2, 1, 8);

/// Logs are rotated by themselves at this size, in GiB.
pub(crate) static LOGROT_AUTO_GB: Tunable<u32> =
    Tunable::<u32>::new(c"logrot_auto_gb", 32, 1, 1 << 20);

/// The whole tree is read again at least this often, in seconds.
pub(crate) static SCAN_INTERVAL_SEC: Tunable<u32> =
    Tunable::<u32>::new(c"scan_interval_sec", 5, 1, 60);

/// Free space of `/mars` in GiB below which the emergency levels 1, 2, 3, 4 begin; each is added to the higher ones.
pub(crate) static FREE_SPACE_GB: [Tunable<u32>; 4] = [
    Tunable::<u32>::new(c"required_free_space_1_gb", 2, 0, 1 << 20),
    Tunable::<u32>::new(c"required_free_space_2_gb", 2, 0, 1 << 20),
    Tunable::<u32>::new(c"required_free_space_3_gb", 2, 0, 1 << 20),
    Tunable::<u32>::new(c"required_free_space_4_gb", 2, 0, 1 << 20),
];

/// Whether the emergency level falls by itself when there is room again.
pub(crate) static RESET_EMERGENCY: Tunable<u32> =
    Tunable::<u32>::new(c"mars_reset_emergency", 1, 0, 1);

/// Whether a primary goes back to logging by itself.
pub(crate) static LOGGER_RESUME: Tunable<u32> = Tunable::<u32>::new(c"logger_resume", 1, 0, 1);

/// When a write is complete; see [`Completion`].
pub(crate) static COMPLETION: Tunable<u32> =
    Tunable::<u32>::new(c"logger_completion_semantics", 0, 0, 2);

/// When a write is complete.
pub(crate) fn completion() -> Completion {
    Completion::from_number(COMPLETION.get())
}

/// All of them, for `/proc/sys/mars`.
pub(crate) static ALL: [&Tunable<u32>; 12] = [
    &COMPLETION,
    &BUFFER_MB,
    &WRITEBACK_IO_KB,
    &CONNECTIONS,
    &LOGROT_AUTO_GB,
    &SCAN_INTERVAL_SEC,
    &FREE_SPACE_GB[0],
    &FREE_SPACE_GB[1],
    &FREE_SPACE_GB[2],
    &FREE_SPACE_GB[3],
    &RESET_EMERGENCY,
    &LOGGER_RESUME,
];
