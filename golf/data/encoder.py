"""Documents to ids on every core: batches go to processes and come back in order, the same for any number of them.

A process of its own does all that is done document by document (encoding, hashing, comparing, proving), since Python
does one thing at a time: `python -m golf.data.encoder` reads batches from its standard input and ends with it, so none
outlives what started it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from golf.common.errors import DataError, GolfError
from golf.common.process import python_command, started, usable_cores
from golf.data.classes import CLASSES, document_class
from golf.data.division import digest
from golf.data.overlap import Copies, plain_bytes
from golf.tokenizers.base import Tokenizer
from golf.tokenizers.byte_table import Prover

BATCH = 1 << 21
"""Characters of a batch: bounds memory, and keeps a process busy for a good part of a second."""
_ALONE = 8  # batches that this process encodes by itself, before it starts others
_MOST = 32  # processes; more would wait for the one that reads


@dataclass(frozen=True)
class Encoded:
    """What became of the documents of a batch that are no copies, in order.

    ids: uint16, BOS before each document. lengths: int64, tokens of each with its BOS. hashes: 16 bytes a document
    (`digest` of its text). counted_bytes, text_bytes: by the byte table, and of the text as it came. fragments: tokens
    that are one byte of a character, where no piece fits. left_out: copies.
    Of validation: what copies are known by (`keys`, `id_keys`), and the `plain` text for its hash; `proved`: bytes of
    the normalised texts, None where the table does not count them so; `classes`: documents, tokens and bytes of each
    `document_class`.
    """

    ids: np.ndarray
    lengths: np.ndarray
    hashes: bytes
    counted_bytes: int
    text_bytes: int
    unknown_tokens: int
    fragments: int
    left_out: int = 0
    keys: Sequence[bytes] = ()
    id_keys: Sequence[bytes] = ()
    plain: bytes = b""
    proved: int | None = 0
    classes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.lengths)


@dataclass(frozen=True)
class Work:
    """What is done with a batch of documents. copies: what training documents are compared with; None: validation."""

    tokenizer: Tokenizer
    copies: Copies | None = None

    def __call__(self, texts: Sequence[str], threads: int | None = None) -> Encoded:
        """Encode the batch and, of validation, prove the byte table on it; `threads` as `encode_batch` takes them."""
        copies, given = self.copies, len(texts)
        keys = [Copies.key(text) for text in texts]
        if copies is not None:
            texts = [text for text, key in zip(texts, keys, strict=True) if not copies.known(key)]
        encoded = self.tokenizer.encode_batch(texts, threads)
        id_keys = [Copies.id_key(ids) for ids in encoded]
        if copies is not None:
            kept = [i for i, key in enumerate(id_keys) if not copies.known_ids(key)]
            texts, encoded = [texts[i] for i in kept], [encoded[i] for i in kept]
        bos = np.array([self.tokenizer.bos_id], np.uint16)
        ids = np.concatenate([part for one in encoded for part in (bos, one)] or [bos[:0]])
        table = self.tokenizer.byte_table()
        is_val = copies is None
        fragments = getattr(self.tokenizer, "fragments", None)
        return Encoded(
            ids=ids,
            lengths=np.array([one.size + 1 for one in encoded], np.int64),
            hashes=b"".join(digest(text) for text in texts),
            counted_bytes=table.count(ids),  # ids[0] is BOS, 0 bytes: nothing is lost between batches
            text_bytes=sum(len(text.encode("utf-8")) for text in texts),
            unknown_tokens=int(np.count_nonzero(table.boundary[ids])) - len(texts),  # without each one's BOS
            fragments=0 if fragments is None else int(np.count_nonzero(fragments[ids])),
            left_out=given - len(texts),
            keys=keys if is_val else (),
            id_keys=id_keys if is_val else (),
            plain=plain_bytes(texts) if is_val else b"",
            proved=self._proved(texts, encoded) if is_val else 0,
            classes=_by_class(texts, encoded) if is_val else {},
        )

    def _proved(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> int | None:
        prover = Prover(self.tokenizer)
        try:
            prover.check(encoded, [self.tokenizer.normalize(text) for text in texts])
        except DataError:  # told by whoever knows which document of all it is
            return None
        return prover.proof.bytes


def _by_class(texts: Sequence[str], encoded: Sequence[np.ndarray]) -> dict[str, tuple[int, int, int]]:
    found = dict.fromkeys(CLASSES, (0, 0, 0))
    for text, ids in zip(texts, encoded, strict=True):
        documents, tokens, size = found[kind := document_class(text)]
        found[kind] = documents + 1, tokens + ids.size, size + len(text.encode("utf-8"))
    return found


def encode(
    work: Work, documents: Iterator[str], processes: int | None = None, batch: int = BATCH
) -> Iterator[tuple[list[str], Encoded]]:
    """Batches of documents with what became of them, in order; at most two batches a process wait in memory.

    processes: how many besides this one (None: a core each); 1 or fewer, and for a few batches at first, none: this
    process encodes with threads. The result is the same for any number. Raises what `documents` and the tokenizer
    raise, GolfError when a process ends before its work.
    """
    count = min(usable_cores(), _MOST) if processes is None else processes
    batches = batched(documents, batch)
    told = _pickled(work) if count > 1 else None
    for number, texts in enumerate(batches, start=1):
        yield texts, work(texts)
        if told is not None and number >= _ALONE:
            yield from _by_processes(told, batches, count, batch)
            return


def batched(documents: Iterator[str], characters: int = BATCH) -> Iterator[list[str]]:
    """Documents together, as soon as they have so many characters."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _by_processes(
    told: bytes, batches: Iterator[list[str]], count: int, batch: int
) -> Iterator[tuple[list[str], Encoded]]:
    idle: SimpleQueue[_Process] = SimpleQueue()
    waiting: deque[tuple[list[str], Future[Encoded]]] = deque()
    processes: list[_Process] = []
    threads = ThreadPoolExecutor(count, "golf-encode")

    def ask(texts: list[str]) -> Encoded:
        process = idle.get()
        try:
            return process(texts)
        finally:
            idle.put(process)

    try:
        for _ in range(count):
            processes.append(_Process(told))
            idle.put(processes[-1])
        ahead = 0  # characters
        for texts in batches:
            waiting.append((texts, threads.submit(ask, texts)))
            ahead += sum(map(len, texts))
            while waiting and (len(waiting) >= 2 * count or ahead > 2 * count * batch):
                first, future = waiting.popleft()
                ahead -= sum(map(len, first))
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.close()
        threads.shutdown()


class _Process:
    """One process that encodes, and the pipes to it."""

    def __init__(self, told: bytes) -> None:
        self._process = started(
            python_command("golf.data.encoder"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "RAYON_NUM_THREADS": "1"},  # of Hugging Face's tokenizers, which take every core
            start_new_session=True,  # Ctrl-C is this process's to answer
        )
        with suppress(OSError):  # it has ended: told when it is asked
            self._send(told)

    def __call__(self, texts: list[str]) -> Encoded:
        try:
            self._send(pickle.dumps(texts, protocol=5))
            assert self._process.stdout is not None
            found = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            code = self._process.wait()
            raise GolfError(
                f"a process that tokenizes ended before its work ({f'signal {-code}' if code < 0 else f'exit {code}'})"
                "\n(was there too little memory? `taskset -c 0-3 golf data …` starts fewer)"
            ) from None
        if isinstance(found, Encoded):
            return found
        raise found

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(message)
        self._process.stdin.flush()

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()


def _pickled(work: Work) -> bytes | None:
    """The work for another process, and where that finds the code; None for a tokenizer that cannot be sent."""
    try:
        return pickle.dumps(sys.path) + pickle.dumps(pickle.dumps(work))
    except Exception:  # a user's own tokenizer may raise anything
        return None


def _serve() -> None:
    """Answer batch after batch until there are no more. The pipes are between golf's own processes alone."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a tokenizer prints is no answer
    sys.path[:] = pickle.load(requests)
    work: Any = pickle.loads(pickle.load(requests))
    while True:
        try:
            texts = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: Any = work(texts, 1)
            message = pickle.dumps(answer, protocol=5)
        except Exception as error:
            message = _sendable(error)
        try:
            answers.write(message)
            answers.flush()
        except BrokenPipeError:
            return


def _sendable(error: Exception) -> bytes:
    try:
        message = pickle.dumps(error)
        pickle.loads(message)
        return message
    except Exception:
        return pickle.dumps(DataError(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    _serve()
