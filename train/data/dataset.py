"""The samples of a run by number: cached latents and prompt embeddings, paired by content."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from train.bases.options import BaseOptions
from train.data import captions
from train.data.buckets import Order, Size, row_seed, shuffled, spread
from train.data.cache import FORMAT, Store, digest, fingerprint
from train.data.folder import Example
from train.data.options import DataOptions
from train.losses import FROZEN

if TYPE_CHECKING:
    from train.bases import Base

SOURCES = ("pretrained_model_name_or_path", "revision", "variant", "pretrained_vae_model_name_or_path")
"""Options that say where weights come from; the weights themselves are in the fingerprint."""


class Row(NamedTuple):
    """One row of a batch: a view of an example, the text that goes with it, and what is drawn for it."""

    example: Example
    view: int
    text: str
    seed: int
    spread: float
    prior: bool = False


class CachedImages:
    """Every picture and every text is encoded once, before training; a batch is put together by keys of content.

    `class_examples`, by bucket, or `class_prompt` alone for the frozen base as teacher, add as many rows again for
    prior preservation. `group` is the number of samples per optimizer step over all processes: they share a bucket.
    With `live_texts` the prompt tensors are named frozen/NAME, as the untrained text encoders made them and as only
    the frozen base is told them: who trains text encoders adds what they make of `texts` now.
    """

    def __init__(
        self,
        base: Base,
        examples: Sequence[Example],
        options: DataOptions | None = None,
        *,
        group: int = 1,
        class_prompt: str | None = None,
        class_examples: Mapping[Size, Sequence[Example]] | None = None,
        live_texts: bool = False,
    ) -> None:
        self.examples = list(examples)
        self.options = options or DataOptions()
        self.class_prompt, self.class_examples = class_prompt, class_examples
        self.prefix = FROZEN if live_texts else ""
        entries = [number for number, example in enumerate(self.examples) for _ in range(example.repeats)]
        self.entries = entries
        self.order = self._ordered(entries, group)
        self.domains = list(dict.fromkeys(example.domain for example in self.examples))
        self.store = Store(self.options.latents_cache_dir)
        self._image_space, self._text_space = _spaces(base, self.options.latents_cache_dir)
        self.masks: dict[int, list[Tensor]] = {}  # by the identity of the example
        used = dict.fromkeys(example.bucket for example in self.examples)
        classes = [e for bucket in used for e in class_examples[bucket]] if class_examples is not None else []
        for example in [*self.examples, *classes]:
            self._add(base, example)
        texts = captions.all_texts([example.prompt for example in self.examples], self.options)
        for text in [*texts, *([class_prompt] if class_prompt is not None else [])]:
            self.store.add(self._text_key(text), lambda text=text: base.encode_prompt([text]))

    def __len__(self) -> int:
        return len(self.entries)

    def _ordered(self, entries: Sequence[int], group: int) -> Order:
        return Order([(self.examples[number].bucket, self.examples[number].domain) for number in entries], group)

    def among(self, domains: Iterable[str]) -> CachedImages:
        """The same data, of which the samples of a run are those of `domains`."""
        part, chosen = copy.copy(self), set(domains)
        part.entries = [number for number in self.entries if self.examples[number].domain in chosen]
        part.order = self._ordered(part.entries, self.order.group)
        return part

    def drawn_from(self, count: int, seed: int) -> set[str]:
        """The domains of the first `count` samples of a run."""
        return {self.examples[self.entries[self.order(number, seed)]].domain for number in range(count)}

    @property
    def fingerprint(self) -> str:
        """Tells data apart that would not give the same batches: pictures, cuts, masks, captions, class images."""
        sets = [self.examples, *(self.class_examples or {}).values()]
        facts = [(e.keys, e.micro, e.prompt, e.repeats, e.bucket, e.domain) for examples in sets for e in examples]
        masks = [mask.numpy().tobytes() for example in self.examples for mask in self.masks.get(id(example), [])]
        return digest(facts, hashlib.sha256(b"".join(masks)).hexdigest(), self.class_prompt, self.order.group)

    def rows(self, numbers: Sequence[int], seed: int) -> list[Row]:
        """What the samples `numbers` of a run are: first the instance, then as many for prior preservation.

        A pure function, whatever was asked before.
        """
        found = []
        for number in numbers:
            drawn = row_seed(seed, number)
            example = self.examples[self.entries[self.order(number, seed)]]
            text = captions.chosen(example.prompt, self.options, f"{seed}/{number}")
            found.append(Row(example, drawn % len(example.keys), text, drawn, spread(seed, number)))
        if self.class_prompt is None:
            return found
        return found + [self._prior(row, number, seed) for row, number in zip(found, numbers, strict=True)]

    def batch(self, numbers: Sequence[int], seed: int) -> dict[str, Tensor]:
        """The samples `numbers` of a run, all of one size: moments (b, 2c, h, w), prompt tensors, and drawn numbers.

        Also seeds (b,), spread (b,), sizes (b, 6) as SDXL is told them: height and width of the file, top and left of
        the crop, height and width of the crop. If there are any, mask (b, 1, h, w) and prior (b,). Raises ValueError
        for numbers that do not share a bucket.
        """
        rows = self.rows(numbers, seed)
        if len(buckets := {row.example.bucket for row in rows}) > 1:
            raise ValueError(f"samples {numbers[0]} to {numbers[-1]} lie in {len(buckets)} buckets: ask for one group")
        return self.gather(rows)

    def gather(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The batch of rows of one size; domain (b,) are places in `domains`, if there are several."""
        drawn: dict[str, Any] = {"seeds": [row.seed for row in rows], "spread": [row.spread for row in rows]}
        drawn["sizes"] = [row.example.micro[row.view] for row in rows]
        batch = {name: torch.tensor(values) for name, values in drawn.items()}
        images = [self.store[self._image_key(row.example.keys[row.view])] for row in rows]
        batch |= {name: torch.stack([image[name] for image in images]) for name in images[0]}
        texts = [self.store[self._text_key(row.text)] for row in rows]
        batch |= {self.prefix + name: torch.cat([text[name] for text in texts]) for name in texts[0]}
        if self.masks:
            ones = torch.ones(1, *batch["moments"].shape[-2:])
            own = [None if row.prior else self.masks.get(id(row.example)) for row in rows]
            masks = [ones if mask is None else mask[row.view] for mask, row in zip(own, rows, strict=True)]
            batch["mask"] = torch.stack(masks)
        if len(self.domains) > 1:
            batch["domain"] = torch.tensor([self.domains.index(row.example.domain) for row in rows])
        if self.class_prompt is not None:
            batch["prior"] = torch.tensor([row.prior for row in rows])
        return batch

    def texts(self, numbers: Sequence[int], seed: int) -> list[str]:
        """The text of each row of `batch`, as it was encoded: shuffled, dropped, or the class prompt."""
        return [row.text for row in self.rows(numbers, seed)]

    def names(self, numbers: Sequence[int], seed: int) -> list[str]:
        """File names of the samples `numbers`, for messages."""
        return [row.example.name for row in self.rows(numbers, seed) if not row.prior]

    def _prior(self, row: Row, number: int, seed: int) -> Row:
        """The class image that goes with a sample; for the teacher the same noisy picture, with the class prompt."""
        assert self.class_prompt is not None
        if self.class_examples is None:
            return row._replace(text=self.class_prompt, prior=True)
        among = self.class_examples[row.example.bucket]
        turn, index = divmod(number, len(among))
        example = among[shuffled(len(among), row_seed(seed, 0, "class"), turn)[index]]
        drawn = row_seed(seed, number, "class")
        level = spread(seed, number, "class")
        return Row(example, drawn % len(example.keys), self.class_prompt, drawn, level, prior=True)

    def _add(self, base: Base, example: Example) -> None:
        """Encode the views of an example; its file is opened only if one of them is not known."""
        cut: list[Image.Image] = []
        for view, key in enumerate(example.keys):

            def make(view: int = view) -> dict[str, Tensor]:
                cut.extend([] if cut else example.images)
                return {"moments": base.encode_image(pixels([cut[view]]))[0].float()}

            self.store.add(self._image_key(key), make)
        if example.masks:
            grid = self.store[self._image_key(example.keys[0])]["moments"].shape[-2:]
            grey = [torch.from_numpy(np.asarray(mask, np.float32) / 255)[None] for mask in example.masks]
            self.masks[id(example)] = [F.adaptive_avg_pool2d(mask, grid) for mask in grey]

    def _image_key(self, key: str) -> str:
        return digest(FORMAT, "image", self._image_space, key)

    def _text_key(self, text: str) -> str:
        return digest(FORMAT, "text", self._text_space, text)


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """(b, 3, h, w) in [-1, 1]."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def _spaces(base: Base, folder: Path | None) -> tuple[str, str]:
    """What latents and embeddings depend on besides picture and text; nothing, as long as they stay in this run.

    Rather too much than too little: what is no text encoder may make latents, what is no VAE may make embeddings.
    """
    if folder is None:
        return "", ""
    parts = base.pipeline.components
    modules = {k: v for k, v in parts.items() if isinstance(v, nn.Module) and v is not base.denoiser}
    images = {name: module for name, module in modules.items() if not name.startswith("text_encoder")}
    texts = {name: module for name, module in modules.items() if not name.startswith("vae")}
    names = {field.name for field in dataclasses.fields(BaseOptions)} - set(SOURCES)
    settings = {name: getattr(base.options, name) for name in sorted(names)}
    tokenizers = {k: f"{type(v).__name__} {len(v)}" for k, v in parts.items() if k.startswith("tokenizer") and v}
    kind = type(base).__name__
    return digest(kind, fingerprint(images)), digest(kind, fingerprint(texts), settings, tokenizers)
