"""Measures TRL's training steps on the work of `speed.step`, with TRL's own trainers.

    ENVIRONMENT/bin/python -m speed.peers.trl_step --model=FOLDER --task=rft|rl --lengths=FILE
        [--setting=float32|bf16|default] [--micro_rows=N] [--rollout] [as speed.step]

    rft               SFTTrainer, loss on completions
    rl                GRPOTrainer's update of given rollouts, in micro-batches of `micro_rows`
    rl --rollout      its whole step: `generate`, rewards, the reference where beta is above 0,
                      the update

--setting: float32 computes in float32 and keeps activations; default is TRL's own, bf16 autocast
with checkpointing of activations; bf16 is that without checkpointing. Batches are padded as TRL
pads them: prompts to the longest on the left, completions on the right.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "WANDB_DISABLED": "true"}

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

from speed import turns, work  # noqa: E402

TOKENIZER = pathlib.Path(__file__).parents[2] / "grm_jax/assets/tiny_base/tokenizer.json"


class Over(Exception):
    """Nobody asks for another step."""


class Turns(TrainerCallback):
    """Times steps: the first is the warm-up, unless cold, and each other waits for its turn."""

    def __init__(self, rounds, cold):
        self.rounds, self.taken, self.out = rounds, [], sys.stdout
        self.warm, self.first = cold, None
        self.turns = os.environ.get("SPEED_TURNS") == "1"

    def on_step_begin(self, args, state, control, **kwargs):
        if self.warm:
            if self.turns and not self.taken and self.first is None:
                print("turn ready", flush=True, file=self.out)
            if self.turns and not sys.stdin.readline():
                raise Over
            if not self.turns and len(self.taken) == self.rounds:
                raise Over
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        seconds = time.perf_counter() - self.began
        if not self.warm:
            self.warm, self.first = True, seconds
            if self.turns:
                print("turn ready", flush=True, file=self.out)
            return
        self.taken.append(seconds)
        if self.turns:
            print(f"turn {seconds}", flush=True, file=self.out)


class GivenRollouts(GRPOTrainer):
    """GRPO on ids: prompts by number, and rollouts that are given where there are some."""

    prompts, rollouts = (), None

    def _tokenize_prompts(self, prompts):
        return [list(self.prompts[int(prompt)]) for prompt in prompts], None, {}

    def _prepare_inputs(self, generation_batch):
        if self.rollouts is None:
            return super()._prepare_inputs(generation_batch)
        part = self._step % self.args.gradient_accumulation_steps
        rows = slice(
            part * self.args.per_device_train_batch_size,
            (part + 1) * self.args.per_device_train_batch_size,
        )
        inputs = {name: x[rows] for name, x in self.rollouts.items()}
        return inputs | {"num_items_in_batch": self.rollouts["completion_mask"].sum()}


def padded(sequences, left):
    """[B, T] ids and mask of sequences, padded on one side."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        at = slice(longest - len(sequence), None) if left else slice(0, len(sequence))
        ids[row, at], mask[row, at] = torch.tensor(sequence), 1
    return ids, mask


def read_flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", choices=["rft", "rl"], default="rft")
    parser.add_argument("--lengths", required=True)
    parser.add_argument("--setting", choices=["float32", "bf16", "default"], default="float32")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--micro_rows", type=int)
    parser.add_argument("--rollout", action="store_true")
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--cold", action="store_true", help="the first step counts")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main():
    flags = read_flags()
    model = AutoModelForCausalLM.from_pretrained(
        flags.model, attn_implementation="eager", dtype=torch.float32
    )
    vocab = model.config.vocab_size
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER), pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    rows = work.scaled(work.read_lengths(flags.lengths), flags.scale)
    group = flags.group if flags.task == "rl" else 1
    made = work.groups(rows, flags.prompts if flags.task == "rl" else flags.rows, group, vocab)
    pairs = [(p.tolist(), c.tolist()) for p, completions in made for c in completions]
    B = len(pairs)
    micro = flags.micro_rows or B
    callback = Turns(flags.rounds, flags.cold)
    folder = tempfile.TemporaryDirectory()
    shared = dict(
        output_dir=folder.name,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=B // micro,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_steps=10**6,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=flags.setting != "float32",
        gradient_checkpointing=flags.setting == "default",
        disable_tqdm=True,
        adam_beta2=0.95,
    )
    if flags.task == "rft":
        data = [
            {"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)} for p, c in pairs
        ]
        trainer = SFTTrainer(
            model,
            SFTConfig(
                **shared,
                max_length=None,
                completion_only_loss=True,
                train_sampling_strategy="sequential",
            ),
            train_dataset=Dataset.from_list(data * 4),
            processing_class=tokenizer,
            callbacks=[callback],
        )
    else:
        new_tokens = max(len(completion) for _, completion in pairs)
        GivenRollouts.prompts = [prompt.tolist() for prompt, _ in made]
        config = GRPOConfig(
            **shared,
            num_generations=flags.group,
            max_completion_length=new_tokens,
            generation_kwargs={"min_new_tokens": new_tokens},
            beta=flags.beta,
            loss_type="grpo",
            shuffle_dataset=False,
        )
        rewards = iter(lambda: torch.rand(()).item(), None)
        trainer = GivenRollouts(
            model,
            lambda completions, **_: [next(rewards) for _ in completions],
            config,
            train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(made))] * 4),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        if not flags.rollout:
            prompt_ids, prompt_mask = padded([p for p, _ in pairs], left=True)
            completion_ids, completion_mask = padded([c for _, c in pairs], left=False)
            trainer.rollouts = {
                "prompt_ids": prompt_ids,
                "prompt_mask": prompt_mask,
                "completion_ids": completion_ids,
                "completion_mask": completion_mask,
                "advantages": torch.tensor(work.advantages(B, group)),
            }
    stdout, sys.stdout = sys.stdout, sys.stderr  # its logs
    try:
        trainer.train()
    except Over:
        pass
    sys.stdout = stdout
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    longest = max(len(p) for p, _ in pairs) + max(len(c) for _, c in pairs)
    if flags.task == "rft":
        longest = max(len(p) + len(c) for p, c in pairs)
    turns.write(
        {
            "contender": f"trl {flags.setting}",
            "case": f"{flags.task}{' with rollouts' if flags.rollout else ''}",
            "seconds": turns.spread(callback.taken)["median"],
            "seconds_rounds": callback.taken,
            "computed_tokens": B * longest,
            "needed_tokens": work.needed(made),
            "loss": logs[0].get("loss") if logs else None,
            "grad_norm": float(logs[0]["grad_norm"]) if logs else None,
            "first_call_s": callback.first,
            "peak_rss_gib": turns.rss_gib(),
            "rows": B,
            "micro_rows": micro,
        }
    )
    folder.cleanup()


if __name__ == "__main__":
    main()
