# SPDX-License-Identifier: GPL-2.0-or-later
"""The small program that runs inside the guests, and versions of everything."""

import pathlib
import re
import subprocess

from marsvm import Host
from marsvm import accel
from marsvm import program

SOURCE = pathlib.Path(__file__).with_name("probe.rs")
PROBE = "/root/probe"


def probe() -> pathlib.Path:
    """The program, built from probe.rs."""
    return program.build(SOURCE)


def first_line(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60, check=False)
    return done.stdout.strip().split("\n")[0]


def versions(host: Host) -> dict[str, str]:
    """For the report: ratios are only comparable where these are equal."""

    def guest(command: str) -> str:
        return host.run(command, check=False).out.split("\n")[0]

    qemu = re.search(r"version (\S+)", first_line(["qemu-system-x86_64", "--version"]))
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "kernel": guest("uname -r"),
        "kernel_build": guest("uname -v"),
        "module": guest("cat /proc/sys/mars/version || modinfo -F version /usr/lib/mars/mars.ko"),
        "module_srcversion": guest("modinfo -F srcversion /usr/lib/mars/mars.ko || cat /sys/module/mars/srcversion"),
        "commit": first_line(["git", "-C", str(SOURCE.parent), "describe", "--always", "--dirty", "--abbrev=12"]),
        "drbd": guest("modinfo -F version drbd"),
        "drbd_utils": guest("dpkg-query -W -f '${Version}' drbd-utils"),
        "fio": guest("fio --version"),
        "qemu": qemu[1] if qemu else "",
        "accelerator": accel.name(),
        "host_cpu": cpu[1] if cpu else "",
        "host_kernel": first_line(["uname", "-r"]),
    }
