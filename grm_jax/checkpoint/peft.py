"""Reads and writes LoRA adapters as a folder of the peft library. No torch, no peft.

adapter_config.json and adapter_model.safetensors.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from grm_jax.checkpoint.huggingface import (
    load_params,
    open_safetensors,
    refuse_not_finite,
    write_safetensors,
)
from grm_jax.checkpoint.tokenizer_files import write_tokenizer
from grm_jax.json_files import read_object, shown, wrong_fields
from grm_jax.models.config import MOST, ModelConfig
from grm_jax.models.decoder import without_head
from grm_jax.models.lora import A, B, LoraConfig, adapted_paths, merge
from grm_jax.models.table import (
    CAUSAL_LM,
    SCALAR,
    abstract_params,
    find_row,
    flatten,
    from_hf,
    hf_names,
    hf_shape,
    to_hf,
    unflatten,
)
from grm_jax.parallel.mesh import param_shardings
from grm_jax.parallel.processes import is_main, to_host
from grm_jax.settings import SettingsError
from grm_jax.whole_files import replacing

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = ("float32", "bfloat16")  # that adapters are written in
MATRICES = {A: "lora_A", B: "lora_B"}
# Keys of adapter_config.json that change what is computed, and their values in plain LoRA: one rank
# and alpha for all, no bias, no DoRA, no other weights. Others are refused.
_PLAIN: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the base's weights too
} | dict.fromkeys(
    """
    alora_invocation_tokens alpha_pattern arrow_config exclude_modules kasa_config layer_replication
    layers_pattern layers_to_transform loftq_config lora_bias modules_to_save monteclora_config
    rank_pattern target_parameters trainable_token_indices use_bdlora use_dora use_qalora use_rslora
    velora_config
    """.split(),
    (None, False, [], {}),
)
# of a model with a scalar head, which is trained whole beside the adapters
_PLAIN_SCALAR = _PLAIN | {
    "task_type": ("SEQ_CLS", None),
    "modules_to_save": (["score"], ["classifier", "score"]),  # in any order, each once or more
}
_HEAD = "score"
_WITHOUT_EFFECT = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config inference_mode
    lora_dropout lora_ga_config megatron_config megatron_core peft_version qalora_group_size
    revision runtime_config
    """.split()
)


def save_adapters(
    folder: str | os.PathLike,
    adapters: dict,
    cfg: ModelConfig,
    lora: LoraConfig,
    base: str | os.PathLike,
    tokenizer_files_from: str | os.PathLike | None = None,
    architecture: str = CAUSAL_LM,
    dtype: str = "float32",
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` loads upon the model in `base`.

    Beside the adapters it has the tokenizer, as `save_folder` writes it. All of it or nothing. An
    adapter folder is replaced. Of several processes all call this, and process 0 writes.
    architecture: SCALAR for {"backbone": adapters, "score": head}.
    dtype: of the tensors written, "float32" or "bfloat16".
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    tensors, written = {}, jnp.dtype(dtype)
    for path, leaf in flatten(adapters).items():
        if path == _HEAD:
            head = to_hf(to_host(leaf).astype(written), find_row(path).inputs)
            name = f"base_model.model.{hf_names(path, cfg)[0]}"
            tensors[name] = np.ascontiguousarray(head)
            refuse_not_finite(pathlib.Path(folder) / TENSORS, name, tensors[name])
            continue
        weight, matrix = path.rsplit("/", 1)
        for block, name in enumerate(_names(weight, matrix, cfg)):
            array = to_host(leaf[block]).astype(written)
            # [in, r] or [r, out]
            flat = (
                array.reshape(-1, array.shape[-1])
                if matrix == A
                else array.reshape(array.shape[0], -1)
            )
            tensors[name] = np.ascontiguousarray(flat.T)
            refuse_not_finite(pathlib.Path(folder) / TENSORS, name, tensors[name])
    if not is_main():
        return
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder}: holds files but no {CONFIG}; refusing to replace a folder that is no "
            "adapter"
        )
    modules = sorted(
        {
            name.split(".")[-2]
            for weight in adapted_paths(cfg, lora)
            for name in hf_names(weight, cfg)
        }
    )
    path = pathlib.Path(base)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if architecture == CAUSAL_LM else "SEQ_CLS",
        # a relative path would be one from wherever the adapter is loaded
        "base_model_name_or_path": str(path.absolute() if path.is_dir() else base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    } | ({} if architecture == CAUSAL_LM else {"modules_to_save": [_HEAD]})
    with replacing(folder) as partial:
        write_safetensors(tensors, partial / TENSORS)
        if tokenizer_files_from is not None:
            write_tokenizer(pathlib.Path(tokenizer_files_from), partial, cfg.max_positions)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapted(
    layers: Sequence[str | os.PathLike], cfg: ModelConfig, mesh: Mesh, architecture: str = CAUSAL_LM
) -> dict:
    """Reads a model with adapters, if any, merged into it, one folder of them after the other.

    layers: a Hugging Face folder of a model that writes, also for SCALAR, and folders of adapters,
    of which the last is of `architecture`, as the model is without any. Returns `load_params`'s
    dict. Raises as `load_params` and `load_adapters`.
    """
    base, *folders = layers
    if not folders:
        shardings = param_shardings(mesh, abstract_params(cfg, architecture))
        return load_params(base, cfg, shardings, architecture=architecture)
    kinds = [CAUSAL_LM] * (len(folders) - 1) + [architecture]
    # all are read before the weights, which take longer
    read = [load_adapters(folder, cfg, kind) for folder, kind in zip(folders, kinds, strict=True)]
    params = load_params(base, cfg, param_shardings(mesh, abstract_params(cfg)))
    for (adapters, lora), kind in zip(read, kinds, strict=True):
        if kind == SCALAR:
            params = {"backbone": without_head(params), _HEAD: adapters[_HEAD]}
        shardings = param_shardings(mesh, abstract_params(cfg, kind))
        adapters = jax.device_put(adapters, param_shardings(mesh, adapters))
        merged = jax.jit(merge, static_argnums=2, out_shardings=shardings)
        params = merged(params, adapters, lora.scale)
    return params


def read_lora(
    folder: str | os.PathLike, cfg: ModelConfig, architecture: str = CAUSAL_LM
) -> LoraConfig:
    """Reads adapter_config.json of such a folder.

    Raises FileNotFoundError, and ValueError with a line for each field that plain LoRA has not.
    """
    return _read_config(pathlib.Path(folder) / CONFIG, cfg, architecture)


def load_adapters(
    folder: str | os.PathLike, cfg: ModelConfig, architecture: str = CAUSAL_LM
) -> tuple[dict, LoraConfig]:
    """Reads such a folder: (adapters as numpy arrays, config).

    architecture: SCALAR for {"backbone": adapters, "score": head}.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one, for a field of
    adapter_config.json that plain LoRA has not, or a tensor that is missing, left over, of another
    shape, or not finite.
    """
    folder = pathlib.Path(folder)
    lora = _read_config(folder / CONFIG, cfg, architecture)
    flat, used = {}, set()
    with open_safetensors(folder / TENSORS) as file:
        there = set(file.keys())
        for path, leaf in adapted_paths(cfg, lora).items():
            inputs = find_row(path).inputs
            # of one block, and how many of its axes are inputs
            shapes = {
                A: ((*leaf.shape[1 : 1 + inputs], lora.rank), inputs),
                B: ((lora.rank, *leaf.shape[1 + inputs :]), 1),
            }
            for matrix, (shape, ins) in shapes.items():
                names = _names(path, matrix, cfg)
                if missing := [name for name in names if name not in there]:
                    raise ValueError(f"{folder / TENSORS}: no tensor {missing[0]}")
                tensors = [file.get_tensor(name) for name in names]
                for name, tensor in zip(names, tensors, strict=True):
                    if tensor.shape != hf_shape(shape, ins):
                        raise ValueError(
                            f"{folder / TENSORS}: {name} has shape {tensor.shape}; "
                            f"this model and rank {lora.rank} need {hf_shape(shape, ins)}"
                        )
                    refuse_not_finite(folder / TENSORS, name, tensor)
                flat[f"{path}/{matrix}"] = np.stack(
                    [from_hf(tensor, shape, ins) for tensor in tensors]
                ).astype(np.float32)
                used |= set(names)
        if architecture == SCALAR:
            name = f"base_model.model.{hf_names(_HEAD, cfg)[0]}"
            head = _read_head(folder / TENSORS, file if name in there else None, name, cfg)
            flat = {f"backbone/{path}": array for path, array in flat.items()} | {_HEAD: head}
            used.add(name)
    if left := sorted(there - used):
        raise ValueError(
            f"{folder / TENSORS}: {len(left)} tensors that this model has no place for, the "
            f"first is {left[0]}"
        )
    return unflatten(flat), lora


def _read_head(path: pathlib.Path, file: Any, name: str, cfg: ModelConfig) -> np.ndarray:
    shape, inputs = (cfg.d_model, 1), find_row(_HEAD).inputs
    if file is None:
        raise ValueError(f"{path}: no tensor {name}")
    tensor = file.get_tensor(name)
    if tensor.shape != hf_shape(shape, inputs):
        raise ValueError(
            f"{path}: {name} has shape {tensor.shape}; this model needs {hf_shape(shape, inputs)}"
        )
    refuse_not_finite(path, name, tensor)
    return from_hf(tensor, shape, inputs).astype(np.float32)


def _read_config(path: pathlib.Path, cfg: ModelConfig, architecture: str) -> LoraConfig:
    """Reads adapter_config.json. Raises ValueError, one line for each field that is wrong."""
    config, plain = read_object(path), _PLAIN if architecture == CAUSAL_LM else _PLAIN_SCALAR
    compared = dict(config)
    if _are_names(saved := config.get("modules_to_save")):
        compared["modules_to_save"] = sorted(set(saved))
    problems = {
        key: f"expected {shown(values[0])}, got {shown(config[key])}"
        for key, values in plain.items()
        if key in config
        and not any(type(compared[key]) is type(x) and compared[key] == x for x in values)
    }
    known = {*_PLAIN, *_WITHOUT_EFFECT, "r", "lora_alpha", "target_modules"}
    problems |= {
        key: f"unknown, and not null: {shown(value)}; expected a plain LoRA"
        for key, value in config.items()
        if key not in known and value is not None
    }
    if "peft_type" not in config:
        problems["peft_type"] = "expected 'LORA', got nothing"
    short = {
        find_row(weight).hf_name.split(".")[-2]: weight.rsplit("/", 1)[1]
        for weight in adapted_paths(cfg, LoraConfig(1))
    }
    rank, modules = config.get("r"), config.get("target_modules")
    alpha: Any = config.get("lora_alpha")
    # peft takes a text for a regular expression
    if not _are_names(modules) or not modules or any(name not in short for name in modules):
        problems["target_modules"] = (
            f"expected a list of some of {', '.join(short)}, got {shown(modules)}"
        )
        modules = list(short)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MOST:
        problems["r"] = f"expected an integer from 1 to {MOST:,}, got {shown(rank)}"
        rank = 1
    try:
        lora = LoraConfig(rank, alpha, tuple(dict.fromkeys(short[name] for name in modules)))
        if not problems:
            return lora
    except SettingsError as error:
        problems["lora_alpha"] = error.problems[0].removeprefix("alpha: ")
    raise wrong_fields(path, problems)


def _are_names(stated: Any) -> TypeGuard[list[str]]:
    return isinstance(stated, list) and all(isinstance(name, str) for name in stated)


def _names(weight: str, matrix: str, cfg: ModelConfig) -> list[str]:
    """peft's tensor names of one matrix, one for each block."""
    return [
        f"base_model.model.{name.removesuffix('.weight')}.{MATRICES[matrix]}.weight"
        for name in hf_names(weight, cfg)
    ]
