// SPDX-License-Identifier: GPL-2.0-or-later

//! Digests, clocks, limits of messages, registrations.

use crate::sys::{
    checksum::{crc32c, hmac_sha256, md5, random, sha256},
    host,
    log::log_warn,
    notifier::RebootNotifier,
    sysctl::{Sysctl, Tunable},
    thread::ThreadCtx,
    time,
};
use kernel::prelude::*;

/// The bytes of a hexadecimal text.
fn hex<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap_or(0);
    }
    out
}

pub(crate) fn digests(_: &ThreadCtx, _: &CStr) -> Result {
    check!(!crc32c(!0, b"123456789") == 0xe306_9283);
    check!(!crc32c(crc32c(!0, b"1234"), b"56789") == 0xe306_9283);
    check!(crc32c(5, b"") == 5);
    check!(md5(&[b"a", b"", b"bc"]) == hex("900150983cd24fb0d6963f7d28e17f72"));
    check!(md5(&[]) == hex("d41d8cd98f00b204e9800998ecf8427e"));
    let abc = hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check!(sha256(&[b"abc"]) == abc);
    check!(sha256(&[b"a", b"b", b"c", b""]) == abc);
    // RFC 4231, test cases 2 and 6.
    check!(
        hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"])
            == hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    );
    check!(
        hmac_sha256(
            &[0xaa; 131],
            &[b"Test Using Larger Than Block-Size Key - Hash Key First"]
        ) == hex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")
    );
    let (mut a, mut b) = ([0; 32], [0; 32]);
    random(&mut a);
    random(&mut b);
    check!(a != b && a != [0; 32]);
    Ok(())
}

pub(crate) fn clocks(ctx: &ThreadCtx, _: &CStr) -> Result {
    let (sec, nsec) = time::real_now();
    check!(sec > 1_700_000_000 && nsec < 1_000_000_000, sec, nsec);
    let begin = time::mono_ns();
    time::sleep_ms(20);
    ctx.sleep_ms(20);
    let passed = time::mono_ns() - begin;
    check!((40_000_000..5_000_000_000).contains(&passed), passed);
    Ok(())
}

pub(crate) fn nodename(_: &ThreadCtx, name: &CStr) -> Result {
    let real = ok!(host::nodename());
    check!(&real[..] == name.to_bytes(), real);
    Ok(())
}

/// The test counts the lines.
pub(crate) fn ratelimit(ctx: &ThreadCtx, _: &CStr) -> Result {
    for i in 0..51 {
        if i == 50 {
            ctx.sleep_ms(5100);
        }
        log_warn!("selftest: message {}\n", i);
    }
    Ok(())
}

static CHURN: Tunable<u32> = Tunable::new(c"number", 1, 0, 100);

/// Registers and unregisters a directory while the test reads and writes in it.
pub(crate) fn sysctl_churn(ctx: &ThreadCtx, _: &CStr) -> Result {
    for round in 0..300u32 {
        let text = ok!(KBox::new([b'x'; 1000], GFP_KERNEL));
        let dir = ok!(Sysctl::builder()
            .text(c"text", move |out| {
                out.print(fmt!("{} ", round))?;
                out.bytes(&text[..])
            })
            .and_then(|b| b.trigger(c"trigger", |input| {
                if input == b"good" {
                    Ok(())
                } else {
                    Err(EINVAL)
                }
            }))
            .and_then(|b| b.tunable_u32(&CHURN))
            .and_then(|b| b.register(c"mars_selftest_churn")));
        ctx.sleep_ms(10);
        drop(dir);
    }
    Ok(())
}

pub(crate) fn notifier_churn(_: &ThreadCtx, _: &CStr) -> Result {
    for _ in 0..1000 {
        let one = ok!(RebootNotifier::register(|| ()));
        let two = ok!(RebootNotifier::register(|| ()));
        drop(one);
        drop(two);
    }
    Ok(())
}
