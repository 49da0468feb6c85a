"""What a technique is, and how a model collects those that were configured.

A technique is one nn.Module class that declares its site and what it reads, and one yaml under conf/technique/<name>/
(or a user's own --config-dir). The model builds one instance per layer and runs it where the site says.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from golf.common.errors import ConfigError, did_you_mean
from golf.common.seeding import seed_of
from golf.nn.context import READABLE, Context
from golf.nn.numerics import Numerics
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

    A constructor that has a parameter `numerics` is handed the model's: what a Linear of its own is made with.
    """

    site: ClassVar[Site | None] = None
    """Where `forward` runs."""
    sites: ClassVar[Mapping[str, str]] = {}
    """Instead of `site`, where it runs at several: the name of the method that serves each."""
    shared: ClassVar[bool] = False
    """Whether all its layers are served by one instance, whose `layer` is None."""
    mixes_time: ClassVar[bool | tuple[str, ...]] = False
    """Whether (or: at which of its sites) a position's output depends on other positions, always earlier ones."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Context fields that it uses. One that mixes time and reads `documents` looks across no border."""
    conflicts: ClassVar[tuple[str, ...]] = ()
    """Names of techniques that cannot be composed with this one."""
    order: ClassVar[int] = 0
    """Rank among techniques at the same site; ties run by name."""
    changes: ClassVar[tuple[str, ...]] = ()
    """Settings that a phase may change: attributes of the same names, Python values that `forward` reads."""
    asks_first: int = 0
    """How many of n's first features it asks for by the context's `first_of_n`."""
    called: str = ""
    """The name that it was configured by."""
    on: bool = True
    """Whether it takes part in the phase in force."""

    def __init__(self, shape: Shape, layer: int | None = None) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: Any, ctx: Context) -> Any:
        """Return the new value at the site."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    @classmethod
    def methods(cls) -> Mapping[str, str]:
        """The method that serves each of its sites."""
        return cls.sites or {str(cls.site): "forward"}

    @classmethod
    def mixes(cls, site: str) -> bool:
        """Whether it mixes positions at this site."""
        return site in cls.mixes_time if isinstance(cls.mixes_time, tuple) else cls.mixes_time


class AtSite(nn.Module):
    """A technique where something else than its `forward` serves, or where an instance serves that stands elsewhere.

    Its parameters are registered here when it `owns` the technique, else where it was built.
    """

    def __init__(self, technique: Technique, method: str, owns: bool) -> None:
        super().__init__()
        self.method = method
        self.served_by = (technique,)  # in a tuple: not registered
        if owns:
            self.technique = technique

    @property
    def on(self) -> bool:
        """Whether the technique takes part in the phase in force."""
        return self.served_by[0].on

    @property
    def asks_first(self) -> int:
        """What the technique asks for of n."""
        return self.served_by[0].asks_first

    def forward(self, value: Any, ctx: Context) -> Any:
        """What the technique makes of the value here."""
        return getattr(self.served_by[0], self.method)(value, ctx)


class AtOneSite(nn.ModuleDict):
    """The modules of one site, by the name of their technique; `values` are those that are on in the phase in force."""

    def values(self) -> Any:
        """In their declared order."""
        return [module for module in self._modules.values() if getattr(module, "on", True)]


def chosen_layers(layers: Layers, num_layers: int, key: str) -> list[int]:
    """Layer indices meant by 'all', 'last:4', 'first:2' or a list of indices.

    Raises ConfigError, naming `key`, for layers that the model does not have.
    """
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

    Raises ConfigError for a conflict, an unknown site or field of the context, or layers that do not exist.
    """

    def __init__(
        self, configured: Mapping[str, functools.partial[Technique] | None], shape: Shape, numerics: Numerics
    ) -> None:
        self.shape, self.numerics = shape, numerics
        self.partials: dict[str, functools.partial[Technique]] = {}
        self.layers: dict[str, list[int]] = {}
        self._built: dict[tuple[str, int | None], Technique] = {}
        self._hosted: set[tuple[str, int | None]] = set()
        for name, given in configured.items():
            if given is None:
                continue
            if hasattr(nn.ModuleDict, name):
                raise ConfigError(f"technique/{name}: torch's modules have a method of this name; choose another")
            cls = self._class(name, given)
            keywords = dict(given.keywords)
            layers = keywords.pop("layers", "all")
            self.partials[name] = functools.partial(cls, *given.args, **keywords)
            if any(site in BLOCK_SITES for site in cls.methods()):
                self.layers[name] = chosen_layers(layers, shape.num_layers, f"technique.{name}.layers")
            elif layers != "all":
                where = ", ".join(cls.methods())
                raise ConfigError(f"technique.{name}.layers={layers}: its site {where} lies outside the layers")
        for name in self.partials:
            for other in self.cls(name).conflicts:
                if other in self.partials:
                    raise ConfigError(f"technique/{name} and technique/{other} cannot be composed: set one to none")

    @staticmethod
    def _class(name: str, partial: functools.partial[Technique]) -> type[Technique]:
        cls = getattr(partial, "func", None)
        if not (isinstance(cls, type) and issubclass(cls, Technique)):
            raise ConfigError(f"technique.{name}: its yaml must name a Technique class and have _partial_: true")
        if (cls.site is None) == (not cls.sites):
            raise ConfigError(f"technique.{name}: {cls.__name__} must say either `site` or `sites`")
        for site, method in cls.methods().items():
            if site not in SITES:
                raise ConfigError(f"technique.{name}: unknown site {site!r} {did_you_mean(site, SITES)}")
            if not callable(getattr(cls, method, None)):
                raise ConfigError(f"technique.{name}: {cls.__name__} has no method {method!r} for its site {site}")
        if not cls.shared and len({site in BLOCK_SITES for site in cls.methods()}) > 1:
            raise ConfigError(f"technique.{name}: {cls.__name__} stands inside and outside the layers: "
                              "it must say shared = True")  # fmt: skip
        for field in cls.reads:
            if field not in READABLE:
                raise ConfigError(f"technique.{name}: reads {field!r}: the context has no such field "
                                  f"{did_you_mean(field, READABLE)}")  # fmt: skip
        return cls

    def cls(self, name: str) -> type[Technique]:
        """The class behind a configured technique."""
        return self.partials[name].func  # type: ignore[return-value]

    def at(self, site: str, layer: int | None = None) -> nn.ModuleDict:
        """Build the modules of one site (of one layer), in their declared order, keyed by technique name."""
        self._hosted.add((site, layer))
        names = [n for n in self.partials if (site, layer) in self._wanted(n)]
        names.sort(key=lambda n: (self.cls(n).order, n))
        return AtOneSite({n: self._placed(n, site, layer) for n in names})

    def check_hosted(self) -> None:
        """Raises ConfigError for a technique at a site that the chosen slots do not have: it would do nothing."""
        for name in self.partials:
            for site, layer in sorted(self._wanted(name) - self._hosted, key=str):
                where = "" if layer is None else f" in layer {layer}"
                raise ConfigError(f"technique/{name}: nothing hosts its site {site}{where}\n"
                                  "the model/attention or model/mlp chosen there has no such site")  # fmt: skip

    def _wanted(self, name: str) -> set[tuple[str, int | None]]:
        """The sites, with their layers, at which a technique stands."""
        found: set[tuple[str, int | None]] = set()
        for site in self.cls(name).methods():
            found |= {(site, layer) for layer in self.layers[name]} if site in BLOCK_SITES else {(site, None)}
        return found

    def _placed(self, name: str, site: str, layer: int | None) -> nn.Module:
        key = (name, None if self.cls(name).shared else layer)
        known = self._built.get(key)
        technique = self._built[key] = known or self._build(*key)
        method = self.cls(name).methods()[site]
        if known is None and method == "forward":
            return technique
        return AtSite(technique, method, owns=known is None)

    def _build(self, name: str, layer: int | None) -> Technique:
        partial = self.partials[name]
        more = {"numerics": self.numerics} if "numerics" in inspect.signature(partial.func).parameters else {}
        try:
            with torch.random.fork_rng(devices=[]):
                # What a constructor draws depends on the run's seed and on itself, not on who was built before it.
                torch.default_generator.manual_seed(seed_of(torch.initial_seed(), f"technique.{name}.{layer}"))
                technique = partial(shape=self.shape, layer=layer, **more)
        except ConfigError:
            raise
        except Exception as error:  # a user's own class may raise anything
            raise ConfigError(f"technique.{name}: {type(error).__name__}: {error}") from error
        technique.called = name
        return technique

    def mixes_time_after(self, sites: tuple[str, ...], layer: int | None = None) -> bool:
        """Whether any technique at these sites (of this layer, when given) mixes positions."""
        return any(
            self.cls(name).mixes(site) and site in sites and (layer is None or where == layer)
            for name in self.partials
            for site, where in self._wanted(name)
        )

    def blind_to_documents(self) -> list[str]:
        """Techniques that mix positions and don't read where documents begin."""
        return [n for n in self.partials if self.cls(n).mixes_time and "documents" not in self.cls(n).reads]
