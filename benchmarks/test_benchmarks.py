"""The arithmetic of the benchmark: floors counted by hand and by torch, ratios of pairs.  pytest benchmarks"""

from __future__ import annotations

from dataclasses import replace

import pytest
from floor import attention_flops, floor_seconds, generation_flops, layer_flops_per_token, update_flops
from report import row, rows_of
from shapes import SHAPES, Shape, prompts_of, qwen3_config

TINY = Shape(
    "tiny",
    hidden=8,
    layers=1,
    heads=2,
    kv_heads=1,
    mlp=16,
    vocab=10,
    prompts=1,
    group=2,
    prompt_tokens=3,
    answer_tokens=2,
)


def test_the_layers_of_a_tiny_model_counted_by_hand() -> None:
    # q and o: 2 * 8 * 8; k and v: 2 * 8 * 4; gate, up, down: 3 * 8 * 16 -> 576 weights, two operations each.
    assert layer_flops_per_token(TINY) == 2 * 576
    # Positions 0, 1, 2 see 1 + 2 + 3 keys; 4 operations for each of 8 query channels and key.
    assert attention_flops(TINY, 0, 3) == 4 * 8 * 6


def test_generation_passes_each_prompt_once_and_never_reads_a_last_token() -> None:
    tokens = 3 + 2 * 1
    attention = 4 * 8 * (6 + 2 * 4)
    head_rows = 1 + 2 * 1
    assert generation_flops(TINY) == tokens * 1152 + attention + head_rows * 2 * 8 * 10
    assert update_flops(TINY) == 3 * generation_flops(TINY)
    assert generation_flops(replace(TINY, prompts=5)) == 5 * generation_flops(TINY)


@pytest.mark.parametrize("name", ["short", "medium"])
def test_one_answer_costs_what_torch_counts_apart_from_the_masked_half_of_attention(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = replace(SHAPES[name], prompts=1, group=1)
    read = shape.total_tokens - 1
    model = Qwen3ForCausalLM(Qwen3Config(**qwen3_config(shape))).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            torch.tensor([prompts_of(shape)[0] + [0] * (shape.answer_tokens - 1)]), logits_to_keep=shape.answer_tokens
        )
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for kind, flops in counted.items() if "attention" not in str(kind))
    assert generation_flops(shape) - attention_flops(shape, 0, read) == products


def test_the_floor_of_a_step_is_generation_and_update() -> None:
    floor = floor_seconds(TINY, rate=1000.0)
    assert floor["step_s"] == pytest.approx(4 * generation_flops(TINY) / 1000.0)


def test_the_ratio_is_the_median_over_pairs_and_not_the_ratio_of_medians() -> None:
    # Pairs 1/2, 3/1, 2/4: ratios 0.5, 3, 0.5 -> median 0.5; the ratio of medians would be 2/2 = 1.
    found = row("tiny", "float32", "step_s", [1.0, 3.0, 2.0], "trl", [2.0, 1.0, 4.0])
    assert (found.ratio, found.unipo, found.peer, found.ratio_range) == (0.5, 2.0, 2.0, (0.5, 3.0))


def test_without_unipo_peers_are_still_reported() -> None:
    rows = rows_of("tiny", "float32", {"trl": {"step_s": [2.0]}}, {"step_s": 0.5})
    assert [(one.peer_name, one.unipo, one.peer, one.ratio) for one in rows] == [
        ("trl", None, 2.0, None),
        ("floor", None, 0.5, None),
    ]


def test_the_long_prompt_shape_splits_its_width_over_the_heads() -> None:
    assert SHAPES["long-prompt"].head_dim == 64
    assert all(shape.head_dim * shape.heads == shape.hidden for shape in SHAPES.values())
