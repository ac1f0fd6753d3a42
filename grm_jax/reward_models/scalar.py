"""Judges with a scalar reward model: one number for one response.

It reads the conversation with the response as the model's turn. Trained here by the Bradley-Terry
loss, or a public `...ForSequenceClassification` folder with one label. The reward is read at the
last token that is not the padding token, which is where transformers reads it.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from grm_jax.checkpoint.huggingface import load_own_tokenizer, load_params
from grm_jax.judgment.records import Record, gold
from grm_jax.models.config import ModelConfig
from grm_jax.models.hf_config import load_config, read_config
from grm_jax.models.table import SCALAR, abstract_params
from grm_jax.parallel.mesh import param_shardings
from grm_jax.reward_models.meta_rm import make_scorer, score_sequences
from grm_jax.reward_models.protocol import TOO_LONG, RewardModel, new_judgment
from grm_jax.tokenizer import Tokenizer


def scalar_rm(
    name: str,
    params: dict,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    *,
    buckets: Sequence[int],
    rows: int,
) -> RewardModel:
    """Gives rewards as scores, the same for every sample and order.

    params: {"backbone", "score"}.
    buckets: lengths that sequences are padded to; a record with a longer one fails as "too_long".
    rows: sequences scored at once.
    """
    scorer = make_scorer(cfg)

    def judge(
        records: Sequence[Record],
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        swapped: bool = False,
    ) -> Iterator[list[dict]]:
        for start in range(0, len(records), rows):
            block = records[start : start + rows]
            sequences = [
                [response_ids(tokenizer, record, i) for i in range(len(record.responses))]
                for record in block
            ]
            rewards = score_groups(scorer, params, sequences, buckets, rows)
            yield [
                new_judgment(
                    record,
                    sample,
                    range(len(record.responses)),
                    temperature,
                    scores,
                    failure=TOO_LONG if scores is None else None,
                )
                for record, scores in zip(block, rewards)
                for sample in samples
            ]

    return RewardModel(name, judge, sampled=False, accepts=lambda n: n >= 1)


def response_ids(tokenizer: Tokenizer, record: Record, i: int) -> list[int]:
    """Returns the token ids of the conversation with response i as the model's turn.

    They end at the token that the reward is read at. A tokenizer without a padding token of its own
    may pad with the token that ends a turn. transformers then takes it for padding and reads the
    token before it, so it is left out here, in training and in judging.
    """
    turns = [(turn.role, turn.content) for turn in record.conversation]
    ids = tokenizer.chat([*turns, ("assistant", record.responses[i])])
    while ids[-1] == tokenizer.pad_id:
        ids.pop()
    return ids


def longest_sequence(tokenizer: Tokenizer, record: Record) -> int:
    """Counts the tokens of the longest input of a record: each response is read by itself."""
    return max(len(response_ids(tokenizer, record, i)) for i in range(len(record.responses)))


def score_groups(
    scorer: Callable,
    params: dict,
    groups: Sequence[Sequence[Sequence[int]]],
    buckets: Sequence[int],
    rows: int,
) -> list[list[float] | None]:
    """Returns the logits of the sequences of each group.

    None for a group with a sequence longer than the largest bucket.
    """
    fits = [all(len(sequence) <= max(buckets) for sequence in group) for group in groups]
    logits = iter(
        score_sequences(
            scorer,
            params,
            [s for group, fit in zip(groups, fits) if fit for s in group],
            buckets,
            rows,
        )
    )
    return [[next(logits) for _ in group] if fit else None for group, fit in zip(groups, fits)]


def gold_pairs(rewards: Sequence[float]) -> list[tuple[int, int]]:
    """Returns (better, worse) for every two responses that the gold tells apart.

    These are all pairs of a list, ties left out.
    """
    return [(i, j) for i, a in enumerate(rewards) for j, b in enumerate(rewards) if a > b]


def pair_example(record_id: str, better_ids: Sequence[int], worse_ids: Sequence[int]) -> dict:
    """Makes a training example of `training.step.preference_loss`.

    It holds both sequences, padded to the longer one (tokens 0, positions -1).
    """
    example: dict[str, Any] = {"id": record_id}
    width = max(len(better_ids), len(worse_ids))
    for name, ids in (("better", better_ids), ("worse", worse_ids)):
        behind = (0, width - len(ids))
        example[f"{name}_tokens"] = np.pad(np.array(ids), behind)
        example[f"{name}_positions"] = np.pad(np.arange(len(ids)), behind, constant_values=-1)
    return example


def preference_examples(tokenizer: Tokenizer, records: Sequence[Record]) -> list[dict]:
    """Makes `pair_example`s of all gold pairs of the records; a single response gives none."""
    examples = []
    for record in records:
        ids = [response_ids(tokenizer, record, i) for i in range(len(record.responses))]
        examples += [
            pair_example(record.id, ids[better], ids[worse])
            for better, worse in gold_pairs(gold(record))
        ]
    return examples


def load_scalar(
    folder: str | os.PathLike,
    mesh: Mesh | None = None,
    switches: Mapping[str, Any] | None = None,
    **numerics: Any,
) -> tuple[dict, ModelConfig, Tokenizer]:
    """Loads (params, cfg, tokenizer) for `scalar_rm`.

    folder: a `...ForSequenceClassification` folder with one label: config.json, safetensors, and
        tokenizer.json or tokenizer.model.
    mesh: over which the parameters are laid; None for one device.
    switches: of the folder's own chat template.
    numerics: overrides of dtype, scan_layers, remat, attention of the config.

    The tokenizer's pad_id is `padded_as_stated`. Raises as `load_config`, `load_params`,
    `load_own_tokenizer`.
    """
    folder = pathlib.Path(folder)
    cfg = load_config(folder, **numerics)
    shardings = None if mesh is None else param_shardings(mesh, abstract_params(cfg, SCALAR))
    tokenizer = padded_as_stated(load_own_tokenizer(folder, cfg, switches), folder, cfg)
    return load_params(folder, cfg, shardings, architecture=SCALAR), cfg, tokenizer


def padded_as_stated(tokenizer: Tokenizer, folder: pathlib.Path, cfg: ModelConfig) -> Tokenizer:
    """Returns a tokenizer whose pad_id is that of config.json.

    It is the token that transformers passes over when it looks for the last one. Where config.json
    says null, transformers passes over none, and pad_id is -1.
    """
    pad_id = read_config(folder).get("pad_token_id", cfg.family.pad_id)
    return dataclasses.replace(tokenizer, pad_id=-1 if pad_id is None else pad_id)
