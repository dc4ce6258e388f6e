"""Which values settings of `TrainConfig` may have, and which of them stay what they are in a run."""

from gsopt.scene_options import FIXED_POINTS
from gsopt.supervision import SETTLED

LARGEST_SEED = 2**63 - 2  # torch takes 64 bits with a sign, and a run uses the next one, too

AT_LEAST = {  # setting: smallest value
    "iterations": 1,
    "schedule_iterations": 1,
    "resolution": 1,
    "threads": 1,
    "max_gaussians": 1,
    "keep": 1,
    "batch_size": 1,
    "accumulate": 1,
    "sh_degree_every": 1,
    "checkpoint_every": 1,
    "test_every": 0,
    "sh_degree": 0,
    "start_step": 0,
    "init_warmup": 0,
    "seed": 0,
}

# What cannot change in a run, and why.
FIXED = (
    FIXED_POINTS
    | SETTLED
    | {
        "init": "it has started already",
        "start-step": "it has started already",
        "init-rates": "it has started already",
        "init-warmup": "it has started already",
        "init-reset-opacity": "it has started already",
        "images": "the order of its views depends on them",
        "test-every": "its test views must stay unseen",
        "sh-degree": "its harmonics are in the checkpoint",
        "seed": "its random choices have begun",
        "optimize-poses": "what it trains beside the model is settled",
        "exposure": "what it trains beside the model is settled",
        "background-model": "it has one or none in its checkpoints",
        "background-model-trainable": "its background is saved accordingly",
    }
)
