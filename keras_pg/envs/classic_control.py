"""Gymnasium's classic control, in float32: the same equations, step for step.

Constants and equations are those of Gymnasium 1.4, which names the papers they come from.
"""

import math

import gymnasium
import numpy as np
import tensorflow as tf

from keras_pg import randomness
from keras_pg.envs.drawing import gymnasiums_picture
from keras_pg.envs.native_env import NativeEnv


def _symmetric(high):
    return gymnasium.spaces.Box(-np.float32(high), np.float32(high))


def _uniform(seeds, low, high):
    """Float32 [N, len(low)], uniform between the bounds."""
    low, high = np.float32(low), np.float32(high)
    return low + (high - low) * randomness.uniform(seeds, (len(low),))


class _ClassicControl(NativeEnv):
    """Is drawn by its original, which `gymnasium_id` names."""

    gymnasium_id = None

    def render(self, state):
        return gymnasiums_picture(self.gymnasium_id, state)


class CartPole(_ClassicControl):
    """A pole on a cart that is pushed left or right; 1 for each step until it falls.

    The state is the observation: position, velocity, angle, angular velocity.

    Source: Gymnasium's CartPole-v1; Barto, Sutton and Anderson, 1983.
    """

    gymnasium_id = "CartPole-v1"
    max_episode_steps = 500
    render_fps = 50
    # At twice these the episode is long over.
    threshold = 2.4, 12 * 2 * math.pi / 360
    observation_space = _symmetric([4.8, np.inf, 24 * 2 * math.pi / 360, np.inf])
    action_space = gymnasium.spaces.Discrete(2)

    gravity, cart_mass, pole_mass = 9.8, 1.0, 0.1
    half_length, force, tau = 0.5, 10.0, 0.02

    def reset(self, seeds):
        return _uniform(seeds, [-0.05] * 4, [0.05] * 4)

    def observe(self, state):
        return state

    def step(self, state, actions, seeds):
        x, x_dot, theta, theta_dot = tf.unstack(state, axis=-1)
        total_mass = self.cart_mass + self.pole_mass
        moment = self.pole_mass * self.half_length
        force = tf.where(tf.equal(actions, 1), self.force, -self.force)
        cos, sin = tf.cos(theta), tf.sin(theta)
        push = (force + moment * theta_dot**2 * sin) / total_mass
        theta_acc = (self.gravity * sin - cos * push) / (
            self.half_length * (4.0 / 3.0 - self.pole_mass * cos**2 / total_mass)
        )
        x_acc = push - moment * theta_acc * cos / total_mass
        x, x_dot = x + self.tau * x_dot, x_dot + self.tau * x_acc
        theta, theta_dot = theta + self.tau * theta_dot, theta_dot + self.tau * theta_acc
        far, low = self.threshold
        fell = (tf.abs(x) > far) | (tf.abs(theta) > low)
        return tf.stack([x, x_dot, theta, theta_dot], axis=-1), tf.ones_like(x), fell


class Acrobot(_ClassicControl):
    """Two links, of which the joint between them is driven; -1 a step until the tip swings up.

    The state is the two angles and their velocities; observed are cosine and sine of each angle.

    Source: Gymnasium's Acrobot-v1; Sutton, 1996, with the equations of Sutton and Barto's book.
    """

    gymnasium_id = "Acrobot-v1"
    max_episode_steps = 500
    render_fps = 15
    max_velocities = 4 * math.pi, 9 * math.pi
    observation_space = _symmetric([1.0, 1.0, 1.0, 1.0, *max_velocities])
    action_space = gymnasium.spaces.Discrete(3)

    gravity, dt = 9.8, 0.2
    mass = length = inertia = 1.0  # of each link
    centre = 0.5  # of its mass, along the link

    def reset(self, seeds):
        return _uniform(seeds, [-0.1] * 4, [0.1] * 4)

    def observe(self, state):
        theta1, theta2, velocity1, velocity2 = tf.unstack(state, axis=-1)
        each = tf.cos(theta1), tf.sin(theta1), tf.cos(theta2), tf.sin(theta2), velocity1, velocity2
        return tf.stack(each, axis=-1)

    def step(self, state, actions, seeds):
        torque = tf.cast(actions, tf.float32) - 1.0
        # Runge-Kutta of the fourth order.
        h = self.dt
        k1 = self._derivative(state, torque)
        k2 = self._derivative(state + h / 2 * k1, torque)
        k3 = self._derivative(state + h / 2 * k2, torque)
        k4 = self._derivative(state + h * k3, torque)
        theta1, theta2, velocity1, velocity2 = tf.unstack(
            state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), axis=-1
        )
        theta1, theta2 = _wrapped(theta1), _wrapped(theta2)
        bound1, bound2 = self.max_velocities
        velocity1 = tf.clip_by_value(velocity1, -bound1, bound1)
        velocity2 = tf.clip_by_value(velocity2, -bound2, bound2)
        up = -tf.cos(theta1) - tf.cos(theta2 + theta1) > 1.0
        state = tf.stack([theta1, theta2, velocity1, velocity2], axis=-1)
        return state, tf.where(up, 0.0, -1.0), up

    def _derivative(self, state, torque):
        theta1, theta2, velocity1, velocity2 = tf.unstack(state, axis=-1)
        m, g, length, centre = self.mass, self.gravity, self.length, self.centre
        cos2, sin2 = tf.cos(theta2), tf.sin(theta2)
        coupling = m * length * centre
        d1 = m * (centre**2 + length**2 + centre**2) + 2 * coupling * cos2 + 2 * self.inertia
        d2 = m * centre**2 + coupling * cos2 + self.inertia
        phi2 = m * centre * g * tf.cos(theta1 + theta2 - math.pi / 2)
        phi1 = (
            -coupling * velocity2 * (velocity2 + 2 * velocity1) * sin2
            + m * (centre + length) * g * tf.cos(theta1 - math.pi / 2)
            + phi2
        )
        acceleration2 = (torque + d2 / d1 * phi1 - coupling * velocity1**2 * sin2 - phi2) / (
            m * centre**2 + self.inertia - d2**2 / d1
        )
        acceleration1 = -(d2 * acceleration2 + phi1) / d1
        return tf.stack([velocity1, velocity2, acceleration1, acceleration2], axis=-1)


class Pendulum(_ClassicControl):
    """A pendulum to be swung up and held; the cost is of angle, speed and torque. Never terminates.

    The state is angle and angular velocity; observed are cosine and sine of the angle.

    Source: Gymnasium's Pendulum-v1.
    """

    gymnasium_id = "Pendulum-v1"
    max_episode_steps = 200
    render_fps = 30
    observation_space = _symmetric([1.0, 1.0, 8.0])
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,))

    gravity, mass, length, dt = 10.0, 1.0, 1.0, 0.05
    max_speed, max_torque = 8.0, 2.0

    def reset(self, seeds):
        return _uniform(seeds, [-math.pi, -1.0], [math.pi, 1.0])

    def observe(self, state):
        theta, speed = tf.unstack(state, axis=-1)
        return tf.stack([tf.cos(theta), tf.sin(theta), speed], axis=-1)

    def step(self, state, actions, seeds):
        theta, speed = tf.unstack(state, axis=-1)
        torque = tf.clip_by_value(actions[:, 0], -self.max_torque, self.max_torque)
        cost = _wrapped(theta) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
        gravitation = 3.0 * self.gravity / (2.0 * self.length) * tf.sin(theta)
        drive = 3.0 / (self.mass * self.length**2) * torque
        speed = speed + (gravitation + drive) * self.dt
        speed = tf.clip_by_value(speed, -self.max_speed, self.max_speed)
        theta = theta + speed * self.dt
        return tf.stack([theta, speed], axis=-1), -cost, tf.zeros_like(theta, tf.bool)


class MountainCar(_ClassicControl):
    """A car too weak to climb out of its valley at once; -1 a step until it is on the right hill.

    The state is the observation: position and velocity.

    Source: Gymnasium's MountainCar-v0; Moore, 1990.
    """

    gymnasium_id = "MountainCar-v0"
    max_episode_steps = 200
    render_fps = 30
    min_position, max_position, max_speed = -1.2, 0.6, 0.07
    observation_space = gymnasium.spaces.Box(
        np.float32([min_position, -max_speed]), np.float32([max_position, max_speed])
    )
    action_space = gymnasium.spaces.Discrete(3)

    goal, force, gravity = 0.5, 0.001, 0.0025

    def reset(self, seeds):
        return _uniform(seeds, [-0.6, 0.0], [-0.4, 0.0])

    def observe(self, state):
        return state

    def step(self, state, actions, seeds):
        state, arrived = self._drive(state, (tf.cast(actions, tf.float32) - 1.0) * self.force)
        return state, -tf.ones_like(state[:, 0]), arrived

    def _drive(self, state, acceleration):
        """(next state, whether it is at the goal)."""
        position, velocity = tf.unstack(state, axis=-1)
        velocity = velocity + acceleration - self.gravity * tf.cos(3.0 * position)
        velocity = tf.clip_by_value(velocity, -self.max_speed, self.max_speed)
        position = tf.clip_by_value(position + velocity, self.min_position, self.max_position)
        stopped = (position <= self.min_position) & (velocity < 0.0)
        velocity = tf.where(stopped, 0.0, velocity)
        arrived = (position >= self.goal) & (velocity >= 0.0)
        return tf.stack([position, velocity], axis=-1), arrived


class MountainCarContinuous(MountainCar):
    """The same with a motor that is set between -1 and 1; 100 at the goal, less what it used.

    Source: Gymnasium's MountainCarContinuous-v0.
    """

    gymnasium_id = "MountainCarContinuous-v0"
    max_episode_steps = 999
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    goal, force = 0.45, 0.0015

    def step(self, state, actions, seeds):
        motor = actions[:, 0]
        state, arrived = self._drive(state, tf.clip_by_value(motor, -1.0, 1.0) * self.force)
        return state, tf.where(arrived, 100.0, 0.0) - 0.1 * motor**2, arrived


def _wrapped(angle):
    """The angle in [-π, π)."""
    return tf.math.floormod(angle + math.pi, 2 * math.pi) - math.pi
