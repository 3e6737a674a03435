"""The loop against a loop written out by hand, and what it promises about randomness, data, accumulation, decay and averages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ganfast
from ganfast import recipes
from ganfast.data import Dataset
from ganfast.engine.optimizers import decayed
from ganfast.engine.randomness import mix
from ganfast.engine.trainer import Trainer
from ganfast.errors import InvalidData, InvalidType, InvalidValue, Unavailable
from ganfast.latent import Noise
from ganfast.optim import Adam
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms

ABOUT = About("none", "none", "none")


def numbered(n: int) -> Dataset:
    """Points (i, i): a batch shows which rows it holds."""
    return Dataset("numbered", {"real": {"real": np.repeat(np.arange(n, dtype=np.float32)[:, None], 2, 1)}})


def images(n: int = 64, size: int = 16, classes: int = 0) -> Dataset:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {"real": rng.integers(0, 256, (n, size, size, 1), dtype=np.uint8)}
    if classes:
        fields["labels"] = np.arange(n) % classes
    return Dataset("noise", {"real": fields})


def recorder(**phases: Any) -> tuple[Recipe, list[tuple[str, Named, Named]]]:
    """A recipe of one linear network whose phases record what they are given."""
    seen: list[tuple[str, Named, Named]] = []

    def loss(name: str) -> Any:
        def record(nets: Named, batch: Named) -> torch.Tensor:
            seen.append((name, Named(batch), Named({n: [p.requires_grad for p in net.parameters()] for n, net in nets.items()})))
            return sum(p.sum() for net in nets.values() for p in net.parameters())

        return record

    return Recipe(
        name="recorder",
        networks={"D": nn.Linear(2, 1), "G": nn.Linear(3, 2)},
        phases=tuple(Phase(name, loss=loss(name), **options) for name, options in phases.items()),
        latent=Noise(3),
        optimizers={"D": Optimizer("SGD", lr=0.1), "G": Optimizer("SGD", lr=0.1)},
        about=ABOUT,
    ), seen


def test_an_iteration_is_the_loop_of_the_paper() -> None:
    """One WGAN-GP iteration on points, written out: same weights to the last bit."""
    recipe = recipes.get("wgan-gp", image_size=0, channels=2, width=8, critic_steps=2, latent_dim=3)
    by_hand = recipes.get("wgan-gp", image_size=0, channels=2, width=8, critic_steps=2, latent_dim=3)
    for name in "GD":
        by_hand.networks[name].load_state_dict(recipe.networks[name].state_dict())
    data = numbered(32)
    trainer = Trainer(recipe, data, batch=4, seed=3)
    G, D = by_hand.networks["G"], by_hand.networks["D"]
    adam = {name: Adam(net.parameters(), lr=1e-4, betas=(0.0, 0.9)) for name, net in by_hand.networks.items()}
    for step in range(3):
        logs = trainer.step()
        torch.manual_seed(mix(3, 0, step))
        for repeat in range(2):
            real = trainer._sampler.batch((step * 2 + repeat) * 4, 4, ["real"])["real"]
            z = torch.randn(4, 3)
            fake = G(z).detach()
            penalty = ganfast.gradient_penalty(D, real, fake, weight=10.0)
            on_real, on_fake = D(torch.cat([real, fake])).chunk(2)  # by one call, whose gradients are one sum
            loss = on_fake.mean() - on_real.mean()
            adam["D"].zero_grad()
            (loss + penalty).backward()
            adam["D"].step()
        generator = -D(G(torch.randn(4, 3))).mean()
        adam["G"].zero_grad()
        generator.backward()
        adam["G"].step()
    for name in "GD":
        for ours, theirs in zip(trainer.networks[name].parameters(), by_hand.networks[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert logs["critic/penalty"].item() == pytest.approx(penalty.item(), rel=1e-6)
    assert logs["generator/adversarial"].item() == pytest.approx(generator.item(), rel=1e-6)
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in G.parameters()]))
    assert logs["generator/grad_norm"].item() == pytest.approx(norm.item(), rel=1e-5)


def test_phases_repeat_rest_and_freeze() -> None:
    recipe, seen = recorder(
        critic={"updates": ("D",), "repeat": 3, "reads": ("real",)},
        lazy={"updates": ("D",), "every": 2},
        generator={"updates": ("G",)},
    )
    trainer = Trainer(recipe, numbered(10), batch=2)
    for _ in range(3):
        trainer.step()
    names = [name for name, _, _ in seen]
    assert names == ["critic"] * 3 + ["lazy", "generator"] + ["critic"] * 3 + ["generator"] + ["critic"] * 3 + [
        "lazy",
        "generator",
    ]
    for name, batch, grads in seen:
        assert set(grads.D) == {name != "generator"} and set(grads.G) == {name == "generator"}
        assert ("real" in batch) == (name == "critic") and batch.z.shape == (2, 3)
    assert all(p.requires_grad for net in trainer.networks.values() for p in net.parameters())  # given back as they were


def test_frozen_parameters_stay_frozen() -> None:
    recipe, _ = recorder(critic={"updates": ("D",)})
    recipe.networks["D"].bias.requires_grad_(False)
    before = recipe.networks["D"].bias.clone()
    trainer = Trainer(recipe, numbered(4), batch=2)
    trainer.step()
    assert torch.equal(trainer.networks.D.bias, before) and not trainer.networks.D.bias.requires_grad
    assert trainer.networks.D.weight.requires_grad


def test_every_epoch_shows_every_row_once() -> None:
    recipe, seen = recorder(critic={"updates": ("D",), "repeat": 2, "reads": ("real",)}, generator={"updates": ("G",)})
    trainer = Trainer(recipe, numbered(24), batch=3, accumulate=2)
    for _ in range(4):  # 4 iterations x 2 repeats x 2 batches x 3 rows = two epochs
        trainer.step()
    rows = torch.cat([batch.real[:, 0] for name, batch, _ in seen if name == "critic"]).tolist()
    assert sorted(rows[:24]) == sorted(rows[24:]) == list(range(24)) and rows[:24] != rows[24:]
    assert trainer.images == 48


def test_draws_depend_on_seed_step_and_place_alone() -> None:
    def draws(seed: int, warmup: int) -> list[torch.Tensor]:
        recipe, seen = recorder(critic={"updates": ("D",), "repeat": 2}, generator={"updates": ("G",)})
        trainer = Trainer(recipe, numbered(4), batch=2, seed=seed)
        torch.manual_seed(warmup)  # what the caller draws changes nothing
        for _ in range(2):
            torch.rand(warmup)
            trainer.step()
        return [batch.z for _, batch, _ in seen]

    first, again, other = draws(5, 1), draws(5, 7), draws(6, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(z.flatten().tolist()) for z in first + other}) == 12  # all different


def test_the_callers_random_numbers_go_on_undisturbed() -> None:
    recipe, _ = recorder(critic={"updates": ("D",)})
    trainer = Trainer(recipe, numbered(4), batch=2)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    trainer.step()
    assert torch.equal(torch.rand(3), expected)


def test_accumulated_batches_give_the_gradient_of_all_of_them() -> None:
    """Without batch norm, two batches of 4 are one of 8: the critic's linear loss makes the gradient the rows' mean."""

    def trained(**settings: int) -> torch.Tensor:
        torch.manual_seed(0)
        D = nn.Linear(2, 1, bias=False)
        recipe = Recipe(
            name="mean",
            networks={"D": D},
            phases=(Phase("critic", updates=("D",), reads=("real",), loss=lambda nets, batch: nets.D(batch.real).mean()),),
            latent=None,
            optimizers={"D": Optimizer("SGD", lr=0.1)},
            about=ABOUT,
        )
        Trainer(recipe, numbered(32), **settings).step()
        return D.weight.detach()

    assert torch.allclose(trained(batch=4, accumulate=2), trained(batch=8), rtol=1e-6)  # two sums of float32, rounded apart
    assert not torch.allclose(trained(batch=4), trained(batch=8), rtol=1e-3)  # other rows, another mean


def _clamp(nets: Named) -> None:
    with torch.no_grad():
        for parameter in nets.G.parameters():
            parameter.clamp_(-0.3, 0.3)


FOLLOWED: dict[str, dict[str, dict[str, Any]]] = {
    "one pass": {"generator": {"updates": ("G",)}},
    "three passes": {"generator": {"updates": ("G",), "repeat": 3}},
    "two phases": {"generator": {"updates": ("G",)}, "both": {"updates": ("G", "D"), "every": 2}},
    "a constraint after it": {"generator": {"updates": ("G",), "after": _clamp}},
    "no pass at times": {"critic": {"updates": ("D",)}, "generator": {"updates": ("G",), "every": 3}},
}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("phases", FOLLOWED.values(), ids=FOLLOWED)
def test_the_average_follows_with_a_warm_up(phases: dict[str, dict[str, Any]], optimizer: str) -> None:
    """Once an iteration, towards the weights as they are at its end, those of a pass that was skipped among them."""
    recipe, seen = recorder(**phases)
    poisoned = [
        dataclasses.replace(phase, loss=lambda nets, batch, loss=phase.loss: loss(nets, batch) * bad()) for phase in recipe.phases
    ]

    def bad() -> float:
        return float("nan") if len(seen) in (4, 9) else 1.0

    optimizers = {name: Optimizer(optimizer, lr=0.1) for name in "GD"}
    recipe = dataclasses.replace(recipe, phases=tuple(poisoned), optimizers=optimizers, ema={"G": 0.5})
    trainer = Trainer(recipe, numbered(4), batch=2)
    averages = [value.clone() for value in trainer.networks.G_ema.parameters()]
    for step in range(12):
        trainer.step()
        decay = min(0.5, (1 + step) / (10 + step))
        weights = trainer.networks.G.parameters()
        averages = [decay * mine + (1 - decay) * weight.detach() for mine, weight in zip(averages, weights, strict=True)]
        for found, expected in zip(trainer.networks.G_ema.parameters(), averages, strict=True):
            assert torch.allclose(found, expected, atol=1e-6)  # float32 lerp against a sum of products
    assert trainer.skipped == 2
    assert not trainer.networks.G_ema.weight.requires_grad and not trainer.networks.G_ema.training


def test_linear_decay_reaches_zero_at_the_end() -> None:
    assert [decayed("linear", step, 10) for step in (0, 5, 6, 9, 10, 99)] == pytest.approx([1, 1, 0.8, 0.2, 0, 0])
    assert decayed("none", 7, 10) == 1 and decayed("linear", 7, 0) == 1
    recipe, _ = recorder(critic={"updates": ("D",)})
    trainer = Trainer(recipe, numbered(4), batch=2, decay="linear", decay_steps=4)
    moves = []
    for _ in range(5):
        before = trainer.networks.D.weight.clone()
        trainer.step()
        moves.append((before - trainer.networks.D.weight).abs().max().item())  # plain SGD on a loss of slope 1: the step size
    assert moves == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.0], abs=1e-6)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights() -> None:
    recipe = recipes.get("wgan-gp", image_size=16, channels=1, width=8, architecture="dcgan", critic_steps=1)
    trainer = Trainer(recipe, images(), batch=8, precision="bf16")
    dtypes = []
    trainer.networks.D.head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    logs = trainer.step()
    assert set(dtypes) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 and value.isfinite() for value in logs.values())
    assert all(p.dtype == torch.float32 for net in trainer.networks.values() for p in net.parameters())


def test_samples_are_uint8_pictures_or_points() -> None:
    trainer = Trainer(recipes.get("dcgan", image_size=16, channels=1, width=4), images(), batch=4)
    first, second = trainer.sample(5), trainer.sample(5)
    assert first.shape == (5, 16, 16, 1) and first.dtype == np.uint8
    assert not np.array_equal(first, second)  # further samples
    assert np.array_equal(trainer.sample(5, seed=1), trainer.sample(5, seed=1))
    assert np.array_equal(trainer.sample(300, seed=1)[:5], trainer.sample(300, seed=1)[:5])
    points = Trainer(recipes.get("gan", image_size=0, channels=2, width=4), numbered(8), batch=2).sample(7)
    assert points.shape == (7, 2) and points.dtype == np.float32
    with pytest.raises(InvalidValue, match="n: expected at least 1"):
        trainer.sample(0)
    with pytest.raises(InvalidValue, match="takes no labels"):
        trainer.sample(2, labels=1)


def test_samples_leave_training_as_it_was() -> None:
    def trained(look: bool) -> torch.Tensor:
        torch.manual_seed(0)
        trainer = Trainer(recipes.get("dcgan", image_size=16, channels=1, width=4), images(), batch=4)
        for _ in range(2):
            trainer.step()
            if look:
                trainer.sample(3)
                trainer.preview(9)
        return torch.cat([p.flatten() for p in trainer.networks.G.state_dict().values()])

    assert torch.equal(trained(True), trained(False))


def test_labels_ask_for_classes() -> None:
    trainer = Trainer(recipes.get("cgan", image_size=16, channels=1, width=4, classes=3), images(classes=3), batch=4)
    same = trainer.sample(3, labels=[0, 1, 2], seed=0)
    assert not np.array_equal(same[0], same[1])
    assert np.array_equal(trainer.sample(2, labels=1, seed=0), trainer.sample(2, labels=[1, 1], seed=0))
    with pytest.raises(InvalidValue, match="from 0 to 2"):
        trainer.sample(2, labels=3)


def test_translations_are_of_the_datas_pictures() -> None:
    rng = np.random.default_rng(0)
    pair = Dataset(
        "pair", {side: {side: rng.integers(0, 256, (n, 16, 16, 1), dtype=np.uint8)} for side, n in (("a", 9), ("b", 5))}
    )
    trainer = Trainer(recipes.get("cyclegan", image_size=16, channels=1, width=4), pair)
    assert trainer.settings.batch == 1 and trainer.settings.decay == "linear"
    trainer.step()
    assert trainer.sample(4).shape == (4, 16, 16, 1)
    columns = trainer.preview(3)
    assert list(columns) == ["A", "A to B", "and back", "B", "B to A", "and back again"]
    originals = {row.tobytes() for row in pair.groups["a"]["a"]}
    assert all(row.tobytes() in originals for row in columns["A"])  # exactly the data's bytes, through [-1, 1] and back
    with pytest.raises(InvalidValue, match="no truncation and no labels"):
        trainer.sample(2, truncation=0.5)


def test_the_pull_on_samples_is_the_losss_gradient() -> None:
    class Plane(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor([3.0, -1.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.slope

    recipe = recipes.get("wgan", image_size=0, channels=2, width=4)
    networks = {**recipe.networks, "D": Plane()}
    trainer = Trainer(ganfast.Recipe(**{**recipe.__dict__, "networks": networks}), numbered(8), batch=2)
    positions, vectors = trainer.pull(5)
    assert positions.shape == vectors.shape == (5, 2)
    assert vectors == pytest.approx(
        np.tile([3.0, -1.0], (5, 1))
    )  # the generator's loss is -E[D]: samples are pulled up the slope
    assert all(p.grad is None for p in trainer.networks.G.parameters())
    assert trainer.score(np.array([[1.0, 2.0]], np.float32)) == pytest.approx([1.0])


def test_refusals_come_before_anything_is_made() -> None:
    with pytest.raises(InvalidData, match="'cgan' needs 'labels', and data 'noise' has only real"):
        Trainer(recipes.get("cgan", image_size=16, channels=1, width=4), images())
    with pytest.raises(InvalidData, match="'dcgan' was built for image_size 32, and data 'noise' has image_size 16"):
        Trainer(recipes.get("dcgan", image_size=32, channels=1, width=4), images())
    gan = recipes.get("gan", image_size=0, channels=2, width=4)
    for settings, error, message in (
        ({"batch": 0}, InvalidValue, "batch: expected at least 1, got 0"),
        ({"batch": 2.5}, InvalidType, "batch: expected int, got 2.5"),
        ({"bach": 2}, InvalidValue, "no setting 'bach'; did you mean 'batch'"),
        ({"precision": "fp8"}, InvalidValue, "precision: expected one of auto, fp32, bf16, got 'fp8'"),
        ({"device": "cuda:99"}, Unavailable, "'cuda:99' was asked for"),
        ({"device": "tpu"}, InvalidValue, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"flip": 1}, InvalidType, "flip: expected bool, got 1"),
        ({"seed": -1}, InvalidValue, "seed: expected at least 0"),
    ):
        with pytest.raises(error, match=message):
            Trainer(gan, numbered(4), **settings)
    with pytest.raises(InvalidValue, match="nowhere to save to"):
        Trainer(gan, numbered(4), batch=2).save()


def test_a_loss_of_the_wrong_kind_is_named() -> None:
    recipe, _ = recorder(critic={"updates": ("D",)})
    wrong = ganfast.Recipe(**{**recipe.__dict__, "phases": (Phase("critic", updates=("D",), loss=lambda nets, batch: 3.0),)})
    with pytest.raises(InvalidType, match=r"phase's loss to return Terms, a mapping of scalars or a scalar, got 3\.0"):
        Trainer(wrong, numbered(4), batch=2).step()


def test_terms_are_summed_and_watched_ones_are_not() -> None:
    assert Terms.of({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}).total().item() == 5
    assert Terms({"a": torch.tensor(2.0)}, {"b": torch.tensor(3.0)}).total().item() == 2
    assert Terms.of(torch.tensor(4.0)).total().item() == 4


def test_before_and_after_come_once_a_pass() -> None:
    calls: list[str] = []
    recipe, _ = recorder(
        critic={
            "updates": ("D",),
            "repeat": 2,
            "before": lambda nets: calls.append("before"),
            "after": lambda nets: calls.append("after"),
        }
    )
    Trainer(recipe, numbered(8), batch=2, accumulate=3).step()
    assert calls == ["before", "after"] * 2


def test_a_recipe_of_ones_own_is_checked() -> None:
    recipe, _ = recorder(critic={"updates": ("D",)})
    fields = recipe.__dict__
    with pytest.raises(InvalidValue, match="two phases of one name"):
        Recipe(**{**fields, "phases": recipe.phases * 2})
    with pytest.raises(InvalidValue, match="averages 'H', which is no network of it"):
        Recipe(**{**fields, "ema": {"H": 0.9}})
    with pytest.raises(InvalidValue, match="has an optimizer for 'H', which is no network of it"):
        Recipe(**{**fields, "optimizers": {**recipe.optimizers, "H": Optimizer("SGD", lr=0.1)}})
    for loss, error, message in (
        (lambda nets, batch: {}, InvalidValue, "no term to minimise"),
        (lambda nets, batch: {"a": torch.zeros(3)}, InvalidType, r"scalar tensor, got 'a' of shape \(3,\)"),
        (lambda nets, batch: torch.zeros(()), InvalidValue, "phase 'critic': its loss does not depend on D, which it updates"),
    ):
        broken = Recipe(**{**fields, "phases": (Phase("critic", updates=("D",), loss=loss),)})
        with pytest.raises(error, match=message):
            Trainer(broken, numbered(4), batch=2).step()


def test_networks_thaw_after_an_error_in_the_middle_of_a_step() -> None:
    recipe, _ = recorder(critic={"updates": ("D",)})

    def interrupted(nets: Named, batch: Named) -> Terms:
        raise KeyboardInterrupt

    broken = Recipe(**{**recipe.__dict__, "phases": (Phase("critic", updates=("D",), loss=interrupted),)})
    trainer = Trainer(broken, numbered(4), batch=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.step()
    assert all(p.requires_grad for net in trainer.networks.values() for p in net.parameters())


@pytest.mark.parametrize("network", [nn.Linear(2, 1).requires_grad_(False), nn.Flatten()], ids=["frozen", "empty"])
def test_a_phase_without_anything_to_train_is_named(network: nn.Module) -> None:
    recipe, _ = recorder(critic={"updates": ("D",)})
    idle = Recipe(**{**recipe.__dict__, "networks": {**recipe.networks, "D": network}})
    with pytest.raises(InvalidValue, match="'recorder': phase 'critic' updates 'D', which has nothing to train"):
        Trainer(idle, numbered(4), batch=2)


@pytest.mark.parametrize("options", [{"lr": -1}, {"lr": 0.1, "momentum": -1}, {"lrr": 1}], ids=str)
def test_what_torch_refuses_in_an_optimizer_is_named(options: dict[str, Any]) -> None:
    recipe, _ = recorder(critic={"updates": ("D",)})
    wrong = Recipe(**{**recipe.__dict__, "optimizers": {"D": Optimizer("SGD", **options)}})
    with pytest.raises(InvalidValue, match="optimizer SGD: "):
        Trainer(wrong, numbered(4), batch=2)


@pytest.mark.parametrize(
    "labels",
    [["a"], [None], "a", {}, object()],
    ids=["a string in a list", "None in a list", "a string", "a mapping", "an object"],
)
def test_labels_that_are_no_integers_are_named(labels: Any) -> None:
    trainer = Trainer(recipes.get("cgan", image_size=16, channels=1, width=4, classes=3), images(classes=3), batch=4)
    with pytest.raises(InvalidValue, match="expected labels as one integer or 1 integers, got "):
        trainer.sample(1, labels=labels)


def test_more_that_a_trainer_does_not_take() -> None:
    trainer = Trainer(recipes.get("dcgan", image_size=16, channels=1, width=4), images(), batch=4)
    with pytest.raises(InvalidType, match="sample: n: expected an integer, got '3'"):
        trainer.sample("3")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="recipe 'dcgan' has no score"):
        trainer.score(np.zeros((1, 1, 16, 16), np.float32))


def test_half_precision_scores_are_widened_before_they_are_averaged() -> None:
    recipe = recipes.get("wgan-gp", image_size=16, channels=1, width=8, architecture="dcgan", critic_steps=1)
    trainer = Trainer(recipe, images(), batch=8, precision="bf16")
    seen = []
    phase = recipe.phases[0]

    def loss(nets: Named, batch: Named) -> Terms:
        terms = phase.loss(nets, batch)
        seen.extend(value.dtype for value in {**terms.minimise, **terms.watch}.values())
        return terms

    trainer.recipe = Recipe(**{**recipe.__dict__, "phases": (Phase("critic", updates=("D",), reads=("real",), loss=loss),)})
    trainer.step()
    assert set(seen) == {torch.float32}
