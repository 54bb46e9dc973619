// SPDX-License-Identifier: GPL-2.0-or-later

//! Addresses of this host and of peers.

use crate::error::{Failure, Result};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// Parses an address, with or without brackets.
pub fn parse_ip(text: &str) -> Result<IpAddr> {
    text.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .map_err(|_| Failure::usage(format!("'{text}' is no IPv4 or IPv6 address")))
}

/// The address that this host would use towards a peer: the system's routing decides.
pub fn own_address_towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// The one address of this host by which others can reach it; refused with a list if there are several.
pub fn own_address() -> Result<IpAddr> {
    let all = nix::ifaddrs::getifaddrs()
        .map_err(|e| Failure::refused(format!("cannot list the network interfaces: {e}")))?;
    let mut found: Vec<(String, IpAddr)> = Vec::new();
    for entry in all {
        let Some(address) = entry.address else {
            continue;
        };
        let ip: IpAddr = if let Some(v4) = address.as_sockaddr_in() {
            v4.ip().into()
        } else if let Some(v6) = address.as_sockaddr_in6() {
            v6.ip().into()
        } else {
            continue;
        };
        if is_reachable(ip) && !found.iter().any(|(_, i)| *i == ip) {
            found.push((entry.interface_name, ip));
        }
    }
    choose(found)
}

/// Addresses that another host could use at all.
fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => {
            !v6.is_loopback() && !v6.is_unspecified() && (v6.segments()[0] & 0xffc0) != 0xfe80
        }
    }
}

fn choose(found: Vec<(String, IpAddr)>) -> Result<IpAddr> {
    let v4: Vec<_> = found.iter().filter(|(_, ip)| ip.is_ipv4()).collect();
    let candidates = if v4.is_empty() {
        found.iter().collect()
    } else {
        v4
    };
    match candidates.as_slice() {
        [(_, ip)] => Ok(*ip),
        [] => Err(
            Failure::refused("this host has no address by which others could reach it")
                .hint("set up the network, or give the address with --ip"),
        ),
        _ => {
            let list: Vec<String> = found
                .iter()
                .map(|(name, ip)| format!("{ip} ({name})"))
                .collect();
            Err(Failure::usage(format!(
                "this host has several addresses: {}",
                list.join(", ")
            ))
            .hint("choose the one that the other hosts shall use with --ip"))
        }
    }
}

/// Addresses of a peer: as given, as known in the tree, or by its name.
pub fn resolve(
    peer: &str,
    given: Option<&str>,
    known: Option<&str>,
    port: u16,
) -> Result<SocketAddr> {
    if let Some(ip) = given.or(known) {
        return Ok(SocketAddr::new(parse_ip(ip)?, port));
    }
    let found: Vec<SocketAddr> = (peer, port)
        .to_socket_addrs()
        .map(Iterator::collect)
        .unwrap_or_default();
    found.first().copied().ok_or_else(|| {
        Failure::refused(format!("the name '{peer}' cannot be resolved")).hint(format!(
            "give its address: `marsadm join-cluster {peer} ADDRESS`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(list: &[(&str, &str)]) -> Vec<(String, IpAddr)> {
        list.iter()
            .map(|(n, ip)| ((*n).to_owned(), ip.parse().unwrap()))
            .collect()
    }

    #[test]
    fn one_address_is_taken_and_several_are_refused_with_a_list() {
        let one = choose(found(&[("eth0", "10.0.0.1"), ("eth0", "2001:db8::1")])).unwrap();
        assert_eq!(one, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert!(choose(found(&[("eth0", "2001:db8::1")])).is_ok());
        let text = choose(found(&[("eth0", "10.0.0.1"), ("eth1", "10.1.0.1")]))
            .unwrap_err()
            .text;
        assert!(text.contains("10.0.0.1 (eth0), 10.1.0.1 (eth1)"), "{text}");
        assert!(choose(Vec::new()).is_err());
    }

    #[test]
    fn addresses_nobody_else_can_use_are_left_out() {
        for ip in ["127.0.0.1", "169.254.3.4", "::1", "fe80::1", "0.0.0.0"] {
            assert!(!is_reachable(ip.parse().unwrap()), "{ip}");
        }
        assert!(is_reachable("fd00::1".parse().unwrap()));
    }
}
