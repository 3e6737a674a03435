"""Chains in the methods of modules: whatever is written there, a fused network computes what the plain one does."""

from __future__ import annotations

import copy
import itertools
import linecache
import textwrap
import types
from contextlib import suppress
from typing import Any

import pytest
import torch
from fused_twins import assert_close, assert_twins, fused_paths, ops_of, twins
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ganfast.nn import fuse, fuse_report

served = pytest.mark.compiled
_FILES = itertools.count()


class Net(nn.Module):
    """Layers for methods that are written in tests, all of them (N, 3, 4, 4) to the same."""

    flag = True
    slope = 0.3

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm, self.shared = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu, self.leaky, self.smooth = nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.ELU()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))
        self.chain = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Tanh(), nn.BatchNorm2d(3), nn.LeakyReLU(0.2)])
        self.sequence = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout2d(0.2), nn.BatchNorm2d(3), nn.ReLU())
        self.named = nn.ModuleDict({"norm": nn.BatchNorm2d(3), "act": nn.Tanh()})


def written(body: str, name: str = "Written") -> type[Net]:
    """Net with ``forward(self, x)`` of this body, as a file would have it."""
    text = f"class {name}(Net):\n    def forward(self, x):\n{textwrap.indent(textwrap.dedent(body).strip(), ' ' * 8)}\n"
    return defined(text, name)


def defined(text: str, name: str, imports: str = "import torch\nfrom torch.nn import functional as F\n") -> Any:
    file = f"<written {next(_FILES)}>"
    text = imports + text
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    module = types.ModuleType("written")
    module.__dict__.update(Net=Net, nn=nn, suppress=suppress)
    exec(compile(text, file, "exec"), module.__dict__)
    return getattr(module, name)


def x() -> Tensor:
    return torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def made(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return cls()


FUSED = {
    "nested": ("return F.relu(self.norm(self.conv(x)))", ["norm"]),
    "without a convolution": ("return F.relu(self.norm(self.conv(x) + x))", ["norm"]),
    "without an activation": ("return self.smooth(self.norm(self.conv(x)))", ["norm"]),
    "keywords": ("return F.leaky_relu(self.norm(x), negative_slope=self.slope, inplace=True)", ["norm"]),
    "positional slope": ("return F.leaky_relu(self.norm(x), 0.25, True)", ["norm"]),
    "method": ("return self.norm(self.conv(x)).relu_().flatten(1)", ["norm"]),
    "tanh": ("return torch.tanh(self.norm(x)) + self.shared(self.conv(x)).tanh()", ["norm", "shared"]),
    "statements": (
        """
        out = self.conv(x)
        out = self.norm(out)
        out = self.relu(out)
        return out
        """,
        ["norm"],
    ),
    "names": (
        """
        a = self.conv(x)
        b = self.norm(a)
        c = F.relu(b)
        return c.mean() + c
        """,
        ["norm"],
    ),
    "returned": (
        """
        out = self.conv(x)
        out = self.norm(out)
        return torch.relu(out).mean(dim=1)
        """,
        ["norm"],
    ),
    "loop": (
        """
        for layer in self.chain:
            x = layer(x)
        return x
        """,
        ["chain.1", "chain.3"],
    ),
    "loop over children": (
        """
        for layer in self.sequence.children():
            x = layer(x)
        return x
        """,
        ["sequence.1", "sequence.3"],
    ),
    "enumerated zip": (
        """
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = x + i * F.relu(norm(conv(x)))
        return x
        """,
        ["norms.0", "norms.1"],
    ),
    "zip": (
        """
        for conv, norm in zip(self.convs, self.norms):
            x = x + F.relu(norm(conv(x)))
        return x
        """,
        ["norms.0", "norms.1"],
    ),
    "items": (
        """
        for i in range(2):
            x = torch.relu(self.norms[i](self.convs[i](x)))
        return self.named["act"](self.named["norm"](x))
        """,
        ["norms.0", "norms.1", "named.norm"],
    ),
    "alias": (
        """
        norm, act = self.norm, self.relu
        first = self.shared
        return self.relu(first(x))
        """,
        ["shared"],
    ),
    "shared": ("return F.relu(self.norm(self.conv(F.relu(self.norm(x)))))", ["norm"]),
    "lambda": ("return (lambda v: F.relu(self.norm(v)))(x)", ["norm"]),
    "super": ("return super().__repr__().count('(') * self.relu(self.norm(x))", ["norm"]),
    "no grad": (
        """
        with torch.no_grad():
            h = F.relu(self.norm(self.conv(x)))
        return F.relu(self.shared(x)) * h
        """,
        ["norm", "shared"],
    ),
    "python": (
        """
        if x.shape[0] > 1 and self.training:
            x = F.dropout(x, 0.5, training=self.training)
            x = self.relu(self.norm(x))
        elif x.sum().item() > 1e9:
            return x
        print(f"{x.shape}", end="")
        return F.relu(self.norm(self.conv(x))) * torch.rand(1, dtype=x.dtype)
        """,
        ["norm"],
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_chains_are_found_and_compute_the_same(name: str) -> None:
    body, paths = FUSED[name]
    plain, fused = twins(made(written(body)))
    assert [path for path in fused_paths(fused) if not path.startswith("sequence") or "sequence" in body] == paths
    assert_twins(plain, fused, x())


LEFT = {
    "the name is deleted": "h = self.norm(x)\ny = F.relu(h)\ndel h\nreturn y",
    "the output is read twice": "h = self.norm(self.smooth(x))\nreturn F.relu(h) + h",
    "it is changed in between": "h = self.norm(x)\nh.add_(1)\nreturn F.relu(h)",
    "a name outlives the next statement": "h = self.norm(x)\ny = F.relu(h)\nreturn y + h.mean()",
    "another function follows": "return self.smooth(self.norm(x))",
    "another call comes first": "h = self.norm(x)\nreturn self.smooth(x) + F.relu(h)",
    "only sometimes": "h = self.norm(x)\nreturn F.relu(h) if self.flag else F.elu(h)",
    "the loop's name is read": "for f in self.chain:\n    x = f(x)\nreturn x * len(list(f.parameters()))",
    "the loop does more": "for f in self.chain:\n    x = f(x)\n    x = x + 1\nreturn x",
    "a closure reads it": "h = self.norm(x)\ng = lambda: h\nh = F.relu(h)\nreturn g()",
    "a handler reads it": "try:\n    x = self.norm(x)\n    x = F.relu(x)\nexcept ValueError:\n    x = x + 1\nreturn x",
    "names are read unseen": "h = F.relu(self.norm(x))\nreturn locals()['h']",
    "keywords to the norm": "return F.relu(self.norm(input=x))",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_chain_is_left(name: str) -> None:
    plain, fused = twins(made(written(LEFT[name])))
    assert [path for path in fused_paths(fused) if not path.startswith("sequence")] == []
    assert_twins(plain, fused, x())


def test_an_exception_between_two_calls_leaves_what_stood_there() -> None:
    body = """
    try:
        x = self.norm(x)
        x = self.relu(x)
    except ZeroDivisionError:
        x = x * 2
    with suppress(ZeroDivisionError):
        x = self.conv(x)
        x = self.shared(x)
        x = self.leaky(x)
    with suppress(ZeroDivisionError):
        for layer in self.chain:
            x = layer(x)
    return x
    """
    plain, fused = twins(made(written(body)))
    for network in (plain, fused):
        for act in (network.relu, network.leaky, network.chain[2]):
            act.register_forward_pre_hook(lambda *_: 1 / 0)
    assert_twins(plain, fused, x())


def test_flags_and_numbers_are_read_at_every_call() -> None:
    body = """
    h = F.leaky_relu(self.norm(x), self.slope)
    return F.relu(self.shared(h)) if self.flag else self.other(h)
    """
    plain, fused = twins(made(written(body)))
    for flag, slope in itertools.product((True, False), (0.0, 0.5, -0.5, torch.tensor(0.25).item())):
        for network in (plain, fused):
            network.flag, network.slope = flag, slope
        assert_twins(plain, fused, x())


def test_signatures_and_defaults_stay() -> None:
    text = '''
class Written(Net):
    def forward(self, x, /, scale=2.0, *more, shift: float = 1.0, **rest) -> "Tensor":
        """Documented."""
        return F.relu(self.norm(x)) * scale + shift + sum(more) + sum(rest.values())
'''
    plain, fused = twins(made(defined(text, "Written")))
    assert fused.forward.__doc__ == "Documented."
    assert_close([fused(x(), 3.0, 4.0, shift=5.0, other=6.0)], [plain(x(), 3.0, 4.0, shift=5.0, other=6.0)])
    assert_close([fused(x())], [plain(x())])


@pytest.mark.parametrize("local", [False, True])
def test_a_class_that_names_itself(local: bool) -> None:
    text = """
class Written(Net):
    def _other(self, x):
        return super(Written, self).__repr__().count("(") + F.relu(self.norm(x))
    forward = _other
"""
    if local:
        text = f"def make():\n{textwrap.indent(text, '    ')}\n    return Written\nWritten = make()\n"
    cls = defined(text, "Written")
    plain, fused = twins(made(cls))
    assert "norm" in fused_paths(fused)
    assert_twins(plain, fused, x())
    cls.__name__ = "no identifier"
    assert_twins(*twins(made(cls)), x())


def test_inherited_and_helper_methods_closures_and_private_names() -> None:
    text = """
def make(factor):
    class Base(Net):
        def __init__(self):
            super().__init__()
            self.__hidden = nn.BatchNorm2d(3)
        def features(self, x):
            return F.relu(self.__hidden(x)) * factor
    class Written(Base):
        def forward(self, x):
            return F.relu(self.norm(self.features(x))) + super().features(x)
    return Written
Written = make(3.0)
"""
    plain, fused = twins(made(defined(text, "Written")))
    assert [path for path in fused_paths(fused) if "sequence" not in path] == ["norm", "_Base__hidden"]
    assert_twins(plain, fused, x())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "class W(Net):\n    @torch.enable_grad()\n    def forward(self, x):\n        return F.relu(self.norm(x))\n",
            "is decorated",
        ),
        ("class W(Net):\n    forward = lambda self, x: F.relu(self.norm(x))\n", "has no source that can be read"),
        (
            "class W(Net):\n    def forward(self, x):\n        vars()\n        return F.relu(self.norm(x))\n",
            "looks at its local names",
        ),
    ],
)
def test_methods_that_cannot_be_read_are_left_and_said_why(text: str, why: str) -> None:
    plain, fused = twins(made(defined(text, "W")))
    (row,) = [row for row in fuse_report(fused) if row.path == "norm"]
    assert row.status == "left" and row.why.startswith(f"W.forward {why}")
    assert_twins(plain, fused, x(), modes=[False])


def test_source_that_was_changed_since_is_not_believed() -> None:
    cls = written("return F.relu(self.norm(x)) * 2")
    file = cls.forward.__code__.co_filename
    length, stamp, lines, name = linecache.cache[file]  # type: ignore[misc]
    linecache.cache[file] = (length, stamp, [line.replace("* 2", "* 3") for line in lines], name)
    plain, fused = twins(made(cls))
    (row,) = [row for row in fuse_report(fused) if row.path == "norm"]
    assert row.why == "Written.forward is not what its source says: it is decorated or was changed"
    assert_twins(plain, fused, x())


def test_a_method_that_is_patched_is_taken_up_when_fused_again() -> None:
    cls = written("return F.relu(self.norm(x))")
    network = fuse(made(cls).double())
    cls.forward = written("return F.relu(self.norm(x)) + 1").forward  # type: ignore[method-assign]
    fuse(network)
    assert network(x()).min().item() == 1.0


def test_subclass_hooks_of_a_container_see_no_new_class() -> None:
    text = """
class Base(Net):
    seen = []
    def __init_subclass__(cls, *, needed, **rest):
        Base.seen.append(needed)
class W(Base, needed=1):
    def forward(self, x):
        return F.relu(self.norm(x))
"""
    cls = defined(text, "W")
    fused = fuse(made(cls))
    assert "norm" in fused_paths(fused)
    assert cls.seen == [1]


def test_tracebacks_keep_their_lines() -> None:
    cls = written("y = self.conv(x)\ny = self.norm(y)\ny = F.relu(y)\nreturn y.nothing")
    lines = []
    for network in (made(cls), fuse(made(cls))):
        with pytest.raises(AttributeError) as raised:
            network(x().float())
        lines.append([entry.lineno for entry in raised.traceback if "written" in str(entry.path)])
    assert lines[0] == lines[1] != []


@served
def test_alike_containers_share_one_class_and_one_code() -> None:
    cls = written("return F.relu(self.norm(x))")
    first, second = fuse(made(cls)), fuse(made(cls))
    assert type(first) is type(second) is not cls
    assert ops_of(first, x().float()).count("ganfast::batch_norm_act") == 1


# ---- networks by chance

STEPS = [
    "x = F.relu(self.norm(self.conv(x)))",
    "x = self.conv(x)\nx = self.norm(x)\nx = self.relu(x)",
    "c = self.other(x)\nn = self.shared(c)\nx = torch.tanh(n)",
    "c = self.other(x)\nn = self.shared(c)\nx = F.leaky_relu(n, 0.2) + n",
    "c = self.conv(x)\nx = F.relu(self.norm(c)) + c",
    "n = self.norm(x)\nn.add_(0.5)\nx = F.relu(n)",
    "x = self.shared(x).tanh() + x",
    "for f in self.chain:\n    x = f(x)",
    "for f in self.chain:\n    x = f(x)\nx = x * (1 + len(list(f.children())))",
    "for c, n in zip(self.convs, self.norms):\n    x = F.relu(n(c(x)))",
    "for i in range(2):\n    x = self.norms[i](self.convs[1 - i](x))",
    "x = F.relu(self.norm(x)) if self.flag else self.norm(x)",
    "if self.flag:\n    x = self.norm(x)\n    x = self.leaky(x)\nelse:\n    x = self.shared(x)\n    x = self.smooth(x)",
    "x = F.dropout(x, 0.3, training=self.training)",
    "x = F.leaky_relu(self.shared(x), negative_slope=self.slope, inplace=True)",
    "x = (lambda v: F.relu(self.norm(v)))(x)",
    "y = x\nx = self.conv(x)\nx = self.norm(x)\nx = self.relu(x + y)",
    "x = self.sequence(x)",
    "n = self.norm(x)\nx = F.relu(n) + x\nx = x + n",
    "while x.abs().max() < 1:\n    x = self.conv(x)\n    x = 3 * self.norm(x)",
    "x = self.named['norm'](x)\nx = self.named['act'](x)",
]
PLACES = [
    "conv",
    "norm",
    "shared",
    "relu",
    "leaky",
    "chain.0",
    "chain.1",
    "chain.2",
    "sequence",
    "sequence.3",
    "norms.0",
    "other",
]


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, list[tuple[str, bool]], bool]:
    body = "\n".join(draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=5)))
    hooks = draw(st.lists(st.tuples(st.sampled_from(PLACES), st.booleans()), max_size=2))
    return body + "\nreturn x", hooks, draw(st.booleans())


@given(networks())
@settings(max_examples=60, deadline=None)
def test_fused_equals_plain_whatever_the_network(drawn: tuple[str, list[tuple[str, bool]], bool]) -> None:
    body, hooks, flag = drawn
    plain = made(written(body)).double()
    fused = copy.deepcopy(plain)
    logs: dict[nn.Module, list[str]] = {plain: [], fused: []}
    for early in (True, False):
        for network, log in logs.items():
            for place, first in hooks:
                if first == early:
                    network.get_submodule(place).register_forward_hook(_logging(log, place))
        fuse(fused)
    for network in logs:
        network.flag = flag
    assert_twins(plain, fused, x())
    assert logs[plain] == logs[fused]


def _logging(log: list[str], place: str) -> Any:
    return lambda *_: log.append(place)


def test_the_steps_by_chance_are_fused_at_all() -> None:
    fused = [bool([p for p in fused_paths(fuse(made(written(f"{step}\nreturn x")))) if "sequence" not in p]) for step in STEPS]
    assert sum(fused) >= len(STEPS) // 2


def test_what_is_called_on_the_way_may_change_what_comes_next() -> None:
    body = """
        h = self.conv(self.route(x))
        h = self.norm(h)
        return F.relu(h)
    """
    text = f"class Routed(Net):\n    def forward(self, x):\n{textwrap.indent(textwrap.dedent(body).strip(), ' ' * 8)}\n"
    text += "    def route(self, x):\n        self.norm = self.norms[1]\n        return x\n"
    torch.manual_seed(0)
    plain = defined(text, "Routed")().double()
    with torch.no_grad():
        plain.norms[1].weight.fill_(3)
    fused = fuse(copy.deepcopy(plain))
    torch.testing.assert_close(fused(x()), plain(x()))


def test_an_update_in_place_reads_what_it_updates() -> None:
    torch.manual_seed(0)
    plain = written("""
        h = self.norm(self.conv(x))
        y = F.relu_(h)
        h *= 2
        return y
    """)().double()
    torch.testing.assert_close(fuse(copy.deepcopy(plain))(x()), plain(x()))
