"""`AdapterBlendPipeline` for FLUX.1, image to image."""

from diffusers import FluxImg2ImgPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(FluxImg2ImgPipeline):
    """`FluxImg2ImgPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(FluxImg2ImgPipeline.__call__)
