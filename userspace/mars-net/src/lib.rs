// SPDX-License-Identifier: GPL-2.0-or-later

//! Talks to the MARS module of other hosts: for tools that join a cluster or ask a member something.
//!
//! Formats and the handshake are the core's own code; here are only sockets. Everything is blocking, and has a deadline
//! (P8): a server that sends one byte a second gains nothing by it.

#![forbid(unsafe_code)]

mod client;
mod error;
pub mod key;
mod stream;

pub use client::{
    Client,
    Local,
    TreeCopy,
    TreeEntry, //
};
pub use error::NetError;
pub use mars_core::wire::auth::ClusterKey;
pub use mars_core::wire::message::handshake::{
    Purpose,
    ANY_UUID, //
};
pub use mars_core::wire::message::meta::Contact;
pub use mars_core::wire::DEFAULT_PORT;
pub use stream::{
    nonce,
    resolve,
    FrameStream, //
};
