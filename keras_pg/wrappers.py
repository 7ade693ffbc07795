"""Wrappers that give a Gymnasium environment the form in which agents take it."""

import gymnasium
import numpy as np

from keras_pg import spaces


class ActionMask(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Puts a mask of the legal actions beside the observation.

    Observations become {"observation": what it was, "action_mask": int8 [Σ n_i], 1 where legal}.
    An agent gives the other actions probability 0, in training and wherever its policy runs.

    Args:
        env: an environment with Discrete actions, or MultiDiscrete ones of rank 1, whose mask has
            the choices of one component after the other.
        legal_actions: a function from the unwrapped environment to the mask, called after each
            reset and step; None takes `info["action_mask"]`, as Gymnasium's Taxi gives it. Where
            an episode terminates it may be missing: nothing is legal then.

    Raises:
        ValueError: the actions are of another kind, or there is no mask of the right length, of 0
            and 1 or of booleans.

    Example:
    >>> import gymnasium
    >>> env = ActionMask(gymnasium.make("Taxi-v4"))
    >>> observation, _ = env.reset(seed=0)
    >>> observation["action_mask"].tolist()  # neither east nor west, and nobody to pick up
    [1, 1, 0, 0, 0, 0]
    """

    def __init__(self, env, legal_actions=None):
        gymnasium.utils.RecordConstructorArgs.__init__(self, legal_actions=legal_actions)
        gymnasium.Wrapper.__init__(self, env)
        self.legal_actions = legal_actions
        sizes = spaces.action_components(env.action_space) or [0]
        self.observation_space = gymnasium.spaces.Dict(
            observation=env.observation_space,
            action_mask=gymnasium.spaces.MultiBinary(max(sum(sizes), 1)),
        )
        spaces.check_observation_space(self.observation_space)
        spaces.check_mask(self.observation_space, env.action_space)
        spaces.check_action_space(env.action_space)

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        return self._masked(observation, info), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        masked = self._masked(observation, info, terminated)
        return masked, reward, terminated, truncated, info

    def _masked(self, observation, info, terminated=False):
        shape = self.observation_space["action_mask"].shape
        if self.legal_actions is not None:
            mask = self.legal_actions(self.env.unwrapped)
        elif "action_mask" in info:
            mask = info["action_mask"]
        elif terminated:
            mask = np.zeros(shape, np.int8)  # Nobody acts in it or asks for its value.
        else:
            raise ValueError(
                f"{self.env} gives no info['action_mask'], only {list(info)}: pass legal_actions, "
                "a function from the environment to the mask."
            )
        mask = np.asarray(mask)
        if mask.shape != shape:
            raise ValueError(
                f"A mask of {self.env.action_space} has the shape {shape}, received {mask.shape}."
            )
        if spaces.neither_0_nor_1(mask).any():
            raise ValueError(f"A mask has 0 or 1 for each choice, received {mask.tolist()}.")
        return {"observation": observation, "action_mask": mask.astype(np.int8)}
