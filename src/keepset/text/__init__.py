"""Text: corpora to blocks of tokens, tasks to items."""

from keepset.text.blocks import Blocks, cut_blocks, load_blocks, make_blocks, save_blocks
from keepset.text.corpora import prepare_corpus
from keepset.text.sources import read_documents
from keepset.text.tasks import (
    Encoded,
    Item,
    build_items,
    build_recall,
    encode_items,
    load_items,
    read_items,
    save_items,
)

__all__ = [
    "Blocks",
    "Encoded",
    "Item",
    "build_items",
    "build_recall",
    "cut_blocks",
    "encode_items",
    "load_blocks",
    "load_items",
    "make_blocks",
    "prepare_corpus",
    "read_documents",
    "read_items",
    "save_blocks",
    "save_items",
]
