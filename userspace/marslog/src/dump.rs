// SPDX-License-Identifier: GPL-2.0-or-later

//! `marslog dump`.

use crate::{
    cli::DumpArgs,
    reader::{
        Failure,
        Reader,
        Start, //
    },
    text::{
        kind,
        stamp,
        HeaderJson,
        HeaderText, //
    },
    Verdict,
};
use mars_core::log::{
    BatchView,
    EndReason,
    RecordKind,
    RecordView,
    ScanPos, //
};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Header(HeaderJson),
    Batch(BatchJson),
    End(EndJson),
}

#[derive(Serialize)]
struct BatchJson {
    position: u64,
    sequence: u64,
    length: u32,
    used: u32,
    stamp: String,
    record_count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<RecordJson>>,
}

#[derive(Serialize)]
struct RecordJson {
    kind: &'static str,
    offset: u64,
    length: u32,
    stamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_crc32c: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

#[derive(Serialize)]
struct EndJson {
    position: u64,
    reason: &'static str,
    clean: bool,
    message: String,
}

impl From<RecordView<'_>> for RecordJson {
    fn from(r: RecordView<'_>) -> Self {
        let marker = r.kind == RecordKind::Marker;
        Self {
            kind: kind(r.kind),
            offset: r.offset,
            length: r.length,
            stamp: stamp(r.stamp),
            payload_crc32c: (!r.payload.is_empty()).then(|| format!("{:08x}", r.payload_crc)),
            text: marker.then(|| String::from_utf8_lossy(r.payload).into_owned()),
        }
    }
}

fn batch_json(batch: &BatchView<'_>, records: bool) -> BatchJson {
    BatchJson {
        position: batch.pos,
        sequence: batch.seq,
        length: batch.total_len,
        used: batch.used_len,
        stamp: stamp(batch.stamp),
        record_count: batch.record_count(),
        records: records.then(|| batch.records().map(Into::into).collect()),
    }
}

fn print_batch(batch: &BatchView<'_>, records: bool, out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(
        out,
        "batch     {} at {}, {} bytes, {} records, {}",
        batch.seq,
        batch.pos,
        batch.total_len,
        batch.record_count(),
        stamp(batch.stamp)
    )?;
    if !records {
        return Ok(());
    }
    for r in batch.records() {
        write!(
            out,
            "  {:<12} {}+{} {}",
            kind(r.kind),
            r.offset,
            r.length,
            stamp(r.stamp)
        )?;
        if r.kind == RecordKind::Marker {
            write!(out, " {:?}", String::from_utf8_lossy(r.payload))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn print_end(at: u64, reason: EndReason, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if json {
        let line = Line::End(EndJson {
            position: at,
            reason: reason.word(),
            clean: reason.is_clean(),
            message: reason.to_string(),
        });
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    } else {
        let what = if reason.is_clean() { "end" } else { "DAMAGED" };
        writeln!(out, "{what:<9} at {at}: {reason}")?;
    }
    Ok(())
}

/// Prints a log.
pub(crate) fn run(args: &DumpArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let (mut reader, start) = Reader::open(&args.file)?;
    let (header, crc) = match start {
        Start::Header(header, crc) => (header, crc),
        Start::Empty => {
            print_end(0, EndReason::Eof, args.json, out)?;
            return Ok(Verdict::Good);
        }
        Start::Damaged(e) => {
            eprintln!("marslog: {}: {e}", args.file.display());
            return Ok(Verdict::Damaged);
        }
    };
    if args.json {
        let line = Line::Header((&*header).into());
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    } else {
        write!(out, "{}", HeaderText(&header))?;
    }
    let from = match args.from {
        None => ScanPos::first(crc),
        Some(pos) => ScanPos {
            pos,
            seq: None,
            chain: None,
        },
    };
    let mut left = args.count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(Verdict::Good);
    }
    let records = !args.no_records;
    let (at, reason) = reader.scan(header.context(), from, true, |batch| {
        if args.json {
            let line = Line::Batch(batch_json(batch, records));
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        } else {
            print_batch(batch, records, out)?;
        }
        left -= 1;
        Ok(left > 0)
    })?;
    match reason {
        None => Ok(Verdict::Good),
        Some(reason) => {
            print_end(at.pos, reason, args.json, out)?;
            Ok(if reason.is_clean() {
                Verdict::Good
            } else {
                Verdict::Damaged
            })
        }
    }
}
