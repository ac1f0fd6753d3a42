"""The pointwise generative reward model: records in, judgments out.

One road for every stage: an `Ask` (record, response order, sample indices) becomes a prompt, the
sampler draws completions, each completion is parsed, and its scores are put back into the record's
order. RFT sampling, RL rollouts, the Meta RM's own samples and evaluation differ only in the asks
they make.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jinja2
import numpy as np

from grm_jax.judgment.parsing import ANSWERS, read_answer
from grm_jax.judgment.prompts import render_prompt
from grm_jax.judgment.records import Record, response_order
from grm_jax.judgment.rules import is_correct
from grm_jax.parallel import processes
from grm_jax.progress import progress
from grm_jax.sampling.rollout import Completion, Request, generate, plan
from grm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompter:
    """How a record is put to the policy: its tokenizer, the templates for lists and for single
    responses, and how its answer is read.

    answer: "scores" (one for each response), "ten" (the same, but a single response is put by the
    template for lists and scored from 1 to 10 as well), or "index" (the number of the best one:
    LLM-as-a-Judge). See `read_answer`.
    """

    tokenizer: Tokenizer
    pointwise: jinja2.Template
    single: jinja2.Template
    answer: str = "scores"

    def __post_init__(self):
        if self.answer not in ANSWERS:
            raise ValueError(f"answer is {self.answer!r}; expected one of {', '.join(ANSWERS)}")

    def ids(self, record: Record, order: Sequence[int], hint: bool = False) -> list[int]:
        """Token ids of the prompt, up to where the model begins to write. Raises ValueError for one
        response where the answer is an index.
        """
        if self.answer == "index" and len(record.responses) == 1:
            raise ValueError(
                f"record {record.id!r} has one response: an answer by index needs two or more to "
                "choose from"
            )
        template = (
            self.single
            if len(record.responses) == 1 and self.answer == "scores"
            else self.pointwise
        )
        return self.tokenizer.chat_prompt(render_prompt(template, record, order, hint))


@dataclasses.dataclass(frozen=True)
class Ask:
    """Judge `record` once for every index in `samples`, its responses shown in `order`. `key` names
    the randomness; `prompt_ids` is the prompt, once it is rendered (`with_prompts`).
    """

    record: Record
    order: tuple[int, ...]
    samples: tuple[int, ...]
    key: str
    hinted: bool = False
    prompt_ids: list[int] | None = None


def with_prompts(prompter: Prompter, asks: Iterable[Ask]) -> list[Ask]:
    """Render and tokenize the prompts of the asks that have none yet."""
    return [
        ask
        if ask.prompt_ids is not None
        else dataclasses.replace(ask, prompt_ids=prompter.ids(ask.record, ask.order, ask.hinted))
        for ask in asks
    ]


def shuffled_asks(
    records: Iterable[Record], samples: int, seed: int, per_order: int = 1
) -> list[Ask]:
    """`samples` judgments of every record; a fresh response order for each `per_order` of them (1
    in the paper).

    Samples that share an order share their prompt, which the sampler then computes and stores once.
    """
    if samples % per_order:
        raise ValueError(f"{samples} samples cannot be split into orders of {per_order}")
    return [
        Ask(
            record,
            response_order(seed, record.id, start, len(record.responses)),
            tuple(range(start, start + per_order)),
            record.id,
        )
        for record in records
        for start in range(0, samples, per_order)
    ]


def split_by_length(
    prompter: Prompter, records: Sequence[Record], limit: int
) -> tuple[list[Record], list[tuple[str, int]]]:
    """(records whose prompt fits, [(id, prompt tokens)] of the others). Over-long records are left
    out, never cut.

    The hint is counted in, so that a record that fits fits in every stage.
    """
    kept, dropped = [], []
    for record in records:
        hinted = record.rewards is not None
        length = len(prompter.ids(record, range(len(record.responses)), hint=hinted))
        (kept if length <= limit else dropped).append(
            record if length <= limit else (record.id, length)
        )
    return kept, dropped


def judgment_row(
    tokenizer: Tokenizer,
    ask: Ask,
    completion: Completion,
    temperature: float,
    answer: str = "scores",
    **labels,
) -> dict:
    """One line of judgments/*.jsonl: the raw text, what was parsed from it, and whether it is
    correct (Eq 10).

    `scores` are in the record's order, or None with the reason in `failure` (`read_answer`).
    Whether a single response's score from 1 to 10 is correct cannot be said. `labels` (split,
    system, stage, ...) are added.
    """
    record = ask.record
    text = tokenizer.decode(completion.token_ids)
    read = read_answer(text, ask.order, answer, truncated=not completion.finished)
    ungraded = record.rewards is None or (answer == "ten" and len(record.responses) == 1)
    return labels | {
        "id": record.id,
        "domain": record.domain,
        "sample": completion.sample,
        "order": list(ask.order),
        "hinted": ask.hinted,
        "temperature": temperature,
        "text": text,
        "finish": "stop" if completion.finished else "length",
        "tokens": len(completion.token_ids),
        **read,
        "rewards": None if record.rewards is None else list(record.rewards),
        "correct": None if ungraded else is_correct(read["scores"], record.rewards),
        "meta_logit": None,
    }


class Drawn(NamedTuple):
    """One judgment: its row, the index of its ask, and the ids and log-probabilities that RL trains
    on.
    """

    row: dict
    ask: int
    prompt_ids: list[int]
    completion_ids: np.ndarray  # int32[C], the stop token included
    logp: np.ndarray  # float32[C], at the sampling temperature


def judge(
    sampler: Callable,
    params: dict,
    prompter: Prompter,
    asks: Sequence[Ask],
    *,
    seed: int,
    temperature: float,
    buckets: Sequence[int],
    rows: int,
    first_batch: int = 0,
    labels: dict | None = None,
) -> Iterator[list[Drawn]]:
    """Draw and parse judgments, batch by batch (the batches are those of
    `grm_jax.sampling.rollout.plan`).
    """
    requests = _requests(with_prompts(prompter, asks))
    row_of = functools.partial(
        judgment_row,
        prompter.tokenizer,
        temperature=temperature,
        answer=prompter.answer,
        **(labels or {}),
    )
    for indices, completions in generate(
        sampler, params, requests, seed, buckets, rows, first_batch
    ):
        of_ask = [i for i in indices for _ in asks[i].samples]
        yield [
            Drawn(row_of(asks[i], c), i, requests[i].prompt_ids, c.token_ids, c.logp)
            for i, c in zip(of_ask, completions, strict=True)
        ]


def _requests(asks: Sequence[Ask]) -> list[Request]:
    return [Request(ask.prompt_ids, ask.key, ask.samples) for ask in asks]


def judge_to_file(
    path: pathlib.Path,
    sampler: Callable,
    params: dict,
    prompter: Prompter,
    asks: Sequence[Ask],
    *,
    seed: int,
    temperature: float,
    buckets: Sequence[int],
    rows: int,
    labels: dict,
    finish: Callable[[list[dict]], list[dict]] = lambda judged: judged,
) -> None:
    """`judge` into a JSONL file, one block a batch. A file that was cut short is continued where
    its last whole block ends.

    `finish` may add to a block's rows before they are written (the Meta RM's logits). Prints
    progress under the file's name. SIGTERM ends the process behind the block under way. Several
    processes call this with the same arguments: all judge, process 0 writes, and when they come
    back the file is complete.
    """
    asks = with_prompts(prompter, asks)
    sizes = [
        sum(len(asks[i].samples) for i in batch.requests)
        for batch in plan(_requests(asks), buckets, rows)
    ]
    done = processes.on_main(
        f"{path.stem}: blocks on file", lambda: _truncate_to_blocks(path, sizes)
    )
    settings = dict(
        seed=seed,
        temperature=temperature,
        buckets=buckets,
        rows=rows,
        first_batch=done,
        labels=labels,
    )
    with (
        open(processes.written(path), "a") as file,
        progress(path.stem, sum(sizes), "judgments", sum(sizes[:done])) as advance,
        processes.stop_signal() as stopped,
    ):
        for blocks, drawn in enumerate(
            judge(sampler, params, prompter, asks, **settings), start=done + 1
        ):
            file.write(
                "".join(
                    json.dumps(row, ensure_ascii=False) + "\n"
                    for row in finish([one.row for one in drawn])
                )
            )
            file.flush()
            if processes.is_main():
                os.fsync(file.fileno())
            advance(len(drawn))
            if stopped():
                processes.leave(
                    f"{path.stem}, {blocks} of {len(sizes)} blocks of judgments are on file"
                )
    processes.barrier(f"{path.stem}: all judged")


def _truncate_to_blocks(path: pathlib.Path, sizes: list[int]) -> int:
    """Cut a file of rows after its last whole block; the number of whole blocks. A missing file is
    made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    ends = [0]
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
    done, rows = 0, 0
    while done < len(sizes) and rows + sizes[done] < len(ends):
        rows += sizes[done]
        done += 1
    with open(path, "r+b") as file:
        file.truncate(ends[rows])
    return done


def read_rows(path: pathlib.Path) -> list[dict]:
    with open(path) as file:
        return [json.loads(line) for line in file]
