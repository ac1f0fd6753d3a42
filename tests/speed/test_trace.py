"""A traced step is read back by the names of its phases and scopes."""

import jax
import jax.numpy as jnp

from grm_jax.training.phases import Phases, Trace
from speed.trace import part_of, tables


def test_steps_are_traced_and_read_back(tmp_path):
    @jax.jit
    def twice(x):
        with jax.named_scope("vocabulary"):
            y = x @ x
        with jax.named_scope("optimizer"):
            return y + jnp.sin(y @ x)

    x = twice(jnp.ones((64, 64)))
    with Phases("rft", Trace(tmp_path, 1, 2)) as phases:
        for _ in phases.steps(0, 4):
            phases.begin("update")
            x = twice(x / x.max())
            phases.until(x)
            phases.begin("host")
    (path,) = (tmp_path / "rft").rglob("*.xplane.pb")
    host, cores = tables(path)
    assert host["update"] > 0 and host["host"] > 0
    assert cores["jit_twice", "vocabulary"] > 0 and cores["jit_twice", "optimizer"] > 0
    assert len(list((tmp_path / "rft").rglob("*.trace.json.gz"))) == 1


def test_scopes_have_the_names_of_parts():
    assert part_of("jit(step)/jvp(Decoder)/layer_0_attn/attention/dot") == "attention"
    assert part_of("jit(step)/transpose(jvp(Decoder))/layer_1_mlp/dot") == "MLP backward"
    assert part_of("jit(run)/decode/Decoder/layer_0_attn/dot") == "decode projections of attention"
    assert part_of("jit(f)/add") == "other"
