"""The model card of a run: what was trained, on what, and code that loads it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

USAGE = """\
from diffusers import DiffusionPipeline
from diffusion_adapters import load_adapter, set_adapters
{more}
pipe = DiffusionPipeline.from_pretrained({base})
name = load_adapter(pipe, {file})
image = pipe({prompt}, num_inference_steps={steps}, guidance_scale={guidance}).images[0]
set_adapters(pipe, name, 0.7)  # weaker; set_adapters(pipe, []) is the base
"""

CARD = """\
---
{header}
---

# {title}

<Gallery />

![The training pictures, and the same seeds before and after](grid.png)

## Model description

A `{family}` adapter for {base}, trained by DreamBooth on {count} pictures in {steps} steps
({trained:,} trained numbers, learning rate {rate:.3g}, seed {seed}, loss {loss:.4f} over the last steps). It lives in
the attention processors of the denoiser; `adapter.safetensors` says in its header how it was made, and `config.toml`
repeats the run: `accelerate launch train/dreambooth.py --config {config}`.

![Loss](loss.png)

## Trigger words

Use `{prompt}` and put it where you like: `{example}`.

## Use it with diffusers

With the library diffusion-adapters installed:

```python
{usage}```

or, from a shell, `{command}`.
{plain}
## License

The adapter inherits the licence of its base; the pictures that it was trained on belong to whoever made them.
"""


PLAIN = """
It is low rank as it is, so `pytorch_lora_weights.safetensors` holds the same as a plain LoRA, for stock diffusers and
programs that read its files: `pipe.load_lora_weights({source})`.
"""


def plain(source: str) -> str:
    """What the card says of the plain LoRA file; `source` is its folder or repository."""
    return PLAIN.format(source=json.dumps(source, ensure_ascii=False))


def usage(*, base: str, file: str, prompt: str, steps: int, guidance: float, repository: str | None = None) -> str:
    """Python that loads the adapter, from `repository` on the Hub if there is one, and makes a picture."""
    told = json.dumps(file, ensure_ascii=False)
    return USAGE.format(
        more="from huggingface_hub import hf_hub_download\n" if repository else "",
        base=json.dumps(base, ensure_ascii=False),
        file=f"hf_hub_download({json.dumps(repository)}, {told})" if repository else told,
        prompt=json.dumps(prompt, ensure_ascii=False),
        steps=steps,
        guidance=guidance,
    )


def command(*, base: str, file: str, prompt: str, steps: int, guidance: float, repository: str | None = None) -> str:
    """The same from a shell."""
    fetch = f"hf download {repository} {file} --local-dir . && " if repository else ""
    options = f"--steps {steps} --guidance_scale {guidance:g}"
    words = " ".join(shlex.quote(word) for word in ("--adapter", file, "--base", base, "--prompt", prompt))
    return f"{fetch}python -m diffusion_adapters generate {words} {options}"


def model_card(facts: Mapping[str, Any], prompts: Sequence[str]) -> str:
    """A README.md in the layout of the Hub. `facts`: the fields of CARD but header and example."""
    tags = ["text-to-image", "diffusers", "diffusers-training", "diffusion-adapters", facts["family"]]
    tags += [f"{facts['family']}-diffusers", "template:sd-lora"]
    header = [
        f"base_model: {json.dumps(facts['base_model'])}",
        "library_name: diffusers",
        f"instance_prompt: {json.dumps(facts['prompt'], ensure_ascii=False)}",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    if prompts:
        header.append("widget:")
    for i, prompt in enumerate(prompts):
        header += [f"- text: {json.dumps(prompt, ensure_ascii=False)}", f"  output:\n    url: image_{i}.png"]
    example = prompts[-1] if prompts else facts["prompt"]
    return CARD.format(header="\n".join(header), example=example, **facts)
