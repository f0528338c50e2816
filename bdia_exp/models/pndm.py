"""The former names of `bdia_exp.models.ddpm`, for programs that were written with them."""

from bdia_exp.models.ddpm import DDPM as DDIM
from bdia_exp.models.ddpm import DDPMUNet as DDIMUNet
from bdia_exp.models.ddpm import by_our_names, load

__all__ = ["DDIM", "DDIMUNet", "by_our_names", "load"]
