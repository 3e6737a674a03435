"""The parity tests of gradient penalty for a process of its own; tests/elsewhere.py runs them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial

import gradient_penalty_checks as checks
import torch
from cases import BATCHES, DTYPES, EMPTY_BATCHES, LAID_OUT_BATCHES, SIZED_BATCHES, Batch, poisoned

from ganfast.ops.gradient_penalty import interpolate, slope_penalty

OPS = ("interpolate", "slope_penalty")


def fresh() -> torch.Generator:
    generator = torch.Generator()
    print("seed", generator.seed(), file=sys.stderr)
    return generator


def in_types(case: Batch, dtypes: tuple[torch.dtype, ...]) -> None:
    for dtype in dtypes:
        checks.check(case, dtype, fresh())


def zero_slopes() -> None:
    for dtype in DTYPES:
        checks.check_zero_slopes(dtype, fresh())


def nan_and_inf(case: Batch, value: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        checks.check_nan_and_inf(case, value, dtype, fresh())


def the_same_bits_in_any_order_of_the_threads() -> None:
    """A thread that reads what another one writes in the same phase would find it, or find it missing."""
    generator = fresh()
    for case in (Batch("images", (3, 3, 32, 32)), Batch("odd", (5, 4099)), Batch("points", (700, 2))):
        real, fake = case.make(torch.float32, generator), case.make(torch.float32, generator)
        alpha, results = checks.alphas(len(real), generator), []
        for order in ("", "reversed"):
            os.environ["GANFAST_EMULATED_ORDER"] = order
            with poisoned():
                results.append([interpolate(real, fake, alpha, True), *slope_penalty(real, 1.0, 10.0, False)])
        del os.environ["GANFAST_EMULATED_ORDER"]
        assert all(map(torch.equal, *results))


def suite(backend: str) -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    for case in (*BATCHES, *LAID_OUT_BATCHES, *EMPTY_BATCHES):
        # emulated in every dtype, the largest would take a minute; an interpreted program takes milliseconds
        size = math.prod(case.shape)
        once = size > 2**19 if backend == "emulated" else case.name != "odd"
        if backend == "emulated" or (size < 2**16 and case.shape[0] < 100):
            cases[str(case)] = partial(in_types, case, (torch.float32,) if once else DTYPES)
    for case in SIZED_BATCHES:
        # the interpreter makes wrong numbers of what is below bfloat16's normal range
        dtypes = (torch.float32, torch.bfloat16) if backend == "emulated" else (torch.float32,)
        if backend == "emulated" or math.prod(case.shape) < 2**13:
            cases[str(case)] = partial(in_types, case, dtypes)
    for value in (float("nan"), float("inf"), -float("inf")):
        for case in (Batch("odd", (6, 9)), Batch("images", (3, 3, 32, 32))):
            cases[f"{value} in {case}"] = partial(nan_and_inf, case, value)
    cases["any pair of layouts"] = lambda: checks.check_any_pair_of_layouts(fresh())
    cases["any mix of types"] = lambda: checks.check_any_mix_of_types(fresh())
    cases["a strided alpha"] = lambda: checks.check_strided_alpha(fresh())
    cases["zero slopes"] = zero_slopes
    for refused in checks.REFUSED:
        cases[refused] = partial(checks.check_refusal, refused)
    if backend == "emulated":
        cases["any order of the threads"] = the_same_bits_in_any_order_of_the_threads
    return cases
