// SPDX-License-Identifier: GPL-2.0-or-later

//! `/dev/mars/t0`, which passes everything on to another device, by every way there is.
//!
//! `/proc/sys/mars_selftest/disk` takes `pass <device>`, `careless <device>`, `size <bytes>`,
//! `begin-removal`, `cancel-removal` and `stop`; `/proc/sys/mars_selftest/holder` says who uses it.

use crate::{
    block::params,
    sys::{
        bdev::BlockDevice,
        bio::{self, BioList, BioOp, BioSetGuard, IncomingBio, IoGroup, Plug, Wake},
        buf::{Buf, Reserves},
        disk::{Disk, DiskOps, DiskParams},
        event::Event,
        sysctl::TextWriter,
        thread::{Thread, ThreadCtx},
    },
};
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{Atomic, Relaxed},
        new_mutex, Arc, Mutex,
    },
};

/// Number of threads that serve the disk.
const THREADS: usize = 2;

/// What bios become, chosen by where they are: all ways see all of the disk.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Remap,
    Clone,
    Group,
    Sync,
}

impl Way {
    fn of(bio: &IncomingBio) -> Self {
        match (bio.offset() >> 16) & 3 {
            0 => Self::Remap,
            1 => Self::Clone,
            2 => Self::Group,
            _ => Self::Sync,
        }
    }
}

/// What a serving thread waits for: bios that come in, and I/O that finishes.
#[pin_data]
struct Queue {
    #[pin]
    bios: Mutex<BioList>,
    event: Arc<Event>,
}

impl Queue {
    fn new() -> Result<Arc<Self>> {
        let event = Event::shared()?;
        Arc::pin_init(
            pin_init!(Self { bios <- new_mutex!(BioList::new()), event }),
            GFP_KERNEL,
        )
    }
}

/// The disk that passes everything on.
struct Pass {
    lower: Arc<BlockDevice>,
    queues: [Arc<Queue>; THREADS],
    opened: Atomic<i32>,
}

impl DiskOps for Pass {
    fn submit(&self, bio: IncomingBio) {
        if bio.len() > bio::MAX_BIO {
            bio.complete(Err(EINVAL));
            return;
        }
        if bio.op() == BioOp::Read && Way::of(&bio) == Way::Remap {
            bio.remap(&self.lower);
            return;
        }
        let n = (bio.offset() >> 18) as usize % THREADS;
        let queue = &self.queues[n];
        queue.bios.lock().push(bio);
        queue.event.signal();
    }

    fn opened(&self) {
        self.opened.add(1, Relaxed);
    }

    fn closed(&self) {
        self.opened.add(-1, Relaxed);
    }
}

fn finish(mut bio: IncomingBio, result: Result, buf: Option<Buf>) {
    let result = result.and_then(|()| {
        if let Some(buf) = buf {
            let mut at = 0;
            for piece in buf.chunks(1536) {
                bio.copy_from_buf(at, piece)?;
                at += piece.len() as u32;
            }
        }
        Ok(())
    });
    bio.complete(result);
}

/// A write as two parts of unequal length in separate memory.
fn write(lower: &Arc<BlockDevice>, group: &IoGroup<IncomingBio>, bio: IncomingBio) {
    let len = bio.len();
    let cut = (len / 3) & !(lower.logical_block_size() - 1);
    let offset = bio.offset();
    let fua = bio.is_fua();
    let copy = || -> Result<(Arc<Buf>, Arc<Buf>)> {
        if bio.is_preflush() {
            lower.flush()?;
        }
        let first = Arc::new(bio.new_buf(0, cut)?, GFP_KERNEL)?;
        let mut second = Buf::new((len - cut) as usize)?;
        bio.copy_to_buf(cut, &mut second)?;
        Ok((first, Arc::new(second, GFP_KERNEL)?))
    };
    let (a, b) = match copy() {
        Ok(parts) => parts,
        Err(e) => return bio.complete(Err(e)),
    };
    if Way::of(&bio) == Way::Sync {
        let r = lower
            .write_at(&a, 0, a.len(), offset, fua)
            .and_then(|()| lower.write_at(&b, 0, b.len(), offset + u64::from(cut), fua));
        return bio.complete(r);
    }
    let parts = [(&a, 0, cut), (&b, 0, len - cut)];
    let parts = parts.into_iter().filter(|p| p.2 != 0);
    if let Err((e, bio)) = group.submit_write(lower, offset, parts, fua, bio) {
        bio.complete(Err(e));
    }
}

fn read(lower: &Arc<BlockDevice>, group: &IoGroup<IncomingBio>, mut bio: IncomingBio) {
    let offset = bio.offset();
    let len = bio.len() as usize;
    match Way::of(&bio) {
        Way::Group => match Buf::new(len) {
            Ok(buf) => {
                if let Err((e, bio)) = group.submit_read(lower, offset, buf, bio) {
                    bio.complete(Err(e));
                }
            }
            Err(e) => bio.complete(Err(e)),
        },
        Way::Sync => {
            let r = (|| {
                let mut buf = Buf::new(len + 512)?;
                lower.read_at(&mut buf, 512, len, offset)?;
                bio.copy_from_buf(0, &buf[512..])
            })();
            bio.complete(r);
        }
        Way::Remap | Way::Clone => {
            let r = bio.read_through(lower);
            bio.complete(r);
        }
    }
}

fn reap(group: &IoGroup<IncomingBio>) {
    while let Some(done) = group.reap() {
        finish(done.tag, done.result, done.buf);
    }
}

fn serve(ctx: &ThreadCtx, lower: &Arc<BlockDevice>, queue: &Queue, group: IoGroup<IncomingBio>) {
    // What is written here may be the swap.
    let _reserves = Reserves::enter();
    while !ctx.should_stop() {
        let mut list = BioList::new();
        list.append(&mut queue.bios.lock());
        let plug = Plug::new();
        while let Some(bio) = list.pop() {
            match bio.op() {
                BioOp::Read => read(lower, &group, bio),
                BioOp::Write => write(lower, &group, bio),
                BioOp::Flush => {
                    if let Err((e, bio)) = group.submit_flush(lower, bio) {
                        bio.complete(Err(e));
                    }
                }
                _ => bio.complete(Err(EOPNOTSUPP)),
            }
        }
        drop(plug);
        reap(&group);
        queue.event.wait_timeout(10_000);
    }
    while group.in_flight() > 0 {
        group.wait(1000, 0);
        reap(&group);
    }
}

/// A disk that does wrong what can be done wrong.
struct Careless {
    lower: Arc<BlockDevice>,
    number: Atomic<u32>,
}

impl DiskOps for Careless {
    fn submit(&self, mut bio: IncomingBio) {
        let mut tmp = [0_u8; 16];
        let len = bio.len();
        let accepted = [
            bio.copy_to_buf(len, &mut tmp).is_ok(),
            bio.copy_to_buf(u32::MAX, &mut tmp).is_ok(),
            bio.copy_from_buf(len.wrapping_sub(1), &tmp).is_ok(),
            bio.zero(0, len.wrapping_add(1)).is_ok(),
            bio.new_buf(len, 1).is_ok(),
            bio.op() == BioOp::Write && bio.copy_from_buf(0, &tmp).is_ok(),
        ];
        if accepted.contains(&true) {
            pr_err!("selftest: accepted: {:?}\n", accepted);
        }
        match self.number.fetch_add(1, Relaxed) % 3 {
            0 => drop(bio),
            1 => {
                let mut list = BioList::new();
                list.push(bio);
                if list.len() != 1 || list.is_empty() {
                    pr_err!("selftest: a list of one is wrong\n");
                }
            }
            _ => {
                // Would never end, if it were not refused.
                let read = bio.op() == BioOp::Read;
                let through = bio.read_through(&self.lower);
                if read && through != Err(EDEADLK) || self.lower.flush() != Err(EDEADLK) {
                    pr_err!("selftest: waiting in submit was allowed\n");
                }
                bio.complete(Err(ENOSPC));
            }
        }
    }
}

/// A disk and what it needs, in drop order.
enum Running {
    Pass {
        disk: Disk<Pass>,
        _threads: [Thread; THREADS],
        _bios: BioSetGuard,
    },
    Careless {
        disk: Disk<Careless>,
        _bios: BioSetGuard,
    },
}

impl Running {
    fn pass(path: &CStr) -> Result<Self> {
        let bios = bio::init()?;
        let lower = Arc::new(BlockDevice::open(path, true)?, GFP_KERNEL)?;
        let queues = [Queue::new()?, Queue::new()?];
        let spawn = |queue: &Arc<Queue>| {
            let lower = lower.clone();
            let queue = queue.clone();
            let waker: Arc<dyn Wake> = queue.event.clone();
            let group = IoGroup::with_waker(Some(waker))?;
            Thread::spawn(c"selftest_disk", move |ctx| {
                serve(ctx, &lower, &queue, group)
            })
        };
        let threads = [spawn(&queues[0])?, spawn(&queues[1])?];
        let params = params(&lower);
        let ops = Pass {
            lower,
            queues,
            opened: Atomic::new(0),
        };
        Ok(Self::Pass {
            disk: Disk::new("t0", &params, Arc::new(ops, GFP_KERNEL)?)?,
            _threads: threads,
            _bios: bios,
        })
    }

    fn careless(path: &CStr) -> Result<Self> {
        let bios = bio::init()?;
        let lower = Arc::new(BlockDevice::open(path, true)?, GFP_KERNEL)?;
        let params = DiskParams {
            write_cache: false,
            ..params(&lower)
        };
        let number = Atomic::new(0);
        let ops = Arc::new(Careless { lower, number }, GFP_KERNEL)?;
        Ok(Self::Careless {
            disk: Disk::new("t0", &params, ops)?,
            _bios: bios,
        })
    }
}

/// The one disk that can be there.
#[pin_data]
pub(crate) struct TestDisk {
    #[pin]
    running: Mutex<Option<Running>>,
}

impl TestDisk {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(pin_init!(Self { running <- new_mutex!(None) }), GFP_KERNEL)
    }

    pub(crate) fn command(&self, input: &[u8]) -> Result {
        let input = core::str::from_utf8(input).map_err(|_| EINVAL)?;
        let (command, arg) = input.split_once(' ').unwrap_or((input, ""));
        let arg = CString::try_from_fmt(fmt!("{}", arg))?;
        let mut running = self.running.lock();
        match (command, &mut *running) {
            ("pass", none @ None) => *none = Some(Running::pass(&arg)?),
            ("careless", none @ None) => *none = Some(Running::careless(&arg)?),
            ("stop", some) => *some = None,
            ("size", Some(Running::Pass { disk, .. })) => {
                disk.set_size(arg.to_str()?.parse().map_err(|_| EINVAL)?);
            }
            ("begin-removal", Some(Running::Pass { disk, .. })) => {
                if !disk.begin_removal() {
                    return Err(EBUSY);
                }
            }
            ("cancel-removal", Some(Running::Pass { disk, .. })) => disk.cancel_removal(),
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// Who has the disk open, as text.
    pub(crate) fn holder(&self, out: &mut TextWriter) -> Result {
        let mut text = KVec::new();
        match &*self.running.lock() {
            Some(Running::Pass { disk, .. }) => disk.holder(&mut text)?,
            Some(Running::Careless { disk, .. }) => disk.holder(&mut text)?,
            None => return Err(ENODEV),
        }
        out.bytes(&text)?;
        out.bytes(b"\n")
    }
}
