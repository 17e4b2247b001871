"""Wrong input gets one clear line and a non-zero exit, and never a traceback."""

import re

import pytest

from .conftest import SMALL

# What is typed, what the line must say.
COMPOSED = [  # found by hydra, before torch is imported
    (["grain=colum"], "'grain/colum' Available options in 'grain': column crossbar"),
    (["crossbar=0x256"], "'crossbar/0x256' Available options in 'crossbar':.* 256x256"),
    (["crossbar=17x33"], "For any other size type crossbar.rows=17 crossbar.cols=33$"),
    (["rat1o=0.5"], "rat1o: there is no such key. Did you mean ratio.$"),
    (["model=nope"], "'model/nope' Available options in 'model':.* vgg8"),
]
CHECKED = [  # found by crosspruner; the first three in the fast suite
    (["ratio=abc"], "ratio: Value 'abc' of type 'str' could not be converted to Float"),
    (["data=folder", "data.dir=/nope"], "data.dir=/nope does not exist"),
    (["ckpt_path=nope.ckpt"], "ckpt_path=nope.ckpt is not a file"),
    (["ratio=1.5"], "ratio=1.5 is out of range"),
    (["crossbar.rows=0"], "crossbar rows=0"),
    (["model=timm", "model.name=nope"], "nope"),
    (["data=folder", "data.dir=empty"], "data.dir=empty has no folder train"),
    (["model.weights=nope.pt"], "nope.pt"),
    ([*SMALL, "ratio=0.99"], "the largest feasible ratio is 0"),
    (["exclude=[head.*]"], r"exclude: 'head\.\*' matches no layer"),
    (["logger.wandb.mode=online"], "needs an account"),
    (["trainer.max_epochs=0"], "trainer.max_epochs=0: give a whole number of 1 or more, or null"),
    (["trainer.accelerator=gpx"], "^error: trainer: You selected an invalid accelerator name"),
    (["optimizer.lr=fast"], "^error: optimizer.lr=fast, .*torch.optim.SGD refuses: "),
]


@pytest.mark.parametrize(("typed", "said"), COMPOSED + CHECKED[:3], ids=lambda v: str(v)[:40])
def test_one_clear_line(train, tmp_path, typed, said):
    check_one_clear_line(train, tmp_path, typed, said)


@pytest.mark.slow  # seconds each: all of them start a whole process
@pytest.mark.parametrize(("typed", "said"), CHECKED[3:], ids=lambda v: str(v)[:40])
def test_one_clear_line_for_all_else(train, tmp_path, typed, said):
    check_one_clear_line(train, tmp_path, typed, said)


def check_one_clear_line(train, folder, typed, said):
    (folder / "empty").mkdir()
    code, _, err = train(folder, *typed)
    assert code in (1, 2)
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert re.search(said, lines[0]), err
    assert "Traceback" not in err


def test_a_failed_run_keeps_the_reason(train, tmp_path):
    train(tmp_path, "ratio=1.5")
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert "ratio=1.5 is out of range" in (run / "FAILED").read_text()
    assert "ratio=1.5 is out of range" in (run / "train.log").read_text()
    assert not (run / "DONE").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(train, tmp_path):
    code, _, err = train(tmp_path, *SMALL, "logger=csv")
    assert code == 0, err
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    last = run / "checkpoints" / "last.ckpt"
    for other in (["model.width=0.125"], ["grain=crossbar"], ["ratio=0.3"]):
        code, _, err = train(tmp_path, *SMALL, "logger=csv", f"ckpt_path={last}", *other)
        assert code in (1, 2)
        assert len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_the_traceback_is_there_for_who_asks(start, tmp_path, clean_environment, monkeypatch):
    monkeypatch.setitem(clean_environment, "HYDRA_FULL_ERROR", "1")
    process = start(tmp_path, "ratio=1.5")
    _, err = process.communicate(timeout=120)
    assert "Traceback" in err
