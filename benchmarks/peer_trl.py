"""The peer: TRL's GRPOTrainer, driven step by step by the harness (see worker.py for the protocol).

What is timed, all of it by the same clock inside this process:
  step_s        from the trainer's on_step_begin to its on_step_end: generation, rewards, advantages, forward, backward,
                gradient clipping, AdamW
  generation_s  inside `_generate_single_turn`: from prompt token ids to answer token ids
  update_s      step_s without `_prepare_inputs` (generation and scoring): forward, backward, clipping, AdamW

TUNING_NOTE
"""

from __future__ import annotations

from worker import Channel, Message, answer, serve, versions

channel = Channel()

import os  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import zlib  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from shapes import Shape, read_model_dir, render  # noqa: E402
from transformers import AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

channel.mark_imports()

STEPS_WITHOUT_END = 1_000_000
# Sequences in one forward pass where fewer than the whole batch were faster; the gradient of the step is the same.
MICRO_BATCH = {"wide": 4}


def hashed_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A number in [0, 1) from the answer's ids alone: costs nothing and gives advantages that are not zero."""
    return [zlib.crc32(repr(ids).encode()) % 1000 / 1000 for ids in completion_ids]


def config_of(shape: Shape, setup: Message, folder: str) -> GRPOConfig:
    """TRL's settings for one shape; `setup["options"]` may override any of them, to measure another choice."""
    options: dict[str, Any] = dict(setup.get("options") or {})
    attention = options.pop("attn_implementation", "sdpa")
    micro_batch = options.pop("micro_batch", None) or MICRO_BATCH.get(shape.name, shape.sequences)
    passes = shape.sequences // micro_batch
    settings: dict[str, Any] = {
        "output_dir": folder,
        "model_init_kwargs": {"dtype": setup["dtype"], "attn_implementation": attention},
        "use_cpu": True,
        "bf16": False,
        "learning_rate": setup["lr"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "beta": 0.0,
        "loss_type": "dapo",
        "num_iterations": 1,
        "num_generations": shape.group,
        "max_completion_length": shape.answer_tokens,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": passes,
        "steps_per_generation": passes,
        "gradient_checkpointing": False,
        "temperature": 1.0,
        "shuffle_dataset": False,
        "max_steps": STEPS_WITHOUT_END,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 1,
    }
    return GRPOConfig(**(settings | options))


class Clocked(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer that notes how long its generation and its preparation of a batch took."""

    generation_s = 0.0
    preparation_s = 0.0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        written = super()._generate_single_turn(*args, **kwargs)
        self.generation_s += time.perf_counter() - start
        return written

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        start = time.perf_counter()
        inputs = super()._prepare_inputs(generation_batch)
        self.preparation_s += time.perf_counter() - start
        return inputs


class Conversation(TrainerCallback):  # type: ignore[misc]
    """Holds the training loop between steps while it answers the harness, and lets it go for each `step`."""

    def __init__(self, answer_until_step: Callable[[], bool]) -> None:
        self._answer_until_step = answer_until_step
        self.trainer: Clocked | None = None
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._answer_until_step():
            # A step cannot be called off once begun; the harness has gone, so nothing is lost by leaving.
            os._exit(0)
        assert self.trainer is not None
        self.trainer.generation_s = self.trainer.preparation_s = 0.0
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_s = time.perf_counter() - self._start
        assert self.trainer is not None
        channel.reply(
            {
                "step_s": step_s,
                "generation_s": self.trainer.generation_s,
                "update_s": step_s - self.trainer.preparation_s,
            }
        )


def build(setup: Message, conversation: Conversation) -> tuple[Clocked, Shape, list[list[int]]]:
    """The trainer on the model directory's model and prompts."""
    torch.set_num_threads(setup["threads"])
    folder = Path(setup["model_dir"])
    shape, prompts = read_model_dir(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = Dataset.from_dict({"prompt": [render(ids) for ids in prompts]})
    trainer = Clocked(
        model=str(folder),
        args=config_of(shape, setup, tempfile.mkdtemp(prefix="trl-")),
        reward_funcs=hashed_reward,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[conversation],
    )
    conversation.trainer = trainer
    return trainer, shape, prompts


def generate(trainer: Clocked, shape: Shape, prompts: list[list[int]]) -> Message:
    """One generation for the whole batch, outside a step."""
    repeated = [ids for ids in prompts for _ in range(shape.group)]
    trainer.generation_s = 0.0
    answers, _ = trainer._generate_single_turn(repeated, None, {}, shape.group)
    tokens = sum(len(ids) for ids in answers)
    if tokens != shape.sequences * shape.answer_tokens:
        raise RuntimeError(f"expected {shape.sequences * shape.answer_tokens} tokens, TRL wrote {tokens}")
    return {"generation_s": trainer.generation_s, "tokens": tokens}


def main() -> None:
    """Set up on `setup`, then let the trainer's own loop run, one step for each `step` command."""
    state: dict[str, Any] = {}

    def answer_until_step() -> bool:
        work = {"generate": lambda _: generate(state["trainer"], state["shape"], state["prompts"])}
        return serve(channel, work, until="step")

    def setup(message: Message) -> Message:
        trainer, shape, prompts = build(message, Conversation(answer_until_step))
        state.update(trainer=trainer, shape=shape, prompts=prompts)
        return {"versions": versions("torch", "transformers", "trl", "accelerate")}

    first = channel.receive()
    if first is not None and answer(channel, {"setup": setup}, first):
        state["trainer"].train()


if __name__ == "__main__":
    main()
