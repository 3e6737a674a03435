"""fuse in the surroundings that a network lives in: checkpoints, copies, hooks, compilers, other tools' conversions."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_twins import assert_close, assert_same_state, assert_twins, fused_paths, ops_of, twins
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ganfast import gradient_penalty
from ganfast.errors import InvalidValue
from ganfast.models import dcgan, resnet
from ganfast.models.shape import SampleShape
from ganfast.nn import fuse, fuse_report, spectral_norm_

served = pytest.mark.compiled


def generator() -> nn.Sequential:
    """DCGAN's, at 16 pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.ConvTranspose2d(8, 1, 4, 2, 1),
        nn.Tanh(),
    )


class Critic(nn.Module):
    """A residual block as they are usually written, in a critic whose layers are under attributes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        slope = nn.LeakyReLU(0.2, inplace=True)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 8, 4, 2, 1), nn.BatchNorm2d(8, affine=False), slope, nn.Conv2d(8, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=None)
        self.act = slope

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.body(self.stem(x))), 0.2)
        out = self.conv1(x)
        out = self.norm1(out)
        out = self.act(out)
        out = self.conv2(out)
        out = self.norm2(out)
        return self.act(out + x).mean(dim=(1, 2, 3))


def latents() -> Tensor:
    return torch.randn(6, 10, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def images() -> Tensor:
    return torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], list[str]]] = {
    "generator": (generator, latents, ["1", "3.1"]),
    "critic": (Critic, images, ["body.1", "norm", "norm1", "norm2"]),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_fused_network_is_the_plain_one(name: str, channels_last: bool) -> None:
    make, inputs, paths = NETWORKS[name]
    plain, fused = twins(make())
    assert fused_paths(fused) == paths
    x = inputs()
    assert_twins(plain, fused, x.to(memory_format=torch.channels_last) if channels_last else x)


@served
@pytest.mark.parametrize("name", NETWORKS)
def test_the_op_trains_and_convolutions_evaluate(name: str) -> None:
    make, inputs, _ = NETWORKS[name]
    plain, fused = twins(make())
    activated = {"generator": 2, "critic": 3}[name]  # norm2 has no activation behind it
    stock = ops_of(plain, inputs()).count("native_batch_norm")
    training = ops_of(fused, inputs())
    evaluation = ops_of(fused.eval(), inputs().repeat(40, 1, 1, 1))  # a small batch is not worth new weights
    assert training.count("ganfast::batch_norm_act") == activated
    assert training.count("native_batch_norm") == stock - activated
    # without a convolution before it, or without running statistics, batch norm stays what it was
    assert evaluation.count("native_batch_norm") == {"generator": 0, "critic": 1}[name]
    assert evaluation.count("ganfast::batch_norm_act") == {"generator": 0, "critic": 1}[name]


@pytest.mark.parametrize("kind", [dcgan, resnet], ids=lambda kind: kind.__name__.rpartition(".")[2])
def test_every_batch_norm_of_our_own_generators_is_fused(kind: Any) -> None:
    torch.manual_seed(0)
    plain, fused = twins(kind.Generator(SampleShape(3, 8), 5, 4))
    norms = [path for path, module in plain.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert fused_paths(fused) == norms != []
    assert_twins(plain, fused, latents()[:, :5, 0, 0])


def test_fusing_is_in_place_and_keeps_modules_parameters_and_names() -> None:
    network = Critic()
    children, parameters, keys, text = (
        list(network.modules()),
        dict(network.named_parameters()),
        list(network.state_dict()),
        repr(network),
    )
    kinds = {child: type(child) for child in children if not isinstance(child, nn.Sequential | Critic)}
    attributes = set(network.__dict__)
    assert fuse(network) is network
    assert list(network.modules()) == children
    assert {child: type(child) for child in kinds} == kinds
    assert list(network.state_dict()) == keys
    assert all(parameters[name] is tensor for name, tensor in network.named_parameters())
    assert repr(network) == text
    assert isinstance(network, Critic) and isinstance(network.body, nn.Sequential)
    assert set(network.__dict__) == attributes


def test_plain_and_fused_checkpoints_are_interchangeable() -> None:
    plain, fused = generator(), fuse(generator())
    plain(latents().float())
    file = io.BytesIO()
    torch.save(plain.state_dict(), file)
    file.seek(0)
    fused.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(fused, plain)
    plain.load_state_dict(fused.state_dict())


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, saved_and_loaded, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_are_fused_and_stand_alone(name: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    make, inputs, paths = NETWORKS[name]
    plain, fused = twins(make())
    twin = copied(fused)
    assert fused_paths(twin) == paths
    assert type(twin) is type(fused)
    assert_twins(plain, twin, inputs())
    if copied is not copy.copy:  # which shares all children
        assert all(int(n) == 0 for name, n in fused.named_buffers() if name.endswith("num_batches_tracked"))


def test_fusing_twice_is_fusing_once() -> None:
    network = fuse(generator())
    kinds = [type(module) for module in network.modules()]
    fuse(network)
    assert [type(module) for module in network.modules()] == kinds


def test_fusing_again_takes_up_what_was_added() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3))
    network = fuse(plain)
    network.append(nn.BatchNorm2d(2)).append(nn.ReLU())
    assert [row.status for row in fuse_report(network)] == ["left"]
    assert fused_paths(fuse(network)) == ["1"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("path", ["", "stem", "body", "body.0", "body.1", "body.2", "norm", "conv1", "norm1", "act"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_every_hook_runs_and_may_change_what_it_sees(path: str, kind: str, late: bool) -> None:
    plain = Critic().double()
    for child in plain.modules():
        if isinstance(child, nn.LeakyReLU):
            child.inplace = False  # which PyTorch forbids beside backward hooks
    fused = copy.deepcopy(plain)
    if late:
        fuse(fused)
    calls: dict[nn.Module, int] = {plain: 0, fused: 0}
    for network in calls:

        def hook(module: nn.Module, *values: object, network: nn.Module = network) -> Tensor | tuple[Tensor] | None:
            calls[network] += 1
            (value,) = values[0] if isinstance(values[0], tuple) else (values[0],)
            if kind == "forward_hook":
                assert isinstance(values[1], Tensor)
                return values[1] * 1.5
            return None if value is None else (value * 1.5,)

        getattr(network.get_submodule(path), f"register_{kind}")(hook)
    assert_twins(plain, fuse(fused), images())
    assert calls[plain] == calls[fused] > 0


def test_a_hook_on_all_modules_sees_every_call() -> None:
    fused = fuse(Critic())
    seen: list[nn.Module] = []
    watch = nn.modules.module.register_module_forward_pre_hook(lambda module, _: seen.append(module))
    try:
        fused(images().float())
    finally:
        watch.remove()
    assert {fused.norm, fused.norm1, fused.norm2, fused.body[1], fused.act} <= set(seen)


def test_batch_norm_in_a_penalised_critic_is_still_refused() -> None:
    with pytest.raises(InvalidValue, match="BatchNorm2d"):
        gradient_penalty(fuse(Critic()), images().float(), images().float())


def test_children_may_be_replaced_and_patched() -> None:
    plain, fused = twins(Critic())
    for network in (plain, fused):
        torch.manual_seed(5)
        network.norm1, network.act = nn.InstanceNorm2d(4), nn.ELU()
        network.norm2.forward = lambda x: x * 2  # type: ignore[method-assign]
    assert_twins(plain, fused, images())


@pytest.mark.parametrize("late", [False, True])
def test_sync_batch_norm_stays_what_it_is(late: bool) -> None:
    plain = Critic().double()
    fused = fuse(copy.deepcopy(plain)) if late else copy.deepcopy(plain)
    fused = fuse(nn.SyncBatchNorm.convert_sync_batchnorm(fused))
    assert {row.why for row in fuse_report(fused)} == {"SyncBatchNorm has a forward of its own"}
    assert_twins(plain, fused, images())


def test_frozen_batch_norm_in_a_training_network() -> None:
    plain, fused = twins(Critic())
    for network in (plain, fused):
        network(images())
        network.train = lambda mode=True, network=network: network  # type: ignore[method-assign]
        for child in network.modules():
            if isinstance(child, nn.BatchNorm2d) and child.track_running_stats:
                child.training = False
    assert_twins(plain, fused, images())


@pytest.mark.parametrize("normalise", [spectral_norm_, lambda m: m.apply(_parametrised)])
def test_reparametrised_convolutions(normalise: Callable[[nn.Module], nn.Module]) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LeakyReLU(0.2)).double()
    normalise(plain)
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert fused_paths(fused) == ["1"]
    assert_twins(plain, fused, images())
    assert ops_of(fused.eval(), images()).count("native_batch_norm") == 0


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrised(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        parametrize.register_parametrization(module, "weight", Doubled())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_compiles_in_one_graph(name: str, training: bool) -> None:
    make, inputs, _ = NETWORKS[name]
    plain, fused = twins(make())
    if name == "critic":
        plain.norm2.momentum = fused.norm2.momentum = 0.1  # PyTorch's average over all batches is no one graph
    torch._dynamo.reset()
    fused.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    assert_twins(plain, fused, inputs(), modes=[training])


@served
def test_a_cumulative_average_compiles_in_one_graph() -> None:
    plain, fused = twins(nn.Sequential(nn.BatchNorm2d(1, momentum=None), nn.ReLU()))
    torch._dynamo.reset()
    fused.compile(backend="eager", fullgraph=True)
    assert_twins(plain, fused, images(), modes=[True, True, True])


def test_inside_a_compiled_network_it_is_fused_after_all() -> None:
    plain, fused = twins(Critic())
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    compiled(images())
    fuse(compiled)
    assert [row.status for row in fuse_report(compiled)] == ["fused"] * 4
    fused(images())
    for network in (plain, fused):
        network(images())
    assert_close([compiled(images())], [plain(images())])


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_exported_network_is_folded(dynamic: bool) -> None:
    plain, fused = (network.eval() for network in twins(generator()))
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},) if dynamic else None
    exported = torch.export.export(fused, (latents(),), dynamic_shapes=shapes)
    assert not any("batch_norm" in str(node.target) for node in exported.graph.nodes)
    assert_close([exported.module()(latents())], [plain(latents())])


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_jit_and_fx_traces_follow() -> None:
    plain, fused = (network.eval() for network in twins(generator()))
    for traced in (torch.jit.trace(fused, latents()), torch.fx.symbolic_trace(fused)):
        assert_close([traced(latents())], [plain(latents())])


SCRIPTED = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # PyTorch's jvp, by itself


@SCRIPTED
@pytest.mark.parametrize("training", [True, False])
def test_functional_transforms_follow(training: bool) -> None:
    plain, fused = (network.train(training) for network in twins(Critic()))
    results = []
    for network in (plain, fused):
        state = {**dict(network.named_parameters()), **{name: b.clone() for name, b in network.named_buffers()}}

        def loss(state: dict[str, Tensor], network: nn.Module = network) -> Tensor:
            found: Tensor = torch.func.functional_call(network, state, (images(),))
            return found.square().sum()

        parameters = {name: t.detach() for name, t in network.named_parameters()}
        buffers = {name: t for name, t in state.items() if name not in parameters}
        gradients = torch.func.grad(lambda p, b, loss=loss: loss({**p, **b}))(parameters, buffers)
        results.append([*gradients.values(), *buffers.values()])
        if not training:
            results[-1] += torch.func.jvp(network, (images(),), (images(),))
            results[-1] += [torch.func.vmap(network)(images().unsqueeze(1))]
    assert_close(results[1], results[0])


@SCRIPTED
def test_functional_transforms_that_batch_norm_refuses_stay_refused() -> None:
    errors = []
    for network in twins(Critic()):
        with pytest.raises(RuntimeError) as raised:
            torch.func.vmap(network)(images().unsqueeze(1))
        with pytest.raises(RuntimeError) as also:
            torch.func.jvp(network, (images(),), (images(),))
        errors.append((str(raised.value), str(also.value)))
    assert errors[0] == errors[1]


def test_a_batch_norm_that_one_call_of_many_activates() -> None:
    """The backward of one call may hold the running statistics that another updates."""
    plain, fused = twins(nn.Sequential(norm := nn.BatchNorm2d(1), nn.ELU(), norm, nn.ReLU(), norm))
    assert_twins(plain, fused, images())


@served
@pytest.mark.parametrize("training", [True, False])
def test_autocast(training: bool) -> None:
    """Convolutions in bfloat16, of which one rounding is 2^-8; statistics and parameters in float32."""
    plain = generator().train(training)
    fused = fuse(copy.deepcopy(plain))
    exact = copy.deepcopy(plain).double()(latents())
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = plain(latents().float()), fused(latents().float())
    assert ours.dtype == theirs.dtype
    error = [(y.double() - exact).abs().max().item() for y in (ours, theirs)]
    assert error[0] <= 2 * error[1] + 2**-8 * exact.abs().max().item()
    ours.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fused.parameters())


def test_second_order_gradients_follow() -> None:
    plain, fused = twins(Critic())
    found = []
    for network in (plain, fused):
        x = images().requires_grad_()
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert_close([found[1]], [found[0]])


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def hooked(position: int, kind: str) -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU())
    getattr(network[position], f"register_{kind}")(lambda *_: None)
    return network


def shared() -> nn.Sequential:
    norm = nn.BatchNorm2d(1)
    return nn.Sequential(nn.Conv2d(1, 1, 1), norm, nn.ReLU(), nn.Conv2d(1, 1, 1), norm, nn.ReLU())


class Own(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self[1](x)


def parametrised() -> nn.Module:
    network = Lone()
    parametrize.register_parametrization(network, "weight", Doubled())
    return network


class Lone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.ones(1)), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).relu() * self.weight


def replaced() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU())
    network.forward = lambda x: x  # type: ignore[method-assign]
    return network


def holder(norm: nn.Module) -> nn.Module:
    network = nn.Module()
    network.norm = norm
    return network


TRACED = "a graph of torch.fx calls it, which is not rewritten"
LONE = "no convolution stands before it, and no ReLU, LeakyReLU or Tanh behind it"


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (chain(nn.BatchNorm2d(1)), LONE),
        (chain(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.ELU()), LONE),
        (chain(nn.Conv2d(1, 1, 1), nn.SyncBatchNorm(1), nn.ReLU()), "SyncBatchNorm has a forward of its own"),
        (
            Own(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()),
            "Own gives it no convolution's output alone, and its own not to ReLU, LeakyReLU or tanh alone",
        ),
        (nn.ModuleList([nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()]), "nothing calls it"),
        (replaced(), "the forward of this Sequential was replaced"),
        (parametrised(), "this ParametrizedLone is parametrised itself"),
        (torch.fx.symbolic_trace(chain(chain(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), nn.ReLU())), TRACED),
        (holder(nn.BatchNorm2d(1)), "Module of torch.nn.modules.module is torch's own"),
        (hooked(1, "forward_hook"), "it has hooks"),
        (hooked(1, "forward_pre_hook"), "it has hooks"),
        (hooked(1, "full_backward_hook"), "it has hooks"),
        (hooked(2, "forward_hook"), "its ReLU has hooks"),
    ],
)
def test_what_cannot_be_fused_is_left_and_said_why(network: nn.Module, why: str) -> None:
    assert [(row.status, row.why) for row in fuse_report(fuse(network))] == [("left", why)]


def test_a_class_that_another_tool_derives_stays() -> None:
    plain, fused = twins(Lone())
    derived = type("Derived", (type(fused),), {})
    fused.__class__ = derived
    assert type(fuse(fused)) is derived
    assert fused_paths(fused) == ["norm"]
    assert_twins(plain, fused, images())


def test_a_shared_batch_norm_is_fused_wherever_it_stands() -> None:
    plain, fused = twins(shared())
    assert fuse_report(fused) == [("1", "fused", "Conv2d + BatchNorm2d + ReLU")]
    assert_twins(plain, fused, images())
    assert int(fused[1].num_batches_tracked) == 6  # type: ignore[index]


def test_the_report_names_every_batch_norm_and_prints() -> None:
    network = nn.Sequential(generator(), nn.BatchNorm2d(1))
    assert fuse_report(network)[0] == ("0.1", "left", "nothing speaks against it: call fuse")
    report = fuse_report(fuse(network))
    assert report == [
        ("0.1", "fused", "ConvTranspose2d + BatchNorm2d + ReLU"),
        ("0.3.1", "fused", "ConvTranspose2d + BatchNorm2d + ReLU"),
        ("1", "left", LONE),
    ]
    assert str(report).splitlines()[0] == "0.1    fused  ConvTranspose2d + BatchNorm2d + ReLU"
    assert fuse_report(nn.Linear(1, 1)) == []
