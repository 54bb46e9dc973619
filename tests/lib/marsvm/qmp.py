# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor, over an already connected socket."""

import json
import queue
import socket
import threading

from .errors import VmError


class Qmp:
    """`on_event(name, data)` is called from the reader's thread."""

    def __init__(self, sock, on_event):
        self._sock = sock
        self._on_event = on_event
        self._lock = threading.Lock()
        self._answers = queue.Queue()
        self._greeting = threading.Event()
        threading.Thread(target=self._read, daemon=True, name="qmp").start()

    def start(self, timeout=60):
        if not self._greeting.wait(timeout):
            raise VmError("QEMU's monitor does not greet")
        self.execute("qmp_capabilities", timeout=timeout)

    def execute(self, command, timeout=60, **args):
        with self._lock:
            message = {"execute": command}
            if args:
                message["arguments"] = {k.replace("_", "-"): v for k, v in args.items()}
            try:
                self._sock.sendall(json.dumps(message).encode() + b"\n")
                answer = self._answers.get(timeout=timeout)
            except (OSError, queue.Empty) as e:
                raise VmError(f"QEMU's monitor: no answer to {command} ({e!r})") from e
        if answer is None:
            self._answers.put(None)
            raise VmError(f"QEMU has ended before it answered {command}")
        if "error" in answer:
            raise VmError(f"QEMU: {command}: {answer['error'].get('desc')}")
        return answer.get("return")

    def _read(self):
        with self._sock.makefile("rb") as lines:
            try:
                for line in lines:
                    message = json.loads(line)
                    if "QMP" in message:
                        self._greeting.set()
                    elif "event" in message:
                        self._on_event(message["event"], message.get("data", {}))
                    elif "return" in message or "error" in message:
                        self._answers.put(message)
            except (OSError, ValueError):
                pass
        self._answers.put(None)

    def close(self):
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()
