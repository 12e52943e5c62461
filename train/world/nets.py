"""The nets of the pocket base: a PCA-exact AutoencoderKL, a small CLIP text model, a UNet with attention everywhere."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from train.world.tokens import MAX_LENGTH

LATENT_CHANNELS = 12
PATCH = 4
HIDDEN = 96
CONSTANT = 1000.0
VAE_CHANNELS = (16, 48, 64)
VAE_GROUPS = 8


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, width 96: (b, 32) token ids -> (b, 32, 96)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            projection_dim=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(channels: tuple[int, ...] = (64, 128), size: int = 12) -> UNet2DConditionModel:
    """Cross attention at every level: (b, 12, 12, 12) latents -> v prediction of the same shape."""
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=HIDDEN,
        attention_head_dim=tuple(width // 32 for width in channels),
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule, v-prediction; twenty trailing steps start at pure noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def build_vae(size: int = 48) -> AutoencoderKL:
    """A stock AutoencoderKL of factor 4 with untrained weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        sample_size=size,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        norm_num_groups=VAE_GROUPS,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
    )


def patches(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, h, w) in [-1, 1] -> (n h/4 w/4, 48) pixel patches in the order that two stride-2 convolutions see them."""
    twice = images
    for _ in range(2):
        n, c, h, w = twice.shape
        twice = twice.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
    return twice.permute(0, 2, 3, 1).reshape(-1, 3 * PATCH * PATCH)


def fit_pca(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch PCA of (n, 3, h, w): (12, 48) rows that give latents of overall unit variance, and the (48,) mean patch.

    Component i is scaled by sigma_i^-1/2: half way between pixels (where coarse components drown the fine ones) and
    whitening (where fine ones weigh as much as coarse ones).
    """
    x = patches(images).double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    sigma = values.clamp_min(1e-9).sqrt().flip(0)[:LATENT_CHANNELS]
    rows = vectors.T.flip(0)[:LATENT_CHANNELS] * sigma[:, None] ** -0.5
    rows = rows * torch.sign(rows.sum(1, keepdim=True) + 1e-12)
    return (rows / sigma.mean().sqrt()).float(), mean.float()


@torch.no_grad()
def write_pca(vae: AutoencoderKL, rows: torch.Tensor, mean: torch.Tensor) -> None:
    """Write latents = rows (patch - mean) exactly into the encoder's weights.

    Strided convolutions sort pixels into channels; residual branches are silent. The last shortcut gives +y, -y and
    two large constants of opposite sign in each group, so that GroupNorm is a fixed scale, and silu(y) - silu(-y) = y
    undoes the activation.
    """
    encoder = vae.encoder
    for parameter in encoder.parameters():
        parameter.zero_()
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
    for level, block in enumerate(encoder.down_blocks[:2]):
        shortcut = block.resnets[0].conv_shortcut
        width = 3 if level == 0 else 12
        if shortcut is not None:
            for channel in range(width):
                shortcut.weight[channel, channel, 0, 0] = 1
        down = block.downsamplers[0].conv.weight
        for channel in range(width):
            for dy in range(2):
                for dx in range(2):
                    down[4 * channel + 2 * dy + dx, channel, dy, dx] = 1
    per_group = VAE_CHANNELS[2] // VAE_GROUPS
    pairs = (per_group - 2) // 2
    last = encoder.down_blocks[2].resnets[0].conv_shortcut
    for group in range(VAE_GROUPS):
        last.bias[group * per_group + per_group - 2] = CONSTANT
        last.bias[group * per_group + per_group - 1] = -CONSTANT
    encoder.conv_norm_out.weight.fill_((CONSTANT**2 * 2 / per_group) ** 0.5)
    for component, row in enumerate(rows):
        plus = component // pairs * per_group + 2 * (component % pairs)
        for channel, sign in ((plus, 1.0), (plus + 1, -1.0)):
            last.weight[channel, :, 0, 0] = sign * row
            last.bias[channel] = -sign * float(row @ mean)
            encoder.conv_out.weight[component, channel, 1, 1] = sign
    encoder.conv_out.bias[LATENT_CHANNELS:] = -30.0  # log variance: the encoder is deterministic
