"""The Inception against the field's tools: preset by preset, from the same uint8 images, with the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import random_weights
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ganfast.metrics.inception import TAPS, Inception2015
from ganfast.metrics.networks import network
from ganfast.metrics.presets import preset_named
from ganfast.metrics.weight_files import fill, load

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # clean-fid's network is TorchScript

Pixels = NDArray[np.uint8]
SHARE = 1e-5  # of the features' size; convolutions of another layout sum in another order, 2e-7 at the last layer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights.write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


def images(height: int, width: int, channels: int = 3, n: int = 2) -> Pixels:
    """Noise with a gradient: something at every scale."""
    rng = np.random.default_rng([height, width, channels])
    slope = np.linspace(0, 200, width)[None, None, :, None] * rng.random((n, 1, 1, channels))
    return (slope + rng.integers(0, 56, (n, height, width, channels))).astype(np.uint8)


def stored(pictures: Pixels, folder: Path) -> list[str]:
    paths = [str(folder / f"{number}.png") for number in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(path)
    return paths


def assert_equal(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).norm(dim=1).div(wanted.norm(dim=1)).max() < SHARE
    assert wanted.std(dim=0).mean() > 1e-3 * wanted.std()  # two images, and not one answer for both


# ---- the tools' own ways from images to features


@pytest.fixture(scope="module")
def torch_fidelity(weights: Path) -> Callable[[Pixels, Path], Tensor]:
    from peers import torch_fidelity

    extractor = torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception", ["2048"], str(weights))

    def extract(pictures: Pixels, folder: Path) -> Tensor:
        data = torch_fidelity.datasets.ImagesPathDataset(
            stored(pictures, folder), transforms=torch_fidelity.datasets.TransformPILtoRGBTensor()
        )
        return extractor(torch.stack([data[number] for number in range(len(data))]))[0]

    return extract


@pytest.fixture(scope="module")
def pytorch_fid_network(weights: Path) -> torch.nn.Module:
    from peers import pytorch_fid

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
        return pytorch_fid.inception.InceptionV3().eval()


@pytest.fixture(scope="module")
def pytorch_fid(pytorch_fid_network: torch.nn.Module) -> Callable[[Pixels, Path], Tensor]:
    from peers import pytorch_fid

    def extract(pictures: Pixels, folder: Path) -> Tensor:
        found = pytorch_fid.fid_score.get_activations(stored(pictures, folder), pytorch_fid_network, 50, num_workers=0)
        return torch.from_numpy(found).float()

    return extract


@pytest.fixture(scope="module")
def cleanfid(pytorch_fid_network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Pixels, Path], Tensor]:
    """Its extractor is a class around a TorchScript file, which is made here of pytorch-fid's layers."""
    from peers import cleanfid

    class Published(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = torch.nn.Sequential(*pytorch_fid_network.blocks)
            self.layers = torch.jit.trace(layers, torch.zeros(1, 3, 299, 299), check_trace=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    folder = tmp_path_factory.mktemp("cleanfid")
    torch.jit.script(Published()).save(str(folder / "inception-2015-12-05.pt"))
    model = cleanfid.inception_torchscript.InceptionV3W(str(folder), download=False)

    def extract(pictures: Pixels, folder: Path) -> Tensor:
        found = cleanfid.fid.get_files_features(
            stored(pictures, folder), model, num_workers=0, device=torch.device("cpu"), mode="clean", verbose=False
        )
        return torch.from_numpy(found)

    return extract


@pytest.fixture(scope="module")
def torchmetrics(weights: Path) -> Callable[[Pixels, Path], Tensor]:
    from peers import torchmetrics

    metric = torchmetrics.image.fid.FrechetInceptionDistance(feature_extractor_weights_path=str(weights))

    def extract(pictures: Pixels, _: Path) -> Tensor:
        in_colour = torch.from_numpy(np.broadcast_to(pictures, (*pictures.shape[:3], 3)).copy())
        return metric.inception(in_colour.permute(0, 3, 1, 2))

    return extract


@pytest.mark.parametrize(("height", "width", "channels"), [(61, 37, 3), (28, 28, 1), (300, 431, 3)])
@pytest.mark.parametrize(
    ("preset", "tool"),
    [("tf-compat", "torch_fidelity"), ("pytorch-fid", "pytorch_fid"), ("clean", "cleanfid"), ("torchmetrics", "torchmetrics")],
)
def test_features_are_the_tools_own(
    request: pytest.FixtureRequest, weights: Path, tmp_path: Path, preset: str, tool: str, height: int, width: int, channels: int
) -> None:
    pictures = images(height, width, channels)
    with torch.no_grad():
        wanted = request.getfixturevalue(tool)(pictures, tmp_path)
    assert_equal(network("inception-2015", preset=preset, weights=weights)(pictures).features, wanted)


def test_every_tap_is_torch_fidelitys(weights: Path) -> None:
    from peers import torch_fidelity

    extractor = torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception", list(TAPS), str(weights))
    pictures = torch.from_numpy(images(48, 40))
    ours = Inception2015().eval()
    fill(ours, load(weights))
    with torch.no_grad():
        given = preset_named("tf-compat").input(pictures)
        plain, folded = ours(given, TAPS), ours.folded()(given, TAPS)
        wanted = dict(zip(TAPS, extractor(pictures.permute(0, 3, 1, 2)), strict=True))
    assert list(plain) == list(TAPS)
    for tap in TAPS:
        assert_equal(plain[tap], wanted[tap])
        assert_equal(folded[tap], wanted[tap])


def test_logits_are_those_without_the_bias(weights: Path) -> None:
    outputs = network("inception-2015", weights=weights)(images(32, 32))
    assert outputs.logits is not None and outputs.logits.shape == (2, 1008)
    matrix = load(weights).tensors["fc.weight"]
    torch.testing.assert_close(outputs.logits.double(), outputs.features.double() @ matrix.double().T, rtol=0, atol=1e-4)


def test_shallow_taps_need_no_deep_layer(weights: Path) -> None:
    ours = Inception2015().eval()
    ours.Mixed_7a = None
    with torch.no_grad():
        found = ours(torch.zeros(1, 3, 299, 299), ("768", "64"))
    assert {tap: channels.shape for tap, channels in found.items()} == {"768": (1, 768), "64": (1, 64)}
