"""Writing so that a kill or a full disk leaves the old file or the new one, whole, and never half of one."""

from __future__ import annotations

import os
from pathlib import Path

from ganfast.errors import NotWritable


def write_atomically(target: Path, data: bytes) -> None:
    """Write a file so that its name holds the old or the new content, whole, whatever happens. Raises NotWritable."""
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        try:
            write_synced(temporary, data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise NotWritable(f"cannot write {target}: {error.strerror}") from error


def write_synced(target: Path, data: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with target.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until what was created, renamed or removed in a folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
