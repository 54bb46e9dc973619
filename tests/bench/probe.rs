// SPDX-License-Identifier: GPL-2.0-or-later

//! The part of the benchmark that runs inside the guests, besides fio: how far is a replica behind?
//!
//! One host writes blocks that carry a number and the time; the other one looks for them on the disk below its replica,
//! past all caches. Their clocks are compared over the network, by the fastest of many questions.
//!
//! Built by tests/bench/tools.py with plain rustc.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::exit;
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage:
  probe write DEV RUN COUNT SLOTS STRIDE RATE   lines: NUMBER SUBMITTED_NS COMPLETED_NS
  probe watch DEV RUN COUNT SLOTS STRIDE SECONDS POLL_US   lines: NUMBER SUBMITTED_NS SEEN_NS
  probe clock-server PORT SECONDS
  probe clock ADDRESS PORT COUNT   one line: OFFSET_NS ROUND_TRIP_NS (the server's clock minus ours)";

const BLOCK: usize = 4096;
const MAGIC: u64 = 0x4d41_5253_5052_4f42;
/// Of x86-64, like these guests.
const O_DIRECT: i32 = 0o40000;

/// Direct I/O wants aligned memory.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    fn new() -> Box<Self> {
        Box::new(Self([0; BLOCK]))
    }

    fn set(&mut self, index: usize, value: u64) {
        self.0[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn get(&self, index: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.0[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    }
}

/// The blocks of one measurement: `count` of them in `slots` places that are `stride` bytes apart.
struct Series {
    run: u64,
    count: u64,
    slots: u64,
    stride: u64,
}

impl Series {
    fn place(&self, number: u64) -> u64 {
        // An odd multiple of the number visits all slots of a power of two, in no simple order.
        number.wrapping_mul(387) % self.slots * self.stride
    }
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn open(path: &str, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(O_DIRECT)
        .open(path)
}

fn write(dev: &str, series: &Series, rate: u64) -> io::Result<()> {
    let file = open(dev, true)?;
    let mut block = Block::new();
    let mut lines = String::new();
    let start = Instant::now();
    for number in 0..series.count {
        let due = Duration::from_nanos(1_000_000_000 / rate * number);
        if let Some(rest) = due.checked_sub(start.elapsed()) {
            sleep(rest);
        }
        let submitted = now();
        for (index, value) in [MAGIC, series.run, number, submitted]
            .into_iter()
            .enumerate()
        {
            block.set(index, value);
        }
        file.write_all_at(&block.0, series.place(number))?;
        lines += &format!("{number} {submitted} {}\n", now());
    }
    print!("{lines}");
    Ok(())
}

fn watch(dev: &str, series: &Series, limit: Duration, poll: Duration) -> io::Result<()> {
    let file = open(dev, false)?;
    let mut block = Block::new();
    let mut lines = String::new();
    let start = Instant::now();
    let mut next = 0;
    while next < series.count && start.elapsed() < limit {
        file.read_exact_at(&mut block.0, series.place(next))?;
        let seen = now();
        if [block.get(0), block.get(1), block.get(2)] == [MAGIC, series.run, next] {
            lines += &format!("{next} {} {seen}\n", block.get(3));
            next += 1;
        } else {
            sleep(poll);
        }
    }
    print!("{lines}");
    Ok(())
}

fn clock_server(port: u16, seconds: u64) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let start = Instant::now();
    let mut packet = [0; 16];
    while start.elapsed() < Duration::from_secs(seconds) {
        match socket.recv_from(&mut packet) {
            Ok((8, from)) => {
                packet[8..].copy_from_slice(&now().to_le_bytes());
                socket.send_to(&packet, from)?;
            }
            Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(e)
            }
            _ => {}
        }
    }
    Ok(())
}

fn clock(address: &str, port: u16, count: u32) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((address, port))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut best: Option<(u64, i128)> = None;
    for _ in 0..count {
        let mut packet = [0; 16];
        let sent = now();
        let began = Instant::now();
        socket.send(&sent.to_le_bytes())?;
        let Ok(16) = socket.recv(&mut packet) else {
            continue;
        };
        let trip = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut words = packet
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
        // A late answer to an earlier question is of no use.
        if words.next() != Some(sent) {
            continue;
        }
        let theirs = words.next().unwrap_or(0);
        if best.is_none_or(|(fastest, _)| trip < fastest) {
            best = Some((
                trip,
                i128::from(theirs) - i128::from(sent) - i128::from(trip / 2),
            ));
        }
        sleep(Duration::from_millis(5));
    }
    let (trip, offset) =
        best.ok_or_else(|| io::Error::new(ErrorKind::TimedOut, "no answer from the clock server"))?;
    println!("{offset} {trip}");
    Ok(())
}

fn number<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| {
        eprintln!("probe: '{text}' is no suitable number\n{USAGE}");
        exit(2)
    })
}

fn series(run: &str, count: &str, slots: &str, stride: &str) -> Series {
    Series {
        run: number(run),
        count: number(count),
        slots: number(slots),
        stride: number(stride),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["write", dev, run, count, slots, stride, rate] => {
            write(dev, &series(run, count, slots, stride), number(rate))
        }
        ["watch", dev, run, count, slots, stride, seconds, poll] => {
            let limit = Duration::from_secs(number(seconds));
            let poll = Duration::from_micros(number(poll));
            watch(dev, &series(run, count, slots, stride), limit, poll)
        }
        ["clock-server", port, seconds] => clock_server(number(port), number(seconds)),
        ["clock", address, port, count] => clock(address, number(port), number(count)),
        _ => {
            eprintln!("{USAGE}");
            exit(2)
        }
    };
    if let Err(e) = result {
        eprintln!("probe: {}: {e}", words.first().unwrap_or(&""));
        exit(1);
    }
}
