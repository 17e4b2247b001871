"""Every command of the README is one that the program understands."""

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from crosspruner.config import run_settings

from .conftest import ROOT


def typed():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    return [line.strip() for line in lines if line.startswith("python train.py")]


def test_the_readme_shows_commands():
    assert len(typed()) >= 8


# What a file leaves open, and a search fills in for each trial
OPEN = {"hparams_search=layer_ratios": ["budget.layer_ratios={features.*:0.5}"]}


@pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/.*ConfigStore schema")
@pytest.mark.parametrize("command", [c for c in typed() if "--help" not in c])
def test_the_overrides_compose(command):
    overrides = [word for word in shlex.split(command)[2:] if word != "-m"]
    overrides += [one for word in overrides for one in OPEN.get(word, [])]
    first_of_each = [override.split(",")[0] for override in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run_settings(compose("config", first_of_each))
    GlobalHydra.instance().clear()


def test_every_make_target_of_the_readme_exists():
    targets = re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
