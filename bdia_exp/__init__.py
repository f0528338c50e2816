"""bdia-exp: an experiment runner for diffusion samplers. Start reading at `bdia_exp.core`."""
