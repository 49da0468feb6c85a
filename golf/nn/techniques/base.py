"""What a technique is, and how a model collects those that were configured.

A technique is one nn.Module class that declares its site and what it reads, and one yaml under conf/technique/<name>/
(or a user's own --config-dir). The model builds one instance per layer and runs it where the site says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from golf.common.errors import ConfigError, did_you_mean
from golf.nn.context import Context
from golf.nn.shape import Shape

BlockSite = Literal["attn_in", "qk", "v", "heads_out", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "block_out"]
GlobalSite = Literal["post_embed", "pre_head", "logits"]
Site = Literal[
    "post_embed", "attn_in", "qk", "v", "heads_out", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "block_out",
    "pre_head", "logits",
]  # fmt: skip
BLOCK_SITES: tuple[str, ...] = get_args(BlockSite)
SITES: tuple[str, ...] = get_args(Site)
Layers = str | list[int]
Configured = "Mapping[str, functools.partial[Technique] | None]"


class Technique(nn.Module):
    """Base of all techniques: forward(value at the site, ctx) → the new value, of the same shape and any float dtype.

    Shapes at sites: [B, T, D], but `qk` takes the pair ([B, T, H, hd], [B, T, Hkv, hd]), `v` [B, T, Hkv, hd],
    `heads_out` [B, T, H, hd] (before the output projection), `mlp_hidden` [B, T, mlp_dim], `logits` [B, T, V].
    """

    site: ClassVar[Site]
    mixes_time: ClassVar[bool] = False
    """Whether a position's output depends on other positions (always earlier ones: causality is tested)."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Context fields that forward uses. One that mixes time and reads `documents` looks across no border."""
    conflicts: ClassVar[tuple[str, ...]] = ()
    """Names of techniques that cannot be composed with this one."""
    order: ClassVar[int] = 0
    """Rank among techniques at the same site; ties run by name."""

    def __init__(self, shape: Shape, layer: int | None = None) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: Any, ctx: Context) -> Any:
        """Return the new value at the site."""
        raise TypeError(f"{type(self).__name__} defines no forward")


def chosen_layers(layers: Layers, num_layers: int, name: str) -> list[int]:
    """Layer indices meant by 'all', 'last:4', 'first:2' or a list of indices.

    Raises ConfigError for layers that the model does not have.
    """
    key = f"technique.{name}.layers"
    if isinstance(layers, list):
        wrong = [i for i in layers if not -num_layers <= i < num_layers]
        if wrong:
            raise ConfigError(f"{key}={layers}: the model has no layer {wrong[0]} (model.num_layers={num_layers})")
        return sorted({i % num_layers for i in layers})
    if layers == "all":
        return list(range(num_layers))
    side, _, number = layers.partition(":")
    if side not in ("first", "last") or not number.isdigit():
        raise ConfigError(f"{key}={layers!r}: expected 'all', 'first:N', 'last:N' or a list such as [0,2]")
    count = int(number)
    if not 1 <= count <= num_layers:
        raise ConfigError(f"{key}={layers!r}: the model has {num_layers} layers (model.num_layers)")
    return list(range(count)) if side == "first" else list(range(num_layers - count, num_layers))


class Techniques:
    """The configured techniques of one model: handed to its parts, which take the modules of their sites.

    Raises ConfigError for a conflict, an unknown site, or layers that do not exist.
    """

    def __init__(self, configured: Mapping[str, functools.partial[Technique] | None], shape: Shape) -> None:
        self.shape = shape
        self.partials: dict[str, functools.partial[Technique]] = {}
        self.layers: dict[str, list[int]] = {}
        for name, partial in configured.items():
            if partial is None:
                continue
            if hasattr(nn.ModuleDict, name):
                raise ConfigError(f"technique/{name}: torch's modules have a method of this name; choose another")
            cls = self._class(name, partial)
            keywords = dict(partial.keywords)
            layers = keywords.pop("layers", "all")
            self.partials[name] = functools.partial(cls, *partial.args, **keywords)
            if cls.site in BLOCK_SITES:
                self.layers[name] = chosen_layers(layers, shape.num_layers, name)
            elif layers != "all":
                raise ConfigError(f"technique.{name}.layers={layers}: its site {cls.site} lies outside the layers")
        for name in self.partials:
            for other in self.cls(name).conflicts:
                if other in self.partials:
                    raise ConfigError(f"technique/{name} and technique/{other} cannot be composed: set one to none")

    @staticmethod
    def _class(name: str, partial: functools.partial[Technique]) -> type[Technique]:
        cls = getattr(partial, "func", None)
        if not (isinstance(cls, type) and issubclass(cls, Technique)):
            raise ConfigError(f"technique.{name}: its yaml must name a Technique class and have _partial_: true")
        if getattr(cls, "site", None) not in SITES:
            site = str(getattr(cls, "site", None))
            raise ConfigError(f"technique.{name}: unknown site {site!r} {did_you_mean(site, SITES)}")
        return cls

    def cls(self, name: str) -> type[Technique]:
        """The class behind a configured technique."""
        return self.partials[name].func  # type: ignore[return-value]

    def at(self, site: str, layer: int | None = None) -> nn.ModuleDict:
        """Build the modules of one site (of one layer), in their declared order, keyed by technique name."""
        names = [n for n in self.partials if self.cls(n).site == site and (layer is None or layer in self.layers[n])]
        names.sort(key=lambda n: (self.cls(n).order, n))
        return nn.ModuleDict({n: self._build(n, layer) for n in names})

    def _build(self, name: str, layer: int | None) -> Technique:
        try:
            return self.partials[name](shape=self.shape, layer=layer)
        except ConfigError:
            raise
        except Exception as error:  # a user's own class may raise anything
            raise ConfigError(f"technique.{name}: {type(error).__name__}: {error}") from error

    def mixes_time_after(self, sites: tuple[str, ...], layer: int | None = None) -> bool:
        """Whether any technique at these sites (of this layer, when given) mixes positions."""
        return any(
            self.cls(n).mixes_time and self.cls(n).site in sites and (layer is None or layer in self.layers.get(n, []))
            for n in self.partials
        )

    def blind_to_documents(self) -> list[str]:
        """Techniques that mix positions and don't read where documents begin."""
        return [n for n in self.partials if self.cls(n).mixes_time and "documents" not in self.cls(n).reads]
