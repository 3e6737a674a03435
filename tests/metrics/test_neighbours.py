"""k-th neighbours and pairs within reach: exactly what all distances in float64 say, however rough the products are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ganfast.metrics import neighbours
from ganfast.metrics.bounds import Bounds
from ganfast.metrics.neighbours import kth_distances, pairs_within
from ganfast.ops.pair_distances import pair_distances

TYPES = {"float32": [torch.float32], "bfloat16": [torch.bfloat16], "both": [torch.bfloat16, torch.float32], "none": []}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def every_distance(x: Tensor, y: Tensor) -> Tensor:
    """(N, M), each of its own differences."""
    i, j = (grid.flatten() for grid in torch.meshgrid(torch.arange(len(x)), torch.arange(len(y)), indexing="ij"))
    return pair_distances(x, y, i, j).view(len(x), len(y))


def sets(kind: str, count: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    if kind == "integers":  # ties everywhere
        rows = (1.5 * rows).round()
    elif kind == "repeated":
        rows = rows[torch.randint(max(1, count // 8), (count,), generator=generator)]
    elif kind == "clusters":  # which products cannot look into
        rows = 1e-5 * rows + 7 * rows[:3][torch.arange(count) % 3]
    elif kind == "equidistant":
        rows = torch.eye(max(count, width), dtype=torch.float64)[:count, :width]
    elif kind == "far away":
        rows = rows + 1e6
    elif kind == "outlier":
        rows[0] = 1e12
    elif kind == "constant":
        rows = rows[:1].expand(count, width)
    elif kind == "tiny":
        rows = rows * 1e-30
    return rows.to(dtype)


KINDS = ["spread", "integers", "repeated", "clusters", "equidistant", "far away", "outlier", "constant", "tiny"]


@pytest.fixture(params=TYPES)
def types(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Bounds in these types, one after the other; in none of them, all is decided by distances."""
    name: str = request.param
    monkeypatch.setattr(neighbours, "_types", lambda x: TYPES[name])
    return name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "width", "k"), [(90, 3, 1), (150, 40, 5), (2, 5, 1), (70, 600, 40)], ids=str)
def test_kth_distances_are_those_of_all_distances(kind: str, count: int, width: int, k: int, types: str) -> None:
    x = sets(kind, count, width)
    expected = every_distance(x, x).fill_diagonal_(torch.inf).kthvalue(k, dim=1).values
    for tile in (7, 64, 0):
        assert torch.equal(kth_distances(x, k, tile=tile), expected)


def within(x: Tensor, y: Tensor, reach_x: Tensor, reach_y: Tensor, closed: bool, tile: int) -> tuple[Tensor, Tensor]:
    found = [torch.zeros(len(x), len(y), dtype=torch.int64) for _ in range(2)]
    for both in pairs_within(x, y, reach_x, reach_y, closed=closed, tile=tile):
        for counts, pairs in zip(found, both, strict=True):
            counts[pairs.x, pairs.y] += 1
    return found[0], found[1]


@pytest.mark.parametrize("types", ["float32", "bfloat16", "both"], indirect=True)
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m", "width"), [(80, 130, 3), (60, 50, 520)], ids=str)
def test_pairs_within_are_those_of_all_distances(kind: str, n: int, m: int, width: int, closed: bool, types: str) -> None:
    rows = sets(kind, n + m, width)
    x, y = rows[:n], torch.cat([rows[n : n + m - 20], rows[:20]])  # some of x again
    distances = every_distance(x, y)
    reach_x, reach_y = distances.kthvalue(3, dim=1).values, distances.kthvalue(4, dim=0).values  # each is some pair's distance
    expected = [distances <= r if closed else distances < r for r in (reach_x[:, None], reach_y)]
    for tile in (11, 0):
        for found, right in zip(within(x, y, reach_x, reach_y, closed, tile), expected, strict=True):
            assert torch.equal(found, right.long())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_type_of_features(dtype: torch.dtype) -> None:
    x = sets("spread", 100, 8, dtype=dtype)
    expected = every_distance(x.double(), x.double()).fill_diagonal_(torch.inf).kthvalue(2, dim=1).values
    assert torch.equal(kth_distances(x, 2), expected)


def test_the_type_of_bounds_is_rough_only_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_has_bfloat16", lambda: True)
    assert neighbours._types(torch.zeros(2, 511)) == [torch.float32]
    assert neighbours._types(torch.zeros(2, 512)) == [torch.bfloat16, torch.float32]
    monkeypatch.setattr(neighbours, "_has_bfloat16", lambda: False)
    assert neighbours._types(torch.zeros(2, 512)) == [torch.float32]


# ---- the bounds


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([1, 2, 33, 700]),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
)
def test_bounds_hold_on_both_sides(kind: str, width: int, dtype: torch.dtype, seed: int, middle: float) -> None:
    rows = sets(kind, 60, width, seed)
    x, y = rows[:35], rows[20:]
    distances = every_distance(x, y)
    found = Bounds(x, y, dtype, middle * distances.median())
    tile = found.tile(found.rows(slice(None)), slice(None))
    assert tile.dtype == dtype and tile.shape == distances.shape
    assert (tile <= found.limit(distances)).all()
    i, j = torch.ones_like(distances).nonzero(as_tuple=True)
    assert (found.upper(tile[i, j], i, j) >= distances[i, j]).all()


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)], ids=str)
def test_bounds_are_near_what_they_bound(dtype: torch.dtype, share: float) -> None:
    x = sets("spread", 200, 600)
    distances = every_distance(x, x)
    found = Bounds(x, x, dtype, distances.median())
    i, j = (distances > 0).nonzero(as_tuple=True)
    tile = found.tile(found.rows(slice(None)), slice(None))[i, j]
    # d^2 within twice eta of the norms' sum, which here is d^2 within a few percent
    assert (found.upper(tile, i, j) <= distances[i, j] * (1 + share)).all()
    assert (tile > found.limit(distances[i, j] * (1 - share))).all()


def test_products_keep_float32s_digits_whatever_is_allowed_elsewhere() -> None:
    x = sets("spread", 300, 640)
    found = Bounds(x, x, torch.float32, torch.tensor(30.0))
    expected = found.tile(found.rows(slice(None)), slice(None))
    setting, before = torch.backends.mkldnn.matmul, torch.backends.mkldnn.matmul.fp32_precision
    try:
        setting.fp32_precision = "bf16"
        assert torch.equal(found.tile(found.rows(slice(None)), slice(None)), expected)
        assert setting.fp32_precision == "bf16"
    finally:
        setting.fp32_precision = before


@pytest.mark.parametrize("place", [0, 1])
def test_an_outlier_leaves_the_fast_way_open(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    x[place] = 1e6
    asked = []

    def counted(a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        asked.append(len(i))
        return pair_distances(a, b, i, j)

    monkeypatch.setattr(neighbours, "pair_distances", counted)
    neighbours.kth_distances(x, 3)
    assert sum(asked) < 400 * 400 / 8
