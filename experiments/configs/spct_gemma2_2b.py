"""python -m experiments.spct_rl --config=experiments/configs/spct_gemma2_2b.py \\
    --workdir=runs/spct_2b --config.model.path=FOLDER_OF_GEMMA_2_2B \\
    --config.data.general=GENERAL.jsonl

SPCT on the pretrained Gemma-2-2B. The paper has no run of this size; values that are not set here
are those of its 27B run.

Hardware: 8 TPU chips, v5e or larger (docs/scale.md); a whole replica for sampling fits on each, and
    training is sharded over all of them.
Result and time: not run here.
"""

import ml_collections

from experiments.configs import spct_gemma2_27b


def get_config() -> ml_collections.ConfigDict:
    config = spct_gemma2_27b.get_config()
    config.model.path = "checkpoints/gemma-2-2b"
    config.mesh.tensor = 1
    config.sampling.update(sampler="pmap", rows=64)  # two prompts of 4 samples on each of 8 chips
    # rows of at most 6,656 tokens, for the 16 GB of a v5e: two rollouts of a longest group in each
    config.packing.rows = (1.0, 1.3)
    for stage in (config.rft, config.rl, config.meta):
        stage.micro_batch = 8  # a multiple of 8 chips
    return config
