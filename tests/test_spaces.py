"""Facts about spaces: written down and read back they are the same, to the last bit."""

import json
import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from keras_pg import spaces

INT64 = np.iinfo(np.int64)

SUPPORTED = {
    "infinite": Box(-np.inf, np.inf, (3,)),
    "half infinite": Box(np.float32([-np.inf, 0]), np.float32([1, np.inf])),
    "asymmetric": Box(np.float32([-0.1, 2]), np.float32([0.3, 1e30])),
    "widest": Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,)),
    "float64": Box(np.array([-0.1, 1e-300]), np.array([1 / 3, 1e300]), dtype=np.float64),
    "float16": Box(-1, 1, (2,), np.float16),
    "uint8": Box(0, 255, (4,), np.uint8),
    "int64": Box(-5, 5, (2,), np.int64),
    "widest int64": Box(INT64.min, INT64.max, (2,), np.int64),
    "beyond 53 bits": Box(0, 2**53 + 1, (1,), np.int64),
    "matrix": Box(np.float32([[0, -np.inf], [1, 2]]), np.float32([[3, 4], [np.inf, 6]])),
    "image": Box(0, 255, (84, 84, 3), np.uint8),
    "grey image": Box(0, 255, (84, 84), np.uint8),
    "image of flags": Box(0, 1, (10, 10, 4), bool),
    "image of floats": Box(-1.0, 1 / 3, (2, 3, 4)),
    "discrete": Discrete(4),
    "discrete from 7": Discrete(4, start=7),
    "discrete from -3": Discrete(4, start=-3),
}
MULTIPLE = {
    "multidiscrete": MultiDiscrete([2, 3]),
    "multidiscrete from": MultiDiscrete([2, 3], start=[4, -1], dtype=np.int32),
    "multibinary": MultiBinary(3),
    "multibinary of shape": MultiBinary([3]),
}


@pytest.mark.parametrize("name", SUPPORTED | MULTIPLE)
def test_a_space_survives_json(name):
    space = (SUPPORTED | MULTIPLE)[name]
    # Strict JSON: it knows neither Infinity nor NaN.
    text = json.dumps(spaces.to_config(space), allow_nan=False)
    restored = spaces.from_config(json.loads(text))
    assert type(restored) is type(space)
    assert restored == space
    assert (restored.shape, restored.dtype) == (space.shape, space.dtype)
    if isinstance(space, Box):
        # `==` of boxes is approximate.
        np.testing.assert_array_equal(restored.low, space.low)
        np.testing.assert_array_equal(restored.high, space.high)
    elif isinstance(space, Discrete):
        assert (restored.n, restored.start) == (space.n, space.start)


def test_the_shape_of_a_box_survives():
    space = Box(np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 9, np.float32))
    restored = spaces.from_config(spaces.to_config(space))
    np.testing.assert_array_equal(restored.low, space.low)


def test_what_all_numbers_of_an_image_have_in_common_is_written_once():
    assert len(json.dumps(spaces.to_config(SUPPORTED["image"]))) < 200


def test_bounds_that_are_neither_one_nor_all_are_an_error():
    config = spaces.to_config(SUPPORTED["image"])
    with pytest.raises(ValueError, match="reshape"):
        spaces.from_config({**config, "low": ["0", "0"]})


def test_a_space_in_place_of_a_config_is_returned_as_it_is():
    space = Discrete(3)
    assert spaces.from_config(space) is space


UNSUPPORTED = [
    gymnasium.spaces.Dict(a=Discrete(2)),
    gymnasium.spaces.Tuple([Discrete(2)]),
    gymnasium.spaces.Text(5),
]


@pytest.mark.parametrize("space", UNSUPPORTED, ids=str)
def test_a_space_that_cannot_be_written_is_named_in_the_error(space):
    with pytest.raises(ValueError, match=re.escape(str(space))):
        spaces.to_config(space)


@pytest.mark.parametrize("name", SUPPORTED)
def test_observations_may_be_discrete_a_vector_a_matrix_or_an_image(name):
    assert spaces.check_observation_space(SUPPORTED[name]) is SUPPORTED[name]


@pytest.mark.parametrize(
    "space", [*UNSUPPORTED, *MULTIPLE.values(), Box(0, 1, (2, 2, 2, 2)), Box(0, 1, ())], ids=str
)
def test_an_unsupported_observation_space_is_named_in_the_error(space):
    with pytest.raises(ValueError, match=re.escape(str(space))):
        spaces.check_observation_space(space)


@pytest.mark.parametrize("name", SUPPORTED | MULTIPLE)
def test_actions_may_be_discrete_or_a_vector_of_floats(name):
    space = (SUPPORTED | MULTIPLE)[name]
    if not isinstance(space, Box) or (space.dtype.kind == "f" and len(space.shape) == 1):
        assert spaces.check_action_space(space) is space
    else:
        with pytest.raises(ValueError, match=re.escape(str(space))):
            spaces.check_action_space(space)


@pytest.mark.parametrize(
    "space",
    [
        *UNSUPPORTED,
        MultiDiscrete([[2, 3]]),
        MultiBinary([2, 3]),
        Box(0, 1, (2, 2)),
        Box(0, 1, ()),
    ],
    ids=str,
)
def test_an_unsupported_action_space_is_named_in_the_error(space):
    with pytest.raises(ValueError, match=re.escape(str(space))):
        spaces.check_action_space(space)


def test_equal_pairs_of_spaces_pass():
    pair = (Box(-1, 1, (3,)), Discrete(2))
    assert spaces.check_same_spaces(pair, (Box(-1, 1, (3,)), Discrete(2))) is None
    assert spaces.check_same_spaces(list(pair), pair) is None


@pytest.mark.parametrize(
    "given",
    [
        (Box(-1, 1, (4,)), Discrete(2)),
        (Box(-1, 2, (3,)), Discrete(2)),
        (Box(-1, 1, (3,), np.float64), Discrete(2)),
        (Box(-1, 1, (3,)), Discrete(2, start=1)),
        (Box(-1, 1, (3,)), Box(-1, 1, (1,))),
    ],
    ids=str,
)
def test_a_difference_in_either_space_shows_both_pairs(given):
    built = (Box(-1, 1, (3,)), Discrete(2))
    with pytest.raises(ValueError) as error:
        spaces.check_same_spaces(built, given)
    for space in (*built, *given):
        assert str(space) in str(error.value)
