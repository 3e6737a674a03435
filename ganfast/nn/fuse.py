"""Convolution, batch norm and activation as one, in anybody's network.

:func:`fuse` finds the chains in an ``nn.Sequential`` and in the source of the methods of other modules, and gives each such
container a class of its own, derived from the one it had, in which a chain is one call: :func:`ganfast.nn.chain.chain`, which
computes it, of methods that :mod:`ganfast.nn.rewrite` has written anew. The modules themselves, and all that they hold, stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from ganfast.nn.chain import Part, bare, joined, parts
from ganfast.nn.rewrite import Roles, Scope, Site, Source, methods, read, rewrite, roles

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Verdict(NamedTuple):
    """What became of one batch norm: where it is, ``"fused"`` or ``"left"``, and the chain or the reason."""

    path: str
    status: str
    why: str


class Report(list[Verdict]):
    """One row for each batch norm. Prints as a table."""

    def __str__(self) -> str:
        widest = max((len(row.path) for row in self), default=0)
        return "\n".join(f"{row.path:{widest}}  {row.status:5}  {row.why}" for row in self)


def fuse(module: ModuleT) -> ModuleT:
    """Fuse the chains of [convolution,] batch norm [and ReLU, LeakyReLU or tanh] in ``module``, in place, and return it.

    Chains are found among the children of an ``nn.Sequential``, in loops over a list of modules, and in calls of children and
    functions anywhere in a module's methods. Parameters, buffers, ``state_dict``, hooks, train and eval mode, deepcopy and
    pickling stay as they were, and every child stays what it is: a hook that is added later, or a batch norm that becomes a
    SyncBatchNorm, is respected. A container's class becomes one that is derived from its own, of the same name.
    :func:`fuse_report` says what was left and why. Call it again at will, after changes of the network's structure too.
    """
    for container in list(module.modules()):
        fused = _plan(container).fused
        if fused is not None and (not isinstance(container, Fused) or type(container).__bases__[0] is Fused):
            container.__class__ = fused
    return module


def fuse_report(module: nn.Module) -> Report:
    """One row for each batch norm in ``module``, in the order of ``named_modules``."""
    modules = dict(module.named_modules(remove_duplicate=False))
    plans = {path: _plan(container) for path, container in modules.items()}
    chains = [(modules[path], each) for path, plan in plans.items() for each in plan.chains(modules[path])]
    rows = Report()
    for path, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            status, why = _verdict(norm, [(container, each) for container, each in chains if each.norm is norm])
            rows.append(Verdict(path, status, why or _why_unseen(path, modules, plans)))
    return rows


# ---- the class of a fused container


class Fused(nn.Module):
    """Mixed in before a container's class: some methods are the rewritten ones."""

    _fused_by: tuple[tuple[str, Roles], ...]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Not the container's own: the class is no new one to those who register subclasses."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *state = reduced
        if type(self).__bases__[0] is not Fused or not arguments or arguments[0] is not type(self):
            return make, arguments, *state
        return _revive, (make, type(self).__bases__[1], self._fused_by, *arguments[1:]), *state


def _revive(make: Callable[..., Any], base: type, fused_by: tuple[tuple[str, Roles], ...], *arguments: Any) -> Any:
    """What was pickled, by the source that ``base`` has now."""
    return make(_rewritten(base, fused_by).fused or base, *arguments)


class _Rewritten(NamedTuple):
    fused: Any = None  # a class, or None where it would be the same
    sites: tuple[tuple[Source, Site], ...] = ()


def _rewritten(base: type, fused_by: tuple[tuple[str, Roles], ...]) -> _Rewritten:
    wanted, sources = dict(fused_by), []
    for name, function, owner in methods(base):
        source = read(function, owner) if name in wanted else ""
        if isinstance(source, Source):
            sources.append((name, source, wanted[name]))
    return _derived(base, tuple(sources), fused_by)


@functools.cache
def _derived(base: type, sources: tuple[tuple[str, Source, Roles], ...], fused_by: tuple[tuple[str, Roles], ...]) -> _Rewritten:
    """One class for all containers that are alike, so that what is compiled for one serves the others."""
    namespace: dict[str, Any] = {}
    sites: list[tuple[Source, Site]] = []
    for name, source, played in sources:
        made, found = rewrite(source, played)
        if found:
            namespace[name] = made
            sites += [(source, site) for site in found]
    if _runs_in_turn(base):
        namespace["forward"] = _forward_joined
    if not namespace:
        return _Rewritten()
    told = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__, "_fused_by": fused_by}
    return _Rewritten(type(base.__name__, (Fused, base), told | namespace), tuple(sites))


def _runs_in_turn(cls: type) -> bool:
    return issubclass(cls, nn.Sequential) and cls.forward is nn.Sequential.forward


def _forward_joined(self: Any, input: Any) -> Any:
    for call in joined(self):
        input = call(input)
    return input


# ---- what there is to fuse


class _Chain(NamedTuple):
    norm: nn.Module
    act: nn.Module | str | None
    conv: nn.Module | None


class _Plan(NamedTuple):
    """What a container is to become, by its structure as it is."""

    fused: Any = None
    sites: tuple[tuple[Source, Site], ...] = ()
    refused: str | None = None

    def chains(self, container: nn.Module) -> Iterator[_Chain]:
        if self.fused is None:
            return
        if _runs_in_turn(_unfused(container)):
            yield from _chains_among(list(container.children()))
        for source, site in self.sites:
            scope = Scope(container, source)
            if site.loop:
                for holder in scope.modules(site.norm):
                    yield from _chains_among(list(holder._modules.values()))
                continue
            acts: list[Any] = [site.act] if site.act is None or isinstance(site.act, str) else scope.modules(site.act)
            act = acts[0] if acts else _last_name(site.act)
            convs = [] if site.conv is None else scope.modules(site.conv)
            for norm in scope.modules(site.norm):
                yield _Chain(norm, act, convs[0] if convs else None)


def _plan(container: nn.Module) -> _Plan:
    base = _unfused(container)
    if not any(isinstance(child, _BatchNorm) for child in container.modules()) or isinstance(container, _BatchNorm):
        return _Plan()
    if "forward" in container.__dict__:
        return _Plan(refused=f"the forward of this {base.__name__} was replaced")
    if is_parametrized(container):  # which gives it a class that only PyTorch may take back
        return _Plan(refused=f"this {base.__name__} is parametrised itself")
    if _runs_in_turn(base):
        found = any(isinstance(part, Part) for part in parts(list(container.children())))
        return _Plan(_rewritten(base, ()).fused if found else None)
    fused_by, refused = [], None
    for name, function, owner in methods(base):
        source = read(function, owner)
        if isinstance(source, str):
            refused = f"{base.__name__}.{name} {source}" if name == "forward" else refused
            continue
        played = roles(source, container)
        if any(role in ("norm", "modules") for _, role in played):
            fused_by.append((name, played))
    if not fused_by:
        return _Plan(refused=refused)
    made = _rewritten(base, tuple(fused_by))
    return _Plan(made.fused, made.sites, refused)


def _unfused(container: nn.Module) -> Any:
    """The class that the container had, or that somebody has derived from what it became."""
    for cls in type(container).__mro__:
        if cls.__bases__ and cls.__bases__[0] is Fused:
            return cls.__bases__[1]
    return type(container)


def _chains_among(modules: list[Any]) -> Iterator[_Chain]:
    for part in parts(modules):
        if isinstance(part, Part) and part.norm is not None:
            yield _Chain(part.norm, part.act, part.conv)


def _last_name(act: Any) -> str | None:
    return getattr(act, "attr", getattr(act, "id", None))


# ---- the report


def _verdict(norm: _BatchNorm, chains: list[tuple[nn.Module, _Chain]]) -> tuple[str, str]:
    if type(norm).forward is not _BatchNorm.forward:
        return "left", f"{type(norm).__name__} has a forward of its own"
    if not chains:
        return "left", ""
    container, found = chains[0]
    if not bare(norm):
        return "left", "it has hooks"
    if isinstance(found.act, nn.Module) and not bare(found.act):
        return "left", f"its {type(found.act).__name__} has hooks"
    if not isinstance(container, Fused):
        return "left", "nothing speaks against it: call fuse"
    named = [part if isinstance(part, str) else type(part).__name__ for part in (found.conv, norm, found.act) if part is not None]
    return "fused", " + ".join(named)


def _why_unseen(path: str, modules: dict[str, nn.Module], plans: dict[str, _Plan]) -> str:
    """Why nothing that holds the batch norm at ``path`` joins it to anything."""
    names = path.split(".")
    above = [modules[".".join(names[:count])] for count in range(len(names))]
    while path:
        path = path.rpartition(".")[0]
        container = modules[path]
        base = _unfused(container)
        if (refused := plans[path].refused) is not None:
            return refused
        if _runs_in_turn(base):
            return "no convolution stands before it, and no ReLU, LeakyReLU or Tanh behind it"
        if not isinstance(container, nn.ModuleList | nn.ModuleDict):
            if base.__module__.partition(".")[0] == "torch":
                if any(isinstance(module, GraphModule) for module in above):
                    return "a graph of torch.fx calls it, which is not rewritten"
                return f"{base.__name__} of {base.__module__} is torch's own"
            return f"{base.__name__} gives it no convolution's output alone, and its own not to ReLU, LeakyReLU or tanh alone"
    return "nothing calls it"
