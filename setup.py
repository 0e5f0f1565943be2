"""Packaging: the library in ``sb3_exdm/``, and the top-level ``envs/`` folder installed as ``sb3_exdm.envs``."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = (root / "sb3_exdm" / "version.txt").read_text(encoding="utf-8").strip()

# Address of the public repository, which the workflow that publishes sets. A package index shows the README outside of it.
repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")


def readme() -> str:
    """README for a package index: links into the repository are absolute; without an address they are left out."""
    text = (root / "README.md").read_text(encoding="utf-8")
    if not repository:
        text = re.sub(r"!\[[^\]]*\]\((?!http)[^)]*\)\n*", "", text)
        return re.sub(r"\[([^\]]*)\]\((?!http)[^)]*\)", r"\1", text)
    text = re.sub(r"(!\[[^\]]*\])\((?!http)([^)]*)\)", rf"\1({repository}/raw/v{version}/\2)", text)
    return re.sub(r"(\[[^\]]*\])\((?!http)([^)]*)\)", rf"\1({repository}/blob/v{version}/\2)", text)


# Every lower bound is installed and tested by `make test-oldest`, the newest versions by `make test-newest`.
core = [
    "gymnasium>=1.1,<2.0",
    "matplotlib>=3.7",
    "numpy>=1.24",
    "safetensors>=0.4",
    "stable-baselines3>=2.9,<3.0",
    "tensorboard>=2.15",
    "torch>=2.8,<3.0",
    "tqdm>=4.60",
    "tyro>=1.0.10,<2.0",
]
# rliable 1.2 needs arch 7, which pandas 3 breaks.
benchmark = ["joblib>=1.3", "pandas>=1.5.3,<3", "rliable>=1.2", "scipy>=1.10"]
video = ["imageio>=2.30", "imageio-ffmpeg>=0.4.9"]
hub = ["huggingface_hub>=0.34"]
minari = ["minari[hdf5]>=0.5"]
# The Fetch environments fail with mujoco 3.12 and newer, which `dmc` needs: install one of the two extras.
robotics = ["gymnasium-robotics>=1.4", "mujoco>=3.2.7,<3.12"]
# dm_control needs labmaze, which has no wheel for Python 3.13: its build needs bazel.
# mujoco 4 breaks dm_control 1.0.50, and older versions of mujoco break it as well.
dmc = ["dm_control>=1.0.50,<2.0", "mujoco>=3.17,<4", "shimmy>=2.0,<3.0"]
dmc_where_it_installs = [f'{requirement}; python_version < "3.13"' for requirement in dmc]
docs = ["furo>=2024.8", "latex2mathml>=3.77", "myst-parser>=4", "sphinx>=8.1", "sphinx-copybutton>=0.5"]
tests = [
    "build>=1.2",
    "diffusers>=0.30",
    "hypothesis>=6.100",
    "ipykernel>=6.25",
    *hub,
    *minari,
    "mypy>=1.10",
    "nbclient>=0.9",
    "nbformat>=5.9",
    "pytest>=8",
    "pytest-benchmark>=5",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "sb3-contrib>=2.9,<3.0",
]

setup(
    name="sb3-exdm",
    version=version,
    description="Exploratory diffusion models for reward-free reinforcement learning, on Gymnasium and Stable-Baselines3",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="the sb3-exdm contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=[
        *("reinforcement learning", "unsupervised reinforcement learning", "exploration", "intrinsic motivation"),
        *("diffusion model", "diffusion policy", "stable-baselines3", "gymnasium", "pytorch"),
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={
        "Paper": "https://arxiv.org/abs/2502.07279",
        **({"Source": repository, "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md"} if repository else {}),
    },
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["sb3_exdm", "sb3_exdm.*"]),
        "sb3_exdm.envs",
        *(f"sb3_exdm.envs.{name}" for name in find_packages("envs")),
    ],
    package_dir={"sb3_exdm": "sb3_exdm", "sb3_exdm.envs": "envs"},
    package_data={"sb3_exdm": ["py.typed", "version.txt", "sharing/*.css"], "sb3_exdm.envs": ["*.json", "**/*.json"]},
    install_requires=core,
    extras_require={
        "benchmark": benchmark,
        "dmc": dmc,
        "docs": docs,
        "robotics": robotics,
        "video": video,
        "hub": hub,
        "minari": minari,
        "tests": tests,
        "all": benchmark + dmc_where_it_installs + video + hub + minari,
    },
    entry_points={"console_scripts": ["exdm=sb3_exdm.cli:main"]},
)
