"""Compiled programs kept on disk, so that a second process need not compile them again.

The folder is $XDG_CACHE_HOME/grm_jax, else ~/.cache/grm_jax. GRM_JAX_CACHE names another one, and
0, off or the empty text switch it off. JAX's own JAX_COMPILATION_CACHE_DIR wins and is left alone.
"""

import hashlib
import logging
import os
import pathlib
import platform
import tempfile

import jax

VARIABLE = "GRM_JAX_CACHE"
MIN_COMPILE_S = 0.2  # what compiles faster than this is not worth a file
# of /proc/cpuinfo: what a compiler makes use of (x86, Arm), and what it tunes for
CPU_LINES = ("model name", "flags", "Features", "CPU implementer", "CPU part")


def enable_compile_cache() -> pathlib.Path | None:
    """Lets JAX keep compiled programs on disk; the folder, or None where it is off.

    Asks JAX for its platform, so in a job of several processes call it behind
    `processes.initialize`. Each version of JAX, platform and kind of CPU has a folder of its own:
    machines that share a home never load each other's machine code. A folder that cannot be written
    is said in a line of log, as is one that is made, and nothing is kept then.
    """
    if chosen := jax.config.values["jax_compilation_cache_dir"]:
        return pathlib.Path(chosen)
    root = cache_root()
    if root is None:
        return None
    folder = root / f"jax-{jax.__version__}-{jax.default_backend()}-{cpu_digest()}"
    log = logging.getLogger(__name__)
    try:
        new = not root.is_dir()
        # what lies here is run, so it is for its owner alone
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.warning("compiled programs are not kept: %s; %s names another folder", error, VARIABLE)
        return None
    if new:
        log.warning("compiled programs are kept in %s; %s=0 switches this off", root, VARIABLE)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    return folder


def cache_root() -> pathlib.Path | None:
    """Returns the folder of what is kept between processes, there or not; None where it is off."""
    asked = os.environ.get(VARIABLE)
    if asked is not None and asked.strip().lower() in ("", "0", "off"):
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(asked or pathlib.Path(home) / "grm_jax").expanduser()


def cpu_digest(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> str:
    """8 hexadecimal digits of this machine's kind of CPU and of what it can do."""
    facts = {platform.machine(), platform.processor()}
    try:
        with open(cpuinfo, encoding="utf-8") as file:
            facts |= {
                " ".join(line.split())
                for line in file
                if line.partition(":")[0].strip() in CPU_LINES
            }
    except OSError:  # not Linux
        pass
    return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:8]
