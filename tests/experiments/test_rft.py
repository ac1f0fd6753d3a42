"""What RFT trains on: the accepted judgments that the config asks for, and the ablations of the
paper's Tab 4.
"""

import types

import pytest

from experiments.configs import tiny
from experiments.run_config import finish
from experiments.stages import rft, rl
from grm_jax.data.world import make_records
from grm_jax.evaluation import store
from grm_jax.judgment.prompts import load_template
from grm_jax.reward_models.description import model_folder
from grm_jax.reward_models.grm import Prompter
from grm_jax.tokenizer import load_tokenizer

TEXT = "Specific Criteria: order 10\nAnalysis: order: good\nScores: \\boxed{9, 3}"


@pytest.fixture
def run(tmp_path):
    records = make_records("train", 4)
    folder = tmp_path / "trajectories/base/train"
    # of three unhinted samples one is right, one wrong and one unreadable; the hinted one is right
    for way, samples in (("unhinted", (0, 1, 2)), ("hinted", (3,))):
        with store.appending(folder / way / "sampled-seed0.jsonl") as file:
            store.append(
                file,
                [
                    {
                        "id": record.id,
                        "sample": sample,
                        "order": list(range(len(record.responses))),
                        "prompt_tokens": 40,
                        "text": TEXT,
                        "tokens": 20,
                        "scores": None if sample == 2 else [9] * len(record.responses),
                        "rewards": None,
                        "hinted": way == "hinted",
                        "correct": sample in (0, 3),
                        "failure": "no_box" if sample == 2 else None,
                    }
                    for record in records
                    for sample in samples
                ],
            )
    prompter = Prompter(
        load_tokenizer(model_folder("tiny_base")),
        load_template("tiny_pointwise"),
        load_template("tiny_single"),
    )
    general = [{"id": "g", "prompt": "Name 1 animal", "completion": "1.cat"}]

    def with_config(**fields):
        config = tiny.get_config()
        config.update_from_flattened_dict(fields)
        return types.SimpleNamespace(
            config=finish(config),
            prompter=prompter,
            tokenizer=prompter.tokenizer,
            train=records,
            general=general,
            setup=types.SimpleNamespace(sequence_buckets=(208,)),
            trajectories=lambda policy: tmp_path / "trajectories" / policy / "train",
        )

    return with_config


def test_the_funnel_counts_what_was_accepted_and_why_not(run, capsys):
    counts = rft.funnel(rft.trajectories(run()))
    assert counts == {
        "unhinted": {"accepted": 4, "incorrect": 4, "parse_failure:no_box": 4},
        "hinted": {"accepted": 4},
    }
    assert "unhinted 12: accepted 4, incorrect 4, parse_failure:no_box 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "trajectories, judged", [(("unhinted", "hinted"), 8), (("unhinted",), 4), (("hinted",), 4)]
)
def test_the_config_says_which_accepted_trajectories_are_trained_on(run, trajectories, judged):
    sources, weights = rft.training_sources(run(**{"rft.trajectories": trajectories}))
    assert len(sources["judgments"]) == judged and weights == {"judgments": 0.65, "general": 0.35}


@pytest.mark.parametrize("way", ["unhinted", "hinted"])
@pytest.mark.parametrize("kept", [0, 2, None])
def test_judgments_that_were_drawn_and_are_gone_are_missed(run, way, kept):
    case = run()
    path = case.trajectories("base") / way / "sampled-seed0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink() if kept is None else path.write_text("".join(lines[:kept]))
    gone = f"{len(lines) - (kept or 0)} of {len(lines)} judgments that were drawn are gone"
    for read in (rft.training_sources, rl.rl_prompts):
        with pytest.raises(ValueError, match=rf"{path}: {gone}, first .* marker of their stage"):
            read(case)


def test_there_may_be_no_hinted_samples(run):
    case = run(**{"rft.hinted_samples": 0})
    (case.trajectories("base") / "hinted" / "sampled-seed0.jsonl").unlink()
    assert len(rft.training_sources(case)[0]["judgments"]) == 4


def test_without_trajectories_the_general_data_stand_alone(run):
    sources, weights = rft.training_sources(run(**{"rft.trajectories": ()}))
    assert sources.keys() == weights.keys() == {"general"}
    with pytest.raises(
        ValueError,
        match=r"rft\.general_fraction: expected more than 0, "
        r"as trajectories is empty",
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
