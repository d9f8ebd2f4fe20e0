"""A policy small enough to check everything: log-probs of a token given the one before it and the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.layout import Layout
from unipo.parts.part import Continuations, Divergence, Measure

VOCABULARY = 11
TEXTS = ("<COT> ", "<ANSWER> ", "<CODE> <aux>a line</aux> ", "<LONG_COT> ", "no form ")


class Bigram:
    """logit(token | previous, prompt) = table[previous, token] + prompt_table[sum of prompt mod V, token].

    The first token of a response follows the prompt's last token.  float64.  It is a `Scorer` (no gradient:
    `logp`, `per_place`, `value`, `continued`, `encode`, ...) and a differentiable policy (`live`), with values on the
    same tables.  `calls` records what it was asked to score.
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
        return self._read(batch, theta).log_softmax(-1)

    def _read(self, batch: Batch, theta: Tensor) -> Tensor:
        """[T, V] what the tables say at every position."""
        layout = batch.layout
        last = batch.context[layout.context_starts + layout.context_lengths - 1]
        total = torch.zeros(layout.n_prompts, dtype=torch.int64)
        owner = torch.repeat_interleave(torch.arange(layout.n_prompts), layout.context_lengths)
        total = total.index_add(0, owner, batch.context) % VOCABULARY
        before = torch.cat([batch.tokens.new_zeros(1), batch.tokens[:-1]]) if layout.n_tokens else batch.tokens
        before = torch.where(layout.token_position == 0, last[layout.token_prompt], before)
        return theta[0][before] + theta[1][total][layout.token_prompt]

    def _values(self, batch: Batch, theta: Tensor) -> Tensor:
        """[T] a value head on the same tables, which sees what the log-prob of the token sees."""
        return 0.3 * self._read(batch, theta)[:, :3].sum(1)

    def _of_tokens(self, batch: Batch, theta: Tensor) -> Tensor:
        return self.distribution(batch, theta).gather(1, batch.tokens[:, None])[:, 0]

    def live(self, batch: Batch, against: Divergence | None = None) -> Batch:
        """The batch with its live columns under the current weights, with gradient. against: see `Policy.columns`."""
        full = self.distribution(batch, self.theta)
        logp = full.gather(1, batch.tokens[:, None])[:, 0]
        value = self._values(batch, self.theta)
        drawn = (full.detach() / 1.3).softmax(-1)  # drawn anew at temperature 1.3, infinitely many
        batch = batch.with_columns(
            None,
            logp=logp,
            entropy=-(full.exp() * full).sum(1),
            live_value=value,
            resampled_logp=(drawn * full).sum(1),
            resampled_hits=drawn.gather(1, batch.tokens[:, None])[:, 0],
        )
        if against is None:
            return batch
        return batch.with_columns(None, divergence=self._divergence(batch, full, logp, against))

    def _divergence(self, batch: Batch, full: Tensor, logp: Tensor, against: Divergence) -> Tensor:
        """[T] by the definitions, one response at a time; 0 where there is no teacher."""
        theta = self.theta.detach() if against.weights == "policy" else self.reference
        rows = []
        for i, context in enumerate(batch.teacher_context):
            one = batch.take_sequences([i])
            own = full[batch.layout.token_seq == i]
            if context is None:
                rows.append(own.sum(1) * 0)
                continue
            layout = Layout.of(one.layout.seq_lengths, [1], [len(context)])
            shown = Batch.of(layout, context=torch.tensor(context), tokens=one.tokens)
            p, q = (x / (against.temperature or 1.0) for x in (own, self.distribution(shown, theta)))
            p, q = p.log_softmax(-1), q.log_softmax(-1)
            if against.top and against.top < VOCABULARY:
                ids = p.topk(against.top, -1).indices
                p, q = (
                    torch.cat([x.gather(1, ids), (1 - x.gather(1, ids).exp().sum(1, True)).log()], 1) for x in (p, q)
                )
            m = ((1 - against.beta) * p.exp() + against.beta * q.exp()).log()
            kl = {
                "kl": (p.exp() * (p - q)).sum(1),
                "reverse_kl": (q.exp() * (q - p)).sum(1),
                "jsd": against.beta * (q.exp() * (q - m)).sum(1) + (1 - against.beta) * (p.exp() * (p - m)).sum(1),
            }
            rows.append(kl[against.kind])
        return torch.cat(rows)

    # -- Scorer ------------------------------------------------------------------------------------
    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        self.calls.append((weights, batch))
        return self._of_tokens(batch, self.theta.detach() if weights == "policy" else self.reference)

    def per_place(self, batch: Batch, where: Tensor, measure: Measure) -> Tensor:
        self.calls.append(("policy", batch))
        layout, full = batch.layout, self.distribution(batch, self.theta.detach())
        out = torch.zeros(layout.n_tokens, dtype=full.dtype)
        for prompt in range(layout.n_prompts):
            for place in range(int(layout.seq_lengths.max())):
                rows = where & (layout.token_prompt == prompt) & (layout.token_position == place)
                if bool(rows.any()):
                    one = torch.zeros(int(rows.sum()), dtype=torch.int64)
                    out[rows] = measure(full[rows], one, layout.group_sizes[prompt : prompt + 1])
        return out

    def value(self, batch: Batch) -> Tensor:
        self.calls.append(("value", batch))
        return self._values(batch, self.theta.detach())

    def continued(self, batch: Batch, at: Tensor, n: int) -> Continuations:
        """Rewards that are a function of the prefix alone; some cannot be scored, some are cut off."""
        self.calls.append(("continued", batch))
        layout = batch.layout
        begun = [
            [*batch.tokens[int(layout.seq_starts[layout.token_seq[t]]) : t].tolist(), int(layout.token_prompt[t])]
            for t in at.tolist()
        ]
        reward = torch.tensor([[(sum(ids) * 7 + j) % 5 / 4 for j in range(n)] for ids in begun], dtype=torch.float64)
        reward[:, 0] = float("nan")
        return Continuations(reward, torch.arange(n).expand(len(begun), n) == 1)

    def encode(self, text: str) -> list[int]:
        return [ord(c) % VOCABULARY for c in text]

    def prompt(self, prompt: str) -> list[int]:
        return self.encode(prompt)

    def text(self, tokens: list[int]) -> str:
        return "".join(chr(97 + t) for t in tokens)


def with_demonstrations(batch: Batch) -> Batch:
    """The last response of every prompt but one came with the data: no score, no known sampler."""
    layout = batch.layout
    shown = torch.zeros(layout.n_sequences, dtype=torch.bool)
    shown[(layout.group_starts + layout.group_sizes - 1)[:-1]] = True
    nothing = torch.full((layout.n_sequences,), float("nan"), dtype=torch.float64)
    return batch.with_columns(
        None,
        demonstration=shown,
        scored=batch.scored & ~shown,
        truncated=batch.truncated & ~shown,
        reward=torch.where(shown, nothing, batch.reward),
        score=torch.where(shown, nothing, batch.score),
        behaviour_logp=torch.where(layout.to_tokens(shown), 0.0, batch.behaviour_logp),
    )


class Spoiling(Bigram):
    """The same policy, but what it says of tool tokens is not a number."""

    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        poison = float("nan") if weights == "reference" else float("-inf")
        return torch.where(batch.trainable, super().logp(batch, weights), poison)

    def value(self, batch: Batch) -> Tensor:
        return torch.where(batch.trainable, super().value(batch), float("nan"))


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
        prompt=[f"prompt {i}" for i in range(prompts)],
        solution=[None if i == 3 else f"solution {i}" for i in range(prompts)],
        unfinished=~truncated & (torch.rand(n, generator=draw) > 0.6),
        fresh=torch.rand(tokens, generator=draw) > 0.3,
        parent_reward=torch.rand(n, generator=draw, dtype=torch.float64),
        sibling_std=torch.rand(n, generator=draw, dtype=torch.float64),
        row=[{} for _ in range(prompts)],
        text=[TEXTS[i % len(TEXTS)] + str(i) for i in range(n)],
        answer=["7" for _ in range(prompts)],
        extracted=[None if i % 4 == 3 else str(i % 3) for i in range(n)],
        score=torch.where(scored, (reward > 0.5).double(), float("nan")),
        reward=reward,
        scored=scored,
        reward_parts=[
            {"right": float(r > 0.5), "form": float(r) / 2} if s else {} for r, s in zip(reward, scored, strict=True)
        ],
    )
