// SPDX-License-Identifier: GPL-2.0-or-later

//! Writes a device in an order that can be told from its contents: each block names the write that it came from.
//!
//! One write after the other, so their order is total, with a flush now and then. tests/lib/marscase/history.py knows
//! which write goes where, and finds out whether some contents are a prefix of the history.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::exit;
use std::str::FromStr;

const USAGE: &str = "usage: history DEV SIZE SEED FIRST FLUSH_EVERY   lines: flushed NUMBER";

const BLOCK: usize = 4096;
const MOST_BLOCKS: u64 = 16;
/// Of x86-64, like these guests.
const O_DIRECT: i32 = 0o40000;

/// Direct I/O wants aligned memory.
#[repr(C, align(4096))]
struct Blocks([u8; BLOCK * MOST_BLOCKS as usize]);

/// splitmix64, as history.py has it.
fn random(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn arg<T: FromStr>(args: &[String], index: usize) -> T {
    match args.get(index).map(|a| a.parse()) {
        Some(Ok(value)) => value,
        _ => {
            eprintln!("{USAGE}");
            exit(2);
        }
    }
}

fn run(args: &[String]) -> io::Result<()> {
    let device: String = arg(args, 0);
    let (size, seed, first, flush_every): (u64, u64, u64, u64) =
        (arg(args, 1), arg(args, 2), arg(args, 3), arg(args, 4));
    let file: File = OpenOptions::new()
        .write(true)
        .custom_flags(O_DIRECT)
        .open(device)?;
    let mut memory = Box::new(Blocks([0; BLOCK * MOST_BLOCKS as usize]));
    let total = size / BLOCK as u64;
    for number in first.. {
        let r = random(seed, number);
        let start = r % total;
        let count = (1 + (r >> 40) % MOST_BLOCKS).min(total - start);
        for i in 0..count {
            let at = i as usize * BLOCK;
            for pair in memory.0[at..at + BLOCK].chunks_exact_mut(16) {
                pair[..8].copy_from_slice(&number.to_le_bytes());
                pair[8..].copy_from_slice(&(start + i).to_le_bytes());
            }
        }
        file.write_all_at(&memory.0[..count as usize * BLOCK], start * BLOCK as u64)?;
        if number % flush_every == 0 {
            file.sync_data()?;
            let mut out = io::stdout().lock();
            writeln!(out, "flushed {number}")?;
            out.flush()?;
        }
    }
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(e) = run(&args) {
        eprintln!("history: {e}");
        exit(1);
    }
}
