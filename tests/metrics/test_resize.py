from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ganfast.metrics.resize import bicubic_antialiased, bilinear, bilinear_antialiased, tensorflow_bilinear

SIZES = [(1, 1), (1, 7), (28, 28), (37, 61), (299, 299), (150, 640), (431, 300)]


def pictures(generator: torch.Generator, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tensorflows_is_torch_fidelitys_bit_for_bit(generator: torch.Generator, height: int, width: int) -> None:
    from peers import torch_fidelity

    compat = torch_fidelity.interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    pixels = pictures(generator, height, width)
    wanted = compat(pixels.float(), size=(299, 299), align_corners=False)
    assert torch.equal(tensorflow_bilinear(pixels, 299), wanted)


def test_tensorflows_puts_the_first_pixel_on_the_first() -> None:
    pixels = torch.tensor([0, 100], dtype=torch.uint8).view(1, 1, 1, 2)
    assert tensorflow_bilinear(pixels, 4)[0, 0, 0].tolist() == [0, 50, 100, 100]
    assert bilinear(pixels, 4)[0, 0, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bicubic_is_pillows_of_each_channel_in_floats(generator: torch.Generator, height: int, width: int) -> None:
    pixels = pictures(generator, height, width)
    wanted = [
        np.asarray(Image.fromarray(channel.float().numpy()).resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        for channel in pixels.flatten(0, 1)
    ]
    # both round to float32 once on the way and once at the end, of numbers up to 255 with overshoot: 3e-5 each at most
    torch.testing.assert_close(
        bicubic_antialiased(pixels, 299).flatten(0, 1), torch.from_numpy(np.stack(wanted)), rtol=0, atol=6e-5
    )


def test_only_antialiasing_averages_what_is_skipped() -> None:
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(64).expand(1, 1, 128, 128)
    middle = 127.5
    for resize in (bilinear_antialiased, bicubic_antialiased):
        assert (resize(stripes, 32)[..., 4:-4] - middle).abs().max() < 1
    assert tensorflow_bilinear(stripes, 32).max() == 0  # every fourth column
    # between two neighbours bilinear sees both, a quarter of the size apart it misses two of four
    edges = (torch.arange(128) % 4 == 0).to(torch.uint8).mul(255).expand(1, 1, 128, 128)
    assert (bilinear_antialiased(edges, 32)[..., 4:-4] - 63.75).abs().max() < 1
    assert bilinear(edges, 32).max() == 0


def test_bicubic_does_not_leave_the_range(generator: torch.Generator) -> None:
    edge = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).expand(1, 1, 4, 4)
    enlarged = bicubic_antialiased(edge, 64)
    assert enlarged.min() == 0 and enlarged.max() == 255


@pytest.mark.parametrize("resize", [tensorflow_bilinear, bilinear, bilinear_antialiased, bicubic_antialiased])
def test_pictures_of_the_right_size_stay(generator: torch.Generator, resize: object) -> None:
    pixels = pictures(generator, 32, 32)
    assert torch.equal(resize(pixels, 32), pixels.float())
