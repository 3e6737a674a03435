"""Checkpoints that a kill, a full disk or a flipped bit cannot spoil.

    checkpoints/step-00000100/{state.safetensors, state.json, manifest.json}
    checkpoints/latest -> step-00000100
    checkpoints/best -> step-00000060, where scores are taken during training

A save writes beside its final name, syncs every file and the folder, renames, syncs the parent, moves ``latest``, and then
prunes, all but the best one. The manifest has every file's SHA-256; what does not match is passed over in favour of the save
before it.
A name is given once: another state of a step that is saved already becomes ``step-00000100.1``, so that a kill leaves one of
the two whole, and the older is then pruned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganfast.errors import Damaged, NotFound, NotWritable
from ganfast.files import sync_folder, write_synced

TENSORS, SCALARS, MANIFEST = "state.safetensors", "state.json", "manifest.json"
LATEST, BEST = "latest", "best"
_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class State:
    """What a checkpoint holds: tensors by name, and everything else as JSON."""

    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


def save(folder: Path, step: int, state: State, *, keep: int) -> Path:
    """Write ``folder/step-N`` atomically and prune all but it, the ``keep`` - 1 steps before it, and the best.

    A whole save of the same state is kept as it is. Raises NotWritable with older saves untouched.
    """
    files = _serialised(state)
    same_step = [place for place in saves(folder) if _order(place)[0] == step]
    number = _order(same_step[0])[1] + 1 if same_step else 0
    final = folder / (f"step-{step:08d}.{number}" if number else f"step-{step:08d}")
    temporary = folder / f"{final.name}.tmp-{os.getpid()}"
    try:
        if same_step and _holds(same_step[0], files):
            final = same_step[0]
        else:
            shutil.rmtree(temporary, ignore_errors=True)  # process numbers come round again
            temporary.mkdir(parents=True)
            _write_all(temporary, files)
            os.rename(temporary, final)
            sync_folder(folder)
        _point(folder, LATEST, final.name)
        replaced = [place for place in same_step if place != final]
        if best(folder) in replaced:
            _point(folder, BEST, final.name)
        before = [place for place in saves(folder) if _order(place)[0] < step and place != best(folder)]
        for old in [*replaced, *before[keep - 1 :]]:
            shutil.rmtree(old)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotWritable(f"cannot write checkpoint {final}: {error.strerror or error}") from error
    return final


def saves(folder: Path) -> list[Path]:
    """Every finished save, newest first."""
    return sorted((place for place in folder.glob("step-*") if _NAME.fullmatch(place.name)), key=_order, reverse=True)


def best(folder: Path) -> Path | None:
    """The save that ``best`` points to, where there is one."""
    try:
        place = folder / os.readlink(folder / BEST)
    except OSError:
        return None
    return place if place in saves(folder) else None


def choose_best(folder: Path, chosen: Path | None) -> None:
    """Let ``best`` point to this save, or to none. Raises NotWritable."""
    if chosen == best(folder) is not None:
        return
    try:
        if chosen is None:
            (folder / BEST).unlink(missing_ok=True)
        else:
            _point(folder, BEST, chosen.name)
    except OSError as error:
        raise NotWritable(f"cannot write {folder / BEST}: {error.strerror or error}") from error


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
            warn(str(error) if place == found[-1] else f"{error}; falling back to the checkpoint before it")
    if saves(folder)[:1] != found[:1]:
        return load(folder, warn=warn)  # a run that is going on has saved and pruned meanwhile
    raise Damaged(f"every checkpoint in {folder} is damaged, the newest is {found[0].name}")


def read(place: Path) -> State:
    """One save. Raises Damaged, naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    files = verify(place)
    try:
        tensors, scalars = deserialise(files[TENSORS]), json.loads(files[SCALARS])
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"{place} is damaged although its checksums fit: {error}") from None
    if not isinstance(scalars, dict):
        raise Damaged(f"{place / SCALARS}: expected a JSON object, got {type(scalars).__name__}")
    return State(tensors, scalars)


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
    """Forget the saves beyond ``step``: a run that went back to it goes on from there. Raises NotWritable."""
    for place in saves(folder):
        if _order(place)[0] > step:
            _remove(place)


def sweep(folder: Path) -> None:
    """Remove what an interrupted save left behind. Raises NotWritable."""
    for stale in folder.glob("*.tmp-*"):
        _remove(stale)


def _remove(place: Path) -> None:
    try:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    except OSError as error:
        raise NotWritable(f"cannot remove {place}: {error.strerror or error}") from error


def _holds(place: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a save is whole and has exactly this content."""
    try:
        return verify(place) == files
    except Damaged:
        return False


def _serialised(state: State) -> dict[str, bytes]:
    from safetensors.torch import save as serialise

    return {
        TENSORS: serialise({name: _copy(tensor) for name, tensor in state.tensors.items()}),
        SCALARS: (json.dumps(state.scalars, indent=2) + "\n").encode(),
    }


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Every file of a save and the folder that names them, on the disk when this returns."""
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in {**files, MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode()}.items():
        write_synced(folder / name, data)
    sync_folder(folder)


def step_of(place: Path) -> int:
    """The step in a save's name."""
    return _order(place)[0]


def _order(place: Path) -> tuple[int, int]:
    """The step in a save's name, and which save of that step it is."""
    step, number = _NAME.fullmatch(place.name).groups(default="0")  # type: ignore[union-attr]
    return int(step), int(number)


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, in rows, in memory of its own: safetensors refuses tied weights, which share theirs."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _point(folder: Path, link: str, name: str) -> None:
    temporary = folder / f"{link}.tmp-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, folder / link)
    sync_folder(folder)
