# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demonstration prints: steps, live progress, and a table at the end; on a terminal and in a log."""

import contextlib
import shutil
import sys
import time
import typing

MIB = 1 << 20


class Show:
    """Everything that is printed, and the rows of the final table."""

    # Lines of progress in a log, where they can't be overwritten.
    LOG_INTERVAL = 3.0

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.rows: list[tuple[str, str, str]] = []
        self.failed = False
        self._tty = sys.stdout.isatty()
        self._open_line = False
        self._last = 0.0

    def line(self, text: str = "") -> None:
        self._finish_line()
        print(text, flush=True)

    def _finish_line(self) -> None:
        if self._open_line:
            sys.stdout.write("\n")
            self._open_line = False

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""
        if self._tty:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write("\r\033[K" + text[:width])
            sys.stdout.flush()
            self._open_line = True
        elif time.monotonic() - self._last >= self.LOG_INTERVAL:
            print(text, flush=True)
            self._last = time.monotonic()

    @contextlib.contextmanager
    def step(self, title: str) -> typing.Iterator["Step"]:
        """A step; when it ends without an exception, it is a row of the table."""
        self.line(f"\n== {title}   [{time.monotonic() - self.start:.0f} s]")
        step = Step(self)
        begun = time.monotonic()
        try:
            yield step
        except BaseException:
            self.row(title, f"{time.monotonic() - begun:.1f} s", False)
            raise
        detail = f"{time.monotonic() - begun:.1f} s" + (f", {step.detail}" if step.detail else "")
        self.row(title, detail, step.passed)
        self.line(f"   {detail}{'' if step.passed else '   FAIL'}")

    def row(self, what: str, how: str, passed: bool) -> None:
        self.rows.append((what, how, "PASS" if passed else "FAIL"))
        self.failed |= not passed

    def table(self) -> None:
        widths = [max(len(row[i]) for row in self.rows) for i in range(2)]
        self.line()
        for what, how, word in self.rows:
            self.line(f"{what.ljust(widths[0])}  {how.ljust(widths[1])}  {word}")
        seconds = time.monotonic() - self.start
        self.line(f"\n{'FAIL' if self.failed else 'PASS'}: {len(self.rows)} steps in {seconds:.0f} s")


class Step:
    """What a step wants to have said at its end."""

    def __init__(self, show: Show):
        self._show = show
        self.detail = ""
        self.passed = True

    def say(self, text: str) -> None:
        self._show.line(f"   {text}")

    def check(self, passed: bool, text: str) -> None:
        """A claim of this step: said, and remembered if it does not hold."""
        self.say(("" if passed else "FAIL: ") + text)
        self.passed &= passed


def mib(size: float | None) -> str:
    return "?" if size is None else f"{size / MIB:.1f}"
