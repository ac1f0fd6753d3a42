"""Every Python snippet of docs/losses.md runs, in order; the custom loss is reached by name, as a
config would.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.losses import LOSSES, LossConfig, count, resolve

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "losses.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
    (source,) = [snippet for snippet in SNIPPETS if snippet.startswith("# my_losses.py")]
    (tmp_path / "my_losses.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet_runs(index, my_losses):
    exec(compile(SNIPPETS[index], f"{GUIDE.name} snippet {index}", "exec"), {})


def test_the_custom_loss_is_short_trains_and_splits(my_losses):
    source = next(snippet for snippet in SNIPPETS if "def soft_clip" in snippet)
    assert len(source[source.index("def soft_clip") :].strip().splitlines()) <= 10
    loss = resolve("my_losses:soft_clip", LOSSES)
    rng = np.random.default_rng(0)
    logp, old = -rng.exponential(size=(2, 4, 3)).astype(np.float32)
    mask = jnp.array([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    arrays = (jnp.asarray(logp), jnp.asarray(old), None, jnp.array([1.0, -1.0, 2.0, -2.0]), mask)
    (whole, metrics), grad = jax.value_and_grad(loss, has_aux=True)(*arrays, LossConfig(beta=0.0))
    r = np.exp(logp - old)
    np.testing.assert_allclose(
        grad,
        -arrays[3][:, None] * mask * r / np.cosh(r - 1) ** 2 / mask.sum(),
        rtol=1e-4,
        atol=1e-7,
    )
    cfg = LossConfig(beta=0.0, normalizer=count(mask))
    parts = [
        loss(*[None if x is None else x[rows] for x in arrays], cfg)[0]
        for rows in (slice(0, 1), slice(1, 4))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
    assert set(metrics) == {"policy_loss", "abs_log_ratio"}


def test_the_table_of_losses_is_complete():
    section = GUIDE.read_text().split("## The losses\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(LOSSES)
