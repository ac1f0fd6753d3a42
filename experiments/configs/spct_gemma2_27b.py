"""python -m experiments.spct_rl --config=experiments/configs/spct_gemma2_27b.py \\
    --workdir=runs/spct_27b --config.model.path=FOLDER_OF_GEMMA_2_27B \\
    --config.data.general=GENERAL.jsonl

SPCT on the pretrained Gemma-2-27B, as in "Inference-Time Scaling for Generalist Reward Modeling"
(arXiv 2504.02495v3), here "the paper".

Hardware: sized for 64 TPU v5p chips, mesh 16 x 4 (fsdp x tensor).
Result and time: not run here. The paper: 19.2 h RFT + 15.6 h RL on 128 A100; RewardBench 86.0
    greedy, 88.5 voted @32, 90.4 with the Meta RM.

Each value names its source: C.1, D.1, Tab 5, Eq ... are places in the paper. `# open:` marks what
the paper leaves open, with the reason for the choice made here. Every other preset starts from this
one and changes what differs.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    # open: no seed is given. Response order, sampling, data order and initialization are functions
    # of it
    config.seed = 0
    config.note = ""  # free text that goes into results.json

    # the model to start from, and how it computes
    config.model = ml_collections.ConfigDict(
        dict(
            # 3.2: starts from pretrained (base) weights, not chat; a Hugging Face folder or hub
            # name, or "tiny_base", the model in the package
            path="checkpoints/gemma-2-27b",
            # sizes of a randomly initialized model instead of a path (real_text.py)
            random_init=placeholder(ml_collections.ConfigDict),
            # open: compute type; "float32" | "bfloat16". Norms, softmax and logits are fp32 either
            # way
            dtype="bfloat16",
            scan_layers=True,  # one compiled (local, global) layer pair, scanned 23 times
            # what the backward pass recomputes: "none" | "full" (all of a layer pair) | "dots" (all
            # but matmuls)
            remat="full",
            # of a call over its own keys: "splash" (TPU kernels, forward and backward) |
            # "tokamax" (GPU kernels, where installed) | "blocked" (plain JAX in tiles) |
            # "reference" | "auto": splash on TPU, tokamax on GPU where installed, else blocked
            attention="auto",
        )
    )
    # None: the tokenizer in the folder model.path
    config.tokenizer = ml_collections.ConfigDict(dict(path=placeholder(str)))
    # devices along each axis; -1: all that are left
    config.mesh = ml_collections.ConfigDict(dict(replica=1, fsdp=-1, tensor=4))
    config.templates = ml_collections.ConfigDict(
        dict(  # built-in names, paths of Jinja files, or package.module:function
            # App G, default GRM: criteria with weights, analysis, scores from 1 to 10
            pointwise="pointwise",
            single="single",  # App G, single-response training: score 0 or 1
            meta="meta",  # App G, Meta RM: plain; principles and critique are the assistant's turn
            # beyond the paper: "rubric" for records with criteria of their own; docs/beyond.md
            rubric=placeholder(str),
        )
    )
    # Eq 7: a score for each response; or "index" of the best one: LLM-as-a-Judge, with
    # templates.pointwise="judge"
    config.answer = "scores"
    config.lengths = ml_collections.ConfigDict(
        dict(  # in tokens
            # open: longer prompts are reported by id and left out, never cut; prompt + completion
            # fit Gemma-2's 8,192
            prompt=4096,
            # open: Fig 7 shows means of 240 to 380 tokens, so this is nearly three times the
            # longest of them
            completion=1024,
            # prompts are padded to the smallest of these that holds them; each compiles once
            buckets=(512, 1024, 2048, 4096),
            # likewise prompt and completion together, where a model reads them without writing;
            # lengths.prompt + completion is added
            sequences=(1024, 2048, 4096),
        )
    )

    # Training sequences are packed into rows, the prompt of a group of rollouts once; a device has
    # one row at a time
    config.packing = ml_collections.ConfigDict(
        dict(
            # lengths that rows may have, as multiples of lengths.prompt + completion (here 5,120,
            # 7,168 and 8,704 tokens): the first is the longest sequence, the last holds the
            # longest group of rollouts; (): each sequence is a row, padded to one of
            # lengths.sequences, and micro_batch of them are run at once
            rows=(1.0, 1.4, 1.7)
        )
    )

    # Tuples of sources of preference records: {"path": file or folder} or {"hub": name}, with what
    # grm_jax/data/sources.py allows beside it, such as "columns"; or {"world": split, "items":
    # count, "seed": 0} for the checkable world. On the command line a path, JSON of a source or of
    # a list of them, and several as repeated flags: --config.data.train=a.jsonl
    # --config.data.train='{"path": "b.jsonl", "columns": {...}}'
    config.data = ml_collections.ConfigDict(
        dict(
            # C.1: these public sets and internal data, both stages from the same. open: shares,
            # none is published
            train=(
                # sampled solutions, checked by rule against the answer: pairs and single responses
                {"path": "data/spct/math_train.jsonl"},
                # part of the labels re-tagged for quality in the paper
                {"path": "data/spct/ultrafeedback.jsonl"},
                {"path": "data/spct/offsetbias.jsonl"},
                {"path": "data/spct/skywork_reward_preference_80k_v0.2.jsonl"},
                # open: its hint carries the preference strength in the paper, not here
                {"path": "data/spct/helpsteer2_preference.jsonl"},
            ),
            # C.1: 1,070K general instruction items, in-house; give your own, {"prompt",
            # "completion"} a line. {"records": "train"} takes the best responses of data.train to
            # their conversations
            general=({"path": "data/spct/general.jsonl"},),
            # split name -> sources; the paper's benchmarks are not part of this run
            eval=dict(test=({"path": "data/spct/test.jsonl"},)),
            # most of a set that may be left out as longer than lengths.prompt, as a share of it:
            # more is an error before anything is computed
            max_left_out=0.5,
        )
    )
    # how completions are drawn, in all stages
    config.sampling = ml_collections.ConfigDict(
        dict(
            # open: 1.0 and 0 leave the distribution as it is, so sampler and trainer
            # log-probabilities are of the same one
            top_p=1.0,
            top_k=0,  # 0: all tokens
            # keys and values while completions are drawn: "auto" (model.dtype) or "int8", about
            # half of bfloat16's memory, rounded (what that costs: docs/performance.md)
            kv_cache_dtype="auto",
            # decoded at once, on all devices together: all rollouts of an RL step; a decode step
            # reads the weights once for them
            rows=512,
            chunk=32,  # decode steps between two looks at which rows have ended
            cache_bytes=0,  # of prompts' keys and values on a device; 0: as many as rows need
            # "jit": one device; "pmap": a whole model on every device; "shard_map": the model lies
            # over the mesh
            sampler="shard_map",
        )
    )
    # AdamW, in all three stages. open: nothing but the learning rates is given
    config.optimizer = ml_collections.ConfigDict(
        dict(
            b1=0.9,  # open: these five are common values for fine-tuning language models
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0,  # of all parameters but the norms' scales
            clip_norm=1.0,  # global norm of the gradient
            # type of AdamW's first moment: "bfloat16" takes 2 bytes a parameter less
            mu_dtype="float32",
            # "constant" | "cosine" | "linear", which fall to final_fraction of the peak, where the
            # step behind the last would be. open: GRPO's own paper: constant
            schedule="constant",
            final_fraction=0.1,  # of the peak rate
            warmup_steps=20,  # open: short beside 900 steps
        )
    )

    # adapters beside frozen weights in all stages; not in the paper, which trains all weights
    config.lora = ml_collections.ConfigDict(
        dict(
            rank=0,  # 0: all weights are trained
            alpha=16.0,  # the adapters' product is scaled by alpha / rank
            # linear maps of every layer that are adapted
            targets=("q", "k", "v", "o", "gate", "up", "down"),
        )
    )

    config.rft = ml_collections.ConfigDict(
        dict(  # rejective fine-tuning, 3.2
            # C.1: N_RFT, unhinted samples of each record; wrong ones are dropped. The paper samples
            # DeepSeek-V2.5, not the policy.
            samples=3,
            # C.1: with the index of the best response in the prompt; open: the hint is taken out
            # before training
            hinted_samples=1,
            # open: of the samples above; they have to differ for "3 of 3 correct" to mean easy
            temperature=1.0,
            drop_too_easy=True,  # 3.2: a record with all unhinted samples correct is dropped
            # open: whether such a record keeps its hinted sample; it teaches least there
            keep_hinted_of_too_easy=False,
            # which accepted judgments are trained on; Tab 4 leaves out one, or both: () trains on
            # general data
            trajectories=("unhinted", "hinted"),
            # False trains on the judgments from their analysis on (Tab 4, "w/o principle
            # generation")
            principles=True,
            general_fraction=1070 / 1256,  # C.1: 1,070K general instruction items of 1,256K
            learning_rate=5e-6,  # C.1, Tab 5
            batch_size=1024,  # C.1, Tab 5: sequences a step
            # sequences on all devices at once where packing.rows is (); gradients are summed over
            # batch_size / micro_batch of them. Packed, it is one row for each share of the mesh
            micro_batch=64,
            steps=900,  # C.1: 0.73 epochs of 1,256K
        )
    )
    config.rl = ml_collections.ConfigDict(
        dict(  # rule-based online RL, 3.2
            # 3.2: GRPO in its original form; a name in grm_jax.losses.LOSSES or
            # package.module:function
            loss="grpo",
            # settings of a loss of one's own, its keyword arguments
            loss_args=dict(),
            # 3.2: +1 where the best response has the highest score, else -1; a name in
            # grm_jax.judgment.rules.REWARDS or package.module:function
            reward="rule",
            # Eq 15: (r - mean) / std of the group. open: population std, zero advantage where all
            # are equal
            advantage="group",
            # None: the loss's own; for grpo "sequence_mean", Eq 15: over an output's tokens, then
            # over outputs
            aggregation=placeholder(str),
            kl="k3",  # open: the estimator of GRPO's own paper, unbiased and never negative
            kl_in="loss",  # Eq 15: the KL is a term of the objective, not of the reward
            # C.1: most stable of 0.00, 0.01, 0.02, 0.08. The reference is the RFT model (open:
            # "further fine-tuned" implies it)
            beta=0.08,
            group_size=4,  # C.1: G rollouts of each prompt
            # C.1, Tab 5. open: counts rollouts here, so 128 prompts a step (0.49 passes over 237K);
            # the paper may mean prompts
            batch_size=512,
            micro_batch=64,  # as rft.micro_batch
            # open: log pi_old by the "trainer", so that the ratio starts at 1, or the "sampler",
            # one forward pass less
            old_logp="trainer",
            # open: optimizer steps on each batch of rollouts; at 1 the ratio is 1 and clipping
            # never acts
            updates_per_rollout=1,
            # open: batches drawn ahead, in one queue with each that is due, so that none waits for
            # the longest row: they train a policy that is so many steps newer, at most
            max_lag=0,
            # beyond the paper: 0.5, say, draws each record in two orders of its responses, and
            # rewards right judgments that the other order agrees with; docs/beyond.md
            consistency=placeholder(float),
            # weigh tokens by pi_old / pi_sampler, at most by the cap, where the two differ: by the
            # lag, or by what sampler and trainer round differently. Needs old_logp="trainer"
            importance_sampling_correction=False,
            importance_sampling_cap=2.0,
            learning_rate=4e-7,  # C.1, Tab 5
            steps=900,  # C.1
            # open: None is the loss's own published value; for grpo 0.2, PPO's usual epsilon
            clip_low=placeholder(float),
            clip_high=placeholder(float),  # likewise
            # open: of the rollouts; 1 makes the sampled distribution that of the policy gradient
            temperature=1.0,
            # open: groups that are all right or all wrong: no policy gradient, the KL still acts;
            # or "drop"
            zero_variance="keep",
            # C.1: prompts that a filter model solves 3 of 3 times are left out.
            drop_easy_prompts=True,
            # open: the filter model. DeepSeek-V2-Lite-Chat in the paper, the starting model's
            # unhinted RFT samples here: they exist already
        )
    )
    config.meta = ml_collections.ConfigDict(
        dict(  # Meta RM: scalar head, BCE, labels by Eq 10
            # C.1: N = 3 samples of each record by the judged policy, besides the unhinted RFT-stage
            # trajectories
            own_samples=3,
            policies=("grm",),  # C.1: whose own samples are used, of "base", "rft", "grm"
            learning_rate=1e-5,  # C.1
            batch_size=512,  # C.1
            micro_batch=64,  # as rft.micro_batch
            steps=900,  # open: as the other stages
            # open: of the own samples; that of inference, so that it learns from what it will judge
            temperature=0.5,
        )
    )
    # how the policies are judged at the end, guided by the Meta RM
    config.eval = ml_collections.ConfigDict(
        dict(
            # 5.1, Fig 1: samples in a vote. The Meta RM keeps k_meta = max(1, k // 2) of them (4;
            # open: rounding)
            ks=(1, 2, 4, 8, 16, 32),
            temperature=0.5,  # D.1: of every scaling result
            # 4: the responses are shuffled before every sample; with more, samples share an order
            # and its prefill
            samples_per_order=1,
            # leave an item once its verdict stands: 0 where that is certain, 0.05 by a test that
            # errs with at most this probability; None draws the largest of ks for all
            anytime=placeholder(float),
            greedy=True,  # D.1: temperature 0 for the default results
            swap=False,  # greedy once more, the responses in the reverse order
            # of response orders and sampling keys in evaluation: the same whatever config.seed is;
            # figures are means over them
            seeds=(0,),
            retry=(),  # names of failures to ask again, such as ("request_failed",)
            bootstrap=2000,  # resamples of each interval
            report_items=60,  # items of each split that can be read in report.html
            # share of the items that a system has to judge for its figures to stand unmarked
            min_coverage=0.9,
            records=0,  # records of each split, from the front; 0: all
            splits=("test",),  # names in data.eval
            systems=("base", "rft", "grm"),  # policies that judge the splits
        )
    )
    # steps between train-state checkpoints, and how many stay
    config.checkpoint = ml_collections.ConfigDict(dict(every=50, keep=2))
    config.log = ml_collections.ConfigDict(
        dict(
            example_every=50,  # steps between printed judged examples
            # where metrics go: "jsonl" | "tensorboard" | "wandb", or package.module:function
            sinks=("jsonl", "tensorboard"),
        )
    )
    return config
