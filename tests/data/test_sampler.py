"""The counter-based order is a permutation per epoch, unbiased, the same in C++ and numpy; batches are what the data say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganfast.data import Dataset, Sampler, host, portable
from ganfast.data.sampler import flips, permuted
from ganfast.errors import InvalidValue

WORD = st.integers(0, 2**64 - 1)


@given(n=st.integers(1, 3000), epoch=st.integers(0, 2**50), seed=WORD, stream=WORD)
@settings(max_examples=60, deadline=None)
def test_every_epoch_visits_every_row_once(n: int, epoch: int, seed: int, stream: int) -> None:
    rows = permuted(epoch * n, n, n, seed, stream)
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(n))


@given(n=st.integers(1, 200), start=st.integers(0, 2**45), counts=st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_draw_depends_on_its_number_alone(n: int, start: int, counts: list[int]) -> None:
    whole = permuted(start, sum(counts), n, seed=3)
    parts, at = [], start
    for count in counts:
        parts.append(permuted(at, count, n, seed=3))
        at += count
    assert np.concatenate([np.arange(0), *parts]).tolist() == whole.tolist()


def test_one_row_and_many_epochs() -> None:
    assert permuted(2**41, 1000, 1, seed=0).tolist() == [0] * 1000
    rows = permuted(7 * 10**12, 70, 7, seed=0).reshape(10, 7)
    assert (np.sort(rows, axis=1) == np.arange(7)).all()
    assert len({tuple(row) for row in rows.tolist()}) > 5


def chi_square(counts: np.ndarray) -> float:
    """Distance from uniform in standard deviations of the chi-square statistic."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_order_of_a_small_set_is_equally_likely(n: int) -> None:
    orders = permuted(0, n * 20_000, n, seed=11).reshape(-1, n)
    _, counts = np.unique(orders @ (n ** np.arange(n)), return_counts=True)
    assert len(counts) == math.factorial(n)
    assert abs(chi_square(counts)) < 4


@pytest.mark.parametrize("n", [8, 13, 64, 100])
def test_position_row_and_next_row_are_independent(n: int) -> None:
    orders = permuted(0, n * 5000, n, seed=2, stream=9).reshape(-1, n)
    by_position = np.stack([np.bincount(orders[:, k], minlength=n) for k in range(n)])
    # Rows and columns both sum to the number of epochs, which leaves (n - 1)^2 degrees of freedom.
    expected, freedom = len(orders) / n, (n - 1) ** 2
    assert abs(((by_position - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom) < 4
    steps = (orders[:, 1] - orders[:, 0]) % n
    assert abs(chi_square(np.bincount(steps, minlength=n)[1:])) < 4


def test_successive_epochs_seeds_and_streams_are_unrelated() -> None:
    n = 1000
    orders = [permuted(0, n, n, 0), permuted(n, n, n, 0), permuted(0, n, n, 1), permuted(0, n, n, 0, stream=1)]
    for i in range(4):
        for k in range(i):
            # Fixed points between independent permutations are Poisson with mean 1.
            assert (orders[i] == orders[k]).sum() <= 7
            assert abs(np.corrcoef(orders[i], orders[k])[0, 1]) < 4 / math.sqrt(n)


def test_flips_are_fair_and_independent() -> None:
    n = 100_000
    bits = flips(2**40, n, seed=4)
    assert bits.dtype == np.bool_
    for other in (np.zeros(n, bool), np.roll(bits, 1), flips(2**40, n, seed=5), flips(2**40, n, seed=4, stream=1)):
        assert abs((bits ^ other).mean() - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_draws_out_of_range_are_refused() -> None:
    for start, count, n in ((-1, 1, 5), (0, -1, 5), (2**63, 1, 5), (0, 1, 0)):
        with pytest.raises(InvalidValue):
            permuted(start, count, n, 0)


@pytest.mark.tier(2)
class TestCompiled:
    """The built module against numpy; where it was not built there is nothing to compare, and the build's own tests say so."""

    @given(start=st.integers(0, 2**62 - 500), count=st.integers(0, 400), n=st.integers(1, 2**62), seed=WORD, stream=WORD)
    @settings(max_examples=150, deadline=None)
    def test_permutation(self, start: int, count: int, n: int, seed: int, stream: int) -> None:
        for rows in (n, n % 97 + 1, n % 2**20 + 1):
            ours = host.permuted(start, count, rows, seed, stream)
            assert np.array_equal(ours, portable.permuted(start, count, rows, seed, stream))

    @given(start=st.integers(0, 2**62 - 500), count=st.integers(0, 400), seed=WORD, stream=WORD)
    @settings(max_examples=50, deadline=None)
    def test_flips(self, start: int, count: int, seed: int, stream: int) -> None:
        assert np.array_equal(host.flips(start, count, seed, stream), portable.flips(start, count, seed, stream))

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (9, 28, 28, 1), (5, 32, 32, 3), (4, 7, 7, 3)])
    def test_gather(self, rng: np.random.Generator, shape: tuple[int, int, int, int], channels_last: bool) -> None:
        n, height, width, channels = shape
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        images.flat[: min(images.size, 256)] = np.arange(min(images.size, 256))
        images.flags.writeable = False
        rows, mirrored = rng.integers(0, n, 33), rng.random(33) < 0.5
        out_shape = (33, height, width, channels) if channels_last else (33, channels, height, width)
        compiled, numpy = np.full(out_shape, np.nan, np.float32), np.full(out_shape, np.nan, np.float32)
        host.gather_images(images, rows, mirrored, compiled, channels_last)
        portable.gather_images(images, rows, mirrored, numpy, channels_last)
        assert compiled.tobytes() == numpy.tobytes()

    @pytest.mark.parametrize("gather", [host.gather_images, portable.gather_images])
    @pytest.mark.parametrize("bad", [-1, 3, 2**40])
    def test_an_index_out_of_bounds_is_refused(self, gather: object, bad: int) -> None:
        out = np.full((1, 1, 2, 2), 7, np.float32)
        with pytest.raises(IndexError, match=r"outside 0 \.\. 2"):
            gather(np.zeros((3, 2, 2, 1), np.uint8), np.array([bad]), np.zeros(1, bool), out, False)  # type: ignore[operator]
        assert (out == 7).all()


def pictures(rng: np.random.Generator, n: int = 50) -> Dataset:
    images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return Dataset("pictures", {"real": {"real": images, "labels": np.arange(n) % 7}})


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_holds_the_rows_scaled(rng: np.random.Generator, channels_last: bool) -> None:
    data = pictures(rng)
    batch = Sampler(data, seed=3, channels_last=channels_last).batch(120, 16, ["real", "labels"])
    rows = permuted(120, 16, 50, seed=3)
    truth = data.groups["real"]["real"][rows].astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    assert batch["real"].dtype == torch.float32
    assert batch["real"].shape == (16, 3, 8, 8)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch["real"].is_contiguous(memory_format=layout)
    assert np.abs(batch["real"].numpy() - truth).max() < 2e-7
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == (rows % 7).tolist()


def test_black_is_minus_one_and_white_is_one() -> None:
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    batch = Sampler(Dataset("x", {"real": {"real": images}}), seed=0).batch(0, 2, ["real"])["real"]
    assert sorted(batch.flatten().tolist()) == [-1.0, 1.0]


def test_flips_mirror_half_of_the_images_and_only_those(rng: np.random.Generator) -> None:
    data = pictures(rng)
    plain = Sampler(data, seed=3).batch(0, 400, ["real"])["real"]
    mirrored = Sampler(data, seed=3, flip=True).batch(0, 400, ["real"])["real"]
    bits = torch.from_numpy(flips(0, 400, seed=3))
    assert 150 < bits.sum() < 250
    assert torch.equal(mirrored[bits], plain[bits].flip(3))
    assert torch.equal(mirrored[~bits], plain[~bits])


@pytest.mark.parametrize("channels_last", [False, True])
def test_data_resident_on_the_device_give_the_same_bits(rng: np.random.Generator, channels_last: bool) -> None:
    data = pictures(rng)
    hosted = Sampler(data, seed=1, flip=True, channels_last=channels_last)
    resident = Sampler(data, seed=1, flip=True, channels_last=channels_last)
    resident.make_resident()
    for start in (0, 33, 2**42):
        ours, truth = resident.batch(start, 20, ["labels", "real"]), hosted.batch(start, 20, ["labels", "real"])
        assert list(ours) == ["labels", "real"]
        assert torch.equal(ours["real"], truth["real"])
        assert ours["real"].stride() == truth["real"].stride()
        assert torch.equal(ours["labels"], truth["labels"])


def test_groups_are_drawn_independently(rng: np.random.Generator) -> None:
    one = rng.standard_normal((1000, 2)).astype(np.float32)
    sampler = Sampler(Dataset("pair", {"a": {"a": one}, "b": {"b": one[::-1]}}), seed=0)
    batch = sampler.batch(0, 1000, ["b", "a"])
    a = np.array([np.flatnonzero((one == row).all(1))[0] for row in batch["a"].numpy()])
    b = np.array([np.flatnonzero((one == row).all(1))[0] for row in batch["b"].numpy()])
    assert sorted(a.tolist()) == sorted(b.tolist()) == list(range(1000))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(1000)


def test_lengths_of_a_pair_may_differ_and_salt_changes_the_order() -> None:
    points = np.arange(14, dtype=np.float32)[:, None]
    sampler = Sampler(Dataset("pair", {"a": {"a": points[:4]}, "b": {"b": points}}), seed=0)
    batch = sampler.batch(0, 28, ["a", "b"])
    assert (np.sort(batch["a"].numpy().reshape(7, 4)) == np.arange(4)).all()
    assert (np.sort(batch["b"].numpy().reshape(2, 14)) == np.arange(14)).all()
    salted = sampler.batch(0, 28, ["b"], salt=1)["b"]
    assert not torch.equal(salted, batch["b"])
    assert torch.equal(salted, sampler.batch(0, 28, ["b"], salt=1)["b"])


def test_an_unknown_field_is_named_with_the_near_one(rng: np.random.Generator) -> None:
    with pytest.raises(InvalidValue, match="no field 'label'; did you mean 'labels'"):
        Sampler(pictures(rng), seed=0).batch(0, 1, ["label"])


def test_drawing_leaves_the_default_generator_alone(rng: np.random.Generator) -> None:
    before = torch.get_rng_state()
    Sampler(pictures(rng), seed=0, flip=True).batch(0, 8, ["real"])
    assert torch.equal(torch.get_rng_state(), before)
