"""`AdapterBlendPipeline` for Stable Diffusion 1.x and 2.x, image to image."""

from diffusers import StableDiffusionImg2ImgPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusionImg2ImgPipeline):
    """`StableDiffusionImg2ImgPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusionImg2ImgPipeline.__call__)
