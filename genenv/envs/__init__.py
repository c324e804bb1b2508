"""The paradigms: each file holds a sampler, its hand-crafted schedule and its backbones."""
