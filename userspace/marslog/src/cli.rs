// SPDX-License-Identifier: GPL-2.0-or-later

//! The command line.

use clap::{
    Args,
    Parser,
    Subcommand, //
};
use std::path::PathBuf;

/// Looks into transaction logs of MARS.
///
/// Logs are the files /mars/resource-*/log-*. They are only read, never changed, and may be in use.
#[derive(Parser, Debug)]
#[command(version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit status:
  0  everything is in order
  1  a log is damaged
  2  wrong usage, a file can't be read, or its format is not known to this version";

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Print the header, the batches and the records
    ///
    /// The data itself is not printed. With --json each line is an object of its own with a
    /// member "type": header, batch (with its records), end.
    Dump(DumpArgs),
    /// Check everything, the data too
    ///
    /// Says where and why each log ends. A log may end with the file or with zeros (space that was
    /// prepared for writing). Anything else is damage: usually of the last, unconfirmed writes before
    /// a crash, which recovery cuts off; --durable-end tells whether more than those is concerned.
    Verify(VerifyArgs),
    /// Print sums: records, bytes, times
    Stat(StatArgs),
}

/// Arguments of `dump`.
#[derive(Args, Debug)]
pub(crate) struct DumpArgs {
    /// The log
    pub(crate) file: PathBuf,
    /// Start at this position instead of at the first batch; a batch must start there
    #[arg(long, value_name = "POSITION")]
    pub(crate) from: Option<u64>,
    /// Stop after so many batches
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Only the batches, not their records
    #[arg(long)]
    pub(crate) no_records: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The logs
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Up to here the log was confirmed to be on disk (the number in actual-<host>/log-end); what is
    /// damaged behind it is no loss
    #[arg(long, value_name = "POSITION")]
    pub(crate) durable_end: Option<u64>,
    /// Print JSON, one object a log
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `stat`.
#[derive(Args, Debug)]
pub(crate) struct StatArgs {
    /// The logs
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Print JSON, one object a log
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
