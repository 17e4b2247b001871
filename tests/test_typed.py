"""The order of what is typed, and what is said of keys that are not there."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from hydra_plugins._crosspruner_typed import flags_first, one_line

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("logger=csv -m crossbar.rows=17,0", "-m logger=csv crossbar.rows=17,0"),
        ("a=1 --cfg job ~b +c=2 -p d", "--cfg job -p d a=1 ~b +c=2"),
        ("a=1 -cd /x=y/z b=-2", "-cd /x=y/z a=1 b=-2"),
        ("-sc query=bash", "-sc query=bash"),
        ("typo a=1", "typo a=1"),
    ],
)
def test_flags_come_before_overrides(typed, expected):
    assert flags_first(typed.split()) == expected.split()


@pytest.mark.parametrize(
    ("config", "typed", "said"),
    [
        ("map_report", "ratio=0.5", "ratio: there is no such key. --help tells of those that are"),
        ("config", "crossbar.rowz=3", "no such key. Did you mean crossbar.rows?"),
        (
            "config",
            "procedure.calibration_images=9",
            "the chosen procedure has no such key, but procedure=layerwise has",
        ),
        # what the classes of libraries take may be appended
        ("config", "trainer.barebones=true", "append to your config use +trainer.barebones=true"),
        ("config", "hydra.sweeper.params.a=1", "use +hydra.sweeper.params.a=1"),
    ],
)
def test_a_key_that_is_not_there(config, typed, said):
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as no:
        compose(config, [typed], return_hydra_config=True)
    assert one_line(no.value, CONF / f"{config}.yaml").endswith(said)


def test_an_error_without_a_message_is_named():
    assert one_line(KeyboardInterrupt(), CONF / "config.yaml") == "KeyboardInterrupt"
