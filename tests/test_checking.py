"""Facts about answers of environments: what contradicts their spaces is an error that says so."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList

import keras_pg
from environments import Clockwork, Scripted
from keras_pg import distributions
from keras_pg.rollouts import make_vector_env
from keras_pg.rollouts.checking import ContractError
from keras_pg.rollouts.vector_env import VectorEnvCollector

UINT8, IMAGE = Box(0, 255, (3,), np.uint8), Box(0, 255, (8, 8, 3), np.uint8)
FLOAT_IMAGE, TERNARY = Box(-1.0, 1.0, (4, 4, 2)), Discrete(3, start=1)
MASKED = Dict(observation=Box(-1.0, 1.0, (2,)), action_mask=MultiBinary(2))


class FirstAction:
    """Acts by the first action of a Discrete space."""

    def load_weights(self):
        pass

    def __call__(self, observations, noise):
        actions = np.zeros(len(noise), np.int64)
        return actions, actions


def collected(env, num_steps=12):
    """A rollout of a vector environment from its first reset on."""
    distribution = distributions.for_action_space(env.single_action_space)
    collector = VectorEnvCollector(env, FirstAction(), distribution, num_steps=num_steps, gamma=0.9)
    collector.reset(seed=0)
    return collector.collect()


def message(vectorization, space=None, **fault):
    """What is said of environment 1 of two, which is at fault."""
    env, _ = make_vector_env(lambda: Scripted(space, **fault), 2, vectorization)
    try:
        with pytest.raises(ContractError) as caught:
            collected(env)
    finally:
        env.close()
    return str(caught.value)


def observing(observation):
    """A step whose observation is this."""
    return {"step": lambda answer: (observation, *answer[1:])}


def answering(i, value):
    """A step with this in place of the answer's part i: 1 is the reward, 2 and 3 are the flags."""
    return {"step": lambda answer: (*answer[:i], value, *answer[i + 1 :])}


STEP = "Environment 1, step 3: "
FAULTS = {
    "shape": (observing(np.zeros((2, 1), "f")), r"observation has the shape \(2, 1\).*\(2,\)"),
    "a scalar": (observing(0.5), r"observation has the shape \(\), expected \(2,\), as Box"),
    "too few numbers": (observing(np.zeros(1, "f")), r"shape \(1,\), expected \(2,\)"),
    "nothing": (observing(None), r"observation is None, expected numbers of shape \(2,\)"),
    "text": (observing(["a", "b"]), r"observation is \['a', 'b'\] \(list\), expected numbers"),
    "ragged": (observing([[1.0], [1.0, 2.0]]), "observation is .*, expected numbers"),
    "floats as bytes": (
        {"space": UINT8, **observing(np.array([0.2, 300.7, -4]))},
        r"observation has floats, .*\[0.2, 300.7, -4.0\], expected dtype uint8",
    ),
    "a float image as bytes": (
        {"space": IMAGE, **observing(np.full((8, 8, 3), 0.7, "f"))},
        r"observation has floats, .* from 0.\d+ to 0.\d+, expected dtype uint8",
    ),
    "beyond bytes": (
        {"space": UINT8, **observing(np.array([0, 300, 4]))},
        r"observation is .*\[0, 300, 4\], which does not fit into dtype uint8",
    ),
    "no member": ({"space": TERNARY, **observing(7)}, "observation is 7, expected 1 to 3"),
    "a float state": ({"space": TERNARY, **observing(2.0)}, "observation has floats, 2.0"),
    "a huge state": ({"space": TERNARY, **observing(2**70)}, "observation is 1180.*fit into"),
    "beyond an image": (
        {"space": FLOAT_IMAGE, **observing(np.full((4, 4, 2), 5.0, "f"))},
        r"observation\[0, 0, 0\] is 5.0, expected -1.0 to 1.0",
    ),
    "no mask": (
        {"space": MASKED, **observing({"observation": np.zeros(2, "f")})},
        r"has keys \['observation'\], expected the keys \['observation', 'action_mask'\]",
    ),
    "no dictionary": ({"space": MASKED, **observing(np.zeros(2))}, "has no dictionary"),
    "a mask of another length": (
        {
            "space": MASKED,
            **observing({"observation": np.zeros(2, "f"), "action_mask": np.ones(3, np.int8)}),
        },
        r'observation\["action_mask"\] has the shape \(3,\), expected \(2,\)',
    ),
    "a mask of 2": (
        {
            "space": MASKED,
            **observing({"observation": np.zeros(2, "f"), "action_mask": np.int8([1, 2])}),
        },
        r'observation\["action_mask"\]\[1\] is 2, expected 0 or 1',
    ),
    "reward of shape (1,)": (answering(1, np.array([1.0])), r"reward is .*shape \(1,\).*a number"),
    "reward of shape (2,)": (answering(1, np.array([1.0, -1])), r"reward is .*shape \(2,\)"),
    "no reward": (answering(1, None), "reward is None, expected a number"),
    "a reward in words": (answering(1, "much"), r"reward is 'much' \(str\), expected a number"),
    "no flag": (answering(2, None), "terminated is None, expected True or False"),
    "flags as words": (answering(3, "no"), r"truncated is 'no' \(str\), expected True or False"),
    "half a flag": (answering(2, 0.5), r"terminated is 0.5 \(float\), expected True or False"),
    "flags of shape (1,)": (answering(3, np.array([True])), r"truncated is .*shape \(1,\)"),
    "the old step": (
        {"step": lambda answer: answer[:3] + answer[4:]},
        "step returned 4 values, expected five.*the old Gym: return `observation, reward, term",
    ),
    "no step": ({"step": lambda _: None}, "step returned one value, None, expected five"),
}
RESET_FAULTS = {
    "the old reset": (lambda answer: answer[0], "reset returned one value, an array.*old Gym's"),
    "three values": (lambda answer: (*answer, 1), "reset returned 3 values, expected two"),
    "nothing": (lambda _: None, "reset returned one value, None, expected two"),
    "shape": (lambda _: (np.zeros(3), {}), r"observation has the shape \(3,\), expected \(2,\)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_step_at_fault_is_named_the_same_way_in_this_process_and_in_others(name):
    fault, expected = FAULTS[name]
    said = message("sync", **fault)
    assert said.startswith(STEP)
    assert re.search(expected, said), said
    assert message("async", **fault) == said


@pytest.mark.parametrize("name", RESET_FAULTS)
def test_a_reset_at_fault_is_named_the_same_way_in_this_process_and_in_others(name):
    reset, expected = RESET_FAULTS[name]
    said = message("sync", reset=reset)
    assert said.startswith("Environment 1, reset: ") and message("async", reset=reset) == said
    assert re.search(expected, said), said


def test_a_fault_in_a_later_reset_has_its_step():
    class Second(Scripted):
        def reset(self, *, seed=None, options=None):
            answer = super().reset(seed=seed)
            return answer if seed is not None else answer[0]

    with pytest.raises(ContractError, match="Environment 0, step 7, reset: reset returned one"):
        collected(make_vector_env(Second, 2)[0])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (0, [0.5, -0.5]),
        (0, (0.5, -0.5)),
        (0, np.array([0.5, -0.5])),
        (0, np.array([1, 0], np.uint8)),
        (1, np.float32(1.0)),
        (1, np.array(1.0)),
        (1, True),
        (1, np.int64(1)),
        (2, np.uint8(0)),
        (2, np.array(False)),
        (3, 0),
        (3, 0.0),
        (3, np.bool_(False)),
    ],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_answers_that_lose_nothing_are_taken(vectorization, part, value):
    env, _ = make_vector_env(lambda: Scripted(**answering(part, value)), 2, vectorization)
    rollout = collected(env, num_steps=5)
    env.close()
    fields = [rollout.next_observations, rollout.rewards, rollout.terminated, rollout.truncated]
    np.testing.assert_array_equal(fields[part][4, 1], np.asarray(value, fields[part].dtype))


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3), np.array(3), np.array(3, np.int8)])
def test_a_state_may_be_any_integer(value):
    rollout = collected(make_vector_env(lambda: Scripted(TERNARY, **observing(value)), 2)[0], 5)
    np.testing.assert_array_equal(rollout.next_observations[3:, 1], [3, 3])


# ----------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "space", [Box(-1.0, 1.0, (2,)), Box(-1, 1, (2,), np.int64), Box(-1.0, 1.0, (2, 2))], ids=str
)
def test_what_lies_beyond_the_bounds_of_a_box_is_warned_of_once_and_taken(space, recwarn):
    five = np.full(space.shape, 5, space.dtype)
    env, _ = make_vector_env(lambda: Scripted(space, **observing(five)), 2)
    distribution = distributions.for_action_space(env.single_action_space)
    collector = VectorEnvCollector(env, FirstAction(), distribution, num_steps=5, gamma=0.9)
    collector.reset(seed=0)
    rollouts = [collector.collect() for _ in range(3)]
    said = [str(w.message) for w in recwarn if "bounds" in str(w.message)]
    assert len(said) == 1 and said[0].startswith("Environment 1, step 3: observation[0")
    assert "is 5" in said[0] and "expected -1" in said[0] and str(space) in said[0]
    assert (rollouts[0].next_observations[3:, 1] == 5).all()


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (Box(-1.0, 1.0, (2,)), np.float32([1 + 1e-6, -1 - 1e-6])),  # rounding
        (Box(0.0, 1.0, (4, 4, 3)), np.full((4, 4, 3), 1.004, "f")),  # an interpolated image
        (Box(-np.inf, np.inf, (2,)), np.float32([1e30, -1e30])),
        (Box(np.float32([-np.inf, 0]), np.float32([0, np.inf])), np.float32([-1e30, 1e30])),
    ],
    ids=str,
)
def test_rounding_and_what_has_no_bounds_is_not_spoken_of(space, observation, recwarn):
    collected(make_vector_env(lambda: Scripted(space, **observing(observation)), 2)[0])
    assert not [w for w in recwarn if "bounds" in str(w.message)]


def test_the_first_observation_of_an_episode_is_looked_at_too():
    def reset(answer):
        return 9, {}

    assert message("sync", TERNARY, reset=reset).startswith("Environment 1, step 0: observation is")


def test_nothing_is_learnt_from_observations_that_cannot_be():
    agent = keras_pg.A2C(seed=0)
    agent.compile(run_eagerly=True)

    class Seven(Scripted):
        def __init__(self):
            super().__init__(Discrete(3))

        def step(self, action):
            return 7, *super().step(action)[1:]

    with pytest.raises(ContractError, match=r"step 0: observation is 7.*Nothing was learnt"):
        agent.fit(Seven, num_envs=2, num_steps=4, epochs=1, steps_per_epoch=1, verbose=0)
    assert int(agent.iteration) == 0


# ---------------------------------------------------------------------------- vector environments


class Vector(VectorEnv):
    """A vector environment of two, of another make, that answers what it is told.

    Episodes last 4 steps.
    """

    num_envs = 2
    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space = observation_space = Box(-1.0, 1.0, (3,))
    single_action_space = Discrete(2)

    def __init__(self, reset=lambda answer: answer, step=lambda answer: answer):
        self.answer_reset, self.answer_step, self.t = reset, step, 0

    def reset(self, *, seed=None, options=None):
        return self.answer_reset((np.zeros((2, 3), "f"), {}))

    def step(self, actions):
        self.t = (self.t + 1) % 5
        flags = np.array([self.t == 4, self.t == 4])
        answer = np.zeros((2, 3), "f"), np.ones(2), flags, np.zeros(2, bool), {}
        return self.answer_step(answer)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, list])
def test_flags_of_vector_environments_may_be_of_any_type(dtype):
    def cast(flags):
        return flags.tolist() if dtype is list else flags.astype(dtype)

    def step(answer):
        return answer[0], answer[1], cast(answer[2]), cast(answer[3]), answer[4]

    rollout, expected = collected(Vector(step=step)), collected(Vector())
    assert rollout.terminated.sum() == 4 and not rollout.valid.all()
    for found, wanted in zip(rollout, expected):
        np.testing.assert_array_equal(found, wanted)


VECTOR_FAULTS = {
    "observations of another shape": (
        0,
        np.zeros((2, 4), "f"),
        r".*\(2, 4\), expected \(2, 3",
    ),
    "one observation": (0, np.zeros(3, "f"), r"observation has the shape \(3,\), expected \(2, 3"),
    "rewards of rank 2": (1, np.ones((2, 1)), r"rewards are .*\(2, 1\).*expected.*shape \(2,\)"),
    "one reward": (1, 1.0, "rewards are 1.0"),
    "flags of rank 2": (2, np.zeros((2, 1), bool), r"terminated are .*\(2, 1\)"),
    "no flags": (3, None, "truncated are None"),
    "halves": (3, np.full(2, 0.5), r"truncated are .*\[0.5, 0.5\], expected True or False"),
}


@pytest.mark.parametrize("name", VECTOR_FAULTS)
def test_vector_environments_at_fault_are_named(name):
    i, value, expected = VECTOR_FAULTS[name]
    env = Vector(step=lambda answer: (*answer[:i], value, *answer[i + 1 :]))
    with pytest.raises(ContractError, match=f"Vector.*, step 0: {expected}"):
        collected(env)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"reset": lambda answer: answer[0]}, "reset returned one value"),
        ({"step": lambda answer: answer[:4]}, "step returned 4 values.*old Gym"),
    ],
)
def test_answers_of_vector_environments_have_two_and_five_parts(fault, expected):
    with pytest.raises(ContractError, match=expected):
        collected(Vector(**fault))


@pytest.mark.parametrize("missing", ["single_observation_space", "single_action_space", "num_envs"])
def test_a_vector_environment_that_lacks_something_is_refused_at_the_door(missing):
    env = Vector()
    setattr(env, missing, None)
    with pytest.raises(ValueError, match=f"Vector has {missing} = None, expected .*__init__"):
        keras_pg.A2C(seed=0).fit(env)


def same_step():
    return SyncVectorEnv([lambda: Clockwork((3,))] * 2, autoreset_mode=AutoresetMode.SAME_STEP)


def test_infos_may_be_a_list():
    expected, rollout = collected(same_step()), collected(DictInfoToList(same_step()))
    assert expected.truncated.any() and expected.terminated.any()
    for found, wanted in zip(rollout, expected):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("infos", [{}, [{}, {}], {"final_observation": [1, 2]}, None])
def test_infos_without_the_final_observation_are_an_error(infos):
    class Silent(VectorWrapper):
        def step(self, actions):
            return *self.env.step(actions)[:4], infos

    with pytest.raises(ContractError, match=r"step 2: .*SAME_STEP, but infos have no final_obs"):
        collected(Silent(same_step()))


# -------------------------------------------------------------------------------- separate objects


class Wrapped(gymnasium.Wrapper):
    """A wrapper that changes nothing."""


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("wrap", [lambda env: env, Wrapped], ids=["itself", "wrapped"])
def test_a_factory_that_returns_one_environment_is_refused(wrap, vectorization):
    one = Scripted()
    agent = keras_pg.A2C(seed=0)
    with pytest.raises(ValueError, match=r"same environment for.*`lambda: Scripted\(\.\.\.\)`"):
        agent.fit(lambda: wrap(one), vectorization=vectorization)
    with pytest.raises(ValueError, match="same environment"):
        agent.evaluate(lambda: wrap(one), vectorization=vectorization)
    with pytest.raises(ValueError, match="same environment"):
        agent.fit(Scripted, validation_env=lambda: wrap(one), verbose=0)
    assert agent.actor is None or int(agent.iteration) == 0


def test_an_environment_that_somebody_else_holds_stays_open_when_it_is_refused():
    closed = []

    class Closing(Scripted):
        def close(self):
            closed.append(self)

    one = Closing()
    with pytest.raises(ValueError, match="environments 0 and 1"):
        make_vector_env(lambda: Wrapped(one), 3)
    assert not closed


def test_one_environment_may_be_given_by_a_factory_that_makes_it_alone():
    one = Scripted()
    env, ours = make_vector_env(lambda: one, 1)
    assert env.envs == [one] and ours


@pytest.mark.parametrize(
    "pair",
    [
        lambda one: (one, Wrapped(one)),
        lambda one: (Wrapped(one), lambda: Wrapped(one)),
        lambda one: (SyncVectorEnv([lambda: one]), one),
        lambda one: (SyncVectorEnv([lambda: one]), SyncVectorEnv([lambda: Wrapped(one)])),
    ],
)
def test_training_and_validation_share_no_environment(pair):
    env, validation_env = pair(Scripted())
    agent = keras_pg.A2C(seed=0)
    agent.compile(run_eagerly=True)
    with pytest.raises(ValueError, match=r"env and validation_env are the same object.*own"):
        agent.fit(env, validation_env=validation_env, validation_episodes=1, verbose=0)
    assert agent.actor is None or int(agent.iteration) == 0


@pytest.mark.parametrize(
    ("made", "advice"),
    [
        (None, "A `return` may be missing"),
        (Scripted, r"That is a class: return an object, `Scripted\(\)`"),
        (Vector(), "Give it itself in place of the factory"),
        (keras_pg.envs.CartPole(), "Give it itself in place of the factory"),
        (42, "Derive its class from gymnasium.Env"),
    ],
    ids=["None", "class", "vector", "native", "number"],
)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_a_factory_returns_must_be_an_environment(made, advice, vectorization):
    with pytest.raises(TypeError, match=advice):
        make_vector_env(lambda: made, 2, vectorization)
