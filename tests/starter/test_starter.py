"""The shipped starter model: loads with plain transformers, and is as good and as bad as its card says."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from jinja2.exceptions import TemplateError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from unipo.errors import ConfigError
from unipo.starter import starter_path
from unipo.starter.data import IGNORED, Mixture, batches, collate, draw_row, prompt_ids
from unipo.starter.make import Settings, build_model, make, schedule, train
from unipo.starter.measure import Accuracy, evidence_effect, respond
from unipo.starter.tokenizer import build_tokenizer
from unipo.tasks.scratchpad import DEFAULT_KINDS, KINDS, final_answer, problems, scratchpad_task, split_of


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(starter_path())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(starter_path(), dtype=torch.float32)


# -- tokenizer --------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_task_texts_round_trip_one_token_per_character(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    rng = Random(0)
    for question, _ in islice(problems(KINDS[kind], "heldout", 0), 20):
        text = KINDS[kind].demonstration(rng, question, 0.5)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
        assert len(ids) == len(text) - len("<think>") - len("</think>") + 2
        assert tokenizer.decode(tokenizer.encode(question)) == question


def test_every_printable_character_has_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "\n" + "".join(chr(code) for code in range(32, 127))
    ids = tokenizer.encode(text)
    assert len(set(ids)) == len(text) == 96
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]
    assert len(tokenizer) <= 128


def test_marks_are_single_distinct_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    marks = ["<pad>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<think>", "</think>"]
    ids = [tokenizer.encode(mark) for mark in marks]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(marks)
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<pad>"


def test_skipping_special_tokens_keeps_the_thought(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("<|user|>1<|end|><think>a</think>b<|end|><pad>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "1<think>a</think>b"


def test_chat_template_renders_as_documented(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [{"role": "user", "content": "347+586="}]
    answered = [*asked, {"role": "assistant", "content": "<think>x</think>933"}]
    plain = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert plain == "<|user|>347+586=<|end|><|assistant|>"
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole == "<|user|>347+586=<|end|><|assistant|><think>x</think>933<|end|>"
    with pytest.raises(TemplateError, match="system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_shipped_tokenizer_is_the_one_the_code_builds(tokenizer: PreTrainedTokenizerFast) -> None:
    built = build_tokenizer()
    assert built.get_vocab() == tokenizer.get_vocab()
    assert built.chat_template == tokenizer.chat_template
    assert built.model_max_length == tokenizer.model_max_length == 512


# -- model ------------------------------------------------------------------------------------
def test_the_shipped_model_is_a_small_qwen3(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert model.config.model_type == "qwen3"
    assert 700_000 < model.num_parameters() < 900_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert (model.generation_config.do_sample, model.generation_config.top_k) == (True, 0)


def test_the_shipped_folder_is_light_and_names_no_place_on_disk() -> None:
    files = list(starter_path().iterdir())
    assert sum(file.stat().st_size for file in files) < 4_000_000
    weights = load_file(starter_path() / "model.safetensors")
    assert all(bool(w.isfinite().all()) for w in weights.values())
    assert not {"_name_or_path", "name_or_path"} & json.loads((starter_path() / "config.json").read_text()).keys()


def test_it_answers_a_fair_share_and_leaves_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    held = scratchpad_task(size=0, heldout=60, seed=7).heldout
    torch.manual_seed(7)
    texts = respond(model, tokenizer, [e.row["question"] for e in held], sample=True)
    right = sum(final_answer(text) == e.answer for text, e in zip(texts, held, strict=True))
    assert 0.3 < right / 60 < 0.8


def test_greedy_answers_are_better_than_sampled_ones(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    held = scratchpad_task(size=0, heldout=60, seed=7).heldout
    texts = respond(model, tokenizer, [e.row["question"] for e in held], sample=False)
    right = sum(final_answer(text) == e.answer for text, e in zip(texts, held, strict=True))
    assert right / 60 > 0.8


def test_showing_an_answer_raises_its_log_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    effect = evidence_effect(model, tokenizer, DEFAULT_KINDS, 30, seed=3)
    # the slipped response is likelier when its own wrong answer is shown, less likely when the right one is
    assert effect.shown[0] > effect.nothing[0] + 0.5
    assert effect.nothing[0] > effect.other[0] + 0.5
    assert effect.shown[1] > effect.other[1]


# -- how it is made ---------------------------------------------------------------------------
def test_evidence_stands_between_the_assistant_mark_and_the_response() -> None:
    tokenizer = build_tokenizer()
    shown = prompt_ids(tokenizer, "1+1=", "2")
    assert tokenizer.decode(shown) == "<|user|>1+1=<|end|><|assistant|> 2"
    assert shown == prompt_ids(tokenizer, "1+1=") + tokenizer.encode(" 2")


def test_the_loss_is_on_the_response_only() -> None:
    tokenizer = build_tokenizer()
    row = draw_row(tokenizer, Mixture({"add": 1.0}, slip_rate=0.0, evidence_rate=1.0), Random(0))
    ids, labels = collate([row], 0)
    learnt = labels[0][labels[0] != IGNORED]
    text = tokenizer.decode(learnt)
    given = tokenizer.decode(ids[0][: row.given])
    assert text.startswith("<think>")
    assert text.endswith("<|end|>")
    assert given.endswith(f"<|assistant|> {final_answer(text.removesuffix('<|end|>'))}")


def test_training_data_never_holds_a_heldout_question() -> None:
    tokenizer = build_tokenizer()
    mixture = Mixture(dict.fromkeys(KINDS, 1.0), slip_rate=0.5, evidence_rate=0.5)
    for ids, labels in islice(batches(tokenizer, mixture, size=16, seed=0, pool=4), 8):
        assert ids.shape == labels.shape
        for row in ids:
            question = tokenizer.decode(row).removeprefix("<|user|>").split("<|end|>")[0]
            assert split_of(question) == "train"


def test_batches_follow_the_seed() -> None:
    tokenizer = build_tokenizer()
    mixture = Mixture({"add": 1.0, "sort": 2.0}, slip_rate=0.5, evidence_rate=0.5)
    first, again, other = (next(batches(tokenizer, mixture, 8, seed, pool=2))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_schedule_rises_to_one_and_falls_to_zero() -> None:
    settings = Settings(steps=30, warmup=10)
    assert schedule(0, settings.warmup, settings.steps) == pytest.approx(0.1)
    assert schedule(10, settings.warmup, settings.steps) == pytest.approx(1.0)
    assert schedule(20, settings.warmup, settings.steps) == pytest.approx(0.5)
    assert schedule(30, settings.warmup, settings.steps) == pytest.approx(0.0)


def test_wilson_interval_by_hand() -> None:
    # n = 100, p = 1/2: z² = 3.8415; middle 0.5; half = (1.96 sqrt(.0025 + 3.8415/40000)) / 1.038415 = 0.0962
    low, high = Accuracy(50, 100).interval
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_the_same_seed_trains_the_same_weights() -> None:
    tokenizer, weights = build_tokenizer(), []
    settings = Settings(steps=2, right_steps=1, batch_size=4, warmup=1, weights={"add": 1.0, "max": 1.0})
    for _ in range(2):
        model = build_model(tokenizer, seed=4)
        train(model, tokenizer, settings)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], build_model(tokenizer, seed=4).state_dict()["lm_head.weight"])


def test_make_writes_a_model_and_a_card_with_its_settings(tmp_path: Path) -> None:
    settings = Settings(out=tmp_path, steps=1, right_steps=0, batch_size=2, warmup=0, measure=1, weights={"max": 1.0})
    make(settings)
    made = (tmp_path / "README.md").read_text(encoding="utf-8")
    kept = json.loads(made.split("```json")[1].split("```")[0])
    assert "| max |" in made
    assert kept["steps"] == 1
    assert "out" not in kept
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == 801_024
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|end|>"


def test_make_refuses_a_kind_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max'"):
        make(Settings(out=tmp_path, weights={"maxi": 1.0}))
