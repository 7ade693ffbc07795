"""Asks a served policy for actions over REST.

    python rest_client.py http://127.0.0.1:8501 cartpole [LABEL]

Needs `requests` and NumPy.
"""

import sys

import numpy as np
import requests


class RestPolicy:
    """A served policy as a function of observations.

    Args:
        address: such as "http://127.0.0.1:8501".
        name: the model's.
        label: ask for the version with this label; the newest without.
    """

    def __init__(self, address, name, label=None):
        of_label = "" if label is None else f"/labels/{label}"
        self._url = f"{address}/v1/models/{name}{of_label}:predict"
        self._session = requests.Session()  # keeps the connection

    def __call__(self, observations):
        """The actions for a batch of observations, as an array.

        Of a policy with action masks they are {"observation": ..., "action_mask": ...}.
        """
        named = observations if isinstance(observations, dict) else {"observation": observations}
        inputs = {name: np.asarray(array).tolist() for name, array in named.items()}
        response = self._session.post(self._url, json={"inputs": inputs}, timeout=10)
        if response.status_code != 200:  # not always JSON, such as from a proxy
            raise RuntimeError(f"{self._url}: {response.status_code}, {response.text}")
        return np.array(response.json()["outputs"]["action"])


if __name__ == "__main__":
    address, name, *label = sys.argv[1:]
    print(RestPolicy(address, name, *label)([[0.0, 0.1, 0.02, -0.1]]))
