"""The tables of ``docs/results/training.csv`` in the README and on the page beside it, between two comments in each.

python -m ganfast.benches.training.page     # after: ganfast bench training --out docs/results/training.csv
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ganfast.benches.plot import Cases, Row, of_benches, read
from ganfast.benches.training.suite import BENCH

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs/results/training.csv"
BEGIN, END = "<!-- of docs/results/training.csv -->", "<!-- end -->"
HALF, WHOLE = "bfloat16", "float32"


def main() -> None:
    cases = read(TABLE)
    for page, table in PAGES.items():
        page.write_text(replaced(page.read_text(), table(cases)))


def short(cases: Cases) -> str:
    """An iteration a line: the fastest stock mode's time, ganfast's, and how many times faster that is."""
    head = "iteration", "fastest mode of stock PyTorch, ms", "ganfast, ms", "faster"
    return _table(head, ([case, _ms(stock), _ms(ours), f"{float(ours['ratio']):.2f}x"] for case, stock, ours, _ in _lines(cases)))


def whole(cases: Cases) -> str:
    """The same with images/s, times over the floor, memory, and float32."""
    head = (
        *("iteration", "fastest stock mode", "its ms", "ganfast, ms", "faster", "images/s", "floors, stock and ganfast"),
        *("peak MB, and its share of stock's", "float32: stock, ganfast, ms"),
    )

    def line(case: str, stock: Row, ours: Row, rows: Sequence[Row]) -> list[str]:
        exact = [row for row in rows if row["dtype"] == WHOLE]
        slow = min((row for row in exact if not row["ratio"]), key=_time)
        mine = next(row for row in exact if row["ratio"])
        return [
            *(
                case,
                stock["provider"],
                _ms(stock),
                _ms(ours),
                f"{float(ours['ratio']):.2f}x",
                f"{float(ours['images_per_s']):.0f}",
            ),
            f"{float(stock['times_floor']):.2f}, {float(ours['times_floor']):.2f}",
            f"{float(ours['peak_mb']):.0f}, {float(ours['peak_share']):.2f}",
            f"{_ms(slow)}, {_ms(mine)}: {_time(slow) / _time(mine):.2f}x",
        ]

    return _table(head, (line(*found) for found in _lines(cases)))


def replaced(text: str, table: str) -> str:
    """``text`` with ``table`` between its two comments."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected {BEGIN} and {END} behind it")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _lines(cases: Cases) -> Iterator[tuple[str, Row, Row, Sequence[Row]]]:
    """Of every case: its name, the fastest stock mode, ganfast in bfloat16, and all rows."""
    for (_, _, case), providers in of_benches(cases, [BENCH]).items():
        rows = list(providers.values())
        stock = min((row for row in rows if not row["ratio"]), key=_time)
        yield case, stock, next(row for row in rows if row["ratio"] and row["dtype"] == HALF), rows


def _table(head: Sequence[str], lines: Iterator[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _time(row: Row) -> float:
    return float(row["median_us"])


def _ms(row: Row) -> str:
    return f"{_time(row) / 1e3:.0f}"


PAGES: dict[Path, Callable[[Cases], str]] = {ROOT / "README.md": short, TABLE.with_suffix(".md"): whole}

if __name__ == "__main__":
    main()
