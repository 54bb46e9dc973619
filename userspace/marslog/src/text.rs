// SPDX-License-Identifier: GPL-2.0-or-later

//! What the commands print in common.

use mars_core::{
    lamport::LamportTime,
    log::{
        LogHeader,
        RecordKind, //
    },
    text::Hex, //
};
use serde::Serialize;
use std::fmt;

/// A log's header, for programs.
#[derive(Serialize)]
pub(crate) struct HeaderJson {
    format: String,
    number: u32,
    log_id: String,
    cluster: String,
    resource: String,
    creator: String,
    created: String,
    align: u32,
}

impl From<&LogHeader> for HeaderJson {
    fn from(h: &LogHeader) -> Self {
        Self {
            format: format!("2.{}", h.minor),
            number: h.number,
            log_id: Hex(&h.log_id).to_string(),
            cluster: h.uuid.to_string(),
            resource: h.resource.to_string(),
            creator: h.creator.to_string(),
            created: h.created.to_string(),
            align: h.align,
        }
    }
}

/// A log's header, for people.
pub(crate) struct HeaderText<'a>(pub(crate) &'a LogHeader);

impl fmt::Display for HeaderText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = self.0;
        writeln!(f, "log       {} of resource {}", h.name(), h.resource)?;
        writeln!(f, "cluster   {}", h.uuid)?;
        writeln!(f, "created   {}", h.created)?;
        writeln!(f, "identity  {}", Hex(&h.log_id))?;
        writeln!(f, "format    2.{}, batches aligned to {}", h.minor, h.align)
    }
}

/// Nanoseconds as a Lamport time.
pub(crate) fn stamp(nanos: u64) -> String {
    LamportTime::from_nanos(nanos).to_string()
}

/// The word for a kind of record.
pub(crate) fn kind(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Write => "write",
        RecordKind::Discard => "discard",
        RecordKind::WriteZeroes => "write-zeroes",
        RecordKind::Marker => "marker",
    }
}
