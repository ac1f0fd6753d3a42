"""Reads and writes the `config.json` of a Hugging Face folder, whichever family it is of."""

import difflib
import pathlib
from collections.abc import Mapping
from typing import Any

from grm_jax.json_files import read_object, shown, wrong_fields
from grm_jax.models.config import MOST, MOST_LAYERS, ModelConfig, RopeScaling
from grm_jax.models.families import (
    FAMILIES,
    GLOBAL,
    LOCAL,
    MAX_WINDOW_LAYERS,
    PATTERN,
    ROPE,
    TOKEN_IDS,
    Family,
    known,
    only,
)
from grm_jax.settings import SettingsError

# fields of RopeScaling <- keys beside rope_type
_SCALINGS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_positions": "original_max_position_embeddings",
    },
}


def from_hf_dict(hf: dict[str, Any], where: str = "config.json", **overrides: Any) -> ModelConfig:
    """Reads the contents of a Hugging Face `config.json`.

    An absent key has the value that transformers assumes; null is off where transformers reads it
    so (the softcaps, layer_types). Keys that begin with "_" or "unsloth" are notes of programs.

    `overrides` set dtype, scan_layers, remat, attention, vocab_size. Raises ValueError, one line
    for each wrong key that names `where` and the key, for another architecture, a value that the
    model has not, a key that is unknown and not null, and two keys that disagree.
    """
    model_type = hf.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        expected = f"expected one of {', '.join(map(repr, FAMILIES))}, got {shown(model_type)}"
        raise wrong_fields(where, {"model_type": expected})
    keys_known = known(family)
    problems = {
        key: f"expected {shown(values[0])}, got {shown(hf[key])}"
        for key, values in only(family).items()
        if key in hf and not any(_same(hf[key], value) for value in values)
    }
    problems |= {
        key: f"unknown, so that nothing says what it changes in the model; "
        f"{_nearest(key, keys_known)}"
        for key, value in hf.items()
        if key not in keys_known and value is not None and not key.startswith(("_", "unsloth"))
    }
    keys = {field: key for field, (key, _) in family.fields.items()}
    fields: dict[str, Any] = dict(family.same) | {"model_type": model_type}
    fields |= {field: hf.get(key, default) for field, (key, default) in family.fields.items()}
    _derive(fields, family)
    if family.switched_window:
        _switch_window(hf, fields, problems)
    period = hf.get(PATTERN)
    if period is not None and (not _is_integer(period) or not 1 <= period <= MOST):
        problems[PATTERN] = f"expected an integer from 1 to {MOST:,}, got {shown(period)}"
    old_window = hf.get("sliding_window_size")
    if old_window is not None and not _same(old_window, fields["sliding_window"]):
        problems["sliding_window_size"] = (
            f"expected sliding_window = {shown(fields['sliding_window'])}, got {shown(old_window)}"
        )
    keys |= _read_rope(hf, family, fields, problems)
    problems |= _wrong_annotations(hf)
    types = hf.get("layer_types") if family.layer_types else None
    layers = fields["n_layers"]
    if isinstance(types, list):
        fields["layer_types"] = tuple(types)
    elif types is None:
        countable = _is_integer(layers) and 1 <= layers <= MOST_LAYERS
        fields["layer_types"] = family.pattern(fields, hf) if countable else ()
    else:
        fields["layer_types"] = types
    try:
        cfg = ModelConfig(**(fields | overrides))
        if not problems:
            return cfg
    except SettingsError as error:
        for problem in error.problems:
            field, _, words = problem.partition(": ")
            problems.setdefault(keys.get(field, field), words)
    raise wrong_fields(where, problems)


def _derive(fields: dict[str, Any], family: Family) -> None:
    """Fills the fields that null leaves to others, where those are numbers."""
    width, heads = fields["d_model"], fields["n_heads"]
    if "n_kv_heads" in family.derived and fields["n_kv_heads"] is None:
        fields["n_kv_heads"] = heads
    if "head_dim" in family.derived and fields["head_dim"] is None:
        if _is_integer(width) and _is_integer(heads) and heads > 0:
            fields["head_dim"] = width // heads


def _switch_window(hf: Mapping[str, Any], fields: dict[str, Any], problems: dict[str, str]) -> None:
    """Takes the window out of `fields` unless config.json switches it on."""
    switch = hf.get("use_sliding_window", False)
    if not isinstance(switch, bool):
        problems["use_sliding_window"] = f"expected true or false, got {shown(switch)}"
    if switch is False:
        fields["sliding_window"] = None
    first = hf.get("max_window_layers", MAX_WINDOW_LAYERS)
    if not _is_integer(first) or not 0 <= first <= MOST:
        problems["max_window_layers"] = (
            f"expected an integer from 0 to {MOST:,}, got {shown(first)}"
        )


def _read_rope(
    hf: Mapping[str, Any], family: Family, fields: dict[str, Any], problems: dict[str, str]
) -> dict[str, str]:
    """Puts the fields of the rotary position embedding into `fields`; {field: its key}.

    A base may stand in three places, a scaling in two. Adds to problems: another kind of rotary
    embedding, and places that disagree.
    """
    key, default = family.fields["rope_theta"]
    thetas = {key: hf[key]} if key in hf else {}
    local_key, local_default = family.fields.get("local_rope_theta", (None, None))
    local_thetas = {local_key: hf[local_key]} if local_key is not None and local_key in hf else {}
    scalings: dict[str, RopeScaling | None] = {}
    for name in ROPE:
        rope = hf.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems[name] = f"expected an object or null, got {shown(rope)}"
            continue
        if local_key is None or name == "rope_scaling":
            _read_part(name, rope, family.ropes, hf, thetas, scalings, problems)
            continue
        for layer_type, part in rope.items():
            place = f"{name}.{layer_type}"
            if layer_type not in (LOCAL, GLOBAL):
                problems[place] = f"expected only {GLOBAL} and {LOCAL}, got {shown(part)}"
            elif not isinstance(part, dict):
                problems[place] = f"expected an object, got {shown(part)}"
            elif layer_type == GLOBAL:
                _read_part(place, part, family.ropes, hf, thetas, scalings, problems)
            else:
                _read_part(place, part, ("default",), hf, local_thetas, {}, problems)
    keys = _agree({"rope_theta": thetas or {key: default}}, fields, problems)
    if local_key is not None:
        local = local_thetas or {local_key: local_default}
        keys |= _agree({"local_rope_theta": local}, fields, problems)
        if fields["local_rope_theta"] is None:
            problems[keys["local_rope_theta"]] = "expected a number, got None"
    if "rope_scaling" not in family.same:
        keys |= _agree({"rope_scaling": scalings or {"rope_scaling": None}}, fields, problems)
    return keys


def _agree(
    places: Mapping[str, Mapping[str, Any]], fields: dict[str, Any], problems: dict[str, str]
) -> dict[str, str]:
    """Takes each field from the first of its places, and adds those that disagree to problems."""
    keys = {}
    for field, values in places.items():
        (first, value), *others = values.items()
        for name, other in others:
            wrong = field != "rope_scaling" and _is_wrong_number(value)  # said elsewhere
            if not _same(other, value) and not wrong:
                problems[name] = f"expected {first} = {shown(value)}, got {shown(other)}"
        fields[field], keys[field] = value, first
    return keys


def _read_part(
    place: str,
    rope: Mapping[str, Any],
    ropes: tuple[str, ...],
    hf: Mapping[str, Any],
    thetas: dict[str, Any],
    scalings: dict[str, RopeScaling | None],
    problems: dict[str, str],
) -> None:
    """Reads one object of a rotary embedding: its base into thetas, its scaling into scalings."""
    expected = " or ".join(map(repr, ropes))
    named = {key: rope[key] for key in ("rope_type", "type") if key in rope}
    kind = next(iter(named.values()), "default")
    for key, value in named.items():
        if value not in ropes:
            problems[f"{place}.{key}"] = f"expected {expected}, got {shown(value)}"
        elif value != kind and kind in ropes:
            problems[f"{place}.{key}"] = f"expected rope_type = {kind!r}, got {shown(value)}"
    own = _SCALINGS.get(kind, {}) if kind in ropes else {}
    for key, value in rope.items():
        if key == "rope_theta":
            thetas[f"{place}.{key}"] = value
        elif key == "partial_rotary_factor" and any(_same(value, x) for x in (1.0, None)):
            pass
        elif key not in named and key not in own.values():
            others = ", ".join([f"rope_type {expected}", *own.values()])
            problems[f"{place}.{key}"] = (
                f"expected only {others} and rope_theta, got {shown(value)}"
            )
    scalings[place] = None
    if not own:
        return
    values: dict[str, Any] = {field: rope.get(key) for field, key in own.items()}
    if kind == "llama3" and "original_max_position_embeddings" not in rope:
        values["original_max_positions"] = hf.get("max_position_embeddings")
    try:
        scalings[place] = RopeScaling(kind, **values)
    except SettingsError as error:
        for problem in error.problems:
            field, _, words = problem.partition(": ")
            problems[f"{place}.{own.get(field, field)}"] = words


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_wrong_number(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, (int, float))


def _wrong_annotations(hf: Mapping[str, Any]) -> dict[str, str]:
    """Problems of the keys that are read by others than the model: ids, names, labels."""
    problems = {}
    for key in TOKEN_IDS:
        value = hf.get(key)
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        right = value is None or bool(ids)
        for i in ids if value is not None else ():
            right &= isinstance(i, int) and not isinstance(i, bool) and -1 <= i <= MOST
        if not right:
            some = ", or a list of ids" if key == "eos_token_id" else ""
            problems[key] = f"expected the id of a token{some}, or null, got {shown(value)}"
    names = hf.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        problems["architectures"] = f"expected a list of names, got {shown(names)}"
    for key in ("dtype", "torch_dtype"):
        if hf.get(key) is not None and not isinstance(hf[key], str):
            problems[key] = f"expected the name of a dtype, got {shown(hf[key])}"
    return problems


def _same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are equal. True is not 1; 1 is 1.0."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _nearest(key: str, keys: frozenset[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    return f"did you mean {near[0]!r}?" if near else "take it out of the file if it changes nothing"


def to_hf_dict(cfg: ModelConfig, kind: str = "causal_lm") -> dict[str, Any]:
    """Returns the `config.json` that `transformers` reads for this model.

    kind: "causal_lm", or "classifier" for a model with a scalar head.

    `checkpoint/huggingface.py` adds dtype and token ids.
    """
    family = cfg.family
    hf = {key: getattr(cfg, field) for field, (key, _) in family.fields.items()}
    # where transformers refuses an integer
    floats = ("attn_softcap", "final_softcap", "norm_eps", "rope_theta", "local_rope_theta")
    for key in (family.fields[field][0] for field in floats if field in family.fields):
        hf[key] = None if hf[key] is None else float(hf[key])
    scalar = cfg.query_pre_attn_scalar
    if scalar is not None and scalar == int(scalar):
        hf["query_pre_attn_scalar"] = int(scalar)  # transformers refuses a float here
    if family.layer_types:
        hf["layer_types"] = list(cfg.layer_types)
    if family.switched_window:
        hf["use_sliding_window"] = cfg.sliding_window is not None
        hf["max_window_layers"] = [*cfg.layer_types, LOCAL].index(LOCAL)
    if cfg.rope_scaling is not None:
        scaling = cfg.rope_scaling
        hf["rope_scaling"] = {"rope_type": scaling.rope_type} | {
            key: getattr(scaling, field) for field, key in _SCALINGS[scaling.rope_type].items()
        }
    return hf | {
        "architectures": [getattr(family, kind)],
        "model_type": cfg.model_type,
        family.activation_key: family.activation,
        "attention_bias": only(family)["attention_bias"][0],
        "attention_dropout": 0.0,
        "tie_word_embeddings": cfg.tied_head,
    }


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """Reads the config.json of a Hugging Face folder, as it is.

    Raises FileNotFoundError where there is none, and ValueError where it is no JSON object.
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a Hugging Face folder with config.json"
        )
    return read_object(path)


def load_config(folder: str | pathlib.Path, **overrides: Any) -> ModelConfig:
    """Reads the config of a Hugging Face folder; `overrides` as in `from_hf_dict`.

    Raises FileNotFoundError where there is none, and ValueError as `from_hf_dict`.
    """
    path = pathlib.Path(folder) / "config.json"
    return from_hf_dict(read_config(folder), where=str(path), **overrides)
