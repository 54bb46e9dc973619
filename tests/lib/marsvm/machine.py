# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU process with its two lines: to the guest's agent and to QEMU's monitor."""

import concurrent.futures
import contextlib
import socket
import subprocess
import threading
import time

from . import accel
from . import kernlog
from . import lane
from .agent import Agent
from .errors import HostDied
from .errors import VmError
from .qmp import Qmp

# QEMU's processes die with the *thread* that started them (PR_SET_PDEATHSIG), so that is one thread
# which lives as long as this process.
_starter = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="qemu")

# Cheap in an emulated machine, addresses as in the symbol table, one panic and then silence.
CMDLINE = (
    "console=ttyS0 ignore_loglevel printk.devkmsg=on log_buf_len=4M panic=0 oops=panic nokaslr "
    "tsc=reliable clocksource=tsc no_timer_check mitigations=off audit=0 net.ifnames=0 "
    "rcupdate.rcu_cpu_stall_timeout=60 watchdog_thresh=30 random.trust_cpu=on "
    "sysctl.kernel.hung_task_timeout_secs=60 rdinit=/init"
)
if lane.DEBUG:
    CMDLINE += f" {lane.CMDLINE}"

# The disk that carries module and tools (marsvm.payload); its letter is the last one.
PAYLOAD_SIZE = 96 << 20

# A machine has at least so many network cards: clusters of one to three hosts share a template.
MIN_CARDS = 2

# In the guest: links from the disks' serial numbers to their devices; there is no udev.
NAME_DISKS = (
    "[ -e /dev/disk/by-serial/root ] || { mkdir -p /dev/disk/by-serial; for d in /sys/block/vd*; do"
    " s=; read -r s < $d/serial; ln -sf ../../${d##*/} /dev/disk/by-serial/$s; done; }"
)


def arguments(spec, accelerator, files, ram=None):
    """QEMU's options for a machine like `spec`, without disks and network.

    `files`: (vmlinuz, image, initrd, …). `ram`: options of a memory backend; plain memory without.
    """
    mem = lane.memory(spec.mem)
    machine = "q35,hpet=off" + (",memory-backend=ram" if ram else "")
    return [
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", machine,
        *accel.arguments(accelerator),
        "-smp", str(spec.cpus), "-m", f"{mem}M",
        *(["-object", f"memory-backend-file,id=ram,size={mem}M,{ram}"] if ram else []),
        "-kernel", files[0], "-initrd", files[2], "-append", f"{CMDLINE} {spec.append}".strip(),
        "-device", "virtio-serial-pci,addr=0x2",
        "-device", "virtserialport,chardev=agent,name=mars.agent",
        "-device", "virtio-rng-pci,addr=0x3",
        "-blockdev", f"driver=file,node-name=root,filename={files[1]},read-only=on,auto-read-only=off",
        "-device", "virtio-blk-pci,drive=root,serial=root,addr=0xf",
    ]  # fmt: skip


def payload_disk(path):
    """QEMU's options for it."""
    return [
        "-blockdev",
        f"driver=file,node-name=payload,filename={path},read-only=on,auto-read-only=off",
        "-device",
        "virtio-blk-pci,drive=payload,serial=payload,addr=0x1e",
    ]


def mac(slot):
    """Of the card in a slot, as long as the guest gives it no other."""
    return f"52:54:00:4d:00:{slot:02x}"


def card(slot):
    """QEMU's options for a network card; its other side is the hub port c<slot>."""
    return [
        "-netdev",
        f"hubport,id=c{slot},hubid={slot}",
        "-device",
        f"virtio-net-pci,netdev=c{slot},mac={mac(slot)},addr={4 + slot:#x},romfile=",
    ]


class Machine:
    """Starts QEMU. The three functions are called from threads of this object:

    on_hello(info) when the guest's agent starts, on_event(name, data) for the monitor's events,
    on_lost(machine, reason) once, when QEMU has ended or the guest's kernel has panicked.
    """

    def __init__(self, name, argv, console, log, *, descriptors=(), on_hello=None, on_event=None, on_lost=None):
        self.name = name
        self.console = console
        self._log = log
        self.restarts = False
        self._on_lost = on_lost or (lambda *_: None)
        agent_sock, agent_child = socket.socketpair()
        qmp_sock, qmp_child = socket.socketpair()
        agent_sock.settimeout(2.0)
        argv = [
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-name", name,
            "-chardev", f"file,id=con,path={console},append=on", "-serial", "chardev:con",
            "-chardev", f"socket,id=qmp,fd={qmp_child.fileno()}", "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=agent,fd={agent_child.fileno()}",
            *argv,
        ]  # fmt: skip
        self._seen = console.stat().st_size if console.exists() else 0
        with open(log, "ab") as out:
            self.process = _starter.submit(
                subprocess.Popen,
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(agent_child.fileno(), qmp_child.fileno(), *descriptors),
            ).result()
        agent_child.close()
        qmp_child.close()
        self.agent = Agent(agent_sock, on_hello or (lambda _: None))
        self._qmp = Qmp(qmp_sock, on_event or (lambda *_: None))
        threading.Thread(target=self._watch, daemon=True, name=f"watch-{name}").start()
        try:
            self._qmp.start()
        except VmError as e:
            self.kill()
            raise HostDied(f"{name}: {e}\n{self.complaints()}") from e

    @property
    def runs(self):
        return self.process.poll() is None

    def qmp(self, command, **args):
        return self._qmp.execute(command, **args)

    def migrate(self, path, incoming=False, timeout=60):
        """Writes the state without the memory, which lies in a file of its own; or reads it."""
        ignore = [{"capability": "x-ignore-shared", "state": True}]
        self.qmp("migrate-set-capabilities", capabilities=ignore)
        self.qmp("migrate-incoming" if incoming else "migrate", uri=f"file:{path}")
        end = time.monotonic() + timeout
        while True:
            info = self.qmp("query-migrate")
            status = info.get("status", "none")
            if status == "completed":
                return
            if status in ("failed", "cancelled") or time.monotonic() > end:
                raise VmError(f"{self.name}: migration: {status}: {info.get('error-desc')}")
            time.sleep(0.02)

    def complaints(self):
        """What QEMU itself has printed."""
        with contextlib.suppress(OSError):
            text = self._log.read_text(errors="replace").strip()
            if text:
                return f"QEMU says: {text[-2000:]}\n"
        return ""

    def kill(self):
        """Ends QEMU at once, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self.agent.fail_all(HostDied(f"{self.name} was switched off"), forever=True)
        self.agent.close()
        self._qmp.close()

    def _watch(self):
        rest = ""
        while True:
            if (rc := self.process.poll()) is not None:
                self._on_lost(self, f"QEMU ended with status {rc}")
                return
            with contextlib.suppress(OSError), open(self.console, "rb") as f:
                f.seek(self._seen)
                new = f.read()
                self._seen += len(new)
                rest = (rest + new.decode(errors="replace"))[-4096:]
            if kernlog.FATAL.search(rest):
                # The rest of its last words.
                time.sleep(1.0)
                self._on_lost(self, "its kernel panicked")
                return
            time.sleep(0.2)
