"""The backends that an op's tests run on: the reference through the dispatcher, and each one that was built.

``GANFAST_REQUIRE_BUILD=1`` makes a C++ that is missing a failure; otherwise its tests are not collected, and so not counted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

from ganfast.ops import (
    adam,
    batch_norm,
    conv_norm,
    convolution,
    covariance_factor,
    covariance_update,
    gradient_penalty,
    library,
    nuclear_norm,
    pair_distances,
    spectral_norm,
)

CPP = library.CPU == "cpp" or os.environ.get("GANFAST_REQUIRE_BUILD") == "1"
REFERENCES = {
    "adam_": adam.adam_reference_,
    "batch_norm_act": batch_norm.batch_norm_act_reference,
    "batch_norm_act_tracked": batch_norm.batch_norm_act_tracked_reference,
    "batch_norm_act_backward": batch_norm.batch_norm_act_backward_reference,
    "conv_norm_weight_gradient": conv_norm.conv_norm_weight_gradient_reference,
    "convolve": convolution.convolve_reference,
    "transposed_convolve": convolution.transposed_convolve_reference,
    "convolution_weight_gradient": convolution.convolution_weight_gradient_reference,
    "covariance_factor": covariance_factor.covariance_factor_reference,
    "covariance_update": covariance_update.covariance_update_reference,
    "nuclear_norm": nuclear_norm.nuclear_norm_reference,
    "pair_distances": pair_distances.pair_distances_reference,
    "power_iteration": spectral_norm.power_iteration_reference,
    "spectral_norm": spectral_norm.spectral_norm_reference,
    "spectral_norm_backward": spectral_norm.spectral_norm_backward_reference,
    "interpolate": gradient_penalty.interpolate_reference,
    "slope_penalty": gradient_penalty.slope_penalty_reference,
}

if not CPP:
    collect_ignore_glob = ["test_*_parity.py", "test_pool.py"]


@pytest.fixture(params=["reference", *([pytest.param("cpp", marks=pytest.mark.tier(2))] if CPP else [])])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Within the test the ops dispatch to this backend."""
    name: str = request.param
    if name == library.CPU:
        yield name
        return
    assert name == "reference", f"expected the C++ kernels, got the {library.CPU}"
    override = torch.library.Library("ganfast", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is overridden, which is what we want
        for op, reference in REFERENCES.items():
            override.impl(op, reference, "CPU", allow_override=True)
    try:
        yield name
    finally:
        override._destroy()
