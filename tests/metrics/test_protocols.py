from __future__ import annotations

import pytest

from ganfast.errors import InvalidValue
from ganfast.metrics.presets import PRESETS, preset_named
from ganfast.metrics.protocols import PROTOCOLS, protocol_named


def test_protocols_have_the_papers_numbers() -> None:
    counts = {name: (protocol.split, protocol.n_real, protocol.n_fake) for name, protocol in PROTOCOLS.items()}
    assert counts == {
        "sngan-10k5k": ("test", 10_000, 5_000),
        "50k-train": ("train", 50_000, 50_000),
        "fid50k-full": ("train", None, 50_000),
    }
    sngan = protocol_named("sngan-10k5k")
    assert sngan.n_score // sngan.splits == 5_000
    # torch-fidelity's and clean-fid's defaults, of which no paper's protocol differs
    assert {(p.splits, p.subsets, p.subset_size) for p in PROTOCOLS.values()} == {(10, 100, 1000)}


def test_protocols_name_presets() -> None:
    assert {protocol.preset for protocol in PROTOCOLS.values()} <= PRESETS.keys()


def test_other_names_are_refused() -> None:
    with pytest.raises(InvalidValue, match="no protocol is called '50k'; did you mean '50k-train'"):
        protocol_named("50k")
    with pytest.raises(InvalidValue, match="no preset is called 'tf'"):
        preset_named("tf")
