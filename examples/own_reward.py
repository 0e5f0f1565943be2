"""
Explore with an intrinsic reward of one's own: -log p(s) of a kernel density estimate over recently visited states.

A registered reward is available by its name in wrappers, replay buffers, recipes and run folders; on the command line with the
name of the module, as in "exdm pretrain --env Maze2d-SquareA-v0 --reward examples.own_reward:kde".
"""

import argparse
from pathlib import Path

import torch as th

import sb3_exdm


@sb3_exdm.register_reward("kde")
class KernelDensityReward(sb3_exdm.FittedReward):
    """
    Negative log-density of a state under Gaussian kernels at states in a memory.

    :param bandwidth: standard deviation of the kernels, in standard deviations of the visited states
    """

    name = "kde"

    def __init__(self, observation_space, action_space=None, *, bandwidth: float = 0.2, **kwargs):
        super().__init__(observation_space, action_space, **kwargs)
        self.bandwidth = bandwidth
        self.register_buffer("memory", th.zeros(1024, self.observation_dim, device=self.device))  # saved with the reward

    def _fit_batch(self, observations, actions):
        slots = th.randint(len(self.memory), (16,), generator=self.generator, device=self.device)
        states = th.randint(len(observations), (16,), generator=self.generator, device=self.device)
        self.memory[slots] = observations[states]
        return {"kde_spread": self.memory.std().item()}

    def _score_batch(self, observations, actions):
        distances = th.cdist(observations, self.memory) / self.bandwidth  # (batch, 1024)
        return -th.logsumexp(-distances.square() / 2, dim=1)  # (batch,), up to a constant


def main(argv: list[str] | None = None) -> float:
    """:return: state coverage"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-own-reward"))
    arguments = parser.parse_args(argv)

    run = sb3_exdm.pretrain(
        "Maze2d-SquareBottleneck-v0",
        arguments.steps,
        reward="kde",
        reward_kwargs=dict(bandwidth=0.1),
        seed=arguments.seed,
        policy_steps=0,  # no diffusion policy
        out=arguments.out,
        overwrite=True,
    )
    print(f"State coverage {run.summary['coverage']:.3f}.")
    print("Loaded from the run folder:", type(sb3_exdm.RunFolder(arguments.out).load_reward()).__name__)
    return run.summary["coverage"]


if __name__ == "__main__":
    main()
