"""The parity tests of batch norm for a process of its own; tests/elsewhere.py runs them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial

import batch_norm_checks as checks
import torch
from batch_norm_checks import EPS, FORMS, Form
from cases import BATCH_LAYOUTS, DTYPES, LAID_OUT_VOLUMES, VOLUMES, Batch, poisoned

from ganfast.ops.batch_norm import batch_norm_act, batch_norm_act_backward

OPS = ("batch_norm_act", "batch_norm_act_tracked", "batch_norm_act_backward", "normalise_act")
BOTH = ("contiguous", "channels-last")
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))

# So many tiles that a thread of CUDA's gets several packs: below one another, side by side.
DEEP = [
    Batch("deep", (32, 64, 12, 12)),
    Batch("sideways", (2, 3, 300, 300)),
    Batch("deep", (32, 12, 32, 32), "channels-last"),
]
# Few programs of Triton's, which its interpreter runs one after another; and several tiles of a channel, both ways.
SMALL = [
    Batch("one", (1, 1)),
    Batch("one sample", (1, 7)),
    Batch("odd", (6, 3, 5, 9)),
    Batch("odd", (6, 3, 5, 9), "channels-last"),
    Batch("rows", (20, 130)),
    Batch("planes", (34, 2, 8, 8)),
    Batch("sideways", (2, 1, 50, 60)),
]


def fresh() -> torch.Generator:
    generator = torch.Generator()
    print("seed", generator.seed(), file=sys.stderr)
    return generator


def forms_from(first: int, case: Batch, dtypes: tuple[torch.dtype, ...]) -> None:
    """Each type with another form, so that all types meet all forms over the cases; every pair in every case takes a minute."""
    for i, dtype in enumerate(dtypes):
        checks.check_form(case, FORMS[(first + i) % len(FORMS)], dtype, fresh())


def mixed_types(x: torch.dtype, parameter: torch.dtype, grad: torch.dtype) -> None:
    generator, shape = fresh(), (5, 3, 4, 7)
    weight, bias = (torch.randn(3, generator=generator).to(parameter) for _ in range(2))
    at = checks.Given(torch.randn(shape, generator=generator).to(x), weight, bias, 1, EPS, 0.2, False)
    checks.check_forward(at)
    checks.check_backward(at, checks.smooth(at, torch.randn(shape, generator=generator).to(grad), "channels-last"))


def constant_channels(layout: str, dtypes: tuple[torch.dtype, ...]) -> None:
    for dtype in dtypes:
        checks.check_constant(dtype, layout, fresh())


def not_finite(layout: str, value: float, dtypes: tuple[torch.dtype, ...]) -> None:
    for dtype in dtypes:
        checks.check_nan_and_inf(value, dtype, layout, fresh())


def both_ways(x: torch.Tensor, grad: torch.Tensor, groups: int) -> list[torch.Tensor]:
    weight, bias = torch.linspace(-1, 2, x.shape[1]), torch.linspace(1, -1, x.shape[1])
    y, mean, var = batch_norm_act(x, weight, bias, groups, EPS, 0.2, False)
    return [y, mean, var, *batch_norm_act_backward(grad, x, weight, bias, mean, var, EPS, 0.2, False)]


def a_group_as_if_it_were_alone(layout: str) -> None:
    """To the bit."""
    generator = fresh()
    for shape in ((8, 5, 4, 3), (8, 300, 2, 2), (4, 8, 13, 13)):
        x, grad = (BATCH_LAYOUTS[layout](torch.randn(shape, generator=generator)) for _ in range(2))
        y, mean, var, dx, *_ = both_ways(x, grad, 2)
        for i, (part, part_grad) in enumerate(zip(x.chunk(2), grad.chunk(2), strict=True)):
            alone = both_ways(part, part_grad, 1)[:4]
            assert all(map(torch.equal, alone, (y.chunk(2)[i], mean[i : i + 1], var[i : i + 1], dx.chunk(2)[i])))


def the_same_bits_in_any_order_of_the_threads(layout: str) -> None:
    """A thread that reads what another one writes in the same phase would find it, or find it missing."""
    generator = fresh()
    for shape, dtype in (((6, 17, 9, 9), torch.float32), ((40, 64, 4, 4), torch.bfloat16), ((2, 3, 90, 90), torch.float32)):
        x, grad = (BATCH_LAYOUTS[layout](torch.randn(shape, generator=generator).to(dtype)) for _ in range(2))
        results = []
        for order in ("", "reversed"):
            os.environ["GANFAST_EMULATED_ORDER"] = order
            with poisoned():
                results.append(both_ways(x, grad, 2))
        del os.environ["GANFAST_EMULATED_ORDER"]
        assert all(map(torch.equal, *results))


def suite(backend: str) -> dict[str, Callable[[], None]]:
    emulated = backend == "emulated"
    cases: dict[str, Callable[[], None]] = {}
    # from 4 on, so that the first case has no z but 0 where there is a tanh: of one value alone PyTorch's slope may happen to be
    # exact, and the rule then leaves one rounding for several
    for i, case in enumerate(VOLUMES if emulated else SMALL, start=4):
        large = math.prod(case.shape) > 2**16  # emulated, a second or two for every type
        cases[str(case)] = partial(forms_from, i, case, (DTYPES[i % len(DTYPES)],) if large else DTYPES)
    for i, case in enumerate(LAID_OUT_VOLUMES):
        if emulated or (case.shape == (4, 7, 3, 5) and case.layout in ("transposed", "offset", "cropped")):
            cases[str(case)] = partial(forms_from, i, case, (DTYPES[i % len(DTYPES)],))
    for layout in BOTH:
        # the interpreter cuts what it makes bfloat16 instead of rounding it
        cases[f"constant channels, {layout}"] = partial(constant_channels, layout, DTYPES if emulated else (torch.float32,))
    if not emulated:
        cases["nan, channels-last"] = partial(not_finite, "channels-last", float("nan"), (torch.float32,))
    for types in ((torch.bfloat16, torch.float16, torch.float32), (torch.float64, torch.float32, torch.float32)):
        cases[f"mixed types, {types}"] = partial(mixed_types, *types)
    for refused in checks.REFUSED:
        cases[refused] = partial(checks.check_refusal, refused)
    cases["running statistics"] = partial(checks.check_tracked, fresh())
    cases["known statistics"] = partial(checks.check_known, fresh())
    if emulated:
        for case in DEEP:
            cases[str(case)] = partial(checks.check_form, case, Form(groups=2, slope=0.2), torch.float32, fresh())
        for layout in BOTH:
            for value in NOT_FINITE:
                cases[f"{value}, {layout}"] = partial(not_finite, layout, value, DTYPES)
            cases[f"a group alone, {layout}"] = partial(a_group_as_if_it_were_alone, layout)
            cases[f"far from zero, {layout}"] = partial(checks.check_far_from_zero, layout, fresh())
            cases[f"any order of the threads, {layout}"] = partial(the_same_bits_in_any_order_of_the_threads, layout)
        cases["any pair of layouts"] = partial(checks.check_any_pair_of_layouts, fresh())
        cases["any mix of types"] = partial(checks.check_any_mix_of_types, fresh())
    return cases
