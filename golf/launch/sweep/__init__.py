"""The jobs of a sweep: which ones, who runs them and where, what the screen shows of them."""
