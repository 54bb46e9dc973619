# SPDX-License-Identifier: GPL-2.0-or-later
"""The real tree that is copied: a part of the kernel's source, as a read-only disk image.

It is made once and kept in the cache. Besides the files it has a list of them in an order that mixes big and small ones
evenly, so that the speed of copying is about the same at any time, and their checksums.
"""

import dataclasses
import hashlib
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import typing

from marsvm.util import CACHE

# Enough bytes and files; the folders are taken in this order until there is enough of both.
BYTES = 160 << 20
FILES = 5200
ALWAYS = ("fs", "net", "kernel", "mm")
# Big files, then small ones.
FOR_BYTES = ("drivers/gpu/drm/amd/include", "drivers/net")
FOR_FILES = ("drivers/net", "drivers/block", "drivers/media", "include")
RECIPE = "2"


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of the image: tree/, list (one path per line), sums (as sha256sum has them)."""

    image: pathlib.Path
    sums: str
    files: int
    size: int
    # What a file system with blocks of 4 KiB needs for it.
    blocks: int


def _walk(top: pathlib.Path, folder: str) -> typing.Iterator[tuple[str, int]]:
    for path, folders, files in os.walk(top / folder):
        folders.sort()
        for name in sorted(files):
            full = pathlib.Path(path, name)
            if full.is_file() and not full.is_symlink():
                yield str(full.relative_to(top)), full.stat().st_size


def _choose(top: pathlib.Path) -> dict[str, int]:
    chosen: dict[str, int] = {}
    for folder in ALWAYS:
        chosen.update(_walk(top, folder))
    for folders, enough in (
        (FOR_BYTES, lambda: sum(chosen.values()) >= BYTES),
        (FOR_FILES, lambda: len(chosen) >= FILES),
    ):
        for folder in folders:
            for path, size in _walk(top, folder):
                if enough():
                    break
                chosen[path] = size
    if sum(chosen.values()) < BYTES or len(chosen) < FILES:
        raise FileNotFoundError(f"{top} has too few files: is the kernel's source complete? Run scripts/buildenv")
    return chosen


def make() -> Source:
    """Makes the image, unless that was done before."""
    top = pathlib.Path(os.environ["MARS_KSRC"])
    version = os.environ.get("MARS_KVER", "")
    folder = CACHE / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{RECIPE} {version} {BYTES} {FILES}".encode()).hexdigest()[:12]
    image, sums = folder / f"source-{key}.ext4", folder / f"source-{key}.sums"
    if not (image.exists() and sums.exists()):
        _build(top, folder, image, sums)
    text = sums.read_text()
    lines = text.splitlines()
    head = lines[0].split()
    return Source(image, "\n".join(lines[1:]) + "\n", int(head[1]), int(head[2]), int(head[3]))


def _build(top: pathlib.Path, folder: pathlib.Path, image: pathlib.Path, sums: pathlib.Path) -> None:
    chosen = _choose(top)
    # On the same file system as the source: links instead of copies.
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="tmp-", dir=folder))
    try:
        lines = []
        for path in chosen:
            target = tmp / "top" / "tree" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(top / path, target)
            except OSError:
                shutil.copyfile(top / path, target)
            lines.append(f"{hashlib.sha256(target.read_bytes()).hexdigest()}  {path}\n")
        names = list(chosen)
        random.Random(1).shuffle(names)
        (tmp / "top" / "list").write_text("".join(f"{n}\n" for n in names))
        size = sum((s + 4095) // 4096 * 4096 for s in chosen.values())
        made = tmp / "image"
        subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", str(len(chosen) * 2)]
            + ["-d", str(tmp / "top"), str(made), f"{size // 1024 * 11 // 10 + 16384}k"],
            check=True,
            timeout=300,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )
        listed = tmp / "sums"
        listed.write_text(f"# {len(chosen)} {sum(chosen.values())} {size}\n" + "".join(lines))
        listed.rename(sums)
        made.rename(image)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
