"""Files that PEFT and LyCORIS themselves write: models compute with them what they compute with their writers."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from diffusion_adapters import load_adapter, save_adapter
from diffusion_adapters.attach import adapter_sets
from diffusion_adapters.linalg import matrix
from diffusion_adapters.outside import is_convolution, layer_shape
from tests import dialects
from tests.hosts import build, distance, run, stir

lycoris = pytest.importorskip("lycoris")
ALGORITHMS: dict[str, dict[str, Any]] = {
    "locon": {},
    "locon, cp": {"algo": "locon", "use_tucker": True},
    "locon, dora": {"algo": "locon", "dora_wd": True},
    "loha": {},
    "loha, cp": {"algo": "loha", "use_tucker": True},
    "lokr": {"factor": 2},
    "lokr, both": {"algo": "lokr", "decompose_both": True, "factor": 2, "linear_dim": 1, "conv_dim": 1},
    "lokr, full": {"algo": "lokr", "full_matrix": True, "factor": 4},
    "lokr, cp": {"algo": "lokr", "use_tucker": True, "factor": 2, "conv_dim": 1},
    "lokr, unbalanced": {"algo": "lokr", "unbalanced_factorization": True, "factor": 2, "linear_dim": 2},
    "diag-oft": {"linear_dim": 4, "conv_dim": 4},
    "diag-oft, rescaled": {"algo": "diag-oft", "linear_dim": 2, "conv_dim": 2, "rescaled": True},
    "diag-oft, limited": {"algo": "diag-oft", "linear_dim": 4, "conv_dim": 4, "constraint": 0.01},
    "boft": {"linear_dim": 2, "conv_dim": 2},
    "boft, rescaled": {"algo": "boft", "linear_dim": 4, "conv_dim": 4, "rescaled": True},
    "glora": {"linear": True},
    "full": {"linear": True},
}
LINEARS = ["Attention", "FeedForward"]


def network(model: nn.Module, name: str) -> nn.Module:
    """LyCORIS at work in `model`, trained a little."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    settings = {"algo": name.partition(",")[0], "linear_dim": 2, "linear_alpha": 3.0, "conv_dim": 2, "conv_alpha": 1.0}
    settings |= ALGORITHMS[name]
    modules = LINEARS if settings.pop("linear", False) else [*LINEARS, "ResnetBlock2D", "Transformer2DModel"]
    lycoris.LycorisNetwork.apply_preset({"target_module": modules, "target_name": [], "enable_conv": True})
    made = lycoris.create_lycoris(model, 1.0, **settings)
    made.apply_to()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for place, value in made.named_parameters():
            if not place.endswith(".bias"):
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    return made


def delta(call: Callable[[Tensor], Tensor], module: Any) -> Tensor:
    """The matrix (out, in) that `call` is for a linear or a convolution, bias and all."""
    eye = torch.eye(layer_shape(module)[1]).to(module.weight)
    if not is_convolution(module):
        return call(eye).t()
    patches = eye.unflatten(1, module.weight.shape[1:])
    rows, columns = module.padding  # at stride 1 the patch itself is seen there
    return call(patches)[:, :, rows, columns].t()


@pytest.mark.parametrize("name", ALGORITHMS)
@torch.no_grad()
def test_lycoris(name: str, tmp_path: Path) -> None:
    theirs, ours = build("unet_sd15"), build("unet_sd15")
    base = run(ours, "unet_sd15")
    made = network(theirs, name)
    wanted = run(theirs, "unet_sd15")
    state = {key: value.detach().clone() for key, value in made.state_dict().items()}
    adapter = load_adapter(ours, dialects.save(state, tmp_path / "theirs.safetensors"))
    assert distance(run(ours, "unet_sd15"), wanted, base) < 1e-4
    found = {path.replace(".", "_"): (path, own) for path, own in adapter_sets(ours)["unet"].of(adapter).items()}
    assert len(found) == len(made.loras)
    exact = torch.float32 if "oft" in name else torch.float64  # their ΔW is a difference
    theirs.to(exact), made.to(exact)
    for lora in made.loras:
        path, own = found[lora.lora_name.removeprefix("lycoris_")]
        module = copy.deepcopy(ours.get_submodule(path)).to(exact)
        if getattr(module, "stride", (1, 1)) == (1, 1):
            whole = delta(lora.forward, module) - delta(module.forward, module)
            error = float((own.delta_weight(matrix(module.weight).float()) - whole).norm() / whole.norm())
            assert error < 1e-5, f"{path}: {error:.2g}"
    saved = save_adapter(ours, adapter, tmp_path / "ours.safetensors")
    as_kohya = {f"lora_unet{key.removeprefix('lycoris')}": value for key, value in state.items()}
    for path in (saved, dialects.save(as_kohya, tmp_path / "kohya.safetensors")):
        again = build("unet_sd15")
        load_adapter(again, path)
        assert torch.equal(run(again, "unet_sd15"), run(ours, "unet_sd15"))


@pytest.mark.parametrize("name", ["locon", "loha", "lokr", "lokr, full", "diag-oft"])
@torch.no_grad()
def test_lycoris_of_a_fused_projection(name: str, tmp_path: Path) -> None:
    """One ΔW for queries, keys and values together, with the names of the original Flux."""
    model = build("flux")

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 48)
            self.linear1 = nn.Linear(16, 112)

    block = model.transformer_blocks[0].attn
    single = model.single_transformer_blocks[0]
    parts = {
        "qkv": [block.to_q, block.to_k, block.to_v],
        "linear1": [single.attn.to_q, single.attn.to_k, single.attn.to_v, single.proj_mlp],
    }
    fused = Fused()
    for role, own in parts.items():
        getattr(fused, role).weight.copy_(torch.cat([part.weight for part in own]))
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Fused"], "target_name": [], "enable_conv": True})
    settings = {**ALGORITHMS[name], "algo": name.partition(",")[0]}
    made = lycoris.create_lycoris(fused, 1.0, **{"linear_dim": 2, "linear_alpha": 3.0, **settings})
    before = {role: fused.get_submodule(role)(torch.eye(16)) for role in parts}
    made.apply_to()
    stir(made.parameters())
    names = {"qkv": "double_blocks_0_img_attn_qkv", "linear1": "single_blocks_0_linear1"}
    state = {}
    for key, value in made.state_dict().items():
        role, _, end = key.removeprefix("lycoris_").partition(".")
        state[f"lora_unet_{names[role]}.{end}"] = value.detach().clone()
    adapter = load_adapter(model, dialects.save(state, tmp_path / "a.safetensors"))
    found = adapter_sets(model)["transformer"].of(adapter)
    paths = {id(module): path for path, module in model.named_modules()}
    for role, own in parts.items():
        whole = (fused.get_submodule(role)(torch.eye(16)) - before[role]).t()
        deltas = [found[paths[id(part)]].delta_weight(part.weight) for part in own]
        error = float((torch.cat(deltas) - whole).norm() / whole.norm())
        assert error < 1e-5, f"{role}: {error:.2g}"


PEFT: dict[str, Callable[[list[str]], Any]] = {
    "lora": lambda targets: peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False),
    "lora, patterns": lambda targets: peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        init_lora_weights=False,
        rank_pattern={"attn1.to_q": 2, "conv1": 4},
        alpha_pattern={"attn1.to_q": 7, "to_k": 2},
    ),
    "lora, rslora": lambda targets: peft.LoraConfig(
        r=4, lora_alpha=3, target_modules=targets, init_lora_weights=False, use_rslora=True
    ),
    "lora, dora": lambda targets: peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, use_dora=True
    ),
    "loha": lambda targets: peft.LoHaConfig(r=2, alpha=5, target_modules=targets, init_weights=False),
    "lokr": lambda targets: peft.LoKrConfig(
        r=2, alpha=5, target_modules=targets, init_weights=False, decompose_factor=2
    ),
    "lokr, both": lambda targets: peft.LoKrConfig(
        r=1, alpha=5, target_modules=targets, init_weights=False, decompose_both=True
    ),
    "oft": lambda targets: peft.OFTConfig(oft_block_size=4, target_modules=targets, init_weights=False),
    "oft, exact": lambda targets: peft.OFTConfig(
        oft_block_size=8, r=0, target_modules=targets, init_weights=False, use_cayley_neumann=False
    ),
    "oft, shared": lambda targets: peft.OFTConfig(
        oft_block_size=4, target_modules=targets, init_weights=False, block_share=True
    ),
}


@pytest.mark.parametrize("name", PEFT)
def test_peft(name: str, tmp_path: Path) -> None:
    theirs, ours = build("unet_sd15"), build("unet_sd15")
    base = run(ours, "unet_sd15")
    targets = dialects.layers(ours)
    if name.startswith("oft"):
        targets = [path for path in targets if "attn" in path]
    wrapped = peft.get_peft_model(theirs, PEFT[name](targets))
    stir([value for value in wrapped.parameters() if value.requires_grad], strength=0.05)
    wanted = run(theirs, "unet_sd15")
    wrapped.save_pretrained(tmp_path / "peft")
    adapter = load_adapter(ours, tmp_path / "peft")
    assert len(adapter_sets(ours)["unet"].of(adapter)) == len(targets)
    assert distance(run(ours, "unet_sd15"), wanted, base) < 1e-4
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"its scale stands in adapter_config\.json, which is not beside it"):
        load_adapter(build("unet_sd15"), tmp_path / "peft")


def test_a_start_that_changes_the_base_is_refused(tmp_path: Path) -> None:
    theirs = build("unet_sd15")
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**written, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(ValueError, match=r"init_lora_weights='pissa_niter_4' changes the weights of the base"):
        load_adapter(build("unet_sd15"), tmp_path)


def test_what_diffusers_writes_with_its_configuration(tmp_path: Path) -> None:
    """alpha stands in the header alone."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata

    from tests.test_formats import drawn, fresh

    pipe = fresh("stable_diffusion")
    before = drawn(pipe, "stable_diffusion")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "conv1"], init_lora_weights=False)
    stock = copy.deepcopy(pipe)
    stock.unet.add_adapter(config)
    stir([v for n, v in stock.unet.named_parameters() if "lora_" in n], strength=0.1)
    layers: dict[str, Tensor] = peft.get_peft_model_state_dict(stock.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, layers, **_collate_lora_metadata({"unet": stock.unet}))
    load_adapter(pipe, tmp_path)
    assert distance(drawn(pipe, "stable_diffusion"), drawn(stock, "stable_diffusion"), before) < 1e-4
