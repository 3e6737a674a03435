"""Streams of features: the same bits in whatever batches, float64 sums, merging, files."""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

from ganfast.errors import InvalidData, InvalidType, InvalidValue, NotFound, NotWritable
from ganfast.metrics import FeatureStatistics, frechet_distance, frechet_distance_from_features
from ganfast.metrics.arrays import Array
from ganfast.metrics.statistics import BLOCK


def features(count: int, width: int = 5, seed: int = 0, offset: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing + offset


def of(*batches: Array) -> FeatureStatistics:
    statistics = FeatureStatistics()
    for batch in batches:
        statistics.update(batch)
    return statistics


def expect(statistics: FeatureStatistics, rows: Tensor) -> None:
    """What numpy's two-pass formulas give in float64, to a few roundings of the largest entry."""
    wide = rows.double().numpy()
    covariance = np.cov(wide, rowvar=False)
    assert statistics.count == len(rows)
    np.testing.assert_allclose(statistics.mean.numpy(), wide.mean(axis=0), rtol=1e-14, atol=1e-14 * np.abs(wide).max())
    np.testing.assert_allclose(statistics.covariance.numpy(), covariance, rtol=0, atol=1e-13 * covariance.max())


ROWS = features(2 * BLOCK + 300)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(ROWS)), max_size=12), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_batches_of_any_size_give_the_same_bits(cuts: list[int], dtype: torch.dtype) -> None:
    rows = ROWS.to(dtype)
    edges = [0, *sorted(cuts), len(rows)]
    whole, split = of(rows), of(*(rows[a:b] for a, b in itertools.pairwise(edges)))
    assert torch.equal(whole.mean, split.mean)
    assert torch.equal(whole.covariance, split.covariance)


def test_one_by_one_and_looked_at_in_between() -> None:
    rows = ROWS[: BLOCK + 7]
    statistics = FeatureStatistics()
    for i, row in enumerate(rows):
        statistics.update(row[None])
        if i in (1, 5, BLOCK - 1, BLOCK):
            expect(statistics, rows[: i + 1])
    assert torch.equal(statistics.covariance, of(rows).covariance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_mean_and_covariance(count: int, dtype: torch.dtype) -> None:
    rows = features(count).to(dtype)
    expect(of(rows), rows)


def test_features_far_from_zero_keep_their_digits() -> None:
    # one pass of x^2 would lose all of them: the squares are 1e16 times the variance
    rows = features(4000, offset=0).double()
    near, far = of(rows), of(rows + 1e8)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=0, atol=1e-7 * near.covariance.max().item())
    expect(far, rows + 1e8)


def test_arrays_integers_and_mixed_types() -> None:
    rows = (features(50) * 4).round()
    expect(of(rows.numpy(), rows.int(), rows.double().numpy(), rows.bfloat16()), torch.cat([rows, rows, rows, rows.bfloat16()]))


def test_a_batch_may_be_written_over_and_a_graph_is_not_kept() -> None:
    rows = features(10)
    batch = rows.clone().requires_grad_()
    statistics = of(batch[:4])
    with torch.no_grad():
        batch.zero_()
    statistics.update(rows[4:])
    expect(statistics, rows)
    assert not statistics.covariance.requires_grad


def test_the_distance_is_that_of_the_features_and_follows_updates() -> None:
    x, y = features(60), features(80, seed=1)
    real, fake = of(x), of(y)
    assert real.frechet_distance(fake) == pytest.approx(frechet_distance_from_features(x, y), rel=1e-10)
    assert real.gaussian is real.gaussian  # the factor is kept
    fake.update(x)
    expected = frechet_distance_from_features(x, torch.cat([y, x]))
    assert real.frechet_distance(fake) == pytest.approx(expected, rel=1e-10)
    assert real.frechet_distance(real) <= 1e-12 * real.covariance.trace()


# ---- several of them


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.lists(st.integers(0, 600), min_size=3, max_size=3), st.booleans())
def test_merging_in_any_order(order: list[int], cuts: list[int], left: bool) -> None:
    rows = ROWS[:600]
    edges = [0, *sorted(cuts), 600]
    parts = [of(rows[a:b]) for a, b in itertools.pairwise(edges)]
    first, second, third, fourth = (parts[i] for i in order)
    if left:
        expect(first.merge(second).merge(third).merge(fourth), rows)
    else:
        expect(first.merge(second.merge(third.merge(fourth))), rows)


def test_merging_leaves_both_and_goes_on() -> None:
    one, other = of(ROWS[: BLOCK + 10]), of(ROWS[BLOCK + 10 : BLOCK + 200])
    merged = one.merge(other)
    merged.update(ROWS[BLOCK + 200 :])
    expect(merged, ROWS)
    expect(one, ROWS[: BLOCK + 10])
    empty = FeatureStatistics().merge(FeatureStatistics())
    assert empty.count == 0
    copied = one.merge(empty)
    copied.update(ROWS[: 2 * BLOCK])
    expect(one, ROWS[: BLOCK + 10])


def test_far_apart_parts_merge_without_loss() -> None:
    low, high = features(500, offset=-1e4).double(), features(300, offset=1e4).double()
    expect(of(low).merge(of(high)), torch.cat([low, high]))


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = of(ROWS[:1500] if rank else ROWS[1500:])
    whole, half = mine.all_reduce(), (mine if rank else FeatureStatistics()).all_reduce()
    other_width = of(features(9, width=3 + rank))
    try:
        other_width.all_reduce()
        refused = ""
    except InvalidValue as error:
        refused = str(error)
    nothing = FeatureStatistics().all_reduce().count
    outside = distributed.new_group([0])
    try:
        mine.all_reduce(outside)
    except InvalidValue as error:
        refused += f"; {error}"
    torch.save([whole.count, whole.mean, whole.covariance, half.count, half.covariance, refused, nothing], f"{folder}/{rank}.pt")
    distributed.barrier()  # a rank that left first would end the others with their connections
    distributed.destroy_process_group()


def test_all_processes_get_the_statistics_of_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    expected, half = of(ROWS), of(ROWS[:1500])
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank, (count, mean, covariance, half_count, half_covariance, refused, nothing) in enumerate(found):
        assert (count, half_count, nothing) == (len(ROWS), 1500, 0)
        torch.testing.assert_close(mean, expected.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(covariance, expected.covariance, rtol=0, atol=1e-13 * expected.covariance.max().item())
        torch.testing.assert_close(half_covariance, half.covariance, rtol=0, atol=1e-13 * half.covariance.max().item())
        elsewhere = "; this process is not in the group whose statistics it asks for" * rank
        assert refused == "expected as many features in every process, got 3, 4" + elsewhere
    assert torch.equal(found[0][2], found[1][2])


# ---- files


def test_what_is_saved_is_loaded_and_goes_on(tmp_path: Path) -> None:
    statistics = of(ROWS[:1500])
    statistics.save(tmp_path / "real.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]
    loaded = FeatureStatistics.load(tmp_path / "real.npz")
    expect(loaded, ROWS[:1500])
    loaded.update(ROWS[1500:])
    expect(loaded, ROWS)
    with np.load(tmp_path / "real.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"mu", "sigma", "count"}
        assert arrays["mu"].dtype == arrays["sigma"].dtype == np.float64


def test_files_of_others_have_no_count(tmp_path: Path) -> None:
    x, y = features(100), features(90, seed=2)
    mu, sigma = x.double().mean(0).numpy(), np.cov(x.double().numpy(), rowvar=False)
    np.savez_compressed(tmp_path / "theirs.npz", mu=mu, sigma=sigma)
    theirs = FeatureStatistics.load(tmp_path / "theirs.npz")
    assert theirs.count is None and theirs.width == 5
    ours = of(y)
    expected = frechet_distance(mu, sigma, ours.mean.numpy(), ours.covariance.numpy())
    assert theirs.frechet_distance(ours) == pytest.approx(expected, rel=1e-12)
    theirs.save(tmp_path / "again.npz")
    assert FeatureStatistics.load(tmp_path / "again.npz").count is None
    for refused in (lambda: theirs.update(x), lambda: theirs.merge(ours), lambda: ours.merge(theirs)):
        with pytest.raises(InvalidValue, match="came without their count"):
            refused()


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    mu, sigma = np.zeros(3), np.eye(3)
    wrong: dict[str, tuple[dict[str, object], str]] = {
        "sigma": ({"mu": mu}, "cannot be read as statistics, an npz of mu and sigma"),
        "shape": ({"mu": mu, "sigma": np.eye(4)}, r"expected mu \(D,\) and cov \(D, D\), got mu \(3,\) and cov \(4, 4\)"),
        "nan": ({"mu": mu * np.nan, "sigma": sigma}, "mu holds 3 values that are NaN or Inf"),
        "negative": ({"mu": mu, "sigma": -sigma}, "cov is no covariance: it has the eigenvalue -1"),
        "count": ({"mu": mu, "sigma": sigma, "count": 1}, "at least two samples, and the count is 1"),
        "inf": ({"mu": mu, "sigma": sigma, "count": np.inf}, "whole count, .* is inf"),
        "half": ({"mu": mu, "sigma": sigma, "count": 2.5}, r"whole count, .* is 2\.5"),
        "many": ({"mu": mu, "sigma": sigma, "count": np.uint64(2**64 - 1)}, "whole count"),
        "two": ({"mu": mu, "sigma": sigma, "count": np.array([5, 6])}, "whole count"),
        "word": ({"mu": mu, "sigma": sigma, "count": "50"}, "whole count"),
        "complex": ({"mu": mu, "sigma": sigma + 0j}, "cov: expected real numbers"),
        "date": ({"mu": mu.astype("M8[s]"), "sigma": sigma}, "mu: expected real numbers"),
        "fields": ({"mu": np.zeros(3, dtype=[("a", "f8")]), "sigma": sigma}, "mu: expected real numbers"),
        "pickle": ({"mu": np.array([{}]), "sigma": sigma}, "cannot be read as statistics"),
        "text": ({"mu": np.array(["a"]), "sigma": sigma}, "mu: expected real numbers"),
    }
    for name, (arrays, message) in wrong.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(InvalidData, match=f"{name}.npz.*{message}"):
            FeatureStatistics.load(path)
    (tmp_path / "not.npz").write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(InvalidData, match=r"not\.npz cannot be read"):
        FeatureStatistics.load(tmp_path / "not.npz")
    np.save(tmp_path / "array.npy", mu)
    with pytest.raises(InvalidData, match=r"array\.npy cannot be read"):
        FeatureStatistics.load(tmp_path / "array.npy")
    with pytest.raises(NotFound, match=r"nowhere\.npz does not exist"):
        FeatureStatistics.load(tmp_path / "nowhere.npz")
    with pytest.raises(NotWritable, match="cannot write"):
        of(features(9)).save(tmp_path / "nowhere" / "real.npz")


def damaged(header: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An npz of mu and sigma with this header and no data."""
    line = header.encode() + b"\n"
    array, file = b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line, io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("mu.npy", array)
        archive.writestr("sigma.npy", array)
    return file.getvalue()


def test_damaged_files_are_refused_whatever_is_wrong(tmp_path: Path) -> None:
    shape = "{{'descr': '<f8', 'fortran_order': False, 'shape': ({},)}}"
    encrypted, squeezed = bytearray(damaged(shape.format(3))), bytearray(damaged(shape.format(3), zipfile.ZIP_LZMA))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    squeezed[45:60] = bytes(b ^ 0xFF for b in squeezed[45:60])
    headers = ["{'descr': '<f8', 'shape': (3,", "(" * 300, "-" * 9000 + "1", *(shape.format(n) for n in (10**15, 10**22, -3))]
    for contents in [*map(damaged, headers), bytes(encrypted), bytes(squeezed), b""]:
        (tmp_path / "bad.npz").write_bytes(contents)
        with pytest.raises(InvalidData, match=r"bad\.npz cannot be read as statistics"):
            FeatureStatistics.load(tmp_path / "bad.npz")


def test_files_in_float32_and_in_the_other_byte_order(tmp_path: Path) -> None:
    rows = features(10, width=40).double().numpy()
    mu, sigma = rows.mean(0), np.cov(rows, rowvar=False)
    np.savez(tmp_path / "single.npz", mu=mu.astype(np.float32), sigma=sigma.astype(np.float32), count=10)
    single = FeatureStatistics.load(tmp_path / "single.npz")
    np.testing.assert_allclose(single.covariance, sigma, rtol=0, atol=1e-6 * sigma.max())
    single.save(tmp_path / "again.npz")  # in float64, and no worse for it
    again = FeatureStatistics.load(tmp_path / "again.npz")
    assert again.merge(single).frechet_distance(again) <= 0.1 * sigma.trace()
    np.savez(tmp_path / "big.npz", mu=mu.astype(">f8"), sigma=sigma.astype(">f8"))
    np.testing.assert_array_equal(FeatureStatistics.load(tmp_path / "big.npz").covariance, sigma)


@pytest.mark.parametrize("path", ["", "a\0"])
def test_a_path_that_names_no_file_is_refused(path: str) -> None:
    with pytest.raises(InvalidValue, match="expected the path of a file"):
        of(ROWS[:9]).save(path)


def test_errors_of_a_distance_name_the_side() -> None:
    many, one = of(ROWS[:9]), of(ROWS[:1])
    with pytest.raises(InvalidValue, match="the other ones: a covariance needs at least two samples"):
        many.frechet_distance(one)
    with pytest.raises(InvalidValue, match="these statistics: a covariance needs at least two samples"):
        one.frechet_distance(many)


def test_what_cannot_be_summed_is_refused() -> None:
    statistics = of(ROWS[:9])
    with pytest.raises(InvalidValue, match="the batch holds numbers too large to square"):
        statistics.update(ROWS[:9].double() * 1e200)
    for wrong in (ROWS[:9] + 1j, ROWS[:9].numpy().astype(object), None):
        with pytest.raises(InvalidType, match="the batch: expected"):
            statistics.update(wrong)  # type: ignore[arg-type]
    expect(statistics, ROWS[:9])


def test_refusals_change_nothing() -> None:
    statistics = of(ROWS[:100])
    bad = ROWS[:4].clone()
    bad[1, 2], bad[3, 0] = torch.nan, -torch.inf
    for refused, message in (
        (bad, "the batch holds 2 values that are NaN or Inf, of 20"),
        (ROWS[0], r"expected features \(N, D\), got \(5,\)"),
        (ROWS[:, :0], r"expected features \(N, D\), got \(2348, 0\)"),
        (features(3, width=4), r"expected features \(N, 5\) as before, got \(3, 4\)"),
    ):
        with pytest.raises(InvalidValue, match=message):
            statistics.update(refused)
    expect(statistics, ROWS[:100])
    with pytest.raises(InvalidValue, match="as many features on both sides, got 5 and 4"):
        statistics.merge(of(features(3, width=4)))
    with pytest.raises(InvalidValue, match="got 5 in these statistics and 4 in the other ones"):
        statistics.frechet_distance(of(features(3, width=4)))


def test_too_few() -> None:
    with pytest.raises(InvalidValue, match="a mean needs at least one sample, got 0"):
        FeatureStatistics().mean  # noqa: B018
    one = of(ROWS[:1])
    assert torch.equal(one.mean, ROWS[0].double())
    with pytest.raises(InvalidValue, match="a covariance needs at least two samples, got 1"):
        one.covariance  # noqa: B018
    with pytest.raises(InvalidValue, match="at least two samples"):
        one.frechet_distance(of(ROWS))
