"""What has been prepared of the text of a run; travels to the workers."""

from dataclasses import dataclass

from rcdist.data.shards import CorpusInfo


@dataclass(frozen=True)
class PreparedData:
    """Hold where the tokens of a run are.

    Attributes:
        train: training corpus.
        validation: held-out corpus.
        tokenizer_dir: folder of the tokenizer.
        tokenizer_digest: its digest.
    """

    train: CorpusInfo
    validation: CorpusInfo
    tokenizer_dir: str
    tokenizer_digest: str
