from setuptools import find_packages, setup

setup(
    name="grm_jax",
    version="0.1.0",
    description="Self-Principled Critique Tuning and generative reward models in JAX",
    python_requires=">=3.11",
    packages=find_packages(include=["grm_jax", "grm_jax.*"]),
    package_data={
        "grm_jax": [
            "judgment/templates/*.jinja",
            "assets/tiny_base/*",
            "assets/tiny/*/*",
            "report/*.jinja",
        ]
    },
    extras_require={"tpu": ["jax[tpu]==0.10.2"]},
    install_requires=[
        line.strip()
        for line in open("requirements.txt")
        if line.strip() and not line.startswith("#")
    ],
)
