// SPDX-License-Identifier: GPL-2.0-or-later

//! The machine around: disks and mounts, addresses, the key of the cluster.

pub mod disk;
pub mod key;
pub mod net;
