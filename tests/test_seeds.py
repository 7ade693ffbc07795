"""Seeds that do not fit are refused where they are given, before anything is played or learnt."""

import numpy as np
import pytest

import keras_pg
from keras_pg import diagnostics, encoders
from keras_pg.hyperparameters import LARGEST_SEED

WRONG = [-1, LARGEST_SEED + 1, 2**70, 1.5, "3", True]
REFUSAL = r"seed must be an integer from 0 to 2\*\*62, received"


@pytest.mark.parametrize("seed", WRONG)
def test_a_seed_that_does_not_fit_is_refused_by_all_that_take_one(seed, tmp_path):
    for make in (keras_pg.A2C, keras_pg.GRPO, keras_pg.TRPO):
        with pytest.raises(ValueError, match=REFUSAL):
            make(seed=seed)
    agent = keras_pg.A2C(seed=0)
    with pytest.raises(ValueError, match=REFUSAL):
        agent.evaluate("CartPole-v1", episodes=1, seed=seed)
    with pytest.raises(ValueError, match=REFUSAL):
        agent.record("CartPole-v1", tmp_path / "a.gif", seed=seed)
    with pytest.raises(ValueError, match=REFUSAL):
        diagnostics.gradient_statistics(agent, "CartPole-v1", seed=seed)
    assert agent.actor is None  # nothing was begun


@pytest.mark.parametrize("encoder", [encoders.mlp, encoders.cnn])
def test_networks_name_a_seed_that_is_negative_or_no_integer(encoder):
    for seed in (-1, 1.5, "3"):
        with pytest.raises(ValueError, match="seed must be an integer of at least 0, received"):
            encoder(seed=seed)


@pytest.mark.usefixtures("without_xla")
@pytest.mark.parametrize("env", ["CartPole-v1", "keras_pg/CartPole-v1"])
def test_the_largest_seed_leaves_room_for_those_derived_from_it(env):
    agent = keras_pg.A2C(seed=LARGEST_SEED)
    agent.fit(env, epochs=2, steps_per_epoch=1, validation_env=env, verbose=0)
    agent.evaluate(env, episodes=3, seed=np.int64(LARGEST_SEED), verbose=0)
    assert int(agent.iteration) == 2
