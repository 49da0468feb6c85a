"""The closure of a root module as one file: names made distinct, imports gathered, every definition in its order."""

from __future__ import annotations

import ast
import builtins
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from golf.export.closure import Closure, Target
from golf.export.module import Binding, Module, Piece
from golf.export.scopes import is_docstring

_Edit = tuple[int, int, bytes]
Definition = tuple[str, str]
_READS = frozenset(("custom_op", "triton_op", "register_kernel", "infer_schema", "jit"))
"""What reads annotations when a module is run: where one of these is mentioned, they stay."""
_FIELDS = frozenset(("ClassVar", "InitVar"))
"""What a dataclass reads in them."""


class Bundle:
    """The text of a closure. bare: without annotations that nothing reads, to be packed."""

    def __init__(self, closure: Closure, bare: bool = False) -> None:
        self.closure, self.bare = closure, bare
        self._loud = {id(one) for one in closure.modules.values() if any(_READS & p.found.mentions for p in one.pieces)}
        self._hidden: dict[Definition, set[str]] = defaultdict(set)
        self._externals: dict[tuple[str, str | None, str], str] = {}
        self._asked: set[tuple[str, str | None, str]] = set()
        self._dotted: set[str] = set()
        for piece in closure.kept.values():
            self._look(piece)
        self.flat = self._names()

    def text(self) -> str:
        """The file."""
        sections = []
        for module in self.closure.order:
            pieces = [self._piece(one) for one in module.pieces if one in self.closure]
            if pieces:
                head = [] if module is self.closure.root else [f"# {'-' * 8} {module.name}: {module.summary}"]
                sections.append("\n\n\n".join([*head, *pieces]) if head else "\n\n\n".join(pieces))
        root = self.closure.root
        docstring = ast.get_docstring(root.tree, clean=False)
        top = [f'"""{docstring}"""'] if docstring else []
        whole = "\n\n".join([*top, "from __future__ import annotations", self._imports()])
        text = "\n\n\n".join([whole, *sections]) + "\n"
        return re.sub(r"[ \t]+\n", "\n", re.sub(r"\n{4,}", "\n\n\n", text))

    def _look(self, piece: Piece) -> None:
        """Which names are hidden where each definition is used, and which imports are needed."""
        for use in self.closure.uses(piece):
            if use.annotation is not None and not self._survives(piece, use.annotation):
                continue
            target, _ = self.closure.resolve(piece, use)
            if target is None:
                continue
            if target.module is not None:
                self._hidden[target.module.name, target.name] |= use.hidden
            else:
                self._asked.add(_key(target))
                self._dotted |= set(piece.module.dotted.get(target.name, ()))

    def _survives(self, piece: Piece, annotation: ast.expr) -> bool:
        """Whether an annotation stays: all that it names is in the file."""
        if self.bare and id(piece.module) not in self._loud and not _FIELDS & {*map(_last, ast.walk(annotation))}:
            return False
        for use in piece.found.uses:
            if use.annotation is not annotation:
                continue
            target, _ = self.closure.resolve(piece, use)
            if target is None:
                if not hasattr(builtins, use.name):
                    return False
            elif target.module is not None:
                if not any(one in self.closure for one in target.module.by_name[target.name]):
                    return False
            elif target.external is not None and target.external.typing_only:
                return False
        return True

    def _names(self) -> dict[Definition, str]:
        """A name for every definition, its own where that is free. Imports come first: theirs stay."""
        taken: set[str] = set(dir(builtins))
        for key in sorted(self._asked, key=str):
            module, _, name = key
            same = [other for other, given in self._externals.items() if other[:2] == key[:2] and given == name]
            free = name if same or name not in taken else _free(name, module, taken, set())
            self._externals[key] = free
            taken.add(free)
        flat: dict[Definition, str] = {}
        for module_ in reversed(self.closure.order):
            for piece in module_.pieces:
                for name in piece.defines if piece in self.closure else ():
                    if (module_.name, name) in flat:
                        continue
                    hidden = self._hidden[module_.name, name]
                    free = name if name not in taken | hidden else _free(name, module_.name, taken, hidden)
                    flat[module_.name, name] = free
                    taken.add(free)
        return flat

    def _imports(self) -> str:
        plain = [f"import {name}" for name in self._dotted]
        named: dict[str, set[str]] = defaultdict(set)
        for (module, attr, _), name in self._externals.items():
            if attr is None:
                plain.append(f"import {module}" if module == name else f"import {module} as {name}")
            else:
                named[module].add(attr if attr == name else f"{attr} as {name}")
        whole = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
        return "\n".join([*sorted(set(plain)), *whole])

    def _piece(self, piece: Piece) -> str:
        module = piece.module
        begin, end = module.span(piece.node)
        begin = _with_comments(module.source, begin)
        edits = list(self._edits(piece))
        for member in piece.members:
            if member in self.closure:
                edits += self._edits(member)
            else:
                low, high = module.span(member.node)
                edits.append(
                    (
                        _line_start(module.source, _with_comments(module.source, low)),
                        _line_end(module.source, high) + 1,
                        b"",
                    )
                )
        if isinstance(piece.node, ast.ClassDef) and not _left(piece, self.closure):
            edits.append((end, end, b"\n    pass"))
        text = _edited(module.source, begin, _line_end(module.source, end), edits)
        foreign = module.name.partition(".")[0] not in ("golf", self.closure.root.name)
        if isinstance(piece.node, ast.ClassDef) and foreign:
            text += f'\n\n\n{self.flat[module.name, piece.node.name]}.__module__ = "{module.name}"'
        for one in piece.tail:
            low, high = module.span(one)
            text += "\n" + _edited(module.source, low, high, [(low, high, _first_sentence(one))])
        return text.rstrip()

    def _edits(self, piece: Piece) -> Iterable[_Edit]:
        module, found = piece.module, piece.found
        for low, high, new in module.cut:
            end = _line_end(module.source, high)
            start = low if new else _line_start(module.source, _with_comments(module.source, low))
            yield start, end if new else end + 1, new
        gone = set()
        for owner, annotation in found.annotations:
            if not self._survives(piece, annotation):
                gone.add(id(annotation))
                of_class = isinstance(piece.node, ast.ClassDef) and owner in piece.node.body
                yield _without(module, owner, annotation, of_class)
        for node, among in found.lazy:
            if self.closure.bundled(module, node):
                yield from self._lazy(module, node, among)
        texts: dict[ast.JoinedStr, dict[str, str]] = defaultdict(dict)
        for use in self.closure.uses(piece):
            if use.annotation is not None and id(use.annotation) in gone:
                continue
            target, stands = self.closure.resolve(piece, use)
            name = None if target is None else self._name(target)
            if name is None:
                continue
            if use.text is not None:
                texts[use.text][ast.unparse(stands)] = name
                continue
            low, high = module.span(stands)
            if module.source[low:high] != name.encode():
                yield low, high, name.encode()
        for text, names in texts.items():
            if any(name != other for name, other in names.items()):
                low, high = module.span(text)
                yield low, high, _in_braces(module.source[low:high].decode(), names).encode()
        body = piece.node
        for one in ast.walk(body):
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if one is body and piece.owner is None:
                    yield from self._renamed(module, one)
                yield from _shorter(module, one)

    def _name(self, target: Target) -> str | None:
        if target.module is None:
            return self._externals[_key(target)]
        return self.flat.get((target.module.name, target.name))

    def _renamed(self, module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterable[_Edit]:
        name = self.flat[module.name, node.name]
        if name != node.name:
            begin = module.at(node.lineno, node.col_offset)
            at = module.source.index(node.name.encode(), begin + (6 if isinstance(node, ast.ClassDef) else 4))
            yield at, at + len(node.name.encode()), name.encode()

    def _lazy(self, module: Module, node: ast.Import | ast.ImportFrom, among: list[ast.stmt]) -> Iterable[_Edit]:
        """A lazy import goes; one that leads nowhere, and what follows it in its block, is an error."""
        low, high = module.span(node)
        if self.closure.leads(module, node):
            if len(among) == 1:
                yield low, high, b"pass"
            else:
                yield _line_start(module.source, low), _line_end(module.source, high) + 1, b""
            return
        names = ", ".join(sorted({one.module for one in module.bindings(node).values()}))
        end = module.span(among[-1])[1]
        yield low, _line_end(module.source, end), f'raise ImportError("{names}: the run did not use it")'.encode()


def _in_braces(text: str, names: Mapping[str, str]) -> str:
    """An f-string's source with other names in its expressions."""
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(name)}\b" for name in sorted(names, key=len, reverse=True)))
    parts, depth, at = [], 0, 0
    for found in re.finditer(r"\{\{|\}\}|[{}]", text):
        if depth == 0 and found.group() in ("{{", "}}"):
            continue
        step = found.group().count("{") - found.group().count("}")
        if (depth == 0 and step > 0) or (depth > 0 and depth + step == 0):
            piece = text[at : found.start()]
            parts.append(pattern.sub(lambda one: names[one.group()], piece) if depth else piece)
            at = found.start()
        depth += step
    return "".join([*parts, text[at:]])


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _key(target: Target) -> tuple[str, str | None, str]:
    bound = target.external
    assert isinstance(bound, Binding)
    return bound.module, bound.attr, target.name


def _free(name: str, module: str, taken: set[str], hidden: set[str]) -> str:
    """Another name for what a module calls so."""
    *_, last = module.split(".")
    front = "_" if name.startswith("_") else ""
    bare = name.lstrip("_") or "rule"
    found = f"{last.capitalize() if bare[:1].isupper() else front + last}{'' if bare[:1].isupper() else '_'}{bare}"
    while found in taken or found in hidden:
        found += "_"
    return found


def _left(piece: Piece, closure: Closure) -> bool:
    """Whether a class keeps anything in its body."""
    assert isinstance(piece.node, ast.ClassDef)
    members = {id(one.node): one for one in piece.members}
    return any(members[id(one)] in closure if id(one) in members else True for one in piece.node.body)


def _line_start(source: bytes, at: int) -> int:
    return source.rfind(b"\n", 0, at) + 1


def _line_end(source: bytes, at: int) -> int:
    """The end of the line, where nothing but a comment stands behind `at`; else `at`."""
    end = source.find(b"\n", at)
    end = len(source) if end < 0 else end
    rest = source[at:end].strip()
    return end if not rest or rest.startswith(b"#") else at


def _with_comments(source: bytes, begin: int) -> int:
    """Where the comments begin that stand right above a statement, in lines of their own."""
    start = _line_start(source, begin)
    while start > 0:
        above = _line_start(source, start - 1)
        if not source[above:start].strip().startswith(b"#"):
            break
        start = above
        begin = above + len(source[above:]) - len(source[above:].lstrip(b" "))
    return begin


def _edited(source: bytes, begin: int, end: int, edits: Iterable[_Edit]) -> str:
    parts, at = [], begin
    for low, high, new in sorted(set(edits)):
        if low < at or high > end + 1:
            continue  # within what is left out
        parts += [source[at:low], new]
        at = high
    parts.append(source[at:end])
    return b"".join(parts).decode()


def _without(module: Module, owner: ast.AST, annotation: ast.expr, in_class: bool) -> _Edit:
    """Leave an annotation out; a field of a class needs one."""
    low, high = module.span(annotation)
    if isinstance(owner, ast.AnnAssign):
        if owner.value is not None and not in_class:
            return module.span(owner.target)[1], high, b""
        return low, high, b"object"
    if isinstance(owner, ast.arg):
        return module.at(owner.lineno, owner.col_offset) + len(owner.arg.encode()), high, b""
    return module.source.rindex(b"->", 0, low) - 1, high, b""


def _shorter(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterable[_Edit]:
    """Of a docstring its first sentence."""
    if node.body and is_docstring(node.body[0]):
        low, high = module.span(node.body[0])
        yield low, high, _first_sentence(node.body[0])


def _first_sentence(node: ast.stmt) -> bytes:
    assert isinstance(node, ast.Expr)
    assert isinstance(node.value, ast.Constant)
    text = " ".join(str(node.value.value).strip().partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.:;]) (?=[A-Z`])", text)[0].rstrip(":;")
    quoted = sentence.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{quoted + " " if quoted.endswith(chr(34)) else quoted}"""'.encode()
