"""A value model: one number per token, the return expected before that token is written.

A scalar head on the last hidden states, either of a backbone of its own or of the policy's.  Rows are packed as the
policy's are: every prompt once, then its responses.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipo.batch import Batch
from unipo.errors import CheckpointError
from unipo.policy.architecture import prepare
from unipo.policy.loading import DTYPES, check_vocabulary, load_model
from unipo.policy.model import Policy
from unipo.policy.packing import make_plan

FILE = "value.safetensors"


class ValueHead(nn.Module):
    """v = w h + b. Starts at 0: before it has learned anything every value is 0, whatever the backbone says."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """[R, d] -> [R], in the head's own dtype also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).squeeze(-1)


class ValueModel:
    """Values of a policy's tokens. All weights are trained, also where the policy trains adapters only.

    shared: read the policy's own hidden states; only the head is new.  model: directory or hub id the backbone starts
    from; '' is the policy's weights as they are now, without adapters.
    """

    def __init__(self, policy: Policy, shared: bool = False, model: str = "") -> None:
        self.policy = policy
        self.own: PreTrainedModel | None = None if shared else _backbone(policy, model)
        width = int(self.causal.config.get_text_config().hidden_size)
        self.head = ValueHead(width, DTYPES[policy.spec.weights], policy.device)

    @property
    def shared(self) -> bool:
        """Whether it is a head on the policy's own backbone."""
        return self.own is None

    @property
    def causal(self) -> PreTrainedModel:
        """The model whose hidden states are read."""
        return self.policy.causal if self.own is None else self.own

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What this model adds to train: the head, and its own backbone if it has one."""
        head = [(f"value.{n}", p) for n, p in self.head.named_parameters()]
        if self.own is None:
            return head
        body = [(f"value.backbone.{n}", p) for n, p in self.own.base_model.named_parameters()]
        return head + body

    def live(self, batch: Batch, required: Tensor) -> Tensor:
        """[T] values of one micro-batch, with gradient, 0 on tokens not required."""
        plan = make_plan(batch.to(self.policy.device), required.to(self.policy.device))
        value = self.head(self.policy.read_hidden(self.causal, plan))
        blank = torch.zeros(batch.layout.n_tokens, dtype=value.dtype, device=value.device)
        return blank.index_copy(0, plan.required, value).to(batch.layout.device)

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """[T] values of all tokens, no gradient."""
        everything = torch.ones(batch.layout.n_tokens, dtype=torch.bool, device=batch.tokens.device)
        pieces = batch.split_by_tokens(self.policy.spec.micro_tokens or None)
        done = [self.live(piece, everything[: piece.layout.n_tokens]) for piece in pieces]
        return torch.cat(done) if done else torch.zeros(0, dtype=self.head.weight.dtype, device=batch.tokens.device)

    # -- storing -----------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write the weights that `named_parameters` lists, exactly."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().clone().contiguous() for n, p in self.named_parameters()}, str(folder / FILE))

    def load(self, folder: Path) -> None:
        """Copy what `save` wrote. Raises CheckpointError if it does not fit."""
        if not (folder / FILE).is_file():
            raise CheckpointError(f"{folder} holds no {FILE}: the checkpoint was written without a value model")
        stored = load_file(str(folder / FILE), device=str(self.policy.device))
        named = dict(self.named_parameters())
        odd = sorted(set(stored) ^ set(named)) or [n for n, p in named.items() if p.shape != stored[n].shape]
        if odd:
            raise CheckpointError(f"{folder / FILE} does not fit this value model: {', '.join(odd[:3])}")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(stored[name])


def _backbone(policy: Policy, model: str) -> PreTrainedModel:
    """A causal language model whose output layer is never used."""
    if model or policy.adapted:
        if model:
            check_vocabulary(model, policy.tokenizer, "value.model")
        causal = load_model(model or policy.spec.model, DTYPES[policy.spec.weights], str(policy.device))
        prepare(causal)
    else:
        causal = copy.deepcopy(policy.causal)
    if policy.spec.checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
        causal.train()
    # A tied output layer is the embedding and learns with it; an untied one gets no gradient and is left out.
    return causal.requires_grad_(True)
