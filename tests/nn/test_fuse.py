from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ganfast.nn import fuse, fuse_report, spectral_norm_


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
    """DCGAN's, with its chain under an attribute, and a residual branch that shares nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        slope = nn.LeakyReLU(0.2, inplace=True)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        first, second, third = nn.Conv2d(4, 8, 4, 2, 1), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 3)
        self.body = nn.Sequential(first, nn.BatchNorm2d(8, affine=False), slope, second, nn.BatchNorm2d(4), slope)
        stateless = nn.BatchNorm2d(4, track_running_stats=False, momentum=None)
        self.skip = nn.ModuleList([nn.Sequential(third, stateless, nn.ReLU())])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.body(x).mean(dim=(1, 2, 3)) + self.skip[0](x).mean(dim=(1, 2, 3))


def latents() -> Tensor:
    return torch.randn(6, 10, 1, 1, generator=torch.Generator().manual_seed(3))


def images() -> Tensor:
    return torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], list[str]]] = {
    "generator": (generator, latents, ["1", "3.1"]),
    "critic": (Critic, images, ["body.1", "body.4", "skip.0.1"]),
}


def fused_paths(module: nn.Module) -> list[str]:
    return [row.path for row in fuse_report(module) if row.status == "fused"]


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_fused_network_trains_bit_for_bit_like_the_plain_one(name: str, channels_last: bool) -> None:
    make, inputs, paths = NETWORKS[name]
    plain = make()
    fused = fuse(copy.deepcopy(plain))
    assert fused_paths(fused) == paths
    x = inputs()
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.01) for module in (plain, fused)]
    for step in range(3):
        grads = []
        for module, optimizer in zip((plain, fused), optimizers, strict=True):
            point = (x + step).requires_grad_()
            output = module(point)
            optimizer.zero_grad()
            output.square().sum().backward()
            optimizer.step()
            grads.append((output.detach(), point.grad, *(p.grad for p in module.parameters())))
        for ours, theirs in zip(*grads, strict=True):
            assert torch.equal(ours, theirs)
        assert grads[0][1].abs().max() > 0
    assert_same_state(fused, plain)
    assert torch.equal(fused.eval()(x), plain.eval()(x))


def test_fusing_is_in_place_and_keeps_parameters_names_and_the_batch_norms_identity() -> None:
    network = generator()
    parameters, norm = dict(network.named_parameters()), network[1]
    keys = list(network.state_dict())
    assert fuse(network) is network
    assert list(network.state_dict()) == keys
    assert all(parameters[name] is tensor for name, tensor in network.named_parameters())
    assert network[1] is norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert type(network[2]) is nn.Identity
    assert len(network) == 6


def test_plain_and_fused_checkpoints_are_interchangeable() -> None:
    plain, fused = generator(), fuse(generator())
    plain(latents())
    file = io.BytesIO()
    torch.save(plain.state_dict(), file)
    file.seek(0)
    fused.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(fused, plain)
    plain.load_state_dict(fused.state_dict())
    assert torch.equal(fused.eval()(latents()), plain.eval()(latents()))


def test_deepcopy_pickle_and_mode_changes_follow() -> None:
    fused = fuse(generator())
    expected = copy.deepcopy(fused).eval()(latents())
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert fused_paths(twin) == ["1", "3.1"]
        twin.eval()
        assert not any(module.training for module in twin.modules())
        assert torch.equal(twin(latents()), expected)
        twin.train()(latents())
        assert int(twin[1].num_batches_tracked) == 1
    assert int(fused[1].num_batches_tracked) == 0


def test_a_network_in_evaluation_mode_stays_there() -> None:
    assert not any(module.training for module in fuse(generator().eval()).modules())


def test_fusing_twice_is_fusing_once() -> None:
    network = fuse(generator())
    text, output = repr(network), copy.deepcopy(network)(latents())
    assert repr(fuse(network)) == text
    assert torch.equal(network(latents()), output)


def test_hooks_on_the_convolution_and_the_chain_still_run() -> None:
    calls: list[str] = []
    network = generator()
    network[0].register_forward_hook(lambda *_: calls.append("convolution"))
    network[3].register_forward_hook(lambda *_: calls.append("chain"))
    fuse(network)(latents())
    assert calls == ["convolution", "chain"]
    assert fused_paths(network) == ["1", "3.1"]


def test_nan_flows_and_negative_zero_stays() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.LeakyReLU(0.2)).eval()
    fused = fuse(copy.deepcopy(plain))
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0]).view(1, 1, 2, 2)
    assert torch.equal(fused(x).view(torch.int32), plain(x).view(torch.int32))


def test_a_spectrally_normalised_convolution_is_a_convolution() -> None:
    plain = spectral_norm_(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LeakyReLU(0.2)))
    fused = fuse(copy.deepcopy(plain))
    assert fused_paths(fused) == ["1"]
    assert torch.equal(fused(images()), plain(images()))


def test_it_compiles_in_one_graph() -> None:
    fused = fuse(generator()).eval()
    assert torch.equal(torch.compile(fused, backend="eager", fullgraph=True)(latents()), fused(latents()))


class Own(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self[1](x)


def hooked(position: int, kind: str) -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU())
    getattr(network[position], f"register_{kind}")(lambda *_: None)
    return network


def shared() -> nn.Sequential:
    norm = nn.BatchNorm2d(1)
    return nn.Sequential(nn.Conv2d(1, 1, 1), norm, nn.ReLU(), nn.Conv2d(1, 1, 1), norm, nn.ReLU())


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (chain(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Tanh()), "Tanh follows, not ReLU or LeakyReLU"),
        (chain(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "nothing follows, not ReLU or LeakyReLU"),
        (chain(nn.BatchNorm2d(1), nn.ReLU()), "it follows nothing, not a convolution"),
        (chain(nn.ReLU(), nn.BatchNorm2d(1), nn.ReLU()), "it follows ReLU, not a convolution"),
        (chain(nn.Conv2d(1, 1, 1), nn.SyncBatchNorm(1), nn.ReLU()), "SyncBatchNorm is not BatchNorm2d"),
        (chain(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.ReLU()), "BatchNorm1d is not BatchNorm2d"),
        (Own(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()), "Own has a forward of its own"),
        (nn.ModuleList([nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()]), "it stands in no nn.Sequential"),
        (shared(), "it is shared: 2 places in the module use it"),
        (hooked(1, "forward_hook"), "it has hooks, which would see the activation's output"),
        (hooked(1, "forward_pre_hook"), "it has hooks, which would see the activation's output"),
        (hooked(1, "full_backward_hook"), "it has hooks, which would see the activation's output"),
        (hooked(2, "forward_hook"), "its ReLU has hooks, which would no longer run"),
    ],
)
def test_what_cannot_be_fused_is_left_and_said_why(network: nn.Module, why: str) -> None:
    kinds = [type(module) for module in network.modules()]
    fuse(network)
    assert [type(module) for module in network.modules()] == kinds
    report = fuse_report(network)
    assert [(row.status, row.why) for row in report] == [("left", why)]


def test_the_report_names_every_batch_norm() -> None:
    network = nn.Sequential(generator(), nn.BatchNorm2d(1))
    assert fuse_report(network)[0] == ("0.1", "left", "nothing speaks against it: call fuse")
    fuse(network)
    assert fuse_report(network) == [
        ("0.1", "fused", "BatchNorm2d + ReLU"),
        ("0.3.1", "fused", "BatchNorm2d + ReLU"),
        ("1", "left", "it follows Sequential, not a convolution"),
    ]
    assert fuse_report(nn.Linear(1, 1)) == []
