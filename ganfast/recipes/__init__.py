"""The catalogue of recipes: one paper per file, whose name is the command-line name with dashes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ganfast.errors import InvalidType, InvalidValue, near
from ganfast.nn import fuse
from ganfast.recipe import About, Recipe
from ganfast.recipes._options import Between

# Every recipe may be asked for with these, so that a sweep can pass the same to all; one without a latent or labels has no
# use for them.
SHARED = ("image_size", "channels", "width", "latent_dim", "critic_steps", "classes")


@dataclass(frozen=True)
class Option:
    """One typed option of a recipe: ``choices`` is empty unless only those values are allowed."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    within: Between | None = None


def names() -> list[str]:
    """Every recipe's name, sorted."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def summary(name: str) -> str:
    """The first line of a recipe's page: its paper."""
    return (_module(name).__doc__ or "").strip().splitlines()[0]


def about(name: str) -> About:
    """A recipe's row in the table of recipes."""
    row: About = _module(name).ABOUT
    return row


def defaults(name: str) -> Mapping[str, Any]:
    """The engine settings that a recipe wants unless told otherwise."""
    return getattr(_module(name), "DEFAULTS", {})


def options(name: str) -> dict[str, Option]:
    """What a recipe can be told, from its builder's signature."""
    builder = _builder(name)
    hints = typing.get_type_hints(builder, include_extras=True)
    found = {}
    for parameter in inspect.signature(builder).parameters.values():
        hint, (text, *limits) = hints[parameter.name].__args__[0], hints[parameter.name].__metadata__
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        kind = type(choices[0]) if choices else hint
        found[parameter.name] = Option(parameter.name, kind, parameter.default, text, choices, *limits)
    return found


def get(name: str, **given: Any) -> Recipe:
    """The recipe called ``name``, freshly built and initialised from torch's default generator.

    ``given`` are its options, all optional; :data:`SHARED` ones that it has no use for are passed over. Raises InvalidValue
    for an unknown name, an unknown option or a value that is not allowed, InvalidType for one of the wrong type.
    """
    known = options(name)
    unknown = [key for key in given if key not in known and key not in SHARED]
    if unknown:
        raise InvalidValue(f"recipe {name!r} has no option {unknown[0]!r}{near(unknown[0], known)}")
    used = {key: _checked(name, known[key], value) for key, value in given.items() if key in known}
    resolved = {option.name: used.get(option.name, option.default) for option in known.values()}
    built = _builder(name)(**resolved)
    for network in built.networks.values():
        fuse(network)
    return dataclasses.replace(built, options={**resolved, **built.options})


def _checked(recipe: str, option: Option, value: Any) -> Any:
    if option.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, option.type) or isinstance(value, bool) != (option.type is bool):
        expected = option.type.__name__
        raise InvalidType(f"recipe {recipe!r}, option {option.name!r}: expected {expected}, got {value!r}")
    limits = option.within
    if limits is not None and isinstance(value, int | float) and not limits.low <= value <= limits.high:
        raise InvalidValue(f"recipe {recipe!r}, option {option.name!r}: expected {limits}, got {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue(f"recipe {recipe!r}, option {option.name!r}: expected a finite number, got {value}")
    if option.choices and value not in option.choices:
        allowed = ", ".join(map(str, option.choices))
        raise InvalidValue(f"recipe {recipe!r}, option {option.name!r}: expected one of {allowed}, got {value!r}")
    return value


def _builder(name: str) -> Callable[..., Recipe]:
    builder: Callable[..., Recipe] = _module(name).recipe
    return builder


def _module(name: str) -> Any:
    if name not in names():
        raise InvalidValue(f"no recipe is called {name!r}{near(name, names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
