"""A page of a run: one HTML file that opens without a network."""

import base64
import html
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sb3_exdm.common.serialization import ArtifactError, atomic_path
from sb3_exdm.runs.folder import PAGE, RunFolder, RunRecord
from sb3_exdm.sharing import facts
from sb3_exdm.sharing.chart import line_chart

MAX_EMBEDDED = 32 * 2**20
"""Largest picture or video that is put into the page, in bytes. A larger one is linked."""

_MEDIA = {".png": "image/png", ".mp4": "video/mp4"}
_CAPTIONS = {
    "visits.png": "visited states",
    "reward.png": "intrinsic reward at the end",
    "video.mp4": "an episode after training",
}
_DRAWN_AS_CURVES = ("coverage.png", "learning_curve.png")
_STYLE = Path(__file__).with_name("page.css")


def write_page(run: str | Path, out: str | Path | None = None) -> Path:
    """
    Write a page with everything about a run: curves, maps, video, figures, settings, and how to load it.

    The page is one file without scripts; pictures are in it. Everything that is printed is escaped.

    :param run: run folder of ``exdm pretrain`` or ``exdm finetune``, which may be unfinished
    :param out: file to write (``.html``); by default ``index.html`` in the run folder
    :return: the file
    :raises ArtifactError: if the folder holds no run
    :raises ValueError: if ``out`` is not the name of an HTML file
    """
    folder = RunFolder(run)
    path = folder.path / PAGE if out is None else Path(out)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise ValueError(f"{path} is not the name of an HTML file: use one that ends in .html.")
    text = render(folder)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(folder: RunFolder) -> str:
    """
    Render the page of a run.

    :param folder: run folder
    :return: HTML
    :raises ArtifactError: if the folder holds no run
    """
    config = folder.config
    summary = folder.summary if folder.is_complete() else None
    record, complaint = None, ""
    try:
        record = folder.record()
    except ArtifactError as error:  # has just begun, or is damaged: the rest can be shown
        complaint = str(error)
    sections = [
        _header(config, summary, record),
        f'<p class="note">{_escape(complaint)}</p>' if complaint else "",
        _tiles(facts.headline(summary, facts.last_row(record))),
        _curves(record),
        _pictures(folder),
        _loading(folder, config),
        _table("Settings", facts.flatten({key: value for key, value in config.items() if key != "versions"})),
        _table("Summary", facts.flatten({key: value for key, value in (summary or {}).items() if key != "versions"})),
        _table("Versions", config.get("versions", {})),
        _table("Files", _files(folder)),
    ]
    title = _escape(f"{config['env_id']}, {config['command']}, seed {config['seed']}")
    policy = "default-src 'none'; img-src data: 'self'; media-src data: 'self'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Written by exdm show.</footer>\n</main>\n</body>\n</html>\n"
    )


def _escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _header(config: Mapping[str, Any], summary: Mapping[str, Any] | None, record: RunRecord | None) -> str:
    if config["command"] == "pretrain":
        how = f"explored with {config['algo']}, reward {config['reward']}"
    else:
        start = "from scratch" if config["pretrained"] is None else f"from {config['pretrained']}"
        how = f"fine-tuned {start}, {config['policy']} policy, {config['operator'] or config['algo']}"
    total = config.get("total_timesteps")
    if summary is not None:
        status = '<span class="status">complete</span>'
    else:
        steps = facts.number(int(facts.last_row(record).get("timesteps", 0)))
        status = f'<span class="status unfinished">unfinished: {steps} of {_escape(facts.number(total))} steps</span>'
    subtitle = f"{_escape(how)}, seed {_escape(config['seed'])} · {status}"
    return f'<h1>{_escape(config["env_id"])}</h1>\n<p class="subtitle">{subtitle}</p>'


def _tiles(figures: Mapping[str, str]) -> str:
    cells = "".join(f"<div><dd>{_escape(value)}</dd><dt>{_escape(name)}</dt></div>" for name, value in figures.items())
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def _curves(record: RunRecord | None) -> str:
    if record is None:
        return ""
    in_maze = "coverage_of_ceiling" in record.progress  # visited bins have no ceiling
    charts = []
    for key, column in record.progress.items():
        if key in ("timesteps", "seconds") or (in_maze and key == "coverage_of_ceiling"):
            continue
        ceiling = 1.0 if key == "success_rate" or (key == "coverage" and in_maze) else None
        name = facts.label(key, in_maze)
        chart = line_chart(record.progress["timesteps"], column, name, ceiling=ceiling)
        charts.append(f"<figure><figcaption>{_escape(name)} over environment steps</figcaption>{chart}</figure>")
    return _grid("Curves", charts)


def _pictures(folder: RunFolder) -> str:
    found = [path for path in folder.pictures() if path.name not in _DRAWN_AS_CURVES]
    return _grid("Pictures", (_picture(path) for path in found))


def _picture(path: Path) -> str:
    name = _CAPTIONS.get(path.name, path.stem)
    kind = _MEDIA[path.suffix]
    source = _escape(path.name)
    if path.stat().st_size <= MAX_EMBEDDED:
        source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    if kind.startswith("video/"):
        element = f'<video controls loop muted playsinline src="{source}"></video>'
    else:
        element = f'<img alt="{_escape(name)}" src="{source}">'
    return f"<figure><figcaption>{_escape(name)}</figcaption>{element}</figure>"


def _grid(title: str, figures: Iterable[str]) -> str:
    content = "\n".join(figures)
    return f'<h2>{title}</h2>\n<div class="charts">\n{content}\n</div>' if content else ""


def _loading(folder: RunFolder, config: Mapping[str, Any]) -> str:
    path = str(folder.path)
    code = f"import sb3_exdm\n\nfolder = sb3_exdm.RunFolder({json.dumps(path)})\nmodel = folder.load_model()\n"
    commands = f"exdm evaluate {shlex.quote(path)}\n"
    if config["command"] == "pretrain":
        code += "reward = folder.load_reward()\ntransitions = folder.transitions()\n"
        commands += f"exdm finetune --pretrained {shlex.quote(path)}\n"
    return f"<h2>Load it</h2>\n<pre>{_escape(code)}</pre>\n<pre>{_escape(commands)}</pre>"


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = []
    for key, value in rows.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"<tr><th>{_escape(key)}</th><td>{_escape(text)}</td></tr>")
    if not lines:
        return ""
    table = "\n".join(lines)
    opened = "" if title == "Files" else " open"
    return f'<details{opened}><summary>{title}</summary>\n<div class="scroll"><table>\n{table}\n</table></div></details>'


def _files(folder: RunFolder) -> dict[str, str]:
    found = sorted(path for path in folder.path.rglob("*") if path.is_file() and path.name != PAGE)
    return {path.relative_to(folder.path).as_posix(): f"{path.stat().st_size / 1000:,.0f} kB" for path in found}
