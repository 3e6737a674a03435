"""How many images are scored against which, by name, as papers have it. A score compares with those of its own protocol alone."""

from __future__ import annotations

from dataclasses import dataclass

from ganfast.errors import InvalidValue, near


@dataclass(frozen=True)
class Protocol:
    """What has to be the same wherever two scores are compared, but for the data.

    Frechet and kernel distances take ``n_fake`` generated images against ``n_real`` ones of the ``split`` of the data, or all of
    them where that is None; a kernel distance is the mean over ``subsets`` subsets of ``subset_size`` images. The Inception Score
    is the mean over ``splits`` parts of ``n_score`` generated images.
    """

    name: str
    preset: str
    split: str
    n_real: int | None
    n_fake: int
    n_score: int = 50_000
    splits: int = 10
    subsets: int = 100
    subset_size: int = 1000


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Miyato et al. 2018, appendix B.1; the Inception Score of 5,000 images, ten times
        Protocol("sngan-10k5k", "tf-compat", "test", 10_000, 5_000),
        # of CIFAR-10 all training images, as Heusel et al. 2017 and most papers since
        Protocol("50k-train", "tf-compat", "train", 50_000, 50_000),
        # Karras et al. 2020 (StyleGAN2-ADA): fid50k_full, kid50k_full and is50k
        Protocol("fid50k-full", "tf-compat", "train", None, 50_000),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of this name; raises InvalidValue."""
    if name not in PROTOCOLS:
        raise InvalidValue(f"no protocol is called {name!r}{near(name, PROTOCOLS)}")
    return PROTOCOLS[name]
