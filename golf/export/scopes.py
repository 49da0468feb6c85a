"""Which names of a statement are its module's: the scopes of Python, read from the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_UNREAD = ("no_grad", "inference_mode", "contextmanager", "wraps", "cache", "lru_cache", "setter", "abstractmethod")
"""Decorators that take a function as it is, annotations unread."""
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Use:
    """A name that is not local where it stands. node: the name, or the attribute `name.attr`. hidden: names that are
    local there, which nothing that stands for it may have."""

    name: str
    node: ast.Name | ast.Attribute
    hidden: frozenset[str]
    annotation: ast.expr | None = None
    """The whole annotation that it is part of, if it is part of one."""
    text: ast.JoinedStr | None = None
    """The f-string that it stands in: before Python 3.12 its own place in the source is not known then."""


@dataclass
class Found:
    """What a piece of code mentions. lazy: imports within functions, each with the statements that it stands among.
    mentions: names of attributes, and texts that may be such. docstrings: the constants that are."""

    uses: list[Use] = field(default_factory=list)
    lazy: list[tuple[ast.ImportFrom | ast.Import, list[ast.stmt]]] = field(default_factory=list)
    mentions: set[str] = field(default_factory=set)
    annotations: list[tuple[ast.AST, ast.expr]] = field(default_factory=list)
    """Annotations with the argument, function or assignment that they are of."""


class _Scope:
    """A function's, class's or comprehension's: what is local in it."""

    def __init__(self, names: set[str], is_class: bool = False) -> None:
        self.names, self.is_class = names, is_class


class Reader:
    """Reads one statement, or a member of a class. house: whether a module's definitions are bundled, so that what a
    function imports of it is no local name."""

    def __init__(self, house: frozenset[str]) -> None:
        self.house, self.found = house, Found()
        self._scopes: list[_Scope] = []
        self._annotation: ast.expr | None = None
        self._text: ast.JoinedStr | None = None

    def read(self, node: ast.AST, inside: ast.ClassDef | None = None) -> Found:
        """What the statement mentions; inside: the class that it is a member of."""
        if inside is not None:
            self._scopes.append(_Scope(_bound(inside.body, self.house), is_class=True))
        self._visit(node)
        return self.found

    def _visit(self, node: ast.AST | None) -> None:
        match node:
            case None:
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._function(node)
            case ast.Lambda():
                self._arguments(node.args, quiet=True)
                self._within(_Scope(_parameters(node.args)), [node.body])
            case ast.ClassDef():
                self._all([*node.decorator_list, *node.bases, *(word.value for word in node.keywords)])
                self._within(_Scope(_bound(node.body, self.house), is_class=True), _without_docstring(node.body))
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._visit(node.generators[0].iter)
                bound = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
                values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
                rest = [part for g in node.generators for part in (g.target, *g.ifs)]
                iters = [g.iter for g in node.generators[1:]]
                self._within(_Scope(bound), [*rest, *iters, *values])
            case ast.AnnAssign():
                self._annotated(node, node.annotation, loud=False)
                self._all([node.target, node.value])
            case ast.Import() | ast.ImportFrom():
                pass  # told of by the list of statements that it stands among
            case ast.Attribute():
                self.found.mentions.add(node.attr)
                if isinstance(node.value, ast.Name):
                    self._use(node.value.id, node)
                else:
                    self._visit(node.value)
            case ast.Name():
                self._use(node.id, node)
            case ast.JoinedStr() if self._text is None:
                self._text = node
                self._rest(node)
                self._text = None
            case ast.Constant():
                if isinstance(node.value, str) and node.value.isidentifier():
                    self.found.mentions.add(node.value)
            case _:
                self._rest(node)

    def _rest(self, node: ast.AST) -> None:
        for _, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                self._visit(value)
            elif isinstance(value, list):
                self._statements(value)
                self._all([one for one in value if isinstance(one, ast.AST)])

    def _statements(self, body: Sequence[object]) -> None:
        for one in body:
            if isinstance(one, ast.Import | ast.ImportFrom) and self._scopes:
                self.found.lazy.append((one, [other for other in body if isinstance(other, ast.stmt)]))

    def _all(self, nodes: Sequence[ast.AST | None]) -> None:
        for node in nodes:
            self._visit(node)

    def _within(self, scope: _Scope, nodes: Sequence[ast.AST]) -> None:
        self._scopes.append(scope)
        self._statements(nodes)
        self._all(nodes)
        self._scopes.pop()

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Annotations are not evaluated; a decorator that is no mere name may read them (Triton's, torch.library's)."""
        self._all(node.decorator_list)
        loud = any(not isinstance(one, ast.Name) and _last(one) not in _UNREAD for one in node.decorator_list)
        self._arguments(node.args, quiet=not loud)
        if node.returns is not None:
            self._annotated(node, node.returns, loud)
        self._within(_Scope(_parameters(node.args) | _bound(node.body, self.house)), _without_docstring(node.body))

    def _arguments(self, args: ast.arguments, quiet: bool) -> None:
        self._all([*args.defaults, *args.kw_defaults])
        for one in _each(args):
            if one.annotation is not None:
                self._annotated(one, one.annotation, not quiet)

    def _annotated(self, owner: ast.AST, annotation: ast.expr, loud: bool) -> None:
        if not loud:
            self.found.annotations.append((owner, annotation))
            self._annotation = annotation
        self._visit(annotation)
        self._annotation = None

    def _use(self, name: str, node: ast.Name | ast.Attribute) -> None:
        hidden: set[str] = set()
        for depth, scope in enumerate(reversed(self._scopes)):
            if scope.is_class and depth:
                continue  # a class's names are not those of its functions
            hidden |= scope.names
        if self._scopes and self._scopes[-1].is_class:
            self.found.mentions.add(name)  # in a class's own statements a name may be a member's
        if name not in hidden:
            self.found.uses.append(Use(name, node, frozenset(hidden), self._annotation, self._text))


def _last(node: ast.expr) -> str:
    """The last name of a decorator, before its arguments."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _each(args: ast.arguments) -> Iterator[ast.arg]:
    yield from (*args.posonlyargs, *args.args, *args.kwonlyargs)
    yield from filter(None, (args.vararg, args.kwarg))


def _parameters(args: ast.arguments) -> set[str]:
    return {one.arg for one in _each(args)}


def _without_docstring(body: Sequence[ast.stmt]) -> Sequence[ast.stmt]:
    return [one for one in body if not is_docstring(one)]


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is a mere text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _bound(body: Sequence[ast.stmt], house: frozenset[str]) -> set[str]:
    """The names that statements bind in their own scope, but for those imported from a bundled package."""
    names: set[str] = set()
    outer: set[str] = set()
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
                waiting += node.decorator_list
                continue
            case ast.Lambda():
                continue
            case ast.Global() | ast.Nonlocal():
                outer |= set(node.names)
            case ast.Import():
                names |= {(one.asname or one.name).partition(".")[0] for one in node.names}
            case ast.ImportFrom():
                if (node.module or "").partition(".")[0] not in house:
                    names |= {one.asname or one.name for one in node.names}
            case ast.Name(ctx=ast.Store() | ast.Del()):
                names.add(node.id)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.add(name)
            case ast.MatchMapping(rest=str(name)):
                names.add(name)
        if isinstance(node, _COMPREHENSIONS):  # its own names are local to it, a walrus's are not
            waiting += [one.target for one in ast.walk(node) if isinstance(one, ast.NamedExpr)]
            continue
        waiting += ast.iter_child_nodes(node)
    return names - outer
