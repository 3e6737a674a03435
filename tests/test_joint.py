"""A critic's step in one batch of 3N against its three passes, each differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from critics import CHANNELS, SIZE, critics
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ganfast import apart, joint, losses, penalised_loss, penalty_plan, tangent
from ganfast.errors import InvalidType, InvalidValue
from ganfast.joint import Losses
from ganfast.models import pair
from ganfast.models.conditional import Critic as ConditionalCritic
from ganfast.models.shape import SampleShape
from ganfast.nn import spectral_norm_

DOUBLE = torch.float64
N = 3

LOSSES = {
    "wasserstein": losses.wasserstein_critic,
    "hinge": losses.hinge_critic,
    "relativistic": lambda real, fake: F.softplus(fake - real).mean(),
}


def batch(shape: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    real, fake = (torch.randn(N, *shape, dtype=DOUBLE, generator=drawn) for _ in range(2))
    return real, fake, torch.rand(N, dtype=DOUBLE, generator=drawn)


def separately(
    critic: Callable[..., Tensor], real: Tensor, fake: Tensor, alpha: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The loss and the penalty by double backward."""
    point = torch.lerp(fake, real, alpha.view(N, *[1] * (real.dim() - 1))).requires_grad_()
    (g,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    slopes = (g.flatten(1).square().sum(1) + 1e-60).sqrt()
    return loss(critic(real), critic(fake)), 10 * (slopes - 1).square().mean()


def gradients(total: Tensor, critic: nn.Module) -> list[Tensor]:
    parameters = [p for p in critic.parameters() if p.requires_grad]
    if not parameters or not total.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    return list(torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True))


def assert_same(critic: nn.Module, found: Losses, expected: tuple[Tensor, Tensor]) -> None:
    adversarial, penalty = expected
    torch.testing.assert_close(found.adversarial, adversarial.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.penalty, penalty.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.total.detach(), (adversarial + penalty).detach(), rtol=1e-9, atol=1e-12)
    theirs = gradients(2.5 * (adversarial + penalty), critic)
    # below 1e-4, nothing but roundings of numbers of size one
    scale = max([1e-4, *(g.abs().max().item() for g in theirs)])
    for got, want in zip(gradients(2.5 * found.total, critic), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9 * scale)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.embedding = nn.Conv2d(3, 4, 3), nn.Embedding(5, 4 * 36)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (F.leaky_relu(self.first(x), 0.1).flatten(1) * self.embedding(y)).sum(1)


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.shift + x


def built(architecture: str, size: int) -> nn.Module:
    return pair(architecture, SampleShape(3, size), latent_dim=8, width=8)[1]


PROVEN: dict[str, Callable[[], nn.Module]] = {
    "dcgan": lambda: built("dcgan", 16),
    "cnn": lambda: built("cnn", 16),
    "resnet": lambda: built("resnet", 16),
    "mlp": lambda: built("mlp", 8),
    "spectral norm": lambda: spectral_norm_(built("resnet", 16)),
    "conditional": lambda: ConditionalCritic(pair("dcgan", SampleShape(8, 16), latent_dim=8, width=8)[1], classes=5),
    "projection": Conditional,
    "shift": lambda: nn.Sequential(Shifted(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1, bias=False)),
    "pools": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReflectionPad2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 1)
    ),
    "patches": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)),
}
LABELS = torch.tensor([4, 0, 2])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PROVEN)
def test_one_pass_is_three(name: str, loss: str) -> None:
    torch.manual_seed(1)
    critic = PROVEN[name]().double()
    conditions = (LABELS,) if name in ("conditional", "projection") else ()
    real, fake, alpha = batch((3, 8, 8) if name in ("mlp", "projection", "shift", "pools", "patches") else (3, 16, 16))
    expected = separately(lambda x: critic(x, *conditions), real, fake, alpha, LOSSES[loss])
    penalised_loss(critic, real, fake, LOSSES[loss], alpha=alpha, conditions=conditions)  # which looks at the critic once
    calls: list[int] = []
    critic.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    found = penalised_loss(critic, real, fake, LOSSES[loss], alpha=alpha, conditions=conditions)
    assert calls == [3 * N]
    assert_same(critic, found, expected)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=200)
@given(critic=critics(curved=False), seed=st.integers(0, 2**20))
def test_any_critic(critic: nn.Module, seed: int) -> None:
    """Proven or not."""
    real, fake, alpha = batch((CHANNELS, SIZE, SIZE), seed)
    assume(torch.equal(critic(real), critic(real)))  # dropout would draw other masks for another batch
    expected = separately(critic, real, fake, alpha, losses.wasserstein_critic)
    assert_same(critic, penalised_loss(critic, real, fake, losses.wasserstein_critic, alpha=alpha), expected)


class Mixing(nn.Module):
    """A part of its output depends on other samples."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix, self.linear = mix, nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.mix(x)))


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over samples": lambda x: x - x.mean(0),
    "largest over samples": lambda x: x - x.amax(0, keepdim=True),
    "flipped": lambda x: x + x.flip(0),
    "rolled": lambda x: x + x.roll(1, 0),
    "transposed": lambda x: x + x.reshape(6, -1).t(),
    "view of the transposed": lambda x: x + x.t().reshape(x.shape),
    "broadcast": lambda x: x + x[:, 0][: x.shape[1]].sum(),
    "sum of all": lambda x: x * 0.1 + x.sum(),
    "matrix from the left": lambda x: (torch.ones(len(x), len(x), dtype=DOUBLE) / 9) @ x,
    "gram": lambda x: (x @ x.t())[:, :1].expand(-1, 6),
    "expanded": lambda x: x + x[:, 0].expand(len(x), len(x))[:, :6],
    "row and column": lambda x: (x[:, 0] + x[:, :1])[:, :6],
    "curved": torch.tanh,
    "indexed": lambda x: x[torch.arange(len(x)).flip(0)],
    "cumulative": lambda x: x.cumsum(0),
}


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_samples_or_bends_is_never_taken_for_proven(name: str, detached: bool) -> None:
    torch.manual_seed(0)
    critic = Mixing(MIXED[name]).double()
    point = torch.randn(3 * N, 6, dtype=DOUBLE, requires_grad=True)
    if name in ("transposed", "view of the transposed", "broadcast"):
        point = torch.randn(6, 6, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(tangent.Unreadable, match="curved|form" if name == "curved" else "keep samples apart"):
        scores, _ = apart.watched(lambda: critic(point.detach() if detached and name != "curved" else point), point)
        joint.joint_loss(scores, point, losses.wasserstein_critic, lambda g: g.square().sum())


class Aside(nn.Module):
    """Samples are tied together by what autograd does not record."""

    def __init__(self, aside: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.aside, self.linear = aside, nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(x * self.aside(x.detach())))


ASIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda x: x.std(),
    "mask": lambda x: (x > x.mean(0)).to(x.dtype),
    "largest": lambda x: x.amax(),
    "later samples": lambda x: x.abs().flip(0).cumsum(0).flip(0),
    "its place": lambda x: torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None],
    "how many": lambda x: torch.tensor(1 / len(x), dtype=x.dtype),
    "a number": lambda x: x * x.sum().item(),
    "past the dispatcher": lambda x: torch.tensor(x.numpy().std()),
    "its data": lambda x: x.data.mean(),
    "chance": lambda x: torch.rand_like(x[0]) * 0 + 1,
}


@pytest.mark.parametrize("name", ASIDE)
def test_samples_that_are_tied_by_a_constant_are_found_too(name: str) -> None:
    torch.manual_seed(0)
    critic = Aside(ASIDE[name]).double()
    real, fake, alpha = batch((6,))
    for _ in range(2):
        expected = separately(critic, real, fake, alpha, losses.hinge_critic)
        assert_same(critic, penalised_loss(critic, real, fake, losses.hinge_critic, alpha=alpha), expected)


class Opening(nn.Module):
    """Ties samples from some moment on."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last, self.how, self.now = nn.Linear(6, 6), nn.Linear(6, 1), how, False
        self.gate, self.each = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(N, 1))

    def open(self) -> None:
        self.now = True
        with torch.no_grad():
            self.gate.fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        if self.how == "gate":
            h = h * (1 + self.gate.detach() * len(x))
        elif self.how == "number":
            h = h * ((1 / len(x)) if self.now else 1.0)
        elif self.how == "operation" and self.now:
            h = h * x.detach().std()
        elif self.how == "shape" and self.now:
            h = h * self.each
        return self.last(h)


@pytest.mark.parametrize("how", ["gate", "number", "operation", "shape"])
def test_a_critic_that_ties_samples_only_later_is_found_then(how: str) -> None:
    torch.manual_seed(0)
    critic = Opening(how).double()
    real, fake, alpha = batch((6,))
    for opened in (False, True):
        if opened:
            critic.open()
        expected = separately(critic, real, fake, alpha, losses.hinge_critic)
        assert_same(critic, penalised_loss(critic, real, fake, losses.hinge_critic, alpha=alpha), expected)


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):  # type: ignore[no-untyped-def]
        return w.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g.clamp(-0.01, 0.01)


class Odd(nn.Module):
    """What is done to a weight's gradient once a pass, or only in some."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.weight, self.last, self.how = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 1), how
        self.labels = torch.arange(N)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.how == "hook":
            weight = weight * 1
            weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
        elif self.how == "Function":
            weight = Clipped.apply(weight)
        elif self.how == "thawed":
            weight.requires_grad_(False)
        h = F.relu(x @ weight)
        if self.how == "labels":
            h = h * self.labels[:, None]
        weight.requires_grad_()
        return self.last(h if self.how != "view" else h.view(N, 6))


@pytest.mark.parametrize("how", ["hook", "Function", "thawed", "labels", "view"])
def test_what_one_batch_would_change_takes_three_passes(how: str) -> None:
    torch.manual_seed(0)
    critic = Odd(how).double()
    real, fake, alpha = batch((6,))
    for _ in range(2):
        expected = separately(critic, real, fake, alpha, losses.hinge_critic)
        found = penalised_loss(critic, real, fake, losses.hinge_critic, alpha=alpha)
        torch.testing.assert_close(found.total.detach(), sum(expected).detach())
        for got, want in zip(gradients(found.total, critic), gradients(sum(expected), critic), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda real, fake: fake - real, InvalidValue, r"to return a scalar, got \(3, 1\)"),
        (lambda real, fake: 1.0, InvalidType, "to return a tensor, got float"),
        (lambda real, fake: (real.mean(), fake.mean()), InvalidType, "to return a tensor, got tuple"),
        (lambda real, fake: torch.tensor(1.0), InvalidValue, "the loss carries no gradient"),
    ],
)
@pytest.mark.parametrize("between", [nn.ReLU, nn.Tanh])
def test_a_loss_that_is_none_is_refused(
    loss: Callable[[Tensor, Tensor], Tensor], error: type[Exception], message: str, between: type[nn.Module]
) -> None:
    critic = nn.Sequential(nn.Linear(6, 6), between(), nn.Linear(6, 1)).double()
    real, fake, alpha = batch((6,))
    with pytest.raises(error, match=message):
        penalised_loss(critic, real, fake, loss, alpha=alpha)


def test_what_the_loss_is_made_of_besides_has_its_gradient() -> None:
    torch.manual_seed(0)
    critic = built("dcgan", 16).double()
    real, fake, alpha = batch((3, 16, 16))
    temperature = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus((fake - real) * temperature).mean() + 0.1 * sum(p.square().sum() for p in critic.parameters())

    expected = separately(critic, real, fake, alpha, loss)
    found = penalised_loss(critic, real, fake, loss, alpha=alpha)
    (want,) = torch.autograd.grad(sum(expected), temperature, retain_graph=True)
    (got,) = torch.autograd.grad(found.total, temperature, retain_graph=True)
    torch.testing.assert_close(got, want)
    theirs = gradients(sum(expected), critic)
    for ours, other in zip(gradients(found.total, critic), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-10)


class ScaledBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(6, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(torch.add(self.linear(x), self.bias, alpha=0.5))
        return torch.addmm(self.bias[:1], h, self.linear.weight[:, :1], beta=0.5)


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.level.expand(len(x))


@pytest.mark.parametrize("make", [ScaledBias, Blind])
def test_rare_forms(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    critic = make().double()
    real, fake, alpha = batch((6,))
    found = penalised_loss(critic, real, fake, losses.hinge_critic, alpha=alpha)
    if make is Blind:
        assert found.penalty.item() == pytest.approx(10.0)
        return
    assert_same(critic, found, separately(critic, real, fake, alpha, losses.hinge_critic))


def test_a_critic_that_is_not_proven_takes_three_passes() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    real, fake, alpha = batch((6,))
    expected = separately(critic, real, fake, alpha, losses.hinge_critic)
    assert_same(critic, penalised_loss(critic, real, fake, losses.hinge_critic, alpha=alpha), expected)


class Locked(nn.Sequential):
    """Not to be copied, as DistributedDataParallel with its process group."""

    error: type[Exception] = TypeError

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise self.error("cannot pickle")


class Otherwise(Locked):
    error = ValueError


@pytest.mark.parametrize("kind", [Locked, Otherwise])
def test_a_critic_that_cannot_be_copied_takes_three_passes(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    critic = kind(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    real, fake, alpha = batch((6,))
    expected = separately(critic, real, fake, alpha, losses.hinge_critic)
    assert_same(critic, penalised_loss(critic, real, fake, losses.hinge_critic, alpha=alpha), expected)
    assert penalty_plan(critic, real).kind == "four passes"


def test_within_a_compiled_step_the_values_and_gradients_are_the_same() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    critic = built("dcgan", 16).double()
    real, fake, alpha = batch((3, 16, 16))
    expected = separately(critic, real, fake, alpha, losses.hinge_critic)
    compiled = torch.compile(penalised_loss, fullgraph=True, backend="aot_eager")
    assert_same(critic, compiled(critic, real, fake, losses.hinge_critic, alpha=alpha), expected)


def test_frozen_layers_get_nothing_and_the_data_neither() -> None:
    torch.manual_seed(0)
    critic = built("dcgan", 16).double()
    next(critic.parameters()).requires_grad_(False)
    real, fake, alpha = batch((3, 16, 16))
    real.requires_grad_(), fake.requires_grad_()
    penalised_loss(critic, real, fake, losses.wasserstein_critic, alpha=alpha).total.backward()
    assert real.grad is None and fake.grad is None
    assert [p.grad is None for p in critic.parameters()].count(True) == 1


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_under_autocast_it_is_one_pass_norms_are_float32_and_gradients_close(architecture: str) -> None:
    torch.manual_seed(0)
    critic = built(architecture, 16)
    calls: list[int] = []
    critic.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    real, fake, alpha = (part.float() for part in batch((3, 16, 16)))
    exact = penalised_loss(critic, real, fake, losses.wasserstein_critic, alpha=alpha)
    with torch.autocast("cpu", torch.bfloat16):
        penalised_loss(critic, real, fake, losses.wasserstein_critic, alpha=alpha)  # which looks at the critic once
        calls.clear()
        low = penalised_loss(critic, real, fake, losses.wasserstein_critic, alpha=alpha)
    assert calls == [3 * N]
    assert low.total.dtype == low.penalty.dtype == torch.float32
    assert low.total.item() == pytest.approx(exact.total.item(), rel=0.02)
    got, want = (torch.cat([g.flatten() for g in gradients(x.total, critic)]) for x in (low, exact))
    assert (got - want).norm() <= 0.05 * want.norm()  # eight bits of every product, and what cancels between real and fake


def test_without_gradients_the_values_are_the_same() -> None:
    torch.manual_seed(0)
    critic = built("dcgan", 16).double()
    real, fake, alpha = batch((3, 16, 16))
    expected = penalised_loss(critic, real, fake, losses.wasserstein_critic, alpha=alpha)
    with torch.no_grad():
        found = penalised_loss(critic, real, fake, losses.wasserstein_critic, alpha=alpha)
    assert not found.total.requires_grad
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want.detach())
