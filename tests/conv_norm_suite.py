"""The parity tests of the page conv_norm for a process of its own; tests/elsewhere.py runs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import conv_norm_checks as checks
import torch

OPS = ("conv_norm", "conv_norm_input_gradient", "conv_norm_weight_gradient")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def apart() -> None:
    """The way beside the fused kernels: a convolution between passes of Triton's batch norm."""
    from ganfast.ops import conv_norm as page

    for case in checks.CASES[1:4]:
        at = checks.given(case, torch.float32)
        y, mean, var = page.conv_norm_reference(*at.forward())
        found = page._apart(page.conv_norm_reference)(*at.forward())
        torch.testing.assert_close(found, (y, mean, var), rtol=1e-5, atol=1e-4)  # float32 sums of size ten
        if case.norm:
            expected = page.conv_norm_weight_gradient_reference(*at.weight_gradient())
            # float32 sums over all pixels, of either sign and of size fifty, in another order
            torch.testing.assert_close(
                page._apart(page.conv_norm_weight_gradient_reference)(*at.weight_gradient()), expected, rtol=1e-5, atol=1e-3
            )


def suite(backend: str) -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    for i, case in enumerate(checks.CASES):
        cases[str(case)] = partial(checks.check, case, DTYPES[i % len(DTYPES)])
    cases["any layout"] = checks.check_any_layout
    cases["groups are alone"] = checks.check_groups_are_alone
    cases["far from zero"] = checks.check_far_from_zero
    cases["apart"] = apart
    for refused in checks.REFUSED:
        cases[f"refused, {refused}"] = partial(checks.check_refusal, refused)
    return cases
