"""Who works on a run, and whether that process still lives."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

HEARTBEAT_SECONDS = 15.0  # how often an owner says that it lives
EXPIRY_SECONDS = 60.0  # an owner that can't be looked up is taken for dead when its last word is older than this


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that has claimed a run. The token is new for every claim; ``started`` tells a reused pid apart."""

    host: str
    pid: int
    started: str
    token: str

    @classmethod
    def me(cls) -> Owner:
        """This process, with a new token."""
        pid = os.getpid()
        return cls(this_host(), pid, _start_of(pid) or "", secrets.token_hex(16))

    def lives(self, heartbeat: float, now: float) -> bool:
        """Whether the owner is to be left alone.

        On the same host the process itself is looked up: a stopped one lives, a killed one is dead at once. On another
        host, and where processes can't be looked up, its last heartbeat decides. That compares ``time.time()`` of two
        hosts: clocks more than a minute apart cost work done twice, never a wrong result, for only the holder of
        the token can finish.
        """
        if self.host == this_host():
            found = _process_lives(self.pid, self.started)
            if found is not None:
                return found
        return abs(now - heartbeat) < EXPIRY_SECONDS


def this_host() -> str:
    """The name of the set of processes that this one can look up: host, boot and process namespace (containers)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()} {boot} {space}"


def _process_lives(pid: int, started: str) -> bool | None:
    """Whether the process with this pid and start is running; None where that can't be known."""
    if os.name != "posix":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to somebody else
    start = _start_of(pid)
    return None if start is None or not started else start == started


def _start_of(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; empty for one that has ended, None where /proc doesn't say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from field 3 on; the name in field 2 may hold blanks and parentheses
    return "" if fields[0] in "ZX" else fields[19]
