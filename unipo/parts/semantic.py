"""Which responses of a group mean the same, how much the group disagrees, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError, unknown
from unipo.layout import Layout, segment_sum
from unipo.parts.group_weight import GroupWeight
from unipo.parts.part import Derived, Shaping, Signal

OF = ("answer", "text")
MISSING = ("together", "apart")
Same = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]


def greedy_clusters(texts: Sequence[str | None], same: Same, missing: str) -> list[int]:
    """The cluster of each text, numbered from 0 in order of first appearance.

    Each text joins the first cluster whose first member is the same, else it opens one.  same(pairs): whether
    (representative, text) mean the same; it is never asked about equal strings.  None is the same as nothing but,
    with missing="together", as other Nones.
    Source: Kuhn et al. (arXiv 2302.09664), algorithm 1; QingyangZhang/EMPO: semantic_uncertainty.py.
    """
    heads: list[str | None] = []
    found: list[int] = []
    for text in texts:
        place = next((k for k, head in enumerate(heads) if head is not None and head == text), None)
        if place is None and text is None and missing == "together" and None in heads:
            place = heads.index(None)
        if place is None and text is not None:
            others = [(k, head) for k, head in enumerate(heads) if head is not None]
            verdicts = same([(head, text) for _, head in others])
            place = next((k for (k, _), yes in zip(others, verdicts, strict=True) if yes), None)
        if place is None:
            place = len(heads)
            heads.append(text)
        found.append(place)
    return found


@dataclass(frozen=True)
class Clusters(Derived):
    """Column `cluster`: which responses of a group mean the same. [S] int, from 0 inside each group.

    of: "answer" compares the final answers that the reward extracted, "text" whole responses, both without white
    space around them.  by: "exact" compares letters; anything else is a reward's name (`maths`, `numbers`,
    `rewards.py:same`), which is given one of two different texts as the answer and the other as the response, and
    says "the same" with a value above one half; None says no.  missing: responses without an answer are
    "together" in one cluster, or "apart" in one each.
    With several ranks every rank asks the reward, so its verdicts must not depend on how busy a machine is.
    Needs no model; a source or a user's own signal may give the column instead, and is then believed.
    Source: Kuhn et al. (arXiv 2302.09664), semantic equivalence.
    """

    source = "Semantic Uncertainty (arXiv 2302.09664), algorithm 1"
    adds: ClassVar[tuple[str, ...]] = ("cluster",)
    of: str = "answer"
    by: str = "exact"
    missing: str = "together"

    def __post_init__(self) -> None:
        for value, known, what in ((self.of, OF, "what is clustered"), (self.missing, MISSING, "place of no answer")):
            if value not in known:
                raise unknown(f"{what} (Clusters)", value, known)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("extracted",) if self.of == "answer" else ("text",)

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        texts = [_plain(x) for x in (batch.extracted if self.of == "answer" else batch.text)]
        sizes = batch.layout.group_sizes.tolist()
        groups, start = [], 0
        for size in sizes:
            groups.append(texts[start : start + size])
            start += size
        same = self._same(groups)
        found = [k for group in groups for k in greedy_clusters(group, same, self.missing)]
        return {"cluster": torch.tensor(found, dtype=torch.int64, device=batch.layout.device)}

    def _same(self, groups: list[list[str | None]]) -> Same:
        """Equality of different texts. A reward is asked once, about every pair that some group may ask for."""
        if self.by == "exact":
            return lambda pairs: [False] * len(pairs)
        from unipo.rewards import Sample, resolve_reward

        pairs: dict[tuple[str, str], None] = {}
        for group in groups:
            distinct = list(dict.fromkeys(t for t in group if t is not None))
            pairs |= dict.fromkeys((a, b) for i, a in enumerate(distinct) for b in distinct[i + 1 :])
        samples = [Sample(prompt="", text=b, answer=a) for a, b in pairs]
        values = resolve_reward(self.by)(samples).total if samples else []
        verdict = {pair: v is not None and v > 0.5 for pair, v in zip(pairs, values, strict=True)}
        return lambda asked: [verdict[pair] for pair in asked]

    def formula(self) -> str:
        what = "final answers" if self.of == "answer" else "texts"
        how = "equal" if self.by == "exact" else f"equal by {self.by}"
        return f"c_i: {what} of a group that are {how}; without one: {self.missing}"


def _plain(text: str | None) -> str | None:
    return None if text is None else text.strip() or None


def cluster_sum(value: Tensor, cluster: Tensor, layout: Layout, where: Tensor) -> Tensor:
    """[S] the sum of a sequence column over the members (that satisfy `where`) of the response's own cluster.

    value: [S]; cluster: [S] int >= 0, meaningful inside its group; where: [S] bool.  0 off `where`.
    """
    if cluster.is_floating_point() or bool((cluster < 0).any()):
        raise DataError(
            "column 'cluster' holds whole numbers from 0, equal for responses of a group that mean the same"
        )
    width = int(cluster.max()) + 1 if len(cluster) else 1
    key = layout.seq_prompt * width + cluster.to(torch.int64)
    total = segment_sum(torch.where(where, value, torch.zeros_like(value)), key, layout.n_prompts * width)
    return torch.where(where, total[key], torch.zeros_like(value))


def cluster_share(cluster: Tensor, layout: Layout, where: Tensor, weight: Tensor | None = None) -> Tensor:
    """p(c_i) = sum_{j in c_i} w_j / sum_j w_j, the share of the group that agrees with response i. [S] in [0, 1].

    cluster: [S] int; where: [S] bool, members that count; weight: [S] >= 0, default 1.  0 off `where`.
    Source: EMPO (arXiv 2504.05812); SEED-GRPO (arXiv 2505.12346) with likelihood weights.
    """
    w = torch.ones(layout.n_sequences, dtype=torch.float64, device=where.device) if weight is None else weight
    # Both sums run over the same members in the same order, so that unanimity is exactly 1.
    total = cluster_sum(w, torch.zeros_like(cluster), layout, where)
    return cluster_sum(w, cluster, layout, where) / torch.where(total > 0, total, torch.ones_like(total))


def semantic_entropy(
    cluster: Tensor, layout: Layout, where: Tensor, weight: Tensor | None = None, monte_carlo: bool = False
) -> Tensor:
    """Entropy of a group's meanings, in nats: SE = - sum_k p(C_k) log p(C_k), at most log G. [P].

    monte_carlo: SE = -(1/K) sum_k log p(C_k) over the K clusters; at most log G with counts, unbounded with
    weights.  weight: [S] >= 0, a response's share (see `cluster_share`).  A group in which nothing counts has 0.
    Source: SEED-GRPO (arXiv 2505.12346); Kuhn et al. (arXiv 2302.09664).
    """
    share = cluster_share(cluster, layout, where, weight)
    counts = where & (share > 0)
    surprise = -torch.where(counts, share, torch.ones_like(share)).log()
    size = cluster_sum(torch.ones_like(share), cluster, layout, where).clamp(min=1)
    if monte_carlo:
        clusters = layout.group_sum(1 / size, where)
        return layout.group_sum(surprise / size, where) / torch.where(clusters > 0, clusters, 1.0)
    return layout.group_sum(share * surprise / size, where).clamp(min=0)


# -- SEED-GRPO -----------------------------------------------------------------------------------------------
SCALES = ("linear", "exponential", "focal")


def uncertainty_scale(share: Tensor, alpha: float, form: str) -> Tensor:
    """f in [0, 1] from the normalised semantic entropy. share: [P] SE / log G. Returns [P].

    linear: max(0, 1 - alpha s);  exponential: exp(-alpha s);  focal: (1 - s)^alpha, 0 clamped.  alpha 0 is 1.
    Source: SEED-GRPO (arXiv 2505.12346).
    """
    if form == "linear":
        return (1 - alpha * share).clamp(min=0)
    if form == "exponential":
        return (-alpha * share).exp()
    return (1 - share).clamp(min=0) ** alpha


@dataclass(frozen=True)
class SemanticEntropyWeight(GroupWeight):
    """SEED-GRPO: smaller steps on prompts whose answers differ in meaning, w_g = f(alpha SE_g / log G).

    alpha: 0 switches it off; 0.0417 is 0.02 per nat at G = 8, so that weights lie in [0.958, 1].  form: see
    `uncertainty_scale`.  likelihood: weigh each response's share by its length-normalised likelihood under the
    policy that sampled it, l_i = exp(mean_t log pi_old(y_t)), which the engine gave; else count heads.
    monte_carlo: the paper's estimator -(1/K) sum_k log p(C_k).  Unscored responses count nowhere; G counts the
    scored, and a group of one keeps its weight 1.
    Source: SEED-GRPO (arXiv 2505.12346).
    Unsure: the published alpha; the form of f ("focal" is a guess at it); likelihood or counts; where responses
    without an answer belong.
    """

    source = "SEED-GRPO (arXiv 2505.12346)"
    alpha: float = 0.0417
    form: str = "linear"
    likelihood: bool = True
    monte_carlo: bool = False
    clusters: Clusters = Clusters()

    def __post_init__(self) -> None:
        if self.form not in SCALES:
            raise unknown("form of the semantic entropy weight", self.form, SCALES)
        if self.alpha < 0:
            raise ConfigError(f"SemanticEntropyWeight.alpha must not be negative, got {self.alpha}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "cluster", "scored", *(("behaviour_logp", "trainable") if self.likelihood else ()))

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.clusters,)

    def entropy(self, batch: Batch) -> Tensor:
        """[P] semantic entropy in nats."""
        weight = None
        if self.likelihood:
            weight = batch.layout.seq_mean(batch.behaviour_logp.to(torch.float64), batch.trainable).exp()
        return semantic_entropy(batch.cluster, batch.layout, batch.scored, weight, self.monte_carlo)

    def weights(self, batch: Batch) -> Tensor:
        largest = batch.layout.group_count(batch.scored).clamp(min=1).to(torch.float64).log()
        share = torch.where(largest > 0, self.entropy(batch) / largest.clamp(min=1e-12), torch.zeros_like(largest))
        return uncertainty_scale(share, self.alpha, self.form)

    def formula(self) -> str:
        f = {"linear": "max(0, 1 - {a} u)", "exponential": "exp(-{a} u)", "focal": "(1 - u)^{a}"}[self.form]
        p = "sum_C l_i / sum l_i, l_i = exp(mean_t log pi_old)" if self.likelihood else "|C|/G"
        se = "-(1/K) sum_C log p(C)" if self.monte_carlo else "-sum_C p(C) log p(C)"
        return f"A_it *= {f.format(a=f'{self.alpha:g}')},  u = SE/log G,  SE = {se},  p(C) = {p}"


# -- EMPO ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ClusterShare(Shaping):
    """EMPO: a response's reward is the share of its group that agrees with it, R_i = p(cluster of i). No labels.

    Whatever the reward said is replaced; it only decides what is scored and which answer was extracted.  The
    mean of R over a group is the collision probability sum_c p(c)^2 where no guard acts (empty=None, below=None).
    empty: reward of a response without an answer; None keeps its share (1/G where such responses are apart).
    below, above: share of log G between which the group's entropy must lie, else all its rewards are 0; the
    released maths code has below 1 and nothing above 0, the paper's text speaks of two bounds.  least: all
    rewards are 0 where the largest cluster is smaller than this share and there are several.
    Variants of the code: maths (TRL) as here; free text (TRL) empty=-0.5, below=None, least=0.2; verl empty=None,
    below=None.
    Source: EMPO (arXiv 2504.05812); QingyangZhang/EMPO: rewards.py.
    """

    source = "EMPO (arXiv 2504.05812); QingyangZhang/EMPO"
    empty: float | None = 0.0
    below: float | None = 1.0
    above: float | None = None
    least: float = 0.0
    clusters: Clusters = Clusters(missing="apart")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("cluster", "scored", "extracted")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.clusters,)

    def trusted(self, batch: Batch) -> Tensor:
        """[P] bool: groups that pass the guards."""
        layout, scored, cluster = batch.layout, batch.scored, batch.cluster
        entropy = semantic_entropy(cluster, layout, scored)
        largest = layout.group_count(scored).clamp(min=1).to(torch.float64).log()
        ok = torch.ones(layout.n_prompts, dtype=torch.bool, device=scored.device)
        # log G and -sum log(1/G)/G differ in the last digit; a group that disagrees throughout is not below.
        if self.below is not None:
            ok = ok & (entropy < self.below * largest * (1 - 1e-9))
        if self.above is not None:
            ok = ok & (entropy > self.above * largest)
        biggest = layout.group_max(cluster_share(cluster, layout, scored), scored)
        return ok & ((biggest >= self.least) | (biggest == 1))

    def __call__(self, batch: Batch) -> Tensor:
        share = cluster_share(batch.cluster, batch.layout, batch.scored)
        share = torch.where(batch.layout.to_sequences(self.trusted(batch)), share, torch.zeros_like(share))
        if self.empty is None:
            return share
        lacking = torch.tensor([_plain(x) is None for x in batch.extracted], dtype=torch.bool, device=share.device)
        return torch.where(lacking & batch.scored, torch.full_like(share, self.empty), share)

    def formula(self) -> str:
        bounds = [] if self.above is None else [f"{self.above:g} log G < H"]
        bounds += [] if self.below is None else [f"H < {self.below:g} log G"]
        bounds += [f"max p >= {self.least:g}"] if self.least else []
        guard = f" if {', '.join(bounds)} else 0" if bounds else ""
        empty = "" if self.empty is None else f";  without an answer {self.empty:g}"
        return f"R_i = |cluster of i|/G{guard}{empty}"


@dataclass(frozen=True)
class MajorityVote(Shaping):
    """R_i = 1 for members of the largest cluster (of every largest one in a tie), else 0. No labels.

    Responses without an answer get 0 and take no part in the vote.
    Source: QingyangZhang/EMPO (voting reward); TTRL (arXiv 2504.16084), which breaks ties.
    """

    source = "QingyangZhang/EMPO: voting reward; TTRL (arXiv 2504.16084)"
    clusters: Clusters = Clusters(missing="apart")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("cluster", "scored", "extracted")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.clusters,)

    def __call__(self, batch: Batch) -> Tensor:
        layout = batch.layout
        answered = torch.tensor([_plain(x) is not None for x in batch.extracted], dtype=torch.bool)
        votes: Tensor = batch.scored & answered.to(batch.scored.device)
        size = cluster_sum(
            torch.ones(layout.n_sequences, dtype=torch.float64, device=votes.device), batch.cluster, layout, votes
        )
        largest: Tensor = size == layout.to_sequences(layout.group_max(size, votes))
        return (votes & largest).to(torch.float64)

    def formula(self) -> str:
        return "R_i = 1 if i is in a largest cluster of its group, else 0"
