"""Decoded once: a folder per (contents of the source, look) with memory-mappable arrays and a manifest of their SHA-256.

An entry appears by one rename, so a reader sees all of it or nothing, whoever else is writing and whenever a writer dies. It is
checked in full when it is opened; one that fails is built anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.data import digest
from ganfast.data.dataset import Dataset
from ganfast.errors import Damaged, NotWritable
from ganfast.files import sync_folder

FORMAT = 2
MANIFEST = "entry.json"


def folder(chosen: str | os.PathLike[str] | None) -> Path:
    """Where caches live: what was asked for, else $GANFAST_CACHE, else $XDG_CACHE_HOME/ganfast, else ~/.cache/ganfast.

    Raises NotWritable where the user has no home.
    """
    if chosen is not None:
        return Path(chosen)
    if os.environ.get("GANFAST_CACHE"):
        return Path(os.environ["GANFAST_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ganfast"
    except RuntimeError:
        raise NotWritable("this user has no home folder; set GANFAST_CACHE to a folder that can be written") from None


class Entry:
    """The place of one decoded data set below a cache folder."""

    def __init__(self, cache: Path, identity: dict[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:40]
        self.parent = cache / "data"
        self.path = self.parent / self.key

    def open(self) -> Dataset | None:
        """The data set, memory-mapped; None if it is not there, or was damaged and is now gone, with a warning."""
        if not self.path.is_dir():
            return None
        try:
            return _load(self.path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"cache entry {self.path} is damaged and will be made again: {error}", stacklevel=2)
            aside = self._temporary("bad")
            shutil.rmtree(aside, ignore_errors=True)
            try:
                os.rename(self.path, aside)
            except FileNotFoundError:
                return None  # another process was faster
            shutil.rmtree(aside, ignore_errors=True)
            return None

    def build(self, make: Callable[[Path], Dataset]) -> Dataset:
        """The data set that ``make(folder)`` returns becomes the entry, with the arrays that it has written into the folder."""
        self.parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        temporary = self._temporary("tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _write_manifest(temporary, make(temporary))
            sync_folder(temporary)
            try:
                os.replace(temporary, self.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another process finished first; its entry has the same key and so the same contents.
            sync_folder(self.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return _load(self.path)

    def _temporary(self, kind: str) -> Path:
        return self.parent / f"{self.key}.{kind}-{socket.gethostname()}-{os.getpid()}"

    def _sweep(self) -> None:
        """Removes what writers of this machine that no longer run have left behind."""
        for left in self.parent.glob(f"*.*-{socket.gethostname()}-*"):
            try:
                os.kill(int(left.name.rpartition("-")[2]), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
            except (ValueError, PermissionError):
                continue


def write_rows(path: Path, blocks: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Blocks (k, ...) of uint8 one after another as one .npy file on disk, however many rows they come to; returns it mapped."""
    count, tail = 0, None
    with open(path, "wb") as file:
        for block in blocks:
            if tail is None:
                tail = block.shape[1:]
                _write_header(file, (0, *tail))
            file.write(np.ascontiguousarray(block).data)
            count += len(block)
        file.seek(0)
        # numpy leaves room in a header for the first axis to grow, so this one is as long as the first.
        _write_header(file, (count, *(tail or ())))
        file.flush()
        os.fsync(file.fileno())
    mapped: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return mapped


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _write_manifest(path: Path, dataset: Dataset) -> None:
    files: dict[str, dict[str, Any]] = {}
    for group, fields in dataset.groups.items():
        for field, array in fields.items():
            file = path / f"{field}.npy"
            if not file.exists():
                with open(file, "wb") as stream:
                    np.save(stream, array, allow_pickle=False)
                    stream.flush()
                    os.fsync(stream.fileno())
            files[file.name] = {"group": group, "field": field, "sha256": digest.of_array(array)}
    content = {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "left_out": dataset.left_out,
        "files": files,
    }
    with open(path / MANIFEST, "w", encoding="utf-8") as stream:
        json.dump({"content": content, "sha256": _checksum(content)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _load(path: Path) -> Dataset:
    manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    content = manifest["content"]
    if manifest["sha256"] != _checksum(content):
        raise Damaged(f"{MANIFEST} does not have its checksum")
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for name, file in content["files"].items():
        array = np.load(path / name, mmap_mode="r", allow_pickle=False)
        if digest.of_array(array) != file["sha256"]:
            raise Damaged(f"{name} does not have its checksum")
        groups.setdefault(file["group"], {})[file["field"]] = array
    return Dataset(content["name"], groups, tuple(content["class_names"]), content["left_out"])


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
