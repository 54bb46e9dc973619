// SPDX-License-Identifier: GPL-2.0-or-later

//! Fills memory with contents that can be told, again and again, and looks whether they are still there: what was swapped
//! out and came back must be what it was.

use std::env::args;
use std::process::exit;
use std::time::Instant;

const USAGE: &str = "usage: hog MIB ROUNDS   lines: round NUMBER after MS ms";

const PAGE: usize = 4096;

/// splitmix64.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn expected(round: u64, page: usize, word: usize) -> u64 {
    mix(round << 48 ^ (page as u64) << 12 ^ word as u64)
}

fn arg(index: usize) -> u64 {
    match args().nth(index).map(|a| a.parse()) {
        Some(Ok(value)) => value,
        _ => {
            eprintln!("{USAGE}");
            exit(2);
        }
    }
}

fn main() {
    let (mib, rounds) = (arg(1) as usize, arg(2));
    let words = PAGE / 8;
    let pages = mib * ((1 << 20) / PAGE);
    let mut memory = vec![0u64; pages * words];
    let start = Instant::now();
    for round in 0..=rounds {
        for (page, contents) in memory.chunks_exact_mut(words).enumerate() {
            // Some words of each page: the processor is not what is tested.
            for word in (0..words).step_by(37) {
                if round > 0 && contents[word] != expected(round - 1, page, word) {
                    eprintln!("page {page} has lost word {word} of round {round}");
                    exit(1);
                }
                contents[word] = expected(round, page, word);
            }
        }
        println!("round {round} after {} ms", start.elapsed().as_millis());
    }
}
