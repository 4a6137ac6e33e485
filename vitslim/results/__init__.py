"""Plain values that several rooms share: measurements, estimates, the plan and the report."""

from vitslim.results.latency_table import LatencyTable
from vitslim.results.token_picture import PatchState, SqueezedBlock, TokenPicture
from vitslim.results.value import Value
from vitslim.results.values import (
    REPORT_SCHEMA_VERSION,
    RESOLVED_KEY,
    Accuracy,
    Assumption,
    Bound,
    Cost,
    Energy,
    Environment,
    Estimate,
    EstimateRow,
    GateResult,
    LayerNote,
    Measurement,
    Plan,
    PlanRow,
    Report,
    Roofline,
    StageRecord,
    Utilization,
)

__all__ = [
    "REPORT_SCHEMA_VERSION",
    "RESOLVED_KEY",
    "Accuracy",
    "Assumption",
    "Bound",
    "Cost",
    "Energy",
    "Environment",
    "Estimate",
    "EstimateRow",
    "GateResult",
    "LatencyTable",
    "LayerNote",
    "Measurement",
    "PatchState",
    "Plan",
    "PlanRow",
    "Report",
    "Roofline",
    "SqueezedBlock",
    "StageRecord",
    "TokenPicture",
    "Utilization",
    "Value",
]
