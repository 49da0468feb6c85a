"""An exponential mean of the weights that starts when half of the run is over."""

from golf.learn.averaging import EMA


class FromHalf(EMA):
    def __init__(self, decay=0.9):
        super().__init__(decay, start_multiplier=1e-9)
        self.first = None

    def at_step(self, progress):
        if progress.fraction >= 0.5 and self.first is None:
            self.first = progress.step
            self._start()
