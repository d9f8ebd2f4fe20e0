"""CEPO against GRPO and DAPO at equal learning rates."""

from unipo.reproduce import Reproduction

REPRODUCTION = Reproduction(
    method="cepo",
    claim="Rescaling each token's advantage by how much likelier it is under the right than under a wrong answer learns "
    "more than GRPO.",
    arms={"cepo": "cepo", "grpo": "cepo[credit=[]]", "dapo": "dapo"},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="GRPO is that of the authors' repository, which is CEPO without its credit. The shipped scripts give CEPO five "
    "times its baselines' learning rate; here every arm has the same search. The model was shown answers in 15 % of its "
    "demonstrations, so evidence means something to it. The two extra passes per batch are not counted in the budget "
    "of sampled tokens.",
)
