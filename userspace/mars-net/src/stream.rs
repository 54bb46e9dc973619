// SPDX-License-Identifier: GPL-2.0-or-later

//! Frames over a TCP connection, each operation within a deadline.

use std::fs::File;
use std::io::{
    self,
    Read,
    Write, //
};
use std::net::{
    IpAddr,
    SocketAddr,
    TcpStream,
    ToSocketAddrs, //
};
use std::time::{
    Duration,
    Instant, //
};

use mars_core::wire::auth::Nonce;
use mars_core::wire::frame::{
    Header,
    HEADER_LEN, //
};
use mars_core::wire::WireError;

use crate::NetError;

/// The addresses that `text` means: `10.0.0.1`, `10.0.0.1:7777`, `fd00::1`, `[fd00::1]:7777`, `name`, `name:7777`.
pub fn resolve(text: &str, default_port: u16) -> Result<Vec<SocketAddr>, NetError> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(text).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, default_port)]);
    }
    let found = if text.contains(':') {
        text.to_socket_addrs()
    } else {
        (text, default_port).to_socket_addrs()
    };
    let failed = |error| NetError::Address {
        address: text.into(),
        error,
    };
    let found: Vec<_> = found.map_err(failed)?.collect();
    if found.is_empty() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(found)
}

/// A random number for a handshake.
pub fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// A connection that carries frames.
#[derive(Debug)]
pub struct FrameStream {
    stream: TcpStream,
    deadline: Instant,
}

impl FrameStream {
    /// Connects to the first address that answers.
    pub fn connect(addresses: &[SocketAddr], timeout: Duration) -> Result<Self, NetError> {
        let deadline = Instant::now() + timeout;
        let mut last = None;
        for address in addresses {
            let failed = |error| NetError::Connect {
                address: address.to_string(),
                error,
            };
            match TcpStream::connect_timeout(address, remaining(deadline)?) {
                Ok(stream) => return Self::new(stream, deadline).map_err(failed),
                Err(error) => last = Some(failed(error)),
            }
        }
        Err(last.unwrap_or(NetError::TimedOut))
    }

    /// Takes a connection.
    pub fn new(stream: TcpStream, deadline: Instant) -> io::Result<Self> {
        // Requests and replies: waiting to fill a packet would cost a delayed acknowledgement each time.
        stream.set_nodelay(true)?;
        Ok(Self { stream, deadline })
    }

    /// Until when the next operations have to be finished.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Sends bytes.
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<(), NetError> {
        while !bytes.is_empty() {
            self.stream
                .set_write_timeout(Some(remaining(self.deadline)?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(NetError::Closed),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receives a frame: `check` looks at the header and says how much may follow.
    pub fn receive(
        &mut self,
        check: impl FnOnce(&[u8]) -> Result<Header, WireError>,
    ) -> Result<(Header, Vec<u8>), NetError> {
        let mut header = [0; HEADER_LEN];
        self.fill(&mut header)?;
        let header = check(&header)?;
        // Grows with what comes, not with what is announced.
        let mut body = Vec::new();
        while body.len() < header.body_len() {
            let start = body.len();
            let step = (header.body_len() - start).min(64 << 10);
            body.resize(start + step, 0);
            self.fill(&mut body[start..])?;
        }
        Ok((header, body))
    }

    fn fill(&mut self, mut room: &mut [u8]) -> Result<(), NetError> {
        while !room.is_empty() {
            self.stream
                .set_read_timeout(Some(remaining(self.deadline)?))?;
            match self.stream.read(room) {
                Ok(0) => return Err(NetError::Closed),
                Ok(n) => room = room.get_mut(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn remaining(deadline: Instant) -> Result<Duration, NetError> {
    let rest = deadline.saturating_duration_since(Instant::now());
    if rest.is_zero() {
        return Err(NetError::TimedOut);
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_addresses_in_all_forms_when_resolved_then_port_and_family_are_right() {
        let one = |text| resolve(text, 7777).unwrap()[0].to_string();
        assert_eq!(one("10.0.0.1"), "10.0.0.1:7777");
        assert_eq!(one("10.0.0.1:8000"), "10.0.0.1:8000");
        assert_eq!(one("fd00::1"), "[fd00::1]:7777");
        assert_eq!(one("[fd00::1]"), "[fd00::1]:7777");
        assert_eq!(one("[fd00::1]:8000"), "[fd00::1]:8000");
        for bad in ["", "10.0.0.1:", "10.0.0.1:99999", "no such name", "[::1"] {
            let error = resolve(bad, 7777).unwrap_err();
            assert!(matches!(error, NetError::Address { .. }), "{bad}");
            assert!(error.to_string().contains("IPv4 or IPv6"));
        }
    }

    #[test]
    fn given_two_nonces_when_drawn_then_they_differ() {
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
