// SPDX-License-Identifier: GPL-2.0-or-later

//! Sockets over the loopback interface.

use crate::sys::{
    event::Event,
    socket::{Addr, Listener, Socket},
    thread::{Thread, ThreadCtx},
    time::mono_ns,
};
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

const PORT: u16 = 17_777;
const LONG: u32 = 30_000;

pub(crate) fn addresses(_: &ThreadCtx, _: &CStr) -> Result {
    for (text, shown) in [
        ("1.2.3.4", "1.2.3.4:7777"),
        (" 1.2.3.4:1\n", "1.2.3.4:1"),
        ("::1", "[::1]:7777"),
        ("[::1]", "[::1]:7777"),
        ("[2001:db8::5]:65535", "[2001:db8::5]:65535"),
        ("::ffff:10.0.0.1", "10.0.0.1:7777"),
        ("fe80::1%1", "[fe80::1%1]:7777"),
        ("[fe80::1%lo]:9", "[fe80::1%1]:9"),
    ] {
        let addr = ok!(Addr::parse(text.as_bytes(), 7777));
        let real = ok!(CString::try_from_fmt(fmt!("{}", addr)));
        check!(real.to_bytes() == shown.as_bytes(), real);
        let again = ok!(Addr::parse(real.to_bytes(), 1));
        check!(again == addr, again, addr);
        check!(addr.with_port(5).port() == 5 && addr.with_port(5).ip() == addr.ip());
    }
    for text in [
        "",
        ":",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.4:",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:+5",
        "1.2.3.4:x",
        "[::1",
        "[::1]x",
        "[::1]:",
        "::1::",
        "host",
        "1.2.3.4%1",
        "fe80::1%",
        "fe80::1%0",
        "[]:1",
        "\u{e4}",
        "fe80::1%01234567890123456",
    ] {
        fails!(Addr::parse(text.as_bytes(), 7777), EINVAL);
    }
    fails!(Addr::parse(b"fe80::1%nothing", 7777), ENODEV);
    fails!(Addr::parse(b"\xff\xfe", 7777), EINVAL);
    Ok(())
}

/// A connection of two sockets.
fn pair(addr: &[u8]) -> Result<(Socket, Socket)> {
    let listener = Listener::bind(PORT)?;
    let client = Socket::connect(&Addr::parse(addr, PORT)?, LONG)?;
    let server = listener.accept(LONG)?.ok_or(ETIMEDOUT)?;
    Ok((client, server))
}

pub(crate) fn transfer(_: &ThreadCtx, addr: &CStr) -> Result {
    let addr = addr.to_bytes();
    // The port can be had again at once, as after a restart.
    for _ in 0..50 {
        let (client, server) = ok!(pair(addr));
        ok!(client.send_all(b"x", LONG));
        ok!(server.recv_exact(&mut [0], LONG));
        drop(server);
        drop(client);
    }
    let (client, server) = ok!(pair(addr));
    let peer = ok!(client.peer());
    check!(peer == ok!(Addr::parse(addr, PORT)), peer);
    check!(ok!(server.peer()).ip() == peer.ip());
    client.set_nodelay();
    client.set_quickack();
    ok!(client.set_keepalive(5, 2, 3));
    fails!(client.set_keepalive(5, 2, 1000), EINVAL);
    ok!(client.set_user_timeout(10_000));
    ok!(client.set_bufs(0, 0));

    // An echo of messages of all sizes, sent in two parts, and more than buffers hold.
    let echo = ok!(Thread::spawn(c"echo", move |_| {
        let Ok(mut buf) = KVVec::from_elem(0u8, 1 << 20, GFP_KERNEL) else {
            return;
        };
        while let Ok(len) = server.recv_some(&mut buf, LONG) {
            if server.send_all(&buf[..len], LONG).is_err() {
                break;
            }
        }
    }));
    let mut data = ok!(KVVec::from_elem(0u8, 200_000, GFP_KERNEL));
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = (i ^ (i >> 8)) as u8;
    }
    let mut back = ok!(KVVec::from_elem(0u8, 200_000, GFP_KERNEL));
    for (head, len) in [
        (0, 1),
        (1, 0),
        (24, 0),
        (24, 1),
        (24, 4096),
        (24, 70_000),
        (100_000, 100_000),
    ] {
        ok!(client.send_all2(&data[..head], &data[head..head + len], LONG));
        back.fill(0);
        ok!(client.recv_exact(&mut back[..head + len], LONG));
        check!(back[..head + len] == data[..head + len], head, len);
    }
    ok!(client.send_all2(&[], &[], LONG));
    ok!(client.recv_exact(&mut [], LONG));
    check!(!ok!(client.poll_readable(0)));
    client.shutdown();
    drop(echo);
    drop(client);

    // 64 MiB in one direction, with fixed buffers.
    let (client, server) = ok!(pair(addr));
    ok!(client.set_bufs(100_000, 100_000));
    ok!(server.set_bufs(100_000, 100_000));
    let sender = ok!(Thread::spawn(c"sender", move |_| {
        let Ok(data) = KVVec::from_elem(7u8, 1 << 20, GFP_KERNEL) else {
            return;
        };
        for i in 0..64u64 {
            if client.send_all2(&i.to_le_bytes(), &data, LONG).is_err() {
                return;
            }
        }
    }));
    let mut data = ok!(KVVec::from_elem(0u8, 1 << 20, GFP_KERNEL));
    for i in 0..64u64 {
        let mut head = [0; 8];
        ok!(server.recv_exact(&mut head, LONG));
        check!(u64::from_le_bytes(head) == i, head);
        ok!(server.recv_exact(&mut data, LONG));
        check!(data.iter().all(|byte| *byte == 7));
    }
    fails!(server.recv_exact(&mut [0], LONG), EPIPE);
    drop(sender);
    Ok(())
}

/// Whether something that began at `begin` took about so long.
fn took(begin: u64, ms: u64) -> bool {
    let passed = (mono_ns() - begin) / 1_000_000;
    // Timeouts are counted in ticks; the first may be nearly over.
    let good = passed + 5 >= ms && passed < ms + 3000;
    if !good {
        pr_err!("selftest: it took {} ms instead of {}\n", passed, ms);
    }
    good
}

pub(crate) fn timeouts(ctx: &ThreadCtx, addr: &CStr) -> Result {
    let (client, server) = ok!(pair(addr.to_bytes()));
    let begin = mono_ns();
    fails!(client.recv_exact(&mut [0; 4], 200), ETIMEDOUT);
    check!(took(begin, 200));
    let begin = mono_ns();
    fails!(client.recv_some(&mut [0; 4], 200), ETIMEDOUT);
    check!(took(begin, 200));
    let begin = mono_ns();
    check!(!ok!(client.poll_readable(200)));
    check!(took(begin, 200));
    fails!(client.recv_exact(&mut [0; 4], 0), ETIMEDOUT);

    // A part does not help.
    ok!(server.send_all(b"ab", LONG));
    check!(ok!(client.poll_readable(LONG)));
    let begin = mono_ns();
    fails!(client.recv_exact(&mut [0; 4], 300), ETIMEDOUT);
    check!(took(begin, 300));

    // One byte now and then does not prolong the time of a short message.
    let (client, server) = ok!(pair(addr.to_bytes()));
    let drip = ok!(Thread::spawn(c"drip", move |ctx| {
        while !ctx.should_stop() && server.send_all(b"x", LONG).is_ok() {
            ctx.sleep_ms(50);
        }
    }));
    let begin = mono_ns();
    fails!(client.recv_exact(&mut [0; 1000], 500), ETIMEDOUT);
    check!(took(begin, 500));
    drop(drip);

    // A slow but steady stream does: 12 × 16 KiB in more than the time for one.
    let (client, server) = ok!(pair(addr.to_bytes()));
    let slow = ok!(Thread::spawn(c"slow", move |ctx| {
        let Ok(data) = KVec::from_elem(1u8, 17 << 10, GFP_KERNEL) else {
            return;
        };
        for _ in 0..12 {
            if server.send_all(&data, LONG).is_err() {
                return;
            }
            ctx.sleep_ms(300);
        }
    }));
    let mut data = ok!(KVVec::from_elem(0u8, 12 * (17 << 10), GFP_KERNEL));
    let begin = mono_ns();
    ok!(client.recv_exact(&mut data, 2000));
    check!(took(begin, 3000));
    drop(slow);

    // Nobody reads.
    let (client, server) = ok!(pair(addr.to_bytes()));
    ok!(client.set_bufs(50_000, 50_000));
    ok!(server.set_bufs(50_000, 50_000));
    let data = ok!(KVVec::from_elem(0u8, 8 << 20, GFP_KERNEL));
    let begin = mono_ns();
    fails!(client.send_all(&data, 500), ETIMEDOUT);
    check!(mono_ns() - begin < 10_000_000_000);
    drop(server);

    // Nobody comes, nobody listens.
    let listener = ok!(Listener::bind(PORT));
    let begin = mono_ns();
    check!(ok!(listener.accept(200)).is_none());
    check!(took(begin, 200));
    check!(ok!(listener.accept(0)).is_none());
    fails!(Listener::bind(PORT), EADDRINUSE);
    drop(listener);
    let addr = ok!(Addr::parse(addr.to_bytes(), PORT));
    fails!(Socket::connect(&addr, LONG), ECONNREFUSED);
    check!(!ctx.should_stop());
    Ok(())
}

pub(crate) fn closing(_: &ThreadCtx, addr: &CStr) -> Result {
    // The other side closes between messages, within one, and without reading all.
    let (client, server) = ok!(pair(addr.to_bytes()));
    drop(server);
    check!(ok!(client.poll_readable(LONG)));
    fails!(client.recv_exact(&mut [0; 4], LONG), EPIPE);
    fails!(client.recv_some(&mut [0; 4], LONG), EPIPE);
    let mut result = Ok(());
    for _ in 0..100 {
        result = client.send_all(b"hello", LONG);
        if result.is_err() {
            break;
        }
        crate::sys::time::sleep_ms(1);
    }
    check!(result == Err(EPIPE) || result == Err(ECONNRESET), result);

    let (client, server) = ok!(pair(addr.to_bytes()));
    ok!(server.send_all(b"ab", LONG));
    drop(server);
    fails!(client.recv_exact(&mut [0; 4], LONG), ECONNRESET);

    let (client, server) = ok!(pair(addr.to_bytes()));
    ok!(client.send_all(b"unread", LONG));
    check!(ok!(server.poll_readable(LONG)));
    drop(server);
    fails!(client.recv_exact(&mut [0; 4], LONG), ECONNRESET);
    fails!(client.peer(), ENOTCONN);
    Ok(())
}

/// What a thread waits for in a socket.
type Wait = fn(&Socket, &Listener) -> Result;

const WAITS: &[(&str, Wait)] = &[
    ("recv_exact", |s, _| s.recv_exact(&mut [0; 100], u32::MAX)),
    ("recv_exact with limit", |s, _| {
        s.recv_exact(&mut [0; 100], 1_000_000)
    }),
    ("recv_some", |s, _| {
        s.recv_some(&mut [0; 100], u32::MAX).map(drop)
    }),
    ("poll_readable", |s, _| {
        // The end of the stream is something to read.
        s.poll_readable(u32::MAX)?;
        s.recv_exact(&mut [0], u32::MAX)
    }),
    ("send_all", |s, _| {
        let data = KVVec::from_elem(0u8, 1 << 20, GFP_KERNEL)?;
        loop {
            s.send_all(&data, u32::MAX)?;
        }
    }),
    ("accept", |_, l| l.accept(u32::MAX).map(drop)),
];

/// Starts a thread that waits, and lets `end` end it; how long that took, and with which errno.
fn waiting(
    ctx: &ThreadCtx,
    addr: &[u8],
    wait: Wait,
    end: impl FnOnce(&Socket, &Listener, &Thread),
) -> Result<i32> {
    let listener = Arc::new(Listener::bind(PORT)?, GFP_KERNEL)?;
    let client = Socket::connect(&Addr::parse(addr, PORT)?, LONG)?;
    let server = Arc::new(listener.accept(LONG)?.ok_or(ETIMEDOUT)?, GFP_KERNEL)?;
    let result = Arc::new(Atomic::new(1i32), GFP_KERNEL)?;
    let ready = Event::shared()?;
    let thread = {
        let (s, l, r, e) = (
            server.clone(),
            listener.clone(),
            result.clone(),
            ready.clone(),
        );
        Thread::spawn(c"waiting", move |_| {
            e.signal();
            let result = wait(&s, &l);
            r.store(result.map_or_else(|e| e.to_errno(), |()| 0), Relaxed);
        })?
    };
    ready.wait_timeout(u32::MAX);
    ctx.sleep_ms(100);
    let early = thread.is_finished();
    let begin = mono_ns();
    end(&server, &listener, &thread);
    for _ in 0..5000 {
        if thread.is_finished() {
            break;
        }
        ctx.sleep_ms(1);
    }
    let late = !thread.is_finished();
    let passed = mono_ns() - begin;
    drop(thread);
    drop(client);
    if early || late || passed > 2_000_000_000 {
        pr_err!(
            "selftest: early {} late {} {} ns, {}\n",
            early,
            late,
            passed,
            result.load(Relaxed)
        );
        return Err(EIO);
    }
    Ok(result.load(Relaxed))
}

/// Another thread shuts the socket down.
pub(crate) fn shutdown(ctx: &ThreadCtx, addr: &CStr) -> Result {
    for (name, wait) in WAITS {
        let errno = waiting(ctx, addr.to_bytes(), *wait, |socket, listener, _| {
            socket.shutdown();
            listener.shutdown();
        });
        let errno = ok!(errno);
        let good = match *name {
            "accept" => errno == EINVAL.to_errno(),
            _ => errno == EPIPE.to_errno() || errno == ECONNRESET.to_errno(),
        };
        check!(good, name, errno);
    }
    Ok(())
}

/// The thread is asked to stop.
pub(crate) fn stop(ctx: &ThreadCtx, addr: &CStr) -> Result {
    for (name, wait) in WAITS {
        for _ in 0..3 {
            let errno = waiting(ctx, addr.to_bytes(), *wait, |_, _, thread| {
                thread.request_stop();
            });
            let errno = ok!(errno);
            check!(errno == EINTR.to_errno(), name, errno);
        }
    }
    Ok(())
}

/// The address is one that swallows everything.
pub(crate) fn black_hole(ctx: &ThreadCtx, addr: &CStr) -> Result {
    let addr = ok!(Addr::parse(addr.to_bytes(), PORT));
    let begin = mono_ns();
    fails!(Socket::connect(&addr, 500), ETIMEDOUT);
    check!(took(begin, 500));
    for request in [true, false] {
        let result = ok!(Arc::new(Atomic::new(1i32), GFP_KERNEL));
        let inner = result.clone();
        let thread = ok!(Thread::spawn(c"connect", move |_| {
            let errno = Socket::connect(&addr, u32::MAX).map_or_else(|e| e.to_errno(), |_| 0);
            inner.store(errno, Relaxed);
        }));
        ctx.sleep_ms(200);
        check!(!thread.is_finished());
        let begin = mono_ns();
        if request {
            thread.request_stop();
        }
        drop(thread);
        check!(took(begin, 0));
        let errno = result.load(Relaxed);
        check!(errno == EINTR.to_errno(), errno);
    }
    Ok(())
}

/// Requests and answers must not wait for delayed acknowledgements (40 ms).
pub(crate) fn latency(_: &ThreadCtx, addr: &CStr) -> Result {
    let (client, server) = ok!(pair(addr.to_bytes()));
    let echo = ok!(Thread::spawn(c"answer", move |_| {
        let mut head = [0; 24];
        let mut data = [0; 500];
        while server.recv_exact(&mut head, LONG).is_ok()
            && server.recv_exact(&mut data, LONG).is_ok()
            && server.send_all2(&head, &data, LONG).is_ok()
        {}
    }));
    // A few slow ones are a busy machine; a trap would catch every one.
    let (mut fast, mut fast_split) = (0, 0);
    for _ in 0..200 {
        let begin = mono_ns();
        ok!(client.send_all2(&[1; 24], &[2; 500], LONG));
        ok!(client.recv_exact(&mut [0; 524], LONG));
        fast += u32::from(mono_ns() - begin < 30_000_000);
        // Also where one message is two calls.
        let begin = mono_ns();
        ok!(client.send_all(&[1; 24], LONG));
        ok!(client.send_all(&[2; 500], LONG));
        ok!(client.recv_exact(&mut [0; 24], LONG));
        ok!(client.recv_exact(&mut [0; 500], LONG));
        fast_split += u32::from(mono_ns() - begin < 30_000_000);
    }
    check!(fast > 100 && fast_split > 100, fast, fast_split);
    client.shutdown();
    drop(echo);
    Ok(())
}
