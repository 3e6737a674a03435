"""The op on the page ganfast/ops/adam.py, on every backend that was built, against PyTorch's Adam in float64."""

from __future__ import annotations

import adam_checks as checks
import pytest
import torch

from ganfast.ops.adam import adam_

DOUBLE = torch.float64


@pytest.mark.parametrize("settings", checks.SETTINGS)
def test_it_is_pytorchs_adam(backend: str, settings: tuple[float, float, float], generator: torch.Generator) -> None:
    """In float64, over steps of gradients of their own, from the first one on."""
    net = checks.network(checks.SHAPES, DOUBLE, generator)
    for moment in (*net.exp_avgs, *net.exp_avg_sqs, *net.steps):
        moment.zero_()
    beta1, beta2, eps = settings
    theirs = [torch.nn.Parameter(p.clone()) for p in net.params]
    adam = torch.optim.Adam(theirs, lr=0.01, betas=(beta1, beta2), eps=eps, foreach=False)
    averages = [e.clone() for e in net.averages]
    for _ in range(6):
        for grad, twin in zip(net.grads, theirs, strict=True):
            grad.copy_(torch.randn(grad.shape, dtype=DOUBLE, generator=generator))
            twin.grad = grad.clone()
        adam.step()
        torch._foreach_add_(net.steps, 1)
        checks.step(adam_, net, settings)
        torch._foreach_lerp_(averages, [twin.data for twin in theirs], 0.3)
    for found, twin, average, expected in zip(net.params, theirs, net.averages, averages, strict=True):
        torch.testing.assert_close(found, twin.data, rtol=1e-13, atol=1e-13)  # roundings of numbers of size one
        torch.testing.assert_close(average, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_first_step_does_not_depend_on_the_gradients_size(
    backend: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    checks.check_first_step(dtype, generator)


@pytest.mark.parametrize("name", checks.REFUSED)
def test_refusals(backend: str, name: str, generator: torch.Generator) -> None:
    checks.check_refusal(name, generator)


def test_a_step_counts_as_a_change(backend: str, generator: torch.Generator) -> None:
    """To autograd, which would otherwise use what it saved of the old weights."""
    net = checks.network([(3, 3)], torch.float32, generator)
    weight, x = net.params[0].requires_grad_(), torch.randn(2, 3, requires_grad=True)
    y = (x @ weight).tanh() @ weight
    checks.step(adam_, net, checks.SETTINGS[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_opcheck(generator: torch.Generator) -> None:
    net = checks.network([(3, 3), (4,)], torch.float32, generator)
    arguments = (*net.lists(), checks.number(0.01), checks.number(0.3), *checks.SETTINGS[0], None)
    torch.library.opcheck(torch.ops.ganfast.adam_.default, arguments)


def test_it_compiles_into_one_graph(generator: torch.Generator) -> None:
    net = checks.network([(3, 3), (4,)], torch.float32, generator)
    twin = net.like()

    def both(net: checks.Network) -> None:
        torch.ops.ganfast.adam_(*net.lists(), checks.number(0.01), checks.number(0.3), *checks.SETTINGS[0], None)

    both(twin)
    torch.compile(both, backend="aot_eager", fullgraph=True)(net)
    for found, expected in zip(net.params, twin.params, strict=True):
        torch.testing.assert_close(found, expected)
