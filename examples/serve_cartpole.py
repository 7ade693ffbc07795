"""Serve a policy, play with it over REST and gRPC, and replace it by a better one meanwhile.

Needs the extra `serve` (pip install ".[serve]" in the clone). The server speaks TensorFlow
Serving's protocols; for production start that instead, on the same directory (export/README.md).
"""

import atexit
import pathlib
import socket
import subprocess
import sys
import threading

import gymnasium
import numpy as np

import keras_pg

sys.path.append(str(pathlib.Path(__file__).parents[1] / "export" / "clients"))
from grpc_client import GrpcPolicy
from play import play
from rest_client import RestPolicy


def free_port():
    """A port on which nobody listens; a server that stays takes the defaults, 8500 and 8501."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


agent = keras_pg.PPO(seed=0)
agent.fit("CartPole-v1", total_timesteps=8_000)
agent.export("policies/cartpole")

command = [sys.executable, "-m", "keras_pg", "serve", "policies/cartpole"]
grpc_port, rest_port = free_port(), free_port()
ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}"]
server = subprocess.Popen([*command, *ports], stdout=subprocess.PIPE)
atexit.register(server.terminate)
print(server.stdout.readline().decode(), server.stdout.readline().decode())  # it is ready

env = gymnasium.make("CartPole-v1")
over_rest = RestPolicy(f"http://127.0.0.1:{rest_port}", "cartpole")
over_grpc = GrpcPolicy(f"127.0.0.1:{grpc_port}", "cartpole")
evaluated = agent.evaluate("CartPole-v1", episodes=20, num_envs=20, seed=0, verbose=0)
print("mean return, agent.evaluate:", evaluated["episode_return"])
in_process = play(agent.act, env, episodes=20, seed=0)
assert np.isclose(np.mean(in_process), evaluated["episode_return"])
for protocol, policy in (("REST", over_rest), ("gRPC", over_grpc)):
    returns = play(policy, env, episodes=20, seed=0)
    print(f"mean return over {protocol}:", np.mean(returns))
    assert returns == in_process  # episode by episode

# One thread goes on playing, while this one trains on and exports again.
played, stop = [], threading.Event()


def keep_playing():
    """Plays episodes, and notes which version played each."""
    while not stop.is_set():
        total = play(over_grpc, env, episodes=1, seed=len(played))[0]
        played.append((over_grpc.version, total))


player = threading.Thread(target=keep_playing)
player.start()
agent.fit("CartPole-v1", total_timesteps=60_000)
new = int(agent.export("policies/cartpole").name)
while player.is_alive() and new not in {version for version, _ in played}:
    player.join(0.1)
player.join(1)
stop.set()
player.join()
server.terminate()
for version in sorted({version for version, _ in played}):
    returns = [total for number, total in played if number == version]
    print(f"version {version}: {len(returns)} episodes, mean return {np.mean(returns):.0f}")
