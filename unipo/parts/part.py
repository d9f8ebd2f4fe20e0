"""What a part is: a frozen dataclass with one pure call, that says which columns it reads and adds.

A part keeps nothing between calls.  What must survive from one update to the next (a running baseline, an
adaptive coefficient) is returned by `remember` and arrives again as `batch.states[key]`; the loop saves it in
checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from unipo.batch import Batch, Value

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
        """Columns that must exist before this part is called."""
        return ()

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Providers of needed columns that this part brings along."""
        return ()

    def formula(self) -> str:
        """What this part computes, with its settings filled in, as `unipo explain` prints it."""
        raise NotImplementedError

    def bound_to(self, max_tokens: int) -> Self:
        """With a length that was left open (0) set by the run's generation budget."""
        return self

    def settings(self) -> dict[str, Any]:
        """Every setting by name, as `--set` and `unipo diff` spell them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def state_key(self) -> str | None:
        """Name under which this part's memory is kept; None for a part without memory."""
        return None

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        """The memory after this update batch, given `batch.states.get(key)` from before it."""
        raise NotImplementedError

    def measure(self, batch: Batch) -> Mapping[str, float]:
        """Numbers about the judged batch for the log, by the names of `unipo.training.metrics.GLOSSARY`."""
        return {}


Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Continuations:
    """Responses that were sampled on from some prefixes. reward: [K, n], nan where it could not be scored;
    truncated: [K, n] bool."""

    reward: Tensor
    truncated: Tensor


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

    def value(self, batch: Batch) -> Tensor:
        """[T] what the value model expects before each token. Only for methods with `value=ValueLearning(...)`."""
        ...

    def continued(self, batch: Batch, at: Tensor, n: int) -> Continuations:
        """Rewards of n fresh responses from each of some places: the prefix that ends just before token `at` [K]."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens."""
        ...

    def prompt(self, prompt: Any) -> list[int]:
        """Token ids of a prompt (text or chat messages), rendered as those of the run."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, without special tokens and without their names."""
        ...

    def black(self) -> Tensor:
        """[C] what a black pixel is in the batch's column `images`."""
        ...


@dataclass(frozen=True)
class Signal(Part):
    """Fills columns by running models over a batch without gradient.

    level: of those columns that `unipo.columns` does not know.  per_step: computed for every minibatch with the
    weights that are about to be updated, for `Objective.prepare`; otherwise once per batch.
    """

    level: ClassVar[str] = "token"
    per_step: ClassVar[bool] = False

    def active(self, batch: Batch) -> bool:
        """False when nothing will read the columns at this step, so the passes can be saved."""
        return True

    def __call__(self, batch: Batch, scorer: Scorer) -> Mapping[str, Value]:
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
    """Reward to reward. Returns the column named by `adds`: `reward` [S], or `token_reward` [T]."""

    adds: ClassVar[tuple[str, ...]] = ("reward",)

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
class Advantage(Part):
    """How much better than expected. Returns one value per unit of `level`: 'sequence' [S] or 'token' [T].

    batchwide: it is standardised over the batch at last, so that a group of equal rewards moves against the others.
    """

    level: ClassVar[str] = "sequence"
    batchwide: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Credit(Part):
    """Redistributes `batch.advantage` over tokens. Returns [T]."""

    @property
    def unit(self) -> str:
        """The smallest piece that gets a weight of its own: 'token' or 'response'."""
        return "token"

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
class Divergence:
    """What the policy's pass is to measure against a teacher: fills the live column `divergence`.

    The teacher sees `teacher_context` in place of the prompt.  kind, beta: see `unipo.parts.teacher`; top: 0 for the
    whole vocabulary; temperature: None for that of sampling; weights: 'policy' or 'reference'.
    """

    kind: str = "jsd"
    beta: float = 0.5
    top: int = 0
    temperature: float | None = None
    weights: str = "reference"


@dataclass(frozen=True)
class Resampled:
    """What the policy's pass draws anew at every position: fills the live columns `resampled_logp`, `resampled_hits`.

    count: K tokens, with replacement, from the policy's distribution at `temperature` times that of the run.
    """

    count: int
    temperature: float = 1.0


@dataclass(frozen=True)
class Objective(Part):
    """A loss per unit, before averaging.

    level: 'token', 'sequence' or 'prompt': the unit a value belongs to; a unit is never split between
    micro-batches.  The call returns one value per unit; the method's average turns them into one number.
    prepares: names and levels of the columns that `prepare` makes.  compares: how many responses a prompt of the data
    must bring, 0 for any number.
    """

    level: ClassVar[str] = "token"
    compares: ClassVar[int] = 0
    prepares: ClassVar[Mapping[str, str]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def prepare(self, batch: Batch) -> Mapping[str, Tensor]:
        """What must be counted over a whole minibatch before it is cut and shared: the columns named in `prepares`.

        They travel with every piece, so the gradient does not depend on the cut.  A number (0-dimensional tensor)
        is given to every row.  No gradient; sees `current_logp` if the part needs it, never `logp`.
        """
        return {}

    @property
    def resampled(self) -> Resampled | None:
        """What `resampled_logp` and `resampled_hits` are to hold, for an objective that reads them."""
        return None

    def active(self, batch: Batch) -> Tensor:
        """[T] bool: tokens whose log-prob can receive gradient. Others are never computed."""
        mask: Tensor = batch.mask
        return mask

    @property
    def divergence(self) -> Divergence | None:
        """What `batch.divergence` must hold, for an objective that reads it."""
        return None

    def pieces(self, batch: Batch) -> Pieces:
        """Mask, ratio and advantage of every token, where the loss factors into them."""
        raise NotImplementedError(f"{type(self).__name__} does not factor into mask, ratio and advantage")


@dataclass(frozen=True)
class Regulariser(Objective):
    """A loss term with its own coefficient, averaged like the main objective. A coefficient of 0 removes it."""

    @property
    def coefficient(self) -> float:
        """What the term is multiplied by; at 0 it is left out, with everything it alone would read."""
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
