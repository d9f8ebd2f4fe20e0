"""Reward functions that behave well and badly, loaded by path by the tests beside this file."""

import math
import os
import subprocess
import sys
import time

LOADED = {"torch": "torch" in sys.modules}


def contains(completion, answer):
    return answer in completion


def length_of_text(text, length=None, truncated=False):
    return len(text) + (length or 0) + 1000 * truncated


def by_field(response, difficulty, bonus=0.5):
    return difficulty + bonus


def everything(completion, **others):
    return 1.0 if sorted(others) == ["answer", "difficulty", "length", "prompt", "truncated"] else 0.0


def batch_lengths(completions, prompts, answers):
    return [len(c) + len(p) + len(a) for c, p, a in zip(completions, prompts, answers, strict=True)]


def batch_columns(completions, difficulty, **columns):
    if sorted(columns) != ["answers", "lengths", "prompts", "truncated"]:
        raise KeyError(sorted(columns))
    return list(difficulty)


def batch_too_few(completions):
    return [1.0] * (len(completions) - 1)


def batch_scalar(completions):
    return 1.0


def batch_hangs(completions):
    time.sleep(3600)


def hangs_on_hang(completion):
    if "hang" in completion:
        time.sleep(3600)
    return 1.0


def hangs_with_child(completion, pid_file):
    if "hang" in completion:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        with open(pid_file, "w") as file:
            file.write(str(child.pid))
        time.sleep(3600)
    return 1.0


def divides(completion):
    return 1 / int(completion)


def odd_values(completion):
    return {
        "nan": math.nan,
        "inf": math.inf,
        "none": None,
        "text": "0.5",
        "list": [1.0],
        "object": object(),
        "true": True,
        "exit": None,
        "three": 3,
    }[completion]


def exits(completion):
    if completion == "exit":
        sys.exit("done")
    if completion == "die":
        os._exit(3)
    return 1.0


def prints(completion):
    print("to standard output:", completion, flush=True)
    os.write(1, b"raw bytes to descriptor 1\n")
    return 2.0


def worker_pid(completion):
    return os.getpid()


def has_torch(completion):
    return LOADED["torch"] or "torch" in sys.modules


class Counter:
    """Depends on how often it was called: not a reward."""

    def __init__(self):
        self.calls = 0

    def __call__(self, completion):
        self.calls += 1
        return self.calls


stateful = Counter()
not_a_function = 3
