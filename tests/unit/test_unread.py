"""Whoever takes validation text while a run trains is told of, with the line; evaluations of golf's are not."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from golf.common.ranks import Ranks
from golf.data.prepare import Prepared
from golf.data.shards import Shards, write_shards
from golf.evals.evaluators import Evaluator, Validation
from golf.launch.work.unread import Unread
from golf.tokenizers.byte260 import Byte260
from golf.train.trainer import Trainer


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    """As much of a run's parts as is watched."""
    ids = np.arange(4, 204, dtype=np.uint16)
    train, val = (Shards.open(write_shards(tmp_path, name, [ids]), 260) for name in ("train", "val"))
    tokenizer = Byte260()
    prepared = Prepared(tokenizer, train, val, {})
    model = torch.nn.Linear(1, 1)
    model.window_flops, model.cannot_pack = None, "no"
    evaluator = Evaluator(16)
    validation = Validation(torch.from_numpy(ids.astype("int64")), tokenizer.byte_table())
    return SimpleNamespace(prepared=prepared, validation=validation, evaluator=evaluator, model=model, ranks=Ranks())


class Own:
    """An evaluator that the run does not have."""

    def score(self, model: Any, forward: Any, validation: Validation, *rest: Any, **how: Any) -> Any:
        return validation.tokens[:3]


TAKES = {
    "tokens in memory": (lambda parts: parts.validation.tokens[:3], "takes tokens"),
    "a part of them": (lambda parts: parts.validation.part(0, 3), "takes tokens"),
    "all fields": (lambda parts: vars(parts.validation), "takes tokens"),
    "golf's reader": (lambda parts: parts.prepared.val.read(0, 3), "opens"),
    "the file": (lambda parts: np.fromfile(parts.prepared.val.paths[0], "<u2"), "opens"),
    "the file by another name": (lambda parts: Path(f"{parts.prepared.val.paths[0]}.link").read_bytes(), "opens"),
    "an evaluator of its own": (lambda parts: evaluate(parts, Own()), "takes tokens"),
}


def evaluate(parts: Any, evaluator: Any) -> None:
    trainer: Any = SimpleNamespace(
        parts=parts, weights=SimpleNamespace(refresh=lambda *_: None), run_model=lambda x, y, **_: torch.ones(y.shape),
        remembered=set(), fixed_shapes=False,
    )  # fmt: skip
    parts.model.stretched = lambda *_: torch.no_grad()
    parts.qat = None
    Trainer.evaluate(trainer, evaluator)


@pytest.mark.parametrize("how", TAKES)
def test_what_takes_validation_text_is_named_with_its_line(how: str, parts: Any) -> None:
    take, told = TAKES[how]
    path = parts.prepared.val.paths[0]
    os.link(path, f"{path}.link")
    parts.prepared.val.read(0, 3)  # which leaves the file open
    unread = Unread(parts.prepared)
    with unread.training(parts):
        take(parts)
        assert len(unread.found) == 1
        assert unread.found[0].startswith(f"{__file__}, line ")
        assert told in unread.found[0]
        unread.over()
        take(parts)
    assert len(unread.found) == 1


def test_golfs_own_evaluations_and_training_text_may_be_read(parts: Any) -> None:
    unread, whole = Unread(parts.prepared), parts.validation
    with unread.building():
        Validation.of(parts.prepared, 16, None, torch.device("cpu"))
    with unread.training(parts):
        evaluate(parts, parts.evaluator)
        evaluate(parts, Evaluator(16, 4))
        parts.prepared.train.read(0, 3)
    assert unread.found == []
    assert unread.unknown is None
    assert parts.validation is whole


def test_what_other_ranks_and_a_run_before_have_found_counts(parts: Any) -> None:
    unread = Unread(parts.prepared, ["then"])
    unread.over(lambda mine: [mine, ["there", "then"]])
    assert unread.found == ["then", "there"]
    assert "nobody watched" in str(Unread(parts.prepared, None).unknown)
