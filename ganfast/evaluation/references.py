"""Features of real images, kept in files: they are the same for every run and every score on the same data.

    references/<key>.statistics.npz, <key>.features.npz, <key>.logits.npz

The key is a digest of all that they follow from: the data's digest, which of them, the network with its preset and weights, the
kind of device. An npz has a checksum for each array; what fails it is made again. What is used was always read from the file,
so that the first score and the later ones agree to the last bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ganfast.data import cache
from ganfast.errors import NotWritable
from ganfast.evaluation.compared import ImageSet
from ganfast.evaluation.features import Need, Side, extracted
from ganfast.files import write_atomically
from ganfast.metrics.feature_network import FeatureNetwork, Images
from ganfast.metrics.statistics import FeatureStatistics

FORMAT = 1  # changes when the same key would mean other numbers
Watch = Callable[[Iterable[Images]], Iterable[Images]]


def side_of(
    images: ImageSet,
    network: FeatureNetwork,
    needs: frozenset[Need],
    *,
    watch: Watch = lambda chunks: chunks,
    folder: str | os.PathLike[str] | None = None,
) -> Side:
    """What ``needs`` asks of a data set's images, from files below ``folder`` (by default $GANFAST_CACHE) where they are there.

    ``watch`` is put around the images as they are read: a progress bar, a look at signals. Where the files cannot be written
    there is a warning.
    """
    if not needs:
        return Side(images.told, images.n)
    try:
        place = cache.folder(folder) / "references"
    except NotWritable as error:
        warnings.warn(f"{error}; the features of {images.told['name']} are not kept", stacklevel=2)
        return extracted(network, watch(images.chunks()), needs, images.told)
    key = _key(images, network)
    files = {need: place / f"{key}.{need}.npz" for need in sorted(needs)}
    kept = _read(files, images, network.device)
    if kept is not None:
        return kept
    made = extracted(network, watch(images.chunks()), needs, images.told)
    try:
        _write(files, made)
    except NotWritable as error:
        warnings.warn(f"{error}; the features of {images.told['name']} are not kept", stacklevel=2)
        return made
    return _read(files, images, network.device) or made


def _key(images: ImageSet, network: FeatureNetwork) -> str:
    which = {key: value for key, value in images.told.items() if key != "name"}
    made_with = {key: value for key, value in network.manifest().items() if key != "versions"}
    identity = {"format": FORMAT, "images": which, "n": images.n, "network": made_with, "device": network.device.type}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:40]


def _write(files: Mapping[Need, Path], side: Side) -> None:
    for need, file in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritable(f"cannot make the folder {file.parent}: {error.strerror}") from error
        if need == "statistics":
            assert side.statistics is not None
            side.statistics.save(file)
            continue
        rows = side.features if need == "features" else side.logits
        assert rows is not None
        buffer = io.BytesIO()
        np.savez(buffer, **{need: rows.cpu().numpy()})  # type: ignore[arg-type]
        write_atomically(file, buffer.getvalue())


def _expect(there: bool, what: str) -> None:
    if not there:
        raise ValueError(f"expected {what}")


def _read(files: Mapping[Need, Path], images: ImageSet, device: torch.device) -> Side | None:
    """The side that the files hold; None where one is not there, or is damaged, which a warning says."""
    statistics: FeatureStatistics | None = None
    rows: dict[Need, Tensor] = {}
    for need, file in files.items():
        if not file.exists():
            return None
        try:
            if need == "statistics":
                statistics = FeatureStatistics.load(file)
                _expect(statistics.count == images.n, f"statistics of {images.n} images")
                continue
            with np.load(file, allow_pickle=False) as arrays:
                rows[need] = torch.from_numpy(arrays[need]).to(device)
            _expect(rows[need].dim() == 2 and len(rows[need]) == images.n, f"{need} of {images.n} images")
            _expect(bool(rows[need].isfinite().all()), "finite numbers")
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warnings.warn(f"{file} is damaged and will be made again: {error}", stacklevel=3)
            return None
    return Side(images.told, images.n, statistics, rows.get("features"), rows.get("logits"))
