"""What batches and judgments of given lengths compute and need."""

import json

import numpy as np
import pytest

from experiments.configs import spct_gemma2_2b, spct_gemma2_9b, spct_gemma2_27b
from grm_jax.planning.lengths import (
    Layout,
    decode_steps,
    distinct_orders,
    fit_load,
    prefilled,
    read_lengths,
    rl_load,
    widest,
)
from grm_jax.training.settings import PackingConfig

PACKED, PADDED = Layout((128, 256), 2, ()), Layout((), 2, (32, 64, 128))


def test_a_file_is_read_as_a_run_reads_its_records(tmp_path):
    path = tmp_path / "lengths.json"
    entries = [(10, 2, 5), (20, 3, 50), (99, 2, 5), (3, 0, 4)]
    rows = [dict(zip(("prompt", "responses", "completion"), entry)) for entry in entries]
    path.write_text(json.dumps(rows))
    text = read_lengths(path, prompt=64, completion=32)
    assert text.prompts.tolist() == [10, 20] and text.completions.tolist() == [5, 32]
    assert text.general.tolist() == [7] and text.left_out == 1


@pytest.mark.parametrize(
    "value, words",
    [
        ({}, "expected a list"),
        ([{"prompt": 3}], r'\[0\]: field "responses": missing'),
        ([{"prompt": 0, "responses": 2, "completion": 1}], "at least 1"),
        ([{"prompt": 99, "responses": 2, "completion": 1}], "no prompt of at most"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, value, words):
    path = tmp_path / "lengths.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=words):
        read_lengths(path, 64, 32)


def test_a_group_has_its_prompt_once_in_packed_rows_and_once_a_row_in_others():
    text = widest(40, 20)
    packed, padded = rl_load(text, 8, 4, PACKED), rl_load(text, 8, 4, PADDED)
    assert packed.needed == padded.needed == 2 * (40 + 4 * 20)
    assert padded.computed == 8 * 64
    # two trees of 39 tokens and four branches of 21, in one part of two rows
    assert packed.computed == 2 * 128


def test_general_data_have_their_share():
    text = widest(40, 20)._replace(general=np.array([6]))
    judged, mixed = fit_load(text, 200, 0.0, PACKED), fit_load(text, 200, 0.5, PACKED)
    assert judged.needed == 200 * 60
    assert 200 * 6 < mixed.needed < judged.needed and mixed.computed < judged.computed
    assert mixed.computed >= mixed.needed


def test_rows_that_end_make_room():
    assert decode_steps([5, 1, 1, 1], rows=2) == 5
    assert decode_steps([5, 1, 1, 1], rows=4) == 5
    assert decode_steps([5, 1, 1, 1], rows=1) == 8
    assert decode_steps([5, 1, 1, 1], rows=1, chunk=4) == 20


def test_samples_share_the_orders_that_they_drew():
    assert distinct_orders(1, 32) == 1 and distinct_orders(2, 1) == pytest.approx(1)
    assert distinct_orders(2, 2) == pytest.approx(1.5)
    assert distinct_orders(9, 32) == pytest.approx(32, rel=1e-3)
    one, many = (prefilled(widest(40, 20), (64, 32), samples) for samples in (1, 32))
    assert one == (64, 40) and many.computed == pytest.approx(2 * one.computed)


@pytest.mark.parametrize("preset", [spct_gemma2_2b, spct_gemma2_9b, spct_gemma2_27b])
@pytest.mark.parametrize("shares", [8, 16, 32])
def test_the_widest_batches_fill_the_rows_of_the_presets(preset, shares):
    """Sequences, and groups of rollouts, of the longest prompt and completions."""
    config = preset.get_config()
    prompt, completion = config.lengths.prompt, config.lengths.completion
    rows = PackingConfig(config.packing.rows).lengths(prompt + completion)
    layout, text = Layout(rows, shares, ()), widest(prompt, completion)
    loads = {
        "rft": fit_load(text, config.rft.batch_size, config.rft.general_fraction, layout),
        "rl": rl_load(text, config.rl.batch_size, config.rl.group_size, layout),
        "meta": fit_load(text, config.meta.batch_size, 0.0, layout),
    }
    # the rows of 2B hold two rollouts of a group, and the prompt with each two
    most = {"rl": 1.65} if preset is spct_gemma2_2b else {}
    for stage, load in loads.items():
        assert load.needed <= load.computed <= most.get(stage, 1.1) * load.needed, stage
