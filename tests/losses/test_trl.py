"""Values and gradients of the losses are TRL's, for every variant that TRL has: trl.json holds what
`_compute_loss` of its trainers gives, make_trl.py makes it.
"""

import importlib.metadata
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.losses import LossConfig, LossInputs, policy_loss
from tests.losses import make_trl
from tests.losses.make_trl import CASES

GOLDEN = json.loads(make_trl.GOLDEN.read_text())


def ours(case):
    """(loss, its gradient [B, C]) by the library."""
    fields = {"beta": 0.0, "max_length": make_trl.MAX_LENGTH} | case.ours
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in make_trl.batch().items()}
    inputs = LossInputs(entropy=None, **arrays)
    if case.on_policy:
        inputs = inputs._replace(old_logp=inputs.logp)
    function = policy_loss(case.loss, {})
    cfg = LossConfig(**fields)
    return jax.value_and_grad(lambda logp: function(inputs._replace(logp=logp), cfg)[0])(
        inputs.logp
    )


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_trl(name):
    case, theirs = CASES[name], GOLDEN["cases"][name]
    loss, grad_BC = ours(case)
    np.testing.assert_allclose(grad_BC, theirs["grad"], rtol=2e-5, atol=2e-7)
    if name == "rloo":  # TRL differentiates the ratio, 1 here: the same gradient of another value
        np.testing.assert_allclose(theirs["loss"], -make_trl.batch()["advantages"].mean())
    else:
        np.testing.assert_allclose(loss, theirs["loss"], rtol=2e-5, atol=2e-7)


def test_the_batch_tells_the_variants_apart():
    """Two cases may be the same loss under two names, and no others."""
    grads = {name: np.array(case["grad"]) for name, case in GOLDEN["cases"].items()}
    same = {("bnpo", "reinforce_pp")}  # but for the KL
    for one in grads:
        for other in grads:
            if one < other and (one, other) not in same:
                assert not np.allclose(grads[one], grads[other], rtol=1e-2), (one, other)


@pytest.mark.slow
@pytest.mark.torch
def test_trl_still_says_what_is_on_file():
    pytest.importorskip("trl")
    made_by = GOLDEN["made_by"]["trl"]
    if (installed := importlib.metadata.version("trl")) != made_by:
        pytest.skip(f"trl {installed} is installed, trl.json was made by {made_by}")
    for name, case in CASES.items():
        loss, grad = make_trl.trl_result(case, make_trl.batch())
        np.testing.assert_allclose(loss, GOLDEN["cases"][name]["loss"], rtol=1e-7)
        np.testing.assert_allclose(grad, GOLDEN["cases"][name]["grad"], rtol=1e-7, atol=1e-12)
