"""Runs as a notebook opens them: what golf.runs.store reads, and the model itself."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from golf.common.errors import ConfigError, GolfError
from golf.runs import store

if TYPE_CHECKING:
    from golf.nn.models.gpt import GPT
    from golf.tokenizers.base import Tokenizer


class Run(store.Run):
    """A run folder whose model and tokenizer can be built again; everything else as golf.runs.store.Run has it.

    trust: whether code may run that another user or machine has put into the folder.
    """

    def __init__(self, directory: Path | str, trust: bool = False) -> None:
        super().__init__(directory)
        self.trust = trust

    def model(
        self, weights: Literal["quantized", "averaged"] = "quantized", device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> GPT:
        """The model in evaluation mode: ids [B, T] int64 → logits [B, T, V]; see GPT.forward.

        weights: what artifact.golf holds, or weights.safetensors (averaged, if there was an average). It is built from
        the run's own config and copy of its code. Raises ConfigError for a run without a config, weights of another
        name or code that nobody has allowed, GolfError for one without such weights, ArtifactError for broken ones.
        """
        import torch

        from golf.common.seeding import undisturbed
        from golf.launch.compose import build
        from golf.launch.compose.own_modules import use_code
        from golf.launch.compose.rerun import settle
        from golf.nn.linear import EffectiveWeights
        from golf.train.finish import load_weights
        from golf.train.stages import read_artifact

        if weights not in ("quantized", "averaged"):
            raise ConfigError(f"weights={weights}: choices are quantized, averaged")
        config = self._whole_config()
        settle(config, self._code())
        config["runtime"]["device"] = device
        use_code(config["code_paths"])
        runtime = build.make(config["runtime"], "runtime")
        runtime.check_devices()
        with undisturbed():
            model = build.fresh(config, runtime, torch.device(runtime.device_type))
        if weights == "averaged":
            load_weights(self.folder.weights, model)
        elif not self.folder.artifact.exists():
            raise GolfError(f"{self.folder.artifact} is missing: the run has no artifact")
        else:
            read_artifact(self.folder.artifact, model)
        if any("border_id" in getattr(part, "reads", ()) for part in model.modules()):
            model.border_id = self.tokenizer().bos_id
        EffectiveWeights(model).refresh()
        return model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run was trained with: text to ids and back. Raises ConfigError or DataError."""
        from golf.launch.compose import build
        from golf.launch.compose.own_modules import use_code

        config = self._whole_config()
        use_code(self._code())
        return build.find_tokenizer(config, str(self.get("data.source_hash")))

    def _code(self) -> list[str]:
        from golf.launch.compose.trust import admit

        return admit(self.dir, self.config, str(self.dir), trust=self.trust)

    def _whole_config(self) -> dict[str, Any]:
        if not {"model", "tokenizer", "runtime"} <= self.config.keys():
            raise ConfigError(f"{self.dir}: its {self.folder.config.name} is missing or broken: it cannot be built")
        return deepcopy(self.config)


def load_run(directory: Path | str, trust: bool = False) -> Run:
    """Open a run folder; trust: as Run has it. Raises GolfError when there is none at `directory`."""
    return Run(store.load_run(directory).dir, trust)


def find_runs(*roots: Path | str) -> list[Run]:
    """Every run below `roots` (default: outputs and multirun here), ordered by path with numbers as numbers.

    Raises GolfError for a root that was named and does not exist.
    """
    return [Run(run.dir) for run in store.find_runs(*roots)]
