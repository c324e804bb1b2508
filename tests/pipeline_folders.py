"""Tiny pipelines of diffusers with random weights, in the folders that its `save_pretrained` writes."""

import json

import torch


def prompt_pipeline(folder, text_width=16):
    """Writes a Stable Diffusion of 16x16 pixels whose text encoder knows a few words."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from genenv.zoo.scorers import write_tokenizer

    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder)
    for path in folder.iterdir():
        path.unlink()
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    StableDiffusionPipeline(
        vae=autoencoder(AutoencoderKL),
        text_encoder=CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def label_pipeline(folder, learned_sigma=True):
    """Writes a DiT of 16x16 pixels and 1000 classes, since label 1000 is none of them to `DiTPipeline`."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8 if learned_sigma else 4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        attention_bias=True,
    )
    DiTPipeline(
        transformer=transformer.eval(),
        vae=autoencoder(AutoencoderKL),
        scheduler=DDIMScheduler(clip_sample=False),
    ).save_pretrained(folder)
    # The published file names the classes, though the library does not write them.
    path = folder / "model_index.json"
    names = {str(label): f"class {label}" for label in range(1000)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": names}))


def autoencoder(kind):
    return kind(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()
