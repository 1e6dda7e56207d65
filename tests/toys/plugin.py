"""For `pytest -p tests.toys.plugin`: three lines register the toys, and the contract suites take
them up."""

from encoders.registry import ENCODERS
from pipelines.run.makers import MAKERS
from pipelines.run.steps import STEPS
from tests.toys import result, step

ENCODERS["toy"] = "tests.toys.encoder.MeanSquare"
STEPS["toy"] = step.STEP
MAKERS["toy"] = result.MAKER
