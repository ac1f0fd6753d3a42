"""Follows docs/first_hour/loss.md: a loss of one's own, a sweep over it and seeds, one table."""

import json

import pytest

from grm_jax.evaluation.merge import ROW_KEY
from tests.first_hour import commands

DRY = {"experiments.sweep --config": "experiments.sweep --dry_run --config"}
SMALL = {  # the same commands, on a preset that is done in a minute
    "from experiments.configs import tiny": "from tests.experiments import micro as tiny",
    "RL_STEPS, RECORDS = 30, 100": "RL_STEPS, RECORDS = 3, 3",
    "ks=(1, 2, 4, 8)": "ks=(1, 2)",
}


@pytest.fixture
def folder(tmp_path):
    return commands.clone(tmp_path)


def test_every_command_is_right_before_anything_is_trained(folder):
    """The loss on arrays, and the runs of both sweeps, checked and not run."""
    shown = ""
    for block in commands.read("loss"):
        text = block.text
        if "--merge" in text:  # needs what the runs leave; --from one of their folders
            assert not (folder / "runs").exists()
            run = folder / "runs/tilted/down=0.5,seed=0/config.json"
            run.parent.mkdir(parents=True)
            run.write_text("{}")
            block = block._replace(text=text[: text.index("python -m experiments.sweep --workdir")])
        result = commands.follow(block, folder, {} if "--dry_run" in text else DRY)
        assert result.returncode == 0, (block.line, result.stderr)
        shown += result.stdout
    page = (commands.REPO / "docs/first_hour/loss.md").read_text()
    assert all(line in page for line in shown.splitlines()[:3]), "what the page shows of try_it.py"
    assert shown.count(" -m experiments.spct_rl ") == 4 + 4 + 2


@pytest.mark.slow
def test_the_whole_page(folder, monkeypatch):
    monkeypatch.setattr(commands, "TIMEOUT_S", 3600)  # a block has four runs
    seconds = []
    for block in commands.read("loss"):
        assert block.file != "my_preset.py" or all(old in block.text for old in SMALL)
        result = commands.follow(block, folder, SMALL)
        assert result.returncode == 0, (block.line, result.stdout + result.stderr)
        seconds.append((block.line, round(result.seconds)))
    print(seconds)
    logs = {path.stem: path.read_text() for path in sorted((folder / "runs").glob("*/*.log"))}
    assert len(logs) == 6
    # rejective sampling and fine-tuning once for each seed
    for stage in ("rft_sample", "rft"):
        paid = [name for name, log in logs.items() if f"\n== {stage}\n" in log]
        assert paid == ["down=0.5,seed=0", "down=0.5,seed=1"]
    other = logs["down=1.0,seed=0"]
    assert "== rl: not taken over; that of runs/tilted/down=0.5,seed=0 differs in " in other
    assert "rl.loss_args.down\n" in other and "== judgments of rft: taken over from" in other
    assert "== meta" not in other
    # one table and one plot; a loss that is GRPO at down = 1 ends as GRPO does
    table = json.loads((folder / "runs/table/sweep.json").read_text())
    assert (folder / "runs/table/sweep.png").is_file()
    of_loss = {
        json.dumps(setting["values"]): [
            {key: row[key] for key in (*ROW_KEY, "mean", "seed_stderr", "values")}
            for row in table["rows"]
            if row["setting"] == setting["values"]
        ]
        for setting in table["settings"]
    }
    own = '{"rl.loss": "my_loss:tilted", "rl.loss_args.down": %s}'
    assert list(of_loss) == [own % 0.5, own % 1.0, '{"rl.loss": "grpo"}']
    assert of_loss[own % 1.0] == of_loss['{"rl.loss": "grpo"}'] != []
    assert all(setting["seeds"] == [0, 1] for setting in table["settings"])
