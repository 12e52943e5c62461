"""`AdapterBlendPipeline` for Stable Diffusion XL, inpainting."""

from diffusers import StableDiffusionXLInpaintPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusionXLInpaintPipeline):
    """`StableDiffusionXLInpaintPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusionXLInpaintPipeline.__call__)
