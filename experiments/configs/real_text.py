"""python -m experiments.spct_rl --config=experiments/configs/real_text.py \\
    --workdir=runs/real_text --config.data.train=TRAIN.json --config.data.eval.test=TEST.json \\
    --config.tokenizer.path=tokenizer.model

Every stage on real conversations with a small, randomly initialized Gemma-2. None of its judgments
can be parsed, so it has no accuracy; what the run shows is that real lengths, languages, several
turns and lists of responses go through. RFT trains on the best responses to the training records
alone, the rewards of RL are all equal, so that only its KL term acts, and the Meta RM sees no
correct judgment. TRAIN and TEST are RMB or LLMBar files (or JSONL records), or folders of them;
take two different categories of RMB, whose best-of-N files repeat the questions of the pairwise
file of the same category. The tokenizer is a SentencePiece model or a Hugging Face tokenizer.json.

Hardware: 2 CPU cores.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from experiments.configs import spct_gemma2_27b


def get_config() -> ml_collections.ConfigDict:
    config = spct_gemma2_27b.get_config()
    config.note = (
        "A small, randomly initialized model on real text: none of its judgments can be parsed."
    )
    config.model = ml_collections.ConfigDict(
        dict(
            path=placeholder(str),
            random_init=dict(  # sizes of ModelConfig; the vocabulary is the tokenizer's
                d_model=64,
                n_layers=2,
                n_heads=2,
                n_kv_heads=1,
                head_dim=32,
                d_ff=128,
                query_pre_attn_scalar=32.0,
                # shorter than the prompts, so that the local layer's ring buffer is at work
                sliding_window=1024,
            ),
            dtype="float32",
            scan_layers=False,
            remat="none",
            attention="auto",
        )
    )
    config.mesh.tensor = 1
    config.lengths.update(
        prompt=4096, completion=48, buckets=(1024, 2048, 4096), sequences=(1024, 2048)
    )
    config.data = ml_collections.ConfigDict(
        dict(train=(), general=({"records": "train"},), eval=dict(test=()), max_left_out=0.5)
    )
    config.sampling.update(rows=4, sampler="jit")
    config.optimizer.warmup_steps = 0
    config.rft.update(
        general_fraction=0.5, batch_size=8, micro_batch=1, steps=4, learning_rate=1e-3
    )
    config.rl.update(batch_size=8, micro_batch=1, steps=4, learning_rate=1e-4)
    config.meta.update(batch_size=8, micro_batch=1, steps=4, learning_rate=1e-3, temperature=1.0)
    config.eval.update(ks=(1, 2, 4), temperature=1.0, records=16)
    config.checkpoint.every = 2
    config.log.example_every = 2
    return config
