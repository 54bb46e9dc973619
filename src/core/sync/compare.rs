// SPDX-License-Identifier: GPL-2.0-or-later

//! Digests of a chunk, and what differs.
//!
//! A chunk is cut into grains; the last one may be shorter. The digest of a grain is its SHA-256, except that a grain of
//! zeros is [`ZEROS`], without hashing: devices are mostly empty. Should the SHA-256 of anything else ever be all zero, or
//! be [`UNTRUSTED`], it is sent as [`UNTRUSTED`], which equals nothing: the grain is transferred.

use core::marker::PhantomData;

use super::SyncError;
use crate::digest::Digest;
use crate::num::to_usize;
use crate::wire::frame::MAX_DATA;

/// Length of a digest.
const DIGEST_LEN: usize = 32;
/// Stands for a grain of zeros.
const ZEROS: [u8; DIGEST_LEN] = [0; DIGEST_LEN];
/// Stands for a grain that has to be transferred whatever the other side has.
const UNTRUSTED: [u8; DIGEST_LEN] = [0xff; DIGEST_LEN];

/// Whether all bytes are zero.
pub fn is_zero(data: &[u8]) -> bool {
    // In steps, so that data is left soon; words, so that it is fast without vector registers.
    data.chunks(512).all(|step| {
        let words = step.chunks_exact(size_of::<u64>());
        let rest = words.remainder().iter().fold(0, |sum, byte| sum | byte);
        let sum = words.fold(0, |sum, word| {
            sum | word
                .first_chunk()
                .map_or(0, |word| u64::from_le_bytes(*word))
        });
        sum | u64::from(rest) == 0
    })
}

/// Length of all digests of `len` bytes; [`None`] if the grain is 0.
pub fn digests_len(len: usize, grain: u32) -> Option<usize> {
    len.div_ceil(to_usize(core::num::NonZero::new(grain)?.get()))
        .checked_mul(DIGEST_LEN)
}

/// Writes the digests of all grains of `data` to `out`, whose length must be [`digests_len`].
pub fn digest_chunk<D: Digest>(data: &[u8], grain: u32, out: &mut [u8]) -> Result<(), SyncError> {
    if digests_len(data.len(), grain) != Some(out.len()) {
        return Err(SyncError::BadDigests);
    }
    let grains = data.chunks(to_usize(grain));
    for (digest, grain) in out.chunks_exact_mut(DIGEST_LEN).zip(grains) {
        digest.copy_from_slice(&digest_grain::<D>(grain));
    }
    Ok(())
}

fn digest_grain<D: Digest>(grain: &[u8]) -> [u8; DIGEST_LEN] {
    if is_zero(grain) {
        return ZEROS;
    }
    match D::sha256(&[grain]) {
        ZEROS => UNTRUSTED,
        digest => digest,
    }
}

/// What has to be done with a grain of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Equal,
    Transfer,
    Zero,
}

fn judge<D: Digest>(local: &[u8], remote: &[u8]) -> Verdict {
    if remote == ZEROS {
        return if is_zero(local) {
            Verdict::Equal
        } else {
            Verdict::Zero
        };
    }
    if remote != UNTRUSTED && remote == digest_grain::<D>(local) {
        return Verdict::Equal;
    }
    Verdict::Transfer
}

/// Bytes of a chunk that differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// First byte, counted from the beginning of the chunk.
    pub start: u32,
    /// Number of bytes; not more than one message may carry.
    pub len: u32,
    /// There are only zeros at the primary: nothing needs to be transferred.
    pub zero: bool,
}

/// Compares `local`, the bytes of a chunk of our disk, with the primary's digests of the same chunk.
///
/// Neighbours are united up to the longest data of one message.
pub fn differing<'a, D: Digest>(
    local: &'a [u8],
    grain: u32,
    digests: &'a [u8],
) -> Result<Differing<'a, D>, SyncError> {
    let fits = digests_len(local.len(), grain) == Some(digests.len());
    if !fits || u32::try_from(local.len()).is_err() {
        return Err(SyncError::BadDigests);
    }
    Ok(Differing {
        local,
        digests,
        grain: to_usize(grain),
        at: 0,
        pending: None,
        digest: PhantomData,
    })
}

/// See [`differing`].
#[derive(Debug)]
pub struct Differing<'a, D> {
    /// What was not compared yet.
    local: &'a [u8],
    digests: &'a [u8],
    grain: usize,
    /// Where `local` begins in the chunk.
    at: u32,
    /// May still grow.
    pending: Option<Difference>,
    digest: PhantomData<D>,
}

impl<D: Digest> Differing<'_, D> {
    /// Compares the next grain: where it begins, its length, and what is to be done.
    fn next_grain(&mut self) -> Option<(u32, u32, Verdict)> {
        let (remote, digests) = self.digests.split_at_checked(DIGEST_LEN)?;
        let (local, rest) = self
            .local
            .split_at_checked(self.grain.min(self.local.len()))?;
        let (start, len) = (self.at, u32::try_from(local.len()).ok()?);
        self.at = start.checked_add(len)?;
        self.digests = digests;
        self.local = rest;
        Some((start, len, judge::<D>(local, remote)))
    }
}

impl<D: Digest> Iterator for Differing<'_, D> {
    type Item = Difference;

    fn next(&mut self) -> Option<Difference> {
        while let Some((start, len, verdict)) = self.next_grain() {
            if verdict == Verdict::Equal {
                if let Some(found) = self.pending.take() {
                    return Some(found);
                }
                continue;
            }
            let zero = verdict == Verdict::Zero;
            match &mut self.pending {
                Some(found) if found.zero == zero && found.len.saturating_add(len) <= MAX_DATA => {
                    found.len = found.len.saturating_add(len);
                }
                pending => {
                    if let Some(found) = pending.replace(Difference { start, len, zero }) {
                        return Some(found);
                    }
                }
            }
        }
        self.pending.take()
    }
}
