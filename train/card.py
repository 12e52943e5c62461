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
{dials}; set_adapters(pipe, []) is the base
"""

CARD = """\
---
{header}
---

# {title}

<Gallery />

![The training pictures, and the same seeds before and after](grid.png)

## Model description

A `{family}` adapter for {base}, {how} in {steps} steps
({trained:,} trained numbers, learning rate {rate:.3g}, seed {seed}, loss {loss:.4f} over the last steps). It lives in
the attention processors of the denoiser; `adapter.safetensors` says in its header how it was made, and `config.toml`
repeats the run: `accelerate launch train/dreambooth.py --config {config}`.

![Loss](loss.png)

{calls}
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


WORDS = """\
## Trigger words

Use `{prompt}` and put it where you like: `{example}`.
"""

DIALS = """\
## Domains

{domains}: each has a dial, and no word calls it up. All at 1 are the hybrid as it was trained, one alone is that
domain, none is the base.
"""


def dials(domains: Sequence[str]) -> dict[str, float]:
    """An example: all but the last at 1."""
    return {name: 0.5 if name == domains[-1] else 1.0 for name in domains}


def usage(
    *, base: str, file: str, prompt: str, steps: int, guidance: float, repository: str | None = None,
    domains: Sequence[str] = (),
) -> str:  # fmt: skip
    """Python that loads the adapter, from `repository` on the Hub if there is one, and makes a picture."""
    weaker = "set_adapters(pipe, name, 0.7)  # weaker"
    if domains:
        weaker = f"set_adapters(pipe, name, domain_weights={json.dumps(dials(domains))})  # their dials"
    told = json.dumps(file, ensure_ascii=False)
    return USAGE.format(
        more="from huggingface_hub import hf_hub_download\n" if repository else "",
        base=json.dumps(base, ensure_ascii=False),
        file=f"hf_hub_download({json.dumps(repository)}, {told})" if repository else told,
        prompt=json.dumps(prompt, ensure_ascii=False),
        steps=steps,
        guidance=guidance,
        dials=weaker,
    )


def command(
    *, base: str, file: str, prompt: str, steps: int, guidance: float, repository: str | None = None,
    domains: Sequence[str] = (),
) -> str:  # fmt: skip
    """The same from a shell."""
    fetch = f"hf download {repository} {file} --local-dir . && " if repository else ""
    options = f"--steps {steps} --guidance_scale {guidance:g}"
    given = ["--adapter", file, "--base", base, "--prompt", prompt]
    for name, value in dials(domains).items():
        given += ["--domain", f"{name}={value:g}"]
    words = " ".join(shlex.quote(word) for word in given)
    return f"{fetch}python -m diffusion_adapters generate {words} {options}"


def model_card(facts: Mapping[str, Any], prompts: Sequence[str]) -> str:
    """A README.md in the layout of the Hub.

    `facts`: the fields of CARD but header, how and calls; and the prompt, and pictures by domain, if it has several.
    """
    domains = facts["domains"]
    tags = ["text-to-image", "diffusers", "diffusers-training", "diffusion-adapters", facts["family"]]
    tags += [f"{facts['family']}-diffusers", "template:sd-lora"]
    header = [
        f"base_model: {json.dumps(facts['base_model'])}",
        "library_name: diffusers",
        *([] if domains else [f"instance_prompt: {json.dumps(facts['prompt'], ensure_ascii=False)}"]),
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    if prompts:
        header.append("widget:")
    for i, prompt in enumerate(prompts):
        header += [f"- text: {json.dumps(prompt, ensure_ascii=False)}", f"  output:\n    url: image_{i}.png"]
    if domains:
        how = "trained on pictures of " + " and ".join(f"{name} ({count})" for name, count in domains.items())
        calls = DIALS.format(domains=", ".join(f"`{name}`" for name in domains))
    else:
        how = f"trained by DreamBooth on {facts['count']} pictures"
        calls = WORDS.format(prompt=facts["prompt"], example=prompts[-1] if prompts else facts["prompt"])
    return CARD.format(header="\n".join(header), how=how, calls=calls, **facts)
