"""python -m experiments.spct_rl --config=experiments/configs/real_smollm2.py \\
    --workdir=runs/real/spct

SPCT on real text with SmolLM2-135M-Instruct and adapters. It begins from the cold start
(`real_smollm2_cold.py`), as the base cannot write a judgment; the records are those of
`python -m experiments.build_real --out=data/real`. docs/real_text.md has all commands and what came
of them. `real_smollm2_reward_model.py` trains the Bradley-Terry head, `real_smollm2_evaluate.py`
judges them all.

Hardware: one H200, 5 minutes; a step of RFT takes 0.3 s there, some 30 s on 2 CPU cores.
Result: docs/real_text.md.
"""

import pathlib

import ml_collections

from experiments.configs import spct_gemma2_27b

# The numbers to tune, together.
RANK, ALPHA = 3, 6.0  # with the cold start's and the Meta RM's: 17 in all, 10 MB in bfloat16
COLD_STEPS, COLD_RATE, COLD_BATCH = 200, 1e-3, 16
RECORDS = 320  # of train.jsonl, that RFT, RL and the Meta RM learn from: what two cores can do
RFT_STEPS, RFT_RATE, RFT_BATCH = 40, 5e-4, 16
RL_STEPS, RL_RATE, RL_BETA, RL_PROMPTS = 25, 5e-4, 0.02, 12
META_STEPS, META_RATE, META_BATCH = 40, 5e-4, 16
META_SAMPLES = 1  # of the GRM's own, beside those that RFT had: the steps see half of all
BT_STEPS, BT_RATE, BT_BATCH = 100, 5e-4, 16
ROWS = 256  # decoded at once: a GPU's; 64 of them are enough for a CPU
GENERAL_FRACTION = 0.2
TEMPERATURE = 1.0  # of RFT samples; of rollouts and evaluation below
EVAL_TEMPERATURE, EVAL_KS = 0.8, (1, 8)
# tokens; what is trained on is short, what is tested may be long
PROMPT, COMPLETION, BUCKETS = 768, 256, (256, 512, 768)
TEST_PROMPT, TEST_BUCKETS = 2048, (256, 512, 1024, 2048)
TEST_SEQUENCES = (384, 512, 768, 1280)  # that the Meta RM reads, below 2,304
DATA, RUNS = "data/real", "runs/real"
SHORT_TESTS = ("constraints", "new_kinds")  # of a run; real_smollm2_evaluate.py has all of them
TESTS = (*SHORT_TESTS, "gsm8k", "zeroeval", "hh_rlhf", "llmbar", "rmb")
HERE = pathlib.Path(__file__).parent


def get_config() -> ml_collections.ConfigDict:
    config = spct_gemma2_27b.get_config()
    # layers are scanned: unrolled, one program of 30 takes minutes and 10 GB to compile
    config.model.update(
        path=f"{RUNS}/cold/models/rft",
        dtype="float32",
        scan_layers=True,
        remat="none",
        attention="auto",
    )
    config.mesh.update(replica=-1, fsdp=1, tensor=1)
    config.templates.update(
        pointwise=str(HERE / "real_judge.jinja"),
        single=str(HERE / "real_judge.jinja"),
        meta=str(HERE / "real_meta.jinja"),
    )
    config.lengths.update(prompt=PROMPT, completion=COMPLETION, buckets=BUCKETS, sequences=())
    config.packing.rows = (3.0,)
    config.lora.update(rank=RANK, alpha=ALPHA)
    config.data.train = ({"path": f"{DATA}/train.jsonl", "limit": RECORDS, "shuffle_seed": 0},)
    config.data.general = ({"path": f"{DATA}/general.jsonl"},)
    config.data.eval = ml_collections.ConfigDict(
        {split: ({"path": f"{DATA}/test/{split}.jsonl"},) for split in SHORT_TESTS}
    )
    config.sampling.update(rows=ROWS, sampler="shard_map")
    config.optimizer.update(b2=0.98, warmup_steps=5)
    config.rft.update(
        learning_rate=RFT_RATE,
        batch_size=RFT_BATCH,
        micro_batch=RFT_BATCH,
        steps=RFT_STEPS,
        temperature=TEMPERATURE,
        general_fraction=GENERAL_FRACTION,
    )
    rollouts = RL_PROMPTS * config.rl.group_size
    config.rl.update(
        learning_rate=RL_RATE,
        beta=RL_BETA,
        batch_size=rollouts,
        micro_batch=rollouts,
        steps=RL_STEPS,
        old_logp="sampler",
    )
    config.meta.update(
        own_samples=META_SAMPLES,
        learning_rate=META_RATE,
        batch_size=META_BATCH,
        micro_batch=META_BATCH,
        steps=META_STEPS,
        temperature=EVAL_TEMPERATURE,
    )
    config.eval.update(
        ks=EVAL_KS, temperature=EVAL_TEMPERATURE, splits=SHORT_TESTS, swap=True, samples_per_order=4
    )
    config.checkpoint.every = 20
    config.log.example_every = 10
    return config
