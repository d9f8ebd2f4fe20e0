"""Chains of continuous tokens: several partial solutions travel in one mixture of embeddings."""

from unipo.method import Paper
from unipo.parts.advantage import GroupNormalised
from unipo.parts.average import SequenceSum
from unipo.parts.continuous import ContinuousOnPolicy, DirichletStep, SampledTokens, SoftDemonstrations, SoftTarget
from unipo.parts.objective import Clipped
from unipo.parts.regulariser import ReferenceKL
from unipo.registry import get_method, register

PAPER = Paper(
    "Continuous Chain of Thought Enables Parallel Exploration and Reasoning", "2505.23648", "alperengozeten/CoT2"
)

cot2_csft = register(
    get_method("sft").but(
        name="cot2-csft",
        paper=PAPER,
        summary="Supervised continuous chains of thought: every step is taught the distribution of many traces.",
        source=SoftDemonstrations(step=SoftTarget(feed="teacher")),
        average=SequenceSum(),
        aliases=("csft",),
        defaults={"learning_rate": 1e-4, "weight_decay": 0.01},
        notes=(
            "L = sum_{t<m} KL(alpha*_t || alpha_t) + CE(answer), mean over examples; the column logp of a taught step is "
            "-KL(alpha*_t || alpha_t), so that the objective is plain maximum likelihood.",
            "Teacher forcing feeds E^T alpha*_t back; source.step.feed=self feeds the policy's own E^T alpha_t, with "
            "gradient through all steps and one pass per step.",
            "source.traces=B teaches the best B traces, 0 all of them; B = 1 is ordinary discrete chain of thought.",
            "A start of the right vocabulary: unipo.starter.mnns.save_mnns_model(folder).",
            "The authors add 1e-8 inside the logarithm of the target; here the target's entropy is exact.",
        ),
        doubts=("The accuracies published for each embedding size are read off figures.",),
        limits=(
            "The states of a task's traces must be tokens of the vocabulary, and several traces per prompt must be known.",
            "A mixture of B states needs an embedding of about B log(V / B) dimensions: in a small one, more traces teach less.",
        ),
    )
)

cot2_grpo = register(
    get_method("grpo").but(
        name="cot2-grpo",
        paper=PAPER,
        summary="GRPO on continuous tokens that are the mean of K sampled embeddings.",
        source=ContinuousOnPolicy(group_size=8, steps=4, step=SampledTokens(k=3, normalised=True)),
        advantage=GroupNormalised(eps=1e-12, unbiased=False),
        objective=Clipped(low=0.1, high=0.1),
        regularisers=(ReferenceKL(beta=0.0, estimator="k3"),),
        aliases=("cot2", "cot2-mts"),
        defaults={"learning_rate": 5e-6, "weight_decay": 0.01, "max_grad_norm": 0.0},
        notes=(
            "A step's ratio is the product of its K token ratios at temperature K; source.step.normalised=false samples "
            "at temperature 1 and takes their geometric mean.",
            "source.step.k=1 is discrete chain of thought with GRPO.",
            "The last step is an ordinary token at the run's own temperature.",
            "beta = 0 as in the released runs; a positive beta is k3 with the step's own ratio to the reference.",
            "Evaluation samples continuous steps as in training; --eval.temperature 0 is base CoT2: the whole softmax is "
            "fed back and the likeliest last token taken. The authors take that token after sampled steps, too.",
            "The loss is a mean over responses and steps; the code adds up the prompts of a batch, a scale that Adam undoes.",
            "The authors' batches have 16 prompts.",
            "Start from a model taught by cot2-csft; source.steps is the number of steps it was taught.",
            "All weights of the model get gradient through the embeddings that are fed back.",
        ),
        doubts=("The exact accuracy gained for each K.",),
        limits=(
            "All responses have the same number of steps, and only the last token is readable text.",
            "It starts from a model taught by cot2-csft; another one has never been fed a mixture of tokens.",
            "Parts that read whole distributions or sample on from a prefix, and value models, are refused beside it.",
        ),
    )
)

cot2_grpo_dirichlet = register(
    cot2_grpo.but(
        name="cot2-grpo-dirichlet",
        summary="GRPO on continuous tokens drawn from a Dirichlet around the policy's distribution.",
        source=ContinuousOnPolicy(group_size=8, steps=4, step=DirichletStep(scale=1.0, floor=1e-3)),
        aliases=("cot2-dirichlet",),
        notes=(
            "The ratio of a step is a ratio of densities at the drawn point; weights are kept as logarithms, because "
            "concentrations near 1e-3 put less than the smallest float on a token.",
            "The support is that of the policy that sampled; the code joins those of the current policy and the reference.",
            "A KL to the reference uses exp(log_ref - log_new); the code divides the two log-densities instead.",
        ),
        doubts=("The paper's scale gamma; the code has 1.", "Whether the paper's support is a union, as the code's."),
        limits=(
            "With scale 1 most of a draw's weight falls on a few tokens: the mixtures sampled are not those the model was "
            "taught.",
        ),
    )
)
