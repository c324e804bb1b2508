"""Small folders of reference vectors, whose decisions plain Python takes (`oracles.py`)."""

import json

import numpy as np
import torch
import torch.nn.functional as F
from oracles import maskgit_decision, released_actions, var_token
from safetensors.torch import save_file

from genenv.models.maskgit import MaskGITTransformer
from genenv.models.maskgit_vqgan import MaskGITVQGAN
from genenv.models.policy import PolicyBackbone
from genenv.models.var import VARTransformer
from genenv.models.var_vqvae import VARVQVAE
from genenv.rng import gumbel

CLASSES = 5
CONTEXTS = torch.tensor([1, 3])
POLICY_SIDE, POLICY_WIDTH = 16, 12
MASKGIT_ACTIONS = {
    "manual_gen_ratios": "mask_ratio",
    "manual_temp": "mask_temperature",
    "manual_samp_temp": "token_temperature",
    "manual_cfg": "guidance_weight",
}
VAR_ACTIONS = {
    "cfg": "guidance_weight",
    "top_k": "top_k",
    "top_p": "top_p",
    "manual_samp_temp": "token_temperature",
}


def write(folder, config, weights=None, **tensors):
    """Writes a folder of reference vectors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if weights is not None:
        tensors["weights"] = weights
    for name, values in tensors.items():
        path = folder / f"{name}.safetensors"
        save_file({key: value.clone().contiguous() for key, value in values.items()}, path)


def randomised(network, std=0.3):
    """Returns a frozen network with random weights."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network.eval().requires_grad_(False)


class Given:
    """Actions that are given, {action: (T, B)}."""

    def __init__(self, actions):
        self.actions, self.steps = actions, len(next(iter(actions.values())))

    def __call__(self, t, features):
        """Returns {action: (B,)} at a decision."""
        return {key: values[t].tolist() for key, values in self.actions.items()}

    def recorded(self):
        """Returns the tensors of a rollout."""
        return {f"action.{key}": values for key, values in self.actions.items()}


class Policy:
    """Actions of a policy network under the settings of its configuration."""

    def __init__(self, settings, feature_dim):
        self.settings, self.keys, self.steps = settings, settings["action_keys"], settings["gen_steps"]
        network = PolicyBackbone(feature_dim, POLICY_SIDE, len(self.keys), POLICY_WIDTH, (4, 16, 8))
        self.network = randomised(network)
        self.outputs = torch.zeros(self.steps, len(CONTEXTS), len(self.keys))

    def __call__(self, t, features):
        """Returns {action: (B,)} at a decision for features (B, 256, D)."""
        observation = {"features": features, "step": torch.full((len(features),), t)}
        self.outputs[t] = self.network(observation)
        return {key: values[t].tolist() for key, values in self.played().items()}

    def played(self):
        """Returns {action: (T, B)}."""
        return released_actions(self.settings, self.outputs.numpy())[1]

    def recorded(self):
        """Returns the tensors of a rollout."""
        actions = {f"action.{key}": torch.from_numpy(values) for key, values in self.played().items()}
        return {"raw_actions": self.outputs} | actions

    def write(self, folder, backbone, rollout):
        """Writes the policy's own folder."""
        dim = self.network.x_embedder.in_features
        features, step = torch.randn(2, POLICY_SIDE**2, dim).half(), torch.tensor([0, 2])
        raw = torch.randn(self.steps, 3, len(self.keys))
        tables, actions = released_actions(self.settings, raw.numpy())
        io = {"feat": features, "timestep": step, "post_raw": raw}
        io["backbone_out"] = self.network({"features": features.float(), "step": step})
        io |= {f"heuristic.{key}": torch.from_numpy(table) for key, table in tables.items()}
        io |= {f"post.{key}": torch.from_numpy(np.ascontiguousarray(a)) for key, a in actions.items()}
        config = {"policy": self.settings, "real_configs": {}, "rows": self.steps, "backbone": backbone}
        write(folder, config, self.network.state_dict(), io=io, rollout=rollout)


def maskgit_networks(grid, codes, dim, seed=0):
    """Returns a transformer and a tokenizer."""
    torch.manual_seed(seed)
    transformer = MaskGITTransformer(
        grid, codes, dim, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=CLASSES
    )
    return randomised(transformer), MaskGITVQGAN(32, (1, 1), 1, 8, codes).eval()


def write_maskgit(folder, networks, **tensors):
    """Writes the folders `maskgit` and `maskgit_vqgan` into a folder."""
    transformer, vqgan = networks
    shape = {"img_size": transformer.grid_size, "codebook_size": transformer.codebook_size}
    shape |= {"embed_dim": transformer.embed_dim, "depth": 2, "num_heads": 2}
    shape |= {"mlp_ratio": 2.0, "num_classes": CLASSES + 1}
    config = {"constructor": shape, "generator": {"decoder": "../maskgit_vqgan"}}
    write(folder / "maskgit", config, transformer.state_dict(), **tensors)
    ddconfig = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8}
    shape = {"ddconfig": ddconfig, "n_embed": transformer.codebook_size}
    write(folder / "maskgit_vqgan", {"constructor": shape}, vqgan.state_dict())


@torch.no_grad()
def maskgit_rollout(networks, actor):
    """Returns the tensors of an episode: the network predicts, `oracles.maskgit_decision` decides."""
    (network, vqgan), steps, batch = networks, actor.steps, len(CONTEXTS)
    length, codes = network.grid_size**2, network.codebook_size
    uniform, noise = torch.rand(steps, batch, length), gumbel(torch.rand(steps, batch, length))
    grids = [[codes] * length for _ in range(batch)]
    sampled_ids, masked_ids = [], []
    for t in range(steps):
        tokens = torch.tensor(grids)
        conditional, features = network(tokens, CONTEXTS)
        unconditional, _ = network(tokens, torch.full_like(CONTEXTS, CLASSES))
        actions, sampled = actor(t, features), []
        for i in range(batch):
            params = {name: actions[key][i] for key, name in MASKGIT_ACTIONS.items()}
            logits = conditional[i].tolist(), unconditional[i].tolist()
            drawn = uniform[t, i].tolist(), noise[t, i].tolist()
            row, grids[i] = maskgit_decision(grids[i], *logits, codes, params, *drawn)
            sampled.append(row)
        sampled_ids.append(sampled)
        masked_ids.append([list(grid) for grid in grids])
    grid = torch.tensor(sampled_ids[-1]).view(batch, network.grid_size, network.grid_size)
    return actor.recorded() | {
        "contexts": CONTEXTS,
        "token_uniform": uniform,
        "confidence_gumbel": noise,
        "sampled_ids": torch.tensor(sampled_ids),
        "masked_ids": torch.tensor(masked_ids),
        "images": vqgan.decode(grid),
    }


def var_networks(sides, codes, dim, seed=0):
    """Returns a transformer and a tokenizer."""
    torch.manual_seed(seed)
    transformer = VARTransformer(sides, codes, 8, dim, 2, 2, mlp_ratio=2.0, num_classes=CLASSES)
    return randomised(transformer), VARVQVAE(sides, ch=32, z_channels=8, vocab_size=codes).eval()


def write_var(folder, networks, **tensors):
    """Writes the folders `var` and `var_vqvae` into a folder."""
    (transformer, vqvae), sides = networks, list(networks[0].patch_nums)
    config = {
        "constructor": {
            "embed_dim": transformer.embed_dim,
            "depth": 2,
            "num_heads": 2,
            "num_classes": CLASSES,
        },
        "constructor_fixed": {"mlp_ratio": 2.0, "shared_aln": False},
        "generator": {"patch_nums": sides, "vqvae": "../var_vqvae"},
        "official_cases": [],
    }
    write(folder / "var", config, transformer.state_dict(), **tensors)
    shape = {"ch": 32, "z_channels": 8, "vocab_size": transformer.vocab_size}
    write(folder / "var_vqvae", {"patch_nums": sides, "constructor": shape}, vqvae.state_dict())


@torch.no_grad()
def var_rollout(networks, actor):
    """Returns the tensors of an episode: the network predicts, `oracles.var_token` decides; and its token maps."""
    (network, vqvae), batch = networks, len(CONTEXTS)
    sides, offsets = network.patch_nums, network.offsets
    tokens = torch.zeros(batch, offsets[-1], dtype=torch.int64)
    rollout, maps = {"contexts": CONTEXTS}, torch.zeros(0)
    for t, side in enumerate(sides):
        maps = vqvae.quantize.maps(list(vqvae.quantize.accumulate(tokens)))  # no scale sees a later one
        here = slice(offsets[t], offsets[t + 1])
        conditional, hidden = (x[:, here] for x in network(maps, CONTEXTS))
        unconditional = network(maps, torch.full_like(CONTEXTS, CLASSES))[0][:, here]
        grid = hidden.transpose(1, 2).unflatten(2, (side, side))
        features = F.interpolate(grid, size=POLICY_SIDE, mode="bicubic").flatten(2).transpose(1, 2)
        actions, uniform = actor(t, features), torch.rand(batch, side**2)
        ratio = t / (len(sides) - 1)
        for i in range(batch):
            params = {name: actions[key][i] for key, name in VAR_ACTIONS.items()}
            rows = zip(conditional[i].tolist(), unconditional[i].tolist(), uniform[i].tolist(), strict=True)
            tokens[i, here] = torch.tensor(
                [var_token(c, u, ratio, params, x, "released") for c, u, x in rows]
            )
        weight = ratio * torch.tensor(actions["cfg"])[:, None, None]
        rollout |= {
            f"feat_{t}": features[:, ::4],
            f"guided_logits_{t}": (1 + weight) * conditional - weight * unconditional,
            f"token_uniform_{t}": uniform,
            f"idx_{t}": tokens[:, here],
            f"f_hat_{t}": list(vqvae.quantize.accumulate(tokens))[t],
        }
    *_, latents = vqvae.quantize.accumulate(tokens)
    return actor.recorded() | rollout | {"images": vqvae.decode(latents)}, maps
