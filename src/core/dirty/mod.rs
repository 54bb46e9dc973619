// SPDX-License-Identifier: GPL-2.0-or-later

//! The dirty map: which parts of a primary's disk were written while it could not log (emergency mode).
//!
//! One map belongs to one disk of one host, in a file whose space is taken before it is needed. A *gap* is a stretch of
//! time without a log: it begins where a log ends ([`DirtyMap::open_gap`]) and ends where the next log begins
//! ([`DirtyMap::close_gap`]). The bits of all gaps are united until every member has recovered ([`DirtyMap::clear`]).
//!
//! The same bits serve replicas whose logs are gone: when an administrator deletes logs that a member still needs, what they
//! wrote is noted first ([`DirtyMap::add`], [`DirtyMap::drop_logs`]).
//!
//! The map is only memory and a plan of writes. The caller keeps two rules:
//!
//! * What [`DirtyMap::next_write`] gives is written, the file is flushed, and [`DirtyMap::saved`] is called *before*
//!   anything that was marked may be written to the disk, and before the next step after each change of the gap.
//! * If a write or the flush fails: [`DirtyMap::failed`], and again.
//!
//! # Why a crash loses nothing (P1, P2, P5)
//!
//! *A bit is durable before its data can be on the disk*, by the first rule. So what differs from the log is always in the
//! map, also what was on its way when the power went. A torn piece counts as all dirty.
//!
//! *Recovery of the primary* replays the base log to its end, and no further, unless the gap is *settled*: then all of the
//! log is on the disk, possibly under newer data that no log has and that the application was told is durable, so the log
//! must not be replayed at all ([`DirtyMap::recovery`]). No flush of the application completes in a gap before it is settled.
//! What is before a gap that was closed is never replayed again either, also when the next gap opens before the replay link has
//! moved.
//!
//! *A new header never overwrites the last good one*: its place is that of the one before, and it counts up only when it
//! was flushed. A torn header leaves the state before, and no step is taken before the state of its beginning is durable.

mod bits;
mod format;
mod links;

pub use self::{
    bits::{
        Bits,
        Geometry,
        MAX_GRAIN,
        MAX_PIECES,
        MIN_GRAIN,
        PIECE, //
    },
    format::{
        file_len,
        Dropped,
        Gap,
        BLOCK, //
    },
    links::{
        DroppedLink,
        GapLink,
        Lack, //
    }, //
};

use self::format::{
    encode_piece,
    header_at,
    parse_piece,
    piece_at,
    Header,
    Piece, //
};
use crate::{
    defect::defect,
    digest::Digest,
    lamport::LamportTime,
    log::{
        LogName,
        HEADER_SIZE, //
    },
    name::Name,
    num::to_u64,
    tree::value::ReplayLink, //
};
use kernel::alloc::{
    flags::GFP_KERNEL,
    AllocError,
    KVec, //
};

/// Why a step is impossible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyError {
    /// Out of memory; nothing has changed.
    NoMemory,
    /// The gap is not in a state for it.
    WrongState,
}

impl From<AllocError> for DirtyError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

/// From where recovery of the disk's own host starts, and how far it may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// As always.
    Normal,
    /// Replay up to the end of this log, not further; the gap goes on behind it.
    Until {
        /// Start at the beginning of this log, unless the replay link is later: behind the gap before.
        from: Option<LogName>,
        /// The log before the gap.
        log: LogName,
        /// Where it ends.
        end: u64,
    },
    /// Nothing of this log, which ends here, is to be replayed any more; the gap goes on behind it.
    Behind(LogName, u64),
    /// Start at the beginning of this log, unless the replay link is later.
    From(LogName),
}

/// Sequence number of a header, if it is a good one of this resource, host and identity.
#[inline(never)]
fn sequence<D: Digest>(resource: &Name, host: &Name, id: u64, block: &[u8]) -> Option<u64> {
    Header::parse::<D>(block)
        .filter(|h| h.resource == *resource && h.host == *host && h.id == id)
        .map(|h| h.sequence)
}

/// Whether a member with this replay link no longer needs the map for the gap before log `next`.
pub fn is_past(next: &LogName, replay: &ReplayLink) -> bool {
    // Behind the header only who has recovered can be.
    replay.log.number > next.number || (replay.log == *next && replay.pos > to_u64(HEADER_SIZE))
}

/// The map, see the module.
///
/// # Invariants
///
/// What `unsaved`, `on_way` and the two header flags do not name is in the file, durably, as it is here.
#[derive(Debug)]
pub struct DirtyMap {
    header: Header,
    bits: Bits,
    /// Pieces that differ from the file.
    unsaved: KVec<bool>,
    /// Pieces that were given out since the last [`Self::saved`].
    on_way: KVec<bool>,
    header_unsaved: bool,
    header_on_way: bool,
}

impl DirtyMap {
    /// A new map without a gap; all of the file is to be written. `id` is the same as long as the disk belongs to the
    /// resource, and another one when it does so again later.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub fn new(
        resource: Name,
        host: Name,
        geometry: Geometry,
        id: u64,
    ) -> Result<Self, AllocError> {
        let header = Header {
            sequence: 0,
            id,
            generation: 1,
            geometry,
            all: false,
            gap: Gap::None,
            base: LogName {
                number: 0,
                creator: host,
            },
            base_end: 0,
            next: 0,
            first: 0,
            floor: 0,
            dropped: Dropped::NONE,
            opened: LamportTime::ZERO,
            resource,
            host,
        };
        let mut map = Self::with_header(header)?;
        map.unsaved.iter_mut().for_each(|u| *u = true);
        map.header_unsaved = true;
        Ok(map)
    }

    fn with_header(header: Header) -> Result<Self, AllocError> {
        let pieces = usize::try_from(header.geometry.pieces()).unwrap_or(0);
        let mut bits = Bits::new(header.geometry)?;
        if header.all {
            bits.set_all();
        }
        Ok(Self {
            header,
            bits,
            unsaved: KVec::from_elem(false, pieces, GFP_KERNEL)?,
            on_way: KVec::from_elem(false, pieces, GFP_KERNEL)?,
            header_unsaved: false,
            header_on_way: false,
        })
    }

    /// Takes up a map from the first two blocks of its file. [`None`]: there is no good header of this resource, host and
    /// identity. Then every piece has to be given to [`Self::load_piece`].
    ///
    /// # Errors
    ///
    /// Out of memory.
    #[inline(never)]
    pub fn load<D: Digest>(
        resource: &Name,
        host: &Name,
        id: u64,
        blocks: &[u8],
    ) -> Result<Option<Self>, AllocError> {
        let copy = |n: usize| {
            let start = n.checked_mul(BLOCK)?;
            blocks.get(start..start.checked_add(BLOCK)?)
        };
        let sequence = |n| sequence::<D>(resource, host, id, copy(n)?);
        let best = match (sequence(0), sequence(1)) {
            (None, None) => return Ok(None),
            (Some(a), Some(b)) if a > b => 0,
            (Some(_), None) => 0,
            _ => 1,
        };
        copy(best)
            .and_then(Header::parse::<D>)
            .map(Self::with_header)
            .transpose()
    }

    /// Takes up the bits of one piece from its block.
    pub fn load_piece<D: Digest>(&mut self, index: u32, block: &[u8]) {
        match parse_piece::<D>(&self.header, index, block) {
            Piece::Bits(bits) => {
                self.bits.load(index, bits);
            }
            Piece::Clean => (),
            Piece::Unknown => self.bits.fill(index),
        }
    }

    /// The bits.
    pub fn bits(&self) -> &Bits {
        &self.bits
    }

    /// State of the last gap.
    pub fn gap(&self) -> Gap {
        self.header.gap
    }

    /// Whether nothing is logged at the moment.
    pub fn is_open(&self) -> bool {
        matches!(self.header.gap, Gap::Open { .. })
    }

    /// When the last gap began.
    pub fn opened(&self) -> LamportTime {
        self.header.opened
    }

    /// Counts how often the map was cleared.
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// The log before the last gap and its end, and the log that is to follow it.
    pub fn last_gap(&self) -> Option<(LogName, u64, LogName)> {
        (self.header.gap != Gap::None).then_some((
            self.header.base,
            self.header.base_end,
            LogName {
                number: self.header.next,
                creator: self.header.host,
            },
        ))
    }

    /// Whether a replica finds here all that it lacks at the start of log `next`. `since` is 0: it stands right before that
    /// log, behind a gap. Else it has everything before log number `since`, and the logs up to `next` are gone.
    pub fn covers(&self, next: &LogName, since: u32) -> bool {
        let h = &self.header;
        if defect!("covers-any") {
            return !self.is_open();
        }
        if self.is_open() || next.creator != h.host {
            return false;
        }
        if since == 0 {
            return h.gap == Gap::Closed
                && h.first > 0
                && (h.first..=h.next).contains(&next.number);
        }
        (h.dropped.from..next.number).contains(&since) && next.number <= h.dropped.to
    }

    /// Whether the gap before log number `next` is one whose bits are here.
    pub fn has_gap_before(&self, next: u32) -> bool {
        let h = &self.header;
        h.gap != Gap::None && h.first > 0 && (h.first..=h.next).contains(&next)
    }

    /// Of which deleted logs the map says what they wrote.
    pub fn dropped(&self) -> Dropped {
        self.header.dropped
    }

    /// Whether the bits say something.
    pub fn is_used(&self) -> bool {
        self.header.gap != Gap::None || self.header.dropped.is_some()
    }

    /// What the bits are for: another value as soon as they are for something more.
    pub fn purpose(&self) -> (Gap, u32, Dropped) {
        (self.header.gap, self.header.next, self.header.dropped)
    }

    /// Whether a member with this replay link, whose disk is filled by a sync or not, may still ask for the bits.
    pub fn is_needed(&self, replay: Option<&ReplayLink>, synced: bool) -> bool {
        let Some(replay) = replay else { return true };
        let h = &self.header;
        let for_gap = self
            .last_gap()
            .is_some_and(|(_, _, n)| !is_past(&n, replay));
        let for_dropped = h.dropped.is_some() && (replay.log.number < h.dropped.to || !synced);
        self.is_open() || for_gap || for_dropped
    }

    /// Adds what deleted logs wrote. `bits` has the same geometry; otherwise everything counts as dirty. To be saved before
    /// [`Self::drop_logs`]: a header must never promise bits that are not in the file.
    pub fn add(&mut self, bits: &Bits) {
        for index in 0..self.header.geometry.pieces() {
            let changed = self.bits.unite(bits, index);
            let slot = usize::try_from(index)
                .ok()
                .and_then(|p| self.unsaved.get_mut(p));
            if let Some(u) = slot.filter(|_| changed) {
                *u = true;
            }
        }
        if (bits.is_all() || bits.geometry() != self.header.geometry) && !self.header.all {
            self.bits.set_all();
            self.header.all = true;
            self.header_unsaved = true;
        }
    }

    /// The logs from number `from` on, below `to`, may be deleted: what they wrote is in the map, durably. Gives what was
    /// said before; a gap between both would be a log of which nothing is known, so then only the new ones count.
    pub fn drop_logs(&mut self, from: u32, to: u32) -> Dropped {
        let old = self.header.dropped;
        let both = old.is_some() && from <= old.to && old.from <= to;
        self.set_dropped(if both {
            Dropped {
                from: from.min(old.from),
                to: to.max(old.to),
            }
        } else {
            Dropped { from, to }
        });
        old
    }

    /// Takes [`Self::drop_logs`] back, which could not be saved.
    pub fn set_dropped(&mut self, dropped: Dropped) {
        self.header.dropped = dropped;
        self.header_unsaved = true;
    }

    /// From where recovery starts.
    pub fn recovery(&self) -> Recovery {
        let h = &self.header;
        match h.gap {
            Gap::None => Recovery::Normal,
            Gap::Open { settled: false } => Recovery::Until {
                from: (h.floor > 0 && !defect!("second-gap-from-link")).then_some(LogName {
                    number: h.floor,
                    creator: h.host,
                }),
                log: h.base,
                end: h.base_end,
            },
            Gap::Open { settled: true } => Recovery::Behind(h.base, h.base_end),
            Gap::Closed => Recovery::From(LogName {
                number: h.next,
                creator: h.host,
            }),
        }
    }

    /// Logging stops: `base` ends at `end` for ever, and the log behind the gap will have the number `next`.
    ///
    /// # Errors
    ///
    /// A gap is open already.
    pub fn open_gap(
        &mut self,
        base: LogName,
        end: u64,
        next: u32,
        now: LamportTime,
    ) -> Result<(), DirtyError> {
        if self.is_open() {
            return Err(DirtyError::WrongState);
        }
        let h = &mut self.header;
        // The replay link may yet be before the last gap, and a full `/mars` can keep it there.
        h.floor = if h.gap == Gap::Closed { h.next } else { 0 };
        h.gap = Gap::Open { settled: false };
        h.base = base;
        h.base_end = end;
        h.next = next;
        if h.first == 0 {
            h.first = next;
        }
        h.opened = now;
        self.header_unsaved = true;
        Ok(())
    }

    /// Marks a range that is about to be written without a log.
    pub fn mark(&mut self, offset: u64, length: u64) {
        let unsaved = &mut self.unsaved;
        let mut lost = false;
        self.bits.mark(offset, length, |piece| {
            match usize::try_from(piece).ok().and_then(|p| unsaved.get_mut(p)) {
                Some(u) => *u = true,
                None => lost = true,
            }
        });
        if lost {
            self.bits.set_all();
        }
        if self.bits.is_all() && !self.header.all {
            self.header.all = true;
            self.header_unsaved = true;
        }
    }

    /// Everything of the base log, and all that was written since, is durable on the disk.
    ///
    /// # Errors
    ///
    /// No gap is open.
    pub fn settle(&mut self) -> Result<(), DirtyError> {
        match self.header.gap {
            Gap::Open { settled: true } => Ok(()),
            Gap::Open { settled: false } => {
                self.header.gap = Gap::Open { settled: true };
                self.header_unsaved = true;
                Ok(())
            }
            Gap::None | Gap::Closed => Err(DirtyError::WrongState),
        }
    }

    /// The gap ends where log `next` of this host begins: all that was written in it is durable on the disk.
    ///
    /// # Errors
    ///
    /// No gap is open.
    pub fn close_gap(&mut self, next: u32) -> Result<(), DirtyError> {
        if !self.is_open() {
            return Err(DirtyError::WrongState);
        }
        self.header.gap = Gap::Closed;
        self.header.next = next;
        self.header_unsaved = true;
        Ok(())
    }

    /// That the gap has ended could not be made durable: it goes on, and what the file may say of its end is written over before
    /// anything else is written without a log.
    pub fn reopen(&mut self) {
        if self.header.gap == Gap::Closed {
            self.header.gap = Gap::Open { settled: true };
            self.header_unsaved = true;
        }
    }

    /// All members have recovered, or this disk is about to be filled anew: nothing is dirty any more.
    pub fn clear(&mut self) {
        let h = &mut self.header;
        h.gap = Gap::None;
        h.first = 0;
        h.floor = 0;
        h.dropped = Dropped::NONE;
        h.all = false;
        h.generation = h.generation.saturating_add(1);
        self.bits.clear();
        self.unsaved.iter_mut().for_each(|u| *u = false);
        self.on_way.iter_mut().for_each(|u| *u = false);
        self.header_unsaved = true;
    }

    /// There should be a map and it can't be read: everything counts as dirty, until a gap has said so to the replicas.
    pub fn distrust(&mut self) {
        self.bits.set_all();
        self.header.all = true;
        self.header_unsaved = true;
    }

    /// Whether a gap must be opened for what a lost map may have said.
    pub fn is_distrusted(&self) -> bool {
        !self.is_used() && self.header.all
    }

    /// Has all of the file written again, so that nothing damaged stays in it, and every block is known to be writable. A map
    /// that is not used is cleared.
    pub fn refresh(&mut self) {
        if !self.is_used() && !self.header.all {
            self.clear();
        }
        self.header_unsaved = true;
        self.unsaved.iter_mut().for_each(|u| *u = true);
    }

    /// Whether something has to be written.
    pub fn is_unsaved(&self) -> bool {
        self.header_unsaved
            || self.header_on_way
            || self.unsaved.iter().chain(&self.on_way).any(|u| *u)
    }

    /// The next block to be written: fills `out`, of [`BLOCK`] bytes, and gives its place in the file. [`None`]: flush the
    /// file now, then [`Self::saved`].
    pub fn next_write<D: Digest>(&mut self, out: &mut [u8]) -> Option<u64> {
        if out.len() != BLOCK {
            return None;
        }
        if self.header_unsaved {
            // Until it is durable the same place is written, so that the other copy stays good.
            let next = Header {
                sequence: self.header.sequence.saturating_add(1),
                ..self.header
            };
            if !next.encode::<D>(out) {
                return None;
            }
            self.header_unsaved = false;
            self.header_on_way = true;
            return Some(header_at(next.sequence));
        }
        let at = self.unsaved.iter().position(|u| *u)?;
        let index = u32::try_from(at).ok()?;
        let bits = &self.bits;
        let (id, generation) = (self.header.id, self.header.generation);
        if !encode_piece::<D>(id, generation, index, |b| bits.piece(index, b), out) {
            return None;
        }
        if let (Some(u), Some(w)) = (self.unsaved.get_mut(at), self.on_way.get_mut(at)) {
            *u = false;
            *w = true;
        }
        Some(piece_at(index))
    }

    /// Everything that was given out is durable.
    pub fn saved(&mut self) {
        if self.header_on_way {
            self.header.sequence = self.header.sequence.saturating_add(1);
            self.header_on_way = false;
        }
        self.on_way.iter_mut().for_each(|w| *w = false);
    }

    /// Nobody knows what became of what was given out: it has to be written again.
    pub fn failed(&mut self) {
        self.header_unsaved |= self.header_on_way;
        self.header_on_way = false;
        for (u, w) in self.unsaved.iter_mut().zip(self.on_way.iter_mut()) {
            *u |= *w;
            *w = false;
        }
    }
}
