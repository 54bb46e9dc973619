// SPDX-License-Identifier: GPL-2.0-or-later

//! The command runner.
//!
//! One thread reads requests; each command gets threads of its own, so nothing that hangs delays
//! another answer. Locks: `jobs` and `port` are never held together.

use crate::base64;
use crate::proto::Answer;
use crate::proto::Hello;
use crate::proto::Op;
use crate::proto::Request;
use crate::sys;
use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::thread;
use std::time::Duration;
use std::time::Instant;

const PORT_NAME: &str = "mars.agent";
/// What a command prints beyond this is dropped: the agent's memory is the guest's.
const MAX_OUTPUT: usize = 32 << 20;
/// After a command has ended, how long to wait for others that still hold its output open.
const LINGER: Duration = Duration::from_millis(300);
/// After SIGKILL, how long until a process counts as stuck in the kernel.
const DEATH: Duration = Duration::from_secs(5);

type Shared<T> = Arc<Mutex<T>>;

/// A panic in one command's thread must not take the others with it.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

#[derive(Clone)]
struct Job {
    pgid: i32,
    stdout: Shared<Vec<u8>>,
    stderr: Shared<Vec<u8>>,
}

#[derive(Clone)]
struct Agent {
    port: Shared<File>,
    jobs: Shared<BTreeMap<u64, Job>>,
}

pub fn main() -> io::Result<()> {
    // Tests put load on the machine; the agent has to answer nonetheless.
    sys::set_nice(-15);
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");

    let port = open_port()?;
    let mut reader = BufReader::new(port.try_clone()?);
    let agent = Agent {
        port: Arc::new(Mutex::new(port)),
        jobs: Shared::default(),
    };
    agent.hello()?;
    let mut line = Vec::new();
    loop {
        // An end of file means that the bench does not hold its end open right now.
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        if let Ok(request) = serde_json::from_slice::<Request>(&line) {
            agent.dispatch(request);
        } else if let Some(id) = id_of(&line) {
            agent.answer(failure(id, "not understood"));
        }
        line.clear();
    }
}

fn id_of(line: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    value.get("id")?.as_u64()
}

fn failure(id: u64, error: impl ToString) -> Answer {
    Answer {
        id,
        error: Some(error.to_string()),
        ..Answer::default()
    }
}

fn open_port() -> io::Result<File> {
    for _ in 0..500 {
        if let Ok(dir) = fs::read_dir("/sys/class/virtio-ports") {
            for entry in dir.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if sys::slurp(&format!("/sys/class/virtio-ports/{name}/name")) == PORT_NAME {
                    let path = format!("/dev/{name}");
                    return OpenOptions::new().read(true).write(true).open(path);
                }
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::other("no virtio-serial port of ours"))
}

impl Agent {
    fn hello(&self) -> io::Result<()> {
        let hello = Hello {
            hello: 1,
            boot_id: &sys::slurp("/proc/sys/kernel/random/boot_id"),
            uptime: &sys::slurp("/proc/uptime"),
            kernel: &sys::slurp("/proc/sys/kernel/osrelease"),
            clocksource: &sys::slurp(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            ),
        };
        // The newline in front ends a line that an earlier agent may have left half written.
        let mut line = b"\n".to_vec();
        line.extend(serde_json::to_vec(&hello)?);
        line.push(b'\n');
        lock(&self.port).write_all(&line)
    }

    fn answer(&self, answer: Answer) {
        if let Ok(mut line) = serde_json::to_vec(&answer) {
            line.push(b'\n');
            let _ = lock(&self.port).write_all(&line);
        }
    }

    fn dispatch(&self, request: Request) {
        let id = request.id;
        let job = |target| lock(&self.jobs).get(&target).cloned();
        match request.op {
            Op::Ping => self.answer(Answer {
                id,
                ..Answer::default()
            }),
            Op::Signal { target, signal } => self.answer(match job(target) {
                Some(job) => {
                    sys::kill_group(job.pgid, signal);
                    Answer {
                        id,
                        ..Answer::default()
                    }
                }
                None => failure(id, "no such command"),
            }),
            Op::Peek { target } => self.answer(match job(target) {
                Some(job) => Answer {
                    id,
                    stdout: Some(lock(&job.stdout).clone().into()),
                    stderr: Some(lock(&job.stderr).clone().into()),
                    ..Answer::default()
                },
                None => failure(id, "no such command"),
            }),
            Op::Wake { time_ns, seed } => self.answer(match wake(time_ns, &seed) {
                Ok(()) => Answer {
                    id,
                    ..Answer::default()
                },
                Err(e) => failure(id, e),
            }),
            Op::Reboot { how } => {
                // Said before it is done: afterwards there is nobody to say it.
                self.answer(Answer {
                    id,
                    ..Answer::default()
                });
                thread::sleep(Duration::from_millis(50));
                let _ = sys::reboot(&how);
            }
            // In the order of their arrival, since pieces of one file build on each other.
            Op::Put {
                path,
                data,
                append,
                mode,
            } => self.answer(match put(&path, &data, append, mode) {
                Ok(()) => Answer {
                    id,
                    ..Answer::default()
                },
                Err(e) => failure(id, format!("{path}: {e}")),
            }),
            Op::Get { path, offset, len } => self.answer_later(id, move |_| {
                get(id, &path, offset, len).map_err(|e| io::Error::other(format!("{path}: {e}")))
            }),
            // Started here and not in its thread: a signal sent right afterwards finds it.
            Op::Exec {
                cmd,
                stdin,
                timeout,
            } => match self.spawn(id, &cmd, stdin) {
                Ok((child, job)) => {
                    self.answer_later(id, move |agent| Ok(agent.attend(id, child, &job, timeout)));
                }
                Err(e) => self.answer(failure(id, e)),
            },
        }
    }

    fn answer_later(
        &self,
        id: u64,
        work: impl FnOnce(&Agent) -> io::Result<Answer> + Send + 'static,
    ) {
        let agent = self.clone();
        let spawned = thread::Builder::new().spawn(move || {
            let answer = work(&agent).unwrap_or_else(|e| failure(id, e));
            agent.answer(answer);
        });
        if let Err(e) = spawned {
            self.answer(failure(id, e));
        }
    }

    fn spawn(&self, id: u64, cmd: &str, stdin: Option<String>) -> io::Result<(Child, Job)> {
        let input = match stdin {
            Some(text) => Some(
                base64::decode(&text).ok_or_else(|| io::Error::other("stdin is not base 64"))?,
            ),
            None => None,
        };
        let mut command = Command::new("/bin/bash");
        command
            .arg("-c")
            .arg(cmd)
            .current_dir("/root")
            .process_group(0)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: Only system calls that are allowed between fork and exec: setpriority, and plain
        // open, write and close.
        unsafe {
            command.pre_exec(|| {
                sys::set_nice(0);
                let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
                if fd >= 0 {
                    libc::write(fd, c"0".as_ptr().cast(), 1);
                    libc::close(fd);
                }
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let job = Job {
            pgid: i32::try_from(child.id()).unwrap_or(0),
            stdout: Shared::default(),
            stderr: Shared::default(),
        };
        lock(&self.jobs).insert(id, job.clone());

        if let (Some(data), Some(mut pipe)) = (input, child.stdin.take()) {
            thread::spawn(move || pipe.write_all(&data));
        }
        Ok((child, job))
    }

    /// Until the command has ended, one way or the other.
    fn attend(&self, id: u64, mut child: Child, job: &Job, timeout: Option<f64>) -> Answer {
        let start = Instant::now();
        let (eof, closed) = mpsc::channel();
        if let Some(pipe) = child.stdout.take() {
            collect(pipe, job.stdout.clone(), eof.clone());
        }
        if let Some(pipe) = child.stderr.take() {
            collect(pipe, job.stderr.clone(), eof);
        }
        let ended = wait(child);

        let limit = timeout
            .and_then(|t| Duration::try_from_secs_f64(t).ok())
            .unwrap_or(Duration::MAX);
        let mut status = ended.recv_timeout(limit).ok();
        let timed_out = status.is_none();
        let mut stuck = None;
        if timed_out {
            let stacks = stacks(job.pgid);
            sys::kill_group(job.pgid, libc::SIGKILL);
            status = ended.recv_timeout(DEATH).ok();
            // Where a command hung is worth knowing in either case.
            stuck = Some(if status.is_none() {
                format!("SIGKILL did not end it\n{}", self::stacks(job.pgid))
            } else {
                stacks
            });
        }
        // Both pipes closed, or something in the background keeps them open.
        for _ in 0..2 {
            let _ = closed.recv_timeout(LINGER);
        }
        lock(&self.jobs).remove(&id);
        let stdout = std::mem::take(&mut *lock(&job.stdout));
        let stderr = std::mem::take(&mut *lock(&job.stderr));
        Answer {
            id,
            rc: status.map(rc),
            stdout: Some(stdout.into()),
            stderr: Some(stderr.into()),
            timed_out,
            stuck,
            elapsed: Some(start.elapsed().as_secs_f64()),
            ..Answer::default()
        }
    }
}

fn rc(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| status.signal().map_or(-1, |s| -s))
}

fn wait(mut child: Child) -> mpsc::Receiver<ExitStatus> {
    let (tx, rx) = mpsc::channel();
    thread::spawn(move || {
        if let Ok(status) = child.wait() {
            let _ = tx.send(status);
        }
    });
    rx
}

/// Gathers what comes out of `pipe`; drops `eof` at its end.
fn collect(mut pipe: impl Read + Send + 'static, into: Shared<Vec<u8>>, eof: mpsc::Sender<()>) {
    thread::spawn(move || {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n) = pipe.read(&mut buf) {
            if n == 0 {
                break;
            }
            let mut out = lock(&into);
            let room = MAX_OUTPUT.saturating_sub(out.len()).min(n);
            out.extend_from_slice(&buf[..room]);
        }
        let _ = eof.send(());
    });
}

/// Name, state and kernel stack of each process of a group.
fn stacks(pgid: i32) -> String {
    let mut out = String::new();
    let Ok(dir) = fs::read_dir("/proc") else {
        return out;
    };
    for entry in dir.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let stat = sys::slurp(&format!("/proc/{pid}/stat"));
        // pid (name) state ppid pgrp ...
        let Some((name, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let mut fields = rest.split_whitespace();
        let state = fields.next().unwrap_or("?");
        if fields.nth(1).and_then(|f| f.parse().ok()) == Some(pgid) {
            let stack = sys::slurp(&format!("/proc/{pid}/stack"));
            out.push_str(&format!("{name}) {state}\n{stack}\n"));
        }
    }
    out
}

fn wake(time_ns: u64, seed: &str) -> io::Result<()> {
    sys::set_time(time_ns)?;
    let seed = base64::decode(seed).ok_or_else(|| io::Error::other("not base 64"))?;
    let mut random = OpenOptions::new().write(true).open("/dev/urandom")?;
    random.write_all(&seed)?;
    sys::reseed(&random)
}

fn put(path: &str, data: &str, append: bool, mode: u32) -> io::Result<()> {
    let data = base64::decode(data).ok_or_else(|| io::Error::other("not base 64"))?;
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .open(path)?;
    file.write_all(&data)?;
    if !append {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn get(id: u64, path: &str, offset: u64, len: usize) -> io::Result<Answer> {
    let file = File::open(path)?;
    let mut buf = vec![0; len.min(MAX_OUTPUT)];
    let mut have = 0;
    while have < buf.len() {
        let at = offset.saturating_add(have as u64);
        match file.read_at(&mut buf[have..], at) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Answer {
        id,
        data: Some(base64::encode(&buf[..have])),
        size: Some(file.metadata()?.len()),
        ..Answer::default()
    })
}
