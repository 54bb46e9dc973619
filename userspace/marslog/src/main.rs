// SPDX-License-Identifier: GPL-2.0-or-later

//! `marslog`: looks into transaction logs of MARS.
//!
//! Reads with the same code as the kernel module, so what it accepts is what replay accepts. Logs are
//! only read, never changed, and may be in use meanwhile.

#![forbid(unsafe_code)]

mod cli;
mod dump;
mod reader;
mod stat;
mod text;
mod verify;

use clap::Parser;
use cli::{
    Cli,
    Command, //
};
use std::{
    io::{
        self,
        Write, //
    },
    process::ExitCode,
};

/// What a command found; the worst one decides the exit code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Nothing wrong.
    Good,
    /// A log is damaged.
    Damaged,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = match &cli.command {
        Command::Dump(args) => dump::run(args, &mut out),
        Command::Verify(args) => verify::run(args, &mut out),
        Command::Stat(args) => stat::run(args, &mut out),
    };
    let result = result.and_then(|verdict| match out.flush() {
        Ok(()) => Ok(verdict),
        Err(e) => Err(e.into()),
    });
    match result {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Damaged) => ExitCode::from(1),
        // Somebody looked at the first lines only.
        Err(reader::Failure::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("marslog: {e}");
            ExitCode::from(2)
        }
    }
}
