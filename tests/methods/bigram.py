"""A policy small enough to check everything: log-probs of a token given the one before it and the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.layout import Layout

VOCABULARY = 11


class Bigram:
    """logit(token | previous, prompt) = table[previous, token] + prompt_table[sum of prompt mod V, token].

    The first token of a response follows the prompt's last token.  float64.  It is a `Scorer` (no gradient:
    `logp`, `encode`) and a differentiable policy (`live`).  `calls` records what it was asked to score.
    """

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)

        def table(scale: float) -> Tensor:
            return scale * torch.randn(2, VOCABULARY, VOCABULARY, generator=draw, dtype=torch.float64)

        self.theta = table(0.7).requires_grad_()
        self.reference = self.theta.detach() + table(0.2)
        self.calls: list[tuple[str, Batch]] = []

    def distribution(self, batch: Batch, theta: Tensor) -> Tensor:
        """[T, V] log-probs at every position."""
        layout = batch.layout
        last = batch.context[layout.context_starts + layout.context_lengths - 1]
        total = torch.zeros(layout.n_prompts, dtype=torch.int64)
        owner = torch.repeat_interleave(torch.arange(layout.n_prompts), layout.context_lengths)
        total = total.index_add(0, owner, batch.context) % VOCABULARY
        before = torch.cat([batch.tokens.new_zeros(1), batch.tokens[:-1]]) if layout.n_tokens else batch.tokens
        before = torch.where(layout.token_position == 0, last[layout.token_prompt], before)
        return (theta[0][before] + theta[1][total][layout.token_prompt]).log_softmax(-1)

    def _of_tokens(self, batch: Batch, theta: Tensor) -> Tensor:
        return self.distribution(batch, theta).gather(1, batch.tokens[:, None])[:, 0]

    def live(self, batch: Batch) -> Batch:
        """The batch with every live column under the current weights, with gradient.

        Tokens drawn anew are at temperature 1.3, and their number is infinite.
        """
        full = self.distribution(batch, self.theta)
        drawn = (full.detach() / 1.3).softmax(-1)
        logp, hits = (x.gather(1, batch.tokens[:, None])[:, 0] for x in (full, drawn))
        return batch.with_columns(
            None,
            logp=logp,
            entropy=-(full.exp() * full).sum(1),
            resampled_logp=(drawn * full).sum(1),
            resampled_hits=hits,
        )

    # -- Scorer ------------------------------------------------------------------------------------
    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        self.calls.append((weights, batch))
        return self._of_tokens(batch, self.theta.detach() if weights == "policy" else self.reference)

    def encode(self, text: str) -> list[int]:
        return [ord(c) % VOCABULARY for c in text]


class Spoiling(Bigram):
    """The same policy, but what it says of tool tokens is not a number."""

    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        poison = float("nan") if weights == "reference" else float("-inf")
        return torch.where(batch.trainable, super().logp(batch, weights), poison)


def random_rollout(seed: int, group: int, pairs: bool = False) -> Batch:
    """Six prompts with groups of `group` responses, every column a source or a reward can give.

    Tool tokens, an empty response, a truncated one, an unscored one (with reward nan), and a group whose rewards
    are all 0.1.  With groups of one the first prompts are that group.
    """
    draw = torch.Generator().manual_seed(seed)
    prompts = 6
    n = prompts * group
    lengths = torch.randint(1, 6, (n,), generator=draw)
    lengths[n // 2] = 0
    layout = Layout.of(lengths, [group] * prompts, torch.randint(1, 4, (prompts,), generator=draw))
    tokens = layout.n_tokens
    reward = torch.randint(0, 9, (n,), generator=draw).double() / 8
    reward[: max(group, 2)] = 0.1
    scored = torch.ones(n, dtype=torch.bool)
    scored[n - 2] = pairs
    reward = torch.where(scored, reward, float("nan"))
    truncated = torch.zeros(n, dtype=torch.bool)
    truncated[n - 1] = True
    trainable = torch.rand(tokens, generator=draw) > 0.2
    trainable[layout.seq_starts[0]] = False
    if pairs:
        trainable[layout.token_prompt == 2] = False  # a pair with nothing to learn from
    preference = torch.rand(prompts, generator=draw)[:, None].double() * torch.linspace(-1, 1, group).double()
    return Batch.of(
        layout,
        context=torch.randint(0, VOCABULARY, (layout.n_context,), generator=draw),
        tokens=torch.randint(0, VOCABULARY, (tokens,), generator=draw),
        trainable=trainable,
        behaviour_logp=-torch.rand(tokens, generator=draw, dtype=torch.float64),
        behaviour_entropy=torch.rand(tokens, generator=draw, dtype=torch.float64),
        version=torch.zeros(tokens, dtype=torch.int64),
        lag=layout.token_seq % 3,
        truncated=truncated,
        sample_id=torch.arange(n),
        prompt_id=torch.arange(prompts),
        preference=preference.flatten(),
        row=[{} for _ in range(prompts)],
        text=[str(i) for i in range(n)],
        answer=["7" for _ in range(prompts)],
        extracted=[None if i % 4 == 3 else str(i % 3) for i in range(n)],
        score=torch.where(scored, (reward > 0.5).double(), float("nan")),
        reward=reward,
        scored=scored,
    )
