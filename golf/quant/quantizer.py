"""What a quantizer is: from what was trained to the entries of an artifact."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from golf.nn.params import ParamSpec
from golf.quant.entry import Entry

if TYPE_CHECKING:
    from golf.quant.calibration import Trained


class Quantizer(Protocol):
    """Turns weights into entries of the artifact. A class that names this one as its base has to have `quantize`; the
    rest may be left as it is.

    One that wants to see more than the weights has `calibrate` too (`Calibrates`), or observes gradients.
    """

    reserve_s: float = 0.0
    """Seconds of a record's training clock that are kept free for `calibrate`: steps end so much earlier."""

    @abstractmethod
    def quantize(self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> dict[str, Entry]:
        """An entry for every tensor of `state`, which is on the CPU, by its name; on rank 0 alone.

        specs: role and place of every parameter; what has none is a buffer, to be kept as it is. Raises ArtifactError.
        """
        ...

    @property
    def observes_gradients(self) -> bool:
        """Whether `observe` is to be called at each step of training."""
        return False

    def observe(self, named_grads: Iterable[tuple[str, Tensor]], lr_multiplier: float) -> None:
        """A step's gradients, averaged over ranks and not yet clipped."""

    def state_dict(self) -> dict[str, Any]:
        """What was gathered in training so far."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""

    def facts(self) -> dict[str, Any]:
        """What it went by, as JSON types for the run record."""
        return {}

    def recall(self, facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
        """Take the `facts` of the run that trained `state` for what was observed; false when they don't say."""
        return False


@runtime_checkable
class Fits(Protocol):
    """What a quantizer has that can be made to fit: steps of its grids `times` as wide as its settings say."""

    fit: int | None
    """Bytes that artifact and code may take together; None: whatever comes out."""
    times: float

    def quantize(self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> dict[str, Entry]:
        """As Quantizer.quantize, at `times`."""
        ...

    def draft(self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> dict[str, Entry]:
        """Nearly the same bytes, quickly."""
        ...


@runtime_checkable
class Calibrates(Protocol):
    """What a quantizer has that wants to see what was trained, not only the weights."""

    def calibrate(self, trained: Trained) -> None:
        """Called once before `quantize`, on every rank: each must do the same collective operations.

        Its time counts as training's, since it reads training data, and `reserve_s` is kept free for it. What it
        changes in the model is put back afterwards.
        """
        ...
