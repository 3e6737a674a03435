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


def check_ratio(where: str, unpacked: int, packed: int) -> None:
    """Raises :class:`~ganfast.errors.InvalidData` if ``packed`` bytes are said to hold suspiciously many ``unpacked`` ones."""
    if unpacked > RATIO_FREE_BYTES and unpacked > RATIO * max(packed, 1):
        raise InvalidData(f"{where} would be {unpacked // max(packed, 1)} times the packed size; the limit is {RATIO}")


def check_zip(path: Path, archive: zipfile.ZipFile, *, of_arrays: bool = False) -> None:
    """Raises :class:`~ganfast.errors.InvalidData` if the directory of a zip archive promises too much, or it is encrypted.

    An archive ``of_arrays`` has few large entries, so that only their total is bounded.
    """
    entries = archive.infolist()
    if len(entries) > ENTRIES:
        raise InvalidData(f"{path} has {len(entries)} entries; the limit is {ENTRIES}")
    for entry in entries:
        where = f"{path}: {entry.filename}"
        if entry.flag_bits & 1:
            raise InvalidData(f"{where} is encrypted; pass an archive without a password")
        if entry.file_size > ENTRY_BYTES and not of_arrays:
            raise InvalidData(f"{where} unpacks to {entry.file_size} bytes; the limit is {ENTRY_BYTES}")
        check_ratio(where, entry.file_size, entry.compress_size)
    total = sum(entry.file_size for entry in entries)
    if total > TOTAL_BYTES:
        raise InvalidData(f"{path} unpacks to {total} bytes; the limit is {TOTAL_BYTES}")
