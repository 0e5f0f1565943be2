"""Films of agents."""

import sys

import gymnasium as gym
import numpy as np
import pytest

import sb3_exdm
from sb3_exdm.cli import main
from sb3_exdm.common.serialization import ArtifactError

imageio = pytest.importorskip("imageio.v2")
pytest.importorskip("imageio_ffmpeg")

GOAL = {"goal_cell": [0, 0], "goal_radius": 0.1, "max_episode_steps": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An agent that has learned nothing."""
    path = tmp_path_factory.mktemp("video") / "run"
    return sb3_exdm.finetune(
        "Maze2d-SquareA-v0",
        16,
        policy="gaussian",
        n_eval_episodes=1,
        env_kwargs=GOAL,
        out=path,
        progress_bar=False,
        device="cpu",
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_shows_every_step_of_every_episode(run, suffix, tmp_path):
    path = sb3_exdm.record_video(run.path, tmp_path / f"film{suffix}", n_episodes=2, device="cpu")
    frames = np.array([frame[..., :3] for frame in imageio.get_reader(path)])
    env = gym.make("Maze2d-SquareA-v0", render_mode="rgb_array")
    env.reset(seed=0)
    height, width = (2 * (size // 2) for size in env.render().shape[:2])
    assert len(frames) == 2 * 12 and frames.shape[1:3] == (height, width)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50, "the point moves"
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing else is left"


def test_recipe_and_command(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["evaluate", str(run.path), "--episodes", "1", "--video", "film.gif", "--device", "cpu"])
    assert len(imageio.mimread("film.gif")) == 12
    again = sb3_exdm.finetune(
        "Maze2d-SquareA-v0",
        16,
        policy="gaussian",
        n_eval_episodes=1,
        env_kwargs=GOAL,
        out="filmed",
        video=True,
        progress_bar=False,
        device="cpu",
    )
    assert imageio.get_reader(again.path / "video.mp4").count_frames() == 12


def test_bad_input_gets_one_clear_sentence(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif, got .*film\.avi"):
        sb3_exdm.record_video(run.path, tmp_path / "film.avi")
    with pytest.raises(ValueError, match="n_episodes"):
        sb3_exdm.record_video(run.path, tmp_path / "film.gif", n_episodes=0)
    with pytest.raises(ArtifactError, match="neither a run folder"):
        sb3_exdm.record_video(tmp_path / "nowhere", tmp_path / "film.gif")
    with pytest.raises(ValueError, match="needs a run folder"):
        sb3_exdm.finetune("Maze2d-SquareA-v0", 16, video=True, device="cpu")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-exdm\[video\]"'):
        sb3_exdm.record_video(run.path, tmp_path / "film.gif")
    assert not list(tmp_path.iterdir())
