"""The packed forward over continuous tokens: mixtures of embeddings go in, log-probabilities of steps come out.

The row, its attention and its layers are those of `unipo.policy.model`; a response position is fed the mixture of
embeddings in `step_ids` and `step_log_weights`, and a step is scored by its `ContinuousStep`.  The last token of a
response is an ordinary one.  Gradients flow through the embeddings fed back; ids and weights are constants.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.continuous import STEP_COLUMNS, ContinuousStep, SampledTokens, SoftTarget
from unipo.parts.part import Divergence, Resampled
from unipo.policy.architecture import causal_of, head_weight
from unipo.policy.distribution import candidate_logp
from unipo.policy.head import linear_logp
from unipo.policy.model import Policy
from unipo.policy.packing import Plan, make_plan
from unipo.policy.spec import PolicySpec
from unipo.policy.tape import Tape

WITHOUT = "leave that part out, or use a method that samples tokens"


def embedding_table(causal: Any) -> tuple[Tensor, float]:
    """([V, d] input embeddings, the factor the model scales them by)."""
    module = causal.get_input_embeddings()
    if not isinstance(module, nn.Embedding) or hasattr(module, "base_layer"):
        raise ConfigError(f"continuous tokens mix rows of a plain embedding; this model has {type(module).__name__}")
    return module.weight, float(getattr(module, "embed_scale", 1.0))


def mixed(causal: Any, ids: Tensor, log_weights: Tensor) -> Tensor:
    """sum_w exp(log_weight_w) E[id_w]. ids, log_weights: [n, W].  Returns [n, d]."""
    table, scale = embedding_table(causal)
    if len(ids) == 0:
        return table.new_zeros(0, table.shape[1])
    weights = log_weights.exp().to(table.dtype)
    out = torch.nn.functional.embedding_bag(ids, table, mode="sum", per_sample_weights=weights)
    return out if scale == 1.0 else out * scale


def last_tokens(batch: Batch) -> Tensor:
    """[T] bool: the last token of each response, which is an ordinary one."""
    layout = batch.layout
    return layout.token_position == layout.to_tokens(layout.seq_lengths) - 1


class ContinuousPolicy(Policy):
    """A `Policy` whose responses are continuous tokens. step: how one is scored."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        spec: PolicySpec | None = None,
        temperature: float = 1.0,
        step: ContinuousStep | None = None,
    ) -> None:
        super().__init__(model, tokenizer, spec, temperature)
        self.step = step or SampledTokens()
        embedding_table(self.causal)
        if head_weight(self.causal)[1] is not None:
            raise ConfigError("continuous tokens do not support an output layer with a bias")

    def columns(
        self,
        batch: Batch,
        required: Tensor,
        entropy: bool = False,
        against: Divergence | None = None,
        resampled: Resampled | None = None,
        value: nn.Module | None = None,
        tape: Tape | None = None,
        final: bool = False,
    ) -> dict[str, Tensor]:
        """As `Policy.columns`, with the log-probability of a step for that of a token. A tape is not read.

        Raises ConfigError: asked for a teacher's divergence, tokens drawn anew, or values.
        """
        asked = {"a divergence from a teacher": against, "tokens drawn anew": resampled, "a value head": value}
        for what, part in asked.items():
            if part is not None:
                raise ConfigError(f"{what} is defined for ordinary tokens, not for continuous ones: {WITHOUT}")
        home = batch.layout.device
        there = batch.to(self.device), required.to(self.device)
        logp, ent = (x.to(home) for x in self._score_steps(self.model, *there, entropy))
        return {"logp": logp, "entropy": ent} if entropy else {"logp": logp}

    @torch.no_grad()
    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        with self.weights(weights) as model:
            pieces = list(batch.split_by_tokens(self.spec.micro_tokens or None))
            there = (piece.to(self.device) for piece in pieces)
            out = [self._score_steps(model, piece, torch.ones_like(piece.tokens) > 0, False)[0] for piece in there]
        return (torch.cat(out) if out else torch.zeros(0)).to(batch.layout.device)

    def read_hidden(self, model: nn.Module, plan: Plan) -> Tensor:
        """Refused: a plan holds the ids of tokens, and the steps of these responses are mixtures."""
        raise ConfigError(
            f"a part reads hidden states of ordinary tokens, and responses are continuous here: {WITHOUT}"
        )

    def make_tape(self) -> Tape | None:
        return None

    # -- scoring ---------------------------------------------------------------------------------
    def _score_steps(self, model: nn.Module, batch: Batch, required: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        """([T] log-prob of each step, [T] entropy of its distribution if asked), 0 where not required."""
        missing = [name for name in STEP_COLUMNS if not batch.has(name)]
        if missing:
            raise DataError(f"continuous tokens need the columns {', '.join(STEP_COLUMNS)}; missing: {missing}")
        causal = causal_of(model)
        weight, _ = self.output(model)
        spec = replace(self.head_spec(model), entropy=entropy)
        own = isinstance(self.step, SoftTarget) and self.step.feed == "self"
        plan = make_plan(batch, None if own else required)
        if plan.longest > self.context_window:
            raise DataError(f"a sequence needs {plan.longest} positions, the model has {self.context_window}")
        inputs = self._inputs(causal, batch, plan)
        if own:
            inputs = self._own_inputs(model, batch, plan, inputs)
        hidden = self._hidden(causal, plan, inputs)[plan.read]
        final = last_tokens(batch)[plan.required]
        total = batch.layout.n_tokens
        logp = torch.zeros(total, dtype=torch.float64, device=hidden.device)
        ent = torch.zeros_like(logp)
        for chosen, continuous in ((final, False), (~final, True)):
            at = chosen.nonzero().flatten()
            if not len(at):
                continue
            place = plan.required[at]
            tempered = replace(spec, temperature=self.temperature * self.step.temperature) if continuous else spec
            first = batch.step_ids[place, 0] if continuous else plan.target[at]
            if entropy or not continuous:
                token, e = linear_logp(hidden[at], weight, first, tempered)
            if entropy:
                ent = ent.index_copy(0, place, e.double())
            if continuous:
                candidates = candidate_logp(hidden[at], weight, batch.step_ids[place], tempered)
                token = self.step.score(candidates, batch.step_log_weights[place])
            logp = logp.index_copy(0, place, token.double())
        if own:
            logp, ent = (torch.where(required, x, torch.zeros_like(x)) for x in (logp, ent))
        return logp, ent

    def _inputs(self, causal: Any, batch: Batch, plan: Plan) -> Tensor:
        """[N, d] what the packed row is fed: token embeddings, then mixtures."""
        context = causal.get_input_embeddings()(batch.context)
        steps = mixed(causal, batch.step_ids[plan.forwarded], batch.step_log_weights[plan.forwarded])
        return torch.cat([context, steps])

    def _hidden(self, causal: Any, plan: Plan, inputs: Tensor) -> Tensor:
        """[N, d] last hidden states of the packed row."""
        with self._autocast():
            out = causal.base_model(
                inputs_embeds=inputs[None],
                position_ids=plan.positions[None],
                use_cache=False,
                unipo_plan=plan,
                return_dict=True,
            )
        hidden: Tensor = out.last_hidden_state
        return hidden[0]

    def _own_inputs(self, model: nn.Module, batch: Batch, plan: Plan, inputs: Tensor) -> Tensor:
        """The row with the policy's own mixtures E^T alpha_t fed back, one pass per step.

        Inputs of later steps are still the target's while an earlier one is computed; attention cannot see them.
        """
        causal = causal_of(model)
        table, scale = embedding_table(causal)
        weight, _ = self.output(model)
        spec = self.head_spec(model)
        position = batch.layout.token_position[plan.forwarded]
        for t in range(int(position.max()) + 1 if len(position) else 0):
            at = (position == t).nonzero().flatten()
            hidden = self._hidden(causal, plan, inputs)[plan.read[plan.forwarded[at]]]
            z = hidden.to(weight.dtype) @ weight.T * (spec.scale / spec.temperature)
            own = z.softmax(-1).to(table.dtype) @ table * scale
            inputs = inputs.index_copy(0, batch.layout.n_context + at, own.to(inputs.dtype))
        return inputs


def token_steps(tokens: Tensor, width: int = 1) -> dict[str, Tensor]:
    """The step columns of ordinary tokens: weight 1 on the token. tokens: [T].  Returns [T, width] columns."""
    log_weights = torch.full((len(tokens), width), -math.inf, dtype=torch.float64, device=tokens.device)
    log_weights[:, 0] = 0.0
    return {"step_ids": tokens[:, None].expand(-1, width).clone(), "step_log_weights": log_weights}
