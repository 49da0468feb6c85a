"""Windows visited at a stride that has no divisor in common with their number: shuffled without drawing anything.

Source: Parameter Golf PR 726.
"""

from math import gcd

from golf.data.loader import Feed, TrainLoader


class Strided(TrainLoader):
    def __init__(self, feed: Feed, packed: bool = False, stride: float = 0.618) -> None:
        super().__init__(feed, packed)
        self.window = feed.train_seq_len
        self.windows = (len(self.shards) - 1) // self.window
        self.stride = max(1, round(stride * self.windows))
        while gcd(self.stride, self.windows) > 1:
            self.stride += 1

    def stretches(self, position, index):
        at, left, found = position + index * self.local, self.local, []
        while left:
            number, inside = divmod(at, self.window)
            count = min(left, self.window - inside)
            found.append((number * self.stride % self.windows * self.window + inside, count))
            at, left = at + count, left - count
        return found
