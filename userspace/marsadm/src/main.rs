// SPDX-License-Identifier: GPL-2.0-or-later

//! `marsadm`: the administrator's tool of MARS.
//!
//! It writes wishes into the symlink tree and reads facts from it; the kernel modules do the work. Layers, from below:
//! [`tree`] (reading, writing, meaning), [`sys`] (disks, addresses, key), [`ctx`]/[`wait`]/[`ops`] (what all commands
//! share), [`cmd`] (the commands) and [`view`] (what people and machines read).

mod cli;
mod cmd;
mod ctx;
mod error;
mod ops;
mod out;
mod sys;
mod tree;
mod view;
mod wait;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Everything that is created is for root only, as in the original.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let args = cli::normalize(std::env::args_os());
    let cli = match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return match e.kind() {
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => {
                    ExitCode::SUCCESS
                }
                _ => ExitCode::from(error::Kind::Usage.code()),
            };
        }
    };
    out::set_verbose(cli.global.verbose);
    out::set_dry_run(cli.global.dry_run);
    match cmd::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => ExitCode::from(code),
    }
}
