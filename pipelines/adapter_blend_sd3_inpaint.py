"""`AdapterBlendPipeline` for Stable Diffusion 3 and 3.5, inpainting."""

from diffusers import StableDiffusion3InpaintPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusion3InpaintPipeline):
    """`StableDiffusion3InpaintPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusion3InpaintPipeline.__call__)
