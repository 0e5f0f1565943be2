"""Configuration of the documentation site: ``make docs`` builds it, with and without a network."""

import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import sb3_exdm

project = "sb3-exdm"
author = "the sb3-exdm contributors"
copyright = "the sb3-exdm contributors, MIT license"
version = release = sb3_exdm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "command_help",
    "mathml",
    "public_names",
    "settings_table",
]
source_suffix = [".md"]
exclude_patterns = ["_build"]
smartquotes = False  # quotes in examples of flags must stay as they are
nitpicky = True
# Every reference to the library must resolve; those to other libraries do where their inventories can be read.
nitpick_ignore_regex = [
    ("py:.*", r"(?!sb3_exdm\b).*"),
    ("py:.*", r"sb3_exdm\..*\.(Self\w+|\w+T|AnyConfig|Entry|OperatorClass|AtLeast|_\w+)"),  # type variables and metadata
    ("py:.*", r"sb3_exdm\.(common\.dense|diffusion\.(trainable|fused_fit)|envs\.control\.domain)\..*"),  # internal
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"


def _is_reachable(url: str) -> bool:
    try:
        with urlopen(f"{url}objects.inv", timeout=3):
            return True
    except (URLError, OSError):
        return False


_SITES = {
    "stable_baselines3": "https://stable-baselines3.readthedocs.io/en/master/",
    "gymnasium": "https://gymnasium.farama.org/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "python": "https://docs.python.org/3/",
}
# Without a network, names of other libraries are plain code and the build is as clean.
_ONLINE = _is_reachable(_SITES["stable_baselines3"])
intersphinx_mapping = {name: (url, None) for name, url in _SITES.items() if _ONLINE and _is_reachable(url)}

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"sb3-exdm {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
