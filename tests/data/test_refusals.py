"""What does not fit is one clear line that names the file, and leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import struct
import urllib.error
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast import errors
from ganfast.data import Dataset, fashion, limits, open_dataset
from ganfast.errors import InvalidData, InvalidType, InvalidValue, NotFound

Write = Callable[..., Path]

IMAGES = np.zeros((4, 8, 8), np.uint8)


def refused(source: Any, kind: type[errors.Error] = InvalidData, **look: Any) -> str:
    """The message, after checking that it is one line and that no cache entry is left."""
    with pytest.raises(kind) as caught:
        open_dataset(source, **look)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def nothing_left(cache: Path) -> Any:
    yield
    assert not (cache / "data").exists() or not any((cache / "data").iterdir())


def test_names_and_paths(tmp_path: Path) -> None:
    assert "did you mean 'fashion-mnist-10k'" in refused("fashion-mnist-10", InvalidValue)
    assert "did you mean 'toy:ring8'" in refused("toy:ring", InvalidValue)
    assert refused(str(tmp_path / "absent"), NotFound).endswith("absent")
    assert "absent.zip" in refused(Path("absent.zip"), NotFound)
    (tmp_path / "song.mp3").write_bytes(b"ID3" + bytes(500))
    assert "song.mp3 is nothing that can be opened" in refused(tmp_path / "song.mp3")
    (tmp_path / "empty.bin").write_bytes(b"")
    assert "empty.bin" in refused(tmp_path / "empty.bin")


def test_places_that_may_not_be_entered(tmp_path: Path, closed: Path, write_png: Write) -> None:
    message = f"{closed / 'inner' / 'x.npz'} cannot be read: Permission denied"
    assert refused(closed / "inner" / "x.npz") == message
    assert "cannot be read: Permission denied" in refused(closed / "inner")
    assert "cannot be read: File name too long" in refused("n" * 300)
    write_png(tmp_path / "set" / "a.png", IMAGES[0])
    (tmp_path / "set" / "dataset.json").write_text("{}")
    (tmp_path / "set" / "dataset.json").chmod(0)
    assert "dataset.json cannot be read: Permission denied" in refused(tmp_path / "set")


def test_looks() -> None:
    assert "from 1 to" in refused(IMAGES, InvalidValue, image_size=0)
    assert "whole number" in refused(IMAGES, InvalidType, image_size=32.0)
    assert "channels must be 1 (grey), 3 (colour)" in refused(IMAGES, InvalidValue, channels=4)
    assert "did you mean 'lanczos'" in refused(IMAGES, InvalidValue, filter="lanzcos")
    assert "open already with image_size 8" in refused(open_dataset(IMAGES), InvalidValue, image_size=4)


def test_arrays() -> None:
    assert "got shape (5,)" in refused(np.zeros(5, np.uint8))
    assert "got shape (0, 8, 8)" in refused(np.zeros((0, 8, 8), np.uint8))
    assert "got int64" in refused(np.zeros((2, 8, 8), np.int64))
    assert "must lie in [0, 1], got -1 .. 1" in refused(np.linspace(-1, 1, 128).reshape(2, 8, 8))
    assert "must lie in [0, 1], got nan" in refused(np.full((2, 8, 8), np.nan))
    assert "1 to 4 channels" in refused(np.zeros((2, 5, 8, 8), np.uint8))
    assert "8 x 6, not square; pass image_size" in refused(np.zeros((2, 6, 8), np.uint8))
    assert "points must be finite" in refused(np.array([[1.0, np.inf]]))
    assert "float type" in refused(np.zeros((4, 2), np.int32))
    assert "got int" in refused(3, InvalidType)
    assert "got dict" in refused({}, InvalidType)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "3 labels do not fit 4 images"),
        ([0, 1, 2, -1], "from 0 to 65535, label 3 is -1"),
        ([0, 1, 2, 70_000], "from 0 to 65535, label 3 is 70000"),
        ([0, 1, 2.5, 1], "whole numbers, label 2 is 2.5"),
        ([0, 1, float("nan"), 1], "whole numbers, label 2 is nan"),
        (["a", "b", "c", "d"], "whole numbers, got dtype"),
        ([[1], [0], [1], [0]], "must have shape (4,), got (4, 1)"),
        ([[1], [0, 1], [1], [0]], "rows of different lengths"),
    ],
)
def test_labels(labels: Any, message: str) -> None:
    assert message in refused((IMAGES, labels))


def test_torch_data_sets() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([1])

    assert "Stream has no length" in refused(Stream(), InvalidType)
    assert "is empty" in refused([])
    assert "item 1: some items have labels" in refused([(IMAGES[0], 1), IMAGES[1]])
    assert "item 0: float images must lie in [0, 1], got -2" in refused([torch.full((3, 8, 8), -2.0)])
    assert "item 0: expected a PIL image or an array" in refused(["cat"], InvalidType)
    assert "got a tuple of 3" in refused([(IMAGES[0], 1, 2)])
    assert "images differ in size" in refused([Image.new("L", (4, 4)), Image.new("L", (5, 5))])


def test_data_sets_built_by_hand() -> None:
    image = np.zeros((2, 4, 4, 1), np.uint8)
    for groups, message in (
        ({}, "got none"),
        ({"a": {"x": image}, "b": {"x": image}}, "named once each, got x, x"),
        ({"a": {"a": image}, "b": {"b": image[:, :2, :2]}}, "one size"),
        ({"a": {"a": image, "b": image[:1]}}, "equally many rows"),
        ({"a": {"a": image[:, :2]}}, "field 'a' must be images uint8"),
        ({"a": {"a": image.astype(np.float64)}}, "got float64"),
        ({"real": {"real": image, "labels": np.array([0, -1])}}, "label 1 is -1"),
    ):
        with pytest.raises(InvalidData, match=message):
            Dataset("x", groups)
    with pytest.raises(InvalidData, match="from 0 to 1, label 1 is 2"):
        Dataset("x", {"real": {"real": image, "labels": np.array([0, 2])}}, ("cat", "dog"))


def test_idx(tmp_path: Path, write_idx: Write) -> None:
    def gz(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(gzip.compress(data))
        return tmp_path / name

    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 8, 8)
    assert "promises 4 x 8 x 8 bytes, 255 follow" in refused(gz("short.gz", header + bytes(255)))
    assert "promises 4 x 8 x 8 bytes, 257 follow" in refused(gz("long.gz", header + bytes(999)))
    assert "cut short" in refused(gz("header.gz", header[:10]))
    huge = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**20, 2**20)
    assert "the limit is 200" in refused(gz("huge.gz", huge + bytes(10)))
    assert "none of them 0" in refused(gz("none.gz", bytes([0, 0, 8, 3]) + struct.pack(">3I", 0, 8, 8)))
    assert "images must have sizes" in refused(gz("flat.gz", bytes([0, 0, 8, 1]) + struct.pack(">I", 4) + bytes(4)))
    good = write_idx(tmp_path / "good", np.random.default_rng(0).integers(0, 256, (4, 28, 28)), np.arange(4))
    labels = good.with_name("train-labels-idx1-ubyte.gz")
    assert "holds labels; pass the images file" in refused(labels)
    good.write_bytes(good.read_bytes()[:-500])
    assert "train-images-idx3-ubyte.gz is truncated or damaged" in refused(good)
    few = write_idx(tmp_path / "few", IMAGES, np.arange(3))
    assert "train-labels-idx1-ubyte.gz: 3 labels do not fit 4 images" in refused(few)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=np.array([{"a": 1}, None], dtype=object))
    assert "x.npz" in refused(path)
    assert "allow_pickle" in refused(path)
    np.savez(path, one=IMAGES, two=IMAGES)
    assert "holds one, two; the images must be called" in refused(path)
    np.savez(path, images=IMAGES, labels=np.arange(5))
    assert "x.npz: 5 labels do not fit 4 images" in refused(path)
    path.write_bytes(path.read_bytes()[:-30])
    assert "x.npz cannot be read as npz" in refused(path)
    np.save(tmp_path / "y.npy", IMAGES)
    (tmp_path / "y.npy").write_bytes((tmp_path / "y.npy").read_bytes()[:-1])
    assert "y.npy cannot be read as npy" in refused(tmp_path / "y.npy")


class Attack:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle was executed')",)


def test_cifar(tmp_path: Path, write_tar: Write, cifar_batch: Any, cifar_meta: Any) -> None:
    path, member = tmp_path / "c.tar.gz", "cifar-10-batches-py/data_batch_1"
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    attack = pickle.dumps({b"data": Attack(), b"labels": [0]}, protocol=2)
    assert "asks for __builtin__.exec, which no CIFAR file needs" in refused(write_tar(path, {member: attack}))
    system = b"cos\nsystem\n(S'true'\ntR."
    assert "asks for os.system" in refused(write_tar(path, {member: system}))
    good = cifar_batch(rows, [0, 1, 2, 3])
    assert "data_batch_1 is damaged" in refused(write_tar(path, {member: good[:-100]}))
    assert "must hold a dictionary, got list" in refused(write_tar(path, {member: b"]."}))
    assert "shape (N, 3072), got (4, 3000)" in refused(write_tar(path, {member: cifar_batch(rows[:, :3000], [0, 1, 2, 3])}))
    assert "data_batch_1: 3 labels do not fit 4 images" in refused(write_tar(path, {member: cifar_batch(rows, [0, 1, 2])}))
    ten = {"cifar-10-batches-py/batches.meta": cifar_meta([str(k) for k in range(10)])}
    assert "from 0 to 9, label 1 is 10" in refused(write_tar(path, {member: cifar_batch(rows, [0, 10, 2, 3])} | ten))
    assert "there must be labels or fine_labels" in refused(write_tar(path, {member: cifar_batch(rows, [0] * 4, "other")}))
    assert "no CIFAR training batches" in refused(write_tar(path, {"readme": b"x"}))
    zeros = cifar_batch(np.zeros((20_000, 3072), np.uint8), [0])
    assert "the limit is 200" in refused(write_tar(path, {member: zeros}))
    write_tar(path, {member: good})
    path.write_bytes(path.read_bytes()[:-3000])
    assert "c.tar.gz" in refused(path)


def test_folders(tmp_path: Path, write_png: Write) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    assert f"{folder} holds no images" in refused(folder)
    write_png(folder / "trainA" / "x.png", IMAGES[0])
    assert "no images in trainB" in refused(folder)
    mixed = tmp_path / "mixed"
    for name in ("top.png", "cat/a.png", "dog/b.png"):
        write_png(mixed / name, IMAGES[0])
    assert "1 images beside its sub-folders (the first is top.png)" in refused(mixed)
    sizes = tmp_path / "sizes"
    write_png(sizes / "a.png", np.zeros((8, 8), np.uint8))
    write_png(sizes / "b.png", np.zeros((9, 9), np.uint8))
    message = refused(sizes)
    assert "a.png is 8 x 8" in message
    assert "b.png is 9 x 9; pass image_size (--image-size)" in message
    write_png(tmp_path / "wide" / "w.png", np.zeros((4, 6), np.uint8))
    assert "w.png is 6 x 4, not square" in refused(tmp_path / "wide")


def test_one_broken_picture_in_a_small_folder_is_an_error(tmp_path: Path, write_png: Write) -> None:
    for k in range(5):
        write_png(tmp_path / "set" / f"{k}.png", np.random.default_rng(k).integers(0, 256, (16, 16), dtype=np.uint8))
    broken = tmp_path / "set" / "3.png"
    whole = broken.read_bytes()
    for data in (b"", b"no picture", whole[:-150], whole[:60] + bytes(40) + whole[100:]):
        broken.write_bytes(data)
        looks: list[dict[str, Any]] = [{}, {"image_size": 8, "channels": 1}]
        for look in looks:
            message = refused(tmp_path / "set", **look)
            assert f"{broken} cannot be read" in message
            assert "of 5 images at most 0 may be unreadable" in message


def test_too_many_broken_pictures_are_an_error(tmp_path: Path, write_png: Write) -> None:
    for k in range(120):
        write_png(tmp_path / "set" / f"{k}.png", IMAGES[0])
    for k in (7, 9):
        (tmp_path / "set" / f"{k}.png").write_bytes(b"broken")
    assert "7.png and 1 more cannot be read" in refused(tmp_path / "set")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_png: Write) -> None:
    write_png(tmp_path / "set" / "big.png", np.zeros((200, 200), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert "big.png is too large" in refused(tmp_path / "set", image_size=8)


def test_zips(tmp_path: Path, write_zip: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    files: dict[str, Any] = {f"{k}.png": IMAGES[0] for k in range(3)}
    write_zip(path, files)
    good = path.read_bytes()
    path.write_bytes(good[:-40])
    assert "x.zip is truncated or no zip archive" in refused(path)
    path.write_bytes(good[:50] + bytes([good[50] ^ 255]) + good[51:])
    assert "x.zip: 0.png cannot be read" in refused(path)
    assert "holds no images" in refused(write_zip(path, {"a.txt": "x"}))
    for labels, message in (
        ([["0.png", 1], ["1.png", 0]], "2 labels do not fit 3 images: 2.png has none"),
        ([["0.png", 1], ["1.png", 0], ["2.png", 0], ["3.png", 0]], "4 labels do not fit 3 images: 3.png is no image here"),
        ([["0.png", 1], ["1.png", -3], ["2.png", 0]], "label 1 is -3"),
        ([["0.png", [0.5, 1]], ["1.png", [1, 0]], ["2.png", [0, 0]]], "must have shape (3,), got (3, 2)"),
        (["0.png"], "must hold"),
    ):
        listed = json.dumps({"labels": labels})
        assert message in refused(write_zip(path, files | {"dataset.json": listed}))
    assert "x.zip: dataset.json must hold" in refused(write_zip(path, files | {"dataset.json": "{"}))

    write_zip(path, files)
    for limit, value, message in (
        ("ENTRIES", 2, "has 3 entries; the limit is 2"),
        ("ENTRY_BYTES", 10, "0.png unpacks to"),
        ("TOTAL_BYTES", 100, "x.zip unpacks to"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(limits, limit, value)
            assert message in refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(20 << 20))
    assert "bomb.png would be " in refused(path)


def test_an_encrypted_zip_is_refused(tmp_path: Path, write_zip: Write) -> None:
    data = bytearray(write_zip(tmp_path / "x.zip", {"0.png": IMAGES[0]}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    (tmp_path / "x.zip").write_bytes(data)
    assert "0.png is encrypted" in refused(tmp_path / "x.zip")


def test_fashion_mnist_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(fashion, "SYSTEM", tmp_path / "absent")
    monkeypatch.setattr("urllib.request.urlopen", offline)
    message = refused("fashion-mnist", NotFound)
    for word in ("dataset-fashion-mnist", "train-images-idx3-ubyte.gz", "fashion-mnist-10k", "Name or service not known"):
        assert word in message
    for answer in (b"<html>a portal</html>", gzip.compress(b"other data"), gzip.compress(bytes(9999))[:-8]):
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, answer=answer, **__: io.BytesIO(answer))
        assert "does not have the published contents" in refused("fashion-mnist", errors.Damaged)
    assert not (cache / "downloads").exists()
    right = gzip.compress(b"right")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(right))
    monkeypatch.setattr(fashion, "TRAIN", dict.fromkeys(fashion.TRAIN, hashlib.sha256(b"right").hexdigest()))
    (tmp_path / "file").write_text("in the way")
    assert "set GANFAST_CACHE" in refused("fashion-mnist", errors.NotWritable, cache=tmp_path / "file")
