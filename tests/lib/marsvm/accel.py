# SPDX-License-Identifier: GPL-2.0-or-later
"""Which accelerator QEMU uses here.

/dev/kvm may exist and still not run ordinary guests, so it is tried: a machine is booted to user
space. What came out is remembered until the host is booted anew. MARS_ACCEL overrides.
"""

import fcntl
import functools
import os
import pathlib

from . import util

NAMES = ("kvm", "tcg")

# While it is being found out, nothing may ask which one it is.
probing = False


@functools.lru_cache(maxsize=None)
def name():
    wish = os.environ.get("MARS_ACCEL")
    if wish:
        if wish not in NAMES:
            raise ValueError(f"MARS_ACCEL={wish}: must be one of {', '.join(NAMES)}")
        return wish
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "unknown"
    folder = util.CACHE / "guest"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / f"accel-{boot}"
    with open(folder / ".accel-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            known = note.read_text().strip()
            if known in NAMES:
                return known
        except OSError:
            pass
        result = "kvm" if _kvm_boots() else "tcg"
        note.write_text(result + "\n")
        return result


def _kvm_boots():
    from .cluster import Cluster
    from .errors import VmError
    from .spec import HostSpec

    global probing
    probing = True
    try:
        with Cluster(1, HostSpec(disks=()), accel="kvm", boot_timeout=20) as cluster:
            return cluster[0].run("echo fine", timeout=10).out == "fine"
    except (VmError, OSError):
        return False
    finally:
        probing = False


def arguments(which):
    if which == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    # Emulated, `rep movsb` copies byte by byte and the CRC32C with PCLMULQDQ (which comes with SSE4.2) is slower than a table: without these
    # features the kernel takes the code for processors that lack them, several times faster here.
    slow = ("erms", "fsrm", "fzrm", "fsrs", "fsrc", "sse4.2")
    return ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", ",-".join(("max", *slow))]
