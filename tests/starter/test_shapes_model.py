"""The small model of images and text: what it is, and that its script makes one."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

pytest.importorskip("PIL")

import transformers as hf

from unipo.starter import shapes_path
from unipo.starter.data import IGNORED
from unipo.starter.shapes import (
    KINDS,
    Settings,
    batches,
    build_model,
    build_processor,
    demonstration,
    make,
)
from unipo.tasks.shapes import ask


def test_demonstrations_ask_about_images_and_teach_only_the_response() -> None:
    processor = build_processor()
    stream = batches(processor, Settings(batch_size=3, easy_steps=1))
    for _ in range(4):
        batch = next(stream)
        assert batch["pixel_values"].shape == (3, 3, 32, 32)
        assert ((batch["input_ids"] == processor.image_token_id).sum(1) == 16).all()
        learnt = batch["labels"] != IGNORED
        assert (batch["input_ids"][learnt] == batch["labels"][learnt]).all()
        assert not (batch["labels"] == processor.image_token_id).any()


def test_without_slips_demonstrations_are_right() -> None:
    rng = Random(0)
    for kind in set(KINDS):
        question = ask(rng, kind, 32)
        assert demonstration(rng, question, 0.0, 1.0).endswith(question.answer)


def test_the_shipped_model_is_what_the_script_builds() -> None:
    shipped = hf.AutoConfig.from_pretrained(shapes_path())
    built = build_model(build_processor(), 0)
    assert type(shipped) is type(built.config)
    assert shipped.text_config.vocab_size == built.config.text_config.vocab_size
    assert shipped.image_token_id == built.config.image_token_id
    assert built.num_parameters() < 300_000


@pytest.mark.slow
def test_the_script_makes_a_model_that_transformers_loads(tmp_path: Path) -> None:
    make(Settings(out=tmp_path / "made", steps=2, batch_size=4, measure=2))
    model = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "made")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert "| count |" in (tmp_path / "made" / "README.md").read_text()
