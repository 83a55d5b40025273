"""What the driver hands to every training worker."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcdist.checkpoint.find import Found
from rcdist.config import JobConfig
from rcdist.data.corpora import PreparedData
from rcdist.tracking.prices import PriceRow

if TYPE_CHECKING:
    import ray

    from rcdist.model.reservoir import PackedBank


@dataclass(frozen=True)
class Payload:
    """Hold the run, and what the driver has found out and prepared.

    Attributes:
        config: the run.
        data: tokenised corpora and tokenizer.
        price: what a device second costs.
        bank_ref: the packed bank in the object store; None: every worker regenerates it.
        bank_digest: of the bank as the driver built it.
        mlflow_run_id: that the records go to.
        began: Unix time of the job's start; it also names the job.
        resume: the proved checkpoint that the job starts from, None: from step 0.
        startup: stages of the start that have ended, as `Startup` notes them.
        is_here: the one worker is the driver's own process, and there is no controller that takes records.
    """

    config: JobConfig
    data: PreparedData
    price: PriceRow
    bank_ref: "ray.ObjectRef[PackedBank] | None"
    bank_digest: str
    mlflow_run_id: str
    began: float
    resume: Found | None
    startup: tuple[tuple[str, float], ...] = ()
    is_here: bool = False
