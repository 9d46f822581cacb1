"""Generalised advantage estimation over rows of episodes."""

import torch

from vla_rl.returns import gae

GAMMA, LAMBDA = 0.9, 0.8


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)[:, None]


def test_by_hand():
    advantage = gae(
        column(0, 0, 1),
        column(0.1, 0.2, 0.3),
        column(0.2, 0.3, 0.9),
        flags(0, 0, 1),
        flags(0, 0, 1),
        GAMMA,
        LAMBDA,
    ).flatten()
    last = 1 - 0.3
    middle = 0.9 * 0.3 - 0.2 + GAMMA * LAMBDA * last
    first = 0.9 * 0.2 - 0.1 + GAMMA * LAMBDA * middle
    assert torch.allclose(advantage, torch.tensor([first, middle, last]))


def test_a_time_limit_bootstraps_and_does_not_leak():
    def first(then):
        return gae(
            column(0, then),
            column(0.5, 0.2),
            column(0.4, 0.0),  # of the observation it was cut at, not of the next episode's first
            flags(0, 1),
            flags(1, 1),
            GAMMA,
            LAMBDA,
        )[0, 0]

    assert torch.isclose(first(0.0), torch.tensor(0.9 * 0.4 - 0.5))
    assert first(0.0) == first(100.0)


def test_rows_are_apart():
    torch.manual_seed(0)
    reward, value, after = torch.rand(3, 5, 2).unbind(0)
    done = torch.rand(5, 2) < 0.3
    both = gae(reward, value, after, done, done, GAMMA, LAMBDA)
    for row in (0, 1):
        part = [x[:, [row]] for x in (reward, value, after, done, done)]
        assert torch.allclose(both[:, [row]], gae(*part, GAMMA, LAMBDA))
