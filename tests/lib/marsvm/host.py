# SPDX-License-Identifier: GPL-2.0-or-later
"""One test machine."""

import base64
import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import threading
import time
import uuid
import warnings

from . import accel
from . import kernlog
from . import lane
from . import template
from . import util
from .disks import Disk
from .errors import AgentTimeout
from .errors import CommandFailed
from .errors import HostDied
from .errors import HostReset
from .errors import VmError
from .machine import MIN_CARDS
from .machine import NAME_DISKS
from .machine import Machine
from .machine import arguments
from .machine import card
from .machine import mac
from .machine import payload_disk

CHUNK = 512 << 10

@dataclasses.dataclass
class Result:
    """How a command ended. stdout and stderr are str, or bytes where they are not UTF-8."""

    rc: int
    stdout: str
    stderr: str
    timed_out: bool = False
    stuck: str = ""
    elapsed: float = 0.0

    @property
    def out(self):
        """stdout without surrounding white space."""
        return self.stdout.strip()

    @property
    def ok(self):
        return self.rc == 0 and not self.timed_out

    @staticmethod
    def of(answer):
        def text(value):
            if isinstance(value, dict):
                return base64.b64decode(value["b64"])
            return value or ""

        return Result(
            rc=answer.get("rc"),
            stdout=text(answer.get("stdout")),
            stderr=text(answer.get("stderr")),
            timed_out=answer.get("timed_out", False),
            stuck=answer.get("stuck", ""),
            elapsed=answer.get("elapsed", 0.0),
        )


class Job:
    """A command in the background."""

    def __init__(self, host, cmd, future, limit, check):
        self._host, self.cmd, self._future = host, cmd, future
        self._limit, self._check = limit, check
        self._start = time.monotonic()

    @property
    def running(self):
        return not self._future.done()

    def wait(self, timeout=None, check=None):
        """Its Result. It is *not* ended when `timeout` (scaled) is over; AgentTimeout then."""
        if timeout is None:
            limit = max(0.0, self._limit - (time.monotonic() - self._start))
        else:
            limit = util.scaled(timeout)
        result = self._host._finish(self.cmd, self._future, limit)
        if (self._check if check is None else check) and not result.ok:
            raise CommandFailed(self._host.name, self.cmd, result)
        return result

    def output(self):
        """(stdout, stderr) so far."""
        if not self._future.done():
            answer = self._host._ask("peek", target=self._future.ident)
            if "error" not in answer:
                result = Result.of(answer)
                return result.stdout, result.stderr
        # It has ended meanwhile.
        result = self.wait(timeout=10, check=False)
        return result.stdout, result.stderr

    def signal(self, number=signal.SIGTERM):
        """To its whole process group."""
        if not self._future.done():
            self._host._ask("signal", target=self._future.ident, signal=int(number))

    def kill(self):
        """Ends it and gives its Result."""
        self.signal(signal.SIGKILL)
        return self.wait(timeout=30, check=False)


class Host:
    """A machine: off, or running in a QEMU process. Made by Cluster.

    Disks keep their contents while it is off. Time limits are stretched by util.scaled().
    """

    def __init__(self, cluster, number, name, spec, disk_folder):
        self.cluster = cluster
        self.number = number
        self.name = name
        self.spec = spec
        self.ip = f"10.77.0.{number}"
        self.wires = {}
        self.shapes = {}
        self.disks = [
            Disk(d, disk_folder, name, f"/dev/vd{chr(ord('b') + i)}") for i, d in enumerate(spec.disks)
        ]
        self.console = cluster.log_dir / f"{name}.console"
        self.failures = []
        self.allowed = []
        self.boot_seconds = None
        self._machine = None
        self._set_up = None
        self._expect_reset = 0
        self._expect_death = False
        self._resets = 0
        self._marks = 0
        self._log_seen = 0
        self._boot_began = 0
        self._boots_failed = []
        self._state = threading.RLock()
        self._booted_at = 0.0

    def __repr__(self):
        return f"<{self.name}>"

    def __str__(self):
        return self.name

    # --- power ---------------------------------------------------------------------------------

    @property
    def is_on(self):
        """A QEMU process runs; not necessarily a healthy guest."""
        return self._machine is not None and self._machine.runs

    @property
    def _agent(self):
        machine = self._machine
        return machine.agent if machine else None

    def boot(self, wait=True, cold=False):
        """Switches it on; as a copy of a machine that has booted already, unless `cold`."""
        assert not self.is_on, f"{self.name} runs already"
        self.kill()
        files = self.spec.kernel or tuple(
            util.guest_files()[f"MARS_GUEST_{n}"] for n in ("VMLINUZ", "IMAGE", "INITRD")
        )
        cards = max(len(self.wires), MIN_CARDS)
        origin = None
        if not cold and not any(wire.cold for wire in self.wires.values()):
            origin = template.get(
                self.spec, cards, self.cluster.accel, files, self.cluster.boot_timeout
            )
        ram = f"mem-path={origin.ram},share=off" if origin else None
        argv = arguments(self.spec, self.cluster.accel, files, ram)
        argv += payload_disk(self.cluster.payload(*(files[3:] or filter(None, [self.spec.module]))))
        for i, disk in enumerate(self.disks):
            disk.power_on()
            argv += disk.arguments(i)
        for wire in self.wires.values():
            argv += wire.arguments(self)
        for slot in range(len(self.wires) + 1, cards + 1):
            argv += card(slot)
        if origin:
            argv += ["-incoming", "defer"]

        self._expect_death = False
        self._set_up = None
        self._booted_at = time.monotonic()
        self._boot_began = self._console_size()
        failures = len(self.failures)
        machine = Machine(
            self.name,
            argv,
            self.console,
            self.cluster.log_dir / f"{self.name}.qemu",
            descriptors=[fd for wire in self.wires.values() for fd in wire.descriptors(self)],
            on_hello=self._on_hello,
            on_event=self._on_event,
            on_lost=self._on_lost,
        )
        self._machine = machine
        try:
            if origin:
                machine.migrate(origin.state, incoming=True)
            for wire in self.wires.values():
                if wire.cut:
                    wire.apply(self)
            if origin:
                machine.qmp("cont")
                seed = base64.b64encode(os.urandom(64)).decode()
                wake = machine.agent.request("wake", time_ns=time.time_ns(), seed=seed)
                answer = wake.result(util.scaled(30))
                if "error" in answer:
                    raise VmError(f"wake: {answer['error']}")
                # Nobody may take two copies for the same boot of the same machine.
                machine.agent.info = {**origin.info, "boot_id": str(uuid.uuid4()), "copy": True}
                machine.agent.hello.set()
        except VmError as e:
            status = machine.process.poll()
            text = f"{self.name}: {e} (exit status of QEMU: {status})\n{machine.complaints()}"
            self.kill()
            # QEMU itself has crashed, before the guest did anything.
            if origin and status is not None and status < 0:
                del self.failures[failures:]
                warnings.warn(f"booted without a template: {text}")
                self.boot(wait=wait, cold=True)
                return
            raise HostDied(text) from e
        if wait:
            self.wait_up()

    def wait_up(self, timeout=60):
        """Until it answers and its network is set up."""
        limit = time.monotonic() + util.scaled(timeout)
        while True:
            agent = self._agent
            if agent is None:
                raise HostDied(f"{self.name} is off")
            if agent.hello.wait(0.1):
                break
            if agent._dead:
                if not self._may_boot_again():
                    raise agent._dead
                self.boot(wait=False, cold=True)
                continue
            if time.monotonic() > limit:
                raise AgentTimeout(f"{self.name} does not come up\n{self.console_tail()}")
        with self._state:
            boot = self._agent.info["boot_id"]
            if self._set_up != boot:
                future = self._agent.request("exec", cmd=self._setup_script(), timeout=util.scaled(30))
                result = self._finish("(set-up)", future, util.scaled(40))
                if not result.ok or result.stderr:
                    raise CommandFailed(self.name, "(set-up)", result)
                self._set_up = boot
                self.boot_seconds = time.monotonic() - self._booted_at
                clock = self._agent.info.get("clocksource")
                # "tsc-early" is as fast, and becomes "tsc" when that is calibrated, a second after the boot.
                if clock not in ("tsc", "tsc-early", "kvm-clock"):
                    self.failures.append(f"{self.name}: clock source is {clock}: every clock read is slow")

    def _may_boot_again(self):
        """Whether it has died of QEMU's emulation, before anything of ours ran.

        While the kernel changes its own code at boot, the other emulated processor may meet the breakpoint
        that stands there for a moment after the kernel has forgotten about it (seen once in some hundred boots).
        """
        if self._agent.hello.is_set() or len(self._boots_failed) >= 3:
            return False
        with open(self.console, "rb") as f:
            f.seek(self._boot_began)
            text = f.read()
        if b"Oops: int3:" not in text or b"mars" in text:
            return False
        self._boots_failed.append((self._boot_began, self._boot_began + len(text)))
        self.failures = [f for f in self.failures if "Oops: int3:" not in f]
        warnings.warn(f"{self.name} was booted again: its kernel met a breakpoint of its own while it booted")
        return True

    def power_cut(self):
        """The machine is gone from one instruction to the next; boot() starts it again.

        What the guest wrote and never flushed may survive in the host's page cache. Disks with
        `record` show what a real loss of power may leave (Disk.recording).
        """
        self._expect_death = True
        if self.is_on and any(d.spec.record for d in self.disks):
            # Completes the recording of requests that are under way.
            with contextlib.suppress(VmError):
                self.qmp("stop")
        self.kill()

    def crash(self, how="reset", wait=True, cold=False):
        """Restarts without any shutdown.

        "reset": the machine is gone and started again. "sysrq", "panic": the kernel ends itself.
        """
        if how == "reset":
            self.power_cut()
            self.boot(wait=wait, cold=cold)
            return
        if how == "panic":
            self.allow(r"sysrq: Trigger a crash|Kernel panic - not syncing: sysrq")
            self._expect_death = True
            with contextlib.suppress(VmError):
                self._agent.request("exec", cmd="echo c > /proc/sysrq-trigger").result(util.scaled(30))
            self.kill()
            self.boot(wait=wait, cold=cold)
            return
        with self.expect_reset(wait=wait, cold=cold):
            with contextlib.suppress(VmError):
                self._agent.request("exec", cmd="echo b > /proc/sysrq-trigger").result(util.scaled(30))

    @contextlib.contextmanager
    def expect_reset(self, timeout=60, wait=True, cold=False):
        """Inside, the machine restarts for whatever reason; afterwards it is up again."""
        before = self._resets
        machine = self._machine
        self._expect_reset += 1
        try:
            yield
            end = time.monotonic() + util.scaled(timeout)
            while self._resets == before:
                if time.monotonic() > end:
                    raise VmError(f"{self.name} was not restarted\n{self.console_tail()}")
                if not machine.runs:
                    raise HostDied(f"{self.name} ended, but not by a restart\n{self.console_tail()}")
                time.sleep(0.02)
        finally:
            self._expect_reset -= 1
        machine.process.wait(util.scaled(30))
        self.boot(wait=wait, cold=cold)

    @property
    def is_lost(self):
        """It does not answer and never will: off, or its kernel has panicked."""
        agent = self._agent
        return agent is None or agent._dead is not None

    @contextlib.contextmanager
    def expect_panic(self, pattern, timeout=60):
        """Inside, its kernel panics with a message like `pattern`; afterwards it is off.

        Like power_cut(), but a recorded disk has seen nothing else than what the guest did: QEMU
        itself flushes its disks whenever it stops a machine or ends, so it is killed.
        """
        self.allow(pattern)
        self._expect_death = True
        yield
        end = time.monotonic() + util.scaled(timeout)
        while not self.is_lost:
            if time.monotonic() > end:
                self._expect_death = False
                raise VmError(f"{self.name} has not panicked\n{self.console_tail()}")
            time.sleep(0.02)
        self.kill()

    def _unmount(self):
        self.run("sync; umount -a -t ext4,xfs,ext3,ext2 2>/dev/null; sync", timeout=60, check=False)

    def reboot(self, clean=True, wait=True, cold=False):
        """As an administrator: file systems unmounted, then the kernel's own restart."""
        if clean:
            self._unmount()
        with self.expect_reset(wait=wait, cold=cold):
            self._agent.request("reboot", how="restart")

    def shutdown(self, clean=True, timeout=60):
        """As an administrator; the machine is off afterwards."""
        if clean:
            self._unmount()
        self._expect_death = True
        self._agent.request("reboot", how="poweroff")
        try:
            self._machine.process.wait(util.scaled(timeout))
        except subprocess.TimeoutExpired:
            raise VmError(f"{self.name} does not switch off\n{self.console_tail()}") from None
        finally:
            self.kill()

    def pause(self):
        """Freezes the whole machine; resume() lets it go on."""
        self.qmp("stop")

    def resume(self):
        self.qmp("cont")

    def kill(self):
        """Ends QEMU, if it runs, without any remark."""
        self._expect_death = True
        machine, self._machine = self._machine, None
        if machine:
            machine.kill()

    # --- what the threads see --------------------------------------------------------------------

    def _on_hello(self, _info):
        if self._set_up is not None:
            self.failures.append(f"{self.name}: the guest agent died and was started again")
            self._agent.fail_all(HostReset(f"{self.name}: the guest agent died"))

    def _on_event(self, event, data):
        # QEMU runs with -no-reboot: a restart is its end, and boot() is what comes after it.
        if event == "SHUTDOWN" and data.get("reason") == "guest-reset":
            machine = self._machine
            if machine is None:
                return
            machine.restarts = True
            if not self._expect_reset:
                self.failures.append(f"{self.name} restarted unexpectedly")
            machine.agent.fail_all(HostReset(f"{self.name} was restarted"), forever=True)
            self._resets += 1

    def _on_lost(self, machine, reason):
        """Called at once when the machine is lost, so that nobody waits for it in vain."""
        error = HostDied(f"{self.name}: {reason}\n{machine.complaints()}{self.console_tail()}")
        if self._machine is machine and not (self._expect_death or machine.restarts):
            self.failures.append(str(error))
        machine.agent.fail_all(error, forever=True)

    def console_tail(self, lines=70):
        try:
            text = self.console.read_bytes()[-64000:].decode(errors="replace")
        except OSError:
            text = ""
        return f"--- console of {self.name}\n" + "\n".join(text.splitlines()[-lines:])

    # --- commands --------------------------------------------------------------------------------

    def _need_agent(self):
        agent = self._agent
        if agent is None:
            raise HostDied(f"{self.name} is off")
        if agent._dead:
            raise agent._dead
        if self._set_up is None or not agent.hello.is_set() or self._set_up != agent.info.get("boot_id"):
            self.wait_up()
        return agent

    def _ask(self, op, timeout=30, **args):
        return self._need_agent().request(op, **args).result(util.scaled(timeout))

    def _finish(self, cmd, future, limit):
        try:
            answer = future.result(limit)
        except AgentTimeout as e:
            raise AgentTimeout(f"{self.name}: {e}: {cmd}\n{self.console_tail(40)}") from None
        if "error" in answer:
            raise VmError(f"{self.name}: agent: {answer['error']}: {cmd}")
        return Result.of(answer)

    def start(self, cmd, timeout=600, check=True, stdin=None):
        """Runs `bash -c cmd` in the background; `timeout` (scaled) ends it."""
        if isinstance(cmd, (list, tuple)):
            cmd = shlex.join(str(c) for c in cmd)
        if isinstance(stdin, str):
            stdin = stdin.encode()
        limit = util.scaled(timeout)
        future = self._need_agent().request(
            "exec",
            cmd=cmd,
            timeout=limit,
            stdin=base64.b64encode(stdin).decode() if stdin is not None else None,
        )
        # The agent needs a moment for a command that even SIGKILL does not end.
        return Job(self, cmd, future, limit + util.scaled(20), check)

    def run(self, cmd, timeout=60, check=True, stdin=None):
        """Runs `bash -c cmd` (or a list of words) and gives its Result.

        With `check`, a status other than 0, or being over time, raises CommandFailed.
        """
        return self.start(cmd, timeout, check, stdin).wait()

    def put(self, data, path, mode=0o644):
        """Writes bytes, str, or the contents of a pathlib.Path to a file in the guest."""
        if isinstance(data, pathlib.Path):
            mode = data.stat().st_mode & 0o7777
            data = data.read_bytes()
        if isinstance(data, str):
            data = data.encode()
        for at in range(0, max(len(data), 1), CHUNK):
            piece = base64.b64encode(data[at : at + CHUNK]).decode()
            answer = self._ask("put", path=str(path), data=piece, append=at > 0, mode=mode)
            if "error" in answer:
                raise VmError(f"{self.name}: {answer['error']}")

    def get(self, path, offset=0, length=None):
        """Bytes of a file in the guest (not of a device: use run("dd …") there)."""
        out = bytearray()
        while length is None or len(out) < length:
            want = CHUNK if length is None else min(CHUNK, length - len(out))
            answer = self._ask("get", path=str(path), offset=offset + len(out), len=want)
            if "error" in answer:
                raise VmError(f"{self.name}: {answer['error']}")
            piece = base64.b64decode(answer["data"])
            out += piece
            if len(piece) < want:
                break
        return bytes(out)

    def qmp(self, command, **args):
        """A command to QEMU's monitor."""
        machine = self._machine
        if machine is None:
            raise HostDied(f"{self.name} is off")
        return machine.qmp(command, **args)

    # --- network ---------------------------------------------------------------------------------

    def mac(self, peer):
        """Of the card towards `peer`."""
        return f"52:54:00:4d:{self.number:02x}:{peer.number:02x}"

    def slot(self, peer):
        """Which of the cards, counted from 1, leads to `peer`."""
        return sorted(p.number for p in self.wires).index(peer.number) + 1

    def interface(self, peer):
        """Name of the interface towards `peer`."""
        return f"to-{peer.name}"

    def cut_link(self, peer, carrier=False):
        """Parts this host and `peer`, in both directions."""
        self.cluster.cut(self, peer, carrier)

    def heal_link(self, peer):
        self.cluster.heal(self, peer)

    def isolate(self, carrier=False):
        """Parts this host from all others."""
        for peer in self.wires:
            self.cluster.cut(self, peer, carrier)

    def shape_link(self, peer, delay_ms=0, jitter_ms=0, rate=None, loss=0, limit=20000, both=True):
        """Makes the line to `peer` long, narrow or lossy (tc netem); without arguments, normal.

        `rate` as tc has it ("50mbit"), `loss` in per cent; 100 cuts this direction only if `both`
        is false. It holds over reboots.
        """
        words = []
        if delay_ms:
            words.append(f"delay {delay_ms}ms" + (f" {jitter_ms}ms" if jitter_ms else ""))
        if loss:
            words.append(f"loss {loss}%")
        if rate:
            words.append(f"rate {rate}")
        text = f"netem limit {limit} " + " ".join(words) if words else ""
        for here, there in [(self, peer)] + ([(peer, self)] if both else []):
            here.shapes[there] = text
            if here.is_on:
                here.run(here._shape_command(there))

    def _shape_command(self, peer):
        dev = self.interface(peer)
        text = self.shapes.get(peer)
        if text:
            return f"tc qdisc replace dev {dev} root {text}"
        return f"tc qdisc del dev {dev} root 2>/dev/null || true"

    def _setup_script(self):
        lines = []
        if self._agent.info.get("copy"):
            lines += [
                f"echo {self._agent.info['boot_id']} > /run/boot_id",
                "mount --bind -o ro /run/boot_id /proc/sys/kernel/random/boot_id",
            ]
        lines += [
            f"echo {self.name} > /proc/sys/kernel/hostname",
            f"echo {self.name} > /etc/hostname",
            NAME_DISKS,
            "declare -A nic; for i in /sys/class/net/eth*; do [ -e $i ] || continue;"
            " read -r m < $i/address; nic[$m]=${i##*/}; done",
            "tar -x -C / --no-same-owner --no-overwrite-dir -f /dev/disk/by-serial/payload",
            "ip -batch - <<END",
            "link set lo up",
            f"addr add {self.ip}/32 dev lo",
        ]
        for peer in self.wires:
            dev = self.interface(peer)
            lines += [
                f"link set ${{nic[{mac(self.slot(peer))}]}} address {self.mac(peer)} name {dev} mtu {self.spec.mtu}",
                f"link set {dev} up",
                f"route add {peer.ip}/32 dev {dev} src {self.ip}",
            ]
        lines.append("END")
        names = ["127.0.0.1 localhost"] + [f"{h.ip} {h.name}" for h in self.cluster.hosts]
        lines.append(f"printf '%s\\n' {shlex.join(names)} > /etc/hosts")
        lines += [self._shape_command(p) for p, text in self.shapes.items() if text]
        for disk in self.disks:
            lines.append(
                f"[ /dev/disk/by-serial/{disk.spec.serial} -ef {disk.dev} ] || echo {disk.dev} is another disk >&2"
            )
        return "\n".join(lines)

    # --- disks -----------------------------------------------------------------------------------

    def disk(self, serial):
        """The Disk with this serial number; its `.dev` is the guest's name for it."""
        return next(d for d in self.disks if d.spec.serial == serial)

    def mount_mars(self, options=""):
        """Mounts the disk "mars" on /mars."""
        dev = self.disk("mars").dev
        self.run(f"mkdir -p /mars; mount -t ext4 {'-o ' + options if options else ''} {dev} /mars")

    # --- kernel log ------------------------------------------------------------------------------

    def allow(self, *patterns):
        """Kernel messages that this test expects; forgotten at its end."""
        self.allowed += patterns

    def sync_log(self):
        """Until everything the kernel said so far is in the console's file."""
        if not self.is_on or self._agent is None or self._agent._dead or not self._agent.hello.is_set():
            return
        self._marks += 1
        mark = f"mars-bench: mark {self.number}.{self._marks}."
        with contextlib.suppress(VmError):
            self._agent.request("exec", cmd=f"echo '<6>{mark}' > /dev/kmsg", timeout=10).result(util.scaled(15))
            end = time.monotonic() + util.scaled(5)
            while mark not in self.log() and time.monotonic() < end:
                time.sleep(0.02)

    def log(self):
        """What came over the console since the last check."""
        try:
            with open(self.console, "rb") as f:
                text = f.read()
        except OSError:
            return ""
        for start, end in reversed(self._boots_failed):
            if start >= self._log_seen:
                text = text[:start] + text[end:]
        return text[self._log_seen :].decode(errors="replace")

    def _console_size(self):
        with contextlib.suppress(OSError):
            return self.console.stat().st_size
        return 0

    def dmesg(self):
        """The kernel's log buffer."""
        return self.run("dmesg").stdout

    def check(self):
        """Everything that was wrong since the last check, as a list of texts."""
        self.sync_log()
        text = self.log()
        found = list(self.failures)
        found += [f"kernel log of {self.name}:\n{p}" for p in kernlog.problems(text, self.allowed)]
        self.failures.clear()
        self._log_seen = self._console_size()
        return found

    def leaks(self):
        """On the kernel of the debug lane, memory to which there is no pointer any more; texts."""
        if not lane.DEBUG or not self.is_on:
            return []
        text = self.run(lane.LEAKS, timeout=120).stdout
        found = text.count("unreferenced object")
        return [f"{self.name}: {found} leaked objects:\n{text[:20000]}"] if found else []

    # --- memory ----------------------------------------------------------------------------------

    def memory_snapshot(self):
        """Numbers (bytes) that must not grow from one round of a test to the next.

        meminfo: Slab, SUnreclaim, VmallocUsed, Percpu, KernelStack, MemAvailable. The last one includes the free
        pages that each processor keeps for itself: megabytes, which the kernel does not count as free. vmalloc:
        bytes of the areas that name mars, with their lines. slabs: active objects of each slab cache.
        """
        text = self.run(
            f"sync; echo 3 > /proc/sys/vm/drop_caches; {lane.FLUSH if lane.DEBUG else ':'}; cat /proc/meminfo; echo ==; "
            "grep -i mars /proc/vmallocinfo; echo ==; cat /proc/slabinfo; echo ==; cat /proc/zoneinfo"
        ).stdout
        meminfo, vmalloc, slabinfo, zoneinfo = text.split("==\n")
        numbers = {}
        for key, value in re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.M):
            numbers[key] = int(value) * 1024
        kept = sum(int(n) for n in re.findall(r"^\s+count:\s+(\d+)", zoneinfo, re.M))
        numbers["MemAvailable"] += kept * 4096
        lines = vmalloc.splitlines()
        slabs = {}
        for line in slabinfo.splitlines()[2:]:
            words = line.split()
            slabs[words[0]] = int(words[1])
        names = ("Slab", "SUnreclaim", "VmallocUsed", "Percpu", "KernelStack", "MemAvailable")
        return {
            **{n: numbers.get(n, 0) for n in names},
            "vmalloc_mars": sum(int(l.split()[1]) for l in lines),
            "vmalloc_lines": lines,
            "slabs": slabs,
        }

    # --- end of a test ---------------------------------------------------------------------------

    def save_state(self):
        """What an author wants to see after a failure, in <name>.state beside the console."""
        if not self.is_on or self._set_up is None:
            return
        with contextlib.suppress(VmError):
            future = self._agent.request("exec", cmd=_STATE, timeout=util.scaled(10))
            result = Result.of(future.result(util.scaled(15)))
            text = result.stdout if isinstance(result.stdout, str) else repr(result.stdout)
            (self.cluster.log_dir / f"{self.name}.state").write_text(f"{text}\n{result.stderr}\n")
        # Into the console's file: the stacks of everything that waits in the kernel.
        with contextlib.suppress(VmError):
            self._agent.request("exec", cmd="echo w > /proc/sysrq-trigger", timeout=10).result(util.scaled(10))

    def unload(self):
        """Ends whatever uses the module and takes it out; raises CommandFailed if it stays."""
        self.run(_UNLOAD, timeout=90)


_STATE = r"""
show() { echo "=== $*"; "$@" 2>&1; }
show uptime
show lsmod
show cat /proc/mounts
show df /mars
[ ! -d /mars ] || show find /mars -printf '%P %y %s %T@ %l\n'
show ls -la /dev/mars
[ ! -d /proc/sys/mars ] || show grep -r . /proc/sys/mars
show ps axo pid,stat,wchan:32,comm,args
for p in /proc/[0-9]*; do
    read -r name < $p/comm
    case $name in mars*|*marsadm*) echo "=== stack of $name ${p#/proc/}"; cat $p/stack;; esac
done
show ip -s link
show ss -tanp
show tail -n 200 /tmp/*.log
"""

_UNLOAD = r"""
[ -e /sys/module/mars ] || exit 0
me=$BASHPID
agent=$PPID
for p in /proc/[0-9]*; do
    pid=${p#/proc/}
    # Kernel threads have no executable.
    [ -e $p/exe ] || continue
    [ $pid = 1 ] || [ $pid = $me ] || [ $pid = $agent ] || kill -9 $pid 2>/dev/null
done
cd /
swapoff -a
dmsetup remove_all -f >/dev/null 2>&1
for n in 1 2 3; do
    awk '$1 ~ "^/dev/" && $2 != "/" || $2 ~ "^/(mars|mnt)(/|$)" { print $2 }' /proc/mounts |
        sort -r | while read -r at; do umount "$at" 2>/dev/null || [ $n -lt 3 ] || umount -l "$at"; done
done
dmsetup remove_all -f >/dev/null 2>&1
timeout 60 rmmod mars || { echo "rmmod mars: failed" >&2; cat /proc/mounts; lsmod | head; exit 1; }
"""


def environment():
    """What is worth knowing about a run, for its header."""
    return f"accelerator {accel.name()}, time limits x{util.time_scale():g}, {'debug kernel, ' if lane.DEBUG else ''}disks in {util.disk_folder()}, cpus {os.cpu_count()}"
