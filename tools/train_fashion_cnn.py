"""Train the classifier behind ``ganfast.metrics.fashion`` and write its weights and their card.

    python tools/train_fashion_cnn.py --out ganfast/metrics/weights

Fourteen epochs with flips, shifts and resizing take some minutes on one core. One thread and one seed make a run repeatable on
one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad

from ganfast.data import open_dataset
from ganfast.metrics.fashion import FashionCNN, prepared

BATCH = 128
PEAK_LEARNING_RATE = 0.1
SHIFT = 1  # pixels, each way
ENLARGED = (28, 28, 32, 64)  # half of the batches as they are, half resized to what generators are trained at and back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="fashion-mnist", help="training split: a name or path that ganfast opens")
    parser.add_argument("--test", default="fashion-mnist-10k", help="test split, read once at the end")
    parser.add_argument("--out", type=Path, required=True, help="folder for fashion-cnn.safetensors and fashion-cnn.json")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    network = FashionCNN()
    train(network, *images_and_labels(options.data), options.epochs)
    test_images, test_labels = images_and_labels(options.test)
    share = accuracy(network, test_images, test_labels)
    print(f"test accuracy {share:.4f} on {len(test_labels)} images")

    weights = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    card = {
        "accuracy": share,
        "test_images": len(test_labels),
        "data": "Fashion-MNIST (Zalando SE, MIT), 60,000 training images; accuracy on its test split",
        "epochs": options.epochs,
        "seed": options.seed,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "licence": "MIT",
    }
    options.out.mkdir(parents=True, exist_ok=True)
    replace(options.out / "fashion-cnn.safetensors", weights)
    replace(options.out / "fashion-cnn.json", (json.dumps(card, indent=2) + "\n").encode())


def images_and_labels(source: str) -> tuple[Tensor, Tensor]:
    """Grey images (n, 1, 28, 28) in [0, 1] and labels (n,)."""
    rows = open_dataset(source).groups["real"]
    return torch.from_numpy(rows["real"].copy()).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(rows["labels"].copy())


def train(network: FashionCNN, images: Tensor, labels: Tensor, epochs: int) -> None:
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps * epochs)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            batch = augmented(images[rows]).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(network(batch).float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs} loss {total / steps:.4f}", flush=True)
    network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def augmented(images: Tensor) -> Tensor:
    """Each image flipped with probability 1/2 and shifted by up to SHIFT pixels, and all of them resized there and back."""
    n, size = len(images), images.shape[-1]
    rows = torch.arange(size) + torch.randint(0, 2 * SHIFT + 1, (n, 1))
    columns = torch.arange(size) + torch.randint(0, 2 * SHIFT + 1, (n, 1))
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    samples = torch.arange(n)[:, None, None]
    moved = pad(images, [SHIFT] * 4)[:, 0][samples, rows[:, :, None], columns[:, None, :]][:, None]
    enlarged = ENLARGED[int(torch.randint(len(ENLARGED), ()))]
    if enlarged == size:
        return moved
    pixels = interpolate(moved, (enlarged, enlarged), mode="bicubic", antialias=True).clamp(0, 1).mul(255).round().byte()
    return prepared(pixels.permute(0, 2, 3, 1))


@torch.no_grad()
def accuracy(network: FashionCNN, images: Tensor, labels: Tensor) -> float:
    assigned = torch.cat([network(chunk).argmax(dim=1) for chunk in images.split(512)])
    return (assigned == labels).float().mean().item()


def replace(path: Path, contents: bytes) -> None:
    """Write beside ``path`` and rename, so that it never holds half a file."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_bytes(contents)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
