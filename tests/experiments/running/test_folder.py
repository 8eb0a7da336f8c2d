"""Nothing is overwritten silently: what a run does with a folder that holds another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.records.files import write_json
from experiments.running.config import RunConfig
from experiments.running.run import Run, experiment
from tests.experiments.running import toy_driver
from tests.experiments.running.toy_driver import PRESETS, Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(PRESETS["default"], out=tmp_path)


def folder(config: RunConfig) -> Path:
    return config.folder("toy_driver")


def test_a_run_of_other_options_is_refused_by_name(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    first = toy_driver.main(config)
    assert toy_driver.main(replace(config, threads=1, log_every=3))["loss"] == first["loss"]  # the same once more
    before = (folder(config) / "summary.json").read_text()
    with pytest.raises(SystemExit, match=r"another config \(rate was 0.1, is now 0.2\).*--name.*--overwrite"):
        toy_driver.main(replace(config, rate=0.2))
    assert (folder(config) / "summary.json").read_text() == before
    assert toy_driver.main(replace(config, rate=0.2, name="other"))["converged"]
    assert toy_driver.main(replace(config, rate=0.2, overwrite=True))["loss"] != first["loss"]


def test_it_is_refused_before_anything_is_read(config: Config) -> None:
    with Run("toy_driver", config) as run:
        run.finish(converged=True, goal="", iterations=1, loss=0, errors={})
    read: list[object] = []
    main = experiment("toy_driver", read.append)(lambda run, config, _: {})
    with pytest.raises(SystemExit, match="another config"):
        main(replace(config, seed=config.seed, rate=0.2))
    assert read == []


def test_what_has_no_results_and_new_fields_do_not_stand_in_the_way(config: Config) -> None:
    with pytest.raises(KeyboardInterrupt), Run("toy_driver", config):
        raise KeyboardInterrupt  # before there is a checkpoint
    with Run("toy_driver", replace(config, rate=0.2)) as run:
        run.finish(converged=True, goal="", iterations=1, loss=0, errors={})
    path = folder(config) / "config.json"
    stored = json.loads(path.read_text())
    del stored["noise"]
    write_json(path, stored)
    with Run("toy_driver", replace(config, rate=0.2)) as run:
        assert not run.finished


def test_a_run_of_an_option_that_is_gone_or_renamed_is_not_replaced(config: Config) -> None:
    with Run("toy_driver", config) as run:
        run.finish(converged=True, goal="", iterations=1, loss=0, errors={})
    path = folder(config) / "config.json"
    stored = json.loads(path.read_text())
    stored["sigma"] = stored.pop("noise")
    write_json(path, stored)
    with pytest.raises(FileExistsError, match=rf"sigma was {stored['sigma']}, is no option now"):
        Run("toy_driver", config).__enter__()
    with Run("toy_driver", replace(config, overwrite=True)) as run:
        assert not run.finished


@pytest.mark.parametrize("error", [ValueError("no such option"), KeyboardInterrupt()])
def test_a_run_that_logged_nothing_leaves_no_folder(error: BaseException, config: Config, tmp_path: Path) -> None:
    @experiment("toy_driver")
    def main(run: Run, config: Config) -> dict:
        run.stage()
        raise error

    with pytest.raises(type(error)):
        main(replace(config, out=tmp_path / "new" / "out"))
    assert not (tmp_path / "new").exists()


def test_a_run_that_logged_leaves_what_it_has(config: Config) -> None:
    @experiment("toy_driver")
    def main(run: Run, config: Config) -> dict:
        run.log(0, loss=1.0)
        raise ValueError("later")

    with pytest.raises(ValueError, match="later"):
        main(config)
    assert (config.folder("toy_driver") / "metrics.csv").read_text() == "step,loss\n0,1.0\n"


def test_folders_of_others_stay(config: Config) -> None:
    with Run("toy_driver", replace(config, name="other")) as other:
        other.log(0, loss=1.0)
    with pytest.raises(ValueError, match="wrong"), Run("toy_driver", config) as run:
        raise ValueError("wrong")
    assert (other.folder.exists(), run.folder.exists()) == (True, False)


def test_a_device_is_wanted_before_the_data(config: Config) -> None:
    @experiment("toy_driver", lambda config: pytest.fail("the data were read"))
    def main(run: Run, config: Config, data: None) -> dict:
        raise AssertionError

    with pytest.raises(SystemExit, match="device nowhere: "):
        main(replace(config, device="nowhere"))
