"""Source in fewer bytes than LZMA takes: each bit is foretold by how the contexts before it went on, and coded by that.

The contexts are the last 1, 2, 3 and 5 bytes, the word so far, and the last 3 and 6 bytes that are of no word, which
is how code is built whatever it names. A context has a state for each prefix of the next byte: how many zeros and ones
it saw there of late, and which bit came last; what a state means is learned, by kind of context. The logits of the
seven chances are mixed by weights that are learned too, of a set for each prefix and number of orders that have seen
their context. Where the mixture was nearly right nothing is learned, which takes half the time and fewer bytes. As PAQ
does it (M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005).

All of it is in integers but two tables, rounded far from .5, so that any machine reads what another has written.
`tables` and `unmixed` stand in packed files as they are here: they use no other name of golf's. `unmixed` is the
definition; `mixed` does the same with the text known, written out for each of the seven, which takes half its time:
a sixth of a million bytes are a million steps of plain Python, and each comprehension in one costs as much as its sum.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from operator import mul
from typing import Any

Rows = list[list[int]]


def tables() -> tuple[list[int], list[int], Rows, Rows, Rows, defaultdict[Any, array[int]]]:
    """What both begin with: logits by chance (of 4,096), chances (of 65,536) by logit, negative ones from the end; the
    state after a 0 and a 1 by state; the chance by state, of each kind; weights; states by prefix, of each context."""
    logit = [round(256 * math.log((at + 0.5) / (4095.5 - at))) for at in range(4096)]
    chance = [round(65536 / (1 + math.exp(-at / 256))) for at in (*range(2048), *range(-2047, 0))]
    fewer, cap = [*range(3), *(count // 2 + 1 for count in range(3, 21))], [*range(1, 21), 20]
    states = [(zeros, ones, last) for zeros in range(21) for ones in range(21) for last in range(4)]
    after = [
        [(cap[zeros] * 21 + fewer[ones]) * 4 + last * 2 % 4 for zeros, ones, last in states],
        [(fewer[zeros] * 21 + cap[ones]) * 4 + last * 2 % 4 + 1 for zeros, ones, last in states],
    ]
    learned = [[65536 * (10 * ones + 3) // (10 * (zeros + ones) + 6) for zeros, ones, _ in states] for _ in range(7)]
    return logit, chance, after, learned, [[20000] * 7] * 1024, defaultdict(lambda: array("H", bytes(512)))


def unmixed(data: bytes, size: int) -> bytes:
    """The text of `size` bytes that `mixed` made `data` of."""
    logit, chance, after, learned, weights, places = tables()
    low, high, value, rest = 0, 2**32 - 1, int.from_bytes((data + bytes(4))[:4], "big"), iter(data[4:])
    r0, r1, r2, r3, r4, r5, r6 = learned
    text, recent, word, marks = bytearray(), b"", b"", b""
    while len(text) < size:
        at = t0, t1, t2, t3, t4, t5, t6 = [
            places[kind, context, kind > 4 and word > b""]
            for kind, context in enumerate((recent[-1:], recent[-2:], recent[-3:], recent, word, marks[-3:], marks))
        ]
        prefix = 1
        while prefix < 256:
            inner = s0, s1, s2, s3, s4, s5, s6 = (
                t0[prefix], t1[prefix], t2[prefix], t3[prefix], t4[prefix], t5[prefix], t6[prefix]
            )  # fmt: skip
            given = (
                logit[r0[s0] >> 4], logit[r1[s1] >> 4], logit[r2[s2] >> 4], logit[r3[s3] >> 4],
                logit[r4[s4] >> 4], logit[r5[s5] >> 4], logit[r6[s6] >> 4],
            )  # fmt: skip
            chosen = prefix << 2 | (s1 > 0) + (s2 > 0) + (s3 > 0)
            mixed = weights[chosen]
            likely = chance[max(-2047, min(sum(map(mul, given, mixed)) >> 16, 2047))]
            middle = low + (high - low) * likely // 65536
            bit = value <= middle
            low, high = (low, middle) if bit else (middle + 1, high)
            while low >> 24 == high >> 24:
                low, high = low << 8 & 2**32 - 1, high << 8 & 2**32 - 1 | 255
                value = value << 8 & 2**32 - 1 | next(rest, 0)
            error = bit * 65536 - likely
            if not -330 < error < 330:
                weights[chosen] = [weight + (error * one * 10 >> 16) for one, weight in zip(given, mixed)]
                goal, following = bit * 65535, after[bit]
                for row, state, seen in zip(learned, inner, at):
                    row[state] += goal - row[state] >> 7
                    seen[prefix] = following[state]
            prefix += prefix + bit
        byte = bytes([prefix - 256])
        text += byte
        recent, word = (recent + byte)[-5:], word + byte if byte.isalnum() or byte == b"_" else b""
        if not word:
            marks = (marks + byte)[-6:]
    return bytes(text)


def mixed(text: bytes) -> bytes:
    """The text, compressed."""
    logit, chance, after, learned, weights, places = tables()
    r0, r1, r2, r3, r4, r5, r6 = learned
    m0, m1, m2, m3, m4, m5, m6 = [[logit[one >> 4] for one in row] for row in learned]
    paths = [[(1 << at | byte >> 8 - at, byte >> 7 - at & 1) for at in range(8)] for byte in range(256)]
    low, high, data = 0, 2**32 - 1, bytearray()
    recent = word = marks = b""
    for code in text:
        within = word > b""
        t0, t1, t2 = places[0, recent[-1:]], places[1, recent[-2:]], places[2, recent[-3:]]
        t3, t4, t5, t6 = places[3, recent], places[4, word], places[5, marks[-3:], within], places[6, marks, within]
        for prefix, bit in paths[code]:
            s0, s1, s2, s3, s4, s5, s6 = (
                t0[prefix], t1[prefix], t2[prefix], t3[prefix], t4[prefix], t5[prefix], t6[prefix]
            )  # fmt: skip
            g0, g1, g2, g3, g4, g5, g6 = m0[s0], m1[s1], m2[s2], m3[s3], m4[s4], m5[s5], m6[s6]
            chosen = prefix << 2 | (s1 > 0) + (s2 > 0) + (s3 > 0)
            w0, w1, w2, w3, w4, w5, w6 = weights[chosen]
            total = g0 * w0 + g1 * w1 + g2 * w2 + g3 * w3 + g4 * w4 + g5 * w5 + g6 * w6 >> 16
            likely = chance[-2047 if total < -2047 else 2047 if total > 2047 else total]
            middle = low + (high - low) * likely // 65536
            if bit:
                high, error, goal = middle, 65536 - likely, 65535
            else:
                low, error, goal = middle + 1, -likely, 0
            while low >> 24 == high >> 24:
                data.append(low >> 24)
                low, high = low << 8 & 2**32 - 1, high << 8 & 2**32 - 1 | 255
            if -330 < error < 330:
                continue
            error, following = 10 * error, after[bit]
            weights[chosen] = [
                w0 + (error * g0 >> 16), w1 + (error * g1 >> 16), w2 + (error * g2 >> 16), w3 + (error * g3 >> 16),
                w4 + (error * g4 >> 16), w5 + (error * g5 >> 16), w6 + (error * g6 >> 16),
            ]  # fmt: skip
            r0[s0] = now = r0[s0] + (goal - r0[s0] >> 7)
            m0[s0], t0[prefix] = logit[now >> 4], following[s0]
            r1[s1] = now = r1[s1] + (goal - r1[s1] >> 7)
            m1[s1], t1[prefix] = logit[now >> 4], following[s1]
            r2[s2] = now = r2[s2] + (goal - r2[s2] >> 7)
            m2[s2], t2[prefix] = logit[now >> 4], following[s2]
            r3[s3] = now = r3[s3] + (goal - r3[s3] >> 7)
            m3[s3], t3[prefix] = logit[now >> 4], following[s3]
            r4[s4] = now = r4[s4] + (goal - r4[s4] >> 7)
            m4[s4], t4[prefix] = logit[now >> 4], following[s4]
            r5[s5] = now = r5[s5] + (goal - r5[s5] >> 7)
            m5[s5], t5[prefix] = logit[now >> 4], following[s5]
            r6[s6] = now = r6[s6] + (goal - r6[s6] >> 7)
            m6[s6], t6[prefix] = logit[now >> 4], following[s6]
        byte = bytes([code])
        recent, word = (recent + byte)[-5:], word + byte if byte.isalnum() or byte == b"_" else b""
        if not word:
            marks = (marks + byte)[-6:]
    data.append((low >> 24) + 1)
    return bytes(data)
