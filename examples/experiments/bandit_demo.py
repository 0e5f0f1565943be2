"""
Improve a policy where the answer is known. A diffusion model learns the five modes of a bandit's behavior; its samples,
weighted by exp(Q / beta), then train a second model, and an energy that guides the first.
"""

import argparse
from pathlib import Path

import torch as th
from torch.optim.lr_scheduler import CosineAnnealingLR

from examples.experiments.bandit import action_value, behavior_samples, energy_distance, exact_samples, plot_bandit
from sb3_exdm.diffusion import DiffusionModel
from sb3_exdm.diffusion.energy import EnergyModel

SAMPLING = {"n_sampling_steps": 25, "grid": "quadratic"}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """:return: energy distance to the exact policy, by the name of the method"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bandit.png"))
    parser.add_argument("--beta", type=float, default=1 / 3, help="temperature: the smaller, the greedier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000, help="gradient steps of each model")
    arguments = parser.parse_args(argv)
    generator = th.Generator().manual_seed(arguments.seed)
    settings = {"ema_rate": 0.995, "learning_rate": 1e-2, "seed": arguments.seed}

    behavior, weighted = (DiffusionModel(2, net_arch=[128] * 3, frequencies=(3.0, 6.0), **settings) for _ in range(2))
    actions = behavior_samples(100_000, generator)
    decay = CosineAnnealingLR(behavior.optimizer, arguments.steps)
    for _ in range(arguments.steps):
        behavior.fit(actions[th.randint(len(actions), (512,), generator=generator)])
        decay.step()
    with th.no_grad():
        candidates = behavior.sample(32_768, **SAMPLING)
    energies = action_value(candidates) / arguments.beta
    guide = EnergyModel(2, frequencies=(1.5, 3.0), **settings)
    decays = [CosineAnnealingLR(model.optimizer, arguments.steps) for model in (weighted, guide)]
    for _ in range(arguments.steps):
        rows = th.randint(len(candidates), (512,), generator=generator)
        weighted.fit(candidates[rows], weight=len(rows) * energies[rows].softmax(dim=0))
        sets = rows.view(16, 32)  # 16 sets of 32 candidates
        guide.fit(candidates[sets], energies[sets])
        for decay in decays:
            decay.step()

    with th.no_grad():
        samples = {"behavior": behavior.sample(4000, **SAMPLING), "weighted": weighted.sample(4000, **SAMPLING)}
        samples["guided"] = behavior.sample(4000, **SAMPLING, guidance=guide.gradient)
    exact = exact_samples(arguments.beta, 8000, generator)
    distances = {name: energy_distance(drawn, exact) for name, drawn in samples.items()}
    print("Energy distance to the exact policy:", ", ".join(f"{name} {value:.4f}" for name, value in distances.items()))
    print("Picture:", plot_bandit(arguments.out, {arguments.beta: samples}))
    return distances


if __name__ == "__main__":
    main()
