// SPDX-License-Identifier: GPL-2.0-or-later

//! A simulated backing disk with a volatile cache.
//!
//! What was written and not flushed may, when the power goes, be there or not, each unit (512 bytes or 4 KiB) for itself,
//! in any of the versions that were written since the last flush. An I/O in flight has reached any of its sectors.

use crate::{rng::Rng, truth::SECTOR};
use std::rc::Rc;

/// Bytes that an I/O writes.
#[derive(Clone)]
pub struct Piece {
    /// Where they go.
    pub off: usize,
    /// The bytes.
    pub data: Rc<Vec<u8>>,
}

impl Piece {
    fn end(&self) -> usize {
        self.off + self.data.len()
    }

    fn put(&self, to: &mut [u8], from: usize, end: usize) {
        let (a, b) = (self.off.max(from), self.end().min(end));
        if a < b {
            to[a..b].copy_from_slice(&self.data[a - self.off..b - self.off]);
        }
    }
}

/// The disk.
pub struct Disk {
    /// What survives a power cut is decided for each unit of so many bytes.
    unit: usize,
    view: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last flush, in the order of their completion.
    cache: Vec<Piece>,
    flying: Vec<(u64, Piece)>,
    next: u64,
}

impl Disk {
    /// A disk of zeros.
    pub fn new(bytes: usize, unit: usize) -> Self {
        Self {
            unit,
            view: vec![0; bytes],
            durable: vec![0; bytes],
            cache: Vec::new(),
            flying: Vec::new(),
            next: 0,
        }
    }

    /// Fills it with bytes that nobody knows, durably.
    pub fn scribble(&mut self, rng: &Rng) {
        for b in self.durable.chunks_mut(8) {
            b.copy_from_slice(&rng.next().to_le_bytes()[..b.len()]);
        }
        self.view.copy_from_slice(&self.durable);
    }

    /// It has these bytes from the beginning, durably.
    pub fn preset(&mut self, off: usize, data: &[u8]) {
        for to in [&mut self.durable, &mut self.view] {
            to[off..off + data.len()].copy_from_slice(data);
        }
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.view.len()
    }

    /// An I/O begins.
    pub fn begin(&mut self, off: usize, data: Vec<u8>) -> u64 {
        self.next += 1;
        let data = Rc::new(data);
        self.flying.push((self.next, Piece { off, data }));
        self.next
    }

    /// An I/O ends; with `ok` it is whole in the cache, else nobody knows.
    pub fn end(&mut self, id: u64, ok: bool, rng: &Rng) {
        let Some(i) = self.flying.iter().position(|(n, _)| *n == id) else {
            return;
        };
        let (_, piece) = self.flying.remove(i);
        if ok {
            piece.put(&mut self.view, 0, usize::MAX);
            self.cache.push(piece);
        } else {
            self.partly(&piece, rng);
        }
    }

    fn partly(&mut self, piece: &Piece, rng: &Rng) {
        let mut at = piece.off;
        while at < piece.end() {
            let end = (at / self.unit + 1) * self.unit;
            let end = end.min(piece.end());
            if rng.chance(1, 2) {
                let part = Piece {
                    off: at,
                    data: Rc::new(piece.data[at - piece.off..end - piece.off].to_vec()),
                };
                part.put(&mut self.view, 0, usize::MAX);
                self.cache.push(part);
            }
            at = end;
        }
    }

    /// Reads; where an I/O is in flight, old or new sectors.
    pub fn read(&self, off: usize, len: usize, rng: &Rng) -> Vec<u8> {
        let mut out = self.view[off..off + len].to_vec();
        for (_, p) in &self.flying {
            let mut at = off;
            while at < off + len {
                if p.off <= at && at < p.end() && rng.chance(1, 2) {
                    let n = SECTOR.min(p.end() - at);
                    out[at - off..at - off + n]
                        .copy_from_slice(&p.data[at - p.off..at - p.off + n]);
                }
                at += SECTOR;
            }
        }
        out
    }

    /// A flush begins: gives what [`Disk::flushed`] has to be told.
    pub fn flush(&self) -> usize {
        self.cache.len()
    }

    /// A flush has ended.
    pub fn flushed(&mut self, upto: usize) {
        let upto = upto.min(self.cache.len());
        for p in self.cache.drain(..upto) {
            p.put(&mut self.durable, 0, usize::MAX);
        }
    }

    /// A flush has failed: of what was in the cache, the disk has forgotten a part.
    pub fn flush_failed(&mut self, upto: usize, rng: &Rng) {
        let upto = upto.min(self.cache.len());
        for p in self.cache.drain(..upto) {
            if rng.chance(1, 2) {
                p.put(&mut self.durable, 0, usize::MAX);
            }
        }
    }

    /// The kernel is gone, the disk is not: what was in flight may have arrived.
    pub fn kernel_crash(&mut self, rng: &Rng) {
        for (_, p) in std::mem::take(&mut self.flying) {
            match rng.below(3) {
                0 => (),
                1 => self.partly(&p, rng),
                _ => {
                    p.put(&mut self.view, 0, usize::MAX);
                    self.cache.push(p);
                }
            }
        }
    }

    /// The power is gone.
    pub fn power_cut(&mut self, rng: &Rng) {
        self.kernel_crash(rng);
        let units = self.durable.len().div_ceil(self.unit);
        let mut count = vec![0u32; units];
        let unit = self.unit;
        let each = |p: &Piece, f: &mut dyn FnMut(usize)| {
            for u in p.off / unit..p.end().div_ceil(unit) {
                f(u);
            }
        };
        for p in &self.cache {
            each(p, &mut |u| count[u] += 1);
        }
        for c in &mut count {
            *c = match *c {
                0 => 0,
                n => u32::try_from(rng.below(u64::from(n) + 1)).unwrap_or(0),
            };
        }
        for p in std::mem::take(&mut self.cache) {
            let durable = &mut self.durable;
            each(&p, &mut |u| {
                if count[u] > 0 {
                    count[u] -= 1;
                    p.put(durable, u * unit, (u + 1) * unit);
                }
            });
        }
        self.view.copy_from_slice(&self.durable);
    }

    /// What a reader sees at this moment, if nothing is in flight.
    pub fn view(&self) -> &[u8] {
        &self.view
    }

    /// Calls `f` with each content that a sector may have after a power cut now.
    pub fn outcomes(&self, sector: usize, mut f: impl FnMut(&[u8])) {
        let (from, end) = (sector * SECTOR, (sector + 1) * SECTOR);
        f(&self.durable[from..end]);
        for p in self.cache.iter().chain(self.flying.iter().map(|(_, p)| p)) {
            if p.off <= from && end <= p.end() {
                f(&p.data[from - p.off..end - p.off]);
            }
        }
    }
}
