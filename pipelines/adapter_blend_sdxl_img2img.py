"""`AdapterBlendPipeline` for Stable Diffusion XL, image to image."""

from diffusers import StableDiffusionXLImg2ImgPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusionXLImg2ImgPipeline):
    """`StableDiffusionXLImg2ImgPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusionXLImg2ImgPipeline.__call__)
