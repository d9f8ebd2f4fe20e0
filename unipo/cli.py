"""The command `unipo`: finds the subcommand, and turns errors into one readable block and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from unipo.errors import CheckpointError, RewardError, TrainingError, UnipoError, unknown

# Name -> (where its function of the arguments is, what it does in one line). Imported when asked for.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("unipo.command.train:run", "post-train a model (without arguments: the shipped one, in a minute or two)"),
    "eval": ("unipo.command.evaluate:run", "accuracy of a model on a task, with pass@k and intervals"),
    "push": ("unipo.command.push:run", "upload a saved model with its card to the Hugging Face hub, if you say so"),
    "generate": ("unipo.command.generate:run", "sample responses, with the log-probability of every token"),
    "methods": ("unipo.command.methods:run", "what there is to train with, and where it comes from"),
    "explain": ("unipo.command.explain:run", "the exact formula of a method, with its settings filled in"),
    "diff": ("unipo.command.diff:run", "what changes from one method to another"),
    "view": (
        "unipo.command.view:run",
        "a run as a page: curves, completions, coloured tokens, warnings; live or a file",
    ),
    "runs": ("unipo.command.runs:run", "the runs there are, with their rewards as small curves"),
    "show": ("unipo.command.show:run", "responses of a run in the terminal, tokens coloured"),
    "compare": ("unipo.command.compare:run", "methods side by side on equal budgets, with intervals over seeds"),
    "reproduce": ("unipo.command.reproduce:run", "a paper's claim as a small experiment, and its verdict"),
    "bench": ("unipo.command.bench:run", "how fast this machine generates and trains"),
}

HELP = """usage: unipo COMMAND [OPTIONS]

Policy optimisation for language models: every method from the same small parts.

commands:
{commands}

start here:
  unipo train                                       train the shipped model and see its accuracy rise
  unipo train --model MODEL --data train.jsonl --reward rewards.py:score
  unipo diff grpo dapo                              what DAPO changed

unipo COMMAND --help explains a command.  --debug, anywhere, shows the full traceback of an error.
"""

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for a failed run, 2 for what cannot work as asked, 130."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        return _dispatch(arguments)
    except UnipoError as error:
        if debug:
            raise
        return _report(error)
    except KeyboardInterrupt:
        print("unipo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # the option parser has printed its help or complaint already
        return stop.code if isinstance(stop.code, int) else (0 if stop.code is None else MISUSED)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:<11}{what}" for name, (_, what) in COMMANDS.items())
        print(HELP.format(commands=commands), end="")
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        import unipo

        print(f"unipo {unipo.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    module, _, function = COMMANDS[name][0].partition(":")
    command: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return command(rest)


def _report(error: UnipoError) -> int:
    """Print the message, once where several ranks share a configuration, and choose the exit status."""
    failed = isinstance(error, TrainingError | RewardError | CheckpointError)
    rank = os.environ.get("RANK", "0")
    if rank == "0" or failed:
        print(f"unipo{'' if rank == '0' else f' (rank {rank})'}: {error}", file=sys.stderr)
    return FAILED if failed else MISUSED


if __name__ == "__main__":
    sys.exit(main())
