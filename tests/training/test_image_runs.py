"""Runs on drawn shapes: the loop, the methods made for images, and resuming."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")

import torch
import transformers as hf

from tests.training.conftest import metrics, quick, weights
from tests.training.test_resume import RICHER, assert_same_run
from unipo.errors import ConfigError, DataError
from unipo.parts.perception import CorruptedContext
from unipo.policy.model import load_policy
from unipo.policy.spec import PolicySpec
from unipo.registry import get_method
from unipo.starter import shapes_path
from unipo.tasks.shapes import draw, questions, shapes_task
from unipo.training.config import DataConfig
from unipo.training.loop import Trainer
from unipo.training.setup import build, encode_all, model_path

SEEING: dict[str, Any] = {
    "policy.model": "shapes",
    "data.task": "shapes?size=24&heldout=8",
    "sampling.max_tokens": 16,
    "eval.before": False,
    "eval.after": False,
}


def run(path: Path, method: str, steps: int = 2, **settings: Any) -> Any:
    return quick(path, method, steps, **(SEEING | settings))


def resumed_like_whole(folder: Path, method: str) -> Path:
    """A run of three steps, which one that was stopped after two and resumed equals bit for bit."""
    whole, parted = folder / "whole", folder / "parted"
    run(whole, method, 3)
    run(parted, method, 2)
    quick(parted, method, steps=3, resume=True)
    assert_same_run(whole, parted, 3)
    return whole


def test_papo_masks_the_images_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = resumed_like_whole(tmp_path, "papo")
    assert all(line["passes/extra"] == 2 for line in metrics(whole))  # the reference, and the masked images
    stored = weights(whole, 3)
    assert any("vision_tower" in name for name in stored)
    # The checkpoint is a whole image-and-text model: plain transformers loads it, and it trains further.
    model = whole / "checkpoints" / "step-000003" / "model"
    again = load_policy(PolicySpec(model=str(model)))
    assert again.processor.image_token == "<image>"
    hf.AutoModelForImageTextToText.from_pretrained(model)


@pytest.mark.parametrize(("vision", "moved"), [("train", True), ("frozen", False)])
def test_the_vision_side_moves_only_where_it_is_trained(vision: str, moved: bool, tmp_path: Path) -> None:
    run(tmp_path / "run", "grpo", 1, **{"policy.vision": vision, "optim.learning_rate": 1e-2})
    before = load_policy(PolicySpec(model=model_path("shapes"))).model.state_dict()
    after = weights(tmp_path / "run", 1)
    name = "vision_tower.embeddings.patch_embedding.weight"
    (mine,) = [v for k, v in after.items() if k.endswith(name)]
    (start,) = [v for k, v in before.items() if k.endswith(name)]
    assert torch.equal(mine, start) != moved


def test_easy_prompts_get_noise_on_their_images_and_hard_ones_a_hint(tmp_path: Path) -> None:
    whole = resumed_like_whole(tmp_path, "deepvideo-r1")
    first, *later = metrics(whole)
    assert not [name for name in first if name.startswith("events/prompts rewritten")]  # nothing to compare with yet
    for label in ("hard", "easy"):
        assert any(line.get(f"events/prompts rewritten ({label})") for line in later)


METHODS = {
    "reg-grpo": {"data.task": "shapes?size=24&heldout=0"},
    "tw-grpo": {"data.task": "shapes?size=24&heldout=0&kind=choices"},
    "aepo-infigui": {"data.task": "shapes?size=24&heldout=0&kind=point", "sampling.max_tokens": 40},
    "gcpo-geometryzero": {"data.task": "shapes?size=24&heldout=0&kind=count", "sampling.max_tokens": 30},
    "papo-dapo": {"data.task": "shapes?size=24&heldout=0"},
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_made_for_images_train_on_them(method: str, tmp_path: Path) -> None:
    run(tmp_path / "run", method, 2, **METHODS[method])
    lines = metrics(tmp_path / "run")
    assert len(lines) == 2
    assert all(line["unscored"] == 0 for line in lines if "unscored" in line)
    said = [json.loads(x) for x in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert said


# Sources and parts that make requests or prompts of their own.
OTHERS = ["spo-segment", "spo-tree", "ppo", "cepo", "async-decoupled-ppo", "t-ppo", "clpo"]


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_other_sources_carry_the_images_too(method: str, tmp_path: Path) -> None:
    run(tmp_path / "run", method, 2, **RICHER.get(method, {}))
    assert len(metrics(tmp_path / "run")) == 2


def test_a_part_that_writes_into_prompts_refuses_those_with_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot yet do so where a prompt has images"):
        run(tmp_path / "run", "sdpo", 1, prompts=8)


def rows(folder: Path, count: int = 12) -> str:
    stream = questions(("colour",), 32, False, 3)
    lines = []
    for i in range(count):
        q = next(stream)
        draw(q.things, 32).save(folder / f"{i}.png")
        lines.append(json.dumps({"question": q.text, "answer": q.answer, "response": q.answer, "image": f"{i}.png"}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_file_with_paths_trains_online_and_by_imitation(tmp_path: Path) -> None:
    own = {"data.task": "", "data.data": rows(tmp_path), "data.reward": "exact"}
    run(tmp_path / "a", "grpo", 1, **own, **{"data.fields.response": ""})
    run(tmp_path / "b", "sft", 1, **(own | {"data.reward": ""}))
    assert metrics(tmp_path / "b")[0]["loss"] > 0


def test_images_are_made_once_asked_and_stay_with_their_prompts() -> None:
    policy = load_policy(PolicySpec(model=model_path("shapes")))
    task = shapes_task(size=3, heldout=0)
    prompts = encode_all(policy, task.train, DataConfig(), 100, get_method("grpo"), Counter())
    for prompt, example in zip(prompts, task.train, strict=True):
        assert prompt.ids.count(policy.causal.config.image_token_id) == 16
        expected = policy.processor.image_processor(images=list(example.images), return_tensors="pt")["pixel_values"]
        assert prompt.pixels is not None
        assert torch.equal(prompt.pixels, expected)


def test_the_batch_of_a_run_has_the_images_of_its_prompts() -> None:
    import unipo

    config = unipo.training.config.from_dict(
        unipo.training.config.TrainConfig,
        unipo.training.config.nested(SEEING | {"method": "papo", "prompts": 3, "steps": 1}),
    )
    trainer = Trainer(build(config))
    _, batch = trainer.step()
    assert batch is not None
    assert len(batch.images) == 3
    assert all(x.shape == (1, 3, 32, 32) for x in batch.images)
    assert trainer.scorer.passes == 2  # the reference and the masked images
    columns = CorruptedContext()(batch, trainer.scorer)
    assert bool(columns["corrupted"].all())
    again = CorruptedContext()(batch, trainer.scorer)
    assert torch.equal(columns["corrupted_logp"], again["corrupted_logp"])
    untouched = CorruptedContext(share=0.0)(batch, trainer.scorer)["corrupted_logp"]
    assert torch.equal(untouched, trainer.scorer.logp(batch))
    assert float((columns["corrupted_logp"] - untouched).abs().max()) > 1e-3


def test_what_cannot_work_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"such as LLaVA .*--model shapes is one.* it is a text model"):
        run(tmp_path / "a", "grpo", 1, **{"policy.model": "starter"})
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    path = Path(rows(tmp_path))
    (tmp_path / "3.png").unlink()
    own = {"data.task": "", "data.data": str(path), "data.reward": "exact"}
    with pytest.raises(DataError, match=r"row 4: there is no image file"):
        run(tmp_path / "b", "grpo", 1, **own)


def test_the_shipped_model_sees_and_leaves_room() -> None:
    """Better than the words alone allow, and not perfect."""
    from unipo.evaluate.heldout import sampled_accuracy
    from unipo.rollout.engine import Sampling
    from unipo.rollout.local import LocalEngine

    assert sum(f.stat().st_size for f in shapes_path().iterdir()) < 1_500_000
    policy = load_policy(PolicySpec(model=model_path("shapes")))
    assert policy.causal.num_parameters() < 500_000
    task = shapes_task(size=0, heldout=64, kind="colour,shape", seed=5)
    prompts = encode_all(policy, task.heldout, DataConfig(), 100, get_method("grpo"), Counter())
    assert task.reward is not None
    found = sampled_accuracy(policy, LocalEngine(policy), task.reward, prompts, Sampling(max_tokens=12))
    assert 0.4 < found.accuracy < 0.9


@pytest.mark.slow
def test_adapters_train_on_images(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run(tmp_path / "run", "grpo", 2, **{"policy.lora": {"rank": 4, "alpha": 8}, "policy.vision": "frozen"})
    stored = weights(tmp_path / "run", 2)
    assert any("language_model" in name and "lora_B" in name and bool(w.any()) for name, w in stored.items())
    assert not any("vision_tower" in name and "lora_B" in name and bool(w.any()) for name, w in stored.items())
