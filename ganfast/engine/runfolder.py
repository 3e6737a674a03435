"""The folder that a run leaves behind, written so that a kill at any moment leaves it readable.

config.json         the resolved configuration
log.jsonl           one row per tick
evaluations.jsonl   scores of samples, where they are taken: one row each time
samples/            one picture per tick, step-00000100.png
tensorboard/        events, where TensorBoard is installed
curves.png, scores.png, training.webp, report.html
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from ganfast.errors import Damaged, InvalidType, InvalidValue, NotFound, NotWritable
from ganfast.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter

CONFIG, LOG, SAMPLES, EVENTS, CHECKPOINTS = "config.json", "log.jsonl", "samples", "tensorboard", "checkpoints"
EVALUATIONS, METRIC = "evaluations.jsonl", "metric/"  # what a score's name begins with in a row
CURVES, SCORES, ANIMATION, REPORT = "curves.png", "scores.png", "training.webp", "report.html"
DIAGNOSIS, LOCK = "nonfinite.json", ".lock"


class RunFolder:
    """An existing run's folder; :meth:`create` makes a new one. ``config`` is what config.json holds.

    Raises NotFound where ``path`` holds no run, Damaged where its config.json cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = read_config(self.path)
        self._events: SummaryWriter | None = None
        self._events_wanted = True
        self._purge: int | None = None  # first step whose earlier events TensorBoard should forget

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any], *, resume: bool = False) -> RunFolder:
        """A folder for a new run, or with ``resume`` for one that continues, whose configuration is replaced.

        Raises InvalidValue, unless ``resume``, where a run is there already or the folder lies within the data, NotWritable where
        the place cannot be written; what was made on the way is then removed again.
        """
        folder = Path(path)
        text = _config_text(config)
        if not resume:
            _refuse_used(folder)
            _refuse_within_data(folder, config)
        made = _make(folder)
        try:
            write_atomically(folder / CONFIG, text.encode())
        except NotWritable:
            _remove_empty(made)
            raise
        return cls(folder)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row to log.jsonl: numbers by name, ``step`` among them.

        JSON has no NaN: such a value becomes null, and ``"nonfinite": {name: "nan"}`` keeps which one it was. Raises NotWritable
        (a full disk) with the log as it was, so that a caller may go on and append later rows; raises once more, with the row in
        the log, where TensorBoard's writer fails, which then stays closed.
        """
        self._append(LOG, {key: _plain(key, value) for key, value in row.items()})

    def append_evaluation(self, row: Mapping[str, Any]) -> None:
        """Add one row to evaluations.jsonl: scores as ``metric/NAME``, ``step``, ``kimg``, and what tells how they were taken.

        Raises NotWritable as :meth:`append` does.
        """
        self._append(EVALUATIONS, row)

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        lost = {key: str(value) for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
        stored = {key: None if key in lost else value for key, value in values.items()}
        if lost:
            stored["nonfinite"] = lost
        _append_line(self.path / name, json.dumps(stored, allow_nan=False))
        numbers = {key: value for key, value in values.items() if key != "step" and isinstance(value, int | float)}
        if name == EVALUATIONS:  # how long it took, and at how many kimg, are no scores
            numbers = {key: value for key, value in numbers.items() if key.startswith(METRIC)}
        self._send(numbers, values.get("step", 0))

    def rows(self) -> list[dict[str, Any]]:
        """All rows of log.jsonl as they were appended. A torn last line, which a kill leaves, is passed over."""
        return read_rows(self.path)

    def evaluations(self) -> list[dict[str, Any]]:
        """All rows of evaluations.jsonl, as :meth:`rows`."""
        return read_rows(self.path, EVALUATIONS)

    def truncate_after(self, step: int) -> None:
        """Forget rows and sample pictures beyond ``step``, torn lines and stale temporaries: where a resumed run starts.

        Raises Damaged where the log cannot be read, NotWritable where something cannot be removed.
        """
        self.close()
        self._truncate(LOG, step)
        beyond = [picture for picture in sample_pictures(self.path) if step_of(picture) > step]
        for stale in [*beyond, *self.path.glob(".*.tmp-*"), *(self.path / SAMPLES).glob(".*.tmp-*")]:
            try:
                stale.unlink(missing_ok=True)
            except OSError as error:
                raise NotWritable(f"cannot remove {stale}: {error.strerror}") from error
        self._purge = step + 1

    def forget_evaluations_after(self, step: int) -> None:
        """The same for rows of evaluations.jsonl."""
        if os.path.exists(self.path / EVALUATIONS):
            self._truncate(EVALUATIONS, step)

    def _truncate(self, name: str, step: int) -> None:
        kept = [line for line, row in _lines(self.path / name) if row is not None and row.get("step", 0) <= step]
        write_atomically(self.path / name, "".join(f"{line}\n" for line in kept).encode())

    def save_picture(self, name: str, image: Image) -> Path:
        """Write ``image`` as PNG to ``name`` within the folder, atomically."""
        target = self.path / name
        _make(target.parent)
        write_atomically(target, png(image))
        return target

    def save_sample(self, step: int, image: Image) -> Path:
        """Write the sample picture of ``step`` to samples/step-00000100.png, and to TensorBoard."""
        target = self.save_picture(f"{SAMPLES}/step-{step:08d}.png", image)
        self._send({"samples": image}, step)
        return target

    def close(self) -> None:
        """Flush and close TensorBoard's events; everything else is on disk already."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _send(self, values: Mapping[str, Any], step: int) -> None:
        """Scalars and pictures to TensorBoard."""
        try:
            if self._events is None and self._events_wanted:
                self._events = _open_events(self.path / EVENTS, self._purge)
                self._events_wanted = self._events is not None
            if self._events is None:
                return
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(key, value, step)
                else:
                    self._events.add_image(key, numpy.asarray(value.convert("RGB")), step, dataformats="HWC")
        except OSError as error:
            self._events, self._events_wanted = None, False
            raise NotWritable(f"{self.path / EVENTS}: TensorBoard events stop at step {step}: {error.strerror}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in ``folder``; the system lets go of it when this one ends, however it ends.

    Raises NotWritable where another process is training there, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context((folder / LOCK).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotWritable(f"another process is training in {folder}: wait for it, or choose another --out") from None
        except OSError as error:
            raise NotWritable(f"cannot lock {folder / LOCK}: {error.strerror}") from error
        yield


@contextmanager
def removed_if_untrained(folder: Path) -> Iterator[None]:
    """Where the block fails, remove the run that it began in ``folder`` if it trained nothing: the place is free again.

    What was there before the block stays, and so does a run with rows in its log, a checkpoint or a diagnosis.
    """
    missing = _missing(folder)
    new = [folder / name for name in (LOG, EVALUATIONS, SAMPLES, EVENTS, LOCK, CONFIG) if not os.path.exists(folder / name)]
    try:
        yield
    except Exception:
        if folder / CONFIG in new and os.path.exists(folder / CONFIG):
            with suppress(NotWritable), locked(folder):  # another process may have begun here meanwhile
                left = any(os.path.exists(folder / name) for name in (CHECKPOINTS, DIAGNOSIS))
                if not left and not any(row for _, row in _lines(folder / LOG)):
                    for place in new:
                        with suppress(OSError):
                            (shutil.rmtree if place.is_dir() else os.unlink)(place)
                    _remove_empty(missing)
        raise


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run's folder. Raises NotFound or Damaged."""
    place = folder / CONFIG
    try:
        config = json.loads(place.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no run in {folder}: expected a folder with {CONFIG}, as `ganfast train --out` writes it") from None
    except OSError as error:
        raise Damaged(f"{place} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Damaged(f"{place} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise Damaged(f"{place}: expected a JSON object, got {type(config).__name__}")
    return config


def read_rows(folder: Path, name: str = LOG) -> list[dict[str, Any]]:
    """All rows of a folder's log.jsonl (or of ``name``), with NaN and Inf restored; none where there is no such file.

    Raises Damaged for an unreadable log, or an unreadable line before the last one.
    """
    place = folder / name
    lines = list(_lines(place))
    rows = []
    for number, (_, row) in enumerate(lines, start=1):
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise Damaged(f"{place}, line {number} is not a JSON object with a number as step; resuming the run drops it")
    return rows


def sample_pictures(folder: Path) -> list[Path]:
    """The sample pictures of a run, by step."""
    return sorted((place for place in (folder / SAMPLES).glob("step-*.png") if place.stem[5:].isdecimal()), key=step_of)


def step_of(picture: Path) -> int:
    """The step in the name of a sample picture."""
    return int(picture.stem.removeprefix("step-"))


def png(image: Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _refuse_used(folder: Path) -> None:
    for name in (CONFIG, LOG, SAMPLES, CHECKPOINTS):
        if os.path.exists(folder / name):
            raise InvalidValue(f"{folder} already holds a run ({name}): continue it with --resume, or choose another --out")


def _refuse_within_data(folder: Path, config: Mapping[str, Any]) -> None:
    """The run's own pictures would be data when it goes on, and for every later run on that folder."""
    data = config.get("data", {}).get("source")
    if data and os.path.isdir(data) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(data)):
        raise InvalidValue(f"{folder} lies within the data {data}, and its pictures would become data: choose an --out elsewhere")


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents, all or none; returns those that were missing, deepest first."""
    made: list[Path] = []
    try:
        for place in reversed(_missing(folder)):
            place.mkdir(exist_ok=True)
            made.insert(0, place)
        if not folder.is_dir():
            raise NotADirectoryError
    except NotADirectoryError:
        blocking = next(place for place in (folder, *folder.parents) if os.path.exists(place))
        raise NotWritable(f"cannot write to {folder}: expected a folder, and {blocking} is a file") from None
    except OSError as error:
        _remove_empty(made)
        raise NotWritable(f"cannot make the folder {folder}: {error.strerror}") from error
    return made


def _missing(folder: Path) -> list[Path]:
    """Of a folder and its parents those that are not there, or not to be seen: making them then says why. Deepest first."""
    return [place for place in (folder, *folder.parents) if not os.path.exists(place)]


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # somebody else has put something there meanwhile, or it was never made
        for place in folders:
            place.rmdir()


def _config_text(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(config), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{CONFIG}: expected numbers, strings, lists and mappings only: {error}") from None


def _plain(key: str, value: Any) -> Any:
    """A row's value as JSON knows it: tensors and numpy scalars become floats."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidType(f"log row: expected a number or a string for {key!r}, got {type(value).__name__}") from None


def _append_line(place: Path, text: str) -> None:
    try:
        with place.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                data = f"{text}\n".encode()
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)  # a disk that fills up half-way through a row must not tear the log
                raise
    except OSError as error:
        raise NotWritable(f"cannot write {place}: {error.strerror}") from error


def _lines(place: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each line of a log with its row, None where it is not one."""
    try:
        text = place.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Damaged(f"{place} cannot be read: {error.strerror}") from None
    for line in text.split("\n"):
        try:
            row = json.loads(line)
            row |= {key: float(name) for key, name in row.pop("nonfinite", {}).items()}
            whole = isinstance(row.get("step", 0), int | float)
        except (ValueError, TypeError, AttributeError):
            whole = False
        yield line, row if whole else None


def _open_events(folder: Path, purge: int | None) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, AttributeError, TypeError):  # absent, or broken by a mismatched protobuf or numpy
        return None
    return SummaryWriter(str(folder), purge_step=purge)
