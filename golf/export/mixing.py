"""Source in fewer bytes than LZMA takes: each bit is foretold by how the contexts before it went on, and coded by that.

The contexts are the last 1, 2, 3 and 5 bytes, the word so far, and the last 3 and 6 bytes that are of no word, which
is how code is built whatever it names. A context has a state for each prefix of the next byte: how many zeros and ones
it saw there of late, and which bit came last; what a state means is learned, by kind of context. The logits of the
seven chances are mixed by weights that are learned too, of a set for each prefix and number of orders that have seen
their context. Where the mixture was nearly right nothing is learned, which takes half the time and fewer bytes. As PAQ
does it (M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005).

All of it is in integers but two tables, rounded far from .5, so that any machine reads what another has written.
`predictions` and `unmixed` stand in packed files as they are here: they use no other name of golf's.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator
from operator import mul


def predictions() -> Generator[int, int, None]:
    """Of each bit, the most significant of a byte first, the chance that it is 1, of 65,536; is sent the bit."""
    logit = [round(256 * math.log((at + 0.5) / (4095.5 - at))) for at in range(4096)]
    chance = [round(65536 / (1 + math.exp(-at / 256))) for at in range(-2047, 2048)]
    fewer, cap = [*range(3), *(count // 2 + 1 for count in range(3, 21))], [*range(1, 21), 20]
    states = [(zeros, ones, last) for zeros in range(21) for ones in range(21) for last in range(4)]
    after = [
        [(cap[zeros] * 21 + fewer[ones]) * 4 + last * 2 % 4 for zeros, ones, last in states],
        [(fewer[zeros] * 21 + cap[ones]) * 4 + last * 2 % 4 + 1 for zeros, ones, last in states],
    ]
    learned = [[65536 * (10 * ones + 3) // (10 * (zeros + ones) + 6) for zeros, ones, _ in states] for _ in range(7)]
    places: dict[tuple[int, bytes, bool], int] = {}
    weights = [[20000] * 7] * 1024
    seen, unseen = array("H"), array("H", bytes(512))
    text = word = marks = b""
    while True:
        at = []
        for kind, context in enumerate((text[-1:], text[-2:], text[-3:], text, word, marks[-3:], marks)):
            at.append(places.setdefault((kind, context, kind > 4 and word > b""), len(seen)))
            if at[-1] == len(seen):
                seen.extend(unseen)
        prefix = 1
        while prefix < 256:
            inner = [seen[place + prefix] for place in at]
            given = [logit[row[state] >> 4] for row, state in zip(learned, inner)]
            chosen = prefix << 2 | (inner[1] > 0) + (inner[2] > 0) + (inner[3] > 0)
            mixed = weights[chosen]
            total = sum(map(mul, given, mixed)) >> 16
            likely = chance[max(-2047, min(total, 2047)) + 2047]
            bit = yield likely
            error = bit * 65536 - likely
            if not -330 < error < 330:
                weights[chosen] = [weight + (error * one * 10 >> 16) for one, weight in zip(given, mixed)]
                goal, following = bit * 65535, after[bit]
                for row, state, place in zip(learned, inner, at):
                    row[state] += goal - row[state] >> 7
                    seen[place + prefix] = following[state]
            prefix += prefix + bit
        byte = bytes([prefix - 256])
        text, word = (text + byte)[-5:], word + byte if byte.isalnum() or byte == b"_" else b""
        if not word:
            marks = (marks + byte)[-6:]


def unmixed(data: bytes, size: int) -> bytes:
    """The text of `size` bytes that `mixed` made `data` of."""
    model, data = predictions(), data + bytes(4)
    likely, low, high, at, value = next(model), 0, 2**32 - 1, 4, int.from_bytes(data[:4], "big")
    text, prefix = bytearray(), 1
    while len(text) < size:
        middle = low + (high - low) * likely // 65536
        bit = value <= middle
        low, high = (low, middle) if bit else (middle + 1, high)
        while low >> 24 == high >> 24:
            low, high, at = low << 8 & 2**32 - 1, high << 8 & 2**32 - 1 | 255, at + 1
            value = value << 8 & 2**32 - 1 | data[at - 1]
        likely = model.send(bit)
        prefix += prefix + bit
        if prefix > 255:
            text.append(prefix - 256)
            prefix = 1
    return bytes(text)


def mixed(text: bytes) -> bytes:
    """The text, compressed."""
    model = predictions()
    likely, low, high, data = next(model), 0, 2**32 - 1, bytearray()
    for byte in text:
        for place in range(7, -1, -1):
            middle = low + (high - low) * likely // 65536
            bit = byte >> place & 1
            low, high = (low, middle) if bit else (middle + 1, high)
            while low >> 24 == high >> 24:
                data.append(low >> 24)
                low, high = low << 8 & 2**32 - 1, high << 8 & 2**32 - 1 | 255
            likely = model.send(bit)
    data.append((low >> 24) + 1)
    return bytes(data)
