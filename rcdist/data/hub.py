"""Sets of the Hugging Face Hub: which commit a name stands for, and its rows, from the Hub or from the local cache."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdist.config import DataConfig
from rcdist.data.readers import Row, missing_column, unreadable
from rcdist.errors import DataError

logger = logging.getLogger("rcdist")

HUB_PREFIX = "hub:"
_ANSWER_S = 10.0
_REMEDY = "Check the name, data.hub_revision, the split and the network, or use local files"


@dataclass(frozen=True)
class HubSet:
    """Hold one version of a hub set.

    Attributes:
        name: owner/name.
        commit: SHA of the version.
        folder: of that version in the local hub cache; None: on the Hub.
    """

    name: str
    commit: str
    folder: Path | None


def find_set(name: str, revision: str | None, field: str) -> HubSet:
    """Find the commit that a revision of a set stands for: on the Hub, or in the local hub cache if that is offline.

    Args:
        name: owner/name.
        revision: branch, tag or commit; None: the main branch.
        field: the setting that named it, for messages.

    Raises:
        DataError: there is no such set or revision, or it can neither be reached nor is it in the cache.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    shown, failure = f"{HUB_PREFIX}{name}", "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return HubSet(name, str(HfApi().dataset_info(name, revision=revision, timeout=_ANSWER_S).sha), None)
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise unreadable(field, shown, error, _REMEDY) from error
        except Exception as error:  # whatever its HTTP library raises
            failure = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except Exception as error:
        version = f"revision {revision} of it" if revision else "it"
        rule = f"the Hub is not reached ({failure}), and the cache in {constants.HF_HUB_CACHE} does not have {version}"
        raise DataError(field, shown, rule, _REMEDY) from error
    if not constants.HF_HUB_OFFLINE:
        logger.warning("%s: the Hub is not reached (%s); %s of the local cache is read", shown, failure, folder.name)
    return HubSet(name, folder.name, folder)


def read_rows(found: HubSet, split: str, data: DataConfig, field: str) -> Iterator[Row]:
    """Yield the rows of a split of a set; of its columns only those wanted are read.

    Raises:
        DataError: the split or a column is missing, a text is none, or the set cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    shown = f"{HUB_PREFIX}{found.name}"
    wanted = {"data.text_column": data.text_column}
    if data.document_column is not None:
        wanted["data.document_column"] = data.document_column
    try:
        source = (str(found.folder), None) if found.folder else (found.name, found.commit)
        rows: Any = datasets.load_dataset(
            source[0], data.hub_config, split=split, revision=source[1], streaming=data.streaming
        )
        columns = rows.column_names or list(next(iter(rows), {}))
        for setting, column in wanted.items():
            if columns and column not in columns:
                raise missing_column(setting, column, shown, columns)
        for number, row in enumerate(rows.select_columns(sorted(set(wanted.values())))):
            text = row[data.text_column]
            if not isinstance(text, str | None):
                rule = f"{shown} holds {type(text).__name__} there in row {number}, not text"
                raise DataError("data.text_column", data.text_column, rule, "Name a column of text")
            yield text or "", None if data.document_column is None else row[data.document_column]
    except DataError:
        raise
    except Exception as error:  # datasets raises what its many parts raise
        raise unreadable(field, shown, error, _REMEDY) from error
