"""
Check Theorems 3.1 and 3.2 of ExDM (arXiv 2502.07279) on small random MDPs, without sampling or learning.

Theorem 3.1: the policy with the maximum entropy of the state distribution is in general not deterministic. In a few MDPs a
deterministic policy is optimal, which the duality gap proves too.

Theorem 3.2: rounds of ``π_n ∝ π_d exp(Q_{n-1} / β)`` from ``π_0 = π_d`` never lower

``J_f(π) = J(π) - β / (1 - γ) E_{s ~ d_π} KL(π || π_d)``

and converge to its maximum. This holds if Q includes the KL of all later steps, but not that of the current one: a round is
then a step of soft policy iteration. With the plain Q of J there is no such guarantee, only

``J_f(π_n) >= J(π_{n-1}) - β / (1 - γ) E_{s ~ d_{π_n}} KL(π_{n-1} || π_d)``,

where the KL of the old policy is weighted by the states of the new one. So the first round never lowers J_f, as ``π_0`` has
no KL. Later rounds can lower it, and their limit is in general not its maximum. Both kinds of Q are measured.

Example: python examples/experiments/theorems.py --n-mdps 200
"""

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sb3_exdm.plots.style import COLORS, check_picture_path, new_figure, save_figure

GAMMA = 0.9
BETAS = {"1": 1.0, "1/3": 1 / 3, "0.1": 0.1}  # the paper's is 1/3
N_ROUNDS = 8
N_BACKUPS = 350  # each reduces an error of at most 10 by a tenth: 1e-15 remains
ROUND_OFF = 1e-12  # J_f is at most 10, with a round-off of about 1e-14
MARGIN = 1e-9  # smallest difference of entropies that counts


class MDP(NamedTuple):
    """Markov decision process with ``S`` states and ``A`` actions."""

    transitions: np.ndarray  # (S, A, S)
    rewards: np.ndarray  # (S, A)
    start: np.ndarray  # (S,)
    prior: np.ndarray  # the pre-trained policy π_d, (S, A)


def random_mdp(rng: np.random.Generator) -> MDP:
    """Random MDP with 3 to 5 states and 2 or 3 actions."""
    n_states, n_actions = int(rng.integers(3, 6)), int(rng.integers(2, 4))
    return MDP(
        # Below 1, an action has few likely outcomes. At 1 it has many, and actions matter little.
        transitions=rng.dirichlet(np.full(n_states, 0.3), (n_states, n_actions)),
        rewards=rng.uniform(size=(n_states, n_actions)),
        start=rng.dirichlet(np.ones(n_states)),
        prior=rng.dirichlet(np.ones(n_actions), n_states),
    )


def state_transitions(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Probabilities of the next state under a policy, (S, S)."""
    return np.einsum("sa,sat->st", policy, mdp.transitions)


def occupancy(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """State distribution ``d_π(s) = (1 - γ) Σ_t γ^t P(s_t = s)``, (S,)."""
    flow = np.eye(len(mdp.start)) - GAMMA * state_transitions(mdp, policy).T
    return np.linalg.solve(flow, (1 - GAMMA) * mdp.start)


def entropy(distribution: np.ndarray) -> np.ndarray:
    """Entropy in nats, over the last axis."""
    return -(distribution * np.log(distribution)).sum(axis=-1)


def deterministic_occupancies(mdp: MDP) -> np.ndarray:
    """Occupancy of every deterministic policy, (A^S, S). Those of all policies are their convex hull."""
    n_states, n_actions = mdp.rewards.shape
    choices = itertools.product(np.eye(n_actions), repeat=n_states)
    return np.stack([occupancy(mdp, np.stack(choice)) for choice in choices])


def duality_gap(visits: np.ndarray, corners: np.ndarray) -> float:
    """
    Upper bound on how much the entropy of any policy exceeds that of ``visits``. The entropy is concave, so it lies below its
    tangent, whose maximum over a convex hull is at a corner.

    :param visits: occupancy of a policy, (S,)
    :param corners: occupancies from :func:`deterministic_occupancies`
    """
    return float(((corners - visits) @ -np.log(visits)).max())


def most_entropic_policy(mdp: MDP) -> np.ndarray:
    """
    Maximize ``H(d) + μ Σ log x`` over ``x(s, a) > 0`` with ``d(s) = Σ_a x(s, a)``, by Newton steps, while ``μ`` falls to 0.

    :return: policy with the maximum entropy of its occupancy, (S, A); :func:`duality_gap` bounds its error
    """
    n_states, n_actions = mdp.rewards.shape
    to_state = np.repeat(np.eye(n_states), n_actions, axis=1)  # (S, S A)
    flow = to_state - GAMMA * mdp.transitions.reshape(-1, n_states).T  # flow @ x = (1 - γ) start
    uniform = np.full((n_states, n_actions), 1 / n_actions)
    x = (occupancy(mdp, uniform)[:, None] * uniform).ravel()
    for barrier in 10.0 ** -np.arange(2, 13):
        decrement = np.inf
        while decrement > 0.01 * barrier:
            visits = to_state @ x
            # In units of x, because of the condition number. The gradient of H is -log d - 1; the 1 has no effect, as x sums
            # to 1.
            gradient = -x * (to_state.T @ np.log(visits)) + barrier
            scaled = to_state * x
            hessian = -(scaled.T / visits) @ scaled - barrier * np.eye(len(x))
            system = np.block([[hessian, (flow * x).T], [flow * x, np.zeros((n_states, n_states))]])
            step = np.linalg.solve(system, np.concatenate([-gradient, np.zeros(n_states)]))[: len(x)]
            decrement = gradient @ step
            x *= 1 + step / max(1.0, -step.min() / 0.9)  # stay positive
    shares = x.reshape(n_states, n_actions)
    return shares / shares.sum(axis=1, keepdims=True)


def divergence(policy: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """``KL(π || π_d)`` in every state, (S,)."""
    return (policy * np.log(np.where(policy > 0, policy, prior) / prior)).sum(axis=1)


def objective(mdp: MDP, policy: np.ndarray, beta: float) -> float:
    """Objective ``J_f(π)``."""
    gain = (policy * mdp.rewards).sum(axis=1) - beta * divergence(policy, mdp.prior)
    return float(occupancy(mdp, policy) @ gain) / (1 - GAMMA)


def q_values(mdp: MDP, policy: np.ndarray, beta: float) -> np.ndarray:
    """Q of the rewards minus ``β KL`` of all later steps, (S, A); with ``beta = 0`` the plain Q of the policy."""
    gain = (policy * mdp.rewards).sum(axis=1) - beta * divergence(policy, mdp.prior)
    values = np.linalg.solve(np.eye(len(gain)) - GAMMA * state_transitions(mdp, policy), gain)
    return mdp.rewards + GAMMA * mdp.transitions @ values


def tilt(prior: np.ndarray, q: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Policy ``π_d exp(Q / β) / Z``, (S, A), and ``β log Z``, (S,), the maximum of ``E_π Q - β KL``."""
    logits = np.log(prior) + q / beta
    top = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(axis=1, keepdims=True)
    return weights / total, beta * (top + np.log(total))[:, 0]


def alternate(mdp: MDP, beta: float, plain: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """
    Alternate Q and policy, as in Theorem 3.2.

    :param plain: use the Q of J instead of that of J_f
    :return: ``J_f`` of ``π_0, π_1, ...``, (N_ROUNDS + 1,), and the last policy, (S, A)
    """
    policies = [mdp.prior]
    for _ in range(N_ROUNDS):
        q = q_values(mdp, policies[-1], 0.0 if plain else beta)
        policies.append(tilt(mdp.prior, q, beta)[0])
    return np.array([objective(mdp, policy, beta) for policy in policies]), policies[-1]


def soft_value_iteration(mdp: MDP, beta: float) -> tuple[float, np.ndarray]:
    """Maximum of ``J_f`` and the policy that attains it, (S, A), by value iteration instead of :func:`alternate`."""
    values = np.zeros(len(mdp.start))
    for _ in range(N_BACKUPS):
        policy, values = tilt(mdp.prior, mdp.rewards + GAMMA * mdp.transitions @ values, beta)
    return float(mdp.start @ values), policy


def check_entropy(mdps: list[MDP]) -> tuple[np.ndarray, np.ndarray]:
    """``log S`` minus the entropy of the best deterministic and of the best policy, (n, 2), and duality gaps, (n,)."""
    lacks, gaps = [], []
    for mdp in mdps:
        corners, visits = deterministic_occupancies(mdp), occupancy(mdp, most_entropic_policy(mdp))
        most = np.log(len(mdp.start))
        lacks.append((most - entropy(corners).max(), most - entropy(visits)))
        gaps.append(duality_gap(visits, corners))
    return np.array(lacks), np.array(gaps)


def draw(lacks: np.ndarray, gaps: dict[tuple[str, bool], np.ndarray], path: Path) -> None:
    """
    Plot both checks.

    :param lacks: entropies from :func:`check_entropy`
    :param gaps: maximum minus ``J_f`` by the name of β and the kind of Q, (n, N_ROUNDS + 1)
    :param path: file
    """
    figure = new_figure(10.0, 4.0)
    left, right = figure.subplots(1, 2)

    shares = np.arange(1, len(lacks) + 1) / len(lacks)
    for color, lack, label in zip(COLORS, lacks.T, ("best deterministic policy", "best policy"), strict=False):
        # A uniform state distribution lacks nothing, which has no place on a logarithmic axis.
        left.step(np.sort(lack).clip(1e-9), shares, where="post", color=color, linewidth=2.2, label=label)
    left.set(xscale="log", xlim=(1e-5, 1), ylim=(0, 1.02))
    left.set(xlabel="entropy below that of uniform visits (nats)", ylabel="fraction of MDPs with at most this")
    left.set_title("Theorem 3.1: maximum state entropy", fontsize=11)

    rounds, dashes = np.arange(N_ROUNDS + 1), (0, (3, 2))
    for (name, plain), gap in gaps.items():
        color, median = COLORS[list(BETAS).index(name)], np.median(gap, axis=0).clip(1e-15)
        if plain:
            right.plot(rounds, median, color=color, linestyle=dashes, linewidth=1.5)
        else:
            right.plot(rounds, median, color=color, marker="o", markersize=4, linewidth=2.2, label=f"β = {name}")
    right.plot([], [], color="#555555", linestyle=dashes, linewidth=1.5, label="with the plain Q")
    right.axhspan(1e-15, ROUND_OFF, color="#EEEEEE", zorder=0)
    right.text(N_ROUNDS, 1e-13, "round-off", fontsize=8, color="#555555", ha="right", va="center")
    right.set(yscale="log", ylim=(1e-14, 10), xlabel="round", ylabel="maximum minus $J_f$ (median of MDPs)")
    right.set_title("Theorem 3.2: alternating Q and policy", fontsize=11)

    for axes, place in ((left, "upper left"), (right, "center right")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(loc=place, frameon=False)
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> float:
    """
    Check both theorems and draw the results.

    :param argv: flags
    :return: fraction of the MDPs in which some policy has more entropy than every deterministic one
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the MDPs")
    parser.add_argument("--n-mdps", type=int, default=200, help="number of MDPs")
    parser.add_argument("--out", type=Path, default=Path("runs/theorems.png"), help="picture to write")
    arguments = parser.parse_args(argv)
    if arguments.n_mdps < 1:
        parser.error(f"--n-mdps must be at least 1, got {arguments.n_mdps}")
    path = check_picture_path(arguments.out)
    rng = np.random.default_rng(arguments.seed)
    mdps = [random_mdp(rng) for _ in range(arguments.n_mdps)]

    lacks, duality = check_entropy(mdps)
    gains = lacks[:, 0] - lacks[:, 1]
    better, equal = gains > MARGIN, gains + duality <= MARGIN
    print(f"Theorem 3.1, {len(mdps)} MDPs: in {better.mean():.1%} some policy has more entropy than every deterministic one,")
    print(f"  in {equal.mean():.1%} a deterministic one is the best, {(~better & ~equal).mean():.1%} are undecided.")
    print(f"  Proven: no policy exceeds the one found by more than {duality.max():.1e} nats.")
    print(f"  Gain over the best deterministic policy: {gains.mean():.4f} nats on average, {gains.max():.4f} at most.")
    print(f"  Below uniform visits, mean: {lacks[:, 0].mean():.4f} nats deterministic, {lacks[:, 1].mean():.4f} at best.")

    gaps = {}
    for name, beta in BETAS.items():
        best = np.array([soft_value_iteration(mdp, beta)[0] for mdp in mdps])
        print(f"Theorem 3.2, β = {name}:")
        for plain in (False, True):
            rounds = np.stack([alternate(mdp, beta, plain)[0] for mdp in mdps])  # (n, N_ROUNDS + 1)
            gap = gaps[name, plain] = best[:, None] - rounds
            falls = (np.diff(rounds) < -ROUND_OFF).any(axis=1).mean()
            missing = np.abs(gap[:, -1])
            print(
                f"  With the {'plain Q of J' if plain else 'Q of J_f'}, J_f falls in some round in {falls:.1%} of the MDPs "
                f"and ends {np.median(missing):.0e} (worst: {missing.max():.0e}) from its maximum."
            )
    draw(lacks, gaps, path)
    print(f"Picture: {path}")
    return float(better.mean())


if __name__ == "__main__":
    main()
