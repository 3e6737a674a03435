"""A save is whole or absent, whatever kills it, and what is damaged afterwards is passed over."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ganfast.engine import checkpoint
from ganfast.engine.checkpoint import MANIFEST, SCALARS, TENSORS, State
from ganfast.errors import Damaged, NotFound, NotWritable

# Every call of a save that changes the disk or makes a change last.
CALLS = ("mkdir", "open", "fsync", "rename", "replace", "symlink", "unlink", "rmdir")
Hook = Callable[[str], None]


def numbered(step: int) -> State:
    return State({"weight": torch.full((3, 5), float(step)), "count": torch.tensor(step)}, {"step": step})


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, numbered(step), keep=keep)


def loaded(folder: Path) -> tuple[int, list[str]]:
    """The step of the state that is loaded, checked to be whole, and the warnings on the way."""
    told: list[str] = []
    state = checkpoint.load(folder, warn=told.append)
    step = state.scalars["step"]
    assert torch.equal(state.tensors["weight"], torch.full((3, 5), float(step))) and state.tensors["count"].item() == step
    return step, told


@contextmanager
def before_each_call(hook: Hook) -> Iterator[None]:
    """``hook`` is called with the name of each call in :data:`CALLS`, and for each file to write, before it happens."""

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def first(*arguments: Any, **named: Any) -> Any:
            hook(name)
            return call(*arguments, **named)

        return first

    plain = io.open

    def create(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if "w" in mode:
            hook("create")
        return plain(file, mode, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(io, "open", create)  # what Path.open calls
        patch.setattr(builtins, "open", create)
        yield


def dies_at(call: int, action: Callable[[], Any]) -> bool:
    """Whether a forked child that does ``action`` came to its ``call``-th system call, where it is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's threads, which the child does not use
        child = os.fork()
    if child == 0:
        left = [call]

        def count(name: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

        try:
            with before_each_call(count):
                action()
        except BaseException:
            os._exit(3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_a_save_is_what_the_page_says(tmp_path: Path) -> None:
    place = save(tmp_path, 100)
    assert place == tmp_path / "step-00000100"
    assert sorted(file.name for file in place.iterdir()) == [MANIFEST, SCALARS, TENSORS]
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest == {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in (TENSORS, SCALARS)}
    assert os.readlink(tmp_path / "latest") == "step-00000100"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latest", "step-00000100"]
    assert loaded(tmp_path) == (100, [])


def test_everything_is_on_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """Three files and their folder are synced, then comes the rename, then the parent; likewise for the link."""
    calls: list[str] = []
    with before_each_call(calls.append):
        save(tmp_path, 1)
    order = [name for name in calls if name in ("fsync", "rename", "symlink", "replace")]
    assert order == ["fsync"] * 4 + ["rename", "fsync", "symlink", "replace", "fsync"]


def test_killed_at_every_system_call_of_a_save(tmp_path: Path) -> None:
    """With one save before and one to prune: the old or the new one loads whole, and the next save works and cleans up."""
    call, last = 0, 0
    while True:
        folder = tmp_path / str(call)
        save(folder, 1)
        save(folder, 2)
        killed = dies_at(call, partial(save, folder, 3))
        step, told = loaded(folder)
        assert step in (2, 3) and step >= last and told == []
        last = step
        if not killed:
            break
        checkpoint.sweep(folder)
        assert not list(folder.glob("*.tmp-*"))
        save(folder, 4)
        assert loaded(folder) == (4, [])
        assert len(checkpoint.saves(folder)) == 2 and os.readlink(folder / "latest") == "step-00000004"
        call += 1
    assert last == 3 and call >= 20  # the calls were there to be killed at


def test_killed_at_every_system_call_of_the_first_save(tmp_path: Path) -> None:
    call, found = 0, []
    while True:
        folder = tmp_path / str(call)
        killed = dies_at(call, partial(save, folder, 1))
        found.append(bool(checkpoint.saves(folder)))
        if not killed:
            break
        if not found[-1]:
            with pytest.raises(NotFound):
                loaded(folder)
        checkpoint.sweep(folder)
        save(folder, 1)
        assert loaded(folder) == (1, []) and os.readlink(folder / "latest") == "step-00000001"
        call += 1
    assert found == sorted(found) and found[0] is False and found[-1] is True


def test_a_link_left_behind_by_a_kill_is_put_right_by_the_same_save(tmp_path: Path) -> None:
    """Killed between the rename and the link, a run resumes at that step; it may be told to save there again."""
    save(tmp_path, 1)
    for call in range(100):
        shutil.rmtree(tmp_path / "step-00000002", ignore_errors=True)
        (tmp_path / "latest").unlink(missing_ok=True)
        (tmp_path / "latest").symlink_to("step-00000001")
        if not dies_at(call, partial(save, tmp_path, 2)):
            break
        checkpoint.sweep(tmp_path)
        if len(checkpoint.saves(tmp_path)) == 2:
            save(tmp_path, 2)
            assert os.readlink(tmp_path / "latest") == "step-00000002"


@pytest.mark.parametrize("name", [TENSORS, SCALARS, MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped first", "flipped last", "missing", "a folder"])
def test_damage_falls_back_to_the_save_before(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage.startswith("flipped"):
        # The manifest's last bytes are a brace and a line end; the digest before them is what matters.
        data[0 if damage.endswith("first") else -5] ^= 1
        file.write_bytes(data)
    elif damage == "a folder":
        file.mkdir()
    step, (warning,) = loaded(tmp_path)
    assert step == 1 and "step-00000002" in warning and warning.endswith("the checkpoint before it")
    assert name in warning or damage == "flipped last"  # a wrong digest in the manifest looks like a wrong file


def test_one_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    place = save(tmp_path, 1)
    for name in (TENSORS, SCALARS):
        whole = (place / name).read_bytes()
        for bit in range(0, len(whole) * 8, 37):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            (place / name).write_bytes(data)
            with pytest.raises(Damaged, match=f"{name} is damaged"):
                checkpoint.read(place)
        (place / name).write_bytes(whole)
    assert loaded(tmp_path) == (1, [])


def test_everything_damaged_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no checkpoint in"):
        checkpoint.load(tmp_path / "absent", warn=print)
    with pytest.raises(NotFound, match="there is no checkpoint in"):
        checkpoint.load(tmp_path, warn=print)
    told: list[str] = []
    for step in (1, 2):
        (save(tmp_path, step) / TENSORS).write_bytes(b"")
    with pytest.raises(Damaged, match=r"every checkpoint in .* is damaged, the newest is step-00000002"):
        checkpoint.load(tmp_path, warn=told.append)
    assert ["step-00000002" in told[0], "step-00000001" in told[1]] == [True, True]
    assert "falling back" in told[0] and "falling back" not in told[1]


def test_a_manifest_that_fits_nonsense_is_damage_too(tmp_path: Path) -> None:
    """Checksums say that bytes are what was written, not that they are a state."""
    save(tmp_path, 1)
    place = save(tmp_path, 2)
    for name, nonsense in ((TENSORS, b"\xff" * 64), (SCALARS, b"{]")):
        whole = (place / name).read_bytes(), (place / MANIFEST).read_bytes()
        (place / name).write_bytes(nonsense)
        manifest = {file: hashlib.sha256((place / file).read_bytes()).hexdigest() for file in (TENSORS, SCALARS)}
        (place / MANIFEST).write_text(json.dumps(manifest))
        step, (warning,) = loaded(tmp_path)
        assert step == 1 and "step-00000002 is damaged although its checksums fit" in warning
        (place / name).write_bytes(whole[0])
        (place / MANIFEST).write_bytes(whole[1])
    (place / SCALARS).write_text("[]")
    manifest = {file: hashlib.sha256((place / file).read_bytes()).hexdigest() for file in (TENSORS, SCALARS)}
    (place / MANIFEST).write_text(json.dumps(manifest))
    step, (warning,) = loaded(tmp_path)
    assert step == 1 and "state.json: expected a JSON object, got list" in warning
    for manifest_text in ("[]", "null", '{"state.json": 3}'):
        (place / MANIFEST).write_text(manifest_text)
        assert loaded(tmp_path)[0] == 1


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    """A pickle in a tensor file's place, its checksum in order, is refused and never opened."""
    place = save(tmp_path, 1)
    mark = tmp_path / "mark"
    torch.save({"x": _Payload(mark)}, place / TENSORS)
    manifest = {file: hashlib.sha256((place / file).read_bytes()).hexdigest() for file in (TENSORS, SCALARS)}
    (place / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Damaged):
        checkpoint.read(place)
    assert not mark.exists()


class _Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_damaged_save_is_written_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / SCALARS).write_bytes(b"")
    assert loaded(tmp_path)[0] == 1
    save(tmp_path, 2)
    assert loaded(tmp_path) == (2, [])


def other(folder: Path) -> Path:
    """Another state of step 2: trained by hand, rolled back, or of another run."""
    return checkpoint.save(folder, 2, State({"weight": torch.zeros(3, 5), "count": torch.tensor(7)}, {"step": 7}), keep=2)


def test_the_same_state_is_kept_and_another_one_takes_its_place(tmp_path: Path) -> None:
    save(tmp_path, 1)
    first = save(tmp_path, 2)
    written = (first / TENSORS).stat().st_mtime_ns
    assert save(tmp_path, 2) == first and (first / TENSORS).stat().st_mtime_ns == written
    second = other(tmp_path)
    assert checkpoint.read(second).scalars == {"step": 7}
    assert [place.name for place in checkpoint.saves(tmp_path)] == [second.name, "step-00000001"]
    assert os.readlink(tmp_path / "latest") == second.name
    assert other(tmp_path) == second  # the same again
    assert save(tmp_path, 2) not in (first, second) and loaded(tmp_path) == (2, [])
    save(tmp_path, 3)
    assert [checkpoint.read(place).scalars["step"] for place in checkpoint.saves(tmp_path)] == [3, 2]


@pytest.mark.parametrize("keep_first", [True, False])
def test_killed_at_every_system_call_of_a_save_in_place_of_another(tmp_path: Path, keep_first: bool) -> None:
    call, last = 0, 2
    while True:
        folder = tmp_path / str(call)
        if keep_first:
            save(folder, 1)
        save(folder, 2)
        killed = dies_at(call, partial(other, folder))
        told: list[str] = []
        step = checkpoint.load(folder, warn=told.append).scalars["step"]
        assert step in (2, 7) and step >= last and told == []
        last = step
        checkpoint.sweep(folder)
        assert other(folder) == checkpoint.saves(folder)[0]
        assert len(checkpoint.saves(folder)) == 1 + keep_first and (folder / "latest").resolve() == checkpoint.saves(folder)[0]
        if not killed:
            break
        call += 1
    assert last == 7 and call >= 10


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):  # by number, not by name
        save(tmp_path, step, keep=3)
    assert [place.name for place in checkpoint.saves(tmp_path)] == ["step-00000100", "step-00000010", "step-00000009"]
    save(tmp_path, 123456789, keep=1)
    assert [place.name for place in checkpoint.saves(tmp_path)] == ["step-123456789"]


def test_a_save_never_prunes_itself_or_what_is_newer(tmp_path: Path) -> None:
    """A run that fell back from a damaged save may be told to stop before it comes to that step again."""
    save(tmp_path, 4)
    (save(tmp_path, 6) / TENSORS).write_bytes(b"")
    assert save(tmp_path, 5, keep=1).exists()
    step, (warning,) = loaded(tmp_path)
    assert step == 5 and "step-00000006" in warning


def test_going_back_forgets_what_came_later(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step, keep=9)
    checkpoint.truncate_after(tmp_path, 4)
    assert [place.name for place in checkpoint.saves(tmp_path)] == ["step-00000004", "step-00000002"]


@pytest.mark.parametrize("forget", [lambda folder: checkpoint.truncate_after(folder, 0), checkpoint.sweep])
def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[Path], None]) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000002.tmp-1").mkdir()

    def refused(place: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(NotWritable, match=r"cannot remove .*step-0000000.*: Permission denied"):
        forget(tmp_path)


def test_killed_while_pruning(tmp_path: Path) -> None:
    """Half of an old save is left: the newest loads without a word, and the next save removes the rest."""
    oldest = save(tmp_path, 1)
    save(tmp_path, 2)
    save(tmp_path, 3, keep=3)
    (oldest / MANIFEST).unlink()
    assert loaded(tmp_path) == (3, [])
    save(tmp_path, 4)
    assert [place.name for place in checkpoint.saves(tmp_path)] == ["step-00000004", "step-00000003"]


def test_a_reader_beside_a_run_that_saves_and_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was newest when the reader looked is gone when it reads: it looks again."""
    save(tmp_path, 1, keep=1)
    read = checkpoint.read

    def late(place: Path) -> State:
        if place.name == "step-00000001":
            save(tmp_path, 2, keep=1)
        return read(place)

    monkeypatch.setattr(checkpoint, "read", late)
    assert loaded(tmp_path)[0] == 2


@pytest.mark.parametrize("name", ["mkdir", "create", "fsync", "rename", "symlink", "replace"])
def test_a_full_disk_keeps_the_older_save(tmp_path: Path, name: str) -> None:
    """Wherever space runs out, it is told as what it is, and what was there is there."""
    save(tmp_path, 1)
    nth = 0
    while True:
        left = [nth]

        def full(call: str, left: list[int] = left) -> None:
            left[0] -= call == name
            if left[0] == -1 and call == name:
                raise OSError(errno.ENOSPC, "No space left on device")

        try:
            with before_each_call(full):
                save(tmp_path, 2)
        except NotWritable as error:
            assert str(error) == f"cannot write checkpoint {tmp_path / 'step-00000002'}: No space left on device"
        else:
            break
        assert loaded(tmp_path)[0] in (1, 2)
        assert (tmp_path / "step-00000001").exists() and not list(tmp_path.glob("step-*.tmp-*"))
        shutil.rmtree(tmp_path / "step-00000002", ignore_errors=True)
        nth += 1
    assert nth >= 1 and loaded(tmp_path) == (2, [])


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A file system of 256 KiB where one can be mounted, otherwise a limit on the size of files: the kernel says no."""
    script = """
import resource, signal, subprocess, sys
from pathlib import Path
import torch
from ganfast.engine import checkpoint
from ganfast.errors import NotWritable
folder = Path(sys.argv[1])
mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True).returncode == 0
if not mounted:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    state = lambda step, n: checkpoint.State({"x": torch.full((n,), float(step))}, {"step": step})
    checkpoint.save(folder, 1, state(1, 10_000), keep=2)
    try:
        checkpoint.save(folder, 2, state(2, 100_000), keep=2)
        sys.exit("the disk was not full")
    except NotWritable as error:
        print(error)
    assert [place.name for place in checkpoint.saves(folder)] == ["step-00000001"]
    assert not list(folder.glob("*.tmp-*"))
    assert checkpoint.load(folder, warn=sys.exit).scalars == {"step": 1}
    checkpoint.save(folder, 3, state(3, 10_000), keep=2)
    assert checkpoint.load(folder, warn=sys.exit).scalars == {"step": 3}
finally:
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write checkpoint {tmp_path / 'step-00000002'}: ")


def test_a_stale_temporary_of_the_same_process_number(tmp_path: Path) -> None:
    """In a container every run may well be process 1."""
    stale = tmp_path / f"step-00000001.tmp-{os.getpid()}"
    stale.mkdir()
    (stale / "half").write_bytes(b"x")
    (tmp_path / f"latest.tmp-{os.getpid()}").symlink_to("nowhere")
    save(tmp_path, 1)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert sorted(file.name for file in (tmp_path / "step-00000001").iterdir()) == [MANIFEST, SCALARS, TENSORS]


def test_sweeping_removes_temporaries_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000002.tmp-1").mkdir()
    (tmp_path / "step-00000002.tmp-1" / TENSORS).write_bytes(b"x")
    (tmp_path / "latest.tmp-1").symlink_to("step-00000001")
    (tmp_path / "notes").write_text("mine")
    checkpoint.sweep(tmp_path)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["latest", "notes", "step-00000001"]
    checkpoint.sweep(tmp_path / "absent")


def test_a_temporary_swept_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs in one folder: the save that loses its files says so, and the one before it stands."""
    save(tmp_path, 1)
    sync = checkpoint.sync_folder

    def swept(folder: Path) -> None:
        checkpoint.sweep(tmp_path)
        sync(folder)

    monkeypatch.setattr(checkpoint, "sync_folder", swept)
    with pytest.raises(NotWritable, match="step-00000002"):
        save(tmp_path, 2)
    assert loaded(tmp_path) == (1, [])


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bits = torch.randint(-(2**63), 2**63 - 1, (40,))
    image = torch.randn(2, 3, 4, 5)
    weight = torch.randn(4, 4)
    tensors = {
        "float32, any bits": bits.view(torch.float32),  # NaN with payloads, infinities, subnormals
        "bfloat16, any bits": bits.view(torch.bfloat16),
        "float16, any bits": bits.view(torch.float16),
        "float64": torch.tensor([0.1, -0.0, float("nan"), float("-inf"), 5e-324], dtype=torch.float64),
        "int64": bits,
        "int32": bits.view(torch.int32),
        "uint8": bits.view(torch.uint8),
        "bool": bits > 0,
        "nothing by nothing": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 3),
        "channels last": image.to(memory_format=torch.channels_last),
        "transposed": weight.T,
        "every other": torch.arange(10)[::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "offset": torch.arange(10)[3:],
        "a parameter": torch.nn.Parameter(weight),
        "the same memory": weight,
        "part of the same memory": weight[1:],
    }
    checkpoint.save(tmp_path, 1, State(tensors, {"text": "ü\n", "none": None, "huge": 2**70, "small": 1e-300}), keep=1)
    back = checkpoint.load(tmp_path, warn=print)
    assert back.scalars == {"text": "ü\n", "none": None, "huge": 2**70, "small": 1e-300}
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        ours = back.tensors[name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape), name
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(ours.contiguous().reshape(-1).view(torch.uint8), raw), name
