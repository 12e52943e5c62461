"""From pictures and captions to what the denoiser is trained on: a pure function of sample numbers."""

from train.data.buckets import row_seed, spread
from train.data.build import build_dataset, check_data
from train.data.captions import with_trigger
from train.data.dataset import CachedImages
from train.data.folder import Example, Folder, read_folder
from train.data.options import DataOptions
from train.data.prior import PriorOptions, generate_missing

__all__ = [
    "CachedImages",
    "DataOptions",
    "Example",
    "Folder",
    "PriorOptions",
    "build_dataset",
    "check_data",
    "generate_missing",
    "read_folder",
    "row_seed",
    "spread",
    "with_trigger",
]
