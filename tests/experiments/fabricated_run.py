"""A run that trains nothing: it leaves the results.json of a fabricated evaluation, for tests of
sweeps. `python -m tests.experiments.fabricated_run` takes the command line of a run, fails with
--config.seed=9, and waits for a signal with --config.seed=8.
"""

import json
import pathlib
import re
import sys
import time

from grm_jax.parallel import processes
from tests.evaluation import fabricated


def main(arguments: list[str]) -> None:
    options = dict(re.match(r"--([^=]+)=(.*)", argument).groups() for argument in arguments)
    folder = pathlib.Path(options["workdir"])
    seed = int(options.get("config.seed", 0))
    print(f"seed {seed}", flush=True)
    if seed == 8:
        with processes.stop_signal("eight") as stopped:
            print("waits", flush=True)
            while not stopped():
                time.sleep(0.01)
            processes.leave("eight, saved")
    if seed == 9:
        raise ValueError("no luck with nine")
    where = fabricated.evaluation(folder, ("test",), items=4, samples=2, seed=seed)
    results = fabricated.results_of(*where, (1, 2), draws=50)
    config = json.loads(pathlib.Path(options["config"]).read_text())
    config |= {"beta": float(options.get("config.beta", 0.02)), "seed": seed}
    results |= {"config": config, "seed": seed}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
