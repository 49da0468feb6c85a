"""`golf sample`: let a finished run write."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from golf.common.errors import ConfigError
from golf.common.shown import plain_text
from golf.launch.compose.rerun import WEIGHTS, Command, Word, read_line

if TYPE_CHECKING:
    import torch

    from golf.launch.work.loaded import LoadedRun

COMMAND = Command(
    "sample",
    ("runtime",),
    {
        "prompt": Word(default=""),
        "tokens": Word(int, 200),
        "temperature": Word(float, 0.8),
        "top_k": Word(int),
        "seed": Word(int, 1),
        "n": Word(int, 1),
        "weights": WEIGHTS,
    },
    data=False,
)

PAGE = """golf sample run=DIR [prompt=TEXT] [key=value] …

Lets a finished run's quantized model write, and prints prompt and continuation. A text ends after `tokens` tokens, or
where the model ends the document. One seed gives one text.

  run=DIR            a finished run
  prompt="def main(" what it continues; nothing: a document from its start
  tokens=200         tokens to write; beyond the model's window it sees the last model.max_seq_len of them
  temperature=0.8    0 takes the likeliest token every time
  top_k=null         draw from the so many likeliest tokens alone
  seed=1  n=1        text i of n is that of seed + i
  weights=quantized  or averaged: weights.safetensors, before quantization
  runtime=OPTION     auto, cpu, cuda; the run's own by default

  golf sample run=outputs/2026-01-31/my_run prompt="def main("
  golf sample run=outputs/2026-01-31/my_run prompt="import " tokens=60 temperature=0 runtime=cpu
"""


def run(argv: list[str]) -> int:
    """Check, write, print. Raises ConfigError for a mistake, ArtifactError for an artifact that cannot be read."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    request = read_line(COMMAND, argv)
    words = request.words
    if request.multirun:
        raise ConfigError("golf sample writes with one setting: leave out --multirun")
    check(words)
    from golf.launch.compose.own_code import naming
    from golf.launch.work.loaded import LoadedRun, progress_on_stderr

    with progress_on_stderr("loading the model"):
        loaded = LoadedRun(request.run, request.jobs[0].config, data=False)
        loaded.use(words["weights"])
    texts = []
    with naming(loaded.config.get("code_paths") or []):
        for index in range(words["n"]):
            seed = words["seed"] + index
            texts.append(write(loaded, words["prompt"], words["tokens"], words["temperature"], words["top_k"], seed))
    for index, text in enumerate(texts):
        if len(texts) > 1:
            print(f"── {index + 1} (seed {words['seed'] + index})")
        print(plain_text(text) if sys.stdout.isatty() else text)
    return 0


def check(words: dict[str, Any]) -> None:
    """Raise ConfigError for a number out of range."""
    if not 0 <= words["temperature"] < float("inf"):
        raise ConfigError(f"temperature={words['temperature']}: must be a number of at least 0")
    for name, least in (("tokens", 1), ("top_k", 1), ("n", 1), ("seed", 0)):
        if words[name] is not None and words[name] < least:
            raise ConfigError(f"{name}={words[name]}: must be at least {least}")


def write(loaded: LoadedRun, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int) -> str:
    """One text, prompt included, up to `tokens` tokens long beyond it or to the end of its document."""
    import torch

    tokenizer, model = loaded.tokenizer, loaded.model
    encoded = torch.from_numpy(tokenizer.encode_batch([prompt])[0].astype("int64"))
    ids = torch.cat((torch.tensor([tokenizer.bos_id]), encoded))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(tokens):
            window = ids[None, -model.shape.max_seq_len :].to(loaded.device)
            logits = model(window, score_from=window.shape[1] - 1)[0, -1].double().cpu()
            drawn = draw(logits, temperature, top_k, generator)
            if drawn == tokenizer.bos_id:  # it stands between documents
                break
            ids = torch.cat((ids, drawn[None]))
    return tokenizer.decode(ids[1:].tolist())


def draw(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> torch.Tensor:
    """One token id from logits [V], float64 on the CPU so that a seed means the same on every device."""
    import torch

    if temperature == 0:
        return logits.argmax()
    scaled = logits / temperature
    if top_k is not None and top_k < scaled.numel():
        least = scaled.topk(top_k).values[-1]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    return torch.multinomial((scaled - scaled.max()).exp(), 1, generator=generator)[0]
