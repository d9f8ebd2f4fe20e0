"""Which columns a batch may carry, at which level, and after which stage of the loop they exist.

The stages, in order: a *source* samples or reads sequences; *reward* scores them; *signal* runs models
over them without gradient; *advantage* and *credit* say how much each token should move; *step* looks at a whole
minibatch under the weights that are about to be updated; *forward* is the policy's pass with gradient.  A part that needs a column of a later stage is refused when its method
is composed (`unipo.method`), long before a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("source", "reward", "signal", "advantage", "credit", "step", "forward")


@dataclass(frozen=True)
class Column:
    """One column: `level` is token, sequence, prompt or context; `kind` is tensor or object (a list)."""

    name: str
    level: str
    stage: str
    meaning: str
    kind: str = "tensor"


def _columns(*rows: tuple[str, str, str, str] | tuple[str, str, str, str, str]) -> dict[str, Column]:
    return {row[0]: Column(*row) for row in rows}


COLUMNS: dict[str, Column] = _columns(
    ("context", "context", "source", "token ids of the prompt, once per prompt"),
    ("tokens", "token", "source", "token ids after the prompt, exactly as sampled or read"),
    ("trainable", "token", "source", "bool: the policy wrote this token (false for tool output)"),
    ("behaviour_logp", "token", "source", "log-prob under the policy that sampled it, at the sampling temperature"),
    ("behaviour_entropy", "token", "source", "entropy of the distribution it was sampled from, nats"),
    ("taped", "token", "source", "int: row of the sampling tape that predicted this token, -1 if there is none"),
    ("version", "token", "source", "int: number of updates the sampling weights had seen"),
    ("lag", "token", "source", "int: batches trained between the weights that wrote it and the present ones"),
    ("step_ids", "token", "source", "token ids mixed in a continuous token, one row of slots per step"),
    ("step_log_weights", "token", "source", "logarithms of their weights, -inf on empty slots"),
    ("truncated", "sequence", "source", "bool: stopped by the token budget, not by an end token"),
    ("unfinished", "sequence", "source", "bool: its source goes on writing it at the next step; it has no reward yet"),
    ("fresh", "token", "source", "bool: written at this step; older tokens were trained on at theirs"),
    ("sample_id", "sequence", "source", "int: unique in the run"),
    ("demonstration", "sequence", "source", "bool: came with the data, beside sampled ones; unscored, but learnt from"),
    ("prompt_id", "prompt", "source", "int: row of the data this prompt came from"),
    ("preference", "sequence", "source", "rank inside the group: higher is preferred (chosen 1, rejected 0)"),
    (
        "images",
        "prompt",
        "source",
        "pixels of the prompt's images, [n, C, H, W] each, as the processor made them",
        "object",
    ),
    ("prompt", "prompt", "source", "the prompt as text or chat messages", "object"),
    ("solution", "prompt", "source", "a worked solution that came with the data, as text, or None", "object"),
    ("parent_reward", "sequence", "source", "expected reward where this segment of a tree begins"),
    ("sibling_std", "sequence", "source", "standard deviation over the segments that begin there"),
    ("row", "prompt", "source", "the data row (a dict)", "object"),
    ("variant", "prompt", "source", "what was made of the data's prompt by rewriting it; '' for itself", "object"),
    ("text", "sequence", "source", "decoded response, for rewards and people; never re-encoded", "object"),
    ("answer", "prompt", "source", "ground-truth answer as text, or None", "object"),
    ("extracted", "sequence", "reward", "final answer found in the response, or None", "object"),
    ("score", "sequence", "reward", "the task's own score before weights and shaping (1 = right)"),
    ("reward", "sequence", "reward", "total reward"),
    ("scored", "sequence", "reward", "bool: the reward exists; others leave every statistic and the loss"),
    ("reward_parts", "sequence", "reward", "each component of the reward before its weight, by name", "object"),
    ("token_reward", "token", "reward", "reward of single tokens, beside the response's own, which falls on its last"),
    ("old_logp", "token", "signal", "log-prob under the policy at the start of the update batch, no gradient"),
    ("reference_logp", "token", "signal", "log-prob under the reference policy"),
    ("corrupted_logp", "token", "signal", "log-prob of the same tokens when part of the prompt is destroyed"),
    ("corrupted", "token", "signal", "bool: something of this token's prompt could be destroyed"),
    ("evidence_logp", "token", "signal", "log-prob of the same tokens when the prompt also shows the right answer"),
    ("counter_logp", "token", "signal", "log-prob of the same tokens when the prompt also shows a wrong answer"),
    ("cluster", "sequence", "signal", "int from 0: responses of a group that mean the same have the same number"),
    ("behaviour", "sequence", "signal", "bool: the response did what the method looks for"),
    ("category", "sequence", "signal", "int from 0: the kind of response, -1 for none"),
    ("first_call", "sequence", "signal", "int: tokens before the first call of a tool, -1 without one"),
    ("disagreement", "token", "signal", "how much the group's next-token distributions differ at this place, nats"),
    ("hard", "sequence", "signal", "bool: answers a prompt the policy mostly fails, or one rewritten from such"),
    ("teacher_context", "sequence", "signal", "token ids of the prompt its teacher sees, or None", "object"),
    ("value", "token", "signal", "return that the value model expects, read before the token is written"),
    ("segment_value", "token", "signal", "expected reward just before the token; nan where no segment begins"),
    ("sequence_advantage", "sequence", "advantage", "advantage of the whole response"),
    ("advantage", "token", "advantage", "advantage of each token, after credit assignment"),
    ("returns", "token", "advantage", "what the value model learns to expect at each token"),
    ("mask", "token", "signal", "bool: counts in the loss: trainable, scored and kept by every selection"),
    ("current_logp", "token", "step", "log-prob under the policy at the start of this optimiser step, no gradient"),
    ("logp", "token", "forward", "log-prob under the current policy, with gradient"),
    ("entropy", "token", "forward", "entropy of the current policy at this token, with gradient"),
    ("divergence", "token", "forward", "divergence of the current policy from its teacher, with gradient"),
    ("live_value", "token", "forward", "value under the current value model, with gradient"),
    ("resampled_logp", "token", "forward", "mean log-prob of K tokens drawn anew at this position, with gradient"),
    ("resampled_hits", "token", "forward", "share of these K that are the token itself"),
)
