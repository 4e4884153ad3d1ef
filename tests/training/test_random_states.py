import json
import random

import numpy as np
import torch

from training.random_states import random_states, seed_anew, set_random_states

CPU = torch.device("cpu")


def draws():
    return random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(3).tolist(), torch.randn(1)


def test_every_generator_goes_on_from_its_state_as_json():
    random.gauss(), np.random.randn()  # each keeps the second of two draws for the next call
    states = json.loads(json.dumps(random_states(CPU)))
    expected = draws()
    assert draws() != expected
    set_random_states(states, CPU)
    assert draws() == expected


def test_taking_the_states_draws_nothing():
    torch.manual_seed(0)
    random_states(CPU)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)


def test_seeding_anew_depends_on_seed_and_step_alone():
    seed_anew(0, 10)
    first = draws()
    seed_anew(0, 10)
    assert draws() == first
    for seed, step in ((0, 11), (1, 10)):
        seed_anew(seed, step)
        assert draws() != first
