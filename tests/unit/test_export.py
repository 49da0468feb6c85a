"""What goes into a file that runs alone, and under which names: small packages, bundled and run."""

from __future__ import annotations

import bz2
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from golf.common.errors import GolfError
from golf.export.bundle import Bundle
from golf.export.closure import Closure
from golf.export.literals import Names, Writer
from golf.export.mixing import mixed, unmixed
from golf.export.module import Module
from golf.export.packed import _quoted, minified, packed
from golf.export.remembered import KEPT, key, remembered
from golf.train.alone import place_of

Bundled = Callable[..., str]


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundled]:
    """Bundle a root with modules of a package `parts`, given by name; loaded: those that a run had imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "parts").mkdir()

    def make(root: str, loaded: tuple[str, ...] = (), bare: bool = False, **modules: str) -> str:
        for name, source in {"__init__": "", **modules}.items():
            (tmp_path / "parts" / f"{name}.py").write_text(source)
        for name in modules:
            if f"parts.{name}" in loaded or f"from parts.{name} import" in root:
                __import__(f"parts.{name}")
        module = Module("root", root.encode(), "root.py", frozenset({"parts"}))
        return Bundle(Closure(module, loaded), bare).text()

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == "parts"]:
        del sys.modules[name]


def run(text: str | bytes) -> ModuleType:
    """A module of this source, without the package that it came from."""
    module = ModuleType("alone")
    vars(module)["__file__"] = "alone.py"
    sys.modules["alone"] = module
    try:
        exec(compile(text, "alone.py", "exec"), vars(module))
    finally:
        del sys.modules["alone"]
    return module


def test_names_that_two_modules_share_are_told_apart(bundled: Bundled) -> None:
    text = bundled(
        "from parts.one import total\nfrom parts.two import total as other\n\nfound = total(3), other(3)\n",
        one="def _add(x):\n    return x + 1\n\n\ndef total(x):\n    return _add(x)\n",
        two="from parts import one\n\n\ndef _add(x):\n    return x + one.total(x)\n\n\n"
            "def total(x):\n    add = _add\n    return add(x)\n",
    )  # fmt: skip
    assert run(text).found == (4, 7)


def test_a_local_name_never_hides_a_definition(bundled: Bundled) -> None:
    text = bundled(
        "from parts.two import use\n\nfound = use(2)\n",
        one="def scale(x):\n    return 10 * x\n",
        two="from parts import one\n\n\ndef use(scale):\n    return [one.scale(x) for x in (scale,)]\n",
    )
    assert run(text).found == [20]


def test_names_change_within_f_strings(bundled: Bundled) -> None:
    text = bundled(
        "from parts.one import told\nfrom parts.two import told as other\n\nfound = told(1), other(1)\n",
        one="UNIT = 'm'\n\n\ndef told(x):\n    return f'{x} {UNIT} {{UNIT}} {x if UNIT else UNIT!r:>2} UNIT'\n",
        two="UNIT = 's'\n\n\ndef told(x):\n    return f'{x} {UNIT} {{UNIT}} {x if UNIT else UNIT!r:>2} UNIT'\n",
    )
    assert run(text).found == ("1 m {UNIT}  1 UNIT", "1 s {UNIT}  1 UNIT")


METHODS = """
class Base:
    def run(self):
        return self.asked() + getattr(self, "told")() + len(self)

    def asked(self):
        return 1

    def told(self):
        return 2

    def __len__(self):
        return 3

    def unasked(self):
        return Heavy()


class Heavy:
    pass


class Listed(list):
    def append(self, x):
        super().append(2 * x)
"""


def test_methods_that_nothing_names_stay_away_with_what_they_need(bundled: Bundled) -> None:
    root = (
        "from parts.one import Base, Listed\n\nkept = Listed()\nfound = Base().run()\nvars(Listed)['append'](kept, 2)\n"
    )
    text = bundled(root, one=METHODS)
    assert run(text).found == 6
    assert run(text).kept == [4]
    assert "unasked" not in text
    assert "Heavy" not in text


LAZY = """
def fast():
    from parts.fast import speed

    return speed()


def slow():
    try:
        return fast()
    except ImportError as error:
        return str(error)
"""


@pytest.mark.parametrize(("loaded", "found"), [(("parts.fast",), 9), ((), "parts.fast: the run did not use it")])
def test_what_a_function_imports_comes_along_where_the_run_had_it(
    bundled: Bundled, loaded: tuple[str, ...], found: Any
) -> None:
    root = "from parts.one import slow\n\nfound = slow()\n"
    text = bundled(root, loaded, one=LAZY, fast="import json\n\n\ndef speed():\n    return json.loads('9')\n")
    assert run(text).found == found
    assert ("import json" in text) == bool(loaded)


TYPED = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parts.types import Far


@dataclass
class Near:
    """A part. And more of it."""

    KIND: ClassVar[str] = "near"
    far: Far | None = None
    count: int = 2

    def far_off(self, other: Far, times: int) -> Far:
        """The one. Or the other."""
        local: Far = other
        return local if times else self.far
'''


@pytest.mark.parametrize("bare", [False, True])
def test_annotations_bring_nothing_and_stay_where_they_can(bundled: Bundled, bare: bool) -> None:
    root = "import sys\nfrom parts.one import Near\n\n"
    root += "sys.modules['alone'].found = Near().far_off(5, times=1), Near().count, Near.KIND\n"
    text = bundled(root, bare=bare, one=TYPED, types="class Far:\n    pass\n")
    assert run(text).found == (5, 2, "near")
    assert "Far" not in text
    assert ("times: int" in text) != bare
    assert "KIND: ClassVar[str]" in text
    assert '"""A part."""' in text
    assert run(packed(text)).found == (5, 2, "near")


def test_a_registration_goes_with_what_it_registers_for(bundled: Bundled) -> None:
    one = """
KNOWN = {}


def op(name):
    return Op(name)


class Op:
    def __init__(self, name):
        self.name = name

    def register(self, function):
        KNOWN[self.name] = function
        return function


first, second = op("first"), op("second")
third = op("third")


@first.register
def _(x):
    return x


third.register(len)
"""
    text = bundled("from parts.one import KNOWN, first\n\nfound = first.name, sorted(KNOWN)\n", one=one)
    assert run(text).found == ("first", ["first"])
    assert "third" not in text


def test_what_cannot_be_exported_is_refused_with_its_line(bundled: Bundled) -> None:
    with pytest.raises(GolfError, match=r"one\.py:5: 'other' is a module that is used as a value"):
        bundled("from parts.one import use\n\nuse()\n", other="x = 1\n",
                one="from parts import other\n\n\ndef use():\n    return [other]\n")  # fmt: skip
    with pytest.raises(GolfError, match=r"one\.py:5: 'inspect' looks at sources"):
        bundled("from parts.one import use\n\nuse()\n",
                one="import inspect\n\n\ndef use():\n    return inspect.getsource(use)\n")  # fmt: skip
    with pytest.raises(GolfError, match=r"one\.py:4: needs wandb"):
        bundled("from parts.one import use\n\nuse()\n", one="import wandb\n\n\ndef use():\n    return wandb.run\n")


def test_a_configs_nodes_are_calls() -> None:
    names = Names()
    write = Writer(names)
    node = {
        "_target_": "golf.artifact.codecs.Zlib",
        "level": 9,
        "more": [{"_target_": "collections.Counter", "_partial_": True}],
    }
    assert write.node(node, "codec") == "Zlib(level=9, more=[partial(Counter)])"
    assert names.imports == "from collections import Counter\nfrom golf.artifact.codecs import Zlib"
    assert write.value({"a": (1, float("inf")), "b": frozenset({"x"})}, "phases") == (
        '{"a": (1, float("inf"),), "b": frozenset(["x"])}'
    )
    here = type("Mine", (), {"__module__": "__main__"})
    with pytest.raises(GolfError, match="codec: Mine is defined in __main__ or a notebook"):
        names.of(here, "codec")
    with pytest.raises(GolfError, match=r"codec: nowhere\.Zlib cannot be imported"):
        write.node({"_target_": "nowhere.Zlib"}, "codec")


def test_any_bytes_stand_within_quotes() -> None:
    """A NUL before a digit is no octal escape, nor is a backslash of the data's own before a zero."""
    draw = random.Random(0)
    for _ in range(500):
        data = bytes(draw.choices(b"\0\\'0157\r\n\xff\x1a", k=draw.randrange(24)))
        found: dict[str, bytes] = {}
        exec(compile(b"#coding:latin-1\ns = '''%b'''.encode('latin-1')\n" % _quoted(data), "x", "exec"), found)
        assert found["s"] == data


def test_what_is_mixed_comes_back() -> None:
    draw = random.Random(0)
    source = Path(__file__).read_bytes()[:6000]
    for text in (b"", b"\0", b"ab", b"a" * 500, bytes(range(256)), bytes(draw.choices(range(256), k=300)), source):
        assert unmixed(mixed(text), len(text)) == text
    assert len(mixed(source)) < 0.92 * len(bz2.compress(source))


def test_what_was_packed_is_remembered_until_it_or_the_packer_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path))
    calls = list[str]()

    def pack(text: str) -> bytes:
        calls.append(text)
        return packed(text)

    made = [remembered(text, pack) for text in ("print(1)\n", "print(1)\n", "print(2)\n")]
    assert made[0] == made[1] == packed("print(1)\n") != made[2] == packed("print(2)\n")
    assert calls == ["print(1)\n", "print(2)\n"]
    path = tmp_path / "packed" / key("print(1)\n")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40] + b"?" + whole[41:]):
        path.write_bytes(damaged)
        assert remembered("print(1)\n", pack) == made[0]
        assert path.read_bytes() == whole
    assert len(calls) == 5
    (source := tmp_path / "packer.py").write_text("one = 1\n")
    before = key("print(1)\n", [source])
    assert before == key("print(1)\n", [source])
    source.write_text("one = 2\n")
    assert key("print(1)\n", [source]) != before


def test_nothing_fails_where_nothing_can_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packed").write_text("no folder")
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path))
    assert remembered("print(1)\n", str.encode) == b"print(1)\n"


def test_the_oldest_of_what_is_remembered_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path))
    folder = tmp_path / "packed"
    folder.mkdir()
    for number in range(KEPT + 2):
        (folder / f"{number}").touch()
        os.utime(folder / f"{number}", (number, number))
    remembered("print(1)\n", str.encode)
    assert {path.name for path in folder.iterdir()} == {*map(str, range(3, KEPT + 2)), key("print(1)\n")}


def test_every_machine_has_the_tables_of_mixing() -> None:
    """No entry is near enough to .5 for another library's last bit of exp or log to round it the other way."""
    logits = [256 * math.log((at + 0.5) / (4095.5 - at)) for at in range(4096)]
    chances = [65536 / (1 + math.exp(-at / 256)) for at in range(-2047, 2048) if at]
    assert all(abs(one % 1 - 0.5) > 1e-6 for one in [*logits, *chances])


def test_names_are_short_but_in_kernels() -> None:
    """A kernel's compiler knows `range` by its name, and takes no plain global for a constant."""
    text = "def jit(f):\n    return f\n\n\nWIDTH = 4\n\n\n@jit\ndef kernel(rows, BLOCK):\n    total = 0\n"
    text += "    for at in range(BLOCK):\n        total += rows[at] + WIDTH\n    return total\n\n\n"
    text += "def use(thing):\n    longer = vars(thing)\n    for one in range(3):\n        longer['x'] += one + one\n"
    text += "    return longer, longer, longer, [range(3), range(2)]\n\n\nprint(kernel, use)\n"
    short = minified(text)
    assert "longer" not in short
    assert "vars" not in short
    for name in ("(rows,BLOCK):", "in range(BLOCK)", "+WIDTH"):
        assert name in short


LEAN = """
import sys
from collections import OrderedDict


class DataError(Exception):
    pass


class Odd(ValueError):
    def __init__(self, what):
        super().__init__(what)


class TimeoutError(Exception):
    def __init__(self, what):
        self.what = what


def check(value, key):
    pass


def checked(key, value):
    return value


class Kept(OrderedDict):
    def __init__(self, sizes):
        check(sizes, "sizes")
        check(effect(), "seen")
        for name, size in sizes.items():
            check(len(name), size)
        for last in sizes.values():
            pass
        super().__init__(last=checked("last", last))

    def popitem(self, last=True):
        return "mine"

    def lonely(self):
        return helper() * 1234


def helper():
    return pure(5678)


def effect():
    seen.append(1)
    return 3


def pure(value):
    return value


def raised(error):
    try:
        if error is ValueError:
            raise ValueError("long" + f"{error} text")
        if error is DataError:
            raise DataError("no data")
        raise error("odd text")
    except Exception as caught:
        return type(caught) is error, str(caught)


seen = []
kept = Kept({"a": 1, "b": 2})
found = sys.modules["alone"].found = []
found += kept["last"], kept.popitem(), seen, raised(ValueError), raised(DataError), raised(Odd)
found += [TimeoutError("late").what]
"""


def test_the_packed_form_leaves_out_texts_of_errors_idle_calls_and_what_these_named() -> None:
    found, short = run(packed(LEAN)).found, minified(LEAN)
    assert found == [2, "mine", [1], (True, ""), (True, "no data"), (True, "odd text"), "late"]
    for gone in ("lonely", "1234", "5678", "'sizes'", "'last',", "items"):
        assert gone not in short


def test_an_error_without_a_text_is_told_by_its_line() -> None:
    with pytest.raises(GolfError) as caught:
        raise GolfError
    assert place_of(caught.value).endswith(": raise GolfError")


def test_an_error_is_told_by_its_first_cause() -> None:
    def fails() -> None:
        try:
            raise KeyError("head")
        except KeyError as error:
            raise GolfError from error

    with pytest.raises(GolfError) as caught:
        fails()
    assert place_of(caught.value).endswith(""": raise KeyError("head")  'head'""")
