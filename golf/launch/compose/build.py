"""From a composed config to components: checked, then built."""

from __future__ import annotations

import json
import math
import platform
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from golf.artifact.codecs import Codec
from golf.common import protocols
from golf.common.errors import ConfigError, DataError, GolfError
from golf.common.files import cache_dir
from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.runtime import SPANS, Runtime
from golf.data import trial
from golf.data.loader import Feed, Loader
from golf.data.prepare import Prepared, prepare
from golf.evals.protocol import Evaluates
from golf.launch.compose import own_code, own_modules, phases, timeline
from golf.launch.compose.annotations import Config, check_types, check_value
from golf.launch.compose.own_modules import use_code
from golf.learn.averaging import Averaging
from golf.learn.budget import Scalable
from golf.nn import kernels, preflight
from golf.nn.linear import FakeQuantizer, RoundsByPlace
from golf.nn.models.gpt import GPT
from golf.quant.quantizer import Quantizer
from golf.quant.rehearsal import AsQuantized
from golf.runs.folder import RunFolder
from golf.runs.loggers import Logger
from golf.runs.wandb_environment import LONGEST_TAG
from golf.tokenizers.base import Tokenizer, TokenizerSpec
from golf.train import assemble
from golf.train.assemble import Components
from golf.train.hooks import Hook
from golf.train.parts import Optimizer, Parts, Schedule
from golf.train.settings import Settings
from golf.train.timeline import Phase

INTERFACES: dict[str, tuple[type, ...]] = {
    "optimizer": (Optimizer, Scalable), "schedule": (Schedule, Scalable), "averaging": (Averaging,),
    "quant": (Quantizer,), "codec": (Codec,), "eval": (Evaluates,), "tokenizer": (TokenizerSpec,),
}  # fmt: skip
"""What the components of a group have, whoever wrote them."""
GROUPS = ("optimizer", "schedule", "averaging", "quant", "codec", "eval", "runtime", "budget", "tokenizer", "data")
SETTINGS = (
    "seed", "train_batch_tokens", "train_seq_len", "log_every", "val_every", "val_tokens", "eval_all_stages", "frozen",
)  # fmt: skip
_SAME = ("phases", "optimizer", "schedule", "averaging", "codec", "budget", "callbacks")
"""Components that a run has under the names that the config has for them."""
SPANS_LOADER = {"_target_": "golf.data.orders.Spans", "_partial_": True}
"""How a run reads its tokens that says nothing of it."""

CHECKPOINTS = {"_target_": "golf.train.saving.Checkpoints"}
"""How a run keeps its state that says nothing of it."""


def packages(node: Any) -> list[str]:
    """The top-level packages whose components a config names, as `golf.*`."""
    if isinstance(node, list):
        return sorted({name for item in node for name in packages(item)})
    if not isinstance(node, dict):
        return []
    own = {f"{node['_target_'].partition('.')[0]}.*"} if "_target_" in node else set()
    return sorted(own | {name for item in node.values() for name in packages(item)})


def make(node: Any, key: str) -> Any:
    """Instantiate a config node by Hydra's rules (`_target_`, `_partial_`, nested). {} and null give None.

    Raises ConfigError (or another GolfError) with the component's own reason.
    """
    if not node:
        return None
    import hydra
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    node = _located(dict(node))
    # Hydra 1.4 wants to be told which packages a config may name; here they are the config's own.
    allowed = {} if hydra.__version__.startswith("1.3") else {"_execution_whitelist_": packages(node)}
    try:
        return instantiate(node, _convert_="all", **allowed)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, GolfError):
                raise cause from None
            cause = cause.__cause__
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}: {error.__cause__}") from error


def _located(node: Any) -> Any:
    """A config node in which the user's own components have their full names."""
    if isinstance(node, list):
        return [_located(item) for item in node]
    if not isinstance(node, dict):
        return node
    inner = {name: _located(item) for name, item in node.items()}
    if isinstance(target := node.get("_target_"), str):
        inner["_target_"] = own_modules.located(target)
    return inner


def build_model(config: Config, compute: str) -> GPT:
    """The model of a config, with unset weights, on the current default device, with whatever any phase has of it.
    Raises ConfigError for what doesn't fit."""
    config = phases.spanned(config)
    model_of = make(config["model"], "model")
    techniques = {name: make(node, f"technique.{name}") for name, node in (config.get("technique") or {}).items()}
    model: GPT = _call(model_of, "model", techniques=techniques, compute=compute)
    vocabulary = config["tokenizer"]["vocab_size"]
    if model.shape.vocab_size != vocabulary:
        raise ConfigError(
            f"model.vocab_size={model.shape.vocab_size}: the tokenizer has {vocabulary} ids (tokenizer.vocab_size)"
        )
    return model


def _call(made: Callable[..., Any], key: str, **arguments: Any) -> Any:
    try:
        return made(**arguments)
    except TypeError as error:
        raise ConfigError(f"{key}: {error}") from error


def phases_of(config: Config) -> list[Phase]:
    """The phases that a run of this config goes through, the beginning first. Raises ConfigError."""
    return timeline.timeline(config, make, SETTINGS, make(config["budget"], "budget"))


def components(config: Config, data: bool = True) -> dict[str, Any]:
    """Every component that needs neither data nor device; data=False: but the source of data, which looks for its
    files. Raises ConfigError for any that cannot be built, or lacks what its place asks for."""
    after = phases.last(config)
    made = {
        name: make((after if name in phases.AFTER else config)[name], name) for name in GROUPS if data or name != "data"
    }
    made["phases"] = phases_of(config)
    made["loader"] = make(config.get("loader") or SPANS_LOADER, "loader")
    made["checkpoint"] = make(config.get("checkpoint") or CHECKPOINTS, "checkpoint")
    made["callbacks"] = [callback(node, name) for name, node in (config.get("callbacks") or {}).items() if node]
    check_interfaces(made)
    return made


def check_interfaces(made: dict[str, Any]) -> None:
    """Raises ConfigError for a component that lacks what its place asks for."""
    for name, interfaces in INTERFACES.items():
        for interface in interfaces:
            protocols.fitted(made[name], interface, name)
    for phase in made["phases"]:
        if isinstance(phase.qat, AsQuantized):
            phase.qat.follow(made["quant"])
        elif phase.qat is not None and not isinstance(phase.qat, RoundsByPlace):
            protocols.fitted(phase.qat, FakeQuantizer, "qat")
    if re.fullmatch(r"[\w-]+", method := str(made["eval"].method)) is None:
        raise ConfigError(f"eval: {type(made['eval']).__name__}.method={method!r} is to name its figures\n"
                          "letters, digits, _ and - are taken")  # fmt: skip
    if not isinstance(made["codec"], Codec):  # an artifact's codec is found by its name among the subclasses
        raise ConfigError(f"codec: {type(made['codec']).__name__} must derive from golf.artifact.codecs.Codec")
    reserve, limit = made["quant"].reserve_s, made["budget"].train_seconds
    if not 0 <= reserve < (math.inf if limit is None else limit):
        raise ConfigError(f"quant.reserve_s={reserve}: must lie between 0 and budget.train_seconds={limit}")


def callback(node: Any, name: str) -> Hook:
    """A callback of the config. Raises ConfigError for what is none."""
    made = make(node, f"callbacks.{name}")
    if not isinstance(made, Hook):
        raise ConfigError(f"callbacks.{name}: {type(made).__name__} is no golf.train.hooks.Hook")
    return made


def check(config: Config, here: bool = True, data: bool = True) -> None:
    """Everything that can be known before work starts: types, combinations, a model built without memory.

    here: whether the work is done on this machine, so that it must have the devices. data: whether it needs the data.
    Raises ConfigError naming key, value and choices.
    """
    use_code(config.get("code_paths") or [])
    with own_code.naming(config.get("code_paths") or []):
        _check(config, here, data)


def _check(config: Config, here: bool, data: bool) -> None:
    hints = typing.get_type_hints(Settings)
    for name in (*SETTINGS, *GROUPS, "model", "logger"):
        if name not in config:
            raise ConfigError(f"{name} must be given")
    timeline.check(config)
    for one in phases.configs(config):
        for name in SETTINGS:
            check_value(one[name], hints[name], name)
        for name, node in one.items():
            if isinstance(node, dict) and name != "logger":
                check_types(node, name)
    check_naming(config.get("name"), config.get("tags", []))
    made = components(config, data)
    runtime: Runtime = made["runtime"]
    if here:
        runtime.check_devices()
        for phase in made["phases"]:
            runtime.check_graphs(SPANS, phase.settings.train_batch_tokens // SPANS, runtime.nproc)
    else:
        runtime = replace(runtime, device="cpu")
    with torch.device("meta"):
        model = build_model(config, runtime.compute)
    timeline.fits(made["phases"], model)
    blank = trial.blank(model.shape.vocab_size)
    feed = assemble.feed_of(made["phases"], blank, world=runtime.nproc, border_id=0)
    if trial.packs(made["loader"], feed):
        assemble.check_packs(model, runtime.device_type)
    check_types(config["logger"], "logger")
    logged = make(config["logger"], "logger")
    for one in logged if isinstance(logged, list) else [logged]:
        protocols.fitted(one, Logger, "logger")


def check_naming(name: Any, tags: Any) -> None:
    """Raises ConfigError for a run's name that cannot be part of a folder's, and for tags that are not words."""
    check_value(name, str | None, "name")
    check_value(tags, list[str], "tags")
    if wrong := [tag for tag in tags if not 1 <= len(tag.strip()) <= LONGEST_TAG]:
        raise ConfigError(
            f"tags: {wrong[0][:24]!r} has {len(wrong[0].strip())} characters; 1 to {LONGEST_TAG} are taken"
        )
    if name is not None and re.fullmatch(r"[\w+=@,-][\w .+=@,-]{,63}", name) is None:
        raise ConfigError(f"name={name}: it becomes part of a folder's name\n"
                          "up to 64 letters, digits, blanks, and . , + = @ _ - are taken")  # fmt: skip


_TRIED: set[str] = set()


def try_out(config: Config) -> None:
    """Run a tiny forward and backward of a model with parts that are not golf's own: see golf.nn.preflight.

    Once for each such model in a process. Raises ConfigError naming the technique and its site.
    """
    whole, stages = phases.spanned(config), [entry["values"] for entry in config.get("phases") or []]
    parts = {"model": whole["model"], "technique": whole["technique"], "phases": stages}
    key = json.dumps(parts, sort_keys=True, default=str)
    if packages(parts) == ["golf.*"] or key in _TRIED:
        return
    model = build_model(config, "float32")
    kernels.install(model, "reference")  # an attention of a GPU's falls back to torch's
    lines = []
    for phase in phases_of(config):
        phase.enter(model)
        lines += preflight.check(model, config["seed"])
    for line in dict.fromkeys(lines):
        logger.warning("%s", line)
    _TRIED.add(key)


def prepare_data(config: Config, ranks: Ranks) -> Prepared:
    """Tokenizer and shards: made by one worker of the machine, found by the others."""
    source, spec = make(config["data"], "data"), make(config["tokenizer"], "tokenizer")
    result = prepare(source, spec, on_progress=log_progress()) if ranks.local_rank == 0 else None
    facts = facts_here(ranks, result)
    return prepare(source, spec, believed=facts) if result is None else result


def find_tokenizer(config: Config, source_hash: str) -> Tokenizer:
    """The tokenizer alone, as it was made from the text of this hash; the text is read only where it must be trained
    again. Raises ConfigError or DataError."""
    spec: TokenizerSpec = make(config["tokenizer"], "tokenizer")

    def nothing() -> Iterator[str]:
        raise DataError("the tokenizer is not trained yet")

    try:
        return spec.prepare(nothing, source_hash, cache_dir())
    except DataError:
        return prepare_data(config, Ranks()).tokenizer


def facts_here(ranks: Ranks, result: Prepared | None) -> dict[str, Any] | None:
    """The facts of what this machine's first worker has prepared, on each of its workers; None when it has nothing."""
    here = platform.node()
    gathered = ranks.gather_objects((here, result.facts) if result is not None else None)
    return dict(one for one in gathered if one is not None).get(here)


def log_progress() -> Callable[[str, float], None]:
    """Log a long preparation every tenth."""
    seen: dict[str, int] = {}

    def report(what: str, fraction: float) -> None:
        tenth = int(fraction * 10)
        if tenth > seen.get(what, -1):
            seen[what] = tenth
            logger.info("%s: %d %%", what, tenth * 10)

    return report


def _loader(made: Callable[..., Loader], feed: Feed) -> Loader:
    """The loader of a config, with what it reads. Raises ConfigError."""
    return protocols.fitted(_call(made, "loader", feed=feed), Loader, "loader")


def parts_from(config: Config, made: Mapping[str, Any], runtime: Runtime) -> Components:
    """What `components` made, with the model that belongs to it."""
    return Components(
        model=partial(build_model, config), kernels=kernels.KERNELS, loader=partial(_loader, made["loader"]),
        quantizer=made["quant"], evaluator=made["eval"], runtime=runtime,
        **{name: made[name] for name in _SAME},
    )  # fmt: skip


def fresh(
    config: Config,
    runtime: Runtime,
    device: torch.device,
    border_id: int | None = None,
    *,
    log: bool = False,
    exact: bool = False,
) -> GPT:
    """The model of a config on its device, with unset weights, ready to be scored: see golf.train.assemble."""
    build, last = partial(build_model, config), phases_of(config)[-1]
    return assemble.fresh(build, kernels.KERNELS, last, runtime, device, border_id, log=log, exact=exact)


def build(config: Config, ranks: Ranks, runtime: Runtime, folder: RunFolder, prepared: Prepared) -> Parts:
    """All parts of a training run, on this worker's device. Raises ConfigError or DataError."""
    made = components(config)
    parts = assemble.assemble(parts_from(config, made, runtime), ranks, folder, prepared)
    parts.checkpoint = made["checkpoint"]
    return parts
