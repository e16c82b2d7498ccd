"""Locks: one command changes the lab at a time, and one user at a time has it to itself."""

import contextlib
import fcntl
import os

from .places import RUN
from .process import say

# Beside the lab's folder, which comes and goes.
CHANGE = RUN.with_name(RUN.name + ".change.lock")
USE = RUN.with_name(RUN.name + ".use.lock")


@contextlib.contextmanager
def held(path, why):
    """Holds a lock; says so once when it must wait. The kernel lets go of it when the holder ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            say(f"waiting: {holder or 'somebody'} has the lab")
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{why} (process {os.getpid()})\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)
