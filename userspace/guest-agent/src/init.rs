// SPDX-License-Identifier: GPL-2.0-or-later

//! Process 1: from the initramfs into the root, then parent of everything.
//!
//! The disk with the serial number `root` is the root image. mars.ko and the tools are not in it: they
//! change with every build, and the bench brings them in later.

use crate::sys;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

const ROOT_SERIAL: &str = "root";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn main() -> ! {
    // The second pass runs in the root already.
    let result = match std::env::args().nth(1).as_deref() {
        Some("--rooted") => Ok(()),
        _ => enter_root(),
    };
    if let Err(e) = result {
        sys::kmsg(&format!("init: {e}"));
        // The bench reads this line on the console.
        println!("mars-bench: init failed: {e}");
        sleep(Duration::from_secs(1));
        let _ = sys::reboot("poweroff");
        std::process::exit(1);
    }
    supervise()
}

fn enter_root() -> io::Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        sys::mount(kind, at, kind, 0, "")?;
    }
    for line in sys::slurp("/early/modules.list").lines() {
        sys::load_module(line).map_err(|e| io::Error::other(format!("{line}: {e}")))?;
    }
    let root = find_root()?;
    for dir in ["/lower", "/rw", "/new"] {
        fs::create_dir_all(dir)?;
    }
    sys::mount(&root, "/lower", "ext4", sys::MS_RDONLY, "")
        .map_err(|e| io::Error::other(format!("root {root}: {e}")))?;
    sys::mount("tmpfs", "/rw", "tmpfs", 0, "mode=755,size=75%")?;
    fs::create_dir_all("/rw/upper")?;
    fs::create_dir_all("/rw/work")?;
    sys::mount(
        "overlay",
        "/new",
        "overlay",
        0,
        "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work",
    )?;
    fs::create_dir_all("/new/run")?;
    fs::copy("/init", "/new/usr/sbin/guest-agent")?;
    for at in ["/proc", "/sys", "/dev"] {
        sys::mount(at, &format!("/new{at}"), "", sys::MS_MOVE, "")?;
    }
    std::env::set_current_dir("/new")?;
    sys::mount(".", "/", "", sys::MS_MOVE, "")?;
    sys::chroot(".")?;
    std::env::set_current_dir("/")?;

    for (kind, at, data) in [
        ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
        ("tmpfs", "/tmp", "mode=1777"),
        ("debugfs", "/sys/kernel/debug", ""),
        ("tracefs", "/sys/kernel/tracing", ""),
        ("configfs", "/sys/kernel/config", ""),
        ("cgroup2", "/sys/fs/cgroup", ""),
    ] {
        let _ = fs::create_dir_all(at);
        // Not every kernel has each of them.
        let _ = sys::mount(kind, at, kind, 0, data);
    }
    let _ = fs::create_dir_all("/run/lock");
    let _ = symlink("/proc/self/fd", "/dev/fd");
    let _ = symlink("/proc/self/fd/0", "/dev/stdin");
    let _ = symlink("/proc/self/fd/1", "/dev/stdout");
    let _ = symlink("/proc/self/fd/2", "/dev/stderr");
    let _ = fs::remove_file("/etc/mtab");
    let _ = symlink("/proc/self/mounts", "/etc/mtab");

    Err(Command::new("/usr/sbin/guest-agent")
        .arg("--rooted")
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .exec())
}

fn find_root() -> io::Result<String> {
    for _ in 0..500 {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if sys::slurp(&format!("/sys/block/{name}/serial")) == ROOT_SERIAL {
                return Ok(format!("/dev/{name}"));
            }
        }
        sleep(Duration::from_millis(20));
    }
    Err(io::Error::other(
        "no disk has the serial number of the root",
    ))
}

fn supervise() -> ! {
    loop {
        let agent = match Command::new("/usr/sbin/guest-agent").spawn() {
            Ok(child) => i32::try_from(child.id()).unwrap_or(0),
            Err(e) => {
                sys::kmsg(&format!("init: can't start the agent: {e}"));
                sleep(Duration::from_secs(1));
                continue;
            }
        };
        loop {
            match sys::reap() {
                Some(pid) if pid != agent => continue,
                _ => break,
            }
        }
        sys::kmsg("init: the agent has died, starting it again");
        sleep(Duration::from_millis(200));
    }
}
