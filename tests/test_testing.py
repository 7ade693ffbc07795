"""Facts about `keras_pg.testing.check_env`: it finds what training would, before training."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import keras_pg
from environments import Scripted
from keras_pg.rollouts.checking import ContractError
from keras_pg.testing import check_env


class Walk(gymnasium.Env):
    """An environment as Gymnasium wants it, of any spaces, 10 steps an episode."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or Box(-1.0, 1.0, (2,))
        self.action_space = action_space or Discrete(2)

    def _observe(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        observation = self.observation_space.sample()
        if isinstance(observation, dict):
            self.legal = observation["action_mask"]
            self.legal[self.np_random.integers(len(self.legal))] = 1
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self._observe(), 1.0, False, self.t == 10, {}


class Masked(Walk):
    """Raises at illegal actions, unless Gymnasium's checker takes them, which knows no masks."""

    def __init__(self, playing):
        super().__init__(Dict(observation=Box(-1.0, 1.0, (2,)), action_mask=MultiBinary(4)))
        self.action_space, self.playing = Discrete(4, start=2), playing

    def step(self, action):
        self.playing.append(bool(self.legal[action - 2]))
        return super().step(action)


def test_it_says_what_agents_do_with_the_spaces():
    said = check_env(Walk, steps=25)
    assert said.splitlines() == [
        "observations: a vector of 2 numbers, which networks normalize",
        "actions: one of 2 choices",
        "agents: all",
        "played: 25 steps of random actions, in which 2 episodes ended",
    ]


@pytest.mark.parametrize(
    ("observation_space", "action_space", "said"),
    [
        (Discrete(5), MultiDiscrete([2, 3]), "one of 5 states.*\n.*one of 2, 3 choices each"),
        (Box(0, 255, (8, 9, 3), np.uint8), MultiBinary(4), r"image of .*\(8, 9, 3\)\n.*4 switches"),
        (Box(0, 255, (3, 8, 9), np.uint8), Discrete(2), r"\(3, 8, 9\), channels first"),
        (Box(-1, 1, (4, 3)), Box(-2, 2, (3,)), "matrix of 4 x 3 numbers.*\n.*3 numbers, .*clipped"),
    ],
    ids=str,
)
def test_it_knows_all_spaces_that_agents_take(observation_space, action_space, said):
    assert re.search(said, check_env(lambda: Walk(observation_space, action_space)))


def test_it_plays_legal_actions():
    played = []
    said = check_env(lambda: Masked(played), steps=50)
    assert "beside a mask of legal actions" in said and "illegal ones have probability 0" in said
    assert all(played[-50:]) and len(played) > 50


@pytest.mark.parametrize(
    "env", ["MountainCar-v0", gymnasium.make("MountainCar-v0"), keras_pg.envs.Catch()]
)
def test_it_takes_an_id_an_object_and_a_native_environment(env):
    assert "agents: all" in check_env(env)


def test_an_object_stays_open():
    class Closing(Walk):
        closed = False

        def close(self):
            self.closed = True

    env, made = Closing(), []

    def make():
        made.append(Closing())
        return made[-1]

    check_env(env)
    check_env(make)
    assert not env.closed and [env.closed for env in made] == [True, True]


@pytest.mark.parametrize("env", [42, None, gymnasium.vector.SyncVectorEnv([Walk])], ids=str)
def test_what_is_no_environment_is_refused(env):
    with pytest.raises(TypeError, match=r"check_env takes an id.*received"):
        check_env(env)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"reset": lambda answer: answer[0]}, "Environment 0, reset: reset returned one value"),
        ({"step": lambda answer: answer[:4]}, "Environment 0, step 3: step returned 4 values"),
        ({"step": lambda answer: (*answer[:1], None, *answer[2:])}, "step 3: reward is None"),
        ({"step": lambda answer: (np.zeros(3), *answer[1:])}, r"step 3: .*\(3,\), expected \(2,\)"),
    ],
)
def test_our_words_are_used_where_gymnasiums_checker_finds_a_fault_too(fault, said):
    class AtFault(Scripted):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=1)  # where it is at fault

    with pytest.raises(ContractError, match=said):
        check_env(lambda: AtFault(**fault))


def test_what_only_gymnasiums_checker_finds_is_raised_by_it():
    class Unseeded(Walk):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=None)

    with pytest.raises(AssertionError, match="seed"):
        check_env(Unseeded)


def test_warnings_of_gymnasiums_checker_are_passed_on():
    with pytest.warns(UserWarning, match="minimum value is -infinity"):
        check_env(lambda: Walk(Box(-np.inf, np.inf, (2,))))


def test_one_environment_for_two_is_found():
    one = Walk()
    with pytest.raises(ValueError, match="same environment for environments 0 and 1"):
        check_env(lambda: one)


def test_spaces_that_agents_do_not_take_are_answered_with_the_line_to_write():
    with pytest.raises(ValueError, match=r"`lambda: gym.wrappers.FlattenObservation\(make"):
        check_env(lambda: Walk(Dict(a=Discrete(2), b=Discrete(3))))
