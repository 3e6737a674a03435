"""Which backend of each op runs here: the one table that ``ganfast.backends()`` and ``ganfast doctor`` show.

A backend is a probe that says ``"available"`` or the reason why not. Probes run when asked, so importing this imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

AVAILABLE = "available"


def _reference() -> str:
    return AVAILABLE


def _host() -> str:
    from ganfast._build import why_not_built
    from ganfast.data import host

    return AVAILABLE if host.AVAILABLE else why_not_built() or host.WHY_NOT


TABLE: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "gather_images": {"reference": _reference, "cpp": _host},
    "permuted": {"reference": _reference, "cpp": _host},
    "spectral_norm": {"reference": _reference},
    "gradient_penalty": {"reference": _reference},
    "fuse": {"reference": _reference},
    "frechet_distance": {"reference": _reference},
}


def backends() -> dict[str, dict[str, str]]:
    """``{op: {backend: "available" or the reason why not}}``, for every op and every backend that this release has."""
    return {op: {name: probe() for name, probe in probes.items()} for op, probes in TABLE.items()}
