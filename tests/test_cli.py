"""The command line: what it accepts, what it prints, and how it refuses."""

import inspect
import json
import subprocess
import sys

import pytest
import torch as th

from sb3_exdm import cli, recipes
from sb3_exdm.artifacts import FORMAT_VERSION
from sb3_exdm.cli import main
from sb3_exdm.envs import MAZE_NAMES
from sb3_exdm.exploration import REWARDS
from sb3_exdm.exploration.callback import ExplorationCallback
from sb3_exdm.presets import ALGORITHMS

th.set_num_threads(1)

PRETRAIN = ["pretrain", "--env", "Maze2d-SquareA-v0"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *argv: str) -> str:
    """What the command says when it refuses: one line on stderr, exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("exdm: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    main([*PRETRAIN, "--steps", "800", "--n-envs", "4", "--reward", "zero", "--out", str(folder), "--quiet"])
    return folder


# Help ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ["pretrain", "plot", "benchmark", "Example:"]),
        (
            ["pretrain"],
            ["--env", "--steps", "--seed", "--algo", "--reward", "--n-envs", "--out", "100000", "exdm-paper", "ppo"],
        ),
        (["plot"], ["RUN", "--out", "--metric", "Example:"]),
        (["benchmark"], ["coverage", "estimator", "throughput"]),
        (["benchmark", "coverage"], ["--mazes", "--rewards", "--seeds", "--jobs", "SquareBottleneck"]),
        (["benchmark", "estimator"], ["--fit-steps", "--out"]),
        (["benchmark", "throughput"], ["--repeats", "--out"]),
    ],
)
def test_help(capsys, argv, words):
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [word for word in words if word not in text] == []
    assert "noqa" not in text


def test_help_names_what_the_library_knows():
    assert cli.REWARD_NAMES.split(",") == list(REWARDS)
    assert cli.ALGO_NAMES.split(",") == list(ALGORITHMS)
    assert cli.BenchmarkCoverage().mazes == MAZE_NAMES


def test_defaults_are_those_of_the_library():
    flags = cli.Pretrain(env="")
    known = {name: parameter.default for name, parameter in inspect.signature(recipes.pretrain).parameters.items()}
    for name in ("algo", "reward", "seed", "n_envs", "coverage_dims", "overwrite", "device", "checkpoint_freq"):
        assert getattr(flags, name) == known[name], name
    assert flags.steps == known["total_timesteps"]


@pytest.mark.parametrize(
    "argv", [["frobnicate"], [], ["pretrain"], ["benchmark"], [*PRETRAIN, "--steps", "many"], [*PRETRAIN, "--x"]]
)
def test_malformed_command_lines(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "--help" in printed.err and "Traceback" not in printed.err


def test_the_command_as_a_process(tmp_path):
    command = [sys.executable, "-m", "sb3_exdm.cli", "plot", "nowhere"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr == "exdm: The run folder nowhere does not exist.\n"


# Pre-training -------------------------------------------------------------------------------------------------------------


def test_pretrain(capsys, tmp_path):
    argv = ["--steps", "2200", "--seed", "3", "--reward-kwargs", '{"n_levels": 2}', "--algo-kwargs", '{"batch_size": 32}']
    main([*PRETRAIN, *argv])
    folder = tmp_path / "runs" / "Maze2d-SquareA-v0-sac-score-3"
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert config["reward_kwargs"] == {"n_levels": 2} and config["algo_kwargs"]["batch_size"] == 32
    assert (summary["seed"], summary["timesteps"]) == (3, 2200)
    printed = capsys.readouterr().out
    assert "Maze2d-SquareA-v0: 2,200 steps in" in printed and "steps/s)" in printed
    assert f"state coverage: {summary['coverage']:.3f}" in printed
    for picture in ("coverage.png", "visits.png", "reward.png"):
        assert f"runs/Maze2d-SquareA-v0-sac-score-3/{picture}" in printed.replace("\\", "/")
        assert (folder / picture).is_file()


def test_pretrain_of_other_environments_counts_bins(capsys):
    argv = ["pretrain", "--env", "CartPole-v1", "--algo", "ppo", "--reward", "zero", "--steps", "64", "--n-envs", "2"]
    main([*argv, "--coverage-dims", "2", "0", "--algo-kwargs", '{"n_steps": 32, "batch_size": 32}', "--out", "run"])
    assert "visited bins: " in capsys.readouterr().out


def test_quiet(run_folder, capsys):
    argv = [*PRETRAIN, "--steps", "64", "--reward", "zero", "--quiet", "--out", "quiet"]
    main(argv)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_a_run_is_replaced_only_if_asked_for(capsys, tmp_path):
    argv = [*PRETRAIN, "--steps", "64", "--reward", "zero", "--quiet", "--out", "run"]
    main(argv)
    assert "already holds a run" in refused(capsys, *argv)
    main([*argv, "--overwrite", "--seed", "1"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "argv, message",
    [
        (["pretrain", "--env", "Nowhere-v0"], "Cannot make the environment 'Nowhere-v0'"),
        (["pretrain", "--env", "no_such_module:Nowhere-v0"], "Cannot make the environment"),
        (["pretrain", "--env", "CartPole-v1"], "needs continuous actions"),
        (["pretrain", "--env", "Pendulum-v1", "--coverage-dims", "7"], "dimensions from 0 to 2, got [7]"),
        ([*PRETRAIN, "--reward", "fame"], "Unknown reward 'fame'; choose one of score,"),
        ([*PRETRAIN, "--algo", "dqn"], "Unknown algorithm 'dqn'; choose one of sac,"),
        ([*PRETRAIN, "--steps", "-5"], "--steps must be at least 1, got -5."),
        ([*PRETRAIN, "--steps", "0"], "--steps must be at least 1, got 0."),
        ([*PRETRAIN, "--threads", "0"], "--threads must be at least 1"),
        ([*PRETRAIN, "--n-envs", "0"], "n_envs must be"),
        ([*PRETRAIN, "--seed", "-1"], "seed must be"),
        ([*PRETRAIN, "--device", "abacus"], "Unknown device 'abacus'"),
        ([*PRETRAIN, "--env-kwargs", "{goal"], "--env-kwargs must be JSON"),
        ([*PRETRAIN, "--algo-kwargs", "[1]"], "--algo-kwargs must be a JSON object"),
        ([*PRETRAIN, "--reward-kwargs", '{"n_levles": 2}'], "n_levles"),
        ([*PRETRAIN, "--coverage-dims", "0"], "coverage_dims is for environments without a layout"),
        ([*PRETRAIN, "--out", "a_file"], "a_file is a file"),
        ([*PRETRAIN, "--out", "a_file/run"], "a_file/run: "),
    ],
)
def test_bad_input(capsys, tmp_path, argv, message):
    (tmp_path / "a_file").touch()
    assert message in refused(capsys, *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"], "something was written"


def test_an_interrupted_run_says_what_it_kept(capsys, tmp_path, monkeypatch):
    on_step = ExplorationCallback._on_step

    def interrupted(self: ExplorationCallback) -> bool:
        if self.num_timesteps > 1200:
            raise KeyboardInterrupt
        return on_step(self)

    monkeypatch.setattr(ExplorationCallback, "_on_step", interrupted)
    message = refused(capsys, *PRETRAIN, "--reward", "zero", "--steps", "5000", "--out", "run", "--quiet")
    assert "Interrupted after 1208 of 5000 steps" in message and "run/checkpoints/1208" in message.replace("\\", "/")
    assert (tmp_path / "run" / "checkpoints" / "1208" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "summary.json").exists()
    # What there is can still be drawn.
    main(["plot", "run", "--out", "c.png"])
    assert (tmp_path / "c.png").is_file()


def test_an_interruption_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(cli.Plot, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert refused(capsys, "plot", "run") == "exdm: Interrupted.\n"


def test_bugs_are_not_hidden(monkeypatch):
    def broken(self: cli.Plot) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.Plot, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["plot", "run"])


def test_debugging_shows_where_an_error_came_from(monkeypatch):
    monkeypatch.setenv("EXDM_DEBUG", "1")
    with pytest.raises(ValueError, match="does not exist"):
        main(["plot", "nowhere"])


# Plots --------------------------------------------------------------------------------------------------------------------


def test_plot(run_folder, capsys, tmp_path):
    main(["plot", str(run_folder), "--out", "pictures/c.png"])
    assert capsys.readouterr().out.replace("\\", "/") == "pictures/c.png\n"
    assert (tmp_path / "pictures" / "c.png").is_file()


def test_plot_refuses(run_folder, capsys, tmp_path):
    assert "name at least one run folder" in refused(capsys, "plot")
    assert "nowhere does not exist" in refused(capsys, "plot", str(run_folder), "nowhere")
    assert "does not end like a picture" in refused(capsys, "plot", str(run_folder), "--out", "c.txt")
    assert "has no 'loss'" in refused(capsys, "plot", str(run_folder), "--metric", "loss")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "config.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    assert "written by a newer sb3-exdm" in refused(capsys, "plot", str(newer))
    assert not (tmp_path / "coverage.png").exists()


# Benchmarks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, message",
    [
        (["coverage", "--seeds", "0"], "at least one seed"),
        (["coverage", "--jobs", "0"], "jobs must be"),
        (["coverage", "--steps", "-1"], "steps must be"),
        (["coverage", "--mazes", "SquareZ"], "there is no maze 'SquareZ'"),
        (["coverage", "--mazes"], "at least one maze"),
        (["coverage", "--rewards", "fame"], "Unknown reward 'fame'"),
        (["coverage", "--algo", "dqn"], "Unknown algorithm 'dqn'"),
        (["coverage", "--out", "a_file"], "a_file is a file"),
        (["estimator", "--seeds", "0"], "at least one seed"),
        (["estimator", "--fit-steps", "0"], "fit_steps must be"),
        (["estimator", "--rewards", "edp"], "scores actions"),
        (["estimator", "--rewards", "fame"], "Unknown reward 'fame'"),
        (["estimator", "--rewards"], "at least one reward"),
        (["throughput", "--repeats", "0"], "must be positive"),
    ],
)
def test_benchmarks_refuse(capsys, tmp_path, argv, message):
    (tmp_path / "a_file").touch()
    assert message in refused(capsys, "benchmark", *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]
