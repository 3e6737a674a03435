"""What the figures are made of; nothing here is timed."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import torch

from ganfast.benches import harness, ops
from ganfast.benches.harness import Case
from ganfast.errors import InvalidValue, NotWritable

CPU = torch.device("cpu")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of known length, in seconds, and ceilings of 1e9 a second."""
    turns = {"bare": [1e-3, 5e-3, 2e-3, 1e-3], "stock": [5e-3, 9e-3, 6e-3, 5e-3], "compiled": [3e-3, 7e-3, 4e-3, 3e-3]}
    turns["ours"] = [2e-3, 6e-3, 3e-3, 2e-3]
    monkeypatch.setattr(harness, "take_turns", lambda providers, *_: {name: turns[name] for name in providers})
    monkeypatch.setattr(harness, "copy_ceiling", lambda _: 1e9)
    monkeypatch.setattr(harness, "matmul_ceiling", lambda *_: 1e9)


def case(*names: str, **more: object) -> Case:
    return Case("op", "a case", {name: lambda: None for name in names}, stock=("stock", "compiled"), **more)  # type: ignore[arg-type]


def test_the_ratio_is_over_the_fastest_stock_mode(made_up: None) -> None:
    rows = {row["provider"]: row for row in harness.measure(case("stock", "compiled", "ours"), 1.0)}
    assert (rows["ours"]["against"], rows["ours"]["ratio"]) == ("compiled", pytest.approx(3.5e-3 / 2.5e-3, abs=1e-3))  # rounded
    assert rows["stock"]["ratio"] == rows["compiled"]["ratio"] == ""
    assert rows["ours"]["median_us"] == 2500.0
    assert rows["ours"]["low_us"] <= 2500.0 <= rows["ours"]["high_us"]
    assert set(rows["ours"]) == set(harness.FIELDS)


def test_bare_time_is_taken_off_turn_by_turn(made_up: None) -> None:
    """The turns drift between 1 and 5 ms; the differences do not drift at all."""
    rows = {row["provider"]: row for row in harness.measure(case("bare", "stock", "compiled", "ours", bare="bare"), 1.0)}
    assert set(rows) == {"stock", "compiled", "ours"}
    assert [rows["ours"][key] for key in ("low_us", "median_us", "high_us")] == [1000.0, 1000.0, 1000.0]
    assert rows["ours"]["ratio"] == 2.0


def test_bytes_and_flops_are_held_against_the_ceilings(made_up: None) -> None:
    row = harness.measure(case("stock", "compiled", bytes=700_000, flops=1_750_000), 1.0)[1]
    assert (row["share_of_copy"], row["share_of_matmul"]) == (0.2, 0.5)


def test_every_round_calls_every_provider_once() -> None:
    calls: list[str] = []
    times = harness.take_turns({name: (lambda name=name: calls.append(name)) for name in "abc"}, CPU, 0.0)
    rounds = [calls[i : i + 3] for i in range(9, len(calls), 3)]  # after three warm-up calls each
    assert len(rounds) == len(times["a"]) >= 10
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1


def test_rows_are_added_to_a_table_and_no_other_file_is_touched(made_up: None, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    for _ in range(2):
        harness.check(out)
        harness.run([case("stock", "compiled", "ours")], out, seconds=1.0, show=lambda line: None)
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 6 and rows[2] == rows[5]
    assert rows[0]["torch"] == torch.__version__ and rows[0]["device"] and rows[0]["commit"]
    other = tmp_path / "notes.csv"
    other.write_text("a,b\n")
    with pytest.raises(InvalidValue, match=r"notes.csv is not a table of this bench"):
        harness.check(other)
    with pytest.raises(NotWritable, match="cannot write"):
        harness.check(tmp_path / "nowhere" / "a.csv")


@pytest.mark.parametrize("name", ops.NAMES)
def test_every_provider_of_a_bench_does_the_same_work(name: str) -> None:
    for found in itertools.islice(ops.cases(name, CPU), 2):  # the others are the same calls, and larger
        assert set(found.stock) < set(found.providers)
        if found.dtype != torch.float32:
            continue  # the same calls under autocast, whose rounding differs between layouts
        stock = found.providers[found.stock[0]]()
        size = sum(gradient.square().sum() for gradient in stock.values() if gradient is not None) ** 0.5
        for ours in set(found.providers) - {*found.stock, found.bare}:
            got = found.providers[ours]()
            assert got.keys() == stock.keys()
            for key, expected in stock.items():
                assert (got[key] is None) == (expected is None)
                if expected is not None:
                    # float32 sums in another order put a few elements on the other side of a kink, and what cancels between real
                    # and generated samples carries the roundings of both; PyTorch's two layouts of the generator, 17 million
                    # kinks, differ by 5e-5
                    assert (got[key] - expected).norm() <= 5e-4 * size + 1e-7


def test_an_unknown_bench_names_the_near_one() -> None:
    with pytest.raises(InvalidValue, match="did you mean 'spectral_norm'"):
        ops.cases("spectral-norm", CPU)
