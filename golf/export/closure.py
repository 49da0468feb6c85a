"""Which definitions a root module needs: followed from name to name through the modules that are bundled.

- A name leads to its definition; one that is imported, to the module that defines it. Annotations lead nowhere: they
  are kept where what they name is kept for another reason.
- A method of a class that is kept is needed if its name is an attribute's or a text's anywhere in what is kept, if it
  is a special one, if it overrides one of a class that is not bundled, or if its class is a protocol that instances
  are asked for.
- What a function imports is an option: it is followed if the run has loaded that module; if not, an ImportError stands
  for it and for what follows it in its block.
- A statement run for its effect goes with what it is called on or assigned to.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

from golf.common.errors import GolfError
from golf.export.module import Binding, Module, Piece
from golf.export.scopes import Use

NEVER = ("golf", "hydra", "omegaconf", "wandb", "pydantic", "rich")
"""What a file that runs alone does without."""
ABOVE = ("golf.cli.", "golf.launch.", "golf.export.")
"""Packages of golf that no run's computation needs."""

_FILE = "reads a file, and beside an exported one there is none"
LOOKS = {
    "open": _FILE, "__file__": _FILE, "read_text": _FILE, "read_bytes": _FILE, "fromfile": _FILE, "memmap": _FILE,
    "inspect": "looks at sources, and an exported file may have none",
}  # fmt: skip
"""What a user's code cannot do in a file that runs alone, with the reason."""


@dataclass(frozen=True)
class Target:
    """What a use stands for: a bundled definition, or what an import of another package binds."""

    module: Module | None
    name: str
    external: Binding | None = None


class Closure:
    """The pieces that a root module needs, itself included. loaded: modules that lazy imports may lead to. located: the
    full name of what a user's module imports by a name."""

    def __init__(self, root: Module, loaded: Collection[str], located: Callable[[str], str] = str) -> None:
        self.root, self.house, self.loaded, self.located = root, root.house, loaded, located
        self.modules: dict[str, Module] = {root.name: root}
        self.order: list[Module] = []
        """Modules in an order in which each stands behind those it imports."""
        self.kept: dict[int, Piece] = {}
        self.mentions: set[str] = set()
        self.lazy: list[str] = []
        self._uses: dict[int, list[Use]] = {}
        self._resolved: dict[int, tuple[Target | None, ast.expr]] = {}
        self._waiting: list[Piece] = []
        self._members: list[Piece] = []
        for piece in root.pieces:
            self._keep(piece)
        self._follow()
        self._arrange(root)
        for name in self.lazy:
            self._arrange(self.modules[name])
        self.order.remove(root)
        self.order.append(root)

    def __contains__(self, piece: Piece) -> bool:
        return id(piece) in self.kept

    def target(self, module: Module, use: Use) -> tuple[Target | None, ast.expr]:
        """What a use stands for, and the node that stands for it; None: a built-in, or nothing that is known."""
        node = use.node
        name_node = node.value if isinstance(node, ast.Attribute) else node
        bound = module.imports.get(use.name)
        if use.name in module.by_name:
            return Target(module, use.name), name_node
        if bound is None:
            return None, name_node
        return self._bound(module, bound, node, name_node, use.name)

    def lazily(self, module: Module, piece: Piece, use: Use) -> tuple[Target | None, ast.expr] | None:
        """The same of a name that an import within the piece binds; None: there is none that leads somewhere."""
        for node, _ in piece.found.lazy:
            bound = module.bindings(node).get(use.name)
            if bound is not None and self.leads(module, node):
                name_node = use.node.value if isinstance(use.node, ast.Attribute) else use.node
                return self._bound(module, bound, use.node, name_node, use.name)
        return None

    def leads(self, module: Module, node: ast.Import | ast.ImportFrom) -> bool:
        """Whether an import within a function is of a bundled module that the run has loaded."""
        return all(self._module_of(one) in self.loaded for one in module.bindings(node).values())

    def dead(self, piece: Piece) -> list[tuple[int, int]]:
        """Where the statements stand, in bytes of the source, that follow imports which lead nowhere."""
        spans = []
        for node, among in piece.found.lazy:
            later = among[among.index(node) + 1 :]
            if later and self.bundled(piece.module, node) and not self.leads(piece.module, node):
                spans.append((piece.module.span(later[0])[0], piece.module.span(later[-1])[1]))
        return spans

    def uses(self, piece: Piece) -> list[Use]:
        """The uses in a piece that are reached."""
        if id(piece) not in self._uses:
            self._uses[id(piece)] = self._reached(piece)
        return self._uses[id(piece)]

    def _reached(self, piece: Piece) -> list[Use]:
        dead, module = self.dead(piece), piece.module
        if not dead:
            return piece.found.uses
        places = [module.span(use.text or use.node)[0] for use in piece.found.uses]
        return [
            use
            for use, at in zip(piece.found.uses, places, strict=True)
            if not any(low <= at < high for low, high in dead)
        ]

    def bundled(self, module: Module, node: ast.Import | ast.ImportFrom) -> bool:
        """Whether an import is of a bundled package."""
        return any(one.module.partition(".")[0] in self.house for one in module.bindings(node).values())

    def _module_of(self, bound: Binding) -> str:
        """The module that a binding leads into."""
        whole = f"{bound.module}.{bound.attr}"
        return whole if bound.attr and whole in sys.modules else bound.module

    def _bound(
        self, module: Module, bound: Binding, node: ast.Name | ast.Attribute, name_node: ast.expr, name: str
    ) -> tuple[Target | None, ast.expr]:
        if bound.module.partition(".")[0] not in self.house:
            return Target(None, name, bound), name_node
        if bound.typing_only:
            return None, name_node
        if bound.attr is not None:
            found = self._definition(bound.module, bound.attr)
            if isinstance(found, Target):
                return found, name_node
        inner = bound.module if bound.attr is None else f"{bound.module}.{bound.attr}"
        if not isinstance(node, ast.Attribute):
            raise GolfError(
                f"{module.path}:{node.lineno}: '{name}' is a module that is used as a value: it cannot be exported\n"
                "import what is needed of it by name"
            )
        found = self._definition(inner, node.attr)
        if not isinstance(found, Target):
            raise GolfError(f"{module.path}:{node.lineno}: {inner} has no definition of '{node.attr}'")
        return found, node

    def _definition(self, module: str, name: str) -> Target | None:
        """Where a name of a module is defined; None: it is a module itself, or nothing."""
        if f"{module}.".startswith(ABOVE):
            raise GolfError(f"{module}.{name} belongs to golf's commands: a file that runs alone cannot have it")
        source = self._load(module)
        if name in source.by_name:
            return Target(source, name)
        bound = source.imports.get(name)
        if bound is None or bound.typing_only:
            return None
        if bound.module.partition(".")[0] not in self.house:
            return Target(None, name, bound)
        return None if bound.attr is None else self._definition(bound.module, bound.attr)

    def _load(self, name: str) -> Module:
        if name not in self.modules:
            self.modules[name] = Module.load(name, self.house, self.located)
        return self.modules[name]

    def _keep(self, piece: Piece) -> None:
        if id(piece) not in self.kept:
            self.kept[id(piece)] = piece
            self._waiting.append(piece)

    def _follow(self) -> None:
        while self._waiting:
            while self._waiting:
                self._read(self._waiting.pop())
            for member in self._members:
                if member not in self and self._wanted(member):
                    self._keep(member)
            for module in list(self.modules.values()):
                self._effects(module)

    def _effects(self, module: Module) -> None:
        kept = {name for piece in module.pieces if piece in self for name in piece.defines}
        for piece in module.pieces:
            if piece not in self and kept and piece.hangs_on and (kept & set(piece.hangs_on) or "" in piece.hangs_on):
                self._keep(piece)

    def _read(self, piece: Piece) -> None:
        found, module = piece.found, piece.module
        self.mentions |= found.mentions
        self._stands_alone(piece)
        kind = getattr(sys.modules.get(module.name), next(iter(piece.defines), ""), None)
        if getattr(kind, "_is_runtime_protocol", False):
            self.mentions |= {one.node.name for one in piece.members if isinstance(one.node, ast.FunctionDef)}
        self._members += piece.members
        for node, _ in found.lazy:
            for bound in module.bindings(node).values() if not self.bundled(module, node) else ():
                self._allowed(piece, Target(None, "", bound))
            if self.bundled(module, node) and self.leads(module, node):
                for bound in module.bindings(node).values():
                    name = self._module_of(bound)
                    if name not in self.lazy:
                        self._load(name)
                        self.lazy.append(name)
        for use in self.uses(piece):
            if use.annotation is not None:
                continue
            target, _ = self.resolve(piece, use)
            if target is None:
                continue
            if target.module is None:
                self._allowed(piece, target)
                continue
            for one in target.module.by_name[target.name]:
                self._keep(one)

    def resolve(self, piece: Piece, use: Use) -> tuple[Target | None, ast.expr]:
        """What a use in a piece stands for, and the node that stands for it."""
        if id(use) not in self._resolved:
            self._resolved[id(use)] = self.lazily(piece.module, piece, use) or self.target(piece.module, use)
        return self._resolved[id(use)]

    def _stands_alone(self, piece: Piece) -> None:
        """Raises GolfError for a user's code that looks at files, or at its own source."""
        if piece.module.name.startswith("golf.") or piece.module is self.root:
            return
        for node in ast.walk(piece.node):
            if not isinstance(node, ast.Name | ast.Attribute):
                continue
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in LOOKS and not (isinstance(node, ast.Name) and name in piece.module.by_name):
                raise GolfError(
                    f"{piece.module.path}:{node.lineno}: '{name}' {LOOKS[name]}: it cannot be exported\n"
                    "what the code needs must stand in the code"
                )

    def _allowed(self, piece: Piece, target: Target) -> None:
        assert target.external is not None
        package = target.external.module.partition(".")[0]
        if package in NEVER:
            raise GolfError(f"{piece.where}: needs {package}, which a file that runs alone does without")

    def _wanted(self, member: Piece) -> bool:
        node, owner = member.node, member.owner
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert owner is not None
        assert isinstance(owner.node, ast.ClassDef)
        name = node.name
        if name in self.mentions or (name.startswith("__") and name.endswith("__")):
            return True
        kind = getattr(sys.modules.get(member.module.name), owner.node.name, None)
        if not isinstance(kind, type):
            return True
        if getattr(kind, "_is_runtime_protocol", False):
            return True
        foreign = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in self.house]
        return any(name in vars(one) for one in foreign)

    def _arrange(self, module: Module) -> None:
        """Put a module behind those that it imports."""
        if module in self.order:
            return
        self.order.append(module)  # here already, so that a circle ends
        for name in module.static:
            if name in self.modules:
                self._arrange(self.modules[name])
        self.order.remove(module)
        self.order.append(module)
