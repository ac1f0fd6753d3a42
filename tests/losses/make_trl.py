"""Writes trl.json: the losses of TRL's trainers, and their gradients with respect to the
log-probabilities of the policy, on one small batch.

    python -m tests.losses.make_trl      # in an environment with trl; of jax it needs nothing

It calls `_compute_loss` of GRPOTrainer and RLOOTrainer themselves, in float64, on a stand-in for
the trainer that has the settings of a GRPOConfig and a model whose log-probabilities are given.
"""

import collections
import json
import pathlib
import tempfile
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("trl.json")
ROWS, WIDTH, MAX_LENGTH, CAP = 6, 7, 16, 1.3


class Case(NamedTuple):
    """One loss in both languages. loss: a name in LOSSES, or package.module:function. ours: fields
    of LossConfig beside beta, which is 0 where none is given. theirs: fields of GRPOConfig beside
    beta and what `settings_of` gives. on_policy: the old policy is the policy.
    """

    loss: str
    theirs: dict[str, Any]
    ours: dict[str, Any] = {}
    on_policy: bool = False


KL = {"beta": 0.08}
SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
CASES = {
    "grpo": Case("grpo", {"loss_type": "grpo"}),
    "grpo, KL": Case("grpo", {"loss_type": "grpo"} | KL, KL),
    "grpo, older rollouts": Case(
        "grpo",
        {"loss_type": "grpo", "use_vllm": True, "vllm_importance_sampling_clip_max": CAP},
        {"importance_sampling_cap": CAP},
    ),
    "bnpo": Case("grpo", {"loss_type": "bnpo"} | KL, {"aggregation": "token_mean"} | KL),
    "dr_grpo": Case("dr_grpo", {"loss_type": "dr_grpo"} | KL, KL),
    "dapo": Case("dapo", {"loss_type": "dapo", "epsilon_high": 0.28} | KL, KL),
    "gspo": Case("gspo", SEQUENCE | {"epsilon": 3e-4, "epsilon_high": 4e-4}),
    "gspo, wide": Case("gspo", SEQUENCE | KL, {"clip_low": 0.2, "clip_high": 0.2} | KL),
    "luspo": Case(
        "gspo",
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"clip_low": 0.2, "clip_high": 0.2, "aggregation": "constant", "max_length": 1},
    ),
    "cispo": Case("cispo", {"loss_type": "cispo", "epsilon_high": 5.0} | KL, KL),
    "cispo, narrow": Case("cispo", {"loss_type": "cispo", "epsilon_high": 1.2}, {"clip_high": 0.2}),
    "reinforce_pp": Case("reinforce_pp", {"loss_type": "bnpo"}),
    "delta": Case("tests.losses.trl_losses:two_sided", {"loss_type": "grpo", "delta": 1.5}),
    "sapo": Case("tests.losses.trl_losses:sapo", {"loss_type": "sapo"} | KL, KL),
    "vespo": Case("tests.losses.trl_losses:vespo", {"loss_type": "vespo"} | KL, KL),
    "rloo": Case("rloo", {"trainer": "rloo"}, {"max_length": 1}, on_policy=True),
}


def batch() -> dict[str, np.ndarray]:
    """The batch of every case, float64 rounded to what float32 holds: ragged rows, ratios from
    about 0.3 to 3.
    """
    rng = np.random.default_rng(7)
    lengths = np.array([7, 1, 4, 6, 3, 5])
    shape = (ROWS, WIDTH)
    logp = -rng.exponential(1.5, shape) - 0.05
    # two rows hardly move, so that GSPO's own clip leaves some: their mean log-ratio is +-2e-4
    drift = 0.45 * rng.normal(size=shape)
    inside = np.arange(WIDTH) < lengths[:, None]
    for row, mean in ((3, 2e-4), (5, -2e-4)):
        drift[row] += mean - drift[row, inside[row]].mean()
    # between 1 + 0.2 and 1 + 0.28 where A > 0, which DAPO's clip leaves; above delta where A < 0
    drift[0, 2], drift[4, 1] = np.log(1.24), np.log(2.2)
    arrays = {
        "logp": logp,
        "old_logp": logp - drift,
        "ref_logp": logp + 0.5 * rng.normal(size=shape),
        "sampler_logp": logp - drift + 0.3 * rng.normal(size=shape),
        "advantages": np.array([1.2, -0.7, 0.4, 0.9, -1.5, -0.3]),
        "mask": inside.astype(np.float64),
    }
    return {name: np.float32(x).astype(np.float64) for name, x in arrays.items()}


def settings_of(theirs: dict[str, Any]):
    """The GRPOConfig of a case."""
    from trl import GRPOConfig

    # by default TRL weighs the KL by the ratio (DeepSeek-V3.2), which no loss here does
    shared = {"max_completion_length": MAX_LENGTH, "use_bias_correction_kl": False, "beta": 0.0}
    shared |= {"use_cpu": True, "bf16": False, "num_generations": 2, "report_to": "none"}
    shared |= {"per_device_train_batch_size": ROWS, "gradient_accumulation_steps": 1}
    return GRPOConfig(output_dir=tempfile.gettempdir(), **shared | theirs)


def stand_in(args, logp_BC, entropy_BC, trainer):
    """What `_compute_loss` reads of a trainer in its first step, on one process."""
    return SimpleNamespace(
        args=args,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        _metrics={"train": collections.defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp_BC, entropy_BC, None),
        get_gamma_weights=getattr(trainer, "get_gamma_weights", None),
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        **{
            name: getattr(args, name)
            for name in (
                "beta loss_type importance_sampling_level max_completion_length use_vllm "
                "top_entropy_quantile off_policy_mask_threshold vllm_importance_sampling_correction"
            ).split()
        },
    )


def trl_result(case: Case, arrays: dict[str, np.ndarray]) -> tuple[float, list]:
    """(loss, its gradient [B, C]) by TRL's own code."""
    import torch
    from trl import GRPOTrainer, RLOOTrainer

    theirs = dict(case.theirs)
    trainer = RLOOTrainer if theirs.pop("trainer", "") == "rloo" else GRPOTrainer
    args = settings_of(theirs)
    t = {name: torch.tensor(x) for name, x in arrays.items()}
    logp_BC = t["logp"].clone().requires_grad_()
    old_logp_BC = t["logp"] if case.on_policy else t["old_logp"]
    ids_BC = torch.zeros(ROWS, WIDTH, dtype=torch.long)
    inputs = {
        "prompt_ids": ids_BC[:, :1],
        "prompt_mask": ids_BC[:, :1] + 1,
        "completion_ids": ids_BC,
        "completion_mask": t["mask"],
        "advantages": t["advantages"],
        "old_per_token_logps": old_logp_BC,
        "old_logps": (old_logp_BC * t["mask"]).sum(1),
        "ref_per_token_logps": t["ref_logp"],
        "num_items_in_batch": t["mask"].sum(),
    }
    if args.use_vllm:  # as its `_generate_and_score_completions` does in the mode token_truncate
        ratio_BC = torch.exp((old_logp_BC - t["sampler_logp"]) * t["mask"])
        inputs["importance_sampling_ratio"] = ratio_BC.clamp(max=CAP)
    trainer_ = stand_in(args, logp_BC, torch.zeros_like(logp_BC), trainer)
    loss = trainer._compute_loss(trainer_, None, inputs)
    loss.backward()
    return loss.item(), logp_BC.grad.tolist()


def main():
    import torch
    import trl

    arrays = batch()
    results = {name: trl_result(case, arrays) for name, case in CASES.items()}
    golden = {
        "made_by": {"trl": trl.__version__, "torch": torch.__version__},
        "cases": {name: {"loss": loss, "grad": grad} for name, (loss, grad) in results.items()},
    }
    digits = json.loads(json.dumps(golden), parse_float=lambda text: float(f"{float(text):.9g}"))
    GOLDEN.write_text("\n".join(_lines(digits)) + "\n")
    print(f"{GOLDEN}: {len(results)} cases of TRL {trl.__version__}")


def _lines(golden):
    """JSON with a case a line."""
    yield f'{{"made_by": {json.dumps(golden["made_by"])}, "cases": {{'
    lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in golden["cases"].items()]
    yield ",\n".join(lines)
    yield "}}"


if __name__ == "__main__":
    main()
