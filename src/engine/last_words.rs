// SPDX-License-Identifier: GPL-2.0-or-later

//! What this host wrote as a primary before it crashed, and could not tell anybody.
//!
//! A version link follows the log with some delay. After a crash of the primary, the log may be durable further than the tree
//! says. Who then takes the role, by a planned handover that is to lose nothing, has to know how far; so the host looks before
//! it says that it is no primary any more. For that it needs `/mars` only, not the disk with the data.

use kernel::prelude::*;

use mars_core::{
    log::HEADER_SIZE,
    succession::own_next, //
};

use crate::{
    engine::{
        dirty,
        logfile::has_batches,
        member::Member,
        paths,
        replay, //
    },
    sys::file::{
        File,
        OpenFlags, //
    }, //
};

/// Writes the version links of this host's newest logs as far as the files are good. Called by the control thread of a host
/// that is no primary.
///
/// # Errors
///
/// The files can't be read, or the links can't be written.
pub(crate) fn say(m: &Member) -> Result {
    let me = m.me();
    let Some(newest) = m.history(&me)?.last().map(|v| v.this) else {
        return Ok(());
    };
    // In a gap, the log before it ends where the map says, whatever stands behind that, and the next one has not begun.
    let gap = match dirty::open_gap(m)? {
        Some(gap) => gap,
        None if m.is_in_gap() => return Ok(()),
        None => None,
    };
    if gap.is_some() {
        m.try_set(format_args!("actual-{me}/has-gap"), format_args!("1"))?;
        paths::sync_actual_dir(&m.name, &me)?;
    }
    if gap.is_some_and(|(base, _)| newest.log.number > base.number) {
        return Ok(());
    }
    let header = u64::try_from(HEADER_SIZE)?;
    let (mut log, mut said) = (newest.log, newest.pos);
    while log.creator == me {
        let file = match File::open(&paths::log(&m.name, &log)?, OpenFlags::default(), 0o600) {
            Err(e) if paths::is_absent(e) => break,
            r => r?,
        };
        // What a crash left in a cache is not durable yet.
        file.sync()?;
        let from = if said <= header { 0 } else { said };
        let (mut end, whole) = replay::valid_end(m, &file, &log, from)?;
        let is_base = gap.is_some_and(|(base, _)| base == log);
        if let Some((_, most)) = gap.filter(|_| is_base) {
            end = end.min(most);
        }
        if end > said {
            m.say_end(&log, end)?;
            pr_info!(
                "{}: {:?} was written up to {} before the crash; {} was known\n",
                m.name.as_str(),
                log,
                end,
                said
            );
        }
        paths::sync_resource_dir(&m.name)?;
        if is_base && (whole || gap.is_some_and(|(_, most)| end >= most)) {
            break;
        }
        if !whole {
            // What can't be read may have been confirmed; recovery says what is wrong.
            return Err(EIO);
        }
        let own = log.number.checked_add(1).and_then(|n| m.version(n, &me));
        let Some(next) = own_next(&log, end, &me, own.as_ref().map(|(_, v)| v)) else {
            break;
        };
        // One without any batch was never used.
        match File::open(&paths::log(&m.name, &next)?, OpenFlags::default(), 0o600) {
            Ok(f) if has_batches(&f, &m.name, &next) => (),
            Ok(_) => break,
            Err(e) if paths::is_absent(e) => break,
            Err(e) => return Err(e),
        }
        (log, said) = (next, 0);
    }
    Ok(())
}
