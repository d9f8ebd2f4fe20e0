"""Methods that ask which responses of a group mean the same."""

from unipo.method import Paper
from unipo.methods.grpo import dr_grpo, grpo
from unipo.parts.semantic import ClusterShare, SemanticEntropyWeight
from unipo.parts.source import OnPolicy
from unipo.registry import register

seed_grpo = register(
    dr_grpo.but(
        name="seed-grpo",
        paper=Paper(
            "SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization", "2505.12346"
        ),
        summary="Shrink the advantages of prompts whose answers differ in meaning.",
        credit=(SemanticEntropyWeight(),),
        notes=(
            "Meaning is the extracted final answer; credit.0.clusters.by=maths compares them mathematically.",
            "Likelihoods are the engine's own (behaviour_logp): no extra pass. credit.0.likelihood=false counts heads.",
            "The weight comes after the baseline, and after the scale where there is one.",
            "At the default alpha the weights lie in [0.958, 1]: nearly Dr. GRPO. alpha=0 is Dr. GRPO exactly.",
        ),
        doubts=(
            "No official code was obtained: alpha is a third-party port's, the linear f and the weights of clusters "
            "are recalled.",
            "Responses without an answer form one common cluster here; the paper does not say.",
            "The group size: 8 here, 16 is recalled for the best published row.",
        ),
        limits=(
            "Prompts on which the group disagrees most are slowed down most, also where they are the ones with most to learn.",
            "Needs groups of several responses and a way to tell which answers mean the same.",
        ),
    )
)

empo = register(
    grpo.but(
        name="empo",
        paper=Paper(
            "Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization",
            "2504.05812",
            "QingyangZhang/EMPO",
        ),
        summary="No labels: the reward of a response is the share of its group that gives the same answer.",
        source=OnPolicy(group_size=7),
        shaping=(ClusterShare(),),
        regularisers=(),
        defaults={"learning_rate": 1e-6},
        notes=(
            "The task's reward only extracts answers; for data without labels use --data.reward unlabelled:boxed.",
            "A reward that leaves responses unscored for want of a label also takes them out of the group here.",
            "shaping.0.clusters.by=maths compares answers with the symbolic verifier, as the code does.",
            "A group that disagrees throughout gets nothing; a unanimous one has no variance and no gradient.",
            "The verl version: shaping.0.empty=null, shaping.0.below=null, objective=SequenceClipped(), 16 responses.",
            "If the commonest answer is wrong, accuracy falls: the reward follows the mode.",
            "The vote of the same code (1 for the largest cluster) is shaping=(MajorityVote(),).",
        ),
        doubts=(
            "The code's guards differ between its versions, and the paper's text speaks of a two-sided threshold.",
            "Which version made the published tables: the repository says that its own repetitions differ.",
            "The free-text version needs a verifier model and drops answers that copy the question; neither is here.",
        ),
        limits=(
            "Where the commonest answer to a prompt is wrong, training makes it commoner still.",
            "Needs final answers that can be compared; a group that is unanimous, or disagrees throughout, teaches nothing.",
        ),
    )
)
