"""Replacing a directory so that a reader finds the old or the new one whole, whenever the writer is killed.

All files go into a scratch directory beside the target and are flushed to disk; then, locked,

    rename NAME -> .NAME.eckart-old,  rename .NAME.eckart-tmp-* -> NAME,  delete .NAME.eckart-old

so that at every moment NAME or .NAME.eckart-old is complete, and readers take the second when there is no first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

__all__ = ["backup_of", "descriptor", "flush", "locked", "scratch_of", "swap", "sweep"]


def backup_of(target: Path) -> Path:
    """Where the old one stands while the new one takes its place."""
    return target.with_name(f".{target.name}.eckart-old")


def scratch_of(target: Path, token: str | None = None) -> Path:
    """Name a new scratch directory."""
    return target.with_name(f".{target.name}.eckart-tmp-{token_hex(8) if token is None else token}")


def swap(scratch: Path, target: Path) -> None:
    """Put `scratch` in the place of `target`; one of `target` and its backup is complete throughout."""
    backup = backup_of(target)
    if target.exists() and os.listdir(target):  # an empty directory is replaced by rename itself
        if backup.exists():  # the target is complete, so this is what a killed writer had no time to delete
            _delete_whole(backup, target)
        os.rename(target, backup)
    try:
        os.rename(scratch, target)
    except BaseException:
        if backup.exists() and not target.exists():
            os.rename(backup, target)
        raise
    flush(target.parent)  # first: a power cut must not undo the rename and keep the deletion
    if backup.exists():
        _delete_whole(backup, target)


def _delete_whole(backup: Path, target: Path) -> None:
    # Under a scratch name first: killed half way, a partly deleted directory must not pass for a backup.
    doomed = scratch_of(target)
    os.rename(backup, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(target: Path) -> None:
    """Delete scratch directories whose writer is dead: its lock went with it."""
    prefix = scratch_of(target, "").name
    for name in os.listdir(target.parent):
        if name.startswith(prefix):
            try:
                with locked(target.with_name(name), wait=False):
                    shutil.rmtree(target.with_name(name), ignore_errors=True)
            except OSError:  # locked: alive. Anything else: not ours to delete.
                continue


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Lock a directory. The system frees the lock when the process ends, however it ends."""
    with descriptor(folder, os.O_DIRECTORY) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            # Some network file systems lock no directories. Saving must work there all the same: two writers
            # of one target are then not kept apart (one of them gets an error), and nothing is swept.
            if not wait:
                raise
        try:
            yield
        finally:
            with suppress(OSError):  # closing alone would leave it to a child forked in the meantime
                fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def descriptor(path: str | Path, flags: int = 0) -> Iterator[int]:
    """Open for reading, as a bare file descriptor."""
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def flush(path: Path) -> None:
    """Have a file or directory on disk before anything that comes after."""
    with descriptor(path) as fd:
        os.fsync(fd)
