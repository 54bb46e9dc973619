# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration, step by step."""

import contextlib
import pathlib
import time
import traceback

import marscluster
from marsvm import Cluster
from marsvm import DiskSpec
from marsvm import Host
from marsvm import HostSpec
from marsvm import accel
from marsvm import payload
from marsvm import util
from marsvm.disks import copy_data

from . import copying
from . import source
from .show import MIB
from .show import Show
from .show import mib

GIB = 1 << 30
SIZE = 640 * MIB
MOUNT = "/mnt"
ORIGINAL = "/root/original"
SUMS = "/root/sums"
# On real processors the copy would be over before anybody could cut a link.
KVM_BYTES_PER_SECOND = 10 * MIB


def specs(image: pathlib.Path) -> list[HostSpec]:
    """Two hosts; the first one also has the original tree."""
    own = (DiskSpec("mars", 2 * GIB, ext4=True), DiskSpec("data", SIZE))
    limit = KVM_BYTES_PER_SECOND if accel.name() == "kvm" else 0
    tree = DiskSpec("source", (image.stat().st_size + MIB - 1) // MIB * MIB, bps=limit)
    return [HostSpec(disks=(*own, tree)), HostSpec(disks=own)]


class Story:
    def __init__(self, show: Show):
        self.show = show

    def run(self) -> int:
        for path in (payload.module_path(), payload.tool_path("marsadm")):
            if not path.exists():
                print(f"demo: {path} does not exist: run 'make'")
                return 1
        folder = util.BUILD / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("host*"):
            old.unlink()
        show = self.show
        show.line("MARS: a file system on one host, followed by another one, taken over, and handed back")
        with contextlib.ExitStack() as stack:
            hosts: list[Host] = []
            try:
                with show.step("prepare the tree that will be copied") as step:
                    tree = source.make()
                    step.detail = f"{tree.files} files, {mib(tree.size)} MiB of kernel source"
                with show.step("boot two machines") as step:
                    own = specs(tree.image)
                    cluster = stack.enter_context(Cluster(2, own, boot=False, log_dir=folder))
                    copy_data(*self._pad(tree.image, cluster[0]))
                    cluster.boot()
                    hosts = list(cluster)
                    kernel = hosts[0].run("uname -r").out
                    step.detail = f"kernel {kernel}, {accel.name()}"
                self.tell(hosts[0], hosts[1], tree)
                with show.step("look for complaints of the kernels") as step:
                    problems = [p for h in hosts for p in h.check()]
                    step.check(not problems, "\n".join(problems) or "none")
            except Exception as e:  # pylint: disable=broad-except
                show.failed = True
                self._mourn(hosts, e)
        show.table()
        return 1 if show.failed else 0

    @staticmethod
    def _pad(image: pathlib.Path, host: Host) -> tuple[pathlib.Path, pathlib.Path]:
        """copy_data wants files of the same size."""
        target = host.disk("source").path
        with open(target, "r+b") as file:
            file.truncate(image.stat().st_size)
        return image, target

    def tell(self, a: Host, b: Host, tree: source.Source) -> None:
        """The main job."""
        show = self.show
        with show.step("create a cluster of both") as step:
            marscluster.setup_cluster([a, b])
            step.detail = f"mars {a.run('cat /proc/sys/mars/version').out}"
        with show.step(f"create the resource 'data' of {mib(SIZE)} MiB on {a.name}") as step:
            device = marscluster.create_resource(a)
            step.detail = device
        with show.step(f"make {b.name} a replica"):
            marscluster.join_resource(b)
            marscluster.wait_synced([a, b], timeout=180)
        with show.step("make an ext4 file system and mount it"):
            a.run(f"mkfs.ext4 -q -E lazy_itable_init=0 {device} && mount {device} {MOUNT}", timeout=90)
            a.run(f"mkdir {ORIGINAL} && mount -o ro {a.disk('source').dev} {ORIGINAL}")
        self._copy(a, b, tree)
        self._hand_over(a, b, "take over")
        with show.step(f"check the file system and every file on {b.name}") as step:
            # Nothing of what A knows about the files is used here.
            b.put(tree.sums, SUMS)
            b.run(f"e2fsck -fn {device}", timeout=120)
            b.run(f"mount {device} {MOUNT}")
            found = self._verify(b, SUMS)
            step.check(found == tree.files, f"{found} of {tree.files} files have their right SHA-256")
            step.detail = f"{mib(tree.size)} MiB read"
        with show.step(f"write on {b.name}") as step:
            b.run(
                f"cd {MOUNT} && mkdir new && for i in $(seq 100); do head -c 100000 /dev/urandom > new/$i; done"
                " && rm -r mm && mv fs renamed && sync && cd new && sha256sum * > /root/new.sums",
                timeout=90,
            )
            step.detail = "100 new files, a directory removed, another one renamed"
        b.run(f"umount {MOUNT}")
        self._hand_over(b, a, "hand back")
        with show.step(f"check on {a.name} what was written on {b.name}") as step:
            a.put(b.get("/root/new.sums"), "/root/new.sums")
            a.run(f"mount {device} {MOUNT}")
            found = self._verify(a, "/root/new.sums", "new")
            gone = a.run(f"[ ! -e {MOUNT}/mm ] && [ ! -e {MOUNT}/fs ] && [ -d {MOUNT}/renamed ]", check=False).ok
            step.check(found == 100 and gone, f"{found} of 100 files; removed and renamed: {'yes' if gone else 'NO'}")
            a.run(f"umount {MOUNT}")
        with show.step("take everything down and compare the two disks, byte by byte") as step:
            marscluster.wait_synced([a, b])
            marscluster.down([a, b])
            where = marscluster.differences([a, b])
            step.check(not where, f"{mib(SIZE)} MiB are equal" if not where else f"they differ at {where}")
        with show.step("unload the module"):
            marscluster.teardown_cluster([a, b])

    def _copy(self, a: Host, b: Host, tree: source.Source) -> None:
        with self.show.step(f"copy {tree.files} files while {b.name} follows; the link is cut meanwhile") as step:
            # The page cache shall not hide how fast the device is.
            a.run("echo $((8 << 20)) > /proc/sys/vm/dirty_background_bytes; echo $((24 << 20)) > /proc/sys/vm/dirty_bytes")
            copy = copying.Copy(self.show, a, b, tree.blocks, MOUNT)
            copy.run(f"set -o pipefail; tar -C {ORIGINAL}/tree -cf - -T {ORIGINAL}/list | tar -C {MOUNT} -xf - && sync")
            passed, text = copy.proves_independence()
            step.check(passed, f"the copy did not wait for the replica: {text}" if passed else text)
            step.detail = f"{tree.size / MIB / copy.seconds:.1f} MiB/s, link cut for {copy.cut_seconds:.1f} s"
        with self.show.step(f"wait until {b.name} has caught up by itself") as step:
            end = marscluster.durable_end(a)
            before = marscluster.behind(end, marscluster.member(b).replay, marscluster.member(a).ends)
            seconds = marscluster.wait_replayed(b, end, timeout=180)
            step.detail = f"was {mib(before)} MiB behind" + (f", {(before or 0) / MIB / seconds:.1f} MiB/s" if before else "")
            a.run(f"umount {MOUNT}")

    def _hand_over(self, old: Host, new: Host, title: str) -> None:
        with self.show.step(f"{title}: marsadm primary data, on {new.name}") as step:
            begun = time.monotonic()
            new.run("marsadm primary data --timeout 90", timeout=100)
            marscluster.wait_device(new)
            step.detail = f"the device is on {new.name} after {time.monotonic() - begun:.1f} s"
            gone = old.run("[ ! -e /dev/mars/data ]", check=False).ok
            step.check(gone, f"it {'is gone' if gone else 'STILL EXISTS'} on {old.name}")

    @staticmethod
    def _verify(host: Host, sums: str, folder: str = "") -> int:
        """How many files are as they should be."""
        out = host.run(
            f"cd {MOUNT}/{folder} && rm -f /root/part.* && split -n l/2 {sums} /root/part. && "
            "for p in /root/part.*; do sha256sum -c $p 2>&1 > $p.out & done; wait; cat /root/part.*.out | grep -c ': OK$'",
            timeout=180,
            check=False,
        ).out
        return int(out or 0)

    def _mourn(self, hosts: list[Host], error: Exception) -> None:
        """Everything that helps to find out why it failed."""
        show = self.show
        show.line(f"\nFAILED: {type(error).__name__}: {error}")
        show.line("".join(traceback.format_tb(error.__traceback__)[-3:]))
        for host in hosts:
            if not host.is_on:
                show.line(f"--- {host.name} is off")
                show.line(host.console_tail(60))
                continue
            with contextlib.suppress(Exception):
                show.line(f"--- marsadm view on {host.name}\n" + host.run("marsadm view all", timeout=20, check=False).stdout)
            with contextlib.suppress(Exception):
                show.line(f"--- kernel log of {host.name}\n" + host.run("dmesg | tail -n 40", timeout=20, check=False).stdout)
            with contextlib.suppress(Exception):
                for problem in host.check():
                    show.line(problem)
        show.line(f"The whole consoles are in {util.BUILD / 'demo'}.")


def main() -> int:
    return Story(Show()).run()
