"""Whether training takes validation text: its shards and its tokens are watched from the first component that is built
until the artifact is written.

Seen is what Python opens, by whichever library, and who looks at the tokens in memory, callbacks and techniques too.
Periodic validations are golf's, and allowed. Not seen is what native code opens, what another process reads, and what
an evaluator of the run's own keeps for itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from golf.common import reads
from golf.data.prepare import Prepared
from golf.evals.evaluators import Validation
from golf.train.parts import Parts
from golf.train.trainer import Trainer

WORD = "validation unread"
"""Its name in a proof."""
_TAKEN = ("tokens", "counted", "__dict__")


class Unread:
    """Watches the validation text of prepared data; `found` has a sentence for each line that took some of it.

    before: what a run that goes on had found until then; None: nobody watched.
    """

    def __init__(self, prepared: Prepared, before: Sequence[str] | None = ()) -> None:
        self.found = list(before or ())
        self.unknown = None if before is not None else "nobody watched before the run was gone on with"
        shards = [one for one in (prepared.val, prepared.val_bytes) if one is not None]
        self._shards, self._files = shards, dict[tuple[int, int], str]()
        for path in (path for one in shards for path in one.paths):
            try:
                found = os.stat(path)
            except OSError:
                self.unknown = f"{path} is no file"
                continue
            self._files[found.st_dev, found.st_ino] = str(path)
        self._golf, self._others = (
            os.path.join(reads.GOLF, ""),
            tuple(os.path.join(one, "") for one in reads.installed()),
        )
        self._open = ExitStack()
        self._own: tuple[type, ...] = ()

    @contextmanager
    def building(self) -> Iterator[None]:
        """Within the block parts are built, one of which is the validation stream: golf's own reading of it."""
        self._let_go()
        with reads.listening(self._opened):
            yield

    @contextmanager
    def training(self, parts: Parts) -> Iterator[None]:
        """Within the block nothing but a validation may take any, until `over`."""
        self._let_go()
        whole, self._own = parts.validation, (type(parts.evaluator),)
        with self._open:
            self._open.callback(setattr, parts, "validation", whole)
            self._open.enter_context(reads.listening(self._opened))
            parts.validation = _Watched.of(whole, self._looked_at)
            yield

    def over(self, gather: Callable[[Any], list[Any]] = lambda value: [value]) -> None:
        """The artifact is written: from now on it may be read. gather: every rank's value."""
        self._open.close()
        self.found = list(dict.fromkeys(one for found in gather(self.found) for one in found))

    def _let_go(self) -> None:
        for one in self._shards:
            one.let_go()  # what reads them has to open them again

    def _opened(self, path: Any, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return
        if (name := self._files.get((found.st_dev, found.st_ino))) is not None:
            self._note(f"opens {name}")

    def _looked_at(self) -> None:
        self._note("takes tokens of the validation stream")

    def _note(self, what: str) -> None:
        """Put down who did it, unless it was an evaluation of golf's or of the run's own, or the stream's making."""
        frame: FrameType | None = sys._getframe(2)
        reader, near = "", ""
        while frame is not None:
            file = frame.f_code.co_filename
            if frame.f_code is Validation.of.__code__:  # type: ignore[attr-defined]
                return
            if frame.f_code is Trainer.evaluate.__code__ and self._is_own(frame.f_locals.get("evaluator")):
                return
            if not file.startswith((self._golf, "<", *self._others)):
                reader = reader or f"{file}, line {frame.f_lineno},"
            near = near or ("" if file in (__file__, reads.__file__) else f"{file}, line {frame.f_lineno},")
            frame = frame.f_back
        sentence = f"{reader or near} {what} while the run trains"
        if sentence not in self.found:
            self.found.append(sentence)

    def _is_own(self, evaluator: Any) -> bool:
        return type(evaluator).__module__.startswith("golf.") or isinstance(evaluator, self._own)


class _Watched(Validation):
    """A stream that tells when something takes its tokens."""

    @classmethod
    def of(cls, whole: Validation, told: Callable[[], None]) -> _Watched:  # type: ignore[override]
        """This stream, watched."""
        made = cls(whole.tokens, whole.table, whole.bos_id, whole.counted)
        object.__setattr__(made, "_told", told)
        return made

    def __getattribute__(self, name: str) -> Any:
        if name in _TAKEN and (told := object.__getattribute__(self, "__dict__").get("_told")) is not None:
            told()
        return object.__getattribute__(self, name)
