"""A callback that prints what the model writes, every so many steps."""

import torch

from golf.train.hooks import Hook


class Samples(Hook):
    def __init__(self, every=4, tokens=12):
        self.every, self.tokens = every, tokens

    def attach(self, trainer):
        self.trainer = trainer

    @torch.no_grad()
    def after_step(self, progress, stop):
        if progress.step % self.every and not stop:
            return
        parts = self.trainer.parts
        tokenizer, model = parts.prepared.tokenizer, parts.model
        ids = torch.full((1, 32), tokenizer.bos_id, device=parts.device)
        with self.trainer.clock.paused():
            model.eval()
            for _ in range(self.tokens):
                ids = torch.cat((ids, model(ids[:, -32:])[:, -1].argmax(-1, keepdim=True)), 1)
            model.train()
        print(f"step {progress.step} writes {tokenizer.decode(ids[0, 32:].tolist())!r}")
