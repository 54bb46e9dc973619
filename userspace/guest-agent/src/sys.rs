// SPDX-License-Identifier: GPL-2.0-or-later

//! Safe names for the system calls that the standard library lacks.

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;

fn cstr(s: &str) -> CString {
    CString::new(s.replace('\0', "")).unwrap_or_default()
}

fn check(rc: libc::c_long) -> io::Result<libc::c_long> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

pub const MS_RDONLY: libc::c_ulong = libc::MS_RDONLY;
pub const MS_MOVE: libc::c_ulong = libc::MS_MOVE;

pub fn mount(src: &str, dst: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (src, dst, kind, data) = (cstr(src), cstr(dst), cstr(kind), cstr(data));
    // SAFETY: All pointers are to terminated strings that outlive the call.
    let rc = unsafe {
        libc::mount(
            src.as_ptr(),
            dst.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    check(rc.into()).map(drop)
}

pub fn chroot(path: &str) -> io::Result<()> {
    let path = cstr(path);
    // SAFETY: `path` is a terminated string.
    check(unsafe { libc::chroot(path.as_ptr()) }.into()).map(drop)
}

pub fn load_module(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let options = cstr("");
    // SAFETY: A valid descriptor and a terminated string.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            options.as_ptr(),
            0,
        )
    };
    match check(rc) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

/// Sends `signal` to the whole process group `pgid`.
pub fn kill_group(pgid: i32, signal: i32) {
    if pgid > 1 {
        // SAFETY: No memory is involved.
        unsafe { libc::kill(-pgid, signal) };
    }
}

/// Waits for any child; `None` when there is none.
pub fn reap() -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is valid for writing.
    let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
    if pid > 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
        Some(pid)
    } else {
        None
    }
}

pub fn set_nice(nice: i32) {
    // SAFETY: No memory is involved.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

pub fn set_time(ns: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(0),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    };
    // SAFETY: `time` is valid for reading.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) }.into()).map(drop)
}

/// Makes the kernel use what was written to its random device from now on.
pub fn reseed(random: &File) -> io::Result<()> {
    /// `_IO('R', 0x07)`, see linux/random.h.
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    // SAFETY: A valid descriptor; the request has no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) }.into()).map(drop)
}

pub fn reboot(how: &str) -> io::Result<()> {
    let cmd = match how {
        "restart" => libc::LINUX_REBOOT_CMD_RESTART,
        "poweroff" => libc::LINUX_REBOOT_CMD_POWER_OFF,
        "halt" => libc::LINUX_REBOOT_CMD_HALT,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    // SAFETY: No memory is involved.
    check(unsafe { libc::reboot(cmd) }.into()).map(drop)
}

/// A line in the kernel's log, so that it also stands in the console's file.
pub fn kmsg(text: &str) {
    if let Ok(mut f) = fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = f.write_all(format!("<6>mars-bench: {text}\n").as_bytes());
    }
}

/// A small file without its final newline; empty where it can't be read.
pub fn slurp(path: &str) -> String {
    fs::read_to_string(path)
        .map(|s| s.trim_end().to_owned())
        .unwrap_or_default()
}
