// SPDX-License-Identifier: GPL-2.0-or-later

//! `marslog verify`.

use crate::{
    cli::VerifyArgs,
    reader::{
        Failure,
        Reader,
        Rest,
        Start, //
    },
    text::HeaderJson,
    Verdict,
};
use mars_core::log::{
    EndReason,
    ScanPos, //
};
use serde::Serialize;
use std::{
    io::Write,
    path::Path, //
};

#[derive(Serialize)]
struct Report {
    file: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderJson>,
    batches: u64,
    records: u64,
    /// Where the intact part ends.
    end: u64,
    reason: String,
    message: String,
    /// The next whole batch after the damage.
    #[serde(skip_serializing_if = "Option::is_none")]
    continues_at: Option<u64>,
}

fn check(path: &Path, durable_end: Option<u64>) -> Result<Report, Failure> {
    let (mut reader, start) = Reader::open(path)?;
    let mut report = Report {
        file: path.display().to_string(),
        ok: false,
        header: None,
        batches: 0,
        records: 0,
        end: 0,
        reason: String::new(),
        message: String::new(),
        continues_at: None,
    };
    let (header, crc) = match start {
        Start::Header(header, crc) => (header, crc),
        Start::Empty => {
            report.ok = durable_end.is_none_or(|end| end == 0);
            report.reason = "empty".into();
            report.message = "empty: not started yet".into();
            return Ok(report);
        }
        Start::Damaged(e) => {
            report.reason = "bad-header".into();
            report.message = e.to_string();
            return Ok(report);
        }
    };
    report.header = Some((&*header).into());
    let ctx = header.context();
    let (at, reason) = reader.scan(ctx, ScanPos::first(crc), true, |batch| {
        report.batches += 1;
        report.records += batch.record_count() as u64;
        Ok(true)
    })?;
    // The closure never stops, so there always is a reason.
    let reason = reason.unwrap_or(EndReason::Eof);
    report.end = at.pos;
    report.reason = reason.word().into();
    report.message = reason.to_string();

    let rest = reader.search(ctx, at.pos)?;
    let mut clean = reason.is_clean();
    match rest {
        Rest::Zeros => (),
        Rest::Garbage => {
            if clean {
                report.message += "; other bytes follow";
            }
            clean = false;
        }
        Rest::Batch(pos) => {
            report.message += &format!("; the next whole batch is at {pos}");
            report.continues_at = Some(pos);
            clean = false;
        }
    }
    report.ok = match durable_end {
        None => clean,
        Some(end) if at.pos >= end => true,
        Some(end) => {
            report.message += &format!("; {} confirmed bytes are lost", end - at.pos);
            false
        }
    };
    Ok(report)
}

/// Checks logs.
pub(crate) fn run(args: &VerifyArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::Good;
    let mut failure = None;
    for file in &args.files {
        let report = match check(file, args.durable_end) {
            Ok(report) => report,
            // The other logs are looked at nevertheless.
            Err(e @ (Failure::File(..) | Failure::Format(..) | Failure::V1(_))) => {
                if let Some(before) = failure.replace(e) {
                    eprintln!("marslog: {before}");
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        if !report.ok {
            verdict = Verdict::Damaged;
        }
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&report)?)?;
        } else {
            writeln!(
                out,
                "{}: {}: {} batches, {} records, end at {}: {}",
                report.file,
                if report.ok { "OK" } else { "DAMAGED" },
                report.batches,
                report.records,
                report.end,
                report.message
            )?;
        }
    }
    match failure {
        Some(e) => {
            out.flush()?;
            Err(e)
        }
        None => Ok(verdict),
    }
}
