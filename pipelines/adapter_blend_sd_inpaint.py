"""`AdapterBlendPipeline` for Stable Diffusion 1.x and 2.x, inpainting."""

from diffusers import StableDiffusionInpaintPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusionInpaintPipeline):
    """`StableDiffusionInpaintPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusionInpaintPipeline.__call__)
