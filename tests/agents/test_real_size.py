import re

import pytest

from agents.real_size import Arguments, cut, main
from genenv.tiers import load_part


@pytest.mark.parametrize(("network", "layers"), [("llamagen", "layers"), ("vqgan", "blocks")])
def test_a_network_is_cut_to_its_first_layers(network, layers):
    whole, part = (load_part(network, "digits") for _ in range(2))
    first = list(getattr(part, layers))[:2]
    cut(part, 2)
    assert list(getattr(part, layers)) == first
    with pytest.raises(ValueError, match=r"depth must be at most the \d layers of the network, got 40"):
        cut(whole, 40)


@pytest.mark.parametrize("fields", [{}, {"lora_rank": 2, "precision": "bfloat16"}])
def test_an_iteration_runs_and_its_memory_is_told(capsys, fields):
    main(Arguments("digits", num_groups=2, group_size=3, chunk_size=2, depth=1, **fields))
    words = " ".join(capsys.readouterr().out.split())
    told = re.fullmatch(
        r"\d+ million weights, 6 images, 2 at once: an iteration in \d+ s, at most (\S+) GiB, (\S+) before it",
        words,
    )
    assert told
    assert float(told[1]) >= float(told[2]) > 0.1
