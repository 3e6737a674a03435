"""Chains in the source of anybody's methods, and the same methods with each chain as one call.

    h = self.conv(x)
    h = F.relu(self.norm(h))        becomes        h = chain(F.relu, self.norm, self.conv, x)

Both mean the same whatever the names stand for: ``chain`` (:func:`ganfast.nn.chain.chain`) is handed the callables, in the order
in which Python would have looked them up, and calls one after the other those that it does not know. So nothing has to be
guessed or traced: branches, flags, shapes, keyword arguments, prints and random numbers stay what they were. Two statements
become one only where the value between them is plainly read once: by a name that the next statement binds anew, that it
returns past, or that the whole method reads nowhere else. A loop ``for f in modules: x = f(x)`` goes over
:func:`ganfast.nn.chain.joined` modules.

What a module's names stand for (:class:`Scope`) only selects what is rewritten, and may be wrong without harm. The source that
was found must compile to the very code that runs; otherwise the method is left as it is.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import inspect
import linecache
from collections import Counter, defaultdict
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ganfast.nn.chain import ACTIVATIONS, FUNCTIONS, METHODS, chain, joined

_HELPERS = {"_ganfast_chain": chain, "_ganfast_joined": joined}  # as the rewritten code calls them, out of its closure
_FUTURES = functools.reduce(int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names))
_SAME = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")
_PEEKS = {"locals", "vars", "eval", "exec", "dir"}  # what reads local names unseen

_GUARDS = (ast.Try, ast.With)  # what may end an exception
_BLOCKS = (ast.If, ast.For, ast.While, *_GUARDS)

Roles = frozenset[tuple[str, str]]  # a callee's or an iterable's text, and what it is: "conv", "norm", "act" or "modules"


class Source(NamedTuple):
    """A method's text as a tree, proven to be the text of what runs."""

    function: Any  # a plain one
    owner: str
    tree: ast.FunctionDef
    imported: tuple[str, ...]  # names that its file imports: calls of their attributes have code of their own


class Site(NamedTuple):
    """A chain in a method, by its callees: ``act`` and ``conv`` may be None, and a string is a method's name.

    Where ``norm`` is a loop's iterable, ``loop`` is true, and the chains are those among what it holds.
    """

    act: ast.expr | str | None
    norm: ast.expr
    conv: ast.expr | None
    loop: bool = False


# ---- source


def methods(cls: type) -> Iterator[tuple[str, FunctionType, str]]:
    """Name, function and class of every method that ``cls`` does not have from torch, and that is no special one."""
    for name in dict.fromkeys(name for owner in cls.__mro__ for name in vars(owner)):
        owner = next(owner for owner in cls.__mro__ if name in vars(owner))
        function = vars(owner)[name]
        ours = owner is not object and owner.__module__.partition(".")[0] != "torch"
        if ours and isinstance(function, FunctionType) and not name.startswith("__"):
            yield name, function, owner.__name__


@functools.cache
def read(function: FunctionType, owner: str) -> Source | str:
    """The source of a method of the class called ``owner``, or why there is none to be trusted."""
    if hasattr(function, "__wrapped__"):
        return "is decorated"
    code = function.__code__
    linecache.checkcache(code.co_filename)
    file = _parsed("".join(linecache.getlines(code.co_filename, function.__globals__)))
    if isinstance(file, str):
        return file
    tree = file.functions.get((code.co_firstlineno, code.co_name))
    if tree is None:
        return "has no source that can be read"
    source = Source(function, owner, tree, file.imported)
    if not _same_code(_compiled(source, tree), function.__code__):
        return "is not what its source says: it is decorated or was changed"
    if _PEEKS & {*function.__code__.co_names}:
        return "looks at its local names from outside"
    return source


class _File(NamedTuple):
    functions: dict[tuple[int, str], ast.FunctionDef]  # by first line and name
    imported: tuple[str, ...]


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> _File | str:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return "has no source that can be read"
    functions = {
        (min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.name): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    return _File(functions, tuple(dict.fromkeys(_imported(tree))))


def _imported(scope: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name.asname or name.name.partition(".")[0] for name in node.names if name.name != "*")
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            yield from _imported(node)


def _compiled(source: Source, tree: ast.FunctionDef) -> CodeType:
    """The code of ``tree`` where ``source`` stands, in a class and among the names of its closure."""
    function = source.function
    bare = copy.copy(tree)
    bare.decorator_list, bare.returns = [], None
    bare.args = copy.deepcopy(tree.args)  # defaults and annotations are the function's, which exist
    bare.args.defaults, bare.args.kw_defaults = [], [None] * len(tree.args.kwonlyargs)
    for node in ast.walk(bare.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    around = ast.parse("def closure():\n class Owner: pass").body[0]
    assert isinstance(around, ast.FunctionDef) and isinstance(around.body[0], ast.ClassDef)
    around.body[0].name, around.body[0].body = source.owner, [bare]
    free = [*function.__code__.co_freevars, *_HELPERS]
    around.args.args = [ast.arg(name) for name in free if name != "__class__"]  # which the class brings
    if source.owner not in free:
        around.body.insert(0, ast.Global([source.owner]))
    imports: list[ast.stmt] = [ast.Import([ast.alias(name)]) for name in source.imported]
    whole = ast.fix_missing_locations(ast.Module([*imports, around], []))
    flags = function.__code__.co_flags & _FUTURES
    code = compile(whole, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    for _ in range(3):
        code = next(const for const in code.co_consts if isinstance(const, CodeType))
    return code


def _same_code(one: CodeType, other: CodeType) -> bool:
    if (
        any(getattr(one, field) != getattr(other, field) for field in _SAME)
        or (one.co_flags ^ other.co_flags) & ~inspect.CO_NESTED
    ):
        return False
    return len(one.co_consts) == len(other.co_consts) and all(map(_same_constant, one.co_consts, other.co_consts))


def _same_constant(one: Any, other: Any) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _same_code(one, other)
    return type(one) is type(other) and repr(one) == repr(other)


# ---- what names stand for


class Scope:
    """The modules that an expression in a method of ``module`` may stand for."""

    def __init__(self, module: nn.Module, source: Source) -> None:
        self._module, self._owner = module, source.owner
        arguments = [*source.tree.args.posonlyargs, *source.tree.args.args]
        self._self = arguments[0].arg if arguments else None
        self._bound: defaultdict[str, list[ast.expr]] = defaultdict(list)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._bind(node.targets[0], node.value)
            elif isinstance(node, ast.For):
                self._bind_elements(node.target, node.iter)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._bound[target.id].append(value)

    def _bind_elements(self, target: ast.expr, iterable: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name):
            if iterable.func.id == "zip" and len(iterable.args) == len(target.elts):
                for each, its in zip(target.elts, iterable.args, strict=True):
                    self._bind_elements(each, its)
            elif iterable.func.id == "enumerate" and len(target.elts) == 2:
                self._bind_elements(target.elts[1], iterable.args[0])
        else:
            self._bind(target, ast.Subscript(iterable, ast.Name("", ast.Load()), ast.Load()))

    def modules(self, expression: ast.expr, within: frozenset[str] = frozenset()) -> list[nn.Module]:
        match expression:
            case ast.Name(id=name) if name == self._self:
                return [self._module]
            case ast.Name(id=name) if name not in within:
                return [m for value in self._bound.get(name, ()) for m in self.modules(value, within | {name})]
            case ast.Attribute(value=value, attr=name):
                private = name.startswith("__") and not name.endswith("__")
                return _children(self.modules(value, within), f"_{self._owner.lstrip('_')}{name}" if private else name)
            case ast.Subscript(value=value, slice=ast.Slice()):
                return self.modules(value, within)
            case ast.Subscript(value=value, slice=ast.Constant(value=key)):
                return _children(self.modules(value, within), key)
            case ast.Subscript(value=value):
                return _children(self.modules(value, within))
            case ast.Call(func=ast.Name(id="getattr"), args=[value, *_]):
                return _children(self.modules(value, within))
            case ast.Call(func=ast.Name(id="reversed" | "list" | "iter"), args=[value]):
                return self.modules(value, within)
            case ast.Call(func=ast.Attribute(value=value, attr="children" | "values"), args=[]):
                return self.modules(value, within)
        return []

    def role(self, callee: ast.expr) -> str | None:
        modules = self.modules(callee)
        for role, kind in (("norm", _BatchNorm), ("conv", _ConvNd), ("act", ACTIVATIONS)):
            if any(isinstance(m, kind) for m in modules):
                return role
        return None

    def holds_norm(self, iterable: ast.expr) -> bool:
        return any(isinstance(child, _BatchNorm) for child in _children(self.modules(iterable)))


def _children(parents: list[nn.Module], key: Any = None) -> list[nn.Module]:
    found: list[Any] = []
    for parent in parents:
        children = list(parent._modules.values())
        if isinstance(key, str):
            found.append(parent._modules.get(key))
        elif isinstance(key, int) and not isinstance(parent, nn.ModuleDict):
            found += children[key:][:1]
        else:
            found += children
    return [child for child in found if child is not None]


def roles(source: Source, module: nn.Module) -> Roles:
    """The parts that callees and iterables play in ``source`` as a method of ``module``, by their text."""
    scope, found = Scope(module, source), set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and _is_path(node.func) and (role := scope.role(node.func)):
            found.add((ast.unparse(node.func), role))
        elif isinstance(node, ast.For) and scope.holds_norm(node.iter):
            found.add((ast.unparse(node.iter), "modules"))
    return frozenset(found)


# ---- rewriting


def rewrite(source: Source, roles: Roles) -> tuple[FunctionType, list[Site]]:
    """``source`` as a function with its chains joined, and these chains."""
    rewriter = _Rewriter(source, roles)
    tree = rewriter.rewritten()
    function = source.function
    if not rewriter.sites:
        return function, []
    code = _compiled(source, tree)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: CellType(helper) for name, helper in _HELPERS.items()}
    made = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, tuple(cells[name] for name in code.co_freevars)
    )
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, function)
    del made.__wrapped__  # type: ignore[attr-defined]  # it is not the function that inspect should read the code of
    return made, rewriter.sites


class _Rewriter(ast.NodeTransformer):
    def __init__(self, source: Source, roles: Roles) -> None:
        self.sites: list[Site] = []
        self._roles = dict(roles)
        self._tree = copy.deepcopy(source.tree)
        code = source.function.__code__
        names = [node for node in ast.walk(source.tree) if isinstance(node, ast.Name)]
        self._reads = Counter(node.id for node in names if isinstance(node.ctx, ast.Load))
        updated = [node.target for node in ast.walk(source.tree) if isinstance(node, ast.AugAssign)]  # which reads as well
        self._reads.update(target.id for target in updated if isinstance(target, ast.Name))
        shared = {*code.co_cellvars} | {node.id for node in names if isinstance(node.ctx, ast.Del)}
        self._locals = {*code.co_varnames} - shared
        self._guarded = False  # whether an exception may be caught further out, by what could read the names then

    def rewritten(self) -> ast.FunctionDef:
        self._join_statements(self._tree, guarded=False)
        tree: ast.FunctionDef = self.visit(self._tree)
        return tree

    # ---- two statements into one

    def _join_statements(self, parent: ast.AST, guarded: bool) -> None:
        for field in ("body", "orelse", "finalbody"):
            block: list[ast.stmt] = getattr(parent, field, [])
            joined: list[ast.stmt] = []
            for statement in block:
                if isinstance(statement, _BLOCKS):
                    self._join_statements(statement, guarded or isinstance(statement, _GUARDS))
                while joined and self._take_in(joined[-1], statement, guarded):
                    joined.pop()
                joined.append(statement)
            if block:
                setattr(parent, field, joined)

    def _take_in(self, first: ast.stmt, then: ast.stmt, guarded: bool) -> bool:
        """Put the value of ``first`` where ``then`` reads it, if that makes a chain and nothing else can read it."""
        if not (isinstance(first, ast.Assign) and isinstance(then, ast.Assign | ast.Return) and then.value is not None):
            return False
        if len(first.targets) != 1 or not isinstance(first.targets[0], ast.Name) or not isinstance(first.value, ast.Call):
            return False
        name = first.targets[0].id
        reads = sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(then.value))
        if name not in self._locals or reads != 1 or not self._dies(name, then, guarded):
            return False
        if (reader := _first_reader(then.value, name)) is None:
            return False
        if not self._quiet(first.value):
            return False
        value, of_chain = first.value, False
        if self._norm_call(value):
            of_chain = self._act_call(reader) is not None
        elif self._conv_call(value):
            of_chain = self._norm_call(reader)
        if of_chain and isinstance(reader.func, ast.Attribute) and _is_name(reader.func.value, name):
            reader.func.value = value
        elif of_chain:
            reader.args[0] = value
        return of_chain

    def _quiet(self, call: ast.Call) -> bool:
        """Whether nothing but a chain is called in ``call``: what ``then`` looks up would be looked up before that."""
        while True:
            argument = call.args[0] if call.args else None
            if isinstance(argument, ast.Call) and (self._norm_call(call) or self._conv_call(call)):
                call = argument
                continue
            doing = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
            return (self._norm_call(call) or self._conv_call(call)) and not any(
                isinstance(node, doing) for each in (*call.args, *call.keywords) for node in ast.walk(each)
            )

    def _dies(self, name: str, then: ast.Assign | ast.Return, guarded: bool) -> bool:
        if self._reads[name] == 1:
            return True
        if guarded or isinstance(then, ast.Return):
            return not guarded
        return len(then.targets) == 1 and _is_name(then.targets[0], name)

    # ---- a chain into one call

    def visit_Call(self, node: ast.Call) -> ast.AST:
        act: ast.expr | str | None = None
        norm: ast.expr = node
        rest: list[ast.expr] = []
        keywords: list[ast.keyword] = []
        if (found := self._act_call(node)) and self._norm_call(found[1]):
            act, norm, rest, keywords = *found, node.keywords
        if not isinstance(norm, ast.Call) or not self._norm_call(norm):
            return self.generic_visit(node)
        x, conv = norm.args[0], None
        if isinstance(x, ast.Call) and self._conv_call(x):
            conv, x = x.func, x.args[0]
        if act is None and conv is None:
            return self.generic_visit(node)
        self.sites.append(Site(act, norm.func, conv))
        first = act if isinstance(act, ast.expr) else ast.Constant(act)
        arguments = [first, norm.func, conv or ast.Constant(None), self.visit(x), *rest]
        call = ast.Call(ast.Name("_ganfast_chain", ast.Load()), arguments, keywords)
        return ast.copy_location(call, node)

    def visit_For(self, node: ast.For) -> ast.AST:
        if self._roles.get(ast.unparse(node.iter)) != "modules" or self._guarded or not self._calls_in_turn(node):
            return self.generic_visit(node)
        self.sites.append(Site(None, node.iter, None, loop=True))
        call = ast.Call(ast.Name("_ganfast_joined", ast.Load()), [node.iter], [])
        node.iter = ast.copy_location(call, node.iter)
        return node

    def _calls_in_turn(self, loop: ast.For) -> bool:
        """Whether ``loop`` is ``for f in ...: x = f(x)``, and nothing reads f after it."""
        match loop:
            case ast.For(
                target=ast.Name(id=each),
                body=[ast.Assign(targets=[ast.Name(id=bound)], value=ast.Call(ast.Name(id=called), [ast.Name(id=read)], []))],
                orelse=[],
            ):
                return called == each != bound == read and self._reads[each] == 1 and {bound, each} <= self._locals
        return False

    def visit_Try(self, node: ast.Try) -> ast.AST:
        return self._visit_guarded(node)

    def visit_With(self, node: ast.With) -> ast.AST:
        return self._visit_guarded(node)

    def _visit_guarded(self, node: ast.AST) -> ast.AST:
        before, self._guarded = self._guarded, True
        visited = self.generic_visit(node)
        self._guarded = before
        return visited

    # ---- what a call is

    def _norm_call(self, node: ast.expr) -> bool:
        return self._called(node) == "norm"

    def _conv_call(self, node: ast.expr) -> bool:
        return self._called(node) == "conv"

    def _called(self, node: ast.expr) -> str | None:
        """The role of what ``node`` calls with one argument, where it does that."""
        match node:
            case ast.Call(func=func, args=[argument], keywords=[]) if _is_path(func) and not isinstance(argument, ast.Starred):
                return self._roles.get(ast.unparse(func))
        return None

    def _act_call(self, node: ast.expr) -> tuple[ast.expr | str, ast.expr, list[ast.expr]] | None:
        """What activates in ``node``, what it activates, and its further arguments, where it looks like an activation."""
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=[], keywords=[]) if name in METHODS:
                return name, value, []
            case ast.Call(func=func, args=[value, *rest], keywords=keywords) if (
                _is_path(func)
                and all(map(_is_plain, rest))
                and all(keyword.arg is not None and _is_plain(keyword.value) for keyword in keywords)
            ):
                last = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
                if last in FUNCTIONS or self._roles.get(ast.unparse(func)) == "act":
                    return func, value, rest
        return None


def _first_reader(expression: ast.expr, name: str) -> ast.Call | None:
    """The call that reads ``name`` as its first argument or its object, where ``expression`` evaluates that first of all."""
    while True:
        match expression:
            case ast.Call(func=ast.Attribute(value=value)) if not _is_path(value) or _is_name(value, name):
                following = value
            case ast.Call(func=func, args=[value, *_]) if _is_path(func):
                following = value
            case ast.BinOp(left=value) | ast.Attribute(value=value) | ast.Subscript(value=value):
                following = value
            case _:
                return None
        if _is_name(following, name):
            return expression if isinstance(expression, ast.Call) else None
        expression = following


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_path(node: ast.expr) -> bool:
    """Names, attributes and items of such: what can be looked up earlier or later without a difference."""
    match node:
        case ast.Name():
            return True
        case ast.Attribute(value=value):
            return _is_path(value)
        case ast.Subscript(value=value, slice=index):
            return _is_path(value) and _is_plain(index)
    return False


def _is_plain(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.UnaryOp(operand=operand):
            return _is_plain(operand)
        case ast.BinOp(left=left, right=right):
            return _is_plain(left) and _is_plain(right)
    return _is_path(node)
