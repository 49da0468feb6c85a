"""A walk over a shell text as a shell would run it: assignments, exports, loops, functions, here-documents, `bash -c`.

Nothing is run. Starts of trainings are noted with the variables that they see, and all else by name, so that the user
can be told of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from golf.common.errors import ConfigError
from golf.launch.compose.shell.launchers import LAUNCHER, launched
from golf.launch.compose.shell.text import Scope, Value, fields, parse, value

if TYPE_CHECKING:
    from tree_sitter import Node

WRAPPERS = {
    "nohup",
    "time",
    "env",
    "exec",
    "command",
    "sudo",
    "-E",
    "uv",
    "poetry",
    "pixi",
    "run",
    "setsid",
    "caffeinate",
}
MENTIONS = {
    "echo", "printf", "cat", "cp", "mv", "rm", "ls", "which", "type", "man", "git", "pip", "pip3", "grep", "rg", "sed",
    "awk", "head", "tail", "wc", "diff", "test", "[", "chmod", "touch", "alias", "kill", "pkill", "pgrep", "tee",
}  # fmt: skip
"""Commands whose words may look like a launch, and aren't."""

SHELL = re.compile(r"(ba|z|da|k)?sh")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
MOST = 256
"""Trainings that one text may start."""


@dataclass
class Training:
    """One start of a script: the variables it sees, its workers as WORLD_SIZE among them."""

    variables: dict[str, Value]
    script: str
    unexported: list[str] = field(default_factory=list)


class Walk:
    """The walk over a text, and what it came by."""

    def __init__(self, known: frozenset[str]) -> None:
        self.known = known
        self.started: list[Training] = []
        self.with_variables: list[tuple[str, dict[str, Value]]] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []
        self.assigned: dict[str, int] = {}
        self.looped: set[str] = set()
        self.depth = 0

    def text(self, text: str, scope: Scope) -> None:
        """Walk a text."""
        self.depth += 1
        if self.depth > 20:
            raise ConfigError("this text calls itself without end")
        root, gone = parse(text)
        self.ignored += gone
        self.each(root.named_children, scope)
        self.depth -= 1

    def each(self, nodes: Sequence[Node], scope: Scope) -> None:
        for node in nodes:
            self.statement(node, scope)

    def statement(self, node: Node, scope: Scope) -> None:
        """One statement of any kind."""
        kind = node.type
        if kind in ("program", "compound_statement", "do_group", "variable_assignments", "negated_command"):
            self.each(node.named_children, scope)
        elif kind == "subshell":
            self.each(node.named_children, scope.inner())
        elif kind == "list":
            left, *rest = node.named_children
            self.statement(left, scope)
            if node.children[1].type == "&&":
                self.each(rest, scope)
            else:
                self.ignored += [f"|| {_text(one)}" for one in rest]
        elif kind == "pipeline":
            self.each(node.named_children, scope.inner())
        elif kind == "variable_assignment":
            self.assign(node, scope)
        elif kind == "declaration_command":
            self.declare(node, scope)
        elif kind == "unset_command":
            for name in node.named_children:
                scope.variables.pop(_text(name), None)
                self.assigned.pop(_text(name), None)
                scope.exported.discard(_text(name))
        elif kind == "command":
            self.command(node, scope)
        elif kind == "redirected_statement":
            self.redirected(node, scope)
        elif kind == "for_statement":
            self.loop(node, scope)
        elif kind == "function_definition":
            scope.functions[_text(node.named_children[0])] = node.named_children[-1]
        elif kind not in ("comment", "heredoc_body"):
            self.undecided(node)

    def undecided(self, node: Node) -> None:
        """A condition or another kind of loop: an error where something hangs on it. Raises ConfigError."""
        body = _text(node)
        names = re.findall(r"(?:^|[\s;])(?:export\s+)?([A-Za-z_]\w*)=", body)
        if re.search(r"\btorchrun\b|\btrain\w*\.py\b", body) or self.known.intersection(names):
            raise ConfigError(
                f"{shortened(body)}\ngolf runs no conditions: give the command that it comes to, with its variables"
            )
        self.ignored.append(body)

    def assign(self, node: Node, scope: Scope, export: bool = False) -> None:
        """NAME=value, NAME+=value or NAME=(a b)."""
        name, given = self.assignment(node, scope)
        self.assigned[name] = len(self.started)
        last = node.named_children[-1]
        if last.type == "array":
            scope.arrays[name] = [one for item in last.named_children for one in fields(item, scope)]
            scope.used.add(name)
            return
        if "+=" in [child.type for child in node.children]:
            given = scope.variables.get(name, Value("")) + given
        scope.set(name, given, export)

    def assignment(self, node: Node, scope: Scope) -> tuple[str, Value]:
        """The name and the value of an assignment."""
        children = node.named_children
        name = _text(children[0])
        before = name in scope.used
        text = value(children[-1], scope) if len(children) > 1 else Value("")
        if not before:
            scope.used.discard(name)  # NAME="${NAME:-9}" is no use of it
        return name, text

    def declare(self, node: Node, scope: Scope) -> None:
        """export, declare, local, readonly."""
        words = [_text(child) for child in node.children]
        export = words[0] == "export" or any(re.fullmatch(r"-\w*x\w*", word) for word in words)
        for child in node.named_children:
            if child.type == "variable_assignment":
                self.assign(child, scope, export and "-n" not in words)
            elif child.type == "variable_name" and export:
                scope.exported.add(_text(child))
            elif child.type not in ("word",):
                self.ignored.append(_text(node))

    def loop(self, node: Node, scope: Scope) -> None:
        """for NAME in words; do …; done. Raises ConfigError when a training hangs on words that cannot be known."""
        name, *words, body = node.named_children
        found = [one for word in words for one in fields(word, scope)]
        if not words:
            found = scope.arguments or []
        unknown = [part for one in found for part in one.unknown]
        if (unknown or not found) and re.search(r"\btorchrun\b|\btrain\w*\.py\b", _text(body)):
            raise ConfigError(
                f"for {_text(name)} in {' '.join(map(_text, words))}: "
                f"what it goes over is not in this text\nwrite the words themselves"
            )
        for one in found:
            self.assigned.setdefault(_text(name), len(self.started))
            self.looped.add(_text(name))
            scope.set(_text(name), one)
            self.statement(body, scope)

    def redirected(self, node: Node, scope: Scope) -> None:
        """A statement with redirections: a here-document is what a shell reads, or becomes a file."""
        body, *redirects = node.named_children
        documents, target = [], None
        for redirect in redirects:
            if redirect.type == "heredoc_redirect":
                for child in redirect.named_children:
                    if child.type == "heredoc_body":
                        documents.append(_text(child))
                    elif child.type == "file_redirect":
                        target = value(child.named_children[-1], scope).text
                    elif child.type == "pipeline":
                        self.statement(child, scope)
            elif redirect.type == "file_redirect" and redirect.named_children:
                target = value(redirect.named_children[-1], scope).text
        if body.type != "command":
            self.statement(body, scope)
        elif documents and target and _name(body) in ("cat", "tee"):
            scope.files[target] = documents[-1]
        else:
            self.command(body, scope, documents[-1] if documents else None)

    def command(self, node: Node, scope: Scope, document: str | None = None) -> None:
        """A simple command with the variables written before it."""
        given: dict[str, Value] = {}
        words: list[Value] = []
        for child in node.named_children:
            if child.type == "variable_assignment":
                name, text = self.assignment(child, scope)
                given[name] = text
            elif child.type == "command_name":
                words += fields(child.named_children[0], scope) if child.named_children else []
            elif not child.type.endswith("redirect"):
                words += fields(child, scope)
        self.call(words, given, scope, _text(node), document)

    def call(
        self, words: list[Value], given: dict[str, Value], scope: Scope, shown: str, document: str | None = None
    ) -> None:
        """A command by its words."""
        if not words:
            return
        name, texts = words[0].text.rsplit("/", 1)[-1], [word.text for word in words]
        child = scope.inner(exported=scope.exported | set(given), variables={**scope.variables, **given})
        if words[0].text in scope.functions:
            self.depth += 1
            if self.depth > 20:
                raise ConfigError(f"{name}() calls itself without end")
            inner = scope if not given else child
            before, inner.arguments = inner.arguments, words[1:]
            self.statement(scope.functions[words[0].text], inner)
            inner.arguments = before
            self.depth -= 1
        elif name in ("cd", "pushd") and len(words) > 1:
            scope.enter(words[1])
            self.ignored.append(shown)
        elif name == "set":
            self.set(words[1:], scope)
        elif name == "setenv" and len(words) > 2:
            self.take(texts[1], words[2], scope)
        elif name in ("source", ".") and len(words) > 1 and texts[1] in scope.files:
            self.text(scope.files[texts[1]], scope)
        elif name in ("true", ":", "exit", "wait", "sleep", "echo", "printf"):
            pass
        elif not self.inside(words, given, child, document) and not self.launch(words, given, scope, shown):
            if given and name not in MENTIONS and not LAUNCHER.fullmatch(name):
                self.with_variables.append((shown, given))
            else:
                self.ignored.append(shown)

    def take(self, name: str, text: Value, scope: Scope) -> None:
        """A variable that another shell's command exports."""
        self.assigned[name] = len(self.started)
        scope.set(name, text, export=True)

    def set(self, words: Sequence[Value], scope: Scope) -> None:
        """bash's set -a; cmd's set NAME=value; fish's set -x NAME value. bash's other switches change nothing here."""
        texts = [word.text for word in words]
        if texts and (match := ASSIGNMENT.fullmatch(" ".join(texts))):
            self.take(match[1], Value(match[2], tuple(part for word in words for part in word.unknown)), scope)
        elif len(texts) > 2 and re.fullmatch(r"-\w*x\w*|--export", texts[0]) and texts[1].isidentifier():
            self.take(texts[1], words[2], scope)
        elif texts and re.fullmatch(r"[-+][a-z]*a[a-z]*", texts[0]):
            scope.exports_all = texts[0].startswith("-")
        elif texts[:1] == ["--"]:
            scope.arguments = list(words[1:])

    def inside(self, words: list[Value], given: dict[str, Value], scope: Scope, document: str | None) -> bool:
        """Walk a command that is a word of this one, as in bash -c "…"; a file or here-document that a shell reads."""
        texts = [word.text for word in words]
        if texts[0].rsplit("/", 1)[-1] in MENTIONS:
            return False
        for index, word in enumerate(words):
            name = word.text.rsplit("/", 1)[-1]
            if SHELL.fullmatch(name) or name in ("sbatch", "source"):
                rest = words[index + 1 :]
                self.before(words[:index], scope)
                flag = next((i for i, one in enumerate(rest) if re.fullmatch(r"-\w*c", one.text)), None)
                if flag is not None and len(rest) > flag + 1:
                    scope.arguments = rest[flag + 3 :]
                    self.text(rest[flag + 1].text, scope)
                    return True
                files = [i for i, one in enumerate(rest) if one.text in scope.files]
                if files:
                    scope.arguments = rest[files[0] + 1 :]
                    self.text(scope.files[rest[files[0]].text], scope)
                    return True
                if document is not None:
                    scope.arguments = rest
                    self.text(document, scope)
                    return True
                return False
        if texts[0] in scope.files or texts[0].removeprefix("./") in scope.files:
            scope.arguments = words[1:]
            self.text(scope.files.get(texts[0]) or scope.files[texts[0].removeprefix("./")], scope)
            return True
        if texts[0] == "eval":
            self.text(" ".join(texts[1:]), scope)
            return True
        carried = [text for text in texts[1:] if " " in text and re.search(r"\.py\b", text)]
        if carried and not LAUNCHER.fullmatch(texts[0].rsplit("/", 1)[-1]):  # ssh host "…", tmux new-session "…"
            self.before([word for word in words if word.text not in carried], scope)
            self.text(carried[-1], scope)
            return True
        return False

    def before(self, words: Sequence[Value], scope: Scope) -> None:
        """What stands before a command within a line: assignments (env A=1, docker -e A=1, --export=A=1), wrappers."""
        wrappers = []
        for word in words:
            text = word.text
            exported = text.removeprefix("--export=").split(",") if text.startswith("--export=") else [text]
            found = [match for one in exported if (match := ASSIGNMENT.fullmatch(one))]
            for match in found:
                scope.variables[match[1]] = Value(match[2], word.unknown)
                scope.exported.add(match[1])
            if not found and text not in WRAPPERS:
                wrappers.append(text)
        if wrappers:
            self.ignored.append(" ".join(wrappers) + " …")

    def launch(self, words: list[Value], given: dict[str, Value], scope: Scope, shown: str) -> bool:
        """Note a start of a training; False when this command is none."""
        texts = [word.text for word in words]
        first = texts[0].rsplit("/", 1)[-1]
        at = next((i for i, text in enumerate(texts) if LAUNCHER.fullmatch(text.rsplit("/", 1)[-1])), None)
        if at is None and first not in MENTIONS:  # ./train_gpt.py, uv run train_gpt.py
            at = next((i for i, text in enumerate(texts) if text.endswith(".py")), None)
        if first == "env" and at is None:  # env A=1 B=2, and no command
            self.before(words[1:], scope)
            self.assigned |= {m[1]: len(self.started) for text in texts if (m := ASSIGNMENT.fullmatch(text))}
            return True
        if at is None or (first in MENTIONS and at > 0):
            return False
        launch = launched(words[at:])
        if launch.script is None or not launch.trains:
            return False
        inner = scope.inner(exported=scope.exported | set(given), variables={**scope.variables, **given})
        self.before(words[:at], inner)
        seen = dict(inner.variables)
        plain = [name for name in seen if name not in inner.exported]
        if launch.workers is not None:
            seen["WORLD_SIZE"] = launch.workers
        self.started.append(Training(seen, launch.script, plain))
        if len(self.started) > MOST:
            raise ConfigError(f"more than {MOST} trainings")
        self.notes += launch.notes
        return True


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def _name(node: Node) -> str:
    return next((_text(child) for child in node.named_children if child.type == "command_name"), "")


def shortened(text: str) -> str:
    """A command on one line of moderate length."""
    line = re.sub(r"\s*\\?\n\s*", " ", text.strip())
    return line if len(line) <= 72 else line[:71] + "…"
