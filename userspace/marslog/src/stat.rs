// SPDX-License-Identifier: GPL-2.0-or-later

//! `marslog stat`.

use crate::{
    cli::StatArgs,
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
    ScanPos, //
};
use serde::Serialize;
use std::{
    io::Write,
    path::Path, //
};

#[derive(Serialize, Default, Clone, Copy)]
struct Count {
    records: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Report {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderJson>,
    file_bytes: u64,
    log_bytes: u64,
    payload_bytes: u64,
    batches: u64,
    records: u64,
    write: Count,
    discard: Count,
    write_zeroes: Count,
    marker: Count,
    /// First and last byte of the device that is written to, the last one exclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_range: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_stamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_stamp: Option<String>,
    /// Seconds from the first to the last record.
    seconds: f64,
    end_reason: String,
    clean: bool,
}

#[derive(Default)]
struct Sums {
    batches: u64,
    records: u64,
    counts: [Count; 4],
    payload: u64,
    range: Option<(u64, u64)>,
    stamps: Option<(u64, u64)>,
}

const KINDS: [RecordKind; 4] = [
    RecordKind::Write,
    RecordKind::Discard,
    RecordKind::WriteZeroes,
    RecordKind::Marker,
];

impl Sums {
    fn add(&mut self, batch: &BatchView<'_>) {
        self.batches += 1;
        for r in batch.records() {
            self.records += 1;
            self.payload += r.payload.len() as u64;
            for (count, kind) in self.counts.iter_mut().zip(KINDS) {
                if kind == r.kind {
                    count.records += 1;
                    count.bytes += u64::from(r.length);
                }
            }
            if r.kind != RecordKind::Marker {
                let end = r.offset + u64::from(r.length);
                let (a, b) = self.range.unwrap_or((r.offset, end));
                self.range = Some((a.min(r.offset), b.max(end)));
            }
            let (a, b) = self.stamps.unwrap_or((r.stamp, r.stamp));
            self.stamps = Some((a.min(r.stamp), b.max(r.stamp)));
        }
    }
}

fn print(report: &Report, out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(
        out,
        "size      {} bytes of log, file of {} bytes",
        report.log_bytes, report.file_bytes
    )?;
    writeln!(
        out,
        "content   {} batches, {} records, {} bytes of data",
        report.batches, report.records, report.payload_bytes
    )?;
    let counts = [
        report.write,
        report.discard,
        report.write_zeroes,
        report.marker,
    ];
    for (k, c) in KINDS.into_iter().zip(counts) {
        if c.records > 0 {
            writeln!(
                out,
                "  {:<12} {} records, {} bytes",
                kind(k),
                c.records,
                c.bytes
            )?;
        }
    }
    if let Some((from, to)) = report.device_range {
        writeln!(out, "device    {from} to {to}")?;
    }
    if let (Some(first), Some(last)) = (&report.first_stamp, &report.last_stamp) {
        writeln!(out, "time      {first} to {last} ({:.3} s)", report.seconds)?;
    }
    let what = if report.clean { "end" } else { "DAMAGED" };
    writeln!(
        out,
        "{what:<9} at {}: {}",
        report.log_bytes, report.end_reason
    )?;
    Ok(())
}

fn stat(file: &Path, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let (mut reader, start) = Reader::open(file)?;
    let mut sums = Sums::default();
    let mut header_json = None;
    let (end, reason) = match start {
        Start::Header(header, crc) => {
            if !json {
                write!(out, "{}", HeaderText(&header))?;
            }
            header_json = Some((&*header).into());
            let (at, reason) =
                reader.scan(header.context(), ScanPos::first(crc), false, |batch| {
                    sums.add(batch);
                    Ok(true)
                })?;
            (at.pos, reason.unwrap_or(EndReason::Eof))
        }
        Start::Empty => (0, EndReason::Eof),
        Start::Damaged(e) => {
            eprintln!("marslog: {}: {e}", file.display());
            return Ok(Verdict::Damaged);
        }
    };
    let [write, discard, write_zeroes, marker] = sums.counts;
    let report = Report {
        file: file.display().to_string(),
        header: header_json,
        file_bytes: reader.file_len()?,
        log_bytes: end,
        payload_bytes: sums.payload,
        batches: sums.batches,
        records: sums.records,
        write,
        discard,
        write_zeroes,
        marker,
        device_range: sums.range,
        first_stamp: sums.stamps.map(|(a, _)| stamp(a)),
        last_stamp: sums.stamps.map(|(_, b)| stamp(b)),
        seconds: sums.stamps.map_or(0.0, |(a, b)| (b - a) as f64 / 1e9),
        end_reason: reason.to_string(),
        clean: reason.is_clean(),
    };
    if json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.clean {
        Verdict::Good
    } else {
        Verdict::Damaged
    })
}

/// Prints the sums of logs.
pub(crate) fn run(args: &StatArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::Good;
    for (i, file) in args.files.iter().enumerate() {
        if i > 0 && !args.json {
            writeln!(out)?;
        }
        verdict = verdict.max(stat(file, args.json, out)?);
    }
    Ok(verdict)
}
