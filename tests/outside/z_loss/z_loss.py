"""A term of the loss: the squared log of the softmax's normaliser."""

from golf.nn.techniques.base import Technique


class ZLoss(Technique):
    site = "logits"
    changes = ("weight",)

    def __init__(self, shape, layer=None, weight=1e-3):
        super().__init__(shape, layer)
        self.weight = weight

    def forward(self, logits, ctx):
        ctx.add_loss("z_loss", self.weight * logits.logsumexp(-1).square().mean())
        return logits
