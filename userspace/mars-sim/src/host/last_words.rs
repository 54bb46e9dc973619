// SPDX-License-Identifier: GPL-2.0-or-later

//! `src/engine/last_words.rs`: what a primary wrote before it crashed.

use super::{logger::has_batches, replay, Host};
use crate::{fs::Res, truth::HEADER};
use mars_core::succession::own_next;

/// Writes the version links of this host's newest logs as far as the files are good.
pub async fn say(h: &Host) -> Res<()> {
    let Some(newest) = h.history(&h.me).last().map(|v| v.this) else {
        return Ok(());
    };
    let gap = match h.dirty.open_gap_of(h).await? {
        Some(gap) => gap,
        None if h.switch(&format!("actual-{}/has-gap", h.me)) => return Ok(()),
        None => None,
    };
    if gap.is_some() {
        h.try_put(&format!("actual-{}/has-gap", h.me), "1").await?;
        h.sync_actual_dir().await?;
    }
    if gap.is_some_and(|(base, _)| newest.log.number > base.number) {
        return Ok(());
    }
    let (mut log, mut said) = (newest.log, newest.pos);
    while log.creator == h.me {
        h.fs_io().await?;
        let Some(ino) = h.machine().fs.borrow().file(&h.log_path(&log)) else {
            break;
        };
        h.sync_file(ino, false).await?;
        let from = if said <= HEADER { 0 } else { said };
        let (mut end, whole) = replay::valid_end(h, ino, &log, from).await?;
        let is_base = gap.is_some_and(|(base, _)| base == log);
        if let Some((_, most)) = gap.filter(|_| is_base) {
            end = end.min(most);
        }
        if end > said {
            h.say(|| format!("{log} was written up to {end} before the crash, {said} was known"));
            h.say_end(&log, end).await?;
        }
        if !whole || is_base {
            break;
        }
        h.sync_dir().await?;
        let own = h.version(log.number + 1);
        let Some(next) = own_next(&log, end, &h.me, own.as_ref()) else {
            break;
        };
        let file = h.machine().fs.borrow().file(&h.log_path(&next));
        if !file.is_some_and(|ino| has_batches(h, ino, &next)) {
            break;
        }
        (log, said) = (next, 0);
    }
    Ok(())
}
