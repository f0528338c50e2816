"""torch-fidelity's Inception network, without weights.

Import this module only where it is used: torch-fidelity takes seconds to import.
"""

import io

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as resize_like_tensorflow,
)

__all__ = ["Network", "resize_like_tensorflow"]


class Network(FeatureExtractorInceptionV3):
    """torch-fidelity's network on the meta device; load weights into it afterwards.

    Its own constructor always reads a file of weights, with a reader that can execute code, so it
    gets an empty file.
    """

    def __init__(self):
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with torch.device("meta"):
            super().__init__("inception", ["2048"], feature_extractor_weights_path=nothing)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return super().load_state_dict(state_dict, strict and bool(state_dict), assign)
