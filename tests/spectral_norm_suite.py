"""The parity tests of spectral norm for a process of its own; tests/elsewhere.py runs them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial

import spectral_norm_checks as checks
import torch
from cases import DCGAN64, DTYPES, EMPTY, LAID_OUT, LAYOUTS, RESNET32_CRITIC, SHAPES, SIZED, Weight, poisoned

from ganfast.ops.spectral_norm import power_iteration, spectral_norm, spectral_norm_backward

EPS = 1e-12
OPS = ("power_iteration", "spectral_norm", "spectral_norm_backward")


def fresh() -> torch.Generator:
    generator = torch.Generator()
    print("seed", generator.seed(), file=sys.stderr)
    return generator


def one_weight(case: Weight, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    for dtype in dtypes:
        generator = fresh()
        checks.check(checks.make([case], dtype, generator), [case.layout], generator)


def one_network(network: list[Weight], dtype: torch.dtype = torch.float32) -> None:
    generator = fresh()
    weights, u, v, dims = checks.make(network, dtype, generator)
    checks.check_power_iteration(weights, u, v, dims, 2)
    for n_iterations in (0, 1):
        checks.check_spectral_norm(weights, u, v, dims, n_iterations, torch.bfloat16)
    *_, sigmas = power_iteration(weights, u, v, dims, 0, EPS)
    checks.check_backward([torch.randn(w.shape, generator=generator) for w in weights], weights, u, v, sigmas, dims)


def gradients_in_any_layout(dim: int, layout: str) -> None:
    generator = fresh()
    cases = [Weight("conv2d", (10, 7, 3, 5), dim, layout)] * len(LAYOUTS)
    checks.check(checks.make(cases, torch.float32, generator), list(LAYOUTS), generator)


def nan_and_inf(case: Weight, value: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        checks.check_nan_and_inf(case, value, dtype, fresh())


def a_product_of_nothing_keeps_the_vector() -> None:
    """W v = 0 for a W that is not: u stays, and v follows from it."""
    weight, v = torch.zeros(3, 4), torch.tensor([0.0, 1.0, 0.0, 0.0])
    weight[:, 0] = torch.tensor([2.0, 1.0, -1.0])
    for w in (weight, weight.t().contiguous().t(), weight.unsqueeze(-1)):
        us, vs = torch.cat([torch.eye(3)[0], torch.eye(2)[1]]), torch.cat([v, torch.eye(2)[0]])
        checks.check_power_iteration([w, torch.zeros(2, 2)], us, vs, [0, 0], 1)
        u, _, sigmas = power_iteration([w, w], torch.eye(3)[0].repeat(2), v.repeat(2), [0, 0], 1, EPS)
        assert torch.equal(u, torch.eye(3)[0].repeat(2)) and sigmas.tolist() == [2.0, 2.0]


def sized(case: Weight) -> None:
    checks.check_sized(case, fresh())


def any_mix_of_types() -> None:
    checks.check_any_mix_of_types(fresh())


def no_weights() -> None:
    none = torch.empty(0)
    for found in (power_iteration([], none, none, [], 1, EPS), spectral_norm([], none, none, [], 1, EPS, None)[1:]):
        assert [tensor.shape for tensor in found] == [(0,)] * 3
    assert spectral_norm_backward([], [], none, none, none, [], EPS) == []


def zero_weights_are_not_scaled() -> None:
    generator = fresh()
    cases = [Weight("linear", (5, 4)), Weight("conv2d", (4, 6, 3, 3), 1, "channels-last"), Weight("linear", (5, 4))]
    weights, u, v, dims = checks.make(cases, torch.float32, generator)
    weights[1].zero_()
    checks.check_power_iteration(weights, u, v, dims, 2)
    for n_iterations in (0, 1):
        checks.check_spectral_norm(weights, u, v, dims, n_iterations, None)
        normalised, _, _, sigmas = spectral_norm(weights, u, v, dims, n_iterations, EPS, None)
        assert sigmas[1] == 0 and torch.equal(normalised[1], weights[1])
    grads = [torch.randn(w.shape, generator=generator) for w in weights]
    checks.check_backward(grads, weights, u, v, torch.tensor([1.0, 0.0, 2.0]), dims)
    assert torch.equal(spectral_norm_backward(grads, weights, u, v, sigmas, dims, EPS)[1], grads[1])


def the_same_bits_in_any_order_of_the_threads() -> None:
    """A thread that reads what another one writes in the same phase would find it, or find it missing."""
    generator = fresh()
    sizes = [Weight("row", (1, 9001)), Weight("column", (9001, 1)), Weight("tall", (3000, 70))]
    network = [*RESNET32_CRITIC, *DCGAN64[3:6], *sizes]
    weights, u, v, dims = checks.make(network, torch.float32, generator)
    grads = [torch.randn(w.shape, generator=generator) for w in weights]
    results = []
    for order in ("", "reversed"):
        os.environ["GANFAST_EMULATED_ORDER"] = order
        with poisoned():
            normalised, *found = spectral_norm(weights, u, v, dims, 2, EPS, None)
            gradients = spectral_norm_backward(grads, weights, *found, dims, EPS)
        results.append([*found, *normalised, *gradients])
    del os.environ["GANFAST_EMULATED_ORDER"]
    assert all(map(torch.equal, *results))


def suite(backend: str) -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    for case in (*SHAPES, *LAID_OUT, *EMPTY):
        # emulated in every dtype, the largest would take a minute; an interpreted program takes milliseconds
        size = math.prod(case.shape)
        once = size > 2**19 if backend == "emulated" else case.name != "odd"
        if backend == "emulated" or size < 2**15:
            cases[str(case)] = partial(one_weight, case, (torch.float32,) if once else DTYPES)
    critic = [Weight("critic", (16, 3, 3, 3)), *[Weight("critic", (16, 16, 3, 3))] * 26, Weight("critic", (1, 16))]
    cases["28 weights"] = partial(one_network, critic)
    for layout in ("contiguous", "channels-last", "sliced"):
        for dim in (0, 1):
            cases[f"gradients to {layout} along {dim}"] = partial(gradients_in_any_layout, dim, layout)
    for value in (float("nan"), float("inf"), -float("inf")):
        for case in (Weight("linear", (6, 9)), Weight("conv2d", (4, 6, 3, 3), 1, "channels-last")):
            cases[f"{value} in {case}"] = partial(nan_and_inf, case, value)
    for case in SIZED:
        if backend == "emulated" or math.prod(case.shape) < 2**15:
            cases[str(case)] = partial(sized, case)
    cases["any mix of types"] = any_mix_of_types
    cases["long rows"] = partial(one_network, [Weight("wide", (3, 20000)), Weight("wide", (40, 5000))])
    for refused in checks.REFUSED:
        cases[refused] = partial(checks.check_refusal, refused)
    cases["no weights"] = no_weights
    cases["zero weights"] = zero_weights_are_not_scaled
    cases["a product of nothing"] = a_product_of_nothing_keeps_the_vector
    if backend == "emulated":
        cases["resnet32"] = partial(one_network, RESNET32_CRITIC)
        cases["dcgan64"] = partial(one_network, DCGAN64, torch.bfloat16)
        cases["any order of the threads"] = the_same_bits_in_any_order_of_the_threads
    return cases
