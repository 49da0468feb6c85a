"""The training documents that a tokenizer is trained on: the first so many bytes of them, as is then told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from golf.common.files import atomic_writer, locked
from golf.tokenizers.base import OnProgress


class TrainingSample:
    """Iterates over the first documents, until `most` UTF-8 bytes (None: all) have been given.

    NULs are blanks, ends are stripped, empty documents are left out: what SentencePiece's trainer takes. `failure` is
    what the documents raised, since trainers turn every error of their input into one of their own. change: what is
    done to each document at last; bytes are counted before, so that the sample is the same text whatever it is.
    """

    def __init__(
        self,
        documents: Iterator[str],
        most: int | None,
        name: str = "",
        progress: OnProgress | None = None,
        change: Callable[[str], str] | None = None,
    ) -> None:
        self._documents, self._most, self._name, self._progress = documents, most, name, progress
        self._change = change
        self.documents = self.bytes = 0
        self.ended = False
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._most is not None and self.bytes >= self._most:
            raise StopIteration
        try:
            text = self._next()
        except StopIteration:
            self.ended = True
            raise
        except BaseException as error:
            self.failure = error
            raise
        self.documents += 1
        self.bytes += len(text.encode("utf-8"))
        if self._progress is not None and self._most is not None:
            self._progress(f"read text for {self._name}", min(self.bytes / self._most, 1.0))
        return text if self._change is None else self._change(text)

    def _next(self) -> str:
        while True:
            text = next(self._documents).replace("\0", " ").strip()
            if text:
                return text

    @property
    def told(self) -> str:
        """How much it was, for the record."""
        which = "all" if self.ended else "the first"
        return f"{which} {self.documents:,} of them, {self.bytes:,} bytes"


def train_once(path: Path, make: Callable[[], tuple[bytes, TrainingSample]]) -> str | None:
    """The file of a trained tokenizer, made by `make` unless it is there; what it was trained on, where that is known.

    Two processes that ask at once train it once.
    """
    beside = path.with_suffix(".sample")
    if not path.exists():
        with locked(path):
            if not path.exists():
                content, sample = make()
                with atomic_writer(beside, "w") as file:
                    file.write(sample.told)
                with atomic_writer(path) as file:
                    file.write(content)
    with suppress(OSError):  # what an older golf trained has none
        return beside.read_text(encoding="utf-8")
    return None
