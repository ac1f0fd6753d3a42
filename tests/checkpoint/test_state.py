"""Train-state checkpoints: kills, damage, other configs, other meshes; always bit for bit, or a
clear error.
"""

import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.checkpoint import state as checkpoints
from grm_jax.checkpoint.state import (
    NotWhatWasSaved,
    UnreadableCheckpoints,
    checksum,
    open_checkpoints,
    restore_latest,
    save,
)
from grm_jax.parallel.mesh import make_mesh, param_shardings
from grm_jax.training.optimizer import OptimizerConfig, make_optimizer
from grm_jax.training.state import TrainState, abstract_state, init_state
from grm_jax.training.step import make_train_step
from tests.checkpoint import save_loop

REPO = pathlib.Path(__file__).resolve().parents[2]
OPTIMIZER, _ = make_optimizer(
    OptimizerConfig(
        schedule="cosine",
        warmup_steps=2,
        final_fraction=0.1,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
    ),
    1e-3,
    10,
)
PARAMS = {
    "w": jnp.linspace(-1, 1, 60_000).reshape(200, 300),
    "half": jnp.ones((7,), jnp.bfloat16),
    "scalar": jnp.float32(2.0),
}


def advanced(state, step):
    """The state at `step`, with other values in every float."""
    return TrainState(
        jnp.int32(step),
        *jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), (state.params, state.opt_state)),
    )


@pytest.fixture
def saved(tmp_path):
    """(folder, {step: state}) of a run that wrote steps 1 to 3 and keeps 2."""
    first = init_state(PARAMS, OPTIMIZER)
    states = {step: advanced(first, step) for step in (1, 2, 3)}
    with open_checkpoints(tmp_path, keep=2) as manager:
        for step, state in states.items():
            save(
                manager,
                step,
                state,
                {"stage": "rft", "seed": 7, "data": {"position": step}},
                "digest-a",
            )
    return tmp_path, states


def restore(folder, abstract=None, digest="digest-a"):
    with open_checkpoints(folder, keep=2) as manager:
        return restore_latest(manager, abstract or abstract_state(PARAMS, OPTIMIZER), digest)


def assert_bits_equal(a, b):
    def compare(x, y):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

    jax.tree.map(compare, a, b)
    assert checksum(a) == checksum(b)


def test_latest_state_and_extra_come_back(saved):
    folder, states = saved
    state, extra = restore(folder)
    assert isinstance(state, TrainState)
    assert_bits_equal(state, states[3])
    assert extra == {"stage": "rft", "seed": 7, "data": {"position": 3}}
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path / "new") is None


def test_other_config_is_refused(saved):
    with pytest.raises(ValueError, match="3: written under config digest-a, this run has digest-b"):
        restore(saved[0], digest="digest-b")


def test_other_shapes_are_refused_not_taken_for_damage(saved):
    wide = PARAMS | {"w": jnp.zeros((200, 301))}
    with pytest.raises(
        ValueError,
        match=r"w is float32\[200, 300\] in the checkpoint, "
        r"float32\[200, 301\] in this run",
    ):
        restore(saved[0], abstract_state(wide, OPTIMIZER))
    with pytest.raises(
        ValueError,
        match=r"new is absent in the checkpoint, "
        r"float32\[2\] in this run",
    ):
        restore(saved[0], abstract_state(PARAMS | {"new": jnp.zeros(2)}, OPTIMIZER))
    assert sorted(path.name for path in saved[0].iterdir()) == ["2", "3"]


def truncate_arrays(folder):
    for path in (folder / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_largest_file(folder):
    max(
        (path for path in (folder / "state").rglob("d/*")), key=lambda path: path.stat().st_size
    ).unlink()


def cut_header(folder):
    (folder / "header" / "metadata").write_text('{"step": 3, "chec')


def remove_header(folder):
    (folder / "header" / "metadata").unlink()


def empty_manifest(folder):
    (folder / "state" / "manifest.ocdbt").write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [truncate_arrays, remove_largest_file, cut_header, remove_header, empty_manifest]
)
def test_a_torn_checkpoint_is_passed_over_with_a_warning(saved, caplog, damage):
    folder, states = saved
    damage(folder / "3")
    with caplog.at_level(logging.WARNING, checkpoints.__name__):
        state, extra = restore(folder)
    assert_bits_equal(state, states[2])
    assert extra["data"] == {"position": 2}
    (warning,) = [record.message for record in caplog.records if "3 is damaged" in record.message]
    assert (
        str(folder / "3") in warning
        and len(warning) < len(str(folder)) + 400
        and "\n" not in warning
    )
    with open_checkpoints(folder, keep=2) as manager:  # the run goes on and writes step 3 again
        save(manager, 3, states[3], {}, "digest-a")
    assert_bits_equal(restore(folder)[0], states[3])
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "3.damaged"]


def test_a_step_that_is_torn_again_is_kept_beside_what_was_torn_before(saved):
    folder, states = saved
    for _ in range(3):
        remove_largest_file(folder / "3")
        assert_bits_equal(restore(folder)[0], states[2])
        with open_checkpoints(folder, keep=2) as manager:
            save(manager, 3, states[3], {}, "digest-a")
    assert_bits_equal(restore(folder)[0], states[3])
    damaged = ["3.damaged", "3.damaged.2", "3.damaged.3"]
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", *damaged]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["removed", "cut", "emptied"])
def test_whatever_file_is_torn_nothing_wrong_is_restored(saved, tmp_path_factory, damage):
    """Each file of a step in turn: either Orbax can do without it, or the checkpoint before is
    used.
    """
    folder, states = saved
    files = [path.relative_to(folder) for path in (folder / "3").rglob("*") if path.is_file()]
    used = []
    for file in files:
        copy = tmp_path_factory.mktemp("copy") / "run"
        shutil.copytree(folder, copy)
        content = (copy / file).read_bytes()
        (copy / file).unlink() if damage == "removed" else (copy / file).write_bytes(
            content[: len(content) // 2 if damage == "cut" else 0]
        )
        state, _ = restore(copy)
        used.append(int(state.step))
        assert_bits_equal(state, states[used[-1]])
    assert set(used) == {2, 3}


def change_header(folder, **changes):
    path = folder / "header" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_read_but_is_not_what_was_saved_is_an_error(saved):
    folder, states = saved
    change_header(folder / "3", checksum="0" * 16)
    with pytest.raises(
        NotWhatWasSaved,
        match=r"/3: step and checksum are \(3, '[0-9a-f]{16}'\), \(3, '0000000000000000'\) were "
        r"recorded",
    ):
        restore(folder)
    (folder / "3").rename(folder / "4")  # what was saved as step 3 is in the folder of step 4
    change_header(folder / "4", checksum=checksum(states[3]))
    with pytest.raises(
        NotWhatWasSaved,
        match=r"/4: step and checksum are \(3, "
        r"'([0-9a-f]{16})'\), \(4, '\1'\) were recorded",
    ):
        restore(folder)
    shutil.rmtree(folder / "4")
    assert_bits_equal(restore(folder)[0], states[2])


def test_a_bit_that_flips_in_an_array_is_never_restored(saved):
    folder, _ = saved
    largest = max(
        (path for path in (folder / "3" / "state").rglob("d/*")),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    with pytest.raises(NotWhatWasSaved, match="/3: step and checksum"):
        restore(folder)


def test_only_damaged_checkpoints_is_an_error_not_a_fresh_start(saved):
    folder, _ = saved
    truncate_arrays(folder / "2")
    truncate_arrays(folder / "3")
    with pytest.raises(UnreadableCheckpoints, match="3, .*2. Bring one back, or remove"):
        restore(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_a_half_written_checkpoint_is_removed_with_a_warning(saved, caplog):
    folder, states = saved
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    with caplog.at_level(logging.WARNING, checkpoints.__name__):
        assert_bits_equal(restore(folder)[0], states[2])
    assert "incomplete" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["2"]


def test_steps_must_agree_and_not_repeat(saved):
    folder, states = saved
    with open_checkpoints(folder, keep=2) as manager:
        with pytest.raises(ValueError, match="asked to save step 4, but the state is at step 3"):
            save(manager, 4, states[3], {}, "digest-a")
        with pytest.raises(ValueError, match=r"step 3 not saved; on disk are steps \[2, 3\]"):
            save(manager, 3, states[3], {}, "digest-a")


def test_training_goes_on_while_the_checkpoint_is_written(tmp_path):
    """The step donates its state, so its buffers are written over while Orbax still writes the
    file.
    """
    step_fn = make_train_step(save_loop.loss_fn, save_loop.OPTIMIZER)
    params = {"w": jnp.zeros(save_loop.SIZE), "b": jnp.ones((3, 5))}
    batch = {"x": np.ones((1, save_loop.SIZE), np.float32), "mask": np.ones(1, np.float32)}
    state, _ = step_fn(init_state(params, save_loop.OPTIMIZER), batch)
    kept = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with open_checkpoints(tmp_path, keep=1) as manager:
        save(manager, 1, state, {}, "digest-a")
        assert manager.is_saving_in_progress() and not (tmp_path / "1").exists()
        for _ in range(10):
            state, _ = step_fn(state, batch)
        jax.block_until_ready(state)
    assert_bits_equal(restore(tmp_path, abstract_state(params, save_loop.OPTIMIZER))[0], kept)


def test_restore_on_another_mesh(tmp_path):
    params = {
        "embedding": jnp.arange(512.0).reshape(32, 16),
        "blocks": {"layer_0_mlp": {"gate": jnp.ones((1, 16, 32), jnp.bfloat16)}},
    }
    abstract = abstract_state(params, OPTIMIZER)

    def on(mesh):
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract,
            param_shardings(mesh, abstract),
        )

    state = init_state(params, OPTIMIZER, param_shardings(make_mesh(1, 8, 1), abstract))
    with open_checkpoints(tmp_path, keep=1) as manager:
        save(manager, 0, state, {}, "digest-a")
    for target, shard in ((on(make_mesh(2, 2, 2)), (1, 8, 16)), (abstract, (1, 16, 32))):
        restored, _ = restore(tmp_path, target)
        assert_bits_equal(restored, state)
        assert (
            restored.params["blocks"]["layer_0_mlp"]["gate"].addressable_shards[0].data.shape
            == shard
        )


def test_checksum_sees_every_change():
    tree = {"a": jnp.arange(24.0).reshape(4, 6), "b": jnp.zeros(3)}
    changes = [
        tree | {"a": tree["a"].at[2, 3].set(0.5)},
        tree | {"a": tree["a"].T.reshape(4, 6)},
        tree | {"a": tree["a"][::-1]},
        tree | {"b": -tree["b"]},
        tree | {"b": tree["b"].at[1].set(1e-45)},
        {"a": tree["b"], "b": tree["a"]},
    ]
    assert len({checksum(changed) for changed in [tree, *changes]}) == 1 + len(changes)


def test_killed_at_any_moment_and_resumed_is_bit_identical(tmp_path):
    """SIGKILL, three times: as soon as a checkpoint is being written, and at random moments of the
    loop. Then to the end.
    """
    steps, rng = 12, random.Random(0)
    folder, script = tmp_path / "killed", pathlib.Path(save_loop.__file__)
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    begun = []

    def start():
        process = subprocess.Popen(
            [sys.executable, script, folder, str(steps)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        begun.append(int(process.stdout.readline().removeprefix("first step ")))
        return process

    def kill_when(process, condition):
        while process.poll() is None and not condition():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()

    def writing(step):
        return lambda: (
            any(folder.glob(f"{step}.orbax-checkpoint-tmp*")) or (folder / str(step + 1)).exists()
        )

    kill_when(start(), writing(3))
    kill_when(start(), writing(6))
    process = start()
    late = time.monotonic() + rng.uniform(0.1, 0.5)
    kill_when(process, lambda: time.monotonic() > late)
    process = start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    _, want = save_loop.run(tmp_path / "straight", steps)
    assert output.split() == ["checksum", want]
    assert (
        begun[0] == 0 and begun[1] in (2, 3, 4) and begun[2] in (5, 6, 7) and begun[3] >= begun[2]
    )
    assert not list(folder.glob("*.damaged"))
