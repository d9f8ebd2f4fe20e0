"""Makes the small image-and-text model: `python -m unipo.starter.shapes`. A few minutes on one core.

A LLaVA of a quarter of a million weights (a CLIP tower over 8 by 8 pixels, a projector, a Qwen3) learns to answer
questions about drawn shapes (`unipo.tasks.shapes`) from demonstrations, a share of which (`slip_rate`) is wrong on
purpose.  So it sees what is asked, and sampled at temperature 1 goes wrong often enough to be trained further.  Held-out
questions are never shown.  The model card holds what it scores.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch
import tyro
from tokenizers import AddedToken
from torch import Tensor

from unipo.starter.data import IGNORED
from unipo.starter.make import schedule
from unipo.starter.tokenizer import build_tokenizer
from unipo.tasks.pictures import MARK
from unipo.tasks.shapes import COLOURS, SHAPES, Question, ask, draw, is_held_out

HERE = Path(__file__).resolve().parent
PIXELS, PATCH = 32, 8
KINDS = ("count", "colour", "shape", "left", "count", "point", "choices")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Settings:
    """How the model is made. easy_steps: of `steps`, those at the start that ask for colour and shape of a single thing,
    without slips: there it learns to look.  slip_rate: share of demonstrations with a wrong answer.  aux_rate: share of counts that
    list what they count first, in <think><aux>...</aux></think>.  measure: held-out questions per kind in the card."""

    out: Path = HERE / "shapes_model"
    steps: int = 700
    easy_steps: int = 200
    batch_size: int = 48
    learning_rate: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.01
    slip_rate: float = 0.25
    aux_rate: float = 0.3
    seed: int = 0
    threads: int = 1
    measure: int = 100


def build_processor() -> Any:
    """The starter's characters and the mark of an image, with a CLIP image processor for small pictures."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(MARK, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    untyped: Any = CLIPImageProcessorPil
    images = untyped(
        size={"height": PIXELS, "width": PIXELS}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    made: Any = LlavaProcessor
    return made(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Any, seed: int) -> Any:
    """A fresh LLaVA: CLIP with 2 layers of width 64, Qwen3 with 3 layers of width 64, tied embeddings."""
    from transformers import CLIPVisionConfig, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen3Config

    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=PIXELS, patch_size=PATCH,
        initializer_range=0.1,
    )  # fmt: skip
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, eos_token_id=end, pad_token_id=pad,
        initializer_range=0.08,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(PIXELS // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        dtype="float32",
    )
    model: Any = LlavaForConditionalGeneration(config)
    untyped: Any = GenerationConfig
    model.generation_config = untyped(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=pad
    )
    return model


# -- demonstrations --------------------------------------------------------------------------------
def slipped(rng: Random, question: Question) -> str:
    """An answer of the right kind that is wrong most of the time."""
    if question.kind == "count":
        return str(rng.randint(0, 4))
    if question.kind == "point":
        return f'[{{"point_2d": [{rng.randint(0, PIXELS - 1)}, {rng.randint(0, PIXELS - 1)}]}}]'
    if question.kind == "choices":
        return ",".join(letter for letter in "ABCD" if rng.random() < 0.5) or "A"
    return rng.choice(list(COLOURS) if question.kind == "colour" else list(SHAPES))


def demonstration(rng: Random, question: Question, slip_rate: float, aux_rate: float) -> str:
    """A response to imitate."""
    answer = slipped(rng, question) if rng.random() < slip_rate else question.answer
    thinks = question.kind == "point" or (question.kind == "count" and rng.random() < aux_rate)
    return f"<think>{question.thought}</think>{answer}" if thinks else answer


def batches(processor: Any, settings: Settings) -> Iterator[dict[str, Tensor]]:
    """Endless batches of fresh demonstrations, each of one kind; the loss is on responses."""
    rng = Random(f"shapes demonstrations {settings.seed}")
    for step in count():
        easy = step < settings.easy_steps
        kind = ("colour", "shape")[step % 2] if easy else KINDS[step % len(KINDS)]
        chosen: list[Question] = []
        while len(chosen) < settings.batch_size:
            question = ask(rng, kind, PIXELS, 1 if easy else 4)
            chosen += [] if is_held_out(question) else [question]
        slips = 0.0 if easy else settings.slip_rate
        yield collate(processor, chosen, [demonstration(rng, q, slips, settings.aux_rate) for q in chosen])


def collate(processor: Any, chosen: Sequence[Question], said: Sequence[str]) -> dict[str, Tensor]:
    """Inputs and labels of some answered questions, padded on the right."""
    tokenizer = processor.tokenizer
    asked = [f"<|user|>{MARK * (PIXELS // PATCH) ** 2}{q.text}<|end|><|assistant|>" for q in chosen]
    given: list[list[int]] = tokenizer(asked, add_special_tokens=False)["input_ids"]
    learnt: list[list[int]] = tokenizer(list(said), add_special_tokens=False)["input_ids"]
    rows = [(g, [*x, tokenizer.eos_token_id]) for g, x in zip(given, learnt, strict=True)]
    longest = max(len(g) + len(x) for g, x in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, (g, x) in enumerate(rows):
        ids[i, : len(g) + len(x)] = torch.tensor(g + x)
        labels[i, len(g) : len(g) + len(x)] = torch.tensor(x)
    pixels = processor.image_processor(images=[draw(q.things, PIXELS) for q in chosen], return_tensors="pt")
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels["pixel_values"]}


def train(model: Any, processor: Any, settings: Settings) -> None:
    """Imitate the demonstrations: AdamW on the mean negative log-probability of their tokens."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: schedule(step, settings.warmup, settings.steps)
    )
    stream, started, running = batches(processor, settings), time.perf_counter(), 0.0
    model.train()
    for step in range(1, settings.steps + 1):
        loss = model(**next(stream)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        scheduler.step()
        running += loss.item()
        if step % 100 == 0 or step == settings.steps:
            print(
                f"step {step:5d}  loss {running / (step % 100 or 100):.4f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
            running = 0.0
    model.train(False)


CARD = """---
license: apache-2.0
library_name: transformers
---
# Shapes

A LLaVA of {parameters:,} weights, made by `python -m unipo.starter.shapes` to be post-trained: it answers questions about
drawn shapes (the task `shapes`) and often slips, as {slip:.0%} of its demonstrations did. It is of no use for anything
else. Images are 32 by 32 pixels; each becomes 16 tokens.

Mean score on {count} held-out questions of each kind, one response each, with a 95 % interval:

| kind | temperature 1 | greedy |
|---|---|---|
{table}
"""


def measure(settings: Settings) -> list[tuple[str, str, str]]:
    """(kind, sampled, greedy) scores of the saved model on held-out questions."""
    from unipo.evaluate.heldout import sampled_accuracy
    from unipo.policy.model import load_policy
    from unipo.policy.spec import PolicySpec
    from unipo.registry import get_method
    from unipo.rollout.engine import Sampling
    from unipo.rollout.local import LocalEngine
    from unipo.tasks.shapes import shapes_task
    from unipo.training.config import DataConfig
    from unipo.training.setup import encode_all

    policy, method = load_policy(PolicySpec(model=str(settings.out))), get_method("grpo")
    rows = []
    for kind in dict.fromkeys(KINDS):
        task = shapes_task(size=0, heldout=settings.measure, kind=kind)
        assert task.reward is not None
        prompts = encode_all(policy, task.heldout, DataConfig(), 200, method, Counter())
        found = []
        for temperature in (1.0, 0.0):
            sampling = Sampling(temperature=temperature, max_tokens=48)
            i = sampled_accuracy(policy, LocalEngine(policy), task.reward, prompts, sampling)
            found.append(f"{100 * i.accuracy:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]")
        print(f"{kind:8s} temperature 1: {found[0]}   greedy: {found[1]}", flush=True)
        rows.append((kind, found[0], found[1]))
    return rows


def make(settings: Settings) -> None:
    """Train, save and measure."""
    torch.set_num_threads(settings.threads)
    processor = build_processor()
    model = build_model(processor, settings.seed)
    print(f"{model.num_parameters():,} weights, {settings.steps} steps of {settings.batch_size}", flush=True)
    train(model, processor, settings)
    model.save_pretrained(settings.out)
    processor.save_pretrained(settings.out)
    table = "\n".join(f"| {kind} | {sampled} | {greedy} |" for kind, sampled, greedy in measure(settings))
    text = CARD.format(parameters=model.num_parameters(), slip=settings.slip_rate, count=settings.measure, table=table)
    (settings.out / "README.md").write_text(text, encoding="utf-8")
    print(f"saved in {settings.out}")


if __name__ == "__main__":
    make(tyro.cli(Settings, description=__doc__))
