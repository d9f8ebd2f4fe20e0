"""A small untrained model for the task mnns: its vocabulary has one token per digit and per partial sum.

    from unipo.starter.mnns import save_mnns_model
    save_mnns_model("models/mnns", hidden=24)

Then `unipo train --method cot2-csft --task mnns --model models/mnns` teaches it, and `cot2-grpo` goes on from there.
Source: CoT2 (arXiv 2505.23648), app.; alperengozeten/CoT2: train/continuous_train.py (GPT-2, one or two layers).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from unipo.tasks.mnns import vocabulary


def mnns_tokenizer(digits: int = 4, largest: int = 9) -> PreTrainedTokenizerFast:
    """One token per word; words are separated by spaces."""
    words = {word: i for i, word in enumerate(vocabulary(digits, largest))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<UNK>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    untyped: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = untyped(
        tokenizer_object=tokenizer,
        pad_token="<PAD>",
        unk_token="<UNK>",
        eos_token="<EOS>",
        bos_token="<BOS>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return made


def save_mnns_model(
    folder: str | Path,
    hidden: int = 24,
    layers: int = 1,
    heads: int = 1,
    digits: int = 4,
    largest: int = 9,
    seed: int = 0,
    positions: int = 128,
) -> Path:
    """Write a fresh GPT-2 with the task's tokenizer, which `--model` reads. Returns the folder.

    positions: of the context; the task itself uses 2 digits + 1 of them, the authors' models have 13.
    """
    tokenizer = mnns_tokenizer(digits, largest)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    out = Path(folder)
    GPT2LMHeadModel(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
