"""The agents: one algorithm a file."""

from keras_pg.agents.agent import Agent
from keras_pg.agents.ppo import PPO

__all__ = ["PPO", "Agent"]
