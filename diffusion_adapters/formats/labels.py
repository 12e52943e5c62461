"""What headers of other programs tell beside the tensors: trigger words, training settings, the base."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

TRAINING = {
    "ss_steps": "steps",
    "ss_epoch": "epochs",
    "ss_learning_rate": "learning_rate",
    "ss_unet_lr": "unet_lr",
    "ss_text_encoder_lr": "text_encoder_lr",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "lr_scheduler",
    "ss_num_train_images": "pictures",
    "ss_batch_size_per_device": "train_batch_size",
    "ss_resolution": "resolution",
    "ss_seed": "seed",
    "ss_mixed_precision": "mixed_precision",
    "ss_network_module": "network_module",
    "ss_network_dim": "network_dim",
    "ss_network_alpha": "network_alpha",
    "ss_network_args": "network_args",
    "ss_sd_model_name": "base",
}
"""Keys of kohya's scripts -> our words."""
SHOWN_TAGS = 8
LONGEST = 200


def training_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The training settings that a header tells, as text; nothing long, nothing with a path in it."""
    told = {ours: _line(metadata[key]) for key, ours in TRAINING.items() if metadata.get(key)}
    return {key: value for key, value in told.items() if value not in ("", "None") and not set("/\\") & set(value)}


def trigger_of(metadata: Mapping[str, str]) -> str | None:
    """The trigger phrase that a header tells, or the one tag that all captions consist of."""
    tags = list(tags_of(metadata))
    return _line(metadata.get("modelspec.trigger_phrase", "")) or (tags[0] if len(tags) == 1 else None)


def tags_of(metadata: Mapping[str, str]) -> dict[str, int]:
    """Caption tags and their counts over all folders, most frequent first; nothing if the entry is damaged."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({_line(tag): int(count) for tag, count in tags.items()})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}
    return dict(counts.most_common(SHOWN_TAGS))


def _line(text: Any) -> str:
    """Text of a stranger on one line, of no great length, without control characters."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[:LONGEST])
    return " ".join(shown.split())
