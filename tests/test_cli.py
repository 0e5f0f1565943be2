"""The command line: what it accepts, what it prints, and how it refuses."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl

import sb3_exdm.cli.plot
from sb3_exdm.cli import COMMANDS, main
from sb3_exdm.common.serialization import FORMAT_VERSION
from sb3_exdm.exploration.callbacks import ExplorationCallback
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.policies import DiffusionActor
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.hyperparams import ALGORITHMS
from tests.conftest import refused

PRETRAIN = ["pretrain", "--env", "Maze2d-SquareA-v0"]
NO_POLICY = ["--policy-steps", "0"]
pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    main([*PRETRAIN, "--steps", "800", "--n-envs", "4", "--reward", "zero", "--out", str(folder), "--quiet", *NO_POLICY])
    return folder


# Help ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], [*COMMANDS, "--version", "--help"]),
        (
            ["pretrain"],
            ["--env", "--steps", "--seed", "--algo", "--reward", "--n-envs", "--out", "100000", *REWARDS, *ALGORITHMS],
        ),
        (["plot"], ["RUN", "--out", "--metric", "Example:"]),
        (["show"], ["RUN", "--out", "--open", "index.html"]),
        (["push"], ["RUN", "USER/NAME", "--private", "--no-transitions"]),
        (["pull"], ["USER/NAME", "--out", "--revision", "--overwrite"]),
        (["export"], ["RUN", "ID", "MINARI_DATASETS_PATH", "--author"]),
        (["doctor"], ["--out", "--json", "exit code"]),
        (["finetune"], ["--pretrained", "--policy", "--operator", "--reuse-data", "--eval-freq", "--video", *OPERATORS]),
        (["evaluate"], ["RUN", "--episodes", "--no-deterministic", "--video", "--json"]),
        (["clone"], ["SOURCE", "--out", "executes code"]),
        (["report"], ["RUN", "--score", "normalized_score"]),
        (["benchmark"], ["coverage", "finetune", "control"]),
        (["benchmark", "control"], ["--domain", "--rewards", "--methods", "--pretrain-steps", "walker"]),
        (["benchmark", "finetune"], ["--methods", "--reuse-data", "--pretrain-steps", "--report-only", "SquareLarge"]),
        (["benchmark", "coverage"], ["--mazes", "--rewards", "--seeds", "--jobs", "SquareBottleneck"]),
    ],
)
def test_help(capsys, argv, words):
    try:
        main([*argv, "--help"])
    except SystemExit as stop:
        assert not stop.code
    text = capsys.readouterr().out
    assert [word for word in words if word not in text] == []
    assert "noqa" not in text and ":func:" not in text


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"exdm {sb3_exdm.__version__}\n"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["pretain"], "There is no command 'pretain'. Did you mean 'pretrain'?"),
        (["frobnicate"], "There is no command 'frobnicate'. Choose one of pretrain,"),
        (["pretrain"], "--env is required"),
        ([*PRETRAIN, "--sedd", "3"], "There is no flag '--sedd' (did you mean '--seed'?)"),
        ([*PRETRAIN, "--steps", "many"], "Error parsing --steps: invalid literal for int() with base 10: 'many'"),
        (["finetune", "--opertor=idql"], "There is no flag '--opertor=idql' (did you mean '--operator'?)"),
        ([*PRETRAIN, "--steps"], "'--steps'"),
    ],
)
def test_malformed_command_lines(capsys, argv, message):
    said = refused(capsys, *argv)
    assert message in said and "--help" in said


def test_help_does_not_wait_for_pytorch(tmp_path):
    """The process has the name of the installed command."""
    script = tmp_path / "exdm"
    script.write_text("import sys\nfrom sb3_exdm.cli import main\nmain(['--help'])\nassert 'torch' not in sys.modules\n")
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout.startswith(
        "usage: exdm"
    )


@pytest.mark.slow
def test_a_module_of_the_user_sees_the_public_names_inside_of_the_command(tmp_path):
    script = tmp_path / "exdm"
    script.write_text("import sb3_exdm\nprint(sb3_exdm.register_reward.__name__, hasattr(sb3_exdm, 'nothing'))\n")
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout.endswith(" False\n")


@pytest.mark.slow
def test_the_command_as_a_process(tmp_path):
    command = [sys.executable, "-m", "sb3_exdm", "plot", "nowhere"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr == "exdm: The run folder nowhere does not exist.\n"


# Pre-training -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretrain(capsys, tmp_path):
    argv = [
        "--steps",
        "2200",
        "--seed",
        "3",
        "--policy-steps",
        "5",
        "--reward-kwargs",
        '{"n_levels": 2}',
        "--algo-kwargs",
        '{"batch_size": 32}',
    ]
    main([*PRETRAIN, *argv])
    folder = tmp_path / "runs" / "Maze2d-SquareA-v0-sac-score-3"
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert config["reward_kwargs"] == {"n_levels": 2} and config["algo_kwargs"]["batch_size"] == 32
    assert (summary["seed"], summary["timesteps"]) == (3, 2200)
    printed = capsys.readouterr().out
    assert "Maze2d-SquareA-v0: 2,200 steps in" in printed and "steps/s while training)" in printed
    assert f"state coverage: {summary['coverage']:.3f}" in printed
    for picture in ("coverage.png", "visits.png", "reward.png"):
        assert f"runs/Maze2d-SquareA-v0-sac-score-3/{picture}" in printed.replace("\\", "/")
        assert (folder / picture).is_file()


@pytest.mark.slow
def test_pretrain_of_other_environments_counts_bins(capsys):
    argv = ["pretrain", "--env", "CartPole-v1", "--algo", "ppo", "--reward", "zero", "--steps", "64", "--n-envs", "2"]
    main([*argv, "--coverage-dims", "2", "0", "--algo-kwargs", '{"n_steps": 32, "batch_size": 32}', "--out", "run"])
    assert "visited bins: " in capsys.readouterr().out


@pytest.mark.slow
def test_quiet(run_folder, capsys):
    argv = [*PRETRAIN, "--steps", "64", "--reward", "zero", *NO_POLICY, "--quiet", "--out", "quiet"]
    main(argv)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.slow
def test_a_run_is_replaced_only_if_asked_for(capsys, tmp_path):
    argv = [*PRETRAIN, "--steps", "64", "--reward", "zero", *NO_POLICY, "--quiet", "--out", "run"]
    main(argv)
    assert "already holds a run" in refused(capsys, *argv)
    main([*argv, "--overwrite", "--seed", "1"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "argv, message",
    [
        (["pretrain", "--env", "Nowhere-v0"], "Cannot make the environment 'Nowhere-v0'"),
        (["pretrain", "--env", "no_such_module:Nowhere-v0"], "Cannot import the module 'no_such_module'"),
        (["pretrain", "--env", "CartPole-v1"], "needs continuous actions"),
        (["pretrain", "--env", "Pendulum-v1", "--coverage-dims", "7"], "dimensions from 0 to 2, got [7]"),
        ([*PRETRAIN, "--reward", "fame"], "Unknown reward 'fame'; choose one of"),
        ([*PRETRAIN, "--algo", "dqn"], "Unknown algo 'dqn'; choose one of sac,"),
        ([*PRETRAIN, "--steps", "-5"], "total_timesteps must be an integer of at least 1, got -5."),
        ([*PRETRAIN, "--steps", "0"], "total_timesteps must be an integer of at least 1, got 0."),
        ([*PRETRAIN, "--threads", "0"], "threads must be an integer of at least 1"),
        ([*PRETRAIN, "--n-envs", "0"], "n_envs must be"),
        ([*PRETRAIN, "--seed", "-1"], "seed must be"),
        ([*PRETRAIN, "--device", "abacus"], "Unknown device 'abacus'"),
        ([*PRETRAIN, "--env-kwargs", "{goal"], "Error parsing --env-kwargs: expected JSON"),
        ([*PRETRAIN, "--algo-kwargs", "[1]"], "Error parsing --algo-kwargs: expected a JSON object"),
        ([*PRETRAIN, "--reward-kwargs", '{"n_levles": 2}'], "n_levles"),
        ([*PRETRAIN, "--coverage-dims", "0"], "coverage_dims and bin_width are for environments without a map"),
        ([*PRETRAIN, "--out", "a_file"], "a_file is a file"),
        ([*PRETRAIN, "--out", "a_file/run"], "a_file/run: "),
    ],
)
def test_bad_input(capsys, tmp_path, argv, message):
    (tmp_path / "a_file").touch()
    assert message in refused(capsys, *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"], "something was written"


@pytest.mark.slow
def test_an_interrupted_run_says_what_it_kept(capsys, tmp_path, monkeypatch):
    on_step = ExplorationCallback._on_step

    def interrupted(self: ExplorationCallback) -> bool:
        if self.num_timesteps > 1200:
            signal.raise_signal(signal.SIGINT)
        return on_step(self)

    monkeypatch.setattr(ExplorationCallback, "_on_step", interrupted)
    message = refused(capsys, *PRETRAIN, "--reward", "zero", "--steps", "5000", "--out", "run", "--quiet")
    assert "Interrupted after 1208 of 5000 steps" in message and "saved in run, checkpoint 1208" in message
    assert (tmp_path / "run" / "checkpoints" / "1208" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "summary.json").exists()
    # What there is can still be drawn.
    main(["plot", "run", "--out", "c.png"])
    assert (tmp_path / "c.png").is_file()


def test_an_interruption_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(sb3_exdm.cli.plot, "run", lambda argv: (_ for _ in ()).throw(KeyboardInterrupt))
    assert refused(capsys, "plot", "run") == "exdm: Interrupted.\n"


def test_bugs_are_not_hidden(monkeypatch):
    def broken(argv: list[str]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sb3_exdm.cli.plot, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["plot", "run"])


def test_debugging_shows_where_an_error_came_from(monkeypatch):
    monkeypatch.setenv("EXDM_DEBUG", "1")
    with pytest.raises(ValueError, match="does not exist"):
        main(["plot", "nowhere"])


# Fine-tuning, evaluation, behavior cloning --------------------------------------------------------------------------

SMALL = '{"policy_kwargs": {"net_arch": [16, 16]}, "learning_starts": 300}'
GOAL = '{"goal_radius": 50.0}'  # everyone succeeds


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored") / "run"
    argv = ["--steps", "600", "--reward", "zero", "--policy-steps", "20", "--algo-kwargs", SMALL, "--checkpoint-freq", "0"]
    main([*PRETRAIN, *argv, "--out", str(folder), "--quiet"])
    return folder


@pytest.fixture(scope="module")
def adapted(explored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "run"
    small = '{"policy_kwargs": {"net_arch": [16]}, "learning_starts": 100, "batch_size": 16}'
    argv = ["--pretrained", str(explored), "--steps", "200", "--n-eval-episodes", "4", "--env-kwargs", GOAL]
    main(
        [
            "finetune",
            *argv,
            "--algo-kwargs",
            small,
            "--seed",
            "2",
            "--reuse-data",
            "--offline-updates",
            "3",
            "--out",
            str(folder),
            "--quiet",
        ]
    )
    return folder


@pytest.mark.slow
def test_finetune(capsys, tmp_path, explored):
    argv = ["finetune", "--pretrained", str(explored), "--steps", "160", "--eval-freq", "80", "--n-eval-episodes", "3"]
    main([*argv, "--operator", "idql", "--operator-kwargs", '{"expectile": 0.8}', "--seed", "5", "--env-kwargs", GOAL])
    folder = tmp_path / "runs" / "Maze2d-SquareA-v0-diffusion-idql-pretrained-5"
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    assert config["operator_kwargs"] == {"expectile": 0.8} and config["n_eval_episodes"] == 3
    assert (summary["seed"], summary["timesteps"], summary["success_rate"]) == (5, 160, 1.0)
    assert len((folder / "progress.csv").read_text().splitlines()) == 1 + 3
    printed = capsys.readouterr().out.replace("\\", "/")
    for words in (
        "Maze2d-SquareA-v0: 160 steps in",
        "success rate: 100.0%",
        "mean reward: ",
        "run folder: runs/Maze2d-SquareA-v0-diffusion-idql-pretrained-5",
        "pictures: runs/Maze2d-SquareA-v0-diffusion-idql-pretrained-5/learning_curve.png",
    ):
        assert words in printed


@pytest.mark.slow
def test_finetune_the_gaussian_or_from_scratch(capsys, tmp_path, explored):
    argv = ["finetune", "--policy", "gaussian", "--steps", "16", "--n-eval-episodes", "2"]
    main([*argv, "--pretrained", str(explored)])
    assert (tmp_path / "runs" / "Maze2d-SquareA-v0-gaussian-sac-pretrained-0" / "summary.json").is_file()
    main([*argv, "--env", "Pendulum-v1", "--n-envs", "2", "--out", "scratch"])
    assert json.loads((tmp_path / "scratch" / "config.json").read_text())["pretrained"] is None
    printed = capsys.readouterr().out
    assert printed.count("success rate: ") == 1, "Pendulum has no successes"
    assert printed.count("mean reward: ") == 2


@pytest.mark.slow
def test_quiet_finetune(adapted, capsys, explored):
    main(["finetune", "--pretrained", str(explored), "--steps", "8", "--n-eval-episodes", "1", "--quiet", "--out", "quiet"])
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.slow
def test_evaluate(adapted, explored, capsys):
    main(["evaluate", str(adapted), "--episodes", "3"])
    printed = capsys.readouterr().out
    assert printed.startswith("success rate: 100.0%\nmean reward: ") and "(3 episodes of" in printed
    elsewhere = ["--env-kwargs", '{"goal_cell": "farthest"}']
    main(["evaluate", str(adapted), "--episodes", "3", "--json", "--no-deterministic", *elsewhere])
    figures = json.loads(capsys.readouterr().out)
    assert figures["n_episodes"] == 3 and figures["success_rate"] == figures["mean_reward"] == 0.0
    # The file of a diffusion policy knows no environment.
    policy = str(explored / "policy.safetensors")
    main(["evaluate", policy, "--env", "Maze2d-SquareA-v0", "--episodes", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["mean_length"] == 50
    assert "Name the environment" in refused(capsys, "evaluate", policy)


@pytest.mark.slow
def test_clone(explored, capsys, tmp_path):
    main(["clone", str(explored), "--out", "again", "--steps", "3", "--policy-kwargs", '{"net_arch": [8]}'])
    assert capsys.readouterr().out == "diffusion policy: again\n"
    actor = DiffusionActor.load(tmp_path / "again" / "policy.safetensors")
    assert actor.config["net_arch"] == [8]
    buffer = ReplayBuffer(10, actor.observation_space, actor.action_space)
    for _ in range(10):
        buffer.add(np.zeros(2), np.zeros(2), np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    save_to_pkl("buffer.pkl", buffer)
    main(["clone", "buffer.pkl", "--out", "p.safetensors", "--steps", "1", "--quiet", "--allow-pickle"])
    assert capsys.readouterr().out == "" and (tmp_path / "p.safetensors").is_file()


FINETUNE = ["finetune", "--env", "Maze2d-SquareA-v0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, message",
    [
        (["finetune"], "Name an environment, or the run folder"),
        (["finetune", "--pretrained", "nowhere"], "The run folder nowhere does not exist"),
        (["finetune", "--env", "Nowhere-v0"], "Cannot make the environment 'Nowhere-v0'"),
        ([*FINETUNE, "--policy", "poker"], "Unknown policy 'poker'; choose one of diffusion, gaussian"),
        ([*FINETUNE, "--operator", "hope"], "Unknown operator 'hope'; choose one of select,"),
        ([*FINETUNE, "--reuse-data"], "needs the run folder of a pre-training"),
        ([*FINETUNE, "--steps", "0"], "total_timesteps must be an integer of at least 1, got 0."),
        ([*FINETUNE, "--threads", "0"], "threads must be an integer of at least 1"),
        ([*FINETUNE, "--n-envs", "0"], "n_envs must be"),
        ([*FINETUNE, "--eval-freq", "0"], "eval_freq must be"),
        ([*FINETUNE, "--offline-updates", "-1"], "offline_updates must be"),
        ([*FINETUNE, "--device", "abacus"], "Unknown device 'abacus'"),
        ([*FINETUNE, "--operator-kwargs", "{beta"], "Error parsing --operator-kwargs: expected JSON"),
        ([*FINETUNE, "--algo-kwargs", '{"learning_rat": 1}'], "learning_rat"),
        ([*FINETUNE, "--out", "a_file"], "a_file is a file"),
        (["evaluate", "nowhere"], "nowhere is neither a run folder nor the file of a policy"),
        (["evaluate", "a_file", "--env-kwargs", "[1]"], "Error parsing --env-kwargs: expected a JSON object"),
        (["evaluate", "a_file", "--episodes", "0"], "n_episodes must be an integer of at least 1"),
        (["clone", "nowhere", "--out", "p.safetensors"], "nowhere is neither a run folder"),
        (["clone", "a_file", "--out", "p.safetensors"], "a_file is not a saved replay buffer"),
        (["clone", "a_file", "--out", "p.safetensors", "--steps", "0"], "gradient_steps must be an integer of at least 1"),
    ],
)
def test_bad_input_of_the_others(capsys, tmp_path, argv, message):
    (tmp_path / "a_file").touch()
    assert message in refused(capsys, *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"], "something was written"


# Plots --------------------------------------------------------------------------------------------------------------------


def test_plot(run_folder, capsys, tmp_path):
    main(["plot", str(run_folder), "--out", "pictures/c.png"])
    assert capsys.readouterr().out.replace("\\", "/") == "pictures/c.png\n"
    assert (tmp_path / "pictures" / "c.png").is_file()


@pytest.mark.slow
def test_plot_of_fine_tuning(run_folder, adapted, capsys, tmp_path):
    main(["plot", str(adapted)])
    assert capsys.readouterr().out == "success_rate.png\n"
    assert (tmp_path / "success_rate.png").is_file()
    main(["plot", str(adapted), "--metric", "mean_reward", "--out", "returns.svg"])
    assert capsys.readouterr().out == "returns.svg\n"
    assert "have different metrics; plot them separately" in refused(capsys, "plot", str(run_folder), str(adapted))


def test_plot_refuses(run_folder, capsys, tmp_path):
    assert "name at least one run folder" in refused(capsys, "plot")
    assert "nowhere does not exist" in refused(capsys, "plot", str(run_folder), "nowhere")
    assert "is not the name of an image file" in refused(capsys, "plot", str(run_folder), "--out", "c.txt")
    assert "has no 'loss'" in refused(capsys, "plot", str(run_folder), "--metric", "loss")
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "config.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    assert "written by a newer sb3-exdm" in refused(capsys, "plot", str(newer))
    assert not (tmp_path / "coverage.png").exists()


# Benchmarks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, message",
    [
        (["coverage", "--seeds", "0"], "seeds must name at least one"),
        (["coverage", "--jobs", "0"], "jobs must be"),
        (["coverage", "--steps", "-1"], "steps must be"),
        (["coverage", "--mazes", "SquareZ"], "There is no maze 'SquareZ'"),
        (["coverage", "--mazes"], "mazes must name at least one"),
        (["coverage", "--rewards", "fame"], "Unknown reward 'fame'"),
        (["coverage", "--algo", "dqn"], "Unknown algo 'dqn'"),
        (["coverage", "--out", "a_file"], "a_file is a file"),
        (["finetune", "--seeds", "0"], "seeds must name at least one"),
        (["finetune", "--jobs", "0"], "jobs must be"),
        (["finetune", "--steps", "0"], "steps must be"),
        (["finetune", "--pretrain-steps", "0"], "pretrain_steps must be"),
        (["finetune", "--mazes", "SquareZ"], "There is no maze 'SquareZ'"),
        (["finetune", "--methods", "hope"], "Unknown method 'hope'; choose one of select,"),
        (["finetune", "--methods"], "methods must name at least one"),
        (["finetune", "--reuse-data", "maybe"], "Unknown reuse_data 'maybe'"),
        (["finetune", "--reuse-data", "yes", "--methods", "scratch"], "no data to reuse"),
        (["finetune", "--out", "a_file"], "a_file is a file"),
        (["finetune", "--report-only"], "no complete run"),
    ],
)
def test_benchmarks_refuse(capsys, tmp_path, argv, message):
    (tmp_path / "a_file").touch()
    assert message in refused(capsys, "benchmark", *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]
