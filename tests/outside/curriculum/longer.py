"""A schedule that is flat to its last fifth."""

from golf.learn.schedule import Warmdown


class Flat(Warmdown):
    def multiplier(self, step, elapsed_s, train_seconds):
        return 1.0 if step < 0.8 * self.iterations else 0.2
