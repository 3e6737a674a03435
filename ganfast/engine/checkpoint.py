"""Checkpoints that a kill, a full disk or a flipped bit cannot spoil.

    checkpoints/step-00000100/{state.safetensors, state.json, manifest.json}
    checkpoints/latest -> step-00000100

A save writes beside its final name, syncs every file and the folder, renames, syncs the parent, moves ``latest``, and then
prunes. The manifest has every file's SHA-256; what does not match is passed over in favour of the save before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganfast.errors import Damaged, NotFound, NotWritable
from ganfast.files import sync_folder, write_synced

TENSORS, SCALARS, MANIFEST, LATEST = "state.safetensors", "state.json", "manifest.json", "latest"


@dataclass(frozen=True)
class State:
    """What a checkpoint holds: tensors by name, and everything else as JSON."""

    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


def save(folder: Path, step: int, state: State, *, keep: int) -> Path:
    """Write ``folder/step-N`` atomically and prune all but it and the ``keep`` - 1 before it.

    Raises NotWritable with older saves untouched.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{final.name}.tmp-{os.getpid()}"
    try:
        if not _whole(final):  # the same step of the same run is the same state
            shutil.rmtree(final, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)  # process numbers come round again
            temporary.mkdir(parents=True)
            _write_all(temporary, state)
            os.rename(temporary, final)
            sync_folder(folder)
        _point(folder, final.name)
        for old in [place for place in saves(folder) if _step(place) < step][keep - 1 :]:
            shutil.rmtree(old)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotWritable(f"cannot write checkpoint {final}: {error.strerror or error}") from error
    return final


def saves(folder: Path) -> list[Path]:
    """Every finished save, newest first."""
    found = [place for place in folder.glob("step-*") if place.name.removeprefix("step-").isdigit()]
    return sorted(found, key=_step, reverse=True)


def load(folder: Path, *, warn: Callable[[str], None]) -> State:
    """The newest undamaged save in ``folder``; each damaged one that is passed over is named to ``warn``.

    Raises NotFound where there is no save at all, Damaged where none is whole.
    """
    found = saves(folder)
    if not found:
        raise NotFound(f"there is no checkpoint in {folder} yet")
    for place in found:
        try:
            return read(place)
        except Damaged as error:
            warn(f"{error}; falling back to the checkpoint before it")
    if saves(folder)[:1] != found[:1]:
        return load(folder, warn=warn)  # a run that is going on has saved and pruned meanwhile
    raise Damaged(f"every checkpoint in {folder} is damaged, the newest is {found[0].name}")


def read(place: Path) -> State:
    """One save. Raises Damaged, naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    files = verify(place)
    try:
        return State(deserialise(files[TENSORS]), json.loads(files[SCALARS]))
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"{place} is damaged although its checksums fit: {error}") from None


def verify(place: Path) -> dict[str, bytes]:
    """The files of a save by name, each equal to its checksum. Raises Damaged, naming the first that is not."""
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
        expected = {name: manifest[name] for name in (TENSORS, SCALARS)}
    except (OSError, ValueError, KeyError, TypeError):
        raise Damaged(f"{place / MANIFEST} is missing or damaged") from None
    files = {}
    for name, checksum in expected.items():
        try:
            files[name] = (place / name).read_bytes()
        except OSError:
            raise Damaged(f"{place / name} is missing or unreadable") from None
        if hashlib.sha256(files[name]).hexdigest() != checksum:
            raise Damaged(f"{place / name} is damaged: its SHA-256 is not the manifest's")
    return files


def truncate_after(folder: Path, step: int) -> None:
    """Forget the saves beyond ``step``: a run that went back to it goes on from there."""
    for place in saves(folder):
        if _step(place) > step:
            shutil.rmtree(place)


def sweep(folder: Path) -> None:
    """Remove what an interrupted save left behind."""
    for stale in folder.glob("*.tmp-*"):
        if stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def _whole(place: Path) -> bool:
    try:
        verify(place)
    except Damaged:
        return False
    return True


def _write_all(folder: Path, state: State) -> None:
    """Every file of a save and the folder that names them, on the disk when this returns."""
    from safetensors.torch import save as serialise

    files = {
        TENSORS: serialise({name: _copy(tensor) for name, tensor in state.tensors.items()}),
        SCALARS: (json.dumps(state.scalars, indent=2) + "\n").encode(),
    }
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in {**files, MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}.items():
        write_synced(folder / name, data)
    sync_folder(folder)


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, in rows, in memory of its own: safetensors refuses tied weights, which share theirs."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _point(folder: Path, name: str) -> None:
    temporary = folder / f"{LATEST}.tmp-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, folder / LATEST)
    sync_folder(folder)
