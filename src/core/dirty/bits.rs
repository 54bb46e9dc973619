// SPDX-License-Identifier: GPL-2.0-or-later

//! A bit for each grain of a device, in pieces of one block of the map file each.

use kernel::alloc::{
    flags::GFP_KERNEL,
    AllocError,
    KVec, //
};

use crate::num::{
    is_aligned,
    to_u64, //
};

/// Smallest grain: what one bit stands for.
pub const MIN_GRAIN: u32 = 64 << 10;
/// Largest grain.
pub const MAX_GRAIN: u32 = 1 << 30;
/// Bytes of bits in one piece.
pub const PIECE: usize = 4032;
/// Bits in one piece.
const PIECE_BITS: u64 = 4032 * 8;
/// A map has no more bits than this: 2 MiB of them.
const MAX_BITS: u64 = 1 << 24;
/// Highest number of pieces.
pub const MAX_PIECES: u32 = 521;

const _: () = assert!(MAX_BITS.div_ceil(PIECE_BITS) == 521);

/// Size of a device and what a bit stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes of the device.
    pub size: u64,
    /// Bytes per bit, a power of two.
    pub grain: u32,
}

impl Geometry {
    /// The finest grain with which the map of a device of `size` bytes is not too large.
    pub fn for_size(size: u64) -> Self {
        let mut grain = MIN_GRAIN;
        while grain < MAX_GRAIN && size.div_ceil(grain.into()) > MAX_BITS {
            grain = grain.saturating_mul(2);
        }
        Self { size, grain }
    }

    /// Checks what was read from a disk or a peer.
    pub fn checked(size: u64, grain: u32) -> Option<Self> {
        let good = size > 0
            && is_aligned(size, 512)
            && grain.is_power_of_two()
            && (MIN_GRAIN..=MAX_GRAIN).contains(&grain)
            && size.div_ceil(grain.into()) <= MAX_BITS;
        good.then_some(Self { size, grain })
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> u32 {
        let bits = self.size.div_ceil(u64::from(self.grain).max(1));
        u32::try_from(bits.div_ceil(PIECE_BITS)).unwrap_or(MAX_PIECES)
    }

    /// First and last bit of a range that lies within the device and is not empty.
    fn bits_of(&self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let end = offset.checked_add(length)?;
        if length == 0 || end > self.size {
            return None;
        }
        let grain = u64::from(self.grain);
        Some((
            offset.checked_div(grain)?,
            end.saturating_sub(1).checked_div(grain)?,
        ))
    }
}

/// Where a bit lies: piece, byte in it, mask.
fn place(bit: u64) -> Option<(u32, usize, u8)> {
    let piece = u32::try_from(bit.checked_div(PIECE_BITS)?).ok()?;
    let rest = bit.checked_rem(PIECE_BITS)?;
    let byte = usize::try_from(rest / 8).ok()?;
    let mask = 1u8.checked_shl(u32::try_from(rest % 8).ok()?)?;
    Some((piece, byte, mask))
}

/// The bits.
#[derive(Debug)]
pub struct Bits {
    geometry: Geometry,
    pieces: KVec<KVec<u8>>,
    /// A range outside of the device was marked: everything counts as dirty.
    all: bool,
}

impl Bits {
    /// All clean.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub fn new(geometry: Geometry) -> Result<Self, AllocError> {
        let mut pieces = KVec::new();
        for _ in 0..geometry.pieces() {
            pieces.push(KVec::from_elem(0, PIECE, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self {
            geometry,
            pieces,
            all: false,
        })
    }

    /// Size and grain.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Marks a range; calls `changed` for each piece in which a bit was set that was not. A range outside of the device
    /// makes everything dirty.
    pub fn mark(&mut self, offset: u64, length: u64, mut changed: impl FnMut(u32)) {
        if length == 0 {
            return;
        }
        let Some((first, last)) = self.geometry.bits_of(offset, length) else {
            self.all = true;
            return;
        };
        let mut told = None;
        for bit in first..=last {
            let Some((piece, byte, mask)) = place(bit) else {
                continue;
            };
            let Some(b) = usize::try_from(piece)
                .ok()
                .and_then(|p| self.pieces.get_mut(p)?.get_mut(byte))
            else {
                self.all = true;
                continue;
            };
            if *b & mask == 0 {
                *b |= mask;
                if told != Some(piece) {
                    told = Some(piece);
                    changed(piece);
                }
            }
        }
    }

    /// Whether any part of the range is dirty; what is outside of the device always is.
    pub fn is_dirty(&self, offset: u64, length: u64) -> bool {
        if self.all {
            return true;
        }
        let Some((first, last)) = self.geometry.bits_of(offset, length) else {
            return length > 0;
        };
        (first..=last).any(|bit| self.bit(bit))
    }

    fn bit(&self, bit: u64) -> bool {
        let byte = || {
            let (piece, byte, mask) = place(bit)?;
            let b = self.pieces.get(usize::try_from(piece).ok()?)?.get(byte)?;
            Some(b & mask != 0)
        };
        byte().unwrap_or(true)
    }

    /// Bytes of the device that count as dirty.
    pub fn dirty_bytes(&self) -> u64 {
        if self.all {
            return self.geometry.size;
        }
        let ones: u64 = self
            .pieces
            .iter()
            .flat_map(|p| p.iter())
            .map(|b| u64::from(b.count_ones()))
            .sum();
        ones.saturating_mul(self.geometry.grain.into())
            .min(self.geometry.size)
    }

    /// Whether everything counts as dirty.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// From now on everything counts as dirty.
    pub fn set_all(&mut self) {
        self.all = true;
    }

    /// The bits of one piece; all ones if everything is dirty. `out` has [`PIECE`] bytes.
    pub fn piece(&self, index: u32, out: &mut [u8]) -> bool {
        let piece = usize::try_from(index).ok().and_then(|i| self.pieces.get(i));
        let Some(piece) = piece.filter(|p| p.len() == out.len()) else {
            return false;
        };
        if self.all {
            out.fill(u8::MAX);
        } else {
            out.copy_from_slice(piece);
        }
        true
    }

    /// Replaces the bits of one piece, as [`Self::piece`] gave them. `false` if there is no such piece.
    pub fn load(&mut self, index: u32, bits: &[u8]) -> bool {
        let piece = usize::try_from(index)
            .ok()
            .and_then(|i| self.pieces.get_mut(i));
        let Some(piece) = piece.filter(|p| p.len() == bits.len()) else {
            return false;
        };
        piece.copy_from_slice(bits);
        self.trim(index);
        true
    }

    /// Adds the bits of one piece of `other`. Gives whether that changed anything.
    pub(super) fn unite(&mut self, other: &Self, index: u32) -> bool {
        let at = usize::try_from(index).ok();
        let both = at.and_then(|i| Some((self.pieces.get_mut(i)?, other.pieces.get(i)?)));
        let mut changed = false;
        if let Some((mine, theirs)) = both {
            for (m, t) in mine.iter_mut().zip(theirs) {
                changed |= *t & !*m != 0;
                *m |= *t;
            }
        }
        changed
    }

    /// All bits of one piece count as dirty.
    pub fn fill(&mut self, index: u32) {
        let piece = usize::try_from(index)
            .ok()
            .and_then(|i| self.pieces.get_mut(i));
        if let Some(piece) = piece {
            piece.fill(u8::MAX);
            self.trim(index);
        }
    }

    /// Clears the bits behind the end of the device, so that they are not counted.
    fn trim(&mut self, index: u32) {
        let bits = self
            .geometry
            .size
            .div_ceil(u64::from(self.geometry.grain).max(1));
        let start = u64::from(index).saturating_mul(PIECE_BITS);
        let piece = usize::try_from(index)
            .ok()
            .and_then(|i| self.pieces.get_mut(i));
        let Some(piece) = piece else { return };
        for (n, byte) in piece.iter_mut().enumerate() {
            let at = start.saturating_add(to_u64(n).saturating_mul(8));
            let left = bits.saturating_sub(at);
            if left < 8 {
                let mask = u32::try_from(left)
                    .ok()
                    .and_then(|left| 1u8.checked_shl(left))
                    .map_or(0, |m| m.wrapping_sub(1));
                *byte &= mask;
            }
        }
    }

    /// All clean again.
    pub fn clear(&mut self) {
        self.all = false;
        for piece in &mut self.pieces {
            piece.fill(0);
        }
    }
}
