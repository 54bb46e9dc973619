// SPDX-License-Identifier: GPL-2.0-or-later

//! What can go wrong, with what to do about it.

use std::fmt;
use std::io;

use mars_core::wire::auth::Refusal;
use mars_core::wire::WireError;

/// Why there is no answer.
#[derive(Debug)]
pub enum NetError {
    /// The name or address can't be used.
    Address {
        /// As given.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Nobody answers there.
    Connect {
        /// As given.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The connection broke.
    Io(io::Error),
    /// The deadline has passed.
    TimedOut,
    /// The peer closed the connection without a word.
    Closed,
    /// One side refused; by the peer's or by our own rules.
    Refused(Refusal),
    /// The peer sent what makes no sense.
    Protocol(WireError),
}

impl NetError {
    /// Whether trying again later may help without anybody doing something.
    pub fn is_temporary(&self) -> bool {
        use mars_core::wire::message::ErrorCode;
        match self {
            Self::Connect { .. } | Self::Io(_) | Self::TimedOut | Self::Closed => true,
            Self::Refused(refusal) => {
                matches!(
                    refusal.code,
                    ErrorCode::Busy
                        | ErrorCode::Internal
                        | ErrorCode::TimedOut
                        | ErrorCode::Stopping
                )
            }
            Self::Address { .. } | Self::Protocol(_) => false,
        }
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, error } => write!(
                f,
                "'{address}' is no usable address ({error}): give an IPv4 or IPv6 address, or a name that can be resolved, \
                 with ':port' if it is not 7777"
            ),
            Self::Connect { address, error } => write!(
                f,
                "no connection to {address} ({error}): check that the mars module is loaded there, and that firewalls let \
                 TCP ports 7777 to 7779 through"
            ),
            Self::Io(error) => write!(f, "the connection broke: {error}"),
            Self::TimedOut => f.write_str(
                "no answer in time: check the network and the load of the peer, or give a longer --timeout",
            ),
            Self::Closed => f.write_str(
                "the peer closed the connection: look into its kernel log (dmesg); is something else listening on its port?",
            ),
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::Protocol(error) => write!(f, "the peer does not answer properly: {error}"),
        }
    }
}

impl std::error::Error for NetError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Address { error, .. } | Self::Connect { error, .. } | Self::Io(error) => {
                Some(error)
            }
            _ => None,
        }
    }
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

impl From<Refusal> for NetError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<WireError> for NetError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error)
    }
}
