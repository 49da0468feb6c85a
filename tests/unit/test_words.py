"""Words in Hydra's override grammar: what is read, what is quoted for the user, how ranges are counted, refusals."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from golf.common.errors import ConfigError
from golf.launch.compose.words import (
    expanded,
    literal,
    number_text,
    option_names,
    override_values,
    parse_override,
    readable,
    typed,
)


def values(word: str) -> list[str]:
    return override_values(parse_override(word))


SWEEPS = {
    "x=null,1.0": ["null", "1.0"],
    "x=choice(null,1.0)": ["null", "1.0"],
    "x=choice(1.0,NULL)": ["1.0", "null"],
    "x=tag(a,choice(null,1))": ["null", "1"],
    "x=choice(1,choice(2,3))": ["1", "2", "3"],
    "x=choice([1,2],[3])": ["[1,2]", "[3]"],
    "x=sort(3,1,2)": ["1", "2", "3"],
    "x=sort(3,1,2,reverse=true)": ["3", "2", "1"],
    "x=int(1.5,2.5)": ["1", "2"],
    "x=float(range(1,4))": ["1.0", "2.0", "3.0"],
    "x=str(1,2)": ["'1'", "'2'"],
    "x=true,false": ["true", "false"],
    "x=range(0.01,0.05,0.01)": ["0.01", "0.02", "0.03", "0.04"],
    "x=range(0.9,0.99,0.03)": ["0.9", "0.93", "0.96"],
    "x=range(0.05,0.01,-0.01)": ["0.05", "0.04", "0.03", "0.02"],
    "x=range(1e-5,4e-5,1e-5)": ["1e-5", "2e-5", "3e-5"],
    "x=range(1,2,0.25)": ["1.0", "1.25", "1.5", "1.75"],
    "x=range(0.1,0.35,0.1)": ["0.1", "0.2", "0.3"],
    "x=sort(range(0.1,0.4,0.1),reverse=true)": ["0.3", "0.2", "0.1"],
    "x=range(2,9,3)": ["2", "5", "8"],
    "x=range(start=1,stop=3)": ["1", "2"],
    "x=range(3)": ["0", "1", "2"],
    "x=range(3,1)": [],
}


@pytest.mark.parametrize("word", SWEEPS)
def test_values_of_a_sweep(word: str) -> None:
    assert values(word) == SWEEPS[word]


def test_what_is_shuffled_is_the_same_values() -> None:
    assert sorted(values("x=shuffle(null,1,2)")) == ["1", "2", "null"]
    assert sorted(values("x=shuffle(range(0.1,0.4,0.1))")) == ["0.1", "0.2", "0.3"]


@settings(deadline=None)
@given(st.integers(-999, 999), st.integers(1, 400), st.integers(1, 40), st.integers(1, 8))
def test_a_range_is_counted_in_decimals(start: int, length: int, step: int, places: int) -> None:
    unit = Decimal(1).scaleb(-places)
    low, high, by = (format(number * unit, "f") for number in (start, start + length, step))
    expected = [float(number * unit) for number in range(start, start + length, step)]
    assert [float(one) for one in values(f"x=range({low},{high},{by})")] == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_as_itself(number: float) -> None:
    assert float(number_text(number)) == number


REFUSED = {
    "x=range(1,3,0)": "a step of 0",
    "x=range(1,inf)": "finite",
    "x=range(0,1000000000)": "1,000,000,000 values",
    "x=interval(1,2)": "without steps",
    "x=choice()": "empty choice",
    "x=[choice(1,2)]": "within a list",
    "x=chioce(1,2)": "did you mean 'choice'",
    "x=sort(null,1)": "does not take such values",
    "x=str(range(1,3))": "only be cast",
    "x=[1": "the [ is not closed",
    "x=choice(1,": "the ( is not closed",
    "x=1]": "the ] closes nothing",
    'x="a': 'the quote " is not closed',
    "x=1,,2": "comma",
    "x=a,": "comma",
    "x": "write key=value",
    "=3": "names no key",
    "ünï=3": "there is no key 'ünï'",
    "x=[a{b}.txt]": """type 'x=["a{b}.txt"]'""",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_word_that_cannot_be_read_says_why(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values(readable(word))
    message = str(caught.value)
    assert message.startswith(word)
    assert REFUSED[word] in message
    assert "Exception" not in message
    assert "Error" not in message


QUOTED = {
    "x=[ünï/t.jsonl]": ["ünï/t.jsonl"],
    "x=[a,日本/文.txt]": ["a", "日本/文.txt"],
    "x=[my dir/a (1).txt, b#2.txt]": ["my dir/a (1).txt", "b#2.txt"],
    "x=[it's.txt]": ["it's.txt"],
    "x=['a,b.txt',ü]": ["a,b.txt", "ü"],
    "x=ünï": "ünï",
    "x=~/data": "~/data",
    "x=a=b": "a=b",
    "x=run #3 (best)!": "run #3 (best)!",
    "x=a b": "a b",
    "x='a b'": "a b",
    "x=3": 3,
}


@pytest.mark.parametrize("word", QUOTED)
def test_quotes_are_put_where_one_reading_fits(word: str) -> None:
    assert parse_override(readable(word)).value() == QUOTED[word]


def test_values_of_a_sweep_are_quoted_one_by_one() -> None:
    assert option_names(parse_override(readable("recipe=ünï,my recipe,b"))) == ["ünï", "my recipe", "b"]


@pytest.mark.parametrize("text", ["a b", "ü", 'say "x"', "a,b", "C:\\x", "ends\\", "{a}"])
def test_what_is_said_to_be_typed_can_be_read(text: str) -> None:
    import shlex

    (word,) = shlex.split(typed("x", text))
    assert parse_override(word).value() == text
    (word,) = shlex.split(typed("x", text, brackets=True))
    assert parse_override(word).value() == [text] or text == "a,b"


@settings(deadline=None)
@given(st.text(st.sampled_from("a1 \\\"',=:{[(\n$ü"), max_size=8))
@example("two\\\\").via("an even number of backslashes before the closing quote")
def test_a_text_s_spelling_reads_back_as_itself(text: str) -> None:
    assert parse_override(f"x={literal([text, {'a': text}])}").value() == [text, {"a": text}]


@pytest.mark.parametrize("key", ["a", "a-b.c", "a b", "a:b", "a=(b),[c]", "C:\\x", "${a}", " a", 1, 0.5, True])
def test_a_key_s_spelling_reads_back_as_itself(key: object) -> None:
    found = parse_override(f"x={literal({key: 1})}").value()
    assert [(type(one), one) for one in found] == [(type(key), key)]


@pytest.mark.parametrize("key", ["", "ü", "it's", "1", "null", None])
def test_a_key_without_a_spelling_is_named(key: object) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(key))):
        literal({"a": [{key: 1}]})


def test_a_sweep_that_hydra_cannot_run_becomes_a_list() -> None:
    known = ["leaky", "plain", "swi"]

    def whole(word: str) -> str:
        return expanded(word, parse_override(word), lambda group: known if group == "mlp" else [])

    assert whole("mlp=glob(*)") == "mlp=leaky,plain,swi"
    assert whole("mlp=glob(*,exclude=plain)") == "mlp=leaky,swi"
    assert whole("mlp=glob([l*,p*],exclude=[pl*])") == "mlp=leaky"
    assert whole("x=choice(null,1.0)") == "x=null,1.0"
    assert whole("x=choice(1,choice(2,3))") == "x=1,2,3"
    assert whole("x=choice(1,2)") == "x=choice(1,2)"
    with pytest.raises(ConfigError, match="no option is called so\nchoices: leaky, plain, swi"):
        whole("mlp=glob(zz*)")
    with pytest.raises(ConfigError, match="seed is a key"):
        whole("seed=glob(*)")
