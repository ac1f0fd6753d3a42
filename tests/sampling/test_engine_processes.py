"""Two real processes, each with half of the rows, draw the tokens of one."""

import json

import jax
import numpy as np

from grm_jax.models import init_params
from grm_jax.sampling.engine import Drawing
from tests.parallel.test_processes import by_environment, finish, start
from tests.sampling.test_engine import CFG, FRONT, SETTINGS, asked, drawn

# programs that compile fast, and a first meeting of the processes before any of them compiles
WORKER = """
import json, os
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
from grm_jax.parallel import processes
job = processes.initialize(timeout_s=120, heartbeat_s=100)
import jax, numpy as np
from grm_jax.models import init_params
from grm_jax.models.table import abstract_params
from grm_jax.parallel.mesh import make_mesh, param_shardings, place_batch
from grm_jax.sampling.engine import Drawing
from tests.sampling.test_engine import CFG, FRONT, SETTINGS, asked, drawn

mesh = make_mesh(replica=2, fsdp=-1)
processes.to_host(place_batch(mesh, {"x": np.zeros((2, 2))})["x"])
shardings = param_shardings(mesh, abstract_params(CFG))
make = lambda key: jax.tree.map(lambda x: 2.5 * x, init_params(CFG, key))
params = jax.jit(make, out_shardings=shardings)(jax.random.key(1))
found = drawn(Drawing(CFG, SETTINGS, "shard_map", mesh, chunk=4), params, asked(FRONT), rows=8)
rows = [[*name, c.token_ids.tolist(), c.finished] for name, c in sorted(found.items())]
print(json.dumps(rows), flush=True)
processes.barrier("drawn")
"""


def test_two_processes_draw_the_tokens_of_one():
    ended = finish(start(2, "", by_environment(2), WORKER), 300)
    assert [status for status, _, _ in ended] == [0, 0], ended
    params = jax.tree.map(lambda x: 2.5 * x, init_params(CFG, jax.random.key(1)))
    found = drawn(Drawing(CFG, SETTINGS), params, asked(FRONT), rows=4)
    right = [[*name, c.token_ids.tolist(), c.finished] for name, c in sorted(found.items())]
    for _, out, _ in ended:
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("[[")]
        assert lines == [right]
    assert np.unique([len(tokens) for _, _, tokens, _ in right]).size > 4
