"""The agents: one algorithm a file."""

from keras_pg.agents.a2c import A2C
from keras_pg.agents.agent import Agent
from keras_pg.agents.grpo import GRPO
from keras_pg.agents.mdpo import MDPO
from keras_pg.agents.npg import NPG
from keras_pg.agents.ppo import PPO
from keras_pg.agents.reinforce import REINFORCE
from keras_pg.agents.trpo import TRPO

__all__ = ["A2C", "GRPO", "MDPO", "NPG", "PPO", "REINFORCE", "TRPO", "Agent"]
