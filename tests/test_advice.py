"""Facts about what errors advise: the line that they print works, and keeps a mask a mask."""

import re

import gymnasium
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)
from gymnasium.vector import SyncVectorEnv

import keras_pg
from keras_pg import advice, spaces
from keras_pg.rollouts import make_vector_env


class Sampling(gymnasium.Env):
    """Shows samples of its space, in which every second action is legal, and checks actions."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = observation_space
        self.action_space = action_space or Discrete(4)

    def _observe(self):
        observation = self.observation_space.sample()
        path = advice.mask_path(self.observation_space)
        if path is not None:
            *outer, last = path
            holder = observation
            for key in outer:
                holder = holder[key]
            holder[last] = np.tile(np.int8([0, 1]), 2).reshape(np.shape(holder[last]))
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        if advice.mask_path(self.observation_space) is not None:
            assert action % 2 == 1, f"illegal: {action}"
        return self._observe(), 0.0, False, False, {}


class Mission(gymnasium.Space):
    """A space that Gymnasium does not know, as MiniGrid's is."""

    def __init__(self):
        super().__init__((), str)

    def sample(self, mask=None, probability=None):
        return "go to the door"

    def contains(self, x):
        return isinstance(x, str)


@pytest.fixture
def registered():
    """A function that registers an environment of these spaces as Advised-v0."""

    def register(*its_spaces):
        gymnasium.register(
            "Advised-v0",
            lambda: Sampling(*its_spaces),
            disable_env_checker=True,
            order_enforce=False,
        )
        return "Advised-v0"

    yield register
    gymnasium.registry.pop("Advised-v0")


def advised(given, **names):
    """(what the error advises for this environment, evaluated; the line; the whole message)."""
    with pytest.raises(ValueError) as caught:
        make_vector_env(given)
    message = str(caught.value)
    line = re.search("`((?:lambda: )?(?:gym|keras_pg)\\.[^`]*)`", message).group(1)
    return eval(line, {"gym": gym, "keras_pg": keras_pg, "np": np, **names}), line, message


MASK, TWO_AXES, NUMBERS = MultiBinary(4), MultiBinary((2, 2)), Box(-1.0, 1.0, (5,))
FLATTEN = 'lambda: gym.wrappers.FlattenObservation(gym.make("Advised-v0"))'
BESIDE = 'lambda: keras_pg.wrappers.FlattenBesideMask(gym.make("Advised-v0"))'
OBSERVATIONS = {
    "a Dict": (Dict(a=NUMBERS, b=Discrete(2)), FLATTEN, (7,)),
    "goals": (Dict(observation=NUMBERS, achieved_goal=Box(-1, 1, (2,))), FLATTEN, (7,)),
    "a Tuple": (Tuple([Discrete(32), Discrete(11), Discrete(2)]), FLATTEN, (45,)),
    "nested": (Dict(a=Dict(b=NUMBERS, c=Tuple([Discrete(2)]))), FLATTEN, (7,)),
    "MultiDiscrete": (MultiDiscrete([2, 3]), FLATTEN, (5,)),
    "MultiBinary": (MultiBinary(6), FLATTEN, (6,)),
    "a text": (Text(5), FLATTEN, (5,)),
    "a number": (
        Box(-1.0, 1.0, ()),
        'lambda: gym.wrappers.ReshapeObservation(gym.make("Advised-v0"), (1,))',
        (1,),
    ),
    "nothing": (Box(-1.0, 1.0, (0,)), "lambda: gym.wrappers.TransformObservation", (1,)),
    "frames": (
        Box(0, 255, (4, 8, 9, 3), np.uint8),
        "lambda: gym.wrappers.TransformObservation",
        (8, 9, 12),
    ),
    "five axes": (Box(-1.0, 1.0, (2, 2, 2, 2, 2)), FLATTEN, (32,)),
    "an image without bounds": (Box(-np.inf, np.inf, (2, 5, 5)), FLATTEN, (50,)),
    "MiniGrid": (
        Dict(direction=Discrete(4), image=Box(0, 255, (7, 7, 3), np.uint8), mission=Mission()),
        "lambda: gym.wrappers.FlattenObservation(gym.wrappers.FilterObservation("
        "gym.make(\"Advised-v0\"), ['direction', 'image']))",
        (151,),
    ),
    "a Tuple with a sequence": (
        Tuple([Sequence(Discrete(2)), NUMBERS]),
        "lambda: gym.wrappers.FlattenObservation(gym.wrappers.FilterObservation("
        'gym.make("Advised-v0"), [1]))',
        (5,),
    ),
}
MASKED = {
    "a key more": (Dict(observation=NUMBERS, extra=Box(-1, 1, (2,)), action_mask=MASK), BESIDE, 7),
    "other keys": (Dict(board=NUMBERS, turn=Discrete(2), action_mask=MASK), BESIDE, 7),
    "one other key": (Dict(board=NUMBERS, action_mask=MASK), BESIDE, 5),
    "an unsupported observation": (
        Dict(observation=MultiBinary(3), action_mask=MASK),
        BESIDE,
        3,
    ),
    "a nested mask": (Dict(a=Dict(b=NUMBERS, action_mask=MASK), c=Discrete(2)), BESIDE, 7),
    "a mask in a Tuple": (Tuple([NUMBERS, Dict(action_mask=MASK)]), BESIDE, 5),
    "a mask of two axes": (
        Dict(a=NUMBERS, b=Discrete(2), action_mask=MultiBinary((2, 2))),
        BESIDE,
        7,
    ),
    "a mask of bytes": (Dict(a=NUMBERS, action_mask=Box(0, 1, (4,), np.uint8)), BESIDE, 5),
    "a mask of floats": (Dict(a=NUMBERS, action_mask=Box(0, 1, (4,))), BESIDE, 5),
    "a mission": (
        Dict(a=NUMBERS, mission=Mission(), action_mask=MASK),
        "lambda: keras_pg.wrappers.FlattenBesideMask(gym.wrappers.FilterObservation("
        "gym.make(\"Advised-v0\"), ['a', 'action_mask']))",
        5,
    ),
}


def trained(env, **options):
    agent = keras_pg.A2C(seed=0)
    agent.compile(run_eagerly=True)
    agent.fit(env, num_steps=8, epochs=1, steps_per_epoch=1, verbose=0, **options)
    return agent


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_the_line_for_observations_can_be_trained_on(name, registered):
    space, expected, shape = OBSERVATIONS[name]
    env, line, message = advised(registered(space))
    assert line.startswith(expected) and str(space) in message
    agent = trained(env, num_envs=2)
    assert agent.actor.observation_space.shape == shape


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_stays_a_mask_whatever_stands_beside_it(name, registered):
    space, expected, size = MASKED[name]
    env, line, message = advised(registered(space))
    assert line == expected and "must stay a mask" in message
    assert "gymnasium.wrappers.FlattenObservation" not in message
    # An illegal action is an error of the environment.
    agent = trained(env, num_envs=4)
    assert agent.actor.observation_space["observation"].shape == (size,)
    assert agent.actor.observation_space["action_mask"] == MASK


def test_an_image_beside_a_mask_stays_an_image(registered):
    image = Box(0, 255, (8, 9, 3), np.uint8)
    env, _, _ = advised(registered(Dict(board=image, action_mask=MASK)))
    assert env().observation_space == Dict(observation=image, action_mask=MASK)


@pytest.mark.parametrize("space", [Sequence(Discrete(2)), OneOf([NUMBERS, Discrete(2)]), Mission()])
def test_what_no_wrapper_makes_numbers_of_is_for_the_user_to_write(space, registered):
    env, line, message = advised(
        registered(space), to_array=lambda observation: np.zeros(3, "f"), N=3
    )
    assert line.startswith("lambda: gym.wrappers.TransformObservation(gym.make") and (
        "to_array makes N numbers of an observation" in message
    )
    assert trained(env, num_envs=2).actor.observation_space.shape == (3,)


def test_a_graph_has_no_size():
    message = advice.for_observations(Graph(NUMBERS, None), advice.UNKNOWN)
    assert message.startswith("Its size varies") and "TransformObservation(make_env()" in message


ACTIONS = {
    "one number": (Box(-1.0, 1.0, ()), Box(-1.0, 1.0, (1,))),
    "a matrix": (Box(-1.0, 1.0, (2, 2)), Box(-1.0, 1.0, (4,))),
    "integers": (Box(-2, 3, (2,), np.int64), MultiDiscrete([6, 6], start=[-2, -2])),
    "choices of two axes": (MultiDiscrete([[2, 3], [4, 5]]), MultiDiscrete([2, 3, 4, 5])),
    "switches of two axes": (MultiBinary((2, 2)), MultiDiscrete([2, 2, 2, 2])),
    "two agents": (Tuple([Discrete(3), Discrete(4, start=1)]), MultiDiscrete([3, 4], start=[0, 1])),
    "a Dict of numbers": (
        Dict(steer=Box(-1.0, 1.0, (1,)), gas=Box(0.0, 2.0, (2,))),
        Box(np.float32([0, 0, -1]), np.float32([2, 2, 1])),
    ),
    "a Dict of choices": (
        Dict(a=Discrete(2), b=Dict(c=MultiBinary(2), d=MultiDiscrete([3]))),
        MultiDiscrete([2, 2, 2, 3]),
    ),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_the_line_for_actions_can_be_trained_on(name, registered):
    space, flat = ACTIONS[name]
    env, line, message = advised(registered(NUMBERS, space))
    assert line == 'lambda: keras_pg.wrappers.FlattenAction(gym.make("Advised-v0"))'
    assert str(space) in message
    made = env()
    if isinstance(space, Dict):
        # Gymnasium sorts the keys of a dictionary.
        assert made.action_space.shape == flat.shape
    else:
        assert made.action_space == flat
    for seed in range(20):
        made.action_space.seed(seed)
        assert space.contains(made.action(made.action_space.sample()))
    trained(env, num_envs=2)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Dict(a=Discrete(2), b=Box(-1, 1, (2,))), "It mixes choices and numbers"),
        (Text(5), "Of it no agent here makes a distribution"),
        (Box(0, 2**31 - 1, (2,), np.int32), "Of it no agent here makes a distribution"),
        (Box(-1, 1, (0,)), "nothing to choose"),
    ],
    ids=str,
)
def test_actions_that_cannot_be_one_vector_are_said_to_be_so(space, said):
    with pytest.raises(ValueError, match=said):
        spaces.check_action_space(space)


def test_wrappers_refuse_what_they_cannot_flatten():
    with pytest.raises(ValueError, match="no action_mask"):
        keras_pg.wrappers.FlattenBesideMask(Sampling(Dict(a=NUMBERS)))
    with pytest.raises(ValueError, match="cannot make one array"):
        keras_pg.wrappers.FlattenBesideMask(
            Sampling(Dict(a=Sequence(Discrete(2)), b=NUMBERS, action_mask=MASK))
        )
    with pytest.raises(ValueError, match="cannot make one array"):
        keras_pg.wrappers.FlattenBesideMask(Sampling(Dict(action_mask=MASK)))
    with pytest.raises(ValueError, match="neither all choices nor all numbers"):
        keras_pg.wrappers.FlattenAction(Sampling(NUMBERS, Tuple([Discrete(2), NUMBERS])))


def test_a_mask_that_is_none_is_an_error_of_the_wrapper():
    class Half(Sampling):
        def _observe(self):
            return {"a": np.zeros(5, "f"), "action_mask": np.full(4, 0.5, "f")}

    env = keras_pg.wrappers.FlattenBesideMask(Half(Dict(a=NUMBERS, action_mask=Box(0, 1, (4,)))))
    with pytest.raises(ValueError, match="0 or 1 for each choice"):
        env.reset()


def test_wrapped_environments_can_be_made_from_their_spec(registered):
    env = keras_pg.wrappers.FlattenBesideMask(
        gym.make(registered(Dict(a=NUMBERS, b=Discrete(2), action_mask=MASK)))
    )
    assert gym.make(env.spec).observation_space == env.observation_space


# ------------------------------------------------------------------------- how the env was given

TUPLE = Tuple([Discrete(2), Discrete(3)])


def make_game():
    return Sampling(TUPLE)


class Game(Sampling):
    def __init__(self):
        super().__init__(TUPLE)


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (Game, "lambda: gym.wrappers.FlattenObservation(Game())"),
        (make_game, "lambda: gym.wrappers.FlattenObservation(make_game())"),
        (lambda: Game(), "lambda: gym.wrappers.FlattenObservation(make_env())"),
        (Game(), "gym.wrappers.FlattenObservation(env)"),
        (
            lambda: gym.make("Blackjack-v1"),
            'lambda: gym.wrappers.FlattenObservation(gym.make("Blackjack-v1"))',
        ),
        (
            gym.make("Blackjack-v1", natural=True),
            'lambda: gym.wrappers.FlattenObservation(gym.make("Blackjack-v1", natural=True))',
        ),
        (
            SyncVectorEnv([Game] * 2),
            "gym.wrappers.vector.FlattenObservation(envs)",
        ),
    ],
)
def test_the_line_names_what_was_given(env, line):
    given = {"Game": Game, "make_game": make_game, "make_env": Game, "env": env, "envs": env}
    made, printed, _ = advised(env, **given)
    assert printed == line
    assert trained(made).actor.observation_space.shape in [(5,), (45,)]


def test_vector_environments_keep_their_mask():
    space = Dict(a=NUMBERS, b=Discrete(2), action_mask=MASK)
    env = SyncVectorEnv([lambda: Sampling(space)] * 2)
    made, line, _ = advised(env, envs=env)
    assert line == (
        "gym.wrappers.vector.VectorizeTransformObservation("
        "envs, keras_pg.wrappers.FlattenBesideMask)"
    )
    assert trained(made).actor.observation_space["action_mask"] == MASK


def test_vector_environments_act_in_one_vector():
    env = SyncVectorEnv([lambda: Sampling(NUMBERS, Tuple([Discrete(2), Discrete(3)]))] * 2)
    made, line, _ = advised(env, envs=env)
    assert line == (
        "gym.wrappers.vector.VectorizeTransformAction(envs, keras_pg.wrappers.FlattenAction)"
    )
    assert trained(made).actor.action_space == MultiDiscrete([2, 3])


def flattened(space=Dict(a=NUMBERS, action_mask=MASK)):  # noqa: B008
    return gym.wrappers.FlattenObservation(Sampling(space))


@pytest.mark.parametrize(
    "env",
    [
        flattened,
        flattened(),
        lambda: gym.wrappers.TimeLimit(flattened(), 5),
        SyncVectorEnv([flattened]),
        gym.wrappers.vector.FlattenObservation(
            SyncVectorEnv([lambda: Sampling(Dict(a=NUMBERS, action_mask=MASK))])
        ),
    ],
    ids=["factory", "object", "beneath another", "member", "vector"],
)
def test_a_mask_that_was_flattened_into_the_observation_is_refused(env):
    with pytest.raises(ValueError, match=r"action_mask an input of the.*`.*FlattenBesideMask"):
        keras_pg.A2C(seed=0).fit(env)
