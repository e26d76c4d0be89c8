"""The papers' claims, each with a rule that turns tables into a verdict."""

from keepset.claims.case import Case, Claim
from keepset.claims.catalogue import CLAIMS
from keepset.claims.evidence import Evidence, traits
from keepset.claims.judge import VERDICTS, judge

__all__ = ["CLAIMS", "VERDICTS", "Case", "Claim", "Evidence", "judge", "traits"]
