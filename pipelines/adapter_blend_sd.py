"""`AdapterBlendPipeline` for Stable Diffusion 1.x and 2.x, text to image."""

from diffusers import StableDiffusionPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusionPipeline.__call__)
