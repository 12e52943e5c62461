"""`AdapterBlendPipeline` for Stable Diffusion XL, text to image."""

from diffusers import StableDiffusionXLPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusionXLPipeline.__call__)
