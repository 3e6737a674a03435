"""Between two chains batch norm's input goes on with its statistics: as on CUDA, here on the CPU with the ops' references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_twins import assert_close, assert_same_state, assert_twins
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast.errors import InvalidValue
from ganfast.nn import fuse, statistics_groups
from ganfast.ops import conv_norm, convolution

pytestmark = pytest.mark.compiled
OPS = {"conv_norm", "conv_norm_input_gradient", "conv_norm_weight_gradient"}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    monkeypatch.setattr(convolution, "TRITON_TYPES", {torch.float32, torch.float64, torch.bfloat16})

    def serve(on: bool = True) -> None:
        monkeypatch.setattr(conv_norm, "SERVED", ("cpu",) if on else ())

    serve()
    return serve


class Called(TorchDispatchMode):
    """The names of the ops of ganfast that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "ganfast":
            self.names.append(op.__name__.partition(".")[0])
        return op(*args, **(kwargs or {}))


def handed(network: nn.Module, x: Tensor) -> int:
    """How many convolutions normalise what they read."""
    given: list[Any] = []

    class Given(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op.__name__ == "conv_norm.default":
                given.append(args[3])
            return op(*args, **(kwargs or {}))

    with Given():
        copy.deepcopy(network)(x)
    return sum(mean is not None for mean in given)


class Loop(nn.Module):
    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, 2, 1),
        nn.BatchNorm2d(6, momentum=None),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(6, 3, 4, 2, 1),
        nn.Tanh(),
    )


def critic() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(6, 8, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 10, 4, 2, 1, bias=False),
        nn.BatchNorm2d(10, affine=False, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(10, 1, 2),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "generator": (generator, (4, 6, 1, 1)),
    "critic": (critic, (4, 6, 8, 8)),
    "loop": (lambda: Loop(critic()), (4, 6, 8, 8)),
}


def twins(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network, its fused copy, and an input."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    plain = make().to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)
    return plain, fuse(copy.deepcopy(plain)), torch.randn(shape, dtype=dtype)


def step(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, all gradients and buffers."""
    point = x.clone().requires_grad_()
    y = network(point)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    grads = torch.autograd.grad(y, [point, *network.parameters()], upstream)
    return [y, *grads, *(b.clone() for b in network.buffers())]


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_are_the_plain_networks(name: str, served: Callable[..., None]) -> None:
    plain, fused, x = twins(name)
    assert handed(fused, x) == 2
    assert_twins(plain, fused, x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("groups", [1, 2])
def test_nothing_differs_by_a_bit_from_what_is_not_handed_on(name: str, groups: int, served: Callable[..., None]) -> None:
    _, fused, x = twins(name, torch.float32)
    results = []
    for on in (True, False):
        served(on)
        network = copy.deepcopy(fused)
        with Called() as called, statistics_groups(network, groups):
            results.append([*step(network, x), *step(network, 2 * x)])
        # the gradient of a weight by itself is what a recipe kept calls, too
        assert set(called.names) >= OPS if on else not (OPS - {"conv_norm_weight_gradient"}) & set(called.names)
    for index, (one, other) in enumerate(zip(*results, strict=True)):
        assert torch.equal(one, other), index


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_calls_one_after_the_other(name: str, served: Callable[..., None]) -> None:
    plain, fused, x = twins(name)
    x = torch.cat([x, 3 * x + 1])
    with statistics_groups(fused, 2):
        together = fused(x)
    apart = torch.cat([plain(part) for part in x.chunk(2)])
    assert_close([together], [apart])
    assert_same_state(fused, plain)
    with pytest.raises(InvalidValue, match="3 groups of statistics divide, got 8"), statistics_groups(fused, 3):
        fused(x)


@pytest.mark.parametrize("name", ["generator", "critic"])
def test_second_derivatives_are_the_plain_networks(name: str, served: Callable[..., None]) -> None:
    plain, fused, x = twins(name)
    found = []
    for network in (plain, fused):
        point = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(network(point).sin().sum(), point, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [point, *network.parameters()], allow_unused=True))
    scale = max(float(t.abs().max()) for t in found[0] if t is not None)
    for theirs, ours in zip(*found, strict=True):
        # PyTorch leaves out what has no influence, where ours says zero
        zero = torch.zeros(()).double()
        torch.testing.assert_close(*(zero if t is None else t.sum() for t in (ours, theirs)), rtol=0, atol=1e-9 * scale)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * scale)


def test_under_autocast_all_of_it_is_in_few_bits(served: Callable[..., None]) -> None:
    _, fused, x = twins("generator", torch.float32)
    results = []
    for on in (True, False):
        served(on)
        network = copy.deepcopy(fused)
        with Called() as called, torch.autocast("cpu", torch.bfloat16):
            results.append(step(network, x))
        assert ("conv_norm" in called.names) is on
    assert results[0][0].dtype == torch.bfloat16
    names = ["y", "x", *(name for name, _ in fused.named_parameters()), *(name for name, _ in fused.named_buffers())]
    weights = {f"{name}.weight" for name, m in fused.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
    for name, ours, alone in zip(names, *results, strict=True):
        # a convolution alone leaves its weight's gradient in float32
        assert torch.equal(ours, alone.bfloat16().to(alone.dtype) if name in weights else alone), name


def test_no_gradient_is_asked_for(served: Callable[..., None]) -> None:
    plain, fused, x = twins("generator")
    with torch.no_grad():
        assert_close([fused(x)], [plain(x)])
        assert handed(fused, x) == 2
    fused.requires_grad_(False)
    point = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(fused(point).square().sum(), point)
    (expected,) = torch.autograd.grad(plain(point).square().sum(), point)
    assert_close([found], [expected])


def contiguous(network: nn.Sequential) -> None:
    network[5].weight.data = network[5].weight.data.contiguous()


# and how many convolutions still normalise what they read; the second norm measures always, as it keeps no statistics
CHANGES: dict[str, tuple[Callable[[Any], object], int]] = {
    "evaluation": (lambda n: n.eval(), 1),
    "the second in evaluation": (lambda n: n.__setitem__(6, nn.BatchNorm2d(10).double().eval()), 0),
    "the first in evaluation": (lambda n: n[3].eval(), 1),
    "a hook on the norm": (lambda n: n[3].register_forward_hook(lambda *_: None), 1),
    "a hook on the activation": (lambda n: n[4].register_forward_hook(lambda *_: None), 1),
    "a hook on the convolution": (lambda n: n[5].register_forward_hook(lambda *_: None), 0),
    "tanh": (lambda n: n.__setitem__(4, nn.Tanh()), 1),
    "another activation": (lambda n: n.__setitem__(4, nn.ELU()), 1),
    "groups of channels": (lambda n: n.__setitem__(5, nn.Conv2d(8, 10, 4, 2, 1, groups=2).double()), 0),
    "a weight that lies otherwise": (contiguous, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_handed_on_is_made(change: str, served: Callable[..., None]) -> None:
    plain, fused, x = twins("critic")
    act, expected = CHANGES[change]
    torch.manual_seed(1)
    act(plain)
    torch.manual_seed(1)
    act(fused)
    fuse(fused)
    assert handed(fused, x) == expected
    for _ in range(2):
        found = [step(network, x) for network in (fused, plain)]
        assert_close(*found)


def test_a_parametrised_weight_is_read_once(served: Callable[..., None]) -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        network = critic()
        for index in (2, 5, 8):
            nn.utils.parametrizations.spectral_norm(network[index])
        networks.append(network.to(memory_format=torch.channels_last).double())  # type: ignore[call-overload]
    plain, fused = networks[0], fuse(networks[1])
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    assert_close([fused(x)], [plain(x)])
    assert_same_state(fused, plain)


@pytest.mark.parametrize("shape", [(4, 5, 8, 8), (6, 8, 8), (1, 6, 2, 2)])
def test_errors_are_the_modules_own(shape: tuple[int, ...], served: Callable[..., None]) -> None:
    found = []
    plain, fused, _ = twins("critic")
    for module in (plain, fused):
        try:
            found.append(module(torch.randn(shape, dtype=torch.float64)).shape)
        except (ValueError, RuntimeError) as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1]
