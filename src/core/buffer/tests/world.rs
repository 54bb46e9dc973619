// SPDX-License-Identifier: GPL-2.0-or-later

//! The write buffer against arrays of bytes. Checks P1, P2 and P9 of the architecture.
//!
//! The simulated disk has a volatile cache of the meanest kind: at a crash, each *byte* on its own has its value of the
//! last flush, or that of any later write, done or in flight.

use super::{
    check,
    Buffer,
    Bytes, //
};
use crate::buffer::*;
use kernel::inject;
use std::{
    vec,
    vec::Vec, //
};

pub(super) const DEVICE: usize = 64;
type Image = [u8; DEVICE];

#[derive(Clone)]
struct Record {
    kind: Kind,
    offset: usize,
    bytes: Vec<u8>,
}

impl Record {
    pub(super) fn apply(&self, image: &mut Image) {
        image[self.offset..self.offset + self.bytes.len()].copy_from_slice(&self.bytes);
    }
}

/// An I/O as the disk sees it.
struct Io {
    id: u64,
    offset: usize,
    bytes: Vec<u8>,
    /// The disk had it before a flush failed, and has lost it with that.
    lost: bool,
}

pub(super) struct World {
    pub(super) buffer: Buffer,
    /// All that was admitted in this life of the machine; index + 1 is the number.
    admitted: Vec<Record>,
    /// What the device shows.
    newest: Image,
    taken: usize,
    /// Batches of all lives: records and end.
    log: Vec<(Vec<Record>, LogPos)>,
    pub(super) durable: usize,
    /// Records of `log` in this life that are logged, per batch.
    logged: Vec<usize>,
    stable: Image,
    /// Done since the last good flush; the first `flushing` of them will be stable after the present one.
    written: Vec<(usize, Vec<u8>)>,
    flushing: Option<usize>,
    in_flight: Vec<Io>,
    pub(super) published: Option<LogPos>,
    pub(super) mark: Option<LogPos>,
    rng: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            buffer: Buffer::new(),
            admitted: Vec::new(),
            newest: [0; DEVICE],
            taken: 0,
            log: Vec::new(),
            durable: 0,
            logged: Vec::new(),
            stable: [0; DEVICE],
            written: Vec::new(),
            flushing: None,
            in_flight: Vec::new(),
            published: None,
            mark: None,
            rng: seed,
        }
    }

    pub(super) fn random(&mut self, below: usize) -> usize {
        self.rng = self.rng.wrapping_mul(6364136223846793005).wrapping_add(1);
        usize::try_from(self.rng >> 33).unwrap() % below
    }

    /// What the first `batches` batches of the log make of an empty device.
    pub(super) fn state(&self, batches: usize) -> Image {
        let mut image = [0; DEVICE];
        for r in self.log.iter().take(batches).flat_map(|(r, _)| r) {
            r.apply(&mut image);
        }
        image
    }

    /// What a crash may leave on the disk.
    pub(super) fn crash_image(&mut self) -> Image {
        let mut image = self.stable;
        for (at, byte) in image.iter_mut().enumerate() {
            let done = self.written.iter().map(|(o, b)| (*o, b));
            let open = self.in_flight.iter().map(|io| (io.offset, &io.bytes));
            let values: Vec<u8> = done
                .chain(open)
                .filter_map(|(o, b)| b.get(at.checked_sub(o)?).copied())
                .collect();
            let choice = self.random(values.len() + 1);
            if let Some(v) = values.get(choice) {
                *byte = *v;
            }
        }
        image
    }

    /// First batch that replay has to read, according to `mark`.
    pub(super) fn first_open(&self, mark: Option<LogPos>) -> usize {
        self.log
            .iter()
            .take_while(|(_, end)| Some(*end) <= mark)
            .count()
    }

    /// P1, P2: the disk after a crash, plus a replay from the published mark, is what the log says.
    pub(super) fn check_crash(&mut self) {
        let survived = self.durable + self.random(self.log.len() - self.durable + 1);
        let mut image = self.crash_image();
        let from = self.first_open(self.published);
        assert!(from <= self.durable);
        for (records, _) in &self.log[from..survived] {
            for r in records {
                r.apply(&mut image);
            }
        }
        assert_eq!(image, self.state(survived));
    }

    pub(super) fn check_look(&mut self, offset: usize, length: usize) {
        let length = length.min(DEVICE - offset);
        // What the disk says to somebody who reads now: completed writes only.
        let mut disk = self.stable;
        for (o, b) in &self.written {
            disk[*o..*o + b.len()].copy_from_slice(b);
        }
        let mut seen = disk[offset..offset + length].to_vec();
        let mut out = KVec::new();
        let (o, l) = (offset as u64, length as u32);
        let Ok(coverage) = self.buffer.lookup(o, l, &mut out) else {
            return;
        };
        let mut covered = 0;
        for piece in &out {
            let at = piece.offset as usize - offset;
            let len = piece.length as usize;
            covered += len;
            let from = piece.data_offset as usize;
            match &piece.data {
                Some(d) => seen[at..at + len].copy_from_slice(&d[from..from + len]),
                None => seen[at..at + len].fill(0),
            }
        }
        // Bytes in flight are still in the index or superseded there, so the disk's uncertainty is never seen.
        assert_eq!(seen, self.newest[offset..offset + length]);
        assert!(covered == 0 || self.buffer.overlaps(o, l));
        let want = match covered {
            0 => Coverage::None,
            n if n == length => Coverage::Full,
            _ => Coverage::Partial,
        };
        assert_eq!(coverage, want);
    }

    fn payload(r: &Record) -> Option<Bytes> {
        (r.kind == Kind::Write).then(|| r.bytes.clone().into())
    }

    pub(super) fn admit(&mut self, kind: u8, offset: usize, length: usize) {
        let kind = match kind {
            0 => Kind::Discard,
            1 => Kind::Zeroes,
            _ => Kind::Write,
        };
        let length = length.min(DEVICE - offset);
        let value = self.random(255) as u8 + 1;
        let fill = if kind == Kind::Write { value } else { 0 };
        // Each byte of a record is another one, so that a wrong offset in a payload is seen.
        let bytes = (0..length as u8).map(|i| if fill > 0 { fill ^ i } else { 0 });
        let r = Record {
            kind,
            offset,
            bytes: bytes.collect(),
        };
        let (o, l) = (offset as u64, length as u32);
        if let Ok(seq) = self.buffer.admit(kind, o, l, 0, 0, Self::payload(&r)) {
            r.apply(&mut self.newest);
            self.admitted.push(r);
            assert_eq!(seq.0, self.admitted.len() as u64);
        }
    }

    pub(super) fn take(&mut self, records: usize, bytes: usize) {
        let mut items = KVec::new();
        if self
            .buffer
            .take_for_log(records, bytes, &mut items)
            .is_err()
        {
            return;
        }
        for item in &items {
            let r = &self.admitted[self.taken];
            self.taken += 1;
            assert_eq!(item.seq.0, self.taken as u64);
            assert_eq!((item.kind, item.offset), (r.kind, r.offset as u64));
            if let Some(d) = &item.data {
                assert_eq!(d[..], r.bytes);
            }
        }
    }

    pub(super) fn end(&self) -> LogPos {
        self.log.last().map_or(LogPos::default(), |(_, end)| *end)
    }

    pub(super) fn in_log(&self) -> usize {
        self.logged.last().copied().unwrap_or(0)
    }

    pub(super) fn batch(&mut self, records: usize) {
        let from = self.in_log();
        let to = self.taken.min(from + records);
        if from < to {
            let mut end = self.end();
            end.pos += 1;
            if self.random(5) == 0 {
                end.number += 1;
                end.pos = 0;
            }
            self.log.push((self.admitted[from..to].to_vec(), end));
            self.logged.push(to);
            self.buffer.logged(Seq(to as u64), end);
        }
    }

    pub(super) fn make_durable(&mut self, batches: usize) {
        let open = self.log.len() - self.durable;
        let done = batches.min(open);
        self.durable += done;
        if let Some(i) = (self.logged.len() + done).checked_sub(open + 1) {
            self.buffer.durable(Seq(self.logged[i] as u64));
        }
    }

    /// The last `batches` batches that are not durable could not be written.
    pub(super) fn fail(&mut self, batches: usize) {
        let lost = batches.min(self.log.len() - self.durable);
        self.log.truncate(self.log.len() - lost);
        self.logged.truncate(self.logged.len() - lost);
        self.taken = self.in_log();
        self.buffer.untake(Seq(self.taken as u64 + 1));
        assert!(self.buffer.untaken() >= self.admitted.len() - self.taken);
    }

    pub(super) fn plan(&mut self, max_bytes: u32, ios: usize) {
        let mut out = KVec::new();
        let planned = self.buffer.plan(max_bytes, ios, &mut out);
        assert_eq!(out.len(), planned.unwrap_or(0));
        assert!(out.len() <= ios);
        for io in &out {
            let mut bytes = Vec::new();
            for f in &io.fragments {
                let from = f.offset as usize;
                bytes.extend_from_slice(&f.data[from..from + f.length as usize]);
            }
            assert_eq!(io.kind == Kind::Write, !bytes.is_empty());
            bytes.resize(io.length as usize, 0);
            let offset = io.offset as usize;
            for other in &self.in_flight {
                let apart = other.offset + other.bytes.len() <= offset
                    || offset + bytes.len() <= other.offset;
                assert!(apart, "two I/Os in flight on the same bytes");
            }
            self.in_flight.push(Io {
                id: io.id,
                offset,
                bytes,
                lost: false,
            });
        }
    }

    pub(super) fn done(&mut self, which: usize, ok: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let io = self.in_flight.remove(which % self.in_flight.len());
        if ok && !io.lost {
            self.written.push((io.offset, io.bytes));
        } else if !ok {
            // Some of it may be there all the same.
            for (i, v) in io.bytes.iter().enumerate() {
                if self.random(2) == 0 {
                    self.written.push((io.offset + i, vec![*v]));
                }
            }
        }
        self.buffer.io_done(io.id, ok);
    }

    pub(super) fn flush_start(&mut self) {
        if self.buffer.flush_begin() {
            assert!(self.flushing.is_none());
            self.flushing = Some(self.written.len());
        }
    }

    pub(super) fn flush_end(&mut self, ok: bool) {
        let Some(count) = self.flushing.take() else {
            return;
        };
        if ok {
            for (o, b) in self.written.drain(..count) {
                self.stable[o..o + b.len()].copy_from_slice(&b);
            }
        } else {
            // The disk has lost its cache, or some of it, and says so once. Some of what nobody was told yet was there, too.
            self.stable = self.crash_image();
            self.written.clear();
            for i in 0..self.in_flight.len() {
                self.in_flight[i].lost |= self.random(2) == 0;
            }
        }
        self.buffer.flush_end(ok);
    }

    /// The machine goes down, comes up again and replays; perhaps it crashes during that as well.
    pub(super) fn crash(&mut self, extra: usize) {
        let survived = (self.durable + extra).min(self.log.len());
        self.stable = self.crash_image();
        self.log.truncate(survived);
        self.durable = survived;
        self.newest = self.state(survived);
        self.written.clear();
        self.in_flight.clear();
        self.flushing = None;
        self.mark = None;
        self.admitted.clear();
        self.buffer = Buffer::new();
        let from = self.first_open(self.published);
        self.logged = Vec::new();
        for (records, end) in self.log.clone().into_iter().skip(from) {
            for r in records {
                let (o, l) = (r.offset as u64, r.bytes.len() as u32);
                let data = Self::payload(&r);
                self.buffer
                    .admit_durable(r.kind, o, l, 0, 0, data, end)
                    .unwrap();
                self.admitted.push(r);
            }
            self.buffer.passed(end);
        }
        self.taken = self.admitted.len();
        if self.taken > 0 {
            self.logged.push(self.taken);
        }
    }

    /// Without further failures everything gets to the disk.
    pub(super) fn finish(&mut self) {
        inject::fail_after(None);
        self.take(usize::MAX, usize::MAX);
        self.batch(usize::MAX - DEVICE);
        self.make_durable(usize::MAX);
        while !self.buffer.is_empty() {
            self.plan(16, 3);
            let goes_on = !self.in_flight.is_empty() || self.flushing.is_some();
            assert!(goes_on || self.buffer.landed_bytes() > 0, "nothing goes on");
            while !self.in_flight.is_empty() {
                self.done(0, true);
            }
            self.flush_end(true);
            self.flush_start();
            self.flush_end(true);
        }
        assert_eq!(self.stable, self.newest);
        let mark = self.published.max(self.buffer.written_position());
        assert_eq!(mark.unwrap_or_default(), self.end());
        check(&self.buffer);
    }
}
