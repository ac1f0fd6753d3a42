"""Samples with transformers on torch, the prefix of a prompt's samples computed once, by hand.

    ENVIRONMENT/bin/python -m speed.peers.transformers_sample --model=FOLDER [as speed.sample]

`generate` has no way to share the prompt of several samples: it would prefill each. Here the prompt
is run once, its cache is repeated for the samples, and they are decoded together; the softmax is
sampled as ours is. Prompts of a queue come one after the other.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from speed import turns, work


def main():
    flags = work.sample_flags(argparse.ArgumentParser())
    model = AutoModelForCausalLM.from_pretrained(
        flags.model, attn_implementation="eager", dtype=torch.float32
    ).eval()
    queue, case = work.sample_queue(flags, model.config.vocab_size)

    @torch.inference_mode()
    def call(queue=queue):
        generator = torch.Generator().manual_seed(0)
        for row in queue:
            cache = DynamicCache(config=model.config)
            ids = torch.tensor([row["prompt_ids"]])
            logits = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            cache.batch_repeat_interleave(len(row["stops"]))
            logits = logits.repeat(len(row["stops"]), 1)
            for _ in range(max(row["stops"]) - 1):
                drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                logits = model(drawn, past_key_values=cache).logits[:, -1]
            torch.multinomial(logits.softmax(-1), 1, generator=generator)

    with torch.inference_mode():
        ids = torch.tensor([queue[0]["prompt_ids"][: work.CHECKED]])
        logp = model(ids).logits[:, :-1].log_softmax(-1)
        check = logp.gather(-1, ids[:, 1:, None]).mean().item()
    call([{"prompt_ids": queue[0]["prompt_ids"], "stops": [2]}])
    first, taken = turns.measure(call, flags.rounds, warm=False)
    turns.write(work.sample_line("transformers", case, queue, first, taken, check))


if __name__ == "__main__":
    main()
