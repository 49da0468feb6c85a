"""From a composed config to components: types checked against constructors, then built."""

from __future__ import annotations

import importlib
import inspect
import json
import platform
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from golf.common.errors import ConfigError, DataError, GolfError, did_you_mean
from golf.common.files import cache_dir
from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.runtime import Runtime
from golf.common.seeding import seed_all
from golf.data.loader import TrainLoader, validation_tokens
from golf.data.prepare import Prepared, prepare
from golf.evals.evaluators import Validation
from golf.launch import own_code
from golf.launch.keys import no_component, told
from golf.launch.own_code import use_code
from golf.learn.budget import Budget, rescale_components
from golf.nn import kernels, preflight
from golf.nn.models.gpt import GPT
from golf.nn.techniques.base import Layers, Technique
from golf.runs.folder import RunFolder
from golf.runs.wandb_environment import LONGEST_TAG
from golf.tokenizers.base import Tokenizer, TokenizerSpec
from golf.train.parts import SPANS, Parts, Settings

Config = Mapping[str, Any]
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
GROUPS = ("optimizer", "schedule", "averaging", "quant", "codec", "eval", "runtime", "budget", "tokenizer", "data")
SETTINGS = ("seed", "train_batch_tokens", "train_seq_len", "log_every", "val_every", "val_tokens", "eval_all_stages")


def locate(target: str, key: str) -> Callable[..., Any]:
    """The class or function that `_target_` names. Raises ConfigError with the reason when it cannot be imported."""
    if not isinstance(target, str):
        raise ConfigError(f"{key}._target_={target}: expected the dotted name of a class or function")
    module, _, name = target.rpartition(".")
    top = module.partition(".")[0]
    if top != "golf" and (hidden := own_code.shadowed(top)) is not None:
        raise ConfigError(f"{key}._target_={target}: {hidden}")
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except Exception as error:  # a user's module may raise anything
        missed = error.name if isinstance(error, ImportError) else None
        if (hidden := own_code.shadowed(top) or own_code.shadowed(missed)) is not None:
            raise ConfigError(f"{key}._target_={target}: {hidden}") from None
        raise ConfigError(f"{key}._target_={target}: cannot be imported ({type(error).__name__}: {error})") from error


def check_types(node: Any, key: str = "") -> None:
    """Check every component's values against its constructor's annotations, all the way down.

    Raises ConfigError naming the key, the value, and what would fit.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_types(item, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    given = {name: value for name, value in node.items() if name not in SPECIAL}
    if "_target_" in node:
        target = locate(node["_target_"], key)
        _check_call(target, given, key, partial=bool(node.get("_partial_")))
    for name, value in given.items():
        check_types(value, f"{key}.{name}" if key else name)


def _check_call(target: Callable[..., Any], given: Config, key: str, partial: bool) -> None:
    init = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    signature = inspect.signature(target)
    known = set(signature.parameters)
    hints = typing.get_type_hints(init)
    if isinstance(target, type) and issubclass(target, Technique):
        known.add("layers")  # read by the model, which builds one instance per layer
        hints["layers"] = Layers
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for name, value in given.items():
        if name not in known and not takes_any:
            raise ConfigError(f"{key}.{name}: {getattr(target, '__name__', target)} takes no such setting "
                              f"{did_you_mean(name, known)}".rstrip())  # fmt: skip
        if name in hints and not _is_component(value):
            _check_value(value, hints[name], f"{key}.{name}")
    if not partial:
        required = {n for n, p in signature.parameters.items() if p.default is p.empty and p.kind in (1, 3)}
        if missing := sorted(required - set(given)):
            raise ConfigError(f"{key}.{missing[0]} must be given")


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _check_value(value: Any, hint: Any, key: str) -> None:
    if not _is_plain(hint):
        optional = hint is Any or type(None) in typing.get_args(hint)
        if value is None and not optional:
            raise ConfigError(f"{key}=null: a component is needed here; choose one by {key.replace('.', '/')}=…")
        if isinstance(value, dict) and hint is not Any and not _takes_mapping(hint):
            raise ConfigError(no_component(key.replace(".", "/")))
        if isinstance(value, str | int | float) and hint is not Any:
            raise ConfigError(f"{key}={value}: a component is needed here; choose one by {key.replace('.', '/')}=…")
        return
    try:
        TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[-1] if len(error.errors()) == 1 else error.errors()[0]
        raise ConfigError(f"{key}={told(value)}: {_expected(hint, reason)}{_remedy(hint, value, key)}") from error


def _remedy(hint: Any, value: Any, key: str) -> str:
    """What to type instead of a value whose kind alone is wrong: brackets make a list of it, quotes a text."""
    from golf.launch.words import typed

    for other, brackets, what in (
        ([value], True, "a list stands in brackets"),
        (str(value), False, "in quotes it is a text"),
    ):
        try:
            TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(other)
        except ValidationError:
            continue
        if value not in ("", None) and not isinstance(value, list | dict):
            return f"\n{what}: {typed(key, str(value), brackets)}"
    return ""


def _takes_mapping(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return any(map(_takes_mapping, typing.get_args(hint)))
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _expected(hint: Any, reason: Any) -> str:
    if choices := _choices(hint):
        return f"choices are {', '.join(choices)}"
    name = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
    return f"expected {name}, got {reason['input']!r} ({type(reason['input']).__name__})"


def _choices(hint: Any) -> list[str]:
    """The values that a hint allows, as they are written on a command line; none where they cannot be counted."""
    if hint is bool:
        return ["true", "false"]
    if hint is type(None):
        return ["null"]
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        each = [_choices(arg) for arg in typing.get_args(hint)]
        return [value for values in each for value in values] if all(each) else []
    return []


def _is_plain(hint: Any) -> bool:
    """Whether a hint is made of data types alone, so that a config can hold its values."""
    if hint in (int, float, str, bool, type(None), Path, Any):
        return True
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    if origin in (list, dict, tuple, typing.Union, types.UnionType):
        return all(_is_plain(arg) for arg in typing.get_args(hint) if arg is not Ellipsis)
    return False


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

    # Hydra 1.4 wants to be told which packages a config may name; here they are the config's own.
    allowed = {} if hydra.__version__.startswith("1.3") else {"_execution_whitelist_": packages(node)}
    try:
        return instantiate(dict(node), _convert_="all", **allowed)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, GolfError):
                raise cause from None
            cause = cause.__cause__
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}: {error.__cause__}") from error


def build_model(config: Config, compute: str) -> GPT:
    """The model of a config, with unset weights, on the current default device. Raises ConfigError for what doesn't
    fit."""
    partial = make(config["model"], "model")
    techniques = {name: make(node, f"technique.{name}") for name, node in (config.get("technique") or {}).items()}
    model: GPT = _call(partial, "model", techniques=techniques, compute=compute)
    vocabulary = config["tokenizer"]["vocab_size"]
    if model.shape.vocab_size != vocabulary:
        raise ConfigError(
            f"model.vocab_size={model.shape.vocab_size}: the tokenizer has {vocabulary} ids (tokenizer.vocab_size)"
        )
    return model


def _call(partial: Callable[..., Any], key: str, **arguments: Any) -> Any:
    try:
        return partial(**arguments)
    except TypeError as error:
        raise ConfigError(f"{key}: {error}") from error


def components(config: Config, data: bool = True) -> dict[str, Any]:
    """Every component that needs neither data nor device; data=False: but the source of data, which looks for its
    files. Raises ConfigError for any that cannot be built."""
    made = {name: make(config[name], name) for name in GROUPS if data or name != "data"}
    made["qat"] = make(config.get("qat"), "qat")
    made["settings"] = Settings(**{name: config[name] for name in SETTINGS})
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
    for name in SETTINGS:
        _check_value(config[name], hints[name], name)
    check_naming(config.get("name"), config.get("tags", []))
    for name, node in config.items():
        if isinstance(node, dict) and name != "logger":
            check_types(node, name)
    made = components(config, data)
    runtime: Runtime = made["runtime"]
    settings: Settings = made["settings"]
    if here:
        runtime.check_devices()
        runtime.check_graphs(SPANS, settings.train_batch_tokens // SPANS, runtime.nproc)
    else:
        runtime = replace(runtime, device="cpu")
    with torch.device("meta"):
        build_model(config, runtime.compute)
    check_types(config["logger"], "logger")
    make(config["logger"], "logger")


def check_naming(name: Any, tags: Any) -> None:
    """Raises ConfigError for a run's name that cannot be part of a folder's, and for tags that are not words."""
    _check_value(name, str | None, "name")
    _check_value(tags, list[str], "tags")
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
    parts = {"model": config["model"], "technique": config.get("technique") or {}}
    key = json.dumps(parts, sort_keys=True, default=str)
    if packages(parts) == ["golf.*"] or key in _TRIED:
        return
    model = build_model(config, "float32")
    kernels.install(model, "reference")  # an attention of a GPU's gives its place to torch's
    for line in preflight.check(model, config["seed"]):
        logger.warning("%s", line)
    _TRIED.add(key)


def prepare_data(config: Config, ranks: Ranks) -> Prepared:
    """Tokenizer and shards: made by one worker of the machine, found by the others."""
    source, spec = make(config["data"], "data"), make(config["tokenizer"], "tokenizer")
    result = prepare(source, spec, on_progress=log_progress()) if ranks.local_rank == 0 else None
    told = told_here(ranks, result)
    return prepare(source, spec, told=told) if result is None else result


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


def told_here(ranks: Ranks, result: Prepared | None) -> dict[str, Any] | None:
    """The facts of what this machine's first worker has prepared, on each of its workers; None when it has nothing."""
    here = platform.node()
    told = ranks.gather_objects((here, result.facts) if result is not None else None)
    return dict(one for one in told if one is not None).get(here)


def log_progress() -> Callable[[str, float], None]:
    """Log a long preparation every tenth."""
    seen: dict[str, int] = {}

    def report(what: str, fraction: float) -> None:
        tenth = int(fraction * 10)
        if tenth > seen.get(what, -1):
            seen[what] = tenth
            logger.info("%s: %d %%", what, tenth * 10)

    return report


def fresh(
    config: Config, runtime: Runtime, device: torch.device, border_id: int | None = None
) -> tuple[GPT, list[str]]:
    """The model of a config on its device, with unset weights, ready to be scored; a line for each kernel that cannot
    serve. border_id: the token that begins a document. What its parts draw at random is the same each time. Raises
    ConfigError."""
    seed_all(config["seed"])
    model = build_model(config, runtime.compute).to(device)
    model.border_id = border_id
    lines = kernels.install(model, runtime.kernels)
    return model.eval(), lines


def build(config: Config, ranks: Ranks, runtime: Runtime, folder: RunFolder, prepared: Prepared) -> Parts:
    """All parts of a training run, on this worker's device. Raises ConfigError or DataError."""
    made = components(config)
    settings: Settings = made["settings"]
    budget: Budget = made["budget"]
    device = torch.device("cuda", ranks.local_rank) if runtime.device_type == "cuda" else torch.device("cpu")
    border = prepared.tokenizer.bos_id
    seed_all(settings.seed)  # as `fresh` does
    model = build_model(config, runtime.compute)
    model.border_id = border
    model.initialize(settings.seed)
    model.to(device)
    for line in kernels.install(model, runtime.kernels):
        logger.info("%s", line)
    optimizer, schedule, averaging = made["optimizer"], made["schedule"], made["averaging"]
    scaled = rescale_components([optimizer, schedule, averaging], budget, ranks.world)
    optimizer.attach(dict(model.named_parameters()), model.specs(), ranks, tied=model.tied)
    evaluator = made["eval"]
    tokens = validation_tokens(prepared.val, evaluator.seq_len, settings.val_tokens)
    loader = TrainLoader(
        prepared.train,
        train_batch_tokens=settings.train_batch_tokens,
        train_seq_len=settings.train_seq_len,
        rank=ranks.rank,
        world=ranks.world,
        spans=SPANS,
        micro_steps=runtime.micro_steps(SPANS, settings.train_batch_tokens // SPANS, ranks.world),
        device=device,
    )
    return Parts(
        settings=settings, runtime=runtime, ranks=ranks, device=device, model=model,
        fresh=lambda: fresh(config, runtime, device, border)[0], optimizer=optimizer,
        schedule=schedule, averaging=averaging, loader=loader, prepared=prepared,
        validation=Validation(
            torch.from_numpy(tokens.astype("int64")).to(device), prepared.tokenizer.byte_table(),
            prepared.tokenizer.bos_id,
        ),
        evaluator=evaluator, quantizer=made["quant"], qat=made["qat"], codec=made["codec"], budget=budget,
        scaled=scaled, folder=folder,
    )  # fmt: skip
