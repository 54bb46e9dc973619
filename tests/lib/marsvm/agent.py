# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench's end of the guest agent's line (userspace/guest-agent/src/proto.rs)."""

import itertools
import json
import socket
import threading
import time

from .errors import AgentTimeout
from .errors import HostReset


class Future:
    """The answer that will come, or the reason why it won't."""

    def __init__(self, ident):
        self.ident = ident
        self._done = threading.Event()
        self._value = None
        self._error = None

    def done(self):
        return self._done.is_set()

    def set(self, value=None, error=None):
        if not self._done.is_set():
            self._value, self._error = value, error
            self._done.set()

    def result(self, timeout):
        if not self._done.wait(timeout):
            raise AgentTimeout(f"the guest agent gave no answer within {timeout:.0f} s")
        if self._error:
            raise self._error
        return self._value


class Agent:
    """Thread safe. `on_hello(dict)` is called from the reader's thread at each start of the agent."""

    def __init__(self, sock, on_hello):
        self._sock = sock
        self._on_hello = on_hello
        self._send_lock = threading.Lock()
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._pending = {}
        self._dead = None
        self.hello = threading.Event()
        self.info = {}
        threading.Thread(target=self._read, daemon=True, name="agent").start()

    def request(self, op, **args):
        with self._lock:
            if self._dead:
                raise self._dead
            future = Future(next(self._ids))
            self._pending[future.ident] = future
        message = {"id": future.ident, "op": op}
        message.update((k, v) for k, v in args.items() if v is not None)
        data = memoryview(json.dumps(message).encode() + b"\n")
        # A guest that hangs doesn't read; that must not hang the bench.
        end = time.monotonic() + 120
        with self._send_lock:
            while data:
                try:
                    data = data[self._sock.send(data) :]
                except socket.timeout:
                    if time.monotonic() > end:
                        raise AgentTimeout("the guest agent does not read") from None
                except OSError as e:
                    raise self._dead or HostReset(f"the line to the agent broke: {e}") from e
        return future

    def fail_all(self, error, forever=False):
        """Nobody will answer any more what was asked so far (or, `forever`, what will be)."""
        with self._lock:
            pending, self._pending = self._pending, {}
            if forever and not self._dead:
                self._dead = error
        for future in pending.values():
            future.set(error=error)

    def _read(self):
        buffer = bytearray()
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except socket.timeout:
                continue
            except OSError:
                return
            if not data:
                return
            scan = len(buffer)
            buffer += data
            start = 0
            while (end := buffer.find(b"\n", max(scan, start))) >= 0:
                self._line(bytes(buffer[start:end]))
                start = end + 1
            del buffer[:start]

    def _line(self, line):
        try:
            message = json.loads(line)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if "hello" in message:
            self.info = message
            self._on_hello(message)
            self.hello.set()
            return
        with self._lock:
            future = self._pending.pop(message.get("id"), None)
        if future:
            future.set(message)

    def close(self):
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()
