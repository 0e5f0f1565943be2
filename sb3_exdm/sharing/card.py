"""The model card of a run: ``README.md`` of its repository on the Hugging Face Hub."""

import html
import json
from collections.abc import Collection
from typing import Any

from sb3_exdm.runs.folder import VIDEO, RunFolder
from sb3_exdm.sharing import facts

CARD = "README.md"

_PICTURES = ("coverage.png", "learning_curve.png", "visits.png", "reward.png")
_METRICS = ("success_rate", "coverage", "coverage_of_ceiling", "normalized_score")


def model_card(folder: RunFolder, repo_id: str, files: Collection[str], endpoint: str = "https://huggingface.co") -> str:
    """
    Write the model card of a finished run.

    :param folder: run folder
    :param repo_id: repository, ``"user/name"``
    :param files: names of the files in the repository
    :param endpoint: address of the Hub, for the link to the video
    :return: Markdown with the metadata that the Hub reads
    :raises ArtifactError: if the run is unfinished
    """
    config, summary, record = folder.config, folder.summary, folder.record()
    env_id = str(config["env_id"])
    explored = config["command"] == "pretrain"
    if explored:
        reward = _code(config["reward"])
        what = f"A {config['algo']} agent that explored {_code(env_id)} without its reward, with the intrinsic reward {reward}"
    else:
        how = config["operator"] or config["algo"]
        what = f"A {config['policy']} policy fine-tuned on the reward of {_code(env_id)} with {_code(how)}"
    lines = [
        _metadata(config, summary, repo_id),
        f"# {html.escape(repo_id.split('/')[-1])}",
        "",
        f"{what}, by sb3-exdm (reward-free exploration with diffusion models, on Stable-Baselines3).",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.headline(summary, facts.last_row(record)).items()),
        "",
        *(f"![{name.removesuffix('.png')}]({name})\n" for name in _PICTURES if name in files),
    ]
    if VIDEO in files:
        lines += [f'<video controls loop muted src="{html.escape(f"{endpoint}/{repo_id}/resolve/main/{VIDEO}")}"></video>', ""]
    lines += [
        "## Use",
        "",
        "The weights are safetensors: loading them executes no code.",
        "",
        "```python",
        "import sb3_exdm",
        "",
        f"run = sb3_exdm.load_from_hub({json.dumps(repo_id)})",
        "model = run.load_model()",
        "```",
        "",
        "```",
        f"exdm pull {repo_id} --out runs/pulled",
        "exdm evaluate runs/pulled",
        *(["exdm finetune --pretrained runs/pulled"] if explored else []),
        "```",
        "",
        "## Settings",
        "",
        "```json",
        json.dumps({key: value for key, value in config.items() if key != "versions"}, indent=2).replace("`", "\\u0060"),
        "```",
        "",
    ]
    return "\n".join(lines)


def _code(text: Any) -> str:
    """Text as Markdown code, whatever it holds."""
    return f"`{' '.join(html.escape(str(text)).replace('`', '').split())}`"


def _metadata(config: dict[str, Any], summary: dict[str, Any], repo_id: str) -> str:
    """YAML for the Hub; strings are JSON, which is YAML as well."""
    env_id = json.dumps(str(config["env_id"]))
    lines = [
        "---",
        "library_name: sb3-exdm",
        "tags:",
        *(f"- {tag}" for tag in ("reinforcement-learning", "stable-baselines3", "sb3-exdm", "exploration")),
        f"- {env_id}",
    ]
    metrics = [(key, summary[key]) for key in _METRICS if summary.get(key) is not None]
    if summary.get("mean_reward") is not None:
        metrics.insert(0, ("mean_reward", f"{summary['mean_reward']:.4g} +/- {summary['std_reward']:.2g}"))
    if metrics:
        lines += [
            "model-index:",
            f"- name: {json.dumps(repo_id.split('/')[-1])}",
            "  results:",
            "  - task:",
            "      type: reinforcement-learning",
            "      name: reinforcement-learning",
            "    dataset:",
            f"      name: {env_id}",
            f"      type: {env_id}",
            "    metrics:",
        ]
        for key, value in metrics:
            lines += [f"    - type: {key}", f"      name: {facts.label(key)}", f"      value: {json.dumps(value)}"]
    return "\n".join([*lines, "---", ""])
