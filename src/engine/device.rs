// SPDX-License-Identifier: GPL-2.0-or-later

//! `/dev/mars/<resource>`: what the application's bios become.
//!
//! A write is copied and checksummed into the write buffer and is complete, as with any disk that has a volatile write
//! cache (unless `mars_core::completion` says that it waits); a flush or FUA waits until everything admitted before it is
//! durable in the log. Discards and writes of zeros are
//! records like any other, only without data. A read goes to the backing disk unless buffered data overlaps it.
//!
//! Context: [`DiskOps::submit`] runs in the submitter's context and may sleep (bio based disk), but must not wait for a
//! bio of its own: those queue up behind it. Reads that need disk *and* buffer are therefore given to a thread. Nothing
//! here waits for the network (P3).
//!
//! A write out of the kernel's reclaim (swap, above all) is only put in a queue, which needs no memory, and admitted by a
//! thread. Its submitter may hold whatever it held when it asked for memory: a transaction of the file system of `/mars`, for
//! example, without which the log does not get on, and without that nothing makes room in the write buffer.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Arc,
        Mutex, //
    }, //
};

use mars_core::{
    buffer::{
        gaps,
        Coverage,
        Kind,
        Overlap, //
    },
    completion,
    digest::crc,
    log::MAX_PAYLOAD, //
};

use crate::{
    engine::{
        clock::Clock,
        digest::KernelDigest,
        inject,
        member::Member,
        pipeline::{
            Pipeline,
            Slice, //
        },
        tunables, //
    },
    sys::{
        bio::{
            BioList,
            BioOp,
            IncomingBio, //
        },
        buf::{
            in_reclaim,
            reclaims,
            Buf,
            Reserves, //
        },
        disk::DiskOps,
        event::Event,
        thread::{
            NoIo,
            Thread,
            ThreadCtx, //
        },
        time, //
    }, //
};

/// Writes out of reclaim that may wait before the next one is slowed down (not stopped): as many as device mapper lets pass
/// for swap.
const MANY_DEFERRED: usize = 2048;

/// A read that needs the disk first and the buffer after.
struct MixedRead {
    bio: IncomingBio,
    /// Pinned when the read came in, so that write-back can't drop it meanwhile.
    overlaps: KVec<Overlap<Slice>>,
}

/// Counters of one device.
pub(crate) struct Counters {
    /// Writes admitted.
    pub(crate) writes: Atomic<u64>,
    /// Bytes admitted.
    pub(crate) write_bytes: Atomic<u64>,
    /// Reads.
    pub(crate) reads: Atomic<u64>,
}

/// The operations behind one disk.
#[pin_data]
pub(crate) struct Device {
    pipe: Arc<Pipeline>,
    clock: Arc<Clock>,
    /// Whom to tell that the device was opened or closed.
    member: Arc<Member>,
    #[pin]
    mixed: Mutex<KVec<MixedRead>>,
    #[pin]
    mixed_work: Event,
    /// Writes out of reclaim.
    #[pin]
    deferred: Mutex<BioList>,
    #[pin]
    deferred_work: Event,
    /// What went through.
    pub(crate) counters: Counters,
}

impl Device {
    /// Makes the operations of a device over `pipe`.
    pub(crate) fn new(pipe: Arc<Pipeline>, member: Arc<Member>) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                pipe,
                clock: member.env.clock.clone(),
                member,
                mixed <- new_mutex!(KVec::new()),
                mixed_work <- Event::new(),
                deferred <- new_mutex!(BioList::new()),
                deferred_work <- Event::new(),
                counters: Counters {
                    writes: Atomic::new(0),
                    write_bytes: Atomic::new(0),
                    reads: Atomic::new(0),
                },
            }),
            GFP_KERNEL,
        )
    }

    /// Spawns the thread that serves reads which need disk and buffer.
    pub(crate) fn spawn_reader(self: &Arc<Self>, name: &CStr) -> Result<Thread> {
        let device = self.clone();
        Thread::spawn(name, move |ctx| device.serve_mixed(ctx))
    }

    /// Spawns the thread that admits writes out of reclaim.
    pub(crate) fn spawn_writer(self: &Arc<Self>, name: &CStr) -> Result<Thread> {
        let device = self.clone();
        Thread::spawn(name, move |ctx| device.serve_deferred(ctx))
    }

    fn defer(&self, bio: IncomingBio) {
        if bio.is_swap() || reclaims() {
            self.pipe.reclaimed_ns.store(time::mono_ns(), Relaxed);
        }
        self.deferred.lock().push(bio);
        self.deferred_work.signal();
        // Reclaim has to notice that the device is slow, or it takes memory for lost. Never longer than it would wait itself.
        for _ in 0..10 {
            if self.deferred.lock().len() <= MANY_DEFERRED {
                break;
            }
            time::sleep_ms(10);
        }
    }

    fn serve_deferred(&self, ctx: &ThreadCtx) {
        loop {
            let next = self.deferred.lock().pop();
            match next {
                Some(bio) => {
                    // It must not look for memory itself: whoever does so waits for what it writes. There is a reserve.
                    let _reserves = Reserves::enter();
                    self.write(bio);
                }
                None if ctx.should_stop() => return,
                None => {
                    self.deferred_work.wait_timeout(1000);
                }
            }
        }
    }

    fn read(&self, mut bio: IncomingBio) {
        self.counters.reads.add(1, Relaxed);
        let mut overlaps = KVec::new();
        match self.pipe.lookup(bio.offset(), bio.len(), &mut overlaps) {
            Coverage::None => bio.remap(&self.pipe.bdev),
            Coverage::Full => {
                let r = overlay(&mut bio, &overlaps);
                bio.complete(r);
            }
            Coverage::Partial => {
                let mut queue = self.mixed.lock();
                while queue.reserve(1, GFP_NOWAIT).is_err() {
                    drop(queue);
                    time::sleep_ms(10);
                    queue = self.mixed.lock();
                }
                // There is room, so nothing can fail here.
                let _ = queue.push_within_capacity(MixedRead { bio, overlaps });
                drop(queue);
                self.mixed_work.signal();
            }
        }
    }

    fn serve_mixed(&self, ctx: &ThreadCtx) {
        loop {
            let next = {
                let mut queue = self.mixed.lock();
                if queue.is_empty() {
                    None
                } else {
                    queue.remove(0).ok()
                }
            };
            match next {
                Some(mut read) => {
                    let r = self
                        .read_around(&mut read)
                        .and_then(|()| overlay(&mut read.bio, &read.overlaps));
                    read.bio.complete(r);
                }
                None if ctx.should_stop() => return,
                None => {
                    self.mixed_work.wait_timeout(1000);
                }
            }
        }
    }

    /// Reads from the disk what is not buffered. The whole range at once is cheaper; but a place that the disk can't read
    /// must not fail a read that needs nothing from there.
    fn read_around(&self, read: &mut MixedRead) -> Result {
        let _noio = NoIo::enter();
        let Err(e) = read.bio.read_through(&self.pipe.bdev) else {
            return Ok(());
        };
        let base = read.bio.offset();
        for (offset, length) in gaps(base, read.bio.len(), &read.overlaps) {
            let len = usize::try_from(length)?;
            let mut buf = Buf::new(len).map_err(|_| e)?;
            self.pipe.bdev.read_at(&mut buf, 0, len, offset)?;
            let at = u32::try_from(offset.saturating_sub(base))?;
            read.bio.copy_from_buf(at, buf.get(..len).ok_or(EIO)?)?;
        }
        Ok(())
    }

    /// Whether a write is only complete when it, and all that was complete before, is durable in the log.
    fn must_be_durable(&self, bio: &IncomingBio) -> bool {
        completion::waits(
            tunables::completion(),
            bio.is_sync(),
            bio.is_fua() || bio.is_preflush(),
        )
    }

    fn write(&self, bio: IncomingBio) {
        let _noio = NoIo::enter();
        let offset = bio.offset();
        let len = bio.len();
        self.counters.writes.add(1, Relaxed);
        self.counters.write_bytes.add(u64::from(len), Relaxed);
        let mut done = 0;
        let mut max = MAX_PAYLOAD;
        let durable = self.must_be_durable(&bio);
        while done < len {
            let buf = loop {
                // Write-back frees memory; an application must not see an error because there is none just now (P4).
                match self.take_piece(&bio, done, max) {
                    Ok(b) => break b,
                    Err(_) => time::sleep_ms(10),
                }
            };
            let piece = u32::try_from(buf.len()).unwrap_or(0);
            let last = done + piece == len;
            // Where there was less memory than wanted there is hardly more for the rest.
            if !last && piece < max {
                max = piece.saturating_mul(2).min(MAX_PAYLOAD);
            }
            let crc = crc::<KernelDigest>(&[&buf]);
            let stamp = self.clock.now().as_nanos();
            let at = offset + u64::from(done);
            let data = Slice { buf, off: 0 };
            if last && durable {
                // The bio joins the waiters under the same lock under which its last record was admitted.
                let mut slot = Some(bio);
                let r = self
                    .pipe
                    .admit(Kind::Write, at, piece, stamp, crc, Some(data), |s| {
                        if let Some(b) = slot.take() {
                            s.waiting.push(b);
                        }
                    });
                match (r, slot) {
                    (Err(e), Some(b)) => b.complete(Err(e)),
                    _ => self.pipe.log_work.signal(),
                }
                return;
            }
            if let Err(e) = self
                .pipe
                .admit(Kind::Write, at, piece, stamp, crc, Some(data), |_| ())
            {
                bio.complete(Err(e));
                return;
            }
            done += piece;
        }
        bio.complete(Ok(()));
    }

    /// A copy of the next part of a write. When memory is short it gets shorter, down to a page, which can always be had: from
    /// the reserve, sooner or later.
    fn take_piece(&self, bio: &IncomingBio, done: u32, max: u32) -> Result<Arc<Buf>> {
        inject::at!(WriteMemory, bio.offset(), 0)?;
        let buf = bio.next_buf(done, max)?;
        // Who has got a page must not wait for the handle.
        let _reserves = Reserves::enter();
        Ok(Arc::new(buf, GFP_NOWAIT)?)
    }

    /// A discard or a write of zeros: one record without data.
    fn zero(&self, bio: IncomingBio, kind: Kind) {
        let _noio = NoIo::enter();
        let (offset, len) = (bio.offset(), bio.len());
        self.counters.writes.add(1, Relaxed);
        let durable = self.must_be_durable(&bio);
        // Without data, nothing else would make it wait while memory is short, and each takes some of the kernel's last.
        let memory = Buf::new(512);
        let stamp = self.clock.now().as_nanos();
        let mut slot = Some(bio);
        let r = self.pipe.admit(kind, offset, len, stamp, 0, None, |s| {
            if durable {
                if let Some(b) = slot.take() {
                    s.waiting.push(b);
                }
            }
        });
        drop(memory);
        match slot {
            Some(b) => b.complete(r),
            None => self.pipe.log_work.signal(),
        }
    }

    fn flush(&self, bio: IncomingBio) {
        let mut slot = Some(bio);
        let idle = self.pipe.with(|s| {
            let idle = s.is_durable();
            if !idle {
                if let Some(b) = slot.take() {
                    s.waiting.push(b);
                }
            }
            idle
        });
        match slot {
            // Everything that was completed before is durable in the log already.
            Some(b) if idle => b.complete(Ok(())),
            Some(b) => b.complete(Err(EIO)),
            None => self.pipe.log_work.signal(),
        }
    }
}

impl DiskOps for Device {
    // Peers want to know soon: a handover waits for it.
    fn opened(&self) {
        self.member.kick.signal();
    }

    fn closed(&self) {
        self.member.kick.signal();
    }

    fn submit(&self, bio: IncomingBio) {
        match bio.op() {
            BioOp::Read => self.read(bio),
            BioOp::Write if bio.len() > 0 && (bio.is_swap() || in_reclaim()) => self.defer(bio),
            BioOp::Write if bio.len() > 0 => self.write(bio),
            BioOp::Write | BioOp::Flush => self.flush(bio),
            // Reclaim, which gives unused swap back, would wait for it with what others need. It may as well be ignored.
            BioOp::Discard if in_reclaim() => bio.complete(Ok(())),
            BioOp::Discard => self.zero(bio, Kind::Discard),
            BioOp::WriteZeroes if bio.is_nounmap() => self.zero(bio, Kind::Zeroes),
            BioOp::WriteZeroes => self.zero(bio, Kind::Discard),
            // Not advertised, so the block layer does not send them.
            BioOp::Other(_) => bio.complete(Err(EOPNOTSUPP)),
        }
    }
}

/// Copies buffered data over what was read.
fn overlay(bio: &mut IncomingBio, overlaps: &[Overlap<Slice>]) -> Result {
    let base = bio.offset();
    for o in overlaps {
        let at = u32::try_from(o.offset.checked_sub(base).ok_or(EIO)?)?;
        match &o.data {
            Some(slice) => {
                let bytes = slice.bytes(o.data_offset, o.length).ok_or(EIO)?;
                bio.copy_from_buf(at, bytes)?;
            }
            None => bio.zero(at, o.length)?,
        }
    }
    Ok(())
}
