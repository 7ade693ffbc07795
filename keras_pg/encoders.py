"""Networks from observations to features, as plain Keras models."""

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from keras_pg.hyperparameters import check_count


def mlp(units=(64, 64), activation="tanh", seed=None):
    """A multilayer perceptron with orthogonal initialization of gain √2.

    Args:
        units: width of each hidden layer.
        activation: any Keras activation.
        seed: makes the initial weights reproducible.

    Returns:
        An unbuilt `keras.Sequential`, features [B, units[-1]] out.
    """

    def layer(i, width):
        initializer = keras.initializers.Orthogonal(np.sqrt(2), seed=nth_seed(seed, i))
        return keras.layers.Dense(
            width, activation, kernel_initializer=initializer, name=f"dense_{i + 1}"
        )

    return keras.Sequential([layer(i, width) for i, width in enumerate(units)])


@keras.saving.register_keras_serializable("keras_pg")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose gradient XLA computes fast on a CPU; for encoders of images.

    Where XLA compiles it, it is a matrix product of the kernel and the patches that it covers, the
    same numbers but for rounding: the gradient of XLA's own convolution takes ten times as long
    inside of a loop, as training is. Elsewhere, as where Python steps the environments or where the
    policy is served, it is Keras's.

    Args:
        filters, kernel_size, strides, activation, ...: as of `keras.layers.Conv2D`. XLA's own is
            left as it is where channels are first, and with dilation or groups.

    Example:
    >>> import keras
    >>> encoder = keras.Sequential([Conv2D(16, 3), keras.layers.Flatten()])
    >>> encoder(keras.Input((10, 10, 4))).shape
    (None, 1024)
    """

    @property
    def has_patches(self):
        """Whether it is made of patches where XLA compiles it."""
        return (
            self.data_format == "channels_last"
            and self.groups == 1
            and set(self.dilation_rate) == {1}
        )

    def convolution_op(self, inputs, kernel):
        if self.has_patches and compiled_by_xla():
            if self.padding == "same":
                inputs = _padded(inputs, kernel.shape[:2], self.strides)
            return _convolution_by_patches(inputs, kernel, self.strides)
        return super().convolution_op(inputs, kernel)


def compiled_by_xla():
    """Whether what is traced now is part of a program that XLA compiles."""
    return GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _padded(images, kernel_size, strides):
    """Images with the zeros around them that padding "same" puts there."""
    paddings = [(0, 0)]
    for length, size, stride in zip(images.shape[1:3], kernel_size, strides):
        zeros = max((-(-length // stride) - 1) * stride + size - length, 0)
        paddings.append((zeros // 2, zeros - zeros // 2))
    return tf.pad(images, [*paddings, (0, 0)])


def _convolution_by_patches(images, kernel, strides):
    """`tf.nn.conv2d` without padding: images [B, H, W, C], kernel [h, w, C, F] → [B, H', W', F].

    With strides (s, t), s x t pixels are one with s·t·C channels, among which strides are 1.
    """
    (h, w, channels, filters), (s, t) = kernel.shape, strides
    rows, columns = (images.shape[1] - h) // s + 1, (images.shape[2] - w) // t + 1
    # The larger pixels that the kernel covers, in part at its end, and those of the image.
    m, n = -(-h // s), -(-w // t)
    height, width = rows + m - 1, columns + n - 1
    images = _fitted(images, 1, height * s, width * t)
    images = tf.reshape(images, (-1, height, s, width, t, channels))
    images = tf.transpose(images, (0, 1, 3, 2, 4, 5))
    images = tf.reshape(images, (-1, height, width, s * t * channels))
    kernel = tf.reshape(_fitted(kernel, 0, m * s, n * t), (m, s, n, t, channels, filters))
    kernel = tf.reshape(tf.transpose(kernel, (0, 2, 1, 3, 4, 5)), (-1, filters))
    patches = tf.concat(
        [images[:, i : i + rows, j : j + columns] for i in range(m) for j in range(n)], axis=-1
    )
    product = tf.reshape(patches, (-1, kernel.shape[0])) @ kernel
    return tf.reshape(product, (-1, rows, columns, filters))


def _fitted(x, axis, *sizes):
    """`x` cut or filled with zeros at its end, to these sizes of consecutive axes."""
    paddings = np.zeros((len(x.shape), 2), int)
    for i, size in enumerate(sizes, start=axis):
        x = x[(slice(None),) * i + (slice(size),)]
        paddings[i, 1] = size - x.shape[i]
    return tf.pad(x, paddings)


def has_slow_gradient(network):
    """Whether a Keras model has convolutions, in two dimensions, whose gradient XLA is slow at."""
    return any(
        isinstance(layer, keras.layers.Conv2D)
        and not (isinstance(layer, Conv2D) and layer.has_patches)
        for layer in network._flatten_layers()
    )


def cnn(
    convolutions=((32, 8, 4), (64, 4, 2), (64, 3, 1)), units=(512,), activation="relu", seed=None
):
    """A convolutional network with orthogonal initialization of gain √2; images need no padding.

    The default is the network of Mnih et al., 2015, "Human-level control through deep reinforcement
    learning", for images of at least 36 x 36.

    Args:
        convolutions: (filters, kernel size, stride) of each convolution.
        units: width of each hidden layer after them.
        activation: any Keras activation.
        seed: makes the initial weights reproducible.

    Returns:
        An unbuilt `keras.Sequential`, images [B, height, width, channels] in, features
        [B, units[-1]] out.
    """

    def layer(i, filters, size, stride):
        initializer = keras.initializers.Orthogonal(np.sqrt(2), seed=nth_seed(seed, 100 + i))
        return Conv2D(
            filters,
            size,
            stride,
            activation=activation,
            kernel_initializer=initializer,
            name=f"conv_{i + 1}",
        )

    first = [layer(i, *numbers) for i, numbers in enumerate(convolutions)]
    return keras.Sequential(
        [*first, keras.layers.Flatten(name="flatten"), *mlp(units, activation, seed=seed).layers]
    )


def default_encoder(shape, seed):
    """The network for observations of a shape; of rank 3, for images with their channels last."""
    if len(shape) == 1:
        layers = mlp(seed=seed).layers
    elif len(shape) == 3 and min(shape[:2]) >= 36:
        layers = cnn(seed=seed).layers
    elif len(shape) == 3 and min(shape[:2]) >= 3:
        layers = cnn(((16, 3, 1),), (128,), seed=seed).layers
    else:
        layers = [keras.layers.Flatten(name="flatten"), *mlp(seed=seed).layers]
    return keras.Sequential(layers, name="encoder")


def nth_seed(seed, n):
    """Independent seeds for the layers of one network; None stays None."""
    if seed is None:
        return None
    seed = check_count("seed", seed, least=0)
    return int(np.random.SeedSequence([seed, n]).generate_state(1)[0] >> 1)
