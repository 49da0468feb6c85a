"""Fake quantization to −1, 0 and 1 times a row's mean absolute value."""

import torch


class Ternary:
    def covers(self, spec, weight):
        return spec.place.startswith("mlp.")

    def __call__(self, weights):
        scale = weights.abs().mean(-1, keepdim=True).clamp_min(1e-8)
        return torch.round(weights / scale).clamp(-1, 1) * scale
