"""Bases: one file per architecture says how to encode for it and what its denoiser is asked to predict."""

from train.bases.base import BASES, Base, latent_factor, sample
from train.bases.latents import draw
from train.bases.load import BaseInfo, inspect_base, load_base
from train.bases.options import BaseOptions

__all__ = ["BASES", "Base", "BaseInfo", "BaseOptions", "draw", "inspect_base", "latent_factor", "load_base", "sample"]
