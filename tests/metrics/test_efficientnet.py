from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

from ganfast.errors import Unavailable
from ganfast.metrics import efficientnet
from ganfast.metrics.networks import network
from ganfast.metrics.weight_files import load

MILITARY_UNIFORM = 652  # of ImageNet's classes


def test_it_is_the_packages_own_network(generator: torch.Generator) -> None:
    from peers import efficientnet_lite_pytorch

    theirs = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(dict(load(efficientnet.packaged()).tensors))
    pictures = torch.randint(0, 256, (3, 45, 70, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        given = efficientnet.prepared(pictures)
        features, logits = theirs.extract_features(given).mean((2, 3)), theirs(given)
    ours = network("efficientnet-lite0")(pictures)
    assert ours.features.shape == (3, 1280) and ours.logits is not None
    # the same operations in the same order
    torch.testing.assert_close(ours.features, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.logits, logits, rtol=1e-5, atol=1e-5)


def test_it_knows_a_uniform_when_it_sees_one() -> None:
    """Grace Hopper, rear admiral: the photo that TensorFlow's own examples classify, and matplotlib ships."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = np.asarray(Image.open(file).convert("RGB"))
    logits = network("efficientnet-lite0")(photo[None]).logits
    assert logits is not None
    best = logits.softmax(1).max(1)
    assert best.indices.item() == MILITARY_UNIFORM
    assert best.values.item() > 0.42  # 0.47; in [0, 1], or by ImageNet's mean and deviation, 0.39; blue first, 0.33


def test_grey_becomes_three_equal_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 1), dtype=np.uint8)
    ours = network("efficientnet-lite0")
    torch.testing.assert_close(ours(grey).features, ours(np.repeat(grey, 3, 3)).features, rtol=1e-5, atol=1e-6)


def test_its_scores_have_its_name() -> None:
    ours = network("efficientnet-lite0")
    assert ours.score_name("fid") == "FD[efficientnet-lite0]"
    assert ours.manifest()["weights_sha256"].startswith("57934424")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install 'ganfast\[efficientnet\]'"):
        network("efficientnet-lite0")


def test_pixels_are_scaled_as_tensorflow_trained_it() -> None:
    assert efficientnet.prepared(torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1))[:, 0, 0, 0].tolist() == [
        -127 / 128,
        0,
        1,
    ]
