"""Plain values that several rooms share: measurements, estimates, the plan and the report."""

from vitslim.results.accelerator_result import AcceleratorResult, ApproximateAccuracy, Distribution
from vitslim.results.gate_result import GateResult
from vitslim.results.latency_table import LatencyTable, TableCheck
from vitslim.results.operator_profile import OperatorProfile, OperatorTime
from vitslim.results.plan import Plan, PlanRow
from vitslim.results.pruned_widths import BlockWidths, PrunedWidths
from vitslim.results.tensor_bits import TensorBits
from vitslim.results.token_picture import PatchState, SqueezedBlock, TokenPicture
from vitslim.results.two_four import TwoFourLayer, TwoFourUse
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
    LayerNote,
    Measurement,
    Report,
    Roofline,
    Sensitivity,
    StageRecord,
    Utilization,
)

__all__ = [
    "REPORT_SCHEMA_VERSION",
    "RESOLVED_KEY",
    "AcceleratorResult",
    "Accuracy",
    "ApproximateAccuracy",
    "Assumption",
    "BlockWidths",
    "Bound",
    "Cost",
    "Distribution",
    "Energy",
    "Environment",
    "Estimate",
    "EstimateRow",
    "GateResult",
    "LatencyTable",
    "LayerNote",
    "Measurement",
    "OperatorProfile",
    "OperatorTime",
    "PatchState",
    "Plan",
    "PlanRow",
    "PrunedWidths",
    "Report",
    "Roofline",
    "Sensitivity",
    "SqueezedBlock",
    "StageRecord",
    "TableCheck",
    "TensorBits",
    "TokenPicture",
    "TwoFourLayer",
    "TwoFourUse",
    "Utilization",
    "Value",
]
