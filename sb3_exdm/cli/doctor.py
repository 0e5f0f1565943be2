"""``exdm doctor``."""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence

from sb3_exdm.doctor import Check, examine
from sb3_exdm.doctor.checks import BROKEN, OPTIONAL

DESCRIPTION = """\
Check the installation: versions, OpenGL, GPU, folders, threads and optional packages.

Says what is missing and the command that mends it. The exit code is 0 if exdm pretrain can run, and 1 otherwise.
"""


def run(argv: list[str]) -> None:
    """
    Examine and report.

    :param argv: flags
    """
    # From the standard library: the package that reads the flags of the other commands may be what is broken.
    parser = argparse.ArgumentParser("exdm doctor", None, DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FOLDER", default="runs", help="folder for run folders (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags = parser.parse_args(argv)
    checks = examine(flags.out)
    can_run = all(check.status != BROKEN for check in checks)
    if flags.json:
        print(json.dumps({"can_run": can_run, "checks": [check.to_dict() for check in checks]}, indent=2))
    else:
        print(describe(checks, shutil.get_terminal_size().columns))
    sys.exit(0 if can_run else 1)


def describe(checks: Sequence[Check], width: int = 100) -> str:
    """
    Describe checks, a line each, and what to do.

    :param checks: checks
    :param width: width of the lines, in characters
    """
    column = max(len(check.status) for check in checks)
    indent = column + max(len(check.name) for check in checks) + 4
    lines = []
    for check in checks:
        head = f"{check.status:<{column}}  {check.name}"
        text = f"{check.found}\n-> {check.remedy}" if check.remedy else check.found
        body = [part for line in text.splitlines() for part in _wrap(line, max(width - indent, 30))]
        lines += [f"{head:<{indent}}{body[0]}", *(" " * indent + part for part in body[1:])]
    broken = [check.name for check in checks if check.status == BROKEN]
    optional = [check.name for check in checks if check.status == OPTIONAL]
    if broken:
        verdict = f"exdm pretrain cannot run: see {', '.join(broken)}."
    elif optional:
        verdict = f"exdm pretrain can run. Optional and missing: {', '.join(optional)}."
    else:
        verdict = "exdm pretrain can run, and nothing is missing."
    return "\n".join([*lines, "", *_wrap(verdict, max(width, 30))])


def _wrap(line: str, width: int) -> list[str]:
    """Break a line at spaces only, so that paths and commands can be copied."""
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
