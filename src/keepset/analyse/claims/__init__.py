"""The papers' claims, each with a rule that turns tables into a verdict."""

from keepset.analyse.claims.case import VERDICTS as VERDICTS, Case as Case, Claim as Claim
from keepset.analyse.claims.catalogue import CLAIMS as CLAIMS
from keepset.analyse.claims.evidence import Evidence as Evidence, traits as traits
from keepset.analyse.claims.judge import judge as judge
