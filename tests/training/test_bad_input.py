"""Every mistake a user can make ends in an error that names it, before training where possible."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unipo
from tests.training.conftest import metrics, quick, weights
from unipo.errors import ConfigError, DataError, RewardError
from unipo.method import Term
from unipo.parts.average import GroupMean, TokenMean
from unipo.parts.preference import DPO, LogLikelihood
from unipo.policy.model import load_policy
from unipo.policy.spec import LoraSpec, PolicySpec
from unipo.registry import get_method
from unipo.rollout.engine import Sampling
from unipo.starter import starter_path
from unipo.tasks.task import Example, Response
from unipo.training.config import DataConfig, OptimConfig, TrainConfig, from_dict, read_mapping
from unipo.training.continuations import branch_seed
from unipo.training.setup import encode_all
from unipo.training.shorthand import expand

Rows = Callable[..., str]
SUMS = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(8)]


def on_data(tmp_path: Path, data: str, reward: Any = "numbers", method: str = "grpo", **settings: Any) -> Any:
    off = {"eval.before": False, "eval.after": False}
    return quick(tmp_path / "run", method, steps=1, reward=reward or None, **({"data.data": data} | off | settings))


def test_an_empty_dataset(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(DataError, match=r"no rows|empty"):
        on_data(tmp_path, rows([]))


def test_a_missing_field_lists_what_there_is(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(DataError, match=r"fields\.prompt"):
        on_data(tmp_path, rows([{"foo": "1+1=", "answer": "2"}]))


def test_a_row_without_prompt_is_named(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(DataError, match="2"):
        on_data(tmp_path, rows([SUMS[0], {"prompt": "", "answer": "2"}]))


def test_an_answer_of_the_wrong_type_is_named(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(DataError, match="answer"):
        on_data(tmp_path, rows([SUMS[0], {"prompt": "1+1=", "answer": ["2"]}]))


def test_a_prompt_longer_than_the_context_stops_or_is_counted(tmp_path: Path, rows: Rows) -> None:
    data = rows([*SUMS, {"prompt": "1" * 600, "answer": "1"}])
    with pytest.raises(DataError, match="example 8"):
        on_data(tmp_path, data)
    on_data(tmp_path, data, **{"data.long_prompts": "skip"})
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert events[0] == {"step": 0, "event": "data", "prompt too long": 1}


def test_a_group_of_one_has_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group_size >= 2"):
        quick(tmp_path / "run", "grpo", set={"source.group_size": 1})


def test_all_rewards_equal_makes_no_update_and_is_counted(tmp_path: Path, rows: Rows) -> None:
    from unipo.rewards import FunctionReward

    constant = FunctionReward(lambda completion: 0.1, isolate=False)
    quick(tmp_path / "run", "grpo-token", steps=2, reward=constant, **{"eval.before": False, "eval.after": False})
    for m in metrics(tmp_path / "run"):
        assert m["groups/zero_variance"] == 1.0
        assert m["events/no_group_has_signal"] == 1.0
        assert m["updates/skipped"] == 1.0
        assert m["tokens/computed"] == 0.0


def test_all_responses_truncated_is_counted(tmp_path: Path) -> None:
    quick(tmp_path / "run", steps=1, **{"sampling.max_tokens": 4})
    (m,) = metrics(tmp_path / "run")
    assert m["truncated"] == 1.0
    assert m["events/all_truncated"] == 1.0


def test_pad_equal_to_eos_changes_nothing(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(starter_path(), model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    quick(tmp_path / "a", steps=2)
    quick(tmp_path / "b", steps=2, **{"policy.model": str(model)})
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(starter_path(), model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for i in range(400):
        vocabulary[f"extra{i}"] = len(vocabulary)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="do not belong together"):
        quick(tmp_path / "run", **{"policy.model": str(model)})


def test_a_model_directory_without_weights(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(starter_path(), model, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match="holds no weights"):
        quick(tmp_path / "run", **{"policy.model": str(model)})


REWARDS = {
    "hangs": ("import time\ndef score(completion):\n    time.sleep(1000)\n", "deadline|time"),
    "raises": ("def score(completion):\n    raise ValueError('broken scorer')\n", "broken scorer"),
    "not a number": ("def score(completion):\n    return float('nan')\n", "nan"),
    "too few": ("def score(completions):\n    return [1.0]\n", "1"),
    "text": ("def score(completion):\n    return 'good'\n", "good"),
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_broken_reward_stops_the_run_and_shows_the_response(kind: str, tmp_path: Path, rows: Rows) -> None:
    from unipo.rewards import FunctionReward

    source, message = REWARDS[kind]
    file = tmp_path / "rewards.py"
    file.write_text(source)
    start = time.time()
    with pytest.raises(RewardError, match=message):
        on_data(tmp_path, rows(SUMS), FunctionReward(f"{file}:score", seconds=1.0))
    assert time.time() - start < 60, "the deadline did not hold"


def test_a_broken_reward_can_be_counted_and_skipped(tmp_path: Path, rows: Rows) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "def score(completion, answer):\n    if answer == '3': raise ValueError('no')\n    return float(len(completion) % 2)\n"
    )
    settings = {"data.bad_rewards": "skip", "prompts": 8}
    on_data(tmp_path, rows(SUMS), f"{file}:score", **settings)
    (m,) = metrics(tmp_path / "run")
    assert m["events/raised"] == 8.0  # one prompt of eight, eight responses each
    assert m["unscored"] == 0.125


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        quick(tmp_path / "run", "grp")
    with pytest.raises(ConfigError, match=r"did you mean 'optim\.learning_rate'"):
        quick(tmp_path / "run", **{"optim.learning_rte": 1.0})
    with pytest.raises(ConfigError, match="did you mean 'high'"):
        quick(tmp_path / "run", set={"objective.hihg": 0.3})


def test_values_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.learning_rate must be"):
        quick(tmp_path / "run", **{"optim.learning_rate": "fast"})
    with pytest.raises(ConfigError, match="steps must be int"):
        quick(tmp_path / "run", steps="many")  # type: ignore[arg-type]


def test_short_names_mean_in_python_what_they_mean_in_a_file(tmp_path: Path, rows: Rows) -> None:
    section = {"data": rows(SUMS), "limit": 4}
    given = {"steps": 0, "reward": "numbers", "lr": 3e-4, "max_tokens": 7, "eval.before": False, "eval.after": False}
    unipo.train(data=section, run=str(tmp_path / "run"), **given)
    config = read_mapping(tmp_path / "run" / "config.yaml")
    assert (config["optim"]["learning_rate"], config["sampling"]["max_tokens"]) == (3e-4, 7)
    assert (config["data"]["data"], config["data"]["limit"]) == (section["data"], 4)
    with pytest.raises(ConfigError, match=r"unipo\.train: optim\.learning_rate is given twice"):
        unipo.train(lr=1e-3, optim={"learning_rate": 1e-4})


def test_truncated_sampling_is_refused_for_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole distribution"):
        quick(tmp_path / "run", **{"sampling.top_p": 0.9})


def test_a_method_with_evidence_needs_answers(tmp_path: Path, rows: Rows) -> None:
    data = rows([{"prompt": f"{i}+1="} for i in range(4)])
    file = tmp_path / "rewards.py"
    file.write_text("def score(completion):\n    return float(len(completion) % 2)\n")
    with pytest.raises(DataError, match="have none"):
        on_data(tmp_path, data, f"{file}:score", method="cepo")


def test_an_online_method_without_reward(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(ConfigError, match="needs a reward"):
        on_data(tmp_path, rows(SUMS), "")


def test_sections_given_as_objects_join_what_stands_beside_them() -> None:
    given = {
        "optim": OptimConfig(schedule="cosine", warmup_steps=10),
        "lr": 1e-5,
        "sampling": Sampling(stop=("###",)),
        "max_tokens": 64,
        "policy": PolicySpec(lora=LoraSpec(rank=8)),
        "policy.compute": "bfloat16",
        "data": DataConfig(chat="never"),
        "task": "scratchpad",
    }
    config: TrainConfig = from_dict(TrainConfig, expand(given))
    assert config.optim == OptimConfig(schedule="cosine", warmup_steps=10, learning_rate=1e-5)
    assert config.sampling == Sampling(stop=("###",), max_tokens=64)
    assert config.policy == PolicySpec(lora=LoraSpec(rank=8), compute="bfloat16")
    assert config.data == DataConfig(chat="never", task="scratchpad")
    with pytest.raises(ConfigError, match="given twice, as 'starter' and as 'other'"):
        expand({"policy": PolicySpec(model="other"), "model": "starter"})
    with pytest.raises(ConfigError, match="optim must be a mapping of its keys"):
        expand({"optim": Sampling()})


def test_changed_answers_are_noticed_at_a_resume(tmp_path: Path, rows: Rows) -> None:
    on_data(tmp_path, rows(SUMS))
    rows([*SUMS[:-1], SUMS[-1] | {"answer": "9"}])  # the same file
    with pytest.raises(DataError, match="the data changed"):
        quick(tmp_path / "run", steps=2, resume=True, reward="numbers")


def test_changed_rows_and_preferences_are_noticed_too(tmp_path: Path, rows: Rows) -> None:
    """Rewards read whole rows, and the order of responses is what preference methods learn from."""
    quiet = {"eval.before": False, "eval.after": False}
    data = rows([row | {"least": 1} for row in SUMS])
    quick(tmp_path / "rows", steps=1, reward="numbers", data=data, **quiet)
    rows([row | {"least": 9} for row in SUMS])
    with pytest.raises(DataError, match="the data changed"):
        quick(tmp_path / "rows", steps=2, resume=True)
    pairs = [{"prompt": f"{i}+1=", "responses": [str(i + 1), str(i + 2)]} for i in range(8)]
    data = rows([pair | {"ranks": [1, 2]} for pair in pairs])
    quick(tmp_path / "pairs", "dpo", steps=1, data=data, **quiet)
    rows([pair | {"ranks": [2, 1]} for pair in pairs])
    with pytest.raises(DataError, match="the data changed"):
        quick(tmp_path / "pairs", steps=2, resume=True)


def test_a_run_with_a_reward_of_its_own_is_not_resumed_with_another(tmp_path: Path) -> None:
    def long(text: str) -> float:
        return float(len(text) > 3)

    run = tmp_path / "run"
    quick(run, steps=1, reward=long)
    with pytest.raises(ConfigError, match="was started with the reward 'long'"):
        quick(run, steps=2, resume=True)
    assert quick(run, steps=2, resume=True, reward=long).steps == 2


def test_a_named_reward_from_python_stands_in_the_configuration(tmp_path: Path, rows: Rows) -> None:
    on_data(tmp_path, rows(SUMS), reward="numbers")
    assert quick(tmp_path / "run", steps=2, resume=True).steps == 2


def test_adapters_that_fit_no_module_are_named(tmp_path: Path) -> None:
    lora = {"policy.lora.rank": 2}
    with pytest.raises(ConfigError, match=r"k_prj names no module of the model; there are .*k_proj.*q_proj"):
        quick(tmp_path / "a", steps=1, **lora, **{"policy.lora.targets": "q_proj, k_prj"})
    quick(tmp_path / "b", steps=1, **lora, **{"policy.lora.targets": "q_proj, v_proj"})
    assert {name.split(".")[-3] for name in weights(tmp_path / "b", 1)} == {"q_proj", "v_proj"}


def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from unipo.starter.mnns import save_mnns_model

    other = str(save_mnns_model(tmp_path / "other", hidden=16, digits=2, largest=2))
    with pytest.raises(ConfigError, match=r"policy\.reference: the tokenizer of .* is not the policy's"):
        quick(tmp_path / "a", steps=1, **{"policy.reference": other})
    with pytest.raises(ConfigError, match=r"value\.model: the tokenizer of .* is not the policy's"):
        quick(tmp_path / "b", "ppo", steps=1, set={"value.model": other})


def test_a_list_of_three_is_no_pair_and_is_named_before_training(tmp_path: Path, rows: Rows) -> None:
    pair = {"prompt": "1+1=", "responses": ["2", "3"], "ranks": [1, 2]}
    data = rows([pair, pair | {"responses": ["2", "3", "4"], "ranks": [1, 2, 3]}])
    with pytest.raises(DataError, match="example 1 has 3 ranked responses, dpo compares 2: leave"):
        on_data(tmp_path, data, None, "dpo")


def test_seeds_of_any_size_are_seeds(tmp_path: Path) -> None:
    """Also where a method goes on from the middle of responses, and where prompts are drawn from pools."""
    quiet = {"eval.before": False, "eval.after": False, "sampling.max_tokens": 8, "prompts": 2}
    losses = []
    for place, seed in enumerate((2**40, 2**70)):
        quick(tmp_path / f"{place}", "spo-segment", steps=1, seed=seed, **quiet)
        losses.append(metrics(tmp_path / f"{place}")[0])
    assert losses[0] != losses[1]
    assert branch_seed(2**70, 1, 1) != branch_seed(2**70 + 1, 1, 1)


@pytest.mark.parametrize("extra", [(), (Term(DPO(), GroupMean(), 0.1),)])
def test_pairs_are_asked_for_by_whatever_term_compares_them(extra: tuple[Term, ...]) -> None:
    method = get_method("dpo").but(objective=LogLikelihood(), average=TokenMean(), extra=extra)
    three = Example("1+1=", responses=tuple(Response(str(i), i) for i in range(3)))
    policy = load_policy(PolicySpec(model=str(starter_path())))
    arguments = (policy, [three], DataConfig(), 100, method, Counter[str]())
    if not extra:
        assert len(encode_all(*arguments)[0].responses) == 3
        return
    with pytest.raises(DataError, match="has 3 ranked responses, dpo compares 2: leave"):
        encode_all(*arguments)
