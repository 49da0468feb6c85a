"""Which line of a foreign error is told."""

from __future__ import annotations

import pydantic
import pytest

from golf.common.errors import reason


class Settings(pydantic.BaseModel):
    silent: bool = True
    tags: list[str] = []

    @pydantic.field_validator("tags")
    @classmethod
    def short(cls, tags: list[str]) -> list[str]:
        if any(len(tag) > 64 for tag in tags):
            raise ValueError("a tag has more than 64 characters")
        return tags


def refused(**values: object) -> pydantic.ValidationError:
    with pytest.raises(pydantic.ValidationError) as caught:
        Settings.model_validate(values)
    return caught.value


TOLD = {
    "one line": (OSError("the server is gone"), "the server is gone"),
    "a line and a story": (OSError("the server is gone\nwith a long story"), "the server is gone"),
    "nothing": (RuntimeError(), "RuntimeError"),
    "blanks": (RuntimeError(" \n "), "RuntimeError"),
    "a heading": (RuntimeError("Found problems:\n\n  tag too long\n  other"), "Found problems: tag too long"),
    "a heading alone": (RuntimeError("Found problems:"), "Found problems:"),
    "a key": (KeyError("project"), "KeyError: 'project'"),
    "a traceback": (
        RuntimeError("in worker 3:\nTraceback (most recent call last):\n  File x, line 1\nValueError: no room"),
        "ValueError: no room",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOLD)
def test_the_line_with_the_reason(kind: str) -> None:
    error, line = TOLD[kind]
    assert reason(error) == line


def test_of_a_validation_the_field_and_what_is_wrong_with_it() -> None:
    assert reason(refused(tags=["t" * 70])) == "tags: a tag has more than 64 characters"
    assert reason(refused(silent="maybe")).startswith("silent: Input should be a valid boolean")
    assert reason(refused(tags=[1])).startswith("tags.0: ")
    assert reason(refused(tags=["t" * 70]), where=False) == "a tag has more than 64 characters"
