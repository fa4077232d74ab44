"""A Triton Python backend that computes nothing: the same output whatever comes in.

What a request through it costs is transport and nothing else. Runs in Triton's own environment.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

VOXELS_OF_A_BLOCK = 4096


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args):
        output = json.loads(args["model_config"])["output"][0]
        dtype = pb_utils.triton_string_to_numpy(output["data_type"])
        shape = [1, *(int(size) for size in output["dims"])]
        # As from a model: organs are blocks of high values in a volume of zeros.
        levels = np.zeros(int(np.prod(shape)), np.float32)
        levels.reshape(-1, VOXELS_OF_A_BLOCK)[::8] = 1.0
        if dtype == np.uint8:
            levels *= 255
        self._soft = levels.reshape(shape).astype(dtype)

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("soft", self._soft)])
            for _ in requests
        ]
