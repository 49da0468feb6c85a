"""GPTQ: a matrix is rounded column by column, and those to come make good what the ones before have lost.

Source: Frantar et al. 2022.
"""

import torch

from golf.quant.rowwise import RowQuantizer


class GPTQ(RowQuantizer):
    def __init__(self, bits=6, passthrough_numel=0, windows=64, damping=0.01, block=128, reserve_s=0.0):
        super().__init__(bits, clip_percentile=1.0, scale_floor=False, passthrough_numel=passthrough_numel)
        self.windows, self.damping, self.block, self.reserve_s = windows, damping, block, reserve_s
        self.hessians = {}

    def calibrate(self, trained):
        self.hessians = trained.hessians(trained.batches(self.windows))

    def integers(self, name, values, clip, scale, bits):
        if name not in self.hessians:
            return super().integers(name, values, clip, scale, bits)
        h = self.hessians[name].cpu()
        order = h.diagonal().argsort(descending=True)
        w, h = values[:, order], h[order][:, order]
        h.diagonal()[h.diagonal() == 0] = 1.0
        h.diagonal().add_(self.damping * h.diagonal().mean())
        u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
        chosen = torch.empty_like(w, dtype=torch.int8)
        for low in range(0, w.shape[1], self.block):
            high = min(low + self.block, w.shape[1])
            lost = torch.zeros(len(w), high - low)
            for j in range(low, high):
                chosen[:, j : j + 1] = super().integers(name, w[:, j : j + 1], clip, scale, bits)
                lost[:, j - low] = (w[:, j] - chosen[:, j] * scale[:, 0]) / u[j, j]
                w[:, j:high] -= lost[:, j - low, None] * u[j, j:high]
            w[:, high:] -= lost @ u[low:high, high:]
        return chosen[:, order.argsort()]
