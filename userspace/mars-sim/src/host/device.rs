// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/device.rs`: `/dev/mars/r`, and the application that uses it.

use super::{
    pipeline::{Pipeline, State},
    Host,
};
use crate::{
    defects::on,
    exec::Cond,
    fs::Res,
    truth::{id_of, is_foreign, pattern, WriteId, SECTOR},
};
use kernel::alloc::KVec;
use mars_core::{
    buffer::{Coverage, Kind},
    digest::crc,
};
use mars_host_digest::HostDigest;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
};

/// The device, with what its application knows.
pub struct Device {
    h: Rc<Host>,
    pipe: Rc<Pipeline>,
    /// The truth's number.
    pub id: usize,
    /// Somebody has it open.
    pub opened: Cell<bool>,
    /// It is about to go: nobody can open it any more.
    pub removing: Cell<bool>,
    /// Bios under way.
    busy: Cell<usize>,
    idle: Cond,
    /// What each sector has by the word of the device.
    shadow: RefCell<Vec<WriteId>>,
    /// Writes to a sector that are under way.
    writing: RefCell<Vec<BTreeSet<WriteId>>>,
    /// Which of all writes are zeros.
    zeros: RefCell<BTreeSet<WriteId>>,
}

impl Device {
    /// A device with these contents.
    pub fn new(h: &Rc<Host>, pipe: &Rc<Pipeline>, id: usize, contents: Vec<WriteId>) -> Rc<Self> {
        let writing = RefCell::new(vec![BTreeSet::new(); contents.len()]);
        Rc::new(Self {
            h: h.clone(),
            pipe: pipe.clone(),
            id,
            opened: Cell::new(false),
            removing: Cell::new(false),
            busy: Cell::new(0),
            idle: Cond::default(),
            shadow: RefCell::new(contents),
            writing,
            zeros: RefCell::default(),
        })
    }

    /// Its size.
    pub fn sectors(&self) -> usize {
        self.shadow.borrow().len()
    }

    /// Opens it; refused when it is about to go.
    pub fn open(&self) -> bool {
        if self.removing.get() {
            return false;
        }
        if !self.opened.replace(true) {
            self.h.kick.signal(&self.h.ex);
        }
        true
    }

    /// Waits for the application's bios and closes.
    pub async fn close(&self) {
        while self.busy.get() > 0 {
            self.idle.wait(&self.h.ex, crate::exec::SEC).await;
        }
        self.opened.set(false);
        self.h.kick.signal(&self.h.ex);
    }

    fn begin(&self) {
        self.busy.set(self.busy.get() + 1);
    }

    fn end(&self) {
        self.busy.set(self.busy.get() - 1);
        self.idle.notify(&self.h.ex);
    }

    /// The application writes, or (a `kind` without data) has a range become zero. P4: it never gets an error.
    pub fn write(self: &Rc<Self>, kind: Kind, at: usize, n: usize, fua: bool) {
        if !self.open() {
            return;
        }
        let sim = self.h.sim.clone();
        let sectors = self.sectors();
        if at >= sectors {
            return;
        }
        let id = sim.next_write.get();
        sim.next_write.set(id + 1);
        let n = n.min(sectors - at);
        let data = kind == Kind::Write;
        if !data {
            self.zeros.borrow_mut().insert(id);
        }
        for s in at..at + n {
            self.writing.borrow_mut()[s].insert(id);
        }
        self.begin();
        let d = self.clone();
        sim.ex.clone().spawn(self.h.i, async move {
            let data = data.then(|| {
                (at..at + n)
                    .flat_map(|s| pattern(id, s))
                    .collect::<Vec<u8>>()
            });
            let sum = data.as_ref().map_or(0, |d| crc::<HostDigest>(&[d]));
            let put = if data.is_some() { id } else { 0 };
            let stamp = d.h.now().as_nanos();
            let d2 = d.clone();
            let then = move |s: &mut State| {
                d2.h.say(|| {
                    format!(
                        "{kind:?} {id} at {at}+{n}, record {}",
                        s.buffer.last_seq().0
                    )
                });
                let c = &d2.h.sim.counts.writes;
                c.set(c.get() + 1);
                for s in at..at + n {
                    d2.shadow.borrow_mut()[s] = put;
                    d2.writing.borrow_mut()[s].remove(&id);
                }
                if fua && on("fua-early") {
                    let r =
                        d2.h.sim
                            .truth
                            .borrow_mut()
                            .flushed(d2.id, s.buffer.last_seq().0);
                    d2.h.sim.check(d2.h.i, r);
                    d2.end();
                } else if fua {
                    d2.wait_durable(s);
                } else {
                    d2.end();
                }
            };
            let len = u32::try_from(n * SECTOR).expect("small");
            let place = ((at * SECTOR) as u64, len);
            d.pipe
                .admit(kind, place, (stamp, sum), data.map(Rc::new), then)
                .await;
            if fua {
                d.pipe.log_work.signal(&d.h.ex);
            }
        });
    }

    /// Joins the waiters, under the lock.
    fn wait_durable(self: &Rc<Self>, s: &mut State) {
        let count = s.buffer.last_seq().0;
        let d = self.clone();
        s.waiting.push(Box::new(move |ok| {
            d.end();
            if ok {
                d.h.say(|| format!("flush of {count} records is complete"));
                let r = d.h.sim.truth.borrow_mut().flushed(d.id, count);
                d.h.sim.check(d.h.i, r);
            } else if !d.h.stopping.get() {
                d.h.sim
                    .violated(format!("P4 no error: a flush has failed (host {})", d.h.me));
            }
        }));
    }

    /// The application flushes.
    pub fn flush(self: &Rc<Self>) {
        if !self.open() {
            return;
        }
        self.begin();
        let idle = self.pipe.with(|s| {
            let idle = s.buffer.unlogged() == 0 && on("flush-early") || s.is_durable();
            if !idle {
                self.wait_durable(s);
            }
            idle
        });
        if idle {
            let count = self.pipe.with(|s| s.buffer.last_seq().0);
            let r = self.h.sim.truth.borrow_mut().flushed(self.id, count);
            self.h.sim.check(self.h.i, r);
            self.end();
        } else {
            self.pipe.log_work.signal(&self.h.ex);
        }
    }

    /// The application reads a sector, and knows what must be there.
    pub fn read(self: &Rc<Self>, at: usize) {
        if at >= self.sectors() || !self.open() {
            return;
        }
        self.begin();
        let d = self.clone();
        self.h.ex.spawn(self.h.i, async move {
            let (mut may, begun) = {
                let mut may = d.writing.borrow()[at].clone();
                may.insert(d.shadow.borrow()[at]);
                (may, d.h.sim.next_write.get())
            };
            if let Ok(have) = d.read_sector(at).await {
                let id = id_of(&have);
                let zeros = d.zeros.borrow();
                if may.iter().any(|id| zeros.contains(id)) || zeros.range(begun..).next().is_some() {
                    may.insert(0);
                }
                // What was written meanwhile has a higher number, but for what was there before a resize.
                let newer = may.iter().all(|m| id > *m || is_foreign(*m)) && id < d.h.sim.next_write.get();
                if !(newer || may.contains(&id)) || have != pattern(id, at) {
                    d.h.sim.violated(format!(
                        "P1 prefix: a read of sector {at} of the device gives write {id}, not one of {may:?} (host {})",
                        d.h.me
                    ));
                }
            }
            d.end();
        });
    }

    async fn read_sector(&self, at: usize) -> Res<Vec<u8>> {
        let mut overlaps = KVec::new();
        let len = u32::try_from(SECTOR).expect("small");
        let off = (at * SECTOR) as u64;
        let c = self
            .pipe
            .with(|s| s.buffer.lookup(off, len, &mut overlaps).expect("memory"));
        let mut data = match c {
            _ if on("read-ignores-buffer") => return self.h.read_disk(off, SECTOR).await,
            Coverage::Full => vec![0; SECTOR],
            _ => self.h.read_disk(off, SECTOR).await?,
        };
        for o in &overlaps {
            let a = usize::try_from(o.offset - off).expect("small");
            let n = o.length as usize;
            match &o.data {
                Some(s) => data[a..a + n].copy_from_slice(s.bytes(o.data_offset, o.length)),
                None => data[a..a + n].fill(0),
            }
        }
        Ok(data)
    }

    /// Whether nobody has it open; then nobody can open it any more.
    pub fn begin_removal(&self) -> bool {
        if self.opened.get() {
            return false;
        }
        self.removing.set(true);
        true
    }
}
