"""Runs the PPO of gymnax's baselines on CartPole-v1; prints one JSON line of measurements.

    python gymnax_blines_ppo.py PATH_TO_ITS_REPOSITORY --num-envs 4 --num-steps 128

Its loop is in Python, with a compiled step of all environments and a compiled update. Its networks
have relu where the others have tanh; of evosax, which its evolution strategies need, nothing is
used. Its evaluations are off. What the first two iterations take longer is counted as compiling.
"""

import sys
import time
import types

import native_protocol


def main():
    arguments = native_protocol.parse_arguments(__doc__, "repository")
    sys.path.insert(0, arguments.repository)
    sys.modules["evosax"] = types.SimpleNamespace(NetworkMapper={})
    import jax
    from utils import ppo
    from utils.models import get_model_ready

    config = types.SimpleNamespace(
        train_type="PPO",
        env_name="CartPole-v1",
        env_kwargs={},
        env_params={},
        num_train_steps=arguments.total_timesteps,
        evaluate_every_epochs=10**9,
        num_test_rollouts=1,
        num_train_envs=arguments.num_envs,
        n_steps=arguments.num_steps,
        n_minibatch=4,
        epoch_ppo=4,
        max_grad_norm=0.5,
        gamma=0.99,
        gae_lambda=0.95,
        lr_begin=2.5e-4,
        lr_end=2.5e-4,
        lr_warmup=0.05,
        clip_eps=0.2,
        entropy_coeff=0.01,
        critic_coeff=0.5,
        network_name="Categorical-MLP",
        network_config={"num_hidden_units": 64, "num_hidden_layers": 2},
    )
    update, ends = ppo.update, []

    def timed_update(*inputs):
        outputs = jax.block_until_ready(update(*inputs))
        ends.append(time.perf_counter())
        return outputs

    ppo.update = timed_update
    rng, init = jax.random.split(jax.random.PRNGKey(arguments.seed))
    start = time.perf_counter()
    model, params = get_model_ready(init, config)
    ppo.train_ppo(rng, config, model, params, mle_log=None)
    iteration = (ends[-1] - ends[1]) / (len(ends) - 2)
    native_protocol.print_report(
        "gymnax-blines",
        ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy"),
        arguments,
        env_steps=len(ends) * (arguments.num_steps + 1) * arguments.num_envs,
        compile_seconds=ends[1] - start - 2 * iteration,
        run_seconds=iteration * len(ends),
        training_return=None,
    )


if __name__ == "__main__":
    main()
