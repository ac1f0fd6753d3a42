"""What RFT trains on: the accepted judgments that the config asks for, and the ablations of the
paper's Tab 4.
"""

import json
import types

import pytest

from experiments.config_flags import TINY_BASE, finish
from experiments.configs import tiny
from experiments.stages import rft
from grm_jax.data.world import make_records
from grm_jax.judgment.prompts import load_template
from grm_jax.reward_models.grm import Prompter
from grm_jax.tokenizer import load_tokenizer

TEXT = "Specific Criteria: order 10\nAnalysis: order: good\nScores: \\boxed{9, 3}"


@pytest.fixture
def run(tmp_path):
    records = make_records("train", 4)
    rows = [
        {
            "id": record.id,
            "order": list(range(len(record.responses))),
            "text": TEXT,
            "hinted": hinted,
            "accepted": accepted,
        }
        for record in records
        for hinted, accepted in ((False, True), (False, False), (True, True))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompter = Prompter(
        load_tokenizer(TINY_BASE), load_template("tiny_pointwise"), load_template("tiny_single")
    )
    general = [{"id": "g", "prompt": "Name 1 animal", "completion": "1.cat"}]

    def with_config(**fields):
        config = tiny.get_config()
        config.update_from_flattened_dict(fields)
        return types.SimpleNamespace(
            config=finish(config),
            prompter=prompter,
            train=records,
            general=general,
            sequence_buckets=(208,),
            judgments=lambda _: tmp_path / "rows.jsonl",
        )

    return with_config


@pytest.mark.parametrize(
    "trajectories, judged", [(("unhinted", "hinted"), 8), (("unhinted",), 4), (("hinted",), 4)]
)
def test_the_config_says_which_accepted_trajectories_are_trained_on(run, trajectories, judged):
    sources, weights = rft.training_sources(run(**{"rft.trajectories": trajectories}))
    assert len(sources["judgments"]) == judged and weights == {"judgments": 0.65, "general": 0.35}


def test_without_trajectories_the_general_data_stand_alone(run):
    sources, weights = rft.training_sources(run(**{"rft.trajectories": ()}))
    assert sources.keys() == weights.keys() == {"general"}
    with pytest.raises(
        ValueError,
        match=r"rft\.general_fraction: expected more than 0, "
        r"as rft\.trajectories is empty",
    ):
        run(**{"rft.trajectories": (), "rft.general_fraction": 0.0})
    with pytest.raises(
        ValueError,
        match=r"rft\.trajectories: expected some of "
        r"unhinted, hinted.*, got sampled",
    ):
        run(**{"rft.trajectories": ("sampled",)})


def test_without_principles_a_judgment_begins_with_its_analysis(run):
    case = run(**{"rft.principles": False})
    tokenizer = case.prompter.tokenizer
    for example in rft.training_sources(case)[0]["judgments"]:
        learned = tokenizer.decode(example["tokens"][example["mask"] > 0])
        assert learned.strip().startswith("Analysis: order: good") and "\\boxed{9, 3}" in learned
    assert rft.without_principles("no analysis at all") == "no analysis at all"
