"""Shell commands as people paste them, read and never run: what surrounds them is taken off, words are expanded.

The grammar is tree-sitter's bash. What a word stands for depends on a `Scope`: the variables that the text itself has
set. What cannot be known without running something stays in the value, named (`Value.unknown`).
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from golf.common.errors import ConfigError

if TYPE_CHECKING:
    from tree_sitter import Node

SHELLS = {
    "", "bash", "sh", "shell", "zsh", "console", "terminal", "shell-session", "shellsession", "text", "txt",
    "powershell", "ps1", "pwsh", "bat", "batch", "cmd", "env", "dotenv",
}  # fmt: skip
"""Labels of fenced blocks that hold commands."""

TELLING = re.compile(r"\b(torchrun|python\d?)\b|(^|\s)(export\s+)?[A-Za-z_]\w*=")
"""What a line that matters holds."""


@dataclass(frozen=True)
class Value:
    """A word after expansion; `unknown` names what in it cannot be known here, such as `$LAYERS` or `$(date)`."""

    text: str
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Value) -> Value:
        return Value(self.text + other.text, self.unknown + other.unknown)


@dataclass
class Scope:
    """What the text has set so far. `files` are those that a here-document wrote; `used` names what was expanded."""

    variables: dict[str, Value] = field(default_factory=dict)
    arrays: dict[str, list[Value]] = field(default_factory=dict)
    exported: set[str] = field(default_factory=set)
    exports_all: bool = False
    arguments: list[Value] | None = None
    folder: str | None = field(default_factory=os.getcwd)
    functions: dict[str, Node] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def inner(self, **changes: object) -> Scope:
        """A copy for a subshell, whose variables die with it."""
        copies = {"variables": dict(self.variables), "arrays": dict(self.arrays), "exported": set(self.exported)}
        return replace(self, **{**copies, **changes})  # type: ignore[arg-type]

    def set(self, name: str, value: Value, export: bool = False) -> None:
        """Assign a variable."""
        self.variables[name] = value
        if export or self.exports_all:
            self.exported.add(name)

    def find(self, name: str) -> Value | None:
        """The value of a variable or an argument, None when it is not set in this text."""
        self.used.add(name)
        if name.isdigit() and self.arguments is not None and 0 < int(name) <= len(self.arguments):
            return self.arguments[int(name) - 1]
        if name == "PWD" and self.folder is not None:
            return Value(self.folder)
        if name in self.arrays:
            return self.arrays[name][0] if self.arrays[name] else Value("")
        if name not in self.variables and name in ("HOME", "USER") and name in os.environ:
            return Value(os.environ[name])
        return self.variables.get(name)

    def enter(self, folder: Value) -> None:
        """Change the folder that $PWD names; after one that cannot be told, it is unknown."""
        if folder.unknown or (self.folder is None and not posixpath.isabs(folder.text)):
            self.folder = None
        else:
            self.folder = posixpath.normpath(posixpath.join(self.folder or "/", folder.text))


def cleaned(text: str) -> tuple[str, list[str]]:
    """Commands without what is copied along, and what was left out that may have mattered, in words.

    Fences and the prose around them go, prompts, CR LF, blanks behind a closing backslash, a notebook's `!`. Other
    shells' assignments and line ends are written as bash's.
    """
    notes: list[str] = []
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    text = _fenced(text, notes)
    if all(line.lstrip().startswith(">") for line in text.split("\n") if line.strip()):  # a quotation
        text = re.sub(r"(?m)^[ \t]*> ?", "", text)
    text = re.sub(r"(?m)^[ \t]*(?:[-*+]|\d+[.)])[ \t]+(?=`|[A-Za-z_]\w*=|torchrun\b|python)", "", text)
    text = re.sub(r"(?m)^(?:[A-Z][^`=\n]*[: ])?[ \t]*`([^`\n]+)`[.:,]?[ \t]*$", _code, text)
    text = re.sub(r"(?m)(\\|(?<=\s)[`^])[ \t]+$", r"\1", text)
    text = re.sub(r"\\\s*\Z", "", text)
    text = re.sub(r"(?m)(?<=\s)[`^]$", r"\\", text)  # PowerShell's and cmd's line ends
    text = re.sub(r"(?mi)(^|;)([ \t]*)\$env:(\w+)\s*=\s*", r"\1\2export \3=", text)
    text = re.sub(r"(?mi)^[ \t]*%env[ \t]+(\w+)[ \t]*=?[ \t]*", r"export \1=", text)
    text = re.sub(r"(?m)^[ \t]*%%\w+.*$", "", text)
    text = re.sub(r"(?m)^([ \t]*)[!%](?=\w)", r"\1", text)
    text = re.sub(r"=(<[A-Za-z][\w -]*>)(?=\s|$)", r"='\1'", text)  # a placeholder, not a redirection
    return _prompted(text, notes), notes


def _code(match: re.Match[str]) -> str:
    """A line of prose that ends in code is that code, when it says something."""
    return match[1] if TELLING.search(match[1]) else match[0]


def _fenced(text: str, notes: list[str]) -> str:
    """What stands within fences, when there are any: blocks labelled as something else than a shell are left out."""
    lines = text.split("\n")
    marks = [re.match(r"[ \t>*]*(?:```+|~~~+)[ \t]*([\w-]*)", line) for line in lines]
    if sum(mark is not None for mark in marks) < 2:
        return "\n".join(line for line, mark in zip(lines, marks, strict=True) if mark is None)
    kept: list[str] = []
    block: list[str] | None = None
    outside = False
    for line, mark in zip(lines, marks, strict=True):
        if mark is None:
            if block is not None:
                block.append(line)
            outside = outside or (block is None and TELLING.search(line) is not None)
        elif block is None:
            block, label = [], mark[1].lower()
        else:
            if label in SHELLS and (label or any(TELLING.search(one) for one in block)):
                kept += block
            elif any(TELLING.search(one) for one in block):
                notes.append(f"the block labelled {label} was not read")
            block = None
    if outside:
        notes.append("only what stands within the fences was read")
    return "\n".join(kept + (block or []))


def _prompted(text: str, notes: list[str]) -> str:
    """Without prompts; where there are some, lines without one are output, unless they continue a command."""
    prompt = re.compile(r"^\s*(?:\([\w.-]+\)\s*)?(?:(?:[\w.-]+@[\w.-]+[^$#%]*)[$#%]|[$%])[ \t]+")
    lines = text.split("\n")
    if not any(prompt.match(line) for line in lines):
        return text
    kept, continued = [], False
    for line in lines:
        if prompt.match(line):
            kept.append(prompt.sub("", line))
        elif continued:
            kept.append(re.sub(r"^> ", "", line))
        else:
            if TELLING.search(line):
                notes.append(f"taken for output, as it has no prompt: {line.strip()}")
            continue
        continued = kept[-1].endswith("\\")
    return "\n".join(kept)


def parse(text: str) -> tuple[Node, list[str]]:
    """The syntax tree of a text, and the lines of prose or output that had to go for it.

    Raises ConfigError naming a line that is no shell command though it sets or starts something.
    """
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    parser = Parser(Language(tree_sitter_bash.language()))
    root, gone = parser.parse(text.encode()).root_node, []
    while ends := _unseen_ends(root):
        for end in reversed(ends):
            text = f"{text.encode()[:end].decode()};{text.encode()[end:].decode()}"
        root = parser.parse(text.encode()).root_node
    if root.has_error:
        pieces = re.split(r"(?<!\\)\n", text)
        gone = [one for one in pieces if not TELLING.search(one) and parser.parse(one.encode()).root_node.has_error]
        root = parser.parse("\n".join(one for one in pieces if one not in gone).encode()).root_node
    if root.has_error:
        line = _first_error(root)
        raise ConfigError(
            f"cannot read this line: {line}\n"
            "is a quote, a bracket or a loop left open? a placeholder such as <seed> needs a value"
        )
    return root, [line.strip() for line in gone]


def _unseen_ends(node: Node) -> list[int]:
    """Where lines of several assignments end which the grammar takes for the beginning of the next line's command."""
    found = []
    for child, following in itertools.pairwise(node.children):
        gap = (node.text or b"")[child.end_byte - node.start_byte : following.start_byte - node.start_byte]
        if node.type == "command" and child.type == "variable_assignment" and re.search(rb"(?<!\\)\n", gap):
            found.append(child.end_byte)
    return sorted(found + [end for child in node.children for end in _unseen_ends(child)])


def _first_error(root: Node) -> str:
    """The line at which the grammar gave up."""
    node = root
    while inner := next((child for child in node.children if child.has_error or child.is_missing), None):
        node = inner
    lines = _text(root).split("\n")
    row = node.start_point[0] - root.start_point[0]
    return lines[min(row, len(lines) - 1)].strip() or lines[0].strip()


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def fields(node: Node, scope: Scope) -> list[Value]:
    """The words that one word of a command becomes: none, one, or several by splitting and braces."""
    kind = node.type
    if kind in ("simple_expansion", "expansion", "command_substitution"):
        many = _list(node, scope)
        if many is not None:
            return many
        found = value(node, scope)
        return [found] if found.unknown else [Value(part) for part in found.text.split()]
    if kind == "string" and len(node.named_children) == 1 and _text(node)[1:-1] == _text(node.named_children[0]):
        many = _list(node.named_children[0], scope)
        if many is not None:
            return many
    found = value(node, scope)
    inner = [child.type for child in node.children]
    if kind in ("concatenation", "brace_expression", "word") and "string" not in inner and "raw_string" not in inner:
        return [Value(text, found.unknown) for text in _braces(found.text)]
    return [found]


def _list(node: Node, scope: Scope) -> list[Value] | None:
    """What `${NAMES[@]}` and `$@` stand for; None for other words."""
    name = re.fullmatch(r"\$\{(\w+)\[[@*]\]\}|\$\{?([@*])\}?", _text(node).strip())
    if name is None:
        return None
    if name[1]:
        scope.used.add(name[1])
        return scope.arrays.get(name[1], [Value("", (_text(node),))])
    return scope.arguments if scope.arguments is not None else []


def _braces(text: str) -> list[str]:
    """`{1..3}` and `a{b,c}` written out."""
    match = re.search(r"\{(-?\d+)\.\.(-?\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if match is None:
        return [text]
    if match[3] is None:
        first, last = int(match[1]), int(match[2])
        step = 1 if last >= first else -1
        inside = [str(number) for number in itertools.islice(range(first, last + step, step), 1000)]
    else:
        inside = match[3].split(",")
    return [done for one in inside for done in _braces(text[: match.start()] + one + text[match.end() :])]


def value(node: Node, scope: Scope) -> Value:
    """What a node stands for as one text, quotes taken off and variables put in."""
    kind, text = node.type, _text(node)
    if kind in ("word", "variable_name", "special_variable_name", "number", "regex", "extglob_pattern"):
        return _literal(text, scope)
    if kind == "raw_string":
        return Value(text[1:-1])
    if kind == "ansi_c_string":
        escapes = {"n": "\n", "t": "\t", "r": "\r"}
        return Value(re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), text[2:-1]))
    if kind == "string_content":
        return Value(re.sub(r'\\([\\"$`\n])', lambda match: match[1].strip("\n"), text))
    if kind in ("string", "translated_string", "concatenation", "command_name", "array"):
        return _joined(node, scope)
    if kind == "simple_expansion":
        return _variable(text.strip(), text.strip()[1:], scope, text)
    if kind == "expansion":
        return _braced(node, scope)
    if kind == "command_substitution":
        return _substituted(text)
    return Value(text, (text,)) if kind.endswith(("_expansion", "_substitution")) else Value(text)


def _literal(text: str, scope: Scope) -> Value:
    """An unquoted text: escapes go, a leading ~ is the home folder."""
    if text == "~" or text.startswith("~/"):
        home = scope.find("HOME") or Value("~", ("~",))
        return home + _literal(text[1:], scope)
    return Value(re.sub(r"\\(.)", lambda match: match[1].strip("\n"), text, flags=re.DOTALL))


def _joined(node: Node, scope: Scope) -> Value:
    """The parts of a node one after the other, with the text between them, which the grammar leaves out in quotes."""
    start, raw = node.start_byte, node.text or b""
    done, at = Value(""), 0
    for child in node.children:
        if child.type in ('"', '$"') or (not child.is_named and node.type != "concatenation"):
            at = child.end_byte - start
            continue
        between = raw[at : child.start_byte - start].decode()
        done += Value(between)
        done += value(child, scope)
        at = child.end_byte - start
    return done


def _variable(shown: str, name: str, scope: Scope, text: str = "") -> Value:
    """A variable's value, after the blanks that the grammar counts to it within quotes."""
    blanks = text[: len(text) - len(text.lstrip())]
    found = scope.find(name)
    return Value(blanks) + (Value(shown, (shown,)) if found is None else found)


def _braced(node: Node, scope: Scope) -> Value:
    """`${NAME}`, with a default (`:-`, `-`, `:=`, `=`), a message (`?`) or an alternative (`+`); others are unknown."""
    text = _text(node)
    shown = text.strip()
    blanks = Value(text[: len(text) - len(text.lstrip())])
    match = re.fullmatch(r"\$\{(\w+|[@*])(?:\[(\d+)\])?(?:(:?)([-=?+])(.*))?\}", shown, flags=re.DOTALL)
    if match is None:
        return blanks + Value(shown, (shown,))
    name, index, colon, sign = match[1], match[2], match[3], match[4]
    if index is not None:
        items = scope.arrays.get(name, [])
        scope.used.add(name)
        return blanks + (items[int(index)] if int(index) < len(items) else Value(shown, (shown,)))
    found = scope.find(name)
    empty = found is None or (bool(colon) and found == Value(""))
    if sign in ("-", "=") and empty:
        operator = next(i for i, child in enumerate(node.children) if child.type == f"{colon}{sign}")
        rest = [child for child in node.children[operator + 1 :] if child.type != "}"]
        other = sum((value(child, scope) for child in rest), Value(""))
        if sign == "=":
            scope.set(name, other)
        return blanks + other
    if sign == "+":
        instead = match[5]
        return blanks + (Value("") if empty else Value(instead, tuple(re.findall(r"\$\w+", instead))))
    return blanks + (Value(shown, (shown,)) if found is None else found)


def _substituted(text: str) -> Value:
    """`$(seq 1 3)` is known without running anything; other commands' output is not."""
    match = re.fullmatch(r"\s*(?:\$\(|`)\s*seq((?:\s+-?\d+){1,3})\s*(?:\)|`)", text)
    if match is None:
        return Value(text.strip(), (text.strip(),))
    return Value(" ".join(_sequence([int(number) for number in match[1].split()])))


def _sequence(numbers: Sequence[int]) -> Iterator[str]:
    first, step, last = {1: (1, 1, numbers[0]), 2: (numbers[0], 1, numbers[-1])}.get(len(numbers), tuple(numbers))
    step = step or 1
    return (str(number) for number in itertools.islice(range(first, last + (1 if step > 0 else -1), step), 1000))
