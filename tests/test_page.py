"""The page of a run: complete, self-contained, and safe to open."""

import csv
import re
from html.parser import HTMLParser

import pytest

from sb3_exdm.cli import main
from sb3_exdm.common.serialization import ArtifactError, read_json, write_json
from sb3_exdm.runs.config import PretrainConfig
from sb3_exdm.runs.folder import RunFolder
from sb3_exdm.sharing import chart, facts, page
from tests.conftest import tiny_finetune, tiny_pretrain

VOID = {"meta", "img", "line", "polyline", "polygon", "circle", "br"}


class Reader(HTMLParser):
    """Elements, their attributes, and the text of a page; refuses elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def said(self, words):
        return words in " ".join("".join(self.text).split())


@pytest.fixture
def explored(tmp_path):
    """The folder of a pre-training, with everything but the models."""
    folder = RunFolder(tmp_path / "run")
    settings = PretrainConfig(env_id="Maze2d-SquareA-v0", total_timesteps=1200, reward_kwargs={"n_levels": 2})
    folder.create({"command": "pretrain", **settings.to_dict()})
    log = folder.progress_log()
    for steps in (1000, 1200):
        row = {"coverage": steps / 2000, "coverage_of_ceiling": steps / 2000, "intrinsic_reward_mean": 1.5, "score_loss": 0.3}
        log.write({"timesteps": steps, "seconds": steps / 100, **row})
    log.close()
    for name in ("coverage.png", "visits.png", "reward.png"):
        (folder.path / name).write_bytes(b"a picture")
    folder.write_summary({"command": "pretrain", "timesteps": 1200, "coverage": 0.6, "coverage_of_ceiling": 0.6})
    return folder.path


def read(path):
    return Reader(page.write_page(path).read_text(encoding="utf-8"))


def change_config(path, **changes):
    write_json(path / "config.json", {**read_json(path / "config.json"), **changes})


@pytest.mark.slow
def test_everything_of_real_runs_is_in_one_file(tmp_path):
    explored, adapted = tmp_path / "explored", tmp_path / "adapted"
    tiny_pretrain(600, out=explored)
    tiny_finetune(explored, out=adapted)
    for path in (explored, adapted):
        found = read(path)
        sources = [value for _, attributes in found.elements for key, value in attributes.items() if key in ("src", "href")]
        assert all(source.startswith("data:") for source in sources)
        assert not {"script", "link", "iframe"} & {tag for tag, _ in found.elements}
        for key, value in facts.flatten(read_json(path / "config.json")).items():
            if not key.startswith("versions."):
                assert found.said(key) and (not isinstance(value, str) or found.said(value)), key
        assert found.said("complete") and found.said("model.safetensors")


def test_a_pretrained_run(explored):
    found = read(explored)
    pictures = [attributes["alt"] for tag, attributes in found.elements if tag == "img"]
    assert pictures == ["intrinsic reward at the end", "visited states"]
    curves = [attributes["aria-label"].split(" over")[0] for tag, attributes in found.elements if tag == "svg"]
    assert curves == ["state coverage", "intrinsic reward", "loss of the score model"]
    assert found.said("0.6state coverage")
    assert found.said("folder.load_reward()")


def test_the_page_goes_with_the_run_that_replaces_it(explored):
    read(explored)
    RunFolder(explored).create(RunFolder(explored).config, overwrite=True)
    assert not (explored / "index.html").exists()


@pytest.mark.parametrize("what", ["no summary", "no rows", "no progress", "half a row"])
def test_unfinished_runs(explored, what):
    (explored / "summary.json").unlink()
    progress = explored / "progress.csv"
    if what == "no rows":
        progress.write_text(progress.read_text().splitlines()[0] + "\n")
    elif what == "no progress":
        progress.unlink()
    elif what == "half a row":
        progress.write_text(progress.read_text() + "99000,1")
    found = read(explored)
    steps = "0" if what in ("no rows", "no progress") else "1,200"
    assert found.said(f"unfinished: {steps} of 1,200 steps")
    assert any(tag == "svg" for tag, _ in found.elements) == (steps != "0")


def test_a_damaged_log_is_reported_on_the_page(explored):
    (explored / "progress.csv").write_text("timesteps,coverage\n1000,many\n")
    assert read(explored).said("it may be damaged")


def test_hostile_content_is_text(explored):
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    change_config(explored, env_id=attack, reward_kwargs={attack: attack}, versions={attack: attack})
    (explored / "summary.json").unlink()
    with (explored / "progress.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["timesteps", attack], [1000, 1.0], [2000, 2.0]])
    (explored / "<img src=x onerror=alert(1)>.png").write_bytes((explored / "visits.png").read_bytes())
    found = read(explored)
    assert not any(tag == "script" or any(key.startswith("on") for key in attributes) for tag, attributes in found.elements)
    assert {attributes["src"][:5] for tag, attributes in found.elements if tag == "img"} == {"data:"}
    assert found.said("alert(1)")


def test_a_large_video_is_linked(explored, monkeypatch):
    monkeypatch.setattr(page, "MAX_EMBEDDED", 1000)
    (explored / "video.mp4").write_bytes(bytes(1001))
    assert ("video", "video.mp4") in [(tag, attributes.get("src")) for tag, attributes in read(explored).elements]


def test_the_command(explored, tmp_path, capsys):
    main(["show", str(explored), "--out", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert not (explored / "index.html").exists()
    with pytest.raises(ValueError, match=r"ends in \.html"):
        page.write_page(explored, tmp_path / "page.pdf")
    with pytest.raises(ArtifactError, match="not a run folder"):
        page.write_page(tmp_path)


def test_points_of_a_chart_are_at_their_values():
    drawn = chart.line_chart([0, 500, 1000], [0.0, 0.5, 1.0], "success rate", ceiling=1.0)
    (points,) = re.findall(r'class="curve" points="([^"]*)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2) and y0 > y2
    (top,) = {float(y) for y in re.findall(r'class="ceiling"[^>]*y1="([\d.]+)"', drawn)}
    assert top == pytest.approx(y2, abs=0.1)
    assert "<title>500 steps: 0.5</title>" in drawn


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-2.0, -1.0], [1e9, float("nan")]])
def test_charts_of_few_or_equal_values(values):
    drawn = chart.line_chart(range(len(values)), values, "return")
    assert "nan" not in drawn and "inf" not in drawn
    Reader(drawn)


def test_a_chart_of_nothing_is_empty():
    assert chart.line_chart([0, 1], [float("nan")] * 2, "return") == ""


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.6, "1 min 0 s"), (3700, "1 h 1 min")])
def test_durations(seconds, text):
    assert facts.duration(seconds) == text
