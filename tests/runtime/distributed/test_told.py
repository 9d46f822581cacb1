"""What several collectors' environments say, as one environment would."""

import torch

from vla_rl.runtime.distributed.told import beside, together


def test_one_reason_to_stop_is_enough_and_one_doubt():
    good = {"metrics": {"true": 0.5}, "halt": None, "trusted": True}
    bad = {"metrics": {"true": 1.0, "missed": 0.2}, "halt": "exploited", "trusted": False}
    assert together([good, good]) == {"metrics": {"true": 0.5}, "halt": None, "trusted": True}
    both = {"metrics": {"true": 0.75, "missed": 0.2}, "halt": "exploited", "trusted": False}
    assert together([good, bad]) == both
    assert together([]) == {"metrics": {}, "halt": None, "trusted": True}


def test_sheets_of_one_name_lie_beside_each_other():
    one, two = torch.zeros(3, 4, 6, dtype=torch.uint8), torch.ones(3, 4, 2, dtype=torch.uint8)
    shown = beside([{"a": one}, {}, {"a": two, "b": two}])
    assert torch.equal(shown["a"], torch.cat([one, two], dim=2)) and torch.equal(shown["b"], two)
