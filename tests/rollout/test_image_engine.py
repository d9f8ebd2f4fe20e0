"""Responses to prompts with images: what the engine says is what the trainer and `transformers` say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.policy.seeing import IMAGE, PATCHES, PIXELS, make, plain_logp, words
from unipo.batch import NO_IMAGES, Batch
from unipo.errors import DataError
from unipo.layout import Layout
from unipo.policy.model import Policy
from unipo.policy.spec import PolicySpec
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.rollout.local import LocalEngine

ENDS = (6, 7, 8, 9)


def requests(seed: int = 0) -> list[Request]:
    """A prompt with one image, one in words, one with two images and the first prompt with another image."""
    g = torch.Generator().manual_seed(seed)
    hole, start = [IMAGE] * PATCHES, words(3, g)
    one, two, other = (torch.randn(n, 3, PIXELS, PIXELS, generator=g) for n in (1, 2, 1))
    return [
        Request([*start, *hole, *start], 3, 100, images=one),
        Request(words(7, g), 2, 101),
        Request([*hole, *start, *hole], 4, 102, images=two),
        Request([*start, *hole, *start], 3, 100, images=other),
    ]


def as_batch(asked: list[Request], groups: list[list[Rollout]]) -> Batch:
    flat = [r for group in groups for r in group]
    layout = Layout.of([len(r.tokens) for r in flat], [r.n for r in asked], [len(r.prompt) for r in asked])
    return Batch.of(
        layout,
        context=torch.tensor([t for r in asked for t in r.prompt]),
        tokens=torch.cat([r.tokens for r in flat]),
        trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
        images=[NO_IMAGES if r.images is None else r.images for r in asked],
    )


@pytest.mark.parametrize(
    ("text", "tower", "decoder"), [("qwen3", "siglip", "lean"), ("llama", "clip", "lean"), ("gemma", "clip", "model")]
)
def test_log_probs_are_the_trainers_and_those_of_transformers(text: str, tower: str, decoder: str) -> None:
    start = make(text, tower, layer=-1)
    policy, asked = Policy(make(text, tower, layer=-1), None), requests()
    engine = LocalEngine(policy, 64, ENDS)
    groups = engine.generate(asked, Sampling(max_tokens=12))
    assert engine.stats.decoder.startswith(decoder)
    said, batch = torch.cat([r.logp for g in groups for r in g]), as_batch(asked, groups)
    torch.testing.assert_close(said, policy.logp(batch), rtol=0, atol=2e-5)
    with torch.no_grad():
        torch.testing.assert_close(said, plain_logp(start, batch), rtol=0, atol=2e-5)
    assert any(not torch.equal(a.tokens, b.tokens) for a, b in zip(groups[0], groups[3], strict=True)), "it looked"


def test_greedy_responses_are_those_of_generate() -> None:
    policy, start = Policy(make("qwen3", "siglip", layer=-1), None), make("qwen3", "siglip", layer=-1)
    asked = [replace(r, n=1) for r in requests()]
    groups = LocalEngine(policy, 64, ENDS).generate(asked, Sampling(temperature=0, max_tokens=10))
    for request, (rollout,) in zip(asked, groups, strict=True):
        given: dict[str, Any] = {} if request.images is None else {"pixel_values": request.images}
        ids = torch.tensor([request.prompt])
        out = start.generate(ids, **given, do_sample=False, max_new_tokens=10, eos_token_id=list(ENDS), pad_token_id=0)
        assert out[0, len(request.prompt) :].tolist() == rollout.tokens.tolist()


def test_how_many_rows_are_written_at_once_changes_no_token() -> None:
    policy = Policy(make("qwen3", "siglip", layer=-1), None)
    first = LocalEngine(policy, 64, ENDS).generate(requests(), Sampling(max_tokens=12))
    for rows in (1, 4):
        again = LocalEngine(policy, rows, ENDS).generate(requests(), Sampling(max_tokens=12))
        for a, b in zip((r for g in first for r in g), (r for g in again for r in g), strict=True):
            assert torch.equal(a.tokens, b.tokens)
            torch.testing.assert_close(a.logp, b.logp, rtol=0, atol=2e-5)


def test_a_prefix_goes_on_as_the_response_would_have() -> None:
    policy, asked = Policy(make("llama", "clip"), None), requests()[:1]
    engine = LocalEngine(policy, 64, ())
    ((whole, *_),) = engine.generate(asked, Sampling(max_tokens=10))
    begun = replace(asked[0], n=1, prefix=whole.tokens[:4].tolist())
    ((rest,),) = engine.generate([begun], Sampling(max_tokens=10))
    assert torch.equal(rest.tokens, whole.tokens[4:])


@pytest.mark.parametrize("weights", ["float32", "float64"])
def test_the_tape_serves_prompts_with_images(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)
    dtype, bound = {"float32": (torch.float32, 5e-5), "float64": (torch.float64, 1e-10)}[weights]
    policy = Policy(make("qwen3", "siglip", layer=-1).to(dtype), None, PolicySpec(weights=weights))
    engine, asked = LocalEngine(policy, 64, ENDS), requests()
    engine.tape = tape = policy.make_tape()
    assert tape is not None
    groups = engine.generate(asked, Sampling(max_tokens=12))
    taped = torch.cat([r.taped for g in groups for r in g if r.taped is not None])
    batch = as_batch(asked, groups).with_columns(None, taped=taped)
    found = []
    for used in (None, tape):
        policy.model.zero_grad()
        logp = policy.columns(batch, torch.ones(len(taped), dtype=torch.bool), tape=used, final=used is not None)[
            "logp"
        ]
        (logp * torch.linspace(-1, 2, len(logp), dtype=logp.dtype)).sum().backward()
        found.append({n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None})
    assert tape._p is None or tape.heads
    assert found[0].keys() == found[1].keys()
    for name, g in found[0].items():
        scale = max(1.0, float(g.abs().max()))
        torch.testing.assert_close(found[1][name], g, rtol=0, atol=bound * scale)


def test_a_text_model_refuses_images() -> None:
    from tests.policy.models import make as make_text

    engine = LocalEngine(Policy(make_text("qwen3"), None), 4, ENDS)
    with pytest.raises(DataError, match="request 0 has images: it is a text model"):
        engine.generate(requests()[:1], Sampling(max_tokens=4))
