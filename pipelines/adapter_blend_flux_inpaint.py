"""`AdapterBlendPipeline` for FLUX.1, inpainting."""

from diffusers import FluxInpaintPipeline

from .adapter_blend import blending


class AdapterBlendPipeline(FluxInpaintPipeline):
    """`FluxInpaintPipeline`, called with adapters by weight, mask, schedule and prompt tag."""

    __call__ = blending(FluxInpaintPipeline.__call__)
