"""`AdapterBlendPipeline` for Stable Diffusion 3 and 3.5, text to image."""

from diffusers import StableDiffusion3Pipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusion3Pipeline.__call__)
