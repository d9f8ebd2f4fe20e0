"""HPT against learning from samples alone and from demonstrations alone, where some kinds of question never succeed."""

from itertools import islice, zip_longest
from random import Random

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import KINDS, Hand, Kind, ScratchpadReward, problems
from unipo.tasks.task import Example, Response


def _ask_min(rng: Random) -> str:
    return f"min {' '.join(str(rng.randint(10, 99)) for _ in range(rng.randint(4, 5)))}"


def _work_min(question: str, hand: Hand) -> tuple[list[str], str]:
    best, *others = map(int, question.split()[1:])
    steps = [best]
    for n in others:
        best = hand.write(min(best, n), [max(best, n)] if best != n else [])
        steps.append(best)
    return [str(n) for n in steps], str(best)


def _ask_down(rng: Random) -> str:
    return f"down {''.join(rng.choices('0123456789', k=rng.randint(4, 5)))}"


def _work_down(question: str, hand: Hand) -> tuple[list[str], str]:
    steps, line = [], ""
    for item in question.split()[1]:
        place = sum(other >= item for other in line)
        line = line[:place] + item + line[place:]
        steps.append(line)
    return steps, line


KNOWN = (KINDS["add"], KINDS["mod"], KINDS["chain"])
NEW = (Kind("min", _ask_min, _work_min), Kind("down", _ask_down, _work_down))


def partly_new_task(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    """Kinds the shipped model knows and kinds it was never shown, in turn, each problem with a right demonstration."""

    def examples(split: str, count: int) -> tuple[Example, ...]:
        rng, kinds = Random(f"partly new {split} {seed}"), (*KNOWN, *NEW)
        rows = zip_longest(*(islice(problems(k, split, seed), -(-count // len(kinds))) for k in kinds))
        flat = [(k, q, a) for row in rows for k, (q, a) in zip(kinds, row, strict=True)][:count]
        return tuple(
            Example(
                [{"role": "user", "content": q}],
                a,
                (Response(k.demonstration(rng, q), 1.0),),
                {"kind": k.name, "question": q},
                i,
            )
            for i, (k, q, a) in enumerate(flat)
        )

    return DatasetTask("partly-new", examples("train", size), examples("heldout", heldout), ScratchpadReward())


register_task("partly-new", partly_new_task)

REPRODUCTION = Reproduction(
    method="hpt",
    claim="Learning from a question's demonstration while all its samples fail, and from the samples otherwise, learns more "
    "than reinforcement alone.",
    arms={
        "hpt": "hpt",
        "samples alone": "hpt[selection.0.most=-1]",
        "demonstrations alone": "hpt[selection.0.most=8]",
    },
    metrics=(ACCURACY, AREA),
    task="partly-new",
    budget="60000 tokens",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Two of the five kinds of problem are new to the shipped model. The arms differ in the gate alone: never, at no "
    "right answer, always. The third samples too, and pays for it, without learning from it. The demonstrations come "
    "from the rules by which the model was once taught, without slips, which flatters them; the paper's come from "
    "another model.",
)
