# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that were booted once, to start others from.

Booting an emulated machine takes ten seconds, on a busy host half a minute, and tests of crashes
boot often. So one machine of each kind is booted, stopped before it has looked at its disks and its
network, and kept in the cache: its memory in a file that others map privately, its other state
beside it. A host that starts from it is a copy a second later. The copy gets the time of day, new
random numbers, its identity, and this build's module and tools (Host.boot); the disks' few cached
blocks are dropped before the template is made.

What a host can tell from a real boot: the kernel's uptime, and the console's file without the boot
messages. `boot(cold=True)`, MARS_VM_TEMPLATE=0, and every restart from inside boot really.
"""

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

from . import accel as accelerators
from . import lane
from . import machine as machines
from . import util
from .disks import Disk
from .disks import Folder
from .errors import VmError
from .machine import Machine

# Each takes some 300 MB in the cache.
KEEP = 6

# Programs that every test uses are in its page cache already; nothing of the disks is.
_PREPARE = r"""
hostname; ip link >/dev/null; tc qdisc >/dev/null; lsmod >/dev/null; modprobe -n xfs; sleep 0
mount >/dev/null; umount -h >/dev/null; blkdiscard -h >/dev/null; dmsetup -h >/dev/null 2>&1
awk 1 /dev/null; sync; date >/dev/null; ping -h >/dev/null 2>&1; ls / >/dev/null; tar --help >/dev/null
for d in /dev/vd[b-z]; do [ ! -e $d ] || blockdev --flushbufs $d || exit; done
"""
_PREPARE = f"{machines.NAME_DISKS}\n{_PREPARE}"
if lane.DEBUG:
    _PREPARE += lane.PREPARE

_lock = threading.Lock()
_open = {}
_broken = False


class Template:
    """`ram` and `state` are files, `info` is what its agent said of itself.

    The lock keeps others from removing it.
    """

    def __init__(self, path):
        self.ram, self.state = path / "ram", path / "state"
        self._lock = open(path / "lock", "w")
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        os.utime(path)
        self.info = json.loads((path / "info").read_text())

    def close(self):
        self._lock.close()


def get(spec, cards, accelerator, files, timeout):
    """The template for such a machine, made if needed; None if that does not work here."""
    with _lock:
        return _get(spec, cards, accelerator, files, timeout)


def _get(spec, cards, accelerator, files, timeout):
    global _broken
    if _broken or os.environ.get("MARS_VM_TEMPLATE") == "0":
        return None
    spec = _as_seen(spec)
    key = _key(spec, cards, accelerator, files)
    if key in _open:
        return _open[key]
    store = util.CACHE / "guest" / "templates"
    store.mkdir(parents=True, exist_ok=True)
    try:
        with open(store / f".lock-{key}", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = store / key
            if not path.exists():
                _make(path, spec, cards, accelerator, files, timeout)
            _open[key] = Template(path)
    except (VmError, OSError) as e:
        _broken = True
        print(f"marsvm: machines boot slowly, because there is no template: {e}", file=sys.stderr)
        return None
    _remove_old(store)
    return _open[key]


def _as_seen(spec):
    """The same without what a guest can't see, so that more machines share a template."""
    disks = tuple(
        dataclasses.replace(
            d,
            ext4=False,
            record=False,
            iops=0,
            bps=0,
            cache=d.cache if d.cache == "writethrough" else "writeback",
        )
        for d in spec.disks
    )
    return dataclasses.replace(spec, disks=disks, mtu=0, kernel=(), module="")


@functools.lru_cache(maxsize=None)
def _qemu():
    done = subprocess.run(
        ["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    return done.stdout


def _key(spec, cards, accelerator, files):
    """Hash of everything that a template's memory and state depend on."""
    facts = [spec, cards, accelerator, machines.CMDLINE, _PREPARE, _qemu(), lane.memory(spec.mem)]
    facts += [(str(f), os.stat(f).st_size) for f in files[:3]]
    facts.append(pathlib.Path(machines.__file__).read_text())
    # Also the processor's features: the kernel has chosen its code by them.
    facts.append(accelerators.arguments(accelerator))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _make(path, spec, cards, accelerator, files, timeout):
    folder = Folder()
    machine = None
    try:
        here = folder.path
        argv = machines.arguments(spec, accelerator, files, f"mem-path={here / 'ram'},share=on")
        with open(here / "payload", "wb") as f:
            f.truncate(machines.PAYLOAD_SIZE)
        argv += machines.payload_disk(here / "payload")
        for i, disk in enumerate(spec.disks):
            argv += Disk(disk, here, "template", "").arguments(i)
        for slot in range(1, cards + 1):
            argv += machines.card(slot)
        machine = Machine("template", argv, here / "console", here / "qemu")
        if not machine.agent.hello.wait(util.scaled(timeout)):
            text = (here / "console").read_text(errors="replace")[-3000:]
            raise VmError(f"template: does not boot\n{machine.complaints()}{text}")
        answer = machine.agent.request("exec", cmd=_PREPARE, timeout=60).result(util.scaled(60))
        if answer.get("rc") != 0:
            raise VmError(f"template: {answer}")
        (here / "info").write_text(json.dumps(machine.agent.info))
        machine.qmp("stop")
        machine.migrate(here / "state")
        machine.kill()
        machine = None

        # Complete or not there.
        new = pathlib.Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
        subprocess.run(
            ["cp", "--sparse=always", *(here / n for n in ("ram", "state", "info", "console")), new],
            check=True,
            timeout=300,
        )
        new.rename(path)
    finally:
        if machine:
            machine.kill()
        folder.close()


def _remove_old(store):
    def age(path):
        try:
            return path.stat().st_mtime
        except OSError:
            return 0

    found = sorted((p for p in store.iterdir() if not p.name.startswith(".")), key=age)
    for path in found[:-KEEP]:
        try:
            with open(path / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass


def close_all():
    while _open:
        _open.popitem()[1].close()
