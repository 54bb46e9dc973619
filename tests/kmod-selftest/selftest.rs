// SPDX-License-Identifier: GPL-2.0-or-later

//! A module that tries the system layer (`src/sys`) inside a real kernel.
//!
//! `echo "<case> <argument>" > /proc/sys/mars_selftest/run` runs a case in a kernel thread, as all
//! of MARS runs, and fails if the case does; why, the kernel log says. The pytest side is
//! `tests/test_sys.py`.

#![crate_name = "mars_selftest"]

use kernel::{
    prelude::*,
    str::CString,
    sync::{new_mutex, Arc, Completion, Mutex},
};
use sys::{
    notifier::RebootNotifier,
    sysctl::{Sysctl, Tunable},
    thread::{Thread, ThreadCtx},
};

/// Whether a condition holds; if not, the log says where.
macro_rules! check {
    ($cond:expr $(, $arg:expr)*) => {
        if !$cond {
            pr_err!("{}:{}: not true: {}\n", file!(), line!(), stringify!($cond));
            $( pr_err!("  {} = {:?}\n", stringify!($arg), $arg); )*
            return Err(EINVAL);
        }
    };
}

/// The value of a result; if it is an error, the log says where.
macro_rules! ok {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(e) => {
                pr_err!(
                    "{}:{}: {:?}: {}\n",
                    file!(),
                    line!(),
                    Error::from(e),
                    stringify!($result)
                );
                return Err(EINVAL);
            }
        }
    };
}

/// Whether a result is a certain error.
macro_rules! fails {
    ($result:expr, $error:expr) => {
        match $result {
            Ok(_) => {
                pr_err!(
                    "{}:{}: no error: {}\n",
                    file!(),
                    line!(),
                    stringify!($result)
                );
                return Err(EINVAL);
            }
            Err(e) => check!(Error::from(e) == $error, e),
        }
    };
}

#[allow(
    dead_code,
    reason = "it is there for MARS; not all of it is tried here"
)]
#[path = "../../src/sys/mod.rs"]
mod sys;

mod basics;
mod block;
mod disk;
mod files;
mod names;
mod sockets;
mod threads;

module! {
    type: Selftest,
    name: "mars_selftest",
    authors: ["The MARS in Rust authors"],
    description: "Tests of the system layer of MARS",
    license: "GPL",
}

/// A case gets its thread's context and what stands behind its name.
type Case = fn(&ThreadCtx, &CStr) -> Result;

const CASES: &[(&str, Case)] = &[
    ("digests", basics::digests),
    ("clocks", basics::clocks),
    ("nodename", basics::nodename),
    ("ratelimit", basics::ratelimit),
    ("sysctl-churn", basics::sysctl_churn),
    ("notifier-churn", basics::notifier_churn),
    ("block-open", block::block_open),
    ("block-many", block::block_many),
    ("block-groups", block::block_groups),
    ("block-zeroes", block::block_zeroes),
    ("block-finish-race", block::block_finish_race),
    ("block-errors", block::block_errors),
    ("disk-churn", block::disk_churn),
    ("files", files::files),
    ("direct", files::direct),
    ("enospc", files::enospc),
    ("after-stop", files::after_stop),
    ("names", names::names),
    ("links", names::links),
    ("links-parallel", names::links_parallel),
    ("list-many", names::list_many),
    ("mount-root", names::mount_root),
    ("not-mount-root", names::not_mount_root),
    ("addresses", sockets::addresses),
    ("transfer", sockets::transfer),
    ("timeouts", sockets::timeouts),
    ("closing", sockets::closing),
    ("shutdown", sockets::shutdown),
    ("stop", sockets::stop),
    ("black-hole", sockets::black_hole),
    ("latency", sockets::latency),
    ("threads", threads::threads),
    ("stop-races", threads::stop_races),
    ("stop-many", threads::stop_many),
    ("detach", threads::detach),
    ("events", threads::events),
    ("event-storm", threads::event_storm),
];

/// The result of one run, handed over by its thread.
#[pin_data]
struct Run {
    #[pin]
    result: Mutex<Result>,
    #[pin]
    done: Completion,
}

fn run(input: &[u8]) -> Result {
    let input = core::str::from_utf8(input).map_err(|_| EINVAL)?;
    let (name, arg) = input.split_once(' ').unwrap_or((input, ""));
    let (_, case) = CASES.iter().find(|case| case.0 == name).ok_or(ENOENT)?;
    let arg = CString::try_from_fmt(fmt!("{}", arg))?;
    let shared = Arc::pin_init(
        pin_init!(Run { result <- new_mutex!(Err(EIO)), done <- Completion::new() }),
        GFP_KERNEL,
    )?;
    let thread = {
        let shared = shared.clone();
        Thread::spawn(c"selftest", move |ctx| {
            let result = case(ctx, &arg);
            *shared.result.lock() = result;
            shared.done.complete_all();
        })?
    };
    shared.done.wait_for_completion();
    drop(thread);
    let result = *shared.result.lock();
    result
}

static NUMBER: Tunable<u32> = Tunable::new(c"number", 7, 5, 10);
static BIG: Tunable<u64> = Tunable::new(c"big", 1 << 40, 0, u64::MAX);

struct Selftest {
    _sysctl: Sysctl,
    _notifier: RebootNotifier,
}

impl kernel::Module for Selftest {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let disk = disk::TestDisk::new()?;
        let holder = disk.clone();
        let sysctl = Sysctl::builder()
            .trigger(c"run", run)?
            .trigger(c"disk", move |input| disk.command(input))?
            .text(c"holder", move |out| holder.holder(out))?
            .text(c"cases", |out| {
                for (name, _) in CASES {
                    out.print(fmt!("{}\n", name))?;
                }
                Ok(())
            })?
            .text(c"long", |out| {
                for i in 0..20_000 {
                    out.print(fmt!("line {}\n", i))?;
                }
                Ok(())
            })?
            .text(c"too-long", |out| loop {
                out.bytes(&[b'x'; 64])?;
            })?
            .text(c"failing", |_| Err(ENODATA))?
            .text(c"slow", |out| {
                pr_info!("selftest: a slow reader\n");
                sys::time::sleep_ms(2000);
                out.bytes(b"slow\n")
            })?
            .tunable_u32(&NUMBER)?
            .tunable_u64(&BIG)?
            .register(c"mars_selftest")?;
        let notifier = RebootNotifier::register(|| pr_info!("selftest: the machine goes down\n"))?;
        Ok(Self {
            _sysctl: sysctl,
            _notifier: notifier,
        })
    }
}
