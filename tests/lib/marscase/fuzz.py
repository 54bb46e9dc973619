# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends garbage to the ports of a member. Runs inside a machine, so it needs nothing but Python.

usage: fuzz.py ADDRESS SECONDS SEED UUID KEYFILE

Strangers send bytes, frames, and halves of handshakes; then someone who knows the key sends requests of which no
field is sure. Prints one line of JSON: how many of each kind, and what came back.
"""

import collections
import hashlib
import hmac
import json
import random
import socket
import struct
import sys
import time

BASE = 7777
PURPOSE_PORT = {0: BASE, 1: BASE + 1, 2: BASE + 2, 3: BASE}
REQUESTS = {
    0: (0x10, 0x12, 0x16, 0x18),
    1: (0x20,),
    2: (0x30, 0x32, 0x34),
    3: (0x10, 0x16, 0x18),
}
FLAG_MAC = 0x0100

_TABLE = []
for _n in range(256):
    for _ in range(8):
        _n = (_n >> 1) ^ (0x82F63B78 if _n & 1 else 0)
    _TABLE.append(_n)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def field(tag, kind, value):
    return struct.pack("<HHI", tag, kind, len(value)) + value


def uint(tag, value):
    return field(tag, 1, struct.pack("<Q", value & (2**64 - 1)))


def text(tag, value):
    return field(tag, 2, value.encode())


def header(kind, payload, flags=0, ident=0, length=None, crc=None):
    length = len(payload) if length is None else length
    crc = crc32c(payload) if crc is None else crc
    head = b"MRS2" + struct.pack("<HHIII", kind, flags, ident, length, crc)
    return head + struct.pack("<I", crc32c(head))


def frame(kind, payload, **more):
    return header(kind, payload, **more) + payload


class Closed(Exception):
    """The other side has ended the connection, as it may."""


class Line:
    """One connection."""

    def __init__(self, address, port):
        self.sock = socket.create_connection((address, port), timeout=5)
        # An answer that takes longer is not worth waiting for: there is much to send.
        self.sock.settimeout(1)
        self.key = None
        self.count_out = 0

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError as e:
            raise Closed from e

    def read(self, length):
        data = b""
        while len(data) < length:
            try:
                piece = self.sock.recv(length - len(data))
            except OSError as e:
                raise Closed from e
            if not piece:
                raise Closed
            data += piece
        return data

    def receive(self):
        head = self.read(24)
        assert head[:4] == b"MRS2", head
        kind, flags, _ident, length, _crc = struct.unpack("<HHIII", head[4:20])
        assert length <= (1 << 20) + (64 << 10), length
        payload = self.read(length)
        if flags & FLAG_MAC:
            self.read(16)
        return kind, payload

    def request(self, kind, payload, **more):
        """With the code of an authenticated connection, if it is one."""
        if self.key is None:
            self.send(frame(kind, payload, **more))
            return
        data = frame(kind, payload, flags=FLAG_MAC, **more)
        code = hmac.new(self.key, struct.pack("<Q", self.count_out) + data, hashlib.sha256).digest()[:16]
        self.count_out += 1
        self.send(data + code)

    def close(self):
        self.sock.close()


def hello(rng, uuid, purpose, host="hostb"):
    features = 1 if purpose in (0, 3) else 0
    return b"".join(
        (
            uint(1, 2),
            uint(2, 2),
            uint(3, features),
            uint(4, features),
            text(5, host),
            text(6, uuid),
            uint(7, purpose),
            field(8, 3, rng.randbytes(32)),
            text(9, "fuzz"),
        )
    )


def nonce_of(payload, tag):
    at = 0
    while at + 8 <= len(payload):
        t, _kind, length = struct.unpack("<HHI", payload[at : at + 8])
        if t == tag:
            return payload[at + 8 : at + 8 + length]
        at += 8 + length
    return b""


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        how = rng.randrange(4)
        if how == 0 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how == 1 and data:
            del data[rng.randrange(len(data)) :]
        elif how == 2:
            at = rng.randint(0, len(data))
            data[at:at] = rng.randbytes(rng.randint(1, 20))
        elif data:
            at = rng.randrange(len(data))
            data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x01\0"))
    return bytes(data)


NUMBERS = (0, 1, 2, 511, 512, 4096, 1 << 20, 1 << 22, 1 << 31, 1 << 32, (1 << 63) - 512, (1 << 63), (1 << 64) - 1)
TEXTS = ("data", "hosta", "hostb", "", "nobody", "..", "a/b", "x" * 63, "x" * 300, "däta", "(any)", "../../etc/passwd")


def some_fields(rng):
    payload = b""
    for _ in range(rng.randint(0, 9)):
        tag = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 15, rng.randrange(65536)))
        how = rng.randrange(5)
        if how < 2:
            payload += uint(tag, rng.choice(NUMBERS))
        elif how == 2:
            payload += text(tag, rng.choice(TEXTS))
        elif how == 3:
            payload += field(tag, rng.randrange(9), rng.randbytes(rng.randint(0, 40)))
        else:
            payload += struct.pack("<HHI", tag, rng.randrange(9), rng.choice(NUMBERS) & 0xFFFFFFFF)
    return payload


def good_fields(rng, kind):
    """Almost right."""
    number = rng.choice(NUMBERS)
    if kind == 0x20:
        return b"".join(
            (
                text(1, "data"),
                uint(2, rng.randrange(4)),
                text(3, rng.choice(("hosta", "hostb", "nobody"))),
                uint(4, number),
                uint(5, rng.choice((512, 1 << 20, 511, 0, number))),
                uint(6, rng.randrange(50)),
                uint(7, rng.choice((0, number))),
            )
        )
    if kind == 0x30:
        return text(1, "data") + uint(2, number) + uint(3, rng.choice((512, 1 << 22, number))) + uint(4, rng.choice((4096, number)))
    if kind == 0x32:
        return text(1, "data") + uint(2, number) + uint(3, rng.choice((512, 1 << 20, number)))
    if kind == 0x34:
        return text(1, rng.choice(TEXTS[:5]))
    if kind == 0x10:
        return uint(1, number) + uint(2, rng.choice(NUMBERS)) + uint(3, rng.randrange(50))
    if kind == 0x18:
        return text(1, rng.choice(TEXTS[:5]))
    return b""


class Fuzzer:
    """Counts what it does."""

    def __init__(self, address, seed, uuid, key):
        self.address, self.uuid, self.key = address, uuid, key
        self.rng = random.Random(seed)
        self.counts = collections.Counter()

    def garbage(self, line):
        line.send(self.rng.randbytes(self.rng.randint(1, 3000)))

    def bad_frame(self, line):
        rng = self.rng
        payload = rng.randbytes(rng.randint(0, 300))
        kind = rng.choice((1, 2, 3, 5, 0x10, 0x20, 0x30, 0x32, rng.randrange(65536)))
        more = {}
        if rng.random() < 0.5:
            more["length"] = rng.choice((0, 1, 4096, 4097, 1 << 20, 1 << 31, (1 << 32) - 1))
        if rng.random() < 0.3:
            more["crc"] = rng.getrandbits(32)
        if rng.random() < 0.3:
            more["flags"] = rng.getrandbits(16)
        data = frame(kind, payload, **more)
        if rng.random() < 0.3:
            data = mutate(rng, data)
        line.send(data)

    def bad_hello(self, line):
        line.send(frame(1, mutate(self.rng, hello(self.rng, self.uuid, self.rng.randrange(5)))))

    def cut_hello(self, line):
        data = frame(1, hello(self.rng, self.uuid, 0))
        line.send(data[: self.rng.randrange(len(data))])

    def bad_proof(self, line):
        line.send(frame(1, hello(self.rng, self.uuid, self.purpose(line))))
        kind, _payload = line.receive()
        self.counts[f"challenged {kind}"] += 1
        payload = field(15, 3, self.rng.randbytes(32))
        line.send(frame(3, payload if self.rng.random() < 0.5 else mutate(self.rng, payload)))

    def purpose(self, line):
        port = line.sock.getpeername()[1]
        return self.rng.choice([p for p, q in PURPOSE_PORT.items() if q == port])

    def login(self, line):
        purpose = self.purpose(line)
        mine = hello(self.rng, self.uuid, purpose)
        line.send(frame(1, mine))
        kind, theirs = line.receive()
        if kind != 2:
            raise Closed

        def digest(data):
            return hashlib.sha256(data).digest()

        nonces = nonce_of(theirs, 5) + nonce_of(mine, 8)
        seen = nonces + digest(mine) + digest(theirs)
        proof = hmac.new(self.key, b"mars2 client    " + seen + digest(b""), hashlib.sha256).digest()
        line.send(frame(3, field(15, 3, proof)))
        kind, _payload = line.receive()
        self.counts[f"welcomed {kind}"] += 1
        if kind != 4:
            raise Closed
        if purpose in (0, 3):
            line.key = hmac.new(self.key, b"mars2 key c to s" + seen, hashlib.sha256).digest()
        return purpose

    def member(self, line):
        """Knows the key, and still sends nonsense."""
        rng = self.rng
        purpose = self.login(line)
        for n in range(rng.randint(1, 12)):
            kind = rng.choice(REQUESTS[purpose])
            if rng.random() < 0.15:
                # Also kinds that do not belong here; nothing that changes the tree.
                kind = rng.choice((0x11, 0x15, 0x17, 0x20, 0x30, 0x32, 0x34, 0x35, 0x7F, 0))
            payload = good_fields(rng, kind) if rng.random() < 0.6 else some_fields(rng)
            if rng.random() < 0.2:
                payload = mutate(rng, payload)
            line.request(kind, payload, ident=n)
            self.counts["requests"] += 1
            if kind != 0x12 and rng.random() < 0.7:
                answer, _payload = line.receive()
                self.counts[f"answer {answer:#x}"] += 1
        if rng.random() < 0.3:
            line.send(mutate(rng, frame(0x16, b"")))

    def crowd(self, line):
        """Many that say nothing."""
        port = line.sock.getpeername()[1]
        lines = [Line(self.address, port) for _ in range(self.rng.randint(5, 40))]
        for other in lines:
            other.close()

    def once(self):
        ways = (
            self.garbage,
            self.bad_frame,
            self.bad_frame,
            self.bad_hello,
            self.cut_hello,
            self.bad_proof,
            self.member,
            self.member,
            self.member,
            self.crowd,
        )
        way = self.rng.choice(ways)
        port = BASE + self.rng.randrange(3)
        self.counts[f"{way.__name__} {port}"] += 1
        try:
            line = Line(self.address, port)
        except OSError:
            self.counts["not connected"] += 1
            time.sleep(0.05)
            return
        try:
            way(line)
            if self.rng.random() < 0.5:
                line.sock.settimeout(0.2)
                answer, _payload = line.receive()
                self.counts[f"end {answer:#x}"] += 1
        except (Closed, OSError):
            self.counts["closed"] += 1
        finally:
            line.close()


def main():
    address, seconds, seed, uuid, keyfile = sys.argv[1:]
    with open(keyfile, encoding="ascii") as f:
        key = bytes.fromhex(f.read().strip())
    fuzzer = Fuzzer(address, int(seed), uuid, key)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        fuzzer.once()
    print(json.dumps(fuzzer.counts))


if __name__ == "__main__":
    main()
