"""The gradient of a slope's loss against autograd's double backward, and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from critics import CHANNELS, SIZE, critics
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ganfast import r1_penalty, tangent

DOUBLE = torch.float64
N = 3
SCALE = 2.5  # of every loss, as a loss scaler would have it


def images(seed: int = 0) -> Tensor:
    return torch.randn(N, CHANNELS, SIZE, SIZE, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def penalty(g: Tensor) -> Tensor:
    # smooth at zero: a g of nothing but roundings has a direction by chance
    return ((g.flatten(1).square().sum(1) + 0.1).sqrt() - 1).square().mean()


def output_of(critic: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)  # for dropout
    point = x.clone().requires_grad_()
    return critic(point), point


def leaves(critic: nn.Module) -> list[Tensor]:
    return [p for p in critic.parameters() if p.requires_grad]


def double_backward(critic: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    output, point = output_of(critic, x, seed)
    (g,) = torch.autograd.grad(output.sum(), point, create_graph=True)
    loss = penalty(g)
    return loss, gradients(SCALE * loss, critic)


def four_passes(critic: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    output, point = output_of(critic, x, seed)
    loss = tangent.slope_loss(output, point, penalty)
    return loss, gradients(SCALE * loss, critic)


def gradients(loss: Tensor, critic: nn.Module) -> list[Tensor]:
    parameters = leaves(critic)
    if not parameters or not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    return list(torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True))


def assert_equal(critic: nn.Module, seed: int = 0) -> None:
    expected, theirs = double_backward(critic, images(seed), seed)
    value, ours = four_passes(critic, images(seed), seed)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    # below 1e-4, nothing but roundings of numbers of size one
    scale = max([1e-4, *(g.abs().max().item() for g in theirs)])
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9 * scale)


FUZZED = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(FUZZED, max_examples=400)
@given(critic=critics(curved=False), seed=st.integers(0, 2**20))
def test_any_piecewise_linear_critic(critic: nn.Module, seed: int) -> None:
    output, point = output_of(critic, images(seed), seed)
    assert [step.name for step in tangent.steps(output, point) if step.curved] == []
    assert_equal(critic, seed)


@settings(FUZZED, max_examples=300)
@given(critic=critics(curved=True), seed=st.integers(0, 2**20))
def test_any_other_critic(critic: nn.Module, seed: int) -> None:
    assert_equal(critic, seed)


@settings(FUZZED, max_examples=20)
@given(critic=critics(curved=True), seed=st.integers(0, 2**20))
def test_finite_differences(critic: nn.Module, seed: int) -> None:
    parameters = leaves(critic)
    directions = [torch.randn_like(p) for p in parameters]
    _, ours = four_passes(critic, images(seed), seed)
    predicted = sum((g * d).sum().item() for g, d in zip(ours, directions, strict=True)) / SCALE
    step, values = 1e-6, []
    for sign in (1, -2, 1):  # ahead, behind, back again
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(sign * step * d)
        values.append(double_backward(critic, images(seed), seed)[0].item())
    ahead, behind, here = values
    # a kink between the three points shows as a second difference far above the curvature's; such points prove nothing, and one
    # that is let through changes the slope by 1e-4 at most
    assume(abs(ahead + behind - 2 * here) < 2e-10 * (1 + abs(here)))
    assert predicted == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-4 * (1 + abs(here)))


def small(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), *between, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(144, 1)).double()


class Relu(torch.autograd.Function):
    """Named as PyTorch's own, and curved."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return g * x.cos()


class Applied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Relu.apply(x)


class Hooked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        x.register_hook(lambda g: 2 * g)
        return x


class Opposed(nn.Module):
    """Two hooks that cancel in the gradient by the data."""

    def forward(self, x: Tensor) -> Tensor:
        first = x * 1
        first.register_hook(lambda g: 0.5 * g)
        second = torch.tanh(first)
        second.register_hook(lambda g: 2 * g)
        return second


def hooked(x: Tensor, scale: float) -> Tensor:
    x.register_hook(lambda g: scale * g)
    return x


class OpposedTwice(nn.Module):
    """And tensors that are used twice, whose gradients autograd adds."""

    def __init__(self, curve: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.curve, self.first = curve, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = hooked(x * 1, 0.5)
        second = hooked(self.curve(self.first(first)) + first, 2)
        return second.relu() + second.abs()


class OpposedBroadcast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Parameter(torch.randn(1, 4, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first = hooked(x.mean(1, keepdim=True), 0.5)
        second = hooked((first * self.first).relu().sum(1, keepdim=True), 2)
        return (second * self.last).abs()


class HookedNode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first = x * 1
        first.grad_fn.register_hook(lambda given, _: (0.5 * given[0], None))
        second = first.abs()
        second.grad_fn.register_hook(lambda given, _: (2 * given[0],))
        return second


class HookedInput(nn.Module):
    """Small beside the roundings of bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return hooked(x, 1.01) * 1


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):  # type: ignore[no-untyped-def]
        return w.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g.clamp(-0.02, 0.02)


class ClippedWeight(nn.Module):
    """What is done to its gradient is done to the sum of all its parts."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(4, 4, 1, 1)), function

    def forward(self, x: Tensor) -> Tensor:
        if self.function:
            weight = Clipped.apply(self.weight)
        else:
            weight = self.weight * 1
            weight.register_hook(lambda g: g.clamp(-0.02, 0.02))
        return torch.tanh(nn.functional.conv2d(x, weight))


class Thawed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.requires_grad_(False)
        first = self.layer(x).tanh()
        self.layer.requires_grad_(True)
        return first + self.layer(x).relu()


class Energy(nn.Module):
    """A gradient by the data is part of the critic."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(torch.tanh(self.layer(x)).square().sum(), x, create_graph=True)
        return g


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        x.register_hook(lambda g: (g.mul_(2), None)[1])
        return x


class WatchedWeight(nn.Module):
    """A parameter's hook, which a second derivative must not call besides."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))
        self.weight.register_hook(lambda g: 0.1 * g)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.weight)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])


class Written(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        x[:, 0] = x[:, 1] + 1
        return x


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (Hooked(), "a hook changes the gradient of what Mul made"),
        (Opposed(), "a hook changes the gradient of what"),
        (OpposedTwice(torch.relu), "something changes gradients"),
        (OpposedTwice(torch.tanh), "something changes gradients"),
        (OpposedBroadcast(), "a hook changes|something changes"),
        (HookedNode(), "node has a hook"),
        (HookedInput(), "a hook changes"),
        (ClippedWeight(True), "ClippedBackward is an autograd.Function that a weight goes through"),
        (ClippedWeight(False), "a hook changes the gradient of what Mul made"),
        (Thawed(), "to read it failed"),
        (Energy(), "to read it failed"),
        (InPlace(), "a hook changes the gradient of what Mul made"),
        (WatchedWeight(), "a parameter has a hook"),
        (Spectrum(), "complex numbers"),
        (Written(), "in place"),
        (Applied(), "ReluBackward is an autograd"),
    ],
)
def test_what_cannot_be_read_is_said_and_left_to_double_backward(between: nn.Module, why: str) -> None:
    critic, x = small(between), images()
    output, point = output_of(critic, x, 0)
    with pytest.raises(tangent.Unreadable, match=why):
        tangent.slope_loss(output, point, penalty)
    (g,) = torch.autograd.grad(output.sum(), point, create_graph=True)  # the graph is whole, and no hook of ours is left
    expected, theirs = double_backward(critic, x)
    torch.testing.assert_close(penalty(g), expected)
    through = gradients(r1_penalty(critic, x, weight=2.0), critic)
    output, point = output_of(critic, x, 0)
    (g,) = torch.autograd.grad(output.sum(), point, create_graph=True)
    for got, want in zip(through, gradients(g.square().sum() / N, critic), strict=True):
        torch.testing.assert_close(got, want)
    assert any(g.abs().max() > 0 for g in theirs)


class Sums(nn.Module):
    """A weight that is a sum, whose terms' gradients autograd makes in one memory; and a sum of a weight."""

    def __init__(self, curve: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.curve = curve
        self.first, self.second = (nn.Parameter(torch.randn(4, 4, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.curve(nn.functional.conv2d(x, self.first + self.second) + self.first.sum())


class Bounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.least = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.least.detach()).clamp_min(self.least).clamp(max=x.new_ones(()))


class Kernel(nn.Module):
    """The data are a convolution's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(2, 4, 11, 11))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.maps, x).relu().transpose(0, 1).repeat(1, 2, 1, 1)


@pytest.mark.parametrize(
    "between", [Sums(torch.tanh), Sums(torch.relu), Bounded(), Kernel()], ids=["curved", "linear", "bounded", "kernel"]
)
def test_rare_forms(between: nn.Module) -> None:
    critic = small(between)
    critic.requires_grad_()
    expected, theirs = double_backward(critic, images())
    value, ours = four_passes(critic, images())
    torch.testing.assert_close(value, expected)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1024.0, 65536.0])
def test_in_float16_it_is_as_good_as_double_backward(scale: float) -> None:
    """A weak penalty's v is below float16's least number, and a loss scale above its largest."""
    torch.manual_seed(0)
    first, second, last = nn.Conv2d(3, 16, 4, 2, 1), nn.Conv2d(16, 8, 4, 2, 1), nn.Linear(128, 1)
    critic = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.Flatten(), last)
    x, weights = torch.randn(32, 3, 16, 16), [first.weight, second.weight, last.weight]

    def gradient(ours: bool, half: bool) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=half):
            if ours:
                value = r1_penalty(critic, x, weight=0.002)
            else:
                point = x.clone().requires_grad_()
                (g,) = torch.autograd.grad(critic(point).float().sum(), point, create_graph=True)
                value = 0.001 * g.square().sum() / len(x)
        return torch.cat([g.double().flatten() / scale for g in torch.autograd.grad(value * scale, weights)])

    exact = gradient(ours=False, half=False)
    ours, double = ((gradient(ours=ours, half=True) - exact).norm() for ours in (True, False))
    assert ours <= 2 * double


def test_a_hook_on_the_input_counts_in_bfloat16_too() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)), torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        plain, twice = (r1_penalty(critic, x, weight=2.0) for critic in (net, lambda x: net(hooked(x, 1.08))))
    grads = [torch.autograd.grad(value, net[0].weight)[0].norm().item() for value in (plain, twice)]
    assert grads[1] == pytest.approx(1.08**2 * grads[0], rel=0.01)


def test_its_backward_is_first_order_scales_and_adds_up() -> None:
    critic = small()
    value, ours = four_passes(critic, images())
    output, point = output_of(critic, images(), 0)
    loss = tangent.slope_loss(output, point, penalty)
    (-3 * loss + 0.5 * loss).backward()
    for parameter, g in zip(critic.parameters(), ours, strict=True):
        torch.testing.assert_close(torch.zeros_like(g) if parameter.grad is None else parameter.grad, -2.5 / SCALE * g)
    (first, *_) = torch.autograd.grad(tangent.slope_loss(*output_of(critic, images(), 0), penalty), critic[0].weight)
    assert not first.requires_grad
    assert value.item() == loss.item()


def test_no_graph_of_the_activations_is_made() -> None:
    channels = 32
    torch.manual_seed(1)
    critic = nn.Sequential(nn.Conv2d(CHANNELS, channels, 3), nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 6), nn.Flatten(0)).double()
    largest: list[int] = []
    for compute in (
        lambda output, point: tangent.slope_loss(output, point, penalty),
        lambda output, point: penalty(torch.autograd.grad(output.sum(), point, create_graph=True)[0]),
    ):
        output, point = output_of(critic, images(), 0)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t):
            compute(output, point)
        largest.append(max(sizes))
    ours, double = largest
    assert ours <= N * CHANNELS * SIZE**2  # what the loss makes of g
    assert double >= N * channels * 36  # what is not kept: as large as an activation


def test_a_critic_that_ignores_its_input_has_no_slope() -> None:
    bias = torch.randn(1, dtype=DOUBLE, requires_grad=True)
    point = images().requires_grad_()
    loss = tangent.slope_loss(bias.expand(N), point, penalty)
    assert loss.item() == pytest.approx((0.1**0.5 - 1) ** 2)
    assert not loss.requires_grad or torch.autograd.grad(loss, bias, allow_unused=True) == (None,)
