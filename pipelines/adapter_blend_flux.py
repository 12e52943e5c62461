"""`AdapterBlendPipeline` for FLUX.1, text to image."""

from diffusers import FluxPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(FluxPipeline):
    """`FluxPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(FluxPipeline.__call__)
