"""The papers' claims, each with a rule that turns tables into a verdict."""

from keepset.analyse.claims.case import Case, Claim
from keepset.analyse.claims.catalogue import CLAIMS
from keepset.analyse.claims.evidence import Evidence, traits
from keepset.analyse.claims.judge import VERDICTS, judge

__all__ = ["CLAIMS", "VERDICTS", "Case", "Claim", "Evidence", "judge", "traits"]
