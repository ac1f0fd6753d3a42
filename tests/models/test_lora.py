"""LoRA adapters: nothing changes at first, merging is the textbook sum, only adapters are trained,
and peft reads what we write.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from grm_jax.checkpoint.huggingface import save_folder
from grm_jax.checkpoint.peft import load_adapters, save_adapters
from grm_jax.models import Decoder, ModelConfig, init_params, lm_logits
from grm_jax.models.config import alternating
from grm_jax.models.lora import LoraConfig, adapt, adapted_paths, init_adapters, merge, stack
from grm_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from grm_jax.training.state import abstract_state, init_state
from grm_jax.training.step import adapted, make_train_step, rft_loss
from tests.json_values import JSON

CFG = ModelConfig(
    vocab_size=64,
    d_model=16,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=32,
    layer_types=alternating(4),
    sliding_window=5,
    final_softcap=None,
)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "o", "down"))


@pytest.fixture(scope="module")
def params():
    return init_params(CFG, jax.random.key(0))


def random_adapters(lora=LORA, seed=1):
    adapters = init_adapters(CFG, lora, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, jnp.float32), adapters
    )


def batch(rows=8, length=10):
    rng = np.random.default_rng(0)
    positions = np.broadcast_to(np.arange(length), (rows, length)).astype(np.int32)
    return {
        "tokens": rng.integers(0, 64, (rows, length)).astype(np.int32),
        "positions": positions,
        "mask": np.ones((rows, length), np.float32),
    }


def test_new_adapters_change_nothing_and_there_is_one_for_every_target(params):
    adapters = init_adapters(CFG, LORA, jax.random.key(0))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), merge(params, adapters, LORA.scale), params)
    )
    found = {path.rsplit("/", 1)[0] for path in flatten_dict(adapters, sep="/")}
    assert (
        found
        == set(adapted_paths(CFG, LORA))
        == {f"blocks/layer_{i}_{name}" for i in (0, 1) for name in ("attn/q", "attn/o", "mlp/down")}
    )


def test_merging_adds_the_scaled_product(params):
    adapters = random_adapters()
    merged = merge(params, adapters, LORA.scale)
    # [2, N, H, r], [2, r, D]
    a, b = (
        np.asarray(adapters["blocks"]["layer_1_attn"]["o"][name]) for name in ("lora_a", "lora_b")
    )
    expected = np.asarray(params["blocks"]["layer_1_attn"]["o"]) + 2.0 * np.einsum(
        "bnhr,brd->bnhd", a, b
    )
    np.testing.assert_allclose(
        merged["blocks"]["layer_1_attn"]["o"], expected, rtol=1e-6, atol=1e-6
    )
    assert merged["blocks"]["layer_1_attn"]["v"] is params["blocks"]["layer_1_attn"]["v"]
    assert (
        merge(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), adapters, 1.0)["blocks"][
            "layer_0_attn"
        ]["q"].dtype
        == jnp.bfloat16
    )


def test_stacked_adapters_are_those_merged_one_after_the_other(params):
    other = LoraConfig(LORA.rank + 2, alpha=3.0, targets=tuple(reversed(LORA.targets)))
    first, second = random_adapters(), random_adapters(other, seed=7)
    one, lora = stack([(first, LORA), (second, other)])
    assert lora.rank == LORA.rank + other.rank and lora.scale == pytest.approx(LORA.scale)
    wanted = merge(merge(params, first, LORA.scale), second, other.scale)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        merge(params, one, lora.scale),
        wanted,
    )
    with pytest.raises(ValueError, match="adapters of different targets"):
        stack([(first, LORA), (second, LoraConfig(2, targets=("q",)))])


@pytest.mark.parametrize(
    "dtype, remat, scan, tolerance",
    [
        ("float32", "none", True, 1e-5),
        ("float32", "full", False, 1e-5),
        ("bfloat16", "none", True, 0.03),
    ],
)
def test_adapting_is_merging_with_its_gradient(dtype, remat, scan, tolerance):
    """And no gradient of it needs a product of a weight's size, or writes one."""
    cfg = dataclasses.replace(CFG, dtype=dtype, remat=remat, scan_layers=scan)
    params = init_params(cfg, jax.random.key(0))
    adapters, data = random_adapters(LoraConfig(3, 6.0)), batch()

    def loss(add):
        return lambda low: rft_loss(cfg)(add(params, low, LORA.scale), data)[0]

    (value, grads), (wanted, by_chain_rule) = (
        jax.value_and_grad(loss(add))(adapters) for add in (adapt, merge)
    )
    assert value == wanted

    def assert_near(one, other):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())

    jax.tree.map(assert_near, grads, by_chain_rule)
    if scan:  # of 2 blocks, [16, 32] weights: none has a gradient
        text = jax.jit(jax.grad(loss(adapt))).lower(adapters).as_text()
        assert "dot_general" in text
        sizes = re.findall(r"dot_general.*-> tensor<(\d+(?:x\d+)*)x", text)
        assert "16x32" not in sizes and "32x16" not in sizes
        text = jax.jit(jax.grad(loss(merge))).lower(adapters).as_text()
        sizes = re.findall(r"dot_general.*-> tensor<(\d+(?:x\d+)*)x", text)
        assert "16x32" in sizes


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 1, "devices": 1}, {"replica": 2, "fsdp": 2, "tensor": 2}]
)
def test_a_step_trains_the_adapters_alone_on_any_mesh(params, sizes):
    """Its gradient is that of the merged parameters, by the chain rule; the frozen weights are not
    touched.
    """
    devices = jax.devices()[: sizes.pop("devices", 8)]
    mesh, optimizer, adapters = (
        make_mesh(**sizes, devices=devices),
        optax.sgd(1.0),
        random_adapters(),
    )
    shardings = param_shardings(mesh, abstract_state(adapters, optimizer))
    if mesh.size > 1:
        assert shardings.params["blocks"]["layer_0_mlp"]["down"]["lora_a"].spec == P(
            None, "tensor", None
        )
        assert shardings.params["blocks"]["layer_0_attn"]["q"]["lora_b"].spec == P(
            None, None, "tensor", None
        )
    frozen = jax.device_put(params, param_shardings(mesh, params))
    step = make_train_step(adapted(rft_loss(CFG), LORA.scale), optimizer, 2, shardings)
    state, metrics = step(
        init_state(adapters, optimizer, shardings),
        jax.device_put(batch(), batch_sharding(mesh)),
        frozen,
    )

    grads = jax.grad(lambda p: rft_loss(CFG)(p, batch())[0])(merge(params, adapters, LORA.scale))
    one = adapters["blocks"]["layer_0_mlp"]["down"]  # [2, F, r], [2, r, D]
    expected = 2.0 * np.einsum(
        "bfd,brd->bfr", grads["blocks"]["layer_0_mlp"]["down"], one["lora_b"]
    )
    moved = np.asarray(one["lora_a"] - state.params["blocks"]["layer_0_mlp"]["down"]["lora_a"])
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: bool((a == b).all()), jax.device_get(frozen), jax.device_get(params)
        )
    )
    assert metrics["grad_norm"] > 0 and jax.tree.structure(state.params) == jax.tree.structure(
        adapters
    )


def test_a_matrix_of_as_many_numbers_in_another_shape_is_named(tmp_path):
    """A transpose, a vector, and an axis more, in the last layer."""
    save_adapters(tmp_path, random_adapters(), CFG, LORA, "somewhere")
    file = tmp_path / "adapter_model.safetensors"
    tensors, layers = load_file(file), CFG.n_layers - 1
    for matrix in ("mlp.down_proj.lora_A", "self_attn.o_proj.lora_B"):
        name = f"base_model.model.model.layers.{layers}.{matrix}.weight"
        right = tensors[name]
        for wrong in (right.T, right.ravel(), right[None]):
            save_file(tensors | {name: np.ascontiguousarray(wrong)}, file)
            said = f"{name} has shape {wrong.shape}; this model and rank 3 need {right.shape}"
            with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {said}')}$"):
                load_adapters(tmp_path, CFG)
    save_file(tensors, file)
    load_adapters(tmp_path, CFG)


def test_a_folder_comes_back_as_it_was(tmp_path):
    adapters = random_adapters()
    save_adapters(tmp_path / "adapter", adapters, CFG, LORA, "somewhere")
    found, lora = load_adapters(tmp_path / "adapter", CFG)
    assert set(lora.targets) == set(LORA.targets) and (lora.rank, lora.alpha) == (3, 6.0)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), found, jax.device_get(adapters))
    )
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {"r": 4}))
    with pytest.raises(ValueError, match="lora_A.weight has shape .*this model and rank 4 need"):
        load_adapters(tmp_path / "adapter", CFG)
    (tmp_path / "adapter/adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["q_proj", "lm_head"]})
    )
    with pytest.raises(ValueError, match='"target_modules": expected a list of some of k_proj'):
        load_adapters(tmp_path / "adapter", CFG)


def test_a_damaged_adapter_file_is_named(tmp_path):
    lora = LoraConfig(rank=3)
    save_adapters(tmp_path / "adapter", random_adapters(lora, seed=2), CFG, lora, "base")
    tensors, config = (
        tmp_path / "adapter/adapter_model.safetensors",
        tmp_path / "adapter/adapter_config.json",
    )
    tensors.write_bytes(tensors.read_bytes()[:-10])
    with pytest.raises(ValueError, match="adapter_model.safetensors: truncated"):
        load_adapters(tmp_path / "adapter", CFG)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors"):
        load_adapters(tmp_path / "adapter", CFG)
    config.write_text(config.read_text()[:20])
    with pytest.raises(ValueError, match="adapter_config.json: not UTF-8 JSON: cut off"):
        load_adapters(tmp_path / "adapter", CFG)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_adapters_that_are_not_finite_are_named(tmp_path, value):
    lora = LoraConfig(rank=3)
    adapters = jax.tree.map(np.array, random_adapters(lora, seed=2))
    matrix = flatten_dict(adapters)["blocks", "layer_1_attn", "q", "lora_b"]
    matrix[0, 2].reshape(-1)[4] = value
    with pytest.raises(
        ValueError, match=rf"adapter_model.safetensors: tensor \S+lora_B\S+ holds {value:g} at \["
    ):
        save_adapters(tmp_path / "adapter", adapters, CFG, lora, "base")
    assert not (tmp_path / "adapter").exists()
    save_adapters(tmp_path / "adapter", random_adapters(lora, seed=2), CFG, lora, "base")
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name][2, 1] = value
    save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"{name} holds {value:g} at \[2, 1\]; expected finite"):
        load_adapters(tmp_path / "adapter", CFG)


PLAIN = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "r": 3,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "down_proj"],
}
# what peft computes something else for
OTHERS = [
    ("use_dora", True),
    ("use_rslora", True),
    ("rank_pattern", {"q_proj": 8}),
    ("alpha_pattern", {"q_proj": 8}),
    ("modules_to_save", ["score"]),
    ("layers_to_transform", [0]),
    ("fan_in_fan_out", True),
    ("lora_bias", True),
    ("bias", "all"),
    ("bias", None),
    ("init_lora_weights", "pissa"),
    ("layer_replication", [[0, 2], [1, 3]]),
    ("peft_type", "IA3"),
    ("peft_type", None),
    ("task_type", "SEQ_CLS"),
    ("r", 0),
    ("r", None),
    ("r", "8"),
    ("r", 8.0),
    ("r", True),
    ("lora_alpha", None),
    ("lora_alpha", "16"),
    ("lora_alpha", 0),
    ("target_modules", "q_proj"),  # a regular expression of whole names, which none matches
    ("target_modules", "all-linear"),
    ("target_modules", []),
    ("target_modules", ["q_proj", None]),
    ("target_modules", ["lm_head"]),
    ("a_kind_of_lora_to_come", {"rank": 2}),
]


def fields_named(folder, changes):
    """Fields that `load_adapters` names as wrong; None where it goes on to the tensors."""
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | changes))
    try:
        load_adapters(folder, CFG)
    except FileNotFoundError:
        return None
    except ValueError as error:
        start = f"{folder / 'adapter_config.json'}: field "
        if f"{folder / 'adapter_config.json'}: not UTF-8 JSON: " in str(error):
            assert "Infinity is not JSON" in str(error) or "NaN is not JSON" in str(error)
            return set(changes)
        found = str(error).splitlines()
        assert all(line.startswith(start) for line in found), found
        return {json.JSONDecoder().raw_decode(line, len(start))[0] for line in found}


@pytest.mark.parametrize("key, value", OTHERS, ids=lambda x: str(x)[:30])
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, key, value):
    assert fields_named(tmp_path, {key: value}) == {key}


@pytest.mark.parametrize(
    "change", [{}, {"use_dora": False, "rank_pattern": {}, "lora_dropout": 0.1, "eva_config": None}]
)
def test_plain_lora_goes_on_to_its_tensors(tmp_path, change):
    assert fields_named(tmp_path, change) is None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(sorted({*PLAIN, *(key for key, _ in OTHERS), "revision", "lora_dropout"}))
        | st.text(min_size=1, max_size=5),
        JSON,
        min_size=1,
        max_size=3,
    )
)
def test_any_adapter_config_is_plain_or_refused_by_name(tmp_path_factory, changes):
    named = fields_named(tmp_path_factory.mktemp("adapter"), changes)
    assert named is None or (named and named <= set(changes))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rank": -1}, "rank: expected a number >= 0, got -1"),
        ({"rank": 2, "targets": ()}, "got none"),
        ({"rank": 2, "targets": ("w",)}, "got w"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**wrong)


@pytest.mark.torch
def test_peft_loads_our_folder_and_gives_the_merged_logits(params, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    lora = LoraConfig(rank=3, alpha=5.0)
    adapters = random_adapters(lora, seed=2)
    save_folder(tmp_path / "base", params, CFG)
    save_adapters(tmp_path / "adapter", adapters, CFG, lora, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", attn_implementation="eager", dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = batch()["tokens"]
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    merged = merge(params, adapters, lora.scale)
    hidden, _ = Decoder(CFG).apply({"params": merged}, tokens, batch()["positions"])
    np.testing.assert_allclose(lm_logits(merged, CFG, hidden), theirs, atol=1e-4)
    plain, _ = Decoder(CFG).apply({"params": params}, tokens, batch()["positions"])
    # the adapters do something
    assert float(jnp.abs(lm_logits(params, CFG, plain) - theirs).max()) > 0.1
