"""Every kind of source, on small files in the true format."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast.data import Dataset, fashion, names, open_dataset

Write = Callable[..., Path]


def test_embedded_fashion_mnist() -> None:
    data = open_dataset("fashion-mnist-10k")
    assert (len(data), data.image_size, data.channels, data.classes) == (10_000, 28, 1, 10)
    assert data.fields == ("real", "labels")
    assert data.class_names[9] == "Ankle boot"
    # The test split has 1,000 images of each class, and its first image is an ankle boot.
    assert np.bincount(data.groups["real"]["labels"]).tolist() == [1000] * 10
    assert data.groups["real"]["labels"][0] == 9
    assert hashlib.sha256(data.groups["real"]["real"].tobytes()).hexdigest() == hashlib.sha256(_published_pixels()).hexdigest()
    assert {"fashion-mnist", "fashion-mnist-10k", "toy:ring8", "toy:grid25", "toy:swissroll"} <= set(names())
    assert json.loads(json.dumps(data.describe()))["rows"] == {"real": 10_000}


def _published_pixels() -> bytes:
    packed = (Path(fashion.__file__).parent / "embedded" / "t10k-images-idx3-ubyte.gz").read_bytes()
    return gzip.decompress(packed)[16:]


def test_arrays_of_every_layout(rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    colour = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for source, truth in (
        (grey, grey[..., None]),
        (grey[:, None], grey[..., None]),
        (grey[..., None], grey[..., None]),
        (colour, colour),
        (colour.transpose(0, 3, 1, 2), colour),
        (torch.from_numpy(colour).permute(0, 3, 1, 2), colour),
        (colour.astype(np.float64) / 255, colour),
        (torch.from_numpy(colour).float() / 255, colour),
    ):
        data = open_dataset(source)
        assert np.array_equal(data.groups["real"]["real"], truth)
        assert data.classes == 0
    assert open_dataset(grey, channels=3).channels == 3
    assert open_dataset(colour[:, :6], image_size=4).groups["real"]["real"].shape == (6, 4, 4, 3)


def test_an_array_with_labels_and_points(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    for labels in ([0, 1, 4, 1, 0], np.array([0, 1, 4, 1, 0], np.uint8), torch.tensor([0.0, 1, 4, 1, 0])):
        data = open_dataset((images, labels))
        assert data.groups["real"]["labels"].tolist() == [0, 1, 4, 1, 0]
        assert data.classes == 5
    points = open_dataset(rng.standard_normal((7, 3)))
    assert (points.points, len(points), str(points.groups["real"]["real"].dtype)) == (3, 7, "float32")


def test_an_open_data_set_is_returned_as_it_is(rng: np.random.Generator) -> None:
    data = open_dataset(rng.integers(0, 256, (5, 4, 4), dtype=np.uint8))
    assert open_dataset(data) is data
    assert open_dataset(data, image_size=4, channels=1) is data


def test_arrays_of_a_data_set_cannot_be_written(rng: np.random.Generator) -> None:
    data = open_dataset(rng.integers(0, 256, (5, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        data.groups["real"]["real"][0] = 0


class Items(torch.utils.data.Dataset[Any]):
    classes = ("cat", "dog")

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def test_torch_data_sets(rng: np.random.Generator) -> None:
    colour = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    makers: list[Callable[[np.ndarray], Any]] = [
        Image.fromarray,
        lambda pixels: pixels,
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
    ]
    for make in makers:
        data = open_dataset(Items([(make(pixels), k % 2) for k, pixels in enumerate(colour)]))
        assert np.array_equal(data.groups["real"]["real"], colour)
        assert data.groups["real"]["labels"].tolist() == [0, 1, 0, 1]
        assert data.class_names == ("cat", "dog")
        assert open_dataset([make(pixels) for pixels in colour]).fields == ("real",)
    mixed = Items([Image.new("L", (9, 5), 7), Image.new("RGB", (4, 6), (1, 2, 3))])
    resized = open_dataset(mixed, image_size=4)
    assert resized.groups["real"]["real"].shape == (2, 4, 4, 3)
    assert (resized.groups["real"]["real"][0] == 7).all()


@pytest.mark.parametrize("packed", [True, False])
def test_idx_with_labels_beside_it(tmp_path: Path, rng: np.random.Generator, write_idx: Write, packed: bool) -> None:
    images, labels = rng.integers(0, 256, (12, 9, 9), dtype=np.uint8), np.arange(12) % 3
    path = write_idx(tmp_path / "mnist", images, labels, packed=packed)
    for source in (path, str(path), path.parent):
        data = open_dataset(source)
        assert np.array_equal(data.groups["real"]["real"][..., 0], images)
        assert data.groups["real"]["labels"].tolist() == labels.tolist()
    alone = write_idx(tmp_path / "alone", images, None, packed=packed)
    assert open_dataset(alone).fields == ("real",)


def test_npz_and_npy(tmp_path: Path, rng: np.random.Generator) -> None:
    images, labels = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2])
    np.savez_compressed(tmp_path / "keras.npz", x_train=images, y_train=labels, x_test=images[:1])
    np.savez(tmp_path / "guided.npz", images, labels)
    np.savez(tmp_path / "one.npz", anything=images)
    np.save(tmp_path / "plain.npy", images)
    for name, labelled in (("keras.npz", True), ("guided.npz", True), ("one.npz", False), ("plain.npy", False)):
        data = open_dataset(tmp_path / name)
        assert np.array_equal(data.groups["real"]["real"], images)
        assert data.classes == (3 if labelled else 0)
        assert data.name == name
    np.savez(tmp_path / "points.npz", points=rng.standard_normal((9, 2)))
    assert open_dataset(tmp_path / "points.npz").points == 2
    assert open_dataset(tmp_path / "points.npz").points == 2  # from the cache


def test_cifar_10_as_published(
    tmp_path: Path, rng: np.random.Generator, write_tar: Write, cifar_batch: Any, cifar_meta: Any
) -> None:
    images = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    rows = images.transpose(0, 3, 1, 2).reshape(10, -1)  # each row: 1,024 red, then green, then blue
    files = {
        f"cifar-10-batches-py/data_batch_{k + 1}": cifar_batch(rows[2 * k : 2 * k + 2], [2 * k, 2 * k + 1]) for k in range(5)
    }
    files["cifar-10-batches-py/test_batch"] = cifar_batch(rows[:1], [0])
    files["cifar-10-batches-py/batches.meta"] = cifar_meta([f"class {k}" for k in range(10)])
    files["cifar-10-batches-py/readme.html"] = b"<html>"
    data = open_dataset(write_tar(tmp_path / "cifar-10-python.tar.gz", files))
    assert np.array_equal(data.groups["real"]["real"], images)
    assert data.groups["real"]["labels"].tolist() == list(range(10))
    assert data.class_names[3] == "class 3"


def test_cifar_100_has_fine_labels(
    tmp_path: Path, rng: np.random.Generator, write_tar: Write, cifar_batch: Any, cifar_meta: Any
) -> None:
    rows = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
    files = {
        "cifar-100-python/meta": cifar_meta([f"fine {k}" for k in range(100)], "fine_label_names"),
        "cifar-100-python/train": cifar_batch(rows, [99, 0, 41], "fine_labels"),
        "cifar-100-python/test": cifar_batch(rows[:1], [0], "fine_labels"),
    }
    data = open_dataset(write_tar(tmp_path / "cifar-100-python.tar.gz", files))
    assert data.groups["real"]["labels"].tolist() == [99, 0, 41]
    assert data.classes == 100
    assert np.array_equal(data.groups["real"]["real"][2].transpose(2, 0, 1).reshape(-1), rows[2])


def test_an_image_folder_without_labels(tmp_path: Path, rng: np.random.Generator, write_png: Write) -> None:
    images = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    for k, pixels in enumerate(images):
        write_png(tmp_path / "set" / f"{k}.png", pixels)
    (tmp_path / "set" / "notes.txt").write_text("not an image")
    (tmp_path / "set" / ".hidden.png").write_bytes(b"junk")
    data = open_dataset(tmp_path / "set")
    assert np.array_equal(data.groups["real"]["real"], images)  # 2.png before 10.png
    assert data.fields == ("real",)
    assert data.name == "set"


def test_sub_folders_are_classes(tmp_path: Path, rng: np.random.Generator, write_png: Write) -> None:
    for name, value in (("dog/a.png", 1), ("dog/more/b.PNG", 2), ("cat/c.png", 3)):
        write_png(tmp_path / "pets" / name, np.full((4, 4), value, np.uint8))
    data = open_dataset(tmp_path / "pets")
    assert data.class_names == ("cat", "dog")
    assert data.groups["real"]["labels"].tolist() == [0, 1, 1]
    assert data.groups["real"]["real"][:, 0, 0, 0].tolist() == [3, 1, 2]
    assert data.channels == 1


def test_an_unpaired_pair(tmp_path: Path, write_png: Write, write_zip: Write) -> None:
    files = {"trainA/x.png": 10, "trainA/y.png": 20, "trainB/z.png": 30, "testA/t.png": 40}
    arrays = {f"horse2zebra/{name}": np.full((5, 5, 3), value, np.uint8) for name, value in files.items()}
    for name, pixels in arrays.items():
        write_png(tmp_path / "folder" / name, pixels)
    for source in (tmp_path / "folder", tmp_path / "folder" / "horse2zebra", write_zip(tmp_path / "pair.zip", arrays)):
        data = open_dataset(source)
        assert data.fields == ("a", "b")
        assert data.groups["a"]["a"][:, 0, 0, 0].tolist() == [10, 20]
        assert data.groups["b"]["b"][:, 0, 0, 0].tolist() == [30]
        assert (len(data), data.classes) == (2, 0)


def test_a_stylegan_zip(tmp_path: Path, rng: np.random.Generator, write_zip: Write) -> None:
    images = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    files: dict[str, Any] = {f"00000/img0000000{k}.png": pixels for k, pixels in enumerate(images)}
    labels = {"labels": [["00000/img00000002.png", 7], ["00000/img00000000.png", 5], ["00000/img00000001.png", 0]]}
    labelled = open_dataset(write_zip(tmp_path / "labelled.zip", files | {"dataset.json": json.dumps(labels)}))
    assert np.array_equal(labelled.groups["real"]["real"], images)
    assert labelled.groups["real"]["labels"].tolist() == [5, 0, 7]
    assert labelled.classes == 8
    plain = open_dataset(write_zip(tmp_path / "plain.zip", files | {"dataset.json": json.dumps({"labels": None})}))
    assert plain.fields == ("real",)


def test_fashion_mnist_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_idx: Write) -> None:
    write_idx(tmp_path / "system", np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10)
    monkeypatch.setattr(fashion, "SYSTEM", tmp_path / "system")
    data = open_dataset("fashion-mnist")
    assert (data.name, len(data), data.classes, data.class_names[0]) == ("fashion-mnist", 20, 10, "T-shirt/top")


def test_fashion_mnist_is_fetched_once_and_checked(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, write_idx: Write
) -> None:
    server = write_idx(tmp_path / "server", np.full((10, 28, 28), 3, np.uint8), np.arange(10)).parent
    asked: list[str] = []

    def fetch(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO((server / url.rpartition("/")[2]).read_bytes())

    sums = {file.name: hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest() for file in server.iterdir()}
    monkeypatch.setattr(fashion, "SYSTEM", tmp_path / "absent")
    monkeypatch.setattr(fashion, "TRAIN", {name: sums[name] for name in fashion.TRAIN})
    monkeypatch.setattr("urllib.request.urlopen", fetch)
    for _ in range(2):
        assert (open_dataset("fashion-mnist").groups["real"]["real"] == 3).all()
    assert asked == [f"{fashion.URL}train-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")]
    assert sorted(file.name for file in (cache / "downloads" / "fashion-mnist").iterdir()) == sorted(fashion.TRAIN)


def test_a_data_set_built_by_hand_is_described() -> None:
    data = Dataset("pair", {"a": {"a": np.zeros((2, 4, 4, 1), np.uint8)}, "b": {"b": np.ones((3, 4, 4, 1), np.uint8)}})
    described = data.describe()
    assert described["rows"] == {"a": 2, "b": 3}
    assert described["fields"]["b"] == {"dtype": "uint8", "shape": [3, 4, 4, 1]}
    changed = np.zeros((2, 4, 4, 1), np.uint8)
    changed[1, 3, 3, 0] = 1
    other = Dataset("pair", {"a": {"a": changed}, "b": {"b": np.ones((3, 4, 4, 1), np.uint8)}})
    assert len(described["digest"]) == 64
    assert other.digest != data.digest
