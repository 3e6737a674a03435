from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as torch_spectral_norm_hook
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from ganfast.errors import InvalidValue
from ganfast.nn import from_torch_state_dict, spectral_norm_, to_torch_state_dict, update_spectral_norm
from ganfast.penalties import gradient_penalty

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (3, 4, 9)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1), (3, 4, 5, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
    "embedding": (lambda: nn.Embedding(7, 5), (4,)),
}


def critic() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2), nn.ConvTranspose2d(4, 5, 3), nn.Softplus(), nn.Flatten(), nn.Linear(320, 1)
    )


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(7))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("kind", LAYERS)
def test_per_call_is_torchs_parametrization_number_for_number(kind: str) -> None:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    ours = make()
    theirs = torch_spectral_norm(copy.deepcopy(ours))
    spectral_norm_(ours, per_call=True)
    ours.load_state_dict(from_torch_state_dict(theirs.state_dict()))
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (ours, theirs)]
    for _ in range(4):
        batch = torch.randint(0, 7, shape) if kind == "embedding" else torch.randn(shape)
        outputs = [module(batch) for module in (ours, theirs)]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)  # float32 sums in another order, over four steps
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            output.square().sum().backward()
            optimizer.step()
    converted, expected = to_torch_state_dict(ours.state_dict()), theirs.state_dict()
    assert converted.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(converted[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_norm_of_the_weight_in_use_is_one(kind: str) -> None:
    make, _ = LAYERS[kind]
    torch.manual_seed(0)
    layer = make().double()
    spectral_norm_(layer)
    for _ in range(500):
        update_spectral_norm(layer)
    in_use = layer.weight.transpose(0, 1) if "transpose" in kind else layer.weight
    assert torch.linalg.svdvals(in_use.flatten(1))[0].item() == pytest.approx(1.0, rel=1e-9)


def test_it_starts_close_to_the_norm_and_repeats_under_a_seed() -> None:
    torch.manual_seed(1)
    first = spectral_norm_(critic())
    torch.manual_seed(1)
    second = spectral_norm_(critic())
    assert_same(state(first), state(second))
    raw = critic()
    sigma = torch.linalg.svdvals(raw[0].weight.flatten(1))[0]
    torch.testing.assert_close(first[0].weight, raw[0].weight / sigma, rtol=1e-2, atol=1e-3)


def test_parameters_keep_their_names_and_identity() -> None:
    network = critic()
    before = dict(network.named_parameters())
    assert spectral_norm_(network) is network
    after = dict(network.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert set(network.state_dict()) - set(before) == {f"{i}.weight_{x}" for i in (0, 2, 5) for x in "uv"}
    assert isinstance(network[0], nn.Conv2d)


def test_forward_alone_changes_nothing_and_update_moves_every_layer() -> None:
    network = spectral_norm_(critic())
    before = state(network)
    network(images())
    assert_same(before, state(network))
    update_spectral_norm(network)
    moved = {name for name, tensor in state(network).items() if not torch.equal(tensor, before[name])}
    assert moved >= {"0.weight_u", "0.weight_v", "2.weight_u", "2.weight_v"}  # a single row has arrived at once
    assert all("weight_" in name for name in moved)


def test_n_iterations_are_that_many_updates() -> None:
    once, thrice = critic(), critic()
    for network, n in ((once, 1), (thrice, 3)):
        torch.manual_seed(1)
        spectral_norm_(network, n_iterations=n)
    for _ in range(3):
        update_spectral_norm(once)
    update_spectral_norm(thrice)
    assert_same(state(once), state(thrice))


@pytest.mark.parametrize("per_call", [False, True])
def test_evaluation_is_deterministic_and_updates_nothing(per_call: bool) -> None:
    network = spectral_norm_(critic(), per_call=per_call).eval()
    before = state(network)
    first = network(images())
    update_spectral_norm(network)
    assert torch.equal(first, network(images()))
    assert_same(before, state(network))


def test_per_call_layers_are_left_out_of_the_grouped_update() -> None:
    network = spectral_norm_(critic(), per_call=True)
    before = state(network)
    update_spectral_norm(network)
    assert_same(before, state(network))
    network(images())
    assert not torch.equal(before["0.weight_u"], network[0].weight_u)


@pytest.mark.parametrize("per_call", [False, True])
def test_several_passes_before_one_backward_keep_their_own_vectors(per_call: bool) -> None:
    network = spectral_norm_(critic(), per_call=per_call)
    separate, x, y = copy.deepcopy(network), images(), images() + 1
    real = network(x).sum()
    update_spectral_norm(network)
    fake = network(y).sum()
    update_spectral_norm(network)
    (real - fake).backward()

    separate(x).sum().backward()
    update_spectral_norm(separate)
    (-separate(y)).sum().backward()
    for ours, expected in zip(network.parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


@pytest.mark.parametrize("per_call", [False, True])
def test_deepcopy_and_pickle_give_independent_equals(per_call: bool) -> None:
    network = spectral_norm_(critic(), per_call=per_call)
    expected = copy.deepcopy(network).eval()(images())
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert_same(state(network), state(twin))
        assert type(twin[0]) is type(network[0])
        before = state(network)
        with torch.no_grad():
            twin[0].weight_u.zero_()
            twin[0].weight_original.zero_()
        assert_same(before, state(network))
    assert torch.equal(network.eval()(images()), expected)


def test_state_dicts_go_through_a_file() -> None:
    network, other = spectral_norm_(critic()), spectral_norm_(critic())
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(network(images()), other(images()))


def test_a_copied_average_of_the_weights_is_normalised_by_the_copys_own_vectors() -> None:
    network = spectral_norm_(critic())
    average = copy.deepcopy(network)
    with torch.no_grad():
        for ours, theirs in zip(average.parameters(), network.parameters(), strict=True):
            ours.lerp_(theirs * 3, 1.0)
    torch.testing.assert_close(average[0].weight, network[0].weight)


def test_state_dict_names_are_torchs_both_ways() -> None:
    ours, theirs = spectral_norm_(critic()), critic()
    for i in (0, 2, 5):
        torch_spectral_norm(theirs[i])
    theirs.load_state_dict(to_torch_state_dict(ours.state_dict()))  # strict
    torch.testing.assert_close(theirs.eval()(images()), ours.eval()(images()))
    assert_same(from_torch_state_dict(theirs.state_dict()), state(ours))
    hooked = critic()
    for i in (0, 2, 5):
        torch_spectral_norm_hook(hooked[i])
    ours.load_state_dict(from_torch_state_dict(hooked.state_dict()))
    torch.testing.assert_close(ours(images()), hooked.eval()(images()))
    plain = critic().state_dict()
    assert_same(from_torch_state_dict(plain), dict(plain))
    assert_same(to_torch_state_dict(plain), dict(plain))


def test_a_single_layer_has_names_without_a_prefix() -> None:
    theirs = torch_spectral_norm(nn.Linear(3, 2))
    ours = spectral_norm_(nn.Linear(3, 2))
    ours.load_state_dict(from_torch_state_dict(theirs.state_dict()))
    theirs.load_state_dict(to_torch_state_dict(ours.state_dict()))


def test_a_state_dict_with_a_missing_vector_is_refused() -> None:
    incomplete = dict(torch_spectral_norm(nn.Linear(3, 2)).state_dict())
    del incomplete["parametrizations.weight.0._v"]
    with pytest.raises(InvalidValue, match=r"no 'parametrizations\.weight\.0\._v'"):
        from_torch_state_dict(incomplete)


def test_gradients_reach_the_weight_through_its_norm_to_second_order() -> None:
    torch.manual_seed(0)
    layer = spectral_norm_(nn.Linear(4, 3, bias=False).double())
    weight = layer.weight_original.detach().clone().requires_grad_()
    x = torch.randn(5, 4, dtype=torch.float64)

    def output(w: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    assert torch.autograd.gradcheck(output, weight)
    assert torch.autograd.gradgradcheck(output, weight)


def test_the_transforms_of_torch_func_go_through() -> None:
    torch.manual_seed(0)
    network = spectral_norm_(nn.Sequential(nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 2)).double())
    names = ["0.weight", "2.weight"]
    weights = [network[i].weight_original.detach().clone() for i in (0, 2)]
    x = torch.randn(5, 4, dtype=torch.float64)

    def loss(*values: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x,)).square().sum()

    leaves = [weight.clone().requires_grad_() for weight in weights]
    expected = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    found = torch.func.grad(loss, argnums=(0, 1))(*weights)
    torch.testing.assert_close(found, tuple(g.detach() for g in expected), rtol=1e-12, atol=1e-12)
    directions = [torch.randn_like(weight) for weight in weights]
    _, along = torch.func.jvp(loss, tuple(weights), tuple(directions))
    product = sum((g * d).sum() for g, d in zip(expected, directions, strict=True))
    torch.testing.assert_close(along, product.detach(), rtol=1e-12, atol=1e-12)
    second = torch.autograd.grad(product, leaves)
    _, forward_over_reverse = torch.func.jvp(torch.func.grad(loss, argnums=(0, 1)), tuple(weights), tuple(directions))
    torch.testing.assert_close(forward_over_reverse, second, rtol=1e-10, atol=1e-10)
    batched = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(*(torch.stack([weight, 2 * weight]) for weight in weights))
    for both, g in zip(batched, expected, strict=True):
        torch.testing.assert_close(both, torch.stack([g, g / 2]).detach(), rtol=1e-12, atol=1e-12)  # the scale is divided away


def test_the_scale_of_a_weight_has_no_gradient() -> None:
    # W / sigma(W) does not change when W is scaled, so the gradient is orthogonal to W
    network = spectral_norm_(critic().double())
    network(images().double()).square().sum().backward()
    for name, weight in network.named_parameters():
        if name.endswith("weight"):
            assert weight.grad is not None
            assert weight.grad.norm() > 1e-6
            assert abs((weight.grad * weight).sum().item()) < 1e-10 * weight.grad.norm() * weight.norm()


def test_the_gradient_penalty_goes_through() -> None:
    network = spectral_norm_(critic())
    gradient_penalty(network, images(), images() + 1).backward()
    assert all(p.grad.abs().max() > 0 for name, p in network.named_parameters() if name.endswith("weight"))


def test_low_precision_modules_keep_their_vectors_in_float32() -> None:
    network = spectral_norm_(critic())
    expected = network(images())
    vectors = state(network)
    network.bfloat16()
    assert network[0].weight.dtype == torch.bfloat16
    assert torch.equal(network[0].weight_u, vectors["0.weight_u"])
    update_spectral_norm(network)
    assert network[0].weight_u.dtype == torch.float32
    torch.testing.assert_close(network(images().bfloat16()).float(), expected, rtol=0.05, atol=0.05)
    assert network.double()[0].weight_u.dtype == torch.float64


def test_sigma_is_exact_under_autocast() -> None:
    network = spectral_norm_(critic())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = network[5].weight
    assert torch.equal(under_autocast, network[5].weight.bfloat16())


def test_it_compiles_in_one_graph() -> None:
    network = spectral_norm_(critic())
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()), network(images()))


def test_a_zero_weight_stays_zero_and_recovers() -> None:
    layer = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    spectral_norm_(layer)
    update_spectral_norm(layer)
    output = layer(torch.ones(2, 4))
    assert torch.equal(output, torch.zeros(2, 3))
    output.sum().backward()
    grad = layer.weight_original.grad
    assert grad is not None
    assert grad.isfinite().all()
    with torch.no_grad():
        layer.weight_original.copy_(torch.randn(3, 4))
    for _ in range(100):
        update_spectral_norm(layer)
    assert torch.linalg.svdvals(layer.weight)[0].item() == pytest.approx(1.0, rel=1e-4)


def test_hooks_tied_weights_and_attention_keep_working() -> None:
    calls: list[int] = []
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: calls.append(1))
    tied = nn.Linear(4, 4)
    tied.weight = layer.weight
    spectral_norm_(nn.Sequential(layer, tied))
    assert tied.weight_original is layer.weight_original
    layer(torch.ones(1, 4))
    assert calls == [1]
    attention = spectral_norm_(nn.MultiheadAttention(4, 2, batch_first=True))
    attention(*[torch.randn(2, 3, 4)] * 3)[0].sum().backward()
    assert attention.out_proj.weight_original.grad is not None


def test_calling_it_again_leaves_normalised_layers_alone() -> None:
    network = spectral_norm_(critic())
    before, layer_type = state(network), type(network[0])
    spectral_norm_(network)
    assert_same(before, state(network))
    assert type(network[0]) is layer_type


def test_what_cannot_be_normalised_is_refused_before_anything_changes() -> None:
    with pytest.raises(InvalidValue, match="Sequential has no Linear, Conv"):
        spectral_norm_(nn.Sequential(nn.ReLU()))
    with pytest.raises(InvalidValue, match="n_iterations >= 1, got 0"):
        spectral_norm_(critic(), n_iterations=0)
    mixed = nn.Sequential(nn.Linear(3, 3), torch_spectral_norm(nn.Linear(3, 3)))
    with pytest.raises(InvalidValue, match=r"layer '1' \(ParametrizedLinear\) has no weight parameter of its own"):
        spectral_norm_(mixed)
    assert type(mixed[0]) is nn.Linear
    assert parametrize.is_parametrized(mixed[1])
    with pytest.raises(InvalidValue, match=r"layer '0' \(LazyLinear\) is not initialised yet"):
        spectral_norm_(nn.Sequential(nn.LazyLinear(3)))
