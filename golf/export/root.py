"""The root of an exported file: a run's components by name, and the call that trains them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from golf.export.literals import Names, Writer
from golf.nn import kernels
from golf.train.alone import main
from golf.train.assemble import Components
from golf.train.timeline import Phase

GROUPS = {
    "loader": "loader", "optimizer": "optimizer", "schedule": "schedule", "averaging": "averaging",
    "quantizer": "quant", "codec": "codec", "evaluator": "eval", "runtime": "runtime", "budget": "budget",
}  # fmt: skip
"""Components, in the order in which they are written, and the groups of the config that name them."""


def root_source(
    nodes: Mapping[str, Any],
    phases: Sequence[Phase],
    rounding: Mapping[int, Any],
    served: Collection[str],
    identity: str,
    title: str,
    code: int | None,
    located: Callable[[str], str] = str,
) -> str:  # fmt: skip
    """The source of the root module.

    nodes: the config's, those that follow training as the last phase has them, the model's as it takes every phase.
    rounding: the config's node of each phase's `qat`, by the object's identity. served: the names of the kernels that
    did. title: its docstring. code: bytes that count beside the artifact (None: the file's own).
    located: the full name of what the config names.
    """
    names = Names(["partial", "sys", "components", "model"])
    write = Writer(names, located)
    known = {key: write.node(node, "qat") for key, node in rounding.items() if node}
    shared = {key: f"rounding_{number}" for number, key in enumerate(known)}
    techniques = {name: node for name, node in (nodes.get("technique") or {}).items() if node}
    hooks = {name: node for name, node in (nodes.get("callbacks") or {}).items() if node}
    built = write.node(
        nodes["model"], "model", {"techniques": write.node(techniques, "technique"), "compute": "compute"}, call=True
    )
    given = {
        "phases": f"[{', '.join(write.value(one, 'phases', shared) for one in phases)}]",
        "model": "model",
        "kernels": f"[{', '.join(names.constant(kernels, one) for one in kernels.KERNELS if one.name in served)}]",
        **{name: write.node(nodes[group], group) for name, group in GROUPS.items()},
        "callbacks": f"[{', '.join(write.node(node, f'callbacks.{name}') for name, node in hooks.items())}]",
    }
    lines = "".join(f"    {shared[key]} = {text}\n" for key, text in known.items())
    calls = "".join(f"        {name}={text},\n" for name, text in given.items())
    tokenizer = write.node(nodes["tokenizer"], "tokenizer")
    went_by = "" if code is None else f", {code}"
    entry, made = names.of(main, "main"), names.of(Components, "components")
    return (
        f'"""{title}"""\n\nimport sys\nfrom functools import partial\n\n{names.imports}\n\n\n'
        f"def model(compute):\n    return {built}\n\n\n"
        f"def components():\n{lines}    return {made}(\n{calls}    )\n\n\n"
        f'if __name__ == "__main__":\n    sys.exit({entry}(components, {tokenizer}, "{identity}"{went_by}))\n'
    )
