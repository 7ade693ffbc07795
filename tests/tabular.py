"""Small Markov decision processes whose policy gradient is known in closed form, in float64."""

from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from keras_pg.advantages import Evaluated


class MDP(NamedTuple):
    """S states, A actions; the last state is terminal if `terminal`.

    With a horizon H every episode ends after H steps, and that is part of the task: the value of a
    state depends on the time, and the last step terminates. Without one, episodes are cut after
    `steps` of them, late enough for the discount to have made the rest negligible.
    """

    transitions: np.ndarray  # [S, A, S]
    rewards: np.ndarray  # [S, A]
    start: np.ndarray  # [S]
    gamma: float
    steps: int
    terminal: bool = False
    horizon: bool = False


def loop():
    """Two states; action 1 mostly goes over to the other one, action 0 mostly stays."""
    stay = np.array([[0.9, 0.1], [0.2, 0.8]])
    transitions = np.stack([stay, stay[::-1]], axis=1)
    return MDP(transitions, np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([1.0, 0.0]), 0.8, 60)


def chain():
    """Five states in a row, left or right, reward at the right end, ten steps."""
    transitions = np.zeros((5, 2, 5))
    for s in range(5):
        transitions[s, 0, max(s - 1, 0)] += 0.9
        transitions[s, 1, min(s + 1, 4)] += 0.9
        transitions[s, :, s] += 0.1
    rewards = np.array([[0.1, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    return MDP(transitions, rewards, np.eye(5)[1], 0.9, 10, horizon=True)


def random_mdp():
    """Four states, of which the last is terminal, and three actions, drawn at random."""
    rng = np.random.default_rng(3)
    transitions = rng.dirichlet(np.ones(4), (4, 3))
    rewards = rng.normal(size=(4, 3))
    return MDP(transitions, rewards, np.array([0.5, 0.3, 0.2, 0.0]), 0.95, 60, terminal=True)


MDPS = {"loop": loop, "chain": chain, "random": random_mdp}


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def policy_of(mdp, seed=0):
    """Logits [S, A] of a policy that is neither uniform nor nearly deterministic."""
    return np.random.default_rng([seed, 7]).normal(0.0, 0.7, mdp.rewards.shape)


def values_of(mdp, logits):
    """V [T + 1, S] and Q [T, S, A] of the policy at each time."""
    policy = softmax(logits)
    alive = np.ones(len(policy))
    if mdp.terminal:
        alive[-1] = 0.0
    rewards, transitions = mdp.rewards * alive[:, None], mdp.transitions * alive[:, None, None]
    times = mdp.steps
    V, Q = np.zeros((times + 1, len(policy))), np.zeros((times, *policy.shape))
    if not mdp.horizon:
        markov = np.einsum("sa,sap->sp", policy, transitions)
        stationary = np.linalg.solve(
            np.eye(len(policy)) - mdp.gamma * markov, (policy * rewards).sum(-1)
        )
        V[:] = stationary
    for t in reversed(range(times)):
        Q[t] = rewards + mdp.gamma * transitions @ V[t + 1]
        if mdp.horizon:
            V[t] = (policy * Q[t]).sum(-1)
    return V, Q


def occupancy(mdp, logits):
    """P(s_t = s and the episode has not ended) [T, S]."""
    policy = softmax(logits)
    markov = np.einsum("sa,sap->sp", policy, mdp.transitions)
    distribution = [mdp.start]
    for _ in range(mdp.steps - 1):
        following = distribution[-1] @ markov
        distribution.append(following * np.r_[np.ones(len(following) - 1), not mdp.terminal])
    return np.array(distribution)


def exact_gradient(mdp, logits, discount_weighting=True):
    """Σ_t γ^t Σ_s P(s_t = s) π(a|s) (Q - V), [S, A]: the policy gradient theorem.

    Without weighting the factor γ^t is left out: what is usually followed, the gradient of nothing.
    """
    V, Q = values_of(mdp, logits)
    discounts = mdp.gamma ** np.arange(mdp.steps) if discount_weighting else np.ones(mdp.steps)
    weighted = occupancy(mdp, logits) * discounts[:, None]
    return np.einsum("ts,sa,tsa->sa", weighted, softmax(logits), Q - V[:-1, :, None])


def objective(mdp, logits):
    """J = Σ_s start(s) V_0(s)."""
    return mdp.start @ values_of(mdp, logits)[0][0]


def play(mdp, logits, episodes, seed=0):
    """(states [T, N], actions [T, N], `Evaluated` by the exact critic) of N whole episodes."""
    rng = np.random.default_rng(seed)
    policy, (V, Q) = softmax(logits), values_of(mdp, logits)
    T, n = mdp.steps, episodes
    states, actions = np.zeros((T, n), int), np.zeros((T, n), int)
    successors, terminated = np.zeros((T, n), int), np.zeros((T, n), bool)
    valid, alive = np.zeros((T, n), bool), np.ones(n, bool)
    state = _draw(rng, np.tile(mdp.start, (n, 1)))
    for t in range(T):
        action = _draw(rng, policy[state])
        following = _draw(rng, mdp.transitions[state, action])
        ends = (following == len(policy) - 1) & mdp.terminal | (mdp.horizon and t == T - 1)
        states[t], actions[t], successors[t] = state, action, following
        valid[t], terminated[t] = alive, ends & alive
        alive, state = alive & ~ends, following
    truncated = np.zeros((T, n), bool)
    truncated[-1] = valid[-1] & ~terminated[-1]
    times = np.tile(np.arange(T)[:, None], (1, n))
    evaluated = Evaluated(
        observations=states,
        rewards=mdp.rewards[states, actions],
        values=V[times, states],
        next_values=V[times + 1, successors],
        action_values=Q[times, states, actions],
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        timesteps=times.astype(np.int32),
        gamma=mdp.gamma,
        gae_lambda=0.95,
    )
    return states, actions, evaluated


def _draw(rng, probabilities):
    """One index for each row of probabilities."""
    return (rng.random((len(probabilities), 1)) > probabilities.cumsum(-1)).sum(-1)


def episode_gradients(logits, states, actions, psi, valid):
    """Σ_t Ψ_t ∇ log π(a_t|s_t) of each episode, [N, S·A]."""
    S, A = logits.shape
    scores = np.eye(A)[actions] - softmax(logits)[states]  # [T, N, A], in the logits of s_t
    weighted = np.where(valid, psi, 0.0)[..., None] * scores
    return np.einsum("tns,tna->nsa", np.eye(S)[states], weighted).reshape(-1, S * A)


class TabularEnv(gymnasium.Env):
    """An MDP as an environment."""

    def __init__(self, mdp):
        self.mdp = mdp
        S, A = mdp.rewards.shape
        self.observation_space, self.action_space = Discrete(S), Discrete(A)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.time = int(self.np_random.choice(len(self.mdp.start), p=self.mdp.start)), 0
        return self.state, {}

    def step(self, action):
        reward = self.mdp.rewards[self.state, action]
        row = self.mdp.transitions[self.state, action]
        self.state, self.time = int(self.np_random.choice(len(row), p=row)), self.time + 1
        out_of_time = self.time == self.mdp.steps
        terminated = self.mdp.terminal and self.state == len(row) - 1
        return (
            self.state,
            reward,
            terminated or (out_of_time and self.mdp.horizon),
            out_of_time and not self.mdp.horizon,
            {},
        )
