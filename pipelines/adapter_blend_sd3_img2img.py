"""`AdapterBlendPipeline` for Stable Diffusion 3 and 3.5, image to image."""

from diffusers import StableDiffusion3Img2ImgPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(StableDiffusion3Img2ImgPipeline):
    """`StableDiffusion3Img2ImgPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(StableDiffusion3Img2ImgPipeline.__call__)
