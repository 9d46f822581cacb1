"""Both sides of the critic's benchmark answer alike."""

import torch

from vla_rl.bench.critic import batched, generated, subject
from vla_rl.config import compose


def test_both_sides_give_the_same_answers(tmp_path):
    model = "model={text_width:64,text_layers:1,vision_width:32,vision_layers:1}"
    config = compose("bench_critic", ["pictures=5", "image_size=64", model])
    torch.manual_seed(0)
    critic = subject(config, tmp_path)
    pictures = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    for shown in (None, pictures[:2]):
        answers = batched(critic, pictures, shown)
        assert torch.equal(answers, generated(critic, pictures, shown)) and len(answers) == 4
