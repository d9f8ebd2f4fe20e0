"""PAPO: what is destroyed, what the difference is worth, and where it leads in expectation."""

from __future__ import annotations

import math

import pytest
import torch

from tests.methods.bigram import Bigram
from tests.parts.by_hand import batch_of, value_and_gradient
from unipo.batch import NO_IMAGES, Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.perception import (
    CorruptedContext,
    Perception,
    SampledEntropy,
    blacked_out,
    corrupted_context,
    perception_kl,
    spans,
)
from unipo.registry import get_method


def seen(logp: list[float], blind: list[float], **columns: object) -> Batch:
    n = len(logp)
    return batch_of([n], logp=logp, corrupted_logp=blind, **({"corrupted": [True] * n} | columns))


def test_values_and_gradients_by_hand() -> None:
    batch = seen([-1, -1, -1, -2, -5], [-1, -2, -4, -1, -1])
    value, gradient = value_and_gradient(Perception(gamma=1.0), batch)
    # 49.60 is more than the limit of 10, where no gradient is left.
    expected = [0, math.exp(-1), math.exp(-3) + 2, math.e - 2, 10.0]
    assert (-value).tolist() == pytest.approx(expected)
    assert (-value)[1:4].tolist() == pytest.approx([0.3679, 2.0498, 0.7183], abs=1e-4)
    assert gradient.tolist() == pytest.approx([0, math.exp(-1) - 1, math.exp(-3) - 1, math.e - 1, 0])


def test_what_is_masked_or_was_not_destroyed_takes_no_part() -> None:
    batch = seen([-1, -1, -1], [-math.inf, -3, -3], mask=[False, True, True], corrupted=[True, False, True])
    value, gradient = value_and_gradient(Perception(), batch)
    assert value[:2].tolist() == [0, 0]
    assert gradient[:2].tolist() == [0, 0]
    assert float(gradient[2]) != 0
    assert Perception().active(batch).tolist() == [False, False, True]


def test_the_expected_gradient_is_that_of_kl_from_the_blind_to_the_seeing_policy() -> None:
    z = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    blind = torch.tensor([0.7, 0.2, -0.4], dtype=torch.float64).log_softmax(0)
    logp = z.log_softmax(0)
    term = perception_kl(logp, blind, torch.ones(3, dtype=torch.bool), 10.0)
    (found,) = torch.autograd.grad((logp.detach().exp() * term).sum(), z, retain_graph=True)
    (right,) = torch.autograd.grad((blind.exp() * (blind - logp)).sum(), z, retain_graph=True)
    (other,) = torch.autograd.grad((logp.exp() * (logp - blind)).sum(), z)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
    assert float((found - other).abs().max()) > 1e-2


def test_on_policy_the_entropy_term_has_no_expected_gradient() -> None:
    z = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64, requires_grad=True)
    logp = z.log_softmax(0)
    (found,) = torch.autograd.grad((logp.detach().exp() * -logp).sum(), z)
    assert float(found.abs().max()) < 1e-12
    value, gradient = value_and_gradient(SampledEntropy(eta=0.5), seen([-1, -2], [0, 0]))
    assert value.tolist() == [1, 2]
    assert gradient.tolist() == [-1, -1]


def prompts() -> Batch:
    g = torch.Generator().manual_seed(0)
    layout = Layout.of([3, 2, 4], [2, 1], [40, 30])
    return Batch.of(
        layout,
        context=torch.randint(2, 11, (layout.n_context,), generator=g),
        tokens=torch.randint(11, (layout.n_tokens,), generator=g),
        trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
        prompt_id=torch.tensor([5, 9]),
    )


class Spelled(Bigram):
    """Encodes every character as its code modulo 11."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 11 for c in text]


def test_a_share_of_the_prompt_is_replaced_the_same_for_the_whole_group() -> None:
    batch, scorer = prompts(), Spelled(0)
    CorruptedContext(share=0.6)(batch, scorer)
    (_, edited) = scorer.calls[-1]
    changed = edited.context != batch.context
    assert 0.4 < float(changed.double().mean()) < 0.8
    assert set(edited.context[changed].tolist()) == {ord(" ") % 11}
    assert edited.layout.group_sizes.tolist() == [2, 1]
    # Alone, the second prompt is destroyed in the same places: no cut of the batch changes the draw.
    CorruptedContext(share=0.6)(batch.take_prompts([1]), scorer)
    assert torch.equal(scorer.calls[-1][1].context, edited.context[40:])


def test_another_step_draws_anew_and_share_0_and_1_are_exact() -> None:
    place = torch.arange(50)
    context, inside, prompt = torch.full((50,), 7), torch.ones(50, dtype=torch.bool), torch.full((50,), 3)
    one, two = (corrupted_context(context, inside, prompt, place, step, 0.5, 1) for step in (1, 2))
    assert not torch.equal(one, two)
    assert torch.equal(corrupted_context(context, inside, prompt, place, 1, 0.0, 1), context)
    assert bool((corrupted_context(context, inside, prompt, place, 1, 1.0, 1) == 1).all())


def test_masking_nothing_is_worth_nothing_at_the_first_update() -> None:
    batch, scorer = prompts(), Spelled(0)
    columns = CorruptedContext(share=0.0)(batch, scorer)
    live = scorer.live(batch).with_columns("token", **columns)
    live = live.with_columns(None, mask=batch.trainable)
    assert Perception()(live).abs().max() < 1e-12


def test_only_what_stands_between_the_markers_is_destroyed() -> None:
    assert spans([1, 8, 2, 3, 9, 4, 8, 5], [8], [9]) == [False, False, True, True, False, False, False, True]
    assert spans([8, 8, 2, 9], [8, 8], [9]) == [False, False, True, False]
    batch, scorer = prompts(), Spelled(0)
    context = batch.context.clone()
    context[context == ord("<") % 11] = 10
    context[3], context[9] = ord("<") % 11, ord(">") % 11
    context[4:9] = 3
    context[40:] = 10
    columns = CorruptedContext(share=1.0, opening="<", closing=">", fill=" ")(
        batch.with_columns(context=context), scorer
    )
    assert columns["corrupted"].tolist() == [True] * 5 + [False] * 4  # the second prompt has no marker
    (_, edited) = scorer.calls[-1]
    assert edited.layout.n_prompts == 1
    assert (edited.context != context[:40]).nonzero().flatten().tolist() == [4, 5, 6, 7, 8]


def test_without_gamma_and_eta_nothing_of_it_is_left() -> None:
    method = get_method("papo").but(
        name="x", regularisers=(*get_method("papo").regularisers[:1], Perception(gamma=0.0), SampledEntropy(eta=0.0))
    )
    assert "corrupted_logp" not in method.needs
    assert [type(t.objective).__name__ for t in method.terms] == ["Clipped", "ReferenceKL"]


@pytest.mark.parametrize("bad", [{"share": 1.5}, {"opening": "<"}])
def test_settings_that_cannot_be_meant_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CorruptedContext(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Perception(gamma=-1.0)


# -- images ----------------------------------------------------------------------------------------
class Looking(Spelled):
    """A scorer with a black of its own in every channel."""

    def black(self) -> torch.Tensor:
        return torch.tensor([-1.0, -2.0, -3.0])


def shown() -> Batch:
    g = torch.Generator().manual_seed(0)
    return prompts().with_columns(None, images=[torch.rand(2, 3, 32, 20, generator=g), NO_IMAGES])


def test_squares_are_black_or_untouched_and_a_group_shares_the_draw() -> None:
    images, black = torch.rand(2, 3, 32, 20), torch.tensor([-1.0, -2.0, -3.0])
    out = blacked_out(images, 7, 3, 0.6, 14, black)
    for n in range(2):
        for y in range(0, 32, 14):
            for x in range(0, 20, 14):
                here = out[n, :, y : y + 14, x : x + 14]
                dark = torch.equal(here, black[:, None, None].expand_as(here))
                assert dark or torch.equal(here, images[n, :, y : y + 14, x : x + 14])
    assert torch.equal(out, blacked_out(images, 7, 3, 0.6, 14, black))
    assert not torch.equal(out, blacked_out(images, 7, 4, 0.6, 14, black))
    assert not torch.equal(out, blacked_out(images, 8, 3, 0.6, 14, black))
    assert torch.equal(blacked_out(images, 7, 3, 0.0, 14, black), images)
    assert torch.equal(blacked_out(images, 7, 3, 1.0, 14, black), black[None, :, None, None].expand_as(images))


def test_squares_are_hidden_at_the_stated_rate_and_independently() -> None:
    images = torch.ones(1, 1, 200, 200)
    hidden = torch.cat([blacked_out(images, p, 1, 0.6, 4, torch.zeros(1))[:, 0, ::4, ::4] == 0 for p in range(4)])
    assert abs(float(hidden.double().mean()) - 0.6) < 0.02
    neighbours = (hidden[:, :, 1:] & hidden[:, :, :-1]).double().mean()
    assert abs(float(neighbours) - 0.36) < 0.02


def test_with_images_the_text_stays_and_prompts_without_one_are_skipped() -> None:
    batch, scorer = shown(), Looking(0)
    columns = CorruptedContext(share=1.0)(batch, scorer)
    assert columns["corrupted"].tolist() == [True] * 5 + [False] * 4
    calls = len(scorer.calls)
    (_, edited) = scorer.calls[-1]
    assert edited.layout.n_prompts == 1
    assert torch.equal(edited.context, batch.context[: len(edited.context)])
    assert torch.equal(edited.images[0], scorer.black()[None, :, None, None].expand_as(batch.images[0]))
    assert bool((columns["corrupted_logp"][5:] == 0).all())
    alone = batch.take_prompts([1])
    assert not bool(CorruptedContext()(alone, scorer)["corrupted"].any())
    assert len(scorer.calls) == calls, "nothing to look at costs no pass"
