"""The field's own tools, to compare with: ``from peers import torch_fidelity``.

    torch_fidelity 0.4, torchmetrics 1.9, pytorch_fid 0.3 (its ``fid_score``), cleanfid 0.1 (its ``fid`` and ``features``)

They lie in the folder ``peers`` of the environment, where ``make`` installs what tests/peers.txt lists.

They want torchvision, whose wheel fits one build of PyTorch. With another build its compiled ops do not load, and it fails on
import because it declares fake versions of ops that are not there. None of the tools calls one of these, so they are declared,
without a kernel, and the import goes through.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch

FOLDER = Path(sys.prefix) / "peers"

_PARTS = {
    "torchvision": (),
    "torch_fidelity": (),
    "torchmetrics": ("image.fid", "image.inception", "image.kid"),
    "pytorch_fid": ("fid_score",),
    "cleanfid": ("fid", "features"),
    "efficientnet_lite_pytorch": (),
}
_declared: list[torch.library.Library] = []  # ops live as long as the library that declared them


def __getattr__(name: str) -> ModuleType:
    if name not in _PARTS:
        raise AttributeError(f"peers knows {', '.join(_PARTS)}, not {name}")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    _import_torchvision()
    for part in _PARTS[name]:
        importlib.import_module(f"{name}.{part}")
    return importlib.import_module(name)


def _import_torchvision() -> None:
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        for half in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
            del sys.modules[half]
        import torchvision  # noqa: F401
