"""The tree holds every value as it is, however long."""

from omegaconf import OmegaConf

from crosspruner.reporting.config_tree import config_tree


def test_values_are_whole_and_no_markup():
    values = {"long": "x" * 500, "list": list(range(200)), "text": ":smile: [bold]b[/bold]"}
    tree = config_tree(OmegaConf.create({"group": values, "copy": "${group.long}"}))
    lines = tree.splitlines()
    for key, value in values.items():
        assert sum(line.endswith(f"{key}: {value}") for line in lines) == 1
    assert f"copy: {'x' * 500}" in tree
    assert max(map(len, lines)) < 1000, "no line is filled up with blanks"
