"""A cache that many states share, against lists of their own."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from genenv.models.kv_cache import KVCache

LAYERS, IMAGES, CAPACITY = 2, 2, 7


class SharedCache(RuleBasedStateMachine):
    """States of a sampler under guidance: rows of the conditional half first, the other half may lag behind.

    A state is (cache, its length, length of the unconditional half, {(layer, row): what it wrote}).
    """

    states = Bundle("states")

    def __init__(self):
        super().__init__()
        self.counter, self.known = 0, []

    def _keep(self, *state):
        self.known.append(state)
        return state

    @initialize(target=states)
    def begin(self):
        cache = KVCache(LAYERS, 2 * IMAGES, 1, CAPACITY, 1, device="cpu", dtype=torch.float64)
        written = {(layer, row): [] for layer in range(LAYERS) for row in range(2 * IMAGES)}
        return self._keep(cache, 0, 0, written)

    def _write(self, cache, written, rows, start, number):
        for layer in range(LAYERS):
            new = torch.arange(self.counter, self.counter + len(rows) * number, dtype=torch.float64)
            self.counter += len(new)
            keys = new.view(len(rows), 1, number, 1)
            found = cache.write(layer, slice(rows[0], rows[-1] + 1), start, keys, -keys)
            for i, row in enumerate(rows):
                written[layer, row] = written[layer, row][:start] + keys[i].flatten().tolist()
                assert found[0][i].flatten().tolist() == written[layer, row]
                assert found[1][i].flatten().tolist() == [-x for x in written[layer, row]]

    @rule(target=states, state=states, number=st.integers(1, 3), guided=st.booleans())
    def advance(self, state, number, guided):
        cache, length, behind, written = state
        if length + number > CAPACITY:
            return multiple()
        cache, written = cache.branch(length), dict(written)
        self._write(cache, written, range(IMAGES), length, number)
        if guided:
            missing = length + number - behind
            self._write(cache, written, range(IMAGES, 2 * IMAGES), behind, missing)
            behind = length + number
        return self._keep(cache, length + number, behind, written)

    @rule(
        target=states, first=states, second=states, index=st.lists(st.integers(0, 1), min_size=2, max_size=2)
    )
    def choose(self, first, second, index):
        if first[1:3] != second[1:3]:
            return multiple()
        cache = KVCache.choose([first[0], second[0]], torch.tensor(index))
        written = {
            (layer, row): (first, second)[index[row % IMAGES]][3][layer, row] for layer, row in first[3]
        }
        return self._keep(cache, first[1], first[2], written)

    @invariant()
    def every_state_still_holds_what_it_wrote(self):
        for cache, _, _, written in self.known:
            for (layer, row), expected in written.items():
                found = cache.keys[layer, row, 0, : len(expected), 0].tolist()
                assert found == expected
                assert cache.values[layer, row, 0, : len(expected), 0].tolist() == [-x for x in expected]


TestSharedCache = SharedCache.TestCase
TestSharedCache.settings = settings(max_examples=60, stateful_step_count=20)
