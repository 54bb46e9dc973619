// SPDX-License-Identifier: GPL-2.0-or-later

//! Messages of the handshake; see [`crate::wire::auth`].

use super::{
    messages,
    numbers,
    rule,
    structs, //
};
use crate::lamport::LamportTime;
use crate::name::Name;

/// Length of the random number that each side contributes.
pub const NONCE_LEN: usize = 32;
/// Length of the proof that the key is known.
pub const PROOF_LEN: usize = 32;
/// Longest uuid of a cluster.
pub const MAX_UUID: usize = 127;
/// Longest version text.
pub const MAX_VERSION: usize = 63;
/// The uuid of a host that is about to join a cluster.
pub const ANY_UUID: &str = "(any)";

/// Tag of the proof in [`Challenge`] and [`Response`]: always the last field.
pub const TAG_PROOF: u16 = 15;

/// Optional abilities.
pub mod features {
    /// Each frame after the handshake carries an authentication code.
    pub const FRAME_MAC: u64 = 1 << 0;
    /// All that this code has.
    pub const ALL: u64 = FRAME_MAC;
}

numbers! {
    /// What a connection is for. Each has its port: base + [`Purpose::port_offset`].
    Purpose: u8 {
        /// The cluster loop of a member: the tree.
        Meta = 0,
        /// Reading logs.
        Log = 1,
        /// Reading the device.
        Sync = 2,
        /// A tool: joining a cluster, asking.
        Join = 3,
    }
}

impl Purpose {
    /// Which of the three ports.
    pub const fn port_offset(self) -> u16 {
        match self {
            Self::Meta | Self::Join => 0,
            Self::Log => 1,
            Self::Sync => 2,
        }
    }
}

structs! {
    /// Client to server: who I am and what I want.
    struct Hello<'a> {
        /// Lowest version of the protocol.
        1 proto_min: u16,
        /// Highest version.
        2 proto_max: u16,
        /// What the client can.
        3 features: u64,
        /// What the client insists on.
        4 required: u64,
        /// Name of the client.
        5 host: Name,
        /// Cluster of the client, or [`ANY_UUID`].
        6 uuid: &'a str,
        /// What for.
        7 purpose: Purpose,
        /// Random.
        8 nonce: [u8; NONCE_LEN],
        /// Version of the client's software, for the administrator.
        9 version: &'a str,
    } where (|m: &Hello<'_>| {
        rule(m.proto_min <= m.proto_max && m.proto_max > 0, "proto_max")?;
        uuid(m.uuid)?;
        rule(m.version.len() <= MAX_VERSION, "version")
    })

    /// Server to client: who I am and how we talk. The proof follows.
    struct Challenge<'a> {
        /// The version that is spoken from now on.
        1 proto: u16,
        /// The features that are used from now on.
        2 features: u64,
        /// Name of the server.
        3 host: Name,
        /// Cluster of the server, or [`ANY_UUID`].
        4 uuid: &'a str,
        /// Random.
        5 nonce: [u8; NONCE_LEN],
        /// Version of the server's software, for the administrator.
        6 version: &'a str,
    } where (|m: &Challenge<'_>| {
        uuid(m.uuid)?;
        rule(m.version.len() <= MAX_VERSION, "version")
    })

    /// Client to server: only the proof.
    struct Response {}

    /// Server to client: from now on requests are answered.
    struct Welcome {
        /// Lamport time of the server. Only to be believed where frames have authentication codes.
        1 now: LamportTime,
    }
}

messages! { Hello<'a> Challenge<'a> Response Welcome }

/// A uuid is printable and not empty.
fn uuid(uuid: &str) -> Result<(), crate::wire::WireError> {
    rule(is_uuid(uuid), "uuid")
}

/// Whether this can be the uuid of a cluster, or [`ANY_UUID`].
pub fn is_uuid(uuid: &str) -> bool {
    !uuid.is_empty() && uuid.len() <= MAX_UUID && uuid.bytes().all(|c| c.is_ascii_graphic())
}
