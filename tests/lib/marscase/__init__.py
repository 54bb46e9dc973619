# SPDX-License-Identifier: GPL-2.0-or-later
"""What the acceptance tests have in common: a small replicated file system, files with checksums, a writer."""

import os
import random
import re
import shlex
import time

import pytest

import marscluster
from marscluster import LogPos
from marsvm import Host
from marsvm import wait_until

# Small enough that a sync takes a second or two.
SIZE = "128M"
MOUNT = "/mnt"
DEVICE = "/dev/mars/data"


# For tests that take long, where shorter ones look at the most of it: FULL=1, and in make check-debug.
full = pytest.mark.skipif(not os.environ.get("FULL"), reason="takes long: FULL=1")


def number(variable: str, default: int) -> int:
    """How often, or how long: more than the default only where somebody asks for it."""
    return int(os.environ.get(variable, default))


def seeded(what: str = "") -> random.Random:
    """Random numbers whose seed is in the test's output; MARS_SEED repeats a run."""
    seed = int(os.environ.get("MARS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"{what}seed: MARS_SEED={seed}")
    return random.Random(seed)


def create(host: Host, size: str = SIZE) -> None:
    """The resource "data" on a part of the disk, and its device."""
    host.run(f"marsadm create-resource data {host.disk('data').dev} data {size} --timeout 60", timeout=70)
    marscluster.wait_device(host)


def cluster_of_two(hosts, size: str = SIZE, join: bool = True) -> tuple[Host, Host]:
    """A cluster, its resource primary on the first host with a file system on it, and its replica, synced."""
    a, b = hosts
    marscluster.setup_cluster([a, b])
    create(a, size)
    # Without lazy work, nothing is written by itself later.
    a.run(f"mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 {DEVICE}", timeout=60)
    if join:
        marscluster.join_resource(b)
        marscluster.wait_synced([a, b])
    return a, b


def mount(host: Host) -> None:
    marscluster.wait_device(host)
    host.run(f"mkdir -p {MOUNT} && mount {DEVICE} {MOUNT}")


def umount(host: Host) -> None:
    # Whoever was killed a moment ago may still be on its way out of the kernel.
    wait_until(lambda: host.run(f"umount {MOUNT}", check=False).ok, 20, f"{MOUNT} is unmounted on {host.name}")


def write_files(host: Host, folder: str, count: int = 20, kib: int = 100) -> None:
    """Files of different sizes with contents that nobody else has, all on the disk afterwards."""
    path = f"{MOUNT}/{folder}"
    host.run(
        f"mkdir -p {path} && cd {path} && for i in $(seq {count}); do "
        f"head -c $((i * {kib} * 1024 / {count} + i)) /dev/urandom > f$i || exit; done; sync -f .",
        timeout=60,
    )


def sums(host: Host, folder: str = "") -> dict[str, str]:
    """SHA-256 of each file below a folder of the mounted file system."""
    out = host.run(
        f"cd {MOUNT}/{folder} && find . -type f -print0 | sort -z | xargs -0r sha256sum", timeout=120
    ).out
    return {name: digest for digest, name in (line.split(None, 1) for line in out.splitlines())}


# Each file is written, made durable together with its name, and only then reported. The third of every four
# replaces an older one by rename.
_WRITER = r"""
cd MOUNT && mkdir -p FOLDER && cd FOLDER || exit
n=0
while :; do
    n=$((n + 1)); name=f$n
    size=$((RANDOM % 40 * 1024 + RANDOM))
    digest=$(head -c $size /dev/urandom | tee new.$n | sha256sum) || exit
    sync new.$n || exit
    [ $((n % 4)) != 3 ] || name=f$((n - 2))
    [ $name = f$n ] || echo "gone $name"
    mv new.$n $name && sync . || exit
    echo "sum ${digest%% *} $name"
done
"""


class Writer:
    """Writes files in the background and says of each when it is safe."""

    def __init__(self, host: Host, folder: str):
        self.host, self.folder = host, folder
        script = _WRITER.replace("MOUNT", MOUNT).replace("FOLDER", folder)
        self._text = ""
        self.job = host.start(script, check=False)

    def look(self) -> int:
        """How many files are safe by now."""
        self._text = self.job.output()[0]
        return len(self.safe)

    @property
    def safe(self) -> dict[str, str]:
        """Digests of the files that were safe at the last look. One that was being replaced may be old or new."""
        found: dict[str, str] = {}
        for line in self._text.splitlines(keepends=True):
            words = line.split()
            if not line.endswith("\n"):
                continue
            if words[0] == "gone":
                found.pop(words[1], None)
            elif words[0] == "sum":
                found[words[2]] = words[1]
        return found

    @property
    def running(self) -> bool:
        return self.job.running

    def stop(self) -> None:
        # With what it has said since the last look.
        self._text = self.job.kill().stdout


def lost(expected: dict[str, str], found: dict[str, str], crashed: bool = False) -> list[str]:
    """What of the files is missing or not what it was. `crashed`: those that a Writer replaces later may have been replaced
    since it was looked at."""
    problems = []
    for name, digest in sorted(expected.items()):
        if f"./{name}" not in found:
            problems.append(f"{name} is missing")
        elif found[f"./{name}"] != digest and not (crashed and int(name[1:]) % 4 == 1):
            problems.append(f"{name} has other contents")
    return problems


def settled(secondary: Host, end: LogPos, timeout: float = 120) -> None:
    """Until the replica has everything up to `end`."""
    marscluster.wait_replayed(secondary, end, timeout=timeout)


def equal(hosts) -> None:
    """Takes the resource down everywhere: the disks are the same byte by byte, and so are the logs fetched."""
    hosts = list(hosts)
    marscluster.down(hosts)
    found = marscluster.differences(hosts)
    assert not found, f"the disks differ at (offset, length): {found}"
    problems = marscluster.logs_differ(hosts[0], hosts[1])
    assert not problems, problems


def refused(host: Host, command: str, *patterns: str, rc: int | None = None, timeout: float = 60) -> str:
    """Runs a command that must fail, with all of these in what it says; gives that."""
    result = host.run(command, check=False, timeout=timeout)
    assert not result.timed_out, f"{command} does not end: {result}"
    assert result.rc != 0, f"{command} was not refused: {result}"
    if rc is not None:
        assert result.rc == rc, f"{command}: {result}"
    text = result.stdout + result.stderr
    for pattern in patterns:
        assert re.search(pattern, text), f"{command} does not say {pattern!r}, but:\n{text}"
    return text


def restart(host: Host) -> None:
    """Boots a host that is down, and has it take up what the tree says."""
    host.boot()
    host.mount_mars()
    host.run("modprobe mars", timeout=30)


def counter(host: Host, key: str) -> int:
    """A figure of the module since it was loaded."""
    line = next(l for l in host.run("cat /proc/sys/mars/info").stdout.splitlines() if l.startswith(key + " "))
    return int(line.split()[1])


def tree(host: Host, folder: str = "resource-data") -> dict[str, str]:
    """All links below a folder of /mars with their values."""
    out = host.run(f"cd /mars && find {shlex.quote(folder)} -type l -printf '%p\\t%l\\n'").stdout
    return dict(line.split("\t", 1) for line in out.splitlines())


def state_of(host: Host) -> str:
    return marscluster.member(host).state


def wait_state(host: Host, word: str, timeout: float = 60) -> None:
    def look():
        state = state_of(host)
        assert state.split(" ")[0] == word, f"the state is {state!r}"
        return True

    wait_until(look, timeout, f"state {word} on {host.name}", 0.3)


# Takes the last byte of /mars, also those kept for root; what is there already stays.
FILL = "; ".join(
    f"dd if=/dev/zero of=/mars/{name} bs={size} oflag=append conv=notrunc status=none"
    for name, size in (("filler", "1M"), ("filler2", "4k"), ("filler3", "1k"))
) + "; sync"


def starve(host: Host) -> None:
    """Fills /mars until nothing is logged any more: old logs that are removed make room for a while."""

    def look():
        host.run(FILL, check=False, timeout=60)
        return state_of(host).split(" ")[0] == "emergency"

    wait_until(look, 60, f"state emergency on {host.name}", 1.0)


def starve_to_death(host: Host) -> None:
    """Like [`starve`], and takes also what MARS gives up for its own links then: not a byte is left."""
    starve(host)
    host.run(f"sync; truncate -s 0 /mars/reserve; {FILL}; {FILL}", check=False, timeout=60)


def free(host: Host) -> None:
    """Gives /mars its room back."""
    host.run("rm -f /mars/filler*; sync")


def progress(seconds: float) -> None:
    """Lets things happen for a while."""
    time.sleep(seconds)
