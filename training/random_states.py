"""The state of every random generator that a step may draw from, as JSON."""

import random
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, and of the device's where it has its own."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    key = legacy["state"]["key"].tolist()
    states = {
        "python": [version, list(words), gauss],
        "numpy": {**legacy, "state": {**legacy["state"], "key": key}},
        "torch": as_hex(torch.get_rng_state()),
    }
    if device.type != "cpu":
        states[device.type] = as_hex(torch.get_device_module(device).get_rng_state(device))
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Let every generator go on from where it was."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(states["numpy"])
    torch.set_rng_state(from_hex(states["torch"]))
    if device.type in states:
        torch.get_device_module(device).set_rng_state(from_hex(states[device.type]), device)


def seed_anew(seed: int, step: int) -> None:
    """Seed every generator of this rank from the run's seed and a step, where there is no state to go on from."""
    # Not the seed alone: the steps to come would then drop out what the first ones did.
    set_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]) % 2**31, device_specific=True)


def as_hex(state: Tensor) -> str:
    """The bytes of a generator's state."""
    return state.numpy().tobytes().hex()


def from_hex(state: str) -> Tensor:
    """The state of those bytes, uint8."""
    return torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)
