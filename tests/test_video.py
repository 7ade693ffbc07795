"""Videos of policies: what is seen in them, and what is not touched by taking them."""

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.utils.env_checker import check_env
from PIL import Image, ImageSequence

import keras_pg
from keras_pg import cli, envs

DRAWN = sorted(set(envs.NAMES) - {"ContextualBandit-v0"})


def pictures(path):
    """(RGB pictures, milliseconds that each is shown) of a GIF."""
    with Image.open(path) as gif:
        frames = ImageSequence.Iterator(gif)
        seen = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in frames]
    return zip(*seen, strict=True)


class Line(envs.NativeEnv):
    """A walk of 4 steps to the right, whatever the actions are; where it is, is drawn."""

    observation_space = gymnasium.spaces.Box(0.0, 4.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, seeds):
        return tf.zeros_like(seeds[:, :1], tf.float32)

    def observe(self, state):
        return state

    def step(self, state, actions, seeds):
        state = state + 1.0
        return state, tf.ones_like(state[:, 0]), state[:, 0] >= 4.0

    def render(self, state):
        picture = np.zeros((8, 40, 3), np.uint8)
        start = 8 * int(state[0])
        picture[:, start : start + 8] = (255, 0, 0)
        return picture


@pytest.mark.parametrize("episodes", [1, 3])
def test_every_state_of_the_episodes_is_seen_in_turn(tmp_path, episodes):
    played = keras_pg.A2C(seed=0).record(Line(), tmp_path / "new" / "line.gif", episodes)
    assert played == {"episode_return": 4.0, "episode_length": 4.0}
    seen, milliseconds = pictures(tmp_path / "new" / "line.gif")
    places = [picture[0, :, 0].argmax() // 8 for picture in seen]
    assert places == [0, 1, 2, 3, 4] * episodes
    assert milliseconds == (*[100] * (5 * episodes - 1), 1000)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["line.gif"]


def test_what_is_fast_is_seen_in_its_own_time_in_fewer_pictures(tmp_path):
    path = tmp_path / "cartpole.gif"
    played = keras_pg.A2C(seed=0).record("CartPole-v1", path, deterministic=False)
    seen, milliseconds = pictures(path)
    assert len(seen) <= played["episode_length"] / 2 + 2
    before_the_last = sum(milliseconds[:-1])
    assert abs(before_the_last - 20 * played["episode_length"]) <= 40


def test_the_agent_is_as_before(tmp_path):
    agent, env = keras_pg.A2C(seed=0), envs.Gridworld()
    agent.evaluate(env, episodes=2, verbose=0)
    before, evaluation = agent.get_weights(), agent.evaluation()
    first = agent.record(env, tmp_path / "a.gif", deterministic=False)
    assert agent.record(env, tmp_path / "b.gif", deterministic=False) == first
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    agent.record(env, tmp_path / "c.gif", deterministic=False, seed=1)
    assert (tmp_path / "a.gif").read_bytes() != (tmp_path / "c.gif").read_bytes()
    for one, other in zip(before, agent.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert agent.evaluation() == evaluation


def test_environments_of_the_user_stay_open_and_those_of_a_factory_do_not(tmp_path):
    closed = []

    class Closing(gymnasium.Wrapper):
        def close(self):
            closed.append(self)
            super().close()

    def make():
        return Closing(gymnasium.make("keras_pg/Catch-v0", render_mode="rgb_array"))

    env, agent = make(), keras_pg.A2C(seed=0)
    agent.record(env, tmp_path / "catch.gif")
    assert closed == []
    agent.record(env, tmp_path / "catch.gif")
    agent.record(make, tmp_path / "catch.gif")
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("env", "path", "error", "words"),
    [
        ("CartPole-v1", "policy.mp4", ValueError, "animated GIF.*policy.gif.*RecordVideo"),
        (lambda: gymnasium.make("CartPole-v1"), "policy.gif", ValueError, "render_mode=None"),
        (envs.ContextualBandit(), "policy.gif", NotImplementedError, "ContextualBandit draws"),
        (envs.to_gymnasium(Line(), 2), "policy.gif", TypeError, "one environment.*Native"),
        (3, "policy.gif", TypeError, "received 3"),
    ],
    ids=["format", "mode", "no render", "vector", "number"],
)
def test_what_cannot_be_recorded_is_said_and_writes_nothing(tmp_path, env, path, error, words):
    with pytest.raises(error, match=words):
        keras_pg.A2C(seed=0).record(env, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_by_its_extra(tmp_path):
    class Undrawn(gymnasium.Wrapper):
        def render(self):
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed.")

    env = Undrawn(gymnasium.make("CartPole-v1", render_mode="rgb_array"))
    with pytest.raises(ImportError, match=r"pygame is not installed.*pip install \"\.\[video\]\""):
        keras_pg.A2C(seed=0).record(env, tmp_path / "policy.gif")


def test_an_episode_without_an_end_is_an_error_and_not_all_of_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_pg.video._MOST_PICTURES", 30)
    with pytest.raises(RuntimeError, match=r"30 pictures.*TimeLimit"):
        keras_pg.A2C(seed=0).record("keras_pg/TMaze-v0", tmp_path / "maze.gif")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(tmp_path, capsys):
    agent = keras_pg.A2C(seed=0)
    agent.build(envs.Catch().observation_space, envs.Catch().action_space)
    agent.save(tmp_path / "agent.keras")
    agent, video = (str(tmp_path / name) for name in ("agent.keras", "catch.gif"))
    command = ["evaluate", agent, "keras_pg/Catch-v0", "--episodes", "2", "--video"]
    assert cli.main([*command, video]) == 0
    assert f'"video": "{video}"' in capsys.readouterr().out
    assert sum(milliseconds for milliseconds in list(pictures(video))[1]) == 1900
    assert cli.main([*command, "catch.mp4"]) == 2
    assert "animated GIF" in capsys.readouterr().err


# --------------------------------------------------------------------- what native ones draw


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.filterwarnings("ignore:.*(Box|symmetric|infinity|deprecat)")
def test_gymnasiums_checker_accepts_the_pictures(name):
    check_env(gymnasium.make(f"keras_pg/{name}", render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("name", [name for name in DRAWN if name in gymnasium.registry])
def test_classic_control_is_drawn_as_by_gymnasium(name):
    ours, theirs = envs.NAMES[name](), gymnasium.make(name, render_mode="rgb_array").unwrapped
    theirs.reset(seed=0)
    state = np.array(theirs.state, np.float32)
    theirs.state = state.astype(np.float64)
    picture = ours.render(state)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, theirs.render())


def test_a_stack_is_drawn_as_what_is_in_it():
    env = envs.FrameStack(envs.Catch(), 3)
    state = tf.nest.map_structure(lambda x: x[0].numpy(), env.reset(tf.constant([[3, 4]])))
    np.testing.assert_array_equal(env.render(state), envs.Catch().render(state["state"]))
    assert env.render_fps == envs.Catch.render_fps


def test_boards_show_what_is_observed():
    """Each channel of an observation of Breakout and each thing of Catch has a colour."""
    for env, steps in ((envs.Breakout(), 6), (envs.Catch(), 4)):
        seeds = tf.constant([[0, 0]], tf.int64)
        state = env.reset(seeds)
        for _ in range(steps):
            state, _, _ = env.step(state, tf.constant([2], tf.int64), seeds)
        observed = env.observe(state)[0].numpy()
        fields = env.render(tf.nest.map_structure(lambda x: x[0].numpy(), state))[16::32, 16::32]
        empty = fields[-1, 0]
        assert np.array_equal(np.any(fields != empty, axis=-1), np.any(observed, axis=-1))
