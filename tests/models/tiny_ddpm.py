"""PNDM's networks: the published descriptions, and a tiny one."""

import torch
from omegaconf import OmegaConf

from bdia_exp.cli.files import CONFIGS
from bdia_exp.models.ddpm import DDPMUNet
from bdia_exp.samplers.schedules import linear_vp
from tests.models.test_edm_network import by_formula

TINY = {
    "type": "simple",
    "image_size": 8,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.1,
    "resamp_with_conv": True,
}
SCHEDULE = linear_vp()


def published(name: str) -> dict:
    """The network's description in configs/model."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / "model" / f"{name}.yaml"))["model"][
        "network"
    ]


def network(config: dict) -> DDPMUNet:
    """With its weights by the formula of tests/golden/README.md."""
    with torch.device("meta"):
        net = DDPMUNet(**config)
    state = {name: by_formula(name, value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)
