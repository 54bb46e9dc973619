# SPDX-License-Identifier: GPL-2.0-or-later
"""Time limits, and where things lie."""

import functools
import os
import pathlib
import subprocess
import time

from . import lane
from .errors import VmError

TOP = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ.get("MARS_BUILD", TOP / "build"))
# What belongs to one kernel: its modules and its tests' logs.
KERNEL_BUILD = BUILD / "debug" if lane.DEBUG else BUILD
CACHE = pathlib.Path(
    os.environ.get("MARS_CACHE")
    or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "mars"
)


def time_scale():
    """By how much time limits are stretched: an emulated machine is slow, a shared one slower."""
    if os.environ.get("MARS_TIME_SCALE"):
        return float(os.environ["MARS_TIME_SCALE"])
    from . import accel

    if accel.probing:
        return lane.SLOWNESS if lane.DEBUG else 1.0
    return (1.0 if accel.name() == "kvm" else 2.0) * (lane.SLOWNESS if lane.DEBUG else 1.0)


def scaled(seconds):
    """A time limit of `seconds` on a fast machine."""
    return seconds * time_scale()


def wait_until(fn, timeout=30, what=None, interval=0.1):
    """Calls `fn` until it returns something true, and returns that.

    A failed command or assertion counts as "not yet". After `timeout` (scaled) seconds an
    AssertionError says `what` did not happen and what the last look saw.
    """
    limit = scaled(timeout)
    end = time.monotonic() + limit
    while True:
        last = None
        try:
            value = fn()
            if value:
                return value
            last = repr(value)
        except (AssertionError, VmError) as e:
            from .errors import HostDied

            if isinstance(e, HostDied):
                raise
            last = f"{type(e).__name__}: {e}"
        if time.monotonic() >= end:
            what = what or getattr(fn, "__name__", "condition")
            raise AssertionError(f"not within {limit:.0f} s: {what}; last seen: {last}")
        time.sleep(interval)


@functools.lru_cache(maxsize=None)
def guest_files():
    """What scripts/guest-image made: image, initramfs, kernel."""
    done = subprocess.run(
        [str(TOP / "scripts" / "guest-image")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=1200,
        check=False,
    )
    if done.returncode != 0:
        raise VmError(f"scripts/guest-image failed:\n{done.stderr}")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def disk_folder():
    """Where the machines' disks are kept: memory if there is plenty, else the build folder."""
    if os.environ.get("MARS_VM_DISKS"):
        return pathlib.Path(os.environ["MARS_VM_DISKS"])
    shm = pathlib.Path("/dev/shm")
    try:
        fs = os.statvfs(shm)
        if os.access(shm, os.W_OK) and fs.f_bavail * fs.f_frsize > 6 << 30:
            return shm
    except OSError:
        pass
    return BUILD / "vm"
