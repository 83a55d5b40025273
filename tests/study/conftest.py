"""What tests of a study's results share: one that MLflow has."""

import pytest

from rcdist.study.results import StudyResult, read_study
from tests.study.small import record_study, small_study


@pytest.fixture(scope="package")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Return the recorded study, measured on one other text and on minimal pairs."""
    config = small_study(tmp_path_factory.mktemp("store"), texts={"sea": "x"}, blimp="y")
    record_study(config)
    return read_study(config)
