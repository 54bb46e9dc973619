// SPDX-License-Identifier: GPL-2.0-or-later

//! The network protocol, as a hostile peer would use it (P6).

mod frame;
mod golden;
mod handshake;
mod messages;
mod properties;
mod session;
mod util;
