"""A denoiser in 4 bit, as bitsandbytes keeps it: adapters are trained through it, in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_adapters import FAMILIES
from tests.test_engine import dataset, fresh, start
from tests.tiny import save_pipeline
from train.engine import Trainer
from train.processes import make_accelerator
from train.settings import TrainOptions

SETTINGS = {"loldu": {"rank": 4}, "transformed_lora": {"rank": 2}, "wara": {"rank": 2, "level": 2}}


def quantize(denoiser):
    """NF4 in place of every linear layer of the transformer blocks; diffusers itself asks for a GPU to do this."""
    bnb = pytest.importorskip("bitsandbytes")
    count = 0
    for module in list(denoiser.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and layer.in_features % 8 == 0:
                made = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type="nf4"
                )
                made.load_state_dict(layer.state_dict())
                setattr(module, name, made.requires_grad_(False).to("cpu"))
                count += 1
    return count


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_through_four_bits(tmp_path, family):
    base = fresh(save_pipeline(tmp_path / "tiny"))
    data = dataset(base)
    reads = FAMILIES[family].reads_weight  # which is packed afterwards
    adapters = start(base, family, **SETTINGS.get(family, {})) if reads else None
    assert quantize(base.denoiser) > 10
    adapters = adapters or start(base, family, **SETTINGS.get(family, {}))
    packed = {n: v.clone() for n, v in base.denoiser.named_parameters() if v.dtype == torch.uint8}
    assert len(packed) > 10
    options = TrainOptions(max_train_steps=2, learning_rate=1e-2)
    before = {name: value.clone() for name, value in adapters.state_dict().items()}
    run = Trainer(make_accelerator(options), options, base, adapters, data)
    records = list(run.train())
    assert all(torch.isfinite(torch.tensor(record["loss"])) and record["grad_norm"] > 0 for record in records)
    assert any(not torch.equal(value, before[name]) for name, value in adapters.state_dict().items())
    assert {value.dtype for value in run.parameters} == {torch.float32}
    assert all(torch.equal(value, packed[name]) for name, value in base.denoiser.named_parameters() if name in packed)
