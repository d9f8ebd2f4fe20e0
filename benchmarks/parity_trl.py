"""TRL's own losses on a small ragged batch, written to tests/golden/trl-1.16.json for unipo's tests to match.

Run in an environment with TRL 1.16:  python benchmarks/parity_trl.py [OUT.json]

Nothing of TRL's is rewritten here.  Each trainer is built as a user builds it, on a two-layer model saved to a
temporary folder.  Two things are then put in its hands: the generated token ids (by overriding `_generate`), and the
log-probs of those tokens (by standing a table in for the model's forward pass).  TRL does the rest by its own code:
padding, masks, rewards, advantages, KL, loss.  Everything is in float64; rewards are multiples of 1/8, which survive
the float32 in which TRL reads them.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

GROUPS, GROUP_SIZE, VOCABULARY, LONGEST = 3, 4, 24, 7
EOS, PAD = 1, 2


def on_policy_batch(seed: int) -> dict[str, Any]:
    """Ids, tool marks, rewards and three log-probs of 12 ragged responses to 3 prompts."""
    draw = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (n,), generator=draw).tolist()

    def numbers(n: int, scale: float, around: list[float] | None = None) -> list[float]:
        noise = (scale * torch.randn(n, generator=draw)).tolist()
        return noise if around is None else [a + b for a, b in zip(around, noise, strict=True)]

    prompts = [ids(n) for n in (3, 1, 2)]
    lengths = [1, 4, 7, 2, 5, 3, 6, 1, 2, 7, 3, 4]
    responses = []
    for i, length in enumerate(lengths):
        tokens = ids(length)
        if i % 5 != 2:
            tokens[-1] = EOS  # the others were cut off
        logp = [-abs(x) - 0.05 for x in numbers(length, 1.5)]
        tool = [1 if i in (2, 6) and 1 <= t <= 2 else 0 for t in range(length)]
        responses.append(
            {
                "prompt": i // GROUP_SIZE,
                "ids": tokens,
                "tool": tool,
                "truncated": tokens[-1] != EOS,
                "logp": logp,
                "old_logp": numbers(length, 0.4, logp),
                "reference_logp": numbers(length, 0.4, logp),
            }
        )
    rewards = [1.0, 0.0, 0.25, 0.0, 0.5, 0.5, 0.5, 0.5, 0.125, 1.0, 0.875, 0.0]  # the second group: all equal
    for response, reward in zip(responses, rewards, strict=True):
        response["reward"] = reward
    return {"prompts": prompts, "responses": responses}


def pair_batch(seed: int) -> dict[str, Any]:
    """The same kind of rows as pairs: chosen and rejected responses to four prompts."""
    whole = on_policy_batch(seed)
    rows = [whole["responses"][i] for i in (0, 2, 4, 7, 9, 8, 3, 6)]
    keep = ("ids", "logp", "reference_logp")
    pairs = [
        {
            "prompt": whole["prompts"][k % 3],
            "chosen": {key: rows[2 * k][key] for key in keep},
            "rejected": {key: rows[2 * k + 1][key] for key in keep},
        }
        for k in range(4)
    ]
    return {"pairs": pairs}


def table(rows: list[list[float]], width: int) -> Tensor:
    out = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


class Recited(torch.nn.Module):
    """Stands where the model stands and answers a forward pass with log-probs from a table."""

    is_gradient_checkpointing = False  # TRL asks its model

    def __init__(self, log_probs: Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(log_probs)

    def forward(self, **_: Any) -> SimpleNamespace:
        quiet = torch.zeros_like(self.table)
        return SimpleNamespace(
            log_probs=self.table, entropy=quiet, mean_logits=quiet, is_top1=quiet.bool(), log_sum_sq_probs=quiet
        )


def save_model(folder: Path) -> str:
    """A model of a few thousand weights and a tokenizer of whole words, as `from_pretrained` wants them."""
    words = {f"w{i}": i for i in range(VOCABULARY)} | {"<eos>": EOS, "<pad>": PAD}
    words = {w: i for w, i in words.items() if w not in ("w1", "w2")}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="w0"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=EOS,
        pad_token_id=PAD,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def common(folder: str, rows: int) -> dict[str, Any]:
    return {
        "output_dir": folder + "/out",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def sampled(trainer_class: type, config: Any, folder: str, data: dict[str, Any]) -> dict[str, Any]:
    """Loss, advantages and gradient of an on-policy trainer. Returns lists, one row per response."""
    rows = data["responses"]
    prompts = [data["prompts"][r["prompt"]] for r in rows]

    class Given(trainer_class):  # type: ignore[misc]
        def _generate(self, _: Any) -> Any:
            ids = [r["ids"] for r in rows]
            if trainer_class is RLOOTrainer:
                return prompts, ids, ids
            tools = [[1 - mark for mark in r["tool"]] for r in rows]
            return prompts, ids, tools, ids, None, {}, None, None

    trainer = Given(
        model=folder,
        args=config,
        reward_funcs=lambda completions, **_: [r["reward"] for r in rows],
        train_dataset=Dataset.from_dict({"prompt": ["w3 w4"] * len(rows)}),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model = Recited(table([r["old_logp"] for r in rows], LONGEST))
    trainer.ref_model = Recited(table([r["reference_logp"] for r in rows], LONGEST))
    prepared = trainer._generate_and_score_completions([{"prompt": "w3 w4"}] * len(rows))
    live = Recited(table([r["logp"] for r in rows], LONGEST))
    loss = trainer._compute_loss(live, prepared)
    loss.backward()
    gradient = live.table.grad
    return {
        "advantages": prepared["advantages"].tolist(),
        "loss": loss.item(),
        "gradient": [gradient[i, : len(r["ids"])].tolist() for i, r in enumerate(rows)],
    }


def grpo(folder: str, data: dict[str, Any], **settings: Any) -> dict[str, Any]:
    # Two iterations per batch, so that TRL scores the old policy instead of taking the current one for it.
    config = GRPOConfig(
        **common(folder, len(data["responses"])),
        num_generations=GROUP_SIZE,
        num_iterations=2,
        steps_per_generation=1,
        max_completion_length=16,
        **settings,
    )
    return {"trainer": "GRPOTrainer", "settings": settings, **sampled(GRPOTrainer, config, folder, data)}


def rloo(folder: str, data: dict[str, Any], **settings: Any) -> dict[str, Any]:
    config = RLOOConfig(
        **common(folder, len(data["responses"])),
        num_generations=GROUP_SIZE,
        num_iterations=2,
        steps_per_generation=1,
        max_completion_length=16,
        **settings,
    )
    return {"trainer": "RLOOTrainer", "settings": settings, **sampled(RLOOTrainer, config, folder, data)}


def dpo(folder: str, pairs: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """TRL lays chosen rows over rejected ones, prompt and response in one right-padded row."""
    config = DPOConfig(**common(folder, len(pairs)), **settings)
    words = {"prompt": ["w3"] * 2, "chosen": ["w4"] * 2, "rejected": ["w5"] * 2}
    trainer = DPOTrainer(
        model=folder,
        args=config,
        train_dataset=Dataset.from_dict(words),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )
    sides = [(p["prompt"], p[side]) for side in ("chosen", "rejected") for p in pairs]
    width = max(len(prompt) + len(row["ids"]) for prompt, row in sides)
    inputs = {name: torch.zeros(len(sides), width, dtype=torch.long) for name in ("input_ids", "completion_mask")}
    inputs["input_ids"] += PAD
    tables = {name: torch.zeros(len(sides), width - 1) for name in ("logp", "reference_logp")}
    for i, (prompt, row) in enumerate(sides):
        start, end = len(prompt), len(prompt) + len(row["ids"])
        inputs["input_ids"][i, :end] = torch.tensor(prompt + row["ids"])
        inputs["completion_mask"][i, start:end] = 1
        for name, rows in tables.items():
            rows[i, start - 1 : end - 1] = torch.tensor(row[name])
    inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
    live = Recited(tables["logp"])
    trainer.ref_model = Recited(tables["reference_logp"])
    loss = trainer._compute_loss(live, inputs, return_outputs=False)
    loss.backward()
    gradient = [
        live.table.grad[i, len(prompt) - 1 : len(prompt) + len(row["ids"]) - 1].tolist()
        for i, (prompt, row) in enumerate(sides)
    ]
    return {"trainer": "DPOTrainer", "settings": settings, "loss": loss.item(), "gradient": gradient}


def dpo_one_by_one(folder: str, pairs: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """Mean of one call per pair: with one pair, TRL's sorted `aot` loss is label-smoothed DPO."""
    calls = [dpo(folder, [pair], **settings) for pair in pairs]
    n = len(calls)
    gradient = [[g / n for g in call["gradient"][side]] for side in (0, 1) for call in calls]
    loss = sum(call["loss"] for call in calls) / n
    return {"trainer": "DPOTrainer", "settings": settings, "calls": n, "loss": loss, "gradient": gradient}


def all_cases(folder: str, data: dict[str, Any], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    unscored = json.loads(json.dumps(data))
    unscored["responses"][1]["reward"] = None
    clip = {"epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.0}
    no_tools = json.loads(json.dumps(data))
    for response in no_tools["responses"]:
        response["tool"] = [0] * len(response["tool"])
    return {
        "grpo": grpo(folder, data, **clip | {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}),
        "grpo-corrected-kl": grpo(
            folder, data, **clip | {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": True}
        ),
        "grpo-masked-truncated": grpo(folder, data, **clip, loss_type="grpo", mask_truncated_completions=True),
        "grpo-two-sided": grpo(folder, data, **clip, loss_type="grpo", delta=1.25),
        "grpo-unscored": grpo(folder, unscored, **clip, loss_type="dapo"),
        "dr_grpo": grpo(folder, data, **clip, loss_type="dr_grpo", scale_rewards="none"),
        "dapo": grpo(folder, data, **clip | {"loss_type": "dapo", "epsilon_high": 0.28}),
        "cispo": grpo(folder, data, **clip | {"loss_type": "cispo", "epsilon_high": 1.3}),
        "gspo": grpo(
            folder, data, **clip | {"loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4},
            importance_sampling_level="sequence",
        ),
        "gspo-wide": grpo(
            folder, data, **clip | {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.15},
            importance_sampling_level="sequence",
        ),
        "rloo": rloo(folder, no_tools, beta=0.05, epsilon=0.2, epsilon_high=0.2),
        "dpo": dpo(folder, pairs, beta=0.1, loss_type="sigmoid"),
        "dpo-sigmoid-ignores-smoothing": dpo(folder, pairs, beta=0.1, loss_type="sigmoid", label_smoothing=0.2),
        "dpo-smoothed": dpo_one_by_one(folder, pairs, beta=0.1, loss_type="aot", label_smoothing=0.2),
    }  # fmt: skip


def main(out: Path) -> None:
    logging.disable(logging.WARNING)
    disable_progress_bars()
    torch.set_default_dtype(torch.float64)
    data, pairs = on_policy_batch(seed=2), pair_batch(seed=11)
    with tempfile.TemporaryDirectory() as folder:
        cases = all_cases(save_model(Path(folder) / "model"), data, pairs["pairs"])
    made = {
        "by": "python benchmarks/parity_trl.py",
        "how": "TRL's own _generate_and_score_completions and _compute_loss, float64, log-probs from a table",
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"made": made, **data, **pairs, "max_completion_length": 16, "cases": cases}) + "\n")
    for name, case in cases.items():
        print(f"{name:32} loss {case['loss']:+.12f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "tests/golden/trl-1.16.json")
