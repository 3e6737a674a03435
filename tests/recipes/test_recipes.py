"""The catalogue, and each recipe's loss against its paper on networks simple enough to work out."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from ganfast import recipes
from ganfast.errors import InvalidType, InvalidValue
from ganfast.recipe import Named, Phase, Recipe, Terms

CPU = torch.device("cpu")
POINTS = ("gan", "wgan", "wgan-gp", "sngan", "cgan", "infogan")


def batch_for(recipe: Recipe, n: int, dims: tuple[int, ...]) -> Named:
    torch.manual_seed(1)
    batch = Named({name: torch.rand(n, *dims) * 2 - 1 for name in ("real", "a", "b")}, labels=torch.randint(10, (n,)))
    if recipe.latent is not None:
        batch.update(recipe.latent.sample(n, CPU))
    return batch


def terms_of(recipe: Recipe, phase: int, batch: Named, networks: Named | None = None) -> dict[str, float]:
    terms = Terms.of(recipe.phases[phase].loss(networks or Named(recipe.networks), batch))
    return {name: value.item() for name, value in {**terms.minimise, **terms.watch}.items()}


def test_names_are_the_files() -> None:
    assert recipes.names() == ["cgan", "cyclegan", "dcgan", "gan", "infogan", "sngan", "wgan", "wgan-gp"]
    for name in recipes.names():
        assert recipes.get(name, image_size=28, channels=1, width=4).name == name
        assert "arXiv" in recipes.about(name).paper and "arXiv" in recipes.summary(name)


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 1)])
def test_every_recipe_makes_images(name: str, size: int, channels: int) -> None:
    recipe = recipes.get(name, image_size=size, channels=channels, width=4, latent_dim=5, critic_steps=2, classes=10)
    batch = batch_for(recipe, 2, (channels, size, size))
    for phase in recipe.phases:
        for network in recipe.networks.values():
            network.zero_grad()
        terms = Terms.of(phase.loss(Named(recipe.networks), batch))
        terms.total().backward()
        assert all(value.dim() == 0 and value.isfinite() for value in {**terms.minimise, **terms.watch}.values())
        for network in phase.updates:
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in recipe.networks[network].parameters())
    inputs = Named({key: value for key, value in batch.items() if key in ("z", "y") or key in recipe.sample_reads})
    assert recipe.sample(Named(recipe.networks), inputs).shape == (2, channels, size, size)


@pytest.mark.parametrize("name", POINTS)
def test_recipes_on_points(name: str) -> None:
    recipe = recipes.get(name, image_size=0, channels=2, width=8)
    batch = batch_for(recipe, 6, (2,))
    assert recipe.sample(Named(recipe.networks), Named({k: batch[k] for k in ("z", "y") if k in batch})).shape == (6, 2)
    if recipe.score is not None:
        assert recipe.score(Named(recipe.networks), batch.real).shape == (6,)


@pytest.mark.parametrize("name", ["dcgan", "cyclegan"])
def test_image_recipes_refuse_points(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"points|pixels"):
        recipes.get(name, image_size=0, channels=2)


def test_bad_options_name_what_would_be_right() -> None:
    with pytest.raises(InvalidValue, match="no recipe is called 'dcgun'; did you mean 'dcgan'"):
        recipes.get("dcgun")
    with pytest.raises(InvalidValue, match="no option 'penelty'; did you mean 'penalty'"):
        recipes.get("wgan-gp", penelty=1)
    with pytest.raises(InvalidType, match="'width': expected int, got 'wide'"):
        recipes.get("dcgan", width="wide")
    with pytest.raises(InvalidType, match="'critic_steps': expected int, got True"):
        recipes.get("wgan", critic_steps=True)
    with pytest.raises(InvalidValue, match="'kind': expected one of two-sided, one-sided, got 'both'"):
        recipes.get("wgan-gp", kind="both")
    with pytest.raises(InvalidValue, match="at least 1"):
        recipes.get("wgan-gp", critic_steps=0)
    with pytest.raises(InvalidValue, match="two classes, got 0"):
        recipes.get("cgan", classes=0)
    with pytest.raises(InvalidValue, match="'latent_dim': expected at least 1, got 0"):
        recipes.get("gan", latent_dim=0)
    with pytest.raises(InvalidValue, match="'width': expected at least 0, got -3"):
        recipes.get("gan", width=-3)


def test_a_builder_declares_every_option_it_has() -> None:
    for name in recipes.names():
        options = recipes.options(name)
        assert {"image_size", "channels", "width", "critic_steps"} <= options.keys()
        assert all(option.help and option.type in (int, float, str) for option in options.values())
        assert dict(recipes.get(name, image_size=28, channels=1, width=4).options).keys() == options.keys()


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Every recipe with each of its choices in turn, at its default width."""
    chosen = [(name, {}) for name in recipes.names()]
    for name in recipes.names():
        for option in recipes.options(name).values():
            chosen += [(name, {option.name: choice}) for choice in option.choices]
    return chosen


@pytest.mark.parametrize(("name", "options"), variants(), ids=str)
def test_recorded_options_build_the_same_networks(name: str, options: dict[str, Any]) -> None:
    """What config.json keeps is all that a resumed run has."""

    def shapes(recipe: Recipe) -> dict[str, list[tuple[str, torch.Size]]]:
        return {key: [(k, v.shape) for k, v in net.state_dict().items()] for key, net in recipe.networks.items()}

    built = []
    with torch.device("meta"):  # shapes alone: default widths are large
        for size in (0, 32):
            with contextlib.suppress(InvalidValue):  # points and convolutions, or normalisation where there is none
                built.append(recipes.get(name, image_size=size, channels=1 if size else 2, **options))
        assert all(shapes(recipes.get(name, **recipe.options)) == shapes(recipe) for recipe in built)
    assert built or options == {"norm": "layer"}
    assert all(recipe.options["width"] > 0 for recipe in built)


def test_a_recipe_must_hang_together() -> None:
    loss = lambda nets, batch: torch.zeros(())  # noqa: E731
    with pytest.raises(InvalidValue, match="repeat and every must be at least 1"):
        Phase("critic", updates=("D",), loss=loss, repeat=0)
    with pytest.raises(InvalidValue, match="updates no network"):
        Phase("critic", updates=(), loss=loss)
    common = {"name": "mine", "latent": None, "about": recipes.about("gan")}
    with pytest.raises(InvalidValue, match="updates 'D', which is no network"):
        Recipe(networks={}, phases=(Phase("critic", updates=("D",), loss=loss),), optimizers={}, **common)
    with pytest.raises(InvalidValue, match="'D' is updated and has no optimizer"):
        Recipe(networks={"D": nn.Linear(1, 1)}, phases=(Phase("critic", updates=("D",), loss=loss),), optimizers={}, **common)
    with pytest.raises(InvalidValue, match="no phases"):
        Recipe(networks={}, phases=(), optimizers={}, **common)


class Linear(nn.Module):
    """D(x) = slope . x + shift on points, so every loss and penalty is known."""

    def __init__(self, slope: list[float], shift: float = 0.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.slope + self.shift


class Constant(nn.Module):
    """G(z) = a constant point."""

    def __init__(self, point: list[float]) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor(point))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.point.expand(len(z), -1)


def known(name: str, **options: object) -> tuple[Recipe, Named, Named]:
    recipe = recipes.get(name, image_size=0, channels=2, width=8, **options)
    networks = Named(G=Constant([1.0, 2.0]), D=Linear([3.0, 4.0], 0.5))
    batch = Named(real=torch.tensor([[0.0, 0.0], [1.0, 1.0]]), **recipe.latent.sample(2, CPU))
    return recipe, networks, batch


def sigmoid(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64).sigmoid())


def log_sigmoid(x: float) -> float:
    return float(torch.nn.functional.logsigmoid(torch.tensor(x, dtype=torch.float64)))


def test_gan_is_algorithm_1() -> None:
    recipe, networks, batch = known("gan")  # D(real) = 0.5, 7.5; D(fake) = 11.5
    critic, generator = terms_of(recipe, 0, batch, networks), terms_of(recipe, 1, batch, networks)
    assert critic["adversarial"] == pytest.approx(-(log_sigmoid(0.5) + log_sigmoid(7.5)) / 2 - log_sigmoid(-11.5), rel=1e-6)
    assert critic["D(real)"] == pytest.approx((sigmoid(0.5) + sigmoid(7.5)) / 2, rel=1e-6)
    assert generator["adversarial"] == pytest.approx(-log_sigmoid(11.5), rel=1e-5)
    recipe, networks, batch = known("gan", generator_loss="minimax")
    assert terms_of(recipe, 1, batch, networks)["adversarial"] == pytest.approx(log_sigmoid(-11.5), rel=1e-6)


def test_wgan_clips_to_its_box() -> None:
    recipe, networks, batch = known("wgan", clip=0.25)
    assert terms_of(recipe, 0, batch, networks) == pytest.approx({"adversarial": 11.5 - 4, "D(real)": 4.0, "D(fake)": 11.5})
    assert terms_of(recipe, 1, batch, networks)["adversarial"] == pytest.approx(-11.5)
    assert recipe.phases[0].repeat == 5 and recipe.optimizers["D"].kind == "RMSprop" and recipe.phases[1].after is None
    recipe.phases[0].after(networks)
    assert networks.D.slope.tolist() == [0.25, 0.25] and networks.D.shift.item() == 0.25
    assert networks.G.point.tolist() == [1.0, 2.0]


def test_wgan_gp_penalises_the_slope() -> None:
    recipe, networks, batch = known("wgan-gp", penalty=10.0)
    terms = terms_of(recipe, 0, batch, networks)
    assert terms["penalty"] == pytest.approx(10 * (5 - 1) ** 2)  # |(3, 4)| = 5 everywhere
    assert terms["adversarial"] == pytest.approx(11.5 - 4)
    recipe, networks, batch = known("wgan-gp", kind="one-sided")
    networks.D = Linear([0.3, 0.4])
    assert terms_of(recipe, 0, batch, networks)["penalty"] == 0


def test_a_lazy_penalty_has_steps_of_its_own_and_stands_for_those_left_out() -> None:
    recipe, networks, batch = known("wgan-gp", penalty=10.0, penalty_every=4)
    critic, lazy, _ = recipe.phases
    assert "penalty" not in terms_of(recipe, 0, batch, networks)
    assert terms_of(recipe, 1, batch, networks) == pytest.approx({"penalty": 4 * 10 * (5 - 1) ** 2})
    assert (critic.every, lazy.every) == (1, 4)
    assert critic.repeat == lazy.repeat == 5
    assert lazy.updates == ("D",)


def test_sngan_moves_its_singular_vectors_once_a_critic_pass() -> None:
    recipe = recipes.get("sngan", image_size=0, channels=2, width=8)
    batch = batch_for(recipe, 4, (2,))
    networks = Named(recipe.networks)
    layer = next(module for module in networks.D.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        layer._parameters["weight"].add_(torch.randn(8, 2))  # as an optimizer would, so that there is something to follow
    before = layer.weight_u.clone()
    generator = terms_of(recipe, 1, batch)
    assert torch.equal(layer.weight_u, before) and generator["adversarial"] == generator["adversarial"]
    terms_of(recipe, 0, batch)
    assert torch.equal(layer.weight_u, before)  # not in a forward pass, of which an accumulating pass has several
    recipe.phases[0].before(networks)
    assert not torch.equal(layer.weight_u, before)
    for _ in range(50):
        recipe.phases[0].before(networks)
    for module in networks.D.modules():
        if isinstance(module, nn.Linear):
            # after 50 rounds on matrices this small the power iteration has converged far beyond float32
            assert torch.linalg.matrix_norm(module.weight, 2).item() == pytest.approx(1, abs=1e-4)


def test_sngan_is_the_hinge() -> None:
    recipe, networks, batch = known("sngan")
    terms = terms_of(recipe, 0, batch, networks)
    assert terms["adversarial"] == pytest.approx((0.5 + 0) / 2 + 12.5)
    assert terms_of(recipe, 1, batch, networks)["adversarial"] == pytest.approx(-11.5)


def test_dcgan_with_two_outputs_is_a_softmax() -> None:
    recipe = recipes.get("dcgan", image_size=28, channels=1, width=4, outputs=2)
    batch = batch_for(recipe, 4, (1, 28, 28))
    networks = Named({name: network.eval() for name, network in recipe.networks.items()})
    assert networks.D(batch.real).shape == (4, 2)
    fake = networks.G(batch.z)
    ones, zeros = torch.ones(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)
    cross = torch.nn.functional.cross_entropy
    assert terms_of(recipe, 0, batch, networks)["adversarial"] == pytest.approx(
        (cross(networks.D(batch.real), ones) + cross(networks.D(fake), zeros)).item(), rel=1e-5
    )
    assert terms_of(recipe, 1, batch, networks)["adversarial"] == pytest.approx(cross(networks.D(fake), ones).item(), rel=1e-5)


def test_infogan_rewards_recovering_the_code() -> None:
    recipe = recipes.get("infogan", image_size=0, channels=2, width=8, latent_dim=3, categories=4, continuous=2, information=2.0)
    batch = batch_for(recipe, 64, (2,))
    category, code = recipe.latent.split(batch.z)

    class Oracle(nn.Module):
        def __init__(self, sharpness: float) -> None:
            super().__init__()
            self.sharpness = sharpness

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            logits = self.sharpness * torch.nn.functional.one_hot(category, 4)
            return torch.cat([logits, code, torch.zeros_like(code)], 1)

    sure = terms_of(recipe, 1, batch, Named({**recipe.networks, "Q": Oracle(100.0)}))
    blind = terms_of(recipe, 1, batch, Named({**recipe.networks, "Q": Oracle(0.0)}))
    assert sure["category"] == pytest.approx(0, abs=1e-6) and sure["continuous"] == pytest.approx(0, abs=1e-6)
    assert blind["category"] == pytest.approx(2 * torch.tensor(4.0).log().item(), rel=1e-6)  # H(c): no information
    assert recipe.phases[0].updates == ("D", "Q") and recipe.phases[1].updates == ("G",)


def test_cyclegan_is_equation_3() -> None:
    recipe = recipes.get("cyclegan", image_size=16, channels=1, width=4, cycle=10.0, identity=0.5, pool=2)
    batch = batch_for(recipe, 2, (1, 16, 16))

    class Shift(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.by

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3), keepdim=True)

    networks = Named({**recipe.networks, "AB": Shift(0.5), "BA": Shift(-0.25), "D_A": Mean(), "D_B": Mean()})
    terms = terms_of(recipe, 0, batch, networks)
    mean_a, mean_b = batch.a.mean((1, 2, 3)), batch.b.mean((1, 2, 3))
    assert terms["cycle_a"] == pytest.approx(10 * 0.25, rel=1e-5) and terms["cycle_b"] == pytest.approx(10 * 0.25, rel=1e-5)
    assert terms["identity_a"] == pytest.approx(5 * 0.25, rel=1e-5) and terms["identity_b"] == pytest.approx(5 * 0.5, rel=1e-5)
    assert terms["adversarial_ab"] == pytest.approx(float((mean_a + 0.5 - 1).square().mean()), rel=1e-4)
    critics = terms_of(recipe, 1, batch, networks)
    expected = ((mean_b - 1).square().mean() + (mean_a + 0.5).square().mean()) / 2
    assert critics["b"] == pytest.approx(float(expected), rel=1e-4)  # the history is still filling: it shows what it is given
