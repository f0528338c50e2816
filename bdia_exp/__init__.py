"""bdia-exp: an experiment runner for diffusion samplers. Read samplers/core.py first."""
