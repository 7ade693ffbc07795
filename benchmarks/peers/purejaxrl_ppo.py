"""Runs purejaxrl's own `ppo.py` and prints one JSON line of measurements.

    python purejaxrl_ppo.py PATH_TO_ITS_REPOSITORY --num-envs 4 --num-steps 128

The whole training is one compiled program, as its authors run it; compiling is timed apart. Brax
and Navix, which its wrappers import and CartPole does not use, need not be installed. The debugging
output of its script, a callback into Python in each iteration, is off.
"""

import sys
import time
import types

import native_protocol
import numpy as np

ENVIRONMENTS = {"CartPole": "CartPole-v1", "Breakout": "Breakout-MinAtar"}


def main():
    arguments = native_protocol.parse_arguments(__doc__, "repository", envs=ENVIRONMENTS)
    sys.path.insert(0, f"{arguments.repository}/purejaxrl")
    for absent in (
        "brax",
        "brax.envs",
        "brax.envs.wrappers",
        "brax.envs.wrappers.training",
        "navix",
    ):
        module = sys.modules[absent] = types.ModuleType(absent)
        module.envs, module.EpisodeWrapper, module.AutoResetWrapper = module, None, None
    import jax
    import ppo

    settings = native_protocol.SETTINGS[arguments.env]
    config = {
        "LR": settings["learning_rate"],
        "NUM_ENVS": arguments.num_envs,
        "NUM_STEPS": arguments.num_steps,
        "TOTAL_TIMESTEPS": arguments.total_timesteps,
        "UPDATE_EPOCHS": 4,
        "NUM_MINIBATCHES": settings["num_minibatches"],
        "GAMMA": 0.99,
        "GAE_LAMBDA": 0.95,
        "CLIP_EPS": 0.2,
        "ENT_COEF": 0.01,
        "VF_COEF": 0.5,
        "MAX_GRAD_NORM": 0.5,
        "ACTIVATION": settings["activation"],
        "ENV_NAME": ENVIRONMENTS[arguments.env],
        "ANNEAL_LR": True,
        "DEBUG": False,
    }
    start = time.perf_counter()
    train = jax.jit(ppo.make_train(config)).lower(jax.random.PRNGKey(arguments.seed)).compile()
    compiled = time.perf_counter()
    outputs = jax.block_until_ready(train(jax.random.PRNGKey(arguments.seed)))
    done = time.perf_counter()
    returns = np.asarray(outputs["metrics"]["returned_episode_returns"])
    ended = np.asarray(outputs["metrics"]["returned_episode"])
    size = arguments.num_envs * arguments.num_steps
    parts = np.array_split(np.arange(len(returns)), native_protocol.CURVE_POINTS)
    curve = [
        [int(part[-1] + 1) * size, float(returns[part][ended[part]].mean())]
        for part in parts
        if len(part) and ended[part].any()
    ]
    returns, ended = returns[-10:], ended[-10:]
    native_protocol.print_report(
        "purejaxrl",
        ("jax", "jaxlib", "flax", "optax", "distrax", "gymnax", "numpy"),
        arguments,
        env_steps=config["NUM_UPDATES"] * arguments.num_envs * arguments.num_steps,
        compile_seconds=compiled - start,
        run_seconds=done - compiled,
        training_return=float(returns[ended].mean()) if ended.any() else None,
        curve=curve,
    )


if __name__ == "__main__":
    main()
