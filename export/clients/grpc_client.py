"""Asks a served policy for actions over gRPC.

    python grpc_client.py 127.0.0.1:8500 cartpole [LABEL]

Needs `tensorflow-serving-api`, which brings grpcio and TensorFlow.
"""

import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class GrpcPolicy:
    """A served policy as a function of observations.

    Args:
        address: such as "127.0.0.1:8500".
        name: the model's.
        label: ask for the version with this label; the newest without.
        dtype: of the observations, such as "float32" or "uint8"; the server takes no other than the
            policy's. A policy with action masks has one each, such as
            {"observation": "float32", "action_mask": "int8"}.

    Attributes:
        version: which answered last.
    """

    def __init__(self, address, name, label=None, dtype="float32"):
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(
            grpc.insecure_channel(address)
        )
        self._name, self._label, self._dtypes = name, label, _named(dtype)
        self.version = None

    def __call__(self, observations):
        """The actions for a batch of observations, as an array.

        Of a policy with action masks they are {"observation": ..., "action_mask": ...}.
        """
        inputs = _named(observations)
        if missing := sorted(inputs.keys() - self._dtypes.keys()):
            raise ValueError(
                f"There is no dtype for {missing}. A policy with action masks needs one for each "
                'input, such as dtype={"observation": "float32", "action_mask": "int8"}.'
            )
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self._name
        if self._label is not None:
            request.model_spec.version_label = self._label
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array, self._dtypes[name]))
        response = self._stub.Predict(request, timeout=10)
        self.version = response.model_spec.version.value
        return tf.make_ndarray(response.outputs["action"])


def _named(value):
    return value if isinstance(value, dict) else {"observation": value}


if __name__ == "__main__":
    address, name, *label = sys.argv[1:]
    print(GrpcPolicy(address, name, *label)([[0.0, 0.1, 0.02, -0.1]]))
