"""The parity tests of Adam for a process of its own; tests/elsewhere.py runs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

import adam_checks as checks
import torch

from ganfast.ops.adam import adam_

OPS = ("adam_",)


def fresh() -> torch.Generator:
    generator = torch.Generator()
    print("seed", generator.seed(), file=sys.stderr)
    return generator


def in_both_types(check: Callable[..., None]) -> None:
    for dtype in (torch.float32, torch.float64):
        check(dtype, fresh())


def the_same_bits_in_any_order_of_the_threads() -> None:
    """A thread that reads what another one writes in the same phase would find it, or find it missing."""
    net, results = checks.network(checks.LARGE, torch.float32, fresh()), []
    for order in ("", "reversed"):
        os.environ["GANFAST_EMULATED_ORDER"] = order
        results.append(net.like())
        checks.step(adam_, results[-1], checks.SETTINGS[0])
    del os.environ["GANFAST_EMULATED_ORDER"]
    first, second = ([t for tensors in each.lists() for t in tensors] for each in results)
    assert all(map(torch.equal, first, second))


def suite(backend: str) -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {name: partial(in_both_types, check) for name, check in checks.CHECKS.items()}
    for refused in checks.REFUSED:
        cases[refused] = lambda refused=refused: checks.check_refusal(refused, fresh())  # type: ignore[misc]
    cases["strides"] = lambda: checks.check_gaps_and_strides_are_refused(fresh())
    cases["any order of the threads"] = the_same_bits_in_any_order_of_the_threads
    return cases
