// SPDX-License-Identifier: GPL-2.0-or-later

//! When a write is complete: the three meanings of the original's `logger_completion_semantics`.
//!
//! The device always says that it has a volatile write cache, and a flush or FUA always waits until the log is durable, be the
//! setting what it may. So none of them can lose what an application has made durable by the rules of Linux; they differ in
//! what happens to writes that nobody asked to be durable when the power goes.

/// When writes without flush or FUA are complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completion {
    /// All as soon as they are in memory: like any disk with a write cache. A crash may lose the last moment.
    #[default]
    Early,
    /// Those that somebody waits for (`REQ_SYNC`: direct I/O, journals, `fsync`) when the log is durable, others early: for
    /// applications that take `O_DIRECT` alone for durable.
    SyncLate,
    /// All when the log is durable: like a disk without a write cache.
    Late,
}

impl Completion {
    /// From the number of the setting. What is not one of the three is the safest of them.
    pub fn from_number(n: u32) -> Self {
        match n {
            0 => Self::Early,
            1 => Self::SyncLate,
            _ => Self::Late,
        }
    }
}

/// Whether a write waits until it, and everything before it, is durable in the log.
pub fn waits(setting: Completion, sync: bool, flush_or_fua: bool) -> bool {
    flush_or_fua
        || match setting {
            Completion::Early => false,
            Completion::SyncLate => sync,
            Completion::Late => true,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_any_setting_when_a_write_has_flush_or_fua_then_it_waits() {
        for n in 0..4 {
            for sync in [false, true] {
                assert!(waits(Completion::from_number(n), sync, true));
            }
        }
    }

    #[test]
    fn given_each_setting_when_a_write_has_neither_then_it_waits_as_the_original_says() {
        let table = [(0, [false, false]), (1, [false, true]), (2, [true, true])];
        for (n, [plain, sync]) in table {
            assert_eq!(waits(Completion::from_number(n), false, false), plain);
            assert_eq!(waits(Completion::from_number(n), true, false), sync);
        }
        assert_eq!(Completion::default(), Completion::from_number(0));
    }
}
