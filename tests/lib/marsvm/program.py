# SPDX-License-Identifier: GPL-2.0-or-later
"""Small Rust programs of one file that run inside the guests."""

import hashlib
import pathlib
import subprocess
import tempfile

from .util import BUILD


def build(source: pathlib.Path) -> pathlib.Path:
    """Compiles a file with plain rustc, unless that was done before."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    out = BUILD / "programs" / f"{source.stem}-{digest}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        # Two tests at a time may want it, and rustc names its own files by the name of the program alone.
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            made = pathlib.Path(folder) / source.stem
            subprocess.run(
                ["rustc", "-O", "--edition", "2021", "-C", "strip=symbols", str(source), "-o", str(made)],
                check=True,
                timeout=300,
            )
            made.rename(out)
    return out
