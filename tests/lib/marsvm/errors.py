# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong with a test machine."""


class VmError(Exception):
    """Base of all errors of the bench."""


class HostDied(VmError):
    """The machine is gone: QEMU has ended, or its kernel panicked."""


class HostReset(VmError):
    """The machine was restarted while the command ran."""


class AgentTimeout(VmError):
    """The guest agent gave no answer in time: the guest hangs as a whole."""


class CommandFailed(VmError):
    """A command in the guest ended with an unexpected status, or not in time."""

    def __init__(self, host, cmd, result):
        self.result = result
        text = f"{host}: {'timed out' if result.timed_out else f'exit status {result.rc}'}: {cmd}"
        for name in ("stdout", "stderr", "stuck"):
            value = getattr(result, name)
            if isinstance(value, bytes):
                value = repr(value[:2000])
            if value and value.strip():
                value = value.rstrip()
                if len(value) > 4000:
                    value = value[:2000] + "\n[...]\n" + value[-2000:]
                text += f"\n--- {name}\n{value}"
        super().__init__(text)
