// SPDX-License-Identifier: GPL-2.0-or-later

//! Backing disks and who holds a device.

use crate::ctx::Ctx;
use crate::error::{Failure, Result, Trying};
use crate::out;
use mars_core::resource::MOST_BLOCK;
use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Disks must be larger than this.
const MIN_SIZE: u64 = 64 * 1024;
/// Sizes are multiples of this.
pub const GRAIN: u64 = 4096;

/// A disk that passed the checks.
#[derive(Debug)]
pub struct Disk {
    /// Absolute path, as it goes into the tree.
    pub path: String,
    /// Usable bytes, a multiple of 4096.
    pub size: u64,
    /// Unit in which it is addressed (its logical block size), in bytes.
    pub block: u32,
}

/// Checks a disk that is to become a replica: a block device, not in use by anybody, of sufficient size.
pub fn check(ctx: &Ctx, disk: &Path) -> Result<Disk> {
    let shown = disk.display();
    if !disk.is_absolute() {
        return Err(Failure::usage(format!(
            "the disk '{shown}' must be given with its full path"
        )));
    }
    let path = disk
        .to_str()
        .filter(|p| !p.contains(['\n', '\0', ',']))
        .ok_or_else(|| Failure::usage(format!("the path '{shown}' cannot stand in the tree")))?;
    if ctx.is_remote() {
        return Err(
            Failure::usage("the disk of another host cannot be checked from here")
                .hint("run the command on that host, without --host"),
        );
    }
    let meta = fs::metadata(disk).trying(|| format!("the disk '{shown}' cannot be used"))?;
    let is_block = meta.file_type().is_block_device();
    let is_test = ctx.opt.file_disks && meta.file_type().is_file();
    if !(is_block || is_test) {
        return Err(Failure::refused(format!("'{shown}' is not a block device")));
    }
    if is_block {
        if let Some(mount) = mount_of(meta.rdev())? {
            return Err(Failure::refused(format!(
                "the disk '{shown}' is mounted at {} ({})",
                mount.point.display(),
                mount.fstype
            ))
            .hint(format!(
                "`umount {}`; afterwards mount /dev/mars/… instead of the disk",
                mount.point.display()
            )));
        }
    }
    let mut file = match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_EXCL.bits())
        .open(disk)
    {
        Ok(file) => file,
        Err(e) if ctx.opt.force => {
            out::warn(format_args!(
                "the disk '{shown}' cannot be opened exclusively ({e}); forced"
            ));
            fs::File::open(disk).trying(|| format!("cannot open the disk '{shown}'"))?
        }
        Err(e) => {
            let f = Failure::io(
                format_args!("cannot open the disk '{shown}' exclusively"),
                &e,
            );
            return Err(
                if e.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) {
                    let holders = holders(&meta);
                    let who = if holders.is_empty() {
                        "see `lsblk`".into()
                    } else {
                        holders.join(", ")
                    };
                    f.hint(format!("somebody else uses it ({who}): device mapper, RAID, swap or another resource?"))
                } else {
                    f
                },
            );
        }
    };
    let raw = file
        .seek(SeekFrom::End(0))
        .trying(|| format!("cannot find out the size of '{shown}'"))?;
    let size = raw - raw % GRAIN;
    if size <= MIN_SIZE {
        return Err(Failure::refused(format!(
            "the disk '{shown}' has {raw} bytes; more than {MIN_SIZE} are needed"
        )));
    }
    if size != raw {
        out::info(format_args!(
            "the size of '{shown}' is no multiple of {GRAIN}: its last {} bytes are not used",
            raw - size
        ));
    }
    let block = if is_block {
        block_size(meta.rdev()).trying(|| format!("cannot find out the block size of '{shown}'"))?
    } else {
        512
    };
    if block > MOST_BLOCK {
        return Err(Failure::refused(format!(
            "'{shown}' is addressed in blocks of {block} bytes: more than {MOST_BLOCK} are not supported"
        )));
    }
    Ok(Disk {
        path: path.to_owned(),
        size,
        block,
    })
}

/// The logical block size of a disk, or of that which a partition belongs to.
fn block_size(rdev: u64) -> io::Result<u32> {
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    let dir = format!("/sys/dev/block/{major}:{minor}");
    let read = |from: &str| fs::read_to_string(format!("{dir}/{from}queue/logical_block_size"));
    let text = read("").or_else(|_| read("../"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Names of block devices that hold this one.
fn holders(meta: &fs::Metadata) -> Vec<String> {
    let (major, minor) = (
        nix::sys::stat::major(meta.rdev()),
        nix::sys::stat::minor(meta.rdev()),
    );
    let dir = format!("/sys/dev/block/{major}:{minor}/holders");
    fs::read_dir(dir)
        .map(|d| {
            d.filter_map(|e| e.ok()?.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// A mount of a device.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub point: PathBuf,
    /// File system.
    pub fstype: String,
    /// What was given to mount.
    pub source: String,
}

/// The first mount of a block device on this host.
pub fn mount_of(rdev: u64) -> Result<Option<Mount>> {
    let id = format!(
        "{}:{}",
        nix::sys::stat::major(rdev),
        nix::sys::stat::minor(rdev)
    );
    Ok(mounts()?
        .into_iter()
        .find(|(dev, _)| *dev == id)
        .map(|(_, m)| m))
}

/// The first mount whose source is `/dev/mars/<device>`, or that has its device number.
pub fn mount_of_mars(device: &str) -> Option<Mount> {
    let path = format!("/dev/mars/{device}");
    let rdev = fs::metadata(&path).ok().map(|m| m.rdev());
    if let Some(mount) = rdev.and_then(|r| mount_of(r).ok().flatten()) {
        return Some(mount);
    }
    mounts()
        .ok()?
        .into_iter()
        .map(|(_, m)| m)
        .find(|m| m.source == path)
}

fn mounts() -> Result<Vec<(String, Mount)>> {
    let text = match fs::read_to_string("/proc/self/mountinfo") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.trying(|| "cannot read /proc/self/mountinfo".into())?,
    };
    Ok(text.lines().filter_map(parse_mountinfo).collect())
}

/// One line of mountinfo: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse_mountinfo(line: &str) -> Option<(String, Mount)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let dev = left.nth(2)?.to_owned();
    let point = PathBuf::from(unescape(left.nth(1)?));
    let mut right = right.split(' ');
    let fstype = right.next()?.to_owned();
    let source = unescape(right.next()?);
    Some((
        dev,
        Mount {
            point,
            fstype,
            source,
        },
    ))
}

/// Undoes the `\040` escapes of mountinfo.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes().peekable();
    while let Some(b) = bytes.next() {
        if b == b'\\' {
            let digits: Vec<u8> = bytes.by_ref().take(3).collect();
            let code = std::str::from_utf8(&digits)
                .ok()
                .and_then(|d| u8::from_str_radix(d, 8).ok());
            out.push(code.unwrap_or(b'?'));
        } else {
            out.push(b);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_taken_apart() {
        let line = r"36 35 98:0 / /mnt/with\040blank rw,noatime master:1 - ext4 /dev/mars/my rw";
        let (dev, mount) = parse_mountinfo(line).unwrap();
        assert_eq!(dev, "98:0");
        assert_eq!(mount.point, PathBuf::from("/mnt/with blank"));
        assert_eq!(mount.fstype, "ext4");
        assert_eq!(mount.source, "/dev/mars/my");
        assert!(parse_mountinfo("garbage").is_none());
    }
}
