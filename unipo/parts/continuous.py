"""Continuous tokens: a step of a response is a mixture of token embeddings, and the last step an ordinary token.

A step stands in the batch as two columns of one width W: `step_ids` [T, W] token ids and `step_log_weights` [T, W]
the logarithms of their weights (-inf where a slot is empty).  What is fed back is sum_w weight_w E[id_w].  `tokens`
holds the token of the heaviest slot of each step (of K sampled tokens the first drawn), for people and rewards.
Weights are logarithms because a Dirichlet with small concentrations puts e^-1000 on a token, and its density reads
exactly that number.

A `ContinuousStep` says how such a step is drawn and what its log-probability is.  That number takes the place of a
token's log-probability in the columns `logp`, `old_logp`, `reference_logp` and `behaviour_logp`, so that objectives,
averages and regularisers stay as they are: their ratio is the step's ratio.  Sampled weights are constants.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.errors import ConfigError
from unipo.parts.source import Demonstrations, OnPolicy

PAPER = "CoT2 (arXiv 2505.23648)"
STEP_COLUMNS = ("step_ids", "step_log_weights")
# chance(first, count): [n, count] float64 in [0, 1), numbers first .. first + count - 1 of every row's own stream.
Chance = Callable[[int, int], Tensor]


def tokens_logp(logp: Tensor, normalised: bool) -> Tensor:
    """Log-probability of K tokens drawn independently: sum_k log p(i_k), or its mean where `normalised` is false.

    logp: [n, K] log-probs of the drawn tokens, nats.  Returns [n].  Not normalised, the ratio made of two such numbers
    is the geometric mean of the K token ratios; normalised (temperature K), their product.
    Source: CoT2 (arXiv 2505.23648), sec. 4.1; alperengozeten/CoT2: continuous_train_grpo_mts.py.
    """
    return logp.sum(-1) if normalised else logp.mean(-1)


def concentrations(log_p: Tensor, inside: Tensor, scale: float, floor: float) -> Tensor:
    """Parameters of the Dirichlet over a support: scale * max(p, floor) / sum_S max(p, floor), 0 outside it.

    log_p: [n, W] nats; inside: [n, W] bool, the support S.  Returns [n, W] float64, rows adding up to `scale`.
    """
    p = log_p.double().exp().clamp(min=floor)
    p = torch.where(inside, p, torch.zeros_like(p))
    return scale * p / p.sum(-1, keepdim=True)


def dirichlet_logp(log_p: Tensor, log_a: Tensor, scale: float, floor: float) -> Tensor:
    """Log-density of a point of the simplex under the Dirichlet that probabilities define (see `concentrations`).

        log Dir(a; c) = log Gamma(sum c) - sum log Gamma(c_v) + sum (c_v - 1) log a_v,   over v in S

    log_p: [n, W] log-probs of the candidates, nats; log_a: [n, W] logarithms of the weights, -inf outside S.
    Returns [n] float64 (a density: it may exceed 0).  Differentiable by log_p; no gradient where p is below the floor.
    Source: CoT2 (arXiv 2505.23648), sec. 4.2; alperengozeten/CoT2: continuous_train_grpo_dirichlet.py.
    """
    inside = log_a > -math.inf
    c = concentrations(log_p, inside, scale, floor)
    c_safe = torch.where(inside, c, torch.ones_like(c))  # Gamma(1) = 1 and a power of 0: an empty slot adds 0
    log_a = torch.where(inside, log_a.double(), torch.zeros_like(c))
    return torch.lgamma(c.sum(-1)) + ((c_safe - 1) * log_a - torch.lgamma(c_safe)).sum(-1)


def minus_divergence(log_p: Tensor, log_target: Tensor) -> Tensor:
    """-KL(target || p) = sum_v target_v (log p_v - log target_v): the log-likelihood of a distribution.

    log_p, log_target: [n, W] nats, log_target -inf on empty slots.  Returns [n], at most 0; log p(y) for a target that
    is one token y.
    Source: CoT2 (arXiv 2505.23648), eq. for continuous supervised fine-tuning (CSFT), sec. 3.
    """
    inside = log_target > -math.inf
    difference = torch.where(inside, log_p - log_target.to(log_p.dtype), torch.zeros_like(log_p))
    return (log_target.to(log_p.dtype).exp() * difference).sum(-1)


def trace_shares(traces: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """[steps] alpha*_t: the share of the traces in each state at step t; the last step is the best trace's answer alone.

    traces: states step by step, the best trace first, all of one length.  One trace is an ordinary chain of thought.
    Source: CoT2 (arXiv 2505.23648), sec. 3; alperengozeten/CoT2: train/continuous_train.py.
    """
    steps = [Counter(states) for states in zip(*(trace[:-1] for trace in traces), strict=True)]
    shares = [{state: count / len(traces) for state, count in step.items()} for step in steps]
    return [*shares, {traces[0][-1]: 1.0}]


def log_gamma_variates(shape: Tensor, chance: Chance) -> Tensor:
    """Logarithms of Gamma(shape, 1) variates, exact where the variate itself would underflow.

    shape: [n, w] float64, positive.  Returns [n, w] float64.
    Source: Marsaglia and Tsang 2000 for shape + 1, then log G(c) = log G(c + 1) + log(U) / c.
    """
    width = shape.shape[1]
    d = shape + 2.0 / 3.0
    c = (9 * d).rsqrt()
    found = torch.zeros_like(shape)
    todo = torch.ones_like(shape, dtype=torch.bool)
    for attempt in itertools.count():
        normal = math.sqrt(2) * torch.erfinv(2 * chance((2 * attempt + 1) * width, width) - 1)
        log_u = torch.log1p(-chance((2 * attempt + 2) * width, width))
        v = (1 + c * normal) ** 3
        log_v = v.clamp(min=torch.finfo(v.dtype).tiny).log()
        good = todo & (v > 0) & (log_u < normal * normal / 2 + d * (1 - v + log_v))
        found = torch.where(good, d.log() + log_v, found)
        todo = todo & ~good
        if not bool(todo.any()):
            break
    return found + torch.log1p(-chance(0, width)) / shape


@dataclass(frozen=True)
class ContinuousStep:
    """How a continuous token is drawn and scored.

    temperature: divides the logits before anything else, beside the run's own temperature.  width: slots per step.
    """

    @property
    def temperature(self) -> float:
        """What logits are divided by before the step is drawn."""
        return 1.0

    def width(self, vocabulary: int) -> int:
        """How many tokens a step mixes at most."""
        raise NotImplementedError

    def draw(self, log_p: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
        """One step per row. log_p: [n, V] nats.  Returns ([n, W] ids, [n, W] float64 log-weights)."""
        raise NotImplementedError

    def score(self, logp: Tensor, log_weights: Tensor) -> Tensor:
        """[n] log-probability of the steps. logp: [n, W] log-probs of their ids under the policy."""
        raise NotImplementedError

    def formula(self) -> str:
        """The step and its probability, with these settings."""
        raise NotImplementedError


@dataclass(frozen=True)
class SampledTokens(ContinuousStep):
    """Multi-token sampling: K tokens drawn independently, each with weight 1/K. See `tokens_logp`.

    normalised: draw at temperature K and score the product; otherwise at temperature 1, scored by the geometric mean.
    """

    k: int = 3
    normalised: bool = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"SampledTokens.k must be at least 1, got {self.k}")

    @property
    def temperature(self) -> float:
        return float(self.k) if self.normalised else 1.0

    def width(self, vocabulary: int) -> int:
        return self.k

    def draw(self, log_p: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
        running = log_p.double().exp().cumsum(-1)
        ids = torch.searchsorted(running, chance(0, self.k) * running[:, -1:], right=True)
        ids = ids.clamp_(max=log_p.shape[-1] - 1)
        return ids, torch.full(ids.shape, -math.log(self.k), dtype=torch.float64, device=ids.device)

    def score(self, logp: Tensor, log_weights: Tensor) -> Tensor:
        return tokens_logp(logp, self.normalised)

    def formula(self) -> str:
        power = "" if self.normalised else "^(1/K)"
        return f"z_t = (1/K) sum_k E[i_k],  i_k ~ softmax(logits/{self.temperature:g}),  pi(z_t) = (prod_k p(i_k)){power},  K = {self.k}"


@dataclass(frozen=True)
class DirichletStep(ContinuousStep):
    """Weights drawn from Dir(scale * p) over the tokens of probability at least `floor`. See `dirichlet_logp`.

    The support is that of the policy that samples, and is kept with the sample; the likeliest token always belongs to
    it.  The authors' code joins the supports of the current and the reference policy to it, which changes the simplex
    whose density is compared; at the first update of a batch, and without reference, both are the same.
    """

    scale: float = 1.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if self.scale <= 0 or not 0 < self.floor < 1:
            raise ConfigError(f"DirichletStep needs scale > 0 and 0 < floor < 1, got {self}")

    def width(self, vocabulary: int) -> int:
        return min(vocabulary, math.floor(1 / self.floor))  # no more tokens can have that probability

    def draw(self, log_p: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
        top = log_p.topk(self.width(log_p.shape[-1]), dim=-1)
        inside = top.values >= math.log(self.floor)
        inside[:, 0] = True
        c = concentrations(top.values, inside, self.scale, self.floor)
        log_g = log_gamma_variates(torch.where(inside, c, torch.ones_like(c)), chance)
        log_g = log_g.masked_fill(~inside, -math.inf)
        return top.indices, log_g.log_softmax(-1)

    def score(self, logp: Tensor, log_weights: Tensor) -> Tensor:
        return dirichlet_logp(logp, log_weights, self.scale, self.floor)

    def formula(self) -> str:
        return f"z_t = E^T a,  a ~ Dir({self.scale:g} p_S),  S = {{p >= {self.floor:g}}},  pi(z_t) = Dir(a)"


@dataclass(frozen=True)
class SoftTarget(ContinuousStep):
    """A given distribution over tokens. See `minus_divergence`.

    feed: "teacher" feeds the target's mixture E^T alpha*_t back, "self" the policy's own E^T alpha_t, with gradient,
    in one pass per step.
    """

    feed: str = "teacher"

    def __post_init__(self) -> None:
        if self.feed not in ("teacher", "self"):
            raise ConfigError(f"SoftTarget.feed is 'teacher' or 'self', got {self.feed!r}")

    def width(self, vocabulary: int) -> int:
        return vocabulary

    def score(self, logp: Tensor, log_weights: Tensor) -> Tensor:
        return minus_divergence(logp, log_weights)

    def formula(self) -> str:
        fed = "alpha*_t" if self.feed == "teacher" else "alpha_t"
        return f"log pi(z_t) = -KL(alpha*_t || alpha_t),  z_t = E^T {fed}"


@dataclass(frozen=True)
class ContinuousOnPolicy(OnPolicy):
    """The policy samples responses of `steps` steps: steps - 1 continuous ones, then one token."""

    source = "CoT2 (arXiv 2505.23648), sec. 4; alperengozeten/CoT2"
    adds: ClassVar[tuple[str, ...]] = (*OnPolicy.adds, *STEP_COLUMNS)
    steps: int = 4
    step: ContinuousStep = SampledTokens()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"ContinuousOnPolicy.steps must be at least 1, got {self.steps}")
        if isinstance(self.step, SoftTarget):
            raise ConfigError("SoftTarget gives no samples; use SampledTokens(...) or DirichletStep(...)")

    def formula(self) -> str:
        return f"{super().formula()}; y = (z_1..z_{self.steps - 1}, token);  {self.step.formula()}"


@dataclass(frozen=True)
class SoftDemonstrations(Demonstrations):
    """Responses that came with the data, each step a distribution over tokens.

    traces: B, learn the shares of the best B of `row["traces"]` (see `trace_shares`); 0 learns those of all, or the
    distributions in `row["steps"]` where the data holds them ready.
    """

    source = "CoT2 (arXiv 2505.23648), sec. 3; alperengozeten/CoT2: continuous_train.py"
    adds: ClassVar[tuple[str, ...]] = (*Demonstrations.adds, *STEP_COLUMNS)
    step: ContinuousStep = SoftTarget()
    traces: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.traces < 0:
            raise ConfigError(f"SoftDemonstrations.traces must not be negative, got {self.traces}")

    def formula(self) -> str:
        kept = f"the best {self.traces} traces" if self.traces else "all traces"
        return f"(x, traces) ~ data;  alpha*_t(v) = share of {kept} in v at step t;  {self.step.formula()}"
