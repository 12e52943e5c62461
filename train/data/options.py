"""What the trainer can be told of its data: where it is, how it is cut, captions, masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diffusion_adapters.options import Options, option
from train.images import INTERPOLATION

SAMPLE_SUBJECT = Path(__file__).parents[1] / "sample_subject"
TRIGGER = "[trigger]"


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    title: ClassVar[str] = "data"
    instance_data_dir: Path | None = option(  # noqa: RUF009
        None,
        "folder of pictures of the subject, with NAME.txt or metadata.jsonl for captions; a subfolder 10_NAME is "
        "repeated 10 times, with NAME as its caption (default: the bundled sample subject)",
    )
    dataset_name: str | None = option(
        None, "data set of the datasets library instead: a folder that it saved or can read, or a Hub id"
    )
    dataset_config_name: str | None = option(None, "configuration of that data set")
    image_column: str = option("image", "column of that data set with the pictures")
    caption_column: str | None = option(
        None, "column with the captions, there or in metadata.jsonl (default: text, prompt or caption, if it has one)"
    )
    instance_prompt: str = option(
        "a photo of sks creature",
        "what the pictures show, with a rare word for the subject; a caption of their own overrides it",
    )
    trigger_word: str | None = option(None, f"what {TRIGGER} in captions and in the instance prompt stands for")
    resolution: int | None = option(None, "side of the training pictures in pixels (default: the base's own)", ge=8)
    use_aspect_ratio_buckets: bool = option(False, "train on rectangles near each picture's shape, not on squares")
    aspect_ratio_buckets: str | None = option(
        None, 'those rectangles as "height,width;height,width;..." (default: made for the resolution)'
    )
    center_crop: bool = option(False, "always train on the middle of a picture of another shape")
    random_flip: bool = option(False, "also train on mirrored pictures")
    image_interpolation_mode: str = option("lanczos", "how pictures are resized", choices=tuple(INTERPOLATION))
    repeats: int = option(1, "times that each picture counts in an epoch", ge=1)
    cache_variants: int = option(4, "crops and flips kept of each picture", ge=1)
    latents_cache_dir: Path | None = option(  # noqa: RUF009
        None, "folder that keeps latents and prompt embeddings for other runs (default: kept in memory)"
    )
    caption_dropout: float = option(0.0, "part of the samples that is trained without a caption", ge=0, le=1)
    shuffle_caption: bool = option(False, "shuffle the tags of a caption")
    keep_tokens: int = option(0, "tags at the start of a caption that stay where they are", ge=0)
    caption_separator: str = option(",", "what stands between tags")
    caption_variants: int = option(8, "orders of the tags of a caption that are encoded at most", ge=1)
    masked_loss: bool = option(
        False, "train where a mask is white: NAME.mask.png beside NAME.png, --mask_data_dir, or the alpha channel"
    )
    mask_data_dir: Path | None = option(None, "folder of masks, named as their pictures")  # noqa: RUF009
    mask_column: str = option("mask", "column of a data set or of metadata.jsonl with the masks")
    unmasked_weight: float = option(0.1, "weight of the loss where a mask is black", ge=0, lt=1)
    masked_prior_weight: float = option(
        0.0, "weight of staying with the frozen base where a mask is black; one more forward per step", ge=0
    )

    def check(self) -> None:
        """Raise ValueError for flags that have no effect together, or exclude each other."""
        if self.dataset_name and self.instance_data_dir:
            raise ValueError("give --dataset_name or --instance_data_dir, not both")
        lost = {"masked_loss": ("mask_data_dir", "masked_prior_weight"), "dataset_name": ("dataset_config_name",)}
        for needed, names in lost.items():
            for name in names:
                if getattr(self, name) and not getattr(self, needed):
                    raise ValueError(f"--{name} {getattr(self, name)} has no effect without --{needed}")
        if self.keep_tokens and not self.shuffle_caption:
            raise ValueError(f"--keep_tokens {self.keep_tokens} has no effect without --shuffle_caption")
        if not self.caption_separator.strip():
            raise ValueError("--caption_separator must have a character that is no space")
