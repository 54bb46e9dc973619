# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes cpio archives of the "newc" kind, which the kernel unpacks as initramfs."""

import stat


class Writer:
    """Folders are made as needed, everything belongs to root."""

    def __init__(self):
        self._out = bytearray()
        self._seen = set()
        self._inode = 700000

    def _entry(self, name, mode, data=b""):
        name_bytes = name.encode() + b"\0"
        self._inode += 1
        fields = [self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name_bytes), 0]
        self._out += b"070701" + b"".join(b"%08X" % f for f in fields) + name_bytes
        self._out += b"\0" * (-len(self._out) % 4)
        self._out += data
        self._out += b"\0" * (-len(self._out) % 4)

    def add(self, path, data, mode=0o644):
        """A regular file at `path` (from the archive's root)."""
        parts = path.strip("/").split("/")
        for n in range(1, len(parts)):
            folder = "/".join(parts[:n])
            if folder not in self._seen:
                self._seen.add(folder)
                self._entry(folder, stat.S_IFDIR | 0o755)
        self._entry("/".join(parts), stat.S_IFREG | mode, data)

    def bytes(self):
        self._entry("TRAILER!!!", 0)
        out = bytes(self._out)
        return out + b"\0" * (-len(out) % 512)
