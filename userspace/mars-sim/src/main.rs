// SPDX-License-Identifier: GPL-2.0-or-later

//! The cluster simulator: whole clusters around the real core, each run made from one seed. See Documentation/simulator.md.

#![forbid(unsafe_code)]

mod admin;
mod defects;
mod disk;
mod exec;
mod fs;
mod host;
mod rng;
mod run;
mod script;
mod shrink;
mod truth;
mod world;

use script::{generate, Script};
use std::{
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering},
        Mutex,
    },
    time::{Duration, Instant},
};

const USAGE: &str = "\
usage: mars-sim seeds FIRST COUNT   simulate so many runs, on all processors
       mars-sim trace SEED          one run, with all that happened
       mars-sim shrink SEED [NAME]  the shortest script that still fails (with a bug switched on)
       mars-sim script FILE         a script; -v [NAME]: with all that happened (with a bug switched on)
       mars-sim defects [NAME]      switches on one bug after the other; each must be found (feature 'defects')
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |s: &str| s.parse::<u64>().ok();
    let good = match words.as_slice() {
        ["seeds", first, count] => match (number(first), number(count)) {
            (Some(first), Some(count)) => seeds(first, count),
            _ => usage(),
        },
        ["trace", seed] => number(seed).map_or_else(usage, |s| one(&generate(s), true)),
        ["shrink", seed] => number(seed).map_or_else(usage, shrink_seed),
        ["shrink", seed, defect] => {
            defects::switch_on(defect) && number(seed).map_or_else(usage, shrink_seed)
        }
        ["script", file] => file_script(file).is_some_and(|s| one(&s, false)),
        ["script", file, "-v"] => file_script(file).is_some_and(|s| one(&s, true)),
        ["script", file, "-v", defect] => {
            defects::switch_on(defect) && file_script(file).is_some_and(|s| one(&s, true))
        }
        ["defects"] => defects::all(None),
        ["defects", name] => defects::all(Some(name)),
        _ => usage(),
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn usage() -> bool {
    eprint!("{USAGE}");
    false
}

fn file_script(file: &str) -> Option<Script> {
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string());
    match text.and_then(|t| Script::parse(&t)) {
        Ok(s) => Some(s),
        Err(e) => {
            eprintln!("{file}: {e}");
            None
        }
    }
}

/// One run; says whether all promises were kept.
fn one(s: &Script, traced: bool) -> bool {
    let o = run::run(s, traced);
    if traced {
        print!("{s}");
    }
    for line in &o.trace {
        println!("{line}");
    }
    match &o.violation {
        Some(v) => println!("VIOLATION {v}"),
        None => println!("all promises were kept"),
    }
    o.violation.is_none()
}

fn shrink_seed(seed: u64) -> bool {
    let s = generate(seed);
    let Some(v) = run::run(&s, false).violation else {
        println!("seed {seed} does not fail");
        return false;
    };
    let (s, v) = shrink::shrink(s, v);
    println!("# seed {seed}\n# {v}\n{s}");
    true
}

/// What several threads do together.
#[derive(Default)]
pub struct Sum {
    host_ns: AtomicU64,
    steps: AtomicU64,
    writes: AtomicU64,
    crashes: AtomicU64,
    checks: AtomicU64,
    devices: AtomicU64,
    gaps: AtomicU64,
    runs: AtomicU64,
}

impl Sum {
    fn add(&self, o: &run::Outcome) {
        let all = [
            (&self.host_ns, o.host_ns),
            (&self.steps, o.steps),
            (&self.writes, o.writes),
            (&self.crashes, o.crashes),
            (&self.checks, o.checks),
            (&self.devices, o.devices),
            (&self.gaps, o.gaps),
            (&self.runs, 1),
        ];
        for (counter, n) in all {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// Runs that fail for a reason that is known and not yet put right: seed and reason, one a line.
fn known() -> Vec<u64> {
    include_str!("../known.txt")
        .lines()
        .filter_map(|l| l.split_whitespace().next()?.parse().ok())
        .collect()
}

fn seeds(first: u64, count: u64) -> bool {
    let known = known();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(first);
    let sum = Sum::default();
    let failed = Mutex::new(Vec::new());
    let skipped = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + count {
                    return;
                }
                let o = run::run(&generate(seed), false);
                sum.add(&o);
                if let Some(v) = o.violation {
                    let of_known = known.contains(&seed);
                    let word = if of_known { "known, seed" } else { "seed" };
                    println!("{word} {seed}: {v}");
                    if of_known {
                        skipped.fetch_add(1, Ordering::Relaxed);
                    } else if let Ok(mut f) = failed.lock() {
                        f.push(seed);
                    }
                }
            });
        }
        let mut told = Instant::now();
        while sum.runs.load(Ordering::Relaxed) < count {
            std::thread::sleep(Duration::from_millis(50));
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                let done = sum.runs.load(Ordering::Relaxed);
                let rate = done * 60 / start.elapsed().as_secs().max(1);
                println!("{done} of {count} runs, {rate} a minute");
            }
        }
    });
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    println!(
        "{} runs in {:.1} s: {} host-seconds, {} writes, {} crashes, {} devices, {} gaps, {} checks of a disk, {} steps",
        get(&sum.runs),
        start.elapsed().as_secs_f64(),
        get(&sum.host_ns) / 1_000_000_000,
        get(&sum.writes),
        get(&sum.crashes),
        get(&sum.devices),
        get(&sum.gaps),
        get(&sum.checks),
        get(&sum.steps)
    );
    let failed = failed.into_inner().unwrap_or_default();
    println!(
        "simulate: {} passed, {} failed, {} known",
        count - failed.len() as u64 - get(&skipped),
        failed.len(),
        get(&skipped)
    );
    failed.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_seed_when_run_twice_then_both_runs_are_the_same() {
        for seed in 1..20 {
            let s = generate(seed);
            let (a, b) = (run::run(&s, true), run::run(&s, true));
            assert_eq!(a.trace, b.trace, "{seed}");
            assert_eq!(a.steps, b.steps, "{seed}");
        }
    }

    #[test]
    fn given_a_script_when_written_and_read_then_it_is_the_same() {
        for seed in 1..200 {
            let s = generate(seed);
            assert_eq!(Script::parse(&s.to_string()), Ok(s));
        }
    }

    #[test]
    fn given_scripts_that_failed_once_when_run_then_all_promises_are_kept() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions");
        let mut n = 0;
        for entry in std::fs::read_dir(dir).expect("the folder").flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "txt") {
                let text = std::fs::read_to_string(&path).expect("a text");
                let s = Script::parse(&text).expect("a script");
                assert_eq!(run::run(&s, false).violation, None, "{path:?}");
                n += 1;
            }
        }
        assert!(n > 0);
    }
}
