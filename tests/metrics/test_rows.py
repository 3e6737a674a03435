from __future__ import annotations

import numpy as np
import pytest
import torch

from ganfast.errors import InvalidType, InvalidValue, whole
from ganfast.metrics.rows import blocks, both, is_pictures, pixels, rows, squared_distances


def test_squared_distances_lose_no_digits_far_from_the_origin(generator: torch.Generator) -> None:
    x, y = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64).round(decimals=3) + 2.0**30
    truth = (x[:, None] - y[None]).square().sum(dim=2)
    torch.testing.assert_close(squared_distances(x, y), truth, rtol=1e-12, atol=1e-13)
    singly = squared_distances(x.float(), y.float())
    assert singly.dtype == torch.float64
    torch.testing.assert_close(singly, (x.float().double()[:, None] - y.float().double()[None]).square().sum(dim=2))
    assert (squared_distances(x, x) >= 0).all()


def test_blocks_cover_all_rows_once_within_their_room() -> None:
    for count, against in ((10, 3), (1000, 1 << 20), (5, 1 << 30), (0, 4)):
        slices = list(blocks(count, against))
        assert [i for part in slices for i in range(count)[part]] == list(range(count))
        assert all((part.stop - part.start) * against <= max(1 << 22, against) for part in slices)


def test_features_keep_their_type_and_whole_numbers_become_floats() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert rows(torch.ones(2, 3, dtype=dtype), "x").dtype == dtype
    assert rows(np.ones((2, 3), np.uint8), "x").dtype == torch.float64
    assert not rows(torch.ones(2, 3, requires_grad=True), "x").requires_grad
    one, other = both(np.ones((2, 3)), torch.ones(4, 3))
    assert (one.shape, other.shape) == ((2, 3), (4, 3))


def test_pictures_are_uint8_in_four_dimensions() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert is_pictures(images) and is_pictures(torch.from_numpy(images))
    assert not is_pictures(images[0]) and not is_pictures(images.astype(float))
    assert pixels(images, "x").shape == (2, 4, 4, 3)


def test_refusals() -> None:
    for call, error, message in [
        (lambda: rows(np.ones(3), "reals"), InvalidValue, r"reals: expected features \(N, D\), got \(3,\)"),
        (lambda: rows(np.ones((3, 0)), "reals"), InvalidValue, r"got \(3, 0\)"),
        (lambda: rows(np.ones((1, 2)), "reals"), InvalidValue, "reals: expected at least 2 samples, got 1"),
        (lambda: rows(np.ones((0, 2)), "reals", least=1), InvalidValue, "expected at least 1 sample, got 0"),
        (lambda: rows(np.array([[1, np.inf], [1, 1]]), "reals"), InvalidValue, "reals holds 1 values that are NaN or Inf, of 4"),
        (lambda: rows([["a"]], "reals"), InvalidType, "reals: expected real numbers"),  # type: ignore[arg-type]
        (lambda: both(np.ones((2, 3)), np.ones((2, 4)), "a", "b"), InvalidValue, "got 3 in a and 4 in b"),
        (lambda: pixels(np.zeros((2, 4, 4)), "x"), InvalidType, r"x: expected uint8 images \(N, H, W, C\), got torch.float64"),
        (lambda: pixels(np.zeros((2, 4, 4, 2), np.uint8), "x"), InvalidValue, r"C 1 or 3 .* got \(2, 4, 4, 2\)"),
        (lambda: whole(0, "k"), InvalidValue, "k: expected at least 1, got 0"),
        (lambda: whole("3", "k"), InvalidType, "k: expected an integer, got '3'"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_an_outlier_does_not_take_the_digits_of_all_others() -> None:
    x = np.random.default_rng(0).standard_normal((100, 4))
    x[0] = 1e9
    exact = np.square(x[:, None] - x[None]).sum(axis=2)
    found = squared_distances(torch.from_numpy(x), torch.from_numpy(x)).numpy()
    assert found[1:, 1:] == pytest.approx(exact[1:, 1:], abs=1e-12)
