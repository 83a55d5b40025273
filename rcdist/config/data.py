"""DataConfig and TokenizerConfig: where the text comes from, how it becomes ids, and how these are cut."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rcdist.config.section import LocalPath, Section
from rcdist.errors import ConfigError

DEFAULT_CORPUS = "austen"
"""Name of the corpus that ships with the package; see rcdist/data/corpus/README.md."""


class TokenizerConfig(Section):
    """How text becomes token ids."""

    kind: Literal["bpe", "bytes", "file"] = "bpe"
    """bpe: byte-level BPE trained on the training text; bytes: UTF-8 bytes and end of text; file: a tokenizer.json."""
    path: LocalPath | None = None
    """The tokenizer.json for kind=file."""
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] | None = None
    """Vocabulary of a BPE that is trained here; None: model.vocab_size."""
    max_train_bytes: Annotated[int, Field(ge=1000)] = 32_000_000
    """Bytes of text, from the start of the corpus, that a BPE is trained on."""

    @model_validator(mode="after")
    def _path_goes_with_file(self) -> "TokenizerConfig":
        if (self.kind == "file") != (self.path is not None):
            raise ConfigError(
                "tokenizer.path",
                self.path,
                f"tokenizer.kind={self.kind} and a path {'needs' if self.kind == 'file' else 'refuses'} one another",
                "Give both --tokenizer.kind file and --tokenizer.path FILE, or neither",
            )
        return self


class DataConfig(Section):
    """Where the text comes from and how it is cut."""

    train: list[LocalPath] = [DEFAULT_CORPUS]
    """Files, globs or folders (.txt .jsonl .parquet), a hub name `hub:owner/name`, or `austen`, the shipped corpus."""
    validation: list[LocalPath] = [DEFAULT_CORPUS]
    """Held-out text, in the same forms."""
    text_column: str = "text"
    """Column of .jsonl, .parquet and hub sets that holds the text; one row is one document."""
    document_column: str | None = None
    """Column naming the work of a row: consecutive rows of one work make one document. None: a row is a document."""
    hub_config: str | None = None
    """Configuration (subset) of a hub set."""
    hub_revision: str | None = None
    """Branch, tag or commit of a hub set; None: its main branch."""
    train_split: str = "train"
    """Split of a hub set used for training."""
    validation_split: str = "validation"
    """Split of a hub set used for validation."""
    streaming: bool = False
    """Read the source as a stream: shards are filled until max_documents, the whole set is never stored."""
    max_documents: Annotated[int, Field(ge=1)] | None = None
    """Documents read from the source; None: all."""
    seq_len: Annotated[int, Field(ge=8, le=1_048_576)] = 256
    """Tokens per training window T."""
    shard_tokens: Annotated[int, Field(ge=1024)] = 16_777_216
    """Tokens per shard file."""
    verify_cache: bool = True
    """Check the digests of tokens that an earlier run wrote, at the start: one read of them."""
    cache_dir: LocalPath | None = None
    """Where tokenised shards are kept, shared by all nodes; None: <storage_path>/datasets."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the order of windows."""
