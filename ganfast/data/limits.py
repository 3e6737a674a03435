"""How much a data file may unpack to before it is taken for an attack or an accident."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ganfast.errors import InvalidData

ENTRIES = 20_000_000
TOTAL_BYTES = 2 << 40
ENTRY_BYTES = 512 << 20  # of one encoded image or label file
RATIO = 200  # unpacked over packed
RATIO_FREE_BYTES = 16 << 20  # an entry below this may compress as well as it likes


def check_zip(path: Path, archive: zipfile.ZipFile, entry_bytes: int = ENTRY_BYTES) -> None:
    """Raises :class:`~ganfast.errors.InvalidData` if the directory of a zip archive promises too much, or it is encrypted."""
    entries = archive.infolist()
    if len(entries) > ENTRIES:
        raise InvalidData(f"{path} has {len(entries)} entries; the limit is {ENTRIES}")
    for entry in entries:
        if entry.flag_bits & 1:
            raise InvalidData(f"{path}: {entry.filename} is encrypted; pass an archive without a password")
        if entry.file_size > entry_bytes:
            raise InvalidData(f"{path}: {entry.filename} unpacks to {entry.file_size} bytes; the limit is {entry_bytes}")
        if entry.file_size > RATIO_FREE_BYTES and entry.file_size > RATIO * max(entry.compress_size, 1):
            ratio = entry.file_size // max(entry.compress_size, 1)
            raise InvalidData(f"{path}: {entry.filename} unpacks to {ratio} times its size; the limit is {RATIO}")
    total = sum(entry.file_size for entry in entries)
    if total > TOTAL_BYTES:
        raise InvalidData(f"{path} unpacks to {total} bytes; the limit is {TOTAL_BYTES}")
