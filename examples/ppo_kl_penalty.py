"""PPO on CartPole with a KL penalty in place of clipping; its coefficient follows a target KL."""

import keras

import keras_pg


class PrintPenalty(keras.callbacks.Callback):
    """Says after each epoch what the penalty's coefficient has become."""

    def on_epoch_end(self, epoch, logs=None):
        print(
            f"epoch {epoch + 1}: β = {float(self.model.kl_penalty):g}, "
            f"approx_kl = {logs['approx_kl']:.4f}, return = {logs['episode_return']:.1f}"
        )


agent = keras_pg.PPO(clip_ratio=None, kl_penalty=1.0, kl_penalty_target=0.01, seed=0)
agent.fit("CartPole-v1", total_timesteps=60_000, callbacks=[PrintPenalty()], verbose=0)
print(agent.evaluate("CartPole-v1", episodes=100, verbose=0))
