"""Methods that pay for a behaviour: where it helped, while it is rare, or the earlier it comes."""

from unipo.method import Paper
from unipo.methods.grpo import dapo, grpo, grpo_token
from unipo.methods.reinforce import rloo
from unipo.parts.advantage import GroupNormalised
from unipo.parts.average import TokenMean
from unipo.parts.behaviour import ContrastiveBonus, EarlyCall, LengthBonus, RarityBonus
from unipo.parts.objective import Clipped
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.source import OnPolicy
from unipo.registry import register

gcpo_geometryzero = register(
    grpo.but(
        name="gcpo-geometryzero",
        paper=Paper(
            "GeometryZero: Improving Geometry Solving for LLM with Group Contrastive Policy Optimization",
            "2506.07160",
            "ekonwang/GeometryZero",
        ),
        summary="Pay for a behaviour where the group's accuracy with it is higher than without, fine it where lower.",
        shaping=(ContrastiveBonus(strength=0.5), LengthBonus(strength=0.1)),
        notes=(
            "The behaviour is a non-empty <aux>...</aux> block; shaping.0.signal.pattern is any other.",
            "Its format reward is an ordinary component: --data.reward '... + 0.1*format:r1'.",
            "strength + length strength < 1, so a right response without the behaviour beats a wrong one with it.",
            "With margin 0 chance alone pays or fines in most groups of 8; shaping.0.margin=0.25 asks for more.",
            "One group is split by what its responses did. Two sub-groups under different prompts need a source that "
            "gives the column 'behaviour'.",
        ),
        doubts=(
            "Neither code nor the full text was obtained: margin, strengths and the shape of the length reward are "
            "choices made here.",
            "Whether the negative case fines the behaviour, as here, or only does not pay for it.",
            "Whether the authors sample one group or two.",
            "The training settings: group, KL and learning rate are GRPO's here.",
        ),
        limits=(
            "With groups of 8 and margin 0 the sign of the bonus is chance in most groups where the behaviour has no effect.",
            "A group in which all or none show the behaviour gives no bonus, so one that has vanished is not brought back.",
        ),
    )
)

ada_grpo = register(
    grpo_token.but(
        name="ada-grpo",
        paper=Paper("ARM: Adaptive Reasoning Model", "2505.20258", "TEAM-ARM/ARM"),
        summary="Multiply rewards by how rare the response's format is in its group, fading over the run.",
        shaping=(RarityBonus(),),
        advantage=GroupNormalised(eps=1e-6),
        regularisers=(ReferenceKL(beta=0.001, estimator="k3"),),
        defaults={"learning_rate": 1e-6},
        notes=(
            "The model must have been taught the formats: each response opens with <ANSWER>, <COT>, <CODE> or <LONG_COT>.",
            "A response that opens with none of them gets 0; a batch in which none does is an error.",
            "A group that is all right in different formats still has a signal: rare formats up, common ones down.",
            "Mean and deviation are computed after the rescaling; the last step is GRPO.",
            "The authors' script makes several updates per batch (1024 prompts, mini-batch 180): source.minibatches.",
        ),
        doubts=("The published numbers were recalled, not read; the algorithm is from the code.",),
        limits=(
            "The model must be taught the formats by supervised fine-tuning first.",
            "While the bonus lasts, a rare format can earn as much as a common one that is right more often.",
        ),
    )
)

aspo_tir = register(
    dapo.but(
        name="aspo-tir",
        paper=Paper("Understanding Tool-Integrated Reasoning", "2508.19201"),
        summary="Raise the advantage of right responses that call the tool earlier, within bounds that keep its sign.",
        source=OnPolicy(group_size=8),
        shaping=(),
        credit=(EarlyCall(delta=-2.0, k=0.7),),
        notes=(
            "The first call is where the first token stands that the policy did not write; with no tool in the rollout "
            "nobody is eligible and this is DAPO.",
            "Calls that stand in the text: credit.0.signal=FirstMarker(pattern='```python').",
            "The aggressive setting of the text: credit.0.delta=-2.5, credit.0.k=0.9.",
            "Not the ASPO of asymmetric importance sampling.",
        ),
        doubts=(
            "Text and figures of the paper disagree on delta and k.",
            "Whether tool output counts in places and lengths; it does here (credit.0.own_tokens=true leaves it out).",
            "No official code; which of DAPO's parts the authors kept is not said (the length penalty is off here).",
        ),
        limits=(
            "Works only within groups that have two right responses with a call and a wrong one: elsewhere the bias is 0.",
            "Calls that are early get more whether or not they helped.",
        ),
    )
)

aepo_infigui = register(
    rloo.but(
        name="aepo-infigui",
        paper=Paper(
            "InfiGUI-G1: Advancing GUI Grounding with Adaptive Exploration Policy Optimization",
            "2508.05731",
            "InfiXAI/InfiGUI-G1",
        ),
        summary="One response makes several ranked guesses and is paid by how few were needed.",
        source=OnPolicy(group_size=8),
        shaping=(),
        objective=Clipped(low=0.2, high=0.4),
        average=TokenMean(),
        defaults={"learning_rate": 1e-6},
        notes=(
            "The method is its reward, --data.reward exploration: 1 + 1/sqrt(N k) on a hit, 1 - 1/N on a miss, -1 "
            "without the form or with three points on a line.",
            "The right box is the data row's field bbox, or a JSON list as the answer.",
            "Screenshots are images of the prompt (see docs/images.md); a text description in their place works too.",
            "The authors drop training items that are too easy beforehand.",
        ),
        doubts=("The average over tokens is their framework's default; the paper does not name it.",),
        limits=(
            "Only for tasks where several guesses can be written in one response and checked against one target.",
            "Above a hit rate of about 0.82 for each guess one guess pays more than two, so exploration stops there.",
        ),
    )
)
