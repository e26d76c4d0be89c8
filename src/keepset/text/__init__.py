"""Text: corpora to blocks of tokens, tasks to items."""

from keepset.text.blocks import (
    Blocks as Blocks,
    Cutting as Cutting,
    Passages as Passages,
    cut_blocks as cut_blocks,
    load_blocks as load_blocks,
    make_blocks as make_blocks,
    save_blocks as save_blocks,
)
from keepset.text.corpora import prepare_corpus as prepare_corpus
from keepset.text.sources import read_documents as read_documents
from keepset.text.tasks import (
    Encoded as Encoded,
    Item as Item,
    build_items as build_items,
    build_recall as build_recall,
    encode_items as encode_items,
    load_items as load_items,
    read_items as read_items,
    save_items as save_items,
)
