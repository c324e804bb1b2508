"""Arguments that make the episodes of every id short."""

SHORTEST = {
    "AdaGen/MaskGIT-v0": {"num_steps": 1},
    "AdaGen/VAR-v0": {"num_steps": 4},
    "AdaGen/LlamaGen-v0": {"tokens_per_decision": 16},
    "AdaGen/VQGAN-v0": {"tokens_per_decision": 16},
    "PolicyTuning/Tokens-v0": {},
    "AdaGen/DiT-v0": {"num_steps": 1, "solver": "euler"},
    "AdaGen/SiT-v0": {"num_steps": 1, "solver": "euler"},
    "AdaScope/Denoising-v0": {"num_steps": 1},
    "ART/Clock-v0": {"num_steps": 1},
    "ART/GaussianMixture-v0": {"num_steps": 1},
}
"""Environment id -> keyword arguments of its shortest episode."""
SHORT = {
    "AdaGen/MaskGIT-v0": {"num_steps": 3},
    "AdaGen/VAR-v0": {},
    "AdaGen/LlamaGen-v0": {"tokens_per_decision": 4},
    "AdaGen/VQGAN-v0": {"tokens_per_decision": 4},
    "PolicyTuning/Tokens-v0": {},
    "AdaGen/DiT-v0": {"num_steps": 2},
    "AdaGen/SiT-v0": {"num_steps": 2},
    "AdaScope/Denoising-v0": {"num_steps": 3},
    "ART/Clock-v0": {"num_steps": 3, "derivative": "finite-difference"},
    "ART/GaussianMixture-v0": {"num_steps": 3},
}
"""Environment id -> keyword arguments of an episode of few and cheap decisions, more than one."""
TOKENS = ["PolicyTuning/Tokens-v0"]
"""Ids whose actions are tokens: no schedule, and nothing that could be smoothed."""


def compared(env_id, mode="residual"):
    """Returns what an id must observe for `default_actor`."""
    if env_id == "AdaScope/Denoising-v0" and mode == "physical":
        return {"observe": ["mean", "std"]}
    return {"observe": ["logits"]} if env_id in TOKENS else {}
