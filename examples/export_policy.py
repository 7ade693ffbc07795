"""Export a policy, and run it without keras_pg: TensorFlow Serving's format and LiteRT's."""

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_pg

agent = keras_pg.PPO(seed=0)
agent.fit("CartPole-v1", total_timesteps=20_000)
observations = np.float32([[0.0, 0.1, 0.0, -0.1], [0.0, -0.1, 0.02, 0.3]])
print("agent:           ", agent.act(observations))

version = agent.export("policies/cartpole")
policy = tf.saved_model.load(str(version))
served = policy.signatures["serving_default"](observation=tf.constant(observations))
print("SavedModel:      ", served["action"].numpy(), served["probabilities"].numpy())
sampled = policy.signatures["sample"](
    observation=tf.constant(observations), seed=tf.constant([[1, 2], [3, 4]])
)
print("sampled, seeded: ", sampled["action"].numpy(), sampled["log_prob"].numpy())

version = agent.export("policies/cartpole-lite", format="litert")
interpreter = Interpreter(str(version / "policy.tflite"))
lite = interpreter.get_signature_runner("serving_default")
print("LiteRT:          ", lite(observation=observations)["action"])
