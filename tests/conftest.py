"""Sets up a test session: 8 virtual CPU devices, and a thread pool large enough for them.

Queued collectives cannot starve in it on few cores.
"""

import os
import pathlib
import signal

# a shell starts what runs in the background with signals ignored, and scripts leave those so: tests
# that send some would wait for ever
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )

# the CPU client sizes its pool from this; 8 devices on 2 cores deadlock without it
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
# same HLO, less LLVM effort: compiling is most of the suite's time
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

# beside the caches of pytest and ruff, in the one folder that git ignores
REPO = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(REPO / ".cache/hypothesis"))

import gc  # noqa: E402
import importlib.util  # noqa: E402
import sys  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# a property is judged, not the speed of a busy machine; a commit gives the same result each time,
# and `--hypothesis-profile=wide` looks further
PATIENT = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("steady", PATIENT, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("wide", PATIENT, max_examples=200, derandomize=False)
hypothesis.settings.load_profile("steady")

MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 20_000  # leaves a file of tests more than half of what there is


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Lets compiled programs go behind a file, once there are many.

    Each maps some memory, of which Linux gives a process 65,530 pieces: behind them LLVM ends the
    process with a segmentation fault.
    """
    yield
    if "jax" in sys.modules and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("tpu_aot") and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")


def shared_data() -> pathlib.Path:
    """Folder of public benchmark files; tests that need it skip where it is absent."""
    return pathlib.Path(os.environ.get("GRM_JAX_DATA", REPO.parent / "shared" / "data"))


@pytest.fixture
def data_dir() -> pathlib.Path:
    path = shared_data()
    if not path.is_dir():
        pytest.skip(f"benchmark files not found at {path}; set GRM_JAX_DATA to their folder")
    return path
