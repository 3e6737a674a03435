"""Spectral norm among what else a training script does: activation checkpoints, threads, autocast, transforms, interruptions."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.utils.checkpoint import checkpoint

from ganfast.errors import InvalidValue
from ganfast.nn import from_torch_state_dict, spectral_norm_, update_spectral_norm
from ganfast.nn import spectral_norm as page


class Critic(nn.Module):
    """Two linear layers with ``between`` called on the way from one to the other."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def batch(n: int = 6) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(5))


def gradients(network: nn.Module, x: Tensor) -> list[Tensor | None]:
    network.zero_grad()
    network(x).square().sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


def assert_same(first: list[Any], second: list[Any]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_one_call_of_an_op_serves_all_layers_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network = spectral_norm_(Critic())
    calls: list[int] = []

    def counted(op: Any) -> Any:
        return lambda weights, *rest: (calls.append(len(weights)), op(weights, *rest))[1]

    for name in ("spectral_norm", "power_iteration"):
        monkeypatch.setattr(page, name, counted(getattr(page, name)))
    network(batch())
    assert calls == [2]
    update_spectral_norm(network)
    assert calls == [2, 2]
    assert network.a.weight.shape == (8, 8)  # outside of a pass, alone
    assert calls == [2, 2, 1]


@pytest.mark.parametrize("n", [6, 8])  # with as many samples as features, tensors in a wrong order would fit
@pytest.mark.parametrize("per_call", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_change_nothing(n: int, per_call: bool, reentrant: bool) -> None:
    class Checkpointed(Critic):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(checkpoint(lambda x: torch.relu(self.a(x)), x, use_reentrant=reentrant))

    networks = []
    for kind in (Critic, Checkpointed):
        torch.manual_seed(3)
        networks.append(spectral_norm_(kind(), per_call=per_call))
    x = batch(n).requires_grad_()
    for _ in range(2):
        assert_same(*(gradients(network, x) for network in networks))
    assert_same(*(list(network.state_dict().values()) for network in networks))


def test_a_pass_in_another_thread_takes_nothing_away() -> None:
    network = spectral_norm_(Critic())
    expected = gradients(network, batch())

    def sample_meanwhile(x: Tensor) -> Tensor:
        network.between = torch.relu
        with_threads = threading.Thread(target=lambda: torch.no_grad()(network)(batch()))
        with_threads.start()
        with_threads.join()
        return torch.relu(x)

    network.between = sample_meanwhile
    assert_same(gradients(network, batch()), expected)


@pytest.mark.parametrize("per_call", [False, True])
def test_a_pass_in_inference_mode_comes_first(per_call: bool) -> None:
    network = spectral_norm_(Critic(), per_call=per_call)
    with torch.inference_mode():
        network(batch())
        update_spectral_norm(network)
    update_spectral_norm(network)
    assert all(g is not None for g in gradients(network, batch()))


def test_an_island_without_autocast_has_weights_of_its_own() -> None:
    class Island(Critic):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            assert hidden.dtype == torch.bfloat16
            with torch.autocast("cpu", enabled=False):
                return self.b(hidden.float())

    network = spectral_norm_(Island())
    with torch.autocast("cpu", torch.bfloat16):
        assert network(batch()).dtype == torch.float32


def test_an_interrupted_pass_leaves_nothing_behind() -> None:
    def interrupted(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    network = spectral_norm_(Critic(interrupted))
    with pytest.raises(KeyboardInterrupt):
        network(batch())
    network.between = torch.relu
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(batch()), copy.deepcopy(network)(batch()))
    with torch.no_grad():
        network.a.weight_original.mul_(2.0).add_(0.1)
    expected = copy.deepcopy(network).a.weight
    assert torch.equal(network.a.weight, expected)


@pytest.mark.parametrize("per_call", [False, True])
def test_copies_of_a_network_in_use_are_independent(per_call: bool) -> None:
    network = spectral_norm_(Critic(), per_call=per_call)
    network(batch())
    before = [tensor.clone() for tensor in network.state_dict().values()]
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        update_spectral_norm(twin)
        twin(batch())
        assert_same(list(network.state_dict().values()), before)
    update_spectral_norm(network)
    twin = copy.deepcopy(network)
    assert torch.equal(twin.eval()(batch()), network.eval()(batch()))


def test_buffers_stay_where_they_are() -> None:
    network = spectral_norm_(Critic())
    buffers = [buffer for layer in (network.a, network.b) for buffer in (layer.weight_u, layer.weight_v)]
    addresses = [buffer.data_ptr() for buffer in buffers]
    for change in (network, lambda x: update_spectral_norm(network), lambda x: update_spectral_norm(network.a), network.b.eval()):
        change(batch()[:1])
        update_spectral_norm(network)
        network(batch())
    assert [buffer.data_ptr() for buffer in buffers] == addresses
    assert network.a.weight_u is buffers[0]


def test_a_layer_that_is_called_twice_moves_twice_as_in_torch() -> None:
    class Twice(Critic):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x)))

    theirs = Twice()
    for layer in (theirs.a, theirs.b):
        torch_spectral_norm(layer)
    ours = spectral_norm_(Twice(), per_call=True)
    ours.load_state_dict(from_torch_state_dict(theirs.state_dict()))
    for _ in range(3):
        torch.testing.assert_close(ours(batch()), theirs(batch()))
    expected = from_torch_state_dict(theirs.state_dict())
    torch.testing.assert_close(dict(ours.state_dict()), {name: expected[name] for name in ours.state_dict()})


def test_layers_that_a_pass_leaves_out_have_no_gradient() -> None:
    class Heads(Critic):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Linear(8, 1)

    network = spectral_norm_(Heads())
    grads = dict(zip([name for name, _ in network.named_parameters()], gradients(network, batch()), strict=True))
    assert grads["c.weight"] is grads["c.bias"] is None
    network.a.weight_original.requires_grad_(False)
    assert gradients(network, batch())[0] is None


def test_parts_of_a_network_may_go_backward_one_after_the_other() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 1), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x).sum(), self.b(x).sum()

    network = spectral_norm_(Heads())
    first, second = network(batch())
    (first + second).backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    for output in network(batch()):
        output.backward()
    assert_same([p.grad for p in network.parameters()], expected)
    first, second = network(batch())
    first.backward()
    with torch.no_grad():
        network.b.weight_original.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        second.backward()


def test_the_transforms_of_torch_func_take_buffers_too() -> None:
    network = spectral_norm_(Critic()).double()
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())

    def loss(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(network, (parameters, buffers), (x,)).square().sum()

    x = batch().double()
    expected = gradients(network, x)
    assert_same(list(torch.func.grad(loss)(parameters, buffers, x).values()), expected)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0))(parameters, buffers, x[:, None])
    assert_same([g.sum(0) for g in each.values()], expected)


def test_dual_numbers_go_through() -> None:
    network = spectral_norm_(Critic()).double()
    weight, direction = network.a.weight_original.detach(), torch.randn(8, 8, dtype=torch.float64)

    def output(w: Tensor) -> Tensor:
        return torch.func.functional_call(network, {"a.weight": w}, (batch().double(),)).sum()

    for requires_grad in (False, True):
        network.requires_grad_(requires_grad)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(output(forward_ad.make_dual(weight, direction))).tangent
        assert tangent is not None
        step = 1e-6
        expected = (output(weight + step * direction) - output(weight - step * direction)) / (2 * step)
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-8)


def test_a_sparse_embedding_has_the_gradient_of_a_dense_one() -> None:
    grads = []
    for sparse in (False, True):
        torch.manual_seed(0)
        layer = spectral_norm_(nn.Embedding(7, 5, sparse=sparse))
        layer(torch.tensor([1, 3, 3])).square().sum().backward()
        grads.append(layer.weight_original.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_vectors_come_back_to_float32() -> None:
    layer = spectral_norm_(nn.Linear(3, 3)).double().half()
    assert layer.weight_u.dtype == torch.float32


@pytest.mark.parametrize("per_call", [False, True])
def test_a_training_step_compiles_in_one_graph(per_call: bool) -> None:
    def step(network: nn.Module, x: Tensor) -> Tensor:
        return network(x).square().sum()

    results = []
    for compiled in (False, True):
        torch.manual_seed(3)
        network = spectral_norm_(Critic(), per_call=per_call)
        run = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
        for _ in range(2):
            network.zero_grad()
            run(network, batch()).backward()
        results.append([*(p.grad for p in network.parameters()), *network.state_dict().values()])
    assert_same(*results)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"n_iterations": 1.5}, "whole number n_iterations"), ({"eps": -1.0}, "eps >= 0, got -1"), ({"eps": float("nan")}, "eps")],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        spectral_norm_(Critic(), **options)


def test_what_cannot_work_is_refused_before_anything_changes() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, dtype=torch.complex64))
    with pytest.raises(InvalidValue, match=r"layer '1' \(Linear\) has a weight in torch.complex64"):
        spectral_norm_(network)
    assert type(network[0]) is nn.Linear
    with pytest.raises(InvalidValue, match="use DistributedDataParallel"):
        spectral_norm_(nn.Linear(3, 3))._replicate_for_data_parallel()
