# SPDX-License-Identifier: GPL-2.0-or-later
"""The machines' disks: sparse raw files in a folder of their own, gone with their cluster."""

import fcntl
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

from . import util

PREFIX = "marsvm-"


class Folder:
    """A folder that nobody else removes while this object lives.

    What an earlier run, ended by force, left behind is removed at the first occasion: its lock is
    not held any more.
    """

    def __init__(self, base=None):
        base = base or util.disk_folder()
        base.mkdir(parents=True, exist_ok=True)
        _remove_stale(base)
        # It gets its name when it is locked already.
        new = pathlib.Path(tempfile.mkdtemp(prefix=".new-", dir=base))
        self._lock = open(new / ".lock", "w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = base / new.name.replace(".new-", PREFIX)
        new.rename(self.path)

    def close(self):
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


@functools.lru_cache(maxsize=None)
def _remove_stale(base):
    for folder in base.glob(PREFIX + "*"):
        try:
            with open(folder / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass


class Disk:
    """One disk of one host. `dev` is its name in the guest, `path` its file on the host."""

    def __init__(self, spec, folder, host, dev):
        self.spec = spec
        self.dev = dev
        self.path = folder / f"{host}-{spec.serial}.img"
        self.log_path = folder / f"{host}-{spec.serial}.log" if spec.record else None
        self.base_path = folder / f"{host}-{spec.serial}.base" if spec.record else None
        self.reset()

    def reset(self):
        """As it comes from the factory. Only while no machine uses it."""
        with open(self.path, "wb") as f:
            f.truncate(self.spec.size)
        if self.spec.ext4:
            copy_data(ext4_template(self.spec.size), self.path)

    def load(self, image):
        """Takes the contents of a file as its own. Only while no machine uses it."""
        with open(self.path, "wb") as f:
            f.truncate(self.spec.size)
        copy_data(image, self.path)

    def power_on(self):
        """A recording begins anew with each boot."""
        if self.spec.record:
            with open(self.base_path, "wb") as f:
                f.truncate(self.spec.size)
            copy_data(self.path, self.base_path)
            with open(self.log_path, "wb"):
                pass

    def recording(self):
        """What was written since the last boot (marsvm.powercut)."""
        assert self.spec.record, f"{self.spec.serial} is not recorded: DiskSpec(record=True)"
        from .powercut import Recording

        return Recording(self.log_path, self.base_path)

    def arguments(self, index):
        """QEMU's options for it."""
        spec = self.spec
        node = f"disk-{spec.serial}"
        cache = f"cache.direct={_onoff(spec.cache == 'none')},cache.no-flush={_onoff(spec.cache == 'unsafe')}"
        discard = "unmap" if spec.discard else "ignore"
        args = [
            "-blockdev",
            f"driver=file,node-name={node},filename={self.path},discard={discard},{cache}",
        ]
        if spec.record:
            args += [
                "-blockdev",
                f"driver=file,node-name={node}-l,filename={self.log_path},{cache}",
                "-blockdev",
                f"driver=blklogwrites,node-name={node}-r,file={node},log={node}-l,"
                f"log-sector-size={spec.block},log-append=off,log-super-update-interval=256,discard={discard}",
            ]
            node += "-r"
        if spec.iops or spec.bps:
            limits = "".join(
                f",x-{name}={value}"
                for name, value in (("iops-total", spec.iops), ("bps-total", spec.bps))
                if value
            )
            args += [
                "-object",
                f"throttle-group,id=limit-{spec.serial}{limits}",
                "-blockdev",
                f"driver=throttle,node-name={node}-t,file={node},throttle-group=limit-{spec.serial}",
            ]
            node += "-t"
        args += [
            "-device",
            f"virtio-blk-pci,drive={node},serial={spec.serial},addr={16 + index:#x},"
            f"write-cache={_onoff(spec.cache != 'writethrough')},discard={_onoff(spec.discard)},"
            f"logical_block_size={spec.block},physical_block_size={max(spec.block, 512)}",
        ]
        return args


def _onoff(value):
    return "on" if value else "off"


def copy_data(source, target):
    """Copies what is not a hole; both files are of the same size."""
    with open(source, "rb") as src, open(target, "r+b") as dst:
        size = os.fstat(src.fileno()).st_size
        end = 0
        while end < size:
            try:
                start = os.lseek(src.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(src.fileno(), start, os.SEEK_HOLE)
            at = start
            while at < end:
                data = os.pread(src.fileno(), min(1 << 20, end - at), at)
                os.pwrite(dst.fileno(), data, at)
                at += len(data)


_templates = None


def ext4_template(size):
    """An empty file system for /mars, made once per run and size."""
    global _templates
    if _templates is None:
        _templates = Folder()
    path = _templates.path / f"ext4-{size}"
    if not path.exists():
        tmp = path.with_suffix(".tmp")
        with open(tmp, "wb") as f:
            f.truncate(size)
        # Complete at once: a kernel thread that initialises tables would disturb measurements.
        subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-N", "32768", "-J", "size=16"]
            + ["-E", "lazy_itable_init=0,lazy_journal_init=1,nodiscard", str(tmp)],
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )
        subprocess.run(["fallocate", "--dig-holes", str(tmp)], check=False, timeout=120)
        tmp.rename(path)
    return path


def close_templates():
    global _templates
    if _templates:
        _templates.close()
        _templates = None
