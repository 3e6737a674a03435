"""Networks: the shapes they promise, the papers' rules, and sizes that cannot work."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganfast import models
from ganfast.errors import InvalidValue
from ganfast.models import conditional, dcgan, mlp, resnet
from ganfast.models.shape import SampleShape
from ganfast.models.translation import Generator, ImagePool, PatchCritic

IMAGES = [(28, 1), (32, 3), (64, 3), (48, 1), (40, 3)]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize(("size", "channels"), IMAGES)
def test_a_pair_makes_and_scores_samples(architecture: str, size: int, channels: int) -> None:
    shape = SampleShape(channels, size)
    G, D = models.pair(architecture, shape, latent_dim=6, width=4)
    x = G(torch.randn(3, 6))
    assert x.shape == (3, channels, size, size) and x.abs().max() <= 1
    assert D(x).shape == (3,)
    features = D.features(x)
    assert features[0].numel() == D.feature_dim
    assert torch.equal(D.eval().judge(D.features(x)), D(x))


def test_points_need_an_mlp() -> None:
    G, D = models.pair("mlp", SampleShape(2, 0), latent_dim=3, width=8)
    x = G(torch.randn(5, 3))
    assert x.shape == (5, 2) and D(x).shape == (5,)
    with pytest.raises(InvalidValue, match="points need 'mlp'"):
        models.pair("dcgan", SampleShape(2, 0), latent_dim=3)


@pytest.mark.parametrize(
    ("size", "hint"), [(30, "28 or 32"), (31, "28 or 32"), (36, "32 or 40"), (3, "8"), (7, "8"), (100, "96 or 112")]
)
def test_impossible_sizes_name_possible_ones(size: int, hint: str) -> None:
    with pytest.raises(InvalidValue, match=f"image size {size} .* can: {hint}"):
        SampleShape(1, size).doublings()


def test_points_are_told_where_they_belong() -> None:
    with pytest.raises(InvalidValue, match="use a recipe whose networks can be an mlp"):
        SampleShape(2, 0).doublings()


@pytest.mark.parametrize(
    ("size", "expected"), [(28, (7, 2)), (32, (4, 3)), (48, (6, 3)), (64, (4, 4)), (8, (4, 1)), (256, (4, 6))]
)
def test_sizes_double_up_from_a_small_map(size: int, expected: tuple[int, int]) -> None:
    assert SampleShape(3, size).doublings() == expected


def test_dcgan_64_has_the_papers_parameters() -> None:
    """Figure 1 of Radford et al.: 1024, 512, 256, 128 channels; counts follow from 4x4 kernels without bias beside batch norm."""
    G, D = dcgan.Generator(SampleShape(3, 64), 100, 128), dcgan.Critic(SampleShape(3, 64), 128)
    kernels = 100 * 1024 * 16 + 1024 * 512 * 16 + 512 * 256 * 16 + 256 * 128 * 16 + 128 * 3 * 16
    assert count(G) == kernels + 2 * (1024 + 512 + 256 + 128) + 3
    kernels = 3 * 128 * 16 + 128 * 256 * 16 + 256 * 512 * 16 + 512 * 1024 * 16 + 1024 * 16
    assert count(D) == kernels + 2 * (256 + 512 + 1024) + 128 + 1


def test_dcgan_follows_its_rules() -> None:
    G, D = dcgan.Generator(SampleShape(3, 64), 100, 16), dcgan.Critic(SampleShape(3, 64), 16)
    for network in (G, D):
        dcgan.initialise(network)
    assert not [m for m in (*G.modules(), *D.modules()) if isinstance(m, nn.Linear | nn.MaxPool2d | nn.AvgPool2d | nn.Upsample)]
    assert isinstance(G.layers[-1], nn.Tanh) and isinstance(G.layers[-2], nn.ConvTranspose2d)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in G.modules()) == 4 and sum(isinstance(m, nn.ReLU) for m in G.modules()) == 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in D.modules()) == 3
    assert isinstance(D.trunk[0], nn.Conv2d) and isinstance(D.trunk[1], nn.LeakyReLU)  # no batch norm on the critic's input
    assert {m.negative_slope for m in D.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    weights = torch.cat(
        [m.weight.flatten() for m in (*G.modules(), *D.modules()) if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    )
    # over 200,000 weights: the standard error of the deviation is below 4e-5
    assert weights.std().item() == pytest.approx(0.02, abs=3e-4) and weights.mean().abs() < 3e-4


@pytest.mark.parametrize("architecture", ["mlp", "dcgan", "cnn", "resnet"])
def test_critics_without_batch_norm_judge_each_sample_alone(architecture: str) -> None:
    _, D = models.pair(architecture, SampleShape(1, 32), latent_dim=4, width=4)
    x = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    D.double().train()
    together, alone = D(x), torch.cat([D(row[None]) for row in x])
    assert torch.allclose(together, alone, rtol=1e-12, atol=1e-12)


def test_layer_norm_critics_are_sample_wise_too() -> None:
    for architecture in ("dcgan", "resnet"):
        _, D = models.pair(architecture, SampleShape(1, 32), latent_dim=4, width=4, norm="layer")
        assert any(isinstance(m, nn.GroupNorm) and m.num_groups == 1 for m in D.modules())
        x = torch.randn(3, 1, 32, 32, dtype=torch.float64)
        D.double()
        assert torch.allclose(D(x), torch.cat([D(row[None]) for row in x]), rtol=1e-12, atol=1e-12)


def test_shortcuts_may_be_pooled_and_upsampled_in_either_order() -> None:
    """The order of Gulrajani et al., 1x1 after upsampling and before pooling, gives the same."""
    up, down = resnet.UpBlock(3, 5).double().eval(), resnet.CriticBlock(3, 5, down=True).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    upsample = nn.Upsample(scale_factor=2)
    conv1, conv2 = (partial(F.conv2d, weight=conv.weight, bias=conv.bias, padding=1) for conv in (up.conv1, down.conv2))
    residual = up.conv2(torch.relu(up.norm2(conv1(upsample(torch.relu(up.norm1(x)))))))
    assert torch.allclose(up(x), residual + up.shortcut(upsample(x)), atol=1e-12)
    residual = down.pool(conv2(torch.relu(down.conv1(torch.relu(x)))))
    assert torch.allclose(down(x), residual + down.pool(down.shortcut(x)), atol=1e-12)


def test_maxout_is_the_largest_of_its_pieces() -> None:
    layer = mlp.Maxout(4, units=3, pieces=5)
    x = torch.randn(7, 4)
    weight, bias = layer.linear.weight.view(3, 5, 4), layer.linear.bias.view(3, 5)
    truth = torch.stack([(x @ weight[unit].T + bias[unit]).max(1).values for unit in range(3)], 1)
    assert torch.allclose(layer(x), truth)


@pytest.mark.parametrize("shape", [SampleShape(1, 28), SampleShape(2, 0)])
def test_a_conditional_pair_depends_on_the_label(shape: SampleShape) -> None:
    architecture = "dcgan" if shape.size else "mlp"
    G, _ = models.pair(architecture, shape, latent_dim=5 + 3, width=32)
    _, D = models.pair(architecture, SampleShape(shape.channels + 3, shape.size), latent_dim=1, width=32)
    cG, cD = conditional.Generator(G, 3).eval(), conditional.Critic(D, 3).eval()
    z = torch.randn(1, 5).expand(3, 5)
    x = cG(z, torch.arange(3))
    assert x.shape == (3, *shape.dims)
    assert not torch.allclose(x[0], x[1]) and not torch.allclose(x[1], x[2])
    same = x[:1].expand_as(x)
    assert len(set(cD(same, torch.arange(3)).tolist())) == 3


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_translation_keeps_shape_and_patches_are_local(size: int) -> None:
    G, D = Generator(3, 4, blocks=1), PatchCritic(3, 4, halvings=1).eval()
    x = torch.randn(2, 3, size, size)
    assert G(x).shape == x.shape and G(x).abs().max() <= 1
    scores = D(x)
    assert scores.shape[:2] == (2, 1) and scores[0].numel() > 1


def test_the_papers_patches_are_70_pixels() -> None:
    """A score depends on 70 x 70 pixels: seen in the gradient of one score of a critic without normalisation."""
    D = PatchCritic(1, 4, halvings=3)
    for name, module in list(D.layers.named_children()):
        if isinstance(module, nn.InstanceNorm2d):
            D.layers[int(name)] = nn.Identity()
    x = torch.randn(1, 1, 256, 256, requires_grad=True)
    scores = D(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_an_image_pool_fills_then_exchanges_and_loses_nothing() -> None:
    torch.manual_seed(0)
    pool = ImagePool(10, (1, 2, 2))
    number = torch.arange(200.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    seen: list[float] = []
    for start in range(0, 200, 4):
        shown = pool(number[start : start + 4])
        assert shown.shape == (4, 1, 2, 2)
        values = shown[:, 0, 0, 0].tolist()
        if start < 8:
            assert values == list(map(float, range(start, start + 4)))  # while it fills, images pass through
        seen += values
    stored = pool.images[:10, 0, 0, 0].tolist()
    # every image was shown or is still stored; those that filled the pool were shown when they came as well
    assert set(seen) | set(stored) == set(map(float, range(200)))
    assert len(set(stored)) == 10
    old = sum(value < start for start in range(12, 200, 4) for value in seen[start : start + 4])
    assert 60 < old < 128  # 188 images after filling, each exchanged with probability one half: 94 +- 7


def test_an_image_pool_is_state() -> None:
    torch.manual_seed(0)
    pool = ImagePool(3, (1, 2, 2))
    pool(torch.ones(2, 1, 2, 2))
    twin = ImagePool(3, (1, 2, 2))
    twin.load_state_dict(pool.state_dict())
    torch.manual_seed(5)
    ours = [pool(torch.full((2, 1, 2, 2), float(i))) for i in range(4)]
    torch.manual_seed(5)
    theirs = [twin(torch.full((2, 1, 2, 2), float(i))) for i in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
