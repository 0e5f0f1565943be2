"""
The public names ``sb3_exdm.NAME``: references to them lead to where they are documented, and the directive
``public-names`` lists them all.
"""

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from sb3_exdm import api

CONSTANTS = {
    "OPERATORS": ("sb3_exdm.finetuning.operators.base.OPERATORS", "Registered operators."),
    "REWARDS": ("sb3_exdm.rewards.registry.REWARDS", "Registered rewards."),
    "envs": ("sb3_exdm.envs", "The package of environments."),
    "register_env_factory": ("sb3_exdm.runs.envs.register_env_factory", "Register an env factory for a prefix of ids."),
}
"""Names that do not know their module: where they are documented, and what they are."""


def documented_name(name: str) -> str:
    """
    Return the name under which a public name is documented.

    :param name: an entry of ``sb3_exdm.api.__all__``
    """
    if name in CONSTANTS:
        return CONSTANTS[name][0]
    value = getattr(api, name)
    return f"{value.__module__}.{value.__qualname__}"


class PublicNames(SphinxDirective):
    """List every public name with the first sentence of its docstring; inside of ``eval-rst``."""

    def run(self) -> list[nodes.Node]:
        """Build a list of definitions."""
        lines = []
        for name in sorted(api.__all__, key=str.lower):
            summary = CONSTANTS[name][1] if name in CONSTANTS else _first_sentence(getattr(api, name).__doc__)
            lines += [f":py:obj:`sb3_exdm.{name} <{documented_name(name)}>`", f"   {summary}", ""]
        container = nodes.container(classes=["public-names"])
        self.state.nested_parse(StringList(lines, source="public names"), 0, container)
        return [container]


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Resolve a reference to ``sb3_exdm.NAME``."""
    package, _, name = node.get("reftarget", "").partition(".")
    if node.get("refdomain") != "py" or package != "sb3_exdm" or name not in api.__all__:
        return None
    assert app.builder is not None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", documented_name(name), node, content)  # type: ignore[return-value]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register directive and references with Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
