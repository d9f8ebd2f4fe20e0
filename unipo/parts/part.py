"""What a part is: a frozen dataclass with one pure call, that says which columns it reads and adds.

A part keeps nothing between calls.  What must survive from one update to the next (a running baseline, an
adaptive coefficient) is returned by `remember` and arrives again as `batch.states[key]`; the loop saves it in
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError

# Beyond +-20 a ratio of probabilities is no longer information (e^20 = 5e8), and e^89 overflows float32.
LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class Part:
    """Base of every part.

    needs: columns read (a property where it depends on the settings).  adds: columns made.
    formula: the exact formula with this part's settings filled in.  source: paper or code it follows.
    """

    adds: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = ""
    smallest_group: ClassVar[int] = 1

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Providers of needed columns that this part brings along."""
        return ()

    def formula(self) -> str:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def state_key(self) -> str | None:
        """Name under which this part's memory is kept; None for a part without memory."""
        return None

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        """The memory after this update batch, given `batch.states.get(key)` from before it."""
        raise NotImplementedError


Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


class Scorer(Protocol):
    """What a signal may ask of the models. Implemented by `unipo.policy`; no gradient flows."""

    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        """[T] log-prob of `batch.tokens` after `batch.context` under 'policy' or 'reference' weights."""
        ...

    def per_place(self, batch: Batch, where: Tensor, measure: Measure) -> Tensor:
        """[T] a statistic of whole next-token distributions, one for each place in the responses of a prompt.

        A place is a position inside a response, shared by the responses of a prompt.  measure(logp, place, group)
        gets the [n, V] log-probs at the tokens (`where`: [T] bool) of some complete places, [n] the place of each
        row in [0, m), ascending, and [m] how many responses each place's prompt has, and returns [m].
        Tokens of a place get its value; those off `where` get 0.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens."""
        ...


@dataclass(frozen=True)
class Signal(Part):
    """Fills columns by running models over a batch without gradient.

    level: of those columns that `unipo.columns` does not know.
    """

    level: ClassVar[str] = "token"

    def active(self, batch: Batch) -> bool:
        """False when nothing will read the columns at this step, so the passes can be saved."""
        return True

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class Derived(Signal):
    """A signal that asks no model: columns computed from other columns (clusters of answers, a behaviour in a text)."""

    def __call__(self, batch: Batch, scorer: Scorer | None = None) -> dict[str, Tensor]:
        return self.derive(batch)

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        """The columns, by name."""
        raise NotImplementedError


@dataclass(frozen=True)
class Shaping(Part):
    """Reward to reward. Returns [S]."""

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Selection(Part):
    """Which prompts, sequences or tokens take part. Returns a bool column of `level`.

    A selection of prompts comes before everything that costs a pass.  One of sequences or tokens narrows `mask`:
    before shaping, or, if `late`, after credit, when it can read advantages.
    """

    level: ClassVar[str] = "prompt"
    late: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Refill(Selection):
    """A selection of prompts whose losses are made good by sampling further prompts.

    rounds: at most this many sampling rounds per update; 0 is no limit.  when_dry: what to do when they are used
    up with too few prompts kept: 'train' on what there is (an update without any is skipped and counted), 'fill'
    the batch with dropped prompts in the order of `tier`, or 'raise'.  surplus: qualifying prompts beyond the need
    are dropped ('drop'), kept for the next update ('keep'), or trained on now ('use').
    """

    rounds: int = 10
    when_dry: str = "train"
    surplus: str = "drop"

    def __post_init__(self) -> None:
        known = self.when_dry in ("train", "fill", "raise") and self.surplus in ("drop", "keep", "use")
        if not known or self.rounds < 0:
            raise ConfigError(
                f"{type(self).__name__}: when_dry is train|fill|raise, surplus drop|keep|use, rounds >= 0; got {self}"
            )

    def tier(self, batch: Batch) -> Tensor:
        """[P] int: which dropped prompts fill a dry batch first (lowest), in the order they were sampled."""
        return torch.zeros(batch.layout.n_prompts, dtype=torch.int64)

    @property
    def limit(self) -> str:
        """The number of rounds, for a formula."""
        return f"at most {self.rounds or 'any number of'} rounds"


@dataclass(frozen=True)
class Rewrite:
    """A prompt to be made of another. prompt: its place in the batch; instruction: what the policy is told; label:
    what the column `variant` calls the result."""

    prompt: int
    instruction: str
    label: str


@dataclass(frozen=True)
class Rewrites:
    """Rewritings to sample, one text each, and how."""

    requests: tuple[Rewrite, ...]
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Curriculum(Part):
    """Which prompts come next: how many of which pool, and which are made out of others.

    Every prompt belongs to a pool, and the prompts of a pool come in endless passes, each in its own shuffled
    order.  `remember` is called once per step with everything that was sampled, before any selection drops some.
    This base keeps one pool: the data as it is.
    """

    def pool(self, row: Mapping[str, Any], prompt_id: int) -> str:
        """The pool a prompt belongs to. row: its data row; prompt_id: its number in the data."""
        return ""

    def counts(self, memory: Mapping[str, Any], sizes: Mapping[str, int], n: int, draw: torch.Generator) -> list[int]:
        """How many of the next n prompts come from each pool. sizes: prompts in each, in order.

        Deterministic in its arguments; `draw` is the place for chance.
        """
        return [n, *[0] * (len(sizes) - 1)]

    def rewrites(self, batch: Batch, problems: Sequence[str]) -> Rewrites | None:
        """What the policy shall rewrite, after a sampling round. problems: [P] text of each prompt."""
        return None

    def accept(self, text: str) -> str | None:
        """The rewritten prompt in what the policy wrote; None if there is none."""
        return text


@dataclass(frozen=True)
class Advantage(Part):
    """How much better than expected. Returns one value per unit of `level`: 'sequence' [S] or 'token' [T]."""

    level: ClassVar[str] = "sequence"

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Credit(Part):
    """Redistributes `batch.advantage` over tokens. Returns [T]."""

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Pieces:
    """An objective's gradient in the terms of the unified estimator (arXiv 2509.04419), per token:

        d loss_t / d logp_t = - mask_t * ratio_t * advantage_t,   ratio = policy / reference policy

    before averaging.  mask, ratio, advantage: [T], detached.
    """

    mask: Tensor
    ratio: Tensor
    advantage: Tensor

    @property
    def gradient(self) -> Tensor:
        """[T] d loss / d logp with zero, not 0*inf, wherever the mask is 0."""
        return torch.where(self.mask != 0, -self.mask * self.ratio * self.advantage, torch.zeros_like(self.ratio))


@dataclass(frozen=True)
class Objective(Part):
    """A loss per unit, before averaging.

    level: 'token', 'sequence' or 'prompt': the unit a value belongs to; a unit is never split between
    micro-batches.  The call returns one value per unit; the method's average turns them into one number.
    """

    level: ClassVar[str] = "token"

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def active(self, batch: Batch) -> Tensor:
        """[T] bool: tokens whose log-prob can receive gradient. Others are never computed."""
        mask: Tensor = batch.mask
        return mask

    def pieces(self, batch: Batch) -> Pieces:
        raise NotImplementedError(f"{type(self).__name__} does not factor into mask, ratio and advantage")


@dataclass(frozen=True)
class Regulariser(Objective):
    """A loss term with its own coefficient, averaged like the main objective. A coefficient of 0 removes it."""

    @property
    def coefficient(self) -> float:
        raise NotImplementedError


def log_ratio(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """log(pi_new / pi_old) where `mask`, 0 elsewhere; clamped to +-20. new, old: [T], mask: [T] bool.

    Selected before the clamp and long before exp: a masked token may have an infinite ratio without
    0 * inf = nan reaching the loss or its gradient.
    """
    difference = torch.where(mask, new - old, torch.zeros_like(new))
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def inside_limit(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """[T] bool: counted tokens whose log-ratio is not clamped, so that `log_ratio` passes its gradient on."""
    difference = torch.where(mask, new - old, torch.zeros_like(new))
    return mask & (difference.abs() <= LOG_RATIO_LIMIT)
