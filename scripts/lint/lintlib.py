# SPDX-License-Identifier: GPL-2.0-or-later
"""What the checks of this folder have in common."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def tracked_files(*patterns):
    """Return the files that belong to the project, as paths relative to ROOT."""
    result = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = (pathlib.Path(name) for name in result.stdout.split("\0") if name)
    return sorted({path for path in paths if (ROOT / path).is_file()})


def read_text(path):
    """Return a file's text, or None when it is not text."""
    data = (ROOT / path).read_bytes()
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


_RUST_TOKEN = re.compile(
    r"""
    (?P<line>//[^\n]*)
  | (?P<block>/\*.*?\*/)
  | (?P<raw>\bb?c?r(?P<hashes>\#*)".*?"(?P=hashes))
  | (?P<string>\bb?c?"(?:\\.|[^"\\])*"|"(?:\\.|[^"\\])*")
  | (?P<char>'(?:\\(?:[^u\n]|u\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2})|[^\\'\n])')
    """,
    re.VERBOSE | re.DOTALL,
)


def rust_code(text):
    """Return Rust source with comments and literals blanked, lines kept."""
    return _RUST_TOKEN.sub(lambda match: re.sub(r"[^\n]", " ", match.group(0)), text)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


class Report:
    """Collects complaints; finish() ends the program accordingly."""

    def __init__(self):
        self.complaints = []

    def add(self, path, line, message):
        complaint = f"{path}:{line}: {message}" if line else f"{path}: {message}"
        if complaint not in self.complaints:
            self.complaints.append(complaint)

    def finish(self):
        for complaint in self.complaints:
            print(complaint)
        sys.exit(1 if self.complaints else 0)
