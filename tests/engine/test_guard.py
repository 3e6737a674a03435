"""What is not finite is skipped without a trace, and what stays so is named: phase, term, layer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganfast import recipes
from ganfast.data import Dataset
from ganfast.engine import guard, state
from ganfast.engine.trainer import Trainer
from ganfast.errors import NonFinite
from ganfast.latent import Noise
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms

CPU = torch.device("cpu")
Poison = Callable[[Phase, Named, Named, Terms], Terms]


def data(recipe: str = "dcgan") -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)
    if recipe == "cyclegan":
        return Dataset("pair", {"a": {"a": images[:12]}, "b": {"b": images[12:]}})
    return Dataset("noise", {"real": {"real": images, "labels": np.arange(24) % 3}})


def built(name: str) -> Recipe:
    options = {"classes": 3} if name == "cgan" else {}
    torch.manual_seed(0)
    return recipes.get(name, image_size=16, channels=1, width=4, **options)


def poisoned(recipe: Recipe, poison: Poison) -> Recipe:
    """The recipe with ``poison(phase, networks, batch, terms)`` in the place of each phase's terms."""

    def wrap(phase: Phase) -> Phase:
        def loss(nets: Named, batch: Named) -> Terms:
            return poison(phase, nets, batch, Terms.of(phase.loss(nets, batch)))

        return dataclasses.replace(phase, loss=loss)

    return dataclasses.replace(recipe, phases=tuple(wrap(phase) for phase in recipe.phases))


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    tensors = state.collect({"networks": trainer._trained}, trainer._optimizers)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name in before if before[name].detach().ne(after[name]).any()]


def times(terms: Terms, factor: float) -> Terms:
    name = next(iter(terms.minimise))
    return Terms({**terms.minimise, name: terms.minimise[name] * factor}, terms.watch)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", recipes.names())
def test_a_skipped_iteration_leaves_no_trace(name: str, bad: float) -> None:
    """Every weight, moment, batch norm statistic, singular vector and image pool is what it was, bit for bit."""
    armed: list[bool] = []
    recipe = poisoned(built(name), lambda phase, nets, batch, terms: times(terms, bad) if armed else terms)
    recipe = dataclasses.replace(recipe, phases=tuple(dataclasses.replace(phase, repeat=1) for phase in recipe.phases))
    trainer = Trainer(recipe, data(name), batch=4)
    trainer.step()
    before = snapshot(trainer)
    assert any("exp_avg" in key or "square_avg" in key for key in before)
    armed.append(True)
    logs = trainer.step()
    assert changed(before, snapshot(trainer)) == []
    assert trainer.skipped == len(recipe.phases) and trainer.steps == 2
    assert not all(value.isfinite() for value in logs.values())  # the log says what happened
    armed.clear()
    trainer.step()
    moved = changed(before, snapshot(trainer))
    assert {key.split(".")[1] for key in moved} >= set(recipe.optimizers)
    assert trainer.skipped == len(recipe.phases)


def test_a_skipped_phase_is_skipped_alone() -> None:
    """The critic's loss is NaN, the generator's is not: the critic's weights stand, the generator's move."""
    recipe = poisoned(
        built("dcgan"), lambda phase, nets, batch, terms: times(terms, float("nan")) if phase.name == "critic" else terms
    )
    trainer = Trainer(recipe, data(), batch=4)
    before = snapshot(trainer)
    trainer.step()
    after = snapshot(trainer)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    weights = {name for name, _ in trainer.networks.D.named_parameters()}
    assert not any(name.removeprefix("networks.D.") in weights for name in moved)
    assert any(name.startswith("networks.G.") for name in moved) and trainer.skipped == 1


def test_nan_in_the_data_is_skipped() -> None:
    """A batch that arrives broken, as a bad sensor or a bad disk makes it."""
    trainer = Trainer(built("sngan"), data(), batch=4)
    trainer.step()
    before, take = snapshot(trainer), trainer._sampler.take

    def broken(*arguments: Any, **named: Any) -> dict[str, Tensor]:
        fields = take(*arguments, **named)
        fields["real"][0, 0, 0, 0] = float("nan")
        return fields

    trainer._sampler.take = broken  # type: ignore[method-assign]
    phase = trainer.recipe.phases[0]
    trainer.recipe = dataclasses.replace(trainer.recipe, phases=(dataclasses.replace(phase, repeat=1),))
    trainer.step()
    assert changed(before, snapshot(trainer)) == [] and trainer.skipped == 1


def test_nan_in_the_weights_is_named(tmp_path: Path) -> None:
    """It cannot recover: the diagnosis says which parameter, and which layer it comes out of first."""
    trainer = Trainer(built("dcgan"), data(), batch=4, out=tmp_path)
    name, weight = list(trainer.networks.G.named_parameters())[2]
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(NonFinite) as caught:
        for _ in range(3):
            trainer.step()
    message = str(caught.value)
    assert "iteration 2, phase 'critic'" in message and "adversarial is nan" in message and "first not finite: G." in message
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert found["step"] == 2 and found["phase"] == "critic" and found["terms"]["adversarial"] == "nan"
    assert found["parameters"] == [f"G.{name}"]
    assert found["layer"] == f"G.{name.rpartition('.')[0]}"
    assert found["gradients"] and all(key.startswith("D.") for key in found["gradients"])


@pytest.mark.parametrize(("passes", "raised"), [(2, False), (3, True)])
def test_three_in_a_row_are_too_many(passes: int, raised: bool) -> None:
    seen: list[int] = []

    def poison(phase: Phase, nets: Named, batch: Named, terms: Terms) -> Terms:
        seen.append(len(seen))
        return times(terms, float("nan")) if 2 <= seen[-1] < 2 + passes else terms

    trainer = Trainer(poisoned(built("wgan-gp"), poison), data(), batch=4)
    if not raised:
        trainer.step()
        assert trainer.skipped == 2
        return
    with pytest.raises(NonFinite):
        trainer.step()


def test_two_here_and_two_there_are_not_three_in_a_row() -> None:
    seen: list[int] = []

    def poison(phase: Phase, nets: Named, batch: Named, terms: Terms) -> Terms:
        seen.append(len(seen))
        return times(terms, float("nan")) if seen[-1] in (0, 1, 3, 4) else terms

    trainer = Trainer(poisoned(built("wgan-gp"), poison), data(), batch=4)
    trainer.step()
    assert trainer.skipped == 4


def test_a_critic_that_never_moves_is_found_out_beside_a_generator_that_does() -> None:
    """Every critic pass is NaN and every generator pass is fine: never three passes in a row, and yet training is dead."""
    recipe = poisoned(
        built("dcgan"), lambda phase, nets, batch, terms: times(terms, float("nan")) if phase.name == "critic" else terms
    )
    trainer = Trainer(recipe, data(), batch=4)
    trainer.step()
    trainer.step()
    with pytest.raises(NonFinite, match=r"iteration 2, phase .critic.: adversarial is nan; first not finite: the gradient of D"):
        trainer.step()


class Overflow(nn.Module):
    """A layer whose output is Inf while its input and its weights are finite."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1e38) * 1e38


def one_phase(layer: nn.Module, term: str = "distance") -> Recipe:
    D = nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 1))
    return Recipe(
        name="one",
        networks={"D": D},
        phases=(Phase("judge", updates=("D",), reads=("real",), loss=lambda nets, batch: {term: nets.D(batch.real).mean()}),),
        latent=Noise(2),
        optimizers={"D": Optimizer("Adam", lr=0.1)},
        about=About("none", "none", "none"),
    )


def points() -> Dataset:
    return Dataset("points", {"real": {"real": np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)}})


def test_the_diagnosis_names_phase_term_and_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = Trainer(one_phase(Overflow()), points(), batch=4, out=tmp_path)
    before = snapshot(trainer)
    with pytest.raises(NonFinite) as caught:
        for _ in range(3):
            trainer.step()
    assert changed(before, snapshot(trainer)) == []  # looking into it changed nothing either
    message = str(caught.value)
    assert "\n" not in message and message.startswith("iteration 2, phase 'judge': distance is ")
    assert "first not finite: D.1; lower the step size or use fp32" in message
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert list(found) == ["step", "phase", "terms", "layer", "gradients", "parameters"]
    assert (found["step"], found["phase"], found["layer"], found["parameters"]) == (2, "judge", "D.1", [])
    assert set(found["terms"]) == {"distance"} and found["terms"]["distance"] in ("inf", "-inf", "nan")
    assert set(found["gradients"]) <= {f"D.{name}" for name, _ in trainer.networks.D.named_parameters()} != set()
    assert not any(module._forward_hooks for module in trainer.networks.D.modules())


def test_an_infinite_gradient_of_a_finite_loss_is_skipped_and_named() -> None:
    """sqrt at zero: the value is 0, the slope is not."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0).sqrt()

    torch.manual_seed(0)
    trainer = Trainer(one_phase(Root()), points(), batch=4)
    before = snapshot(trainer)
    with pytest.raises(NonFinite, match=r"every loss term is finite; first not finite: the gradient of D\.0\.weight"):
        for _ in range(3):
            trainer.step()
    assert changed(before, snapshot(trainer)) == []


def test_a_weight_that_is_not_trained_is_named_too() -> None:
    """A frozen network with NaN in it, as a bad pretrained file gives."""
    recipe = built("dcgan")
    with torch.no_grad():
        next(recipe.networks["G"].parameters()).fill_(float("nan"))
    trainer = Trainer(recipe, data(), batch=4)
    with pytest.raises(NonFinite, match=r"phase 'critic'.*first not finite: G\."):
        for _ in range(3):
            trainer.step()


def test_what_is_finite_again_is_said_to_be() -> None:
    """A fault of the machine rather than of the maths: the pass is fine when it is run again."""
    seen: list[int] = []

    def poison(phase: Phase, nets: Named, batch: Named, terms: Terms) -> Terms:
        seen.append(1)
        return times(terms, float("nan")) if len(seen) <= 3 else terms

    trainer = Trainer(poisoned(one_phase(nn.ReLU()), poison), points(), batch=4)
    with pytest.raises(NonFinite, match="iteration 2: a loss or gradient was NaN or Inf and is finite when run again"):
        for _ in range(3):
            trainer.step()


def test_constraints_wait_for_a_step_that_counts() -> None:
    """WGAN's clipping belongs to the update: a skipped one clips nothing."""
    calls: list[int] = []
    network = nn.Linear(2, 1)
    watch = guard.Guard([network], CPU)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    weight = network.weight.clone()
    watch.keep()
    watch.update("critic", torch.tensor(False), [sgd], lambda: calls.append(0))
    assert calls == [] and torch.equal(network.weight, weight)
    watch.update("critic", torch.tensor(True), [sgd], lambda: calls.append(1))
    assert calls == [1] and torch.allclose(network.weight, weight - 0.1)
    assert int(watch.skipped) == 1 and not watch.exhausted()


def test_buffers_of_every_kind_are_put_back() -> None:
    network = nn.Module()
    network.register_buffer("count", torch.tensor(3))
    network.register_buffer("mask", torch.tensor([True, False]))
    network.register_buffer("small", torch.tensor([1.5], dtype=torch.bfloat16))
    network.register_buffer("empty", torch.empty(0))
    network.register_buffer("strided", torch.arange(6.0).reshape(2, 3).T)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    watch = guard.Guard([network, nn.Linear(1, 1)], CPU)
    with pytest.raises(KeyError), watch.undone():
        for buffer in network.buffers():
            buffer.zero_()
        raise KeyError
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_count_of_skips_is_saved_and_patience_is_not(tmp_path: Path) -> None:
    poison = [0, 1, 2, 3]
    seen: list[int] = []

    def wound(phase: Phase, nets: Named, batch: Named, terms: Terms) -> Terms:
        seen.append(len(seen))
        return times(terms, float("nan")) if seen[-1] in poison else terms

    trainer = Trainer(poisoned(one_phase(nn.ReLU()), wound), points(), batch=4, out=tmp_path)
    trainer.step()
    trainer.step()
    trainer.save()
    again = Trainer(poisoned(one_phase(nn.ReLU()), wound), points(), batch=4, out=tmp_path)
    again.load_newest(print)
    assert again.skipped == 2
    again.step()
    again.step()  # two more, and not four in a row
    assert again.skipped == 4
    again.step()
    assert again.skipped == 4
