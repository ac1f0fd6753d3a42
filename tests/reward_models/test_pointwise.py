"""The pointwise GRM behind the protocol: a row is a function of (seed, record, sample), whatever
else is asked for.
"""

import jax
import pytest

from grm_jax.models import ModelConfig, init_params
from grm_jax.models.config import alternating
from grm_jax.reward_models.pointwise import pointwise_grm
from grm_jax.reward_models.protocol import shown_order
from grm_jax.sampling.mapped import make_sampler
from grm_jax.sampling.sampler import SamplingConfig
from tests.reward_models.judge_cases import PROMPTER, TOKENIZER, FakeSampler, record

RECORDS = [record("two", (9, 2)), record("one", (1,)), record("five", (5, 6, 10, 1, 2), words=9)]
SIZES = {"seed": 3, "buckets": (256, 512), "rows": 4}


def model(**more):
    return pointwise_grm("grm", lambda temperature: FakeSampler(), {}, PROMPTER, **SIZES, **more)


def rows_by_sample(grm, records, samples, **how):
    rows = [row for block in grm.judge(records, samples, **how) for row in block]
    found = {(row["id"], row["sample"]): row for row in rows}
    assert len(found) == len(rows) and found.keys() == {(r.id, s) for r in records for s in samples}
    return found


@pytest.mark.parametrize("per_order", [1, 4])
def test_a_row_is_the_same_whatever_else_is_asked(per_order):
    grm = model(per_order=per_order)
    whole = rows_by_sample(grm, RECORDS, range(12), temperature=0.5)
    assert rows_by_sample(grm, RECORDS[2:], [3, 7], temperature=0.5) == {
        ("five", s): whole["five", s] for s in (3, 7)
    }
    assert rows_by_sample(grm, RECORDS, [10], temperature=0.5) == {
        (r.id, 10): whole[r.id, 10] for r in RECORDS
    }
    for (name, sample), row in whole.items():
        one = next(r for r in RECORDS if r.id == name)
        assert row["order"] == list(
            shown_order(3, one, sample - sample % per_order, False)
        ) and row["scores"] == list(one.rewards)
    assert len({row["text"] for row in whole.values()}) == 36


@pytest.mark.parametrize("per_order", [1, 4])
def test_swapped_shows_the_reverse_order(per_order):
    grm = model(per_order=per_order)
    for how in ({"temperature": 0.0}, {"temperature": 0.5}):
        plain, swapped = (
            rows_by_sample(grm, RECORDS, [0, 5], swapped=swap, **how) for swap in (False, True)
        )
        assert all(
            plain[key]["order"] == swapped[key]["order"][::-1]
            and plain[key]["scores"] == swapped[key]["scores"]
            for key in plain
        )


def test_it_takes_any_n_and_yields_the_rows_that_were_asked_for():
    grm = model(per_order=4)
    asked = [
        (row["id"], row["sample"]) for block in grm.judge(RECORDS, [1, 6], 1.0) for row in block
    ]
    assert sorted(asked) == sorted((r.id, s) for r in RECORDS for s in (1, 6))
    assert grm.sampled and all(grm.accepts(n) for n in (1, 2, 9)) and list(grm.judge([], [0])) == []
    with pytest.raises(ValueError, match="per_order is 5; expected 1 to rows = 4"):
        model(per_order=5)


def test_a_prompt_that_no_bucket_holds_is_a_named_failure():
    long = record("long", (1, 2), words=200)
    rows = rows_by_sample(model(per_order=2), [RECORDS[0], long], [0, 3], temperature=0.5)
    assert [rows["long", s]["failure"] for s in (0, 3)] == ["too_long"] * 2 and rows["long", 3][
        "scores"
    ] is None
    assert all(rows["two", s]["scores"] == [9, 2] for s in (0, 3))


def test_a_real_model_draws_the_same_row_whatever_else_is_asked():
    cfg = ModelConfig(
        vocab_size=TOKENIZER.vocab_size,
        d_model=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        d_ff=16,
        layer_types=alternating(2),
        sliding_window=32,
    )
    sampler = make_sampler(
        cfg,
        SamplingConfig(12, temperature=0.7, stop_ids=TOKENIZER.stop_ids, pad_id=TOKENIZER.pad_id),
    )
    grm = pointwise_grm(
        "grm",
        lambda temperature: sampler,
        init_params(cfg, jax.random.key(0)),
        PROMPTER,
        **SIZES | {"buckets": (256,)},
        per_order=2,
    )
    whole = rows_by_sample(grm, RECORDS, range(4), temperature=0.7)
    assert rows_by_sample(grm, RECORDS[1:], [1, 2], temperature=0.7) == {
        (r.id, s): whole[r.id, s] for r in RECORDS[1:] for s in (1, 2)
    }
    assert len({row["text"] for row in whole.values()}) == 12
