"""A user's own yaml files: what of them would be passed over or lost, and where one sets a key."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from golf.common.errors import ConfigError
from golf.common.paths import conf_dir
from golf.launch.compose.options import (
    CONFIG_NAME,
    DISCOVERED,
    GLOBAL,
    groups,
    is_discovered,
    package_dirs,
    primary,
    roots,
)
from golf.launch.compose.own_folder import files

_NOTHING = object()


@dataclass(frozen=True)
class OptionFile:
    """A yaml of the user's: where it is, what it is an option of, the package of its header, its content.

    Scalars of `content` are texts: it serves to know which keys there are.
    """

    path: Path
    shown: str
    group: str
    package: str | None
    content: dict[str, Any] = field(repr=False)

    def sets(self, key: str) -> bool:
        """Whether the file itself sets a dotted key of the composed config."""
        return self._at(key) is not _NOTHING

    def sets_list(self, key: str) -> bool:
        """Whether it sets that key to a list."""
        return isinstance(self._at(key), list)

    @property
    def tops(self) -> dict[str, Any]:
        """What it sets at the top of the config, but for its own place."""
        if self.package in (None, "_group_"):
            return {}
        if self.package == "_global_":
            return {name: node for name, node in self.content.items() if name not in ("defaults", "hydra")}
        top, *inner = self.package.split(".")
        node: Any = {name: value for name, value in self.content.items() if name != "defaults"}
        for part in reversed(inner):
            node = {part: node}
        return {top: node}

    def _at(self, key: str) -> Any:
        package = self.group.replace("/", ".") if self.package is None else self.package
        place = "" if package == "_global_" else f"{package}."
        if place.startswith(f"{key}."):
            return self.content
        if not key.startswith(place):
            return _NOTHING
        node: Any = self.content
        for part in re.sub(r"\[\d+\]", "", key[len(place) :]).split("."):
            if not isinstance(node, dict) or part not in node:
                return _NOTHING
            node = node[part]
        return node


NOT_READ = "is not read, as options end in .yaml; rename it"
PROJECT = (".git", "pyproject.toml", "setup.py", "requirements.txt", "outputs", "multirun")
"""What says of a --config-dir that it is a whole project, whose yaml files need not be meant for golf."""


def check_folders(config_dirs: Sequence[Path], named: Iterable[tuple[str, str]] = ()) -> None:
    """Look for files that would be passed over without a word; `named` are the (group, option)s of the command line.

    Raises ConfigError for a file whose ending is not .yaml, one that has the name of golf's own, and a folder that is
    almost called like a group; in a project only where the file is named, or is golf's by what it holds.
    """
    known, chosen = set(groups()) | set(GLOBAL), set(named)
    for root in own_roots(config_dirs):
        packaged = root not in config_dirs
        yamls = list(_yaml_files(root))
        places = {path: path.parent.relative_to(root).as_posix() for path in yamls}
        holds_options = any(place in known or is_discovered(place) for place in places.values())
        if root.name in known and any(root.glob("*.yaml")) and not holds_options:
            raise ConfigError(f"--config-dir {root.name}: give the folder above it, the one that holds {root.name}/")
        for path, folder in places.items():
            own = is_discovered(folder)
            if (what := DISCOVERED.get(folder)) is not None and not packaged:
                raise ConfigError(
                    f"{_shown(path, root)}: a {what}'s options lie one folder deeper, {folder}/NAME/{path.name}"
                )
            trouble = _trouble(path, root, folder, known) or doubled(path, root, config_dirs)
            if trouble and folder not in known and not own and any(group == folder for group, _ in chosen):
                continue  # a group of the user's own
            meant = (folder, path.stem) in chosen or (
                not packaged and (own or (holds_options and _is_golfs(path, root)))
            )
            if trouble and meant:
                raise ConfigError(f"{_shown(path, root)}: {trouble}")


def _trouble(path: Path, root: Path, folder: str, known: Iterable[str]) -> str | None:
    """Why a yaml of a --config-dir would be passed over, and what to do about it; None for one that would not."""
    if path.suffix != ".yaml":
        return NOT_READ if folder in known or is_discovered(folder) else None
    if is_discovered(folder) and path.stem == "none":
        return f"none is the option that turns {folder} off; rename yours"
    if folder not in known and not is_discovered(folder) and (near := _nearest(folder, known)):
        return f"there is no group '{folder}' (did you mean '{near}'?); rename the folder"
    return None


def doubled(path: Path, root: Path, config_dirs: Sequence[Path]) -> str | None:
    """Why a yaml would be passed over for one of its name in another root of options; None for one that would not."""
    name = path.relative_to(root)
    if name.parent == Path() and name.stem != CONFIG_NAME:
        return None  # no option
    for other in roots(config_dirs):
        if other == root:
            return None
        if (first := other / name).is_file() and first.read_bytes() != path.read_bytes():
            whose = "golf" if other == conf_dir() else str(other)
            return f"{whose} has a file of this name, which would be read instead; rename yours"
    return None


def own_roots(config_dirs: Sequence[Path]) -> list[Path]:
    """Where options are looked for that are not golf's."""
    return roots(config_dirs)[1:]


def _is_golfs(path: Path, root: Path) -> bool:
    """Whether a yaml of a folder with options is taken for one: any of a folder of nothing else, and in a project those
    that have a package, a component or another one's settings."""
    if root != Path.cwd() and not any((root / name).exists() for name in PROJECT):
        return True
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(r"^(#\s*@package\s|(_target_|defaults)\s*:)", text, re.MULTILINE) is not None


def _yaml_files(root: Path) -> Iterator[Path]:
    return (path for path in files(root) if path.suffix.lower() in (".yaml", ".yml"))


def _nearest(folder: str, known: Iterable[str]) -> str | None:
    top, _, rest = folder.partition("/")
    tops = [*DISCOVERED, "model", "hydra"]
    if rest and (first := difflib.get_close_matches(top.lower(), tops, n=1, cutoff=0.8)):
        folder = f"{first[0]}/{rest}"
        if first[0] != top and (folder in known or first[0] in DISCOVERED):
            return folder  # techniques/mine
    alike = sorted(name for name in known if name.count("/") == folder.count("/"))
    near = difflib.get_close_matches(folder.lower(), alike, n=1, cutoff=0.8)
    return near[0] if near else None


def _shown(path: Path, root: Path) -> str:
    """A file of the user's as the user would call it: mine/recipe/x.yaml; of a package with the package's name."""
    inner = Path(root.parent.name, root.name) if root in package_dirs() else Path(root.name)
    return str(inner / path.relative_to(root))


def strayed(group: str, option: str, config_dirs: Sequence[Path]) -> str:
    """A clause on a file of the user's that is called like a missing option but lies elsewhere; or nothing."""
    for root in own_roots(config_dirs):
        for path in _yaml_files(root):
            if path.stem == option:
                there = path.parent == root / group
                why = NOT_READ if there else f"does not lie in {Path(root.name, group)}/"
                return f"\n{_shown(path, root)} {why}"
    return ""


def check_option(group: str, option: str, config_dirs: Sequence[Path]) -> list[OptionFile]:
    """The user's file of an option and those of the user's that its defaults lead to, each checked.

    Raises ConfigError naming the file that cannot be read, is of the wrong form, or sets what would be lost.
    """
    return list(_reached(group, option, config_dirs, []))


def _reached(
    group: str, option: str, config_dirs: Sequence[Path], above: list[Path], golfs: bool = False
) -> Iterator[OptionFile]:
    """What it inherits from first: of two that set a key the last wins. With `golfs` also golf's own files."""
    for root in roots(config_dirs) if golfs else own_roots(config_dirs):
        path = root / group / f"{option.removesuffix('.yaml')}.yaml"
        if not path.is_file():
            continue
        shown = f"golf's {group}/{path.name}" if root == conf_dir() else _shown(path, root)
        if (trouble := doubled(path, root, config_dirs)) is not None:
            raise ConfigError(f"{shown}: {trouble}")
        if path in above:
            raise ConfigError(f"{shown}: its defaults lead back to itself")
        found = read_option(path, shown, group)
        if root != conf_dir():
            check_content(found)
        for next_group, next_option in _defaults(found):
            yield from _reached(next_group, next_option, config_dirs, [*above, path], golfs)
        yield found


def read_option(path: Path, shown: str, group: str) -> OptionFile:
    """A yaml of the user's. Raises ConfigError for one that is no UTF-8 or no mapping, naming the line where it can."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{shown}: cannot be read ({error.strerror})") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise ConfigError(f"{shown}: looks like UTF-16; save it as UTF-8")
    if data.startswith(codecs.BOM_UTF8):
        raise ConfigError(f"{shown}: begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{shown}: line {line} is not UTF-8; save the file as UTF-8") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = None if node is None else _plain(node)
        _refuse_switches(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{shown}: {_yaml_reason(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{shown}: a node of it holds itself") from error
    if content is None:
        raise ConfigError(f"{shown}: is empty; write {{}} for an option that sets nothing")
    if not isinstance(content, dict):
        raise ConfigError(f"{shown}: lines of the form `key: value` are needed, and this is a {_kind(content)}")
    return OptionFile(path, shown, group, _package(text), content)


def _plain(node: yaml.Node) -> Any:
    """A yaml node as dicts, lists and texts. Raises yaml.YAMLError for a tag, and for a key that is none or twice."""
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not taken", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value)
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=key.start_mark)
            if name in found and name != "<<":
                raise yaml.MarkedYAMLError(problem=f"the key '{name}' stands twice", problem_mark=key.start_mark)
            found[name] = _plain(value)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return None if node.tag == "tag:yaml.org,2002:null" else node.value


def _refuse_switches(node: yaml.Node | None) -> None:
    """Raises yaml.YAMLError for an option in a file's defaults that yaml reads as true or false: on, off, yes, no."""
    tops = node.value if isinstance(node, yaml.MappingNode) else []
    lists = [value for key, value in tops if key.value == "defaults" and isinstance(value, yaml.SequenceNode)]
    entries = [entry for found in lists for entry in found.value if isinstance(entry, yaml.MappingNode)]
    for _, value in (pair for entry in entries for pair in entry.value):
        if value.tag == "tag:yaml.org,2002:bool":
            raise yaml.MarkedYAMLError(
                problem=f"yaml reads {value.value} as true or false; write the option in quotes, '{value.value}'",
                problem_mark=value.start_mark,
            )


def _yaml_reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "'\\t'" in problem:
        problem = "a tab stands where blanks are needed"
    if problem.startswith("but "):
        problem = f"{getattr(error, 'context', '')} {problem}"
    return problem if mark is None else f"line {mark.line + 1}: {problem}"


def _kind(content: Any) -> str:
    return "list" if isinstance(content, list) else "single value"


def _package(text: str) -> str | None:
    """The package of a yaml's header, as Hydra reads it: in the first lines that are not empty."""
    for line in filter(None, map(str.strip, text.splitlines())):
        match = re.match(r"#\s*@(\w+)\s+(\S+)", line)
        if match is None:
            return None
        if match[1] == "package":
            return match[2]
    return None


def check_content(file: OptionFile) -> None:
    """Raises ConfigError for a file whose settings would not reach the config, or be lost in it."""
    own = file.group.split("/")[0]
    if own in GLOBAL and file.package != "_global_":
        raise ConfigError(f"{file.shown}: its first line must be '# @package _global_', or its keys reach nothing")
    node = file.content.get("hydra", {})
    if not isinstance(node, dict) or not all(isinstance(node.get(name, {}), dict) for name in ("launcher", "sweeper")):
        raise ConfigError(f"{file.shown}: hydra, its launcher and its sweeper hold settings by name, and are no values")
    tops = file.tops
    for name, inner in tops.items():
        if own not in (*GLOBAL, name) and isinstance(inner, dict) and "_target_" in inner:
            raise ConfigError(f"{file.shown}: sets {name}._target_, which is another group's\n"
                              f"choose it by defaults: [override /{name}: …]")  # fmt: skip
    for name in set(primary().after(own)).intersection(tops) - {own}:
        inner = tops[name]
        key = f"{name}.{next(iter(inner))}" if isinstance(inner, dict) and inner else name
        instead = f"make an option of it, {name}/mine.yaml" if name in ("budget", "sweep") else "set it in a recipe"
        raise ConfigError(f"{file.shown}: sets {key}, which {name}=… sets again after it\n"
                          f"give it on the line, {key}=…, or {instead}")  # fmt: skip
    for group in groups() if file.package == "_global_" else ():
        if file.sets_list(key := group.replace("/", ".")):
            raise ConfigError(f"{file.shown}: {key} is a list, where a component is needed\n"
                              f"choose one by defaults: [override /{group}: …]")  # fmt: skip


def _defaults(file: OptionFile) -> list[tuple[str, str]]:
    """The (group, option) pairs that a file's defaults name. Raises ConfigError for a list of another form."""
    given = file.content.get("defaults", [])
    if not isinstance(given, list):
        raise ConfigError(f"{file.shown}: defaults must be a list, defaults: [{given or '…'}]")
    known, found = set(groups()), []
    for entry in given:
        if not isinstance(entry, str | dict):
            raise ConfigError(f"{file.shown}: defaults: an entry is an option, or a group: option; this one is {entry}")
        for word, chosen in entry.items() if isinstance(entry, dict) else [(None, entry)]:
            key = "" if word is None else re.sub(r"^(override|optional)\s+", "", word).split("@")[0].strip()
            if key and not key.startswith("/") and f"{file.group}/{key}" not in known and key in known:
                raise ConfigError(f"{file.shown}: defaults: write 'override /{key}: {chosen}', with a slash")
            again = key.startswith("/") and file.group in GLOBAL and key[1:] in primary().groups
            if again and not str(word).startswith("override"):
                raise ConfigError(f"{file.shown}: defaults: write 'override {key}: {chosen}', with the word override")
            group = key[1:] if key.startswith("/") else f"{file.group}/{key}" if key else file.group
            for option in chosen if isinstance(chosen, list) else [chosen]:
                if isinstance(option, str) and option != "_self_":
                    name = option.removeprefix("optional ").split("@")[0].strip()
                    if name.startswith("/"):
                        group, _, name = name[1:].rpartition("/")
                    found.append((group, name))
    return found


def where_set(
    key: str, chosen: Iterable[tuple[str, str]], config_dirs: Sequence[Path], golfs: bool = False
) -> str | None:
    """Which of the user's files (with `golfs` of golf's too), of the chosen (group, option) pairs, sets a key; the last
    one that does."""
    files = [file for group, option in chosen for file in _reached(group, option, config_dirs, [], golfs)]
    setting = [file.shown for file in files if file.sets(key)]
    return setting[-1] if setting else None
