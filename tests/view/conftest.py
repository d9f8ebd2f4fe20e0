"""Run directories as a training run writes them, made without one, and a browser to look at their page."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

HOSTILE = (
    '</script><script>document.body.dataset.hacked="yes"</script><img src=x onerror="document.body.dataset.hacked=1">'
)
TEXT = "To see it, add the two numbers. Then check. The answer is 42."
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def write_lines(path: Path, records: list[dict[str, Any]], mode: str = "w") -> None:
    with path.open(mode, encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def completion(step: int, row: int, text: str) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": row // 4,
        "prompt": f"Question {row // 4} of step {step}: what is 40 + 2?",
        "text": text,
        "answer": "42",
        "tokens": list(range(len(text.split()))),
        "reward": float((step * 7 + row * 3) % 5) / 4,
        "score": 1.0,
        "truncated": row == 3,
        "advantage": round(math.sin(step + row), 4),
    }


def trace(step: int, row: int, text: str) -> dict[str, Any]:
    pieces = [w if k == 0 else f" {w}" for k, w in enumerate(text.split(" "))]
    n = len(pieces)
    return {
        "step": step,
        "row": row,
        "pieces": pieces,
        "columns": {
            "advantage": [round(math.sin(k + step), 3) for k in range(n)],
            "behaviour_logp": [round(-0.1 * k - 0.01, 3) for k in range(n)],
            "behaviour_entropy": [round(0.05 * k, 3) for k in range(n)],
            "old_logp": [round(-0.1 * k - 0.01, 3) for k in range(n)],
            "new_logp": [round(-0.12 * k, 3) for k in range(n)],
            "reference_logp": [round(-0.15 * k, 3) for k in range(n)],
            "clipped": [int(k == 2) for k in range(n)],
            "trainable": [int(k not in (4, 5)) for k in range(n)],
            "mask": 1,
        },
    }


def metrics(step: int, steps: int) -> dict[str, float]:
    share = step / steps
    return {
        "step": step,
        "reward/mean": 0.2 + 0.6 * share + 0.05 * math.sin(step),
        "entropy": 1.2 * math.exp(-5 * share),
        "length/mean": 20 + 5 * math.sin(step / 9),
        "groups/zero_variance": 0.3,
        "ratio/q01": 0.9,
        "ratio/q50": 1.0,
        "ratio/q99": 1.1,
        "clip_fraction": 0.02,
        "gap/mean": 1e-6,
        "grad_norm": 0.5,
        "loss": -0.01,
        "tokens/sampled": 640.0,
        "seconds/step": 0.5,
        **{f"other/{k}": math.cos(step * k / 50) for k in range(40)},
    }


def write_run(path: Path, steps: int = 30, per_step: int = 8, traced: int = 2, length: int = 1) -> Path:
    """A finished run whose entropy collapses. Its very first response is hostile; so is its first prompt."""
    path.mkdir(parents=True)
    config = {"method": "dapo", "steps": steps, "prompts": 8, "data": {"task": "sums"}, "policy": {"model": ""}}
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"run": str(path)}))
    method = {"name": "dapo", "summary": "GRPO with a higher upper bound.", "paper": "DAPO", "parent": "grpo"}
    method |= {
        "url": "https://arxiv.org/abs/2503.14476",
        "formula": ["sample  8 per prompt", "loss    -min(r A, clip(r) A)"],
    }
    method |= {"diff": [["objective.high", "0.2", "0.28"]], "own_settings": [], "notes": ["a note"]}
    (path / "method.json").write_text(json.dumps(method))
    texts = [f"{TEXT} " * length + f"({step}, {row})" for step in range(1, steps + 1) for row in range(per_step)]
    texts[0] = HOSTILE
    places = [(step, row) for step in range(1, steps + 1) for row in range(per_step)]
    done = [completion(*place, text) for place, text in zip(places, texts, strict=True)]
    done[0]["prompt"] = HOSTILE
    write_lines(path / "completions.jsonl", done)
    seen = [trace(*place, text) for place, text in zip(places, texts, strict=True) if place[1] < traced]
    write_lines(path / "tokens.jsonl", seen)
    write_lines(path / "metrics.jsonl", [metrics(step, steps) for step in range(1, steps + 1)])
    ends = [
        {"step": 0, "accuracy": 0.3, "low": 0.2, "high": 0.4},
        {"step": steps, "accuracy": 0.7, "low": 0.6, "high": 0.8},
    ]
    write_lines(path / "evaluations.jsonl", ends)
    write_lines(path / "events.jsonl", [{"step": 3, "event": "all_truncated", "count": 1.0}])
    (path / "result.json").write_text("{}")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_run(tmp_path / "small")


def chromium() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium through Selenium; skipped, and said aloud, where either is missing."""
    binary, driver = chromium(), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        binary = None
    if binary is None or driver is None:
        reason = "THE PAGE IS NOT TESTED: it takes chromium, chromedriver and the package selenium"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--window-size=1400,950"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ["SE_AVOID_STATS"] = "true"
    made = webdriver.Chrome(options, webdriver.ChromeService(executable_path=driver))
    made.set_page_load_timeout(120)
    yield made
    made.quit()
