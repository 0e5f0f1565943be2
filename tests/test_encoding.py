"""Spaces to matrices, and the running moments that whiten them."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_exdm.common.running_moments import RunningMoments
from sb3_exdm.common.spaces import SpaceEncoder


def test_box_is_flattened():
    batch = np.arange(12.0).reshape(2, 2, 3)
    for dtype in (np.float32, np.float64):
        code = SpaceEncoder(spaces.Box(-np.inf, np.inf, (2, 3), dtype))(batch.astype(dtype))
        assert code.dtype == dtype
        np.testing.assert_array_equal(code, batch.reshape(2, 6))


@pytest.mark.parametrize("batch", [np.array([3, 5]), np.array([[3], [5]])], ids=["gymnasium", "replay buffer"])
def test_discrete_is_one_hot_from_its_start(batch):
    np.testing.assert_array_equal(SpaceEncoder(spaces.Discrete(3, start=3))(batch), [[1, 0, 0], [0, 0, 1]])


def test_multi_discrete_is_one_hot_per_entry():
    np.testing.assert_array_equal(SpaceEncoder(spaces.MultiDiscrete([2, 3]))(np.array([[1, 0]])), [[0, 1, 1, 0, 0]])
    grid = spaces.MultiDiscrete(np.array([[2, 2], [2, 2]]))
    np.testing.assert_array_equal(SpaceEncoder(grid)(np.array([[[0, 1], [1, 1]]])), [[1, 0, 0, 1, 0, 1, 0, 1]])


def test_multi_binary_is_kept():
    np.testing.assert_array_equal(SpaceEncoder(spaces.MultiBinary([2, 2]))(np.array([[[0, 1], [1, 1]]])), [[0, 1, 1, 1]])


def test_dict_parts_lie_side_by_side_in_the_order_of_the_space():
    space = spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(0, 1, (2,)))
    encoder = SpaceEncoder(space)
    batch = {"a": np.array([[0.5, 0.25]]), "b": np.array([1])}
    code = encoder(batch)[0].tolist()
    expected = {"a": [0.5, 0.25], "b": [0.0, 1.0]}
    assert code == [value for key in space.spaces for value in expected[key]]
    assert encoder.dim == 4


def _image(channels_first: bool, size: int = 36) -> tuple[spaces.Box, np.ndarray]:
    shape = (3, size, size) if channels_first else (size, size, 3)
    return spaces.Box(0, 255, shape, np.uint8), np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)


def test_image_code_does_not_depend_on_the_order_of_the_axes():
    space, batch = _image(channels_first=False)
    other_space, _ = _image(channels_first=True)
    code = SpaceEncoder(space)(batch)
    assert code.shape == (5, 64)
    np.testing.assert_allclose(code, SpaceEncoder(other_space)(batch.transpose(0, 3, 1, 2)), rtol=1e-5)


def test_image_code_keeps_distances():
    """Johnson-Lindenstrauss: in 64 dimensions within some 20 % for most pairs of the pooled images."""
    space, batch = _image(channels_first=True)
    scale = np.arange(1, 6).reshape(5, 1, 1, 1) / 5.0  # pairs at different distances
    batch = (batch * scale).astype(np.uint8)
    code = SpaceEncoder(space)(batch)
    cells = batch[:, :, :32, :32].reshape(5, 3, 8, 4, 8, 4).mean(axis=(3, 5)).reshape(5, -1) / 255.0
    pairs = [(i, j) for i in range(5) for j in range(i)]
    ratios = [np.linalg.norm(code[i] - code[j]) / np.linalg.norm(cells[i] - cells[j]) for i, j in pairs]
    # The common factor is a matter of convention; that it is common is not.
    assert np.std(ratios) / np.mean(ratios) < 0.2


def test_small_image_is_not_projected():
    space = spaces.Box(0, 255, (4, 4, 1), np.uint8)
    code = SpaceEncoder(space)(np.full((1, 4, 4, 1), 255, dtype=np.uint8))
    np.testing.assert_allclose(code, np.ones((1, 16)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_and_located(bad):
    batch = np.zeros((4, 3), dtype=np.float32)
    batch[2, 1] = bad
    encoder = SpaceEncoder(spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match=rf"observation holds {bad}.*row 2.*1"):
        encoder(batch)
    with pytest.raises(ValueError, match=r"holds NaN or infinity|holds nan|holds -?inf"):
        SpaceEncoder(spaces.Discrete(3))(np.array([0.0, bad]))


def test_large_but_finite_is_accepted():
    """Their sum overflows single precision, but none of them is infinite."""
    batch = np.full((2, 3), 2e38, dtype=np.float32)
    np.testing.assert_array_equal(SpaceEncoder(spaces.Box(-np.inf, np.inf, (3,)))(batch), batch)


@pytest.mark.parametrize(
    ("space", "batch", "message"),
    [
        (spaces.Box(-1, 1, (3,)), np.zeros(3), "leading axis"),
        (spaces.Box(-1, 1, (3,)), np.zeros((2, 4)), r"shape \(n, 3\), got \(2, 4\)"),
        (spaces.Discrete(3), np.array([0, 3]), "category outside"),
        (spaces.Discrete(3, start=1), np.array([0]), "category outside"),
        (spaces.MultiDiscrete([2, 3]), np.array([[0, 1, 1]]), r"shape \(n, 2\)"),
        (spaces.MultiBinary(3), np.zeros((1, 2)), r"shape \(n, 3\)"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), {"a": np.zeros(1)}, r"lacks the keys \['b'\]"),
    ],
)
def test_what_does_not_belong_to_the_space_is_refused(space, batch, message):
    with pytest.raises(ValueError, match=message):
        SpaceEncoder(space)(batch)


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Tuple([spaces.Discrete(2)]), spaces.Sequence(spaces.Discrete(2))])
def test_unsupported_space_is_refused(space):
    with pytest.raises(ValueError, match=r"Unsupported.*FlattenObservation"):
        SpaceEncoder(space)
    with pytest.raises(ValueError, match=r"Unsupported observation\['inner'\]"):
        SpaceEncoder(spaces.Dict(inner=space))


def test_bounds_follow_the_columns_of_the_code():
    space = spaces.Dict(
        box=spaces.Box(np.array([-2.0, -np.inf]), np.array([3.0, np.inf])),
        category=spaces.Discrete(2),
        image=spaces.Box(0, 255, (36, 36, 3), np.uint8),
    )
    low, high = SpaceEncoder(space).bounds
    assert len(low) == len(high) == SpaceEncoder(space).dim
    np.testing.assert_array_equal(low[:4], [-2.0, -np.inf, 0.0, 0.0])
    np.testing.assert_array_equal(high[:4], [3.0, np.inf, 1.0, 1.0])
    assert np.isinf(low[4:]).all()


def test_moments_of_equal_batches_are_those_of_all_the_data():
    data = th.randn(40, 16, 3, generator=th.Generator().manual_seed(0)) * 5.0 + 2.0
    moments = RunningMoments(3, min_weight=0.0)
    for batch in data:
        moments.update(batch)
    th.testing.assert_close(moments.mean, data.flatten(0, 1).mean(dim=0))
    th.testing.assert_close(moments.std, data.flatten(0, 1).std(dim=0, correction=0))
    standard = moments.standardize(data.flatten(0, 1))
    th.testing.assert_close(standard.std(dim=0, correction=0), th.ones(3))


def test_moments_follow_a_drift():
    moments = RunningMoments(1, min_weight=0.1)
    for _ in range(100):
        moments.update(th.zeros(8, 1))
    for _ in range(100):
        moments.update(th.full((8, 1), 3.0))
    assert moments.mean.item() == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 1e-9, 12345.678])
def test_constant_column_is_not_blown_up(value):
    moments = RunningMoments(1)
    for n in range(1, 20):
        moments.update(th.full((n, 1), value))
    assert moments.std.item() == 1.0
    assert moments.standardize(th.full((1, 1), value)).abs().item() < 0.01


def test_vectors_without_end_are_refused():
    with pytest.raises(ValueError, match=r"9408 dimensions, at most 4096.*uint8"):
        SpaceEncoder(spaces.Box(0.0, 1.0, (3, 56, 56)))
