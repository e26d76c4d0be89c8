"""Models and text: where they come from, and how text is cut."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from keepset.settings.base import Dtype, Name, SiteKind, Strict, TextFormat, unique


class Model(Strict):
    """Where a causal language model comes from and how it is run."""

    hub: str | None = Field(None, description="Hugging Face hub id, e.g. facebook/opt-1.3b.")
    revision: str | None = Field(None, description="Branch, tag or commit of the hub repository.")
    path: str | None = Field(None, description="Local checkpoint folder, or a .gguf file.")
    package: str | None = Field(None, description="Installed Python package that carries the file.")
    file: str | None = Field(None, description="The checkpoint inside `package` (.gguf or folder).")
    tokenizer: str | None = Field(
        None,
        description="Hub id or folder of the tokenizer, for checkpoints without one, such as those"
        " of mamba_ssm.",
    )
    bos: Literal["auto"] | bool = Field(
        "auto",
        description="Whether a BOS token stands before every block, passage and prompt. auto: where"
        " the tokenizer itself puts one, and for the Gemma family.",
    )
    dtype: Dtype | None = Field(None, description="Overrides the study's dtype for this model.")
    trust_remote_code: bool = Field(False, description="Run Python code shipped with the model.")
    origin: Literal["pretrained", "specimen"] = Field(
        "pretrained", description="specimen: trained by this project; figures label it so."
    )
    sites: Annotated[list[SiteKind], AfterValidator(unique)] = Field(
        ["ffn", "state"],
        min_length=1,
        description="What is studied. A kind that the model does not have gives empty tables;"
        " leaving it out saves the jobs.",
    )

    @model_validator(mode="after")
    def _source(self) -> Model:
        _check_source(self)
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is for hub models only")
        return self


class TextSource(Strict):
    """Where text comes from: a hub dataset, local files, or files inside an installed package."""

    hub: str | None = Field(None, description="Hugging Face dataset id, e.g. Salesforce/wikitext.")
    config: str | None = Field(None, description="Configuration name of the hub dataset.")
    split: str | None = Field(
        None, description="Split of the hub dataset, or of a dataset saved to disk."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the hub dataset.")
    streaming: bool = Field(False, description="Stream the hub dataset (C4, the Pile).")
    field: str = Field(
        "text", description="Field of the rows (JSON, CSV, Parquet, Arrow, hub) with the text."
    )
    path: str | list[str] | None = Field(
        None, description="Local file(s), glob pattern(s), or folder(s) of a saved dataset."
    )
    package: str | None = Field(None, description="Installed package, or 'stdlib' for Python's.")
    file: str | None = Field(None, description="Glob pattern inside `package`.")
    format: TextFormat = Field(
        "auto", description="auto: by the file's ending, or else by its content."
    )
    max_documents: int | None = Field(None, ge=1, description="Read at most this many documents.")

    @model_validator(mode="after")
    def _source(self) -> TextSource:
        _check_source(self)
        if self.hub is not None and self.split is None:
            raise ValueError("a hub dataset needs its split")
        if self.hub is not None and self.format != "auto":
            raise ValueError("format is for files only; leave it out for a hub dataset")
        if self.hub is None and (self.config or self.revision or self.streaming):
            raise ValueError("config, revision and streaming are for hub datasets only")
        if self.package is not None and self.split is not None:
            raise ValueError("split is for hub datasets and datasets saved to disk only")
        return self


def _check_source(source: Model | TextSource) -> None:
    """Check that one of the places, and no other, is given; a package with its file."""
    keys = ("hub", "path", "package")
    given = [key for key in keys if getattr(source, key) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(keys)}; got {given or 'none'}")
    if (source.package is None) != (source.file is None):
        raise ValueError("package and file go together")


class Text(Strict):
    """How text becomes blocks of tokens."""

    block: int = Field(ge=2, description="Tokens per block.")
    calibration_tokens: int = Field(ge=2, description="Calibration tokens per model and corpus.")
    evaluation_tokens: int = Field(ge=2, description="Evaluation tokens per model and corpus.")
    specimen_evaluation_tokens: int = Field(ge=2, description="The same, for specimens.")
    sameness_tokens: int | None = Field(
        None,
        ge=2,
        description="Evaluation tokens dense and under dynamic rules, where claims of sameness need"
        " more; the first are those of evaluation_tokens, which is taken if left out.",
    )
    specimen_sameness_tokens: int | None = Field(None, ge=2, description="The same, for specimens.")
    specimen_corpora: list[Name] | None = Field(
        None, description="Corpora that specimens are run on; all without."
    )
    batch_tokens: int = Field(1024, ge=2, description="Tokens per forward pass.")

    @model_validator(mode="after")
    def _more(self) -> Text:
        for prefix in ("", "specimen_"):
            more, core = f"{prefix}sameness_tokens", f"{prefix}evaluation_tokens"
            tokens = getattr(self, more)
            if tokens is not None and tokens < getattr(self, core):
                raise ValueError(f"{more} is less than {core}; give more, or leave it out")
        return self


class Task(Strict):
    """A task: the whole last word of a text is to be predicted, or it is one of the harness."""

    kind: Literal["lambada", "jsonl", "built", "recall", "harness"] = Field(
        description="lambada: a source in LAMBADA's form; jsonl: context and target; built: made"
        " from the held-out text of the corpora; recall: facts stated, then asked for; harness: a"
        " task of EleutherAI's evaluation harness."
    )
    source: TextSource | None = Field(None, description="Where lambada and jsonl items come from.")
    corpora: list[Name] | None = Field(
        None, description="built and recall: the corpora to draw from."
    )
    items: int = Field(300, ge=1, description="Items used, at most.")
    min_words: int = Field(40, ge=2, description="built: shortest passage.")
    max_words: int = Field(90, ge=2, description="built: longest passage.")
    facts: Annotated[list[Annotated[int, Field(ge=1, le=32)]], AfterValidator(unique)] = Field(
        [1, 2, 4, 8], min_length=1, description="recall: facts stated, as many items of each."
    )
    distances: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(unique)] = Field(
        [0, 24, 48], min_length=1, description="recall: words between facts and question."
    )
    name: str | None = Field(None, description="harness: its name there, e.g. arc_easy.")
    path: str | None = Field(
        None,
        description="harness: a YAML file of your own task, or a folder; the harness's without.",
    )
    metric: str | None = Field(
        None,
        description="harness: what says whether an item is right, such as acc_norm, or with a"
        " filter exact_match,strict-match; without, acc or exact_match.",
    )
    shots: int | None = Field(
        None, ge=0, description="harness: examples before each item; as the task says without."
    )

    @model_validator(mode="after")
    def _shape(self) -> Task:
        if (self.kind in ("built", "recall")) != (self.corpora is not None):
            raise ValueError("corpora is for kind: built and recall, and needed there")
        if (self.kind in ("lambada", "jsonl")) != (self.source is not None):
            raise ValueError("source is for kind: lambada and jsonl, and needed there")
        if self.kind == "harness" and self.name is None:
            raise ValueError("name is needed for kind: harness: the task's name there")
        if self.min_words > self.max_words:
            raise ValueError("min_words exceeds max_words")
        for key, kind in _OF_KIND.items():
            if self.kind != kind and getattr(self, key) != Task.model_fields[key].default:
                raise ValueError(f"{key} is for kind: {kind}, and nothing reads it here")
        if self.kind == "jsonl" and self.source is not None and self.source.field != "text":
            raise ValueError("source.field: rows of kind jsonl have the fields context and target")
        return self


_OF_KIND = {
    **dict.fromkeys(("min_words", "max_words"), "built"),
    **dict.fromkeys(("facts", "distances"), "recall"),
    **dict.fromkeys(("name", "path", "metric", "shots"), "harness"),
}
