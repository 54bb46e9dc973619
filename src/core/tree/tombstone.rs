// SPDX-License-Identifier: GPL-2.0-or-later

//! Deletion: the value `.deleted`.
//!
//! A tombstone is a value like any other, ordered by its stamp, so that a deletion wins over what was
//! before it and loses against what comes after it, whatever the order of arrival. Every reader treats
//! it as "does not exist". `marsadm cron` removes old tombstones from the disk.
//!
//! A host that never had the object does not create the tombstone of a peer on its disk, but remembers it
//! in memory (a *phantom*) and passes it on: else an old value that arrives later by a detour would live
//! on here, because nobody tells of the deletion a second time. What `marsadm cron` has removed from the
//! disk becomes a phantom, too. [`super::Tree::forget_phantoms`] forgets those that are old.

/// The value that means "does not exist".
pub const TOMBSTONE: &[u8] = TOMBSTONE_TEXT.as_bytes();
/// [`TOMBSTONE`] as text.
pub const TOMBSTONE_TEXT: &str = ".deleted";

/// Whether a value says that the object does not exist.
pub fn is_tombstone(value: &[u8]) -> bool {
    value == TOMBSTONE
}

/// The value, unless it is a tombstone.
pub fn live(value: &[u8]) -> Option<&[u8]> {
    (!is_tombstone(value)).then_some(value)
}
