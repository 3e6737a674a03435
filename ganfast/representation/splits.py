"""Which labelled images are fitted, which choose C, and which are tested: random, and fair to every class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.errors import InvalidData, InvalidValue

_SHARE = 5  # one image in so many is held out where nobody said how many
_MOST = 10_000  # images to validate on: more would not tell costs apart any better


class Split(NamedTuple):
    """Row numbers: to fit, in an order whose every start holds all classes alike, to choose C by, and to test."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split(
    labels: Tensor, test_labels: Tensor | None, *, train: int | None, test: int | None, seed: int, names: tuple[str, ...] = ()
) -> Split:
    """A split of ``labels`` (N,), tested on rows of its own or, where there are ``test_labels`` (M,), of those.

    ``test`` is how many to test, by default all of ``test_labels`` or a fifth of ``labels``; ``train`` how many of the others to
    use, by default all, of which a fifth, at most 10,000, chooses C. Held-out rows have the classes in the data's proportions.
    Raises InvalidValue for more rows than there are, InvalidData for classes with too few of them.
    """
    generator = torch.Generator().manual_seed(seed)
    order = _shuffled(labels, generator, alike=False)
    if test_labels is None:
        test = max(1, len(labels) // _SHARE) if test is None else test
        if not 0 < test < len(labels):
            raise InvalidValue(f"test: expected from 1 to {len(labels) - 1} of {len(labels)} images, got {test}")
        tested, order = order[:test], order[test:]
    else:
        test = len(test_labels) if test is None else test
        if not 0 < test <= len(test_labels):
            raise InvalidValue(f"test: expected from 1 to {len(test_labels)} images, as many as there are, got {test}")
        tested = _shuffled(test_labels, generator, alike=False)[:test]
    train = len(order) if train is None else train
    if not 2 <= train <= len(order):
        raise InvalidValue(f"train: expected from 2 to {len(order)} images, those that are not tested, got {train}")
    order = order[:train]
    held = min(_MOST, max(1, train // _SHARE))
    validation, fitted = order[:held], order[held:]
    known = labels if test_labels is None else test_labels
    _check_classes([labels[fitted], labels[validation], known[tested]], names)
    return Split(fitted[_shuffled(labels[fitted], generator, alike=True)], validation, tested)


def draws(labels: Tensor, count: int, repeats: int, seed: int) -> list[Tensor]:
    """``repeats`` random choices (count,) of rows of ``labels``, with all classes alike as far as they last."""
    generator = torch.Generator().manual_seed(seed)
    return [_shuffled(labels, generator, alike=True)[:count] for _ in range(repeats)]


def _shuffled(labels: Tensor, generator: torch.Generator, *, alike: bool) -> Tensor:
    """A random order whose every start holds equally many of each class (``alike``), or as large a share of each."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    by_class = shuffled.argsort(stable=True)
    counts = shuffled.bincount()
    rank = torch.empty(len(labels), dtype=torch.float64)
    rank[by_class] = torch.cat([torch.arange(int(n), dtype=torch.float64) for n in counts])
    place = rank if alike else (rank + 0.5) / counts[shuffled]
    # ties, the first of every class for one, stand in random order
    return order[place.argsort(stable=True)]


def _check_classes(parts: list[Tensor], names: tuple[str, ...]) -> None:
    """Of the labels to fit, to choose by and to test."""
    classes = int(torch.cat(parts).max()) + 1
    counts = [part.bincount(minlength=classes).tolist() for part in parts]
    for number, (fitted, held, tested) in enumerate(zip(*counts, strict=True)):
        if (fitted == 0 < held + tested) or (tested == 0 < fitted):
            called = f"{number} ({names[number]})" if number < len(names) else str(number)
            there = f"class {called} has {fitted} images to fit and {tested} to test"
            raise InvalidData(f"{there}: expected at least one of each; give it more images, or leave it out")
    if len(parts[0].unique()) < 2:
        raise InvalidData("expected images of at least two classes to tell apart, got those of one")
