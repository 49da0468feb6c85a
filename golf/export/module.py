"""One module as its statements: what each defines, what it refers to, and the members of its classes."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from golf.common.errors import GolfError
from golf.export.scopes import Found, Reader, is_docstring

_BLOCKS = ("body", "orelse", "finalbody")


@dataclass(eq=False)
class Piece:
    """A statement of a module, or a member of a class: what is kept or left out as one. defines: names that it binds in
    the module. hangs_on: names that it belongs to, as a registration does. tail: texts that stand behind it."""

    module: Module
    node: ast.stmt
    defines: tuple[str, ...] = ()
    hangs_on: tuple[str, ...] = ()
    owner: Piece | None = None
    tail: list[ast.stmt] = field(default_factory=list)

    @cached_property
    def found(self) -> Found:
        """What it mentions; of a class without the members that may be left out."""
        reader = Reader(self.module.house)
        if self.owner is not None:
            assert isinstance(self.owner.node, ast.ClassDef)
            return reader.read(self.node, self.owner.node)
        if not isinstance(self.node, ast.ClassDef):
            return reader.read(self.node)
        left = {id(one.node) for one in self.members}
        kept = [one for one in self.node.body if id(one) not in left]
        shell = ast.ClassDef(**{**dict(ast.iter_fields(self.node)), "body": kept})
        return reader.read(shell)

    @cached_property
    def members(self) -> list[Piece]:
        """The functions of a class, which may be left out one by one."""
        if not isinstance(self.node, ast.ClassDef):
            return []
        return [
            Piece(self.module, one, owner=self)
            for one in self.node.body
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    @property
    def where(self) -> str:
        """File and line, for a message."""
        return f"{self.module.path}:{self.node.lineno}"


@dataclass(frozen=True)
class Binding:
    """What an import binds: a module (attr None), or a name of one. typing_only: only where types are checked."""

    module: str
    attr: str | None
    typing_only: bool = False


class Module:
    """A module's source, taken apart. house: the top-level packages that are bundled. located: the full name of what
    it imports by a name."""

    def __init__(
        self, name: str, source: bytes, path: str, house: frozenset[str], package: bool = False,
        located: Callable[[str], str] = str,
    ) -> None:  # fmt: skip
        self.name, self.source, self.path, self.house, self.package = name, source, path, house, package
        self.located = located
        self.tree = ast.parse(source)
        self.cut: list[tuple[int, int, bytes]] = []
        """What of the source goes, whoever needs the rest: bytes from, to, and what stands there instead."""
        self.pieces: list[Piece] = []
        self.imports: dict[str, Binding] = {}
        self.dotted: dict[str, list[str]] = {}
        """By the name that it binds, what `import a.b` imports."""
        self.static: list[str] = []
        """Modules that are imported with it, in their order."""
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts = starts
        self._checked: set[str] = set()
        self._gone: list[int] = []
        """In which lines checks stood."""
        if name.startswith("golf."):
            self._leave_out_checks(self.tree)
        for node in self.tree.body:
            self._take(node)
        self.by_name: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            for one in piece.defines:
                self.by_name.setdefault(one, []).append(piece)

    @classmethod
    def load(cls, name: str, house: frozenset[str], located: Callable[[str], str]) -> Module:
        """Find a module by its full name and read it; `located` is of a user's. Raises GolfError."""
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise GolfError(f"{name}: there is no source of this module to export")
        return cls(
            name, Path(spec.origin).read_bytes(), spec.origin, house, spec.submodule_search_locations is not None,
            str if name.startswith("golf.") else located,
        )  # fmt: skip

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    def at(self, line: int, column: int) -> int:
        """The byte where a place in the source is; lines count from 1."""
        return self._starts[line - 1] + column

    def span(self, node: ast.stmt | ast.expr | ast.arg) -> tuple[int, int]:
        """The bytes of a node, a definition's decorators included."""
        first = min([node, *getattr(node, "decorator_list", [])], key=lambda one: one.lineno)
        begin = self.at(first.lineno, first.col_offset)
        if first is not node:
            begin = self.source.rindex(b"@", 0, begin)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return begin, self.at(node.end_lineno, node.end_col_offset)

    def bindings(self, node: ast.Import | ast.ImportFrom, typing_only: bool = False) -> dict[str, Binding]:
        """What an import binds, by name."""
        if isinstance(node, ast.Import):
            return {
                one.asname or one.name.partition(".")[0]: Binding(
                    self.located(one.name if one.asname else one.name.partition(".")[0]), None, typing_only
                )
                for one in node.names
            }
        base = self.located(node.module or "")
        if node.level:
            parts = self.name.split(".") if self.package else self.name.split(".")[:-1]
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
        return {one.asname or one.name: Binding(base, one.name, typing_only) for one in node.names}

    def _leave_out_checks(self, node: ast.AST) -> None:
        """Take out golf's own checks of a config: the run's has passed them."""
        for name in _BLOCKS:
            among = getattr(node, name, None)
            if not isinstance(among, list):
                continue
            left = [one for one in among if not _is_check(one)]
            bare = all(map(is_docstring, left))
            for one in among:
                if _is_check(one):
                    low, high = self.span(one)
                    needed = bare and one is among[-1] and self.source[low : low + 4] != b"elif"
                    self.cut.append((low, high, b"pass" if needed else b""))
                    self._gone.append(one.lineno)
                    left += [ast.copy_location(ast.Pass(), one)] * needed
            setattr(node, name, left)
            self._checked |= {
                n.id for gone in set(among) - set(left) for n in ast.walk(gone) if isinstance(n, ast.Name)
            }
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):  # none holds a statement
                self._leave_out_checks(child)
        if isinstance(node, ast.FunctionDef):
            lines = range(node.lineno, (node.end_lineno or 0) + 1)
            if any(line in lines for line in self._gone):
                self._leave_out_unread(node)

    def _leave_out_unread(self, function: ast.FunctionDef) -> None:
        """Take out what a function found out for its checks alone."""
        read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        for block in [getattr(node, name) for node in ast.walk(function) for name in _BLOCKS if hasattr(node, name)]:
            for one in list(block) if isinstance(block, list) else ():
                match one:
                    case ast.Assign(targets=[ast.Name(id=name)]) if name in self._checked - read and len(block) > 1:
                        block.remove(one)
                        self.cut.append((*self.span(one), b""))

    def _take(self, node: ast.stmt) -> None:
        match node:
            case ast.ImportFrom(module="__future__"):
                return
            case ast.Import() | ast.ImportFrom():
                bound = self.bindings(node)
                self.imports |= bound
                self.static += [name for to in bound.values() for name in (to.module, f"{to.module}.{to.attr}")]
                for alias in node.names if isinstance(node, ast.Import) else ():
                    self.static.append(alias.name)
                    if "." in alias.name and alias.asname is None:
                        self.dotted.setdefault(alias.name.partition(".")[0], []).append(alias.name)
            case ast.If() if _checks_types(node.test):
                for one in node.body:
                    if isinstance(one, ast.Import | ast.ImportFrom):
                        self.imports |= self.bindings(one, typing_only=True)
            case ast.Expr() if is_docstring(node):
                if self.pieces and self.pieces[-1].node.end_lineno in (node.lineno - 1, node.lineno):
                    self.pieces[-1].tail.append(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                roots = [first for one in node.decorator_list if isinstance(callee(one), ast.Attribute)
                         and (first := root(one)) is not None]  # fmt: skip
                own = tuple(one for one in roots if one not in self.imports)
                self.pieces.append(Piece(self, node, (node.name,), own))
            case _:
                self._take_other(node)

    def _take_other(self, node: ast.stmt) -> None:
        """Assignments, and what is run for its effect: it belongs to what it is called on or assigned to."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                self.imports |= self.bindings(inner)
        names = [n.id for n in _targets(node) if isinstance(n, ast.Name)]
        names += [
            n.name
            for n in ast.walk(node)
            if isinstance(node, ast.If | ast.Try) and isinstance(n, ast.FunctionDef | ast.ClassDef)
        ]
        hangs: tuple[str, ...] = ()
        if not names:
            roots = {root(node.value)} if isinstance(node, ast.Expr) else {root(one) for one in _targets(node)}
            hangs = tuple(one for one in roots if one is not None and one not in self.imports)
            hangs = hangs or ("",)
        self.pieces.append(Piece(self, node, tuple(dict.fromkeys(names)), hangs))


def _is_check(node: ast.AST) -> bool:
    """Whether a statement does nothing but raise ConfigError, or not."""
    match node:
        case ast.If():
            named = any(isinstance(one, ast.NamedExpr) for one in ast.walk(node.test))
            return not named and all(_is_check(one) or _refuses(one) for one in [*node.body, *node.orelse])
        case ast.For():
            return all(map(_is_check, [*node.body, *node.orelse]))
    return False


def _refuses(node: ast.AST) -> bool:
    match node:
        case ast.Raise(exc=ast.Call(func=ast.Name(id="ConfigError"))):
            return True
    return False


def callee(node: ast.expr) -> ast.expr:
    """What is called, in however many calls of its results."""
    return callee(node.func) if isinstance(node, ast.Call) else node


def root(node: ast.AST) -> str | None:
    """The name that a chain of calls and attributes begins with."""
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _targets(node: ast.stmt) -> list[ast.expr]:
    """What a statement, or one within it, assigns to, tuples taken apart."""
    found: list[ast.expr] = []
    for one in ast.walk(node):
        if isinstance(one, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        targets = (
            one.targets
            if isinstance(one, ast.Assign)
            else [one.target]
            if isinstance(one, ast.AnnAssign | ast.AugAssign | ast.For)
            else []
        )
        for target in targets:
            found += target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return found


def _checks_types(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))
