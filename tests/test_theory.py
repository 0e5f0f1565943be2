"""The script that checks the theorems: its parts against closed forms and other ways to compute the same."""

import numpy as np
import pytest

from examples.experiments import theorems as theory

all_betas = pytest.mark.parametrize("beta", theory.BETAS.values())


def random_mdps(n, seed=0):
    rng = np.random.default_rng(seed)
    return [theory.random_mdp(rng) for _ in range(n)]


def random_policy(mdp, rng):
    return rng.dirichlet(np.ones(mdp.rewards.shape[1]), len(mdp.start))


def mdp_without_rewards(transitions, start):
    transitions = np.asarray(transitions, dtype=float)
    uniform = np.full(transitions.shape[:2], 1 / transitions.shape[1])
    return theory.MDP(transitions, np.zeros(transitions.shape[:2]), np.asarray(start, dtype=float), uniform)


def two_rooms(share):
    """Two states; an action is the number of the next one. ``share`` of the agents start in the first."""
    return mdp_without_rewards([np.eye(2), np.eye(2)], [share, 1 - share])


class TestOccupancy:
    def test_is_the_discounted_sum_over_time(self):
        rng = np.random.default_rng(1)
        for mdp in random_mdps(20):
            policy = random_policy(mdp, rng)
            now, visits, gain = mdp.start, np.zeros_like(mdp.start), 0.0
            for step in range(400):
                joint = now[:, None] * policy  # (S, A)
                visits = visits + (1 - theory.GAMMA) * theory.GAMMA**step * now
                gain += theory.GAMMA**step * (joint * (mdp.rewards - 0.5 * np.log(policy / mdp.prior))).sum()
                now = np.tensordot(joint, mdp.transitions, 2)
            assert theory.occupancy(mdp, policy).sum() == pytest.approx(1, abs=1e-13)
            np.testing.assert_allclose(theory.occupancy(mdp, policy), visits, atol=1e-13)
            assert theory.objective(mdp, policy, 0.5) == pytest.approx(gain, abs=1e-12)

    def test_agrees_with_a_simulation(self):
        mdp = random_mdps(1)[0]
        policy, rng, n = random_policy(mdp, np.random.default_rng(1)), np.random.default_rng(2), 20_000
        cumulative = theory.state_transitions(mdp, policy).cumsum(axis=1)
        states = rng.choice(len(mdp.start), n, p=mdp.start)
        # A walk that stops with probability 1 - γ before every step ends where the occupancy says.
        lengths = rng.geometric(1 - theory.GAMMA, n) - 1
        for step in range(lengths.max()):
            following = (rng.random((n, 1)) > cumulative[states]).sum(axis=1).clip(max=len(mdp.start) - 1)
            states = np.where(step < lengths, following, states)
        np.testing.assert_allclose(np.bincount(states) / n, theory.occupancy(mdp, policy), atol=0.02)

    def test_deterministic_policies_are_the_corners(self):
        mdp = random_mdps(1)[0]
        n_states, n_actions = mdp.rewards.shape
        corners, rng = theory.deterministic_occupancies(mdp), np.random.default_rng(1)
        assert corners.shape == (n_actions**n_states, n_states)
        for _ in range(100):
            direction, policy = rng.normal(size=n_states), random_policy(mdp, rng)
            assert theory.occupancy(mdp, policy) @ direction <= (corners @ direction).max() + 1e-12


class TestEntropy:
    def test_no_policy_has_more(self):
        rng, n_better = np.random.default_rng(1), 0
        for mdp in random_mdps(60):
            policy, corners = theory.most_entropic_policy(mdp), theory.deterministic_occupancies(mdp)
            np.testing.assert_allclose(policy.sum(axis=1), 1)
            assert (policy >= 0).all()
            visits = theory.occupancy(mdp, policy)
            gap, most = theory.duality_gap(visits, corners), theory.entropy(visits)
            assert -1e-12 < gap < 1e-9
            assert (theory.entropy(corners) <= most + gap + 1e-12).all()
            for _ in range(20):
                assert theory.entropy(theory.occupancy(mdp, random_policy(mdp, rng))) <= most + gap
            # By another way: the best deterministic policy is the best of all if and only if its own gap is closed.
            best = corners[theory.entropy(corners).argmax()]
            is_better = most > theory.entropy(best) + 1e-9
            assert is_better == (theory.duality_gap(best, corners) > 1e-7)
            n_better += is_better
        assert 50 <= n_better < 60  # in general, but not always

    def test_gap_bounds_what_is_missing(self):
        """And is wide open for a policy that is far from the best."""
        rng, gaps = np.random.default_rng(1), []
        for mdp in random_mdps(20):
            most = theory.entropy(theory.occupancy(mdp, theory.most_entropic_policy(mdp)))
            visits = theory.occupancy(mdp, random_policy(mdp, rng))
            gaps.append(theory.duality_gap(visits, theory.deterministic_occupancies(mdp)))
            assert most - theory.entropy(visits) <= gaps[-1]
        assert np.median(gaps) > 0.01

    @pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
    def test_two_states_at_will(self, share):
        """Half the time in each is possible. The best that a deterministic policy can do is to change rooms at every step."""
        mdp = two_rooms(share)
        first = (share + theory.GAMMA * (1 - share)) / (1 + theory.GAMMA)
        expected = -first * np.log(first) - (1 - first) * np.log(1 - first)
        assert theory.entropy(theory.deterministic_occupancies(mdp)).max() == pytest.approx(expected, abs=1e-12)
        most = theory.entropy(theory.occupancy(mdp, theory.most_entropic_policy(mdp)))
        assert most == pytest.approx(np.log(2), abs=1e-10)
        assert (most > expected + 1e-4) == (share != 0.5)

    def test_a_start_that_cannot_be_made_up_for(self, monkeypatch):
        """0.95 of the start in the first room and little time: leaving for good at once is the best there is."""
        monkeypatch.setattr(theory, "GAMMA", 0.3)  # the first room has at least 0.7 * 0.95 of the visits
        mdp = two_rooms(0.95)
        visits = theory.occupancy(mdp, theory.most_entropic_policy(mdp))
        corners = theory.deterministic_occupancies(mdp)
        np.testing.assert_allclose(visits, [0.665, 0.335], atol=1e-9)
        assert theory.entropy(corners).max() == pytest.approx(theory.entropy(visits), abs=1e-9)

    def test_ties_are_not_counted(self):
        """Where one action leads everywhere alike, always taking it is the best, and the report says so."""
        to_any, to_first = np.full(3, 1 / 3), np.eye(3)[0]
        lacks, gaps = theory.check_entropy([mdp_without_rewards([[to_any, to_first]] * 3, to_any)])
        np.testing.assert_allclose(lacks, 0, atol=1e-9)
        assert lacks[0, 0] - lacks[0, 1] + gaps[0] <= theory.MARGIN


class TestAlternation:
    @pytest.mark.slow
    @all_betas
    def test_never_falls_and_finds_the_maximum(self, beta):
        rng = np.random.default_rng(1)
        for mdp in random_mdps(50):
            rounds, policy = theory.alternate(mdp, beta)
            most, best = theory.soft_value_iteration(mdp, beta)
            assert (np.diff(rounds) >= -theory.ROUND_OFF).all()
            assert rounds[1] > rounds[0]
            assert rounds[-1] == pytest.approx(most, abs=1e-8)
            np.testing.assert_allclose(policy, best, atol=1e-8)
            assert theory.objective(mdp, best, beta) == pytest.approx(most, abs=1e-11)
            for _ in range(5):
                assert theory.objective(mdp, random_policy(mdp, rng), beta) <= most

    @pytest.mark.slow
    @all_betas
    def test_the_plain_q_promises_less(self, beta):
        """The control: with the Q of J, what the test above asserts is false, and the bound of the module holds."""
        n_falls = n_short = 0
        for mdp in random_mdps(50):
            rounds, _ = theory.alternate(mdp, beta, plain=True)
            assert rounds[1] == pytest.approx(theory.alternate(mdp, beta)[0][1], abs=1e-12)  # π_0 has no KL
            n_falls += (np.diff(rounds) < -1e-9).any()
            n_short += theory.soft_value_iteration(mdp, beta)[0] - rounds[-1] > 1e-8
            old = mdp.prior
            for _ in range(theory.N_ROUNDS):
                new = theory.tilt(mdp.prior, theory.q_values(mdp, old, 0.0), beta)[0]
                price = beta * theory.occupancy(mdp, new) @ theory.divergence(old, mdp.prior) / (1 - theory.GAMMA)
                assert theory.objective(mdp, new, beta) >= theory.objective(mdp, old, 0.0) - price - theory.ROUND_OFF
                old = new
        assert n_falls > 40 and n_short > 40

    def test_q_charges_later_steps_only(self):
        rng, beta = np.random.default_rng(1), 0.5
        for mdp in random_mdps(20):
            policy = random_policy(mdp, rng)
            q = theory.q_values(mdp, policy, beta)
            values = (policy * q).sum(axis=1) - beta * theory.divergence(policy, mdp.prior)
            np.testing.assert_allclose(q, mdp.rewards + theory.GAMMA * mdp.transitions @ values, atol=1e-12)
            assert mdp.start @ values == pytest.approx(theory.objective(mdp, policy, beta), abs=1e-12)

    def test_tilt_is_the_best_reply(self):
        rng, beta = np.random.default_rng(1), 0.3
        for mdp in random_mdps(20):
            q = rng.normal(size=mdp.rewards.shape)
            policy, most = theory.tilt(mdp.prior, q, beta)
            weights = mdp.prior * np.exp(q / beta)
            np.testing.assert_allclose(policy, weights / weights.sum(axis=1, keepdims=True), atol=1e-12)
            for rival, is_best in ((policy, True), (random_policy(mdp, rng), False)):
                worth = (rival * q).sum(axis=1) - beta * theory.divergence(rival, mdp.prior)
                assert np.allclose(worth, most, atol=1e-12) if is_best else (worth < most).all()

    def test_a_policy_may_exclude_actions(self):
        prior = np.array([[0.25, 0.75]])
        assert theory.divergence(np.array([[1.0, 0.0]]), prior) == pytest.approx(np.log(4))
        policy, most = theory.tilt(prior, np.array([[0.0, 1e4]]), 0.1)
        assert policy.tolist() == [[0.0, 1.0]] and most == pytest.approx(1e4 + 0.1 * np.log(0.75))


@pytest.mark.slow
class TestMain:
    @pytest.mark.slow
    def test_reports_and_draws(self, tmp_path, capsys):
        out = tmp_path / "new" / "theorems.png"
        share = theory.main(["--n-mdps", "12", "--seed", "3", "--out", str(out)])
        printed = capsys.readouterr().out
        assert 0.8 <= share <= 1 and f"12 MDPs: in {share:.1%}" in printed and "0.0% are undecided" in printed
        assert printed.count("With the Q of J_f, J_f falls in some round in 0.0%") == len(theory.BETAS)
        assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000

    @pytest.mark.slow
    def test_seed_decides(self, tmp_path, capsys):
        printed = []
        for seed in ("0", "0", "1"):
            theory.main(["--n-mdps", "3", "--seed", seed, "--out", str(tmp_path / "theory.png")])
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] != printed[2]

    def test_bad_arguments_fail_first(self, tmp_path, capsys):
        with pytest.raises(ValueError, match="image file"):
            theory.main(["--out", str(tmp_path / "theory.txt")])
        with pytest.raises(SystemExit):
            theory.main(["--n-mdps", "0"])
        assert "at least 1" in capsys.readouterr().err
