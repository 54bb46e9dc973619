// SPDX-License-Identifier: GPL-2.0-or-later

//! The cluster simulator: whole clusters around the real core, each run made from one seed. See Documentation/simulator.md.

#![forbid(unsafe_code)]

mod admin;
mod disk;
mod exec;
mod fs;
mod host;
mod rng;
mod run;
mod script;
mod truth;
mod world;

fn main() {
    let mut args = std::env::args().skip(1);
    let from: u64 = args.next().and_then(|s| s.parse().ok()).unwrap_or(1);
    let n: u64 = args.next().and_then(|s| s.parse().ok()).unwrap_or(1);
    let trace = args.next().is_some();
    let t = std::time::Instant::now();
    let mut host_ns = 0;
    let mut steps = 0;
    for seed in from..from + n {
        let s = script::generate(seed);
        let o = run::run(&s, trace);
        host_ns += o.host_ns;
        steps += o.steps;
        if trace {
            print!("{s}");
            for l in &o.trace {
                println!("{l}");
            }
        }
        if let Some(v) = o.violation {
            println!("seed {seed}: {v}");
        }
    }
    println!(
        "{n} runs, {} host-seconds, {steps} steps in {:?}",
        host_ns / 1_000_000_000,
        t.elapsed()
    );
}
