"""The preset of real text at its smallest: its files, templates and stages on a tiny base model."""

from experiments.configs import real_smollm2

PROMPT = 1000  # tokens of the tiny tokenizer, which knows few words


def get_config():
    config = real_smollm2.get_config()
    config.model.update(path="tiny_base", scan_layers=True)
    config.lengths.update(prompt=PROMPT, completion=12, buckets=(PROMPT,))
    config.packing.rows = (1.0,)
    config.data.max_left_out = 0.9
    config.lora.rank = 1
    config.sampling.rows = 4
    config.optimizer.warmup_steps = 1
    config.rft.update(samples=1, batch_size=2, micro_batch=2, steps=1)
    config.rl.update(batch_size=4, micro_batch=4, steps=1)
    config.meta.update(own_samples=1, batch_size=2, micro_batch=2, steps=1)
    config.eval.update(ks=(1, 2), records=2, splits=("constraints",), swap=False)
    return config
