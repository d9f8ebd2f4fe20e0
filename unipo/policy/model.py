"""The policy: a `transformers` causal language model that scores packed batches.

Loading goes through `AutoModelForCausalLM`; the model's own layers run unchanged, with attention replaced
through `transformers`' attention interface and the output layer through `unipo.policy.head`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.part import Divergence, Measure, Resampled
from unipo.policy.architecture import backbone_hidden, causal_of, head_spec, head_weight, prepare
from unipo.policy.distribution import place_statistics
from unipo.policy.head import HeadSpec, linear_logp
from unipo.policy.loading import (
    DTYPES,
    add_lora,
    can_read_images,
    check_vocabulary,
    load_model,
    load_processor,
    refuse_stacked,
    require_peft,
    usable_device,
)
from unipo.policy.packing import Plan, make_plan
from unipo.policy.resampled import resampled_columns
from unipo.policy.sight import (
    check_sight,
    freeze_vision,
    language_model,
    refuse_unseen,
    sees,
)
from unipo.policy.spec import PolicySpec
from unipo.policy.tape import Reading, Tape
from unipo.policy.teacher import divergence_from_teacher
from unipo.tasks.chat import Chat, control_tokens, encode_prompt
from unipo.tasks.pictures import MARK, inputs_of, open_picture, plain
from unipo.tasks.task import Example

# Hidden size from which a tape pays. Per token a layer's products grow with its square, what is kept only linearly;
# at 128 the step was 10 % slower with a tape, at 384 and 512 it was 15 to 22 % faster.
TAPE_FROM = 256


class Policy:
    """A model, its tokenizer and, if asked for, its reference. Implements `unipo.parts.part.Scorer`."""

    def __init__(self, model: nn.Module, tokenizer: Any, spec: PolicySpec | None = None, temperature: float = 1.0):
        self.spec = spec or PolicySpec()
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.reference: nn.Module | None = None
        self.updates = 0
        self._processor: Any = None
        self.layers_kept = prepare(self.causal)
        if self.spec.checkpointing:
            self.causal.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.train()

    # -- structure -------------------------------------------------------------------------------
    @property
    def causal(self) -> PreTrainedModel:
        """The `transformers` model inside the adapters."""
        return causal_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained in place of the weights."""
        return hasattr(self.model, "peft_config")

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, by name."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response: the tokenizer's, and those the model's generation settings name."""
        ids = {self.tokenizer.eos_token_id} if self.tokenizer is not None else set()
        configured = getattr(self.causal.generation_config, "eos_token_id", None)
        if configured is not None:
            ids |= set(configured) if isinstance(configured, list | tuple) else {configured}
        return frozenset(int(i) for i in ids if i is not None)

    def written(self, tokens: Sequence[int]) -> str:
        """A response as people and rewards see it: without the token that ended it."""
        ids = list(tokens)
        ended = bool(ids) and ids[-1] in self.end_ids
        return str(self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False))

    @property
    def context_window(self) -> int:
        """Most positions that prompt and response may take together."""
        config = self.causal.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 2**31)

    # -- scoring ---------------------------------------------------------------------------------
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
        """Live columns of one micro-batch: logp and what else is asked for, with gradient, 0 on tokens not required.

        against: fills `divergence` from the teacher, who sees `batch.teacher_context` for a prompt.  resampled: fills
        `resampled_logp` and `resampled_hits`.  value: a head [R, d] -> [R] on the same hidden states, which fills
        `live_value`.  tape: what sampling kept, used if it covers the micro-batch; final: this is the last one that
        reads it.  Batches are made and judged where tokens are cheap to handle; only the forward needs the weights'
        device, and what it says goes back.
        """
        home = batch.layout.device
        batch, required = batch.to(self.device), required.to(self.device)
        plan = make_plan(batch, required)
        reading = None if tape is None else tape.reading(batch, plan, self.updates, final)
        if reading is not None:
            plan = reading.ordered(plan)
        states = self.read_hidden(self.model, plan)
        logp, ent = self._logp(self.model, states, plan, entropy)
        live = {"logp": logp, "entropy": ent} if entropy else {"logp": logp}
        if against is not None:
            live["divergence"] = divergence_from_teacher(self, against, batch, required, plan, states, logp)
        if resampled is not None:
            live |= resampled_columns(self, resampled, batch, plan, states)
        if value is not None:
            live["live_value"] = value(states)
        blank = torch.zeros(batch.layout.n_tokens, device=logp.device)
        return {name: blank.to(x.dtype).index_copy(0, plan.required, x).to(home) for name, x in live.items()}

    @torch.no_grad()
    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        """[T] log-prob of every token under 'policy' or 'reference' weights, no gradient."""
        out = torch.zeros(batch.layout.n_tokens, device=batch.tokens.device)
        done = 0
        with self.weights(weights) as model:
            for piece in batch.split_by_tokens(self.spec.micro_tokens or None):
                plan = make_plan(piece.to(self.device))
                value, _ = self._logp(model, self.read_hidden(model, plan), plan, False)
                out = out.to(value.dtype)
                out[done : done + len(value)] = value
                done += len(value)
        return out

    @torch.no_grad()
    def per_place(self, batch: Batch, where: Tensor, measure: Measure) -> Tensor:
        """[T] a statistic of whole next-token distributions at each place of a group's responses (see `Scorer`)."""
        marked, home = batch.with_columns("token", _counted=where).to(self.device), batch.layout.device
        values = []
        for piece in marked.split_by_tokens(self.spec.micro_tokens or None, whole_groups=True):
            plan, layout = make_plan(piece, piece._counted), piece.layout
            states = self.read_hidden(self.model, plan)
            width = int(layout.seq_lengths.max()) + 1
            place = layout.token_prompt[plan.required] * width + layout.token_position[plan.required]
            group = layout.group_sizes[layout.token_prompt[plan.required]]
            found = place_statistics(
                states, *self.output(self.model), place, group, measure, self.head_spec(self.model)
            )
            values.append(torch.zeros(layout.n_tokens, dtype=found.dtype, device=found.device))
            values[-1][plan.required] = found
        return (torch.cat(values) if values else torch.zeros(0)).to(home)

    def make_tape(self) -> Tape | None:
        """A tape for the coming sampling phase, None where the update could not read it.

        It needs the hand-written layers with nothing wrapped around them, a head without soft-capping, and layers so
        wide that computing costs more than copying.
        """
        spec, config = self.spec, self.causal.config
        if not spec.tape_mb or self.layers_kept or self.adapted or spec.checkpointing:
            return None
        if head_spec(config).softcap is not None or config.get_text_config().hidden_size < TAPE_FROM:
            return None
        return Tape(len(language_model(self.causal).layers), self.updates, spec.tape_mb * 2**20)  # type: ignore[arg-type]

    # -- images ----------------------------------------------------------------------------------
    @property
    def processor(self) -> Any:
        """The model's own processor of images and text, loaded when first asked for."""
        if self._processor is None:
            self._processor = load_processor(self.spec.model, self.causal)
        return self._processor

    def check_sight(self, example: Example) -> None:
        """Raise ConfigError unless the packed row computes what the model's own forward does with this example's images."""
        pictures = [open_picture(x) for x in example.images]
        token = str(self.processor.image_token)
        inputs = inputs_of(self.processor, token * len(pictures) + " .", pictures)
        check_sight(self.causal, inputs, lambda plan: backbone_hidden(self.causal, plan))

    def black(self) -> Tensor:
        """[C] a black pixel as the model's processor makes it."""
        return plain(self.processor.image_processor, "black")

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, prompt: Any, chat: Chat = "auto") -> list[int]:
        """Token ids of a prompt in words, text or messages, ready to be continued."""
        if sees(self.causal) and MARK in str(prompt):
            raise DataError(
                "a part of this method puts words of its own into prompts, and cannot yet do so where a prompt has images"
            )
        return encode_prompt(self.tokenizer, prompt, chat)

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say; special tokens, and text that spells one, are left out."""
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        for name in control_tokens(self.tokenizer):
            text = text.replace(name, "")
        return text

    def read_hidden(self, model: nn.Module, plan: Plan) -> Tensor:
        """[R, d] hidden states of a model that reads like this policy, where the required tokens are predicted."""
        if plan.longest > self.context_window:
            raise DataError(
                f"a sequence needs {plan.longest} positions, the model has {self.context_window}: "
                "shorten prompts (--data.max-prompt) or responses (--max-tokens)"
            )
        refuse_unseen(causal_of(model), plan)
        with self._autocast():
            return backbone_hidden(causal_of(model), plan)[plan.read]

    def output(self, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        """([V, d] weight, [V] bias or None) of a model's output layer."""
        return head_weight(causal_of(model))

    def head_spec(self, model: nn.Module, temperature: float | None = None) -> HeadSpec:
        """How logits are made of a model's hidden states. temperature: None for that of sampling."""
        spec = replace(head_spec(causal_of(model).config), temperature=temperature or self.temperature)
        return replace(spec, compute=torch.bfloat16) if self.spec.compute == "bfloat16" else spec

    def _logp(self, model: nn.Module, states: Tensor, plan: Plan, entropy: bool) -> tuple[Tensor, Tensor]:
        weight, bias = self.output(model)
        reading = plan.memo.get("tape")
        known = reading.head() if isinstance(reading, Reading) else None
        return linear_logp(states, weight, plan.target, replace(self.head_spec(model), entropy=entropy), bias, known)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.spec.compute != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # -- reference -------------------------------------------------------------------------------
    def make_reference(self) -> None:
        """Set up the reference policy from the present weights, as `spec.reference` says."""
        kind = self.spec.reference
        if kind == "auto":
            kind = "adapter-off" if self.adapted else "frozen"
        if kind == "adapter-off":
            if not self.adapted:
                raise ConfigError("reference 'adapter-off' needs LoRA; use 'frozen', 'ema' or a model path")
            self.reference = None
        elif kind in ("frozen", "ema"):
            self.reference = copy.deepcopy(self.model).requires_grad_(False).eval()
        else:
            check_vocabulary(kind, self.tokenizer, "policy.reference")
            self.reference = load_model(kind, DTYPES[self.spec.weights], str(self.device)).requires_grad_(False)
            prepare(causal_of(self.reference))

    def update_reference(self) -> None:
        """After an optimiser step: move an EMA reference towards the policy; nothing for the other kinds."""
        if self.spec.reference != "ema" or self.reference is None:
            return
        keep = self.spec.reference_decay
        with torch.no_grad():
            for old, new in zip(self.reference.parameters(), self.model.parameters(), strict=True):
                old.lerp_(new, 1 - keep)

    @contextlib.contextmanager
    def weights(self, weights: str) -> Iterator[nn.Module]:
        """The model with 'policy' or 'reference' weights in force."""
        if weights == "policy":
            yield self.model
        elif weights != "reference":
            raise ConfigError(f"weights are 'policy' or 'reference', not {weights!r}")
        elif self.reference is not None:
            yield self.reference
        elif self.adapted:
            with self.model.disable_adapter():  # type: ignore[operator]
                yield self.model
        else:
            raise ConfigError("this policy has no reference: call make_reference() before training starts")

    # -- storing ---------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write model (or adapter) and tokenizer so that plain `transformers` (or peft) loads them."""
        self.model.save_pretrained(folder)  # type: ignore[operator]
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if sees(self.causal) and (self._processor is not None or (self.spec.model and can_read_images())):
            self.processor.save_pretrained(folder)


def load_policy(spec: PolicySpec, temperature: float = 1.0, make: Callable[..., Policy] = Policy) -> Policy:
    """Load model and tokenizer, wrap adapters, check that the vocabulary fits. make: the kind of policy."""
    if spec.lora.rank:
        require_peft("training adapters")
        refuse_stacked(spec.model, spec.model)
    model: nn.Module = load_model(spec.model, DTYPES[spec.weights], usable_device(spec.device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from {spec.model!r}: {error}") from error
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer of {spec.model!r} has {len(tokenizer)} tokens but the model embeds {rows}: "
            "they do not belong together, or the embeddings must be resized first"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {spec.model!r} has no end token, so no response could ever end")
    if spec.lora.rank:
        model = add_lora(model, spec.lora)
    freeze_vision(causal_of(model), spec.vision)
    return make(model, tokenizer, spec, temperature)
