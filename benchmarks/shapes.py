"""The four shapes of work that every contender does, and the model directory they all load.

A model directory holds a Qwen3 model with random float32 weights, a word-level tokenizer in which the text `t17`
is the token 17, the prompts as token ids (`prompts.json`) and the shape (`shape.json`). Every contender therefore
sees the same weights and the same prompt ids, whether it takes text or ids.

The model names no end-of-sequence id and the tokenizer's end and padding ids lie just beyond the model's vocabulary,
so no contender can ever sample them: each answer has exactly the forced length without a logits processor that would
cost one contender more than another.

Run as a program it writes one such directory:  python benchmarks/shapes.py medium /some/folder
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-5
WEIGHT_SEED = 1234
PROMPT_SEED = 4321


@dataclass(frozen=True)
class Shape:
    """One model size and one batch: `prompts` groups of `group` answers, all of one length. Units: tokens."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    prompts: int
    group: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def sequences(self) -> int:
        return self.prompts * self.group

    @property
    def total_tokens(self) -> int:
        """Tokens of one sequence, prompt and answer."""
        return self.prompt_tokens + self.answer_tokens


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("short", 128, 4, 4, 2, 384, 128, 8, 8, 24, 32),
        Shape("medium", 128, 4, 4, 2, 384, 128, 4, 8, 256, 64),
        Shape("wide", 512, 12, 8, 4, 1536, 32_000, 2, 8, 256, 64),
        Shape("long-prompt", 384, 6, 6, 2, 1024, 128, 1, 16, 1024, 64),
    )
}


def prompts_of(shape: Shape) -> list[list[int]]:
    """The fixed random prompts: `shape.prompts` lists of `shape.prompt_tokens` ids below the vocabulary."""
    chance = random.Random(PROMPT_SEED)
    return [[chance.randrange(shape.vocab) for _ in range(shape.prompt_tokens)] for _ in range(shape.prompts)]


def render(ids: list[int]) -> str:
    """The text which the tokenizer of the model directory encodes to exactly `ids`."""
    return " ".join(f"t{token}" for token in ids)


def qwen3_config(shape: Shape) -> dict[str, Any]:
    """The arguments of `transformers.Qwen3Config` for a shape; head_dim = hidden / heads, untied embeddings."""
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def write_model_dir(shape: Shape, folder: Path) -> None:
    """Write model, tokenizer, prompts and shape into `folder`; the weights depend on the shape alone."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(WEIGHT_SEED)
    model = Qwen3ForCausalLM(Qwen3Config(**qwen3_config(shape), dtype="float32"))
    model.save_pretrained(folder)
    words = {f"t{token}": token for token in range(shape.vocab)} | {"<eos>": shape.vocab, "<pad>": shape.vocab + 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    make_tokenizer: Any = PreTrainedTokenizerFast
    fast = make_tokenizer(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    prompts = prompts_of(shape)
    encoded = fast([render(ids) for ids in prompts])["input_ids"]
    if encoded != prompts:
        raise RuntimeError(f"shape {shape.name}: the tokenizer does not give back the prompt ids")
    fast.save_pretrained(folder)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "shape.json").write_text(json.dumps(asdict(shape)))


def read_model_dir(folder: Path) -> tuple[Shape, list[list[int]]]:
    """The shape and the prompt ids of a model directory."""
    shape = Shape(**json.loads((folder / "shape.json").read_text()))
    return shape, json.loads((folder / "prompts.json").read_text())


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(f"usage: shapes.py {{{','.join(SHAPES)}}} FOLDER")
    write_model_dir(SHAPES[sys.argv[1]], Path(sys.argv[2]))
