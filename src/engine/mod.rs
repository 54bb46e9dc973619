// SPDX-License-Identifier: GPL-2.0-or-later

//! The running parts: threads and locks around the decisions of the core, through the types of the system layer.
//!
//! ```text
//! cluster   the loop that reads the tree and starts everything else
//!   server    listens; answers other members            (a thread a connection)
//!   peer      follows the tree of another member         (a thread a peer)
//!   control   one resource: observe → decide → act       (a thread a resource)
//!     device, logger, pipeline   the primary's data path
//!     fetch, replay, sync        a secondary's
//! ```
//!
//! Who owns whom: the module owns the cluster loop, the loop owns servers, peers and control threads, a control thread
//! owns its device and workers. Everything is stopped by dropping its owner, in the order of the fields. What is shared
//! (`Env`, `Store`, `Member`, `Pipeline`) is in `Arc`s that hold no thread.
//!
//! Lock order: `Cluster` (env) before the locks of `Store`; all others are leaves.

mod ahead;
pub(crate) mod clock;
pub(crate) mod cluster;
mod conn;
mod control;
mod device;
mod digest;
mod dirty;
mod drop_logs;
pub(crate) mod env;
mod fetch;
pub(crate) mod inject;
mod last_words;
mod logfile;
mod logger;
mod member;
mod paths;
mod peer;
mod pipeline;
pub(crate) mod proc;
mod replay;
mod reserve;
mod server;
mod space;
mod store;
mod sync;
mod text;
pub(crate) mod tunables;
