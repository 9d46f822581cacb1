from vla_rl import doctor
from vla_rl.commands.doctor import run


def test_rows_name_a_fix_for_each_problem():
    found = doctor.rows()
    assert {"torch", "ManiSkill rendering (Vulkan)", "MuJoCo rendering", "lerobot"} <= {r.name for r in found}
    assert all(r.fix for r in found if not r.ok)


def test_command(tmp_path, capsys):
    target = tmp_path / "d.json"
    assert run([f"json={target}"]) == 0
    assert target.is_file() and "torch" in capsys.readouterr().out
