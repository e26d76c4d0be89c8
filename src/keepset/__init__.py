"""keepset: which parts of a language model can be left out, chosen how, and for how long?"""

__version__ = "0.1.0"
