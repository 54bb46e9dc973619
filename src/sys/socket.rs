// SPDX-License-Identifier: GPL-2.0-or-later

//! TCP over IPv4 and IPv6, in the initial network namespace.
//!
//! All calls sleep, except where noted. Each one that waits returns `EINTR` at once when its
//! thread shall stop, and `EPIPE` or `ECONNRESET` when another thread shuts the socket down.
//!
//! Timeouts are in milliseconds, give or take a timer tick (4 ms); `u32::MAX` stands for none. A transfer has the whole time again
//! each time that [`PROGRESS`] bytes got through: short messages have a firm deadline, long ones a
//! least speed.
//!
//! Small messages are sent at once (`TCP_NODELAY`), so one message should be one call:
//! [`Socket::send_all2`].
//!
//! C headers: [`include/linux/net.h`](srctree/include/linux/net.h),
//! [`include/net/sock.h`](srctree/include/net/sock.h)

use super::{file::to_len, generated, time::mono_ns};
use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr::{null_mut, NonNull},
};
use kernel::{bindings, error::to_result, prelude::*, str::CString};

/// How much of a transfer starts its timeout anew.
pub(crate) const PROGRESS: usize = 16 << 10;

/// How many connections may wait to be accepted.
const BACKLOG: c_int = 64;

/// Where a peer is: an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addr {
    ip: IpAddr,
    port: u16,
    /// The interface of a link-local IPv6 address.
    scope: u32,
}

impl Addr {
    /// An address and a port.
    pub(crate) fn new(ip: IpAddr, port: u16) -> Self {
        Self {
            ip: ip.to_canonical(),
            port,
            scope: 0,
        }
    }

    /// Parses `1.2.3.4`, `1.2.3.4:7777`, `2001:db8::1`, `[2001:db8::1]:7777` and
    /// `fe80::1%eth0`; no names. `EINVAL` for all else.
    pub(crate) fn parse(text: &[u8], default_port: u16) -> Result<Self> {
        let text = core::str::from_utf8(text.trim_ascii()).map_err(|_| EINVAL)?;
        let (ip, port) = if let Some(rest) = text.strip_prefix('[') {
            let (ip, rest) = rest.split_once(']').ok_or(EINVAL)?;
            match rest.strip_prefix(':') {
                Some(port) => (ip, Some(port)),
                None if rest.is_empty() => (ip, None),
                None => return Err(EINVAL),
            }
        } else {
            match text.split_once(':') {
                Some((ip, port)) if !port.contains(':') => (ip, Some(port)),
                _ => (text, None),
            }
        };
        let port = match port {
            Some(port) => parse_port(port)?,
            None => default_port,
        };
        let (ip, scope) = match ip.split_once('%') {
            Some((ip, name)) => (ip, interface(name)?),
            None => (ip, 0),
        };
        let ip = if ip.contains(':') {
            IpAddr::V6(ip.parse::<Ipv6Addr>().map_err(|_| EINVAL)?)
        } else if scope == 0 {
            IpAddr::V4(ip.parse::<Ipv4Addr>().map_err(|_| EINVAL)?)
        } else {
            return Err(EINVAL);
        };
        Ok(Self {
            ip: ip.to_canonical(),
            port,
            scope,
        })
    }

    /// The same machine, another port.
    pub(crate) fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The address without the port.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The form that C takes: whether it is IPv6, and the bytes of the address.
    fn bytes(&self) -> (bool, [u8; 16]) {
        match self.ip {
            IpAddr::V6(ip) => (true, ip.octets()),
            IpAddr::V4(ip) => {
                let mut bytes = [0; 16];
                for (to, from) in bytes.iter_mut().zip(ip.octets()) {
                    *to = from;
                }
                (false, bytes)
            }
        }
    }
}

fn parse_port(text: &str) -> Result<u16> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EINVAL);
    }
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(EINVAL),
    }
}

/// The number of an interface, given as name or number. May sleep.
fn interface(text: &str) -> Result<u32> {
    if let Ok(index) = text.parse::<u32>() {
        return if index > 0 { Ok(index) } else { Err(EINVAL) };
    }
    if text.is_empty() || text.len() > 15 {
        return Err(EINVAL);
    }
    let name = CString::try_from_fmt(fmt!("{}", text))?;
    // SAFETY: `name` is a C string.
    match u32::try_from(unsafe { generated::mars_c_ifindex(name.as_char_ptr()) }) {
        Ok(index) if index > 0 => Ok(index),
        _ => Err(ENODEV),
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ip, self.scope) {
            (IpAddr::V4(ip), _) => write!(f, "{}:{}", ip, self.port),
            (IpAddr::V6(ip), 0) => write!(f, "[{}]:{}", ip, self.port),
            (IpAddr::V6(ip), scope) => write!(f, "[{}%{}]:{}", ip, scope, self.port),
        }
    }
}

impl kernel::fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Errors as callers know them, whatever the protocol says.
fn translate(error: Error, on_timeout: Error) -> Error {
    if error == ERESTARTSYS || error == EINTR {
        EINTR
    } else if error == EAGAIN || error == EINPROGRESS || error == ETIMEDOUT {
        on_timeout
    } else {
        error
    }
}

/// What becomes of the time for a transfer.
struct Deadline {
    timeout_ms: u32,
    end: u64,
    progress: usize,
}

impl Deadline {
    fn new(timeout_ms: u32) -> Self {
        let mut deadline = Self {
            timeout_ms,
            end: 0,
            progress: 0,
        };
        deadline.restart();
        deadline
    }

    fn restart(&mut self) {
        self.progress = 0;
        self.end = mono_ns().saturating_add(u64::from(self.timeout_ms).saturating_mul(1_000_000));
    }

    /// Notes that `bytes` got through.
    fn advance(&mut self, bytes: usize) {
        self.progress = self.progress.saturating_add(bytes);
        if self.progress >= PROGRESS {
            self.restart();
        }
    }

    /// The milliseconds that are left, rounded up.
    fn left_ms(&self) -> Result<u32> {
        if self.timeout_ms == u32::MAX {
            return Ok(u32::MAX);
        }
        match self.end.saturating_sub(mono_ns()).div_ceil(1_000_000) {
            0 => Err(ETIMEDOUT),
            left => Ok(u32::try_from(left).unwrap_or(self.timeout_ms)),
        }
    }
}

/// A socket that waits for connections; closed when dropped.
///
/// # Invariants
///
/// `sock` is a listening TCP socket that we own.
pub(crate) struct Listener {
    sock: NonNull<bindings::socket>,
}

// SAFETY: A kernel socket is bound to no thread.
unsafe impl Send for Listener {}
// SAFETY: Sockets are locked inside.
unsafe impl Sync for Listener {}

impl Listener {
    /// Listens on all addresses of this machine: IPv6 and IPv4, or IPv4 only where there is no
    /// IPv6.
    pub(crate) fn bind(port: u16) -> Result<Self> {
        match Self::bind_family(port, true) {
            Err(e) if e == EAFNOSUPPORT || e == EADDRNOTAVAIL || e == EPROTONOSUPPORT => {
                Self::bind_family(port, false)
            }
            result => result,
        }
    }

    fn bind_family(port: u16, v6: bool) -> Result<Self> {
        let mut sock = null_mut();
        // SAFETY: `sock` is valid for writing.
        to_result(unsafe { generated::mars_c_sock_listen(&mut sock, v6, port, BACKLOG) })?;
        // INVARIANT: The socket listens, and nobody else has it.
        Ok(Self {
            sock: NonNull::new(sock).ok_or(EIO)?,
        })
    }

    /// The next connection, or `None` when the time is over.
    pub(crate) fn accept(&self, timeout_ms: u32) -> Result<Option<Socket>> {
        let mut sock = null_mut();
        // SAFETY: By the type invariant; `sock` is valid for writing.
        let result = to_result(unsafe {
            generated::mars_c_sock_accept(self.sock.as_ptr(), &mut sock, timeout_ms)
        });
        match result {
            // INVARIANT: The socket is connected, and nobody else has it.
            Ok(()) => Ok(Some(Socket {
                sock: NonNull::new(sock).ok_or(EIO)?,
            })),
            Err(e) => match translate(e, ETIMEDOUT) {
                e if e == ETIMEDOUT => Ok(None),
                e => Err(e),
            },
        }
    }

    /// Stops listening; a waiting [`Listener::accept`] of another thread fails.
    pub(crate) fn shutdown(&self) {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_sock_shutdown(self.sock.as_ptr()) };
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; it is given up.
        unsafe { bindings::sock_release(self.sock.as_ptr()) };
    }
}

/// A TCP connection; closed when dropped.
///
/// One thread may send while another receives. Several senders, or several receivers, have to
/// take turns.
///
/// # Invariants
///
/// `sock` is a TCP socket that was connected and that we own.
pub(crate) struct Socket {
    sock: NonNull<bindings::socket>,
}

// SAFETY: A kernel socket is bound to no thread.
unsafe impl Send for Socket {}
// SAFETY: Sockets are locked inside.
unsafe impl Sync for Socket {}

impl Socket {
    /// Connects. `ETIMEDOUT` when nobody answers in time.
    pub(crate) fn connect(addr: &Addr, timeout_ms: u32) -> Result<Self> {
        let (v6, bytes) = addr.bytes();
        let mut sock = null_mut();
        // SAFETY: `sock` is valid for writing; `bytes` has the 16 bytes that IPv6 needs.
        to_result(unsafe {
            generated::mars_c_sock_connect(
                &mut sock,
                v6,
                bytes.as_ptr(),
                addr.port,
                addr.scope,
                timeout_ms,
            )
        })
        .map_err(|e| translate(e, ETIMEDOUT))?;
        // INVARIANT: The socket is connected, and nobody else has it.
        Ok(Self {
            sock: NonNull::new(sock).ok_or(EIO)?,
        })
    }

    /// Sends all of `data`, or fails; then it is unknown how much was sent.
    pub(crate) fn send_all(&self, data: &[u8], timeout_ms: u32) -> Result {
        self.send_all2(data, &[], timeout_ms)
    }

    /// Sends `head` and `data` as one piece, or fails.
    pub(crate) fn send_all2(&self, head: &[u8], data: &[u8], timeout_ms: u32) -> Result {
        let (mut head, mut data) = (head, data);
        let mut deadline = Deadline::new(timeout_ms);
        while !(head.is_empty() && data.is_empty()) {
            let left = deadline.left_ms()?;
            // SAFETY: By the type invariant; both are valid for reading their lengths.
            let sent = to_len(unsafe {
                generated::mars_c_sock_send(
                    self.sock.as_ptr(),
                    head.as_ptr().cast(),
                    head.len(),
                    data.as_ptr().cast(),
                    data.len(),
                    left,
                )
            });
            let sent = match sent {
                Ok(0) => return Err(EPIPE),
                Ok(sent) => sent,
                // Some of the time may remain if it was interrupted without a reason to stop.
                Err(e) => return Err(translate(e, ETIMEDOUT)),
            };
            deadline.advance(sent);
            let of_head = sent.min(head.len());
            head = head.get(of_head..).unwrap_or_default();
            data = data.get(sent.saturating_sub(of_head)..).unwrap_or_default();
        }
        Ok(())
    }

    /// One receive call: the number of bytes, 0 at the end of the stream.
    fn receive(&self, buf: &mut [u8], all: bool, peek: bool, timeout_ms: u32) -> Result<usize> {
        // SAFETY: By the type invariant; `buf` is valid for writing its length.
        to_len(unsafe {
            generated::mars_c_sock_recv(
                self.sock.as_ptr(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                all,
                peek,
                timeout_ms,
            )
        })
        .map_err(|e| translate(e, ETIMEDOUT))
    }

    /// Fills `buf`, or fails: `EPIPE` when the peer closed the connection before the first byte,
    /// `ECONNRESET` when it did so later or the connection broke, `ETIMEDOUT` when the time is
    /// over. After a failure in the middle the connection is of no more use.
    pub(crate) fn recv_exact(&self, buf: &mut [u8], timeout_ms: u32) -> Result {
        let mut deadline = Deadline::new(timeout_ms);
        let mut done: usize = 0;
        while let Some(rest) = buf.get_mut(done..) {
            if rest.is_empty() {
                break;
            }
            match self.receive(rest, true, false, deadline.left_ms()?)? {
                0 if done == 0 => return Err(EPIPE),
                0 => return Err(ECONNRESET),
                got => {
                    deadline.advance(got);
                    done = done.saturating_add(got);
                }
            }
        }
        Ok(())
    }

    /// Receives what there is, at least one byte. Errors as for [`Socket::recv_exact`].
    pub(crate) fn recv_some(&self, buf: &mut [u8], timeout_ms: u32) -> Result<usize> {
        if buf.is_empty() {
            return Err(EINVAL);
        }
        match self.receive(buf, false, false, timeout_ms)? {
            0 => Err(EPIPE),
            got => Ok(got),
        }
    }

    /// Waits until there is something to receive, or the end of the stream; `false` when the time
    /// is over. 0 only looks.
    pub(crate) fn poll_readable(&self, timeout_ms: u32) -> Result<bool> {
        match self.receive(&mut [0], false, true, timeout_ms) {
            Ok(_) => Ok(true),
            Err(e) if e == ETIMEDOUT => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Ends the connection in both directions; what other threads wait for in this socket fails.
    pub(crate) fn shutdown(&self) {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_sock_shutdown(self.sock.as_ptr()) };
    }

    /// Small messages are sent at once. All our sockets begin so.
    pub(crate) fn set_nodelay(&self) {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_sock_nodelay(self.sock.as_ptr()) };
    }

    /// What was received is acknowledged at once, for now; for receivers that do not answer.
    pub(crate) fn set_quickack(&self) {
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_sock_quickack(self.sock.as_ptr()) };
    }

    /// A silent peer is asked for a sign of life after `idle_s` seconds, every `interval_s`
    /// seconds, `count` times (at most 32767, 32767, 127).
    pub(crate) fn set_keepalive(&self, idle_s: u32, interval_s: u32, count: u32) -> Result {
        let (idle, interval, count) = (
            idle_s.try_into()?,
            interval_s.try_into()?,
            count.try_into()?,
        );
        // SAFETY: By the type invariant.
        to_result(unsafe {
            generated::mars_c_sock_keepalive(self.sock.as_ptr(), idle, interval, count)
        })
    }

    /// The connection breaks when sent data is not acknowledged for so long.
    pub(crate) fn set_user_timeout(&self, ms: u32) -> Result {
        let ms = ms.try_into()?;
        // SAFETY: By the type invariant.
        to_result(unsafe { generated::mars_c_sock_user_timeout(self.sock.as_ptr(), ms) })
    }

    /// The sizes of the buffers in bytes; 0 leaves one to the kernel's automatic tuning, which is
    /// best for most.
    pub(crate) fn set_bufs(&self, send: u32, receive: u32) -> Result {
        let (send, receive) = (send.try_into()?, receive.try_into()?);
        // SAFETY: By the type invariant.
        unsafe { generated::mars_c_sock_bufs(self.sock.as_ptr(), send, receive) };
        Ok(())
    }

    /// Who is at the other end; `ENOTCONN` when the connection has ended.
    pub(crate) fn peer(&self) -> Result<Addr> {
        let mut bytes = [0u8; 16];
        let (mut v6, mut port, mut scope) = (false, 0, 0);
        // SAFETY: By the type invariant; all are valid for writing, `bytes` for 16 bytes.
        to_result(unsafe {
            generated::mars_c_sock_peer(
                self.sock.as_ptr(),
                &mut v6,
                bytes.as_mut_ptr(),
                &mut port,
                &mut scope,
            )
        })?;
        let ip = match bytes {
            [a, b, c, d, ..] if !v6 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            _ => IpAddr::V6(Ipv6Addr::from(bytes)),
        };
        Ok(Addr {
            ip: ip.to_canonical(),
            port,
            scope,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; it is given up.
        unsafe { bindings::sock_release(self.sock.as_ptr()) };
    }
}
