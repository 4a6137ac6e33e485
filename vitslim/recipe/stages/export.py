"""Configs of `export` stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from vitslim.errors import Problem
from vitslim.recipe.config import EXPECTED, one_of
from vitslim.recipe.formats.file_form import INPUT, LOGITS, OPSET, OPSETS, FileForm
from vitslim.recipe.formats.layouts import LAYOUTS
from vitslim.recipe.formats.profiles import PROFILES, Profile
from vitslim.recipe.stage_config import Phase, StageConfig

NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*$"
NAME_WORDS = "letters, digits and '_', beginning with a letter"


class Export(StageConfig):
    """Write the ONNX file."""

    kind: ClassVar[str] = "export"
    phase: ClassVar[Phase] = Phase.EXPORT

    method: Literal["onnx"] = "onnx"
    profile: Annotated[str, one_of(PROFILES, "form of the file")] = "portable"
    layout: Annotated[str, one_of(LAYOUTS, "files of the folder of the run")] = "plain"
    opset: Annotated[int, Field(ge=OPSETS[0], le=OPSETS[1])] = Field(
        OPSET, description="version of the ONNX operator set. INT4 weights and weight groups need 21, 8-bit floats 19"
    )
    batch: Literal["dynamic"] | PositiveInt = Field(
        "dynamic", description="dynamic: images of any batch size; N: always N images"
    )
    input_name: Annotated[str, Field(pattern=NAME_PATTERN, json_schema_extra={EXPECTED: NAME_WORDS})] = Field(
        INPUT, description="name of the input"
    )
    output_name: Annotated[str, Field(pattern=NAME_PATTERN, json_schema_extra={EXPECTED: NAME_WORDS})] | None = Field(
        None,
        description="name of the output; default: `logits`, or `features` for a model without a classifier. Several "
        "outputs are NAME_0, NAME_1, ...",
    )

    @property
    def export_profile(self) -> Profile:
        """The form of the file."""
        return PROFILES[self.profile]

    @property
    def form(self) -> FileForm:
        """The names, batch size and opset of the file."""
        batch = None if self.batch == "dynamic" else self.batch
        return FileForm(self.input_name, self.output_name, batch, self.opset)

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:
        """Yield a problem for an opset that cannot store the quantized weights, and for equal names."""
        yield from super().problems(before, after)
        for config in before:
            needed = config.lowest_opset
            if needed > self.opset:
                message = f"the weights of `{config.kind}` need opset {needed}, got `opset: {self.opset}`"
                yield Problem("opset", message, f"set `opset: {needed}`, or remove `opset`")
        if self.layout == "hf":
            for key, name in (("input_name", INPUT), ("output_name", LOGITS)):
                if getattr(self, key) not in (None, name):
                    message = f"`layout: hf` needs `{name}`, got `{getattr(self, key)}`"
                    yield Problem(key, message, f"remove `{key}`, or use `layout: plain`")
        if self.input_name in self.form.output_names():
            message = f"the input and the output have the same name, '{self.input_name}'"
            yield Problem("output_name", message, "choose another name")
