"""python -m experiments.spct_rl --config=experiments/configs/spct_gemma2_9b.py \\
    --workdir=runs/spct_9b --config.model.path=FOLDER_OF_GEMMA_2_9B \\
    --config.data.general=GENERAL.jsonl

SPCT on the pretrained Gemma-2-9B. The paper has no run of this size; values that are not set here
are those of its 27B run.

Hardware: 16 TPU v5p chips, mesh 16 x 1 (fsdp x tensor).
Result and time: not run here.
"""

import ml_collections

from experiments.configs import spct_gemma2_27b


def get_config() -> ml_collections.ConfigDict:
    config = spct_gemma2_27b.get_config()
    config.model.path = "checkpoints/gemma-2-9b"
    config.mesh.tensor = 1
    config.sampling.rows = 256  # 64 prompts of 4 samples: one on each of 64 chips
    for stage in (config.rft, config.rl, config.meta):
        stage.micro_batch = 64  # a multiple of replica x fsdp up to 64 chips
    return config
