# SPDX-License-Identifier: GPL-2.0-or-later
"""What of this checkout's build goes into each machine: the module and the tools.

It travels as a tar archive on a small disk of its own, because it changes with every build, and
nothing else of a machine does.
"""

import functools
import io
import os
import pathlib
import subprocess
import tarfile
import tempfile

from . import util
from .errors import VmError
from .machine import PAYLOAD_SIZE

KO = "/usr/lib/mars/mars.ko"
TOOLS = {"marsadm": "/usr/sbin/marsadm", "marslog": "/usr/bin/marslog"}


def module_path():
    return pathlib.Path(os.environ.get("MARS_KO") or util.KERNEL_BUILD / "module" / "mars.ko")


def tool_path(name):
    folder = os.environ.get("MARS_BIN") or util.BUILD / "cargo" / "release"
    return pathlib.Path(folder) / name


def have_module():
    return module_path().exists()


def _modprobe_conf(ko):
    done = subprocess.run(
        ["modinfo", "-F", "depends", str(ko)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
    )
    depends = done.stdout.strip().replace(",", " ")
    first = f"/usr/sbin/modprobe -q -a {depends} && " if depends else ""
    # Not in modules.dep, because depmod over the whole tree would cost seconds at each boot.
    return (
        f"install mars {first}/usr/sbin/insmod {KO} $CMDLINE_OPTS\n"
        "remove mars /usr/sbin/rmmod mars\n"
    )


@functools.lru_cache(maxsize=16)
def _stripped(path, _mtime):
    """Contents without debug information, which is nine tenths of them. BTF stays."""
    with tempfile.NamedTemporaryFile() as out:
        done = subprocess.run(
            ["strip", "--strip-debug", "-o", out.name, str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        # Not everything that a test puts here is an ELF file.
        return pathlib.Path(out.name if done.returncode == 0 else path).read_bytes()


def _content(path):
    return _stripped(path, path.stat().st_mtime_ns)


def files(ko=None):
    """(path, content, mode) of everything that exists already."""
    ko = pathlib.Path(ko) if ko else module_path()
    out = []
    if ko.exists():
        out.append((KO, _content(ko), 0o644))
        out.append(("/etc/modprobe.d/mars.conf", _modprobe_conf(ko).encode(), 0o644))
    for name, target in TOOLS.items():
        source = tool_path(name)
        if source.exists():
            out.append((target, _content(source), 0o755))
    return out


def write_disk(path, ko=None):
    """The disk's contents, as a new file at `path`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data, mode in files(ko):
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    data = out.getvalue()
    if len(data) > PAYLOAD_SIZE:
        raise VmError(f"module and tools do not fit into {PAYLOAD_SIZE} bytes")
    tmp = path.with_suffix(".tmp")
    with open(tmp, "wb") as f:
        f.write(data)
        f.truncate(PAYLOAD_SIZE)
    tmp.rename(path)
