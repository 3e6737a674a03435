"""Penalties within torch.compile: in one graph with the rest of a step, and equal to the eager ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from critics import CHANNELS, SIZE, critics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ganfast import gradient_penalty, r1_penalty, r2_penalty
from ganfast.errors import InvalidValue
from ganfast.models import pair
from ganfast.models.shape import SampleShape
from ganfast.nn import spectral_norm_, update_spectral_norm

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet() -> None:
    torch.compiler.reset()


def convolutional(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 4, 2, 1), *between, nn.LeakyReLU(0.2), nn.Conv2d(8, 12, 4, 2, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 16, 1)).double()


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.embedding = convolutional()[:-1], nn.Embedding(5, 12 * 16, dtype=DOUBLE)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.trunk(x) * self.embedding(y)).sum(1)


class Cube(torch.autograd.Function):
    """Its Jacobian is in its backward alone, and what a compiler makes of it has no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Sum(nn.Module):
    """A weight that is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(3, 3, 1, 1, dtype=DOUBLE)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.first + self.second).tanh()


class Hooked(nn.Module):
    """Changes a gradient on its way back."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(lambda g: 2 * g)
        return x * 1


CRITICS: dict[str, Callable[[], nn.Module]] = {
    "convolutional": convolutional,
    "residual": lambda: pair("resnet", SampleShape(3, 16), latent_dim=8, width=8)[1].double(),
    "spectral norm": lambda: spectral_norm_(convolutional()),
    "spectral norm, per call": lambda: spectral_norm_(convolutional(), per_call=True),
    "smooth": lambda: convolutional(nn.GroupNorm(2, 8), nn.Tanh()),
    "shared sum": lambda: nn.Sequential(Sum(), convolutional(nn.Tanh())).double(),
}


def data(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    real, fake = (torch.randn(n, 3, 16, 16, generator=drawn, dtype=DOUBLE) for _ in range(2))
    return real, fake, torch.rand(n, generator=drawn, dtype=DOUBLE)


def losses(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor, *conditions: Tensor) -> Tensor:
    penalty = 2.5 * gradient_penalty(critic, real, fake, alpha=alpha, conditions=conditions)
    slopes = r1_penalty(critic, real, weight=0.3, conditions=conditions) + r2_penalty(
        critic, fake, weight=0.2, conditions=conditions
    )
    return penalty + slopes + critic(fake, *conditions).mean() - critic(real, *conditions).mean()


def step(critic: nn.Module, *batch: Tensor) -> tuple[Tensor, list[Tensor | None], dict[str, Tensor]]:
    update_spectral_norm(critic)
    loss = losses(critic, *batch)
    return loss.detach(), list(torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True)), critic.state_dict()


def assert_same(critic: nn.Module, batch: tuple[Tensor, ...], backend: str) -> None:
    twin = copy.deepcopy(critic)
    eager_loss, eager_grads, eager_state = step(twin, *batch)
    update_spectral_norm(critic)
    loss = torch.compile(losses, fullgraph=True, backend=backend)(critic, *batch)
    grads = torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True)
    torch.testing.assert_close(loss.detach(), eager_loss, rtol=1e-10, atol=1e-12)
    for got, expected in zip(grads, eager_grads, strict=True):
        assert expected is not None and got is not None
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item() + 1e-14)
    for name, expected in eager_state.items():
        torch.testing.assert_close(critic.state_dict()[name], expected)


@pytest.mark.parametrize("name", CRITICS)
def test_a_step_is_one_graph_and_its_gradients_are_the_eager_ones(name: str) -> None:
    assert_same(CRITICS[name](), data(), "aot_eager")


class Switched(nn.Module):
    """Its state is in Python, and one of its weights is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6, dtype=DOUBLE), nn.Linear(6, 1, dtype=DOUBLE)
        self.scale, self.shift = 1.0, torch.zeros(6, dtype=DOUBLE)
        self.dropout, self.aside = nn.Dropout(0.5), [nn.Linear(6, 6, dtype=DOUBLE)]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.tanh(self.aside[0](self.first(x)) + self.shift))) * self.scale


def test_what_a_critic_is_now_is_what_is_penalised() -> None:
    torch.manual_seed(0)
    critic, x = Switched(), torch.randn(4, 6, dtype=DOUBLE)
    weights = [*critic.parameters(), *critic.aside[0].parameters()]
    loss = lambda: r1_penalty(critic, x, weight=2.0)  # noqa: E731
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled()
    critic.eval()
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: setattr(critic, "scale", 0.5),
        lambda: setattr(critic, "shift", torch.ones(6, dtype=DOUBLE)),
        lambda: critic.shift.fill_(-1),
        lambda: setattr(critic, "last", nn.Linear(6, 1, dtype=DOUBLE)),
    ]
    for change in changes:
        change()
        weights[2:4] = critic.last.parameters()
        values = loss(), compiled()
        torch.testing.assert_close(*values)
        ours, theirs = (torch.autograd.grad(value, weights, materialize_grads=True, allow_unused=True) for value in values)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert theirs[4].abs().max() > 0


class Broken(nn.Module):
    """Not one graph; of the second, the data's way through the first is no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6, dtype=DOUBLE), nn.Linear(6, 1, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        torch._dynamo.graph_break()
        return self.last(torch.tanh(h) + x)


class Custom(Broken):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(Cube.apply(self.first(x)))


@pytest.mark.parametrize("make", [Broken, Custom])
def test_a_critic_that_is_not_one_graph_is_penalised_outside(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    critic, x = make(), torch.randn(4, 6, dtype=DOUBLE)
    loss = lambda: r1_penalty(critic, x, weight=2.0)  # noqa: E731
    values = loss(), torch.compile(loss, backend="aot_eager")()
    torch.testing.assert_close(*values)
    for p in (critic.first.weight, critic.last.weight):
        torch.testing.assert_close(*(torch.autograd.grad(value, p, retain_graph=True)[0] for value in values))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x)[0].mean(1))


def test_batch_norm_that_is_evaluated_and_attention_are_in_the_graph() -> None:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).eval()
    for critic, shape in ((norm, (4, 6)), (Attention(), (4, 5, 6))):
        critic, x = critic.double(), torch.randn(*shape, dtype=DOUBLE)
        loss = lambda critic=critic, x=x: r1_penalty(critic, x, weight=2.0)  # noqa: E731
        values = loss(), torch.compile(loss, fullgraph=True, backend="aot_eager")()
        torch.testing.assert_close(*values)
        parameters = list(critic.parameters())
        grads = [torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True) for value in values]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=20)
@given(critic=critics(curved=True), seed=st.integers(0, 2**20))
def test_any_critic(critic: nn.Module, seed: int) -> None:
    torch.compiler.reset()
    x = torch.randn(2, CHANNELS, SIZE, SIZE, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    loss = lambda: r1_penalty(critic, x, weight=1.0)  # noqa: E731
    values, grads = [], []
    parameters = [p for p in critic.parameters() if p.requires_grad]
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(seed)  # for dropout
        values.append(function())
        known = values[-1].requires_grad and parameters
        grads.append(torch.autograd.grad(values[-1], parameters, allow_unused=True, materialize_grads=True) if known else ())
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-12)
    scale = max([1e-4, *(g.abs().max().item() for g in grads[0])])
    for got, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * scale)


def test_a_hook_that_changes_gradients_is_found_while_compiling() -> None:
    critic, (real, _, _) = convolutional(Hooked()), data()
    loss = lambda: r1_penalty(critic, real, weight=1.0)  # noqa: E731
    values = [loss(), torch.compile(loss, backend="aot_eager")()]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, critic[0].weight)[0] for value in values))


def test_by_the_usual_compiler() -> None:
    assert_same(convolutional(), data(), "inductor")


def test_conditions_reach_the_critic() -> None:
    assert_same(Conditional(), (*data(), torch.tensor([0, 3, 3, 1])), "aot_eager")


def test_under_autocast_the_types_are_the_eager_ones() -> None:
    critic, (real, fake, alpha) = convolutional().float(), (x.float() for x in data())

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return gradient_penalty(critic, real, fake, alpha=alpha)

    found = [function() for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager"))]
    grads = [torch.autograd.grad(value, critic[0].weight)[0] for value in found]
    assert found[1].dtype == torch.float32
    # bfloat16 rounds in other places where autocast's casts are shared
    assert found[1].item() == pytest.approx(found[0].item(), rel=0.02)
    assert (grads[1] - grads[0]).norm() < 0.02 * grads[0].norm()


def test_without_gradients_the_value_is_the_same() -> None:
    critic, (real, fake, alpha) = convolutional(), data()

    def value() -> Tensor:
        with torch.no_grad():
            return gradient_penalty(critic, real, fake, alpha=alpha)

    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(compiled, value())
    assert not compiled.requires_grad


def test_new_weights_and_new_data_need_no_new_graph() -> None:
    critic, (real, fake, alpha) = convolutional(), data()
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(losses, fullgraph=True, backend=counting)
    for _ in range(3):
        loss = compiled(critic, real, fake, alpha)
        torch.testing.assert_close(loss, losses(critic, real, fake, alpha))
        grads = torch.autograd.grad(loss, list(critic.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(critic.parameters(), grads, strict=True):
                parameter -= 1e-3 * grad
        real, fake, alpha = fake, real + 1, 1 - alpha
    assert len(graphs) == 1


def test_each_call_draws_other_points() -> None:
    critic, (real, fake, _) = convolutional(), data()
    compiled = torch.compile(lambda: gradient_penalty(critic, real, fake), fullgraph=True, backend="aot_eager")
    assert compiled().item() != compiled().item()


def test_a_function_for_a_critic_breaks_the_graph_and_nothing_else() -> None:
    critic, (real, fake, alpha) = convolutional(), data()
    loss = lambda: gradient_penalty(lambda x: critic(x), real, fake, alpha=alpha)  # noqa: E731
    compiled = torch.compile(loss, backend="aot_eager")()
    torch.testing.assert_close(compiled, loss())
    grads = [torch.autograd.grad(value, critic[0].weight)[0] for value in (compiled, loss())]
    torch.testing.assert_close(*grads)


def test_batch_norm_is_refused_there_too() -> None:
    critic, (real, fake, _) = convolutional(nn.BatchNorm2d(8)), data()
    with pytest.raises(InvalidValue, match="BatchNorm2d in training mode"):
        torch.compile(gradient_penalty, backend="aot_eager")(critic, real, fake)


@pytest.mark.parametrize("how", ["module", "in place", "function"])
def test_a_compiled_critic_in_an_eager_step_is_read_as_it_was_written(how: str) -> None:
    critic, (real, fake, alpha) = convolutional(), data()
    expected = gradient_penalty(critic, real, fake, alpha=alpha)
    (expected_grad,) = torch.autograd.grad(expected, critic[0].weight)
    compiled: Callable[[Tensor], Tensor] = critic
    if how == "in place":
        critic.compile(backend="aot_eager")
    else:
        compiled = torch.compile(critic if how == "module" else lambda x: critic(x), backend="aot_eager")
    compiled(real).sum().backward()
    value = gradient_penalty(compiled, real, fake, alpha=alpha)
    (grad,) = torch.autograd.grad(value, critic[0].weight)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)
