"""The convolutions of a fused network by the op, and what its gradients keep."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast.nn import fuse

pytestmark = pytest.mark.tier(2)


class Called(TorchDispatchMode):
    """The names of ganfast's ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "ganfast":
            self.names.add(op.__name__.partition(".")[0])
        return op(*args, **(kwargs or {}))


def networks(layout: torch.memory_format = torch.channels_last) -> tuple[nn.Sequential, nn.Sequential]:
    """Plain and fused: a critic's chain, a generator's, and a convolution that no batch norm follows."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(4, 8, 4, 2, 1),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 3, 4, 2, 1),
        nn.Tanh(),
    ).to(memory_format=layout)  # type: ignore[call-overload]
    return plain, fuse(copy.deepcopy(plain))


@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_the_plain_networks(training: bool) -> None:
    x = torch.randn(6, 4, 8, 8)
    results = []
    for network in networks():
        network.train(training)
        point = x.clone().requires_grad_()
        y = network(point)
        results.append((y, *torch.autograd.grad(y.square().sum(), [point, *network.parameters()])))
    for plain, fused in zip(*results, strict=True):
        # float32 sums in another order; a bias before a batch norm has a gradient of nothing but roundings
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4 * float(results[0][1].abs().max()))


@pytest.mark.parametrize(("layout", "expected"), [(torch.channels_last, True), (torch.contiguous_format, False)])
def test_the_op_convolves_what_lies_channels_last(layout: torch.memory_format, expected: bool) -> None:
    _, fused = networks(layout)
    with Called() as called:
        fused(torch.randn(2, 4, 8, 8).to(memory_format=layout)).sum().backward()
    convolutions = {"convolve", "transposed_convolve", "convolution_weight_gradient"}
    assert called.names & convolutions == (convolutions if expected else set())
    assert {"batch_norm_act_tracked", "batch_norm_act_backward"} <= called.names


def test_what_is_made_again_for_a_gradient_is_not_measured_again() -> None:
    _, fused = networks()
    with Called() as forward:
        y = fused(torch.randn(2, 4, 8, 8))
    with Called() as backward:
        y.sum().backward()
    assert "conv_norm_weight_gradient" not in forward.names
    assert "conv_norm_weight_gradient" in backward.names
    assert not {"batch_norm_act", "batch_norm_act_tracked"} & backward.names


def test_groups_dilation_and_odd_strides_are_pytorchs() -> None:
    for conv in (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, stride=(1, 2)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1),
    ):
        plain = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fused = fuse(copy.deepcopy(plain))
        x = torch.randn(2, 4, 9, 9)
        with Called() as called:
            y = fused(x)
        torch.testing.assert_close(y, plain(x), rtol=1e-4, atol=1e-5)
        assert called.names == {"batch_norm_act_tracked"}


def test_under_autocast_it_convolves_in_bfloat16() -> None:
    plain, fused = networks()
    x = torch.randn(6, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected, y = plain(x), fused(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    # three roundings of bfloat16 a layer, of values that batch norm makes of size one
    torch.testing.assert_close(y.float(), expected.float(), rtol=0, atol=0.1)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fused.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_evaluation_the_convolution_activates_and_casts(dtype: torch.dtype) -> None:
    """Nothing goes over a map, or over the folded weight in fewer bits, after the convolution."""
    plain, fused = (network.eval() for network in networks())
    x = torch.randn(6, 4, 8, 8)
    names: list[str] = []

    class Others(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(isinstance(a, Tensor) and a.dim() == 4 for a in args):
                names.append(op.__name__.partition(".")[0])
            return op(*args, **(kwargs or {}))

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = plain(x)
        with Others():
            y = fused(x)
    assert names.count("convolve") + names.count("transposed_convolve") == 3
    assert not {"relu_", "leaky_relu_", "clamp_min_"} & set(names)
    assert names.count("_to_copy") == (dtype == torch.bfloat16)  # the input's
    torch.testing.assert_close(y.float(), expected.float(), rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_what_batch_norm_made_is_not_kept_but_made_again() -> None:
    kept: list[Tensor] = []

    def pack(saved: Tensor) -> Tensor:
        kept.append(saved)
        return saved

    counts = []
    for network in networks():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            y = network(torch.randn(6, 4, 8, 8))
        counts.append(len({saved.data_ptr() for saved in kept if saved.shape == (6, 8, 4, 4)}))
        y.sum().backward()
    # the input of the first batch norm; and where PyTorch keeps it, what came out
    assert counts[1] == 1 < counts[0]


def test_autocast_leaves_float64_alone() -> None:
    plain, fused = (network.double() for network in networks())
    x = torch.randn(6, 4, 8, 8, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("change", ["in place", "data", "parameters", "detached"])
def test_what_somebody_saw_in_between_is_kept_itself(change: str) -> None:
    """What it was made of would bring back what it was before, or reach past it."""
    grads = []
    for network, made in zip(networks(), (lambda part: part, fuse), strict=True):
        first, rest = made(network[:3]), made(network[3:])
        y = first(torch.ones(6, 4, 8, 8) * torch.arange(6).view(6, 1, 1, 1))
        with torch.no_grad():
            if change == "in place":
                y.add_(1)
            elif change == "data":
                y.data.mul_(3)
            elif change == "parameters":
                first[1].weight.mul_(3)
        if change == "detached":
            y = y.detach().requires_grad_()
        inputs = [rest[0].weight, rest[1].weight]
        grads.append(torch.autograd.grad(rest(y).square().sum(), inputs))
    for plain, fused in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_a_parametrised_weight_is_read_once() -> None:
    plain = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.BatchNorm2d(8), nn.ReLU())
    for layout in (torch.contiguous_format, torch.channels_last):
        twins = [copy.deepcopy(plain).to(memory_format=layout) for _ in range(2)]  # type: ignore[call-overload]
        fuse(twins[1])
        outputs = [twin(torch.ones(2, 3, 8, 8)) for twin in twins]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(twins[1].state_dict(), twins[0].state_dict(), rtol=1e-4, atol=1e-5)


def test_an_empty_batch_goes_through() -> None:
    network = fuse(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval())
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert network(torch.ones(0, 4, 8, 8)).shape == (0, 8, 4, 4)


def test_frozen_weights_keep_no_input() -> None:
    _, fused = networks()
    fused.requires_grad_(False)
    conv = fuse(nn.Sequential(fused[0], nn.BatchNorm2d(8).requires_grad_(False), nn.LeakyReLU(0.2)))
    x = torch.randn(2, 4, 8, 8).requires_grad_()
    middle = x * 2
    alive = weakref.ref(middle)
    y = conv(middle)
    del middle
    assert alive() is None
    y.sum().backward()
    assert x.grad is not None


def test_a_tanh_among_modules_is_an_op_too() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Tanh(), nn.Linear(144, 2), nn.Tanh())
    x = torch.randn(5, 4, 8, 8)
    for training in (True, False):
        fused, twin = fuse(copy.deepcopy(plain)).train(training), copy.deepcopy(plain).train(training)
        with Called() as called:
            y = fused(x)
        assert "tanh" in called.names
        expected = twin(x)
        torch.testing.assert_close(y, expected)
        found, wanted = (
            torch.autograd.grad(out.square().sum(), list(network.parameters())) for out, network in ((y, fused), (expected, twin))
        )
        # float32 sums in another order; a bias before a batch norm has a gradient of nothing but roundings
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_tanh_that_somebody_watches_is_called_as_it_is() -> None:
    fused = fuse(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Tanh()))
    seen: list[torch.Tensor] = []
    fused[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(2, 4, 6, 6)
    with Called() as called:
        y = fused(x)
    assert "tanh" not in called.names and len(seen) == 1 and torch.equal(seen[0], y)
    fused[3]._forward_hooks.clear()
    torch.testing.assert_close(torch.func.vmap(fused.eval(), in_dims=0)(x[:, None]), fused(x)[:, None])
    fused.double()
    with Called() as called:
        fused(x.double())
    assert "tanh" not in called.names
