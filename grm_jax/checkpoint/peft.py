"""Reads and writes LoRA adapters as a folder of the peft library. No torch, no peft.

adapter_config.json and adapter_model.safetensors.
"""

import json
import os
import pathlib
import shutil

import numpy as np

from grm_jax.checkpoint.huggingface import open_safetensors, refuse_not_finite, write_safetensors
from grm_jax.models.config import Gemma2Config
from grm_jax.models.lora import A, B, LoraConfig, adapted_paths
from grm_jax.models.table import find_row, flatten, hf_names, unflatten
from grm_jax.parallel.processes import is_main, to_host

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MATRICES = {A: "lora_A", B: "lora_B"}


def save_adapters(
    folder: str | os.PathLike,
    adapters: dict,
    cfg: Gemma2Config,
    lora: LoraConfig,
    base: str | os.PathLike,
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` loads upon the model in `base`.

    All of it or nothing. An adapter folder is replaced. Of several processes all call this, and
    process 0 writes.
    """
    tensors = {}
    for path, leaf in flatten(adapters).items():
        weight, matrix = path.rsplit("/", 1)
        for block, name in enumerate(_names(weight, matrix, cfg)):
            array = to_host(leaf[block]).astype(np.float32)
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
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_safetensors(tensors, partial / TENSORS)
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_adapters(folder: str | os.PathLike, cfg: Gemma2Config) -> tuple[dict, LoraConfig]:
    """Reads such a folder: (adapters as numpy arrays, config).

    Raises FileNotFoundError for a missing file, ValueError for a damaged one, or a tensor that is
    missing, left over, of another shape, or not finite.
    """
    folder = pathlib.Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        rank, alpha, modules = config["r"], config["lora_alpha"], config["target_modules"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG}: expected JSON with r, lora_alpha and target_modules: {error!r}"
        ) from error
    short = {
        find_row(path).hf_name.split(".")[-2]: path.rsplit("/", 1)[1]
        for path in adapted_paths(cfg, LoraConfig(1))
    }
    # a name, or "all-linear"
    targets = modules if isinstance(modules, list) else [modules]
    unknown = (
        [name for name in targets if name not in short]
        or config.get("rank_pattern")
        or config.get("alpha_pattern")
    )
    if (
        config.get("peft_type") != "LORA"
        or config.get("bias", "none") != "none"
        or config.get("use_dora")
        or config.get("use_rslora")
        or unknown
    ):
        raise ValueError(
            f"{folder / CONFIG}: expected plain LoRA on some of {', '.join(short)}, one rank and "
            f"alpha for all, without bias, DoRA or rsLoRA; got {config}"
        )
    lora = LoraConfig(rank, alpha, tuple(short[name] for name in targets))
    flat, used = {}, set()
    with open_safetensors(folder / TENSORS) as file:
        there = set(file.keys())
        for path, leaf in adapted_paths(cfg, lora).items():
            inputs = find_row(path).inputs
            shapes = {
                A: (*leaf.shape[1 : 1 + inputs], lora.rank),
                B: (lora.rank, *leaf.shape[1 + inputs :]),
            }
            for matrix, shape in shapes.items():
                names = _names(path, matrix, cfg)
                if missing := [name for name in names if name not in there]:
                    raise ValueError(f"{folder / TENSORS}: no tensor {missing[0]}")
                tensors = [file.get_tensor(name) for name in names]
                for name, tensor in zip(names, tensors, strict=True):
                    refuse_not_finite(folder / TENSORS, name, tensor)
                tensors = [tensor.T for tensor in tensors]
                if any(tensor.size != np.prod(shape) for tensor in tensors):
                    raise ValueError(
                        f"{folder / TENSORS}: {names[0]} has shape {tensors[0].T.shape}; "
                        f"this model and rank {lora.rank} need {np.prod(shape)} numbers"
                    )
                flat[f"{path}/{matrix}"] = np.stack(
                    [tensor.reshape(shape) for tensor in tensors]
                ).astype(np.float32)
                used |= set(names)
    if left := sorted(there - used):
        raise ValueError(
            f"{folder / TENSORS}: {len(left)} tensors that this model has no place for, the "
            f"first is {left[0]}"
        )
    return unflatten(flat), lora


def _names(weight: str, matrix: str, cfg: Gemma2Config) -> list[str]:
    """peft's tensor names of one matrix, one for each block."""
    return [
        f"base_model.model.{name.removesuffix('.weight')}.{MATRICES[matrix]}.weight"
        for name in hf_names(weight, cfg)
    ]
