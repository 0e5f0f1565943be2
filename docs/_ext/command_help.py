"""The directive ``command-help``: the help of a command of ``exdm``, as the command prints it."""

import io
import os
from contextlib import redirect_stdout
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sb3_exdm.cli import main


class CommandHelp(SphinxDirective):
    """Print ``exdm ARGUMENTS --help`` into a literal block."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Capture the help at a width that fits the page."""
        output = io.StringIO()
        columns = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "80"
        try:
            with redirect_stdout(output):
                main([*" ".join(self.arguments).split(), "--help"])
        except SystemExit:
            pass  # the parser ends so after its help
        finally:
            os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
        return [nodes.literal_block(text=output.getvalue(), language="text")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive with Sphinx."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
