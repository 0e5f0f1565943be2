"""The directive ``settings-table``: the fields of a configuration, with their defaults and their help."""

import ast
import dataclasses
import inspect
import textwrap
from importlib import import_module
from itertools import pairwise
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class SettingsTable(SphinxDirective):
    """List ``setting``, ``default`` and ``meaning`` of the fields of a dataclass, those of its bases first."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"only-own": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Build a table with a row per field."""
        module, _, name = self.arguments[0].rpartition(".")
        config: Any = getattr(import_module(module), name)
        self.env.note_dependency(inspect.getsourcefile(config) or "")
        documents = _documents(config)
        rows = []
        for field in dataclasses.fields(config):
            if "only-own" in self.options and field.name not in vars(config)["__annotations__"]:
                continue
            rows.append([nodes.literal(text=field.name), _default(field), nodes.Text(documents.get(field.name, ""))])
        return [_table(("setting", "default", "meaning"), (18, 14, 68), rows)]


def _documents(config: type) -> dict[str, str]:
    """Docstrings of the fields, which only the source has."""
    found = {}
    for base in reversed(config.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _default(field: Any) -> nodes.Node:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING:
        return nodes.emphasis(text="required")
    return nodes.literal(text=repr(value))


def _table(header: tuple[str, ...], widths: tuple[int, ...], rows: list[list[nodes.Node]]) -> nodes.table:
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths), cols=len(widths))
    group += nodes.thead("", _row([nodes.Text(text) for text in header]))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group, classes=["settings"])


def _row(cells: list[Any]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive with Sphinx."""
    app.add_directive("settings-table", SettingsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
