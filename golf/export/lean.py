"""What the packed form leaves out beside what a closure does: read from the whole file, where each name stands once.

- The texts of errors, but for those that tell of the data (`DataError`): where one is raised the lines say why.
- Calls of functions in which only checks stood, and those functions: a call that gives back its argument is that.
- Then definitions, methods and imports that nothing names any more, by the rules of golf.export.closure.
"""

from __future__ import annotations

import ast
import builtins
import importlib
from collections.abc import Iterator
from typing import Any

from golf.export.module import callee, root

_TOLD = "DataError"
_PURE = ("len", "isinstance", "min", "max", "sum", "sorted", "set", "list", "tuple", "float", "int", "str", "type")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def lean(tree: ast.Module) -> ast.Module:
    """The same program in less; the tree is changed."""
    errors = _errors(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            _wordless(node, errors)
    _Idle(tree).visit(tree)
    while _swept(tree):
        pass
    return ast.fix_missing_locations(tree)


def _errors(tree: ast.Module) -> set[str]:
    """Names of exceptions that are made of a text alone: the file's own that say nothing else, and built-in ones."""
    own = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = {name for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, Exception)}
    found -= own.keys()
    for name, node in own.items():  # a base stands before what inherits
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        if bases & found and not any(isinstance(one, Function) for one in node.body):
            found.add(name)
    return found - {_TOLD}


def _wordless(node: ast.Raise, errors: set[str]) -> None:
    match node.exc:
        case ast.Call(func=ast.Name(id=name), args=[text], keywords=[]) as call if name in errors and _is_text(text):
            call.args = []


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.JoinedStr() | ast.Constant(value=str()):
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _is_text(left) or _is_text(right)
    return False


class _Idle(ast.NodeTransformer):
    """Leaves out calls of functions that do nothing, or give back an argument."""

    def __init__(self, tree: ast.Module) -> None:
        local = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        local |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.inside: ast.AST | None = None
        self.given = {
            name: at
            for name, node in functions.items()
            if name not in local and not node.decorator_list and (at := _gives_back(node)) is not None
        }

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id=name), args=given) if name in self.given and self._pure(node):
                return given[self.given[name]] if 0 <= self.given[name] < len(given) else node
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        match node.value:
            case ast.Call(func=ast.Name(id=name)) as call if name in self.given and self._pure(call):
                return ast.Pass()
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        around, self.inside = self.inside, node
        self.generic_visit(node)
        self.inside = around
        return node

    def visit_For(self, node: ast.For) -> ast.stmt:
        """A loop over such calls alone goes too, if nothing reads what it has bound."""
        was_idle = all(map(_is_idle, node.body))
        self.generic_visit(node)
        if was_idle or self.inside is None or not all(map(_is_idle, [*node.body, *node.orelse])):
            return node
        bound = {one.id for one in ast.walk(node.target) if isinstance(one, ast.Name)}
        read = {n.id for n in ast.walk(self.inside) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        return node if bound & read or not _is_pure(node.iter, ("items", "values")) else ast.Pass()

    def _pure(self, call: ast.Call) -> bool:
        return all(_is_pure(one, ()) for one in [*call.args, *(word.value for word in call.keywords)])


def _gives_back(node: ast.FunctionDef) -> int | None:
    """Which argument a function gives back, doing nothing else; -1: None."""
    body = [one for one in node.body if not _is_idle(one)]
    match body:
        case []:
            return -1
        case [ast.Return(value=ast.Name(id=name))]:
            names = [one.arg for one in node.args.args]
            return names.index(name) if name in names else None
    return None


def _is_idle(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_pure(node: ast.expr, methods: tuple[str, ...]) -> bool:
    """Whether an expression has no effect but its value."""
    for one in ast.walk(node):
        match one:
            case ast.Call(func=ast.Name(id=name)) if name in _PURE:
                pass
            case ast.Call(func=ast.Attribute(attr=name), args=[]) if name in methods:
                pass
            case ast.Call() | ast.NamedExpr() | ast.Await() | ast.Yield() | ast.YieldFrom():
                return False
    return True


class _Named:
    """What code names: names that it loads, and attributes and texts that may be a method's."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.mentions: set[str] = set()

    def read(self, node: ast.AST, of_class: bool = False) -> None:
        """of_class: a class's own statement, where a name may be a member's."""
        for one in ast.walk(node):
            match one:
                case ast.Name(id=name):
                    self.names.add(name)
                    if of_class:
                        self.mentions.add(name)
                case ast.Attribute(attr=name):
                    self.mentions.add(name)
                case ast.Constant(value=str(text)):
                    self.mentions.add(text)


class _Sweep:
    """What stays of a file: the statements that are run for their effect, and what they name, and what that names."""

    def __init__(self, tree: ast.Module) -> None:
        self.own = {name: one for one in tree.body for name in _defined(one)}
        self.imports = imports(tree)
        self.named, self.kept = _Named(), set[int]()
        waiting: list[tuple[ast.stmt, ast.ClassDef | None]] = [(one, None) for one in tree.body]
        while now := [(one, owner) for one, owner in waiting if self._stays(one, owner)]:
            taken = {id(one) for one, _ in now}
            self.kept |= taken
            waiting = [(one, owner) for one, owner in waiting if id(one) not in taken]
            for one, owner in now:
                if isinstance(one, ast.ClassDef) and owner is None:
                    waiting += [(part, one) for part in one.body]
                    self._class(one)
                else:
                    self.named.read(one, owner is not None and not isinstance(one, Function))

    def _class(self, node: ast.ClassDef) -> None:
        for part in [*node.bases, *node.keywords, *node.decorator_list]:
            self.named.read(part)
        if any("runtime_checkable" in ast.unparse(one) for one in node.decorator_list):
            self.named.mentions |= {one.name for one in node.body if isinstance(one, Function)}

    def _stays(self, node: ast.stmt, owner: ast.ClassDef | None) -> bool:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return True
        if owner is None:
            names, does = _defined(node), list(_does(node))
            roots = {root(one) for one in does} & self.own.keys()
            if (names | roots) & self.named.names:
                return True
            return not roots and (not names or (bool(does) and isinstance(node, ast.Assign)))
        if not isinstance(node, Function):
            return True
        name = node.name
        special = name.startswith("__") and name.endswith("__")
        return special or name in self.named.mentions or self._overrides(owner, name)

    def _overrides(self, node: ast.ClassDef, name: str) -> bool:
        """Whether a base that is not the file's has an attribute of this name, or may have it, and may call it."""
        for base in node.bases:
            plain = base.value if isinstance(base, ast.Subscript) else base
            inner = self.own.get(plain.id) if isinstance(plain, ast.Name) else None
            try:
                if (
                    self._overrides(inner, name)
                    if isinstance(inner, ast.ClassDef)
                    else hasattr(self._value(plain), name)
                ):
                    return True
            except (ImportError, AttributeError, TypeError):
                return True
        return False

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name) if name in self.imports:
                module, attribute = self.imports[name]
                found = importlib.import_module(module)
                return found if attribute is None else getattr(found, attribute)
            case ast.Name(id=name):
                return getattr(builtins, name)
            case ast.Attribute(value=inner, attr=name):
                return getattr(self._value(inner), name)
        raise TypeError(f"line {node.lineno}: a base that is no name")


def _swept(tree: ast.Module) -> bool:
    """Leave out what nothing that stays names; whether anything was."""
    sweep, before = _Sweep(tree), len(tree.body)
    tree.body, less = [one for one in tree.body if id(one) in sweep.kept], False
    for one in list(tree.body):
        if isinstance(one, ast.ClassDef):
            parts = [part for part in one.body if id(part) in sweep.kept]
            less |= len(parts) < len(one.body)
            one.body = parts or [ast.Pass()]
        if isinstance(one, ast.Import | ast.ImportFrom) and getattr(one, "module", "") != "__future__":
            names = [to for to in one.names if (to.asname or to.name).partition(".")[0] in sweep.named.names]
            less |= len(names) < len(one.names)
            one.names = names
            if not names:
                tree.body.remove(one)
    return less or len(tree.body) < before


def imports(tree: ast.Module) -> dict[str, tuple[str, str | None]]:
    """What names of imports stand for: a module, or an attribute of one."""
    found: dict[str, tuple[str, str | None]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {to.asname or to.name: (node.module or "", to.name) for to in node.names}
        elif isinstance(node, ast.Import):
            for to in node.names:
                first = to.name.partition(".")[0]
                found[to.asname or first] = to.name if to.asname else first, None
    return found


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement of the file binds."""
    if isinstance(node, ast.ClassDef | Function):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr):
        return set()
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)} | {
        one.name for one in ast.walk(node) if isinstance(one, ast.ClassDef | Function)
    }


def _does(node: ast.stmt) -> Iterator[ast.expr]:
    """What a statement calls or assigns to for an effect on it."""
    match node:
        case ast.Expr(value=value):
            yield value
        case ast.Assign(targets=targets):
            yield from (one for one in targets if not isinstance(one, ast.Name))
        case ast.FunctionDef(decorator_list=decorators) | ast.ClassDef(decorator_list=decorators):
            yield from (one for one in decorators if isinstance(callee(one), ast.Attribute))
