"""Where a method stands on the axes by which surveys order the field, read off its parts.

The axes are those of "A Technical Survey of Reinforcement Learning Techniques for Large Language Models" (arXiv
2507.04136) that belong to a method. Its other two belong to what a run is given: the reward (verified, judged, learnt),
and how answers are chosen at test time.
"""

from __future__ import annotations

from collections.abc import Callable

from unipo.method import Method
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.semantic import ClusterShare
from unipo.parts.shaping import KLInReward
from unipo.parts.source import Preferences, SegmentTree
from unipo.parts.token_shaping import KLPerToken


def data(method: Method) -> str:
    """Whose responses are learnt from, and how old they are."""
    source = method.source
    if isinstance(source, Preferences):
        return "offline: preferred and rejected responses"
    if not source.online:
        return "offline: demonstrations"
    if source.ahead:
        return "sampled by older weights"
    if "demonstration" in source.adds:
        return "sampled now, and demonstrations"
    if isinstance(source, SegmentTree) and source.keep > 1:
        return "sampled now, and some steps before"
    return "sampled now, and the batch before" if method.guard is not None else "sampled now"


def feedback(method: Method) -> str:
    """What says that a response is good."""
    if isinstance(method.source, Preferences):
        return "comparisons"
    if method.divergence is not None:
        return "a teacher's distribution"
    if not method.source.online:
        return "demonstrations"
    if any(isinstance(part, ClusterShare) for _, part in method.parts):
        return "agreement among responses"
    return "reward and demonstrations" if "demonstration" in method.source.adds else "reward"


def optimisation(method: Method) -> str:
    """The family of the loss."""
    if isinstance(method.source, Preferences):
        return "preference likelihood, offline"
    if method.divergence is not None:
        return "distillation"
    if not method.source.online:
        return "weighted likelihood, offline"
    if method.value is not None:
        return "actor-critic"
    if "demonstration" in method.source.adds:
        return "hybrid of likelihood and policy gradient"
    return "policy gradient without a value model"


def credit(method: Method) -> str:
    """The smallest piece of a response that gets a weight of its own."""
    if method.value is not None or method.divergence is not None or not method.source.online:
        return "token"
    if isinstance(method.source, SegmentTree) or "segment_value" in method.needs:
        return "segment"
    if _kl_in_advantage(method):  # every token has a reward of its own
        return "token"
    return "token" if any(part.unit == "token" for part in method.credit) else "response"


def kl(method: Method) -> str:
    """Where the divergence to the reference enters."""
    parts = [part for _, part in method.parts]
    told = []
    if _kl_in_advantage(method) or any(isinstance(p, KLInReward | KLPerToken) for p in parts):
        told.append("in the reward")
    if any(isinstance(p, ReferenceKL) for p in parts):
        told.append("in the loss")
    if not told and "reference_logp" in method.needs:
        told.append("inside the objective")
    return " and ".join(told) or "nowhere"


def _kl_in_advantage(method: Method) -> bool:
    return method.advantage is not None and "reference_logp" in method.advantage.needs


AXES: dict[str, Callable[[Method], str]] = {
    "data": data,
    "feedback": feedback,
    "optimisation": optimisation,
    "credit-unit": credit,
    "kl": kl,
}
